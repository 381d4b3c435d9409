//! Frames of the PostgreSQL protocol, version 3 ("Message Formats"): a tag byte, then the length of the rest including
//! the length itself. Before the startup is done a client's messages have no tag ("Start-up").

use std::ops::Range;

use crate::reader::{Extent, Malformed};

/// Tag and length.
pub(crate) const HEADER_BYTES: usize = 5;
/// Frames up to this length are taken whole; longer ones stream in parts.
pub(crate) const FRAME_BYTES_MAX: usize = 64 * 1024;
/// The longest message that any PostgreSQL takes or makes, bytes (its own limit on one allocation).
pub(crate) const MESSAGE_BYTES_MAX: usize = 0x3fff_ffff;
/// The longest first message a server takes (`MAX_STARTUP_PACKET_LENGTH`, which leaves out the length word).
pub(crate) const STARTUP_BYTES_MAX: usize = 10_004;

pub(crate) fn measure_client(bytes: &[u8]) -> Result<Extent, Malformed> {
    measure(bytes, |tag| match tag {
        // Policy and record want these whole.
        b'Q' | b'P' | b'B' | b'F' => super::HELD_BYTES_MAX,
        _ => FRAME_BYTES_MAX,
    })
}

pub(crate) fn measure_upstream(bytes: &[u8]) -> Result<Extent, Malformed> {
    measure(bytes, |_| FRAME_BYTES_MAX)
}

fn measure(bytes: &[u8], whole_max: impl Fn(u8) -> usize) -> Result<Extent, Malformed> {
    let Some(&tag) = bytes.first() else { return Ok(Extent::Need(HEADER_BYTES)) };
    if !tag.is_ascii_alphanumeric() {
        return Err(Malformed("a tag that is no letter or digit"));
    }
    let Some(length) = bytes.get(1..HEADER_BYTES) else { return Ok(Extent::Need(HEADER_BYTES)) };
    let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]) as usize;
    if !(4..=MESSAGE_BYTES_MAX).contains(&length) {
        return Err(Malformed("a message length that cannot be"));
    }
    Ok(Extent::Frame { length: length + 1, whole_max: whole_max(tag) })
}

/// The first messages of a client, without a tag.
pub(crate) fn measure_startup(bytes: &[u8]) -> Result<Extent, Malformed> {
    let Some(length) = bytes.get(..4) else { return Ok(Extent::Need(4)) };
    let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]) as usize;
    if !(8..=STARTUP_BYTES_MAX).contains(&length) {
        return Err(Malformed("a startup length that cannot be"));
    }
    Ok(Extent::Frame { length, whole_max: STARTUP_BYTES_MAX })
}

/// A message of ours.
pub(crate) fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEADER_BYTES + body.len());
    frame.push(tag);
    frame.extend_from_slice(&(u32::try_from(body.len() + 4).unwrap_or(u32::MAX)).to_be_bytes());
    frame.extend_from_slice(body);
    frame
}

/// Reads a message's fields one after the other; `None` where the message is too short.
#[derive(Clone, Debug)]
pub(crate) struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    /// Of a frame with a tag.
    pub(crate) fn of(frame: &'a [u8]) -> Self {
        Self { bytes: frame, at: HEADER_BYTES.min(frame.len()) }
    }

    pub(crate) fn at(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at: at.min(bytes.len()) }
    }

    /// Offset of the next field in the frame.
    pub(crate) fn offset(&self) -> usize {
        self.at
    }

    pub(crate) fn rest(&self) -> &'a [u8] {
        &self.bytes[self.at..]
    }

    pub(crate) fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(length)?)?;
        self.at += length;
        Some(taken)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }

    pub(crate) fn i16(&mut self) -> Option<i16> {
        self.take(2).map(|b| i16::from_be_bytes([b[0], b[1]]))
    }

    pub(crate) fn i32(&mut self) -> Option<i32> {
        self.take(4).map(|b| i32::from_be_bytes([b[0], b[1], b[2], b[3]]))
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.i32().map(i32::cast_unsigned)
    }

    /// A count; the server reads these unsigned.
    pub(crate) fn count(&mut self) -> Option<usize> {
        self.i16().map(|n| usize::from(n.cast_unsigned()))
    }

    /// A string up to its NUL, which is consumed and not part of it.
    pub(crate) fn cstr(&mut self) -> Option<&'a [u8]> {
        let length = memchr::memchr(0, self.rest())?;
        let taken = self.take(length);
        self.at += 1;
        taken
    }

    /// A string whose end may lie beyond the bytes that are here: then they are its beginning.
    pub(crate) fn name(&mut self) -> &'a [u8] {
        self.cstr().unwrap_or_else(|| {
            let rest = self.rest();
            self.at = self.bytes.len();
            rest
        })
    }

    /// A value with its length before it: `Some(None)` is NULL.
    pub(crate) fn value(&mut self) -> Option<Option<Range<usize>>> {
        let Ok(length) = usize::try_from(self.i32()?) else { return Some(None) };
        let start = self.at;
        self.take(length).map(|_| Some(start..start + length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_that_cannot_be_are_no_frames() {
        for length in [0u32, 3, 0x4000_0000, 0x8000_0000, u32::MAX] {
            let mut frame = vec![b'Q'];
            frame.extend_from_slice(&length.to_be_bytes());
            assert!(measure_client(&frame).is_err(), "{length:#x}");
        }
        let mut frame = vec![b'D'];
        frame.extend_from_slice(&0x3fff_ffffu32.to_be_bytes());
        let extent = measure_upstream(&frame).unwrap();
        assert_eq!(extent, Extent::Frame { length: 0x4000_0000, whole_max: FRAME_BYTES_MAX });
    }

    #[test]
    fn fields_stop_at_the_end() {
        let mut fields = Fields::of(b"Q\0\0\0\x07abc");
        assert_eq!(fields.cstr(), None, "no NUL inside the frame");
    }
}
