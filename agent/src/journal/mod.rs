//! The journal: where every event is before anything else happens to it. One preallocated, memory-mapped ring file per
//! worker; segments are cut from it. A kill at any moment loses nothing that was appended; a power cut at most what the
//! last data sync (100 ms) did not see. `docs/format.md` specifies the bytes.
//!
//! * [`layout`]: the bytes of the header page and of a record
//! * [`map`]: the mapped file; all `unsafe` of the journal
//! * [`ring`]: appending, reading back, giving space free
//! * [`scan`]: reading a file that another life of the agent left

mod layout;
mod map;
mod ring;
mod scan;
#[cfg(test)]
mod tests;

pub(crate) use layout::{FLAG_CLOSED, FLAG_OPENED, JOURNAL_BYTES_MAX, JOURNAL_BYTES_MIN};
pub(crate) use ring::{Append, Full, Journal, Record};
pub(crate) use scan::{ScanEnd, Scanned, scan};

/// What went wrong with a journal file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JournalError {
    #[error("journal {path}: {doing} failed")]
    Io { path: std::path::PathBuf, doing: &'static str, source: std::io::Error },
    #[error(
        "a journal holds {JOURNAL_BYTES_MIN} to {JOURNAL_BYTES_MAX} bytes, {0} were asked for; change journal_bytes"
    )]
    Size(u64),
}
