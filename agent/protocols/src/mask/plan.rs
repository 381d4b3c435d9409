//! A plan: what to mask, compiled once and shared by every session.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::scan::{Scanner, may_hold_secret};
use super::{Mark, Masked, StreamMask};

/// What must not enter the record. Cheap to clone.
#[derive(Clone, Debug)]
pub struct MaskPlan {}

/// How bytes are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syntax {
    /// SQL, or text that a person wrote.
    Sql,
    /// Frames of any protocol, or no protocol at all.
    Bytes,
}

impl MaskPlan {
    /// The plan of `secrets.toml`: it holds in every session, whatever the rules say.
    pub fn standard() -> Self {
        Self {}
    }

    /// A whole statement, message or other text.
    pub fn text(&self, text: &Bytes) -> Masked {
        self.whole(text, Syntax::Sql)
    }

    /// A run of whole protocol frames: the same `Bytes`, uncopied, when nothing in it authenticates.
    pub fn bytes(&self, bytes: &Bytes) -> Masked {
        self.whole(bytes, Syntax::Bytes)
    }

    /// Like [`MaskPlan::bytes`], each field on its own: a mask never reaches from one field into the next, nor into the
    /// frame headers between them. `fields` is only asked for when something in the run looks like a secret.
    pub fn fields<F, I>(&self, bytes: &Bytes, fields: F) -> Masked
    where
        F: FnOnce() -> I,
        I: IntoIterator<Item = Range<usize>>,
    {
        if !may_hold_secret(bytes) {
            return Masked { bytes: bytes.clone(), marks: Vec::new() };
        }
        let mut hits = Vec::new();
        for field in fields() {
            let Some(part) = bytes.get(field.clone()) else { continue };
            let mut found = Vec::new();
            Scanner::new(Syntax::Bytes).scan(part, true, &mut found);
            hits.extend(
                found
                    .into_iter()
                    .map(|(range, rule)| (range.start + field.start..range.end + field.start, rule)),
            );
        }
        masked(bytes.clone(), &hits)
    }

    /// These ranges, because the protocol says what they are: a password message, a cancel key.
    pub fn withheld(&self, bytes: &Bytes, ranges: &[Range<usize>], rule: &'static str) -> Masked {
        let hits: Vec<_> = ranges.iter().map(|range| (range.clone(), rule)).collect();
        masked(bytes.clone(), &hits)
    }

    /// For bytes that come in parts: a value split over parts is still caught.
    pub fn stream(&self, syntax: Syntax) -> StreamMask {
        StreamMask::new(Scanner::new(syntax))
    }

    /// Why the bodies of a request for this path of this host are not to be recorded, if so.
    pub(crate) fn withheld_body(&self, host: &[u8], path: &[u8]) -> Option<&'static str> {
        super::names::SECRETS.withheld_body(host, path)
    }

    /// The beginning of a message of HTTP whose head is not sound.
    pub(crate) fn unsound_head(&self, bytes: &Bytes) -> Masked {
        let mut hits = Vec::new();
        Scanner::new(Syntax::Bytes).scan(bytes, true, &mut hits);
        super::head::unsound_hits(bytes, &mut hits);
        super::message::tidy(&mut hits);
        masked(bytes.clone(), &hits)
    }

    /// A URL, or the target of a request, also as what its escapes mean.
    pub(crate) fn url(&self, url: &Bytes) -> Masked {
        if !may_hold_secret(url) && memchr::memchr(b'%', url).is_none() {
            return Masked { bytes: url.clone(), marks: Vec::new() };
        }
        let mut hits = Vec::new();
        Scanner::new(Syntax::Bytes).scan(url, true, &mut hits);
        super::form::decoded_hits(url, &mut hits);
        super::message::tidy(&mut hits);
        masked(url.clone(), &hits)
    }

    /// The arguments of a process, the program first. A masked argument keeps its length.
    pub fn argv(&self, argv: &[String]) -> Vec<String> {
        super::argv::masked(argv)
    }

    fn whole(&self, bytes: &Bytes, syntax: Syntax) -> Masked {
        let mut hits = Vec::new();
        Scanner::new(syntax).scan(bytes, true, &mut hits);
        masked(bytes.clone(), &hits)
    }
}

/// One masked range and the rule that says so.
pub(super) type Hit = (Range<usize>, &'static str);

/// Carries the hits out. They are in order; what lies outside of `bytes` is cut off.
pub(super) fn masked(bytes: Bytes, hits: &[Hit]) -> Masked {
    if hits.is_empty() {
        return Masked { bytes, marks: Vec::new() };
    }
    let mut copy = BytesMut::from(&bytes[..]);
    let mut marks: Vec<Mark> = Vec::with_capacity(hits.len());
    for (range, rule) in hits {
        let (start, end) = (range.start.min(copy.len()), range.end.min(copy.len()));
        if start >= end {
            continue;
        }
        copy[start..end].fill(b'*');
        marks.push(Mark { offset: start as u32, length: (end - start) as u32, rule });
    }
    Masked { bytes: copy.freeze(), marks }
}
