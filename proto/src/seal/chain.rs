//! The segments of one session follow each other by number and by hash.

use super::segment::Segment;
use super::{Hash, NO_HASH};
use crate::ids::{NodeId, SessionId};

/// Where a session's chain stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    pub session: SessionId,
    pub node: NodeId,
    /// The number the next segment must have; also how many are there.
    pub next_seq: u64,
    /// Hash of the last segment, zeros when there is none.
    pub head: Hash,
    /// The last segment said that it is the last.
    pub closed: bool,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ChainError {
    #[error("segment {got} out of order, {wanted} is next")]
    Seq { wanted: u64, got: u64 },
    #[error("segment {seq} does not follow the segment before it: its predecessor's hash differs")]
    Broken { seq: u64 },
    #[error("segment {seq} comes after the session's end")]
    AfterEnd { seq: u64 },
    #[error("segment {seq} is of another session or node")]
    Foreign { seq: u64 },
}

impl Chain {
    /// A session without segments yet.
    pub fn start(session: SessionId, node: NodeId) -> Self {
        Self { session, node, next_seq: 0, head: NO_HASH, closed: false }
    }

    /// Takes the next segment, or says why it is not. Signatures are checked by [`Segment::verify`].
    pub fn accept(&mut self, segment: &Segment) -> Result<(), ChainError> {
        let draft = segment.draft();
        let seq = draft.seq;
        if draft.session != self.session || draft.node != self.node {
            return Err(ChainError::Foreign { seq });
        }
        if seq != self.next_seq {
            return Err(ChainError::Seq { wanted: self.next_seq, got: seq });
        }
        if self.closed {
            return Err(ChainError::AfterEnd { seq });
        }
        if draft.prev_hash != self.head {
            return Err(ChainError::Broken { seq });
        }
        self.next_seq = seq.saturating_add(1);
        self.head = *segment.hash();
        self.closed = draft.last;
        Ok(())
    }
}
