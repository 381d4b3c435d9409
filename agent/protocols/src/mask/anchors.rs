//! The search for anchors: places that may belong to a secret. Everything else is skipped at the speed of memchr.

use super::look_back::LookBack;
use super::names::{KEYWORDS_MAX, SECRETS};
use super::view::{is_blank, is_quote};

/// A place, and why it may belong to a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Anchor {
    /// Just behind the prefix of the token with this index.
    Prefix(usize, usize),
    /// At `=` or `:`
    Separator(usize),
    /// At the last byte of the stem of the keyword with this index.
    Stem(usize, usize),
}

/// The next anchor of each sort. One per buffer; places only grow.
pub(super) struct Anchors<'a> {
    buffer: &'a [u8],
    separator: Next,
    stems: [Next; KEYWORDS_MAX],
    prefix: Next,
    prefix_token: usize,
    /// Where that prefix begins; before the buffer counts as 0.
    prefix_start: usize,
}

/// The first place at or after `from` of those that were asked for; `usize::MAX` for none.
#[derive(Clone, Copy)]
struct Next {
    from: usize,
    place: usize,
}

impl Next {
    const UNKNOWN: Self = Self { from: usize::MAX, place: 0 };
    const NOWHERE: usize = usize::MAX;

    fn holds(self, at: usize) -> bool {
        self.from <= at && at <= self.place
    }
}

impl<'a> Anchors<'a> {
    pub(super) fn new(buffer: &'a [u8]) -> Self {
        Self {
            buffer,
            separator: Next::UNKNOWN,
            stems: [Next::UNKNOWN; KEYWORDS_MAX],
            prefix: Next::UNKNOWN,
            prefix_token: 0,
            prefix_start: 0,
        }
    }

    /// The first anchor from `at` on; prefixes must end behind `at`.
    pub(super) fn next(&mut self, at: usize, behind: &LookBack) -> Option<Anchor> {
        if !self.separator.holds(at) {
            self.separator = Next { from: at, place: self.find_separator(at) };
        }
        let mut first = (self.separator.place, Anchor::Separator(self.separator.place));
        for (index, keyword) in SECRETS.keywords.iter().enumerate().take(KEYWORDS_MAX) {
            if !self.stems[index].holds(at) {
                self.stems[index] = Next { from: at, place: self.find_stem(at, keyword.stem.as_bytes()) };
            }
            let place = self.stems[index].place;
            if place < first.0 {
                first = (place, Anchor::Stem(place, index));
            }
        }
        let is_nowhere = self.prefix.place == Next::NOWHERE;
        if !self.prefix.holds(at + 1) || (self.prefix_start < behind.floor() && !is_nowhere) {
            self.find_prefix(at + 1, behind);
        }
        if self.prefix.place <= first.0 {
            first = (self.prefix.place, Anchor::Prefix(self.prefix.place, self.prefix_token));
        }
        (first.0 != Next::NOWHERE).then_some(first.1)
    }

    fn find_separator(&self, from: usize) -> usize {
        let rest = &self.buffer[from..];
        let found = memchr::memchr2_iter(b'=', b':', rest).find(|offset| self.is_separator(from + offset));
        found.map_or(Next::NOWHERE, |offset| from + offset)
    }

    /// Cheap and generous: rejects the colons of clocks and of most JSON.
    fn is_separator(&self, at: usize) -> bool {
        let Some(before) = at.checked_sub(1).map(|before| self.buffer[before]) else { return true };
        let may_be_name = match before {
            quote if is_quote(quote) => {
                at < 2 || self.buffer[at - 2] == b'\\' || SECRETS.may_end_name(&self.buffer[..at - 1])
            }
            byte if is_blank(byte) || byte == b']' => true,
            _ => SECRETS.may_end_name(&self.buffer[..at]),
        };
        let may_be_scheme = self.buffer[at] == b':'
            && before.is_ascii_alphanumeric()
            && self.buffer.get(at + 1).is_none_or(|next| matches!(next, b'/' | b'\\'));
        may_be_name || may_be_scheme
    }

    fn find_stem(&self, from: usize, stem: &[u8]) -> usize {
        let Some((last, start)) = stem.split_last() else { return Next::NOWHERE };
        let is_stem = |at: usize| match at.checked_sub(start.len()) {
            Some(first) => self.buffer[first..at].eq_ignore_ascii_case(start),
            // It begins before the buffer: looked at again with what stands there.
            None => true,
        };
        let rest = &self.buffer[from..];
        let found = memchr::memchr2_iter(*last, last.to_ascii_uppercase(), rest)
            .find(|offset| is_stem(from + offset));
        found.map_or(Next::NOWHERE, |offset| from + offset)
    }

    /// The first prefix that ends at or behind `end_from` and begins where it may be looked at.
    fn find_prefix(&mut self, end_from: usize, behind: &LookBack) {
        self.prefix = Next { from: end_from, place: Next::NOWHERE };
        let longest = SECRETS.prefix_bytes_max;
        // One that begins before the buffer.
        let tail = behind.tail();
        let tail = &tail[tail.len().saturating_sub(longest - 1)..];
        if !tail.is_empty() && end_from < longest {
            let joined = [tail, &self.buffer[..self.buffer.len().min(longest - 1)]].concat();
            let mut from = 0;
            while let Some(found) = SECRETS.prefixes.find(&joined[from..]) {
                let (start, end) = (from + found.start(), from + found.end());
                if start >= tail.len() {
                    break;
                }
                if end >= tail.len() + end_from {
                    self.prefix.place = end - tail.len();
                    self.prefix_token = found.pattern().as_usize();
                    self.prefix_start = 0;
                    return;
                }
                from = start + 1;
            }
        }
        let mut from = behind.floor().max(end_from.saturating_sub(longest)).min(self.buffer.len());
        while let Some(found) = SECRETS.prefixes.find(&self.buffer[from..]) {
            if from + found.end() >= end_from {
                self.prefix.place = from + found.end();
                self.prefix_token = found.pattern().as_usize();
                self.prefix_start = from + found.start();
                return;
            }
            from += found.start() + 1;
        }
    }
}
