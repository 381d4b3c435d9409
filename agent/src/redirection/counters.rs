//! What the kernel programs counted.

use weir_agent_ebpf::Counter;

/// All counters at one time, summed over CPUs. They live as long as the pinned maps: over restarts of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counters([u64; Counter::COUNT]);

impl Counters {
    pub(super) const fn new(values: [u64; Counter::COUNT]) -> Self {
        Self(values)
    }

    pub(crate) fn of(&self, counter: Counter) -> u64 {
        self.0[counter as usize]
    }

    /// With the names they have in metrics.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Counter::ALL.iter().map(|(counter, name)| (*name, self.of(*counter)))
    }
}
