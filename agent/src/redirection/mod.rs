//! Redirection: loads or adopts the eBPF programs, fills their tables, and gives out a [`Flow`] for every accepted socket.
//!
//! * [`attachment`]: [`Redirection`] itself, from attach to detach
//! * [`flow`]: what the kernel saw of one connection
//! * [`cgroup`]: the cgroup2 mount, and cgroups to attach to, to govern and to be in
//! * [`process`]: the start of a process, which with its pid names it
//! * [`routes`]: what has a route, so that a connect() that has none fails as it would without us
//! * [`gate`], [`counters`]: what this kernel holds against bypass, and what happened so far
//! * [`object`], [`links`], [`pins`], [`kernel_types`], [`sys`]: how the programs get into the kernel and stay there
//!
//! Hooks against bypass (datagrams, raw sockets, egress) and further network namespaces come as programs and entrances of
//! their own; nothing here knows how many there are.

mod attachment;
mod cgroup;
mod counters;
mod error;
mod flow;
mod gate;
mod kernel_types;
mod links;
mod object;
mod pins;
mod process;
mod routes;
#[expect(unsafe_code, reason = "bpf(2), one socket option and file handles, which no crate here wraps")]
mod sys;

pub(crate) use sys::netns_cookie;

#[cfg(test)]
#[cfg(feature = "kernel-tests")]
pub(crate) mod kernel_tests;

pub(crate) use attachment::{Otherwise, Redirection, Scope};
pub(crate) use cgroup::{Cgroup, cgroup_path, find_cgroup2_mount};
pub(crate) use counters::Counters;
pub(crate) use error::RedirectionError;
pub(crate) use flow::{Flow, Who};
pub(crate) use gate::{Gate, GateState};
pub(crate) use process::{ProcessStart, ProcessStat};
