//! Who is this process: governed, exempt or undecided?

use aya_ebpf::helpers::{bpf_get_current_cgroup_id, generated::bpf_get_current_ancestor_cgroup_id};
use weir_agent_ebpf::{CGROUP_LEVELS_MAX, Membership, RunBytes, Who};

use super::{
    maps::{CGROUPS, PROCESSES, SETTINGS},
    task::Process,
};

pub(super) struct Decision {
    pub who: u8,
    pub run: RunBytes,
}

/// The process's own entry, else its cgroup's or that of the nearest cgroup above, else what the scope says.
#[inline(always)]
pub(super) fn decide(process: &Process) -> Decision {
    if let Some(entry) = PROCESSES.get_ptr(process.tgid) {
        // SAFETY: a map value stays readable until the program ends; it may be reused for another process meanwhile,
        // whose start then differs or, at worst, whose decision is taken for this one connect call as it was replaced.
        let (start, who, run) = unsafe { ((*entry).start_ticks, (*entry).who, (*entry).run) };
        // A start of 0 is one we could not read: it matches nothing.
        if start != 0 && start == process.start_ticks() {
            return Decision { who, run };
        }
    }
    if let Some(found) = of_cgroup(unsafe { bpf_get_current_cgroup_id() }) {
        return found;
    }
    let mut level = CGROUP_LEVELS_MAX as i32;
    while level >= 0 {
        // SAFETY: the helper takes any level and answers 0 for one that does not exist.
        if let Some(found) = of_cgroup(unsafe { bpf_get_current_ancestor_cgroup_id(level) }) {
            return found;
        }
        level -= 1;
    }
    let who = SETTINGS.get(0).map_or(Who::Undecided as u8, |settings| settings.otherwise);
    Decision { who, run: [0; 2] }
}

#[inline(always)]
fn of_cgroup(id: u64) -> Option<Decision> {
    // The helpers answer 0 for "none". An entry under 0 would match everything.
    if id == 0 {
        return None;
    }
    let entry: *const Membership = CGROUPS.get_ptr(id)?;
    // SAFETY: as above: readable until the program ends.
    Some(unsafe { Decision { who: (*entry).who, run: (*entry).run } })
}
