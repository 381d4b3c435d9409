//! Where a body ends (RFC 9112, 6 and 7). A line of the chunked coding is passed on when it is whole and sound, not before.

use std::ops::Range;

use super::super::message::{Length, Malformed};
use super::head::{self, HeadEnd};

/// Longest line with a chunk's size and its extensions, bytes.
pub const CHUNK_LINE_BYTES_MAX: usize = 256;
/// Longest trailer section, bytes.
pub const TRAILER_BYTES_MAX: usize = 8 * 1024;
/// Most digits of a chunk's size.
const SIZE_DIGITS_MAX: usize = 16;

/// What the next bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// So many bytes of the content.
    Content(usize),
    /// So many bytes of framing.
    Framing(usize),
    /// So many bytes of framing that hold text: extensions, trailers.
    Fields(usize),
    /// More bytes are needed.
    Wait,
    /// The body has ended.
    End,
}

#[derive(Debug)]
pub(crate) enum BodyReader {
    Exactly(u64),
    UntilClose,
    Chunked(Chunked),
}

#[derive(Debug)]
pub(crate) enum Chunked {
    Size,
    Data(u64),
    DataEnd,
    Trailers(HeadEnd),
    Done,
}

impl BodyReader {
    pub(crate) fn new(length: Length) -> Self {
        match length {
            Length::None => BodyReader::Exactly(0),
            Length::Exactly(length) => BodyReader::Exactly(length),
            Length::Chunked => BodyReader::Chunked(Chunked::Size),
            Length::UntilClose => BodyReader::UntilClose,
        }
    }

    /// Looks at the bytes that come next; what a step names is consumed.
    pub(crate) fn step(&mut self, bytes: &[u8]) -> Result<Step, Malformed> {
        crate::reader::work::count(8);
        match self {
            BodyReader::Exactly(0) => Ok(Step::End),
            BodyReader::Exactly(left) => Ok(content(left, bytes)),
            BodyReader::UntilClose if bytes.is_empty() => Ok(Step::Wait),
            BodyReader::UntilClose => Ok(Step::Content(bytes.len())),
            BodyReader::Chunked(chunked) => chunked.step(bytes),
        }
    }

    /// Whether the body is whole when the connection ends here.
    pub(crate) fn may_end(&self) -> bool {
        matches!(self, BodyReader::UntilClose)
    }
}

fn content(left: &mut u64, bytes: &[u8]) -> Step {
    if bytes.is_empty() {
        return Step::Wait;
    }
    let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
    *left -= taken as u64;
    Step::Content(taken)
}

impl Chunked {
    fn step(&mut self, bytes: &[u8]) -> Result<Step, Malformed> {
        match self {
            Chunked::Size => {
                let Some(line) = line(bytes)? else { return Ok(Step::Wait) };
                let (size, has_extensions) = size(&bytes[line.clone()])?;
                *self =
                    if size == 0 { Chunked::Trailers(HeadEnd::of_trailers()) } else { Chunked::Data(size) };
                let length = line.end + 2;
                Ok(if has_extensions { Step::Fields(length) } else { Step::Framing(length) })
            }
            Chunked::Data(left) => {
                let step = content(left, bytes);
                if *left == 0 {
                    *self = Chunked::DataEnd;
                }
                Ok(step)
            }
            Chunked::DataEnd => match bytes {
                [b'\r', b'\n', ..] => {
                    *self = Chunked::Size;
                    Ok(Step::Framing(2))
                }
                [] | [b'\r'] => Ok(Step::Wait),
                _ => Err(Malformed::because("a chunk is longer than its size")),
            },
            Chunked::Trailers(end) => {
                let Some(length) = end.find(bytes, TRAILER_BYTES_MAX)? else { return Ok(Step::Wait) };
                head::trailers(&bytes[..length])?;
                *self = Chunked::Done;
                Ok(if length > 2 { Step::Fields(length) } else { Step::Framing(length) })
            }
            Chunked::Done => Ok(Step::End),
        }
    }
}

/// The line of a chunk's size, without its end.
fn line(bytes: &[u8]) -> Result<Option<Range<usize>>, Malformed> {
    let bounded = &bytes[..bytes.len().min(CHUNK_LINE_BYTES_MAX)];
    match memchr::memchr(b'\n', bounded) {
        Some(feed) if feed > 0 && bounded[feed - 1] == b'\r' => Ok(Some(0..feed - 1)),
        Some(_) => Err(Malformed::because("a chunk's line ends without a carriage return")),
        None if bounded.len() == CHUNK_LINE_BYTES_MAX => {
            Err(Malformed::because("a chunk's line is too long"))
        }
        None => Ok(None),
    }
}

/// The size, and whether extensions follow it.
fn size(line: &[u8]) -> Result<(u64, bool), Malformed> {
    let end = memchr::memchr(b';', line).unwrap_or(line.len());
    let (digits, extensions) = line.split_at(end);
    // Blanks, that is spaces and tabs, may stand before extensions (RFC 9112, 7.1.1), and nowhere else.
    let last = digits.iter().rposition(|byte| !matches!(byte, b' ' | b'\t'));
    let digits = if extensions.is_empty() { digits } else { &digits[..last.map_or(0, |at| at + 1)] };
    if digits.is_empty() || digits.len() > SIZE_DIGITS_MAX {
        return Err(Malformed::because("a chunk's size is no number, or beyond all measure"));
    }
    let mut size = 0_u64;
    for digit in digits {
        let value = char::from(*digit).to_digit(16);
        let value = value.ok_or(Malformed::because("a chunk's size is no number, or beyond all measure"))?;
        size = size << 4 | u64::from(value);
    }
    if size > i64::MAX as u64 {
        return Err(Malformed::because("a chunk's size is no number, or beyond all measure"));
    }
    if extensions.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
        return Err(Malformed::because("a chunk's extension is not sound"));
    }
    Ok((size, !extensions.is_empty()))
}
