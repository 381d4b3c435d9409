//! From the server: answers are framed, noted, and passed on in the order in which they were asked for.

use bytes::Bytes;

use super::super::answer;
use super::super::exchange::server_fact;
use super::super::message::{Malformed, ResponseHead, SWITCHING_PROTOCOLS, Switch};
use super::body::{BodyReader, Step};
use super::open::{Open, Standing};
use super::{Http1, Phase, Responses, head};
use crate::kind::Kind;
use crate::note::{Note, Outcome};
use crate::operation::Opacity;
use crate::seam::{Cause, Effect, Effects, ExchangeId, Instant, Side};

const UPSTREAM: Side = Side::Upstream;
/// What is recorded of an answer that nobody asked for, bytes.
const UNSOLICITED_BYTES_MAX: usize = 4 * 1024;

impl Http1 {
    /// As far as the bytes at hand go. Says whether anything was read.
    pub(super) fn read_responses(&mut self, now: Instant, out: &mut Effects) -> bool {
        let mut moved = false;
        while self.phase == Phase::Running {
            let further = match self.responses {
                Responses::Head => self.read_response_head(now, out),
                Responses::Body(_) => self.read_response_body(now, out),
            };
            if !further {
                break;
            }
            moved = true;
        }
        self.cut_response(false, now, out);
        moved
    }

    fn read_response_head(&mut self, now: Instant, out: &mut Effects) -> bool {
        if self.upstream.buffered() == 0 {
            return false;
        }
        let asked = match self.open.front() {
            Some(open) if awaits_answer(open) => open.asked,
            // Ours comes first.
            Some(open) if open.is_refused() && !open.is_answered => return false,
            _ => {
                self.unsolicited(now, out);
                return true;
            }
        };
        match self.upstream.head() {
            Ok(Some(place)) => {
                self.head_since[UPSTREAM.index()] = None;
                let bytes = self.upstream.slice(place.clone());
                match head::response(&bytes, &asked) {
                    Ok(head) => {
                        let at = self.upstream.since_noted(place).start;
                        self.begin_response(&head, &bytes, at, now, out);
                    }
                    Err(fault) => self.malformed_head(fault, &bytes, now, out),
                }
                true
            }
            Ok(None) => {
                if self.upstream.is_at_start() {
                    self.head_since[UPSTREAM.index()].get_or_insert(now);
                }
                false
            }
            Err((fault, begun)) => {
                self.malformed_head(fault, &begun, now, out);
                true
            }
        }
    }

    fn begin_response(
        &mut self,
        head: &ResponseHead,
        bytes: &Bytes,
        at: usize,
        now: Instant,
        out: &mut Effects,
    ) {
        if let Some(server) = &head.server
            && !std::mem::replace(&mut self.told.server, true)
        {
            out.note(ExchangeId::SESSION, server_fact(server, &self.plan));
        }
        let Some(open) = self.open.front_mut() else { return };
        open.exchange.fields(UPSTREAM, bytes, at);
        if head.is_interim() {
            self.cut_response(false, now, out);
            return;
        }
        open.exchange.answered(head);
        let switches = head.status == SWITCHING_PROTOCOLS
            || (open.asked.switch == Some(Switch::Connect) && (200..300).contains(&head.status));
        if switches {
            open.is_answered = true;
            self.cut_response(true, now, out);
            self.finish_all(Outcome::Aborted, now, out);
            let is_web_socket = head.status == SWITCHING_PROTOCOLS && head.is_web_socket();
            self.switch(if is_web_socket { Kind::Opaque(Opacity::WebSocket) } else { Kind::Detect }, out);
        } else {
            self.responses = Responses::Body(BodyReader::new(head.length));
        }
    }

    fn read_response_body(&mut self, now: Instant, out: &mut Effects) -> bool {
        let Responses::Body(reader) = &mut self.responses else { return false };
        let Some(open) = self.open.front_mut() else { return false };
        match reader.step(self.upstream.rest()) {
            Ok(Step::Content(length)) => {
                let place = self.upstream.consume(length);
                open.exchange.content(UPSTREAM, self.upstream.since_noted(place));
            }
            Ok(Step::Framing(length)) => {
                self.upstream.consume(length);
            }
            Ok(Step::Fields(length)) => {
                let place = self.upstream.consume(length);
                let lines = self.upstream.slice(place.clone());
                open.exchange.fields(UPSTREAM, &lines, self.upstream.since_noted(place).start);
            }
            Ok(Step::Wait) => return false,
            Ok(Step::End) => self.response_ended(now, out),
            Err(fault) => {
                self.cut_response(false, now, out);
                if let Some(open) = self.open.front_mut() {
                    open.exchange.cut_short(fault);
                }
                self.abort(Cause::Limit(UPSTREAM, "malformed-response"), now, out);
            }
        }
        true
    }

    fn response_ended(&mut self, now: Instant, out: &mut Effects) {
        self.cut_response(true, now, out);
        self.responses = Responses::Head;
        if let Some(open) = self.open.front_mut() {
            open.is_answered = true;
        }
        self.retire(now, out);
    }

    /// Notes what was framed of the answer; it is sent when all of the read is.
    fn cut_response(&mut self, last: bool, now: Instant, out: &mut Effects) {
        let bytes = self.upstream.cut_noted();
        if bytes.is_empty() && !last {
            return;
        }
        if let Some(open) = self.open.front_mut() {
            open.exchange.note(UPSTREAM, bytes, last, now, out);
        }
    }

    /// It is parsed already, and goes nowhere.
    fn malformed_head(&mut self, fault: Malformed, begun: &Bytes, now: Instant, out: &mut Effects) {
        self.upstream.cut_noted();
        let before = self.upstream.cut_sent_before(begun.len());
        if !before.is_empty() {
            out.push(Effect::Client(before));
        }
        self.malformed_response(fault, begun, now, out);
    }

    /// An answer that cannot be read, of which the client has nothing yet.
    fn malformed_response(&mut self, fault: Malformed, begun: &Bytes, now: Instant, out: &mut Effects) {
        let Some(mut open) = self.open.pop_front() else { return };
        self.sending = self.sending.saturating_sub(1);
        let fault = Malformed::with(502, fault.reason);
        open.exchange.note_unread(UPSTREAM, begun, &self.plan, now, out);
        open.exchange.malformed(fault);
        open.exchange.finish(Outcome::Error, now, out);
        out.push(Effect::Client(answer::malformed(fault, open.asked.is_head)));
        self.linger(now, out);
    }

    pub(super) fn late_response(&mut self, now: Instant, out: &mut Effects) {
        let begun = self.upstream.take_rest();
        self.malformed_response(Malformed::with(502, "the head took too long"), &begun, now, out);
    }

    /// Passed on, it would be taken for the answer to the client's next request.
    fn unsolicited(&mut self, now: Instant, out: &mut Effects) {
        self.send_to_client(out);
        let rest = self.upstream.take_rest();
        let bytes = rest.len() as u64;
        let masked = self.plan.bytes(&rest).cut(UNSOLICITED_BYTES_MAX);
        out.note(ExchangeId::SESSION, Note::Data(UPSTREAM, masked));
        out.note(ExchangeId::SESSION, Note::Gap { reason: "unsolicited-response", bytes });
        self.abort(Cause::Limit(UPSTREAM, "unsolicited-response"), now, out);
    }

    pub(super) fn end_of_upstream(&mut self, now: Instant, out: &mut Effects) {
        if self.phase != Phase::Running {
            return;
        }
        match &self.responses {
            Responses::Body(reader) if reader.may_end() => self.response_ended(now, out),
            Responses::Body(_) => {
                let bytes = self.upstream.take_rest().len() as u64;
                if let Some(open) = self.open.front() {
                    out.note(open.exchange.id, Note::Gap { reason: "truncated-message", bytes });
                }
            }
            Responses::Head if self.upstream.buffered() > 0 => {
                let begun = self.upstream.take_rest();
                let Some(open) = self.open.front_mut().filter(|open| awaits_answer(open)) else {
                    let fault = Malformed::with(502, "the connection ended within the head");
                    self.malformed_response(fault, &begun, now, out);
                    return;
                };
                // Cut short, and the last there is: the client learns from it what it would learn without us.
                open.exchange.note_unread(UPSTREAM, &begun, &self.plan, now, out);
                out.note(open.exchange.id, Note::Gap { reason: "truncated-message", bytes: 0 });
                self.send_to_client(out);
                out.push(Effect::Client(begun));
            }
            Responses::Head => {}
        }
        self.send_to_client(out);
        self.finish_all(Outcome::Aborted, now, out);
        self.phase = Phase::Over;
        self.head_since = [None; 2];
        out.push(Effect::End(Side::Client));
        if self.told.client_ended {
            self.end_upstream(out);
        }
    }
}

/// Its request is on its way and nothing else can be the next answer.
fn awaits_answer(open: &Open) -> bool {
    matches!(open.standing, Standing::Granted(_)) && open.head_sent && !open.is_answered
}
