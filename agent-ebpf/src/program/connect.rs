//! Redirect: a governed or undecided process that connects anywhere by TCP reaches the proxy of its network namespace, and
//! where it wanted to go is kept in its own socket.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{bpf_sock, bpf_sock_addr},
    helpers::{
        bpf_probe_read_kernel,
        generated::{
            bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_uid_gid, bpf_get_netns_cookie,
            bpf_get_socket_cookie, bpf_ktime_get_boot_ns, bpf_set_retval, bpf_setsockopt,
            bpf_skc_to_mptcp_sock,
        },
    },
    programs::SockAddrContext,
};
use weir_agent_ebpf::{
    ABI, Address, BYPASS_NS_MAX, Counter, Entrance, FlowRecord, Form, Who, entrance_flags, flags,
};

use super::{
    listener::{self, Listener},
    maps::{
        BYPASS, ENTRANCES, ORIGINS, count, has_mptcp, optional_offsets, storage, storage_forget,
        storage_or_new,
    },
    routes,
    selection::{self, Decision},
    task::Process,
};

const SOCK_STREAM: u32 = 1;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_MPTCP: u32 = 262;
const SOL_SOCKET: i32 = 1;
const SO_BINDTOIFINDEX: i32 = 62;
const ECONNREFUSED: i32 = 111;
const EINVAL: i32 = 22;

/// Of `sin6_scope_id` in `struct sockaddr_in6`, bytes.
const SCOPE_ID_AT: u64 = 24;

/// The third word of a v4-mapped address, as it lies in memory.
const MAPPED_PREFIX: u32 = 0xffff_u32.to_be();
const LOOPBACK_V4: u32 = 0x7f00_0001_u32.to_be();
const LOOPBACK_V6: Address = [0, 0, 0, 1_u32.to_be()];

/// What becomes of the call.
enum Ruling {
    /// It goes where it wanted to.
    Alone,
    /// To the proxy, on this port of the loopback.
    Redirect(u16),
    /// The application is told this errno.
    Refuse(i32),
}

/// The kernel's words for "go on" and "do not".
const PROCEED: i32 = 1;
const STOP: i32 = 0;

/// The destination the application gave.
struct Asked {
    form: Form,
    address: Address,
    port: u16,
    /// Of a link-local IPv6 address: the interface it was given with. 0 = none, or not told.
    scope: u32,
}

impl Asked {
    #[inline(always)]
    fn is_link_local(&self) -> bool {
        let bytes = self.address[0].to_ne_bytes();
        bytes[0] == 0xfe && bytes[1] & 0xc0 == 0x80
    }

    /// Given with the address, or by what the socket is bound to; and if by both, the same. Where the scope cannot be read,
    /// whoever dials on finds out.
    #[inline(always)]
    fn names_one_interface(&self, bound: u32) -> bool {
        if self.scope == 0 {
            bound != 0 || optional_offsets().call_address == 0
        } else {
            bound == 0 || bound == self.scope
        }
    }

    #[inline(always)]
    fn is_local(&self) -> bool {
        match self.form {
            Form::V4 | Form::Mapped => self.address[3].to_ne_bytes()[0] == 127,
            Form::V6 => {
                self.address[0] == 0
                    && self.address[1] == 0
                    && self.address[2] == 0
                    && self.address[3] == LOOPBACK_V6[3]
            }
        }
    }

    #[inline(always)]
    fn listener(&self, ctx: &SockAddrContext) -> Listener {
        match self.form {
            Form::V4 | Form::Mapped => listener::ipv4(ctx, self.address[3], self.port),
            Form::V6 => listener::ipv6(ctx, self.address, self.port),
        }
    }
}

#[inline(always)]
pub(super) fn ipv4(ctx: &SockAddrContext) -> i32 {
    let call = ctx.sock_addr;
    // SAFETY: fields of the context, read whole and once: the verifier refuses reads through a moved context pointer,
    // which is what the compiler makes of reads it may merge or move.
    let (ip, port) = unsafe {
        ((&raw const (*call).user_ip4).read_volatile(), (&raw const (*call).user_port).read_volatile())
    };
    // Linux takes the unspecified address for this host.
    let ip = if ip == 0 { LOOPBACK_V4 } else { ip };
    let asked = Asked {
        form: Form::V4,
        address: [0, 0, MAPPED_PREFIX, ip],
        port: u16::from_be(port as u16),
        scope: 0,
    };
    match rule(ctx, &asked) {
        Ruling::Alone => PROCEED,
        Ruling::Refuse(errno) => refuse(errno),
        Ruling::Redirect(port) => {
            // SAFETY: the fields this hook may write, each in one store of its own width.
            unsafe {
                (&raw mut (*call).user_ip4).write_volatile(LOOPBACK_V4);
                (&raw mut (*call).user_port).write_volatile(u32::from(port.to_be()));
            }
            PROCEED
        }
    }
}

#[inline(always)]
pub(super) fn ipv6(ctx: &SockAddrContext) -> i32 {
    let call = ctx.sock_addr;
    let (address, port) = read_ipv6(call);
    let mapped = address[0] == 0 && address[1] == 0 && address[2] == MAPPED_PREFIX;
    let unspecified = address[0] == 0 && address[1] == 0 && address[2] == 0 && address[3] == 0;
    let form = if mapped { Form::Mapped } else { Form::V6 };
    let address = if unspecified {
        LOOPBACK_V6
    } else if mapped && address[3] == 0 {
        [0, 0, MAPPED_PREFIX, LOOPBACK_V4]
    } else {
        address
    };
    let mut asked = Asked { form, address, port, scope: 0 };
    if asked.is_link_local() {
        asked.scope = scope(ctx);
    }
    let (prefix, last) = if mapped { (MAPPED_PREFIX, LOOPBACK_V4) } else { (0, LOOPBACK_V6[3]) };
    match rule(ctx, &asked) {
        Ruling::Alone => PROCEED,
        Ruling::Refuse(errno) => refuse(errno),
        Ruling::Redirect(port) => {
            // SAFETY: as for IPv4.
            unsafe {
                (&raw mut (*call).user_ip6[0]).write_volatile(0);
                (&raw mut (*call).user_ip6[1]).write_volatile(0);
                (&raw mut (*call).user_ip6[2]).write_volatile(prefix);
                (&raw mut (*call).user_ip6[3]).write_volatile(last);
                (&raw mut (*call).user_port).write_volatile(u32::from(port.to_be()));
            }
            PROCEED
        }
    }
}

/// Without the errno the application would be told EPERM, which nobody expects of connect().
#[inline(always)]
fn refuse(errno: i32) -> i32 {
    // SAFETY: the helper takes any errno.
    unsafe { bpf_set_retval(-errno) };
    STOP
}

#[inline(always)]
fn rule(ctx: &SockAddrContext, asked: &Asked) -> Ruling {
    let call = ctx.sock_addr;
    // SAFETY: context fields, as in `ipv4`.
    let (kind, protocol) = unsafe {
        ((&raw const (*call).type_).read_volatile(), (&raw const (*call).protocol).read_volatile())
    };
    if kind != SOCK_STREAM || (protocol != IPPROTO_TCP && protocol != IPPROTO_MPTCP) {
        return Ruling::Alone;
    }
    // SAFETY: the socket of the context; never null in this hook, which the verifier does not know.
    let sk = unsafe { (*call).__bindgen_anon_1.sk };
    if sk.is_null() {
        return Ruling::Refuse(ECONNREFUSED);
    }

    let process = Process::current();
    if process.kernel_thread {
        count(Counter::PassedKernel);
        return leave_alone(ctx, sk);
    }
    let decision = selection::decide(&process);
    if decision.who == Who::Exempt as u8 {
        count(Counter::PassedExempt);
        return leave_alone(ctx, sk);
    }
    if is_bypassed() {
        count(Counter::PassedBypass);
        return leave_alone(ctx, sk);
    }
    if asked.is_local() {
        match asked.listener(ctx) {
            Listener::None => {
                count(Counter::RefusedNoListener);
                return Ruling::Refuse(ECONNREFUSED);
            }
            Listener::Agent(_) => {
                count(Counter::PassedProxyPort);
                return leave_alone(ctx, sk);
            }
            Listener::Unmarked => {}
        }
    }
    // SAFETY: the helper takes the context.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    let Some((port, routes_known)) = entrance(ctx, netns, asked.form) else {
        return Ruling::Refuse(ECONNREFUSED);
    };
    let device = Device::of(sk);
    // Link-local addresses are another network's on every interface; the kernel insists on being told which.
    if asked.is_link_local() && !asked.names_one_interface(device.index()) {
        count(Counter::RefusedNoRoute);
        return Ruling::Refuse(EINVAL);
    }
    // A socket bound to a device may reach what no route covers.
    if routes_known && device.index() == 0 && asked.scope == 0 {
        let errno = routes::errno(netns, asked.address);
        if errno != 0 {
            count(Counter::RefusedNoRoute);
            return Ruling::Refuse(errno);
        }
    }
    if device.bound != 0 && !bind_to_device(ctx, 0) {
        count(Counter::RefusedDevice);
        return Ruling::Refuse(ECONNREFUSED);
    }
    if !remember(ctx, sk, asked, &process, &decision, device.index()) {
        count(Counter::RefusedFull);
        return Ruling::Refuse(ECONNREFUSED);
    }
    count(Counter::Redirected);
    Ruling::Redirect(port)
}

/// Somebody has asked for governed connections to be let through for a time, and that time is not over.
#[inline(always)]
fn is_bypassed() -> bool {
    let until = BYPASS.get(0).copied().unwrap_or(0);
    if until == 0 {
        return false;
    }
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    now < until && until - now <= BYPASS_NS_MAX
}

/// The port of our listener for this family, if it is up and really ours; and whether the namespace's routes are known.
#[inline(always)]
fn entrance(ctx: &SockAddrContext, netns: u64, form: Form) -> Option<(u16, bool)> {
    let Some(entrance) = ENTRANCES.get_ptr(netns) else {
        count(Counter::RefusedNotReady);
        return None;
    };
    // SAFETY: a map value stays readable until the program ends, and an entrance is replaced, never changed in place.
    let Entrance { generation, v4_port, v6_port, flags } = unsafe { *entrance };
    let (port, listener) = match form {
        Form::V4 | Form::Mapped => (v4_port, listener::ipv4(ctx, LOOPBACK_V4, v4_port)),
        Form::V6 => (v6_port, listener::ipv6(ctx, LOOPBACK_V6, v6_port)),
    };
    match listener {
        _ if port == 0 => count(Counter::RefusedNotReady),
        Listener::None => count(Counter::RefusedNotReady),
        Listener::Agent(found) if found == generation => {
            return Some((port, flags & entrance_flags::ROUTES_KNOWN != 0));
        }
        Listener::Agent(_) | Listener::Unmarked => count(Counter::StrangerPort),
    }
    None
}

/// What the client bound its socket to.
struct Device {
    /// Bound now.
    bound: u32,
    /// Was bound until an earlier connect() of this socket was redirected.
    undone: u32,
}

impl Device {
    #[inline(always)]
    fn of(sk: *mut bpf_sock) -> Self {
        // SAFETY: a readable field of the context's socket, and that socket's own record.
        unsafe {
            let record: *const FlowRecord = storage(&ORIGINS, sk);
            let undone = !record.is_null() && (*record).flags & flags::DEVICE_BOUND != 0;
            Self {
                bound: (&raw const (*sk).bound_dev_if).read_volatile(),
                undone: if undone { (*record).bound_device } else { 0 },
            }
        }
    }

    #[inline(always)]
    fn index(&self) -> u32 {
        if self.bound != 0 { self.bound } else { self.undone }
    }
}

/// Writes the record into the client's socket; false if there is no memory for it.
#[inline(always)]
fn remember(
    ctx: &SockAddrContext,
    sk: *mut bpf_sock,
    asked: &Asked,
    process: &Process,
    decision: &Decision,
    device: u32,
) -> bool {
    // SAFETY: `sk` is the context's socket. The record is this socket's own; connect() holds the socket's lock, so
    // nobody else writes it. Fields of `sk` are read as the verifier allows for a full socket.
    unsafe {
        let record: *mut FlowRecord = storage_or_new(&ORIGINS, sk, core::ptr::null_mut());
        if record.is_null() {
            return false;
        }
        let (source, source_port) = bound_source(sk, asked.form);
        let source_bound = source_port != 0 || source[0] != 0 || source[1] != 0 || source[3] != 0;
        let ids = bpf_get_current_uid_gid();
        (*record).abi = ABI;
        (*record).who = decision.who;
        (*record).form = asked.form as u8;
        (*record).flags = if source_bound { flags::SOURCE_BOUND } else { 0 }
            | if device != 0 { flags::DEVICE_BOUND } else { 0 };
        (*record).origin = asked.address;
        (*record).origin_port = asked.port;
        (*record).source = if source_bound { source } else { [0; 4] };
        (*record).source_port = source_port;
        (*record).bound_device = device;
        (*record).run = decision.run;
        (*record).tgid = process.tgid;
        (*record).tid = process.tid;
        (*record).start_boottime_ns = process.start_ns;
        (*record).exec_id = process.exec_id;
        (*record).stack = process.stack;
        (*record).scope = asked.scope;
        (*record).uid = ids as u32;
        (*record).gid = (ids >> 32) as u32;
        (*record).cgroup_id = bpf_get_current_cgroup_id();
        (*record).netns_cookie = bpf_get_netns_cookie(ctx.as_ptr());
        (*record).socket_cookie = bpf_get_socket_cookie(ctx.as_ptr());
        (*record).connect_boottime_ns = bpf_ktime_get_boot_ns();
        bpf_get_current_comm((&raw mut (*record).comm).cast(), size_of_val(&(*record).comm) as u32);
        let owner = mptcp_owner(sk);
        if !owner.is_null() {
            storage_forget(&ORIGINS, owner);
            storage_or_new(&ORIGINS, owner, record);
        }
        true
    }
}

/// The socket that the application holds, if `sk` is the inner one of an MPTCP connection; else null. The inner one is
/// what connects and is redirected; getpeername asks the outer one.
#[inline(always)]
fn mptcp_owner(sk: *mut bpf_sock) -> *mut bpf_sock {
    if !has_mptcp() {
        return core::ptr::null_mut();
    }
    // SAFETY: the helper takes any socket and answers null for one that is not MPTCP's.
    unsafe { bpf_skc_to_mptcp_sock(sk.cast()).cast() }
}

/// What the socket is bound to, or zeroes. In an IPv6 socket a mapped source is already in our form.
#[inline(always)]
fn bound_source(sk: *const bpf_sock, form: Form) -> (Address, u16) {
    // SAFETY: readable fields of a full socket, all read before any is chosen (see `ipv4`).
    unsafe {
        let v4 = (&raw const (*sk).src_ip4).read_volatile();
        let v6 = [
            (&raw const (*sk).src_ip6[0]).read_volatile(),
            (&raw const (*sk).src_ip6[1]).read_volatile(),
            (&raw const (*sk).src_ip6[2]).read_volatile(),
            (&raw const (*sk).src_ip6[3]).read_volatile(),
        ];
        let port = (&raw const (*sk).src_port).read_volatile() as u16;
        match form {
            Form::V4 if v4 == 0 => ([0; 4], port),
            Form::V4 => ([0, 0, MAPPED_PREFIX, v4], port),
            Form::V6 | Form::Mapped => (v6, port),
        }
    }
}

/// A socket that was redirected before and is not now: no old origin must show through, and its device is its own again.
#[inline(always)]
fn leave_alone(ctx: &SockAddrContext, sk: *mut bpf_sock) -> Ruling {
    // SAFETY: `sk` is the context's socket, the record its own.
    unsafe {
        // Its inner socket may be another than before.
        let owner = mptcp_owner(sk);
        if !owner.is_null() {
            storage_forget(&ORIGINS, owner);
        }
        let record: *mut FlowRecord = storage(&ORIGINS, sk);
        if !record.is_null() {
            if (*record).flags & flags::DEVICE_BOUND != 0 {
                let _ = bind_to_device(ctx, (*record).bound_device);
            }
            storage_forget(&ORIGINS, sk);
        }
    }
    Ruling::Alone
}

#[inline(always)]
fn bind_to_device(ctx: &SockAddrContext, device: u32) -> bool {
    let mut value = device as i32;
    // SAFETY: the value is on our stack and as long as we say.
    unsafe { bpf_setsockopt(ctx.as_ptr(), SOL_SOCKET, SO_BINDTOIFINDEX, (&raw mut value).cast(), 4) == 0 }
}

/// `sin6_scope_id` of the address that the application gave. The context does not show it, so it is read from what the context
/// really is; what is read serves only as an interface index.
#[inline(always)]
fn scope(ctx: &SockAddrContext) -> u32 {
    let offset = optional_offsets().call_address;
    if offset == 0 {
        return 0;
    }
    let call = ctx.sock_addr as u64;
    // SAFETY: the helper checks addresses itself and fails on a bad one; integers have no invalid values.
    unsafe {
        let address: u64 =
            bpf_probe_read_kernel((call + u64::from(offset)) as *const u64).unwrap_or_default();
        bpf_probe_read_kernel((address + SCOPE_ID_AT) as *const u32).unwrap_or_default()
    }
}

/// The destination fields of an IPv6 call: address in network order, port in host order.
#[inline(always)]
pub(super) fn read_ipv6(call: *const bpf_sock_addr) -> (Address, u16) {
    // SAFETY: context fields, each read whole and once.
    unsafe {
        let address = [
            (&raw const (*call).user_ip6[0]).read_volatile(),
            (&raw const (*call).user_ip6[1]).read_volatile(),
            (&raw const (*call).user_ip6[2]).read_volatile(),
            (&raw const (*call).user_ip6[3]).read_volatile(),
        ];
        (address, u16::from_be((&raw const (*call).user_port).read_volatile() as u16))
    }
}
