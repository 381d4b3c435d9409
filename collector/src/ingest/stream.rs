//! One agent's stream, from its hello to its end. What it can make the collector hold is bounded three times: by the
//! size of a message, by its bytes in flight, and by the answers it has not read yet.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};
use weir_proto::seal::{self, FORMAT_VERSION, GenerationKey, STREAM_VERSION, VerifyingKey};
use weir_proto::v1::{self, refused::Why, to_agent, to_collector};
use weir_proto::{GenerationId, NodeId};

use super::acceptance::{Answer, Offer};
use super::check::{self, Refusal};
use super::committer::{Budget, Committer, Held, Work};
use super::connected::{REVOKED, Seat};
use crate::clock;
use crate::keys::Keys;
use crate::keys::hpke::{self, DAYS_AHEAD, DEFAULT_CLASS, ReceivedWrap};
use crate::store::rows::Alert;
use crate::store::{Durable, Index, StoreError};

/// Bytes of one agent that wait for their answer.
pub const AGENT_BYTES_MAX: u32 = 32 * 1024 * 1024;
/// Answers that wait for the agent to read them; with none left its messages are not read either.
pub const ANSWERS_MAX: usize = 1024;
/// Generation keys kept open per stream: the current one, and those of a spool that is being resent.
const GENERATIONS_MAX: usize = 16;
/// A stream is ended after this time: agents spread over replicas, and an old agent gets the keys of the days ahead.
const STREAM_LIFE: Duration = Duration::from_secs(12 * 3600);
/// How often a connected agent gets a fresh key set: one that never reconnects must not run out of days.
const KEYS_INTERVAL: Duration = Duration::from_secs(3600);
/// Entries of one message.
const ENTRIES_MAX: usize = 4096;

/// Everything a stream uses; the collector's is shared.
pub(super) struct AgentStream {
    pub node: NodeId,
    pub key: VerifyingKey,
    pub index: Index,
    pub keys: Arc<Keys>,
    pub committer: Committer,
    pub all: Budget,
    pub mine: Budget,
    pub generations: HashMap<GenerationId, GenerationKey>,
}

impl AgentStream {
    /// Answers the hello: what is read here, today's keys, and where the node's log stands.
    pub(super) async fn welcome(&self, hello: &v1::Hello) -> Result<v1::ToAgent, Status> {
        if hello.node_id[..] != self.node.as_bytes()[..] {
            return Err(Status::permission_denied("the hello names another node than the certificate"));
        }
        reads(hello)?;
        let now = clock::unix_ms();
        self.index
            .node_seen(&self.node, &shortened(&hello.agent_version), now)
            .await
            .map_err(store_status)?;
        let row = self.index.node(&self.node).await.map_err(store_status)?;
        let row = row.ok_or_else(|| Status::permission_denied("the node is not known any more"))?;
        if row.revoked {
            return Err(Status::permission_denied(REVOKED));
        }
        let keys = key_set(&self.index, &self.keys, now).await.map_err(store_status)?;
        let welcome = v1::Welcome {
            format_min: u32::from(FORMAT_VERSION),
            format_max: u32::from(FORMAT_VERSION),
            collector_version: env!("CARGO_PKG_VERSION").into(),
            keys: Some(keys),
            node_entries: row.log_entries,
            node_head: if row.log_entries == 0 { Bytes::new() } else { row.log_head.into() },
            next_number: row.next_number,
            stream_version: STREAM_VERSION,
        };
        Ok(v1::ToAgent { message: Some(to_agent::Message::Welcome(welcome)) })
    }

    /// Reads until the agent ends, errs or is ended. The agent's messages are handled in their order.
    pub(super) async fn run(
        mut self,
        mut inbound: Streaming<v1::ToCollector>,
        answers: mpsc::Sender<Answer>,
        seat: Seat,
        stream_version: u32,
    ) {
        let (index, keys) = (self.index.clone(), self.keys.clone());
        let refresh = refresh_keys(index, keys, answers.clone(), stream_version, KEYS_INTERVAL);
        // The only choice to make here: the agent's next step, newer keys for it, or the end of its seat or of the
        // stream's life.
        let end = tokio::select! {
            end = self.read(&mut inbound, &answers, &seat) => end,
            end = refresh => end,
            () = tokio::time::sleep(STREAM_LIFE) => Err(Status::unavailable("the stream has lived long enough: reconnect")),
            status = seat.ended() => Err(status),
        };
        if let Err(status) = end {
            tracing::info!(node = %self.node, %status, "an agent's stream ended");
            // An agent that does not read its answers does not read this one either.
            let _ = answers.try_send(Err(status));
        }
    }

    async fn read(
        &mut self,
        inbound: &mut Streaming<v1::ToCollector>,
        answers: &mpsc::Sender<Answer>,
        seat: &Seat,
    ) -> Result<(), Status> {
        loop {
            let Ok(place) = answers.clone().reserve_owned().await else { return Ok(()) };
            let Some(message) = inbound.message().await? else { return Ok(()) };
            match message.message {
                Some(to_collector::Message::Segment(sealed)) => self.segment(sealed, place).await?,
                Some(to_collector::Message::Wrap(wrap)) => self.wrap(wrap).await?,
                Some(to_collector::Message::Node(entries)) => {
                    if entries.sent_unix_ns != 0 {
                        seat.said_clock((entries.sent_unix_ns / 1_000_000).saturating_sub(clock::unix_ms()));
                    }
                    self.entries(entries, place).await?;
                }
                Some(to_collector::Message::Hello(_)) => {
                    return Err(Status::invalid_argument("a stream has one hello"));
                }
                // An agent of a later minor version may say more than is known here; it was told our version.
                None => {}
            }
        }
    }

    async fn segment(
        &mut self,
        sealed: v1::SealedSegment,
        place: mpsc::OwnedPermit<Answer>,
    ) -> Result<(), Status> {
        let bytes = sealed.bytes.len();
        let authentic = check::authentic(sealed, &self.node, &self.key);
        // What it opens to counts: a segment of a hundred bytes may hold a mebibyte of events.
        let plain = authentic.as_ref().map_or(0, |(segment, _)| segment.header().plain_len as usize);
        let held = self.hold(bytes.max(plain)).await?;
        let offer = match authentic {
            Ok((segment, signature)) => match self.generation(&segment.draft().generation).await? {
                Some(generation) => {
                    let keys = self.keys.clone();
                    let opened = tokio::task::spawn_blocking(move || {
                        check::opened(segment, signature, &generation, &keys.kek)
                    });
                    match opened.await {
                        Ok(Ok(Ok(checked))) => Offer::Segment(Box::new(checked)),
                        Ok(Ok(Err(refusal))) => Offer::Refused(refusal),
                        Ok(Err(error)) => return Err(Status::internal(error.to_string())),
                        Err(_) => return Err(Status::internal("checking a segment failed")),
                    }
                }
                None => Offer::Refused(Refusal::of(
                    &segment,
                    Why::NoWrap,
                    "the wrap of its generation is not here",
                )),
            },
            Err(refusal) => Offer::Refused(refusal),
        };
        self.committer.offer(Work { node: self.node, offer, bytes, answer: place, held }).await
    }

    async fn entries(
        &mut self,
        entries: v1::NodeEntries,
        place: mpsc::OwnedPermit<Answer>,
    ) -> Result<(), Status> {
        if entries.signed.len() > ENTRIES_MAX {
            return Err(Status::invalid_argument(format!(
                "at most {ENTRIES_MAX} node log entries in one message"
            )));
        }
        let bytes = entries.signed.iter().map(Bytes::len).sum();
        let held = self.hold(bytes).await?;
        let entries = entries
            .signed
            .into_iter()
            .map(<v1::SignedNodeEntry as prost::Message>::decode)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| Status::invalid_argument("a node log entry does not decode"))?;
        let offer = Offer::Entries(self.key, entries);
        self.committer.offer(Work { node: self.node, offer, bytes, answer: place, held }).await
    }

    /// Keeps a wrap if it opens; what does not open would only be found out when somebody wants to read.
    async fn wrap(&mut self, wrap: v1::Wrap) -> Result<(), Status> {
        let Some(received) = ReceivedWrap::of(wrap, self.node) else {
            return Err(Status::invalid_argument("a malformed wrap, or one for another node"));
        };
        let key = self.index.hpke_key(&received.key).await.map_err(store_status)?;
        let opened = match &key {
            Some(key) => self.open_wrap(&received.wrap, key)?,
            None => None,
        };
        if opened.is_none() {
            self.alert(
                "bad-wrap",
                format!("the wrap of generation {} does not open here", received.generation),
            )
            .await?;
            return Ok(());
        }
        let kept = self
            .index
            .wrap_put(&received.generation, &received.key, &self.node, &received.wrap, clock::unix_ms())
            .await
            .map_err(store_status)?;
        if !kept {
            return Err(Status::resource_exhausted("this node has left more key wraps than a node can need"));
        }
        Ok(())
    }

    async fn generation(&mut self, id: &GenerationId) -> Result<Option<GenerationKey>, Status> {
        if let Some(key) = self.generations.get(id) {
            return Ok(Some(key.clone()));
        }
        let Some((wrap, key)) = self.index.wrap(id, &self.node).await.map_err(store_status)? else {
            return Ok(None);
        };
        let Some(generation) = self.open_wrap(&wrap, &key)? else { return Ok(None) };
        if self.generations.len() >= GENERATIONS_MAX {
            self.generations.clear();
        }
        self.generations.insert(*id, generation.clone());
        Ok(Some(generation))
    }

    fn open_wrap(&self, wrap: &v1::Wrap, key: &hpke::StoredHpkeKey) -> Result<Option<GenerationKey>, Status> {
        let private = key.private(&self.keys.kek).map_err(|error| Status::internal(error.to_string()))?;
        Ok(seal::unwrap(wrap, &private).ok())
    }

    async fn alert(&self, kind: &'static str, detail: String) -> Result<(), Status> {
        let alert =
            Alert { unix_ms: clock::unix_ms(), node: self.node, session: None, seq: None, kind, detail };
        let batch = crate::store::rows::Batch { alerts: vec![alert], ..Default::default() };
        self.index.batch_commit(&batch, Durable::default()).await.map(drop).map_err(store_status)
    }

    async fn hold(&self, bytes: usize) -> Result<Held, Status> {
        let closed = || Status::unavailable("the collector is shutting down");
        let agent = self.mine.take(bytes).await.ok_or_else(closed)?;
        let all = self.all.take(bytes).await.ok_or_else(closed)?;
        Ok(Held { agent, all })
    }
}

/// What the agent writes must be readable here, or it must keep it: nothing is taken on trust.
fn reads(hello: &v1::Hello) -> Result<(), Status> {
    let ours = u32::from(FORMAT_VERSION);
    // A first version's hello that leaves the range out means format 1.
    let (min, max) = (hello.format_min.max(1), hello.format_max.max(1));
    if (min..=max).contains(&ours) {
        return Ok(());
    }
    let older = if min > ours { "this collector" } else { "that node agent" };
    Err(Status::failed_precondition(format!(
        "collector {} reads segment format {ours}, node agent {} writes {min} to {max}: upgrade {older}; the agent's spool keeps \
         everything until then",
        env!("CARGO_PKG_VERSION"),
        shortened(&hello.agent_version),
    )))
}

/// Today's keys and those of the days ahead.
async fn key_set(index: &Index, keys: &Keys, now_ms: i64) -> Result<v1::SignedKeySet, StoreError> {
    let mut list = index.hpke_key_list(DEFAULT_CLASS, hpke::day_of(now_ms)).await?;
    list.truncate(DAYS_AHEAD as usize + 1);
    Ok(hpke::key_set(&keys.receipts, &list, now_ms))
}

/// Sends a fresh key set now and then, to agents that can take one outside the welcome.
async fn refresh_keys(
    index: Index,
    keys: Arc<Keys>,
    answers: mpsc::Sender<Answer>,
    stream_version: u32,
    interval: Duration,
) -> Result<(), Status> {
    loop {
        tokio::time::sleep(interval).await;
        if stream_version == 0 {
            continue;
        }
        let set = key_set(&index, &keys, clock::unix_ms()).await.map_err(store_status)?;
        let fresh = v1::ToAgent { message: Some(to_agent::Message::Keys(set)) };
        if answers.send(Ok(fresh)).await.is_err() {
            return Ok(());
        }
    }
}

pub(super) fn store_status(error: StoreError) -> Status {
    tracing::error!(error = %crate::chain(&error), "the store failed");
    Status::unavailable("the collector's store failed: reconnect and send again")
}

/// What a peer says about itself is kept short and printable.
fn shortened(text: &str) -> String {
    text.chars().filter(|c| c.is_ascii_graphic()).take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::Data;

    #[tokio::test]
    async fn an_agent_that_understands_it_gets_fresh_keys_while_it_is_connected() {
        let folder = tempfile::tempdir().unwrap();
        let Data { keys, store } = Data::open(folder.path()).await.unwrap();
        let now_ms = clock::unix_ms();
        crate::retention::keys_ahead(&store.index, &keys.kek, now_ms).await.unwrap();
        let interval = Duration::from_millis(20);
        let fresh = |version| {
            let (answers, heard) = mpsc::channel(4);
            let refresh = refresh_keys(store.index.clone(), keys.clone(), answers, version, interval);
            (refresh, heard)
        };
        let (refresh, mut heard) = fresh(STREAM_VERSION);
        let answer = tokio::select! {
            _ = refresh => None,
            answer = heard.recv() => answer,
        };
        let Some(to_agent::Message::Keys(signed)) = answer.unwrap().unwrap().message else {
            panic!("a key set")
        };
        let set = seal::verify_key_set(&keys.receipts.verifying_key(), &signed).unwrap();
        assert_eq!(set.keys.len(), DAYS_AHEAD as usize + 1);
        assert!(set.issued_unix >= now_ms / 1000);
        // The first version's agents would call it nonsense.
        let (refresh, mut heard) = fresh(0);
        assert!(tokio::time::timeout(interval * 20, refresh).await.is_err());
        assert!(heard.recv().await.is_none());
    }
}
