//! The start of a process: with its pid it names one process of this boot, so a reused pid is never taken for it.

use std::fs;

use weir_agent_ebpf::NS_PER_TICK;

/// Ticks (1/100 s) from boot to the start of a process, as in field 22 of `/proc/<pid>/stat`. The kernel programs read
/// `task->group_leader->start_boottime` in nanoseconds and divide it like /proc does. The agent must be in the host's
/// time and pid namespaces, or the two differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProcessStart(u64);

impl ProcessStart {
    /// Of a process that runs; `None` if there is none, if it has ended and only waits for its parent, or if `pid` is a thread's.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        // A thread has a stat file of its own under /proc, and a start of its own.
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let tgid = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse::<u32>().ok()?;
        if tgid != pid {
            return None;
        }
        parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// `None` for 0: a start that the kernel programs could not read.
    pub(crate) fn from_boottime_ns(ns: u64) -> Option<Self> {
        (ns != 0).then_some(Self(ns / NS_PER_TICK))
    }

    pub(super) fn ticks(self) -> u64 {
        self.0
    }
}

/// The command in the second field is in parentheses and may hold anything, also parentheses and spaces.
fn parse(stat: &str) -> Option<ProcessStart> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    let state = fields.next()?;
    if matches!(state, "X" | "x") {
        return None;
    }
    // The leader may have ended and be a zombie while other threads run: then field 20 still counts them.
    let threads: u32 = fields.nth(16)?.parse().ok()?;
    if state == "Z" && threads <= 1 {
        return None;
    }
    fields.nth(1)?.parse().ok().map(ProcessStart)
}

#[cfg(test)]
mod tests {
    use super::{ProcessStart, parse};

    const TAIL: &str = "1 2 3 0 -1 4194304 1 2 3 4 5 6 7 8 20 0";

    #[test]
    fn parses_any_command() {
        for comm in ["sh", "a) b", ") R 1 (", "", "x)("] {
            let stat = format!("42 ({comm}) S {TAIL} 1 0 98765 4096 1\n");
            assert_eq!(parse(&stat), Some(ProcessStart(98765)), "{stat}");
        }
    }

    #[test]
    fn a_dead_process_has_no_start_but_one_whose_leader_died_has() {
        assert_eq!(parse(&format!("42 (sh) Z {TAIL} 1 0 7 4096")), None);
        assert_eq!(parse(&format!("42 (sh) Z {TAIL} 3 0 7 4096")), Some(ProcessStart(7)));
        assert_eq!(parse(&format!("42 (sh) X {TAIL} 0 0 7 4096")), None);
    }

    #[test]
    fn nonsense_is_no_start() {
        for stat in ["", "42 (sh)", "42 (sh) S", "42 (sh) S 1 2 3", ") ) )"] {
            assert_eq!(parse(stat), None);
        }
    }

    #[test]
    fn own_start_is_known_and_a_missing_process_has_none() {
        assert!(ProcessStart::of(std::process::id()).is_some());
        assert_eq!(ProcessStart::of(u32::MAX), None);
    }
}
