//! Who listens on a local port of the client's network namespace?

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2,
    },
    helpers::generated::{bpf_sk_lookup_tcp, bpf_sk_release},
    programs::SockAddrContext,
};

use super::maps::{LISTENERS, storage};

/// `BPF_F_CURRENT_NETNS`: the network namespace of the context's socket.
const CURRENT_NETNS: u64 = -1_i64 as u64;

pub(super) enum Listener {
    /// Nobody.
    None,
    /// Somebody who is no agent.
    Unmarked,
    /// The listener of an agent of this generation.
    Agent(u64),
}

/// Looks for a listener on an IPv4 address (network order) and port (host order).
#[inline(always)]
pub(super) fn ipv4(ctx: &SockAddrContext, address: u32, port: u16) -> Listener {
    let ends = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
        saddr: address,
        daddr: address,
        sport: 0,
        dport: port.to_be(),
    };
    let mut tuple = bpf_sock_tuple { __bindgen_anon_1: bpf_sock_tuple__bindgen_ty_1 { ipv4: ends } };
    find(ctx, &mut tuple, size_of::<bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1>())
}

/// Looks for a listener on an IPv6 address (network order) and port (host order).
#[inline(always)]
pub(super) fn ipv6(ctx: &SockAddrContext, address: [u32; 4], port: u16) -> Listener {
    let ends = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 {
        saddr: address,
        daddr: address,
        sport: 0,
        dport: port.to_be(),
    };
    let mut tuple = bpf_sock_tuple { __bindgen_anon_1: bpf_sock_tuple__bindgen_ty_1 { ipv6: ends } };
    find(ctx, &mut tuple, size_of::<bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2>())
}

/// The source port is 0, which no connection has: only a listener can be found.
#[inline(always)]
fn find(ctx: &SockAddrContext, tuple: &mut bpf_sock_tuple, size: usize) -> Listener {
    // SAFETY: the tuple is initialised for `size` bytes; the socket found is released on the only way out.
    unsafe {
        let sk = bpf_sk_lookup_tcp(ctx.as_ptr(), tuple, size as u32, CURRENT_NETNS, 0);
        if sk.is_null() {
            return Listener::None;
        }
        let mark = storage(&LISTENERS, sk);
        let found = if mark.is_null() { Listener::Unmarked } else { Listener::Agent(*mark) };
        bpf_sk_release(sk.cast());
        found
    }
}
