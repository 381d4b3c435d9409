//! The mapped file. Everything here that is `unsafe` rests on one rule, kept by [`super::ring`]: the bytes of a record
//! are written by the one holder of the append lock before the record is published, and read by others only after.
#![expect(
    unsafe_code,
    reason = "a memory map that a kill cannot lose, shared between writers and the cutter"
)]

use std::fs::{File, OpenOptions};
use std::num::NonZeroUsize;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::JournalError;
use super::layout::{MARK_OFFSET, PAGE_BYTES, header_page};

/// From this length on bytes are written through the file; both ways meet in the page cache.
const FILE_WRITE_BYTES_MIN: usize = 8 * 1024;

pub(super) struct Map {
    file: File,
    path: PathBuf,
    base: NonNull<u8>,
    ring_bytes: usize,
}

// SAFETY: `base` points into a shared mapping that lives as long as the `Map`, not to anything of a thread. Who may
// touch which bytes when is the module's rule above.
unsafe impl Send for Map {}
// SAFETY: as for Send.
unsafe impl Sync for Map {}

impl Map {
    /// Creates the file, takes all its blocks now (so that a full disk is an error here and no SIGBUS later), maps it.
    pub(super) fn create(path: &Path, id: &[u8; 16], ring_bytes: u64) -> Result<Self, JournalError> {
        let fail =
            |doing| move |source: std::io::Error| JournalError::Io { path: path.to_owned(), doing, source };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(fail("creating it"))?;
        let len = PAGE_BYTES as u64 + ring_bytes;
        nix::fcntl::posix_fallocate(&file, 0, len as i64)
            .map_err(|errno| fail("taking its space on disk")(errno.into()))?;
        let length = NonZeroUsize::new(len as usize).ok_or(JournalError::Size(ring_bytes))?;
        // SAFETY: a new mapping at an address of the kernel's choice; nobody else shrinks a file that is root's alone.
        let base = unsafe {
            mmap(
                None,
                length,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE,
                &file,
                0,
            )
        }
        .map_err(|errno| fail("mapping it")(errno.into()))?
        .cast();
        let map = Self { file, path: path.to_owned(), base, ring_bytes: ring_bytes as usize };
        // SAFETY: nobody else knows of this mapping yet; the page lies within it.
        unsafe { std::slice::from_raw_parts_mut(base.as_ptr(), PAGE_BYTES) }
            .copy_from_slice(&header_page(id, ring_bytes));
        map.sync()?;
        Ok(map)
    }

    pub(super) fn ring_bytes(&self) -> usize {
        self.ring_bytes
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the ring for writing.
    ///
    /// # Safety
    /// The caller holds the append lock, and no published, unreclaimed record has any of these bytes.
    #[expect(clippy::mut_from_ref, reason = "the append lock makes the range exclusive")]
    pub(super) unsafe fn write(&self, at: usize, len: usize) -> &mut [u8] {
        assert!(
            at.checked_add(len).is_some_and(|end| end <= self.ring_bytes),
            "a record lies within the ring"
        );
        // SAFETY: within the mapping by the assertion; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr().add(PAGE_BYTES + at), len) }
    }

    /// Copies bytes into the ring: many through the file, which for a page that was written to disk since its last change
    /// costs a third of what touching it in the map does.
    ///
    /// # Safety
    /// As for [`Map::write`].
    pub(super) unsafe fn put(&self, at: usize, bytes: &[u8]) {
        let offset = (PAGE_BYTES + at) as u64;
        if bytes.len() >= FILE_WRITE_BYTES_MIN && self.file.write_all_at(bytes, offset).is_ok() {
            return;
        }
        // SAFETY: the caller's promise.
        unsafe { self.write(at, bytes.len()) }.copy_from_slice(bytes);
    }

    /// Bytes of the ring for reading; empty when out of bounds.
    ///
    /// # Safety
    /// All these bytes belong to published, unreclaimed records.
    pub(super) unsafe fn read(&self, at: usize, len: usize) -> &[u8] {
        if at.checked_add(len).is_none_or(|end| end > self.ring_bytes) {
            return &[];
        }
        // SAFETY: within the mapping; published bytes are not written again before they are reclaimed.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(PAGE_BYTES + at), len) }
    }

    /// The length word of the record at this place. Places are multiples of 8.
    pub(super) fn length_word(&self, at: usize) -> &AtomicU32 {
        assert!(at.is_multiple_of(8) && at + 8 <= self.ring_bytes, "length words lie within the ring");
        // SAFETY: within the mapping, aligned, and length words are touched as atomics only (a record's other bytes
        // begin after its length word).
        unsafe { AtomicU32::from_ptr(self.base.as_ptr().add(PAGE_BYTES + at).cast()) }
    }

    /// Below this position everything is in the spool. One aligned word: it is never torn.
    pub(super) fn mark(&self) -> &AtomicU64 {
        // SAFETY: within the header page, aligned, touched as an atomic only after creation.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(MARK_OFFSET).cast()) }
    }

    /// Returns when all that was written before is on the disk.
    pub(super) fn sync(&self) -> Result<(), JournalError> {
        std::sync::atomic::fence(Ordering::SeqCst);
        self.file.sync_data().map_err(|source| JournalError::Io {
            path: self.path.clone(),
            doing: "writing it to disk",
            source,
        })
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `create`, with its length; nothing borrows from it any more.
        let _ = unsafe { munmap(self.base.cast(), PAGE_BYTES + self.ring_bytes) };
    }
}
