//! The head of the line: forwarded when it may, denied with the protocol's own error, or dropped with the batch it is in.
//!
//! A denied extended request is answered like a failed one: ErrorResponse, then nothing up to the client's Sync, which the
//! server answers with the true transaction state. A denied simple query gets ErrorResponse and ReadyForQuery from here. In
//! both the server's transaction is as it was: a denial does not abort it, because nothing of it ran.

use bytes::Bytes;

use super::copy::Turn;
use super::exchange::Exchange;
use super::expected::Expected;
use super::frame::HEADER_BYTES;
use super::request::{Request, What};
use super::send::{Route, fault};
use super::{Postgres, error, frame};
use crate::note::Outcome;
use crate::seam::{Cause, Effect, Effects, Fault, Instant, Side};
use crate::verdict::{Control, Denial, Verdict};

impl Postgres {
    pub(super) fn release(&mut self, now: Instant, out: &mut Effects) -> Result<(), Fault> {
        while let Some(head) = self.requests.front()
            && self.closing.is_none()
        {
            if head.exchange().is_some_and(|exchange| self.waiting.contains(&exchange.id))
                && !self.flags.dropping
            {
                break;
            }
            let turn = self.copy_turn(&head.what);
            if turn == Turn::Wait {
                self.flush_server(out);
                if self.leaving.is_some() {
                    // The answer is not read any more.
                    self.closing = Some(Cause::Limit(Side::Client, "unparsed-behind-copy"));
                }
                break;
            }
            let Some(request) = self.requests.pop_front() else { break };
            self.held -= request.bytes.len();
            match turn {
                Turn::Pass => {
                    self.pass_over(&request.what, request.more);
                    continue;
                }
                Turn::Broken => {
                    self.closing = Some(Cause::Limit(Side::Client, "message-in-copy-in"));
                    self.requests.push_front(request);
                    break;
                }
                Turn::Go | Turn::Wait => {}
            }
            self.release_one(request, now, out)?;
        }
        Ok(())
    }

    fn release_one(&mut self, request: Request, now: Instant, out: &mut Effects) -> Result<(), Fault> {
        let Request { bytes, more, what } = request;
        match what {
            What::Terminate => self.send(Route::Control(Control::PostgresSession), bytes, more, out),
            What::End => {
                self.end_server(out);
                Ok(())
            }
            What::More { last } => self.send_more(bytes, last, out),
            What::Sync => {
                self.release_sync();
                self.send(Route::Control(Control::PostgresSession), bytes, more, out)
            }
            What::Authentication => {
                self.send(Route::Control(Control::PostgresAuthentication), bytes, more, out)
            }
            what if self.flags.dropping => {
                self.drop_request(what, now, out);
                self.dropped(more);
                Ok(())
            }
            What::Query(exchange) => self.release_exchange(exchange, bytes, more, Expected::Query, now, out),
            What::Call(exchange) => self.release_exchange(exchange, bytes, more, Expected::Call, now, out),
            What::Execute(exchange) => {
                self.release_exchange(exchange, bytes, more, Expected::Execute, now, out)
            }
            What::Parse { exchange, name, change } => {
                let expected = |exchange| Expected::Parse { exchange, name, change };
                self.release_exchange(exchange, bytes, more, expected, now, out)
            }
            What::Bind { name, change } => {
                self.release_step(Expected::Bind { name, change }, bytes, more, out)
            }
            What::Describe(described) => self.release_step(Expected::Describe(described), bytes, more, out),
            What::CloseStatement { name, change } => {
                self.release_step(Expected::CloseStatement { name, change }, bytes, more, out)
            }
            What::ClosePortal { name, change } => {
                self.release_step(Expected::ClosePortal { name, change }, bytes, more, out)
            }
            // The server answers a Flush with a body by an error and skips to the next Sync, out of turn.
            What::Flush if more || bytes.len() != HEADER_BYTES => {
                self.closing = Some(Cause::Limit(Side::Client, "malformed-flush"));
                Ok(())
            }
            What::Flush => {
                self.flags.unflushed = false;
                self.send(Route::Control(Control::PostgresSession), bytes, more, out)
            }
            What::CopyData => {
                self.flags.copy_begun = true;
                self.send(self.copy_route(), bytes, more, out)
            }
            What::CopyEnd => {
                let route = self.copy_route();
                self.flags.copying_in = false;
                self.flags.unflushed |= matches!(self.replies.front(), Some(Expected::Execute(_)));
                self.send(route, bytes, more, out)
            }
            // A server ends the connection at a tag that it does not know.
            What::Unknown => {
                self.closing = Some(Cause::Limit(Side::Client, "unknown-message"));
                Ok(())
            }
        }
    }

    pub(super) fn release_sync(&mut self) {
        self.flags.dropping = false;
        self.flags.unsynced = false;
        self.flags.unflushed = false;
        self.flags.skipping = false;
        self.skipped_error = None;
        self.replies.push_back(Expected::Sync);
    }

    /// A request that runs nothing.
    fn release_step(
        &mut self,
        expected: Expected,
        bytes: Bytes,
        more: bool,
        out: &mut Effects,
    ) -> Result<(), Fault> {
        self.flags.unsynced = true;
        self.flags.unflushed = true;
        if self.flags.skipping {
            self.revoke(expected);
        } else {
            self.replies.push_back(expected);
        }
        self.send(Route::Control(Control::PostgresSession), bytes, more, out)
    }

    fn release_exchange(
        &mut self,
        mut exchange: Box<Exchange>,
        bytes: Bytes,
        more: bool,
        expected: impl FnOnce(Box<Exchange>) -> Expected,
        now: Instant,
        out: &mut Effects,
    ) -> Result<(), Fault> {
        let id = exchange.id;
        let permit = match self.judged.remove(&id) {
            Some(Verdict::Allow(permit)) => permit,
            Some(Verdict::Deny(denial)) => {
                self.dropped(more);
                self.deny(expected(exchange), denial, now, out);
                return Ok(());
            }
            None => return Err(fault("a request was to be released without a verdict")),
        };
        exchange.rule = permit.rule().clone();
        exchange.grant = Some(permit.redeem(id).ok_or(fault("a permit was given for another exchange"))?);
        let mut expected = expected(exchange);
        let extended = !matches!(expected, Expected::Query(_) | Expected::Call(_));
        self.flags.unsynced = extended;
        self.flags.unflushed = extended;
        if self.flags.skipping {
            // The server will pass over it: it is over as soon as it has left.
            if let Some(exchange) = expected.exchange_mut()
                && let Some(error) = self.skipped_error.take()
            {
                exchange.failed(error);
            }
            self.replies.push_back(expected);
            self.send(Route::Exchange(id), bytes, more, out)?;
            if let Some(expected) = self.replies.pop_back() {
                self.end_unanswered(expected, now, out);
            }
            return Ok(());
        }
        self.replies.push_back(expected);
        self.send(Route::Exchange(id), bytes, more, out)
    }

    fn deny(&mut self, refused: Expected, denial: Denial, now: Instant, out: &mut Effects) {
        let simple = matches!(refused, Expected::Query(_) | Expected::Call(_));
        if let Expected::Parse { name, change, .. } = &refused {
            self.statements.revoke(name, *change);
        }
        let Some(mut exchange) = refused.into_exchange() else { return };
        exchange.refused(&denial, &self.plan);
        if self.flags.skipping {
            // The client has this batch's error already.
            exchange.finish(Outcome::Denied, now, out);
            return;
        }
        let unanswered = !self.replies.is_empty();
        if simple && self.flags.unsynced {
            // The server owes replies that it sends with the next ReadyForQuery only: a Sync in the query's place gets
            // both, and the state in it is true.
            self.flags.unsynced = false;
            self.flags.unflushed = false;
            self.replies.push_back(Expected::Denied { exchange, denial, ready: false });
            self.replies.push_back(Expected::Sync);
            out.push(Effect::Upstream(Control::PostgresResync.clear(Bytes::from(frame::message(b'S', b"")))));
        } else {
            self.flags.dropping = !simple;
            self.replies.push_back(Expected::Denied { exchange, denial, ready: simple });
            if !simple && unanswered {
                // A failing server sends what it owes together with the error.
                out.push(Effect::Upstream(
                    Control::PostgresResync.clear(Bytes::from(frame::message(b'H', b""))),
                ));
            }
        }
        self.settle(now, out);
    }

    /// What follows a denied request in its batch.
    fn drop_request(&mut self, what: What, now: Instant, out: &mut Effects) {
        match what {
            What::Bind { name, change } | What::ClosePortal { name, change } => {
                self.portals.revoke(&name, change)
            }
            What::CloseStatement { name, change } => self.statements.revoke(&name, change),
            What::Parse { exchange, name, change } => {
                self.statements.revoke(&name, change);
                self.drop_exchange(exchange, Outcome::Aborted, now, out);
            }
            What::Query(exchange) | What::Call(exchange) | What::Execute(exchange) => {
                self.drop_exchange(exchange, Outcome::Aborted, now, out);
            }
            _ => {}
        }
    }

    /// A reply that will not come.
    pub(super) fn revoke(&mut self, expected: Expected) {
        match expected {
            Expected::Parse { name, change, .. } | Expected::CloseStatement { name, change } => {
                self.statements.revoke(&name, change);
            }
            Expected::Bind { name, change } | Expected::ClosePortal { name, change } => {
                self.portals.revoke(&name, change);
            }
            _ => {}
        }
    }

    /// The server passes over a request.
    pub(super) fn end_unanswered(&mut self, expected: Expected, now: Instant, out: &mut Effects) {
        match expected {
            Expected::Denied { exchange, .. } => {
                exchange.finish(Outcome::Denied, now, out);
            }
            Expected::Parse { exchange, name, change } => {
                self.statements.revoke(&name, change);
                self.finish(exchange, Outcome::Aborted, now, out);
            }
            Expected::Query(exchange) | Expected::Call(exchange) | Expected::Execute(exchange) => {
                self.finish(exchange, Outcome::Aborted, now, out);
            }
            other => self.revoke(other),
        }
    }

    pub(super) fn finish(
        &mut self,
        exchange: Box<Exchange>,
        outcome: Outcome,
        now: Instant,
        out: &mut Effects,
    ) {
        self.outbox.note(&self.upstream, &self.plan, out);
        let grant = exchange.finish(outcome, now, out);
        // Parts of a large request may still be coming under the last one.
        let route = self.streaming.as_ref().map(|streaming| streaming.route);
        let in_use =
            self.last_grant.as_ref().is_some_and(|last| route == Some(Route::Exchange(last.exchange())));
        if grant.is_some() && !in_use {
            self.last_grant = grant;
        }
    }

    /// Says what is ours to say, now that it is its turn.
    pub(super) fn settle(&mut self, now: Instant, out: &mut Effects) {
        while let Some(Expected::Denied { .. }) = self.replies.front() {
            let Some(Expected::Denied { mut exchange, denial, ready }) = self.replies.pop_front() else {
                break;
            };
            self.outbox.flush(&self.upstream, &self.plan, out);
            let mut reply = error::denied(&denial);
            if ready {
                reply = [reply, error::ready(self.transaction)].concat().into();
            }
            exchange.replied(reply.len(), now);
            exchange.finish(Outcome::Denied, now, out);
            out.push(Effect::Client(reply));
        }
    }
}
