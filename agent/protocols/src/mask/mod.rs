//! The only maker of [`Masked`]: what authenticates never enters the record, from the first byte on.
//!
//! A masked byte is replaced by `*`, so lengths and frames stay as they were; each mask leaves a [`Mark`] (place, length,
//! rule), never the value. `secrets.toml` names what authenticates.

mod anchors;
mod frame;
mod gap;
mod look_back;
mod names;
mod plan;
mod scan;
mod stream;
mod userinfo;
mod value;
mod view;

pub use plan::{MaskPlan, Syntax};
pub use stream::StreamMask;

use bytes::Bytes;

/// Bytes that may be recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Masked {
    bytes: Bytes,
    marks: Vec<Mark>,
}

/// One masked place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    pub offset: u32,
    pub length: u32,
    pub rule: &'static str,
}

impl Masked {
    /// Our own words: protocol names, reasons, numbers.
    pub const fn word(word: &'static str) -> Self {
        Self { bytes: Bytes::from_static(word.as_bytes()), marks: Vec::new() }
    }

    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    pub fn marks(&self) -> &[Mark] {
        &self.marks
    }

    pub fn into_parts(self) -> (Bytes, Vec<Mark>) {
        (self.bytes, self.marks)
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// For events whose fields are text.
    pub fn to_text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

#[cfg(test)]
mod tests;
