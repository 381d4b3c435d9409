//! PostgreSQL, protocol 3.0 and 3.2, on the way between a client and a server.
//!
//! Two queues carry a session. `requests` holds the client's messages that may not leave yet, in order; what leaves it
//! becomes an [`Expected`] in `replies`, which the server's messages consume, in order. An [`Exchange`] is a value that
//! moves along both and ends once. A denied request becomes an `Expected` of our own, so its error reply comes when its
//! turn does, whatever is in flight.
//!
//! ```text
//!  client ─► read ─► requests ─► release ─► upstream    read: understand, note, ask     (request.rs)
//!                       ▲ verdicts   │                  release: forward, deny or drop  (release.rs, send.rs)
//!  client ◄─ relay ◄─ replies ◄──────┘ ◄─── upstream    relay, and react: what it means (relay.rs, reply.rs)
//! ```
//!
//! * `frame`, `places`, `error`, `types`, `value`: the wire; `prepared`: statements and portals by name; `exchange`: one exchange
//! * `copy`: what may follow a statement that may copy in
//! * `opening`: the messages before the startup is done; `refusal`: what to say when the connection itself is denied
//! * [`recognize`]: whether first bytes are PostgreSQL's

#![expect(clippy::single_range_in_vec_init, reason = "masking takes lists of ranges, also of one")]

mod copy;
mod error;
mod exchange;
mod expected;
mod frame;
mod opening;
mod outbox;
mod places;
mod prepared;
mod refusal;
mod relay;
mod release;
mod reply;
mod request;
pub(crate) mod rows;
mod send;
#[cfg(test)]
mod tests;
mod types;
mod value;

pub use opening::recognize;
pub use refusal::{Refusal, refuse};

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use self::error::ServerError;
use self::exchange::Exchange;
use self::expected::Expected;
use self::outbox::Outbox;
use self::prepared::{Budget, Portal, Statement, Table};
use self::relay::LargeReply;
use self::request::Request;
use self::send::Streaming;
use crate::kind::{Kind, Start};
use crate::mask::{MaskPlan, Masked};
use crate::note::{Note, Outcome};
use crate::operation::Opacity;
use crate::reader::{Piece, Reader};
use crate::seam::{Cause, Conversation, Effect, Effects, ExchangeId, Fault, Input, Instant, Side};
use crate::verdict::{Grant, Verdict};

/// What of a client's bytes may wait here (for verdicts, for the server, for the rest of a message), bytes. Also the
/// longest request that policy reads whole.
pub const HELD_BYTES_MAX: usize = 1024 * 1024;
/// Messages of a client that wait for a verdict or for their reply; at more, the client is not read.
pub const OUTSTANDING_MAX: usize = 1024;
/// What is kept of exchanges that are not answered, bytes; at more, the client is not read.
const OWED_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The conversation.
#[derive(Debug)]
pub struct Postgres {
    plan: MaskPlan,
    phase: Phase,
    client: Reader,
    upstream: Reader,

    requests: VecDeque<Request>,
    /// In `requests`, bytes.
    held: usize,
    /// Asked, and no verdict yet.
    waiting: BTreeSet<ExchangeId>,
    /// Verdicts whose exchange is not at the head of `requests` yet.
    judged: BTreeMap<ExchangeId, Verdict>,
    next_exchange: ExchangeId,
    /// Counts the client's Syncs: what is between two of them stands or falls together.
    batch: u64,
    /// A Bind, Execute or Describe whose name is unsure until the server has answered.
    stalled: Option<Piece>,
    statements: Table<Statement>,
    portals: Table<Portal>,
    budget: Budget,

    replies: VecDeque<Expected>,
    /// What the records of exchanges take.
    owed: Budget,
    outbox: Outbox,
    /// Where the parts of a large request go that is on its way.
    streaming: Option<Streaming>,
    /// Of the last exchange that ended: parts of its request may still come.
    last_grant: Option<Grant>,
    flags: Flags,
    /// Of a Bind or Describe: the Execute that it was for is told it.
    skipped_error: Option<ServerError>,
    /// Where the parts of a large reply are recorded that is on its way.
    large_reply: Option<LargeReply>,
    /// Of the last ReadyForQuery: I, T or E.
    transaction: u8,
    /// Turns into this kind of opaque as soon as `requests` is empty.
    leaving: Option<Opacity>,
    /// Closes the connection.
    closing: Option<Cause>,
    /// Parameters that the server reported, not noted yet.
    reported: Vec<(Cow<'static, str>, Masked)>,
    /// Of the startup's authentication requests: what the client's answer is recorded as.
    credential_rule: &'static str,
}

#[derive(Debug)]
enum Phase {
    /// Before the StartupMessage.
    Opening,
    /// An SSLRequest or GSSENCRequest is on its way: the answer is one byte.
    Encryption(Opacity),
    /// Up to the first ReadyForQuery.
    Authenticating,
    Ready,
    /// This connection only cancels another one's query.
    Cancelling(Box<Exchange>),
    /// The server has closed.
    Over,
}

#[derive(Debug, Default)]
struct Flags {
    /// We denied an extended request: the client's messages are dropped up to its Sync.
    dropping: bool,
    /// The server reported an error in a batch whose Sync it has not got yet: it skips what comes before it.
    skipping: bool,
    /// Extended requests were forwarded since the last Sync or Query: the server may keep their replies back.
    unsynced: bool,
    /// Of these the server may keep replies back: no Flush followed.
    unflushed: bool,
    /// The server takes copy data, and Syncs are lost on it.
    copying_in: bool,
    /// Copy data left since the server asked for it.
    copy_begun: bool,
    /// A Sync came between copy data, and did not leave.
    copy_synced: bool,
    /// The client has sent SQL that may give or take names.
    sql_names: bool,
    /// SQL's DEALLOCATE took a name that is not known here.
    doubtful_names: bool,
    client_ended: bool,
    end_queued: bool,
    end_sent: bool,
}

impl Postgres {
    pub fn new(start: Start) -> Self {
        Self {
            plan: start.plan,
            phase: Phase::Opening,
            client: Reader::default(),
            upstream: Reader::default(),
            requests: VecDeque::new(),
            held: 0,
            waiting: BTreeSet::new(),
            judged: BTreeMap::new(),
            next_exchange: start.first_exchange,
            batch: 0,
            stalled: None,
            statements: Table::default(),
            portals: Table::default(),
            budget: Budget::default(),
            replies: VecDeque::new(),
            owed: Budget::default(),
            outbox: Outbox::default(),
            streaming: None,
            last_grant: None,
            flags: Flags::default(),
            skipped_error: None,
            large_reply: None,
            transaction: b'I',
            leaving: None,
            closing: None,
            reported: Vec::new(),
            credential_rule: "postgres-password",
        }
    }

    /// Reads and releases in turns until neither gets further.
    fn proceed(&mut self, now: Instant, out: &mut Effects) -> Result<(), Fault> {
        loop {
            self.release(now, out)?;
            if !self.read_client(now, out) {
                break;
            }
        }
        // The server may keep back what is waited for until a Sync that is not read before.
        if self.stalled.is_some() || self.owes_too_much() {
            self.flush_server(out);
        }
        if let Some(cause) = self.closing.take() {
            self.finish_all(Outcome::Aborted, now, out);
            self.phase = Phase::Over;
            out.push(Effect::Abort(cause));
        }
        self.leave_when_drained(now, out);
        Ok(())
    }

    /// Bytes that are no messages. Before the session is authenticated they may be part of a secret, and opaque bytes are
    /// recorded: such a connection is closed.
    fn malformed(&mut self, side: Side) {
        if matches!(self.phase, Phase::Authenticating) {
            self.closing = Some(Cause::Limit(side, "unparsed-authentication"));
        } else {
            self.leave(Opacity::Unparsed);
        }
    }

    /// No more messages are read; what is asked is still answered, then the session is opaque.
    fn leave(&mut self, reason: Opacity) {
        self.leaving.get_or_insert(reason);
    }

    fn leave_when_drained(&mut self, now: Instant, out: &mut Effects) {
        let Some(reason) = self.leaving else { return };
        if !self.requests.is_empty() || matches!(self.phase, Phase::Over) {
            return;
        }
        self.finish_all(Outcome::Aborted, now, out);
        self.phase = Phase::Over;
        let mut client = self.client.take_all();
        if let Some(stalled) = self.stalled.take() {
            client = [stalled.bytes, client].concat().into();
        }
        let pending = [client, self.upstream.take_all()];
        out.push(Effect::Become(Kind::Opaque(reason), pending));
    }

    /// Ends every exchange: `held` is the outcome of those whose request never left.
    fn finish_all(&mut self, held: Outcome, now: Instant, out: &mut Effects) {
        self.note_tails(out);
        self.note_reported(out);
        for expected in std::mem::take(&mut self.replies) {
            let outcome =
                if matches!(expected, Expected::Denied { .. }) { Outcome::Denied } else { Outcome::Aborted };
            if let Some(exchange) = expected.into_exchange() {
                exchange.finish(outcome, now, out);
            }
        }
        for request in std::mem::take(&mut self.requests) {
            if let Some(exchange) = request.into_exchange() {
                self.drop_exchange(exchange, held, now, out);
            }
        }
        self.held = 0;
        if let Some(exchange) = self.cancelling() {
            exchange.finish(Outcome::Aborted, now, out);
        }
    }

    fn cancelling(&mut self) -> Option<Box<Exchange>> {
        if !matches!(self.phase, Phase::Cancelling(_)) {
            return None;
        }
        match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Cancelling(exchange) => Some(exchange),
            _ => None,
        }
    }

    /// Ends an exchange whose request does not leave: nobody needs to decide about it any more.
    fn drop_exchange(
        &mut self,
        mut exchange: Box<Exchange>,
        outcome: Outcome,
        now: Instant,
        out: &mut Effects,
    ) {
        let mut outcome = outcome;
        if self.waiting.remove(&exchange.id) {
            out.push(Effect::Withdraw(exchange.id));
        } else if let Some(Verdict::Deny(denial)) = self.judged.remove(&exchange.id) {
            exchange.rule = denial.rule;
            outcome = Outcome::Denied;
        }
        exchange.finish(outcome, now, out);
    }

    fn end_of_upstream(&mut self, now: Instant, out: &mut Effects) {
        if matches!(self.phase, Phase::Over) {
            return;
        }
        let rest = self.upstream.take_all();
        if !rest.is_empty() {
            out.note(
                ExchangeId::SESSION,
                Note::Gap { reason: "truncated-message", bytes: rest.len() as u64 },
            );
            out.push(Effect::Client(rest));
        }
        if let Some(exchange) = self.cancelling() {
            // A server says nothing to a cancel request: closing is its reply.
            exchange.finish(Outcome::Ok, now, out);
        }
        self.finish_all(Outcome::Aborted, now, out);
        self.phase = Phase::Over;
        out.push(Effect::End(Side::Client));
        self.end_server_with_client(out);
    }

    /// After the server's end nothing is sent to it any more but the client's own end, without which the session stays open.
    fn end_server_with_client(&mut self, out: &mut Effects) {
        if self.flags.client_ended && matches!(self.phase, Phase::Over) {
            self.end_server(out);
        }
    }

    fn end_server(&mut self, out: &mut Effects) {
        if !std::mem::replace(&mut self.flags.end_sent, true) {
            out.push(Effect::End(Side::Upstream));
        }
    }

    fn reset(&mut self, side: Side, now: Instant, out: &mut Effects) {
        let held = if side == Side::Client { Outcome::Withdrawn } else { Outcome::Aborted };
        self.finish_all(held, now, out);
        self.phase = Phase::Over;
        out.push(Effect::Abort(Cause::Reset(side)));
    }

    fn verdict(&mut self, id: ExchangeId, verdict: Verdict) {
        // Of an exchange that was withdrawn meanwhile, nobody wants it.
        if self.waiting.remove(&id) {
            self.judged.insert(id, verdict);
        }
    }

    fn is_full(&self) -> bool {
        self.held + self.client.buffered() >= HELD_BYTES_MAX || self.owes_too_much()
    }

    /// The rest of a message that has begun adds nothing, and the server needs it.
    fn owes_too_much(&self) -> bool {
        let full = self.requests.len() + self.replies.len() >= OUTSTANDING_MAX
            || self.owed.taken() >= OWED_BYTES_MAX;
        full && !self.client.is_streaming()
    }
}

/// The entry for fuzzers.
#[cfg(any(test, feature = "suite"))]
pub fn fuzz(data: &[u8]) {
    crate::suite::fuzz(|start| Box::new(Postgres::new(start)), data);
}

impl Conversation for Postgres {
    fn handle(&mut self, input: Input, now: Instant, out: &mut Effects) -> Result<(), Fault> {
        match input {
            Input::Data(Side::Client, bytes) => {
                if matches!(self.phase, Phase::Over) {
                    let bytes = bytes.len() as u64;
                    out.note(ExchangeId::SESSION, Note::Gap { reason: "sent-after-the-end", bytes });
                    return Ok(());
                }
                self.client.push(bytes);
            }
            Input::Data(Side::Upstream, bytes) => {
                self.upstream.push(bytes);
                self.read_upstream(now, out);
            }
            Input::End(Side::Client) => {
                self.flags.client_ended = true;
                self.end_server_with_client(out);
            }
            Input::End(Side::Upstream) => {
                self.end_of_upstream(now, out);
                return Ok(());
            }
            Input::Reset(side) => {
                self.reset(side, now, out);
                return Ok(());
            }
            Input::Verdict(id, verdict) => self.verdict(id, verdict),
            Input::Tick => {}
        }
        self.proceed(now, out)
    }

    fn wants_read(&self, side: Side) -> bool {
        match (side, &self.phase) {
            (_, Phase::Over) => true,
            _ if self.leaving.is_some() => false,
            (Side::Upstream, _) => true,
            // What it says now depends on the answer; that it leaves does not.
            (Side::Client, Phase::Encryption(_)) => self.client.buffered() == 0,
            (Side::Client, _) => self.stalled.is_none() && !self.is_full(),
        }
    }
}
