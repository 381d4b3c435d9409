//! What the spacing of a node's signed log says. An agent says at least every ten seconds that it lives, into its own log
//! and whether the collector can be reached or not; so a hole between two entries is a time in which it did not work, and
//! what stands around the hole says why. Pure: ingest keeps what is found here on record, `weir verify` finds it again.

use std::time::Duration;

use weir_proto::seal::{Anchor, HEARTBEAT_INTERVAL};
use weir_proto::v1::{self, node_entry::Mark};

pub use weir_proto::v1::node_gap::Kind;

use crate::store::rows::unix_ns;

/// Heartbeats that may stay away before that is a gap: a disk that syncs slowly holds up one or two.
const MISSED_MAX: u32 = 3;

/// Without a sign of life for longer, an agent was not at work.
pub const SILENCE_MAX: Duration = HEARTBEAT_INTERVAL.saturating_mul(MISSED_MAX);

/// One entry of a node's log, as far as time is concerned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sign {
    pub index: u64,
    pub at_ns: u64,
    pub unix_ns: i64,
    pub boot_id: String,
    pub said: Said,
}

/// What the entry says about the agent's life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Said {
    #[default]
    Lives,
    Started,
    Stopped,
    BypassBegan,
    BypassEnded,
}

/// A time without a sign of life, or with one that says that nothing was recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeGap {
    pub kind: Kind,
    pub from_unix_ns: i64,
    /// 0 = goes on.
    pub to_unix_ns: i64,
    pub before_entry: u64,
}

impl Sign {
    pub fn of(entry: &v1::NodeEntry) -> Self {
        let wall = entry.wall.unwrap_or_default();
        let anchor = Anchor { unix_ns: wall.unix_ns, boot_ns: wall.boot_ns, synchronized: wall.synchronized };
        let said = match &entry.mark {
            Some(Mark::Started(_)) => Said::Started,
            Some(Mark::Stopped(_)) => Said::Stopped,
            Some(Mark::BypassBegan(_)) => Said::BypassBegan,
            Some(Mark::BypassEnded(_)) => Said::BypassEnded,
            Some(Mark::RolledBack(_) | Mark::RulesLoaded(_)) | None => Said::Lives,
        };
        let unix_ns = unix_ns(&anchor, entry.at_ns);
        Self { index: entry.index, at_ns: entry.at_ns, unix_ns, boot_id: entry.boot_id.clone(), said }
    }
}

/// Where a node's life stands after its last entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Life {
    /// `None` before the first entry.
    pub last: Option<Sign>,
    /// The bypass that goes on: the entry that began it, and when.
    pub bypass: Option<(u64, i64)>,
}

impl Life {
    /// Takes the next entry of the log; gives the gaps that it ends.
    pub fn goes_on(&mut self, mut next: Sign) -> Vec<NodeGap> {
        let mut gaps = Vec::new();
        if let Some(last) = &self.last {
            gaps.extend(hole(last, &next));
            // What was said in several entries ends with the one that says it.
            if last.said == Said::Stopped && next.said == Said::Lives && next.at_ns == last.at_ns {
                next.said = Said::Stopped;
            }
        }
        match next.said {
            Said::BypassBegan => {
                self.bypass.get_or_insert((next.index, next.unix_ns));
            }
            Said::BypassEnded => {
                let ended = self.bypass.take().map(|(before_entry, from_unix_ns)| NodeGap {
                    kind: Kind::Bypassed,
                    from_unix_ns,
                    to_unix_ns: next.unix_ns,
                    before_entry,
                });
                gaps.extend(ended);
            }
            Said::Lives | Said::Started | Said::Stopped => {}
        }
        self.last = Some(next);
        gaps
    }

    /// What goes on after the last entry, as far as the log itself says.
    pub fn going_on(&self) -> Vec<NodeGap> {
        let stopped = self.last.as_ref().filter(|last| last.said == Said::Stopped).map(|last| NodeGap {
            kind: Kind::Stopped,
            from_unix_ns: last.unix_ns,
            to_unix_ns: 0,
            before_entry: last.index.saturating_add(1),
        });
        let bypassed = self.bypass.map(|(before_entry, from_unix_ns)| NodeGap {
            kind: Kind::Bypassed,
            from_unix_ns,
            to_unix_ns: 0,
            before_entry,
        });
        stopped.into_iter().chain(bypassed).collect()
    }
}

/// The time between two entries, when it was one without the agent.
fn hole(last: &Sign, next: &Sign) -> Option<NodeGap> {
    let other_boot = last.boot_id != next.boot_id && !last.boot_id.is_empty() && !next.boot_id.is_empty();
    let one_word = last.at_ns == next.at_ns && !other_boot;
    let kind = match (last.said, next.said) {
        (_, Said::Lives) if one_word => return None,
        (Said::Stopped, _) => Kind::Stopped,
        (_, Said::Started) if other_boot => Kind::Rebooted,
        (_, Said::Started) => Kind::Died,
        _ if other_boot => Kind::Rebooted,
        // The boot clock counts on while the machine sleeps, and nobody sets it.
        _ if next.at_ns.saturating_sub(last.at_ns) > SILENCE_MAX.as_nanos() as u64 => Kind::Stalled,
        _ => return None,
    };
    Some(NodeGap {
        kind,
        from_unix_ns: last.unix_ns,
        // A wall clock that was set back must not make a gap that ends before it begins, nor one that goes on.
        to_unix_ns: next.unix_ns.max(last.unix_ns).max(1),
        before_entry: next.index,
    })
}

/// As people read it.
pub fn kind_text(kind: Kind) -> &'static str {
    match kind {
        Kind::Unspecified => "unknown",
        Kind::Silent => "silent",
        Kind::Unreachable => "unreachable",
        Kind::Stopped => "stopped",
        Kind::Died => "died",
        Kind::Rebooted => "rebooted",
        Kind::Stalled => "stalled",
        Kind::Bypassed => "bypassed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn sign(index: u64, seconds: u64, boot_id: &str, said: Said) -> Sign {
        let unix_ns = (1_000_000 + seconds as i64) * SECOND as i64;
        Sign { index, at_ns: seconds * SECOND, unix_ns, boot_id: boot_id.into(), said }
    }

    fn kinds(signs: &[Sign]) -> Vec<(Kind, u64)> {
        let mut life = Life::default();
        let gaps: Vec<_> = signs.iter().flat_map(|sign| life.goes_on(sign.clone())).collect();
        gaps.iter().map(|gap| (gap.kind, (gap.to_unix_ns - gap.from_unix_ns) as u64 / SECOND)).collect()
    }

    #[test]
    fn a_log_that_goes_on_has_no_gap_whoever_could_be_reached() {
        let signs: Vec<_> = (0..20).map(|n| sign(n, 10 * n, "a", Said::Lives)).collect();
        assert!(kinds(&signs).is_empty());
        // Two heartbeats late is no gap; four are one.
        assert!(kinds(&[sign(0, 0, "a", Said::Lives), sign(1, 30, "a", Said::Lives)]).is_empty());
        assert_eq!(
            kinds(&[sign(0, 0, "a", Said::Lives), sign(1, 41, "a", Said::Lives)]),
            [(Kind::Stalled, 41)]
        );
    }

    #[test]
    fn an_end_in_order_a_death_and_a_reboot_are_told_apart() {
        let first = sign(0, 0, "a", Said::Started);
        let lives = sign(1, 5, "a", Said::Lives);
        for (last, next, kind) in [
            (sign(2, 9, "a", Said::Stopped), sign(3, 12, "a", Said::Started), Kind::Stopped),
            (sign(2, 9, "a", Said::Stopped), sign(3, 2, "b", Said::Started), Kind::Stopped),
            (sign(2, 9, "a", Said::Lives), sign(3, 12, "a", Said::Started), Kind::Died),
            (sign(2, 9, "a", Said::Lives), sign(3, 500, "b", Said::Started), Kind::Rebooted),
        ] {
            let found = kinds(&[first.clone(), lives.clone(), last, next]);
            assert_eq!(found.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), [kind]);
        }
    }

    #[test]
    fn what_one_word_says_in_several_entries_has_no_gap_inside() {
        let mut life = Life::default();
        for sign in [sign(0, 0, "a", Said::Started), sign(1, 0, "a", Said::Lives)] {
            assert!(life.goes_on(sign).is_empty());
        }
        assert!(life.goes_on(sign(2, 3, "a", Said::Stopped)).is_empty());
        assert!(life.goes_on(sign(3, 3, "a", Said::Lives)).is_empty());
        assert_eq!(life.going_on()[0].kind, Kind::Stopped, "the stop is the last word");
        let gaps = life.goes_on(sign(4, 60, "a", Said::Started));
        assert_eq!((gaps[0].kind, gaps[0].before_entry), (Kind::Stopped, 4));
        assert!(life.going_on().is_empty());
    }

    #[test]
    fn a_bypass_goes_on_until_the_log_says_that_it_ended() {
        let mut life = Life::default();
        assert!(life.goes_on(sign(0, 0, "a", Said::Lives)).is_empty());
        assert!(life.goes_on(sign(1, 5, "a", Said::BypassBegan)).is_empty());
        assert!(life.goes_on(sign(2, 9, "a", Said::BypassBegan)).is_empty(), "made longer, not begun again");
        assert_eq!(life.going_on()[0].kind, Kind::Bypassed);
        let gaps = life.goes_on(sign(3, 20, "a", Said::BypassEnded));
        assert_eq!((gaps[0].kind, gaps[0].before_entry), (Kind::Bypassed, 1));
        assert_eq!(gaps[0].to_unix_ns - gaps[0].from_unix_ns, 15 * SECOND as i64);
    }

    #[test]
    fn a_clock_that_was_set_back_makes_no_gap_that_never_ends() {
        let mut next = sign(1, 100, "b", Said::Started);
        next.unix_ns = -5;
        let mut life = Life::default();
        life.goes_on(sign(0, 0, "a", Said::Lives));
        let gap = life.goes_on(next)[0];
        assert!(gap.to_unix_ns >= gap.from_unix_ns && gap.to_unix_ns != 0, "{gap:?}");
    }
}
