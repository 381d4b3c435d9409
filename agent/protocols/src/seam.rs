//! The seam between I/O and protocols: inputs in, effects out.
//!
//! The one legal loop, for the pump and for tests alike:
//!
//! 1. give one [`Input`] to [`Conversation::handle`];
//! 2. carry out the [`Effects`] in the order given: a `Note` is recorded before the send that follows it;
//! 3. on [`Effect::Become`], start the new kind, give it the two pending buffers as `Data`, then any `End` already seen;
//! 4. read from a side only while [`Conversation::wants_read`] says so, and call again at [`Conversation::next_deadline`].

use bytes::Bytes;

use crate::kind::Kind;
use crate::note::Note;
use crate::operation::Operation;
use crate::verdict::{Cleared, Verdict};

/// One protocol on one connection.
pub trait Conversation: Send {
    /// Takes one input and says what follows. `Err` is our own broken invariant, never the peer's fault: what a peer
    /// sends that does not parse turns the session opaque by [`Effect::Become`].
    fn handle(&mut self, input: Input, now: Instant, out: &mut Effects) -> Result<(), Fault>;

    /// Whether more bytes of this side can be taken now. While false the pump still watches for a reset.
    fn wants_read(&self, side: Side) -> bool;

    /// When `Input::Tick` is wanted, if at all.
    fn next_deadline(&self) -> Option<Instant> {
        None
    }
}

/// CLOCK_BOOTTIME in nanoseconds. A parameter everywhere: nothing in this crate reads a clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(pub u64);

impl Instant {
    pub const fn after_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms.saturating_mul(1_000_000)))
    }
}

/// The two peers of a connection, seen from the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The governed process.
    Client,
    /// The server it wanted to reach.
    Upstream,
}

impl Side {
    pub const fn other(self) -> Self {
        match self {
            Side::Client => Side::Upstream,
            Side::Upstream => Side::Client,
        }
    }

    /// For `[T; 2]` indexed by side: client first.
    pub const fn index(self) -> usize {
        match self {
            Side::Client => 0,
            Side::Upstream => 1,
        }
    }
}

/// Ordinal of an exchange in its session, from 1. [`ExchangeId::SESSION`] stands for the session itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExchangeId(pub u64);

impl ExchangeId {
    /// What belongs to no exchange: connect, startup, session control.
    pub const SESSION: Self = Self(0);
    pub const FIRST: Self = Self(1);

    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// What happens to a conversation.
#[derive(Debug)]
pub enum Input {
    /// Bytes arrived; never empty.
    Data(Side, Bytes),
    /// This side will send no more (FIN).
    End(Side),
    /// This side is gone (RST, or an error of its socket). Nothing more can be sent to it.
    Reset(Side),
    /// Policy's answer to an [`Effect::Ask`]. Verdicts may come in any order and late.
    Verdict(ExchangeId, Verdict),
    /// [`Conversation::next_deadline`] has passed.
    Tick,
}

/// What a conversation wants done.
#[derive(Debug)]
pub enum Effect {
    /// Send to the upstream. Only what was cleared can leave.
    Upstream(Cleared),
    /// Send to the client.
    Client(Bytes),
    /// Ask policy. The request's bytes stay here until the verdict.
    Ask(ExchangeId, Operation),
    /// The exchange asked for is moot (the client is gone): nobody needs to decide any more.
    Withdraw(ExchangeId),
    /// Record.
    Note(ExchangeId, Note),
    /// Another protocol goes on from here, with these unconsumed bytes of client and upstream.
    Become(Kind, [Bytes; 2]),
    /// No more will be sent to this side (shuts down our writing half).
    End(Side),
    /// Close both sides now.
    Abort(Cause),
}

/// Why a conversation closes the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Policy refused and the protocol has no form to say so.
    Denied,
    /// One side was reset: the other is, too.
    Reset(Side),
    /// The conversation is over by its own rules (a fatal error was answered).
    Finished,
    /// A named bound was exceeded by this side.
    Limit(Side, &'static str),
}

impl Cause {
    /// The word recorded in `Closed.cause`.
    pub const fn word(self) -> &'static str {
        match self {
            Cause::Denied => "denied",
            Cause::Reset(Side::Client) => "client-reset",
            Cause::Reset(Side::Upstream) => "upstream-reset",
            Cause::Finished => "finished",
            Cause::Limit(_, word) => word,
        }
    }
}

/// Our own invariant is broken. The connection is closed with a gap.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the {protocol} conversation broke its own rule: {what}")]
pub struct Fault {
    pub protocol: &'static str,
    pub what: &'static str,
}

/// Effects in order. Owned by the pump and reused.
#[derive(Debug, Default)]
pub struct Effects {
    list: std::collections::VecDeque<Effect>,
}

/// Gives the next effect to carry out and forgets it.
impl Iterator for Effects {
    type Item = Effect;

    fn next(&mut self) -> Option<Effect> {
        self.list.pop_front()
    }
}

impl Effects {
    pub fn push(&mut self, effect: Effect) {
        self.list.push_back(effect);
    }

    pub fn note(&mut self, exchange: ExchangeId, note: Note) {
        self.push(Effect::Note(exchange, note));
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}
