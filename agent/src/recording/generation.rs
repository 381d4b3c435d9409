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

pub(super) struct Generation {
    pub(super) id: GenerationId,
    pub(super) key: GenerationKey,
    day: u32,
    drawn_ns: u64,
}

impl Generation {
    /// Draws one and writes its wrap to the spool: before the first segment that is sealed with it.
    pub(super) fn draw(ring: &KeyRing, node: &NodeId, spool: &Spool) -> Result<Self, GenerationError> {
        let day = clock::today();
        let to = ring.for_day(day).ok_or(GenerationError::NoKey)?;
        let id = GenerationId::generate();
        let key = GenerationKey::draw()?;
        spool.write_wrap(id, &wrap(&id, &key, node, &to)?)?;
        Ok(Self { id, key, day, drawn_ns: clock::now().0 })
    }

    /// Its hour is over, or its day.
    pub(super) fn is_over(&self) -> bool {
        clock::now().0.saturating_sub(self.drawn_ns) > GENERATION_TIME.as_nanos() as u64
            || clock::today() != self.day
    }
}
