//! What one session leaves behind: notes become events, counted and written to the journal; closed exactly once.

use std::time::Duration;

use weir_proto::v1::{self, event};
use weir_protocols::mask::Masked;
use weir_protocols::note::{Coverage, Facts, Finished, OperationRecord, Outcome, ValueRecord};
use weir_protocols::{ExchangeId, Instant, Note, Side, Verdict};

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

    /// Records a note, as far as the capture level keeps it.
    pub(crate) async fn note(&mut self, exchange: ExchangeId, note: Note) -> Result<(), TapeError> {
        let kind = match note {
            Note::Facts(facts) => {
                if let Some(coverage) = facts.coverage {
                    self.coverage = coverage;
                }
                event::Kind::Facts(facts_event(facts))
            }
            Note::Asked(operation) => {
                self.exchanges += 1;
                self.asked_at.push((exchange, crate::recording::clock::now()));
                let operation = operation_event(&operation, self.capture);
                event::Kind::Asked(v1::Asked { exchange: exchange.0, operation: Some(operation) })
            }
            Note::Data(from, masked) => {
                if !self.keeps(from) {
                    self.left_out_bytes += masked.bytes().len() as u64;
                    return Ok(());
                }
                event::Kind::Data(data_event(exchange, from, masked))
            }
            Note::Finished(finished) => {
                self.asked_at.retain(|(asked, _)| *asked != exchange);
                if finished.outcome == Outcome::Denied {
                    self.denied += 1;
                }
                let mut finished = finished_event(exchange, *finished, self.capture);
                if let Some(at) = self.would_deny.iter().position(|judged| *judged == exchange) {
                    self.would_deny.swap_remove(at);
                    finished.tags.push(WOULD_DENY.to_owned());
                }
                event::Kind::Finished(finished)
            }
            Note::Gap { reason, bytes } => event::Kind::Gap(v1::Gap {
                reason: reason.to_owned(),
                bytes,
                exchange: exchange.0,
                ..Default::default()
            }),
        };
        self.write(kind).await
    }

    /// Records a verdict before it is acted on.
    pub(crate) async fn judged(&mut self, exchange: ExchangeId, verdict: &Verdict) -> Result<(), TapeError> {
        let asked_at = self.asked_at.iter().find(|(asked, _)| *asked == exchange).map(|(_, at)| *at);
        let waited_ns = asked_at.map_or(0, |at| crate::recording::clock::now().0.saturating_sub(at.0));
        let (allowed, rule, reason) = match verdict {
            Verdict::Allow(permit) => {
                (true, permit.rule(), permit.would_deny().map_or_else(String::new, |why| why.to_string()))
            }
            Verdict::Deny(denial) => (false, &denial.rule, denial.reason.to_string()),
        };
        let rule = rule.to_string();
        let would_deny = matches!(verdict, Verdict::Allow(permit) if permit.would_deny().is_some());
        if would_deny && asked_at.is_some() {
            self.would_deny.push(exchange);
        }
        if !allowed && exchange == ExchangeId::SESSION {
            self.denied += 1;
        }
        let judged = v1::Judged { exchange: exchange.0, allowed, rule, reason, waited_ns, would_deny };
        self.write(event::Kind::Judged(judged)).await
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
            if let Err(error) = self.write(event::Kind::Gap(gap)).await {
                tracing::error!(%error, "what the capture level left out is not on record");
            }
        }
        let (coverage, reason) = coverage_event(self.coverage);
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

    async fn write(&mut self, kind: event::Kind) -> Result<(), TapeError> {
        let Some(record) = &mut self.record else { return Ok(()) };
        let written = if self.failed {
            // It has waited for room once already: what is left to say must not wait as long again, each time.
            tokio::time::timeout(LAST_WRITE_TIMEOUT, record.write(kind))
                .await
                .unwrap_or(Err(RecordError::Stopped))
        } else {
            record.write(kind).await
        };
        self.failed |= written.is_err();
        Ok(written?)
    }

    fn keeps(&self, from: Side) -> bool {
        match self.capture {
            Capture::None | Capture::Metadata => false,
            Capture::Statements => from == Side::Client,
            Capture::Full => true,
        }
    }
}

fn coverage_event(coverage: Coverage) -> (v1::Coverage, &'static str) {
    match coverage {
        Coverage::Inspected => (v1::Coverage::Inspected, ""),
        Coverage::MetadataOnly(reason) => (v1::Coverage::MetadataOnly, reason),
        Coverage::Refused(reason) => (v1::Coverage::Refused, reason),
    }
}

fn facts_event(facts: Facts) -> v1::Facts {
    let (coverage, reason) = facts.coverage.map_or((v1::Coverage::Unspecified, ""), coverage_event);
    v1::Facts {
        protocol: facts.protocol.to_owned(),
        protocol_version: facts.protocol_version.into_owned(),
        values: facts.values.into_iter().map(|(name, value)| (name.into_owned(), value.to_text())).collect(),
        coverage: coverage.into(),
        reason: reason.to_owned(),
    }
}

fn data_event(exchange: ExchangeId, from: Side, masked: Masked) -> v1::Data {
    let (bytes, marks) = masked.into_parts();
    let direction = match from {
        Side::Client => v1::Direction::Request,
        Side::Upstream => v1::Direction::Response,
    };
    let masks = marks
        .into_iter()
        .map(|mark| v1::Mask { offset: mark.offset, length: mark.length, rule: mark.rule.to_owned() })
        .collect();
    v1::Data { exchange: exchange.0, direction: direction.into(), bytes, masks }
}

fn operation_event(operation: &OperationRecord, capture: Capture) -> v1::Operation {
    let texts = capture >= Capture::Statements;
    v1::Operation {
        kind: operation.kind.to_owned(),
        verb: operation.verb.to_owned(),
        text: if texts { operation.text.to_text() } else { String::new() },
        text_truncated: operation.text_truncated || !texts,
        text_sha256: Default::default(),
        defined_by: operation.defined_by.map_or(0, |exchange| exchange.0),
        name: operation.name.to_text(),
        parameters: if texts { operation.parameters.iter().map(value_event).collect() } else { Vec::new() },
        oversized: operation.oversized,
    }
}

fn value_event(value: &ValueRecord) -> v1::Value {
    v1::Value {
        r#type: value.type_name.to_string(),
        shown: value.shown.to_text(),
        null: value.null,
        bytes: value.bytes,
        truncated: value.truncated,
    }
}

fn finished_event(exchange: ExchangeId, finished: Finished, capture: Capture) -> v1::Finished {
    let outcome = match finished.outcome {
        Outcome::Ok => v1::Outcome::Ok,
        Outcome::Error => v1::Outcome::Error,
        Outcome::Denied => v1::Outcome::Denied,
        Outcome::Withdrawn => v1::Outcome::Withdrawn,
        Outcome::Aborted => v1::Outcome::Aborted,
    };
    let columns = finished.columns.iter();
    v1::Finished {
        exchange: exchange.0,
        operation: Some(operation_event(&finished.operation, capture)),
        outcome: outcome.into(),
        status: finished.status.to_text(),
        error: finished.error.to_text(),
        rows: finished.rows,
        columns: columns
            .map(|(name, kind)| v1::Column { name: name.to_text(), r#type: kind.to_string() })
            .collect(),
        asked_at_ns: finished.asked_at.0,
        first_reply_at_ns: finished.first_reply_at.map_or(0, |at| at.0),
        finished_at_ns: finished.finished_at.0,
        request_bytes: finished.request_bytes,
        response_bytes: finished.response_bytes,
        rule: finished.rule.to_string(),
        tags: Vec::new(),
    }
}
