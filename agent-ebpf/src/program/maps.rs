//! Every map. Names, keys and values are what the loader pins and fills; see the crate's library part for the values.

use core::{arch::asm, ffi::c_void};

use aya_ebpf::{
    Global,
    bindings::{BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    btf_maps::{Array, HashMap, LpmTrie, PerCpuArray, SkStorage},
    helpers::generated::{bpf_sk_storage_delete, bpf_sk_storage_get},
    macros::btf_map,
};
use weir_agent_ebpf::{
    CGROUPS_MAX, Counter, ENTRANCES_MAX, Entrance, FlowRecord, Membership, OptionalOffsets, PROCESSES_MAX,
    ProcessEntry, ROUTES_MAX, RouteTarget, Settings, TUPLES_MAX, TaskOffsets, TupleKey,
};

/// Most tables are sized for the worst hour and nearly empty in most: they take memory as they fill.
const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;

/// Where the client wanted to go, in the client's own socket: never evicted, gone with the socket.
#[btf_map]
pub(super) static ORIGINS: SkStorage<FlowRecord> = SkStorage::new();

/// Connections between SYN and accept. Not an LRU: a record that is pushed out would be a connection of unknown destination.
#[btf_map]
pub(super) static TUPLES: HashMap<TupleKey, FlowRecord, TUPLES_MAX, ON_DEMAND> = HashMap::new();

/// The record of an accepted socket; user space reads it by file descriptor.
#[btf_map]
pub(super) static ACCEPTED: SkStorage<FlowRecord> = SkStorage::new();

/// The mark (generation) that an agent puts on its own listening sockets. One map for all agents of the host, pinned outside
/// their own directories: it tells a proxy's listener from a stranger's, and it cannot be stale, since it goes with the socket.
#[btf_map]
pub(super) static LISTENERS: SkStorage<u64> = SkStorage::new();

/// tgid -> what was decided about the process.
#[btf_map]
pub(super) static PROCESSES: HashMap<u32, ProcessEntry, PROCESSES_MAX, ON_DEMAND> = HashMap::new();

/// cgroup id -> what was decided about all in it.
#[btf_map]
pub(super) static CGROUPS: HashMap<u64, Membership, CGROUPS_MAX, ON_DEMAND> = HashMap::new();

/// netns cookie -> the agent's listeners there.
#[btf_map]
pub(super) static ENTRANCES: HashMap<u64, Entrance, ENTRANCES_MAX, ON_DEMAND> = HashMap::new();

/// Longest prefix -> errno of a connect() there, 0 = reachable. Kept by user space from the kernel's own tables: a hook cannot ask
/// those, and after redirection every destination would seem reachable.
#[btf_map]
pub(super) static ROUTES: LpmTrie<RouteTarget, u32, ROUTES_MAX> = LpmTrie::new();

#[btf_map]
pub(super) static SETTINGS: Array<Settings, 1> = Array::new();

/// CLOCK_BOOTTIME until which governed connections are let through. Past, and so 0: they are not. Time ends it and not the agent,
/// which may be dead by then.
#[btf_map]
pub(super) static BYPASS: Array<u64, 1> = Array::new();

#[btf_map]
pub(super) static COUNTERS: PerCpuArray<u64, { Counter::COUNT }> = PerCpuArray::new();

/// Set by the loader before the programs are loaded.
#[unsafe(no_mangle)]
static TASK_OFFSETS: Global<TaskOffsets> = Global::new(TaskOffsets {
    flags: 0,
    tgid: 0,
    pid: 0,
    group_leader: 0,
    start_boottime: 0,
    self_exec_id: 0,
    signal: 0,
    signal_live: 0,
});

/// The same, of what may be missing.
#[unsafe(no_mangle)]
static OPTIONAL_OFFSETS: Global<OptionalOffsets> =
    Global::new(OptionalOffsets { mm: 0, start_stack: 0, call_address: 0, reserved: 0 });

/// Set by the loader where the kernel knows MPTCP. Elsewhere the verifier must not even see the helper that asks for it: a
/// constant of 0 lets it skip that code.
#[unsafe(no_mangle)]
static HAS_MPTCP: Global<u32> = Global::new(0);

#[inline(always)]
pub(super) fn has_mptcp() -> bool {
    HAS_MPTCP.load() != 0
}

pub(super) fn optional_offsets() -> OptionalOffsets {
    OPTIONAL_OFFSETS.load()
}

pub(super) fn task_offsets() -> TaskOffsets {
    TASK_OFFSETS.load()
}

/// Atomic, although per CPU: a softirq program may interrupt the one of the process on the same CPU. In assembly, because
/// core has no `fetch_add` for a target without compare-and-swap.
#[inline(always)]
pub(super) fn count(counter: Counter) {
    if let Some(slot) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the slot of a per-CPU array is 8 bytes, aligned to 8, and lives as long as the map.
        unsafe {
            asm!("lock *(u64 *)({slot} + 0) += {one}", slot = in(reg) slot, one = in(reg) 1_u64, options(nostack))
        };
    }
}

/// The storage of `map` in socket `sk`, or null. aya's own accessor knows only the context of the connect hooks.
///
/// # Safety
/// `sk` is a socket pointer that the verifier knows as such.
#[inline(always)]
pub(super) unsafe fn storage<T>(map: &'static SkStorage<T>, sk: *mut bpf_sock) -> *mut T {
    // SAFETY: the address of a map's static is what the loader replaces by the map; the caller vouches for `sk`.
    unsafe { bpf_sk_storage_get(map_pointer(map), sk.cast(), core::ptr::null_mut(), 0).cast() }
}

/// Like [`storage`], made if missing: a copy of `initial`, or zeroes where that is null. Null if there is no memory for it.
///
/// # Safety
/// As for [`storage`]; `initial` is null or points to a whole `T`.
#[inline(always)]
pub(super) unsafe fn storage_or_new<T>(
    map: &'static SkStorage<T>,
    sk: *mut bpf_sock,
    initial: *mut T,
) -> *mut T {
    let flags = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
    // SAFETY: as above.
    unsafe { bpf_sk_storage_get(map_pointer(map), sk.cast(), initial.cast(), flags).cast() }
}

/// # Safety
/// As for [`storage`].
#[inline(always)]
pub(super) unsafe fn storage_forget<T>(map: &'static SkStorage<T>, sk: *mut bpf_sock) {
    // SAFETY: as above. That there was nothing to forget is no failure.
    let _ = unsafe { bpf_sk_storage_delete(map_pointer(map), sk.cast()) };
}

fn map_pointer<T>(map: &'static SkStorage<T>) -> *mut c_void {
    core::ptr::from_ref(map).cast_mut().cast()
}
