//! What /proc tells of the process behind a connection. What it can no longer tell is unknown, never guessed.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use weir_proto::v1;
use weir_protocols::mask::MaskPlan;

use crate::redirection::Flow;

/// Longest command line that is read, bytes.
const CMDLINE_BYTES_MAX: u64 = 16 * 1024;
/// How long a command line may take to be read; then it is unknown.
const IMAGE_TIMEOUT: Duration = Duration::from_secs(1);
/// Images that are remembered; at more, all are read anew.
const IMAGES_MAX: usize = 4096;

/// A process at the time of its connect(), as far as it could still be read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Process {
    pid: u32,
    start_time_ns: u64,
    uid: u32,
    gid: u32,
    comm: String,
    cgroup_id: u64,
    /// `None` = unknown.
    pub(crate) executable: Option<String>,
    /// After record masking.
    argv: Vec<String>,
    /// Path in the cgroup2 hierarchy. `None` = unknown.
    pub(crate) cgroup: Option<String>,
}

impl Process {
    pub(crate) async fn read(flow: &Flow) -> Self {
        let mut process = Self {
            pid: flow.pid,
            start_time_ns: flow.start_time_ns,
            uid: flow.uid,
            gid: flow.gid,
            comm: flow.comm.clone(),
            cgroup_id: flow.cgroup_id,
            ..Self::default()
        };
        // The process may be gone, or its pid taken by another: then all that /proc says is about somebody else.
        if flow.still_runs() {
            let cgroup = cgroup_of(flow.pid);
            let image = Image::of(flow).await;
            if flow.still_runs() {
                process.cgroup = cgroup;
                process.executable = image.executable.clone();
                process.argv = image.argv.clone();
            }
        }
        process
    }

    pub(crate) fn uid(&self) -> u32 {
        self.uid
    }

    pub(crate) fn to_message(&self) -> v1::Process {
        v1::Process {
            boot_id: boot_id().to_owned(),
            pid: self.pid,
            start_time_ns: self.start_time_ns,
            uid: self.uid,
            gid: self.gid,
            comm: self.comm.clone(),
            executable: self.executable.clone().unwrap_or_default(),
            argv: self.argv.clone(),
            cgroup: self.cgroup.clone().unwrap_or_default(),
            cgroup_id: self.cgroup_id,
        }
    }
}

/// What a process executes: does not change until it executes something else, so it is read once.
#[derive(Debug, Default)]
struct Image {
    executable: Option<String>,
    argv: Vec<String>,
}

/// (pid, start, executables before this one) names one image of one process.
type ImageKey = (u32, u64, u64);

static IMAGES: Mutex<BTreeMap<ImageKey, Arc<Image>>> = Mutex::new(BTreeMap::new());

impl Image {
    async fn of(flow: &Flow) -> Arc<Self> {
        let key = (flow.pid, flow.start_time_ns, flow.exec_id);
        let known = || IMAGES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(image) = known().get(&key) {
            return image.clone();
        }
        // Reading a command line touches the memory of its process, which may make the reader wait for as long as it likes.
        let pid = flow.pid;
        let read = tokio::task::spawn_blocking(move || Self::read(pid));
        let image = match tokio::time::timeout(IMAGE_TIMEOUT, read).await {
            Ok(Ok(image)) => Arc::new(image),
            Ok(Err(_)) | Err(_) => return Arc::default(),
        };
        let mut images = known();
        if images.len() >= IMAGES_MAX {
            images.clear();
        }
        images.insert(key, image.clone());
        image
    }

    fn read(pid: u32) -> Self {
        let executable = fs::read_link(format!("/proc/{pid}/exe"));
        Self {
            executable: executable.ok().map(|path| path.to_string_lossy().into_owned()),
            argv: command_line(pid),
        }
    }
}

/// The command line of a process after record masking; empty when it cannot be read.
fn command_line(pid: u32) -> Vec<String> {
    let mut bytes = Vec::new();
    let read = fs::File::open(format!("/proc/{pid}/cmdline"))
        .and_then(|file| file.take(CMDLINE_BYTES_MAX).read_to_end(&mut bytes));
    if read.is_err() {
        return Vec::new();
    }
    let argv: Vec<String> = bytes
        .split(|byte| *byte == 0)
        .filter(|argument| !argument.is_empty())
        .map(|argument| String::from_utf8_lossy(argument).into_owned())
        .collect();
    MaskPlan::standard().argv(&argv)
}

/// The process's path in the cgroup2 hierarchy (the line `0::PATH`).
pub(crate) fn cgroup_of(pid: u32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}

/// Names this boot; "" where /proc is not mounted.
pub(crate) fn boot_id() -> &'static str {
    static BOOT_ID: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    BOOT_ID.get_or_init(|| {
        fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map(|id| id.trim().to_owned())
            .unwrap_or_default()
    })
}
