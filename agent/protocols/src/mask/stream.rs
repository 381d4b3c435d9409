//! Masking of bytes that come in parts.

use bytes::{Bytes, BytesMut};

use super::Masked;
use super::plan::masked;
use super::scan::Scanner;

/// Gives the same marks for every way the bytes are cut. What is not yet decided is held, so the output may lag.
#[derive(Debug)]
pub struct StreamMask {
    scanner: Scanner,
    held: BytesMut,
}

impl StreamMask {
    pub(super) fn new(scanner: Scanner) -> Self {
        Self { scanner, held: BytesMut::new() }
    }

    /// Takes the next bytes and gives what is decided by now: held bytes first; maybe nothing.
    pub fn push(&mut self, bytes: Bytes) -> Masked {
        self.held.extend_from_slice(&bytes);
        let mut hits = Vec::new();
        let decided = self.scanner.scan(&self.held, 0, false, &mut hits);
        masked(self.held.split_to(decided).freeze(), &hits)
    }

    /// The rest, at the end of the bytes.
    pub fn finish(&mut self) -> Masked {
        let mut hits = Vec::new();
        self.scanner.scan(&self.held, 0, true, &mut hits);
        masked(self.held.split().freeze(), &hits)
    }
}
