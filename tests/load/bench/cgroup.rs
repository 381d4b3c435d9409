//! Processor time and memory of whole process trees, children that have ended too.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;

/// A cgroup of the bench's own. No controller is needed for its processor time.
#[derive(Clone, Debug)]
pub(crate) struct Group(PathBuf);

impl Group {
    pub(crate) fn make(path: PathBuf) -> anyhow::Result<Self> {
        fs::create_dir_all(&path).with_context(|| format!("cannot make the cgroup {}", path.display()))?;
        Ok(Self(path))
    }

    /// One that somebody else makes.
    pub(crate) fn named(path: PathBuf) -> Self {
        Self(path)
    }

    /// Its processes, with all that they start from now on.
    pub(crate) fn take(&self, pid: u32) -> anyhow::Result<()> {
        fs::write(self.0.join("cgroup.procs"), pid.to_string())
            .with_context(|| format!("cannot move {pid} into {}", self.0.display()))
    }

    /// The same command, running in it.
    pub(crate) fn around(&self, command: &Command) -> Command {
        let mut inside = Command::new("sh");
        inside
            .args(["-c", "echo $$ > \"$0\" && exec \"$@\""])
            .arg(self.0.join("cgroup.procs"))
            .arg(command.get_program())
            .args(command.get_args());
        inside.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        inside
    }

    /// Processor time so far, in user and kernel.
    pub(crate) fn processor_time(&self) -> anyhow::Result<Duration> {
        let path = self.0.join("cpu.stat");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
        Ok(Duration::from_micros(usage.context("no usage_usec in cpu.stat")?.trim().parse()?))
    }
}

/// What a process holds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    /// Its own, bytes: heap and stacks.
    pub(crate) anonymous: u64,
    /// With its share of mapped files: the program, and the journals, which are page cache.
    pub(crate) resident: u64,
}

impl Memory {
    pub(crate) fn of(pid: u32) -> anyhow::Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let bytes = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
            kib.map(|kib| kib * 1024).with_context(|| format!("no {name} of process {pid}"))
        };
        Ok(Self { anonymous: bytes("RssAnon:")?, resident: bytes("VmRSS:")? })
    }
}

/// Open files of a process.
pub(crate) fn open_files(pid: u32) -> anyhow::Result<usize> {
    Ok(fs::read_dir(Path::new("/proc").join(pid.to_string()).join("fd"))?.count())
}
