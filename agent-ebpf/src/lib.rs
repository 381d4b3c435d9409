//! What the eBPF programs and their loader agree on: the records and the keys and values of every map.
//!
//! Everything here is `repr(C)`, has its size asserted and no padding. Addresses are in network order (see [`Address`]),
//! ports in host order. A change of any layout raises [`ABI`], which names the directory that the maps are pinned in, so that
//! no program ever meets a map of another layout.

#![cfg_attr(not(test), no_std)]

mod counter;
mod offsets;
mod record;
mod tables;

pub use counter::Counter;
pub use offsets::{OptionalOffsets, TaskOffsets};
pub use record::{Address, Comm, FlowRecord, Form, RunBytes, TupleKey, Who, flags};
pub use tables::{Entrance, Membership, ProcessEntry, RouteTarget, Settings, entrance_flags};

/// The version of all layouts in this crate.
pub const ABI: u32 = 2;

/// Nanoseconds in one tick of `/proc/<pid>/stat` field 22 (`USER_HZ` is 100 on every architecture we build for).
/// Process start times are compared in ticks: it is all that user space can read.
pub const NS_PER_TICK: u64 = 10_000_000;

/// How deep below the root of the cgroup tree an ancestor of the current process is looked for. What is deeper still finds
/// its ancestors down to this level, and its own cgroup.
pub const CGROUP_LEVELS_MAX: u32 = 16;

/// Connections between SYN and accept. Full means that further ones are refused, and counted.
pub const TUPLES_MAX: usize = 65_536;
/// Processes that are in a run, or exempt. What does not fit is undecided, and counted.
pub const PROCESSES_MAX: usize = 65_536;
/// Cgroups with a rule.
pub const CGROUPS_MAX: usize = 16_384;
/// Network namespaces with listeners of ours.
pub const ENTRANCES_MAX: usize = 4_096;
/// Routes of all namespaces with listeners of ours. A namespace with more is taken to reach everything.
pub const ROUTES_MAX: usize = 65_536;

/// How far ahead the end of a bypass may lie at most. The programs take no notice of one that ends later: whatever was written
/// there by mistake cannot leave the host open.
pub const BYPASS_NS_MAX: u64 = 24 * 3600 * 1_000_000_000;

/// Implements aya's marker for plain data. The loader is the only user of this feature.
#[cfg(feature = "loader")]
#[expect(
    unsafe_code,
    reason = "the marker trait is unsafe, and foreign to the crate that could say it elsewhere"
)]
mod loader {
    use crate::{
        Entrance, FlowRecord, Membership, OptionalOffsets, ProcessEntry, RouteTarget, Settings, TaskOffsets,
        TupleKey,
    };

    // SAFETY (all): `repr(C)`, only integers and arrays of integers, no padding (sizes are asserted where they are defined), so
    // any bytes are a value and every byte of a value is initialised.
    unsafe impl aya::Pod for FlowRecord {}
    unsafe impl aya::Pod for TupleKey {}
    unsafe impl aya::Pod for ProcessEntry {}
    unsafe impl aya::Pod for Membership {}
    unsafe impl aya::Pod for Entrance {}
    unsafe impl aya::Pod for Settings {}
    unsafe impl aya::Pod for RouteTarget {}
    unsafe impl aya::Pod for TaskOffsets {}
    unsafe impl aya::Pod for OptionalOffsets {}
}
