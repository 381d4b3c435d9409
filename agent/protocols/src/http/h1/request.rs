//! From the client: requests are framed, noted, asked about, and held.

use bytes::Bytes;

use super::super::exchange::{Exchange, session_facts};
use super::super::message::{Malformed, RequestHead};
use super::body::{BodyReader, Step};
use super::open::{Open, Standing};
use super::{Http1, Phase, Requests, Responses, head};
use crate::note::Note;
use crate::operation::Operation;
use crate::seam::{Cause, Effect, Effects, ExchangeId, Instant, Side};

const CLIENT: Side = Side::Client;

impl Http1 {
    /// As far as the bytes at hand go. Says whether anything was read.
    pub(super) fn read_requests(&mut self, now: Instant, out: &mut Effects) -> bool {
        let mut moved = false;
        while self.phase == Phase::Running {
            if self.is_full() {
                // Nobody can say that the client is late while it is not read.
                self.head_since[CLIENT.index()] = None;
                break;
            }
            let further = match &self.requests {
                Requests::Head => self.read_request_head(now, out),
                Requests::Body(_) => self.read_request_body(now, out),
                Requests::Unknown => false,
                Requests::Closed => {
                    self.told.late_bytes += self.client.take_rest().len() as u64;
                    false
                }
            };
            if !further {
                self.cut_request(false, now, out);
                self.cut_off_request(now, out);
                break;
            }
            moved = true;
        }
        self.cut_request(false, now, out);
        moved
    }

    fn read_request_head(&mut self, now: Instant, out: &mut Effects) -> bool {
        match self.client.head() {
            Ok(Some(place)) => {
                let bytes = self.client.slice(place);
                match head::request(&bytes) {
                    Ok(head) => self.begin_request(&head, &bytes, now, out),
                    Err(fault) => self.refuse_request(fault, &bytes, now, out),
                }
                true
            }
            Ok(None) => {
                if self.client.has_begun_head() && self.client.is_at_start() {
                    self.head_since[CLIENT.index()].get_or_insert(now);
                }
                false
            }
            Err((fault, begun)) => {
                self.refuse_request(fault, &begun, now, out);
                true
            }
        }
    }

    fn begin_request(&mut self, head: &RequestHead, bytes: &Bytes, now: Instant, out: &mut Effects) {
        self.head_since[CLIENT.index()] = None;
        let id = self.next_id(Some(head), out);
        let mut exchange = Exchange::asked(id, head, &self.plan, now, out);
        exchange.fields(CLIENT, bytes, 0);
        self.open.push_back(Box::new(Open::asked(exchange, head)));
        out.push(Effect::Ask(id, Operation::Http(head.operation.clone())));
        self.requests = Requests::Body(BodyReader::new(head.length));
    }

    fn next_id(&mut self, head: Option<&RequestHead>, out: &mut Effects) -> ExchangeId {
        if !std::mem::replace(&mut self.told.client, true) {
            out.note(ExchangeId::SESSION, session_facts(head, &self.plan));
        }
        let id = self.next_exchange;
        self.next_exchange = id.next();
        id
    }

    fn read_request_body(&mut self, now: Instant, out: &mut Effects) -> bool {
        let Requests::Body(reader) = &mut self.requests else { return false };
        let Some(open) = self.open.back_mut() else { return false };
        match reader.step(self.client.rest()) {
            Ok(Step::Content(length)) => {
                let place = self.client.consume(length);
                if !open.is_refused() {
                    open.exchange.content(CLIENT, self.client.since_noted(place));
                }
            }
            Ok(Step::Framing(length)) => {
                self.client.consume(length);
            }
            Ok(Step::Fields(length)) => {
                let place = self.client.consume(length);
                if !open.is_refused() {
                    let lines = self.client.slice(place.clone());
                    open.exchange.fields(CLIENT, &lines, self.client.since_noted(place).start);
                }
            }
            Ok(Step::Wait) => return false,
            Ok(Step::End) => self.request_ended(now, out),
            Err(fault) => self.refuse_body(fault, now, out),
        }
        true
    }

    /// The request is whole, or will never be.
    fn request_ended(&mut self, now: Instant, out: &mut Effects) {
        self.cut_request(true, now, out);
        let Some(open) = self.open.back_mut() else { return };
        open.is_whole = true;
        self.requests = match open.asked.switch {
            Some(_) => Requests::Unknown,
            None if open.keeps_alive => Requests::Head,
            None => Requests::Closed,
        };
    }

    /// Notes what was framed of the last request and lets it wait; of a refused one it is dropped.
    fn cut_request(&mut self, last: bool, now: Instant, out: &mut Effects) {
        let bytes = self.client.cut_noted();
        let Some(open) = self.open.back_mut() else { return };
        if (bytes.is_empty() && !last) || open.is_refused() {
            return;
        }
        open.exchange.note(CLIENT, bytes.clone(), last, now, out);
        if !bytes.is_empty() {
            self.held += bytes.len();
            open.held.push_back(bytes);
        }
    }

    /// A head that cannot be read: answered in its turn, and the last thing that this client says.
    fn refuse_request(&mut self, fault: Malformed, begun: &Bytes, now: Instant, out: &mut Effects) {
        self.head_since[CLIENT.index()] = None;
        self.client.cut_noted();
        let id = self.next_id(None, out);
        let mut exchange = Exchange::unread(id, begun, &self.plan, now, out);
        exchange.malformed(fault);
        self.open.push_back(Box::new(Open::malformed(exchange, fault)));
        self.requests = Requests::Closed;
    }

    /// A body that cannot be read: what has left has left, and nothing follows it.
    fn refuse_body(&mut self, fault: Malformed, now: Instant, out: &mut Effects) {
        self.cut_request(false, now, out);
        self.requests = Requests::Closed;
        let Some(open) = self.open.back_mut() else { return };
        if matches!(open.standing, Standing::Asked) {
            out.push(Effect::Withdraw(open.exchange.id));
        }
        if !open.is_refused() {
            if open.is_answered {
                open.exchange.cut_short(fault);
            } else {
                open.exchange.malformed(fault);
            }
            open.standing = Standing::Malformed(fault);
        }
        open.is_whole = true;
        open.closes_if_refused = true;
        let is_being_answered = open.is_answered || matches!(self.responses, Responses::Body(_));
        if self.open.len() == 1 && is_being_answered {
            self.abort(Cause::Limit(CLIENT, "malformed-request"), now, out);
        }
    }

    pub(super) fn late_request(&mut self, now: Instant, out: &mut Effects) {
        let begun = self.client.take_rest();
        self.refuse_request(Malformed::with(408, "the head took too long"), &begun, now, out);
    }

    /// What the client's end cuts off never becomes whole.
    fn cut_off_request(&mut self, now: Instant, out: &mut Effects) {
        if !self.told.client_ended || matches!(self.requests, Requests::Unknown | Requests::Closed) {
            return;
        }
        let rest = self.client.take_rest();
        // Empty lines between requests are part of none (RFC 9112, 2.2).
        let is_blank =
            matches!(self.requests, Requests::Head) && rest.iter().all(|byte| matches!(byte, b'\r' | b'\n'));
        if !rest.is_empty() && !is_blank {
            let bytes = rest.len() as u64;
            out.note(ExchangeId::SESSION, Note::Gap { reason: "truncated-message", bytes });
        }
        self.head_since[CLIENT.index()] = None;
        if matches!(self.requests, Requests::Body(_)) {
            self.request_ended(now, out);
        }
        self.requests = Requests::Closed;
    }
}
