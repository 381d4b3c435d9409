//! What can go wrong between us and the kernel, and what an operator can do about it.

use std::io;
use std::path::PathBuf;

use aya::maps::MapError;
use aya::programs::ProgramError;

#[derive(Debug, thiserror::Error)]
pub(crate) enum RedirectionError {
    #[error(
        "this weir-agent was built without its eBPF object; build it with `cargo xtask ebpf`, then build the agent again"
    )]
    NoObject,
    #[error("cannot read the kernel's type information at {}; the kernel needs CONFIG_DEBUG_INFO_BTF=y", path.display())]
    NoTypes { path: PathBuf, source: io::Error },
    #[error("the kernel's type information is not understood: {what}")]
    BadTypes { what: String },
    #[error(
        "the kernel is locked down to `confidentiality`, where eBPF programs may not tell one process from another; boot with lockdown=integrity"
    )]
    Lockdown,
    #[error("no cgroup2 mount in /proc/self/mountinfo; mount one: mount -t cgroup2 none /sys/fs/cgroup")]
    NoCgroup2,
    #[error("cannot {doing} cgroup {}", path.display())]
    Cgroup { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot mount {what} at {}; run as root, or mount it yourself", at.display())]
    Mount { what: &'static str, at: PathBuf, source: io::Error },
    #[error("{} is not on a bpf file system; pins must be below a bpffs mount such as /sys/fs/bpf", path.display())]
    NotBpffs { path: PathBuf },
    #[error("cannot {doing} {}", path.display())]
    Pins { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("another node agent holds {}; stop it, or give this one other pins", path.display())]
    Busy { path: PathBuf },
    #[error("cannot load the eBPF object; it takes root, or CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN")]
    Object(#[source] Box<aya::EbpfError>),
    #[error("the eBPF object has no {what}; agent and object are of different builds")]
    Missing { what: &'static str },
    #[error("the kernel refuses program {program}")]
    Program { program: &'static str, source: Box<ProgramError> },
    #[error("cannot {doing} program {program}")]
    Link { doing: &'static str, program: &'static str, source: io::Error },
    #[error("cannot {doing}")]
    Table { doing: &'static str, source: Box<MapError> },
    #[error("process {pid}: {what}")]
    Process { pid: u32, what: &'static str },
    #[error("the listener cannot serve redirected connections: {what}")]
    Listener { what: &'static str },
    #[error("cannot {doing}")]
    Socket { doing: &'static str, source: io::Error },
    #[error("the kernel's record of a connection is not understood: {what}")]
    Record { what: &'static str },
}

impl RedirectionError {
    pub(super) fn table(doing: &'static str) -> impl FnOnce(MapError) -> Self {
        move |source| Self::Table { doing, source: Box::new(source) }
    }
}
