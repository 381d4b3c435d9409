//! What a segment's events say, as far as the index is concerned. Pure.

use bytes::Bytes;
use weir_proto::seal::{self, EventError};
use weir_proto::v1::{self, event::Kind};

use crate::store::rows::Digest;

/// Reads a segment's plaintext. An error means that the node sealed something that is not a recording.
pub fn digest(plain: Bytes) -> Result<Digest, EventError> {
    let mut digest = Digest::default();
    for (place, event) in seal::events(plain).enumerate() {
        let event = event?;
        let at = event.at_ns;
        // A kind of a later minor version is kept in the segment and shown by whoever knows it.
        let Some(kind) = event.kind else { continue };
        match kind {
            Kind::Opened(opened) => digest.opened = Some(opened),
            Kind::Facts(facts) => facts_into(&mut digest, facts),
            Kind::Asked(asked) => {
                digest.exchanges = digest.exchanges.max(asked.exchange);
                digest.asked.push((asked.exchange, at, asked.operation.unwrap_or_default()));
            }
            Kind::Judged(judged) if judged.exchange == 0 && !judged.allowed => {
                digest.refused = Some((judged.rule, judged.reason));
            }
            Kind::Judged(_) => {}
            Kind::Data(data) => {
                let bytes = data.bytes.len() as u64;
                match data.direction() {
                    v1::Direction::Request => digest.request_bytes += bytes,
                    v1::Direction::Response => digest.response_bytes += bytes,
                    v1::Direction::Unspecified => {}
                }
            }
            Kind::Finished(finished) => {
                digest.exchanges = digest.exchanges.max(finished.exchange);
                digest.denied += u64::from(finished.outcome() == v1::Outcome::Denied);
                digest.finished.push(finished);
            }
            Kind::Gap(gap) => digest.gaps.push((u32::try_from(place).unwrap_or(u32::MAX), at, gap)),
            Kind::Closed(closed) => {
                if closed.coverage() != v1::Coverage::Unspecified {
                    digest.coverage = Some((closed.coverage, closed.reason.clone()));
                }
                digest.closed = Some((at, closed));
            }
        }
    }
    Ok(digest)
}

fn facts_into(digest: &mut Digest, facts: v1::Facts) {
    if !facts.protocol.is_empty() {
        digest.protocol = Some((facts.protocol.clone(), facts.protocol_version.clone()));
    }
    if facts.coverage() != v1::Coverage::Unspecified {
        digest.coverage = Some((facts.coverage, facts.reason.clone()));
    }
    digest.facts.extend(facts.values);
}
