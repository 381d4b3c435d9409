//! Masking of bytes that come in parts.

use bytes::{Bytes, BytesMut};

use super::Masked;
use super::plan::masked;
use super::scan::Scanner;

/// Gives the same for every way the bytes are cut. What is not yet decided is held, within a bound of the scanner's
/// (less than 1 KiB), so the output may lag a little.
#[derive(Debug)]
pub struct StreamMask {
    scanner: Scanner,
    held: Bytes,
}

impl StreamMask {
    pub(super) fn new(scanner: Scanner) -> Self {
        Self { scanner, held: Bytes::new() }
    }

    /// Takes the next bytes and gives what is decided by now, held bytes first; maybe nothing.
    pub fn push(&mut self, bytes: Bytes) -> Masked {
        self.scan(bytes, false)
    }

    /// The rest, at the end of the bytes.
    pub fn finish(&mut self) -> Masked {
        self.scan(Bytes::new(), true)
    }

    fn scan(&mut self, bytes: Bytes, last: bool) -> Masked {
        let mut bytes = join(std::mem::take(&mut self.held), bytes);
        let mut hits = Vec::new();
        let decided = self.scanner.scan(&bytes, last, &mut hits);
        self.held = bytes.split_off(decided);
        masked(bytes, &hits)
    }
}

fn join(first: Bytes, second: Bytes) -> Bytes {
    if first.is_empty() {
        return second;
    }
    let mut joined = BytesMut::with_capacity(first.len() + second.len());
    joined.extend_from_slice(&first);
    joined.extend_from_slice(&second);
    joined.freeze()
}
