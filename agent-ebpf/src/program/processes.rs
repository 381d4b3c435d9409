//! Process tree: a child of a governed process is in its parent's run, from before it first runs until its last thread ends.
//!
//! Raw tracepoints give the tasks themselves. The classic ones give a record without the child's process id and start
//! time, at offsets that differ between kernels, and need tracefs mounted.

use aya_ebpf::{bindings::BPF_ANY, programs::RawTracePointContext};
use weir_agent_ebpf::{Counter, NS_PER_TICK, ProcessEntry, Who};

use super::{
    maps::{PROCESSES, count},
    task::Task,
};

#[inline(always)]
pub(super) fn forked(ctx: &RawTracePointContext) -> i32 {
    let parent = Task::from_address(ctx.arg(0));
    let child = Task::from_address(ctx.arg(1));
    let tgid = child.tgid();
    // A thread is in its process already. A tgid of 0 is one that could not be read.
    if tgid == 0 || child.tid() != tgid {
        return 0;
    }
    let Some(entry) = PROCESSES.get_ptr(parent.tgid()) else { return 0 };
    // SAFETY: a map value stays readable until the program ends.
    let ProcessEntry { run, start_ticks, who, .. } = unsafe { *entry };
    // An exemption is one process's and is not inherited; and a parent that is not the one of the entry passes nothing on.
    if who != Who::Governed as u8 || start_ticks != parent.process_start_ns() / NS_PER_TICK {
        return 0;
    }
    let inherited =
        ProcessEntry { run, start_ticks: child.process_start_ns() / NS_PER_TICK, who, reserved: [0; 7] };
    if PROCESSES.insert(tgid, &inherited, u64::from(BPF_ANY)).is_err() {
        count(Counter::ProcessesFull);
    }
    0
}

#[inline(always)]
pub(super) fn exited(ctx: &RawTracePointContext) -> i32 {
    let task = Task::from_address(ctx.arg(0));
    if task.live_threads() == 0 {
        // Most processes have no entry: that there was nothing to remove is no failure.
        let _ = PROCESSES.remove(task.tgid());
    }
    0
}
