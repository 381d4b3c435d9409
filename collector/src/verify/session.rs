//! The segments of sessions: each one is signed by its node, follows the one before, and has the collector's receipt;
//! together they are complete from the first to the end.

use std::collections::HashSet;

use weir_proto::seal::{self, Chain, ChainError, Segment, VerifyingKey};
use weir_proto::v1::{self, event::Kind, proof_item::Item};
use weir_proto::{NodeId, RunId, SessionId};

use super::node::Ended;
use super::pins::{Pinned, Pins};
use super::terms::{Terms, made_unix_ms};
use super::{Problem, day};
use crate::store::sqlite::Subject;

/// Problems told one by one; more are counted.
const PROBLEMS_MAX: usize = 1000;

/// What was found of one session.
#[derive(Clone, Debug, serde::Serialize)]
pub struct SessionReport {
    #[serde(serialize_with = "text")]
    pub session: SessionId,
    #[serde(serialize_with = "text")]
    pub node: NodeId,
    pub number: u64,
    /// Segments whose signature, chain and receipt were checked and hold.
    pub segments: u64,
    /// Segments that retention deleted, as the collector says.
    pub expired: u64,
    /// The node signed that nothing comes after.
    pub closed: bool,
    /// As the collector decrypted them.
    pub gaps: u64,
    pub ok: bool,
}

/// What was found of all that was asked for.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct SessionsReport {
    /// The run or session that everything was checked to belong to.
    pub subject: String,
    pub sessions: Vec<SessionReport>,
    pub problems: Vec<Problem>,
    pub problems_untold: u64,
    /// Signs of tampering that the collector refused and wrote down.
    pub alerts: Vec<String>,
    /// Keys seen for the first time: trusted from now on.
    pub new_keys: Vec<String>,
}

impl SessionsReport {
    pub fn is_ok(&self) -> bool {
        self.problems.is_empty()
    }
}

/// Takes the items of a proof in their order.
pub struct SessionVerifier<'a> {
    pins: &'a mut Pins,
    asked: Subject,
    terms: Terms,
    /// Where the node's log says that the session ends.
    ended: Option<Ended>,
    receipts: Option<VerifyingKey>,
    node: Option<(NodeId, VerifyingKey)>,
    current: Option<Current>,
    seen: HashSet<SessionId>,
    report: SessionsReport,
}

struct Current {
    claim: v1::ProofSession,
    run: Option<RunId>,
    chain: Chain,
    /// The first segment that is left stands on ones that retention deleted.
    resumes: bool,
    report: SessionReport,
}

impl<'a> SessionVerifier<'a> {
    /// What is sent is held against what was asked for: a collector that proves another run proves nothing.
    pub fn new(pins: &'a mut Pins, asked: Subject, terms: Terms) -> Self {
        let subject = match asked {
            Subject::Run(run) => format!("run {run}"),
            Subject::Session(session) => format!("session {session}"),
        };
        Self {
            pins,
            asked,
            terms,
            ended: None,
            receipts: None,
            node: None,
            current: None,
            seen: HashSet::new(),
            report: SessionsReport { subject, ..SessionsReport::default() },
        }
    }

    /// For one session of a node's log: it must also end as the node signed there.
    pub fn of_log(pins: &'a mut Pins, ended: Ended, terms: Terms) -> Self {
        Self { ended: Some(ended), ..Self::new(pins, Subject::Session(ended.session), terms) }
    }

    pub fn take(&mut self, item: v1::ProofItem) {
        match item.item {
            Some(Item::ReceiptKey(key)) => self.receipt_key(&key.key),
            Some(Item::Node(node)) => self.node(&node),
            Some(Item::Session(claim)) => self.session(claim),
            Some(Item::Segment(segment)) => self.segment(segment),
            Some(Item::Alert(alert)) => self.report.alerts.push(format!("{}: {}", alert.kind, alert.detail)),
            None => {}
        }
    }

    pub fn finish(mut self) -> SessionsReport {
        self.session_end();
        if self.report.sessions.is_empty() {
            self.problem(None, None, "nothing was proven: the collector sent no session");
        }
        self.report
    }

    fn receipt_key(&mut self, key: &[u8]) {
        match self.pins.receipt_key(key) {
            Pinned::New => {
                self.report.new_keys.push(format!("receipt key of the collector {}", hex::encode(key)))
            }
            Pinned::Same => {}
            Pinned::Changed => self.problem(None, None, CHANGED_RECEIPT_KEY),
        }
        self.receipts = verifying_key(key);
        if self.receipts.is_none() {
            self.problem(None, None, "the collector's receipt key is not a key");
        }
    }

    fn node(&mut self, told: &v1::ProofNode) {
        self.session_end();
        self.node = None;
        let (Ok(node), Some(key)) = (NodeId::try_from(&told.node_id[..]), verifying_key(&told.signing_key))
        else {
            self.problem(None, None, "the collector sent a malformed node");
            return;
        };
        match self.pins.node(&node, &told.signing_key) {
            Pinned::New => self
                .report
                .new_keys
                .push(format!("signing key of node {node} {}", hex::encode(&told.signing_key))),
            Pinned::Same => {}
            Pinned::Changed => self.problem_of_node(node, CHANGED_NODE_KEY),
        }
        self.node = Some((node, key));
    }

    fn session(&mut self, claim: v1::ProofSession) {
        self.session_end();
        let (Ok(session), Ok(node)) =
            (SessionId::try_from(&claim.session_id[..]), NodeId::try_from(&claim.node_id[..]))
        else {
            self.problem(None, None, "the collector sent a malformed session");
            return;
        };
        if self.node.is_none_or(|(told, _)| told != node) {
            self.problem(Some(session), None, "the collector did not send the key of the session's node");
        }
        self.claim_problems(session, &claim);
        let mut chain = Chain::start(session, node);
        chain.next_seq = claim.expired_segments;
        self.current = Some(Current {
            run: RunId::try_from(&claim.run_id[..]).ok(),
            chain,
            resumes: claim.expired_segments > 0,
            report: SessionReport {
                session,
                node,
                number: claim.node_number,
                segments: 0,
                expired: claim.expired_segments,
                closed: false,
                gaps: 0,
                ok: true,
            },
            claim,
        });
    }

    /// What is wrong with a session before its first segment is looked at.
    fn claim_problems(&mut self, session: SessionId, claim: &v1::ProofSession) {
        let run = RunId::try_from(&claim.run_id[..]).ok();
        let as_asked = match self.asked {
            Subject::Run(asked) => run == Some(asked),
            Subject::Session(asked) => session == asked,
        };
        if !as_asked {
            let what =
                format!("the collector sent it instead of what was asked for ({})", self.report.subject);
            self.problem(Some(session), None, what);
        }
        if !self.seen.insert(session) {
            self.problem(Some(session), None, "the collector sent it twice");
        }
        let made = made_unix_ms(&session);
        if claim.expired_segments > 0 && !self.terms.may_be_expired(made) {
            let what = format!(
                "the collector says that its segments have expired, but it was opened on {} (UTC): too young for that",
                day(made.saturating_mul(1_000_000))
            );
            self.problem(Some(session), None, what);
        }
        if let Some(ended) = &self.ended
            && (claim.segments != ended.segments
                || claim.head_hash[..] != ended.head[..]
                || claim.node_number != ended.number)
        {
            self.problem(Some(session), None, "it ends differently from what the node signed in its log");
        }
    }

    fn segment(&mut self, sent: v1::ProofSegment) {
        let Some(mut current) = self.current.take() else {
            self.problem(None, None, "the collector sent a segment of no session");
            return;
        };
        for (seq, what) in self.segment_problems(&mut current, sent) {
            current.report.ok = false;
            self.problem(Some(current.report.session), seq, what);
        }
        self.current = Some(current);
    }

    fn segment_problems(&self, current: &mut Current, sent: v1::ProofSegment) -> Vec<(Option<u64>, String)> {
        let receipt = sent.receipt.unwrap_or_default();
        let seq = Some(receipt.seq);
        let sealed = sent.segment.unwrap_or_default();
        let segment = match Segment::parse(sealed.bytes) {
            Ok(segment) => segment,
            Err(error) => {
                let what = format!("missing or damaged at rest: {error}");
                current.chain.next_seq = receipt.seq.saturating_add(1);
                current.resumes = true;
                return vec![(seq, what)];
            }
        };
        let mut problems = Vec::new();
        let mut wrong = |what: String| problems.push((Some(segment.seq()), what));
        match &self.node {
            Some((_, key)) => {
                if let Err(error) = segment.verify(key, &sealed.signature) {
                    wrong(error.to_string());
                }
            }
            None => wrong("no key to check its signature by".into()),
        }
        if current.resumes {
            current.chain.head = segment.draft().prev_hash;
            current.resumes = false;
        }
        if let Err(error) = current.chain.accept(&segment) {
            wrong(match error {
                ChainError::Seq { wanted, got } if wanted < got => missing(wanted, got),
                other => other.to_string(),
            });
            resume(&mut current.chain, &segment);
        }
        if current.run != Some(segment.draft().run) {
            wrong("the segment belongs to another run than the collector says".into());
        }
        if current.claim.node_number != segment.draft().number {
            wrong("the segment has another session number than the collector says".into());
        }
        if let Some(what) = self.receipt_problem(&receipt, &segment) {
            wrong(what);
        }
        let gaps =
            sent.plaintext_marks.iter().filter(|event| matches!(event.kind, Some(Kind::Gap(_)))).count();
        current.report.gaps += gaps as u64;
        current.report.segments += u64::from(problems.is_empty());
        problems
    }

    fn receipt_problem(&self, receipt: &v1::Receipt, segment: &Segment) -> Option<String> {
        let Some(key) = &self.receipts else { return Some("no key to check its receipt by".into()) };
        match seal::verify_receipt(key, receipt) {
            Err(error) => Some(error.to_string()),
            Ok(said) if said.session != segment.session() || said.seq != segment.seq() => {
                Some("its receipt is for another segment".into())
            }
            Ok(said) if said.hash != *segment.hash() => Some(
                "its receipt was given for other content: the segment was changed after it was received"
                    .into(),
            ),
            Ok(_) => None,
        }
    }

    fn session_end(&mut self) {
        let Some(mut current) = self.current.take() else { return };
        let (claim, chain) = (&current.claim, &current.chain);
        let session = current.report.session;
        let mut wrong = Vec::new();
        if chain.next_seq < claim.segments {
            wrong.push(missing(chain.next_seq, claim.segments));
        } else if chain.next_seq > claim.segments {
            wrong.push("the collector sent more segments than it says it holds".into());
        } else if claim.segments > claim.expired_segments && claim.head_hash[..] != chain.head[..] {
            wrong.push("the last segment is another one than the collector says".into());
        }
        if claim.segments == 0 {
            wrong.push("a session without a segment".into());
        }
        let all_expired = claim.expired_segments >= claim.segments;
        if !all_expired && claim.closed != chain.closed {
            wrong.push(if claim.closed {
                "the collector says that it is closed, but no segment says so".into()
            } else {
                "it is closed, but the collector says that it is open".into()
            });
        }
        current.report.closed = chain.closed || (all_expired && claim.closed);
        current.report.ok &= wrong.is_empty();
        for what in wrong {
            self.problem(Some(session), None, what);
        }
        self.report.sessions.push(current.report);
    }

    fn problem(&mut self, session: Option<SessionId>, seq: Option<u64>, what: impl Into<String>) {
        self.push(Problem { node: None, session, seq, what: what.into() });
    }

    fn problem_of_node(&mut self, node: NodeId, what: &str) {
        self.push(Problem { node: Some(node), session: None, seq: None, what: what.into() });
    }

    fn push(&mut self, problem: Problem) {
        if self.report.problems.len() < PROBLEMS_MAX {
            self.report.problems.push(problem);
        } else {
            self.report.problems_untold += 1;
        }
    }
}

pub(super) const CHANGED_NODE_KEY: &str = "ITS SIGNING KEY IS ANOTHER ONE than when it was first seen. A node keeps its key for life: \
somebody replaced it, or the node was enrolled under a forged id. Nothing signed by the new key proves anything about the old node";
const CHANGED_RECEIPT_KEY: &str = "THE COLLECTOR'S RECEIPT KEY IS ANOTHER ONE than when it was first seen: this is another collector, \
or its keys were replaced";

pub(super) fn verifying_key(bytes: &[u8]) -> Option<VerifyingKey> {
    VerifyingKey::from_bytes(bytes.try_into().ok()?).ok().filter(|key| !key.is_weak())
}

fn missing(from: u64, to: u64) -> String {
    match to - from {
        1 => format!("segment {from} is missing"),
        _ => format!("segments {from} to {} are missing", to - 1),
    }
}

/// Goes on after a break, so that one break is told once.
fn resume(chain: &mut Chain, segment: &Segment) {
    chain.next_seq = segment.seq().saturating_add(1);
    chain.head = *segment.hash();
    chain.closed = segment.draft().last;
}

fn text<T: std::fmt::Display, S: serde::Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(value)
}
