//! Where a list goes on. A cursor is opaque to whoever carries it: signed by this collector, and bound to the question
//! it came from, so that neither a changed cursor nor a changed question gives a page that never was.

use aws_lc_rs::{digest, hmac};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

const TAG_BYTES: usize = 16;
const NUMBERS: usize = 4;
const CURSOR_BYTES: usize = NUMBERS * 8 + TAG_BYTES;

/// A cursor that this collector did not make, or not for this question.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the page cursor does not belong to this query: ask for the first page again")]
pub struct BadCursor;

/// What a cursor holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// When the first page was asked for: relative times mean the same on every page.
    pub now_ns: i64,
    /// The place of the last answer, in the list's own order.
    pub at: [i64; 3],
}

/// Made once per collector.
pub struct CursorKey(hmac::Key);

impl CursorKey {
    pub fn new(secret: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// `question` is everything that makes the list what it is.
    pub fn show(&self, position: &Position, question: &[&str]) -> String {
        let mut bytes = Vec::with_capacity(CURSOR_BYTES);
        bytes.extend_from_slice(&position.now_ns.to_be_bytes());
        position.at.iter().for_each(|number| bytes.extend_from_slice(&number.to_be_bytes()));
        let tag = hmac::sign(&self.0, &signed(&bytes, question));
        bytes.extend_from_slice(&tag.as_ref()[..TAG_BYTES]);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    pub fn read(&self, cursor: &str, question: &[&str]) -> Result<Position, BadCursor> {
        let bytes = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| BadCursor)?;
        if bytes.len() != CURSOR_BYTES {
            return Err(BadCursor);
        }
        let (numbers, tag) = bytes.split_at(CURSOR_BYTES - TAG_BYTES);
        let expected = hmac::sign(&self.0, &signed(numbers, question));
        if !bool::from(subtle::ConstantTimeEq::ct_eq(&expected.as_ref()[..TAG_BYTES], tag)) {
            return Err(BadCursor);
        }
        let mut read = numbers.chunks_exact(8).map(|chunk| {
            let mut number = [0; 8];
            number.copy_from_slice(chunk);
            i64::from_be_bytes(number)
        });
        let mut next = || read.next().ok_or(BadCursor);
        Ok(Position { now_ns: next()?, at: [next()?, next()?, next()?] })
    }
}

/// No two questions give the same bytes.
fn signed(numbers: &[u8], question: &[&str]) -> Vec<u8> {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in question {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part.as_bytes());
    }
    [numbers, context.finish().as_ref()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_only_as_it_was_made_and_for_what() {
        let key = CursorKey::new(b"secret");
        let position = Position { now_ns: -1, at: [1, i64::MIN, i64::MAX] };
        let cursor = key.show(&position, &["search", "a"]);
        assert_eq!(key.read(&cursor, &["search", "a"]), Ok(position));
        assert_eq!(key.read(&cursor, &["search", "b"]), Err(BadCursor));
        assert_eq!(key.read(&cursor, &["searcha", ""]), Err(BadCursor));
        assert_eq!(CursorKey::new(b"other").read(&cursor, &["search", "a"]), Err(BadCursor));
        for at in 0..cursor.len() {
            let mut changed = cursor.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            assert_eq!(
                key.read(&String::from_utf8(changed).unwrap(), &["search", "a"]),
                Err(BadCursor),
                "{at}"
            );
        }
        for wrong in ["", "x", "%", &cursor[1..]] {
            assert_eq!(key.read(wrong, &["search", "a"]), Err(BadCursor));
        }
    }
}
