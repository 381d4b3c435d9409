//! Renders the recorded messages of one exchange: rows with their columns' names, in text and in binary format.
//!
//! What is read here may be masked, cut or have a gap. A frame that does not read is shown as bytes; a direction whose
//! frames are lost is shown as bytes from there on.

use super::error::{self, ServerError};
use super::frame::{self, Fields, HEADER_BYTES};
use super::{exchange, places, types, value};
use crate::mask::MaskPlan;
use crate::reader::{Part, Reader};
use crate::seam::Side;
use crate::view::{Line, Page, Piece, SHOWN_BYTES_MAX, escaped};

pub(crate) fn render(columns: &[(String, String)], pieces: impl Iterator<Item = Piece>, page: &mut Page) {
    let mut sheet = Sheet {
        plan: MaskPlan::standard(),
        formats: columns.iter().map(|(_, type_name)| types::parse_column_type(type_name)).collect(),
        names: columns.iter().map(|(name, _)| name.clone()).collect(),
        titled: false,
        streamed: 0,
        page,
    };
    let mut directions = [Direction::default(), Direction::default()];
    for piece in pieces {
        let direction = &mut directions[piece.from.index()];
        if direction.lost {
            sheet.page.bytes(piece.from, &piece.bytes);
            continue;
        }
        direction.reader.push(piece.bytes);
        loop {
            match direction.reader.next(frame::measure_upstream) {
                Ok(Some(frame)) => sheet.frame(piece.from, frame.part, &frame.bytes),
                Ok(None) => break,
                Err(_) => {
                    // Startup messages have no tag, and a gap may begin anywhere.
                    direction.lost = true;
                    sheet.page.bytes(piece.from, &direction.reader.take_all());
                    break;
                }
            }
        }
    }
    for (from, direction) in [Side::Client, Side::Upstream].into_iter().zip(&mut directions) {
        sheet.page.bytes(from, &direction.reader.take_all());
    }
}

#[derive(Default)]
struct Direction {
    reader: Reader,
    lost: bool,
}

struct Sheet<'a> {
    plan: MaskPlan,
    /// Type and format of each column.
    formats: Vec<(u32, i16)>,
    names: Vec<String>,
    /// The names were shown.
    titled: bool,
    /// Of a message longer than a frame: bytes after its head.
    streamed: u64,
    page: &'a mut Page,
}

impl Sheet<'_> {
    fn frame(&mut self, from: Side, part: Part, frame: &[u8]) {
        match part {
            Part::More => self.streamed += frame.len() as u64,
            Part::Last => {
                let text =
                    format!("({} more bytes)", std::mem::take(&mut self.streamed) + frame.len() as u64);
                self.page.push(Line::Bytes { from, text });
            }
            Part::Whole | Part::Head if from == Side::Client => self.request(frame),
            Part::Whole | Part::Head => self.reply(frame),
        }
    }

    fn request(&mut self, frame: &[u8]) {
        let line = match frame[0] {
            b'Q' => Line::Request(text(&frame[places::texts(frame)[0].clone()])),
            b'P' => Line::Request(text(&frame[places::texts(frame)[1].clone()])),
            b'd' => Line::Bytes { from: Side::Client, text: text(&frame[HEADER_BYTES..]) },
            b'f' => {
                Line::Request(format!("copy failed: {}", text(Fields::of(frame).cstr().unwrap_or_default())))
            }
            b'B' | b'E' | b'D' | b'C' | b'H' | b'S' | b'X' | b'c' => return,
            b'p' => Line::Request("(authentication)".to_owned()),
            b'F' => Line::Request(format!("function call, oid {}", Fields::of(frame).u32().unwrap_or(0))),
            _ => return self.page.bytes(Side::Client, frame),
        };
        self.page.push(line);
    }

    fn reply(&mut self, frame: &[u8]) {
        let line = match frame[0] {
            b'T' => return self.describe(frame),
            b'D' => return self.row(frame),
            b'd' => Line::Bytes { from: Side::Upstream, text: text(&frame[HEADER_BYTES..]) },
            b'C' => Line::Reply(text(Fields::of(frame).cstr().unwrap_or_default())),
            b'E' => Line::Error(self.told(frame)),
            b'N' => Line::Reply(format!("notice: {}", self.told(frame))),
            b'A' => {
                let mut fields = Fields::of(frame);
                let pid = fields.u32().unwrap_or(0);
                let channel = text(fields.cstr().unwrap_or_default());
                let payload = text(fields.cstr().unwrap_or_default());
                Line::Reply(format!("notification on {channel} from {pid}: {payload}"))
            }
            b'I' => Line::Reply("(empty query)".to_owned()),
            b's' => Line::Reply("(suspended)".to_owned()),
            b'V' => {
                let value = Fields::of(frame).value().flatten().map(|range| text(&frame[range]));
                Line::Row(vec![value])
            }
            b'1' | b'2' | b'3' | b'n' | b't' | b'Z' | b'K' | b'S' | b'R' | b'G' | b'H' | b'W' | b'c'
            | b'v' => return,
            _ => return self.page.bytes(Side::Upstream, frame),
        };
        self.page.push(line);
    }

    fn told(&self, frame: &[u8]) -> String {
        let error = ServerError::read(frame, &self.plan);
        if error.code.is_empty() && error.message.is_empty() && !error::texts(frame).is_empty() {
            return text(&frame[HEADER_BYTES..]);
        }
        let message = text(error.message.bytes());
        if error.code.is_empty() { message } else { format!("{}: {message}", text(error.code.bytes())) }
    }

    fn describe(&mut self, frame: &[u8]) {
        let columns = exchange::columns(frame, &self.plan);
        self.names = columns.iter().map(|column| text(column.name.bytes())).collect();
        self.formats = columns.iter().map(|column| (column.type_oid, column.format)).collect();
        self.titled = true;
        self.page.push(Line::Columns(self.names.clone()));
    }

    fn row(&mut self, frame: &[u8]) {
        if !self.titled {
            self.titled = true;
            if !self.names.is_empty() {
                self.page.push(Line::Columns(self.names.clone()));
            }
        }
        let mut fields = Fields::of(frame);
        let mut row = Vec::new();
        for n in 0..fields.count().unwrap_or(0) {
            let Some(value) = fields.value() else {
                row.push(Some(format!("(cut) {}", text(fields.rest()))));
                break;
            };
            let (oid, format) = self.formats.get(n).copied().unwrap_or_default();
            row.push(value.map(|range| shown(oid, format, &frame[range])));
        }
        self.page.push(Line::Row(row));
    }
}

fn shown(oid: u32, format: i16, bytes: &[u8]) -> String {
    if format == 0 {
        return text(bytes);
    }
    let (shown, cut) = value::shown(oid, format, bytes, SHOWN_BYTES_MAX);
    if cut { format!("{shown}... ({} bytes)", bytes.len()) } else { shown }
}

/// For a terminal: no controls, and not too long.
fn text(bytes: &[u8]) -> String {
    if bytes.len() <= SHOWN_BYTES_MAX {
        return printable(bytes);
    }
    format!("{}... ({} bytes)", printable(&bytes[..SHOWN_BYTES_MAX]), bytes.len())
}

fn printable(bytes: &[u8]) -> String {
    // Statements and values of many lines stay as they are written.
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\t')) => text.to_owned(),
        _ => escaped(bytes),
    }
}
