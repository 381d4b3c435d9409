//! Cuts one direction's bytes into frames: resumable, bounded, nothing looked at twice.
//!
//! ```text
//!   partial           input                          backlog
//!  [ frame beg|   [in... frame | frame | fra]      [ bytes that came while nobody took frames ]
//!                          ^ at
//! ```
//!
//! A frame that lies whole in `input` is a slice of it. Only the frame that a read cuts in two is copied, so each byte is
//! copied at most once and a held frame never pins more than one read. A frame longer than its `whole_max` is given as
//! a head of exactly that many bytes, then in parts as they come.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::{Bytes, BytesMut};

/// What the beginning of a frame says about the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// This many bytes from the frame's start are needed to tell.
    Need(usize),
    Frame {
        /// Of the whole frame, header included, bytes; at least 1.
        length: usize,
        /// Given as one piece up to this length, bytes; at least 1.
        whole_max: usize,
    },
}

/// These bytes are no frame. Nothing is consumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a frame: {0}")]
pub struct Malformed(pub &'static str);

/// Which part of its frame a piece is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Whole,
    /// The first `whole_max` bytes of a longer frame.
    Head,
    More,
    Last,
}

#[derive(Clone, Debug)]
pub struct Piece {
    pub part: Part,
    pub bytes: Bytes,
    /// Where it lies in the last push, when it lies there whole: neighbours can be sliced as one by [`Reader::slice`].
    pub place: Option<Range<usize>>,
}

/// One direction of a connection.
#[derive(Debug, Default)]
pub struct Reader {
    partial: BytesMut,
    input: Bytes,
    at: usize,
    backlog: VecDeque<u8>,
    /// Bytes still to come of a frame whose head was given.
    streaming: usize,
}

impl Reader {
    /// Takes what was read. Pieces must be taken until there are none, or the bytes wait here, counted by
    /// [`Reader::buffered`].
    pub fn push(&mut self, bytes: Bytes) {
        if self.at < self.input.len() || !self.backlog.is_empty() {
            self.backlog.extend(bytes.iter());
        } else {
            self.input = bytes;
            self.at = 0;
        }
    }

    /// Bytes taken in and not given out.
    pub fn buffered(&self) -> usize {
        self.partial.len() + (self.input.len() - self.at) + self.backlog.len()
    }

    /// A frame is begun: what comes next belongs to it.
    pub fn is_inside_frame(&self) -> bool {
        self.streaming > 0 || !self.partial.is_empty()
    }

    /// Parts of a large frame are still to come.
    pub fn is_streaming(&self) -> bool {
        self.streaming > 0
    }

    /// The first byte of the next frame.
    pub fn first(&self) -> Option<u8> {
        if self.streaming > 0 {
            return None;
        }
        let next = self.partial.first().or_else(|| self.input.get(self.at));
        next.or_else(|| self.backlog.front()).copied()
    }

    /// The next piece; `None` when more bytes are needed.
    pub fn next(
        &mut self,
        measure: impl Fn(&[u8]) -> Result<Extent, Malformed>,
    ) -> Result<Option<Piece>, Malformed> {
        loop {
            let rest = &self.input[self.at..];
            if self.streaming > 0 {
                if !rest.is_empty() {
                    let take = rest.len().min(self.streaming);
                    self.streaming -= take;
                    let part = if self.streaming == 0 { Part::Last } else { Part::More };
                    return Ok(Some(self.cut(part, take)));
                }
            } else {
                let begun = if self.partial.is_empty() { rest } else { &self.partial[..] };
                work::count(16);
                let (want, length) = match measure(begun)? {
                    Extent::Need(bytes) => (bytes.max(begun.len() + 1), None),
                    Extent::Frame { length, whole_max } => {
                        (length.min(whole_max).max(1), Some(length.max(1)))
                    }
                };
                if self.partial.is_empty() && rest.len() >= want {
                    let Some(length) = length else { continue };
                    return Ok(Some(self.begin(length, want, |reader| reader.cut(Part::Whole, want))));
                }
                let missing = want.saturating_sub(self.partial.len()).min(rest.len());
                work::count(missing);
                self.partial.extend_from_slice(&self.input[self.at..self.at + missing]);
                self.at += missing;
                if let Some(length) = length
                    && self.partial.len() >= want
                {
                    return Ok(Some(self.begin(length, want, |reader| Piece {
                        part: Part::Whole,
                        bytes: reader.partial.split_to(want).freeze(),
                        place: None,
                    })));
                }
                if self.partial.len() >= want {
                    continue;
                }
            }
            if self.at == self.input.len() && !self.refill() {
                return Ok(None);
            }
        }
    }

    /// As many whole frames as there are in a row and `keep` wants, as one slice. Costs a look at each header, no copy.
    pub fn run(
        &mut self,
        measure: impl Fn(&[u8]) -> Result<Extent, Malformed>,
        mut keep: impl FnMut(&[u8]) -> bool,
    ) -> Option<Piece> {
        if self.is_inside_frame() {
            return None;
        }
        let mut end = self.at;
        while let Ok(Extent::Frame { length, whole_max }) = measure(&self.input[end..]) {
            work::count(16);
            match self.input.get(end..end + length) {
                Some(frame) if length <= whole_max && keep(frame) => end += length,
                _ => break,
            }
        }
        (end > self.at).then(|| self.cut(Part::Whole, end - self.at))
    }

    /// Exactly this many bytes, when they are there and no frame is begun.
    pub fn take(&mut self, length: usize) -> Option<Piece> {
        if self.is_inside_frame() {
            return None;
        }
        self.next(|_| Ok(Extent::Frame { length, whole_max: length })).ok().flatten()
    }

    /// What is there, framed or not.
    pub fn take_all(&mut self) -> Bytes {
        let mut all = self.partial.split();
        if all.is_empty() && self.backlog.is_empty() {
            let rest = self.input.slice(self.at..);
            self.at = self.input.len();
            return rest;
        }
        all.extend_from_slice(&self.input[self.at..]);
        self.at = self.input.len();
        all.extend(self.backlog.drain(..));
        all.freeze()
    }

    /// Neighbouring pieces of the last push as one.
    pub fn slice(&self, place: Range<usize>) -> Bytes {
        self.input.slice(place)
    }

    fn begin(&mut self, length: usize, given: usize, cut: impl FnOnce(&mut Self) -> Piece) -> Piece {
        let mut piece = cut(self);
        if length > given {
            piece.part = Part::Head;
            self.streaming = length - given;
        }
        piece
    }

    fn cut(&mut self, part: Part, length: usize) -> Piece {
        let place = self.at..self.at + length;
        self.at = place.end;
        Piece { part, bytes: self.input.slice(place.clone()), place: Some(place) }
    }

    fn refill(&mut self) -> bool {
        if self.backlog.is_empty() {
            return false;
        }
        work::count(self.backlog.len());
        self.input = Bytes::from(Vec::from(std::mem::take(&mut self.backlog)));
        self.at = 0;
        true
    }
}

/// Counts how many bytes readers looked at or copied: what the property suite measures instead of a clock.
pub(crate) mod work {
    #[cfg(any(test, feature = "suite"))]
    thread_local! {
        static DONE: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
    }

    #[cfg(any(test, feature = "suite"))]
    pub(crate) fn count(bytes: usize) {
        DONE.with(|done| done.set(done.get() + bytes as u64));
    }

    #[cfg(not(any(test, feature = "suite")))]
    pub(crate) const fn count(_bytes: usize) {}

    /// What was counted on this thread since the last call.
    #[cfg(any(test, feature = "suite"))]
    pub(crate) fn taken() -> u64 {
        DONE.with(|done| done.replace(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames of a length byte and as many bytes; whole up to 8.
    fn measure(bytes: &[u8]) -> Result<Extent, Malformed> {
        match bytes.first() {
            None => Ok(Extent::Need(1)),
            Some(0) => Err(Malformed("zero")),
            Some(length) => Ok(Extent::Frame { length: *length as usize, whole_max: 8 }),
        }
    }

    fn pieces(chunks: &[&[u8]]) -> Vec<(Part, Vec<u8>)> {
        let mut reader = Reader::default();
        let mut pieces = Vec::new();
        for chunk in chunks {
            reader.push(Bytes::copy_from_slice(chunk));
            while let Some(piece) = reader.next(measure).unwrap() {
                pieces.push((piece.part, piece.bytes.to_vec()));
            }
        }
        pieces
    }

    #[test]
    fn a_frame_cut_anywhere_is_the_same_frame() {
        let wire = b"\x03ab\x02c\x01\x05defg";
        let whole = pieces(&[wire]);
        assert_eq!(whole.len(), 4);
        for cut in 1..wire.len() {
            assert_eq!(pieces(&[&wire[..cut], &wire[cut..]]), whole);
        }
        assert_eq!(pieces(&wire.chunks(1).collect::<Vec<_>>()), whole);
    }

    #[test]
    fn a_long_frame_has_a_head_of_one_size_and_parts() {
        let wire = b"\x0cabcdefghijk\x02z";
        for chunk in 1..wire.len() {
            let pieces = pieces(&wire.chunks(chunk).collect::<Vec<_>>());
            assert_eq!(pieces[0], (Part::Head, b"\x0cabcdefg".to_vec()));
            let rest: Vec<u8> = pieces[1..pieces.len() - 1].iter().flat_map(|(_, b)| b.clone()).collect();
            assert_eq!(rest, b"hijk");
            assert_eq!(pieces[pieces.len() - 2].0, Part::Last);
            assert_eq!(pieces[pieces.len() - 1], (Part::Whole, b"\x02z".to_vec()));
        }
    }

    #[test]
    fn a_run_is_one_slice_and_stops_where_told() {
        let mut reader = Reader::default();
        reader.push(Bytes::from_static(b"\x02a\x02a\x02b\x02a\x04a"));
        let keep = |frame: &[u8]| frame[1] == b'a';
        assert_eq!(reader.run(measure, keep).unwrap().bytes, &b"\x02a\x02a"[..]);
        assert!(reader.run(measure, keep).is_none());
        assert_eq!(reader.next(measure).unwrap().unwrap().bytes, &b"\x02b"[..]);
        assert_eq!(reader.run(measure, keep).unwrap().bytes, &b"\x02a"[..]);
        assert!(reader.run(measure, keep).is_none(), "the last frame is not whole");
        assert_eq!(reader.buffered(), 2);
    }

    #[test]
    fn what_nobody_takes_waits_and_is_counted() {
        let mut reader = Reader::default();
        reader.push(Bytes::from_static(b"\x02a\x02"));
        reader.push(Bytes::from_static(b"b\x02c"));
        assert_eq!(reader.buffered(), 6);
        for expected in [b"\x02a", b"\x02b", b"\x02c"] {
            assert_eq!(reader.next(measure).unwrap().unwrap().bytes, &expected[..]);
        }
        assert_eq!(reader.buffered(), 0);
    }

    #[test]
    fn a_malformed_frame_stays_unconsumed() {
        let mut reader = Reader::default();
        reader.push(Bytes::from_static(b"\x02a\x00rest"));
        reader.next(measure).unwrap();
        assert!(reader.next(measure).is_err());
        assert_eq!(reader.take_all(), &b"\x00rest"[..]);
    }

    #[test]
    fn work_is_linear_however_bytes_come() {
        let wire: Vec<u8> = std::iter::repeat_n(*b"\x07abcdef", 2000).flatten().collect();
        let mut reader = Reader::default();
        work::taken();
        for byte in &wire {
            reader.push(Bytes::copy_from_slice(&[*byte]));
            while reader.next(measure).unwrap().is_some() {}
        }
        let by_byte = work::taken();
        assert!(by_byte <= 40 * wire.len() as u64, "{by_byte}");
    }
}
