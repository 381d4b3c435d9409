//! What a segment's events say, as far as the index is concerned. Pure. What a node seals is not trusted: every number
//! that is added up later is bounded here, and what is kept of an event is never larger than the event.

use std::collections::HashMap;

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
/// Of a statement or an error, in an exchange's row. The segment has all of it, and full text more.
pub const STATEMENT_ROW_BYTES_MAX: usize = 16 * 1024;
const ERROR_ROW_BYTES_MAX: usize = 4 * 1024;
/// Says that a rule only observed.
const WOULD_DENY: &str = "would-deny";

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
    let mut exchanges = Exchanges::default();
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
                exchanges.asked(asked.exchange, at, asked.operation.unwrap_or_default());
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
                exchanges.finished(finished, digest.protocol.as_ref())?;
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
    exchanges.still_running(digest.protocol.as_ref())?;
    digest.rows = exchanges.rows;
    digest.shapes = exchanges.shapes.all;
    Ok(digest)
}

/// The rows of a segment.
#[derive(Default)]
struct Exchanges {
    rows: Vec<Exchange>,
    /// Ordinal -> place in `rows`: told twice, the last counts.
    places: HashMap<u64, usize>,
    /// Asked here and not finished yet, encoded: decoded messages are many times as large as their bytes.
    running: HashMap<u64, (u64, Vec<u8>)>,
    shapes: Shapes,
}

impl Exchanges {
    fn asked(&mut self, ordinal: u64, at_ns: u64, operation: v1::Operation) {
        self.running.insert(ordinal, (at_ns, operation.encode_to_vec()));
    }

    fn finished(
        &mut self,
        finished: v1::Finished,
        protocol: Option<&(String, String)>,
    ) -> Result<(), Malformed> {
        let carried = self.running.remove(&finished.exchange).is_none();
        let asked_ns = time(finished.asked_at_ns)?;
        let duration_ns = time(finished.finished_at_ns)?.saturating_sub(asked_ns);
        let first_reply_ns = time(finished.first_reply_at_ns)?.saturating_sub(asked_ns);
        let row = Exchange {
            duration_ns: Some(duration_ns),
            first_reply_ns,
            carried,
            protocol: protocol.map(|(name, _)| name.clone()),
            ..Exchange::default()
        };
        self.push(row, finished)
    }

    fn still_running(&mut self, protocol: Option<&(String, String)>) -> Result<(), Malformed> {
        let mut running: Vec<_> = std::mem::take(&mut self.running).into_iter().collect();
        running.sort_unstable_by_key(|(ordinal, _)| *ordinal);
        for (ordinal, (asked_at_ns, operation)) in running {
            let operation = v1::Operation::decode(&operation[..]).ok();
            let finished = v1::Finished { exchange: ordinal, operation, asked_at_ns, ..Default::default() };
            let row = Exchange { protocol: protocol.map(|(name, _)| name.clone()), ..Exchange::default() };
            self.push(row, finished)?;
        }
        Ok(())
    }

    /// Moves everything that has a column out of `finished`; what is left is the row's detail.
    fn push(&mut self, mut row: Exchange, mut finished: v1::Finished) -> Result<(), Malformed> {
        number("an exchange's bytes", finished.request_bytes.max(finished.response_bytes))?;
        row.ordinal = std::mem::take(&mut finished.exchange);
        row.asked_ns = std::mem::take(&mut finished.asked_at_ns);
        row.outcome = std::mem::take(&mut finished.outcome);
        row.would_deny = finished.tags.iter().any(|tag| tag == WOULD_DENY);
        // The server says how many: an absurd number is its own, and no reason to refuse what recorded it.
        row.rows = std::mem::take(&mut finished.rows).min(NUMBER_MAX);
        row.request_bytes = std::mem::take(&mut finished.request_bytes);
        row.response_bytes = std::mem::take(&mut finished.response_bytes);
        row.rule = std::mem::take(&mut finished.rule);
        row.status = std::mem::take(&mut finished.status);
        row.error = std::mem::take(&mut finished.error);
        cut(&mut row.error, ERROR_ROW_BYTES_MAX);
        (finished.finished_at_ns, finished.first_reply_at_ns) = (0, 0);
        let mut kind = String::new();
        if let Some(mut operation) = finished.operation.take() {
            row.verb = std::mem::take(&mut operation.verb);
            row.statement = std::mem::take(&mut operation.text);
            kind = std::mem::take(&mut operation.kind);
            operation.text_truncated |= cut(&mut row.statement, STATEMENT_ROW_BYTES_MAX);
            finished.operation = (operation != v1::Operation::default()).then_some(operation);
        }
        row.shape = self.shapes.of(kind, std::mem::take(&mut finished.columns));
        row.detail = finished.encode_to_vec();
        match self.places.get(&row.ordinal) {
            Some(place) if self.rows[*place].duration_ns.is_none() || row.duration_ns.is_some() => {
                self.rows[*place] = row;
            }
            Some(_) => {}
            None => {
                self.places.insert(row.ordinal, self.rows.len());
                self.rows.push(row);
            }
        }
        Ok(())
    }
}

/// Kinds and columns: a session asks the same few things again and again.
#[derive(Default)]
struct Shapes {
    all: Vec<Vec<u8>>,
    known: HashMap<Vec<u8>, u32>,
}

impl Shapes {
    fn of(&mut self, kind: String, columns: Vec<v1::Column>) -> u32 {
        let operation = Some(v1::Operation { kind, ..Default::default() });
        let shape = v1::Finished { operation, columns, ..Default::default() }.encode_to_vec();
        if let Some(known) = self.known.get(&shape) {
            return *known;
        }
        // Fewer than a segment has events.
        let new = self.all.len() as u32;
        self.all.push(shape.clone());
        self.known.insert(shape, new);
        new
    }
}

/// Shortens to at most so many bytes, at the end of a character; answers whether it did.
fn cut(text: &mut String, bytes_max: usize) -> bool {
    if text.len() <= bytes_max {
        return false;
    }
    text.truncate(text.floor_char_boundary(bytes_max));
    true
}

fn facts_into(digest: &mut Digest, facts: v1::Facts) {
    if !facts.protocol.is_empty() {
        digest.protocol = Some((facts.protocol.clone(), facts.protocol_version.clone()));
    }
    if facts.coverage() != v1::Coverage::Unspecified {
        digest.coverage = Some((facts.coverage, facts.reason.clone()));
    }
    let short = |text: String| text.chars().take(FACT_CHARS_MAX).collect::<String>();
    for (key, value) in facts.values {
        let key = short(key);
        if digest.facts.len() < FACTS_MAX || digest.facts.contains_key(&key) {
            digest.facts.insert(key, short(value));
        }
    }
}

fn number(what: &'static str, value: u64) -> Result<u64, Malformed> {
    if value > NUMBER_MAX { Err(Malformed::Number(what)) } else { Ok(value) }
}

fn time(ns: u64) -> Result<u64, Malformed> {
    if ns > TIME_NS_MAX { Err(Malformed::Number("a time")) } else { Ok(ns) }
}
