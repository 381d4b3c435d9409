//! One direction's bytes between the read that brought them and what they turn out to be.
//!
//! ```text
//!   partial                     input
//!  [ begun, not whole |   or   [ sent | noted | parsed | to be parsed ]
//!                                     ^ sent  ^ noted  ^ at
//! ```
//!
//! What lies whole in a read is a slice of it. Copied is what a read cuts in two (a head, a line of the chunked coding), and
//! what has to wait: the read it came with is not held.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::super::message::Malformed;
use super::head::{HEAD_BYTES_MAX, HeadEnd};

#[derive(Debug, Default)]
pub(crate) struct Feed {
    partial: BytesMut,
    input: Bytes,
    /// How long `input` was when it was `partial`; 0 when it is a read.
    own: usize,
    at: usize,
    noted: usize,
    sent: usize,
    head_end: HeadEnd,
}

impl Feed {
    /// All that was parsed before must have been cut out.
    pub(crate) fn push(&mut self, bytes: Bytes) {
        self.copy_rest();
        if self.partial.is_empty() {
            self.input = bytes;
        } else {
            crate::reader::work::count(bytes.len());
            self.partial.extend_from_slice(&bytes);
        }
    }

    /// What is to be parsed.
    pub(crate) fn rest(&self) -> &[u8] {
        if self.partial.is_empty() { &self.input[self.at..] } else { &self.partial }
    }

    /// Where the next head is, when it is there whole. An error comes with all bytes that were needed to see it.
    pub(crate) fn head(&mut self) -> Result<Option<Range<usize>>, (Malformed, Bytes)> {
        let mut end = std::mem::take(&mut self.head_end);
        match end.find(self.rest(), HEAD_BYTES_MAX) {
            Ok(Some(length)) => Ok(Some(self.consume(length))),
            Ok(None) => {
                self.head_end = end;
                Ok(None)
            }
            Err(fault) => {
                let place = self.consume(end.scanned());
                Err((fault, self.slice(place)))
            }
        }
    }

    /// A head has begun that [`Feed::head`] has just found not to be whole; empty lines before it are none.
    pub(crate) fn has_begun_head(&self) -> bool {
        self.head_end.has_begun(self.rest())
    }

    /// These next bytes are parsed: where they are in [`Feed::slice`].
    pub(crate) fn consume(&mut self, length: usize) -> Range<usize> {
        if !self.partial.is_empty() {
            // Whole now: what the next read brings need not be copied. Nothing of its room stays behind.
            self.input = std::mem::take(&mut self.partial).freeze();
            self.own = self.input.len();
            self.at = 0;
        }
        let range = self.at..self.at + length;
        self.at = range.end;
        range
    }

    pub(crate) fn slice(&self, range: Range<usize>) -> Bytes {
        self.input.slice(range)
    }

    /// A place of [`Feed::slice`], counted from what [`Feed::cut_noted`] gives next.
    pub(crate) fn since_noted(&self, range: Range<usize>) -> Range<usize> {
        range.start - self.noted..range.end - self.noted
    }

    /// What was parsed and not noted.
    pub(crate) fn cut_noted(&mut self) -> Bytes {
        let cut = self.input.slice(self.noted..self.at);
        self.noted = self.at;
        cut
    }

    /// What was parsed and not sent.
    pub(crate) fn cut_sent(&mut self) -> Bytes {
        let cut = self.input.slice(self.sent..self.at);
        self.sent = self.at;
        cut
    }

    /// What was parsed and not sent, but for the last bytes of it: those never are.
    pub(crate) fn cut_sent_before(&mut self, last: usize) -> Bytes {
        let cut = self.input.slice(self.sent..self.at - last);
        self.sent = self.at;
        cut
    }

    /// Everything that is not parsed. What was parsed must have been cut out.
    pub(crate) fn take_rest(&mut self) -> Bytes {
        self.head_end = HeadEnd::default();
        if !self.partial.is_empty() {
            return std::mem::take(&mut self.partial).freeze();
        }
        let rest = self.input.slice(self.at..);
        self.forget();
        rest
    }

    /// Keeps what is not parsed until more comes, and nothing else of the read it came with. What is our own copy is copied
    /// again only when half of it is done with: whoever takes much in small parts would copy all of it for each of them.
    pub(crate) fn stash(&mut self) {
        let rest = self.input.len() - self.at;
        if self.own > 0 && rest > self.own / 2 {
            self.input = self.input.slice(self.at..);
            (self.at, self.noted, self.sent) = (0, 0, 0);
        } else {
            self.copy_rest();
        }
    }

    fn copy_rest(&mut self) {
        if self.at < self.input.len() {
            let rest = &self.input[self.at..];
            crate::reader::work::count(rest.len());
            self.partial.extend_from_slice(rest);
        }
        self.forget();
    }

    fn forget(&mut self) {
        self.input = Bytes::new();
        (self.own, self.at, self.noted, self.sent) = (0, 0, 0, 0);
    }

    /// Nothing of the last read belonged to what came before. Behind a body that the other side takes slowly the next read
    /// may be long in coming, through no fault of this one.
    pub(crate) fn is_at_start(&self) -> bool {
        self.at == 0
    }

    pub(crate) fn buffered(&self) -> usize {
        self.rest().len()
    }
}
