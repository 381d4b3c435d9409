//! Plays one script against the conversation, step by step, and says what came of each step.

use bytes::Bytes;

use crate::http::Http1;
use crate::kind::{Kind, Start};
use crate::mask::MaskPlan;
use crate::note::{Finished, Note, OperationRecord, Outcome};
use crate::operation::{Http, Operation};
use crate::seam::{Cause, Conversation, Effect, Effects, ExchangeId, Input, Instant, Side};
use crate::verdict::{Denial, GrantKey, Verdict};

pub(super) struct Playbook {
    conversation: Http1,
    key: GrantKey,
    /// Allow whatever is asked, at once.
    allow_all: bool,
    now: Instant,
    to_server: Vec<u8>,
    to_client: Vec<u8>,
    pub(super) sends: usize,
    pub(super) notes: usize,
    pub(super) asked: Vec<(u64, Http)>,
    pub(super) records: Vec<(u64, OperationRecord)>,
    pub(super) withdrawn: Vec<u64>,
    pub(super) finished: Vec<(u64, Box<Finished>)>,
    data: Vec<(u64, Side, Bytes)>,
    pub(super) facts: Vec<(String, String)>,
    pub(super) gaps: Vec<&'static str>,
    pub(super) ends: Vec<Side>,
    pub(super) became: Option<(Kind, [Bytes; 2])>,
    pub(super) aborted: Option<Cause>,
}

impl Playbook {
    /// Whatever is asked is allowed.
    pub(super) fn new() -> Self {
        let start = Start { first_exchange: ExchangeId::FIRST, plan: MaskPlan::standard() };
        Self {
            conversation: Http1::new(start),
            key: GrantKey::for_tests(),
            allow_all: true,
            now: Instant(1),
            to_server: Vec::new(),
            to_client: Vec::new(),
            sends: 0,
            notes: 0,
            asked: Vec::new(),
            records: Vec::new(),
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

    /// Verdicts come from the script.
    pub(super) fn judged() -> Self {
        Self { allow_all: false, ..Self::new() }
    }

    pub(super) fn client(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.input(Input::Data(Side::Client, Bytes::copy_from_slice(bytes.as_ref())))
    }

    pub(super) fn server(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.input(Input::Data(Side::Upstream, Bytes::copy_from_slice(bytes.as_ref())))
    }

    pub(super) fn client_in_parts(&mut self, bytes: &str, size: usize) {
        for part in bytes.as_bytes().chunks(size) {
            self.client(part);
        }
    }

    pub(super) fn server_in_parts(&mut self, bytes: &str, size: usize) {
        for part in bytes.as_bytes().chunks(size) {
            self.server(part);
        }
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

    /// Time passes, up to the conversation's own deadline.
    pub(super) fn wait(&mut self) -> &mut Self {
        self.now = self.conversation.next_deadline().expect("something is waited for");
        self.input(Input::Tick)
    }

    pub(super) fn waits(&self) -> bool {
        self.conversation.next_deadline().is_some()
    }

    pub(super) fn wants_read(&self, side: Side) -> bool {
        self.conversation.wants_read(side)
    }

    /// What reached the server since last asked is exactly this.
    #[track_caller]
    pub(super) fn reaches_server(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        let seen = std::mem::take(&mut self.to_server);
        assert_eq!(seen.escape_ascii().to_string(), bytes.as_ref().escape_ascii().to_string());
        self
    }

    #[track_caller]
    pub(super) fn reaches_client(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        let seen = std::mem::take(&mut self.to_client);
        assert_eq!(seen.escape_ascii().to_string(), bytes.as_ref().escape_ascii().to_string());
        self
    }

    /// An answer of ours with this status reached the client; whether it closes the connection.
    #[track_caller]
    pub(super) fn answered(&mut self, status: u16, closes: bool) -> &mut Self {
        let seen = String::from_utf8(std::mem::take(&mut self.to_client)).expect("ours are ASCII");
        assert!(seen.starts_with(&format!("HTTP/1.1 {status} ")), "{seen:?}");
        assert_eq!(seen.contains("\r\nConnection: close\r\n"), closes, "{seen:?}");
        assert_eq!(self.ends.contains(&Side::Client), closes, "{:?}", self.ends);
        self
    }

    pub(super) fn take_client(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.to_client)).into_owned()
    }

    pub(super) fn take_server(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.to_server)
    }

    #[track_caller]
    pub(super) fn outcome(&self, exchange: u64) -> &Finished {
        let mut all = self.finished.iter().filter(|(id, _)| *id == exchange);
        let (_, finished) = all.next().unwrap_or_else(|| panic!("exchange {exchange} has not ended"));
        assert!(all.next().is_none(), "exchange {exchange} ended twice");
        finished
    }

    /// Outcome, status and error.
    #[track_caller]
    pub(super) fn ended(&mut self, exchange: u64, outcome: Outcome, status: &str, error: &str) -> &mut Self {
        let finished = self.outcome(exchange);
        assert_eq!(
            (finished.outcome, finished.status.to_text().as_str(), finished.error.to_text().as_str()),
            (outcome, status, error)
        );
        self
    }

    /// Outcomes in the order they came.
    pub(super) fn endings(&self) -> Vec<(u64, Outcome)> {
        self.finished.iter().map(|(id, finished)| (*id, finished.outcome)).collect()
    }

    pub(super) fn recorded(&self, exchange: u64, side: Side) -> String {
        let mine = self.data.iter().filter(|(id, from, _)| *id == exchange && *from == side);
        mine.flat_map(|(_, _, bytes)| bytes.to_vec()).map(char::from).collect()
    }

    /// Of what the server said.
    pub(super) fn recorded_bytes(&self) -> usize {
        self.data.iter().filter(|(_, from, _)| *from == Side::Upstream).map(|(.., bytes)| bytes.len()).sum()
    }

    /// What the conversation keeps of both sides.
    pub(super) fn held_bytes(&self) -> usize {
        self.conversation.held_bytes()
    }

    /// Of an exchange's request and of its answer.
    pub(super) fn pieces(&self, exchange: u64) -> Vec<crate::view::Piece> {
        let mine = self.data.iter().filter(|(id, ..)| *id == exchange);
        mine.map(|(_, from, bytes)| crate::view::Piece { from: *from, bytes: bytes.clone() }).collect()
    }

    /// Of the whole session.
    pub(super) fn all_recorded(&self) -> Vec<u8> {
        let mut all: Vec<u8> = self.data.iter().flat_map(|(.., bytes)| bytes.to_vec()).collect();
        for (_, record) in &self.records {
            all.extend_from_slice(record.text.bytes());
        }
        for (name, value) in &self.facts {
            all.extend(format!("\n{name}: {value}").into_bytes());
        }
        for (_, finished) in &self.finished {
            all.extend_from_slice(finished.error.bytes());
        }
        all
    }

    fn input(&mut self, input: Input) -> &mut Self {
        if self.aborted.is_some() {
            return self;
        }
        self.now.0 += 1;
        let mut effects = Effects::default();
        self.conversation.handle(input, self.now, &mut effects).expect("our own invariants hold");
        let mut allowed = Vec::new();
        for effect in effects {
            assert!(self.aborted.is_none() && self.became.is_none(), "effects after the end");
            match effect {
                Effect::Upstream(cleared) => self.to_server.extend_from_slice(&cleared.into_bytes()),
                Effect::Client(bytes) => {
                    assert!(!self.ends.contains(&Side::Client), "bytes after the end");
                    self.sends += 1;
                    self.to_client.extend_from_slice(&bytes);
                }
                Effect::Ask(exchange, operation) => {
                    let Operation::Http(http) = operation else { panic!("HTTP asks about HTTP") };
                    self.asked.push((exchange.0, http));
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
        self.notes += 1;
        match note {
            Note::Facts(facts) => {
                self.facts.push(("version".into(), facts.protocol_version.into()));
                self.facts
                    .extend(facts.values.into_iter().map(|(name, value)| (name.into(), value.to_text())));
                if let Some(coverage) = facts.coverage {
                    self.facts.push(("coverage".into(), format!("{coverage:?}")));
                }
            }
            Note::Asked(record) => self.records.push((exchange, record)),
            Note::Data(side, masked) => self.data.push((exchange, side, masked.bytes().clone())),
            Note::Finished(finished) => self.finished.push((exchange, finished)),
            Note::Gap { reason, .. } => self.gaps.push(reason),
        }
    }
}
