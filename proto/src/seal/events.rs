//! The plaintext of a segment: events, each with its length before it (a varint, as protobuf delimits messages).

use bytes::{Buf, Bytes};
use prost::Message;

use crate::v1::Event;

/// No encoded event is longer.
pub const EVENT_BYTES_MAX: usize = 192 * 1024;
/// A data event carries at most this many of the protocol's bytes; longer ones are split by the recorder.
pub const DATA_BYTES_MAX: usize = 128 * 1024;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EventError {
    #[error("an event's length cannot be read")]
    Length,
    #[error("an event of {0} bytes, at most {EVENT_BYTES_MAX} are allowed")]
    TooLong(usize),
    #[error("an event ends before its declared length")]
    Truncated,
    #[error("an event does not decode: {0}")]
    Decode(#[from] prost::DecodeError),
}

/// Appends one event, already encoded, to a segment's plaintext.
pub fn push_event(plain: &mut Vec<u8>, encoded: &[u8]) {
    // A Vec takes any length: encoding the varint cannot fail.
    let _ = prost::encode_length_delimiter(encoded.len(), plain);
    plain.extend_from_slice(encoded);
}

/// Reads a segment's plaintext. Ends after the first error.
pub fn events(plain: impl Into<Bytes>) -> Events {
    Events { rest: plain.into() }
}

/// Iterator over the events of one segment; data is shared with the plaintext, not copied.
#[derive(Debug, Clone)]
pub struct Events {
    rest: Bytes,
}

impl Iterator for Events {
    type Item = Result<Event, EventError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let event = self.read();
        if event.is_err() {
            self.rest.clear();
        }
        Some(event)
    }
}

impl Events {
    fn read(&mut self) -> Result<Event, EventError> {
        let len = prost::decode_length_delimiter(&mut self.rest).map_err(|_| EventError::Length)?;
        if len > EVENT_BYTES_MAX {
            return Err(EventError::TooLong(len));
        }
        if len > self.rest.remaining() {
            return Err(EventError::Truncated);
        }
        Ok(Event::decode(self.rest.split_to(len))?)
    }
}

/// For the fuzzers.
pub fn fuzz_events(data: &[u8]) {
    let read = events(Bytes::copy_from_slice(data)).count();
    assert!(read <= data.len(), "each event takes at least a byte");
}
