//! What is known of the process behind a connection: what the kernel's record says, and what /proc adds. What /proc can no
//! longer tell is unknown, never guessed.

use std::collections::HashMap;
use std::fs;
use std::io::Read as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use weir_proto::v1;
use weir_protocols::mask::MaskPlan;

use super::container::containers;
use super::digest::{Digest, Digesting};
use crate::redirection::{Flow, cgroup_path};

/// Longest command line that is read, bytes.
const CMDLINE_BYTES_MAX: u64 = 16 * 1024;
/// How long a command line may take to be read; then it is unknown.
const IMAGE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a connection waits for the digest of its executable only to have it recorded: a second connection finds it.
const DIGEST_TIMEOUT: Duration = Duration::from_millis(250);
/// The same where a rule needs it to decide.
const NEEDED_DIGEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Images that are remembered; at more, all are read anew.
const IMAGES_MAX: usize = 4096;
/// What the kernel appends to the path of a file that is no longer there, or is another by now.
const DELETED: &str = " (deleted)";

/// What rules ask about a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(super) uid: Option<u32>,
    /// Path in the cgroup2 hierarchy.
    pub(super) cgroup: Option<String>,
    pub(super) container: Contained,
    /// Path of the executable.
    pub(super) executable: Option<String>,
    pub(super) digest: Option<Digest>,
}

/// The containers that a process is in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Contained {
    #[default]
    Unknown,
    /// Their ids, the outermost first; empty for a process of the host.
    In(Vec<String>),
}

/// A process at the time of its connect(), as far as it could still be read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Process {
    pid: u32,
    start_time_ns: u64,
    gid: u32,
    comm: String,
    cgroup_id: u64,
    image: Arc<Image>,
    /// After record masking.
    argv: Vec<String>,
    pub(super) facts: Facts,
}

impl Process {
    pub(crate) async fn read(flow: &Flow) -> Self {
        let image = Image::of(flow).await;
        let mut digesting = image.digesting.clone();
        let digest = digesting.wait(DIGEST_TIMEOUT).await;
        let cgroup = cgroup_path(flow.cgroup_id);
        Self {
            pid: flow.pid,
            start_time_ns: flow.start_time_ns,
            gid: flow.gid,
            comm: flow.comm.clone(),
            cgroup_id: flow.cgroup_id,
            argv: image.argv.clone(),
            facts: Facts {
                uid: Some(flow.uid),
                container: Contained::of(cgroup.as_deref(), || image.hierarchies.clone()),
                cgroup,
                executable: image.executable.clone(),
                digest,
            },
            image,
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    pub(crate) fn uid(&self) -> u32 {
        self.facts.uid.unwrap_or(u32::MAX)
    }

    /// Waits for the digest as long as a decision is worth.
    pub(super) async fn insist_on_digest(&mut self) {
        if self.facts.digest.is_none() {
            self.facts.digest = self.image.digesting.clone().wait(NEEDED_DIGEST_TIMEOUT).await;
        }
    }

    pub(crate) fn to_message(&self) -> v1::Process {
        let container = match &self.facts.container {
            Contained::In(ids) => ids.last().cloned(),
            Contained::Unknown => None,
        };
        v1::Process {
            boot_id: boot_id().to_owned(),
            pid: self.pid,
            start_time_ns: self.start_time_ns,
            uid: self.uid(),
            gid: self.gid,
            comm: self.comm.clone(),
            executable: self.image.path.clone().unwrap_or_default(),
            argv: self.argv.clone(),
            cgroup: self.facts.cgroup.clone().unwrap_or_default(),
            cgroup_id: self.cgroup_id,
            executable_sha256: self.facts.digest.map(Digest::to_field).unwrap_or_default(),
            container: container.unwrap_or_default(),
        }
    }
}

impl Contained {
    /// `all_hierarchies` gives the text of `/proc/PID/cgroup`; it is asked only where cgroup1 is in use too.
    pub(super) fn of(cgroup: Option<&str>, all_hierarchies: impl FnOnce() -> Option<String>) -> Self {
        let ids = |path: &str| -> Vec<String> {
            containers(path).map(|container| container.id.to_owned()).collect()
        };
        if let Some(found) = cgroup.map(ids).filter(|found| !found.is_empty()) {
            return Self::In(found);
        }
        if !has_cgroup1() {
            return cgroup.map_or(Self::Unknown, |_| Self::In(Vec::new()));
        }
        match all_hierarchies() {
            Some(lines) => {
                // hierarchy:controllers:path
                let paths = lines.lines().filter_map(|line| line.splitn(3, ':').nth(2));
                Self::In(paths.map(ids).find(|found| !found.is_empty()).unwrap_or_default())
            }
            None => Self::Unknown,
        }
    }
}

/// Whether cgroup1 hierarchies are mounted beside cgroup2.
fn has_cgroup1() -> bool {
    static HAS: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *HAS.get_or_init(|| {
        fs::read_to_string("/proc/self/cgroup")
            .is_ok_and(|text| text.lines().any(|line| !line.starts_with("0::")))
    })
}

/// What a process executes: does not change until it executes something else, so it is read once.
#[derive(Debug)]
struct Image {
    /// As the kernel tells it, for people.
    path: Option<String>,
    /// The same if the file is still there under that name.
    executable: Option<String>,
    argv: Vec<String>,
    digesting: Digesting,
    /// The text of `/proc/PID/cgroup` on a host that has cgroup1 too: there containers may be named in its hierarchies only.
    hierarchies: Option<String>,
}

impl Default for Image {
    fn default() -> Self {
        Self {
            path: None,
            executable: None,
            argv: Vec::new(),
            digesting: Digesting::Unknown,
            hierarchies: None,
        }
    }
}

/// Names one image of one process: (pid, start, executables before this one).
pub(super) type ImageKey = (u32, u64, u64);

pub(super) fn image_key(flow: &Flow) -> ImageKey {
    (flow.pid, flow.start_time_ns, flow.exec_id)
}

static IMAGES: Mutex<Option<HashMap<ImageKey, Arc<Image>>>> = Mutex::new(None);

impl Image {
    async fn of(flow: &Flow) -> Arc<Self> {
        let key = image_key(flow);
        if let Some(image) =
            IMAGES.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default().get(&key)
        {
            return image.clone();
        }
        // Reading a command line touches the memory of its process, which may make the reader wait for as long as it likes;
        // so may opening its executable.
        let (pid, runtime) = (flow.pid, tokio::runtime::Handle::current());
        let read = tokio::task::spawn_blocking(move || Self::read(pid, &runtime));
        let image = match tokio::time::timeout(IMAGE_TIMEOUT, read).await {
            // The process may be gone, its pid another's, its executable replaced: then this is about something else.
            Ok(Ok(image)) if flow.same_image() => Arc::new(image),
            Ok(_) | Err(_) => return Arc::default(),
        };
        let mut images = IMAGES.lock().unwrap_or_else(PoisonError::into_inner);
        let images = images.get_or_insert_default();
        if images.len() >= IMAGES_MAX {
            images.clear();
        }
        images.insert(key, image.clone());
        image
    }

    fn read(pid: u32, runtime: &tokio::runtime::Handle) -> Self {
        let path = executable(pid);
        Self {
            executable: path.clone().filter(|path| !path.ends_with(DELETED)),
            path,
            argv: command_line(pid),
            digesting: Digesting::start(pid, runtime),
            hierarchies: has_cgroup1()
                .then(|| fs::read_to_string(format!("/proc/{pid}/cgroup")).ok())
                .flatten(),
        }
    }
}

/// Where the executable of a process lies; of one that was deleted or replaced nobody can tell any more.
pub(super) fn executable_of(pid: u32) -> Option<String> {
    executable(pid).filter(|path| !path.ends_with(DELETED))
}

fn executable(pid: u32) -> Option<String> {
    fs::read_link(format!("/proc/{pid}/exe")).ok().map(|path| path.to_string_lossy().into_owned())
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

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0f3a1cde9b7e4b1d8a6f5c4d3e2b1a0f9e8d7c6b5a4938271605f4e3d2c1b0a9";

    #[test]
    fn containers_are_found_in_any_hierarchy_and_unknown_where_none_can_be_read() {
        let inside = Contained::In(vec![ID.to_owned()]);
        let path = format!("/docker/{ID}/x");
        assert_eq!(Contained::of(Some(&path), || None), inside);
        let lines = format!("5:memory:/docker/{ID}\n0::/\n");
        let elsewhere = Contained::of(Some("/"), || Some(lines));
        let (by_lines, without) = if has_cgroup1() {
            (inside, Contained::Unknown)
        } else {
            (Contained::In(Vec::new()), Contained::In(Vec::new()))
        };
        assert_eq!(elsewhere, by_lines);
        assert_eq!(Contained::of(Some("/"), || None), without);
        assert_eq!(Contained::of(None, || None), Contained::Unknown);
    }

    #[test]
    fn a_process_that_is_gone_has_no_executable_and_no_command_line() {
        assert_eq!(executable_of(u32::MAX), None);
        assert_eq!(command_line(u32::MAX), [""; 0]);
        assert!(executable_of(std::process::id()).is_some_and(|path| path.starts_with('/')));
    }
}
