//! Which missing segments may still be with their node agent. Each heartbeat in the log says, signed, how many segments the
//! agent held then; what it closed before that and is not at the collector was among them, or it is gone.

use super::Problem;

/// The node's heartbeats.
#[derive(Default)]
pub(super) struct Spooled {
    /// (log entry, segments held). A later one that says fewer makes the earlier ones void, so both only grow.
    beats: Vec<(u64, u64)>,
}

/// Segments of one closed session that are not here.
pub(super) struct Missing {
    /// The log entry that closed it.
    pub(super) closed_at: u64,
    pub(super) segments: u64,
    pub(super) problem: Problem,
}

impl Spooled {
    pub(super) fn beat(&mut self, entry: u64, segments: u64) {
        while self.beats.last().is_some_and(|(_, said)| *said >= segments) {
            self.beats.pop();
        }
        self.beats.push((entry, segments));
    }

    /// How many sessions may be under way, and the problems of those that cannot be.
    pub(super) fn settle(&self, mut missing: Vec<Missing>) -> (u64, Vec<Problem>) {
        missing.sort_by_key(|one| one.closed_at);
        let mut gone = Vec::new();
        let mut under_way: Vec<Missing> = Vec::new();
        let mut rest = missing.into_iter().peekable();
        for (entry, held) in &self.beats {
            while let Some(one) = rest.next_if(|one| one.closed_at <= *entry) {
                under_way.push(one);
            }
            let segments = under_way.iter().fold(0u64, |sum, one| sum.saturating_add(one.segments));
            if segments > *held {
                // Which of them the agent held cannot be told: each is named.
                gone.extend(under_way.drain(..).map(|one| one.problem));
            }
        }
        let newer = rest.count();
        ((under_way.len() + newer) as u64, gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing(closed_at: u64, segments: u64) -> Missing {
        let problem = Problem { node: None, session: None, seq: None, what: closed_at.to_string() };
        Missing { closed_at, segments, problem }
    }

    fn settled(beats: &[(u64, u64)], missing: Vec<Missing>) -> (u64, Vec<String>) {
        let mut spooled = Spooled::default();
        for (entry, segments) in beats {
            spooled.beat(*entry, *segments);
        }
        let (pending, gone) = spooled.settle(missing);
        (pending, gone.into_iter().map(|problem| problem.what).collect())
    }

    #[test]
    fn a_full_spool_later_excuses_nothing_that_an_empty_one_denied() {
        assert_eq!(settled(&[(5, 2)], vec![missing(4, 2)]), (1, vec![]));
        assert_eq!(settled(&[(5, 0), (9, 50)], vec![missing(4, 2)]), (0, vec!["4".into()]));
        assert_eq!(settled(&[(5, 0), (9, 1)], vec![missing(4, 2), missing(8, 1)]), (1, vec!["4".into()]));
        assert_eq!(settled(&[(5, 50), (9, 0)], vec![missing(4, 2)]), (0, vec!["4".into()]));
        assert_eq!(settled(&[(5, 3)], vec![missing(1, 2), missing(2, 2)]).1.len(), 2);
        assert_eq!(settled(&[(5, 0)], vec![missing(6, 1)]), (1, vec![]), "nothing was said since");
        assert_eq!(settled(&[], vec![missing(6, 1)]), (1, vec![]));
    }
}
