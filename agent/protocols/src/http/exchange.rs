//! One exchange, whatever version of HTTP carries it: fed with the heads, bodies and trailers of a request and its answer, it
//! says what is to be recorded, and ends once.
//!
//! The framing (`h1`) owns the bytes and their order; this owns what they mean for the record.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::answer;
use super::message::{Malformed, RequestHead, ResponseHead};
use super::verb;
use crate::mask::{Content, MaskPlan, Masked, MessageMask};
use crate::note::{Coverage, Facts, Finished, Note, OperationRecord, Outcome, TEXT_BYTES_MAX};
use crate::seam::{Effects, ExchangeId, Instant, Side};
use crate::verdict::Denial;

/// What refuses requests that cannot be read: no rule of anybody's.
const FRAMING_RULE: &str = "http-framing";
/// Longest value of a session's facts, bytes.
const FACT_BYTES_MAX: usize = 256;
/// What is recorded of a message whose head could not be read, bytes.
const UNREAD_BYTES_MAX: usize = 4 * 1024;
/// The same, as the text of the request, bytes.
const UNREAD_TEXT_BYTES_MAX: usize = 1024;

#[derive(Debug)]
pub(crate) struct Exchange {
    pub id: ExchangeId,
    pub rule: Arc<str>,
    record: OperationRecord,
    masks: [MessageMask; 2],
    /// Why both bodies stay out of the record.
    withheld: Option<&'static str>,
    bytes: [u64; 2],
    asked_at: Instant,
    first_reply_at: Option<Instant>,
    status: Option<u16>,
    error: Masked,
}

impl Exchange {
    /// A request's head was read.
    pub(crate) fn asked(
        id: ExchangeId,
        head: &RequestHead,
        plan: &MaskPlan,
        now: Instant,
        out: &mut Effects,
    ) -> Self {
        let url = plan.url(&head.url);
        let (verb, is_known) = verb::of(&head.operation.method);
        let record = OperationRecord {
            kind: "http",
            verb,
            text_truncated: url.bytes().len() > TEXT_BYTES_MAX,
            text: url.cut(TEXT_BYTES_MAX),
            name: if is_known { Masked::default() } else { plan.text(&head.operation.method) },
            ..OperationRecord::default()
        };
        let mut exchange = Self::begin(id, record, now, out);
        exchange.withheld = plan.withheld_body(&head.operation.host, &head.operation.path);
        exchange.reads(Side::Client, head.body.content());
        exchange
    }

    /// A request that could not be read: it has a record like any other.
    pub(crate) fn unread(
        id: ExchangeId,
        begun: &Bytes,
        plan: &MaskPlan,
        now: Instant,
        out: &mut Effects,
    ) -> Self {
        let line = begun.split(|byte| matches!(byte, b'\r' | b'\n')).find(|line| !line.is_empty());
        let line = line.map_or_else(Bytes::new, |line| begun.slice_ref(line));
        let method = line.split(|byte| *byte == b' ').next().unwrap_or_default();
        let record = OperationRecord {
            kind: "http",
            verb: verb::of(method).0,
            text_truncated: line.len() > UNREAD_TEXT_BYTES_MAX,
            text: plan.url(&line).cut(UNREAD_TEXT_BYTES_MAX),
            ..OperationRecord::default()
        };
        let mut exchange = Self::begin(id, record, now, out);
        exchange.note_unread(Side::Client, begun, plan, now, out);
        exchange
    }

    fn begin(id: ExchangeId, record: OperationRecord, now: Instant, out: &mut Effects) -> Self {
        out.note(id, Note::Asked(record.clone()));
        Self {
            id,
            rule: Arc::default(),
            record,
            masks: Default::default(),
            withheld: None,
            bytes: [0; 2],
            asked_at: now,
            first_reply_at: None,
            status: None,
            error: Masked::default(),
        }
    }

    /// The head of the final answer was read.
    pub(crate) fn answered(&mut self, head: &ResponseHead) {
        self.status = Some(head.status);
        self.error =
            if head.status < 400 { Masked::default() } else { error_text(head.status, &head.reason) };
        self.reads(Side::Upstream, head.body.content());
    }

    fn reads(&mut self, side: Side, content: Content) {
        let content = self.withheld.map_or(content, Content::Withheld);
        if content != Content::Plain {
            self.masks[side.index()].reads(content);
        }
    }

    /// The bytes that are noted next hold fields at this place: a head, an extension, trailers.
    pub(crate) fn fields(&mut self, side: Side, lines: &[u8], at: usize) {
        self.masks[side.index()].fields(lines, at);
    }

    /// The bytes that are noted next hold content at this place.
    pub(crate) fn content(&mut self, side: Side, at: Range<usize>) {
        self.masks[side.index()].content(at);
    }

    /// Records these bytes of a message; `last` with the end of it.
    pub(crate) fn note(&mut self, side: Side, wire: Bytes, last: bool, now: Instant, out: &mut Effects) {
        self.bytes[side.index()] += wire.len() as u64;
        if side == Side::Upstream && !wire.is_empty() {
            self.first_reply_at.get_or_insert(now);
        }
        let masked = self.masks[side.index()].push(wire, last);
        if !masked.is_empty() {
            out.note(self.id, Note::Data(side, masked));
        }
    }

    /// Records the beginning of a message that could not be read.
    pub(crate) fn note_unread(
        &mut self,
        side: Side,
        begun: &Bytes,
        plan: &MaskPlan,
        now: Instant,
        out: &mut Effects,
    ) {
        self.bytes[side.index()] += begun.len() as u64;
        if side == Side::Upstream {
            self.first_reply_at.get_or_insert(now);
        }
        let masked = plan.unsound_head(begun).cut(UNREAD_BYTES_MAX);
        if !masked.is_empty() {
            out.note(self.id, Note::Data(side, masked));
        }
    }

    pub(crate) fn denied(&mut self, denial: &Denial, plan: &MaskPlan) {
        self.rule = denial.rule.clone();
        self.status = Some(403);
        self.error = plan.text(&Bytes::copy_from_slice(denial.reason.as_bytes()));
    }

    /// We answer, because one of the messages could not be read.
    pub(crate) fn malformed(&mut self, fault: Malformed) {
        if self.rule.is_empty() {
            self.rule = Arc::from(FRAMING_RULE);
        }
        self.status = Some(fault.status);
        self.cut_short(fault);
    }

    /// The answer breaks off where it could not be read any more.
    pub(crate) fn cut_short(&mut self, fault: Malformed) {
        self.error = Masked::word(fault.reason);
    }

    /// What the answer's status says of how it ended.
    pub(crate) fn outcome(&self) -> Outcome {
        match self.status {
            Some(400..) => Outcome::Error,
            Some(_) => Outcome::Ok,
            None => Outcome::Aborted,
        }
    }

    pub(crate) fn finish(mut self, outcome: Outcome, now: Instant, out: &mut Effects) {
        for side in [Side::Client, Side::Upstream] {
            // Of a message that is cut off, masking may still hold the end.
            self.note(side, Bytes::new(), true, now, out);
        }
        let finished = Finished {
            operation: self.record,
            outcome,
            status: self.status.map_or_else(Masked::default, Masked::number),
            error: self.error,
            rows: 0,
            columns: Vec::new(),
            asked_at: self.asked_at,
            first_reply_at: self.first_reply_at,
            finished_at: now,
            request_bytes: self.bytes[Side::Client.index()],
            response_bytes: self.bytes[Side::Upstream.index()],
            rule: self.rule,
        };
        out.note(self.id, Note::Finished(Box::new(finished)));
    }
}

/// `404 Not Found`
fn error_text(status: u16, reason: &Bytes) -> Masked {
    let reason = if reason.is_empty() { answer::phrase(status).as_bytes() } else { reason };
    let mut text = BytesMut::with_capacity(4 + reason.len());
    text.extend_from_slice(status.to_string().as_bytes());
    text.extend_from_slice(b" ");
    text.extend_from_slice(reason);
    MaskPlan::standard().text(&text.freeze()).cut(FACT_BYTES_MAX)
}

/// What a session's first request says of it.
pub(crate) fn session_facts(head: Option<&RequestHead>, plan: &MaskPlan) -> Note {
    let values = [
        ("host", head.and_then(|head| head.host.as_ref())),
        ("user_agent", head.and_then(|head| head.user_agent.as_ref())),
    ];
    Note::Facts(Facts {
        protocol: "http",
        protocol_version: Cow::Borrowed(head.map_or("1.1", |head| head.version.word())),
        values: values
            .into_iter()
            .filter_map(|(name, value)| Some((Cow::Borrowed(name), fact(value?, plan))))
            .collect(),
        coverage: Some(Coverage::Inspected),
    })
}

/// What its first answer says.
pub(crate) fn server_fact(server: &Bytes, plan: &MaskPlan) -> Note {
    let values = vec![(Cow::Borrowed("server"), fact(server, plan))];
    Note::Facts(Facts { values, ..Facts::default() })
}

fn fact(value: &Bytes, plan: &MaskPlan) -> Masked {
    plan.text(value).cut(FACT_BYTES_MAX)
}
