//! The server's messages, read for what they say about the request whose turn it is.
//!
//! The state follows what the server says, never a count of what the client sent: a Sync during copy-in gets no
//! ReadyForQuery, an error ends all up to the next Sync. A message that does not fit is relayed and noted, not guessed at.

use bytes::Bytes;

use super::error::{self, ServerError};
use super::exchange;
use super::expected::Expected;
use super::frame::Fields;
use super::request::Described;
use super::{Phase, Postgres};
use crate::mask::Masked;
use crate::note::{Facts, Note, Outcome};
use crate::operation::Opacity;
use crate::seam::{Effects, ExchangeId, Instant};

/// What a server reports about itself that the record keeps as facts.
const PARAMETERS_KEPT: &[&str] = &[
    "server_version",
    "client_encoding",
    "session_authorization",
    "application_name",
    "in_hot_standby",
    "is_superuser",
];

impl Postgres {
    pub(super) fn react(
        &mut self,
        tag: u8,
        frame: &Bytes,
        owner: ExchangeId,
        now: Instant,
        out: &mut Effects,
    ) {
        match tag {
            b'R' => self.authentication(frame),
            b'S' => self.parameter(frame, out),
            b'v' => self.negotiated(frame, out),
            b'K' | b'N' | b'A' => {}
            b'E' => self.error(frame, owner, now, out),
            b'Z' => self.ready(frame, now, out),
            _ if matches!(self.phase, Phase::Authenticating) => {}
            _ => match self.replies.front() {
                Some(front) if front.fits(tag) => self.progress(tag, frame, now, out),
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
            (b'G', Expected::Query(_) | Expected::Execute(_)) => self.begin_copy_in(),
            (b'W', Expected::Query(exchange) | Expected::Execute(exchange)) => {
                exchange.status(Masked::word("COPY BOTH"));
                self.end_front(Outcome::Ok, now, out);
                self.leave(Opacity::Streaming);
            }
            (b'C', Expected::Query(exchange)) => {
                let tag = command_tag(frame);
                exchange.completed(tag, &self.plan);
                self.statements_changed(tag);
                self.end_copy_in();
            }
            (b'C', Expected::Execute(exchange)) => {
                let tag = command_tag(frame);
                exchange.completed(tag, &self.plan);
                self.statements_changed(tag);
                self.end_copy_in();
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

    fn error(&mut self, frame: &Bytes, owner: ExchangeId, now: Instant, out: &mut Effects) {
        let error = ServerError::read(frame, &self.plan);
        let synced = self.end_copy_in();
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
            // A timeout between two messages of a batch: the server skips the rest of it.
            None if self.flags.unsynced => {
                self.flags.skipping = true;
                self.skipped_error = Some(error);
            }
            // The connection's own end, or the commit that a Sync makes: told as it is.
            None | Some(Expected::Sync | Expected::Denied { .. }) => {}
            Some(Expected::Query(exchange) | Expected::Call(exchange)) => exchange.failed(error),
            Some(front) => {
                match front.exchange_mut() {
                    Some(exchange) => exchange.failed(error),
                    None => self.fail_later(owner, error),
                }
                self.skip_to_sync(now, out);
                if synced {
                    self.sync_after_failed_copy(out);
                }
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
        self.end_copy_in();
        if self.transaction == b'I' {
            self.portals.clear_confirmed();
        }
        if matches!(self.phase, Phase::Authenticating) {
            self.note_reported(out);
            self.phase = Phase::Ready;
            return;
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
                self.pass_to_ready(now, out);
            }
        }
        self.settle(now, out);
    }

    /// The server is ready, and has not answered what it was asked before: it will not any more, and defined nothing.
    fn pass_to_ready(&mut self, now: Instant, out: &mut Effects) {
        while let Some(expected) = self.replies.pop_front() {
            let ends = matches!(expected, Expected::Sync | Expected::Query(_) | Expected::Call(_));
            self.end_unanswered(expected, now, out);
            if ends {
                break;
            }
        }
    }

    /// What SQL did to names that are known here.
    fn statements_changed(&mut self, tag: &[u8]) {
        match tag {
            b"DEALLOCATE" => self.flags.doubtful_names = true,
            b"DEALLOCATE ALL" | b"DISCARD ALL" => {
                self.statements.clear_confirmed();
                self.flags.doubtful_names = false;
            }
            b"DECLARE CURSOR" | b"CLOSE CURSOR" | b"CLOSE CURSOR ALL" => self.portals.clear_confirmed(),
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
            self.reported.push(((*kept).into(), value));
            if !matches!(self.phase, Phase::Authenticating) || self.reported.len() > PARAMETERS_KEPT.len() {
                self.note_reported(out);
            }
        }
    }

    /// A startup reports many parameters: one note has them all.
    pub(super) fn note_reported(&mut self, out: &mut Effects) {
        if !self.reported.is_empty() {
            let values = std::mem::take(&mut self.reported);
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
