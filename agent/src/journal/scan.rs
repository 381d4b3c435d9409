//! Reading a journal that another life of the agent left. The bytes may be torn or worse: nothing here trusts them.

use weir_proto::SessionId;

use super::layout::{MAGIC, MARK_OFFSET, PAGE_BYTES, SKIP, VERSION, read_record, record_bytes};

/// How a journal ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ScanEnd {
    /// At a record that was never begun.
    Clean,
    /// At a record that is not whole: what the disk did not get in time is lost from there.
    Torn,
    /// A kill met it while it was made: nothing was ever appended.
    Blank,
    /// The header page is not a journal's: nothing can be read.
    Unreadable,
}

/// One record found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Scanned<'a> {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) session: SessionId,
    pub(crate) at_ns: u64,
    pub(crate) flags: u8,
    pub(crate) payload: &'a [u8],
}

/// Reads all records from the file's mark to the first that is not whole. Gives the journal's id and how it ended.
pub(crate) fn scan<'a>(file: &'a [u8], mut each: impl FnMut(Scanned<'a>)) -> ([u8; 16], ScanEnd) {
    let Some((id, mark, ring)) = open(file) else {
        let blank = file.iter().take(PAGE_BYTES).all(|byte| *byte == 0);
        return ([0; 16], if blank { ScanEnd::Blank } else { ScanEnd::Unreadable });
    };
    let capacity = ring.len() as u64;
    let Some(limit) = mark.checked_add(capacity) else { return (id, ScanEnd::Torn) };
    let mut position = mark;
    while position < limit {
        let at = (position % capacity) as usize;
        let Some(len) =
            ring.get(at..).and_then(|rest| rest.first_chunk()).map(|len| u32::from_le_bytes(*len))
        else {
            return (id, ScanEnd::Torn);
        };
        if len == 0 {
            return (id, ScanEnd::Clean);
        }
        if len == SKIP {
            let next = position + (capacity - position % capacity);
            // A skip at the ring's start would lead nowhere new.
            if at == 0 {
                return (id, ScanEnd::Torn);
            }
            position = next;
            continue;
        }
        let Some((head, payload)) = read_record(&ring[at..], position) else { return (id, ScanEnd::Torn) };
        let to = position + record_bytes(payload.len());
        if to > limit {
            return (id, ScanEnd::Torn);
        }
        each(Scanned {
            from: position,
            to,
            session: head.session,
            at_ns: head.at_ns,
            flags: head.flags,
            payload,
        });
        position = to;
    }
    (id, ScanEnd::Clean)
}

fn open(file: &[u8]) -> Option<([u8; 16], u64, &[u8])> {
    let (page, ring) = file.split_at_checked(PAGE_BYTES)?;
    let known = page[..4] == MAGIC && page[4..6] == VERSION.to_le_bytes();
    let ring_bytes = u64::from_le_bytes(*page[24..].first_chunk()?);
    let whole =
        ring_bytes == ring.len() as u64 && !ring.is_empty() && ring_bytes.is_multiple_of(PAGE_BYTES as u64);
    let mark = u64::from_le_bytes(*page[MARK_OFFSET..].first_chunk()?);
    (known && whole && mark.is_multiple_of(8)).then_some((*page[8..].first_chunk()?, mark, ring))
}
