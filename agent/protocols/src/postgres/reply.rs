//! The server's messages: relayed as they are, and read for what they say about the request whose turn it is.
//!
//! The state follows what the server says, never a count of what the client sent: a Sync during copy-in gets no
//! ReadyForQuery, an error ends all up to the next Sync. A message that does not fit is relayed and noted, not guessed at.

use bytes::Bytes;

use super::error::{self, ServerError};
use super::exchange;
use super::frame::{self, Fields, HEADER_BYTES};
use super::outbox::Masking;
use super::release::{Expected, StreamedMask};
use super::request::Described;
use super::{Phase, Postgres};
use crate::mask::{Masked, Syntax};
use crate::note::{Facts, Note, Outcome};
use crate::operation::Opacity;
use crate::reader::{Part, Piece};
use crate::seam::{Effects, ExchangeId, Instant, Side};

/// What a server reports about itself that the record keeps as facts.
const PARAMETERS_KEPT: &[&str] = &[
    "server_version",
    "client_encoding",
    "session_authorization",
    "application_name",
    "in_hot_standby",
    "is_superuser",
];

/// A message longer than a frame is recorded in parts.
#[derive(Debug)]
pub(crate) struct LargeReply {
    owner: ExchangeId,
    mask: StreamedMask,
}

impl Postgres {
    pub(super) fn read_upstream(&mut self, now: Instant, out: &mut Effects) {
        while self.leaving.is_none() && self.closing.is_none() {
            let further = match self.phase {
                Phase::Opening => self.upstream_before_startup(),
                Phase::Encryption(opacity) => self.encryption_answer(opacity, out),
                Phase::Authenticating | Phase::Ready => self.read_reply(now, out),
                Phase::Cancelling(_) | Phase::Over => self.relay_unread(out),
            };
            if !further {
                break;
            }
        }
        self.outbox.flush(&self.upstream, &self.plan, out);
    }

    /// A server has nothing to say before a startup: this is something else.
    fn upstream_before_startup(&mut self) -> bool {
        if self.upstream.buffered() > 0 {
            self.leave(Opacity::Unparsed);
        }
        false
    }

    fn relay_unread(&mut self, out: &mut Effects) -> bool {
        let bytes = self.upstream.take_all();
        if !bytes.is_empty() {
            out.note(ExchangeId::SESSION, Note::Data(Side::Upstream, self.plan.bytes(&bytes)));
            out.push(crate::seam::Effect::Client(bytes));
        }
        false
    }

    fn read_reply(&mut self, now: Instant, out: &mut Effects) -> bool {
        if let Some(tag @ (b'D' | b'd')) = self.upstream.first()
            && let Some(exchange) = self.replies.front_mut().and_then(Expected::exchange_mut)
        {
            let mut rows = 0;
            let run = self.upstream.run(frame::measure_upstream, |frame| {
                let mine = frame[0] == tag;
                rows += u64::from(mine);
                mine
            });
            if let Some(run) = run {
                exchange.rows(if tag == b'D' { rows } else { 0 });
                exchange.replied(run.bytes.len(), now);
                let owner = exchange.id;
                self.outbox.add(owner, &run, Masking::Values, &self.upstream, &self.plan, out);
                return true;
            }
        }
        match self.upstream.next(frame::measure_upstream) {
            Ok(Some(piece)) => self.reply(piece, now, out),
            Ok(None) => return false,
            Err(_) => self.malformed(Side::Upstream),
        }
        true
    }

    fn reply(&mut self, piece: Piece, now: Instant, out: &mut Effects) {
        match piece.part {
            Part::Whole => {
                let tag = piece.bytes[0];
                self.pass_ignored_syncs(tag);
                let owner = self.relay(&piece, now, out);
                self.react(tag, &piece.bytes, owner, now, out);
            }
            Part::Head => {
                let tag = piece.bytes[0];
                let owner = self.owner(tag);
                let mask = match self.masking(tag, &piece.bytes) {
                    Masking::Withheld(_, rule) => StreamedMask::Withheld(rule),
                    Masking::Texts => StreamedMask::Scanned(Box::new(self.plan.stream(Syntax::Sql))),
                    Masking::Values => StreamedMask::Scanned(Box::new(self.plan.stream(Syntax::Bytes))),
                };
                self.large_reply = Some(LargeReply { owner, mask });
                self.relay_part(&piece, now, out);
                self.react(tag, &piece.bytes, owner, now, out);
            }
            Part::More | Part::Last => self.relay_part(&piece, now, out),
        }
    }

    fn relay(&mut self, piece: &Piece, now: Instant, out: &mut Effects) -> ExchangeId {
        let tag = piece.bytes[0];
        let owner = self.owner(tag);
        self.count(owner, piece.bytes.len(), now);
        let masking = self.masking(tag, &piece.bytes);
        self.outbox.add(owner, piece, masking, &self.upstream, &self.plan, out);
        owner
    }

    fn relay_part(&mut self, piece: &Piece, now: Instant, out: &mut Effects) {
        let Some(mut large) = self.large_reply.take() else { return };
        let last = piece.part == Part::Last;
        let [masked, rest] = large.mask.push(piece.bytes.clone(), last, &self.plan);
        self.count(large.owner, piece.bytes.len(), now);
        self.outbox.add_noted(large.owner, piece, [masked, rest], &self.upstream, &self.plan, out);
        if !last {
            self.large_reply = Some(large);
        }
    }

    fn count(&mut self, owner: ExchangeId, bytes: usize, now: Instant) {
        if owner == ExchangeId::SESSION {
            return;
        }
        let owned =
            |expected: &mut Expected| expected.exchange().is_some_and(|exchange| exchange.id == owner);
        if let Some(expected) = self.replies.iter_mut().find_map(|e| owned(e).then_some(e))
            && let Some(exchange) = expected.exchange_mut()
        {
            exchange.replied(bytes, now);
        }
    }

    /// The exchange that a message belongs to: the one whose turn it is; an error of a Bind or a Describe is told to the
    /// Execute that comes with it.
    fn owner(&self, tag: u8) -> ExchangeId {
        if matches!(self.phase, Phase::Authenticating) || matches!(tag, b'A' | b'S' | b'K' | b'R' | b'v') {
            return ExchangeId::SESSION;
        }
        match self.replies.front() {
            Some(Expected::Bind { .. } | Expected::Describe(_)) if tag == b'E' => self
                .replies
                .iter()
                .take_while(|expected| !matches!(expected, Expected::Sync))
                .find(|expected| matches!(expected, Expected::Execute(_))),
            front => front,
        }
        .and_then(Expected::exchange)
        .map_or(ExchangeId::SESSION, |exchange| exchange.id)
    }

    fn masking(&self, tag: u8, frame: &[u8]) -> Masking {
        match tag {
            b'E' | b'N' => Masking::Texts,
            // The process id is public, the key that follows it is not.
            b'K' => Masking::Withheld(HEADER_BYTES + 4, "postgres-cancel-key"),
            b'R' => match Fields::of(frame).i32() {
                // The names of mechanisms.
                Some(10) => Masking::Values,
                Some(11 | 12) => Masking::Withheld(HEADER_BYTES + 4, "postgres-sasl"),
                Some(7..=9) => Masking::Withheld(HEADER_BYTES + 4, "postgres-gss"),
                _ => Masking::Withheld(HEADER_BYTES + 4, "postgres-password"),
            },
            _ => Masking::Values,
        }
    }

    /// Syncs that the server passed over while it took copy data: what comes now answers what came after them.
    fn pass_ignored_syncs(&mut self, tag: u8) {
        while matches!(self.replies.front(), Some(Expected::Sync))
            && !matches!(tag, b'Z' | b'E' | b'N' | b'A' | b'S')
        {
            let next = self.replies.get(1);
            if next.is_none_or(|next| !fits(tag, next)) {
                break;
            }
            self.replies.pop_front();
        }
    }

    fn react(&mut self, tag: u8, frame: &Bytes, owner: ExchangeId, now: Instant, out: &mut Effects) {
        match tag {
            b'R' => self.authentication(frame),
            b'S' => self.parameter(frame, out),
            b'v' => self.negotiated(frame, out),
            b'K' | b'N' | b'A' => {}
            b'E' => self.error(frame, owner, now, out),
            b'Z' => self.ready(frame, now, out),
            _ if matches!(self.phase, Phase::Authenticating) => {}
            _ => match self.replies.front() {
                Some(front) if fits(tag, front) => self.progress(tag, frame, now, out),
                _ => out.note(
                    ExchangeId::SESSION,
                    Note::Gap { reason: "reply-out-of-step", bytes: frame.len() as u64 },
                ),
            },
        }
    }

    /// The front's own reply.
    fn progress(&mut self, tag: u8, frame: &Bytes, now: Instant, out: &mut Effects) {
        let Some(front) = self.replies.front_mut() else { return };
        match (tag, &mut *front) {
            (b'T', Expected::Describe(described)) => {
                if let Some(columns) = self.budget.columns(exchange::columns(frame, &self.plan)) {
                    // Told before: it is the same.
                    let _ = match described {
                        Described::Statement(statement) => statement.columns.set(columns),
                        Described::Portal(portal) => portal.columns.set(columns),
                        Described::Unknown => Ok(()),
                    };
                }
                self.pop();
            }
            (b't', Expected::Describe(Described::Statement(statement))) => {
                let mut fields = Fields::of(frame);
                let count = fields.count().unwrap_or(0).min(crate::note::PARAMETERS_MAX);
                let _ = statement.types.set((0..count).map_while(|_| fields.u32()).collect());
            }
            (b'T', Expected::Query(exchange) | Expected::Execute(exchange)) => {
                exchange.described(exchange::columns(frame, &self.plan));
            }
            (b'D', Expected::Query(exchange) | Expected::Execute(exchange)) => exchange.rows(1),
            (b'G', Expected::Query(_) | Expected::Execute(_)) => self.copy_in(),
            (b'W', Expected::Query(exchange) | Expected::Execute(exchange)) => {
                exchange.status(Masked::word("COPY BOTH"));
                self.end_front(Outcome::Ok, now, out);
                self.leave(Opacity::Streaming);
            }
            (b'C', Expected::Query(exchange)) => {
                let tag = command_tag(frame);
                exchange.completed(tag, &self.plan);
                self.statements_changed(tag);
                self.flags.copying_in = false;
            }
            (b'C', Expected::Execute(exchange)) => {
                let tag = command_tag(frame);
                exchange.completed(tag, &self.plan);
                self.statements_changed(tag);
                self.flags.copying_in = false;
                self.end_front(Outcome::Ok, now, out);
            }
            (b'I', Expected::Query(exchange)) => exchange.status(Masked::word("EMPTY")),
            (b'I', Expected::Execute(exchange)) => {
                exchange.status(Masked::word("EMPTY"));
                self.end_front(Outcome::Ok, now, out);
            }
            (b's', Expected::Execute(exchange)) => {
                exchange.status(Masked::word("SUSPENDED"));
                self.end_front(Outcome::Ok, now, out);
            }
            (b'1', Expected::Parse { exchange, .. }) => {
                exchange.status(Masked::word("PARSE"));
                self.end_front(Outcome::Ok, now, out);
            }
            (b'V', Expected::Call(exchange)) => exchange.status(Masked::word("CALL")),
            (
                b'2' | b'3' | b'n',
                Expected::Bind { .. }
                | Expected::CloseStatement { .. }
                | Expected::ClosePortal { .. }
                | Expected::Describe(_),
            ) => {
                self.pop();
            }
            _ => {}
        }
        self.settle(now, out);
    }

    /// The front did what was asked; its definitions count from now on.
    fn pop(&mut self) {
        match self.replies.pop_front() {
            Some(Expected::Bind { name, change } | Expected::ClosePortal { name, change }) => {
                self.portals.confirm(&name, change);
            }
            Some(Expected::CloseStatement { name, change }) => self.statements.confirm(&name, change),
            _ => {}
        }
    }

    fn end_front(&mut self, outcome: Outcome, now: Instant, out: &mut Effects) {
        let Some(front) = self.replies.pop_front() else { return };
        if let Expected::Parse { name, change, .. } = &front {
            self.statements.confirm(name, *change);
        }
        if let Some(exchange) = front.into_exchange() {
            self.finish(exchange, outcome, now, out);
        }
    }

    /// The server takes copy data from now on. Syncs that are on their way before the data's end are lost on it.
    fn copy_in(&mut self) {
        let end = self.replies.iter().position(|expected| matches!(expected, Expected::CopyEnd));
        let mut place = 0;
        self.replies.retain(|expected| {
            let lost = matches!(expected, Expected::Sync) && end.is_none_or(|end| place < end);
            let done = Some(place) == end;
            place += 1;
            !lost && !done
        });
        self.flags.copying_in = end.is_none();
    }

    fn error(&mut self, frame: &Bytes, owner: ExchangeId, now: Instant, out: &mut Effects) {
        let error = ServerError::read(frame, &self.plan);
        self.flags.copying_in = false;
        if matches!(self.phase, Phase::Authenticating) {
            let values =
                vec![("startup_error".into(), error.message), ("startup_sqlstate".into(), error.code)];
            out.note(
                ExchangeId::SESSION,
                Note::Facts(Facts { protocol: "postgres", values, ..Facts::default() }),
            );
            return;
        }
        match self.replies.front_mut() {
            // The connection's own end, or the commit that a Sync makes: told as it is.
            None | Some(Expected::Sync | Expected::CopyEnd | Expected::Denied { .. }) => {}
            Some(Expected::Query(exchange) | Expected::Call(exchange)) => exchange.failed(error),
            Some(front) => {
                match front.exchange_mut() {
                    Some(exchange) => exchange.failed(error),
                    None => self.fail_later(owner, error),
                }
                self.skip_to_sync(now, out);
            }
        }
    }

    /// A Bind failed: so did the Execute that it was for.
    fn fail_later(&mut self, owner: ExchangeId, error: ServerError) {
        let owned =
            |expected: &mut Expected| expected.exchange().is_some_and(|exchange| exchange.id == owner);
        match self.replies.iter_mut().find_map(|expected| owned(expected).then_some(expected)) {
            Some(Expected::Execute(exchange)) => exchange.failed(error),
            _ => self.skipped_error = Some(error),
        }
    }

    fn skip_to_sync(&mut self, now: Instant, out: &mut Effects) {
        while let Some(expected) = self.replies.front() {
            if matches!(expected, Expected::Sync) {
                self.skipped_error = None;
                return;
            }
            if let Some(expected) = self.replies.pop_front() {
                self.end_unanswered(expected, now, out);
            }
        }
        self.flags.skipping = true;
    }

    fn ready(&mut self, frame: &Bytes, now: Instant, out: &mut Effects) {
        self.transaction = error::transaction(frame).unwrap_or(b'I');
        self.flags.copying_in = false;
        if self.transaction == b'I' {
            self.portals.clear_confirmed();
        }
        if matches!(self.phase, Phase::Authenticating) {
            self.phase = Phase::Ready;
            return;
        }
        while let Some(Expected::CopyEnd) = self.replies.front() {
            self.replies.pop_front();
        }
        match self.replies.front() {
            Some(Expected::Sync) => {
                self.replies.pop_front();
            }
            Some(Expected::Query(_) | Expected::Call(_)) => self.end_front(Outcome::Ok, now, out),
            None => self.flags.skipping = false,
            Some(_) => {
                out.note(
                    ExchangeId::SESSION,
                    Note::Gap { reason: "reply-out-of-step", bytes: frame.len() as u64 },
                );
            }
        }
        self.settle(now, out);
    }

    /// What SQL did to names that are known here.
    fn statements_changed(&mut self, tag: &[u8]) {
        match tag {
            b"DEALLOCATE" => self.flags.doubtful_names = true,
            b"DEALLOCATE ALL" | b"DISCARD ALL" => {
                self.statements.clear_confirmed();
                self.flags.doubtful_names = false;
            }
            // It may have given a deallocated name another text.
            b"PREPARE" if self.flags.doubtful_names => {
                self.statements.clear_confirmed();
                self.flags.doubtful_names = false;
            }
            _ => {}
        }
    }

    fn authentication(&mut self, frame: &Bytes) {
        self.credential_rule = match Fields::of(frame).i32() {
            Some(10..=12) => "postgres-sasl",
            Some(7..=9) => "postgres-gss",
            _ => "postgres-password",
        };
    }

    fn parameter(&mut self, frame: &Bytes, out: &mut Effects) {
        let mut fields = Fields::of(frame);
        let (Some(name), Some(value)) = (fields.cstr(), fields.cstr()) else { return };
        if let Some(kept) = PARAMETERS_KEPT.iter().find(|kept| kept.as_bytes() == name) {
            let value = self.plan.text(&Bytes::copy_from_slice(value)).cut(super::opening::FACT_BYTES_MAX);
            let values = vec![((*kept).into(), value)];
            out.note(
                ExchangeId::SESSION,
                Note::Facts(Facts { protocol: "postgres", values, ..Facts::default() }),
            );
        }
    }

    /// The server speaks an older minor version than was asked for.
    fn negotiated(&mut self, frame: &Bytes, out: &mut Effects) {
        let Some(minor) = Fields::of(frame).u32() else { return };
        // The minor version; some servers send the whole one.
        let protocol_version = format!("3.{}", minor & 0xffff).into();
        out.note(
            ExchangeId::SESSION,
            Note::Facts(Facts { protocol: "postgres", protocol_version, ..Facts::default() }),
        );
    }
}

fn command_tag(frame: &Bytes) -> &[u8] {
    Fields::of(frame).cstr().unwrap_or_default()
}

/// Whether a message can be a reply to this request.
fn fits(tag: u8, expected: &Expected) -> bool {
    match expected {
        Expected::Query(_) => matches!(tag, b'T' | b'D' | b'C' | b'I' | b'G' | b'H' | b'W' | b'd' | b'c'),
        Expected::Execute(_) => {
            matches!(tag, b'T' | b'D' | b'C' | b'I' | b's' | b'G' | b'H' | b'W' | b'd' | b'c')
        }
        Expected::Call(_) => tag == b'V',
        Expected::Parse { .. } => tag == b'1',
        Expected::Bind { .. } => tag == b'2',
        Expected::CloseStatement { .. } | Expected::ClosePortal { .. } => tag == b'3',
        Expected::Describe(_) => matches!(tag, b't' | b'T' | b'n'),
        Expected::Sync | Expected::CopyEnd | Expected::Denied { .. } => false,
    }
}
