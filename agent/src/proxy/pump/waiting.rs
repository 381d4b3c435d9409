//! Step 4 of a turn: waits for whatever comes first. One poll, and nothing is set up anew for each wait: most waits are for
//! the next bytes, and end after microseconds.

use std::future::{Future, pending, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};
use weir_protocols::{ExchangeId, Instant, Side, Verdict};

use super::{Pump, unanswered};
use crate::recording::clock;

/// What one waiting brought.
pub(super) enum Wake {
    Ready,
    /// A side that is not being read was reset.
    Lost(Side),
    Verdict(ExchangeId, Verdict),
    Deadline,
    Drained,
}

impl Pump<'_> {
    pub(super) async fn wait(&mut self) -> Wake {
        // A client that is not read is watched for a reset: what it asked for is withdrawn. An upstream is not: what it
        // sent before its reset is still to be read once the client has taken the rest.
        let client = &self.legs[Side::Client.index()];
        let is_watched = !client.gone && !self.may_read(Side::Client);
        let reading = [Side::Client, Side::Upstream].map(|side| self.may_read(side));
        let last_words = self.ending.and(self.last_words_until);
        let deadlines = [self.conversation.next_deadline(), self.half_closed_until, last_words];
        let deadline = deadlines.into_iter().flatten().min();
        let Self { legs, held, timer, drained, .. } = self;
        let legs = &*legs;
        let mut is_woken = false;
        let mut reset = pin!(reset_of(is_watched.then_some(&legs[Side::Client.index()].stream)));
        poll_fn(|context| {
            for (leg, is_read) in legs.iter().zip(reading) {
                // An error of the readiness itself shows again at the next read or write.
                let is_readable = is_read && leg.stream.poll_read_ready(context).is_ready();
                let waits = !leg.gone && !leg.out.is_empty();
                if is_readable || (waits && leg.stream.poll_write_ready(context).is_ready()) {
                    return Poll::Ready(Wake::Ready);
                }
            }
            if is_watched && reset.as_mut().poll(context).is_ready() {
                return Poll::Ready(Wake::Lost(Side::Client));
            }
            for index in 0..held.len() {
                if let Poll::Ready(answer) = Pin::new(&mut held[index].1).poll(context) {
                    let (exchange, _) = held.swap_remove(index);
                    return Poll::Ready(Wake::Verdict(exchange, answer.unwrap_or_else(|_| unanswered())));
                }
            }
            if timer.poll(deadline, context).is_ready() {
                return Poll::Ready(Wake::Deadline);
            }
            drained.poll(context, std::mem::replace(&mut is_woken, true)).map(|()| Wake::Drained)
        })
        .await
    }
}

/// Ends when this socket was reset.
async fn reset_of(stream: Option<&TcpStream>) {
    match stream {
        Some(stream) if stream.ready(Interest::ERROR).await.is_ok() => {}
        _ => pending().await,
    }
}

/// Wakes at a deadline. Deadlines mostly move on before they come: the timer of an earlier one is left to run, so that moving
/// costs nothing.
#[derive(Default)]
pub(super) struct Timer {
    armed: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl Timer {
    fn poll(&mut self, deadline: Option<Instant>, context: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = deadline else { return Poll::Pending };
        if self.armed.as_ref().is_none_or(|(at, _)| *at > deadline) {
            self.arm(deadline);
        }
        while let Some((_, sleep)) = &mut self.armed {
            if sleep.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            if deadline <= clock::now() {
                self.armed = None;
                return Poll::Ready(());
            }
            self.arm(deadline);
        }
        Poll::Pending
    }

    fn arm(&mut self, at: Instant) {
        self.armed = Some((at, Box::pin(tokio::time::sleep(clock::until(at)))));
    }
}

/// The end of the node. Asking for it takes a lock that all connections share, so it is asked for once per task, and looked
/// for when the task was woken by nothing else.
pub(super) struct Drained<'a> {
    token: &'a CancellationToken,
    cancelled: Pin<Box<WaitForCancellationFuture<'a>>>,
    asked_for: Option<Waker>,
}

impl<'a> Drained<'a> {
    pub(super) fn new(token: &'a CancellationToken) -> Self {
        Self { token, cancelled: Box::pin(token.cancelled()), asked_for: None }
    }

    fn poll(&mut self, context: &mut Context<'_>, is_woken: bool) -> Poll<()> {
        if !self.asked_for.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            self.asked_for = Some(context.waker().clone());
            return self.cancelled.as_mut().poll(context);
        }
        if is_woken && self.token.is_cancelled() { Poll::Ready(()) } else { Poll::Pending }
    }
}
