//! A connection that nobody reads: one exchange from its first byte to its last.
//!
//! Nothing passes, in either direction, before policy has allowed it. Then both directions pass as they come, uncopied.
//! What is not ciphertext is recorded, masked; of ciphertext only the byte counts are.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::kind::Start;
use crate::mask::{MaskPlan, Masked, StreamMask, Syntax};
use crate::note::{Coverage, Facts, Finished, Note, OperationRecord, Outcome};
use crate::operation::{Opacity, Operation};
use crate::seam::{Cause, Conversation, Effect, Effects, ExchangeId, Fault, Input, Instant, Side};
use crate::verdict::{Denial, Grant, Permit, Verdict};

/// Most bytes of one side that wait for the verdict, bytes, plus the read that crosses it; then that side is not read.
pub const HELD_BYTES_MAX: usize = 256 * 1024;

/// The conversation. Every change of its stage is a method that takes the old stage and leaves the new one.
#[derive(Debug)]
pub struct Opaque {
    reason: Opacity,
    exchange: ExchangeId,
    plan: MaskPlan,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Nothing has happened yet.
    Quiet,
    /// Policy was asked; what comes meanwhile waits.
    Asked(Waiting),
    /// Bytes pass.
    Open(Box<Passing>),
    /// Finished is written; whatever still comes is ignored.
    Over,
}

impl Opaque {
    pub fn new(reason: Opacity, start: Start) -> Self {
        Self { reason, exchange: start.first_exchange, plan: start.plan, stage: Stage::Quiet }
    }

    /// The first input of any kind asks; it then waits like all that follow.
    fn ask(&mut self, now: Instant, out: &mut Effects) {
        let facts = Facts {
            protocol: "opaque",
            coverage: Some(Coverage::MetadataOnly(self.reason.word())),
            ..Facts::default()
        };
        out.note(ExchangeId::SESSION, Note::Facts(facts));
        out.note(self.exchange, Note::Asked(self.record()));
        out.push(Effect::Ask(self.exchange, Operation::Opaque { reason: self.reason }));
        self.stage = Stage::Asked(Waiting { asked_at: now, held: VecDeque::new(), held_bytes: [0; 2] });
    }

    fn allow(
        &mut self,
        permit: Permit,
        waiting: Waiting,
        now: Instant,
        out: &mut Effects,
    ) -> Result<(), Fault> {
        let grant = permit.redeem(self.exchange).ok_or(fault("the permit is another exchange's"))?;
        let mut passing = Passing::new(self.exchange, grant, waiting.asked_at, self.masks());
        for input in waiting.held {
            passing.pass(input, now, out);
        }
        self.stage = Stage::Open(Box::new(passing));
        self.finish_if_both_ended(now, out);
        Ok(())
    }

    fn deny(&mut self, denial: Denial, waiting: &Waiting, now: Instant, out: &mut Effects) {
        out.note(self.exchange, self.unsent(waiting, Outcome::Denied, denial.rule, now));
        out.push(Effect::Abort(Cause::Denied));
    }

    /// A side is gone while policy decides: nobody needs the verdict any more.
    fn withdraw(&mut self, side: Side, waiting: &Waiting, now: Instant, out: &mut Effects) {
        let outcome = match side {
            Side::Client => Outcome::Withdrawn,
            Side::Upstream => Outcome::Aborted,
        };
        out.push(Effect::Withdraw(self.exchange));
        out.note(self.exchange, self.unsent(waiting, outcome, Arc::from(""), now));
        out.push(Effect::Abort(Cause::Reset(side)));
    }

    fn finish_if_both_ended(&mut self, now: Instant, out: &mut Effects) {
        let Stage::Open(passing) = &mut self.stage else { return };
        if passing.ended == [true, true] {
            let finished = passing.finished(Outcome::Ok, now);
            self.finish(finished, out);
        }
    }

    fn finish(&mut self, mut finished: Finished, out: &mut Effects) {
        finished.operation = self.record();
        out.note(self.exchange, Note::Finished(Box::new(finished)));
        self.stage = Stage::Over;
    }

    fn record(&self) -> OperationRecord {
        OperationRecord { kind: "opaque", verb: self.reason.word(), ..OperationRecord::default() }
    }

    /// One per direction. Ciphertext tells nobody anything, and what is compressed or scrambled cannot be masked: not recorded.
    fn masks(&self) -> Option<[StreamMask; 2]> {
        match self.reason {
            Opacity::Tls | Opacity::Gss | Opacity::Http2 | Opacity::WebSocket => None,
            Opacity::Unrecognized | Opacity::Unparsed | Opacity::Streaming => {
                Some([self.plan.stream(Syntax::Bytes), self.plan.stream(Syntax::Bytes)])
            }
        }
    }

    fn unsent(&self, waiting: &Waiting, outcome: Outcome, rule: Arc<str>, now: Instant) -> Note {
        let finished = Finished { operation: self.record(), ..empty(outcome, waiting.asked_at, now, rule) };
        Note::Finished(Box::new(finished))
    }
}

impl Conversation for Opaque {
    fn handle(&mut self, input: Input, now: Instant, out: &mut Effects) -> Result<(), Fault> {
        if matches!(self.stage, Stage::Quiet) && matches!(input, Input::Data(..) | Input::End(_)) {
            self.ask(now, out);
        }
        match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Quiet => match input {
                Input::Reset(side) => out.push(Effect::Abort(Cause::Reset(side))),
                Input::Verdict(..) => return Err(fault("a verdict came, and nothing was asked")),
                _ => self.stage = Stage::Quiet,
            },
            Stage::Asked(mut waiting) => match input {
                Input::Verdict(exchange, _) if exchange != self.exchange => {
                    return Err(fault("the verdict is another exchange's"));
                }
                Input::Verdict(_, Verdict::Allow(permit)) => self.allow(permit, waiting, now, out)?,
                Input::Verdict(_, Verdict::Deny(denial)) => self.deny(denial, &waiting, now, out),
                Input::Reset(side) => self.withdraw(side, &waiting, now, out),
                Input::Data(..) | Input::End(_) | Input::Tick => {
                    waiting.hold(input);
                    self.stage = Stage::Asked(waiting);
                }
            },
            Stage::Open(mut passing) => match input {
                Input::Reset(side) => {
                    passing.close_records(out);
                    let finished = passing.finished(Outcome::Aborted, now);
                    self.finish(finished, out);
                    out.push(Effect::Abort(Cause::Reset(side)));
                }
                Input::Verdict(..) => return Err(fault("a second verdict came")),
                input => {
                    passing.pass(input, now, out);
                    self.stage = Stage::Open(passing);
                    self.finish_if_both_ended(now, out);
                }
            },
            Stage::Over => {}
        }
        Ok(())
    }

    fn wants_read(&self, side: Side) -> bool {
        match &self.stage {
            Stage::Quiet | Stage::Open(_) => true,
            Stage::Asked(waiting) => waiting.held_bytes[side.index()] < HELD_BYTES_MAX,
            Stage::Over => false,
        }
    }
}

/// What came before the verdict, in the order it came.
#[derive(Debug)]
struct Waiting {
    asked_at: Instant,
    held: VecDeque<Input>,
    held_bytes: [usize; 2],
}

impl Waiting {
    fn hold(&mut self, input: Input) {
        match &input {
            Input::Data(side, bytes) => self.held_bytes[side.index()] += bytes.len(),
            Input::End(_) => {}
            Input::Tick | Input::Reset(_) | Input::Verdict(..) => return,
        }
        self.held.push_back(input);
    }
}

/// An allowed connection.
#[derive(Debug)]
struct Passing {
    exchange: ExchangeId,
    grant: Grant,
    asked_at: Instant,
    first_reply_at: Option<Instant>,
    masks: Option<[StreamMask; 2]>,
    passed_bytes: [u64; 2],
    ended: [bool; 2],
}

impl Passing {
    fn new(exchange: ExchangeId, grant: Grant, asked_at: Instant, masks: Option<[StreamMask; 2]>) -> Self {
        let (passed_bytes, ended) = ([0; 2], [false; 2]);
        Self { exchange, grant, asked_at, first_reply_at: None, masks, passed_bytes, ended }
    }

    fn pass(&mut self, input: Input, now: Instant, out: &mut Effects) {
        match input {
            Input::Data(side, bytes) => {
                self.passed_bytes[side.index()] += bytes.len() as u64;
                if side == Side::Upstream {
                    self.first_reply_at.get_or_insert(now);
                }
                if let Some(masks) = &mut self.masks {
                    note_data(self.exchange, side, masks[side.index()].push(bytes.clone()), out);
                }
                out.push(match side {
                    Side::Client => Effect::Upstream(self.grant.clear(bytes)),
                    Side::Upstream => Effect::Client(bytes),
                });
            }
            Input::End(side) if !self.ended[side.index()] => {
                self.ended[side.index()] = true;
                self.close_record(side, out);
                out.push(Effect::End(side.other()));
            }
            Input::End(_) | Input::Tick | Input::Reset(_) | Input::Verdict(..) => {}
        }
    }

    /// What masking still held of both directions.
    fn close_records(&mut self, out: &mut Effects) {
        self.close_record(Side::Client, out);
        self.close_record(Side::Upstream, out);
    }

    fn close_record(&mut self, side: Side, out: &mut Effects) {
        if let Some(masks) = &mut self.masks {
            note_data(self.exchange, side, masks[side.index()].finish(), out);
        }
    }

    fn finished(&self, outcome: Outcome, now: Instant) -> Finished {
        Finished {
            first_reply_at: self.first_reply_at,
            request_bytes: self.passed_bytes[Side::Client.index()],
            response_bytes: self.passed_bytes[Side::Upstream.index()],
            ..empty(outcome, self.asked_at, now, self.grant.rule().clone())
        }
    }
}

fn note_data(exchange: ExchangeId, side: Side, masked: Masked, out: &mut Effects) {
    if !masked.is_empty() {
        out.note(exchange, Note::Data(side, masked));
    }
}

fn empty(outcome: Outcome, asked_at: Instant, finished_at: Instant, rule: Arc<str>) -> Finished {
    Finished {
        operation: OperationRecord::default(),
        outcome,
        status: Masked::default(),
        error: Masked::default(),
        rows: 0,
        columns: Vec::new(),
        asked_at,
        first_reply_at: None,
        finished_at,
        request_bytes: 0,
        response_bytes: 0,
        rule,
    }
}

fn fault(what: &'static str) -> Fault {
    Fault { protocol: "opaque", what }
}

#[cfg(test)]
mod subject;
#[cfg(test)]
mod tests;
