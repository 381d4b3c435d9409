//! What one session leaves behind: notes become events, counted and written to the journal; closed exactly once.

use std::time::Duration;

use weir_proto::v1::{self, event};
use weir_protocols::note::{Coverage, Outcome};
use weir_protocols::{ExchangeId, Instant, Note, Side, Verdict};

use super::events;
use crate::policy::Capture;
use crate::recording::{RecordError, SessionRecord};

/// The session's record cannot go on; its connection is closed.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(crate) struct TapeError(#[from] RecordError);

/// The tag of an exchange that a rule would have refused, were it enforced.
const WOULD_DENY: &str = "would-deny";

/// How long the last words of a session that could not be recorded may take.
const LAST_WRITE_TIMEOUT: Duration = Duration::from_secs(1);

/// One session's record, with what its `Closed` will say.
pub(crate) struct Tape {
    record: Option<SessionRecord>,
    capture: Capture,
    coverage: Coverage,
    exchanges: u64,
    denied: u64,
    request_bytes: u64,
    response_bytes: u64,
    asked_at: Vec<(ExchangeId, Instant)>,
    /// Exchanges under way that a rule only observed: at most as many as `asked_at` has.
    would_deny: Vec<ExchangeId>,
    /// Bytes that the capture level keeps out of the record.
    left_out_bytes: u64,
    /// Something could not be recorded: the session is on its way to its end.
    failed: bool,
}

impl Tape {
    pub(crate) fn new(record: SessionRecord, capture: Capture) -> Self {
        Self {
            record: Some(record),
            capture,
            coverage: Coverage::MetadataOnly("nothing-said"),
            exchanges: 0,
            denied: 0,
            request_bytes: 0,
            response_bytes: 0,
            asked_at: Vec::new(),
            would_deny: Vec::new(),
            left_out_bytes: 0,
            failed: false,
        }
    }

    /// Bytes of `from` were handed to the other side.
    pub(crate) fn forwarded(&mut self, from: Side, bytes: usize) {
        match from {
            Side::Client => self.request_bytes += bytes as u64,
            Side::Upstream => self.response_bytes += bytes as u64,
        }
    }

    pub(crate) fn bytes(&self) -> (u64, u64) {
        (self.request_bytes, self.response_bytes)
    }

    pub(crate) fn exchanges(&self) -> u64 {
        self.exchanges
    }

    pub(crate) fn denied_count(&self) -> u64 {
        self.denied
    }

    pub(crate) fn coverage(&self) -> Coverage {
        self.coverage
    }

    /// Gathers a note, as far as the capture level keeps it. It is on record with the next [`Tape::append`].
    pub(crate) fn note(&mut self, exchange: ExchangeId, note: Note, now: Instant) {
        let texts = self.capture >= Capture::Statements;
        match note {
            Note::Facts(facts) => {
                if let Some(coverage) = facts.coverage {
                    self.coverage = coverage;
                }
                self.add_event(now, event::Kind::Facts(events::facts(facts)));
            }
            Note::Asked(operation) => {
                self.exchanges += 1;
                self.asked_at.push((exchange, now));
                self.add(now, exchange, |out| events::asked(out, now.0, exchange, &operation, texts));
            }
            Note::Data(from, masked) if !self.keeps(from) => {
                self.left_out_bytes += masked.bytes().len() as u64;
            }
            Note::Data(from, masked) => {
                if let Some(record) = &mut self.record {
                    let direction = events::direction(from);
                    record.add_data(now.0, exchange.0, direction, masked.bytes(), masked.marks());
                }
            }
            Note::Finished(finished) => {
                self.asked_at.retain(|(asked, _)| *asked != exchange);
                if finished.outcome == Outcome::Denied {
                    self.denied += 1;
                }
                let would_deny = self.would_deny.iter().position(|judged| *judged == exchange);
                if let Some(at) = would_deny {
                    self.would_deny.swap_remove(at);
                }
                let tags: &[&str] = if would_deny.is_some() { &[WOULD_DENY] } else { &[] };
                self.add(now, exchange, |out| {
                    events::finished(out, now.0, exchange, &finished, texts, tags);
                });
            }
            Note::Gap { reason, bytes } => {
                let (reason, exchange) = (reason.to_owned(), exchange.0);
                let gap = v1::Gap { reason, bytes, exchange, ..Default::default() };
                self.add_event(now, event::Kind::Gap(gap));
            }
        }
    }

    /// Gathers a verdict.
    pub(crate) fn verdict(&mut self, exchange: ExchangeId, verdict: &Verdict, now: Instant) {
        let asked_at = self.asked_at.iter().find(|(asked, _)| *asked == exchange).map(|(_, at)| *at);
        let waited_ns = asked_at.map_or(0, |at| now.0.saturating_sub(at.0));
        match verdict {
            Verdict::Allow(permit) if permit.would_deny().is_some() && asked_at.is_some() => {
                self.would_deny.push(exchange);
            }
            Verdict::Deny(_) if exchange == ExchangeId::SESSION => self.denied += 1,
            Verdict::Allow(_) | Verdict::Deny(_) => {}
        }
        self.add(now, exchange, |out| events::judged(out, now.0, exchange, verdict, waited_ns));
    }

    /// Records a verdict before it is acted on.
    pub(crate) async fn judged(&mut self, exchange: ExchangeId, verdict: &Verdict) -> Result<(), TapeError> {
        self.verdict(exchange, verdict, crate::recording::clock::now());
        self.append().await
    }

    /// So much is gathered that it is to be appended before more is.
    pub(crate) fn is_full(&self) -> bool {
        self.record.as_ref().is_some_and(SessionRecord::is_full)
    }

    /// Puts on record what was gathered: before anything is sent.
    pub(crate) async fn append(&mut self) -> Result<(), TapeError> {
        let Some(record) = &mut self.record else { return Ok(()) };
        let appended = if self.failed {
            // It has waited for room once already: what is left to say must not wait as long again, each time.
            tokio::time::timeout(LAST_WRITE_TIMEOUT, record.append())
                .await
                .unwrap_or(Err(RecordError::Stopped))
        } else {
            record.append().await
        };
        self.failed |= appended.is_err();
        Ok(appended?)
    }

    /// Returns when everything recorded so far is on the disk.
    pub(crate) async fn sync(&self) -> Result<(), TapeError> {
        match &self.record {
            Some(record) => Ok(record.sync().await?),
            None => Ok(()),
        }
    }

    /// Ends the record. The session was refused when `refused` says so, else what its conversation made of it.
    pub(crate) async fn close(mut self, cause: &str, refused: Option<&'static str>) -> Result<(), TapeError> {
        if let Some(reason) = refused {
            self.coverage = Coverage::Refused(reason);
        }
        if self.left_out_bytes > 0 {
            let bytes = self.left_out_bytes;
            let gap =
                v1::Gap { reason: format!("capture-{}", self.capture.word()), bytes, ..Default::default() };
            self.add_event(crate::recording::clock::now(), event::Kind::Gap(gap));
            if let Err(error) = self.append().await {
                tracing::error!(%error, "what the capture level left out is not on record");
            }
        }
        let (coverage, reason) = events::coverage(self.coverage);
        let closed = v1::Closed {
            coverage: coverage.into(),
            reason: reason.to_owned(),
            cause: cause.to_owned(),
            exchanges: self.exchanges,
            request_bytes: self.request_bytes,
            response_bytes: self.response_bytes,
            events: 0,
            denied: self.denied,
        };
        match self.record.take() {
            Some(record) => Ok(record.close(closed).await?),
            None => Ok(()),
        }
    }

    fn add(&mut self, now: Instant, exchange: ExchangeId, write: impl FnOnce(&mut Vec<u8>)) {
        if let Some(record) = &mut self.record {
            record.add(now.0, exchange.0, write);
        }
    }

    fn add_event(&mut self, now: Instant, kind: event::Kind) {
        if let Some(record) = &mut self.record {
            record.add_event(&v1::Event { at_ns: now.0, kind: Some(kind) });
        }
    }

    fn keeps(&self, from: Side) -> bool {
        match self.capture {
            Capture::None | Capture::Metadata => false,
            Capture::Statements => from == Side::Client,
            Capture::Full => true,
        }
    }
}
