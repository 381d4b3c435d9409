//! The one thread that seals: reads the journals, groups by session, cuts, seals, writes the spool, keeps the node log.
//!
//! One round ends in one group commit, in this order, so that a kill between any two steps loses and repeats nothing:
//!
//! 1. node log: the sessions opened since (a number is on the disk before anything of its session is)
//! 2. spool: the sealed segments
//! 3. journal: the mark moves over what the spool now holds
//! 4. node log, within a second: the sessions closed, with the hash of their last segment
//! 5. spool: a closed session's last segment may now be deleted once it is receipted

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prost::Message;
use tokio::sync::oneshot;
use weir_proto::SessionId;
use weir_proto::seal::segment::SEGMENT_PLAIN_TARGET;
use weir_proto::seal::{HEARTBEAT_INTERVAL, SealError};
use weir_proto::v1::event::Kind;
use weir_proto::v1::node_entry::Mark;
use weir_proto::v1::{self, Event, NodeEntry};

use super::generation::{Generation, GenerationError};
use super::node_log::{NodeLog, NodeLogError, split};
use super::recorder::Shared;
use super::recovery::{RecoveredSession, Recovery, run_of};
use super::sealing::{ChainHead, Cut, Sealing};
use super::{KeyRing, clock};
use crate::journal::{FLAG_CLOSED, FLAG_OPENED, Journal, JournalError, Record};
use crate::spool::{Spool, SpoolError, sync_folder};

/// Between rounds, while nothing rings.
const ROUND_TIME: Duration = Duration::from_millis(200);
/// At least this long between rounds: closings of many short sessions share a commit.
const ROUND_TIME_MIN: Duration = Duration::from_millis(50);
/// After a round that failed (a full disk).
const RETRY_TIME: Duration = Duration::from_millis(500);
/// An open session's events are sealed at the latest after this.
const CUT_AGE_NS: u64 = 5_000_000_000;
/// Sealed bytes held at most before they are written; also what one commit writes.
const BATCH_BYTES_MAX: usize = 8 << 20;
/// Segments in one commit: each is an open file while it lasts.
const BATCH_SEGMENTS_MAX: usize = 256;
/// The node log says what was opened and closed within this; and that the agent lives, within the other.
const ENTRY_TIME_NS: u64 = 1_000_000_000;
const HEARTBEAT_TIME_NS: u64 = HEARTBEAT_INTERVAL.as_nanos() as u64;
/// Between attempts to draw a generation that is due.
const GENERATION_RETRY_NS: u64 = 5_000_000_000;

#[derive(Debug, thiserror::Error)]
pub(super) enum ScribeError {
    #[error(transparent)]
    Spool(#[from] SpoolError),
    #[error(transparent)]
    NodeLog(#[from] NodeLogError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Seal(#[from] SealError),
}

/// An open session, as the scribe sees it.
struct OpenSession {
    chain: ChainHead,
    journal: usize,
    /// Where its records are that no segment holds yet, and how long they are together.
    pending: Vec<u64>,
    bytes: usize,
    since_ns: u64,
}

/// How much of a session is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cutting {
    /// What fills segments; the rest waits for more.
    Full,
    All,
    /// All, and nothing comes after.
    Closed,
}

/// A session complete in the spool whose last file may not be deleted yet.
struct Settling {
    session: SessionId,
    /// The journal and the position that its mark has to pass; none when that was another life's.
    journal: Option<(usize, u64)>,
    logged: bool,
}

pub(super) struct Scribe {
    pub(super) shared: Arc<Shared>,
    pub(super) spool: Arc<Spool>,
    pub(super) log: Arc<Mutex<NodeLog>>,
    pub(super) ring: Arc<KeyRing>,
    sealing: Sealing,
    cursors: Vec<u64>,
    sessions: HashMap<SessionId, OpenSession>,
    closed: Vec<v1::SessionClosed>,
    settling: Vec<Settling>,
    recovery: Option<Recovery>,
    same_boot: bool,
    boot_id: String,
    entry_ns: u64,
    generation_retry_ns: u64,
    /// Not said yet, in order.
    marks: VecDeque<(Mark, oneshot::Sender<()>)>,
}

/// Asked of the scribe.
pub(super) enum Asked {
    Stop(Stop),
    /// To be said in the node log; answered when it is on the disk.
    Mark(Mark, oneshot::Sender<()>),
}

/// Write everything, say `Stopped`, end.
pub(super) struct Stop {
    pub(super) cause: String,
    pub(super) done: oneshot::Sender<()>,
}

impl Scribe {
    pub(super) fn new(
        shared: Arc<Shared>,
        spool: Arc<Spool>,
        log: Arc<Mutex<NodeLog>>,
        ring: Arc<KeyRing>,
        sealing: Sealing,
        recovery: Recovery,
        same_boot: bool,
    ) -> Self {
        let cursors = vec![0; shared.journals.len()];
        Self {
            shared,
            spool,
            log,
            ring,
            sealing,
            cursors,
            sessions: HashMap::new(),
            closed: Vec::new(),
            settling: Vec::new(),
            recovery: Some(recovery),
            same_boot,
            boot_id: clock::boot_id(),
            entry_ns: 0,
            generation_retry_ns: 0,
            marks: VecDeque::new(),
        }
    }

    /// The thread. Ends when it was asked to stop and everything is written, or when nobody can ask any more.
    pub(super) fn run(mut self, asked: &std::sync::mpsc::Receiver<Asked>) {
        let mut stopping: Option<Stop> = None;
        loop {
            std::thread::sleep(ROUND_TIME_MIN);
            self.shared.bell.wait(ROUND_TIME);
            while stopping.is_none() {
                match asked.try_recv() {
                    Ok(Asked::Stop(stop)) => {
                        self.shared.stopped.store(true, Ordering::Release);
                        self.shared.journals.iter().for_each(crate::journal::Journal::shut);
                        stopping = Some(stop);
                    }
                    Ok(Asked::Mark(mark, done)) => self.marks.push_back((mark, done)),
                    Err(std::sync::mpsc::TryRecvError::Empty) => break,
                    // The handle was dropped: as a kill, the next start recovers.
                    Err(std::sync::mpsc::TryRecvError::Disconnected) => return,
                }
            }
            let round = match &stopping {
                None => self.round(false),
                Some(asked) => self.last_round(&asked.cause),
            };
            match round {
                Ok(()) => {
                    if let Some(asked) = stopping.take() {
                        let _ = asked.done.send(());
                        return;
                    }
                }
                Err(error) => {
                    let counters = &self.shared.counters;
                    match &error {
                        ScribeError::NodeLog(_) => counters.node_log_errors.add(1),
                        ScribeError::Journal(_) => counters.journal_sync_errors.add(1),
                        ScribeError::Spool(_) | ScribeError::Seal(_) => counters.spool_write_errors.add(1),
                    }
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::warn!(%error, cause, "sealing waits; nothing is lost, the journal fills meanwhile");
                    std::thread::sleep(RETRY_TIME);
                }
            }
        }
    }

    /// From the journals to the disk. After an error it is simply called again: what was sealed is kept.
    fn round(&mut self, flush: bool) -> Result<(), ScribeError> {
        if !self.sealing.batch.is_empty() {
            self.commit()?;
        }
        self.renew_generation();
        self.recover()?;
        self.append_late();
        let used = self.shared.journals.iter().map(|j| j.used()).sum();
        self.shared.counters.journal_used_bytes.set(used);
        for journal in 0..self.cursors.len() {
            self.read(journal)?;
        }
        self.cut_due(flush)?;
        self.commit()?;
        self.say_marks()?;
        self.heartbeat(flush)?;
        self.settle();
        Ok(())
    }

    /// Everything to the disk, an end for every session, and the node log says that this was orderly.
    fn last_round(&mut self, cause: &str) -> Result<(), ScribeError> {
        self.round(true)?;
        let open: Vec<SessionId> = self.sessions.keys().copied().collect();
        for session in open {
            if let Some(mut left) = self.sessions.remove(&session) {
                let mut cut = Cut::new(self.shared.journals[left.journal].id(), self.cursors[left.journal]);
                abandoned(&mut cut, cause, clock::now().0, clock::now().0);
                self.sealing.seal(&mut left.chain, &cut, true, clock::anchor())?;
            }
        }
        self.commit()?;
        self.log_entry(None)?;
        self.log_entry(Some(Mark::Stopped(v1::Stopped { cause: cause.to_owned() })))?;
        self.settle();
        for journal in &self.shared.journals {
            let _ = std::fs::remove_file(journal.path());
        }
        Ok(())
    }

    /// Reads what was appended since, and cuts where a session has enough or ends.
    fn read(&mut self, journal: usize) -> Result<(), ScribeError> {
        let shared = self.shared.clone();
        while let Some(record) = shared.journals[journal].record(self.cursors[journal]) {
            self.take(journal, &record)?;
            self.cursors[journal] = record.to;
            if self.batch_is_full() {
                self.commit()?;
            }
        }
        Ok(())
    }

    fn take(&mut self, journal: usize, record: &Record<'_>) -> Result<(), ScribeError> {
        if record.flags & FLAG_OPENED != 0
            && let Ok(Event { kind: Some(Kind::Opened(opened)), .. }) = Event::decode(record.payload)
        {
            let chain = ChainHead::start(record.session, opened.node_number, run_of(&opened));
            let opened =
                OpenSession { chain, journal, pending: Vec::new(), bytes: 0, since_ns: record.at_ns };
            self.sessions.insert(record.session, opened);
        }
        let Some(session) = self.sessions.get_mut(&record.session) else {
            self.shared.counters.records_orphaned.add(1);
            return Ok(());
        };
        if session.pending.is_empty() {
            session.since_ns = record.at_ns;
        }
        session.pending.push(record.from);
        session.bytes += record.payload.len();
        let closed = record.flags & FLAG_CLOSED != 0;
        if closed {
            self.cut(record.session, Cutting::Closed)?;
            self.sessions.remove(&record.session);
        } else if session.bytes > SEGMENT_PLAIN_TARGET {
            self.cut(record.session, Cutting::Full)?;
        }
        Ok(())
    }

    /// Seals a session's pending records: all of them, or only what fills segments.
    fn cut(&mut self, session: SessionId, what: Cutting) -> Result<(), SealError> {
        let Some(open) = self.sessions.get_mut(&session) else { return Ok(()) };
        let journal = &self.shared.journals[open.journal];
        let wall = clock::anchor();
        let mut cut = Cut::in_memory(std::mem::take(&mut self.sealing.memory), journal.id(), 0);
        let pending = std::mem::take(&mut open.pending);
        open.bytes = 0;
        for position in pending {
            let Some(record) = journal.record(position) else {
                self.shared.counters.records_orphaned.add(1);
                continue;
            };
            if !cut.takes(record.payload.len()) {
                self.sealing.seal(&mut open.chain, &cut, false, wall)?;
                cut = Cut::in_memory(cut.into_memory(), journal.id(), record.from);
                open.pending.clear();
                open.bytes = 0;
            }
            if open.pending.is_empty() {
                open.since_ns = record.at_ns;
            }
            open.pending.push(record.from);
            open.bytes += record.payload.len();
            cut.add(record.from, record.to, record.at_ns, record.payload);
        }
        if what != Cutting::Full && !cut.is_empty() {
            self.sealing.seal(&mut open.chain, &cut, what == Cutting::Closed, wall)?;
            open.pending.clear();
            open.bytes = 0;
        }
        self.sealing.memory = cut.into_memory();
        Ok(())
    }

    /// Cuts what is old; all that is pending where a journal is half full, or at the end.
    fn cut_due(&mut self, flush: bool) -> Result<(), ScribeError> {
        let now = clock::now().0;
        let pressed: Vec<bool> = self.shared.journals.iter().map(|j| j.used() > j.capacity() / 2).collect();
        self.sealing.hurry(pressed.contains(&true));
        let due: Vec<SessionId> = self
            .sessions
            .iter()
            .filter(|(_, s)| !s.pending.is_empty())
            .filter(|(_, s)| flush || pressed[s.journal] || now.saturating_sub(s.since_ns) > CUT_AGE_NS)
            .map(|(id, _)| *id)
            .collect();
        for session in due {
            self.cut(session, Cutting::All)?;
            if self.batch_is_full() {
                self.commit()?;
            }
        }
        Ok(())
    }

    fn batch_is_full(&self) -> bool {
        self.sealing.batch_bytes >= BATCH_BYTES_MAX || self.sealing.batch.len() >= BATCH_SEGMENTS_MAX
    }

    /// Steps 1 to 3 of the group commit.
    fn commit(&mut self) -> Result<(), ScribeError> {
        if !self.sealing.batch.is_empty() {
            if !self.numbers().opened.is_empty() {
                self.log_entry(None)?;
            }
            self.spool.write(&self.sealing.batch)?;
            self.sealing.batch_bytes = 0;
            for spooled in std::mem::take(&mut self.sealing.batch) {
                if spooled.draft.last {
                    self.complete(&spooled);
                }
            }
        }
        for at in 0..self.cursors.len() {
            let pending =
                self.sessions.values().filter(|s| s.journal == at).filter_map(|s| s.pending.first());
            let mark = pending.min().copied().unwrap_or(self.cursors[at]);
            self.shared.journals[at].reclaim(mark.min(self.cursors[at]))?;
        }
        Ok(())
    }

    fn complete(&mut self, last: &crate::spool::Spooled) {
        let draft = &last.draft;
        self.closed.push(v1::SessionClosed {
            number: draft.number,
            session_id: draft.session.to_field(),
            segments: draft.seq + 1,
            head_hash: bytes::Bytes::copy_from_slice(&last.sealed.hash),
        });
        let journal = self.shared.journals.iter().position(|j| j.id() == draft.journal.journal);
        let journal = journal.map(|at| (at, draft.journal.to));
        self.settling.push(Settling { session: draft.session, journal, logged: false });
    }

    /// What others have to say in the node log.
    fn say_marks(&mut self) -> Result<(), ScribeError> {
        while let Some((mark, done)) = self.marks.pop_front() {
            if let Err(error) = self.log_entry(Some(mark.clone())) {
                self.marks.push_front((mark, done));
                return Err(error);
            }
            // Who asked may have given up waiting.
            let _ = done.send(());
        }
        Ok(())
    }

    /// Step 4, when it is time.
    fn heartbeat(&mut self, flush: bool) -> Result<(), ScribeError> {
        let waited = clock::now().0.saturating_sub(self.entry_ns);
        let news =
            !self.closed.is_empty() || !self.numbers().opened.is_empty() || self.shared.standing().is_news();
        if waited > HEARTBEAT_TIME_NS || (news && (flush || waited > ENTRY_TIME_NS)) {
            self.log_entry(None)?;
        }
        Ok(())
    }

    /// Appends what there is to say to the node log; what could not be written is said the next time.
    fn log_entry(&mut self, mark: Option<Mark>) -> Result<(), ScribeError> {
        // The log first, then the numbers: what the heartbeat says is taken is in this or an earlier entry.
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let (opened, heartbeat) = {
            let mut numbers = self.numbers();
            let opened = std::mem::take(&mut numbers.opened);
            (opened, self.shared.heartbeat(&numbers))
        };
        // What the log says is open is found again after a power cut.
        if !opened.is_empty()
            && let Err(error) =
                self.shared.journals.iter().filter(|j| j.unsynced()).try_for_each(Journal::sync)
        {
            self.numbers().opened.extend(opened);
            return Err(error.into());
        }
        let entry = NodeEntry {
            at_ns: clock::now().0,
            wall: Some(clock::wall()),
            boot_id: self.boot_id.clone(),
            opened,
            closed: std::mem::take(&mut self.closed),
            lost: self.spool.take_lost(),
            heartbeat: Some(heartbeat),
            mark,
            agent: self.shared.standing().due(clock::now().0),
            ..NodeEntry::default()
        };
        let agent = entry.agent.clone();
        let mut parts = split(entry).into_iter();
        while let Some(part) = parts.next() {
            if let Err(error) = log.append(part.clone()) {
                let mut numbers = self.shared.numbers.lock().unwrap_or_else(PoisonError::into_inner);
                for part in std::iter::once(part).chain(parts) {
                    numbers.opened.extend(part.opened);
                    self.closed.extend(part.closed);
                    self.spool.lose(part.lost);
                }
                return Err(error.into());
            }
            self.shared.counters.node_entries.add(1);
        }
        drop(log);
        self.entry_ns = clock::now().0;
        if let Some(agent) = agent {
            self.shared.standing().said(agent, self.entry_ns);
        }
        for settling in &mut self.settling {
            settling.logged = true;
        }
        Ok(())
    }

    /// Step 5.
    fn settle(&mut self) {
        let journals = &self.shared.journals;
        let recovering = self.recovery.is_some();
        let spool = &self.spool;
        self.settling.retain(|settling| {
            let passed = match settling.journal {
                Some((at, to)) => journals[at].reclaimed() >= to,
                // The journals of earlier lives are gone when recovery is over.
                None => !recovering,
            };
            let settled = settling.logged && passed;
            if settled {
                spool.settle(settling.session);
            }
            !settled
        });
    }

    /// Seals what an earlier life left, then deletes its journals. Repeats nothing when it is interrupted: each segment
    /// names the part of the old journal that it holds.
    fn recover(&mut self) -> Result<(), ScribeError> {
        let Some(mut recovery) = self.recovery.take() else { return Ok(()) };
        let done = self.recover_sessions(&mut recovery);
        self.recovery = Some(recovery);
        done?;
        self.commit()?;
        if !self.shared.recovered.swap(true, Ordering::AcqRel)
            && let Err(error) = self.log_entry(None)
        {
            self.shared.recovered.store(false, Ordering::Release);
            return Err(error);
        }
        for file in self.recovery.iter().flat_map(|recovery| &recovery.files) {
            // Gone for good, before the segments go that say what in it is done.
            remove(file).map_err(|source| JournalError::Io {
                path: file.clone(),
                doing: "removing it",
                source,
            })?;
        }
        self.recovery = None;
        self.settle();
        Ok(())
    }

    fn recover_sessions(&mut self, recovery: &mut Recovery) -> Result<(), ScribeError> {
        self.spool.lose(std::mem::take(&mut recovery.lost));
        for session in recovery.complete.drain(..) {
            self.settling.push(Settling { session, journal: None, logged: true });
        }
        for closed in recovery.unsaid.drain(..) {
            if let Ok(session) = SessionId::try_from(&closed.session_id[..]) {
                self.settling.push(Settling { session, journal: None, logged: false });
                self.closed.push(closed);
            }
        }
        while let Some(session) = recovery.sessions.pop() {
            self.recover_session(session)?;
            if self.batch_is_full() {
                self.commit()?;
            }
        }
        Ok(())
    }

    fn recover_session(&mut self, mut left: RecoveredSession) -> Result<(), SealError> {
        let mut cut = Cut::new(left.journal, left.to);
        let mut last_ns = left.last_ns;
        if left.rotten {
            let from_ns = left.records.first().map_or(last_ns, |record| record.at_ns);
            cut.add_event(&gap("spool-corrupt", from_ns, from_ns));
        }
        for record in &left.records {
            if !cut.takes(record.payload.len()) {
                self.sealing.seal(&mut left.chain, &cut, false, left.wall)?;
                cut = Cut::new(left.journal, record.from);
            }
            cut.add(record.from, record.to, record.at_ns, &record.payload);
            last_ns = last_ns.max(record.at_ns);
        }
        if !left.closed {
            self.shared.counters.sessions_recovered.add(1);
            // The boot clock of another boot says nothing about this one.
            let until = if self.same_boot { clock::now().0 } else { last_ns };
            abandoned(&mut cut, "agent-died", last_ns, until);
        }
        self.sealing.seal(&mut left.chain, &cut, true, left.wall)
    }

    /// Draws the next generation when it is due. Where that fails the present one goes on, which is counted: recording
    /// stops for a full disk only when the journal is full too.
    fn renew_generation(&mut self) {
        let moment = (self.shared.moment)();
        let now = moment.boot_ns;
        if !self.sealing.generation.is_over(moment) || now < self.generation_retry_ns {
            return;
        }
        match Generation::draw(&self.ring, &self.shared.node, &self.spool, moment) {
            Ok(generation) => {
                self.spool.prune_wraps(generation.id);
                self.sealing.generation = generation;
                self.shared.keys_ran_out.store(false, Ordering::Release);
                self.shared.counters.generations.add(1);
            }
            Err(error) => {
                self.generation_retry_ns = now + GENERATION_RETRY_NS;
                self.shared.keys_ran_out.store(self.ring.ran_out(moment.day), Ordering::Release);
                self.shared.counters.generations_overdue.add(1);
                warn_generation(&error);
            }
        }
    }

    /// Appends closing events that had found the journal full.
    fn append_late(&mut self) {
        let mut late = self.shared.late.lock().unwrap_or_else(PoisonError::into_inner);
        late.retain(|l| self.shared.append(l.journal, l.session, &l.event, FLAG_CLOSED).is_err());
    }

    fn numbers(&self) -> std::sync::MutexGuard<'_, super::recorder::Numbers> {
        self.shared.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end of a session that nobody ended: a gap from its last event on, then `Closed`.
fn abandoned(cut: &mut Cut, cause: &str, from_ns: u64, to_ns: u64) {
    let to_ns = to_ns.max(cut.last_ns());
    cut.add_event(&gap(cause, from_ns, to_ns));
    let closed = v1::Closed { cause: cause.to_owned(), ..Default::default() };
    cut.add_event(&Event { at_ns: to_ns, kind: Some(Kind::Closed(closed)) });
}

fn gap(reason: &str, from_ns: u64, to_ns: u64) -> Event {
    let gap = v1::Gap { reason: reason.to_owned(), from_ns, to_ns, ..Default::default() };
    Event { at_ns: to_ns, kind: Some(Kind::Gap(gap)) }
}

fn remove(file: &std::path::Path) -> std::io::Result<()> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    file.parent().map_or(Ok(()), sync_folder)
}

fn warn_generation(error: &GenerationError) {
    let cause = std::error::Error::source(error).map(ToString::to_string);
    tracing::warn!(%error, cause, "the present sealing key goes on beyond its time");
}
