//! The bytes: a header page, then the ring. Little-endian, because only this machine reads them.
//!
//! ```text
//! header page   0 "WJRN"   4 version u16   8 id [16]   24 ring bytes u64   64 mark u64
//! record        0 payload length u32 (published last)   4 crc32c u32   8 position u64   16 session [16]
//!              32 at_ns u64   40 flags u8   41 zeros [7]   48 payload   ... zeros up to a multiple of 8
//! ```
//!
//! A position counts bytes since the journal's creation and never wraps; its place in the ring is position % ring bytes.
//! A record never wraps around the ring's end: [`SKIP`] in place of a length says "the next one is at the ring's start".
//! The length after the last record is always 0.

use weir_proto::SessionId;

pub(super) const MAGIC: [u8; 4] = *b"WJRN";
pub(super) const VERSION: u16 = 1;
pub(super) const PAGE_BYTES: usize = 4096;
pub(super) const MARK_OFFSET: usize = 64;
pub(super) const RECORD_HEADER_BYTES: usize = 48;
/// In place of a record's length.
pub(super) const SKIP: u32 = u32::MAX;
/// A length word must fit after the last record.
pub(super) const END_BYTES: u64 = 8;

/// Smallest and largest ring.
pub(crate) const JOURNAL_BYTES_MIN: u64 = 1 << 20;
pub(crate) const JOURNAL_BYTES_MAX: u64 = 1 << 30;

/// The session's first event.
pub(crate) const FLAG_OPENED: u8 = 1;
/// The session's last event.
pub(crate) const FLAG_CLOSED: u8 = 2;

/// What a record of this payload takes in the ring.
pub(crate) const fn record_bytes(payload: usize) -> u64 {
    (RECORD_HEADER_BYTES + payload).next_multiple_of(8) as u64
}

/// The fields of a record beside its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RecordHead {
    pub(crate) session: SessionId,
    pub(crate) at_ns: u64,
    pub(crate) flags: u8,
}

/// Writes all of a record's header but the length, which publishes it. `record` is header and payload.
pub(super) fn put_head(record: &mut [u8], position: u64, head: &RecordHead) {
    record[8..16].copy_from_slice(&position.to_le_bytes());
    record[16..32].copy_from_slice(head.session.as_bytes());
    record[32..40].copy_from_slice(&head.at_ns.to_le_bytes());
    record[40] = head.flags;
    record[41..48].fill(0);
    let crc = checksum(record);
    record[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// Reads a record back; `None` when its bytes are not what was appended at this position. `bytes` begins with it.
pub(super) fn read_record(bytes: &[u8], position: u64) -> Option<(RecordHead, &[u8])> {
    let len = u32::from_le_bytes(*bytes.first_chunk()?) as usize;
    let record = bytes.get(..RECORD_HEADER_BYTES.checked_add(len)?)?;
    let matches = u32::from_le_bytes(*record[4..].first_chunk()?) == checksum(record)
        && u64::from_le_bytes(*record[8..].first_chunk()?) == position;
    if !matches {
        return None;
    }
    Some((head_of(record)?, &record[RECORD_HEADER_BYTES..]))
}

/// The fields of a record that is known to be whole.
pub(super) fn head_of(record: &[u8]) -> Option<RecordHead> {
    Some(RecordHead {
        session: SessionId::from_bytes(*record.get(16..)?.first_chunk()?),
        at_ns: u64::from_le_bytes(*record.get(32..)?.first_chunk()?),
        flags: *record.get(40)?,
    })
}

/// Over the length the record will have and all that follows the checksum.
fn checksum(record: &[u8]) -> u32 {
    let len = (record.len() - RECORD_HEADER_BYTES) as u32;
    crc32c::crc32c_append(crc32c::crc32c(&len.to_le_bytes()), &record[8..])
}

/// The header page of a new journal.
pub(super) fn header_page(id: &[u8; 16], ring_bytes: u64) -> [u8; PAGE_BYTES] {
    let mut page = [0; PAGE_BYTES];
    page[..4].copy_from_slice(&MAGIC);
    page[4..6].copy_from_slice(&VERSION.to_le_bytes());
    page[8..24].copy_from_slice(id);
    page[24..32].copy_from_slice(&ring_bytes.to_le_bytes());
    page
}
