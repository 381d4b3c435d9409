//! What the proxy holds: the [`Recorder`] opens sessions, a [`SessionRecord`] takes their events and ends exactly once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use weir_proto::seal::events::EVENT_BYTES_MAX;
use weir_proto::v1::event::Kind;
use weir_proto::v1::{self, Event};
use weir_proto::{NodeId, SessionId};
use weir_protocols::mask::Mark;

use super::batch::{Batch, pieces};
use super::generation::Moment;
use super::standing::Standing;
use super::{Counters, clock};
use crate::journal::{Append, FLAG_CLOSED, FLAG_OPENED, Full, Journal, JournalError};

/// How long a new session waits for room in the journal before it is refused.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an event waits for room in the journal before its connection is closed.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// The record cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("the journal stayed full for {0:?}: the spool or its disk is full, or too slow")]
    Full(Duration),
    #[error("recording has stopped")]
    Stopped,
    #[error(
        "the collector's sealing keys have run out too long ago for what is recorded now ever to be opened: connect to the collector"
    )]
    KeysRanOut,
    #[error("the journal could not be written to the disk")]
    Sync(#[from] JournalError),
}

/// Opens sessions. A cheap handle.
#[derive(Clone)]
pub(crate) struct Recorder {
    shared: Arc<Shared>,
}

/// What the recorder, its sessions and the scribe share.
pub(super) struct Shared {
    pub(super) node: NodeId,
    pub(super) journals: Vec<Journal>,
    pub(super) numbers: Mutex<Numbers>,
    /// Closing events that found even the reserve full; the scribe appends them as soon as there is room. At most one
    /// per open session.
    pub(super) late: Mutex<Vec<Late>>,
    pub(super) stopped: AtomicBool,
    /// What an earlier life left has its end, in the node log too.
    pub(super) recovered: AtomicBool,
    /// There is a collector that what is spooled is on its way to.
    pub(super) ships: bool,
    pub(super) bell: Bell,
    pub(super) counters: Arc<Counters>,
    /// What would be sealed now could soon not be opened by anybody: no session is begun.
    pub(super) keys_ran_out: AtomicBool,
    /// How the agent itself stands, for the node log.
    pub(super) standing: Mutex<Standing>,
    /// What generations go by.
    pub(super) moment: fn() -> Moment,
}

/// The session numbers of the node log.
pub(super) struct Numbers {
    pub(super) next: u64,
    /// Taken, and not in the node log yet.
    pub(super) opened: Vec<v1::SessionOpened>,
    pub(super) open: u64,
}

pub(super) struct Late {
    pub(super) journal: usize,
    pub(super) session: SessionId,
    pub(super) event: Event,
}

/// Wakes the scribe.
#[derive(Default)]
pub(super) struct Bell {
    rung: Mutex<bool>,
    ringing: Condvar,
}

impl Bell {
    pub(super) fn ring(&self) {
        *self.rung.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.ringing.notify_one();
    }

    /// Returns when it rings, or after `at_most`.
    pub(super) fn wait(&self, at_most: Duration) {
        let rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut rung, _) = self
            .ringing
            .wait_timeout_while(rung, at_most, |rung| !*rung)
            .unwrap_or_else(PoisonError::into_inner);
        *rung = false;
    }
}

impl Recorder {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Opens a session: it has its number, and its `Opened` is in the journal, before this returns. Fills in the node,
    /// the number, the wall clock, and the session's id where it is missing.
    pub(crate) async fn open(&self, mut opened: v1::Opened) -> Result<SessionRecord, RecordError> {
        let shared = &self.shared;
        let session = SessionId::try_from(&opened.session_id[..]).unwrap_or_else(|_| SessionId::generate());
        opened.session_id = session.to_field();
        opened.node_id = shared.node.to_field();
        opened.wall = Some(clock::wall());
        // Any spread will do; ids end in random bytes.
        let journal = session.as_bytes()[15] as usize % shared.journals.len();
        shorten(&mut opened);
        let mut event = Event { at_ns: clock::now().0, kind: Some(Kind::Opened(opened)) };
        tokio::time::timeout(OPEN_TIMEOUT, async {
            loop {
                if shared.stopped.load(Ordering::Acquire) {
                    return Err(RecordError::Stopped);
                }
                if shared.keys_ran_out.load(Ordering::Acquire) {
                    return Err(RecordError::KeysRanOut);
                }
                match shared.take_number(journal, session, &mut event) {
                    Ok(()) => return Ok(()),
                    Err(Full) => shared.room(journal, event.encoded_len()).await,
                }
            }
        })
        .await
        .map_err(|_| RecordError::Full(OPEN_TIMEOUT))??;
        shared.counters.sessions_opened.add(1);
        let batch = Batch::default();
        Ok(SessionRecord { shared: shared.clone(), journal, session, batch, events: 1, closed: false })
    }

    #[cfg(test)]
    pub(crate) fn counters(&self) -> &Arc<Counters> {
        &self.shared.counters
    }
}

impl Shared {
    /// A number is taken only together with its `Opened`: under one lock, so the node log never sees a hole.
    fn take_number(&self, journal: usize, session: SessionId, event: &mut Event) -> Result<(), Full> {
        let mut numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Kind::Opened(opened)) = &mut event.kind {
            opened.node_number = numbers.next;
        }
        self.append(journal, session, event, FLAG_OPENED)?;
        let number = numbers.next;
        numbers.opened.push(v1::SessionOpened { number, session_id: session.to_field() });
        numbers.next += 1;
        numbers.open += 1;
        Ok(())
    }

    /// Encodes an event straight into the journal.
    pub(super) fn append(
        &self,
        journal: usize,
        session: SessionId,
        event: &Event,
        flags: u8,
    ) -> Result<(), Full> {
        let journal = &self.journals[journal];
        let payload = event.encoded_len();
        let closing = flags & FLAG_CLOSED != 0;
        let what = Append { session, at_ns: event.at_ns, flags, payload, closing };
        journal.append(&what, |mut room| {
            // The room is exactly as long as the event says it is.
            let encoded = event.encode(&mut room);
            debug_assert!(encoded.is_ok());
        })?;
        self.counters.recorded_events.add(1);
        self.counters.recorded_bytes.add(payload as u64);
        if closing || journal.used() > journal.capacity() / 2 {
            self.bell.ring();
        }
        Ok(())
    }

    /// Appends what a batch holds, as far as there is room. Gives how many events are in the journal now.
    fn append_batch(
        &self,
        journal: usize,
        session: SessionId,
        batch: &mut Batch,
    ) -> (usize, Result<(), Full>) {
        let journal = &self.journals[journal];
        let (mut count, mut bytes, mut full) = (0, 0, Ok(()));
        let mut appending = journal.appending();
        for part in batch.parts() {
            let what = Append { session, at_ns: part.at_ns, flags: 0, payload: part.len(), closing: false };
            full = appending.append(&what, |room| room.copy_from_slice(part.head()), part.body());
            if full.is_err() {
                break;
            }
            count += 1;
            bytes += part.len() as u64;
        }
        drop(appending);
        batch.done(count);
        self.counters.recorded_events.add(count as u64);
        self.counters.recorded_bytes.add(bytes);
        if journal.used() > journal.capacity() / 2 {
            self.bell.ring();
        }
        (count, full)
    }

    /// Where the numbers stand.
    pub(super) fn heartbeat(&self, numbers: &Numbers) -> v1::Heartbeat {
        let counters = &self.counters;
        v1::Heartbeat {
            next_number: numbers.next,
            open_sessions: numbers.open,
            spooled_segments: if self.ships { counters.spool_unreceipted.value() } else { 0 },
            spooled_bytes: counters.spool_bytes.value(),
            redirected: counters.kernel_redirected.value(),
            refused: counters.kernel_refused.value(),
            unobserved: counters.kernel_unobserved.value(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            recovered: self.recovered.load(Ordering::Acquire),
        }
    }

    pub(super) fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn room(&self, journal: usize, payload: usize) {
        self.counters.journal_full_waits.add(1);
        self.bell.ring();
        self.journals[journal].room(payload).await;
    }
}

/// The session numbers, for whoever finds that the collector knows more of them than this disk.
pub(crate) struct Numbering(Arc<Shared>);

impl Numbering {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// Goes on at this number, if that is ahead, and not by more than so many: else `None`, and nothing has happened.
    /// Gives the own one, what is opened and not in the node log yet, and the heartbeat that belongs to an entry which
    /// says it.
    pub(crate) fn resume_at(
        &self,
        next: u64,
        jump_max: u64,
    ) -> Option<(u64, Vec<v1::SessionOpened>, v1::Heartbeat)> {
        let mut numbers = self.0.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        let own = numbers.next;
        if next.saturating_sub(own) > jump_max {
            return None;
        }
        numbers.next = own.max(next);
        Some((own, std::mem::take(&mut numbers.opened), self.0.heartbeat(&numbers)))
    }

    /// The entry could not be written.
    pub(crate) fn put_back(&self, opened: Vec<v1::SessionOpened>) {
        self.0.numbers.lock().unwrap_or_else(PoisonError::into_inner).opened.extend(opened);
    }
}

/// One session's record. Dropped without [`SessionRecord::close`], it says that the recorder was left by an error.
pub(crate) struct SessionRecord {
    shared: Arc<Shared>,
    journal: usize,
    session: SessionId,
    /// What is not in the journal yet.
    batch: Batch,
    events: u64,
    closed: bool,
}

impl SessionRecord {
    #[cfg(test)]
    pub(crate) fn session(&self) -> SessionId {
        self.session
    }

    /// Gathers an event. `write` appends its encoding; one that is too long leaves a gap.
    pub(crate) fn add(&mut self, at_ns: u64, exchange: u64, write: impl FnOnce(&mut Vec<u8>)) {
        self.batch.add(at_ns, Bytes::new(), write);
        self.bound(at_ns, exchange, 0);
    }

    pub(crate) fn add_event(&mut self, event: &Event) {
        self.batch.add_event(event);
        self.bound(event.at_ns, 0, 0);
    }

    /// Gathers protocol bytes, uncopied. Long data becomes several events.
    pub(crate) fn add_data(
        &mut self,
        at_ns: u64,
        exchange: u64,
        direction: v1::Direction,
        data: &Bytes,
        marks: &[Mark],
    ) {
        for piece in pieces(data, marks) {
            self.batch.add_data(at_ns, exchange, direction, &piece);
            self.bound(at_ns, exchange, piece.bytes.len() as u64);
        }
    }

    /// So much is gathered that it is to be appended before more is.
    pub(crate) fn is_full(&self) -> bool {
        self.batch.is_full()
    }

    /// Appends what was gathered to the journal: once this returns, a kill of the agent does not lose it. Waits only while the
    /// journal is full; after an error the rest may be tried again.
    pub(crate) async fn append(&mut self) -> Result<(), RecordError> {
        if self.batch.is_empty() || self.try_append().is_ok() {
            return Ok(());
        }
        tokio::time::timeout(WRITE_TIMEOUT, async {
            loop {
                if self.shared.stopped.load(Ordering::Acquire) {
                    return Err(RecordError::Stopped);
                }
                self.shared.room(self.journal, EVENT_BYTES_MAX).await;
                if self.try_append().is_ok() {
                    return Ok(());
                }
            }
        })
        .await
        .map_err(|_| RecordError::Full(WRITE_TIMEOUT))?
    }

    fn try_append(&mut self) -> Result<(), Full> {
        let (count, full) = self.shared.append_batch(self.journal, self.session, &mut self.batch);
        self.events += count as u64;
        full
    }

    /// Something in place of an event that was too long.
    fn bound(&mut self, at_ns: u64, exchange: u64, bytes: u64) {
        if self.batch.last_len() <= EVENT_BYTES_MAX {
            return;
        }
        self.batch.take_back();
        self.shared.counters.events_too_long.add(1);
        let gap = v1::Gap { reason: "event-too-long".into(), bytes, exchange, ..Default::default() };
        self.batch.add_event(&Event { at_ns, kind: Some(Kind::Gap(gap)) });
    }

    /// Gathers one event and appends it; one that could not be appended is lost.
    #[cfg(test)]
    pub(crate) async fn write(&mut self, kind: Kind) -> Result<(), RecordError> {
        let at_ns = clock::now().0;
        match kind {
            Kind::Data(data) => self.add_data(at_ns, data.exchange, data.direction(), &data.bytes, &[]),
            kind => {
                let event = Event { at_ns, kind: Some(kind) };
                self.add(at_ns, 4, |out| event.encode(out).unwrap());
            }
        }
        struct Cleared<'r>(&'r mut SessionRecord);
        impl Drop for Cleared<'_> {
            fn drop(&mut self) {
                self.0.batch = Batch::default();
            }
        }
        Cleared(self).0.append().await
    }

    /// Returns when everything recorded so far is on the disk.
    pub(crate) async fn sync(&self) -> Result<(), RecordError> {
        let (shared, journal) = (self.shared.clone(), self.journal);
        let synced = tokio::task::spawn_blocking(move || {
            let journal = &shared.journals[journal];
            if journal.unsynced() { journal.sync() } else { Ok(()) }
        });
        synced.await.map_err(|_| RecordError::Stopped)?.map_err(RecordError::from)
    }

    /// Ends the record. Never fails for want of room: a part of the journal is kept for this.
    #[expect(
        clippy::unused_async,
        reason = "closing may come to wait for the disk where a target asks for that"
    )]
    pub(crate) async fn close(mut self, closed: v1::Closed) -> Result<(), RecordError> {
        self.end(closed);
        Ok(())
    }

    fn end(&mut self, mut closed: v1::Closed) {
        if std::mem::replace(&mut self.closed, true) {
            return;
        }
        if !self.batch.is_empty() && self.try_append().is_err() {
            tracing::error!(session = %self.session, "the last events of a session found no room in the journal");
        }
        self.events += 1;
        closed.events = self.events;
        let event = Event { at_ns: clock::now().0, kind: Some(Kind::Closed(closed)) };
        let shared = &self.shared;
        if shared.append(self.journal, self.session, &event, FLAG_CLOSED).is_err() {
            let late = Late { journal: self.journal, session: self.session, event };
            shared.late.lock().unwrap_or_else(PoisonError::into_inner).push(late);
            shared.bell.ring();
        }
        let mut numbers = shared.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        numbers.open = numbers.open.saturating_sub(1);
        drop(numbers);
        shared.counters.sessions_closed.add(1);
    }
}

impl Drop for SessionRecord {
    fn drop(&mut self) {
        self.end(v1::Closed { cause: "recorder-error".into(), ..Default::default() });
    }
}

/// A session must be able to open: an argument list or labels beyond all measure are left out, and say so.
fn shorten(opened: &mut v1::Opened) {
    const LEFT_OUT: &str = "(too long, left out)";
    if opened.encoded_len() <= EVENT_BYTES_MAX / 2 {
        return;
    }
    if let Some(run) = &mut opened.run {
        run.argv = vec![LEFT_OUT.to_owned()];
        run.labels.clear();
    }
    if let Some(process) = &mut opened.process {
        process.argv = vec![LEFT_OUT.to_owned()];
    }
}
