//! Hand-over: the record travels from the client's socket to the accepted one.
//!
//! ```text
//!  client socket --TCP_CONNECT (before the SYN)--> TUPLES --PASSIVE_ESTABLISHED--> accepted socket
//!    ORIGINS                                        | client closes first            ACCEPTED
//!                                                   v
//!                                                 gone
//! ```
//! `sock_ops` runs for the cgroup that owns the socket, so these are two programs on two cgroups.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_ANY, bpf_sock, bpf_sock_ops},
    helpers::generated::{bpf_get_netns_cookie, bpf_sock_ops_cb_flags_set},
    programs::SockOpsContext,
};
use weir_agent_ebpf::{Address, Counter, Entrance, FlowRecord, TupleKey};

use super::maps::{ACCEPTED, ENTRANCES, ORIGINS, TUPLES, count, storage, storage_forget, storage_or_new};

const TCP_CONNECT: u32 = 3;
const PASSIVE_ESTABLISHED: u32 = 5;
const STATE_CHANGED: u32 = 10;
const STATE_CALLBACKS: i32 = 1 << 2;
const TCP_CLOSE: u32 = 7;
const AF_INET: u32 = 2;
const MAPPED_PREFIX: u32 = 0xffff_u32.to_be();
const DONE: u32 = 1;

/// The client's side: publishes before the SYN, takes back when the socket closes before it was accepted.
#[inline(always)]
pub(super) fn departures(ctx: &SockOpsContext) -> u32 {
    let Some(ends) = Ends::read(ctx) else { return DONE };
    if ends.event != TCP_CONNECT && ends.event != STATE_CHANGED {
        return DONE;
    }
    // SAFETY: the socket was checked for null. The callback runs under the socket's lock, which also guards its record.
    unsafe {
        let record: *mut FlowRecord = storage(&ORIGINS, ends.sk);
        if record.is_null() {
            return DONE;
        }
        if ends.event == TCP_CONNECT {
            (*record).tuple = ends.seen_from_here(ctx);
            if TUPLES.insert(&(*record).tuple, &*record, u64::from(BPF_ANY)).is_err() {
                // It goes to the proxy without a record, and is reset there.
                count(Counter::RefusedFull);
                return DONE;
            }
            bpf_sock_ops_cb_flags_set(ctx.ops, ends.callbacks as i32 | STATE_CALLBACKS);
        } else if ends.new_state == TCP_CLOSE {
            take_back(&*record);
        }
    }
    DONE
}

/// Only what is still this very socket's: the address may be another connection's by now.
#[inline(always)]
fn take_back(record: &FlowRecord) {
    if let Some(published) = TUPLES.get_ptr(&record.tuple) {
        // SAFETY: a map value stays readable until the program ends.
        if unsafe { (*published).socket_cookie } == record.socket_cookie {
            let _ = TUPLES.remove(&record.tuple);
        }
    }
}

/// The proxy's side: the record becomes the accepted socket's, before user space can see that socket.
#[inline(always)]
pub(super) fn arrivals(ctx: &SockOpsContext) -> u32 {
    let Some(ends) = Ends::read(ctx) else { return DONE };
    if ends.event != PASSIVE_ESTABLISHED {
        return DONE;
    }
    let key = ends.seen_from_there(ctx);
    let Some(published) = TUPLES.get_ptr_mut(&key) else {
        ends.count_if_at_entrance(&key);
        return DONE;
    };
    // SAFETY: the socket was checked for null, the map value stays readable until the program ends.
    unsafe {
        let record: *mut FlowRecord = storage_or_new(&ACCEPTED, ends.sk, published);
        if record.is_null() {
            count(Counter::NoRecord);
            return DONE;
        }
        // The slot may have been taken back and given to another connection while it was copied.
        if same(&(*record).tuple, &key) {
            let _ = TUPLES.remove(&key);
        } else {
            storage_forget(&ACCEPTED, ends.sk);
            count(Counter::NoRecord);
        }
    }
    DONE
}

#[inline(always)]
fn same(one: &TupleKey, other: &TupleKey) -> bool {
    one.netns_cookie == other.netns_cookie
        && one.local[3] == other.local[3]
        && one.local[2] == other.local[2]
        && one.local[1] == other.local[1]
        && one.local[0] == other.local[0]
        && one.local_port == other.local_port
        && one.remote_port == other.remote_port
}

/// What the callback tells of its connection.
struct Ends {
    event: u32,
    new_state: u32,
    callbacks: u32,
    sk: *mut bpf_sock,
    local: Address,
    remote: Address,
    local_port: u16,
    remote_port: u16,
}

impl Ends {
    /// Reads every field before it looks at any: the verifier refuses reads through a context pointer that the compiler
    /// has moved into one branch.
    #[inline(always)]
    fn read(ctx: &SockOpsContext) -> Option<Self> {
        let ops: *const bpf_sock_ops = ctx.ops;
        // SAFETY: readable fields of the context, each read whole and once.
        unsafe {
            let event = (&raw const (*ops).op).read_volatile();
            let family = (&raw const (*ops).family).read_volatile();
            let new_state = (&raw const (*ops).__bindgen_anon_1.args[1]).read_volatile();
            let callbacks = (&raw const (*ops).bpf_sock_ops_cb_flags).read_volatile();
            let local_v4 = (&raw const (*ops).local_ip4).read_volatile();
            let remote_v4 = (&raw const (*ops).remote_ip4).read_volatile();
            let local_v6 = [
                (&raw const (*ops).local_ip6[0]).read_volatile(),
                (&raw const (*ops).local_ip6[1]).read_volatile(),
                (&raw const (*ops).local_ip6[2]).read_volatile(),
                (&raw const (*ops).local_ip6[3]).read_volatile(),
            ];
            let remote_v6 = [
                (&raw const (*ops).remote_ip6[0]).read_volatile(),
                (&raw const (*ops).remote_ip6[1]).read_volatile(),
                (&raw const (*ops).remote_ip6[2]).read_volatile(),
                (&raw const (*ops).remote_ip6[3]).read_volatile(),
            ];
            let local_port = (&raw const (*ops).local_port).read_volatile() as u16;
            // Network order in the upper half of the word, unlike every other port.
            let remote_port = u32::from_be((&raw const (*ops).remote_port).read_volatile()) as u16;
            let sk = (*ops).__bindgen_anon_2.sk;
            if sk.is_null() {
                return None;
            }
            let v4 = family == AF_INET;
            Some(Self {
                event,
                new_state,
                callbacks,
                sk,
                local: if v4 { [0, 0, MAPPED_PREFIX, local_v4] } else { local_v6 },
                remote: if v4 { [0, 0, MAPPED_PREFIX, remote_v4] } else { remote_v6 },
                local_port,
                remote_port,
            })
        }
    }

    #[inline(always)]
    fn seen_from_here(&self, ctx: &SockOpsContext) -> TupleKey {
        TupleKey {
            netns_cookie: netns_cookie(ctx),
            local: self.local,
            remote: self.remote,
            local_port: self.local_port,
            remote_port: self.remote_port,
            reserved: 0,
        }
    }

    /// The key as the other end published it.
    #[inline(always)]
    fn seen_from_there(&self, ctx: &SockOpsContext) -> TupleKey {
        TupleKey {
            netns_cookie: netns_cookie(ctx),
            local: self.remote,
            remote: self.local,
            local_port: self.remote_port,
            remote_port: self.local_port,
            reserved: 0,
        }
    }

    /// The agent has other listeners in its cgroup, which need no records.
    #[inline(always)]
    fn count_if_at_entrance(&self, key: &TupleKey) {
        if let Some(entrance) = ENTRANCES.get_ptr(key.netns_cookie) {
            // SAFETY: a map value stays readable until the program ends.
            let Entrance { v4_port, v6_port, .. } = unsafe { *entrance };
            if self.local_port == v4_port || self.local_port == v6_port {
                count(Counter::NoRecord);
            }
        }
    }
}

#[inline(always)]
fn netns_cookie(ctx: &SockOpsContext) -> u64 {
    // SAFETY: the helper takes the context.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}
