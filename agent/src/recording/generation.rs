//! A generation: one key that all session keys of its hour come from. Drawn in memory, wrapped once, never drawn twice;
//! it dies with the process, so a restarted agent cannot seal under it.

use std::time::Duration;

use weir_proto::seal::{GenerationKey, KeyError, wrap};
use weir_proto::{GenerationId, NodeId};

use super::{KeyRing, clock};
use crate::spool::{Spool, SpoolError};

/// How long one generation seals.
const GENERATION_TIME: Duration = Duration::from_secs(3600);

#[derive(Debug, thiserror::Error)]
pub(crate) enum GenerationError {
    #[error(
        "the collector's key for today is not known, so nothing could ever be opened again; connect to the collector \
         once (its keys reach 35 days ahead), and check this machine's date"
    )]
    NoKey,
    #[error("drawing a sealing key failed")]
    Key(#[from] KeyError),
    #[error("writing a sealing key's wrap failed")]
    Spool(#[from] SpoolError),
}

/// What generations go by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    pub(crate) boot_ns: u64,
    /// Since 1970-01-01 UTC.
    pub(crate) day: u32,
}

impl Moment {
    pub(crate) fn now() -> Self {
        Self { boot_ns: clock::now().0, day: clock::today() }
    }
}

pub(super) struct Generation {
    pub(super) id: GenerationId,
    pub(super) key: GenerationKey,
    drawn: Moment,
}

impl Generation {
    /// Draws one and writes its wrap to the spool: before the first segment that is sealed with it.
    pub(super) fn draw(
        ring: &KeyRing,
        node: &NodeId,
        spool: &Spool,
        now: Moment,
    ) -> Result<Self, GenerationError> {
        let to = ring.for_day(now.day).ok_or(GenerationError::NoKey)?;
        if to.late_days > 0 {
            tracing::error!(
                late_days = to.late_days,
                "the collector's keys have run out; sealing goes on for the last of them, for 30 days at most: connect to the collector"
            );
        }
        let id = GenerationId::generate();
        let key = GenerationKey::draw()?;
        spool.write_wrap(id, &wrap(&id, &key, node, &to.key)?)?;
        Ok(Self { id, key, drawn: now })
    }

    /// Its hour is over, or its day.
    pub(super) fn is_over(&self, now: Moment) -> bool {
        now.boot_ns.saturating_sub(self.drawn.boot_ns) > GENERATION_TIME.as_nanos() as u64
            || now.day != self.drawn.day
    }
}
