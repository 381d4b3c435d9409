//! A node's log, and that every session it names is there: how a deletion is found that leaves no broken chain.

use std::collections::BTreeMap;

use prost::Message;
use weir_proto::seal::{NodeChain, NodeLogError, VerifyingKey};
use weir_proto::v1::{self, node_entry::Mark, node_proof_item::Item};
use weir_proto::{NodeId, SessionId};

use super::Problem;
use super::pins::{Pinned, Pins};
use super::session::{CHANGED_NODE_KEY, verifying_key};
use crate::store::rows::unix_ns;

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
    /// Held whole, with the end that the node signed.
    pub complete: u64,
    /// Not closed by the node yet.
    pub open: u64,
    /// Closed, and still (in part) in the agent's spool, as its last signed heartbeat says.
    pub pending: u64,
    /// Deleted by retention, as the collector says.
    pub expired: u64,
    /// Held, and too new to be in the log.
    pub newer: u64,
    pub problems: Vec<Problem>,
    pub problems_untold: u64,
    pub alerts: Vec<String>,
    pub new_keys: Vec<String>,
}

impl NodeReport {
    pub fn is_ok(&self) -> bool {
        self.problems.is_empty()
    }
}

/// Takes the items of a node's proof in their order.
pub struct NodeVerifier<'a> {
    pins: &'a mut Pins,
    node: NodeId,
    key: Option<VerifyingKey>,
    log: NodeChain,
    /// Entries are missing: what they said cannot be known.
    broken: bool,
    numbers: BTreeMap<u64, Numbered>,
    next_number: u64,
    /// Of the latest heartbeat.
    promised: u64,
    spooled: u64,
    last_unix_ns: Option<i64>,
    rolled_back: bool,
    /// What the node's own disk lost: session to (first segment, why).
    lost: BTreeMap<SessionId, (u64, String)>,
    held: BTreeMap<u64, Vec<v1::HeldSession>>,
    report: NodeReport,
}

/// What the log says of one number.
#[derive(Default)]
struct Numbered {
    session: Option<SessionId>,
    closed: Option<v1::SessionClosed>,
}

impl<'a> NodeVerifier<'a> {
    pub fn new(pins: &'a mut Pins, node: NodeId) -> Self {
        Self {
            pins,
            node,
            key: None,
            log: NodeChain::start(node),
            broken: false,
            numbers: BTreeMap::new(),
            next_number: 1,
            promised: 1,
            spooled: 0,
            last_unix_ns: None,
            rolled_back: false,
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
            Some(Item::Session(held)) => self.held.entry(held.number).or_default().push(held),
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
        self.last_unix_ns = Some(unix_ns(&anchor, entry.at_ns));
        self.report.entries += 1;
        self.told(entry);
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

    fn told(&mut self, entry: v1::NodeEntry) {
        for opened in &entry.opened {
            let session = SessionId::try_from(&opened.session_id[..]).ok();
            let known = self.numbers.entry(opened.number).or_default();
            if known.session.is_some() && known.session != session {
                self.problem(&format!("number {} was given to two sessions", opened.number));
                continue;
            }
            known.session = session;
            self.next_number = self.next_number.max(opened.number.saturating_add(1));
        }
        for closed in entry.closed {
            let known = self.numbers.entry(closed.number).or_default();
            known.session = known.session.or(SessionId::try_from(&closed.session_id[..]).ok());
            self.next_number = self.next_number.max(closed.number.saturating_add(1));
            known.closed = Some(closed);
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
            self.spooled = heartbeat.spooled_segments;
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

    fn alert(&mut self, alert: &v1::ProofAlert) {
        self.report.alerts.push(format!("{}: {}", alert.kind, alert.detail));
        // The mark in the log says the same, signed; a log that was offered in two versions is only known from here.
        if alert.kind == "node-log-diverged" {
            self.problem(&format!("the agent offered a second version of its log: {}", alert.detail));
        }
    }

    pub fn finish(mut self) -> NodeReport {
        if self.log.next_index == 0 && self.report.entries == 0 && !self.held.is_empty() {
            self.problem("sessions are held, but no log entry is");
        }
        self.report.sessions = self.next_number.saturating_sub(1);
        let mut waiting = Waiting::default();
        for number in 1..self.next_number {
            self.number(number, &mut waiting);
            if self.report.problems.len() >= PROBLEMS_MAX && self.report.problems_untold > PROBLEMS_MAX as u64
            {
                // A log that promises 2^63 numbers is not walked to its end.
                self.problem("too many problems: the rest was not looked at");
                break;
            }
        }
        // What the agent signed that it still holds may be under way; more than that is missing.
        if waiting.segments <= self.spooled {
            self.report.pending = waiting.problems.len() as u64;
        } else {
            for problem in waiting.problems {
                self.push(problem);
            }
        }
        let newer = self.held.range(self.next_number.max(1)..).map(|(_, held)| held.len() as u64).sum();
        self.report.newer = newer;
        self.report
    }

    fn number(&mut self, number: u64, waiting: &mut Waiting) {
        let held = self.held.remove(&number).unwrap_or_default();
        let Some(Numbered { session, closed }) = self.numbers.remove(&number) else {
            let why = if self.broken { " (log entries are missing)" } else { "" };
            return self.problem(&format!("session number {number} is nowhere in the log{why}"));
        };
        let mine = held.iter().find(|held| SessionId::try_from(&held.session_id[..]).ok() == session);
        if held.len() > usize::from(mine.is_some()) {
            self.problem_of(
                session,
                format!("number {number} is also carried by a session that the log does not name"),
            );
        }
        if let Some((from, reason)) = session.and_then(|session| self.lost.get(&session)).cloned() {
            let have = mine.map_or(0, |held| held.segments);
            let what = format!(
                "number {number}: LOST on the node's own disk from segment {from} on ({reason}); {have} are held"
            );
            return self.problem_of(session, what);
        }
        let Some(closed) = closed else {
            self.report.open += 1;
            if self.rolled_back {
                self.problem_of(
                    session,
                    format!("number {number} was open when the agent was rolled back: its end is lost"),
                );
            }
            return;
        };
        let Some(held) = mine else {
            let what = format!(
                "MISSING: the node closed session number {number} with {} segments, the collector holds none",
                closed.segments
            );
            return waiting.add(session, closed.segments, what);
        };
        if held.segments < closed.segments {
            let what = format!("number {number}: {} of {} segments are held", held.segments, closed.segments);
            waiting.add(session, closed.segments - held.segments, what);
        } else if held.segments > closed.segments || held.head_hash != closed.head_hash {
            self.problem_of(
                session,
                format!("number {number}: what is held ends differently from what the node signed"),
            );
        } else if !held.closed {
            self.problem_of(
                session,
                format!("number {number}: the node closed it, the collector says that it is open"),
            );
        } else if held.expired_segments >= held.segments {
            self.report.expired += 1;
        } else if held.held_segments.saturating_add(held.expired_segments) != held.segments {
            let what = format!(
                "number {number}: {} of its segments are missing at the collector",
                held.segments.saturating_sub(held.held_segments.saturating_add(held.expired_segments))
            );
            self.problem_of(session, what);
        } else {
            self.report.complete += 1;
        }
    }

    fn problem(&mut self, what: &str) {
        self.push(Problem { node: Some(self.node), session: None, seq: None, what: what.to_owned() });
    }

    fn problem_of(&mut self, session: Option<SessionId>, what: String) {
        self.push(Problem { node: Some(self.node), session, seq: None, what });
    }

    fn push(&mut self, problem: Problem) {
        if self.report.problems.len() < PROBLEMS_MAX {
            self.report.problems.push(problem);
        } else {
            self.report.problems_untold += 1;
        }
    }
}

/// Segments that are not here: under way, or missing.
#[derive(Default)]
struct Waiting {
    segments: u64,
    problems: Vec<Problem>,
}

impl Waiting {
    fn add(&mut self, session: Option<SessionId>, segments: u64, what: String) {
        self.segments = self.segments.saturating_add(segments.max(1));
        self.problems.push(Problem { node: None, session, seq: None, what });
    }
}

fn day(unix_ns: i64) -> String {
    let format = time::macros::format_description!("[year]-[month]-[day] [hour]:[minute]:[second]");
    time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ns))
        .ok()
        .and_then(|at| at.format(&format).ok())
        .unwrap_or_else(|| format!("{unix_ns} ns"))
}
