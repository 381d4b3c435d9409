//! | program | hook | concern |
//! |---|---|---|
//! | `weir_connect4`, `weir_connect6` | `cgroup/connect4`, `connect6` on the scope | redirect |
//! | `weir_peername4`, `weir_peername6` | `cgroup/getpeername4`, `getpeername6` on the scope | transparency |
//! | `weir_departures` | `sockops` on the scope | hand-over, the client's side |
//! | `weir_arrivals` | `sockops` on the agent's own cgroup | hand-over, the proxy's side |
//! | `weir_forked`, `weir_exited` | raw tracepoints `sched_process_fork`, `sched_process_exit` | process tree |
//!
//! There is no exec hook: an exec changes neither the run nor the start time of a process (a thread that replaces its
//! leader takes over the leader's), and the executable's generation is read from the task when it connects.

mod connect;
mod handover;
mod listener;
mod maps;
mod processes;
mod routes;
mod selection;
mod task;
mod transparency;

use aya_ebpf::{
    macros::{cgroup_sock_addr, raw_tracepoint, sock_ops},
    programs::{RawTracePointContext, SockAddrContext, SockOpsContext},
};

#[cgroup_sock_addr(connect4)]
fn weir_connect4(ctx: SockAddrContext) -> i32 {
    connect::ipv4(&ctx)
}

#[cgroup_sock_addr(connect6)]
fn weir_connect6(ctx: SockAddrContext) -> i32 {
    connect::ipv6(&ctx)
}

#[cgroup_sock_addr(getpeername4)]
fn weir_peername4(ctx: SockAddrContext) -> i32 {
    transparency::peername4(&ctx)
}

#[cgroup_sock_addr(getpeername6)]
fn weir_peername6(ctx: SockAddrContext) -> i32 {
    transparency::peername6(&ctx)
}

#[sock_ops]
fn weir_departures(ctx: SockOpsContext) -> u32 {
    handover::departures(&ctx)
}

#[sock_ops]
fn weir_arrivals(ctx: SockOpsContext) -> u32 {
    handover::arrivals(&ctx)
}

#[raw_tracepoint(tracepoint = "sched_process_fork")]
fn weir_forked(ctx: RawTracePointContext) -> i32 {
    processes::forked(&ctx)
}

#[raw_tracepoint(tracepoint = "sched_process_exit")]
fn weir_exited(ctx: RawTracePointContext) -> i32 {
    processes::exited(&ctx)
}
