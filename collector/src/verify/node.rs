//! A node's log, and that every session it names is there: how a deletion is found that leaves no broken chain.

use std::collections::BTreeMap;

use prost::Message;
use weir_proto::seal::{Hash, NodeChain, NodeLogError, Segment, VerifyingKey};
use weir_proto::v1::{self, node_entry::Mark, node_proof_item::Item};
use weir_proto::{NodeId, SessionId};

use super::pins::{Pinned, PinnedLog, Pins};
use super::session::{CHANGED_NODE_KEY, verifying_key};
use super::spooled::{Missing, Spooled};
use super::terms::Terms;
use super::{Problem, day};
use crate::heartbeats::{Life, NodeGap, Sign, kind_text};
use crate::store::rows::unix_ns;

/// Silences told one by one; more are counted.
const SILENCES_MAX: usize = 200;
/// Problems told one by one; more are counted.
const PROBLEMS_MAX: usize = 1000;

/// What was found.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct NodeReport {
    pub node: String,
    pub name: String,
    /// Entries whose signature and chain hold.
    pub entries: u64,
    /// Sessions that the node numbered.
    pub sessions: u64,
    /// Held, by the collector's count whole; the last segment was checked to be the end that the node signed.
    pub complete: u64,
    /// Not closed by the node yet.
    pub open: u64,
    /// Closed, and still (in part) in the agent's spool, as its last signed heartbeat says.
    pub pending: u64,
    /// Deleted by retention, as the collector says.
    pub expired: u64,
    /// Held, and too new to be in the log.
    pub newer: u64,
    /// Time of the last entry, by the node's clock (UTC): what came after it is not proven.
    pub log_ends: Option<String>,
    /// When connections were let through unrecorded because somebody asked for it, as the node signed it. No problem of the
    /// log, but what happened then is in no record.
    pub bypasses: Vec<String>,
    pub bypasses_untold: u64,
    /// Times in which the agent gave no sign of life, by the spacing of its signed heartbeats, and bypasses.
    pub silences: Vec<Silence>,
    pub silences_untold: u64,
    pub problems: Vec<Problem>,
    pub problems_untold: u64,
    pub alerts: Vec<String>,
    pub new_keys: Vec<String>,
    /// The complete ones, and how the node signed that they end: for whoever goes on to check every segment.
    #[serde(skip)]
    pub ended: Vec<Ended>,
    /// Segments that were checked by themselves after the log was.
    pub segments: u64,
}

/// One such time (UTC, by the node's clock).
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Silence {
    pub kind: &'static str,
    pub from: String,
    /// `None`: it goes on.
    pub to: Option<String>,
    pub before_entry: u64,
}

/// A session's end, as the node signed it in its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    pub session: SessionId,
    pub number: u64,
    pub segments: u64,
    pub head: Hash,
}

impl NodeReport {
    pub fn is_ok(&self) -> bool {
        self.problems.is_empty()
    }

    /// One more problem, told while there is room.
    pub fn push(&mut self, problem: Problem) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(problem);
        } else {
            self.problems_untold += 1;
        }
    }
}

/// Takes the items of a node's proof in their order.
pub struct NodeVerifier<'a> {
    pins: &'a mut Pins,
    node: NodeId,
    terms: Terms,
    key: Option<VerifyingKey>,
    log: NodeChain,
    /// As it was found the last time.
    pinned: Option<PinnedLog>,
    /// Entries are missing: what they said cannot be known.
    broken: bool,
    numbers: BTreeMap<u64, Numbered>,
    next_number: u64,
    /// Of the latest heartbeat.
    promised: u64,
    spooled: Spooled,
    last_unix_ns: Option<i64>,
    life: Life,
    rolled_back: bool,
    /// The entry that began the agent's present life.
    started: Option<u64>,
    /// The one of the latest life that has said what became of everything before it.
    recovered: u64,
    /// What the node's own disk lost: session to (first segment, why).
    lost: BTreeMap<SessionId, (u64, String)>,
    held: BTreeMap<u64, Vec<Held>>,
    report: NodeReport,
}

/// What the log says of one number.
#[derive(Default)]
struct Numbered {
    session: Option<SessionId>,
    /// Entry and time that first named it.
    opened_at: u64,
    opened_unix_ns: i64,
    closed: Option<Closing>,
}

struct Closing {
    said: v1::SessionClosed,
    at: u64,
    unix_ns: i64,
}

/// What the collector says it holds of a session, and what its last segment itself says.
struct Held {
    claim: v1::HeldSession,
    last: Result<LastSegment, String>,
}

/// The segment's signature holds.
struct LastSegment {
    session: SessionId,
    node: NodeId,
    number: u64,
    seq: u64,
    is_last: bool,
    hash: Hash,
}

impl<'a> NodeVerifier<'a> {
    pub fn new(pins: &'a mut Pins, node: NodeId, terms: Terms) -> Self {
        let pinned = pins.logs.get(&node.to_string()).cloned();
        Self {
            pins,
            node,
            terms,
            pinned,
            key: None,
            log: NodeChain::start(node),
            broken: false,
            numbers: BTreeMap::new(),
            next_number: 1,
            promised: 1,
            spooled: Spooled::default(),
            last_unix_ns: None,
            life: Life::default(),
            rolled_back: false,
            started: None,
            recovered: 0,
            lost: BTreeMap::new(),
            held: BTreeMap::new(),
            report: NodeReport { node: node.to_string(), ..NodeReport::default() },
        }
    }

    pub fn take(&mut self, item: v1::NodeProofItem) {
        match item.item {
            Some(Item::Node(node)) => self.node(&node),
            Some(Item::SignedEntry(bytes)) => match v1::SignedNodeEntry::decode(bytes) {
                Ok(signed) => self.entry(&signed),
                Err(_) => self.problem("a log entry does not decode"),
            },
            Some(Item::Session(held)) => self.session(held),
            Some(Item::Alert(alert)) => self.alert(&alert),
            None => {}
        }
    }

    fn node(&mut self, told: &v1::ProofNode) {
        self.report.name.clone_from(&told.name);
        if told.node_id[..] != self.node.as_bytes()[..] {
            return self.problem("the collector sent another node than was asked for");
        }
        match self.pins.node(&self.node, &told.signing_key) {
            Pinned::New => self.report.new_keys.push(format!(
                "signing key of node {} {}",
                self.node,
                hex::encode(&told.signing_key)
            )),
            Pinned::Same => {}
            Pinned::Changed => self.problem(CHANGED_NODE_KEY),
        }
        self.key = verifying_key(&told.signing_key);
    }

    /// The segment's bytes are looked at as they come and then let go of.
    fn session(&mut self, mut claim: v1::HeldSession) {
        let sealed = claim.last.take().unwrap_or_default();
        let last = match (&self.key, Segment::parse(sealed.bytes)) {
            (None, _) => Err("there is no key to check its last segment by".to_owned()),
            (_, Err(error)) => Err(format!("its last segment is missing or damaged at rest: {error}")),
            (Some(key), Ok(segment)) => match segment.verify(key, &sealed.signature) {
                Err(error) => Err(format!("its last segment: {error}")),
                Ok(()) => Ok(LastSegment {
                    session: segment.session(),
                    node: segment.draft().node,
                    number: segment.draft().number,
                    seq: segment.seq(),
                    is_last: segment.draft().last,
                    hash: *segment.hash(),
                }),
            },
        };
        self.held.entry(claim.number).or_default().push(Held { claim, last });
    }

    fn entry(&mut self, signed: &v1::SignedNodeEntry) {
        let Some(key) = self.key else { return self.problem("no key to check the log by") };
        let entry = match self.log.accept(signed, &key) {
            Ok(entry) => entry,
            Err(error) => {
                self.broken = true;
                match self.resume(signed, &key, &error) {
                    Some(entry) => entry,
                    None => return,
                }
            }
        };
        let wall = entry.wall.unwrap_or_default();
        let anchor = weir_proto::seal::Anchor {
            unix_ns: wall.unix_ns,
            boot_ns: wall.boot_ns,
            synchronized: wall.synchronized,
        };
        let unix_ns = unix_ns(&anchor, entry.at_ns);
        self.last_unix_ns = Some(unix_ns);
        for gap in self.life.goes_on(Sign::of(&entry)) {
            self.silence(gap);
        }
        self.report.entries += 1;
        if let Some(pinned) = &self.pinned
            && pinned.entries == self.log.next_index
            && pinned.head != hex::encode(self.log.head)
        {
            self.problem(
                "the log is ANOTHER ONE than when it was last verified here: its entries were replaced",
            );
        }
        self.told(entry, unix_ns);
    }

    fn silence(&mut self, gap: NodeGap) {
        if self.report.silences.len() >= SILENCES_MAX {
            self.report.silences_untold += 1;
            return;
        }
        self.report.silences.push(Silence {
            kind: kind_text(gap.kind),
            from: day(gap.from_unix_ns),
            to: (gap.to_unix_ns != 0).then(|| day(gap.to_unix_ns)),
            before_entry: gap.before_entry,
        });
    }

    /// Goes on after a break, so that one break is told once; nothing that is not signed is believed.
    fn resume(
        &mut self,
        signed: &v1::SignedNodeEntry,
        key: &VerifyingKey,
        error: &NodeLogError,
    ) -> Option<v1::NodeEntry> {
        let (index, prev) = match v1::NodeEntry::decode(signed.entry.clone()) {
            Ok(entry) => (entry.index, entry.prev_hash[..].try_into().ok()),
            Err(_) => (self.log.next_index, None),
        };
        let wanted = self.log.next_index;
        let mut log = NodeChain { node: self.node, next_index: index, head: prev? };
        let entry = log.accept(signed, key);
        let what = match (error, &entry) {
            (NodeLogError::Index { got, .. }, Ok(entry)) if *got > wanted => {
                let wall = entry.wall.unwrap_or_default();
                let until = day(wall.unix_ns);
                match self.last_unix_ns {
                    Some(from) => format!(
                        "log entries {wanted} to {} are missing: between {} and {until} (UTC)",
                        got - 1,
                        day(from)
                    ),
                    None => {
                        format!("log entries {wanted} to {} are missing: all before {until} (UTC)", got - 1)
                    }
                }
            }
            _ => error.to_string(),
        };
        self.problem(&what);
        let entry = entry.ok()?;
        self.log = log;
        Some(entry)
    }

    fn told(&mut self, entry: v1::NodeEntry, unix_ns: i64) {
        let at = entry.index;
        for opened in &entry.opened {
            let session = SessionId::try_from(&opened.session_id[..]).ok();
            let known = self.numbers.entry(opened.number).or_insert_with(|| Numbered::new(at, unix_ns));
            if known.session.is_some() && known.session != session {
                self.problem(&format!("number {} was given to two sessions", opened.number));
                continue;
            }
            known.session = session;
            self.next_number = self.next_number.max(opened.number.saturating_add(1));
        }
        for said in entry.closed {
            let number = said.number;
            let known = self.numbers.entry(number).or_insert_with(|| Numbered::new(at, unix_ns));
            let session = SessionId::try_from(&said.session_id[..]).ok();
            let other_session = known.session.is_some() && known.session != session;
            let other_end = known.closed.as_ref().is_some_and(|closing| closing.said != said);
            if other_session || other_end {
                self.problem_of(session, format!("number {number} was closed in two ways"));
                continue;
            }
            known.session = session;
            known.closed.get_or_insert(Closing { said, at, unix_ns });
            self.next_number = self.next_number.max(number.saturating_add(1));
        }
        for lost in entry.lost {
            if let Ok(session) = SessionId::try_from(&lost.session_id[..]) {
                self.lost.entry(session).or_insert((lost.from_seq, lost.reason));
            }
        }
        if let Some(heartbeat) = entry.heartbeat {
            // A number that was just taken may be named by the next entry only: one entry's word counts from then on.
            self.next_number = self.next_number.max(self.promised);
            self.promised = heartbeat.next_number;
            self.spooled.beat(at, if self.terms.local { 0 } else { heartbeat.spooled_segments });
            if heartbeat.recovered {
                self.recovered = self.started.unwrap_or(self.recovered);
            }
        }
        match &entry.mark {
            Some(Mark::Started(started)) => {
                self.started = Some(at);
                if started.unreadable_journals > 0 {
                    self.problem(&format!(
                        "at log entry {at} the agent started and could not read {} of its journals: what only they held is lost",
                        started.unreadable_journals
                    ));
                }
            }
            Some(Mark::BypassBegan(began)) => {
                let word = if began.extended { "extended" } else { "began" };
                self.bypass(format!(
                    "{word} {} (UTC), asked for by uid {} (pid {}): {}",
                    day(unix_ns),
                    began.uid,
                    began.pid,
                    began.reason
                ));
            }
            Some(Mark::BypassEnded(ended)) => self.bypass(format!(
                "ended before {} (UTC), {}: {} connections passed unrecorded",
                day(unix_ns),
                ended.cause,
                ended.passed
            )),
            Some(Mark::Stopped(_)) => self.recovered = self.started.unwrap_or(self.recovered),
            _ => {}
        }
        if let Some(Mark::RolledBack(mark)) = entry.mark {
            self.rolled_back = true;
            self.problem(&format!(
                "ROLLED BACK: at log entry {} the agent found itself on an older copy of its disk; its own log ended at entry {} \
                 and session number {}, the collector's went on to entry {}",
                entry.index,
                mark.own_index,
                mark.own_next_number.saturating_sub(1),
                entry.index.saturating_sub(1)
            ));
        }
    }

    fn bypass(&mut self, told: String) {
        if self.report.bypasses.len() < PROBLEMS_MAX {
            self.report.bypasses.push(told);
        } else {
            self.report.bypasses_untold += 1;
        }
    }

    fn alert(&mut self, alert: &v1::ProofAlert) {
        self.report.alerts.push(format!("{}: {}", alert.kind, alert.detail));
        // The mark in the log says the same, signed; a log that was offered in two versions is only known from here.
        if alert.kind == "node-log-diverged" {
            self.problem(&format!("the agent offered a second version of its log: {}", alert.detail));
        }
    }

    pub fn finish(mut self) -> NodeReport {
        for gap in self.life.going_on() {
            self.silence(gap);
        }
        if self.log.next_index == 0 && self.report.entries == 0 && !self.held.is_empty() {
            self.problem("sessions are held, but no log entry is");
        }
        self.report.sessions = self.next_number.saturating_sub(1);
        let mut missing = Vec::new();
        for number in 1..self.next_number {
            self.number(number, &mut missing);
            if self.report.problems.len() >= PROBLEMS_MAX && self.report.problems_untold > PROBLEMS_MAX as u64
            {
                // A log that promises 2^63 numbers is not walked to its end.
                self.problem("too many problems: the rest was not looked at");
                break;
            }
        }
        // What the agent signed that it still holds may be under way; more than that is missing.
        let (pending, gone) = self.spooled.settle(missing);
        self.report.pending = pending;
        for problem in gone {
            self.push(problem);
        }
        let newer = self.held.range(self.next_number.max(1)..).map(|(_, held)| held.len() as u64).sum();
        self.report.newer = newer;
        self.report.log_ends = self.last_unix_ns.map(day);
        self.continuation();
        self.report
    }

    /// A log only grows: what was here the last time must be its beginning.
    fn continuation(&mut self) {
        let (entries, head) = (self.log.next_index, hex::encode(self.log.head));
        match &self.pinned {
            Some(pinned) if entries < pinned.entries => self.problem(&format!(
                "the log was CUT OFF: it had {} entries when it was last verified here, now it has {entries}",
                pinned.entries
            )),
            Some(pinned) if entries == pinned.entries && head != pinned.head => {}
            _ if self.broken || entries == 0 => {}
            _ => {
                self.pins.logs.insert(self.node.to_string(), PinnedLog { entries, head });
            }
        }
    }

    fn number(&mut self, number: u64, missing: &mut Vec<Missing>) {
        let held = self.held.remove(&number).unwrap_or_default();
        let Some(known) = self.numbers.remove(&number) else {
            let why = if self.broken { " (log entries are missing)" } else { "" };
            return self.problem(&format!("session number {number} is nowhere in the log{why}"));
        };
        let session = known.session;
        let mine = held.iter().find(|held| SessionId::try_from(&held.claim.session_id[..]).ok() == session);
        if held.len() > usize::from(mine.is_some()) {
            self.problem_of(
                session,
                format!("number {number} is also carried by a session that the log does not name"),
            );
        }
        let whole = mine.zip(known.closed.as_ref()).is_some_and(|(held, closing)| {
            held.claim.segments == closing.said.segments && held.claim.head_hash == closing.said.head_hash
        });
        // What the node lost after the collector had it is not lost.
        if let Some((from, reason)) = session.and_then(|session| self.lost.get(&session)).cloned()
            && !whole
        {
            let have = mine.map_or(0, |held| held.claim.segments);
            let what = format!(
                "number {number}: LOST on the node's own disk from segment {from} on ({reason}); {have} are held"
            );
            return self.problem_of(session, what);
        }
        let Some(closing) = &known.closed else { return self.open(number, &known) };
        let closed = &closing.said;
        let mut wait = |segments: u64, what: String| {
            let problem = Problem { node: None, session, seq: None, what };
            missing.push(Missing { closed_at: closing.at, segments: segments.max(1), problem });
        };
        let Some(Held { claim, last }) = mine else {
            let what = format!(
                "MISSING: the node closed session number {number} with {} segments, the collector holds none",
                closed.segments
            );
            return wait(closed.segments, what);
        };
        if claim.segments < closed.segments {
            let what =
                format!("number {number}: {} of {} segments are held", claim.segments, closed.segments);
            return wait(closed.segments - claim.segments, what);
        }
        match held_problem(&known, closing, claim, last, &self.terms, self.node) {
            Some(what) => self.problem_of(session, format!("number {number}: {what}")),
            None if claim.expired_segments >= claim.segments => self.report.expired += 1,
            None => {
                self.report.complete += 1;
                let head = Hash::try_from(&closed.head_hash[..]).ok();
                if let (Some(session), Some(head)) = (session, head) {
                    self.report.ended.push(Ended { session, number, segments: closed.segments, head });
                }
            }
        }
    }

    fn open(&mut self, number: u64, known: &Numbered) {
        self.report.open += 1;
        if self.rolled_back {
            let what = format!("number {number} was open when the agent was rolled back: its end is lost");
            self.problem_of(known.session, what);
        } else if known.opened_at < self.recovered {
            let what = format!(
                "number {number} VANISHED: it was open when the node agent ended, and the agent started again at log entry {} \
                 without a word of it",
                self.recovered
            );
            self.problem_of(known.session, what);
        }
    }

    fn problem(&mut self, what: &str) {
        self.push(Problem { node: Some(self.node), session: None, seq: None, what: what.to_owned() });
    }

    fn problem_of(&mut self, session: Option<SessionId>, what: String) {
        self.push(Problem { node: Some(self.node), session, seq: None, what });
    }

    fn push(&mut self, problem: Problem) {
        self.report.push(problem);
    }
}

impl Numbered {
    fn new(opened_at: u64, opened_unix_ns: i64) -> Self {
        Self { session: None, opened_at, opened_unix_ns, closed: None }
    }
}

/// What is wrong with a closed session of which the collector says that it holds all.
fn held_problem(
    known: &Numbered,
    closing: &Closing,
    claim: &v1::HeldSession,
    last: &Result<LastSegment, String>,
    terms: &Terms,
    node: NodeId,
) -> Option<String> {
    let closed = &closing.said;
    if claim.segments > closed.segments || claim.head_hash != closed.head_hash {
        return Some("what is held ends differently from what the node signed".into());
    }
    if !claim.closed {
        return Some("the node closed it, the collector says that it is open".into());
    }
    let wholly_expired = claim.expired_segments >= claim.segments;
    let aged_ns = if wholly_expired { closing.unix_ns } else { known.opened_unix_ns };
    if claim.expired_segments > 0 && !terms.may_be_expired(aged_ns / 1_000_000) {
        return Some(format!(
            "the collector says that {} of its segments have expired, but the node signed them on {} (UTC): too young for that",
            claim.expired_segments,
            day(aged_ns)
        ));
    }
    if wholly_expired {
        return None;
    }
    let there = claim.held_segments.saturating_add(claim.expired_segments);
    if there != claim.segments {
        let gone = claim.segments.saturating_sub(there);
        return Some(format!("{gone} of its segments are missing at the collector"));
    }
    match last {
        Err(what) => Some(what.clone()),
        Ok(last) => {
            let as_signed = last.is_last
                && last.node == node
                && Some(last.session) == known.session
                && last.number == closed.number
                && last.seq.checked_add(1) == Some(closed.segments)
                && last.hash[..] == closed.head_hash[..];
            (!as_signed).then(|| "its last segment is not the end that the node signed".into())
        }
    }
}
