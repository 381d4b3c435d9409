//! Does the client's network namespace have a route to where it wants to go?

use aya_ebpf::btf_maps::lpm_trie::Key;
use weir_agent_ebpf::{Address, RouteTarget};

use super::maps::ROUTES;

const ENETUNREACH: i32 = 101;

/// The map's key with its fields aligned: aya's own is packed, and would be written byte by byte.
#[repr(C)]
struct Query {
    prefix_bits: u32,
    target: RouteTarget,
}

const _: () = assert!(size_of::<Query>() == size_of::<Key<RouteTarget>>());

/// The errno that connect() would answer without us, or 0.
#[inline(always)]
pub(super) fn errno(netns_cookie: u64, destination: Address) -> i32 {
    let query = Query { prefix_bits: RouteTarget::BITS, target: RouteTarget::new(netns_cookie, destination) };
    // SAFETY: the same fields in the same places (`repr(C)`, all of four bytes, the size compared above), and a reference to
    // the packed type has no alignment to keep.
    let key = unsafe { &*(&raw const query).cast::<Key<RouteTarget>>() };
    ROUTES.get(key).map_or(ENETUNREACH, |errno| *errno as i32)
}
