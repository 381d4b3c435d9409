//! Masking inside protocol frames: some fields are SQL, the rest is headers and numbers.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::{Mark, MaskPlan, Masked};

impl MaskPlan {
    /// A frame, or a run of them, in which `texts` (in order) are SQL or free text, each on its own. What lies between is
    /// left to the caller to know harmless. The same `Bytes`, uncopied, when nothing hits.
    pub fn texts(&self, bytes: &Bytes, texts: &[Range<usize>]) -> Masked {
        let mut copy: Option<BytesMut> = None;
        let mut marks = Vec::new();
        for range in texts {
            if range.start > range.end || range.end > bytes.len() {
                continue;
            }
            let text = self.text(&bytes.slice(range.clone()));
            if text.marks.is_empty() {
                continue;
            }
            let copy = copy.get_or_insert_with(|| BytesMut::from(&bytes[..]));
            copy[range.clone()].copy_from_slice(&text.bytes);
            let start = u32::try_from(range.start).unwrap_or(u32::MAX);
            marks.extend(
                text.marks.iter().map(|mark| Mark { offset: mark.offset.saturating_add(start), ..*mark }),
            );
        }
        Masked { bytes: copy.map_or_else(|| bytes.clone(), BytesMut::freeze), marks }
    }
}

impl Masked {
    /// With these ranges masked as well, because the protocol says what they are. They overlap no mask that is there.
    #[must_use]
    pub fn withheld(self, ranges: &[Range<usize>], rule: &'static str) -> Self {
        let mut also = MaskPlan::standard().withheld(&self.bytes, ranges, rule);
        also.marks.extend(self.marks);
        also.marks.sort_by_key(|mark| mark.offset);
        also
    }

    /// At most this many bytes from the beginning. Masking comes before cutting: half a secret is one, too.
    #[must_use]
    pub fn cut(mut self, bytes_max: usize) -> Self {
        if self.bytes.len() <= bytes_max {
            return self;
        }
        // What is kept must not keep the rest in memory.
        self.bytes = Bytes::copy_from_slice(&self.bytes[..bytes_max]);
        let end = u32::try_from(bytes_max).unwrap_or(u32::MAX);
        self.marks.retain(|mark| mark.offset < end);
        for mark in &mut self.marks {
            mark.length = mark.length.min(end - mark.offset);
        }
        self
    }
}
