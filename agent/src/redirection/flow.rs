//! What the kernel saw of one connection.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

use weir_agent_ebpf::{ABI, Address, FlowRecord, flags};
use weir_proto::RunId;

use super::{ProcessStart, ProcessStat, RedirectionError};

pub(crate) use weir_agent_ebpf::{Form, Who};

/// One connection as the kernel saw it when the process called connect(). Immutable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Flow {
    /// Where the process wanted to go. A v4-mapped address is given as the IPv4 one it stands for; see `form`. A link-local
    /// one has its scope: the interface that the process named, or bound its socket to.
    pub(crate) origin: SocketAddr,
    /// In which form it was given: tells an IPv6 socket with a mapped address from an IPv4 socket.
    pub(crate) form: Form,
    /// Governed or undecided; exempt processes are not redirected.
    pub(crate) who: Who,
    /// The run it was governed by.
    pub(crate) run: Option<RunId>,
    /// Process id (tgid).
    pub(crate) pid: u32,
    /// Thread that called connect().
    pub(crate) tid: u32,
    /// CLOCK_BOOTTIME of the process's start. 0 where this kernel does not tell it.
    pub(crate) start_time_ns: u64,
    /// Counts executables: (pid, start_time_ns, exec_id) names one image of one process.
    pub(crate) exec_id: u64,
    /// Address of the bottom of its stack when it connected: if /proc shows another, it has replaced its executable since.
    /// `None` where this kernel does not tell it.
    pub(crate) stack: Option<u64>,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) cgroup_id: u64,
    pub(crate) netns_cookie: u64,
    /// Interface index the socket was bound to.
    pub(crate) bound_device: Option<u32>,
    /// What the socket was bound to. An unspecified address or port 0 was left to the kernel.
    pub(crate) bound_source: Option<SocketAddr>,
    /// Of the process's socket.
    pub(crate) socket_cookie: u64,
    /// CLOCK_BOOTTIME of the connect() call.
    pub(crate) connected_at_ns: u64,
    /// For people; anybody may call himself anything.
    pub(crate) comm: String,
}

impl Flow {
    pub(super) fn from_record(record: &FlowRecord) -> Result<Self, RedirectionError> {
        if record.abi != ABI {
            return Err(RedirectionError::Record { what: "another layout" });
        }
        let form =
            Form::from_byte(record.form).ok_or(RedirectionError::Record { what: "unknown address form" })?;
        let who = Who::from_byte(record.who)
            .ok_or(RedirectionError::Record { what: "unknown state of a process" })?;
        let source_bound = record.flags & flags::SOURCE_BOUND != 0;
        let comm = record.comm.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(Self {
            origin: origin(record),
            form,
            who,
            run: (who == Who::Governed).then(|| run_id(record.run)),
            pid: record.tgid,
            tid: record.tid,
            start_time_ns: record.start_boottime_ns,
            exec_id: record.exec_id,
            stack: (record.stack != 0).then_some(record.stack),
            uid: record.uid,
            gid: record.gid,
            cgroup_id: record.cgroup_id,
            netns_cookie: record.netns_cookie,
            bound_device: (record.flags & flags::DEVICE_BOUND != 0).then_some(record.bound_device),
            bound_source: source_bound.then(|| SocketAddr::new(source(record, form), record.source_port)),
            socket_cookie: record.socket_cookie,
            connected_at_ns: record.connect_boottime_ns,
            comm: String::from_utf8_lossy(comm).into_owned(),
        })
    }

    /// Whether /proc still tells about the image that connected: the process runs and has not replaced its executable.
    pub(crate) fn same_image(&self) -> bool {
        ProcessStart::from_boottime_ns(self.start_time_ns).is_some_and(|start| {
            ProcessStat::of(self.pid).is_some_and(|now| {
                now.start == start && self.stack.is_none_or(|stack| now.stack == 0 || stack == now.stack)
            })
        })
    }

    /// Whether the process of this flow still runs: then /proc tells about it and not about a later one with its pid.
    pub(crate) fn still_runs(&self) -> bool {
        ProcessStart::from_boottime_ns(self.start_time_ns)
            .is_some_and(|start| ProcessStart::of(self.pid) == Some(start))
    }

    /// Name of the interface that the socket was bound to, or that a link-local destination was given with; `None` also if
    /// it is gone. Interfaces are numbered by network namespace: ask in the flow's own.
    pub(crate) fn device_name(&self) -> Option<String> {
        let name = nix::net::if_::if_indextoname(self.device()?).ok()?;
        // nix 0.31 takes the null pointer for an answer. A socket bound to "" is bound to nothing.
        name.into_string().ok().filter(|name| !name.is_empty())
    }

    /// Index of that interface, in the flow's own network namespace.
    pub(crate) fn device(&self) -> Option<u32> {
        match (self.bound_device, self.origin) {
            (Some(device), _) => Some(device),
            (None, SocketAddr::V6(origin)) if origin.scope_id() != 0 => Some(origin.scope_id()),
            (None, _) => None,
        }
    }
}

pub(super) fn run_id(words: [u64; 2]) -> RunId {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&words[0].to_ne_bytes());
    bytes[8..].copy_from_slice(&words[1].to_ne_bytes());
    RunId::from_bytes(bytes)
}

pub(super) fn run_words(run: RunId) -> [u64; 2] {
    let value = u128::from_ne_bytes(*run.as_bytes());
    let (low, high) = (value as u64, (value >> 64) as u64);
    if cfg!(target_endian = "little") { [low, high] } else { [high, low] }
}

fn origin(record: &FlowRecord) -> SocketAddr {
    match address(&record.origin) {
        IpAddr::V6(ip) if ip.is_unicast_link_local() => {
            let scope = if record.scope != 0 { record.scope } else { record.bound_device };
            SocketAddrV6::new(ip, record.origin_port, 0, scope).into()
        }
        ip => SocketAddr::new(ip, record.origin_port),
    }
}

/// A port without an address was bound on the unspecified address of the socket's family.
fn source(record: &FlowRecord, form: Form) -> IpAddr {
    match (record.source, form) {
        ([0, 0, 0, 0], Form::V4 | Form::Mapped) => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        (words, _) => address(&words),
    }
}

/// The words lie in memory as the address does on the wire.
fn address(words: &Address) -> IpAddr {
    let mut bytes = [0; 16];
    for (bytes, word) in bytes.chunks_exact_mut(4).zip(words) {
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
    IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
}

#[cfg(test)]
mod tests {
    use super::{Flow, Form, SocketAddrV6, Who, run_id, run_words};
    use weir_agent_ebpf::{ABI, FlowRecord, TupleKey, flags};
    use weir_proto::RunId;

    fn words(address: &str) -> [u32; 4] {
        let octets = address.parse::<std::net::Ipv6Addr>().unwrap().octets();
        std::array::from_fn(|word| u32::from_ne_bytes(octets[word * 4..word * 4 + 4].try_into().unwrap()))
    }

    fn record() -> FlowRecord {
        let tuple = TupleKey {
            netns_cookie: 1,
            local: [0; 4],
            remote: [0; 4],
            local_port: 0,
            remote_port: 0,
            reserved: 0,
        };
        FlowRecord {
            abi: ABI,
            who: Who::Governed as u8,
            form: Form::Mapped as u8,
            flags: flags::SOURCE_BOUND | flags::DEVICE_BOUND,
            reserved: 0,
            origin: words("::ffff:198.18.0.7"),
            source: words("::ffff:198.18.0.1"),
            origin_port: 5432,
            source_port: 999,
            bound_device: 4,
            run: run_words(RunId::from_bytes(*b"0123456789abcdef")),
            tgid: 7,
            tid: 8,
            start_boottime_ns: 9,
            exec_id: 10,
            uid: 11,
            gid: 12,
            cgroup_id: 13,
            netns_cookie: 14,
            socket_cookie: 15,
            connect_boottime_ns: 16,
            comm: *b"psql\0garbage\0\0\0\0",
            tuple,
            stack: 17,
            scope: 0,
            reserved_word: 0,
            reserved_words: [0; 2],
        }
    }

    #[test]
    fn a_mapped_address_is_ipv4_and_the_form_remembers() {
        let flow = Flow::from_record(&record()).unwrap();
        assert_eq!(flow.origin, "198.18.0.7:5432".parse().unwrap());
        assert_eq!(flow.form, Form::Mapped);
        assert_eq!(flow.bound_source, Some("198.18.0.1:999".parse().unwrap()));
        assert_eq!(flow.bound_device, Some(4));
        assert_eq!(flow.run, Some(RunId::from_bytes(*b"0123456789abcdef")));
        assert_eq!(flow.comm, "psql");
    }

    #[test]
    fn a_link_local_origin_has_its_scope_and_no_other_has() {
        let link_local = FlowRecord { form: Form::V6 as u8, origin: words("fe80::7"), scope: 3, ..record() };
        let flow = Flow::from_record(&link_local).unwrap();
        assert_eq!(flow.origin, SocketAddrV6::new("fe80::7".parse().unwrap(), 5432, 0, 3).into());
        let by_device = Flow::from_record(&FlowRecord { scope: 0, ..link_local }).unwrap();
        assert_eq!(by_device.origin, SocketAddrV6::new("fe80::7".parse().unwrap(), 5432, 0, 4).into());
        let global = FlowRecord { origin: words("2001:db8::7"), ..link_local };
        assert_eq!(Flow::from_record(&global).unwrap().origin, "[2001:db8::7]:5432".parse().unwrap());
    }

    #[test]
    fn an_undecided_process_has_no_run_and_an_unbound_socket_no_source() {
        let record = FlowRecord { who: Who::Undecided as u8, flags: 0, ..record() };
        let flow = Flow::from_record(&record).unwrap();
        assert_eq!((flow.run, flow.bound_source, flow.bound_device), (None, None, None));
    }

    #[test]
    fn a_port_alone_is_bound_on_the_unspecified_address_of_its_family() {
        let record = FlowRecord { source: [0; 4], ..record() };
        assert_eq!(Flow::from_record(&record).unwrap().bound_source, Some("0.0.0.0:999".parse().unwrap()));
        let record = FlowRecord { form: Form::V6 as u8, origin: words("2001:db8::1"), ..record };
        assert_eq!(Flow::from_record(&record).unwrap().bound_source, Some("[::]:999".parse().unwrap()));
    }

    #[test]
    fn what_the_loader_does_not_know_is_an_error() {
        assert!(Flow::from_record(&FlowRecord { abi: ABI + 1, ..record() }).is_err());
        assert!(Flow::from_record(&FlowRecord { form: 5, ..record() }).is_err());
        assert!(Flow::from_record(&FlowRecord { who: 3, ..record() }).is_err());
    }

    #[test]
    fn run_ids_survive_the_way_through_the_kernel() {
        let run = RunId::generate();
        assert_eq!(run_id(run_words(run)), run);
    }
}
