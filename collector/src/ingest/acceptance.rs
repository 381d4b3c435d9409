//! What a segment must prove against its session's chain, and an entry against its node's log; commits a whole batch
//! and only then answers.

use std::collections::hash_map::Entry::Vacant;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use prost::Message;
use weir_proto::seal::{self, Chain, ChainError, Hash, NodeChain, NodeLogError, Receipted, VerifyingKey};
use weir_proto::v1::{self, refused::Why, to_agent};
use weir_proto::{NodeId, SessionId};

use super::check::{Checked, Refusal};
use crate::clock;
use crate::disk::Disk;
use crate::heartbeats::Sign;
use crate::keys::Keys;
use crate::metrics::Metrics;
use crate::store::rows::{
    Accepted, AcceptedEntries, AcceptedEntry, Alert, Batch, ChainRow, NewBundle, Untaken, unix_ns,
};
use crate::store::{Bundles, Durable, Store, StoreError};

/// What an agent offers, after it has proven who it is.
pub enum Offer {
    Segment(Box<Checked>),
    /// What could be seen to be wrong before the batch: the batch only writes the alert and answers in order.
    Refused(Refusal),
    Entries(VerifyingKey, Vec<v1::SignedNodeEntry>),
}

/// The answer to one offer: for the agent, or the end of its stream.
pub type Answer = Result<v1::ToAgent, tonic::Status>;

/// One per collector: batches are accepted one after the other.
pub struct Acceptance {
    pub store: Store,
    pub keys: Arc<Keys>,
    pub disk: Disk,
    pub metrics: Metrics,
}

/// One batch while it is decided.
#[derive(Default)]
struct Deciding {
    /// Of the sessions offered, as the index has them; `None`: they are read one by one.
    rows: Option<HashMap<SessionId, ChainRow>>,
    chains: HashMap<SessionId, (Chain, ChainRow)>,
    /// Receipts of what this very batch accepts.
    receipts: HashMap<(SessionId, u64), (Hash, v1::Receipt)>,
    logs: HashMap<NodeId, NodeChain>,
    hashes: HashMap<(NodeId, u64), Hash>,
    batch: Batch,
    parts: Vec<bytes::Bytes>,
    bytes: u64,
}

/// An answer, and whether it may be given only when the batch is committed.
struct Decided {
    node: NodeId,
    answer: Answer,
    segment: Option<(SessionId, u64)>,
    promises: bool,
}

impl Acceptance {
    /// Answers every offer, in order. Nothing is promised before it is durable.
    pub async fn accept(&self, offers: Vec<(NodeId, Offer)>) -> Vec<Answer> {
        let full = self.disk.is_full();
        let mut deciding = Deciding { rows: self.rows(&offers).await, ..Deciding::default() };
        let mut decided = Vec::with_capacity(offers.len());
        for (node, offer) in offers {
            let one = match offer {
                Offer::Segment(checked) => {
                    let segment = checked.segment.clone();
                    match self.segment(&mut deciding, node, *checked, full).await {
                        // One session's rows do not end the node's stream: it would come back to the same end for ever.
                        Err(error @ StoreError::Damaged(_)) => {
                            let refusal = Refusal::tamper(&segment, "damaged-index", error);
                            Ok(self.refuse(&mut deciding, node, refusal))
                        }
                        decided => decided,
                    }
                }
                Offer::Refused(refusal) => Ok(self.refuse(&mut deciding, node, refusal)),
                Offer::Entries(key, entries) => self.entries(&mut deciding, node, &key, entries).await,
            };
            decided.push(one.unwrap_or_else(|error| self.failed(node, &error)));
        }
        let done = self.commit(deciding).await;
        if let Ok(untaken) = &done {
            self.untaken(&mut decided, untaken).await;
        }
        decided.into_iter().map(|one| self.answer(one, done.as_ref().err())).collect()
    }

    /// One look at the index for the whole batch. When it fails, each session fails, or does not, by itself.
    async fn rows(&self, offers: &[(NodeId, Offer)]) -> Option<HashMap<SessionId, ChainRow>> {
        let sessions: HashSet<SessionId> = offers
            .iter()
            .filter_map(|(_, offer)| match offer {
                Offer::Segment(checked) => Some(checked.segment.session()),
                Offer::Refused(_) | Offer::Entries(..) => None,
            })
            .collect();
        self.store.index.session_chains(&sessions).await.ok()
    }

    /// Replaces the receipts of what the index did not take, and says so in alerts.
    async fn untaken(&self, decided: &mut [Decided], untaken: &[Untaken]) {
        let mut deciding = Deciding::default();
        for one in untaken {
            let same =
                |decided: &&mut Decided| decided.segment == Some((one.session, one.seq)) && decided.promises;
            for decided in decided.iter_mut().filter(same) {
                let refusal = Refusal {
                    session: Some(one.session),
                    seq: one.seq,
                    why: if one.why.is_some() { Why::Tamper } else { Why::TryLater },
                    wanted: 0,
                    detail: one.why.clone().unwrap_or_else(|| "the segment before it was not taken".into()),
                    alert: one.why.as_ref().map(|_| "unstorable-segment"),
                };
                *decided = self.refuse(&mut deciding, decided.node, refusal);
            }
        }
        if let Err(error) = self.commit(deciding).await {
            tracing::error!(error = %crate::chain(&error), "an alert was not written");
        }
    }

    async fn commit(&self, mut deciding: Deciding) -> Result<Vec<Untaken>, StoreError> {
        let batch = &mut deciding.batch;
        if batch.segments.is_empty() && batch.node_entries.is_empty() && batch.alerts.is_empty() {
            return Ok(Vec::new());
        }
        let mut put = Durable::default();
        if !batch.segments.is_empty() {
            let created_ms = clock::unix_ms();
            let key = Bundles::new_key(created_ms);
            put = Durable::after(self.store.bundles.clone().put(key.clone(), deciding.parts));
            batch.bundle = Some(NewBundle { key, bytes: deciding.bytes, created_ms });
        }
        let untaken = self.store.index.batch_commit(batch, put).await?;
        self.metrics.batches.inc();
        self.metrics.segments_accepted.inc_by((batch.segments.len() - untaken.len()) as u64);
        self.metrics.segment_bytes.inc_by(deciding.bytes);
        self.metrics.alerts.inc_by(batch.alerts.len() as u64);
        for alert in &batch.alerts {
            tracing::warn!(node = %alert.node, session = ?alert.session, seq = alert.seq, kind = alert.kind, detail = alert.detail, "alert");
        }
        Ok(untaken)
    }

    fn answer(&self, one: Decided, failed: Option<&StoreError>) -> Answer {
        match (failed, one.promises, one.segment) {
            (None, ..) | (Some(_), false, _) => one.answer,
            (Some(error), true, Some((session, seq))) => {
                tracing::error!(error = %crate::chain(error), "a batch was not committed: its segments are asked for again");
                let refusal = Refusal {
                    session: Some(session),
                    seq,
                    why: Why::TryLater,
                    wanted: 0,
                    detail: "the collector could not store it now".into(),
                    alert: None,
                };
                Ok(refusal.to_message())
            }
            (Some(error), true, None) => self.failed(one.node, error).answer,
        }
    }

    fn failed(&self, node: NodeId, error: &StoreError) -> Decided {
        self.metrics.store_errors.inc();
        tracing::error!(error = %crate::chain(error), "the store failed");
        Decided {
            node,
            answer: Err(tonic::Status::unavailable("the collector's store failed: reconnect and send again")),
            segment: None,
            promises: false,
        }
    }

    fn refuse(&self, deciding: &mut Deciding, node: NodeId, refusal: Refusal) -> Decided {
        self.metrics.segments_refused.inc();
        if let Some(kind) = refusal.alert {
            deciding.batch.alerts.push(Alert {
                unix_ms: clock::unix_ms(),
                node,
                session: refusal.session,
                seq: refusal.session.map(|_| refusal.seq),
                kind,
                detail: refusal.detail.clone(),
            });
        }
        Decided { node, answer: Ok(refusal.to_message()), segment: None, promises: false }
    }

    async fn segment(
        &self,
        deciding: &mut Deciding,
        node: NodeId,
        checked: Checked,
        full: bool,
    ) -> Result<Decided, StoreError> {
        let segment = &checked.segment;
        let (session, seq) = (segment.session(), segment.seq());
        if let Err(refusal) = self.chain_load(deciding, node, &checked).await? {
            return Ok(self.refuse(deciding, node, refusal));
        }
        let Some((chain, row)) = deciding.chains.get_mut(&session) else {
            return Err(StoreError::Damaged("a chain was just loaded"));
        };
        if seq < chain.next_seq {
            let row = row.clone();
            return self.again(deciding, node, &checked, &row).await;
        }
        if full && seq == chain.next_seq {
            let refusal = Refusal::of(segment, Why::Full, "the collector is below its free-space floor");
            return Ok(self.refuse(deciding, node, refusal));
        }
        let refusal = match chain.accept(segment) {
            Ok(()) => {
                let before = match &checked.digest.protocol {
                    Some((now, _)) => std::mem::replace(&mut row.protocol, now.clone()),
                    None => row.protocol.clone(),
                };
                return Ok(self.take(deciding, checked, before));
            }
            Err(ChainError::Seq { wanted, .. }) => {
                let detail = format!("segment {wanted} comes first");
                Refusal { wanted, ..Refusal::of(segment, Why::WantSeq, detail) }
            }
            Err(error @ ChainError::Foreign { .. }) => Refusal::tamper(segment, "foreign-session", error),
            Err(error) => Refusal::tamper(segment, "broken-chain", error),
        };
        Ok(self.refuse(deciding, node, refusal))
    }

    /// Loads the session's chain into the batch; a refusal when the session or its run is somebody else's.
    async fn chain_load(
        &self,
        deciding: &mut Deciding,
        node: NodeId,
        checked: &Checked,
    ) -> Result<Result<(), Refusal>, StoreError> {
        let draft = checked.segment.draft();
        let session = draft.session;
        if let Vacant(place) = deciding.chains.entry(session) {
            let row = match &mut deciding.rows {
                Some(rows) => rows.remove(&session),
                None => self.store.index.session_chain(&session).await?,
            };
            let row = match row {
                Some(row) => row,
                None => {
                    let owner = self.store.index.run_node(&draft.run).await?;
                    if owner.is_some_and(|owner| owner != node) {
                        let what = "the run belongs to another node";
                        return Ok(Err(Refusal::tamper(&checked.segment, "foreign-run", what)));
                    }
                    ChainRow {
                        node,
                        run: draft.run,
                        next_seq: 0,
                        head: seal::NO_HASH,
                        closed: false,
                        expired_seq: 0,
                        protocol: String::new(),
                    }
                }
            };
            let chain =
                Chain { session, node: row.node, next_seq: row.next_seq, head: row.head, closed: row.closed };
            place.insert((chain, row));
        }
        let Some((_, row)) = deciding.chains.get(&session) else { return Ok(Ok(())) };
        if row.node != node {
            let what = "the session belongs to another node";
            return Ok(Err(Refusal::tamper(&checked.segment, "foreign-session", what)));
        }
        if row.run != draft.run {
            let what = "the session belongs to another run";
            return Ok(Err(Refusal::tamper(&checked.segment, "foreign-run", what)));
        }
        Ok(Ok(()))
    }

    /// A number that is held already: the same segment is acknowledged again, another one is an attempt to replace it.
    async fn again(
        &self,
        deciding: &mut Deciding,
        node: NodeId,
        checked: &Checked,
        row: &ChainRow,
    ) -> Result<Decided, StoreError> {
        let segment = &checked.segment;
        let (session, seq) = (segment.session(), segment.seq());
        let (hash, receipt) = match deciding.receipts.get(&(session, seq)) {
            Some((hash, receipt)) => (*hash, receipt.clone()),
            None => match self.store.index.segment_held(&session, seq).await? {
                Some(held) => {
                    let receipt = v1::Receipt {
                        session_id: session.to_field(),
                        seq,
                        segment_hash: bytes::Bytes::copy_from_slice(&held.hash),
                        received_unix_ms: held.received_ms,
                        signature: held.receipt.into(),
                    };
                    (held.hash, receipt)
                }
                // It was held for as long as retention says; the agent may let go of it, and of nothing else.
                None if seq < row.expired_seq => {
                    let hash = self.store.index.segment_expired(&session, seq).await?;
                    let hash =
                        hash.ok_or(StoreError::Damaged("the hash of an expired segment is missing"))?;
                    (hash, self.receipt(session, seq, hash, clock::unix_ms()))
                }
                None => return Err(StoreError::Damaged("a segment below the session's number is missing")),
            },
        };
        if hash != *segment.hash() {
            let what = "another segment with this number is held already";
            return Ok(self.refuse(deciding, node, Refusal::tamper(segment, "replaced-segment", what)));
        }
        self.metrics.segments_repeated.inc();
        let answer = v1::ToAgent { message: Some(to_agent::Message::Receipt(receipt)) };
        Ok(Decided { node, answer: Ok(answer), segment: Some((session, seq)), promises: true })
    }

    fn take(&self, deciding: &mut Deciding, checked: Checked, protocol: String) -> Decided {
        let Checked { segment, signature, digest, session_key } = checked;
        let draft = segment.draft();
        let (node, session, seq) = (draft.node, draft.session, draft.seq);
        let received_ms = clock::unix_ms();
        let receipt = self.receipt(session, seq, *segment.hash(), received_ms);
        let len = segment.bytes().len() as u64;
        deciding.batch.segments.push(Accepted {
            session,
            run: draft.run,
            node: draft.node,
            generation: draft.generation,
            seq,
            last: draft.last,
            hash: *segment.hash(),
            prev_hash: draft.prev_hash,
            signature,
            first_boot_ns: draft.first_ns,
            last_boot_ns: draft.last_ns,
            wall: draft.wall,
            events: draft.events,
            at: deciding.bytes,
            len,
            received_ms,
            receipt: receipt.signature.to_vec(),
            session_key,
            protocol,
            digest,
        });
        deciding.bytes += len;
        deciding.parts.push(segment.bytes().clone());
        deciding.receipts.insert((session, seq), (*segment.hash(), receipt.clone()));
        let answer = v1::ToAgent { message: Some(to_agent::Message::Receipt(receipt)) };
        Decided { node, answer: Ok(answer), segment: Some((session, seq)), promises: true }
    }

    fn receipt(&self, session: SessionId, seq: u64, hash: Hash, received_unix_ms: i64) -> v1::Receipt {
        seal::sign_receipt(&self.keys.receipts, &Receipted { session, seq, hash, received_unix_ms })
    }

    /// Takes entries that continue the log, skips those that are held, and says where the log stands.
    async fn entries(
        &self,
        deciding: &mut Deciding,
        node: NodeId,
        key: &VerifyingKey,
        offered: Vec<v1::SignedNodeEntry>,
    ) -> Result<Decided, StoreError> {
        if let Vacant(place) = deciding.logs.entry(node) {
            let row = self.store.index.node(&node).await?;
            let row = row.ok_or(StoreError::Damaged("a node that ships is not known"))?;
            let head = match row.log_entries {
                0 => seal::NO_HASH,
                _ => row.log_head.as_slice().try_into().map_err(|_| StoreError::Damaged("log_head"))?,
            };
            place.insert(NodeChain { node, next_index: row.log_entries, head });
        }
        let Some(mut log) = deciding.logs.get(&node).cloned() else {
            return Err(StoreError::Damaged("a log was just loaded"));
        };
        let from = log.next_index;
        let mut taken = Vec::new();
        let mut diverged = false;
        for signed in &offered {
            match self.entry(deciding, &mut log, key, signed).await? {
                Entry::Taken(entry) => taken.push(*entry),
                Entry::Held => {}
                Entry::Ahead => break,
                Entry::Diverged(detail) => {
                    diverged = true;
                    deciding.batch.alerts.push(node_alert(node, "node-log-diverged", detail));
                    break;
                }
                Entry::Bad(error) => {
                    deciding.batch.alerts.push(node_alert(node, "bad-node-entry", error.to_string()));
                    let answer = Err(tonic::Status::invalid_argument(error.to_string()));
                    return Ok(Decided { node, answer, segment: None, promises: false });
                }
            }
        }
        let receipt = v1::NodeReceipt {
            entries: log.next_index,
            head: if log.next_index == 0 {
                bytes::Bytes::new()
            } else {
                bytes::Bytes::copy_from_slice(&log.head)
            },
            diverged,
        };
        if !taken.is_empty() {
            deciding.batch.node_entries.push(AcceptedEntries { node, from, entries: taken });
        }
        deciding.logs.insert(node, log);
        let answer = v1::ToAgent { message: Some(to_agent::Message::Node(receipt)) };
        Ok(Decided { node, answer: Ok(answer), segment: None, promises: true })
    }

    async fn entry(
        &self,
        deciding: &mut Deciding,
        log: &mut NodeChain,
        key: &VerifyingKey,
        signed: &v1::SignedNodeEntry,
    ) -> Result<Entry, StoreError> {
        let node = log.node;
        match log.accept(signed, key) {
            Ok(entry) => {
                if let Some(v1::node_entry::Mark::RolledBack(mark)) = &entry.mark {
                    let detail = format!(
                        "at entry {} the agent found itself on an older disk: its own log ended at entry {}, its numbers at {}",
                        entry.index, mark.own_index, mark.own_next_number
                    );
                    deciding.batch.alerts.push(node_alert(node, "rolled-back", detail));
                }
                deciding.hashes.insert((node, entry.index), log.head);
                Ok(Entry::Taken(Box::new(accepted_entry(&entry, log.head, signed))))
            }
            Err(NodeLogError::Index { wanted, got }) if got < wanted => {
                self.entry_again(deciding, node, key, signed, got).await
            }
            Err(NodeLogError::Index { .. }) => Ok(Entry::Ahead),
            Err(error @ NodeLogError::Broken { .. }) => Ok(Entry::Diverged(error.to_string())),
            Err(error) => Ok(Entry::Bad(error)),
        }
    }

    /// An entry whose index is held already: the same one, or the log has two versions.
    async fn entry_again(
        &self,
        deciding: &Deciding,
        node: NodeId,
        key: &VerifyingKey,
        signed: &v1::SignedNodeEntry,
        index: u64,
    ) -> Result<Entry, StoreError> {
        let held = match deciding.hashes.get(&(node, index)) {
            Some(hash) => Some(*hash),
            None => self.store.index.node_entry_hash(&node, index).await?,
        };
        let prev = v1::NodeEntry::decode(signed.entry.clone())
            .ok()
            .and_then(|e| Hash::try_from(&e.prev_hash[..]).ok());
        let Some(prev) = prev else {
            return Ok(Entry::Diverged(format!("entry {index} came again with a malformed predecessor")));
        };
        let mut alone = NodeChain { node, next_index: index, head: prev };
        match alone.accept(signed, key) {
            Ok(_) if Some(alone.head) == held => Ok(Entry::Held),
            Ok(_) => Ok(Entry::Diverged(format!("another entry {index} is held already"))),
            Err(error) => Ok(Entry::Bad(error)),
        }
    }
}

enum Entry {
    Taken(Box<AcceptedEntry>),
    Held,
    /// Entries before it are missing: the answer says which is next.
    Ahead,
    Diverged(String),
    Bad(NodeLogError),
}

fn accepted_entry(entry: &v1::NodeEntry, hash: Hash, signed: &v1::SignedNodeEntry) -> AcceptedEntry {
    let wall = entry.wall.unwrap_or_default();
    let anchor =
        seal::Anchor { unix_ns: wall.unix_ns, boot_ns: wall.boot_ns, synchronized: wall.synchronized };
    AcceptedEntry {
        index: entry.index,
        hash,
        sign: Sign::of(entry),
        agent: entry.agent.as_ref().map(prost::Message::encode_to_vec),
        unix_ns: unix_ns(&anchor, entry.at_ns),
        signed: signed.encode_to_vec(),
        heartbeat: entry.heartbeat.clone(),
        synchronized: wall.synchronized,
        opened_max: entry.opened.iter().map(|opened| opened.number).max().unwrap_or(0),
    }
}

fn node_alert(node: NodeId, kind: &'static str, detail: String) -> Alert {
    Alert { unix_ms: clock::unix_ms(), node, session: None, seq: None, kind, detail }
}
