//! Gates: each mechanism against bypass, and whether it holds here. The level reached is reported, never assumed.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{Cgroup, ProcessStart, find_cgroup2_mount};

/// The inode of the pid namespace of the host (`PROC_PID_INIT_INO`).
const HOST_PID_NAMESPACE: u64 = 0xeffffffc;
/// The same for time (`PROC_TIME_INIT_INO`).
const HOST_TIME_NAMESPACE: u64 = 0xeffffffa;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Gate {
    pub(crate) name: &'static str,
    pub(crate) state: GateState,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum GateState {
    Holds,
    /// Why the kernel cannot.
    NotOnThisKernel(String),
    /// What weakens it.
    Weakened(String),
}

/// The gates of the redirection that is attached at `scope`.
pub(super) fn all(scope: &Cgroup, routes_known: bool, bypassed: Result<bool, String>) -> Vec<Gate> {
    // Their programs are attached, or attach() would have failed.
    let attached = ["connect", "hand-over", "getpeername", "process-tree"]
        .map(|name| Gate { name, state: GateState::Holds });
    let judged = [
        Gate { name: "cgroup-move", state: cgroup_move(scope) },
        Gate { name: "process-start", state: process_start() },
        Gate { name: "no-route", state: no_route(routes_known) },
        Gate { name: "getpeername-mptcp", state: getpeername_mptcp() },
        Gate { name: "no-bypass", state: no_bypass(bypassed) },
    ];
    attached.into_iter().chain(judged).collect()
}

fn cgroup_move(scope: &Cgroup) -> GateState {
    match find_cgroup2_mount() {
        Ok(mount) if mount == scope.path() => GateState::Holds,
        _ => GateState::Weakened(
            "holds only with the root cgroup as scope, or while governed processes cannot write to the cgroup file \
             system: a process that leaves the scope's cgroup makes its further sockets outside"
                .into(),
        ),
    }
}

/// A reused pid inherits nothing if starts can be read and compared.
fn process_start() -> GateState {
    for (namespace, host, tells) in [
        ("/proc/self/ns/pid", HOST_PID_NAMESPACE, "pid"),
        ("/proc/self/ns/time", HOST_TIME_NAMESPACE, "time"),
    ] {
        // A kernel without time namespaces has no such file, and nothing to differ.
        if Path::new(namespace).exists()
            && fs::metadata(namespace).map(|found| found.ino()).ok() != Some(host)
        {
            return GateState::Weakened(format!(
                "the agent is not in the host's {tells} namespace: process rules match nothing; run it there"
            ));
        }
    }
    match ProcessStart::of(std::process::id()) {
        Some(_) => GateState::Holds,
        None => GateState::Weakened("/proc is not mounted, or hides processes".into()),
    }
}

fn no_route(known: bool) -> GateState {
    if known {
        return GateState::Holds;
    }
    GateState::Weakened(
        "the routes cannot be read: a connect() without one succeeds and is reset by the proxy".into(),
    )
}

/// Nobody has asked for connections to be let through, or that is over.
fn no_bypass(bypassed: Result<bool, String>) -> GateState {
    match bypassed {
        Ok(false) => GateState::Holds,
        Ok(true) => GateState::Weakened(
            "`weir-agent bypass` is under way: governed connections pass unredirected and unrecorded".into(),
        ),
        Err(error) => {
            GateState::Weakened(format!("it cannot be told whether a bypass is under way: {error}"))
        }
    }
}

/// An MPTCP connection is made by an inner socket: that is the one the connect hook sees, and its record is copied to the
/// outer one where the kernel's types name it.
fn getpeername_mptcp() -> GateState {
    match fs::read_to_string("/proc/sys/net/mptcp/enabled") {
        Ok(enabled) if enabled.trim() != "0" => GateState::Holds,
        _ => GateState::NotOnThisKernel("MPTCP is not built in, or off".into()),
    }
}
