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
        ProcessStat::of(pid).map(|stat| stat.start)
    }

    /// `None` for 0: a start that the kernel programs could not read.
    pub(crate) fn from_boottime_ns(ns: u64) -> Option<Self> {
        (ns != 0).then_some(Self(ns / NS_PER_TICK))
    }

    pub(crate) const fn ticks(self) -> u64 {
        self.0
    }
}

/// What `/proc/<pid>/stat` tells of a process that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProcessStat {
    pub(crate) start: ProcessStart,
    /// 0 where there is none, or where it is in another pid namespace.
    pub(crate) parent: u32,
    /// Address of the bottom of its stack: where the kernel places it at random, another image has another. 0 = not told.
    pub(crate) stack: u64,
}

impl ProcessStat {
    /// As [`ProcessStart::of`].
    pub(crate) fn of(pid: u32) -> Option<Self> {
        // A thread has a stat file of its own under /proc, and a start of its own.
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let tgid = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse::<u32>().ok()?;
        if tgid != pid {
            return None;
        }
        parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }
}

/// The command in the second field is in parentheses and may hold anything, also parentheses and spaces.
fn parse(stat: &str) -> Option<ProcessStat> {
    let (_, fields) = stat.rsplit_once(") ")?;
    // Numbered from 1 in proc_pid_stat(5); these begin with the third.
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).copied();
    let state = field(3)?;
    if matches!(state, "X" | "x") {
        return None;
    }
    // The leader may have ended and be a zombie while other threads run: then field 20 still counts them.
    let threads: u32 = field(20)?.parse().ok()?;
    if state == "Z" && threads <= 1 {
        return None;
    }
    Some(ProcessStat {
        start: ProcessStart(field(22)?.parse().ok()?),
        parent: field(4)?.parse().unwrap_or(0),
        stack: field(28).and_then(|text| text.parse().ok()).unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::{ProcessStart, ProcessStat, parse};

    const TAIL: &str = "1 2 3 0 -1 4194304 1 2 3 4 5 6 7 8 20 0";

    #[test]
    fn parses_any_command() {
        for comm in ["sh", "a) b", ") R 1 (", "", "x)("] {
            let stat = format!("42 ({comm}) S {TAIL} 1 0 98765 4096 1 2 3 4 140737488\n");
            let parsed = ProcessStat { start: ProcessStart(98765), parent: 1, stack: 140_737_488 };
            assert_eq!(parse(&stat), Some(parsed), "{stat}");
        }
    }

    #[test]
    fn a_dead_process_has_no_start_but_one_whose_leader_died_has() {
        let start = |stat: &str| parse(stat).map(|stat| stat.start);
        assert_eq!(start(&format!("42 (sh) Z {TAIL} 1 0 7 4096")), None);
        assert_eq!(start(&format!("42 (sh) Z {TAIL} 3 0 7 4096")), Some(ProcessStart(7)));
        assert_eq!(start(&format!("42 (sh) X {TAIL} 0 0 7 4096")), None);
    }

    #[test]
    fn nonsense_is_no_start() {
        for stat in ["", "42 (sh)", "42 (sh) S", "42 (sh) S 1 2 3", ") ) )"] {
            assert_eq!(parse(stat), None);
        }
    }

    #[test]
    fn own_start_is_known_and_a_missing_process_has_none() {
        let own = ProcessStat::of(std::process::id()).unwrap();
        assert_eq!(own.parent, nix::unistd::getppid().as_raw().cast_unsigned());
        assert_eq!(ProcessStart::of(u32::MAX), None);
    }
}
