//! What /proc tells of the process behind a connection. What it can no longer tell is unknown, never guessed.

use std::fs;

use weir_proto::v1;
use weir_protocols::mask::MaskPlan;

use crate::redirection::Flow;

/// Longest command line that is read, bytes.
const CMDLINE_BYTES_MAX: usize = 16 * 1024;

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
    pub(crate) fn read(flow: &Flow) -> Self {
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
            let executable = fs::read_link(format!("/proc/{}/exe", flow.pid));
            let argv = command_line(flow.pid);
            let cgroup = cgroup_of(flow.pid);
            if flow.still_runs() {
                process.executable = executable.ok().map(|path| path.to_string_lossy().into_owned());
                process.argv = argv;
                process.cgroup = cgroup;
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

/// The command line of a process after record masking; empty when it cannot be read.
pub(crate) fn command_line(pid: u32) -> Vec<String> {
    let Ok(mut bytes) = fs::read(format!("/proc/{pid}/cmdline")) else { return Vec::new() };
    bytes.truncate(CMDLINE_BYTES_MAX);
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
