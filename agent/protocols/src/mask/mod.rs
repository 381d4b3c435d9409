//! The only maker of [`Masked`]: what authenticates never enters the record, from the first byte on.
//!
//! A masked byte is replaced by `*`, so lengths and frames stay as they were; each mask leaves a [`Mark`] (place, length,
//! rule), never the value. `secrets.toml` names what authenticates.

mod anchors;
mod argv;
mod coded;
mod form;
mod frame;
mod gap;
mod head;
mod look_back;
mod message;
mod multipart;
mod names;
mod plan;
mod scan;
mod stream;
mod userinfo;
mod value;
mod view;
mod xml;

pub(crate) use message::{Content, MessageMask};
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

    pub fn number(number: u16) -> Self {
        Self { bytes: Bytes::from(number.to_string()), marks: Vec::new() }
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

/// The fuzz entry: nothing panics, lengths stay, and the cuts do not matter.
#[cfg(any(test, feature = "suite"))]
pub fn fuzz(input: &[u8]) {
    let plan = MaskPlan::standard();
    let (cut, bytes) =
        input.split_first().map_or((1, input), |(first, rest)| (usize::from(*first) + 1, rest));
    let bytes = Bytes::copy_from_slice(bytes);
    for syntax in [Syntax::Sql, Syntax::Bytes] {
        let whole = match syntax {
            Syntax::Sql => plan.text(&bytes),
            Syntax::Bytes => plan.bytes(&bytes),
        };
        let mut stream = plan.stream(syntax);
        let mut shown = Vec::with_capacity(bytes.len());
        for chunk in bytes.chunks(cut) {
            shown.extend_from_slice(stream.push(bytes.slice_ref(chunk)).bytes());
        }
        shown.extend_from_slice(stream.finish().bytes());
        assert_eq!(whole.bytes().len(), bytes.len(), "a mask changed the length");
        assert_eq!(&shown[..], &whole.bytes()[..], "a cut changed the outcome");
    }
    let messages = [
        Content::Plain,
        Content::Form,
        Content::Xml,
        Content::Multipart(Bytes::from_static(b"b")),
        Content::Coded(crate::coding::Coding::Deflate, Box::new(Content::Plain)),
        Content::Coded(crate::coding::Coding::Deflate, Box::new(Content::Xml)),
        Content::Withheld("fuzz"),
    ];
    for content in messages {
        let message = |cut: usize| {
            let (mut mask, mut shown) = (MessageMask::default(), Vec::new());
            mask.reads(content.clone());
            for part in bytes.chunks(cut) {
                mask.content(0..part.len());
                shown.extend_from_slice(mask.push(bytes.slice_ref(part), false).bytes());
            }
            shown.extend_from_slice(mask.push(Bytes::new(), true).bytes());
            shown
        };
        let whole = message(bytes.len().max(1));
        assert_eq!(whole.len(), bytes.len(), "a mask changed the length");
        assert_eq!(message(cut), whole, "a cut changed the outcome of {content:?}");
    }
    let arguments: Vec<_> =
        input.split(|byte| *byte == 0).map(|part| String::from_utf8_lossy(part).into_owned()).collect();
    assert_eq!(plan.argv(&arguments).len(), arguments.len());
}

#[cfg(test)]
mod tests;
