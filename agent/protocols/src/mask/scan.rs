//! Finds what authenticates.

use super::plan::{Hit, Syntax};

#[derive(Debug)]
pub(super) struct Scanner {
    _syntax: Syntax,
}

impl Scanner {
    pub(super) fn new(syntax: Syntax) -> Self {
        Self { _syntax: syntax }
    }

    /// Reads `buffer[from..]`, adds what to mask, and returns up to where that is decided; with `end`, all of it.
    pub(super) fn scan(&mut self, buffer: &[u8], from: usize, end: bool, hits: &mut Vec<Hit>) -> usize {
        let lower = buffer.to_ascii_lowercase();
        let mut at = from;
        while let Some(found) = memchr::memmem::find(&lower[at..], b"password") {
            let after = at + found + b"password".len();
            at = after;
            let gap = buffer[after..].iter().take_while(|b| b" \t\r\n=".contains(b)).count();
            if buffer.get(after + gap) == Some(&b'\'') {
                let start = after + gap + 1;
                let length = buffer[start..].iter().take_while(|b| **b != b'\'').count();
                hits.push((start..start + length, "password"));
                at = start + length;
            }
        }
        if end { buffer.len() } else { from }
    }
}
