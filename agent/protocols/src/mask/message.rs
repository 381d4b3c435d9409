//! Masking of one message: a head, then content, with framing between the content's parts.
//!
//! What is scanned is the content alone, so that a chunk that begins in the middle of a value hides nothing; what is
//! recorded are the bytes of the wire, framing included, at their places.
//!
//! ```text
//!   wire     [ head ][ 5\r\n ][ token ][ \r\n3\r\n ][ =x& ][ \r\n0\r\n\r\n ]
//!   content                   [ token ]             [ =x& ]
//! ```

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::Masked;
use super::coded::CodedScan;
use super::form::FormScan;
use super::head;
use super::multipart::MultipartScan;
use super::plan::{Hit, Syntax, masked};
use super::scan::Scanner;
use super::xml::XmlScan;
use crate::coding::Coding;

/// Most wire bytes that wait for their content to be decided, bytes. Chunks of one byte with long extensions get there:
/// then the rest of the message is withheld.
const UNDECIDED_BYTES_MAX: usize = 64 * 1024;

/// How the content of a message is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Text or anything else, as it is.
    Plain,
    /// `application/x-www-form-urlencoded`
    Form,
    Xml,
    /// `multipart/form-data`, by its boundary.
    Multipart(Bytes),
    /// Under a content coding: recorded as far as what it decodes to, read as this, holds nothing that authenticates.
    Coded(Coding, Box<Content>),
    /// Not to be recorded at all, for this reason.
    Withheld(&'static str),
}

/// Masks the bytes of one message in the order they come. Gives the same for every way they are cut; output may lag by what
/// is undecided.
#[derive(Debug, Default)]
pub(crate) struct MessageMask {
    /// Taken, and not given out.
    undecided: Bytes,
    /// Places in the undecided bytes and in those that come with the next [`MessageMask::push`].
    contents: Vec<Range<usize>>,
    hits: Vec<Hit>,
    scan: Scan,
}

#[derive(Debug, Default)]
enum Scan {
    /// No content has come.
    #[default]
    Idle,
    Content(Box<ContentScan>),
    Withheld(&'static str),
}

impl MessageMask {
    /// The next bytes hold these lines of a head or of trailers, whole, at this place. Called before [`MessageMask::push`].
    pub(crate) fn fields(&mut self, lines: &[u8], at: usize) {
        head::hits(lines, self.undecided.len() + at, &mut self.hits);
    }

    /// The next bytes hold this part of the content. Called in order, before [`MessageMask::push`].
    pub(crate) fn content(&mut self, at: Range<usize>) {
        let base = self.undecided.len();
        let range = at.start + base..at.end + base;
        match self.contents.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ if range.is_empty() => {}
            _ => self.contents.push(range),
        }
    }

    /// How the content is to be read. Called before any of it comes.
    pub(crate) fn reads(&mut self, content: Content) {
        self.scan = match content {
            Content::Plain => Scan::Idle,
            content => match ContentScan::of(content) {
                Ok(scan) => Scan::Content(Box::new(scan)),
                Err(rule) => Scan::Withheld(rule),
            },
        };
    }

    /// The next bytes of the wire. With `last`, all is decided.
    pub(crate) fn push(&mut self, wire: Bytes, last: bool) -> Masked {
        let wire = join(std::mem::take(&mut self.undecided), wire);
        if self.contents.is_empty() && self.hits.is_empty() {
            if last {
                self.scan = Scan::Idle;
            }
            return Masked { bytes: wire, marks: Vec::new() };
        }
        let undecided = self.decide(&wire, last);
        if last {
            // A decoder is not kept for as long as the exchange lives.
            self.scan = Scan::Idle;
        }
        let Some(from) = undecided else {
            self.contents.clear();
            let mut hits = std::mem::take(&mut self.hits);
            tidy(&mut hits);
            return masked(wire, &hits);
        };
        let mut given = wire;
        self.undecided = given.split_off(from);
        let later = self.split_hits(from);
        self.contents.retain_mut(|range| {
            *range = range.start.saturating_sub(from)..range.end.saturating_sub(from);
            range.start < range.end
        });
        let mut hits = std::mem::replace(&mut self.hits, later);
        tidy(&mut hits);
        masked(given, &hits)
    }

    /// Scans the content that is at hand. Gives the place in the wire from which on it is undecided.
    fn decide(&mut self, wire: &Bytes, last: bool) -> Option<usize> {
        let length: usize = self.contents.iter().map(Range::len).sum();
        if length == 0 && !last {
            return None;
        }
        if matches!(self.scan, Scan::Idle) && !last {
            self.scan = Scan::Content(Box::new(ContentScan::new(First::None)));
        }
        if let Scan::Withheld(rule) = self.scan {
            self.hits.extend(self.contents.iter().map(|range| (range.clone(), rule)));
            return None;
        }
        let mut found = Vec::new();
        let content = content_of(wire, &self.contents);
        let decided = match &mut self.scan {
            Scan::Content(scan) => scan.scan(&content, last, &mut found),
            Scan::Idle | Scan::Withheld(_) => Scanner::new(Syntax::Bytes).scan(&content, true, &mut found),
        };
        for (range, rule) in found {
            self.add_content_hit(range, rule);
        }
        if decided >= length {
            return None;
        }
        let from = place_of(&self.contents, decided);
        if wire.len() - from <= UNDECIDED_BYTES_MAX {
            return Some(from);
        }
        self.scan = Scan::Withheld("undecided");
        self.add_content_hit(decided..length, "undecided");
        None
    }

    /// From places in the content to places in the wire.
    fn add_content_hit(&mut self, hit: Range<usize>, rule: &'static str) {
        let mut start = 0;
        for range in &self.contents {
            let (from, to) = (hit.start.max(start), hit.end.min(start + range.len()));
            if from < to {
                self.hits.push((range.start + from - start..range.start + to - start, rule));
            }
            start += range.len();
        }
    }

    /// Takes out what lies behind `from`, moved to where it will be then.
    fn split_hits(&mut self, from: usize) -> Vec<Hit> {
        let mut later = Vec::new();
        self.hits.retain_mut(|(range, rule)| {
            if range.end > from {
                later.push((range.start.saturating_sub(from)..range.end - from, *rule));
                range.end = from;
            }
            range.start < range.end
        });
        later
    }
}

/// In order, and no two over each other: what comes first keeps its rule.
pub(super) fn tidy(hits: &mut Vec<Hit>) {
    if hits.len() < 2 {
        return;
    }
    hits.sort_by_key(|(range, _)| range.start);
    let mut end = 0;
    hits.retain_mut(|(range, _)| {
        range.start = range.start.max(end);
        end = end.max(range.end);
        range.start < range.end
    });
}

/// One slice, copied only where the content has several parts.
fn content_of(wire: &Bytes, contents: &[Range<usize>]) -> Bytes {
    match contents {
        [] => Bytes::new(),
        [one] => wire.slice(one.clone()),
        many => {
            let mut content = BytesMut::with_capacity(many.iter().map(Range::len).sum());
            many.iter().for_each(|range| content.extend_from_slice(&wire[range.clone()]));
            content.freeze()
        }
    }
}

fn place_of(contents: &[Range<usize>], mut offset: usize) -> usize {
    for range in contents {
        if offset < range.len() {
            return range.start + offset;
        }
        offset -= range.len();
    }
    contents.last().map_or(0, |range| range.end)
}

pub(super) fn join(first: Bytes, second: Bytes) -> Bytes {
    match (first.is_empty(), second.is_empty()) {
        (true, _) => second,
        (_, true) => first,
        _ => {
            let mut joined = BytesMut::with_capacity(first.len() + second.len());
            joined.extend_from_slice(&first);
            joined.extend_from_slice(&second);
            joined.freeze()
        }
    }
}

/// Readers of the same content, each of which decides at its own pace.
#[derive(Debug)]
pub(super) struct ContentScan {
    /// What knows the content's form.
    first: First,
    first_ahead: usize,
    /// What knows secrets by name and shape, wherever they stand.
    general: Scanner,
    general_ahead: usize,
}

#[derive(Debug)]
enum First {
    None,
    Form(FormScan),
    Xml(XmlScan),
    Multipart(Box<MultipartScan>),
    Coded(Box<CodedScan>),
}

impl ContentScan {
    fn new(first: First) -> Self {
        Self { first, first_ahead: 0, general: Scanner::new(Syntax::Bytes), general_ahead: 0 }
    }

    /// The readers of such content; else the rule by which it is withheld.
    pub(super) fn of(content: Content) -> Result<Self, &'static str> {
        let first = match content {
            Content::Plain => First::None,
            Content::Form => First::Form(FormScan::new()),
            Content::Xml => First::Xml(XmlScan::default()),
            Content::Multipart(boundary) => {
                First::Multipart(Box::new(MultipartScan::new(&boundary).ok_or("form")?))
            }
            Content::Coded(coding, decoded) => {
                let text = Self::of(*decoded)?;
                First::Coded(Box::new(CodedScan::new(coding, text).ok_or("coded")?))
            }
            Content::Withheld(rule) => return Err(rule),
        };
        Ok(Self::new(first))
    }

    /// As [`Scanner::scan`]: the content begins where the last call had decided up to. `hits` is empty.
    pub(super) fn scan(&mut self, content: &[u8], last: bool, hits: &mut Vec<Hit>) -> usize {
        let from = self.first_ahead.min(content.len());
        let rest = &content[from..];
        self.first_ahead = match &mut self.first {
            First::None => content.len(),
            First::Form(scan) => from + scan.scan(rest, last, hits),
            First::Xml(scan) => from + scan.scan(rest, last, hits),
            First::Multipart(scan) => from + scan.scan(rest, last, hits),
            First::Coded(scan) => from + scan.scan(rest, last, hits),
        };
        shift(hits, from);
        if matches!(self.first, First::Coded(_)) {
            // Coded bytes look like anything.
            self.general_ahead = content.len();
        } else {
            // In a list of its own: the scanner makes one of two hits that touch.
            let (from, mut found) = (self.general_ahead.min(content.len()), Vec::new());
            self.general_ahead = from + self.general.scan(&content[from..], last, &mut found);
            shift(&mut found, from);
            hits.append(&mut found);
        }
        let decided = self.first_ahead.min(self.general_ahead);
        self.first_ahead -= decided;
        self.general_ahead -= decided;
        decided
    }
}

fn shift(hits: &mut [Hit], by: usize) {
    for (range, _) in hits {
        *range = range.start + by..range.end + by;
    }
}
