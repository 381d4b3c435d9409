//! Judges of tests: what they decide, and when they say it.

use crate::operation::Operation;
use crate::seam::ExchangeId;
use crate::verdict::{Denial, GrantKey, Verdict};

/// Decides, at its own pace.
#[derive(Debug)]
pub struct Judge {
    key: GrantKey,
    denied: fn(&Operation) -> bool,
    pace: Pace,
    pending: Vec<(ExchangeId, bool)>,
    random: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    AtOnce,
    /// Some inputs later, in any order.
    Late {
        seed: u64,
    },
    /// A person who went home.
    Never,
}

impl Judge {
    pub fn allowing() -> Self {
        Self::denying(|_| false)
    }

    pub fn denying(denied: fn(&Operation) -> bool) -> Self {
        Self { key: GrantKey::for_tests(), denied, pace: Pace::AtOnce, pending: Vec::new(), random: 0 }
    }

    #[must_use]
    pub fn paced(mut self, pace: Pace) -> Self {
        self.pace = pace;
        if let Pace::Late { seed } = pace {
            self.random = seed | 1;
        }
        self
    }

    pub(super) fn ask(&mut self, exchange: ExchangeId, operation: &Operation) {
        self.pending.push((exchange, (self.denied)(operation)));
    }

    /// Nobody needs to decide any more. A late judge may have sent its verdict already: it comes all the same.
    pub(super) fn withdraw(&mut self, exchange: ExchangeId) {
        if !matches!(self.pace, Pace::Late { .. }) {
            self.pending.retain(|(pending, _)| *pending != exchange);
        }
    }

    /// A verdict whose time has come. `idle`: nothing else will happen before it.
    pub(super) fn verdict(&mut self, idle: bool) -> Option<(ExchangeId, Verdict)> {
        if self.pending.is_empty() {
            return None;
        }
        let place = match self.pace {
            Pace::Never => return None,
            Pace::AtOnce => 0,
            Pace::Late { .. } => {
                let random = self.next_random();
                if !idle && !random.is_multiple_of(4) {
                    return None;
                }
                (random / 4) as usize % self.pending.len()
            }
        };
        let (exchange, denied) = self.pending.remove(place);
        let verdict = if denied {
            Verdict::Deny(Denial { rule: "suite".into(), reason: "not in this test".into() })
        } else {
            Verdict::Allow(self.key.permit(exchange, "suite".into()))
        };
        Some((exchange, verdict))
    }

    /// xorshift: enough to shuffle.
    fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random >> 8
    }
}
