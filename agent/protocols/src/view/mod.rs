//! Rendering of recorded bytes for people: pure, bounded, and tolerant of masks, gaps and nonsense.
//!
//! What is rendered is one exchange: the pieces of both directions in the order they were recorded.

mod escape;
#[cfg(test)]
mod tests;

use bytes::Bytes;

pub use self::escape::escaped;
use crate::seam::Side;

/// Of the rendering; recorded with each session so that a reader knows what a writer had in mind.
pub const VIEW_VERSION: u32 = 1;
/// Most lines of one rendering.
pub const LINES_MAX: usize = 100_000;
/// Most text in one rendering, bytes.
pub const TEXT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Longest value, message or run of bytes shown in a line, bytes.
pub const SHOWN_BYTES_MAX: usize = 16 * 1024;

/// Recorded bytes of one direction.
#[derive(Clone, Debug)]
pub struct Piece {
    pub from: Side,
    pub bytes: Bytes,
}

/// One line of a rendering.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// What the client asked.
    Request(String),
    /// The names of the columns of the rows that follow.
    Columns(Vec<String>),
    /// A row; `None` is NULL.
    Row(Vec<Option<String>>),
    /// What the server said of it, in one line.
    Reply(String),
    /// What the server said went wrong.
    Error(String),
    /// Bytes that have no better form, escaped.
    Bytes { from: Side, text: String },
    /// There is more than a rendering may hold.
    Cut { bytes: u64 },
}

/// Renders one exchange of a session of this protocol. `columns` (name, type) are those of its `finished` event.
pub fn render(
    protocol: &str,
    columns: &[(String, String)],
    pieces: impl Iterator<Item = Piece>,
) -> Vec<Line> {
    let mut page = Page::default();
    match protocol {
        "postgres" => crate::postgres::rows::render(columns, pieces, &mut page),
        "http" => crate::http::rendering::render(pieces, &mut page),
        _ => pieces.for_each(|piece| page.bytes(piece.from, &piece.bytes)),
    }
    page.lines()
}

/// The text that the bodies of an exchange hold, for people who search for it: masked as recorded, decoded, cut.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BodyText {
    pub request: String,
    pub response: String,
}

/// Longest text of one direction's body, bytes.
pub const BODY_TEXT_BYTES_MAX: usize = 16 * 1024;

/// The text in the bodies of one exchange of a session of this protocol. Empty where bodies are no text, and for protocols
/// whose texts are all in the operation (PostgreSQL). Pieces come in the order they were recorded, as for [`render`].
pub fn body_text(protocol: &str, pieces: impl Iterator<Item = Piece>) -> BodyText {
    match protocol {
        "http" => crate::http::rendering::body_text(pieces),
        _ => BodyText::default(),
    }
}

/// Lines within the limits. What does not fit is counted.
#[derive(Debug, Default)]
pub(crate) struct Page {
    lines: Vec<Line>,
    text_bytes: usize,
    cut_bytes: u64,
}

impl Page {
    pub(crate) fn push(&mut self, line: Line) {
        let bytes = size(&line);
        if self.is_full() || self.text_bytes + bytes > TEXT_BYTES_MAX {
            self.cut(bytes as u64);
            return;
        }
        self.text_bytes += bytes;
        self.lines.push(line);
    }

    /// Bytes that belong together are one line, however they were cut when recorded.
    pub(crate) fn bytes(&mut self, from: Side, bytes: &[u8]) {
        for part in bytes.chunks(SHOWN_BYTES_MAX) {
            if self.is_full() {
                self.cut(part.len() as u64);
            } else {
                self.push(Line::Bytes { from, text: escaped(part) });
            }
        }
    }

    pub(crate) fn cut(&mut self, bytes: u64) {
        self.cut_bytes += bytes;
    }

    fn is_full(&self) -> bool {
        self.cut_bytes > 0 || self.lines.len() >= LINES_MAX
    }

    fn lines(mut self) -> Vec<Line> {
        if self.cut_bytes > 0 {
            self.lines.push(Line::Cut { bytes: self.cut_bytes });
        }
        self.lines
    }
}

fn size(line: &Line) -> usize {
    match line {
        Line::Request(text) | Line::Reply(text) | Line::Error(text) | Line::Bytes { text, .. } => text.len(),
        Line::Columns(names) => names.iter().map(|name| name.len() + 8).sum(),
        Line::Row(values) => values.iter().map(|value| value.as_ref().map_or(0, String::len) + 8).sum(),
        Line::Cut { .. } => 0,
    }
}
