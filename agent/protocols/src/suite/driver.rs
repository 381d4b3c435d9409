//! The one legal loop around a conversation, with scripted peers instead of sockets.

use std::collections::VecDeque;

use bytes::Bytes;

use super::judge::Judge;
use super::outcome::Outcome;
use crate::kind::Start;
use crate::mask::MaskPlan;
use crate::note::Note;
use crate::seam::{Conversation, Effect, Effects, ExchangeId, Input, Instant, Side};
use crate::verdict::Verdict;

/// Something that a peer does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Data(Side, Bytes),
    End(Side),
    Reset(Side),
}

/// A capture as it lies in a file: side, length in four bytes, bytes; again and again.
pub fn captured(mut file: &[u8]) -> Vec<Step> {
    let mut steps = Vec::new();
    while let [side, a, b, c, d, rest @ ..] = file {
        let (bytes, after) = rest.split_at(u32::from_be_bytes([*a, *b, *c, *d]) as usize);
        let side = if *side == 0 { Side::Client } else { Side::Upstream };
        steps.push(Step::Data(side, Bytes::copy_from_slice(bytes)));
        file = after;
    }
    steps
}

/// The far end of a play.
pub trait Server {
    /// Takes what was forwarded and answers.
    fn receive(&mut self, bytes: &[u8]) -> Vec<u8>;
}

/// How bytes are cut into reads.
#[derive(Clone, Debug)]
pub struct Chunks {
    sizes: Vec<usize>,
    at: usize,
}

impl Chunks {
    pub fn whole() -> Self {
        Self::of(usize::MAX)
    }

    pub fn of(bytes: usize) -> Self {
        Self::cycle(vec![bytes])
    }

    pub fn cycle(sizes: Vec<usize>) -> Self {
        Self { sizes, at: 0 }
    }

    pub fn largest(&self) -> usize {
        self.sizes.iter().copied().max().unwrap_or(usize::MAX)
    }

    fn next(&mut self) -> usize {
        let size = self.sizes.get(self.at % self.sizes.len().max(1)).copied().unwrap_or(usize::MAX);
        self.at += 1;
        size.max(1)
    }
}

/// Drives one session.
pub struct Driver {
    conversation: Box<dyn Conversation>,
    judge: Judge,
    chunks: Chunks,
    /// Read from a peer, not taken yet.
    unread: [VecDeque<Bytes>; 2],
    ended: [bool; 2],
    to_server: Vec<u8>,
    taken_from_client: usize,
    next_exchange: ExchangeId,
    now: Instant,
    over: bool,
    outcome: Outcome,
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("outcome", &self.outcome).finish_non_exhaustive()
    }
}

impl Driver {
    pub fn new(conversation: Box<dyn Conversation>, judge: Judge, chunks: Chunks) -> Self {
        Self {
            conversation,
            judge,
            chunks,
            unread: Default::default(),
            ended: [false; 2],
            to_server: Vec::new(),
            taken_from_client: 0,
            next_exchange: ExchangeId::FIRST,
            now: Instant(1),
            over: false,
            outcome: Outcome::default(),
        }
    }

    /// A capture: both directions in order.
    pub fn replay(mut self, steps: &[Step]) -> Outcome {
        self.steps(steps);
        self.outcome()
    }

    /// A client, a server, and whatever they say to each other.
    pub fn play(mut self, client: &[Bytes], server: Box<dyn Server>) -> Outcome {
        self.serve(client, server);
        self.steps(&[Step::End(Side::Client), Step::End(Side::Upstream)]);
        self.outcome()
    }

    pub fn outcome(mut self) -> Outcome {
        self.outcome.unread = [0, 1].map(|side| self.unread[side].iter().map(Bytes::len).sum());
        self.outcome
    }

    pub fn steps(&mut self, steps: &[Step]) {
        for step in steps {
            match step {
                Step::Data(side, bytes) => self.arrive(*side, bytes),
                Step::End(side) => {
                    // A FIN is read like data, after all data.
                    self.unread[side.index()].push_back(Bytes::new());
                }
                Step::Reset(side) => {
                    self.unread = Default::default();
                    self.input(Input::Reset(*side));
                }
            }
            self.run(|_, _| {});
        }
    }

    pub fn serve(&mut self, client: &[Bytes], mut server: Box<dyn Server>) {
        for bytes in client {
            self.arrive(Side::Client, bytes);
            self.run(|driver, forwarded| {
                let reply = server.receive(&forwarded);
                driver.outcome.server_said.extend_from_slice(&reply);
                driver.arrive(Side::Upstream, &Bytes::from(reply));
            });
        }
    }

    fn arrive(&mut self, side: Side, bytes: &Bytes) {
        let mut rest = bytes.clone();
        while !rest.is_empty() {
            let size = self.chunks.next().min(rest.len());
            self.unread[side.index()].push_back(rest.split_to(size));
        }
    }

    /// Until nothing moves any more.
    fn run(&mut self, mut forwarded: impl FnMut(&mut Self, Vec<u8>)) {
        loop {
            let mut moved = self.verdicts(false);
            if !self.to_server.is_empty() {
                let bytes = std::mem::take(&mut self.to_server);
                forwarded(self, bytes);
            }
            for side in [Side::Upstream, Side::Client] {
                if self.over || !self.conversation.wants_read(side) {
                    continue;
                }
                if let Some(bytes) = self.unread[side.index()].pop_front() {
                    if bytes.is_empty() {
                        self.ended[side.index()] = true;
                        self.input(Input::End(side));
                        moved = true;
                        break;
                    }
                    if side == Side::Client {
                        self.taken_from_client += bytes.len();
                    }
                    self.input(Input::Data(side, bytes));
                    moved = true;
                    break;
                }
            }
            if !moved && self.to_server.is_empty() && !self.verdicts(true) {
                break;
            }
        }
    }

    fn verdicts(&mut self, idle: bool) -> bool {
        let mut moved = false;
        while let Some((exchange, verdict)) = self.judge.verdict(idle) {
            if self.over {
                continue;
            }
            if matches!(verdict, Verdict::Deny(_)) {
                self.outcome.denials += 1;
            }
            self.input(Input::Verdict(exchange, verdict));
            moved = true;
            if idle {
                break;
            }
        }
        moved
    }

    fn input(&mut self, input: Input) {
        if self.over {
            return;
        }
        self.now.0 += 1;
        let mut effects = Effects::default();
        let result = self.conversation.handle(input, self.now, &mut effects);
        assert_eq!(result, Ok(()), "a conversation broke its own rule");
        while let Some(effect) = effects.next() {
            self.outcome.effects += 1;
            if self.carry_out(effect) {
                assert!(effects.is_empty(), "effects after the end");
                break;
            }
        }
        if self.outcome.denials == 0 {
            let held = self.taken_from_client.saturating_sub(self.outcome.upstream.len());
            self.outcome.held_max = self.outcome.held_max.max(held);
        }
    }

    /// Says whether the conversation is over.
    fn carry_out(&mut self, effect: Effect) -> bool {
        match effect {
            Effect::Upstream(cleared) => {
                let bytes = cleared.into_bytes();
                self.outcome.upstream.extend_from_slice(&bytes);
                self.to_server.extend_from_slice(&bytes);
            }
            Effect::Client(bytes) => self.outcome.client.extend_from_slice(&bytes),
            Effect::Ask(exchange, operation) => self.judge.ask(exchange, &operation),
            Effect::Withdraw(exchange) => {
                self.judge.withdraw(exchange);
                self.outcome.withdrawn.push(exchange);
            }
            Effect::Note(exchange, note) => {
                if matches!(note, Note::Asked(_)) {
                    self.next_exchange = self.next_exchange.max(exchange.next());
                }
                self.outcome.note(exchange, note);
            }
            Effect::End(side) => self.outcome.ended[side.index()] = true,
            Effect::Abort(cause) => {
                self.outcome.aborted = Some(cause);
                self.over = true;
                return true;
            }
            Effect::Become(kind, pending) => {
                self.outcome.kinds.push(kind.word());
                let start = Start { first_exchange: self.next_exchange, plan: MaskPlan::standard() };
                self.conversation = kind.start(start);
                for (side, bytes) in [Side::Client, Side::Upstream].into_iter().zip(pending) {
                    if !bytes.is_empty() {
                        self.input(Input::Data(side, bytes));
                    }
                }
                for side in [Side::Client, Side::Upstream] {
                    if self.ended[side.index()] {
                        self.input(Input::End(side));
                    }
                }
                return true;
            }
        }
        false
    }
}
