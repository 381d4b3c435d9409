//! What one sealed segment must prove by itself: its format, its signature, its node, and that it opens.

use bytes::Bytes;
use weir_proto::seal::{GenerationKey, Segment, SegmentError, VerifyingKey};
use weir_proto::v1::{self, refused::Why};
use weir_proto::{NodeId, SessionId};

use super::digest::digest;
use crate::keys::{Kek, KeysError, hpke};
use crate::store::rows::Digest;

/// A segment that stands by itself; its place in the session's chain is not proven yet.
pub struct Checked {
    pub segment: Segment,
    pub signature: Bytes,
    pub digest: Digest,
    /// The session's key under the collector's key-encryption key.
    pub session_key: Vec<u8>,
}

/// Why a segment is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub session: Option<SessionId>,
    pub seq: u64,
    pub why: Why,
    pub wanted: u64,
    pub detail: String,
    /// Kind of the alert that this is worth, if any.
    pub alert: Option<&'static str>,
}

impl Refusal {
    pub fn of(segment: &Segment, why: Why, detail: impl ToString) -> Self {
        Self {
            session: Some(segment.session()),
            seq: segment.seq(),
            why,
            wanted: 0,
            detail: detail.to_string(),
            alert: None,
        }
    }

    pub fn tamper(segment: &Segment, alert: &'static str, detail: impl ToString) -> Self {
        Self { alert: Some(alert), ..Self::of(segment, Why::Tamper, detail) }
    }

    pub fn to_message(&self) -> v1::ToAgent {
        let refused = v1::Refused {
            session_id: self.session.map(SessionId::to_field).unwrap_or_default(),
            seq: self.seq,
            why: self.why as i32,
            wanted: self.wanted,
            detail: self.detail.clone(),
        };
        v1::ToAgent { message: Some(v1::to_agent::Message::Refused(refused)) }
    }
}

/// Form and signature: cheap, and all that a stranger's bytes can reach.
pub fn authentic(
    sealed: v1::SealedSegment,
    node: &NodeId,
    key: &VerifyingKey,
) -> Result<(Segment, Bytes), Refusal> {
    let segment = Segment::parse(sealed.bytes.clone()).map_err(|error| {
        let (why, alert) = match error {
            SegmentError::Format(_) => (Why::UnknownFormat, None),
            _ => (Why::Tamper, Some("malformed-segment")),
        };
        let (session, seq) = named(&sealed.bytes);
        Refusal { session, seq, why, wanted: 0, detail: error.to_string(), alert }
    })?;
    if segment.draft().node != *node {
        return Err(Refusal::tamper(
            &segment,
            "foreign-node",
            "the segment names another node than the one that sends it",
        ));
    }
    segment
        .verify(key, &sealed.signature)
        .map_err(|error| Refusal::tamper(&segment, "bad-signature", error))?;
    Ok((segment, sealed.signature))
}

/// Opens it and reads what it says. Costs decompression: for a blocking thread.
pub fn opened(
    segment: Segment,
    signature: Bytes,
    generation: &GenerationKey,
    kek: &Kek,
) -> Result<Result<Checked, Refusal>, KeysError> {
    let session = segment.session();
    let key = generation.session_key(&session);
    let plain = match segment.open(&key) {
        Ok(plain) => plain,
        Err(error) => return Ok(Err(Refusal::tamper(&segment, "does-not-open", error))),
    };
    let digest = match digest(segment.draft(), plain) {
        Ok(digest) => digest,
        Err(error) => return Ok(Err(Refusal::tamper(&segment, "malformed-events", error))),
    };
    if let Some(wrong) = opened_contradicts(&segment, &digest) {
        return Ok(Err(Refusal::tamper(&segment, "malformed-events", wrong)));
    }
    let session_key = hpke::session_key_wrap(kek, &session, &segment.draft().generation, &key)?;
    Ok(Ok(Checked { segment, signature, digest, session_key }))
}

/// The first segment of a session, and only the first, begins with `opened`, which says what the header says.
fn opened_contradicts(segment: &Segment, digest: &Digest) -> Option<&'static str> {
    let draft = segment.draft();
    match (&digest.opened, draft.seq) {
        (None, 0) => Some("the first segment does not say what was opened"),
        (Some(_), 1..) => Some("a session is opened twice"),
        (None, _) => None,
        (Some(opened), 0) => {
            let run = opened.run.as_ref().map(|run| &run.id[..]);
            let same = opened.session_id[..] == draft.session.as_bytes()[..]
                && opened.node_id[..] == draft.node.as_bytes()[..]
                && opened.node_number == draft.number
                && run == Some(&draft.run.as_bytes()[..]);
            (!same).then_some("the opened event contradicts the segment's header")
        }
    }
}

/// Session and sequence number of a segment whose format is not known: docs/format.md promises that the ids and the
/// number stay where they are in every version, so that a refusal can name what it refuses.
fn named(bytes: &[u8]) -> (Option<SessionId>, u64) {
    let at = |from: usize, to: usize| bytes.get(from..to);
    let session = at(24, 40).and_then(|id| SessionId::try_from(id).ok());
    let seq = at(80, 88).and_then(|seq| seq.try_into().ok()).map_or(0, u64::from_be_bytes);
    (session, seq)
}
