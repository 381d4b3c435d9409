//! Recorded exchanges for people and for search: heads as they are, bodies without their framing and their coding.
//!
//! What is read here may be masked, cut or have a gap. What does not read is shown as bytes.

use bytes::Bytes;

use super::h1::{Asked, BodyReader, HEAD_BYTES_MAX, HeadEnd, Step, request_head, response_head};
use super::message::{Body, Length, Switch};
use crate::coding::{Decoder, SHOWN_WINDOW_LOG_MAX};
use crate::seam::Side;
use crate::view::{
    BODY_TEXT_BYTES_MAX, BodyText, Line, Page, Piece, SHOWN_BYTES_MAX, TEXT_BYTES_MAX, escaped,
};

/// Most recorded bytes of one direction that search looks at, bytes.
const SEARCHED_BYTES_MAX: usize = HEAD_BYTES_MAX + 256 * 1024;
/// Most that a coded body is decoded to for a page, bytes, whatever it claims to hold.
const DECODED_BYTES_MAX: usize = 4 * 1024 * 1024;
/// From so many mask bytes on, the end of a coded body is withheld and not its own.
const WITHHELD_BYTES_MIN: usize = 32;

pub(crate) fn render(pieces: impl Iterator<Item = Piece>, page: &mut Page) {
    let Said { client, upstream, left_out } = Said::of(pieces, TEXT_BYTES_MAX);
    let request = Message::request(&client);
    let asked = request.as_ref().map(|request| request.asked).unwrap_or_default();
    match &request {
        Some(request) => request.show(Side::Client, DECODED_BYTES_MAX, page),
        None => page.bytes(Side::Client, &client),
    }
    let mut rest = upstream;
    while let Some((message, after)) = Message::response(&rest, asked) {
        message.show(Side::Upstream, DECODED_BYTES_MAX, page);
        rest = after;
    }
    page.bytes(Side::Upstream, &rest);
    if left_out > 0 {
        page.cut(left_out);
    }
}

pub(crate) fn body_text(pieces: impl Iterator<Item = Piece>) -> BodyText {
    let said = Said::of(pieces, SEARCHED_BYTES_MAX);
    let request = Message::request(&said.client);
    let asked = request.as_ref().map(|request| request.asked).unwrap_or_default();
    let mut text = BodyText::default();
    if let Some(request) = request {
        text.request = request.text();
    }
    let mut rest = said.upstream;
    while let Some((message, after)) = Message::response(&rest, asked) {
        if message.is_final {
            text.response = message.text();
            break;
        }
        rest = after;
    }
    text
}

/// Both directions, each put together.
#[derive(Default)]
struct Said {
    client: Bytes,
    upstream: Bytes,
    left_out: u64,
}

impl Said {
    fn of(pieces: impl Iterator<Item = Piece>, bytes_max: usize) -> Self {
        let (mut sides, mut left_out) = ([Vec::new(), Vec::new()], 0);
        for piece in pieces {
            let side = &mut sides[piece.from.index()];
            let room = bytes_max.saturating_sub(side.len()).min(piece.bytes.len());
            side.extend_from_slice(&piece.bytes[..room]);
            left_out += (piece.bytes.len() - room) as u64;
        }
        let [client, upstream] = sides.map(Bytes::from);
        Self { client, upstream, left_out }
    }
}

/// One message, as far as it was recorded.
struct Message {
    head: Bytes,
    asked: Asked,
    is_final: bool,
    is_error: bool,
    body: Body,
    content: Vec<u8>,
    /// Behind the body's content, or where it stopped making sense.
    rest: Bytes,
}

impl Message {
    fn request(bytes: &Bytes) -> Option<Self> {
        let (head, rest) = split_head(bytes)?;
        let told = request_head(&head).ok()?;
        let asked = Asked::of(&told);
        let (content, rest) = content(told.length, &rest);
        Some(Self { head, asked, is_final: true, is_error: false, body: told.body, content, rest })
    }

    fn response(bytes: &Bytes, mut asked: Asked) -> Option<(Self, Bytes)> {
        let (head, rest) = split_head(bytes)?;
        // What was asked may not be on record.
        asked.switch.get_or_insert(Switch::Upgrade);
        let told = response_head(&head, &asked).ok()?;
        let (content, rest) = content(told.length, &rest);
        let (is_final, is_error) = (!told.is_interim(), told.status >= 400);
        let message = Self { head, asked, is_final, is_error, body: told.body, content, rest: Bytes::new() };
        Some((message, rest))
    }

    fn show(&self, from: Side, decoded_bytes_max: usize, page: &mut Page) {
        let head = plain(&String::from_utf8_lossy(self.head.trim_ascii_end()).replace("\r\n", "\n"));
        page.push(match (from, self.is_error) {
            (Side::Client, _) => Line::Request(head),
            (Side::Upstream, false) => Line::Reply(head),
            (Side::Upstream, true) => Line::Error(head),
        });
        let (content, withheld) = self.decoded(decoded_bytes_max);
        if let Some(text) = text_of(&content) {
            for part in parts(text) {
                let part = plain(part);
                page.push(if from == Side::Client { Line::Request(part) } else { Line::Reply(part) });
            }
        } else {
            page.bytes(from, &content);
        }
        if withheld > 0 {
            let text = format!("[{withheld} coded bytes are withheld or cannot be decoded]");
            page.push(Line::Bytes { from, text });
        }
        page.bytes(from, &self.rest);
    }

    fn text(&self) -> String {
        let (mut content, _) = self.decoded(BODY_TEXT_BYTES_MAX);
        content.truncate(BODY_TEXT_BYTES_MAX);
        text_of(&content).map(str::to_owned).unwrap_or_default()
    }

    /// The content without its coding, and how many coded bytes could not be decoded.
    fn decoded(&self, bytes_max: usize) -> (Vec<u8>, usize) {
        let coding = match self.body.coding() {
            Ok(None) => return (self.content.clone(), 0),
            Ok(Some(coding)) => coding,
            Err(_) => return (Vec::new(), self.content.len()),
        };
        let mask = self.content.iter().rev().take_while(|byte| **byte == b'*').count();
        let withheld = if mask < WITHHELD_BYTES_MIN { 0 } else { mask };
        let coded = &self.content[..self.content.len() - withheld];
        let mut decoded = Vec::new();
        let sound = Decoder::new(coding, SHOWN_WINDOW_LOG_MAX)
            .and_then(|mut decoder| decoder.push(coded, bytes_max, &mut decoded))
            .is_ok();
        match (sound || decoded.len() >= bytes_max, decoded.is_empty()) {
            (false, true) => (decoded, self.content.len()),
            _ => (decoded, withheld),
        }
    }
}

fn split_head(bytes: &Bytes) -> Option<(Bytes, Bytes)> {
    let length = HeadEnd::default().find(bytes, HEAD_BYTES_MAX).ok()??;
    Some((bytes.slice(..length), bytes.slice(length..)))
}

/// The content, and what stands behind the message.
fn content(length: Length, bytes: &Bytes) -> (Vec<u8>, Bytes) {
    let (mut content, mut at, mut reader) = (Vec::new(), 0, BodyReader::new(length));
    loop {
        match reader.step(&bytes[at..]) {
            Ok(Step::Content(length)) => {
                content.extend_from_slice(&bytes[at..at + length]);
                at += length;
            }
            Ok(Step::Framing(length) | Step::Fields(length)) => at += length,
            Ok(Step::Wait | Step::End) | Err(_) => return (content, bytes.slice(at..)),
        }
    }
}

/// As text, if it is any; a character that is cut off at the end is left out.
fn text_of(content: &[u8]) -> Option<&str> {
    let text = match std::str::from_utf8(content) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&content[..error.valid_up_to()]).ok()?
        }
        Err(_) => return None,
    };
    let is_odd = |c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t' | '\x0c');
    (!text.chars().any(is_odd)).then_some(text)
}

/// Pieces of what a line may show.
fn parts(mut text: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        let mut end = text.len().min(SHOWN_BYTES_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let (part, rest) = text.split_at(end);
        text = rest;
        (!part.is_empty()).then_some(part)
    })
}

/// For a terminal: lines and tabs as they are, no other controls.
fn plain(text: &str) -> String {
    if !text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\t')) {
        return text.to_owned();
    }
    text.replace("\r\n", "\n").split('\n').map(|line| escaped(line.as_bytes())).collect::<Vec<_>>().join("\n")
}
