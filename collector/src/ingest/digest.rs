//! What a segment's events say, as far as the index is concerned. Pure. What a node seals is not trusted: every number
//! that is added up later is bounded here, and what is kept of an event is never larger than the event.

use std::collections::HashSet;

use bytes::Bytes;
use prost::Message;
use weir_proto::seal::segment::Draft;
use weir_proto::seal::{self, EventError};
use weir_proto::v1::{self, event::Kind};

use crate::store::rows::{Digest, Exchange};

/// Ordinals, counts and bytes of one session: no session reaches it, and sums of it fit where sums are kept.
pub const NUMBER_MAX: u64 = 1 << 48;
/// Boot-clock times: 146 years.
const TIME_NS_MAX: u64 = 1 << 62;
/// What the index keeps of what a conversation learned; the segment keeps all.
const FACTS_MAX: usize = 64;
const FACT_CHARS_MAX: usize = 256;

/// The node sealed something that is not a recording.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Malformed {
    #[error(transparent)]
    Event(#[from] EventError),
    #[error("the header says {said} events, there are {there}")]
    Count { said: u32, there: u32 },
    #[error("{0} is beyond what any session reaches")]
    Number(&'static str),
    #[error("`closed` is only the last event of a last segment")]
    Closed,
}

/// Reads a segment's plaintext.
pub fn digest(draft: &Draft, plain: Bytes) -> Result<Digest, Malformed> {
    let mut digest = Digest::default();
    let mut there = 0;
    for event in seal::events(plain) {
        let event = event?;
        if digest.closed.is_some() {
            return Err(Malformed::Closed);
        }
        let at = time(event.at_ns)?;
        let place = there;
        there += 1;
        if there > draft.events {
            return Err(Malformed::Count { said: draft.events, there });
        }
        // A kind of a later minor version is kept in the segment and shown by whoever knows it.
        let Some(kind) = event.kind else { continue };
        match kind {
            Kind::Opened(opened) => {
                number("the session's number", opened.node_number)?;
                digest.opened = Some(opened);
            }
            Kind::Facts(facts) => facts_into(&mut digest, facts),
            Kind::Asked(asked) => {
                digest.exchanges = digest.exchanges.max(number("an exchange's ordinal", asked.exchange)?);
                let running = v1::Finished {
                    exchange: asked.exchange,
                    operation: asked.operation,
                    asked_at_ns: at,
                    ..v1::Finished::default()
                };
                digest.rows.push(exchange(running, false)?);
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
                digest.exchanges = digest.exchanges.max(number("an exchange's ordinal", finished.exchange)?);
                digest.denied += u64::from(finished.outcome() == v1::Outcome::Denied);
                digest.rows.push(exchange(finished, true)?);
            }
            Kind::Gap(gap) => digest.gaps.push((place, at, gap)),
            Kind::Closed(closed) => {
                for count in [closed.exchanges, closed.request_bytes, closed.response_bytes, closed.denied] {
                    number("a closing total", count)?;
                }
                if closed.coverage() != v1::Coverage::Unspecified {
                    digest.coverage = Some((closed.coverage, closed.reason.clone()));
                }
                digest.closed = Some((at, closed));
            }
        }
    }
    if there != draft.events {
        return Err(Malformed::Count { said: draft.events, there });
    }
    if digest.closed.is_some() && !draft.last {
        return Err(Malformed::Closed);
    }
    // One that also finishes in this segment needs only its last row.
    let finished: HashSet<u64> = digest.rows.iter().filter(|row| row.done).map(|row| row.ordinal).collect();
    digest.rows.retain(|row| row.done || !finished.contains(&row.ordinal));
    Ok(digest)
}

/// As it goes into the index: encoded at once, for decoded messages are many times as large as their bytes.
fn exchange(mut finished: v1::Finished, done: bool) -> Result<Exchange, Malformed> {
    let asked_ns = time(finished.asked_at_ns)?;
    let finished_ns = time(finished.finished_at_ns)?;
    number("an exchange's bytes", finished.request_bytes.max(finished.response_bytes))?;
    let operation = finished.operation.as_mut();
    let (statement, verb) = match operation {
        Some(operation) => (std::mem::take(&mut operation.text), operation.verb.clone()),
        None => Default::default(),
    };
    Ok(Exchange {
        ordinal: finished.exchange,
        asked_ns,
        duration_ns: if done { finished_ns.saturating_sub(asked_ns) } else { 0 },
        done,
        outcome: finished.outcome,
        verb,
        statement,
        status: finished.status.clone(),
        error: finished.error.clone(),
        // The server says how many: an absurd number is its own, and no reason to refuse what recorded it.
        rows: finished.rows.min(NUMBER_MAX),
        encoded: finished.encode_to_vec(),
    })
}

fn facts_into(digest: &mut Digest, facts: v1::Facts) {
    if !facts.protocol.is_empty() {
        digest.protocol = Some((facts.protocol.clone(), facts.protocol_version.clone()));
    }
    if facts.coverage() != v1::Coverage::Unspecified {
        digest.coverage = Some((facts.coverage, facts.reason.clone()));
    }
    let cut = |text: String| text.chars().take(FACT_CHARS_MAX).collect::<String>();
    for (key, value) in facts.values {
        let key = cut(key);
        if digest.facts.len() < FACTS_MAX || digest.facts.contains_key(&key) {
            digest.facts.insert(key, cut(value));
        }
    }
}

fn number(what: &'static str, value: u64) -> Result<u64, Malformed> {
    if value > NUMBER_MAX { Err(Malformed::Number(what)) } else { Ok(value) }
}

fn time(ns: u64) -> Result<u64, Malformed> {
    if ns > TIME_NS_MAX { Err(Malformed::Number("a time")) } else { Ok(ns) }
}
