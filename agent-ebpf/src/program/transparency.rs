//! Transparency: `getpeername` of a redirected socket answers with the address the application asked for.

use aya_ebpf::programs::SockAddrContext;
use weir_agent_ebpf::{FlowRecord, Form};

use super::maps::{ORIGINS, storage};

/// The kernel's word for "go on"; this hook cannot refuse.
const PROCEED: i32 = 1;

#[inline(always)]
pub(super) fn peername4(ctx: &SockAddrContext) -> i32 {
    let call = ctx.sock_addr;
    let record = record(ctx);
    if record.is_null() {
        return PROCEED;
    }
    // SAFETY: the record is the socket's own and not null; the context's fields are written in stores of their own width.
    unsafe {
        if (*record).form == Form::V4 as u8 {
            (&raw mut (*call).user_ip4).write_volatile((*record).origin[3]);
            (&raw mut (*call).user_port).write_volatile(u32::from((*record).origin_port.to_be()));
        }
    }
    PROCEED
}

#[inline(always)]
pub(super) fn peername6(ctx: &SockAddrContext) -> i32 {
    let call = ctx.sock_addr;
    let record = record(ctx);
    if record.is_null() {
        return PROCEED;
    }
    // SAFETY: as above.
    unsafe {
        if (*record).form != Form::V4 as u8 {
            (&raw mut (*call).user_ip6[0]).write_volatile((*record).origin[0]);
            (&raw mut (*call).user_ip6[1]).write_volatile((*record).origin[1]);
            (&raw mut (*call).user_ip6[2]).write_volatile((*record).origin[2]);
            (&raw mut (*call).user_ip6[3]).write_volatile((*record).origin[3]);
            (&raw mut (*call).user_port).write_volatile(u32::from((*record).origin_port.to_be()));
        }
    }
    PROCEED
}

/// Only redirected sockets have one: the connect hook takes it away again when it leaves a socket alone.
#[inline(always)]
fn record(ctx: &SockAddrContext) -> *mut FlowRecord {
    // SAFETY: the context's socket, checked for null.
    unsafe {
        let sk = (*ctx.sock_addr).__bindgen_anon_1.sk;
        if sk.is_null() { core::ptr::null_mut() } else { storage(&ORIGINS, sk) }
    }
}
