//! The only I/O loop: moves bytes between two sockets and one conversation, for every protocol.
//!
//! Each turn has named steps: carry out effects (in order; a note is in the journal before the send behind it), flush,
//! read what may be read, and else wait for readiness, a verdict, a deadline or the end of the node.
//!
//! Back-pressure is end to end: a side is read only while the conversation wants its bytes and what waits for the other
//! side is below [`OUT_BYTES_MAX`]. A side that is not read is still watched for a reset.

#[cfg(test)]
mod tests;

mod waiting;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use weir_protocols::kind::Start;
use weir_protocols::mask::MaskPlan;
use weir_protocols::{
    Cause, Conversation, Denial, Effect, Effects, ExchangeId, Fault, Input, Instant, Kind, Note, Operation,
    Side, Verdict,
};

use self::waiting::{Drained, Timer, Wake};
use super::leg::Leg;
use super::tape::{Tape, TapeError};
use super::unsent::unsent_bytes;
use crate::policy::judge::Standing;
use crate::policy::{Judge, Judgement};
use crate::recording::clock;

/// Most bytes waiting to be written to one side; above it the other side is not read.
const OUT_BYTES_MAX: usize = 256 * 1024;
/// After one side has ended, the other may be silent this long before both are closed.
const HALF_CLOSED_IDLE_MAX: Duration = Duration::from_secs(15 * 60);
/// After the end of a connection is decided, how long what the client is still to be told may take to reach it.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a socket is asked whether its peer has it all.
const UNSENT_INTERVAL: Duration = Duration::from_millis(5);

/// How a pumped connection came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Both sides had ended and all was delivered; which ended first.
    Ended(Side),
    /// A conversation closed it, or a side was reset.
    Aborted(Cause),
    /// The node drains and this session did not end in time.
    Drained,
    /// One side had ended and the other stayed silent for too long.
    Idle,
    /// A failure of ours.
    Broken,
}

impl Ending {
    /// The word recorded in `Closed.cause`.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Ending::Ended(Side::Client) => "client-end",
            Ending::Ended(Side::Upstream) => "upstream-end",
            Ending::Aborted(cause) => cause.word(),
            Ending::Drained => "drained",
            Ending::Idle => "half-closed-idle",
            Ending::Broken => "agent-error",
        }
    }

    /// What is queued for the client is still to reach it: a fatal error that we answered, or what an upstream said before
    /// it was gone.
    fn has_last_words(self) -> bool {
        matches!(self, Ending::Aborted(Cause::Finished | Cause::Reset(Side::Upstream)))
    }

    fn resets(self) -> bool {
        !matches!(self, Ending::Ended(_) | Ending::Aborted(Cause::Finished))
    }
}

/// Our own failures: the connection is closed with a gap.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PumpError {
    #[error(transparent)]
    Fault(#[from] Fault),
    #[error("the session could not be recorded")]
    Record(#[from] TapeError),
}

/// What holds for one connection as long as it lives.
#[derive(Clone, Copy)]
pub(crate) struct Terms<'a> {
    pub(crate) judge: &'a Judge,
    pub(crate) standing: &'a Standing,
    pub(crate) plan: &'a MaskPlan,
    /// Cancelled when what still runs is to end now.
    pub(crate) drained: &'a CancellationToken,
}

/// One connection being pumped.
pub(crate) struct Pump<'a> {
    legs: [Leg; 2],
    conversation: Box<dyn Conversation>,
    effects: Effects,
    tape: &'a mut Tape,
    terms: Terms<'a>,
    next_exchange: ExchangeId,
    verdicts: VecDeque<(ExchangeId, Verdict)>,
    held: Vec<(ExchangeId, oneshot::Receiver<Verdict>)>,
    first_end: Option<Side>,
    ending: Option<Ending>,
    /// When an ending with last words happens all the same.
    last_words_until: Option<Instant>,
    half_closed_until: Option<Instant>,
    /// When what is being handled happened.
    now: Instant,
    timer: Timer,
    drained: Drained<'a>,
}

impl<'a> Pump<'a> {
    pub(crate) fn new(
        client: TcpStream,
        upstream: TcpStream,
        conversation: Box<dyn Conversation>,
        tape: &'a mut Tape,
        terms: Terms<'a>,
    ) -> Self {
        Self {
            legs: [Leg::new(client), Leg::new(upstream)],
            conversation,
            effects: Effects::default(),
            tape,
            terms,
            next_exchange: ExchangeId::FIRST,
            verdicts: VecDeque::new(),
            held: Vec::new(),
            first_end: None,
            ending: None,
            last_words_until: None,
            half_closed_until: None,
            now: clock::now(),
            timer: Timer::default(),
            drained: Drained::new(terms.drained),
        }
    }

    /// Runs to the end of the connection. Both sockets are closed when it returns: by FIN after an orderly end, else by RST.
    pub(crate) async fn run(mut self) -> Result<Ending, PumpError> {
        let result = self.turns().await;
        match &result {
            Ok(ending) if ending.has_last_words() => self.last_words_sent().await,
            Ok(_) => {}
            Err(error) => self.broken(error).await,
        }
        if result.as_ref().map_or(true, |ending| ending.resets()) {
            self.legs.iter().for_each(Leg::reset_on_close);
        }
        result
    }

    /// Our own failure: the conversation still finishes its exchanges and a gap says what happened, as far as that can be
    /// recorded at all.
    async fn broken(&mut self, error: &PumpError) {
        tracing::warn!(%error, "a connection is given up");
        let gap = Note::Gap { reason: "agent-error", bytes: 0 };
        // What it says of a further failure is said by the gap.
        let _also_broken = self.abort_for(Ending::Broken).await;
        self.note(ExchangeId::SESSION, gap);
        if let Err(error) = self.tape.append().await {
            tracing::error!(%error, "nor can the gap be recorded");
        }
    }

    /// A reset throws away what the kernel has not sent: the client's kernel is given time to take it first.
    async fn last_words_sent(&mut self) {
        let client = &self.legs[Side::Client.index()];
        let until = clock::now().after_ms(LAST_WORDS_TIMEOUT.as_millis() as u64);
        while !client.gone
            && unsent_bytes(&client.stream).is_some_and(|bytes| bytes > 0)
            && clock::now() < until
        {
            tokio::time::sleep(UNSENT_INTERVAL).await;
        }
    }

    async fn turns(&mut self) -> Result<Ending, PumpError> {
        loop {
            self.carry_out().await?;
            // Before anything is sent: with its verdict there, a request leaves in one write.
            if self.verdict_input()? {
                continue;
            }
            self.tape.append().await?;
            if self.terms.standing.durable && self.legs.iter().any(|leg| !leg.out.is_empty()) {
                self.tape.sync().await?;
            }
            poll_fn(|context| Poll::Ready(self.flush(context))).await?;
            if let Some(ending) = self.ended() {
                return Ok(ending);
            }
            if self.both_ended() {
                // Whatever the conversation still waits for can no longer come.
                self.abort_for(Ending::Drained).await?;
                return Ok(Ending::Ended(self.first_end.unwrap_or(Side::Client)));
            }
            self.now = clock::now();
            self.tick()?;
            self.answered_holds();
            // The runtime's budget makes also a connection wait, now and then, that always has something to read.
            if poll_fn(|context| Poll::Ready(self.read(context))).await? {
                continue;
            }
            if !self.effects.is_empty() || !self.verdicts.is_empty() {
                continue;
            }
            let wake = self.wait().await;
            self.now = clock::now();
            match wake {
                Wake::Ready => {}
                Wake::Lost(side) => self.lost(side)?,
                Wake::Verdict(exchange, verdict) => self.verdicts.push_back((exchange, verdict)),
                Wake::Deadline if self.half_closed_for_too_long() => {
                    return self.abort_for(Ending::Idle).await;
                }
                Wake::Deadline => self.tick()?,
                Wake::Drained => return self.abort_for(Ending::Drained).await,
            }
        }
    }

    /// Gives one input to the conversation.
    fn give(&mut self, input: Input) -> Result<(), PumpError> {
        Ok(self.conversation.handle(input, self.now, &mut self.effects)?)
    }

    /// Step 1: effects, in the order given.
    async fn carry_out(&mut self) -> Result<(), PumpError> {
        while let Some(effect) = self.effects.next() {
            if self.ending.is_some() && !matches!(effect, Effect::Note(..)) {
                continue;
            }
            match effect {
                Effect::Upstream(cleared) => {
                    let taken = self.legs[Side::Upstream.index()].queue(cleared.into_bytes());
                    self.tape.forwarded(Side::Client, taken);
                }
                Effect::Client(bytes) => {
                    let taken = self.legs[Side::Client.index()].queue(bytes);
                    self.tape.forwarded(Side::Upstream, taken);
                }
                Effect::Ask(exchange, operation) => self.ask(exchange, &operation),
                Effect::Withdraw(exchange) => {
                    self.held.retain(|(held, _)| *held != exchange);
                    self.verdicts.retain(|(decided, _)| *decided != exchange);
                }
                Effect::Note(exchange, note) => {
                    self.note(exchange, note);
                    if self.tape.is_full() {
                        self.tape.append().await?;
                    }
                }
                Effect::Become(kind, pending) => self.become_kind(kind, pending)?,
                Effect::End(side) => self.legs[side.index()].end_after_out = true,
                Effect::Abort(cause) => {
                    self.ending = Some(Ending::Aborted(cause));
                    self.last_words_until = Some(self.now.after_ms(LAST_WORDS_TIMEOUT.as_millis() as u64));
                }
            }
        }
        Ok(())
    }

    fn note(&mut self, exchange: ExchangeId, note: Note) {
        if matches!(note, Note::Asked(_)) {
            self.next_exchange = self.next_exchange.max(exchange.next());
        }
        self.tape.note(exchange, note, self.now);
    }

    fn ask(&mut self, exchange: ExchangeId, operation: &Operation) {
        self.next_exchange = self.next_exchange.max(exchange.next());
        match self.terms.judge.decide(self.terms.standing, exchange, operation) {
            Judgement::Now(verdict) => self.verdicts.push_back((exchange, verdict)),
            Judgement::Held(later) => self.held.push((exchange, later)),
        }
    }

    /// Another kind takes over, with the bytes that the old one had not consumed and the ends it had seen.
    fn become_kind(&mut self, kind: Kind, pending: [Bytes; 2]) -> Result<(), PumpError> {
        self.held.clear();
        self.verdicts.clear();
        self.conversation =
            kind.start(Start { first_exchange: self.next_exchange, plan: self.terms.plan.clone() });
        for (side, bytes) in [Side::Client, Side::Upstream].into_iter().zip(pending) {
            if !bytes.is_empty() {
                self.give(Input::Data(side, bytes))?;
            }
        }
        for side in [Side::Client, Side::Upstream] {
            let leg = &self.legs[side.index()];
            if leg.gone {
                self.give(Input::Reset(side))?;
            } else if leg.read_ended {
                self.give(Input::End(side))?;
            }
        }
        Ok(())
    }

    /// Step 2: what waits is written, as far as the sockets take it.
    fn flush(&mut self, context: &mut Context<'_>) -> Result<(), PumpError> {
        for side in [Side::Client, Side::Upstream] {
            let leg = &mut self.legs[side.index()];
            let Err(error) = leg.flush(context) else { continue };
            tracing::debug!(?side, %error, "write failed");
            if side == Side::Client || leg.read_ended {
                self.lost(side)?;
            } else {
                // What the upstream said before it closed (often the reason) is still there to be read.
                leg.stop_writing();
            }
        }
        Ok(())
    }

    /// A side is gone: told to the conversation once.
    fn lost(&mut self, side: Side) -> Result<(), PumpError> {
        let leg = &mut self.legs[side.index()];
        if leg.gone {
            return Ok(());
        }
        leg.lose();
        self.first_end.get_or_insert(side);
        self.give(Input::Reset(side))
    }

    fn ended(&mut self) -> Option<Ending> {
        if !self.effects.is_empty() {
            return None;
        }
        if let Some(ending) = self.ending {
            let client = &self.legs[Side::Client.index()];
            let said = client.out.is_empty() || client.gone || self.last_words_until <= Some(clock::now());
            return (said || !ending.has_last_words()).then_some(ending);
        }
        let over = self.legs.iter().all(|leg| leg.read_ended && (leg.write_ended || leg.gone));
        over.then(|| Ending::Ended(self.first_end.unwrap_or(Side::Client)))
    }

    /// Nothing more can come from anywhere, and all that was to be sent is.
    fn both_ended(&self) -> bool {
        self.ending.is_none()
            && self.legs.iter().all(|leg| leg.read_ended && leg.out.is_empty())
            && self.effects.is_empty()
            && self.verdicts.is_empty()
            && self.held.is_empty()
    }

    /// Holds that were answered while there was no time to wait for them.
    fn answered_holds(&mut self) {
        let verdicts = &mut self.verdicts;
        self.held.retain_mut(|(exchange, answer)| match answer.try_recv() {
            Ok(verdict) => {
                verdicts.push_back((*exchange, verdict));
                false
            }
            Err(oneshot::error::TryRecvError::Empty) => true,
            Err(oneshot::error::TryRecvError::Closed) => {
                verdicts.push_back((*exchange, unanswered()));
                false
            }
        });
    }

    /// A verdict that has come: recorded, then acted on.
    fn verdict_input(&mut self) -> Result<bool, PumpError> {
        let Some((exchange, verdict)) = self.verdicts.pop_front() else { return Ok(false) };
        self.tape.verdict(exchange, &verdict, self.now);
        self.give(Input::Verdict(exchange, verdict))?;
        Ok(true)
    }

    fn may_read(&self, side: Side) -> bool {
        let leg = &self.legs[side.index()];
        !leg.read_ended
            && self.ending.is_none()
            && self.legs[side.other().index()].out_bytes < OUT_BYTES_MAX
            && self.conversation.wants_read(side)
    }

    /// Step 3: one read per side that may be read.
    fn read(&mut self, context: &mut Context<'_>) -> Result<bool, PumpError> {
        let mut progress = false;
        for side in [Side::Client, Side::Upstream] {
            if !self.may_read(side) {
                continue;
            }
            let Poll::Ready(read) = self.legs[side.index()].read(context) else { continue };
            match read {
                Ok(bytes) if bytes.is_empty() && self.legs[side.index()].write_failed => {
                    self.lost(side)?;
                    progress = true;
                }
                Ok(bytes) if bytes.is_empty() => {
                    self.legs[side.index()].read_ended = true;
                    self.first_end.get_or_insert(side);
                    self.half_closed_until = Some(self.now.after_ms(HALF_CLOSED_IDLE_MAX.as_millis() as u64));
                    self.give(Input::End(side))?;
                    progress = true;
                }
                Ok(bytes) => {
                    if self.half_closed_until.is_some() {
                        self.half_closed_until =
                            Some(self.now.after_ms(HALF_CLOSED_IDLE_MAX.as_millis() as u64));
                    }
                    self.give(Input::Data(side, bytes))?;
                    progress = true;
                }
                Err(error) => {
                    tracing::debug!(?side, %error, "read failed");
                    self.lost(side)?;
                    progress = true;
                }
            }
        }
        Ok(progress)
    }

    fn half_closed_for_too_long(&self) -> bool {
        self.half_closed_until.is_some_and(|until| until <= self.now)
    }

    fn tick(&mut self) -> Result<(), PumpError> {
        if self.conversation.next_deadline().is_some_and(|deadline| deadline <= self.now) {
            self.give(Input::Tick)?;
        }
        Ok(())
    }

    /// We end this session: the conversation hears that both sides are gone, so that every exchange is finished.
    async fn abort_for(&mut self, ending: Ending) -> Result<Ending, PumpError> {
        self.ending = Some(ending);
        for side in [Side::Client, Side::Upstream] {
            self.give(Input::Reset(side))?;
        }
        self.carry_out().await?;
        self.tape.append().await?;
        Ok(ending)
    }
}

/// A hold whose judge went away without an answer.
fn unanswered() -> Verdict {
    Verdict::Deny(Denial { rule: "hold".into(), reason: "nobody answered the hold".into() })
}
