//! The bytes at hand, of which there may be more later.

/// A part of the bytes, and whether it is the last.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a> {
    pub(super) buffer: &'a [u8],
    /// Nothing follows the buffer.
    pub(super) last: bool,
}

/// What is known of one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peek {
    Byte(u8),
    /// Nothing stands here, ever.
    Nothing,
}

impl View<'_> {
    /// `None` when only later bytes can tell.
    pub(super) fn peek(&self, at: usize) -> Option<Peek> {
        match self.buffer.get(at) {
            Some(byte) => Some(Peek::Byte(*byte)),
            None if self.last => Some(Peek::Nothing),
            None => None,
        }
    }

    /// How many bytes from `at` on fit, counted up to `most`; `None` when later bytes may add to them.
    pub(super) fn run(&self, at: usize, most: usize, fits: impl Fn(u8) -> bool) -> Option<usize> {
        let mut length = 0;
        while length < most {
            match self.peek(at + length)? {
                Peek::Byte(byte) if fits(byte) => length += 1,
                _ => break,
            }
        }
        Some(length)
    }

    pub(super) fn end(&self) -> usize {
        self.buffer.len()
    }
}

impl Peek {
    pub(super) fn is(self, fits: impl Fn(u8) -> bool) -> bool {
        matches!(self, Peek::Byte(byte) if fits(byte))
    }
}

/// What names consist of.
pub(super) fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.'
}

pub(super) fn is_quote(byte: u8) -> bool {
    matches!(byte, b'\'' | b'"' | b'`')
}

pub(super) fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}
