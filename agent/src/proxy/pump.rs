//! The only I/O loop: moves bytes between two sockets and one conversation, for every protocol.
//!
//! Each turn has named steps: carry out effects (in order; a note is in the journal before the send behind it), flush,
//! read what may be read, and else wait for readiness, a verdict, a deadline or the end of the node.
//!
//! Back-pressure is end to end: a side is read only while the conversation wants its bytes and what waits for the other
//! side is below [`OUT_BYTES_MAX`]. A side that is not read is still watched for a reset.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::future::{Future, pending};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use weir_protocols::kind::Start;
use weir_protocols::mask::MaskPlan;
use weir_protocols::{
    Cause, Conversation, Denial, Effect, Effects, ExchangeId, Fault, Input, Instant, Kind, Note, Operation,
    Side, Verdict,
};

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
}

/// What one waiting brought.
enum Wake {
    Ready,
    /// A side that is not being read was reset.
    Lost(Side),
    Verdict(ExchangeId, Verdict),
    Deadline,
    Drained,
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
        let recorded = match self.abort_for(Ending::Broken).await {
            Ok(_) => self.note(ExchangeId::SESSION, gap).await,
            Err(_) => self.tape.note(ExchangeId::SESSION, gap).await.map_err(PumpError::from),
        };
        if let Err(error) = recorded {
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
            if self.terms.standing.durable && self.legs.iter().any(|leg| !leg.out.is_empty()) {
                self.tape.sync().await?;
            }
            self.flush()?;
            if let Some(ending) = self.ended() {
                return Ok(ending);
            }
            // A connection that always has something to read never waits: what else may have come is looked at here.
            if self.terms.drained.is_cancelled() {
                return self.abort_for(Ending::Drained).await;
            }
            if self.both_ended() {
                // Whatever the conversation still waits for can no longer come.
                self.abort_for(Ending::Drained).await?;
                return Ok(Ending::Ended(self.first_end.unwrap_or(Side::Client)));
            }
            self.tick()?;
            self.answered_holds();
            if self.verdict_inputs().await? || self.read()? {
                tokio::task::consume_budget().await;
                continue;
            }
            if !self.effects.is_empty() {
                continue;
            }
            match self.wait().await {
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
        Ok(self.conversation.handle(input, clock::now(), &mut self.effects)?)
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
                Effect::Note(exchange, note) => self.note(exchange, note).await?,
                Effect::Become(kind, pending) => self.become_kind(kind, pending)?,
                Effect::End(side) => self.legs[side.index()].end_after_out = true,
                Effect::Abort(cause) => {
                    self.ending = Some(Ending::Aborted(cause));
                    self.last_words_until =
                        Some(clock::now().after_ms(LAST_WORDS_TIMEOUT.as_millis() as u64));
                }
            }
        }
        Ok(())
    }

    async fn note(&mut self, exchange: ExchangeId, note: Note) -> Result<(), PumpError> {
        if matches!(note, Note::Asked(_)) {
            self.next_exchange = self.next_exchange.max(exchange.next());
        }
        Ok(self.tape.note(exchange, note).await?)
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
    fn flush(&mut self) -> Result<(), PumpError> {
        for side in [Side::Client, Side::Upstream] {
            let leg = &mut self.legs[side.index()];
            let Err(error) = leg.flush() else { continue };
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

    /// Step 3a: a verdict that has come: recorded, then acted on.
    async fn verdict_inputs(&mut self) -> Result<bool, PumpError> {
        let Some((exchange, verdict)) = self.verdicts.pop_front() else { return Ok(false) };
        self.tape.judged(exchange, &verdict).await?;
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

    /// Step 3b: one read per side that may be read.
    fn read(&mut self) -> Result<bool, PumpError> {
        let mut progress = false;
        for side in [Side::Client, Side::Upstream] {
            if !self.may_read(side) {
                continue;
            }
            match self.legs[side.index()].read() {
                Ok(Some(bytes)) if bytes.is_empty() && self.legs[side.index()].write_failed => {
                    self.lost(side)?;
                    progress = true;
                }
                Ok(Some(bytes)) if bytes.is_empty() => {
                    self.legs[side.index()].read_ended = true;
                    self.first_end.get_or_insert(side);
                    self.half_closed_until =
                        Some(clock::now().after_ms(HALF_CLOSED_IDLE_MAX.as_millis() as u64));
                    self.give(Input::End(side))?;
                    progress = true;
                }
                Ok(Some(bytes)) => {
                    if self.half_closed_until.is_some() {
                        self.half_closed_until =
                            Some(clock::now().after_ms(HALF_CLOSED_IDLE_MAX.as_millis() as u64));
                    }
                    self.give(Input::Data(side, bytes))?;
                    progress = true;
                }
                Ok(None) => {}
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
        self.half_closed_until.is_some_and(|until| until <= clock::now())
    }

    fn tick(&mut self) -> Result<(), PumpError> {
        if self.conversation.next_deadline().is_some_and(|deadline| deadline <= clock::now()) {
            self.give(Input::Tick)?;
        }
        Ok(())
    }

    /// Step 4: waits for whatever comes first.
    async fn wait(&mut self) -> Wake {
        let interests = [self.interest(Side::Client), self.interest(Side::Upstream)];
        let last_words = self.ending.and(self.last_words_until);
        let deadlines = [self.conversation.next_deadline(), self.half_closed_until, last_words];
        let deadline = deadlines.into_iter().flatten().min();
        let (legs, held, drained) = (&self.legs, &mut self.held, self.terms.drained);
        tokio::select! {
            wake = ready(&legs[0], Side::Client, interests[0]) => wake,
            wake = ready(&legs[1], Side::Upstream, interests[1]) => wake,
            (exchange, verdict) = Held(held) => {
                match verdict {
                    Some(verdict) => Wake::Verdict(exchange, verdict),
                    None => Wake::Verdict(exchange, unanswered()),
                }
            }
            () = until(deadline) => Wake::Deadline,
            () = drained.cancelled() => Wake::Drained,
        }
    }

    fn interest(&self, side: Side) -> Option<Interest> {
        let leg = &self.legs[side.index()];
        if leg.gone {
            return None;
        }
        let read = self.may_read(side).then_some(Interest::READABLE);
        let write = (!leg.out.is_empty()).then_some(Interest::WRITABLE);
        // A client that is not read is watched for a reset: what it asked for is withdrawn. An upstream is not: what it
        // sent before its reset is still to be read once the client has taken the rest.
        let watch = (side == Side::Client && read.is_none()).then_some(Interest::ERROR);
        [read, write, watch].into_iter().flatten().reduce(|a, b| a | b)
    }

    /// We end this session: the conversation hears that both sides are gone, so that every exchange is finished.
    async fn abort_for(&mut self, ending: Ending) -> Result<Ending, PumpError> {
        self.ending = Some(ending);
        for side in [Side::Client, Side::Upstream] {
            self.give(Input::Reset(side))?;
        }
        self.carry_out().await?;
        Ok(ending)
    }
}

async fn ready(leg: &Leg, side: Side, interest: Option<Interest>) -> Wake {
    let Some(interest) = interest else { return pending().await };
    match leg.stream.ready(interest).await {
        Ok(ready) if ready.is_error() && !interest.is_readable() => Wake::Lost(side),
        // An error of the readiness itself shows again at the next read.
        Ok(_) | Err(_) => Wake::Ready,
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep(clock::until(deadline)).await,
        None => pending().await,
    }
}

/// A hold whose judge went away without an answer.
fn unanswered() -> Verdict {
    Verdict::Deny(Denial { rule: "hold".into(), reason: "nobody answered the hold".into() })
}

/// The first of the held exchanges to be answered; its entry is removed.
struct Held<'h>(&'h mut Vec<(ExchangeId, oneshot::Receiver<Verdict>)>);

impl Future for Held<'_> {
    type Output = (ExchangeId, Option<Verdict>);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        for index in 0..self.0.len() {
            if let Poll::Ready(answer) = Pin::new(&mut self.0[index].1).poll(context) {
                let (exchange, _) = self.0.swap_remove(index);
                return Poll::Ready((exchange, answer.ok()));
            }
        }
        Poll::Pending
    }
}
