//! Masking of percent-encoded text: forms and queries. It is read once as it stands and once as it is meant, so that
//! `p%61ssword=x` and `url=https%3A%2F%2Fuser%3Asecret%40host` are seen.

use super::plan::{Hit, Syntax};
use super::scan::Scanner;

/// Reads content as a server would: `%41` is A, `+` is a blank.
#[derive(Debug)]
pub(super) struct FormScan {
    decoded: Scanner,
}

impl FormScan {
    pub(super) fn new() -> Self {
        Self { decoded: Scanner::new(Syntax::Bytes) }
    }

    /// As [`Scanner::scan`].
    pub(super) fn scan(&mut self, content: &[u8], last: bool, hits: &mut Vec<Hit>) -> usize {
        let text = Decoded::of(content, last);
        let mut found = Vec::new();
        let decided = self.decoded.scan(&text.bytes, last, &mut found);
        hits.extend(
            found.into_iter().map(|(range, rule)| (text.place(range.start)..text.place(range.end), rule)),
        );
        text.place(decided)
    }
}

/// What authenticates in a whole text, once it is decoded.
pub(super) fn decoded_hits(text: &[u8], hits: &mut Vec<Hit>) {
    FormScan::new().scan(text, true, hits);
}

/// A whole text as it is meant.
pub(super) fn decoded(text: &[u8]) -> Vec<u8> {
    Decoded::of(text, true).bytes
}

struct Decoded {
    bytes: Vec<u8>,
    /// Where each decoded byte begins, and where the last one ends.
    places: Vec<usize>,
}

impl Decoded {
    /// An escape that is cut off at the end is left for later, unless nothing follows.
    fn of(text: &[u8], last: bool) -> Self {
        let (mut bytes, mut places) = (Vec::with_capacity(text.len()), Vec::with_capacity(text.len() + 1));
        let mut at = 0;
        while let Some(byte) = text.get(at).copied() {
            let escape = match text.get(at..at + 3) {
                Some([b'%', high, low]) => hex(*high).zip(hex(*low)).map(|(high, low)| high << 4 | low),
                None if byte == b'%' && !last => break,
                _ => None,
            };
            places.push(at);
            bytes.push(escape.unwrap_or(if byte == b'+' { b' ' } else { byte }));
            at += if escape.is_some() { 3 } else { 1 };
        }
        places.push(at);
        Self { bytes, places }
    }

    fn place(&self, decoded: usize) -> usize {
        self.places.get(decoded).or(self.places.last()).copied().unwrap_or(0)
    }
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}
