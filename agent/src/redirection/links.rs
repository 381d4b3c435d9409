//! Attaching: every program under a pinned link, adopted from an earlier agent or made.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::object::Object;
use super::pins::Pins;
use super::{Cgroup, RedirectionError, sys};

/// One program and where it goes.
pub(super) struct Link {
    pub(super) program: &'static str,
    hook: Hook,
}

enum Hook {
    /// `enum bpf_attach_type`, on the scope.
    Scope(u32),
    /// `enum bpf_attach_type`, on the agent's own cgroup.
    Own(u32),
    RawTracepoint(&'static CStr),
}

const CGROUP_SOCK_OPS: u32 = 3;
const CGROUP_INET4_CONNECT: u32 = 10;
const CGROUP_INET6_CONNECT: u32 = 11;
const CGROUP_INET4_GETPEERNAME: u32 = 29;
const CGROUP_INET6_GETPEERNAME: u32 = 30;

/// In the order of attaching: what a redirected connection relies on is there before the first is redirected.
pub(super) const ALL: [Link; 8] = [
    Link { program: "weir_forked", hook: Hook::RawTracepoint(c"sched_process_fork") },
    Link { program: "weir_exited", hook: Hook::RawTracepoint(c"sched_process_exit") },
    Link { program: "weir_arrivals", hook: Hook::Own(CGROUP_SOCK_OPS) },
    Link { program: "weir_departures", hook: Hook::Scope(CGROUP_SOCK_OPS) },
    Link { program: "weir_peername4", hook: Hook::Scope(CGROUP_INET4_GETPEERNAME) },
    Link { program: "weir_peername6", hook: Hook::Scope(CGROUP_INET6_GETPEERNAME) },
    Link { program: "weir_connect4", hook: Hook::Scope(CGROUP_INET4_CONNECT) },
    Link { program: "weir_connect6", hook: Hook::Scope(CGROUP_INET6_CONNECT) },
];

/// Attaches all. What was adopted stays when a later one fails, what was made by this call is taken back: a failed first
/// start leaves no host that refuses connections, a failed restart none that lets them pass.
pub(super) fn attach_all(
    object: &Object,
    pins: &Pins,
    scope: &Cgroup,
    own: &Cgroup,
) -> Result<(), RedirectionError> {
    let mut made = Vec::new();
    for link in &ALL {
        match link.attach(object, pins, scope, own) {
            Ok(Origin::Adopted) => {}
            Ok(Origin::Made(pin)) => made.push(pin),
            Err(error) => {
                take_back(&made);
                return Err(error);
            }
        }
    }
    Ok(())
}

enum Origin {
    Adopted,
    Made(PathBuf),
}

impl Link {
    fn attach(
        &self,
        object: &Object,
        pins: &Pins,
        scope: &Cgroup,
        own: &Cgroup,
    ) -> Result<Origin, RedirectionError> {
        let program = object.program(self.program)?;
        let program = program.as_fd();
        let pin = pins.link(self.program);
        let pinned = match sys::object_get(&pin) {
            Ok(link) => Some(link),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(self.failed("look up the pinned link of")(error)),
        };
        match self.hook {
            Hook::Scope(kind) => self.on_cgroup(program, scope, kind, pinned, &pin),
            Hook::Own(kind) => self.on_cgroup(program, own, kind, pinned, &pin),
            Hook::RawTracepoint(name) => {
                let link = sys::raw_tracepoint_open(program, name).map_err(self.failed("attach"))?;
                self.replace(link, pinned, &pin)
            }
        }
    }

    fn on_cgroup(
        &self,
        program: BorrowedFd<'_>,
        cgroup: &Cgroup,
        kind: u32,
        pinned: Option<OwnedFd>,
        pin: &Path,
    ) -> Result<Origin, RedirectionError> {
        if let Some(link) = &pinned {
            let info = sys::link_info(link.as_fd()).map_err(self.failed("ask about the link of"))?;
            if info.cgroup == cgroup.id() {
                sys::link_update(link.as_fd(), program).map_err(self.failed("replace"))?;
                return Ok(Origin::Adopted);
            }
        }
        // No link, or one to a cgroup that is not ours any more: the two never meet on one cgroup.
        let link = sys::link_create(program, cgroup.as_fd(), kind).map_err(self.failed("attach"))?;
        self.replace(link, pinned, pin)
    }

    /// Pins a new link in the place of an old one, which detaches that. The kernel cannot put another program under the link of
    /// a tracepoint, so there both run for a moment: they write the same entries to the same table.
    fn replace(&self, link: OwnedFd, old: Option<OwnedFd>, pin: &Path) -> Result<Origin, RedirectionError> {
        if old.is_some() {
            fs::remove_file(pin).map_err(self.failed("unpin the old link of"))?;
        }
        sys::object_pin(link.as_fd(), pin).map_err(self.failed("pin the link of"))?;
        Ok(if old.is_some() { Origin::Adopted } else { Origin::Made(pin.into()) })
    }

    fn failed(&self, doing: &'static str) -> impl Fn(io::Error) -> RedirectionError {
        let program = self.program;
        move |source| RedirectionError::Link { doing, program, source }
    }
}

fn take_back(made: &[PathBuf]) {
    for pin in made.iter().rev() {
        if let Err(error) = fs::remove_file(pin) {
            tracing::error!(pin = %pin.display(), %error, "a link of a failed start stays; remove it by hand");
        }
    }
}
