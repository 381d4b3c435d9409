//! Between a name and its value: separators, blanks, comments, a few words.

use super::names::{Keyword, Place};
use super::value::{DELIMITER_BYTES_MAX, Style, Value};
use super::view::{Peek, View, is_blank, is_quote, is_word};

/// Longest gap without its comments, bytes.
const GAP_BYTES_MAX: usize = 512;
/// Longest word in a gap, bytes.
const WORD_BYTES_MAX: usize = 64;
/// Longest run of backslashes before a quote, bytes.
const SLASHES_MAX: usize = 8;
/// Words after which, and one blank, the value goes on: `token=Bearer x`.
const SCHEMES: [&[u8]; 5] = [b"bearer", b"basic", b"token", b"digest", b"apikey"];
/// Words after which a password may stand without quotes: IDENTIFIED BY x.
const BARE_AFTER: [&[u8]; 2] = [b"by", b"as"];
/// Words after which a second secret follows the first: IDENTIFIED BY 'new' REPLACE 'old'.
const AGAIN_AFTER: [&[u8]; 1] = [b"replace"];

/// What stands before a name, and how the name itself stands there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Named {
    pub(super) rule: &'static str,
    /// Of a SQL keyword; names need a separator.
    pub(super) keyword: Option<&'static Keyword>,
    pub(super) place: Place,
    /// The quote before the name.
    pub(super) quote: Option<u8>,
    /// The quote behind the name was read, too.
    pub(super) closed: bool,
    pub(super) style: Style,
}

#[derive(Clone, Debug)]
pub(super) struct Gap {
    named: Named,
    /// A `=` or `:` was read: a value may stand without quotes.
    separated: bool,
    /// Which of them.
    separator: u8,
    newline: bool,
    /// A value was read: only another quoted one may follow.
    again: bool,
    /// Nothing was read since the name.
    fresh: bool,
    /// Any word may stand here: `SET PASSWORD FOR bob = 'x'`.
    any_word: bool,
    read_bytes: usize,
}

/// What a gap leads to.
pub(super) enum Lead {
    /// Undecided until more than this comes.
    Wait(usize),
    /// No value follows; from here on anything may stand.
    Nothing(usize),
    Value(usize, Value),
    /// A comment, after which the gap goes on. Nobody needs to read it, so it is masked.
    Comment(usize, Value),
}

impl Gap {
    pub(super) fn after(named: Named) -> Self {
        Self {
            named,
            separated: false,
            separator: 0,
            newline: false,
            again: false,
            fresh: true,
            any_word: named.keyword.is_some_and(Keyword::any_between),
            read_bytes: 0,
        }
    }

    /// After a value of that gap.
    pub(super) fn again(self) -> Self {
        Self { separated: false, newline: false, again: true, fresh: false, read_bytes: 0, ..self }
    }

    pub(super) fn is_of_keyword(&self) -> bool {
        self.named.keyword.is_some()
    }

    /// Reads on from `at`.
    pub(super) fn lead(&mut self, view: View<'_>, at: usize, in_sql: bool) -> Lead {
        let mut now = at;
        loop {
            let step = match self.step(view, now, in_sql) {
                Some(step) => step,
                None => return Lead::Wait(now),
            };
            match step {
                Step::Skip(length) => {
                    self.read_bytes += length;
                    self.fresh = false;
                    now += length;
                    if self.read_bytes > GAP_BYTES_MAX {
                        return Lead::Nothing(now);
                    }
                }
                Step::Lead(lead) => return lead,
            }
        }
    }

    /// One byte, word or value; `None` when more bytes are needed to tell.
    fn step(&mut self, view: View<'_>, at: usize, in_sql: bool) -> Option<Step> {
        let Peek::Byte(byte) = view.peek(at)? else { return Some(Step::nothing(at)) };
        match byte {
            b'\n' | b'\r' if self.is_header() => Some(Step::nothing(at)),
            b'\n' | b'\r' | 0x0b | 0x0c => {
                self.newline = true;
                Some(Step::Skip(1))
            }
            _ if is_blank(byte) => Some(Step::Skip(1)),
            _ if self.separated && self.is_header() => {
                let value = Value::line(self.named.rule, self.named.quote, in_sql);
                Some(Step::Lead(Lead::Value(at, value)))
            }
            _ if is_quote(byte) => self.quote(view, at, 0),
            b'\\' => self.slashes(view, at),
            b'$' => self.dollar(view, at),
            b'-' | b'/' | b'#' => self.comment(view, at, byte),
            b'=' | b':' => self.separator(view, at, byte),
            b']' if self.fresh && !self.separated => Some(Step::Skip(1)),
            b'>' if self.separated && self.separator == b'=' => Some(Step::Skip(1)),
            b'!' | b'<' | b'>' | b'~' | b'*' | b'(' if self.is_of_keyword() && !self.separated => {
                Some(Step::Skip(1))
            }
            b'@' | b'|' | b'+' if self.again => Some(Step::Skip(1)),
            b'[' if self.separated && self.separator == b':' => Some(Step::Skip(1)),
            b'{' if self.bare() && self.separator == b'=' => {
                Some(Step::Lead(Lead::Value(at + 1, Value::brace(self.named.rule))))
            }
            b'{' => Some(Step::nothing(at)),
            _ if self.bare() => self.bare_value(view, at, byte),
            _ if is_word(byte) => self.word(view, at),
            _ => Some(Step::nothing(at)),
        }
    }

    fn is_header(&self) -> bool {
        self.named.place == Place::Header && !self.named.closed && self.separator != b'='
    }

    /// Whether a value without quotes may stand here.
    fn bare(&self) -> bool {
        self.separated && !self.newline && !self.again
    }

    fn separator(&mut self, view: View<'_>, at: usize, byte: u8) -> Option<Step> {
        if self.again {
            // SET PASSWORD FOR 'a'@'b' = 'x'; but "password": "x" is followed by other names.
            if byte == b':' {
                return Some(Step::nothing(at));
            }
            self.again = false;
        }
        let is_cast = byte == b':' && !self.separated && view.peek(at + 1)? == Peek::Byte(b':');
        if is_cast {
            return Some(Step::nothing(at + 2));
        }
        if self.separated && byte == b':' && self.bare() {
            return self.bare_value(view, at, byte);
        }
        self.separated = true;
        self.separator = byte;
        Some(Step::Skip(1))
    }

    fn quote(&mut self, view: View<'_>, at: usize, slashes: usize) -> Option<Step> {
        let Peek::Byte(byte) = view.peek(at + slashes)? else { return Some(Step::nothing(at)) };
        if self.fresh && !self.separated && self.named.quote == Some(byte) {
            // It closes the name: "password": "x".
            self.named.closed = true;
            return Some(Step::Skip(slashes + 1));
        }
        if !self.is_of_keyword() && !self.separated && !self.again {
            return Some(Step::nothing(at));
        }
        let (after, value) = Value::quoted(self.named.rule, view, at + slashes, slashes)?;
        Some(match value {
            Some(value) => Step::Lead(Lead::Value(after, value)),
            None => Step::nothing(after),
        })
    }

    fn slashes(&mut self, view: View<'_>, at: usize) -> Option<Step> {
        let slashes = view.run(at, SLASHES_MAX, |byte| byte == b'\\')?;
        if view.peek(at + slashes)?.is(is_quote) {
            return self.quote(view, at, slashes);
        }
        if self.bare() { self.bare_value(view, at, b'\\') } else { Some(Step::nothing(at)) }
    }

    /// `$tag$x$tag$`, or `$1`.
    fn dollar(&mut self, view: View<'_>, at: usize) -> Option<Step> {
        if !self.is_of_keyword() && !self.bare() {
            return Some(Step::nothing(at));
        }
        let is_tag = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80;
        let tag = view.run(at + 1, DELIMITER_BYTES_MAX - 2, is_tag)?;
        let starts_with_digit = tag > 0 && view.peek(at + 1)?.is(|byte| byte.is_ascii_digit());
        if view.peek(at + 1 + tag)? == Peek::Byte(b'$') && !starts_with_digit {
            let after = at + tag + 2;
            let value = Value::delimited(self.named.rule, &view.buffer[at..after]);
            return Some(Step::Lead(Lead::Value(after, value)));
        }
        if self.bare() { self.bare_value(view, at, b'$') } else { Some(Step::nothing(at)) }
    }

    fn comment(&mut self, view: View<'_>, at: usize, byte: u8) -> Option<Step> {
        let next = view.peek(at + 1)?;
        let may_be = self.is_of_keyword() && !self.again;
        let rule = self.named.rule;
        match byte {
            b'-' if may_be && next == Peek::Byte(b'-') => {
                Some(Step::Lead(Lead::Comment(at + 2, Value::line_comment(rule))))
            }
            b'/' if may_be && next == Peek::Byte(b'*') => {
                Some(Step::Lead(Lead::Comment(at + 2, Value::block_comment(rule))))
            }
            b'#' if may_be => Some(Step::Lead(Lead::Comment(at + 1, Value::line_comment(rule)))),
            _ if self.bare() => self.bare_value(view, at, byte),
            _ => Some(Step::nothing(at)),
        }
    }

    fn bare_value(&mut self, view: View<'_>, at: usize, byte: u8) -> Option<Step> {
        let style = match (self.named.style, self.named.closed) {
            (Style::Plain, true) if self.separator == b':' => Style::Json,
            (style, _) => style,
        };
        if style.ends(byte) {
            return Some(Step::nothing(at));
        }
        let scheme = SCHEMES
            .iter()
            .map(|scheme| is_followed_by_blank(view, at, scheme))
            .collect::<Option<Vec<_>>>()?;
        let blanks = u8::from(scheme.contains(&true));
        Some(Step::Lead(Lead::Value(at, Value::bare(self.named.rule, style, blanks))))
    }

    fn word(&mut self, view: View<'_>, at: usize) -> Option<Step> {
        let Some(keyword) = self.named.keyword else { return Some(Step::nothing(at)) };
        let length = view.run(at, WORD_BYTES_MAX, is_word)?;
        let word = &view.buffer[at..at + length];
        if self.again {
            let again = AGAIN_AFTER.iter().any(|known| word.eq_ignore_ascii_case(known));
            return Some(if again { Step::Skip(length) } else { Step::nothing(at) });
        }
        // E'x', N'x', _utf8'x', U&'x'.
        let ampersand = usize::from(view.peek(at + length)? == Peek::Byte(b'&'));
        if view.peek(at + length + ampersand)?.is(|byte| byte == b'\'' || byte == b'"') {
            return Some(Step::Skip(length + ampersand));
        }
        if !(self.any_word || keyword.allows_between(word)) || length == WORD_BYTES_MAX {
            return Some(Step::nothing(at));
        }
        self.any_word |= word.eq_ignore_ascii_case(b"for");
        if keyword.any_between() && BARE_AFTER.iter().any(|known| word.eq_ignore_ascii_case(known)) {
            self.separated = true;
            self.separator = b'=';
        }
        Some(Step::Skip(length))
    }
}

enum Step {
    Skip(usize),
    Lead(Lead),
}

impl Step {
    fn nothing(at: usize) -> Self {
        Step::Lead(Lead::Nothing(at))
    }
}

fn is_followed_by_blank(view: View<'_>, at: usize, scheme: &[u8]) -> Option<bool> {
    for (offset, expected) in scheme.iter().enumerate() {
        if !view.peek(at + offset)?.is(|byte| byte.eq_ignore_ascii_case(expected)) {
            return Some(false);
        }
    }
    Some(view.peek(at + scheme.len())? == Peek::Byte(b' '))
}
