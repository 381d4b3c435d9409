//! Plays one script against the conversation, step by step, and says what came of each step.

use bytes::Bytes;

use super::wire::*;
use crate::kind::{Kind, Start};
use crate::mask::MaskPlan;
use crate::note::{Finished, Note, Outcome};
use crate::operation::{Operation, Sql};
use crate::postgres::Postgres;
use crate::seam::{Cause, Conversation, Effect, Effects, ExchangeId, Input, Instant, Side};
use crate::verdict::{Denial, GrantKey, Verdict};

pub(super) struct Playbook {
    conversation: Postgres,
    key: GrantKey,
    /// Allow whatever is asked, at once.
    allow_all: bool,
    now: u64,
    to_server: Vec<u8>,
    to_client: Vec<u8>,
    pub(super) sends: usize,
    pub(super) asked: Vec<(u64, Sql)>,
    pub(super) withdrawn: Vec<u64>,
    pub(super) finished: Vec<(u64, Box<Finished>)>,
    pub(super) data: Vec<(u64, Side, Bytes)>,
    pub(super) facts: Vec<(String, String)>,
    pub(super) gaps: Vec<&'static str>,
    pub(super) ends: Vec<Side>,
    pub(super) became: Option<(Kind, [Bytes; 2])>,
    pub(super) aborted: Option<Cause>,
}

impl Playbook {
    pub(super) fn new() -> Self {
        let start = Start { first_exchange: ExchangeId::FIRST, plan: MaskPlan::standard() };
        Self {
            conversation: Postgres::new(start),
            key: GrantKey::for_tests(),
            allow_all: true,
            now: 0,
            to_server: Vec::new(),
            to_client: Vec::new(),
            sends: 0,
            asked: Vec::new(),
            withdrawn: Vec::new(),
            finished: Vec::new(),
            data: Vec::new(),
            facts: Vec::new(),
            gaps: Vec::new(),
            ends: Vec::new(),
            became: None,
            aborted: None,
        }
    }

    /// Logged in, and from here on verdicts come from the script.
    pub(super) fn judged() -> Self {
        let mut play = Self::ready();
        play.allow_all = false;
        play
    }

    /// Logged in.
    pub(super) fn ready() -> Self {
        let mut play = Self::new();
        play.client(&[startup(&[("user", "ada"), ("database", "shop")])]);
        play.server(&[welcome()]);
        play.drain();
        play.data.clear();
        play.facts.clear();
        play
    }

    pub(super) fn client(&mut self, messages: &[Bytes]) -> &mut Self {
        self.input(Input::Data(Side::Client, join(messages)))
    }

    pub(super) fn server(&mut self, messages: &[Bytes]) -> &mut Self {
        self.input(Input::Data(Side::Upstream, join(messages)))
    }

    pub(super) fn allow(&mut self, exchange: u64) -> &mut Self {
        let permit = self.key.permit(ExchangeId(exchange), "open".into());
        self.input(Input::Verdict(ExchangeId(exchange), Verdict::Allow(permit)))
    }

    pub(super) fn deny(&mut self, exchange: u64) -> &mut Self {
        let denial = Denial { rule: "closed".into(), reason: "not today".into() };
        self.input(Input::Verdict(ExchangeId(exchange), Verdict::Deny(denial)))
    }

    pub(super) fn end(&mut self, side: Side) -> &mut Self {
        self.input(Input::End(side))
    }

    pub(super) fn reset(&mut self, side: Side) -> &mut Self {
        self.input(Input::Reset(side))
    }

    pub(super) fn wants_read(&self, side: Side) -> bool {
        self.conversation.wants_read(side)
    }

    /// What reached the server since last asked is exactly this.
    #[track_caller]
    pub(super) fn reaches_server(&mut self, messages: &[Bytes]) -> &mut Self {
        let seen = std::mem::take(&mut self.to_server);
        assert_eq!(seen.escape_ascii().to_string(), join(messages).escape_ascii().to_string());
        self
    }

    #[track_caller]
    pub(super) fn reaches_client(&mut self, messages: &[Bytes]) -> &mut Self {
        let seen = std::mem::take(&mut self.to_client);
        assert_eq!(seen.escape_ascii().to_string(), join(messages).escape_ascii().to_string());
        self
    }

    pub(super) fn take_sent(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.to_server)
    }

    pub(super) fn drain(&mut self) -> &mut Self {
        self.to_server.clear();
        self.to_client.clear();
        self.sends = 0;
        self
    }

    #[track_caller]
    pub(super) fn outcome(&self, exchange: u64) -> &Finished {
        let mut all = self.finished.iter().filter(|(id, _)| *id == exchange);
        let (_, finished) = all.next().unwrap_or_else(|| panic!("exchange {exchange} has not ended"));
        assert!(all.next().is_none(), "exchange {exchange} ended twice");
        finished
    }

    /// Outcomes in the order they came.
    pub(super) fn endings(&self) -> Vec<(u64, Outcome)> {
        self.finished.iter().map(|(id, finished)| (*id, finished.outcome)).collect()
    }

    pub(super) fn recorded(&self, exchange: u64, side: Side) -> Vec<u8> {
        let mine = self.data.iter().filter(|(id, from, _)| *id == exchange && *from == side);
        mine.flat_map(|(_, _, bytes)| bytes.to_vec()).collect()
    }

    fn input(&mut self, input: Input) -> &mut Self {
        self.now += 1;
        let mut effects = Effects::default();
        self.conversation.handle(input, Instant(self.now), &mut effects).expect("our own invariants hold");
        let mut allowed = Vec::new();
        for effect in effects {
            match effect {
                Effect::Upstream(cleared) => self.to_server.extend_from_slice(&cleared.into_bytes()),
                Effect::Client(bytes) => {
                    self.sends += 1;
                    self.to_client.extend_from_slice(&bytes);
                }
                Effect::Ask(exchange, operation) => {
                    let Operation::Sql(sql) = operation else { panic!("PostgreSQL asks about SQL") };
                    self.asked.push((exchange.0, sql));
                    allowed.push(exchange.0);
                }
                Effect::Withdraw(exchange) => self.withdrawn.push(exchange.0),
                Effect::Note(exchange, note) => self.note(exchange.0, note),
                Effect::Become(kind, pending) => self.became = Some((kind, pending)),
                Effect::End(side) => self.ends.push(side),
                Effect::Abort(cause) => self.aborted = Some(cause),
            }
        }
        if self.allow_all {
            for exchange in allowed {
                self.allow(exchange);
            }
        }
        self
    }

    fn note(&mut self, exchange: u64, note: Note) {
        match note {
            Note::Facts(facts) => {
                self.facts.push(("version".into(), facts.protocol_version.into()));
                self.facts
                    .extend(facts.values.into_iter().map(|(name, value)| (name.into(), value.to_text())));
                if let Some(coverage) = facts.coverage {
                    self.facts.push(("coverage".into(), format!("{coverage:?}")));
                }
            }
            Note::Asked(_) => {}
            Note::Data(side, masked) => self.data.push((exchange, side, masked.bytes().clone())),
            Note::Finished(finished) => self.finished.push((exchange, finished)),
            Note::Gap { reason, .. } => self.gaps.push(reason),
        }
    }
}
