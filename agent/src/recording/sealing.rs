//! Records become a segment that continues its session's chain. Sealed bytes are kept until they are on the disk: what
//! was sealed once under (key, seq) is written again and again if need be, and never sealed anew.

use std::sync::Arc;

use prost::Message;
use weir_proto::seal::events::EVENT_BYTES_MAX;
use weir_proto::seal::segment::{SEGMENT_EVENTS_MAX, SEGMENT_PLAIN_TARGET};
use weir_proto::seal::{Anchor, Draft, Hash, JournalRange, NO_HASH, SealError, Sealer, push_event};
use weir_proto::v1::Event;
use weir_proto::{NodeId, RunId, SessionId};

use super::Counters;
use super::generation::Generation;
use crate::spool::Spooled;

/// A cut takes this many events of the journal: a gap and an end that nobody recorded still fit behind them.
pub(super) const CUT_EVENTS_MAX: u32 = SEGMENT_EVENTS_MAX - 2;
/// zstd levels: as a rule, and while a journal is more than half full. Level 3 takes half as long again or more and makes
/// statements, rows and JSON in segments no shorter.
const LEVEL: i32 = 1;
pub(super) const LEVEL_FAST: i32 = -3;

/// Where a session's chain goes on.
#[derive(Debug, Clone)]
pub(super) struct ChainHead {
    pub(super) session: SessionId,
    pub(super) number: u64,
    pub(super) run: RunId,
    pub(super) next_seq: u64,
    pub(super) head: Hash,
}

impl ChainHead {
    pub(super) fn start(session: SessionId, number: u64, run: RunId) -> Self {
        Self { session, number, run, next_seq: 0, head: NO_HASH }
    }
}

/// The events of the segment being made.
pub(super) struct Cut {
    plain: Vec<u8>,
    events: u32,
    first_ns: u64,
    last_ns: u64,
    journal: JournalRange,
}

impl Cut {
    pub(super) fn new(journal: [u8; 16], position: u64) -> Self {
        let journal = JournalRange { journal, from: position, to: position };
        Self { plain: Vec::new(), events: 0, first_ns: 0, last_ns: 0, journal }
    }

    /// A cut in memory that another one has used.
    pub(super) fn in_memory(mut plain: Vec<u8>, journal: [u8; 16], position: u64) -> Self {
        plain.clear();
        Self { plain, ..Self::new(journal, position) }
    }

    pub(super) fn into_memory(self) -> Vec<u8> {
        self.plain
    }

    pub(super) fn is_empty(&self) -> bool {
        self.plain.is_empty()
    }

    /// Another event of this length still belongs to this segment.
    pub(super) fn takes(&self, payload: usize) -> bool {
        self.is_empty()
            || (self.plain.len() + payload <= SEGMENT_PLAIN_TARGET && self.events < CUT_EVENTS_MAX)
    }

    /// Adds a record of the journal.
    pub(super) fn add(&mut self, from: u64, to: u64, at_ns: u64, payload: &[u8]) {
        if self.is_empty() {
            self.journal.from = from;
        }
        self.journal.to = to;
        self.event(at_ns, payload);
    }

    /// Adds an event that is in no journal.
    pub(super) fn add_event(&mut self, event: &Event) {
        self.event(event.at_ns, &event.encode_to_vec());
    }

    fn event(&mut self, at_ns: u64, encoded: &[u8]) {
        debug_assert!(encoded.len() <= EVENT_BYTES_MAX, "the recorder bounds its events");
        if self.is_empty() {
            self.first_ns = at_ns;
        }
        self.last_ns = self.last_ns.max(at_ns);
        self.events += 1;
        push_event(&mut self.plain, encoded);
    }

    pub(super) fn last_ns(&self) -> u64 {
        self.last_ns
    }
}

/// Seals, and holds what is sealed and not written yet.
pub(super) struct Sealing {
    node: NodeId,
    sealer: Sealer,
    pub(super) generation: Generation,
    pub(super) batch: Vec<Spooled>,
    pub(super) batch_bytes: usize,
    /// For the next cut: a segment's plaintext is long enough that getting memory for each is felt.
    pub(super) memory: Vec<u8>,
    fast: bool,
    counters: Arc<Counters>,
}

impl Sealing {
    pub(super) fn new(
        node: NodeId,
        signer: weir_proto::seal::SigningKey,
        generation: Generation,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            node,
            sealer: Sealer::new(signer, LEVEL),
            generation,
            batch: Vec::new(),
            batch_bytes: 0,
            memory: Vec::new(),
            fast: false,
            counters,
        }
    }

    /// Under pressure, compress less.
    pub(super) fn hurry(&mut self, fast: bool) {
        self.fast = fast;
        self.sealer.set_level(if fast { LEVEL_FAST } else { LEVEL });
    }

    /// Seals a cut as the chain's next segment, into the batch.
    pub(super) fn seal(
        &mut self,
        chain: &mut ChainHead,
        cut: &Cut,
        last: bool,
        wall: Anchor,
    ) -> Result<(), SealError> {
        let draft = Draft {
            node: self.node,
            session: chain.session,
            number: chain.number,
            run: chain.run,
            generation: self.generation.id,
            seq: chain.next_seq,
            prev_hash: chain.head,
            last,
            first_ns: cut.first_ns,
            last_ns: cut.last_ns,
            wall,
            events: cut.events,
            journal: cut.journal,
        };
        let key = self.generation.key.session_key(&chain.session);
        let sealed = self.sealer.seal(&draft, &cut.plain, &key)?;
        // From here on the chain has this segment, whatever becomes of writing it.
        chain.next_seq += 1;
        chain.head = sealed.hash;
        self.counters.segments_sealed.add(1);
        self.counters.segments_sealed_fast.add(u64::from(self.fast));
        self.counters.segment_plain_bytes.add(cut.plain.len() as u64);
        self.counters.segment_sealed_bytes.add(sealed.bytes.len() as u64);
        self.batch_bytes += sealed.bytes.len();
        self.batch.push(Spooled { draft, sealed });
        Ok(())
    }
}
