//! Values of the tables that the loader fills and the programs read.

use crate::RunBytes;

/// `PROCESSES`: tgid -> what was decided about this process.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessEntry {
    pub run: RunBytes,
    /// Start of the process in ticks since boot. Another process under the same tgid has another start and does not match.
    pub start_ticks: u64,
    /// A [`crate::Who`].
    pub who: u8,
    pub reserved: [u8; 7],
}

/// `CGROUPS`: cgroup id -> what was decided about everything in it and below it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Membership {
    pub run: RunBytes,
    /// A [`crate::Who`].
    pub who: u8,
    pub reserved: [u8; 7],
}

/// `ENTRANCES`: netns cookie -> where redirected connections of this network namespace go. Replaced as a whole, so a program
/// never sees the port of one agent with the generation of another.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entrance {
    /// What the listeners are marked with in `LISTENERS`. A listener on our port without this mark is not ours.
    pub generation: u64,
    /// Host order; 0 = no listener of this family: refuse.
    pub v4_port: u16,
    /// Host order; 0 = no listener of this family: refuse.
    pub v6_port: u16,
    pub reserved: u32,
}

/// `SETTINGS`, one element.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A [`crate::Who`], undecided or exempt: who a process is that nothing was decided about.
    pub otherwise: u8,
    pub reserved: [u8; 7],
}

const _: () = assert!(size_of::<ProcessEntry>() == 32);
const _: () = assert!(size_of::<Membership>() == 24);
const _: () = assert!(size_of::<Entrance>() == 16);
const _: () = assert!(size_of::<Settings>() == 8);
