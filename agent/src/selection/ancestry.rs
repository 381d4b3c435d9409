//! The line of processes from one that connects up to where the scope ends.

use std::fs;

use super::digest::Digesting;
use super::process::{Contained, Facts, cgroup_of, executable_of};
use super::rules::lies_within;
use crate::redirection::ProcessStat;

/// How far up a line is followed; what is above is not known to fit no rule.
const ANCESTORS_MAX: usize = 64;
/// The process that starts all others: it is nobody's work.
const INIT: u32 = 1;

/// A process above the one that connects.
#[derive(Debug)]
pub(super) struct Ancestor {
    pub(super) pid: u32,
    pub(super) facts: Facts,
    pub(super) digesting: Digesting,
}

/// The processes above one, the nearest first.
#[derive(Debug, Default)]
pub(super) struct Line {
    pub(super) ancestors: Vec<Ancestor>,
    /// It could be followed to where the scope ends. Where an ancestor has ended before its child, this is the new parent's
    /// line: what the process was started by is nobody's to know any more.
    pub(super) whole: bool,
}

impl Line {
    /// Follows parents inside the scope. `stop` is asked about each; where it says so the line ends, and is whole. Blocking:
    /// /proc is read, and with `digests` the executables are opened.
    pub(super) fn above(
        pid: u32,
        scope: &str,
        digests: Option<&tokio::runtime::Handle>,
        mut stop: impl FnMut(u32) -> bool,
    ) -> Self {
        let mut line = Self::default();
        let Some(mut below) = ProcessStat::of(pid) else { return line };
        for _ in 0..ANCESTORS_MAX {
            let parent = below.parent;
            if parent <= INIT || stop(parent) {
                line.whole = true;
                return line;
            }
            let Some(before) = ProcessStat::of(parent) else { return line };
            // A child is younger than its parent; an older one has the pid of a parent that is gone.
            if before.start.ticks() > below.start.ticks() {
                return line;
            }
            let facts = facts_of(parent);
            if facts.cgroup.as_deref().is_some_and(|cgroup| !lies_within(cgroup, scope)) {
                line.whole = true;
                return line;
            }
            let digesting = digests.map_or(Digesting::Unknown, |runtime| Digesting::start(parent, runtime));
            // Read as one: still the process it was, executing what it did.
            let unchanged = ProcessStat::of(parent)
                .is_some_and(|after| (after.start, after.stack) == (before.start, before.stack));
            if !unchanged {
                return line;
            }
            line.ancestors.push(Ancestor { pid: parent, facts, digesting });
            below = before;
        }
        line
    }
}

/// What /proc tells of a process that runs.
fn facts_of(pid: u32) -> Facts {
    let cgroup = cgroup_of(pid);
    Facts {
        uid: uid_of(pid),
        container: Contained::of(cgroup.as_deref(), || {
            fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()
        }),
        cgroup,
        executable: executable_of(pid),
        digest: None,
    }
}

/// The real one, as the kernel programs tell it.
fn uid_of(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_leads_over_the_parent_to_where_it_is_stopped() {
        let own = std::process::id();
        let parent = nix::unistd::getppid().as_raw().cast_unsigned();
        let mut asked = Vec::new();
        let line = Line::above(own, "/", None, |pid| {
            asked.push(pid);
            asked.len() == 2
        });
        assert!(line.whole);
        assert_eq!(asked[0], parent);
        let first = &line.ancestors[0];
        assert_eq!(first.pid, parent);
        assert_eq!(first.facts.executable, executable_of(parent));
        assert_eq!(first.facts.uid, uid_of(parent));
        assert!(line.ancestors.len() <= 1, "{line:?}");
    }

    #[test]
    fn it_ends_with_the_scope_and_is_broken_where_a_process_is_gone() {
        let own = std::process::id();
        let outside = Line::above(own, "/weir-no-such-scope", None, |_| false);
        assert!(outside.whole && outside.ancestors.is_empty(), "{outside:?}");
        assert!(!Line::above(u32::MAX, "/", None, |_| false).whole);
    }
}
