//! How the agent itself stands, as its log says it: after each start, when it changes, and once an hour, so that whoever
//! reads only the end of the log finds it too.

use std::time::Duration;

use weir_proto::v1::AgentState;

const AGAIN_TIME: Duration = Duration::from_secs(3600);

/// What is to be said, and what was.
#[derive(Default)]
pub(super) struct Standing {
    now: Option<AgentState>,
    said: Option<(AgentState, u64)>,
}

impl Standing {
    pub(super) fn is(&mut self, now: AgentState) {
        self.now = Some(now);
    }

    /// It is not what was said last.
    pub(super) fn is_news(&self) -> bool {
        self.now.is_some() && self.now.as_ref() != self.said.as_ref().map(|(said, _)| said)
    }

    /// What the next entry says of it.
    pub(super) fn due(&self, at_ns: u64) -> Option<AgentState> {
        let again = self
            .said
            .as_ref()
            .is_none_or(|(_, said_ns)| at_ns.saturating_sub(*said_ns) > AGAIN_TIME.as_nanos() as u64);
        self.now.clone().filter(|_| again || self.is_news())
    }

    /// An entry on the disk says it.
    pub(super) fn said(&mut self, state: AgentState, at_ns: u64) {
        self.said = Some((state, at_ns));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_once_then_when_it_changes_and_hourly() {
        const HOUR_NS: u64 = AGAIN_TIME.as_nanos() as u64;
        let state = |kernel: &str| AgentState { kernel_release: kernel.into(), ..AgentState::default() };
        let mut standing = Standing::default();
        assert!(standing.due(0).is_none() && !standing.is_news(), "nobody has said how it stands");
        standing.is(state("6.1"));
        assert!(standing.is_news());
        // The entry that was to say it could not be written: it is still due.
        assert_eq!(standing.due(1), standing.due(2));
        standing.said(standing.due(2).unwrap(), 2);
        standing.is(state("6.1"));
        assert!(standing.due(3).is_none() && !standing.is_news());
        assert_eq!(standing.due(3 + HOUR_NS), Some(state("6.1")));
        standing.is(state("6.2"));
        assert!(standing.is_news());
        assert_eq!(standing.due(4), Some(state("6.2")));
    }
}
