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
    /// See [`entrance_flags`].
    pub flags: u32,
}

/// Bits of [`Entrance::flags`].
pub mod entrance_flags {
    /// `ROUTES` holds this namespace's routes: what none of them covers is unreachable.
    pub const ROUTES_KNOWN: u32 = 1;
}

/// What a key of `ROUTES` matches: network namespace, then destination. The map's own key has a prefix length in bits before
/// it, so a route of n bits has [`RouteTarget::NETNS_BITS`] + n, for IPv4 + 96 more.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteTarget {
    /// A netns cookie, low word first. In words, since the prefix length leaves no room for the alignment of more.
    pub netns: [u32; 2],
    pub address: crate::Address,
}

impl RouteTarget {
    pub const NETNS_BITS: u32 = 64;
    pub const BITS: u32 = Self::NETNS_BITS + 128;

    #[must_use]
    pub const fn new(netns_cookie: u64, address: crate::Address) -> Self {
        Self { netns: [netns_cookie as u32, (netns_cookie >> 32) as u32], address }
    }
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
const _: () = assert!(size_of::<RouteTarget>() == 24 && align_of::<RouteTarget>() == 4);
