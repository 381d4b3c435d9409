//! To the server: requests leave in their order, each under its own grant. What is refused is answered in its turn.

use super::super::answer;
use super::open::Standing;
use super::{Http1, Requests};
use crate::note::Outcome;
use crate::seam::{Effect, Effects, Instant, Side};

impl Http1 {
    /// As far as verdicts go. Says whether anything moved.
    pub(super) fn release(&mut self, now: Instant, out: &mut Effects) -> bool {
        let mut moved = false;
        while let Some(open) = self.open.get_mut(self.sending) {
            match &open.standing {
                Standing::Asked => break,
                Standing::Granted(grant) => {
                    for bytes in open.held.drain(..) {
                        self.held -= bytes.len();
                        out.push(Effect::Upstream(grant.clear(bytes)));
                        open.head_sent = true;
                        moved = true;
                    }
                }
                Standing::Denied(_) | Standing::Malformed(_) => {
                    self.held -= open.held.iter().map(bytes::Bytes::len).sum::<usize>();
                    open.held.clear();
                    if open.closes_if_refused {
                        open.is_whole = true;
                        self.sending += 1;
                        self.drop_behind(now, out);
                        moved = true;
                        break;
                    }
                }
            }
            if !open.is_whole {
                break;
            }
            self.sending += 1;
            moved = true;
        }
        moved | self.retire(now, out)
    }

    /// Nothing follows a refusal that closes the connection: what came behind it is forgotten.
    fn drop_behind(&mut self, now: Instant, out: &mut Effects) {
        self.requests = Requests::Closed;
        self.head_since[Side::Client.index()] = None;
        for open in self.open.drain(self.sending..) {
            self.held -= open.held.iter().map(bytes::Bytes::len).sum::<usize>();
            match open.standing {
                Standing::Asked => {
                    out.push(Effect::Withdraw(open.exchange.id));
                    open.exchange.finish(Outcome::Aborted, now, out);
                }
                Standing::Granted(_) => open.exchange.finish(Outcome::Aborted, now, out),
                Standing::Denied(_) | Standing::Malformed(_) => {
                    open.exchange.finish(Outcome::Denied, now, out);
                }
            }
        }
    }

    /// Ends exchanges that have their answer and whose request has left.
    pub(super) fn retire(&mut self, now: Instant, out: &mut Effects) -> bool {
        let mut moved = false;
        while self.sending > 0 && self.open.front().is_some_and(|open| open.is_answered) {
            let Some(open) = self.open.pop_front() else { break };
            self.sending -= 1;
            let outcome = if open.is_refused() { Outcome::Denied } else { open.exchange.outcome() };
            open.exchange.finish(outcome, now, out);
            if matches!(self.requests, Requests::Unknown) && self.open.is_empty() {
                // The switch did not come about.
                self.requests = if open.keeps_alive { Requests::Head } else { Requests::Closed };
            }
            moved = true;
        }
        moved
    }

    /// Our own answers, where it is their turn. Says whether anything moved.
    pub(super) fn answer_in_turn(&mut self, now: Instant, out: &mut Effects) -> bool {
        let Some(open) = self.open.front_mut() else { return false };
        if !open.is_refused() {
            return false;
        }
        if open.is_answered {
            // Its body is still being dropped.
            return false;
        }
        let closes = open.closes_if_refused;
        let answer = match &open.standing {
            Standing::Denied(denial) => answer::denied(denial, open.asked.is_head, closes),
            Standing::Malformed(fault) => answer::malformed(*fault, open.asked.is_head),
            Standing::Asked | Standing::Granted(_) => return false,
        };
        open.is_answered = true;
        self.send_to_client(out);
        out.push(Effect::Client(answer));
        self.retire(now, out);
        if closes {
            self.linger(now, out);
        }
        true
    }
}
