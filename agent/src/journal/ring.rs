//! Appending to the ring, reading back from it, giving its space free. Keeps the rule that [`super::map`] rests on.
#![expect(unsafe_code, reason = "says which bytes of the map are whose: two places, both argued")]

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use weir_proto::SessionId;

use super::JournalError;
use super::layout::{
    END_BYTES, JOURNAL_BYTES_MAX, JOURNAL_BYTES_MIN, PAGE_BYTES, RECORD_HEADER_BYTES, RecordHead, SKIP,
    head_of, put_head, record_bytes,
};
use super::map::Map;

/// Kept for the last event of every open session, so that a full journal can still say how they ended.
const CLOSING_RESERVE_BYTES: u64 = 128 * 1024;

/// No room now: the caller stops reading and waits for [`Journal::room`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the journal is full")]
pub(crate) struct Full;

/// What is appended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Append {
    pub(crate) session: SessionId,
    pub(crate) at_ns: u64,
    pub(crate) flags: u8,
    /// Exact length of the payload.
    pub(crate) payload: usize,
    /// May use the space kept for closing events.
    pub(crate) closing: bool,
}

/// The right to append. Other writers wait while it is held.
pub(crate) struct Appending<'j> {
    journal: &'j Journal,
    tail: MutexGuard<'j, Tail>,
}

/// One published record.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Record<'a> {
    /// Where it starts, and where the next one starts or the ring is skipped to.
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) session: SessionId,
    pub(crate) at_ns: u64,
    pub(crate) flags: u8,
    pub(crate) payload: &'a [u8],
}

struct Tail {
    position: u64,
    /// Nothing more is appended.
    shut: bool,
}

/// One journal file in use.
pub(crate) struct Journal {
    id: [u8; 16],
    map: Map,
    /// Where the next record goes. Its lock is the append lock.
    tail: Mutex<Tail>,
    /// Everything below is written: what readers may see.
    published: AtomicU64,
    /// Everything below is free again. Follows the mark in the file, never leads it.
    reclaimed: AtomicU64,
    /// What the last sync has seen.
    synced: AtomicU64,
    space: Notify,
}

impl Journal {
    /// A new file; `ring_bytes` is rounded up to whole pages.
    pub(crate) fn create(path: &Path, ring_bytes: u64) -> Result<Self, JournalError> {
        if !(JOURNAL_BYTES_MIN..=JOURNAL_BYTES_MAX).contains(&ring_bytes) {
            return Err(JournalError::Size(ring_bytes));
        }
        let id = *uuid::Uuid::new_v4().as_bytes();
        let map = Map::create(path, &id, ring_bytes.next_multiple_of(PAGE_BYTES as u64))?;
        Ok(Self {
            id,
            map,
            tail: Mutex::new(Tail { position: 0, shut: false }),
            published: AtomicU64::new(0),
            reclaimed: AtomicU64::new(0),
            synced: AtomicU64::new(0),
            space: Notify::new(),
        })
    }

    pub(crate) fn id(&self) -> [u8; 16] {
        self.id
    }

    pub(crate) fn path(&self) -> &Path {
        self.map.path()
    }

    pub(crate) fn capacity(&self) -> u64 {
        self.map.ring_bytes() as u64
    }

    /// Bytes that are not free.
    pub(crate) fn used(&self) -> u64 {
        self.published.load(Ordering::Acquire).saturating_sub(self.reclaimed.load(Ordering::Acquire))
    }

    /// Everything below this position is in the spool.
    pub(crate) fn reclaimed(&self) -> u64 {
        self.reclaimed.load(Ordering::Acquire)
    }

    /// Everything below this position can be read.
    pub(crate) fn published(&self) -> u64 {
        self.published.load(Ordering::Acquire)
    }

    /// Appends one record: `write` fills its payload in place. Once this returns, a kill does not lose it.
    pub(crate) fn append(&self, what: &Append, write: impl FnOnce(&mut [u8])) -> Result<(), Full> {
        self.appending().append(what, write, &[])
    }

    /// For several records in a row.
    pub(crate) fn appending(&self) -> Appending<'_> {
        Appending { journal: self, tail: self.tail.lock().unwrap_or_else(PoisonError::into_inner) }
    }

    /// The record at or after this position (a skipped ring's end lies between), `None` at the end. What it borrows is
    /// valid until it is reclaimed; one thread reads and reclaims.
    pub(crate) fn record(&self, position: u64) -> Option<Record<'_>> {
        if position >= self.published() || position < self.reclaimed.load(Ordering::Acquire) {
            return None;
        }
        let ring = self.capacity();
        let len = self.map.length_word((position % ring) as usize).load(Ordering::Acquire);
        if len == SKIP {
            let next = position + (ring - position % ring);
            return self.record_at(next);
        }
        self.record_at(position)
    }

    fn record_at(&self, from: u64) -> Option<Record<'_>> {
        let ring = self.capacity();
        let at = (from % ring) as usize;
        let len = self.map.length_word(at).load(Ordering::Acquire);
        if from >= self.published() || len == SKIP {
            return None;
        }
        // SAFETY: below `published` and not below `reclaimed`: a published record that is not given free yet.
        let record = unsafe { self.map.read(at, RECORD_HEADER_BYTES + len as usize) };
        let head = head_of(record)?;
        Some(Record {
            from,
            to: from + record_bytes(len as usize),
            session: head.session,
            at_ns: head.at_ns,
            flags: head.flags,
            payload: &record[RECORD_HEADER_BYTES..],
        })
    }

    /// Everything below `mark` is in the spool, durably: says so in the file, then gives the space free. In this order:
    /// were the space used again before the file says so, recovery would start in the middle of newer records.
    pub(crate) fn reclaim(&self, mark: u64) -> Result<(), JournalError> {
        if mark <= self.reclaimed.load(Ordering::Acquire) {
            return Ok(());
        }
        assert!(mark <= self.published(), "only what was appended is reclaimed");
        self.map.mark().store(mark, Ordering::Release);
        self.sync()?;
        self.reclaimed.store(mark, Ordering::Release);
        self.space.notify_waiters();
        Ok(())
    }

    /// Writes what was appended to the disk; returns at once when all of it is there.
    pub(crate) fn sync(&self) -> Result<(), JournalError> {
        let published = self.published();
        self.map.sync()?;
        self.synced.fetch_max(published, Ordering::AcqRel);
        Ok(())
    }

    /// Something was appended since the last sync.
    pub(crate) fn unsynced(&self) -> bool {
        self.synced.load(Ordering::Acquire) < self.published()
    }

    /// Waits until a record of this payload surely fits (wherever the ring's end is), or [`Journal::shut`] is called.
    pub(crate) async fn room(&self, payload: usize) {
        let wanted = 2 * record_bytes(payload) + END_BYTES + CLOSING_RESERVE_BYTES;
        let waiting = self.space.notified();
        tokio::pin!(waiting);
        // Registered before looking: what is freed in between is not missed.
        waiting.as_mut().enable();
        if self.capacity() - self.used() < wanted {
            waiting.await;
        }
    }

    /// From here on every append is `Full`; what was appended before is published when this returns.
    pub(crate) fn shut(&self) {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner).shut = true;
        self.space.notify_waiters();
    }
}

impl Appending<'_> {
    /// As [`Journal::append`]. `body` is the end of the payload, `write` fills what is before it.
    pub(crate) fn append(
        &mut self,
        what: &Append,
        write: impl FnOnce(&mut [u8]),
        body: &[u8],
    ) -> Result<(), Full> {
        let Self { journal, tail } = self;
        let map = &journal.map;
        let ring = journal.capacity();
        let need = record_bytes(what.payload);
        // A record does not wrap: what is left before the ring's end may have to be skipped.
        let left = ring - tail.position % ring;
        let from = if need + END_BYTES <= left { tail.position } else { tail.position + left };
        let to = from + need;
        let kept = if what.closing { 0 } else { CLOSING_RESERVE_BYTES };
        if tail.shut || to + END_BYTES + kept > journal.reclaimed.load(Ordering::Acquire) + ring {
            return Err(Full);
        }
        let at = (from % ring) as usize;
        // The end comes first: whatever stands there from an earlier lap must not look like the next record.
        map.length_word((to % ring) as usize).store(0, Ordering::Relaxed);
        if from != tail.position {
            map.length_word(at).store(0, Ordering::Relaxed);
        }
        let body_from = RECORD_HEADER_BYTES + what.payload - body.len();
        // SAFETY: the append lock is held, and the range is free: it lies between `published` and `reclaimed` + ring.
        unsafe { map.put(at + body_from, body) };
        // SAFETY: as before.
        let record = unsafe { map.write(at, RECORD_HEADER_BYTES + what.payload) };
        write(&mut record[RECORD_HEADER_BYTES..body_from]);
        put_head(record, from, &RecordHead { session: what.session, at_ns: what.at_ns, flags: what.flags });
        map.length_word(at).store(what.payload as u32, Ordering::Release);
        if from != tail.position {
            map.length_word((tail.position % ring) as usize).store(SKIP, Ordering::Release);
        }
        tail.position = to;
        journal.published.store(to, Ordering::Release);
        Ok(())
    }
}
