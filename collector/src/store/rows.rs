//! What goes into the index and comes out of it.

use bytes::Bytes;
use weir_proto::seal::{Anchor, Hash};
use weir_proto::{GenerationId, NodeId, RunId, SessionId, v1};

use crate::heartbeats::Sign;

/// A node as the index knows it.
#[derive(Clone)]
pub struct NodeRow {
    pub id: NodeId,
    pub name: String,
    pub signing_key: [u8; 32],
    pub revoked: bool,
    pub log_entries: u64,
    pub log_head: Vec<u8>,
    pub next_number: u64,
}

/// A node at its enrolment.
pub struct NewNode<'a> {
    pub id: NodeId,
    pub name: &'a str,
    pub signing_key: [u8; 32],
    pub token_hash: [u8; 32],
    pub now_ms: i64,
}

/// How an enrolment went.
#[derive(Debug, PartialEq, Eq)]
pub enum Enrolled {
    /// This id is the node's: the new one, or the one it got when the same enrolment was made before.
    As(NodeId),
    /// No such token, used up, expired, or not for this name: a stranger is not told which.
    Refused,
    /// The signing key belongs to a node of another name already.
    KnownKey,
    /// It belongs to a node that was revoked.
    Revoked,
}

/// Where a session's chain stands in the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainRow {
    pub node: NodeId,
    pub run: RunId,
    pub next_seq: u64,
    pub head: Hash,
    pub closed: bool,
    /// Segments below were deleted by retention.
    pub expired_seq: u64,
    /// Of the session, at the end of its last segment.
    pub protocol: String,
}

/// A segment that is held, with the receipt given for it.
#[derive(Clone, Debug)]
pub struct HeldRow {
    pub hash: Hash,
    pub received_ms: i64,
    pub receipt: Vec<u8>,
}

/// One accepted segment, ready to be committed.
pub struct Accepted {
    pub session: SessionId,
    pub run: RunId,
    pub node: NodeId,
    pub generation: GenerationId,
    pub seq: u64,
    pub last: bool,
    pub hash: Hash,
    pub prev_hash: Hash,
    pub signature: Bytes,
    pub first_boot_ns: u64,
    pub last_boot_ns: u64,
    pub wall: Anchor,
    pub events: u32,
    /// Place in the batch's bundle.
    pub at: u64,
    pub len: u64,
    pub received_ms: i64,
    /// Signature of the receipt.
    pub receipt: Vec<u8>,
    /// The session's key under this collector's key-encryption key.
    pub session_key: Vec<u8>,
    /// Of the session, before this segment.
    pub protocol: String,
    pub digest: Digest,
}

/// What a segment's events say, as far as the index is concerned.
#[derive(Default, Debug)]
pub struct Digest {
    pub opened: Option<v1::Opened>,
    pub protocol: Option<(String, String)>,
    pub coverage: Option<(i32, String)>,
    pub facts: std::collections::BTreeMap<String, String>,
    pub rows: Vec<Exchange>,
    /// What the exchanges of a segment have in common: each an encoded `Finished` with its kind and columns alone.
    pub shapes: Vec<Vec<u8>>,
    /// (place of the event in the segment, at, gap)
    pub gaps: Vec<(u32, u64, v1::Gap)>,
    /// The connection itself was refused by this rule, for this reason.
    pub refused: Option<(String, String)>,
    pub closed: Option<(u64, v1::Closed)>,
    pub request_bytes: u64,
    pub response_bytes: u64,
    pub exchanges: u64,
    pub denied: u64,
}

/// One exchange, as it stands at the end of a segment.
#[derive(Default, Debug)]
pub struct Exchange {
    pub ordinal: u64,
    pub asked_ns: u64,
    /// `None` while it runs.
    pub duration_ns: Option<u64>,
    /// After it was asked; 0 = none.
    pub first_reply_ns: u64,
    /// An earlier segment told of it already.
    pub carried: bool,
    pub outcome: i32,
    pub would_deny: bool,
    pub rows: u64,
    pub request_bytes: u64,
    pub response_bytes: u64,
    /// Which of [`Digest::shapes`].
    pub shape: u32,
    /// Of the session when it ended; `None`: as before this segment.
    pub protocol: Option<String>,
    pub rule: String,
    pub verb: String,
    pub status: String,
    pub error: String,
    pub statement: String,
    /// Encoded `Finished` with what is nowhere else in the row; empty: nothing.
    pub detail: Vec<u8>,
}

/// Node log entries that continue what the index holds.
pub struct AcceptedEntries {
    pub node: NodeId,
    /// How many the index must hold before.
    pub from: u64,
    pub entries: Vec<AcceptedEntry>,
}

pub struct AcceptedEntry {
    pub index: u64,
    pub hash: Hash,
    pub unix_ns: i64,
    pub signed: Vec<u8>,
    /// When it was said, and what it says of the agent's life.
    pub sign: Sign,
    /// Encoded `AgentState`, where it says how the agent stands.
    pub agent: Option<Vec<u8>>,
    pub heartbeat: Option<v1::Heartbeat>,
    pub synchronized: bool,
    /// Highest number this entry opens, or 0.
    pub opened_max: u64,
}

/// Something that must not happen.
#[derive(Clone, Debug)]
pub struct Alert {
    pub unix_ms: i64,
    pub node: NodeId,
    pub session: Option<SessionId>,
    pub seq: Option<u64>,
    pub kind: &'static str,
    pub detail: String,
}

/// What one transaction of ingest writes.
#[derive(Default)]
pub struct Batch {
    pub bundle: Option<NewBundle>,
    pub segments: Vec<Accepted>,
    pub node_entries: Vec<AcceptedEntries>,
    pub alerts: Vec<Alert>,
}

/// A segment of a batch that the index did not take.
#[derive(Debug)]
pub struct Untaken {
    pub session: SessionId,
    pub seq: u64,
    /// What is wrong with it. `None`: only that it follows another one.
    pub why: Option<String>,
}

pub struct NewBundle {
    pub key: String,
    pub bytes: u64,
    pub created_ms: i64,
}

/// How far full text has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TextProgress {
    /// Segments below are in.
    pub next_segment: i64,
    /// When the first segment that is not in was received; `None`: all are in.
    pub waiting_since_ms: Option<i64>,
}

/// A segment whose text is to be indexed.
#[derive(Clone, Debug)]
pub struct TextSegment {
    pub id: i64,
    pub stored: StoredSegment,
    /// Of the session, at the end of this segment.
    pub protocol: String,
    /// Its exchanges, by ordinal.
    pub exchanges: std::collections::HashMap<u64, TextRow>,
}

#[derive(Clone, Debug)]
pub struct TextRow {
    pub id: i64,
    /// `None`: as the segment's.
    pub protocol: Option<String>,
}

/// What is searched of one exchange.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ExchangeText {
    pub exchange: i64,
    /// Statement or URL, and parameters.
    pub asked: String,
    pub error: String,
    pub body: String,
}

/// Where to read one segment, and what else was kept of it.
#[derive(Clone, Debug)]
pub struct StoredSegment {
    pub session: SessionId,
    pub seq: u64,
    pub bundle: String,
    pub at: u64,
    pub len: u64,
    pub hash: Hash,
    pub signature: Vec<u8>,
    pub generation: GenerationId,
    pub first_boot_ns: u64,
    pub wall: Anchor,
    pub received_ms: i64,
    pub receipt: Vec<u8>,
}

/// Who holds a credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialRow {
    pub name: String,
    pub role: String,
}

/// Wall-clock time of an instant of the node's boot clock.
pub fn unix_ns(wall: &Anchor, boot_ns: u64) -> i64 {
    let offset = i128::from(boot_ns) - i128::from(wall.boot_ns);
    let unix = i128::from(wall.unix_ns) + offset;
    unix.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
}
