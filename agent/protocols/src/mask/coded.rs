//! Masking of content under a content coding. Coded bytes cannot be masked in place: they are recorded up to where what
//! they decode to first holds something that authenticates, and withheld from there on.
//!
//! ```text
//!   coded     [ block ][ block ][ block ][ block ]...    blocks of one size: where reads cut does not matter
//!   decoded   [ fine    ][ fine  ...token=][ x   ]
//!   recorded  [ block ][ ******************************
//! ```

use std::collections::VecDeque;

use super::message::ContentScan;
use super::plan::Hit;
use crate::coding::{Coding, Decoder, MASKED_WINDOW_LOG_MAX};

/// Bytes that are decoded at a time, and recorded or withheld together.
const BLOCK_BYTES: usize = 4 * 1024;
/// Most that one block may decode to, bytes: more than a hundredfold is hardly text, and costs whoever looks at it.
const BLOCK_DECODED_BYTES_MAX: usize = 512 * 1024;
/// Most that is decoded of one message, bytes; what comes behind it is withheld.
const DECODED_BYTES_MAX: u64 = 256 * 1024 * 1024;

#[derive(Debug)]
pub(super) struct CodedScan {
    decoder: Decoder,
    /// Reads what was decoded as its media type says.
    readers: ContentScan,
    /// Decoded, and not decided.
    text: Vec<u8>,
    decoded_bytes: u64,
    /// Of the bytes that come next, so many were decoded.
    fed: usize,
    /// Ends of blocks that are not decided: among the bytes that come next, and in what was decoded.
    blocks: VecDeque<(usize, u64)>,
    withheld: bool,
}

impl CodedScan {
    pub(super) fn new(coding: Coding, readers: ContentScan) -> Option<Self> {
        Some(Self {
            decoder: Decoder::new(coding, MASKED_WINDOW_LOG_MAX).ok()?,
            readers,
            text: Vec::new(),
            decoded_bytes: 0,
            fed: 0,
            blocks: VecDeque::new(),
            withheld: false,
        })
    }

    /// As `Scanner::scan`.
    pub(super) fn scan(&mut self, coded: &[u8], last: bool, hits: &mut Vec<Hit>) -> usize {
        let mut decided = 0;
        while !self.withheld {
            let rest = &coded[self.fed.min(coded.len())..];
            let block = match rest.len() {
                BLOCK_BYTES.. => &rest[..BLOCK_BYTES],
                _ if last => rest,
                _ => break,
            };
            if block.is_empty() {
                self.withheld = self.decide(true);
                break;
            }
            self.withheld = self.block(block);
            if !self.withheld {
                decided = self.decided(decided);
            }
        }
        if self.withheld {
            if decided < coded.len() {
                hits.push((decided..coded.len(), "coded"));
            }
            return coded.len();
        }
        if last {
            return coded.len();
        }
        self.fed -= decided.min(self.fed);
        for (end, _) in &mut self.blocks {
            *end -= decided;
        }
        decided
    }

    /// Decodes a block. Says whether it is to be withheld.
    fn block(&mut self, block: &[u8]) -> bool {
        let before = self.text.len();
        let sound = self.decoder.push(block, BLOCK_DECODED_BYTES_MAX, &mut self.text).is_ok();
        self.decoded_bytes += (self.text.len() - before) as u64;
        self.fed += block.len();
        self.blocks.push_back((self.fed, self.decoded_bytes));
        !sound || self.decoded_bytes > DECODED_BYTES_MAX || self.decide(false)
    }

    /// Looks at what was decoded. Says whether it holds anything that authenticates.
    fn decide(&mut self, last: bool) -> bool {
        let mut found = Vec::new();
        let decided = self.readers.scan(&self.text, last, &mut found);
        self.text.drain(..decided);
        // A large block's room is not kept for the small ones that follow.
        self.text.shrink_to(BLOCK_BYTES);
        !found.is_empty()
    }

    /// Up to the end of the last block whose text is decided; `decided` so far.
    fn decided(&mut self, mut decided: usize) -> usize {
        let text_decided = self.decoded_bytes - self.text.len() as u64;
        while let Some((end, text_end)) = self.blocks.front().copied() {
            if text_end > text_decided {
                break;
            }
            decided = end;
            self.blocks.pop_front();
        }
        decided
    }
}
