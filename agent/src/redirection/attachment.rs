//! [`Redirection`]: the programs in the kernel and the tables that steer them.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aya::maps::MapError;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};
use socket2::SockRef;
use weir_agent_ebpf::{Counter, Entrance, Membership, ProcessEntry, Settings, entrance_flags};
use weir_proto::RunId;

use super::flow::{run_id, run_words};
use super::object::{Accepted, Object, Tables};
use super::pins::{self, Pins};
use super::routes::{self, RouteWatch};
use super::{
    Cgroup, Counters, Flow, Gate, ProcessStart, RedirectionError, Who, gate, kernel_types, links, sys,
};

/// Where the programs are attached and where they stay.
#[derive(Clone, Debug)]
pub(crate) struct Scope {
    /// Everything in and below this cgroup is governed, exempt or undecided; nothing outside is touched.
    pub(crate) governed: PathBuf,
    /// The agent's own cgroup. Made if missing, and this process is moved into it: listeners must be opened after attach(),
    /// since a connection is handed over by the cgroup that its listening socket was made in. Not within a governed run.
    pub(crate) own: PathBuf,
    /// A directory on a bpf file system, of this agent alone.
    pub(crate) pins: PathBuf,
    /// Who a process of the scope is that nothing was decided about.
    pub(crate) otherwise: Otherwise,
    /// Most connections between SYN and accept; `None` for what is built in. Kept from the first start to detach().
    pub(crate) tuples_max: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Otherwise {
    /// Redirected; user space decides on accept.
    Undecided,
    /// Left alone.
    #[cfg_attr(
        not(all(test, feature = "kernel-tests")),
        expect(
            dead_code,
            reason = "for a scope whose runs are all begun by `exec`; no option asks for it yet"
        )
    )]
    Exempt,
}

/// The attached redirection. Dropping it, or dying, leaves the programs attached: governed connects are then refused until
/// an agent adopts them. Only [`Redirection::detach`] ends it.
pub(crate) struct Redirection {
    tables: Arc<Mutex<Tables>>,
    /// By netns cookie. Ends before the pins are given up.
    routes: Mutex<HashMap<u64, RouteWatch>>,
    accepted: Accepted,
    /// The mark of this agent's listeners: of this start, not of the pins.
    generation: u64,
    scope: Cgroup,
    pins: Pins,
}

impl Redirection {
    /// Loads the programs and attaches them, or puts them in the place of those that an earlier agent left. Until
    /// [`Redirection::serve`] every governed connect is refused.
    pub(crate) fn attach(scope: &Scope) -> Result<Self, RedirectionError> {
        let kernel = kernel_types::read()?;
        let governed = Cgroup::open(&scope.governed)?;
        let own = Cgroup::create(&scope.own)?;
        let pid = std::process::id();
        own.move_in(pid)?;
        let pins = Pins::open(&scope.pins)?;
        let mut object = Object::load(&pins, &kernel, scope.tuples_max)?;
        let (tables, accepted) = object.tables()?;
        let redirection = Self {
            tables: Arc::new(Mutex::new(tables)),
            routes: Mutex::default(),
            accepted,
            generation: generation()?,
            scope: governed,
            pins,
        };
        // An earlier agent's listeners are gone, and its ports may be anybody's.
        redirection.withdraw()?;
        // So are the namespaces it served, perhaps: nothing would ever remove their routes.
        routes::forget(&redirection.tables, None).map_err(forgetting)?;
        redirection.settle(scope.otherwise)?;
        // Before the first hook is attached: the agent's own connections are its upstreams.
        redirection.exempt_process(pid)?;
        links::attach_all(&object, &redirection.pins, &redirection.scope, &own)?;
        Ok(redirection)
    }

    /// Sends redirected connections of these listeners' network namespace to them from now on, on 127.0.0.1 and ::1. Without
    /// `v6` IPv6 connections are refused. Call it from a thread in that namespace: its routes are watched.
    pub(crate) fn serve<L: AsFd>(&self, v4: &L, v6: Option<&L>) -> Result<(), RedirectionError> {
        let socket = |doing| move |source| RedirectionError::Socket { doing, source };
        let v4_port = listening_port(v4, "127.0.0.1")?;
        let v6_port = v6.map_or(Ok(0), |v6| listening_port(v6, "::1"))?;
        let netns = sys::netns_cookie(v4).map_err(socket("ask for a listener's network namespace"))?;
        let flags = if self.watch_routes(netns) { entrance_flags::ROUTES_KNOWN } else { 0 };
        let mut tables = self.tables();
        for listener in [Some(v4), v6].into_iter().flatten() {
            tables
                .listeners
                .insert(&listener.as_fd().as_raw_fd(), self.generation, 0)
                .map_err(RedirectionError::table("mark a listener as the agent's"))?;
        }
        let entrance = Entrance { generation: self.generation, v4_port, v6_port, flags };
        tables
            .entrances
            .insert(netns, entrance, 0)
            .map_err(RedirectionError::table("publish the agent's ports"))
    }

    /// Refuses governed connects from now on; what is accepted already goes on.
    pub(crate) fn withdraw(&self) -> Result<(), RedirectionError> {
        let mut tables = self.tables();
        let served: Vec<u64> = tables.entrances.keys().filter_map(Result::ok).collect();
        for netns in served {
            ignore_missing(tables.entrances.remove(&netns))
                .map_err(RedirectionError::table("withdraw the agent's ports"))?;
        }
        Ok(())
    }

    /// Ends serving one network namespace: its connects are refused from now on, and its routes forgotten.
    #[cfg_attr(
        not(all(test, feature = "kernel-tests")),
        expect(dead_code, reason = "namespaces beside the agent's own come with their listeners")
    )]
    pub(crate) fn leave(&self, netns: u64) -> Result<(), RedirectionError> {
        ignore_missing(self.tables().entrances.remove(&netns))
            .map_err(RedirectionError::table("withdraw the agent's ports"))?;
        // Ended before its routes are removed, or it would tell them again.
        drop(self.routes.lock().unwrap_or_else(PoisonError::into_inner).remove(&netns));
        routes::forget(&self.tables, Some(netns)).map_err(forgetting)
    }

    /// What the kernel saw of an accepted connection. `None`: nothing; somebody connected to the proxy's port directly, or
    /// the table of connections under way was full. Such a connection has no destination and must be reset.
    pub(crate) fn flow_of(&self, accepted: &impl AsFd) -> Result<Option<Flow>, RedirectionError> {
        match self.accepted.get(&accepted.as_fd().as_raw_fd(), 0) {
            Ok(record) => Flow::from_record(&record).map(Some),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(RedirectionError::table("read the record of an accepted connection")(error)),
        }
    }

    /// Puts everything in and below a cgroup into a run.
    pub(crate) fn govern_cgroup(&self, cgroup_id: u64, run: RunId) -> Result<(), RedirectionError> {
        self.decide_cgroup(
            cgroup_id,
            Membership { run: run_words(run), who: Who::Governed as u8, reserved: [0; 7] },
        )
    }

    /// Leaves everything in and below a cgroup alone.
    #[cfg_attr(
        not(all(test, feature = "kernel-tests")),
        expect(
            dead_code,
            reason = "rules leave alone by the process; whole cgroups come with the host's own services"
        )
    )]
    pub(crate) fn exempt_cgroup(&self, cgroup_id: u64) -> Result<(), RedirectionError> {
        self.decide_cgroup(cgroup_id, Membership { run: [0; 2], who: Who::Exempt as u8, reserved: [0; 7] })
    }

    pub(crate) fn forget_cgroup(&self, cgroup_id: u64) -> Result<(), RedirectionError> {
        ignore_missing(self.tables().cgroups.remove(&cgroup_id))
            .map_err(RedirectionError::table("forget a cgroup"))
    }

    /// Puts a process into a run, and every process it starts from now on. Children it has already are not found; do this
    /// before the process may have any.
    pub(crate) fn govern_process(&self, pid: u32, run: RunId) -> Result<(), RedirectionError> {
        self.decide_process(pid, Who::Governed, run_words(run))
    }

    /// Leaves one process alone; its children are not.
    pub(crate) fn exempt_process(&self, pid: u32) -> Result<(), RedirectionError> {
        self.decide_process(pid, Who::Exempt, [0; 2])
    }

    /// The run a process is in by itself or by its parents; what its cgroup says is not asked.
    pub(crate) fn process_run(&self, pid: u32) -> Option<RunId> {
        let entry = self.tables().processes.get(&pid, 0).ok()?;
        lives(pid, &entry).then(|| run_id(entry.run)).filter(|_| entry.who == Who::Governed as u8)
    }

    /// Processes that are in a run by themselves or by their parents, and live.
    pub(crate) fn members(&self, run: RunId) -> Vec<u32> {
        let run = run_words(run);
        let listed: Vec<_> = self.tables().processes.iter().filter_map(Result::ok).collect();
        listed
            .into_iter()
            .filter(|(pid, entry)| entry.run == run && entry.who == Who::Governed as u8 && lives(*pid, entry))
            .map(|(pid, _)| pid)
            .collect()
    }

    pub(crate) fn counters(&self) -> Result<Counters, RedirectionError> {
        let tables = self.tables();
        let mut sums = [0_u64; Counter::COUNT];
        for (index, sum) in sums.iter_mut().enumerate() {
            let per_cpu =
                tables.counters.get(&(index as u32), 0).map_err(RedirectionError::table("read a counter"))?;
            *sum = per_cpu.iter().fold(0, |sum, value| sum.wrapping_add(*value));
        }
        Ok(Counters::new(sums))
    }

    /// Lets governed connections through, unredirected, until this CLOCK_BOOTTIME; 0 ends it now. The programs see to its end,
    /// and take no notice of one that lies more than `BYPASS_NS_MAX` ahead.
    pub(crate) fn bypass(&self, until_ns: u64) -> Result<(), RedirectionError> {
        self.tables().bypass.set(0, until_ns, 0).map_err(RedirectionError::table("set the end of a bypass"))
    }

    /// As last set, by this agent or an earlier one; 0 = never, or ended.
    pub(crate) fn bypass_until(&self) -> Result<u64, RedirectionError> {
        self.tables().bypass.get(&0, 0).map_err(RedirectionError::table("read the end of a bypass"))
    }

    pub(crate) fn gates(&self) -> Vec<Gate> {
        let routes_known = self
            .tables()
            .entrances
            .iter()
            .filter_map(Result::ok)
            .all(|(_, entrance)| entrance.flags & entrance_flags::ROUTES_KNOWN != 0);
        let bypassed = self.bypass_until().and_then(|until_ns| Ok(until_ns > boot_ns()?));
        gate::all(&self.scope, routes_known, bypassed.map_err(|error| error.to_string()))
    }

    /// Removes the programs and all tables: nothing is redirected or refused any more.
    pub(crate) fn detach(&self) -> Result<(), RedirectionError> {
        self.pins.remove()
    }

    /// Removes what a dead agent left at `pins`; refuses while an agent lives there.
    pub(crate) fn detach_abandoned(pins: &Path) -> Result<(), RedirectionError> {
        pins::remove_abandoned(pins)
    }

    /// False where the routes cannot be read: then every destination is taken to be reachable.
    fn watch_routes(&self, netns: u64) -> bool {
        let mut watched = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        if watched.get(&netns).is_some_and(RouteWatch::is_alive) {
            return true;
        }
        let tables = self.tables.clone();
        let lost = move |error| {
            tracing::error!(%error, "the routes can no longer be watched: a connect() without one fails late, at the proxy");
            let mut tables = tables.lock().unwrap_or_else(PoisonError::into_inner);
            // Nothing served there any more, nothing to change.
            if let Ok(entrance) = tables.entrances.get(&netns, 0)
                && let Err(error) = tables.entrances.insert(netns, Entrance { flags: 0, ..entrance }, 0)
            {
                tracing::error!(%error, "the kernel programs go on with the routes of that time");
            }
        };
        match RouteWatch::start(netns, self.tables.clone(), lost) {
            Ok(watch) => {
                watched.insert(netns, watch);
                true
            }
            Err(error) => {
                tracing::warn!(%error, "the routes cannot be read: a connect() without one fails late, at the proxy");
                false
            }
        }
    }

    fn settle(&self, otherwise: Otherwise) -> Result<(), RedirectionError> {
        let who = match otherwise {
            Otherwise::Undecided => Who::Undecided,
            Otherwise::Exempt => Who::Exempt,
        };
        let settings = Settings { otherwise: who as u8, reserved: [0; 7] };
        self.tables()
            .settings
            .set(0, settings, 0)
            .map_err(RedirectionError::table("set what holds for undecided processes"))
    }

    fn decide_cgroup(&self, cgroup_id: u64, membership: Membership) -> Result<(), RedirectionError> {
        self.tables()
            .cgroups
            .insert(cgroup_id, membership, 0)
            .map_err(RedirectionError::table("decide about a cgroup"))
    }

    fn decide_process(&self, pid: u32, who: Who, run: [u64; 2]) -> Result<(), RedirectionError> {
        let gone = RedirectionError::Process { pid, what: "it does not run, or it is a thread" };
        let Some(start) = ProcessStart::of(pid) else { return Err(gone) };
        let entry = ProcessEntry { run, start_ticks: start.ticks(), who: who as u8, reserved: [0; 7] };
        let mut tables = self.tables();
        tables.processes.insert(pid, entry, 0).map_err(RedirectionError::table("decide about a process"))?;
        // It may have ended before the entry was there for the exit hook to remove.
        if ProcessStart::of(pid) == Some(start) {
            return Ok(());
        }
        ignore_missing(tables.processes.remove(&pid)).map_err(RedirectionError::table("forget a process"))?;
        Err(gone)
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        // The kernel's tables are whole whatever happened to the thread that held them.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What only the tests look at.
#[cfg(test)]
#[cfg(feature = "kernel-tests")]
impl Redirection {
    pub(super) fn tuples_waiting(&self) -> usize {
        self.tables().tuples.keys().count()
    }

    pub(super) fn processes_known(&self) -> usize {
        self.tables().processes.keys().count()
    }

    pub(super) fn routes_of(&self, netns: Option<u64>) -> usize {
        routes::of_netns(&self.tables, netns).unwrap().len()
    }

    pub(super) fn remember_process(&self, pid: u32, entry: ProcessEntry) {
        self.tables().processes.insert(pid, entry, 0).unwrap();
    }
}

fn forgetting(source: std::io::Error) -> RedirectionError {
    RedirectionError::Socket { doing: "forget the routes of a network namespace", source }
}

fn lives(pid: u32, entry: &ProcessEntry) -> bool {
    ProcessStart::of(pid).is_some_and(|start| start.ticks() == entry.start_ticks)
}

/// No two starts of an agent on one boot begin in the same nanosecond with the same lock.
fn generation() -> Result<u64, RedirectionError> {
    let now = boot_time()?;
    Ok((now.tv_sec().cast_unsigned() << 30) | now.tv_nsec().cast_unsigned())
}

pub(super) fn boot_ns() -> Result<u64, RedirectionError> {
    let now = boot_time()?;
    Ok(now.tv_sec().cast_unsigned() * 1_000_000_000 + now.tv_nsec().cast_unsigned())
}

fn boot_time() -> Result<TimeSpec, RedirectionError> {
    clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map_err(|errno| RedirectionError::Socket { doing: "read the boot clock", source: errno.into() })
}

fn listening_port(listener: &impl AsFd, address: &str) -> Result<u16, RedirectionError> {
    let failed = |source| RedirectionError::Socket { doing: "ask for a listener's address", source };
    let socket = SockRef::from(listener);
    if !socket.is_listener().map_err(failed)? {
        return Err(RedirectionError::Listener { what: "it does not listen" });
    }
    match socket.local_addr().map_err(failed)?.as_socket() {
        Some(bound) if bound.ip().to_string() == address => Ok(bound.port()),
        _ => Err(RedirectionError::Listener { what: "it must be bound to 127.0.0.1, for IPv6 to ::1" }),
    }
}

fn ignore_missing(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
