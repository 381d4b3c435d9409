//! What the spool holds: which segments, in which order they leave, when they may go, and how much is too much.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use prost::Message;
use tokio::sync::Notify;
use weir_proto::seal::segment::HEADER_BYTES;
use weir_proto::seal::{Draft, Hash, Sealed, Segment, SegmentHeader, VerifyingKey};
use weir_proto::{GenerationId, SessionId, v1};

use super::files::{
    Batch, FILE_BYTES_MAX, FileError, TEMPORARY_SUFFIX, name, open, parse_file, parse_name, read_bounded,
};
use crate::recording::Counters;

/// No wrap's file is longer.
const WRAP_BYTES_MAX: usize = 4096;

/// With a pause in between: a disk that does not give a segment in a minute keeps it until the next start.
const READ_ATTEMPTS_MAX: u32 = 12;

/// How much the spool may hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SpoolLimits {
    pub(crate) quota_bytes: u64,
    /// The spool leaves this much of its disk free, or a twentieth of a small disk.
    pub(crate) free_floor_bytes: u64,
    /// Each takes a file and some 200 bytes of memory.
    pub(crate) segments_max: u64,
}

impl Default for SpoolLimits {
    fn default() -> Self {
        Self { quota_bytes: 10 << 30, free_floor_bytes: 256 << 20, segments_max: 500_000 }
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum SpoolError {
    #[error("the spool is full: {0}")]
    Full(&'static str),
    #[error("spool folder {path}: {doing} failed")]
    Io { path: PathBuf, doing: &'static str, source: io::Error },
    #[error(
        "reading {path} failed; if its disk is damaged there for good, move the file to the spool's quarantine folder"
    )]
    Unreadable { path: PathBuf, source: io::Error },
}

/// Names one segment in the spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SegmentRef {
    pub(crate) session: SessionId,
    pub(crate) seq: u64,
}

/// A sealed segment with what its header was made from.
#[derive(Debug, Clone)]
pub(crate) struct Spooled {
    pub(crate) draft: Draft,
    pub(crate) sealed: Sealed,
}

/// How far a segment is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Waiting,
    /// On the stream, or not known to be lost with an earlier one.
    Sent,
    /// Held by the collector; kept because recovery needs a session's newest segment.
    Receipted,
    /// Cannot leave: refused for good, or a predecessor is lost.
    Stuck,
}

impl Stage {
    fn is_on_its_way(self) -> bool {
        matches!(self, Self::Waiting | Self::Sent)
    }
}

struct Entry {
    draft: Draft,
    bytes: u64,
    /// Known for what was written or read in this life.
    hash: Option<Hash>,
    stage: Stage,
    order: u64,
    /// How often reading it failed, not for its content.
    unread: u32,
}

#[derive(Default)]
struct Session {
    segments: BTreeMap<u64, Entry>,
    /// Closed in the node log, and nothing of it is in the journal: its last segment may go too.
    settled: bool,
    stuck: Option<Stuck>,
}

/// From this segment on a session cannot leave.
#[derive(Clone, Copy)]
struct Stuck {
    from: u64,
    why: &'static str,
}

#[derive(Default)]
struct State {
    sessions: BTreeMap<SessionId, Session>,
    /// What waits to be sent, first come first.
    queue: BTreeSet<(u64, SegmentRef)>,
    generations: HashMap<GenerationId, u64>,
    lost: Vec<v1::SegmentsLost>,
    bytes: u64,
    segments: u64,
    /// Those that are on their way: not receipted, and not stuck.
    unreceipted: u64,
    next_order: u64,
}

/// The spool folder of one node agent.
pub(crate) struct Spool {
    segments: PathBuf,
    wraps: PathBuf,
    quarantine: PathBuf,
    limits: SpoolLimits,
    key: VerifyingKey,
    state: Mutex<State>,
    changed: Notify,
    counters: Arc<Counters>,
}

/// A session's newest segment, read whole: where its chain goes on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Newest {
    pub(crate) draft: Draft,
    pub(crate) hash: Hash,
    /// There was a newer one, which did not read back.
    pub(crate) mended: bool,
}

impl Spool {
    /// Opens the folder, makes it where it is missing, and looks through what is there. Unreadable files are set aside.
    pub(crate) fn open(
        root: &Path,
        limits: SpoolLimits,
        key: VerifyingKey,
        counters: Arc<Counters>,
    ) -> Result<Self, SpoolError> {
        let spool = Self {
            segments: root.join("segments"),
            wraps: root.join("wraps"),
            quarantine: root.join("quarantine"),
            limits,
            key,
            state: Mutex::default(),
            changed: Notify::new(),
            counters,
        };
        for folder in [&spool.segments, &spool.wraps, &spool.quarantine] {
            crate::recording::make_folder(folder).map_err(spool.failed(folder, "making it"))?;
        }
        spool.look_through()?;
        spool.measure(&spool.lock());
        Ok(spool)
    }

    fn look_through(&self) -> Result<(), SpoolError> {
        let mut found: Vec<(SegmentRef, String)> = Vec::new();
        for file in fs::read_dir(&self.segments).map_err(self.failed(&self.segments, "listing it"))? {
            let file = file.map_err(self.failed(&self.segments, "listing it"))?;
            let Ok(name) = file.file_name().into_string() else { continue };
            match parse_name(&name) {
                Some((session, seq)) => found.push((SegmentRef { session, seq }, name)),
                // A write that never finished: its bytes were never promised to anybody.
                None if name.ends_with(TEMPORARY_SUFFIX) => {
                    let _ = fs::remove_file(file.path());
                }
                None => tracing::warn!(name, "a file in the spool that is no segment is left alone"),
            }
        }
        found.sort_unstable();
        for (segment, name) in found {
            match self.read_header(&name, segment) {
                Ok((draft, bytes)) => self.take_in(&mut self.lock(), draft, bytes, None),
                Err(FileError::Read(source)) => return Err(self.unreadable(segment, source)),
                Err(error) => {
                    self.set_aside(&mut self.lock(), segment, &error.to_string());
                }
            }
        }
        self.find_holes();
        Ok(())
    }

    fn read_header(&self, name: &str, expected: SegmentRef) -> Result<(Draft, u64), FileError> {
        use std::io::Read;
        let mut file = open(&self.segments.join(name))?;
        let bytes = file.metadata()?.len();
        let mut header = [0; HEADER_BYTES];
        if bytes < header.len() as u64 {
            return Err(FileError::Length);
        }
        file.read_exact(&mut header)?;
        let header = SegmentHeader::parse(&header)?;
        let draft = header.draft;
        if bytes as usize != HEADER_BYTES + header.cipher_len as usize + weir_proto::seal::SIGNATURE_BYTES {
            return Err(FileError::Length);
        }
        if (draft.session, draft.seq) != (expected.session, expected.seq) {
            return Err(FileError::Name { session: draft.session, found: draft.seq });
        }
        Ok((draft, bytes))
    }

    /// A hole in a session's numbers: what comes after it can never be accepted.
    fn find_holes(&self) {
        let mut state = self.lock();
        let holes: Vec<SegmentRef> = state
            .sessions
            .iter()
            .filter(|(_, held)| held.stuck.is_none())
            .filter_map(|(session, held)| {
                let mut seqs = held.segments.keys();
                let mut previous = *seqs.next()?;
                let after = seqs.find(|seq| {
                    let follows = **seq == previous + 1;
                    previous = **seq;
                    !follows
                })?;
                Some(SegmentRef { session: *session, seq: *after - 1 })
            })
            .collect();
        for hole in holes {
            self.strand(&mut state, hole, "spool-missing");
        }
    }

    fn take_in(&self, state: &mut State, draft: Draft, bytes: u64, hash: Option<Hash>) {
        let order = state.next_order;
        state.next_order += 1;
        let at = SegmentRef { session: draft.session, seq: draft.seq };
        let session = state.sessions.entry(draft.session).or_default();
        let stuck = session.stuck.is_some_and(|stuck| stuck.from <= draft.seq);
        let stage = if stuck { Stage::Stuck } else { Stage::Waiting };
        let entry = Entry { draft, bytes, hash, stage, order, unread: 0 };
        if session.segments.insert(draft.seq, entry).is_none() {
            *state.generations.entry(draft.generation).or_default() += 1;
            state.bytes += bytes;
            state.segments += 1;
            state.unreceipted += u64::from(stage == Stage::Waiting);
        }
        if stage == Stage::Waiting {
            state.queue.insert((order, at));
        }
    }

    /// Each session's newest segment, read and checked whole. One that does not read back is set aside, and the one
    /// before it is the newest then; a session without any left is lost, which the node log will say.
    pub(crate) fn newest(&self) -> Result<Vec<Newest>, SpoolError> {
        let sessions: Vec<SessionId> = self.lock().sessions.keys().copied().collect();
        let mut newest = Vec::new();
        for session in sessions {
            loop {
                let last = self.lock().sessions.get(&session).and_then(|s| s.segments.keys().last().copied());
                let Some(seq) = last else {
                    // Nothing is left: if the journal still has its beginning, it begins again.
                    self.lock().sessions.remove(&session);
                    break;
                };
                let at = SegmentRef { session, seq };
                if let Some((segment, _)) = self.read(at).map_err(|source| self.unreadable(at, source))? {
                    let mended = self.lock().mend(session, seq + 1);
                    newest.push(Newest { draft: *segment.draft(), hash: *segment.hash(), mended });
                    break;
                }
            }
        }
        Ok(newest)
    }

    /// Writes a batch: all of it is on the disk when this returns. After an error, the same bytes are to be written again.
    pub(crate) fn write(&self, batch: &[Spooled]) -> Result<(), SpoolError> {
        let adds: u64 = batch.iter().map(|s| (s.sealed.bytes.len() + s.sealed.signature.len()) as u64).sum();
        self.check_limits(adds, batch.len() as u64)?;
        let fail = || self.failed(&self.segments, "writing segments");
        let mut files = Batch::new(&self.segments);
        for Spooled { draft, sealed } in batch {
            files.add(&name(draft.session, draft.seq), &[&sealed.bytes, &sealed.signature]).map_err(fail())?;
        }
        files.commit().map_err(fail())?;
        let mut state = self.lock();
        for Spooled { draft, sealed } in batch {
            let bytes = (sealed.bytes.len() + sealed.signature.len()) as u64;
            self.take_in(&mut state, *draft, bytes, Some(sealed.hash));
            self.prune(&mut state, draft.session);
        }
        self.measure(&state);
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    fn check_limits(&self, bytes: u64, segments: u64) -> Result<(), SpoolError> {
        let state = self.lock();
        let full = |what| {
            self.counters.spool_full.add(1);
            Err(SpoolError::Full(what))
        };
        if state.bytes + bytes > self.limits.quota_bytes {
            return full(
                "its quota is used up; raise spool_quota_bytes or see why the collector takes nothing",
            );
        }
        if state.segments + segments > self.limits.segments_max {
            return full("it holds as many segments as it may; see why the collector takes nothing");
        }
        drop(state);
        // Where the disk cannot be asked, writing will tell.
        if let Ok(disk) = nix::sys::statvfs::statvfs(&self.segments) {
            let unit = disk.fragment_size();
            let free = disk.blocks_available().saturating_mul(unit);
            let floor = self.limits.free_floor_bytes.min(disk.blocks().saturating_mul(unit) / 20);
            if free < floor.saturating_add(bytes) {
                return full("its disk is at the free-space floor; make room on it");
            }
        }
        Ok(())
    }

    /// Writes a generation's wrap: before the first segment that is sealed with it.
    pub(crate) fn write_wrap(&self, generation: GenerationId, wrap: &v1::Wrap) -> Result<(), SpoolError> {
        let mut files = Batch::new(&self.wraps);
        files
            .add(&format!("{generation}.wrap"), &[&wrap.encode_to_vec()])
            .and_then(|()| files.commit())
            .map_err(self.failed(&self.wraps, "writing a wrapped key"))
    }

    /// The wrap that a segment needs; `None` when it is lost, an error when it cannot be read now.
    pub(crate) fn wrap(&self, generation: GenerationId) -> io::Result<Option<v1::Wrap>> {
        match read_bounded(&self.wraps.join(format!("{generation}.wrap")), WRAP_BYTES_MAX) {
            Ok(bytes) => Ok(v1::Wrap::decode(bytes).ok()),
            Err(FileError::Read(error)) => Err(error),
            Err(_) => Ok(None),
        }
    }

    /// Deletes wraps that no segment here needs, except the current generation's.
    pub(crate) fn prune_wraps(&self, current: GenerationId) {
        let Ok(files) = fs::read_dir(&self.wraps) else { return };
        for file in files.flatten() {
            let name = file.file_name();
            let generation = name.to_str().and_then(|n| n.strip_suffix(".wrap")).and_then(|n| n.parse().ok());
            if let Some(generation) = generation
                && generation != current
                && !self.lock().generations.contains_key(&generation)
            {
                let _ = fs::remove_file(file.path());
            }
        }
    }

    /// The next segment to send; it is then on its way.
    pub(crate) fn next(&self) -> Option<SegmentRef> {
        let mut state = self.lock();
        let (_, at) = state.queue.pop_first()?;
        if let Some(entry) = state.entry(at) {
            entry.stage = Stage::Sent;
        }
        Some(at)
    }

    /// The bytes to send. What is damaged or gone is set aside, and the node log will say so: `None`. An error says
    /// nothing about the file.
    pub(crate) fn read(&self, at: SegmentRef) -> io::Result<Option<(Segment, Bytes)>> {
        let path = self.segments.join(name(at.session, at.seq));
        let read = read_bounded(&path, FILE_BYTES_MAX)
            .and_then(|bytes| parse_file(bytes, at.session, at.seq, &self.key));
        let mut state = self.lock();
        match read {
            Ok((segment, signature)) => {
                if let Some(entry) = state.entry(at) {
                    entry.hash = Some(*segment.hash());
                    entry.unread = 0;
                }
                Ok(Some((segment, signature)))
            }
            Err(FileError::Read(error)) => Err(error),
            Err(error) => {
                self.set_aside(&mut state, at, &error.to_string());
                self.measure(&state);
                Ok(None)
            }
        }
    }

    /// It, or its wrap, could not be read now: it is the next again. Where that happens over and over, it stays until the
    /// next start and lets others pass; what this process or its machine is short of is not held against it.
    pub(crate) fn unread(&self, at: SegmentRef, error: &io::Error) {
        let mut state = self.lock();
        let Some(entry) = state.entry(at) else { return };
        entry.unread += u32::from(!is_shortage(error));
        if entry.unread >= READ_ATTEMPTS_MAX {
            state.stick(at.session, at.seq, "its disk does not give it back");
        } else if entry.stage == Stage::Sent {
            entry.stage = Stage::Waiting;
            let order = entry.order;
            state.queue.insert((order, at));
        }
        self.measure(&state);
    }

    fn set_aside(&self, state: &mut State, at: SegmentRef, why: &str) {
        let file = name(at.session, at.seq);
        let moved = fs::rename(self.segments.join(&file), self.quarantine.join(&file));
        tracing::error!(session = %at.session, seq = at.seq, why, kept = moved.is_ok(),
            "a spooled segment cannot be read back; it is set aside in the spool's quarantine, and its session ends there");
        self.counters.spool_quarantined.add(1);
        state.remove(at);
        self.strand(state, at, if moved.is_ok() { "spool-corrupt" } else { "spool-missing" });
    }

    /// The session has lost this segment: what follows it cannot be accepted by anybody, and is kept.
    fn strand(&self, state: &mut State, at: SegmentRef, reason: &'static str) {
        state.lost.push(v1::SegmentsLost {
            session_id: at.session.to_field(),
            from_seq: at.seq,
            reason: reason.to_owned(),
        });
        state.stick(at.session, at.seq, reason);
    }

    /// What was lost since the last call, for the node log.
    pub(crate) fn take_lost(&self) -> Vec<v1::SegmentsLost> {
        std::mem::take(&mut self.lock().lost)
    }

    /// Sessions that others know are lost, or what [`Spool::take_lost`] gave back because the node log could not be written.
    /// What is known of a session already is not said less exactly.
    pub(crate) fn lose(&self, lost: Vec<v1::SegmentsLost>) {
        let mut state = self.lock();
        let known: HashSet<Bytes> = state.lost.iter().map(|lost| lost.session_id.clone()).collect();
        state.lost.extend(lost.into_iter().filter(|lost| !known.contains(&lost.session_id)));
    }

    /// A verified receipt. `false` when it names what this spool never sent in these bytes: nothing is deleted then.
    pub(crate) fn receipt(&self, at: SegmentRef, hash: &Hash) -> bool {
        let mut state = self.lock();
        let Some(entry) = state.entry(at) else { return false };
        if entry.hash.as_ref() != Some(hash) {
            return false;
        }
        let order = entry.order;
        let was = std::mem::replace(&mut entry.stage, Stage::Receipted);
        state.unreceipted -= u64::from(was.is_on_its_way());
        state.queue.remove(&(order, at));
        self.prune(&mut state, at.session);
        self.measure(&state);
        true
    }

    /// The session is closed in the node log, and the journal holds nothing of it any more.
    pub(crate) fn settle(&self, session: SessionId) {
        let mut state = self.lock();
        if let Some(held) = state.sessions.get_mut(&session) {
            held.settled = true;
            self.prune(&mut state, session);
            self.measure(&state);
        }
    }

    /// Deletes what the collector holds. A session's newest segment stays until the session is settled: it is where a
    /// restarted agent finds the head of the chain and how far the journal was cut.
    fn prune(&self, state: &mut State, session: SessionId) {
        let Some(held) = state.sessions.get(&session) else { return };
        let newest = held.segments.keys().last().copied();
        // From the front only: what is left never has a hole.
        let done: Vec<u64> = held
            .segments
            .iter()
            .take_while(|(seq, entry)| {
                let needed = Some(**seq) == newest && !(held.settled && entry.draft.last);
                entry.stage == Stage::Receipted && !needed
            })
            .map(|(seq, _)| *seq)
            .collect();
        for seq in done {
            let _ = fs::remove_file(self.segments.join(name(session, seq)));
            state.remove(SegmentRef { session, seq });
        }
    }

    /// The stream ended: what was on it and has no receipt is to be sent again.
    pub(crate) fn resend_all(&self) {
        let mut state = self.lock();
        let state = &mut *state;
        for (session, held) in &mut state.sessions {
            for (seq, entry) in held.segments.iter_mut().filter(|(_, e)| e.stage == Stage::Sent) {
                entry.stage = Stage::Waiting;
                state.queue.insert((entry.order, SegmentRef { session: *session, seq: *seq }));
            }
        }
    }

    /// The collector wants this segment first. `false` when it is not here.
    pub(crate) fn resend_from(&self, at: SegmentRef) -> bool {
        let mut state = self.lock();
        let state = &mut *state;
        let Some(held) = state.sessions.get_mut(&at.session) else { return false };
        if !held.segments.contains_key(&at.seq) {
            return false;
        }
        for (seq, entry) in held.segments.range_mut(at.seq..) {
            if matches!(entry.stage, Stage::Sent | Stage::Receipted) {
                let was = std::mem::replace(&mut entry.stage, Stage::Waiting);
                state.unreceipted += u64::from(was == Stage::Receipted);
                state.queue.insert((entry.order, SegmentRef { session: at.session, seq: *seq }));
            }
        }
        self.measure(state);
        true
    }

    /// The collector asks for a segment that is gone: it, or what came before it, is lost to both sides.
    pub(crate) fn missing(&self, at: SegmentRef) {
        let mut state = self.lock();
        self.strand(&mut state, at, "spool-missing");
        self.measure(&state);
    }

    /// This segment and what follows it stays here, for a person to look at.
    pub(crate) fn stick(&self, at: SegmentRef, why: &'static str) {
        let mut state = self.lock();
        state.stick(at.session, at.seq, why);
        self.measure(&state);
    }

    /// The first sessions that cannot leave, and why.
    pub(crate) fn stuck(&self, most: usize) -> Vec<(SessionId, &'static str)> {
        self.lock().sessions.iter().filter_map(|(id, held)| Some((*id, held.stuck?.why))).take(most).collect()
    }

    /// How many segments and bytes are held.
    pub(crate) fn held(&self) -> (u64, u64) {
        let state = self.lock();
        (state.segments, state.bytes)
    }

    /// Segments on their way: that no receipt has come for, and that are not stuck.
    pub(crate) fn unreceipted(&self) -> u64 {
        self.lock().unreceipted
    }

    /// Waits until something was added.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    fn measure(&self, state: &State) {
        self.counters.spool_segments.set(state.segments);
        self.counters.spool_unreceipted.set(state.unreceipted);
        self.counters.spool_bytes.set(state.bytes);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unreadable(&self, at: SegmentRef, source: io::Error) -> SpoolError {
        SpoolError::Unreadable { path: self.segments.join(name(at.session, at.seq)), source }
    }

    fn failed(&self, path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> SpoolError + use<> {
        let path = path.to_owned();
        move |source| SpoolError::Io { path, doing, source }
    }
}

/// Not the file's disk: no open file, or no memory, to be had.
fn is_shortage(error: &io::Error) -> bool {
    const SHORT: [i32; 4] = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EAGAIN];
    error.raw_os_error().is_none_or(|errno| SHORT.contains(&errno))
}

impl State {
    fn entry(&mut self, at: SegmentRef) -> Option<&mut Entry> {
        self.sessions.get_mut(&at.session)?.segments.get_mut(&at.seq)
    }

    fn remove(&mut self, at: SegmentRef) {
        let Some(held) = self.sessions.get_mut(&at.session) else { return };
        let Some(entry) = held.segments.remove(&at.seq) else { return };
        // Settled only means something for the last segment; an open session without files begins anew.
        if held.segments.is_empty() && held.stuck.is_none() {
            self.sessions.remove(&at.session);
        }
        self.queue.remove(&(entry.order, at));
        self.bytes = self.bytes.saturating_sub(entry.bytes);
        self.segments = self.segments.saturating_sub(1);
        self.unreceipted -= u64::from(entry.stage.is_on_its_way());
        if let Some(count) = self.generations.get_mut(&entry.draft.generation) {
            *count -= 1;
            if *count == 0 {
                self.generations.remove(&entry.draft.generation);
            }
        }
    }

    /// What was set aside was the session's newest: its chain can go on from what is left, at `next`.
    fn mend(&mut self, session: SessionId, next: u64) -> bool {
        let Some(held) = self.sessions.get_mut(&session) else { return false };
        if held.stuck.is_none_or(|stuck| stuck.from != next) {
            return false;
        }
        held.stuck = None;
        self.lost.retain(|lost| lost.session_id[..] != session.as_bytes()[..] || lost.from_seq < next);
        true
    }

    fn stick(&mut self, session: SessionId, from: u64, why: &'static str) {
        let held = self.sessions.entry(session).or_default();
        if held.stuck.is_none_or(|stuck| from <= stuck.from) {
            held.stuck = Some(Stuck { from, why });
        }
        for (seq, entry) in held.segments.range_mut(from..) {
            if entry.stage != Stage::Receipted {
                let was = std::mem::replace(&mut entry.stage, Stage::Stuck);
                self.unreceipted -= u64::from(was.is_on_its_way());
                self.queue.remove(&(entry.order, SegmentRef { session, seq: *seq }));
            }
        }
    }
}
