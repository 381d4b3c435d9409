//! The client's messages: understood, noted, asked about, and put in line ("Message Flow", simple and extended query).
//!
//! A message with a sound frame never turns the session opaque, whatever is in it: the server would answer it with an
//! error and go on, and so would a client that wants to hide what it does next. Policy is asked about all of its text.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::copy;
use super::exchange::{self, Exchange, Shown};
use super::expected::Expected;
use super::frame::{self, Fields};
use super::places::{format_of, read_formats, texts};
use super::prepared::{self, Change, ENTRY_BYTES, Found, Portal, Statement};
use super::{HELD_BYTES_MAX, Phase, Postgres};
use crate::mask::Masked;
use crate::note::{Note, OperationRecord, PARAMETERS_MAX, SHOWN_BYTES_MAX};
use crate::operation::{Operation, Sql, SqlVerb};
use crate::reader::{Part, Piece};
use crate::seam::{Effect, Effects, ExchangeId, Instant, Side};

/// Held bytes shorter than this are copied: a small message must not pin the whole read it came with.
const COPIED_BELOW: usize = 16 * 1024;

/// A message of the client, not forwarded yet.
#[derive(Debug)]
pub(crate) struct Request {
    pub bytes: Bytes,
    /// Only the head of a large one: `What::More` follows.
    pub more: bool,
    pub what: What,
}

#[derive(Debug)]
pub(crate) enum What {
    Query(Box<Exchange>),
    Call(Box<Exchange>),
    Parse {
        exchange: Box<Exchange>,
        name: Bytes,
        change: Change,
    },
    Execute(Box<Exchange>),
    Bind {
        name: Bytes,
        change: Change,
    },
    Describe(Described),
    CloseStatement {
        name: Bytes,
        change: Change,
    },
    ClosePortal {
        name: Bytes,
        change: Change,
    },
    Sync,
    Flush,
    /// One or many CopyData.
    CopyData,
    /// CopyDone or CopyFail.
    CopyEnd,
    Terminate,
    Authentication,
    Unknown,
    More {
        last: bool,
    },
    /// The client closed its half.
    End,
}

#[derive(Clone, Debug)]
pub(crate) enum Described {
    Statement(Arc<Statement>),
    Portal(Arc<Portal>),
    Unknown,
}

impl Request {
    pub(crate) fn exchange(&self) -> Option<&Exchange> {
        match &self.what {
            What::Query(exchange) | What::Call(exchange) | What::Execute(exchange) => Some(exchange),
            What::Parse { exchange, .. } => Some(exchange),
            _ => None,
        }
    }

    pub(crate) fn into_exchange(self) -> Option<Box<Exchange>> {
        match self.what {
            What::Query(exchange) | What::Call(exchange) | What::Execute(exchange) => Some(exchange),
            What::Parse { exchange, .. } => Some(exchange),
            _ => None,
        }
    }
}

impl Postgres {
    /// Takes one message, if there is one and it may be taken. Says whether it got further.
    pub(super) fn read_client(&mut self, now: Instant, out: &mut Effects) -> bool {
        if self.leaving.is_some() || self.closing.is_some() {
            return false;
        }
        match self.phase {
            Phase::Opening => self.read_opening(now, out),
            Phase::Cancelling(_) => self.read_after_cancel(out),
            Phase::Authenticating | Phase::Ready => self.read_message(now, out),
            Phase::Encryption(_) => self.client.buffered() == 0 && self.queue_end(out),
            Phase::Over => false,
        }
    }

    fn read_message(&mut self, now: Instant, out: &mut Effects) -> bool {
        if self.held >= HELD_BYTES_MAX || self.owes_too_much() {
            return false;
        }
        if let Some(piece) = self.stalled.take() {
            self.read_frame(piece, now, out);
            return self.stalled.is_none();
        }
        if matches!(self.phase, Phase::Authenticating) && !self.client.is_streaming() {
            // Whatever else comes before the server is ready waits for it.
            if !matches!(self.client.first(), None | Some(b'p' | b'X')) {
                return false;
            }
        }
        if let Some(run) = self.client.run(frame::measure_client, |frame| frame[0] == b'd') {
            self.queue(Request { bytes: run.bytes, more: false, what: What::CopyData });
            return true;
        }
        match self.client.next(frame::measure_client) {
            Ok(Some(piece)) => self.read_frame(piece, now, out),
            Ok(None) => return self.queue_end(out),
            Err(_) => self.malformed(Side::Client),
        }
        true
    }

    /// The client's FIN goes on when all before it has.
    pub(super) fn queue_end(&mut self, out: &mut Effects) -> bool {
        if !self.flags.client_ended || self.flags.end_queued {
            return false;
        }
        let cut = self.client.take_all();
        if !cut.is_empty() {
            // A piece of a message: no policy could judge it and no server would act on it.
            out.note(ExchangeId::SESSION, Note::Gap { reason: "truncated-message", bytes: cut.len() as u64 });
        }
        self.flags.end_queued = true;
        self.requests.push_back(Request { bytes: Bytes::new(), more: false, what: What::End });
        true
    }

    fn queue(&mut self, mut request: Request) {
        if !self.requests.is_empty() && request.bytes.len() < COPIED_BELOW {
            request.bytes = Bytes::copy_from_slice(&request.bytes);
        }
        self.held += request.bytes.len();
        self.requests.push_back(request);
    }

    fn read_frame(&mut self, piece: Piece, now: Instant, out: &mut Effects) {
        let more = piece.part == Part::Head;
        let what = match piece.part {
            Part::More => What::More { last: false },
            Part::Last => What::More { last: true },
            Part::Whole | Part::Head => match piece.bytes[0] {
                b'Q' => return self.read_query(piece, now, out),
                b'P' => return self.read_parse(piece, now, out),
                b'B' => return self.read_bind(piece),
                b'E' => return self.read_execute(piece, now, out),
                b'F' => return self.read_call(piece, now, out),
                b'D' => What::Describe(self.described(&piece.bytes)),
                b'C' => self.closed(&piece.bytes),
                b'S' => {
                    self.batch += 1;
                    What::Sync
                }
                b'H' => What::Flush,
                b'd' => What::CopyData,
                b'c' | b'f' => What::CopyEnd,
                b'X' => What::Terminate,
                b'p' => What::Authentication,
                _ => What::Unknown,
            },
        };
        self.queue(Request { bytes: piece.bytes, more, what });
    }

    fn read_query(&mut self, piece: Piece, now: Instant, out: &mut Effects) {
        let oversized = piece.part == Part::Head;
        let bytes = unpinned(piece.bytes);
        let text = part(&bytes, texts(&bytes)[0].clone());
        let record = exchange::record(SqlVerb::Query, &text, oversized, &self.plan);
        let exchange =
            self.ask(Sql { verb: SqlVerb::Query, text, defined_by: None, oversized }, record, now, out);
        self.queue(Request { bytes, more: oversized, what: What::Query(exchange) });
    }

    /// Name, text, and the types of the parameters as far as the client knows them.
    fn read_parse(&mut self, piece: Piece, now: Instant, out: &mut Effects) {
        let oversized = piece.part == Part::Head;
        let bytes = unpinned(piece.bytes);
        let places = texts(&bytes);
        let text = part(&bytes, places[1].clone());
        let name = Fields::of(&bytes).name();
        let mut fields = Fields::at(&bytes, places[1].end + 1);
        let declared = fields.count().unwrap_or(0).min(PARAMETERS_MAX);
        let declared = (0..declared).map_while(|_| fields.u32()).collect();

        let mut record = exchange::record(SqlVerb::Prepare, &text, oversized, &self.plan);
        record.name = self.shown_name(name);
        let name = prepared::kept(name);
        let (shown, shown_truncated) = (record.text.clone(), record.text_truncated);
        let sql = Sql { verb: SqlVerb::Prepare, text: text.clone(), defined_by: None, oversized };
        let mut exchange = self.ask(sql, record, now, out);

        // As text, and as shown.
        let kept = self.budget.take(2 * text.len());
        let room = kept.is_some();
        let statement = Arc::new(Statement {
            defined_by: Some(exchange.id),
            text: if room { text } else { Bytes::new() },
            shown: if room { shown } else { Masked::default() },
            shown_truncated: shown_truncated || !room,
            oversized: oversized || !room,
            declared,
            kept,
            ..Statement::default()
        });
        exchange.statement = Some(statement.clone());
        let change = self.statements.change(&name, self.batch, Some(statement));
        self.queue(Request { bytes, more: oversized, what: What::Parse { exchange, name, change } });
    }

    /// Portal, statement, the parameters' formats and values, the result's formats.
    fn read_bind(&mut self, piece: Piece) {
        let mut fields = Fields::of(&piece.bytes);
        let name = prepared::kept(fields.name());
        let statement = prepared::kept(fields.name());
        let mut portal = Portal::default();
        match self.sure(&statement, self.statements.find(&statement, self.batch)) {
            Found::Known(statement) | Found::Pending(statement) => portal.statement = Some(statement),
            Found::Unknown => {}
            Found::Forgotten => portal.forgotten = true,
            Found::Unsure if self.flags.copying_in => portal.forgotten = true,
            Found::Unsure => {
                self.stalled = Some(piece);
                return;
            }
        }
        self.read_values(&piece.bytes, &mut fields, &mut portal);
        let change = self.portals.change(&name, self.batch, Some(Arc::new(portal)));
        let more = piece.part == Part::Head;
        self.queue(Request { bytes: unpinned(piece.bytes), more, what: What::Bind { name, change } });
    }

    fn read_values(&self, frame: &[u8], fields: &mut Fields<'_>, portal: &mut Portal) {
        let formats = read_formats(fields);
        let mut shown = Shown::new();
        for n in 0..fields.count().unwrap_or(0) {
            let Some(value) = fields.value() else { break };
            let type_oid = portal.statement.as_ref().map_or(0, |statement| statement.type_of(n));
            let format = format_of(&formats, n);
            shown.add(type_oid, format, value.map(|range| &frame[range]), &self.plan);
        }
        (portal.parameters, portal.kept) = self.budget.values(shown.values);
        portal.result_formats = read_formats(fields);
    }

    fn read_execute(&mut self, piece: Piece, now: Instant, out: &mut Effects) {
        let name = Fields::of(&piece.bytes).name();
        let portal = match self.sure(name, self.portals.find(name, self.batch)) {
            Found::Known(portal) | Found::Pending(portal) => Some(portal),
            Found::Unknown => None,
            Found::Unsure if !self.flags.copying_in => {
                self.stalled = Some(piece);
                return;
            }
            Found::Forgotten | Found::Unsure => {
                Some(Arc::new(Portal { forgotten: true, ..Portal::default() }))
            }
        };
        let statement = portal.as_ref().and_then(|portal| portal.statement.clone());
        let forgotten = portal.as_ref().is_some_and(|portal| portal.forgotten);
        let oversized = forgotten || statement.as_ref().is_some_and(|statement| statement.oversized);
        let sql = Sql {
            verb: SqlVerb::Execute,
            text: statement.as_ref().map(|statement| statement.text.clone()).unwrap_or_default(),
            defined_by: statement.as_ref().and_then(|statement| statement.defined_by),
            oversized,
        };
        let record = OperationRecord {
            kind: "sql",
            verb: SqlVerb::Execute.word(),
            text: statement.as_ref().map(|statement| statement.shown.clone()).unwrap_or_default(),
            text_truncated: forgotten
                || statement.as_ref().is_some_and(|statement| statement.shown_truncated),
            defined_by: sql.defined_by,
            name: self.shown_name(name),
            parameters: portal.as_ref().map(|portal| portal.parameters.clone()).unwrap_or_default(),
            oversized,
        };
        let mut exchange = self.ask(sql, record, now, out);
        exchange.portal = portal;
        let more = piece.part == Part::Head;
        self.queue(Request { bytes: unpinned(piece.bytes), more, what: What::Execute(exchange) });
    }

    /// The function's OID, the arguments' formats and values, the result's format.
    fn read_call(&mut self, piece: Piece, now: Instant, out: &mut Effects) {
        let oversized = piece.part == Part::Head;
        let bytes = unpinned(piece.bytes);
        let mut fields = Fields::of(&bytes);
        let function = fields.u32();
        let mut arguments = Portal::default();
        self.read_values(&bytes, &mut fields, &mut arguments);
        let record = OperationRecord {
            kind: "sql",
            verb: SqlVerb::Call.word(),
            name: self.plan.text(&Bytes::from(function.map(|oid| format!("oid {oid}")).unwrap_or_default())),
            parameters: arguments.parameters,
            // What it runs is not to be seen here: who guards must refuse it.
            oversized: true,
            ..OperationRecord::default()
        };
        let sql = Sql { verb: SqlVerb::Call, text: Bytes::new(), defined_by: None, oversized: true };
        let exchange = self.ask(sql, record, now, out);
        self.queue(Request { bytes, more: oversized, what: What::Call(exchange) });
    }

    fn described(&self, frame: &[u8]) -> Described {
        let mut fields = Fields::of(frame);
        let (kind, name) = (fields.u8(), fields.name());
        match kind {
            Some(b'S') => match self.sure(name, self.statements.find(name, self.batch)) {
                Found::Known(statement) | Found::Pending(statement) => Described::Statement(statement),
                _ => Described::Unknown,
            },
            Some(b'P') => match self.sure(name, self.portals.find(name, self.batch)) {
                Found::Known(portal) | Found::Pending(portal) => Described::Portal(portal),
                _ => Described::Unknown,
            },
            _ => Described::Unknown,
        }
    }

    fn closed(&mut self, frame: &[u8]) -> What {
        let mut fields = Fields::of(frame);
        let (kind, name) = (fields.u8(), prepared::kept(fields.name()));
        if kind == Some(b'S') {
            let change = self.statements.change(&name, self.batch, None);
            What::CloseStatement { name, change }
        } else {
            let change = self.portals.change(&name, self.batch, None);
            What::ClosePortal { name, change }
        }
    }

    /// SQL may take any name but the empty one from what is known here, and give it to another text.
    fn sure<V>(&self, name: &[u8], found: Found<V>) -> Found<V> {
        if name.is_empty() || !self.flags.sql_names {
            return found;
        }
        let unanswered = self.replies.iter().filter_map(Expected::exchange);
        let mut asked = self.requests.iter().filter_map(Request::exchange).chain(unanswered);
        let only_pending = matches!(found, Found::Pending(_));
        if only_pending || asked.any(|exchange| exchange.names) { Found::Unsure } else { found }
    }

    fn shown_name(&self, name: &[u8]) -> Masked {
        self.plan.text(&Bytes::copy_from_slice(name)).cut(SHOWN_BYTES_MAX)
    }

    fn ask(&mut self, sql: Sql, record: OperationRecord, now: Instant, out: &mut Effects) -> Box<Exchange> {
        let id = self.next_exchange;
        self.next_exchange = id.next();
        let shown: usize =
            record.parameters.iter().map(|value| value.shown.bytes().len() + ENTRY_BYTES).sum();
        let kept = self.owed.take(record.text.bytes().len() + shown + ENTRY_BYTES);
        let mut exchange = Exchange::asked(id, record, now, out);
        exchange.kept = kept;
        exchange.may_copy_in = copy::may_copy_in(&sql);
        exchange.names = prepared::may_name(&sql);
        self.flags.sql_names |= exchange.names;
        let dropped_already = self.flags.dropping && self.requests.is_empty();
        if !dropped_already {
            self.waiting.insert(id);
            out.push(Effect::Ask(id, Operation::Sql(sql)));
        }
        exchange
    }
}

fn unpinned(bytes: Bytes) -> Bytes {
    if bytes.len() < COPIED_BELOW { Bytes::copy_from_slice(&bytes) } else { bytes }
}

/// A text that lives as long as what uses it: in memory of its own when it is a small part of its message.
fn part(bytes: &Bytes, range: Range<usize>) -> Bytes {
    if range.len() < bytes.len() / 2 { Bytes::copy_from_slice(&bytes[range]) } else { bytes.slice(range) }
}
