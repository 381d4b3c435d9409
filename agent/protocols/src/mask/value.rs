//! A value being masked: where it ends.
//!
//! What a quote means depends on who reads it, and we do not know who does: the SQL of a server, a connection string in
//! SQL, JSON in JSON. So every reading counts in which the value is longer: a doubled quote, a quote after a backslash
//! and a quote that is nested less deep than the opening one do not end it.

use super::names::Set;
use super::view::{Peek, View, is_quote};

/// Longest masked value, bytes: what claims to be longer is no secret but bytes that only look like one.
pub(super) const VALUE_BYTES_MAX: usize = 64 * 1024;
/// Longest run of quotes or backslashes that is told apart, bytes.
const RUN_BYTES_MAX: usize = 32;
/// Longest delimiter: a dollar quote with a name of PostgreSQL's 63 bytes.
pub(super) const DELIMITER_BYTES_MAX: usize = 65;
/// Read beyond the longest value, to tell whether it ends just there: more than any run or delimiter.
const LIMIT_MARGIN_BYTES: usize = 128;
/// Longest string prefix or function name before a quote, bytes: `_utf8mb4'x'`, `crypt('x'`.
const HEAD_BYTES_MAX: usize = 24;

#[derive(Clone, Debug)]
pub(super) struct Value {
    pub(super) rule: &'static str,
    until: Until,
    masked_bytes: usize,
}

#[derive(Clone, Debug)]
enum Until {
    Quote(Quote),
    Delimiter {
        bytes: [u8; DELIMITER_BYTES_MAX],
        length: usize,
    },
    Bare(Bare),
    /// The end of the line, and of the lines that continue it (RFC 9112, 5.2); or the quote before the name.
    Line {
        quote: Option<u8>,
        in_sql: bool,
    },
    /// A byte that is not of the set.
    Shape(Set),
    /// `}` of an ODBC value; `}}` is a `}` of the value.
    Brace,
    LineComment,
    BlockComment {
        depth: u16,
    },
}

#[derive(Clone, Debug)]
struct Quote {
    byte: u8,
    /// Quotes that open it: 2 in a literal within a literal.
    level: usize,
    /// Backslashes before the opening quote: 1 in JSON within JSON.
    slashes: usize,
    /// Backslashes just before the next byte.
    slashes_now: usize,
}

#[derive(Clone, Debug)]
struct Bare {
    style: Style,
    head: [u8; HEAD_BYTES_MAX],
    head_length: usize,
    escaped: bool,
    /// Blanks that belong to it: one, after the name of a scheme ("Bearer x").
    blanks: u8,
}

/// What ends a value without quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// White space: connection strings of libpq, assignments.
    Plain,
    /// Also `&` and `#`: queries and forms.
    Query,
    /// `;` and the end of the line: ODBC, JDBC.
    Semicolon,
    /// Also `,`, `}` and `]`.
    Json,
}

/// How far a value reaches in the bytes at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Up to here, and further if more comes.
    Open(usize),
    /// It ends here; the reading goes on at the second place.
    Ended(usize, usize),
}

impl Value {
    fn new(rule: &'static str, until: Until) -> Self {
        Self { rule, until, masked_bytes: 0 }
    }

    /// Opens at a run of quotes. `None` when later bytes decide how many there are.
    ///
    /// An odd run opens one literal, and the rest of the run is doubled quotes in it. An even run is an empty literal
    /// where something that may follow one does, else it opens a literal within a literal.
    pub(super) fn quoted(
        rule: &'static str,
        view: View<'_>,
        at: usize,
        slashes: usize,
    ) -> Option<(usize, Option<Self>)> {
        let Peek::Byte(byte) = view.peek(at)? else { return Some((at, None)) };
        let run = view.run(at, RUN_BYTES_MAX, |other| other == byte)?;
        let level = 1 << run.trailing_zeros();
        if run.is_multiple_of(2) {
            let next = view.peek(at + run)?;
            if next == Peek::Nothing
                || next.is(|next| next.is_ascii_whitespace() || b",;)]}>\0".contains(&next))
            {
                return Some((at + run, None));
            }
        }
        let quote = Quote { byte, level, slashes, slashes_now: 0 };
        Some((at + level, Some(Self::new(rule, Until::Quote(quote)))))
    }

    pub(super) fn delimited(rule: &'static str, delimiter: &[u8]) -> Self {
        let mut bytes = [0; DELIMITER_BYTES_MAX];
        let length = delimiter.len().min(DELIMITER_BYTES_MAX);
        bytes[..length].copy_from_slice(&delimiter[..length]);
        Self::new(rule, Until::Delimiter { bytes, length })
    }

    pub(super) fn bare(rule: &'static str, style: Style, blanks: u8) -> Self {
        let (head, head_length) = ([0; HEAD_BYTES_MAX], 0);
        Self::new(rule, Until::Bare(Bare { style, head, head_length, escaped: false, blanks }))
    }

    pub(super) fn brace(rule: &'static str) -> Self {
        Self::new(rule, Until::Brace)
    }

    pub(super) fn line(rule: &'static str, quote: Option<u8>, in_sql: bool) -> Self {
        Self::new(rule, Until::Line { quote, in_sql })
    }

    pub(super) fn shape(rule: &'static str, set: Set) -> Self {
        match set {
            Set::Pem => Self::delimited(rule, b"-----END"),
            set => Self::new(rule, Until::Shape(set)),
        }
    }

    pub(super) fn line_comment(rule: &'static str) -> Self {
        Self::new(rule, Until::LineComment)
    }

    pub(super) fn block_comment(rule: &'static str) -> Self {
        Self::new(rule, Until::BlockComment { depth: 1 })
    }

    /// Whether another value may follow where this one ended, before the byte `next`: 'a' 'b', 'user'@'host' = 'x',
    /// BY PASSWORD 'x'. Not where a value without quotes ends at the quote of what it stands in.
    pub(super) fn may_continue(&self, of_keyword: bool, next: Option<u8>) -> bool {
        match self.until {
            Until::Quote(_) | Until::Delimiter { .. } => true,
            Until::Bare(_) => of_keyword && !next.is_some_and(is_quote),
            _ => false,
        }
    }

    /// Reads on from `at`: how far everything is to be masked.
    pub(super) fn reach(&mut self, view: View<'_>, at: usize) -> Reach {
        let limit = at + (VALUE_BYTES_MAX - self.masked_bytes);
        let view = match view.buffer.get(..limit + LIMIT_MARGIN_BYTES) {
            Some(buffer) => View { buffer, last: false },
            None => view,
        };
        let reach = self.until.reach(view, at);
        let (Reach::Open(to) | Reach::Ended(to, _)) = reach;
        if to > limit {
            return Reach::Ended(limit, limit);
        }
        self.masked_bytes += to - at;
        reach
    }
}

impl Until {
    fn reach(&mut self, view: View<'_>, at: usize) -> Reach {
        match self {
            Until::Quote(quote) => quote.reach(view, at),
            Until::Delimiter { bytes, length } => delimiter(view, at, &bytes[..*length]),
            Until::Bare(bare) => match bare.reach(view, at) {
                Ok(reach) => reach,
                Err((at, quote)) => {
                    *self = Until::Quote(quote);
                    self.reach(view, at)
                }
            },
            Until::Line { quote, in_sql } => line(view, at, *quote, *in_sql),
            Until::Shape(set) => match view.buffer[at..].iter().position(|byte| !set.contains(*byte)) {
                Some(length) => Reach::Ended(at + length, at + length),
                None => Reach::Open(view.end()),
            },
            Until::Brace => brace(view, at),
            Until::LineComment => match memchr::memchr3(b'\n', b'\r', 0, &view.buffer[at..]) {
                Some(length) => Reach::Ended(at + length, at + length),
                None => Reach::Open(view.end()),
            },
            Until::BlockComment { depth } => block_comment(view, at, depth),
        }
    }
}

impl Quote {
    fn reach(&mut self, view: View<'_>, mut at: usize) -> Reach {
        while let Some(length) = memchr::memchr2(self.byte, 0, &view.buffer[at..]) {
            let found = at + length;
            self.count_slashes(&view.buffer[at..found]);
            if view.buffer[found] == 0 {
                return Reach::Ended(found, found);
            }
            if self.is_escaped() {
                self.slashes_now = 0;
                at = found + 1;
                continue;
            }
            let Some(run) = view.run(found, RUN_BYTES_MAX, |byte| byte == self.byte) else {
                // Read again with what follows.
                return Reach::Open(found);
            };
            if run.is_multiple_of(2 * self.level) || run == RUN_BYTES_MAX {
                self.slashes_now = 0;
                at = found + run;
                continue;
            }
            // Doubled quotes first, then the closing ones.
            let doubled = run - run % (2 * self.level);
            return Reach::Ended(found + doubled, found + doubled + (run - doubled).min(self.level));
        }
        self.count_slashes(&view.buffer[at..]);
        Reach::Open(view.end())
    }

    fn count_slashes(&mut self, bytes: &[u8]) {
        let slashes = bytes.iter().rev().take_while(|byte| **byte == b'\\').count();
        self.slashes_now = if slashes == bytes.len() { self.slashes_now + slashes } else { slashes };
    }

    fn is_escaped(&self) -> bool {
        match self.slashes {
            0 => !self.slashes_now.is_multiple_of(2),
            slashes => self.slashes_now > slashes,
        }
    }
}

impl Bare {
    /// `Err` when it turns out that what was read is the prefix of a literal.
    fn reach(&mut self, view: View<'_>, mut at: usize) -> Result<Reach, (usize, Quote)> {
        while let Some(byte) = view.buffer.get(at).copied() {
            if std::mem::take(&mut self.escaped) && byte >= b' ' {
                self.keep(byte);
                at += 1;
                continue;
            }
            if is_quote(byte) && self.is_prefix() {
                return Err((at + 1, Quote { byte, level: 1, slashes: 0, slashes_now: 0 }));
            }
            if is_quote(byte) {
                match view.peek(at + 1) {
                    None => return Ok(Reach::Open(at)),
                    Some(next) if next == Peek::Byte(byte) && self.head_length > 0 => at += 2,
                    Some(_) => return Ok(Reach::Ended(at, at)),
                }
                continue;
            }
            if byte == b' ' && self.blanks > 0 {
                self.blanks -= 1;
            } else if self.style.ends(byte) {
                return Ok(Reach::Ended(at, at));
            }
            self.escaped = byte == b'\\';
            self.keep(byte);
            at += 1;
        }
        Ok(Reach::Open(view.end()))
    }

    fn keep(&mut self, byte: u8) {
        if let Some(slot) = self.head.get_mut(self.head_length) {
            *slot = byte;
        }
        self.head_length = (self.head_length + 1).min(HEAD_BYTES_MAX + 1);
    }

    /// E'x', N'x', U&'x', _utf8'x', crypt('x': the value is in the quotes.
    fn is_prefix(&self) -> bool {
        let Some(head) = self.head.get(..self.head_length) else { return false };
        head.ends_with(b"(") || head.starts_with(b"_") || {
            let known: [&[u8]; 8] = [b"e", b"n", b"b", b"x", b"u&", b"r", b"br", b"rb"];
            known.iter().any(|prefix| head.eq_ignore_ascii_case(prefix))
        }
    }
}

impl Style {
    pub(super) fn ends(self, byte: u8) -> bool {
        if byte < b' ' || byte == 0x7f {
            return true;
        }
        match self {
            Style::Plain => byte == b' ',
            Style::Query => matches!(byte, b' ' | b'&' | b'#'),
            Style::Semicolon => byte == b';',
            Style::Json => matches!(byte, b' ' | b',' | b'}' | b']'),
        }
    }
}

fn delimiter(view: View<'_>, at: usize, delimiter: &[u8]) -> Reach {
    let rest = &view.buffer[at..];
    let found = memchr::memmem::find(rest, delimiter);
    if let Some(length) = memchr::memchr(0, &rest[..found.unwrap_or(rest.len())]) {
        return Reach::Ended(at + length, at + length);
    }
    match found {
        Some(length) => Reach::Ended(at + length, at + length + delimiter.len()),
        None if view.last => Reach::Open(view.end()),
        // The beginning of the delimiter may be there already.
        None => Reach::Open(view.end().saturating_sub(delimiter.len() - 1).max(at)),
    }
}

fn line(view: View<'_>, mut at: usize, quote: Option<u8>, in_sql: bool) -> Reach {
    let ends =
        |byte: &u8| matches!(byte, b'\n' | b'\r' | 0) || quote == Some(*byte) || (in_sql && *byte == b'\'');
    while let Some(length) = view.buffer[at..].iter().position(ends) {
        let found = at + length;
        let feed = found + usize::from(view.buffer[found] == b'\r');
        if matches!(view.buffer[found], b'\r' | b'\n') {
            let Some(next) = view.peek(feed) else { return Reach::Open(found) };
            if next == Peek::Byte(b'\n') {
                let Some(next) = view.peek(feed + 1) else { return Reach::Open(found) };
                if next.is(super::view::is_blank) {
                    at = feed + 1;
                    continue;
                }
            }
        }
        return Reach::Ended(found, found);
    }
    Reach::Open(view.end())
}

fn brace(view: View<'_>, mut at: usize) -> Reach {
    while let Some(length) = memchr::memchr2(b'}', 0, &view.buffer[at..]) {
        let found = at + length;
        match view.peek(found + 1) {
            None if view.buffer[found] == b'}' => return Reach::Open(found),
            Some(Peek::Byte(b'}')) if view.buffer[found] == b'}' => at = found + 2,
            _ => return Reach::Ended(found, found),
        }
    }
    Reach::Open(view.end())
}

/// Block comments nest, as in the SQL standard.
fn block_comment(view: View<'_>, mut at: usize, depth: &mut u16) -> Reach {
    while let Some(length) = memchr::memchr3(b'*', b'/', 0, &view.buffer[at..]) {
        let found = at + length;
        let byte = view.buffer[found];
        if byte == 0 {
            return Reach::Ended(found, found);
        }
        let Some(next) = view.peek(found + 1) else { return Reach::Open(found) };
        at = found + 1;
        if (byte, next) == (b'/', Peek::Byte(b'*')) {
            *depth = depth.saturating_add(1);
            at = found + 2;
        } else if (byte, next) == (b'*', Peek::Byte(b'/')) {
            *depth -= 1;
            at = found + 2;
            if *depth == 0 {
                return Reach::Ended(found, at);
            }
        }
    }
    Reach::Open(view.end())
}
