//! Where this kernel keeps the few fields of its processes that no helper tells.

/// Byte offsets within kernel structures, read by the loader from the kernel's own type information (BTF) and set before
/// the programs are loaded. Rust has no relocatable field access for eBPF, so the loader does what clang's would.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskOffsets {
    /// `task_struct.flags`: u32
    pub flags: u32,
    /// `task_struct.tgid`: u32
    pub tgid: u32,
    /// `task_struct.pid`: u32, a thread id
    pub pid: u32,
    /// `task_struct.group_leader`: pointer to task_struct
    pub group_leader: u32,
    /// `task_struct.start_boottime`: u64 ns
    pub start_boottime: u32,
    /// `task_struct.self_exec_id`: u64
    pub self_exec_id: u32,
    /// `task_struct.signal`: pointer to signal_struct
    pub signal: u32,
    /// `signal_struct.live`: atomic i32, threads that have not begun to exit
    pub signal_live: u32,
}

const _: () = assert!(size_of::<TaskOffsets>() == 32);

/// Offsets of what a program can do without; 0 = this kernel's types do not name it, and the program goes without.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OptionalOffsets {
    /// `task_struct.mm`: pointer to mm_struct
    pub mm: u32,
    /// `mm_struct.start_stack`: u64
    pub start_stack: u32,
    /// `bpf_sock_addr_kern.uaddr`, of what the context of a connect hook really is: pointer to the address that the
    /// application gave, in the kernel's copy
    pub call_address: u32,
    pub reserved: u32,
}

const _: () = assert!(size_of::<OptionalOffsets>() == 16);
