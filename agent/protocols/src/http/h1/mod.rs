//! HTTP/1 as a conversation: the order of requests and answers on one connection, and the bytes themselves.
//!
//! `open` holds the exchanges that are not over, oldest first. Requests leave in that order, each under its own grant;
//! answers come back in that order, the server's and ours alike. `sending` is the first whose request has not wholly left.

mod body;
mod feed;
mod head;
mod open;
mod release;
mod request;
mod response;

pub(super) use body::{BodyReader, Step};
pub use body::{CHUNK_LINE_BYTES_MAX, TRAILER_BYTES_MAX};
pub(super) use head::{Asked, HeadEnd, request as request_head, response as response_head};
pub use head::{HEAD_BYTES_MAX, HEADERS_MAX};

use std::collections::VecDeque;

use self::feed::Feed;
use self::open::{Open, Standing};
use crate::kind::{Kind, Start};
use crate::mask::MaskPlan;
use crate::note::{Note, Outcome};
use crate::seam::{Cause, Conversation, Effect, Effects, ExchangeId, Fault, Input, Instant, Side};
use crate::verdict::Verdict;

/// What of a client's bytes may wait here for verdicts, bytes, plus the read that crosses it; then it is not read.
pub const HELD_BYTES_MAX: usize = 256 * 1024;
/// Most exchanges that are open at once; at more, the client is not read.
pub const PIPELINED_MAX: usize = 64;
/// Longest body of a denied request that is read and dropped, bytes; a longer one costs the client its connection.
pub const SWALLOWED_BYTES_MAX: u64 = 256 * 1024;
/// How long a head may take once it has begun, milliseconds.
pub const HEAD_MS_MAX: u64 = 60_000;
/// After our last answer, how long the client may take to read it and to leave, milliseconds.
const LINGER_MS_MAX: u64 = 5_000;

/// The conversation.
#[derive(Debug)]
pub struct Http1 {
    plan: MaskPlan,
    phase: Phase,
    client: Feed,
    upstream: Feed,
    requests: Requests,
    responses: Responses,
    open: VecDeque<Box<Open>>,
    /// Place in `open`.
    sending: usize,
    /// In `open`, bytes.
    held: usize,
    next_exchange: ExchangeId,
    /// When the head began that is not whole; by side.
    head_since: [Option<Instant>; 2],
    told: Told,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    /// Our last answer is sent; what still comes is dropped.
    Lingering {
        until: Instant,
    },
    /// The server has closed, or the connection is given up.
    Over,
}

/// What the client's next bytes are.
#[derive(Debug)]
enum Requests {
    Head,
    /// Of the last exchange in `open`.
    Body(BodyReader),
    /// Nobody knows before the server has answered: the last request wants to leave HTTP.
    Unknown,
    /// Nothing that means anything: the last request was to be the last.
    Closed,
}

/// What the server's next bytes are.
#[derive(Debug)]
enum Responses {
    Head,
    /// Of the first exchange in `open`.
    Body(BodyReader),
}

/// What was noted or done once for the session.
#[derive(Debug, Default)]
struct Told {
    client: bool,
    server: bool,
    client_ended: bool,
    upstream_end_sent: bool,
    /// What the client sent when nothing of it meant anything any more, bytes; on record when it leaves.
    late_bytes: u64,
}

impl Http1 {
    pub fn new(start: Start) -> Self {
        Self {
            plan: start.plan,
            phase: Phase::Running,
            client: Feed::default(),
            upstream: Feed::default(),
            requests: Requests::Head,
            responses: Responses::Head,
            open: VecDeque::new(),
            sending: 0,
            held: 0,
            next_exchange: start.first_exchange,
            head_since: [None; 2],
            told: Told::default(),
        }
    }

    /// Reads, releases and relays in turns until none of them gets further.
    fn proceed(&mut self, now: Instant, out: &mut Effects) -> Result<(), Fault> {
        while self.phase == Phase::Running {
            let moved = self.read_requests(now, out)
                | self.release(now, out)
                | self.answer_in_turn(now, out)
                | self.read_responses(now, out);
            if !moved {
                break;
            }
        }
        self.send_to_client(out);
        if self.phase == Phase::Running && self.requests_are_over() {
            self.end_upstream(out);
        }
        // Nothing of a read is kept but what belongs to the next one.
        self.client.stash();
        self.upstream.stash();
        Ok(())
    }

    /// The client has ended, and everything it asked for has left or never will.
    fn requests_are_over(&self) -> bool {
        self.told.client_ended
            && self.sending == self.open.len()
            && match self.requests {
                Requests::Head | Requests::Closed => true,
                Requests::Unknown => self.client.buffered() == 0,
                Requests::Body(_) => false,
            }
    }

    fn end_upstream(&mut self, out: &mut Effects) {
        if !std::mem::replace(&mut self.told.upstream_end_sent, true) {
            out.push(Effect::End(Side::Upstream));
        }
    }

    /// What was relayed and waits to be sent as one.
    fn send_to_client(&mut self, out: &mut Effects) {
        let bytes = self.upstream.cut_sent();
        if !bytes.is_empty() {
            out.push(Effect::Client(bytes));
        }
    }

    /// Our last answer is out: both sides are told, and the client is given time to read it.
    fn linger(&mut self, now: Instant, out: &mut Effects) {
        self.finish_all(Outcome::Aborted, now, out);
        self.send_to_client(out);
        out.push(Effect::End(Side::Client));
        self.end_upstream(out);
        self.phase = Phase::Lingering { until: now.after_ms(LINGER_MS_MAX) };
        self.told.late_bytes += self.client.take_rest().len() as u64;
        self.upstream.take_rest();
        self.head_since = [None; 2];
    }

    /// Ends every exchange: `unsent` is the outcome of those whose request never left.
    fn finish_all(&mut self, unsent: Outcome, now: Instant, out: &mut Effects) {
        for open in std::mem::take(&mut self.open) {
            let (outcome, withdrawn) = match &open.standing {
                Standing::Asked => (unsent, true),
                Standing::Granted(_) if !open.head_sent => (unsent, false),
                Standing::Granted(_) => (Outcome::Aborted, false),
                Standing::Denied(_) | Standing::Malformed(_) => (Outcome::Denied, false),
            };
            if withdrawn {
                out.push(Effect::Withdraw(open.exchange.id));
            }
            let outcome =
                if open.is_answered && !open.is_refused() { open.exchange.outcome() } else { outcome };
            open.exchange.finish(outcome, now, out);
        }
        (self.sending, self.held) = (0, 0);
    }

    fn verdict(&mut self, id: ExchangeId, verdict: Verdict) -> Result<(), Fault> {
        // Of an exchange that was withdrawn meanwhile, nobody wants it.
        let Some(open) = self.open.iter_mut().find(|open| open.exchange.id == id) else { return Ok(()) };
        match (&open.standing, verdict) {
            (Standing::Asked, Verdict::Allow(permit)) => {
                let grant = permit.redeem(id).ok_or(fault("the permit is another exchange's"))?;
                open.exchange.rule = grant.rule().clone();
                open.standing = Standing::Granted(grant);
            }
            (Standing::Asked, Verdict::Deny(denial)) => {
                open.exchange.denied(&denial, &self.plan);
                open.standing = Standing::Denied(denial);
            }
            // It was withdrawn when its body turned out to be unsound; the verdict was on its way.
            (Standing::Malformed(_), _) => {}
            (Standing::Granted(_) | Standing::Denied(_), _) => return Err(fault("a second verdict came")),
        }
        Ok(())
    }

    fn end_of_client(&mut self, out: &mut Effects) {
        self.told.client_ended = true;
        self.note_late(out);
        if self.phase == Phase::Over {
            self.end_upstream(out);
        }
    }

    fn note_late(&mut self, out: &mut Effects) {
        let bytes = std::mem::take(&mut self.told.late_bytes);
        if bytes > 0 {
            out.note(ExchangeId::SESSION, Note::Gap { reason: "sent-after-the-end", bytes });
        }
    }

    fn reset(&mut self, side: Side, now: Instant, out: &mut Effects) {
        let unsent = if side == Side::Client { Outcome::Withdrawn } else { Outcome::Aborted };
        self.finish_all(unsent, now, out);
        self.note_late(out);
        self.send_to_client(out);
        self.phase = Phase::Over;
        out.push(Effect::Abort(Cause::Reset(side)));
    }

    /// The connection cannot go on, and nothing can be said about it.
    fn abort(&mut self, cause: Cause, now: Instant, out: &mut Effects) {
        self.send_to_client(out);
        self.finish_all(Outcome::Aborted, now, out);
        self.phase = Phase::Over;
        out.push(Effect::Abort(cause));
    }

    /// HTTP is over on this connection.
    fn switch(&mut self, kind: Kind, out: &mut Effects) {
        self.send_to_client(out);
        self.phase = Phase::Over;
        let pending = [self.client.take_rest(), self.upstream.take_rest()];
        out.push(Effect::Become(kind, pending));
    }

    fn tick(&mut self, now: Instant, out: &mut Effects) {
        if let Phase::Lingering { until } = self.phase {
            if until <= now {
                self.note_late(out);
                self.phase = Phase::Over;
                out.push(Effect::Abort(Cause::Finished));
            }
            return;
        }
        let is_late = |since: &Option<Instant>| since.is_some_and(|since| since.after_ms(HEAD_MS_MAX) <= now);
        let [client, upstream] = [0, 1].map(|side| is_late(&self.head_since[side]));
        if client {
            self.late_request(now, out);
        }
        if upstream {
            self.late_response(now, out);
        }
    }

    #[cfg(test)]
    pub(super) fn held_bytes(&self) -> usize {
        self.held + self.client.buffered() + self.upstream.buffered()
    }

    fn is_full(&self) -> bool {
        self.open.len() >= PIPELINED_MAX || self.held >= HELD_BYTES_MAX
    }
}

impl Conversation for Http1 {
    fn handle(&mut self, input: Input, now: Instant, out: &mut Effects) -> Result<(), Fault> {
        match input {
            Input::Data(side, bytes) if self.phase != Phase::Running => {
                if side == Side::Client {
                    self.told.late_bytes += bytes.len() as u64;
                }
                return Ok(());
            }
            Input::Data(Side::Client, bytes) => self.client.push(bytes),
            Input::Data(Side::Upstream, bytes) => self.upstream.push(bytes),
            Input::End(Side::Client) => self.end_of_client(out),
            Input::End(Side::Upstream) => {
                self.end_of_upstream(now, out);
                return Ok(());
            }
            Input::Reset(side) => {
                self.reset(side, now, out);
                return Ok(());
            }
            Input::Verdict(id, verdict) => self.verdict(id, verdict)?,
            Input::Tick => self.tick(now, out),
        }
        self.proceed(now, out)
    }

    fn wants_read(&self, side: Side) -> bool {
        match (self.phase, side) {
            (Phase::Lingering { .. } | Phase::Over, _) | (_, Side::Upstream) => true,
            (Phase::Running, Side::Client) => match self.requests {
                Requests::Head | Requests::Body(_) => !self.is_full(),
                // That it leaves is to be seen; what it says has to wait.
                Requests::Unknown => self.client.buffered() == 0,
                Requests::Closed => true,
            },
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Lingering { until } => Some(until),
            Phase::Over => None,
            Phase::Running => {
                let since = self.head_since.iter().flatten().min()?;
                Some(since.after_ms(HEAD_MS_MAX))
            }
        }
    }
}

fn fault(what: &'static str) -> Fault {
    Fault { protocol: "http", what }
}
