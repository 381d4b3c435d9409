//! The process behind a hook, read from the kernel's own structures where no helper tells.
//!
//! A read that fails leaves a zero: such a process matches no entry of the process table and counts as undecided, which is
//! the stricter side.

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_probe_read_kernel, generated::bpf_get_current_task};
use weir_agent_ebpf::NS_PER_TICK;

use super::maps::{optional_offsets, task_offsets};

/// `PF_KTHREAD`. An io_uring worker or a vhost worker of a process does not have it: those act for their process.
const KERNEL_THREAD: u32 = 0x0020_0000;

/// A `struct task_struct *`, only ever read through the fault-safe helper.
#[derive(Clone, Copy)]
pub(super) struct Task(u64);

pub(super) struct Process {
    pub tgid: u32,
    pub tid: u32,
    /// CLOCK_BOOTTIME, or 0.
    pub start_ns: u64,
    pub exec_id: u64,
    /// Bottom of its stack, or 0.
    pub stack: u64,
    pub kernel_thread: bool,
}

impl Process {
    #[inline(always)]
    pub(super) fn current() -> Self {
        let ids = bpf_get_current_pid_tgid();
        let task = Task::current();
        Self {
            tgid: (ids >> 32) as u32,
            tid: ids as u32,
            start_ns: task.process_start_ns(),
            exec_id: task.exec_id(),
            stack: task.stack(),
            kernel_thread: task.flags() & KERNEL_THREAD != 0,
        }
    }

    #[inline(always)]
    pub(super) fn start_ticks(&self) -> u64 {
        self.start_ns / NS_PER_TICK
    }
}

impl Task {
    #[inline(always)]
    pub(super) fn current() -> Self {
        // SAFETY: the helper has no arguments; its result is only used as an address for fault-safe reads.
        Self(unsafe { bpf_get_current_task() })
    }

    pub(super) const fn from_address(address: u64) -> Self {
        Self(address)
    }

    #[inline(always)]
    pub(super) fn tgid(self) -> u32 {
        self.field(task_offsets().tgid)
    }

    #[inline(always)]
    pub(super) fn tid(self) -> u32 {
        self.field(task_offsets().pid)
    }

    /// Of the leader: the start of the process, and what /proc shows for it.
    #[inline(always)]
    pub(super) fn process_start_ns(self) -> u64 {
        let leader: u64 = self.field(task_offsets().group_leader);
        Self(leader).field(task_offsets().start_boottime)
    }

    /// Threads of the process that have not begun to exit. Counted down before the exit tracepoint, so 0 there means that
    /// the last one is going, whatever became of the leader.
    #[inline(always)]
    pub(super) fn live_threads(self) -> i32 {
        let signal: u64 = self.field(task_offsets().signal);
        Self(signal).field(task_offsets().signal_live)
    }

    #[inline(always)]
    fn exec_id(self) -> u64 {
        self.field(task_offsets().self_exec_id)
    }

    #[inline(always)]
    fn stack(self) -> u64 {
        let offsets = optional_offsets();
        if offsets.mm == 0 || offsets.start_stack == 0 {
            return 0;
        }
        let memory: u64 = self.field(offsets.mm);
        Self(memory).field(offsets.start_stack)
    }

    #[inline(always)]
    fn flags(self) -> u32 {
        self.field(task_offsets().flags)
    }

    #[inline(always)]
    fn field<T: Default>(self, offset: u32) -> T {
        // SAFETY: the helper checks the address itself and fails on a bad one; the integers read here have no invalid values.
        unsafe { bpf_probe_read_kernel((self.0 + u64::from(offset)) as *const T) }.unwrap_or_default()
    }
}
