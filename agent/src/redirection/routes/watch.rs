//! Keeps the programs' table of routes like the kernel's.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use aya::maps::lpm_trie::Key;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};
use weir_agent_ebpf::{ROUTES_MAX, RouteTarget};

use super::super::object::Tables;
use super::message::{Dump, Prefix};
use super::table::Table;

/// IPv4 routes go silently with their interface, so changes of links and addresses are news too: the groups RTNLGRP_LINK,
/// _IPV4_IFADDR, _IPV4_ROUTE, _IPV4_RULE, _IPV6_ROUTE and _IPV6_RULE of linux/rtnetlink.h, as bits.
const NEWS: u32 = 1 << 0 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 10 | 1 << 18;
const GET_ROUTE: u16 = 26;
const GET_RULE: u16 = 34;
/// Should any change come without news.
const RESYNC_INTERVAL_MS: u16 = 5_000;
/// Between two readings: news come in bursts, and a flapping route must not keep a CPU busy.
const SYNC_PAUSE: Duration = Duration::from_millis(2);
/// The kernel's datagrams of a dump hold up to 32 KiB.
const DATAGRAM_BYTES_MAX: usize = 64 << 10;
/// How often a dump is begun again because routes changed under it.
const DUMP_ATTEMPTS: u32 = 5;

/// Watches the routes of one network namespace until it is dropped.
pub(crate) struct RouteWatch {
    /// Closing it wakes the thread and ends it.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl RouteWatch {
    /// Reads the routes of the calling thread's network namespace, and goes on to watch them. Once it returns the table is
    /// true. `lost` is called if it can no longer be kept so.
    pub(crate) fn start(
        netns_cookie: u64,
        tables: Arc<Mutex<Tables>>,
        lost: impl FnOnce(io::Error) + Send + 'static,
    ) -> io::Result<Self> {
        // Subscribed before the first reading: no change falls between the two.
        let news = open(NEWS, SockFlag::SOCK_NONBLOCK)?;
        let mut copy = Copy { netns_cookie, dumps: open(0, SockFlag::empty())?, told: Table::new(), tables };
        copy.remember_earlier()?;
        copy.sync()?;
        let (stop, stopped) = UnixStream::pair()?;
        let thread = std::thread::Builder::new().name("weir-routes".into()).spawn(move || {
            if let Err(error) = watch(&news, &stopped, &mut copy) {
                lost(error);
            }
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }

    /// False once it was lost.
    pub(crate) fn is_alive(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }
}

impl Drop for RouteWatch {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that watched the routes had panicked");
        }
    }
}

fn watch(news: &OwnedFd, stopped: &UnixStream, copy: &mut Copy) -> io::Result<()> {
    loop {
        let mut ready =
            [PollFd::new(news.as_fd(), PollFlags::POLLIN), PollFd::new(stopped.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, PollTimeout::from(RESYNC_INTERVAL_MS)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if ready[1].any().unwrap_or(true) {
            return Ok(());
        }
        drain(news)?;
        copy.sync()?;
        std::thread::sleep(SYNC_PAUSE);
    }
}

/// What the news say does not matter: everything is read again.
fn drain(news: &OwnedFd) -> io::Result<()> {
    let mut datagram = [0; 4096];
    loop {
        match recv(news.as_raw_fd(), &mut datagram, MsgFlags::empty()) {
            // News that were lost for want of room are news.
            Ok(_) | Err(Errno::ENOBUFS | Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// The programs' table of one network namespace, and what we have told it.
struct Copy {
    netns_cookie: u64,
    dumps: OwnedFd,
    told: Table,
    tables: Arc<Mutex<Tables>>,
}

impl Copy {
    /// What an earlier watch of this namespace told is taken for told, so that the first sync removes what is no longer true.
    fn remember_earlier(&mut self) -> io::Result<()> {
        for (prefix, errno) in of_netns(&self.tables, Some(self.netns_cookie))? {
            self.told.insert((prefix.prefix_len() - RouteTarget::NETNS_BITS, prefix.data().address), errno);
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        // A kernel without policy routing has no rules to tell of.
        let rules = match self.dump(GET_RULE) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Dump::default(),
            rules => rules?,
        };
        let table = self.dump(GET_ROUTE)?.into_table(rules);
        let key = |(bits, address): Prefix| {
            Key::new(RouteTarget::NETNS_BITS + bits, RouteTarget::new(self.netns_cookie, address))
        };
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        // What is new comes first: a destination whose route was replaced is reachable throughout.
        for (&prefix, &errno) in &table {
            if self.told.get(&prefix) != Some(&errno) {
                tables.routes.insert(&key(prefix), errno, 0).map_err(io::Error::other)?;
            }
        }
        for &prefix in self.told.keys() {
            if !table.contains_key(&prefix) {
                tables.routes.remove(&key(prefix)).map_err(io::Error::other)?;
            }
        }
        self.told = table;
        Ok(())
    }

    fn dump(&self, request: u16) -> io::Result<Dump> {
        for _ in 0..DUMP_ATTEMPTS {
            let dump = self.dump_once(request)?;
            if !dump.interrupted() {
                return Ok(dump);
            }
        }
        // It changes all the time; the latest reading is the best there is, and the next follows at once.
        self.dump_once(request)
    }

    fn dump_once(&self, kind: u16) -> io::Result<Dump> {
        // struct nlmsghdr: length, what is wanted, NLM_F_REQUEST | NLM_F_DUMP; then struct rtmsg or fib_rule_hdr: any family.
        let mut request = [0_u8; 28];
        request[..4].copy_from_slice(&28_u32.to_ne_bytes());
        request[4..6].copy_from_slice(&kind.to_ne_bytes());
        request[6..8].copy_from_slice(&0x301_u16.to_ne_bytes());
        send(self.dumps.as_raw_fd(), &request, MsgFlags::empty())?;
        let mut dump = Dump::default();
        let mut datagram = vec![0; DATAGRAM_BYTES_MAX];
        while !dump.done() {
            let length = recv(self.dumps.as_raw_fd(), &mut datagram, MsgFlags::empty())?;
            dump.take(&datagram[..length])?;
            // The rest of the answer is left unread: this error ends the watch, and the socket with it.
            if dump.routes.len() > ROUTES_MAX {
                return Err(io::Error::other(format!("more than {ROUTES_MAX} routes")));
            }
        }
        Ok(dump)
    }
}

/// Removes the routes of one network namespace from the programs' table, or of all.
pub(crate) fn forget(tables: &Mutex<Tables>, netns_cookie: Option<u64>) -> io::Result<()> {
    for (key, _) in of_netns(tables, netns_cookie)? {
        let mut tables = tables.lock().unwrap_or_else(PoisonError::into_inner);
        tables.routes.remove(&key).map_err(io::Error::other)?;
    }
    Ok(())
}

/// What the table holds of one network namespace, or of all.
pub(crate) fn of_netns(
    tables: &Mutex<Tables>,
    netns_cookie: Option<u64>,
) -> io::Result<Vec<(Key<RouteTarget>, u32)>> {
    let tables = tables.lock().unwrap_or_else(PoisonError::into_inner);
    let mut found = Vec::new();
    for entry in tables.routes.iter() {
        let (key, errno) = entry.map_err(io::Error::other)?;
        let target = key.data();
        if netns_cookie.is_none_or(|netns| target == RouteTarget::new(netns, target.address)) {
            found.push((key, errno));
        }
    }
    Ok(found)
}

fn open(groups: u32, flags: SockFlag) -> io::Result<OwnedFd> {
    let flags = flags | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(socket)
}
