//! What stands before an anchor.

use super::gap::Named;
use super::names::{Keyword, LOOK_BACK_BYTES_MAX, Place, SECRETS};
use super::value::Style;
use super::view::{is_blank, is_quote, is_word};

/// The last bytes before the buffer, as far as a name may reach back over them: never into a masked value.
#[derive(Clone, Debug, Default)]
pub(super) struct LookBack {
    tail: Vec<u8>,
    /// Where in the buffer the bytes that may be looked at begin; at 0 the tail stands before them.
    floor: usize,
}

impl LookBack {
    /// What was read up to here is part of something else.
    pub(super) fn cut(&mut self, at: usize) {
        self.tail.clear();
        self.floor = at;
    }

    /// The buffer is read; what follows it comes in another one.
    pub(super) fn keep(&mut self, read: &[u8]) {
        let mut scratch = Scratch::default();
        let kept = self.before(read, read.len(), &mut scratch).to_vec();
        self.tail = kept;
        self.floor = 0;
    }

    /// At most [`LOOK_BACK_BYTES_MAX`] bytes that stand before `at`.
    pub(super) fn before<'a>(&'a self, buffer: &'a [u8], at: usize, scratch: &'a mut Scratch) -> &'a [u8] {
        let here = &buffer[self.floor.max(at.saturating_sub(LOOK_BACK_BYTES_MAX)).min(at)..at];
        if self.floor > 0 || self.tail.is_empty() || here.len() == LOOK_BACK_BYTES_MAX {
            return here;
        }
        let from_tail = self.tail.len().min(LOOK_BACK_BYTES_MAX - here.len());
        let joined = &mut scratch.0[..from_tail + here.len()];
        joined[..from_tail].copy_from_slice(&self.tail[self.tail.len() - from_tail..]);
        joined[from_tail..].copy_from_slice(here);
        joined
    }

    /// The tail, while it may be looked at.
    pub(super) fn tail(&self) -> &[u8] {
        if self.floor == 0 { &self.tail } else { &[] }
    }

    pub(super) fn floor(&self) -> usize {
        self.floor
    }
}

/// Where the tail and the beginning of the buffer are put together.
pub(super) struct Scratch([u8; LOOK_BACK_BYTES_MAX]);

impl Default for Scratch {
    fn default() -> Self {
        Self([0; LOOK_BACK_BYTES_MAX])
    }
}

/// The name before a separator, if it is one of ours.
pub(super) fn name_before_separator(before: &[u8], separator: u8) -> Option<Named> {
    let (word_end, closed) = name_end(before)?;
    let word = Word::ending_at(before, word_end)?;
    let name = SECRETS.name(word.text, word.glued)?;
    if name.place == Place::Field {
        let begins = word.after_length
            || word.before.is_none_or(|byte| !(b' '..0x7f).contains(&byte) || b"?&".contains(&byte));
        if separator != b'=' || !begins || before.last().copied().is_some_and(is_blank) {
            return None;
        }
    }
    Some(Named {
        rule: name.rule,
        keyword: None,
        place: name.place,
        quote: word.quote,
        closed,
        style: word.style,
    })
}

/// Whether a name of ours ends before a separator, whatever the name is part of.
pub(super) fn ends_with_name(before: &[u8]) -> bool {
    let before = &before[before.len().saturating_sub(LOOK_BACK_BYTES_MAX)..];
    name_end(before).is_some_and(|(end, _)| SECRETS.ends_with_name(&before[..end]))
}

/// Where the name before a separator ends, and whether a quote closes it.
fn name_end(before: &[u8]) -> Option<(usize, bool)> {
    let trimmed = trim_end(before, is_blank);
    let (end, closed) = match trimmed.last()? {
        quote if is_quote(*quote) => {
            (trim_end(&trimmed[..trimmed.len() - 1], |byte| byte == b'\\').len(), true)
        }
        b']' => (trimmed.len() - 1, false),
        _ => (trimmed.len(), false),
    };
    (end > 0 && SECRETS.may_end_name(&before[..end])).then_some((end, closed))
}

/// The word that a stem of a keyword ends in.
pub(super) fn word_before_stem(before: &[u8], keyword: &'static Keyword) -> Option<Named> {
    let start = before.len().checked_sub(keyword.stem.len())?;
    if !before[start..].eq_ignore_ascii_case(keyword.stem.as_bytes()) {
        return None;
    }
    // A long word is ours all the same.
    let word = Word::ending_at(before, before.len());
    let (quote, style) = word.map_or((None, Style::Plain), |word| (word.quote, word.style));
    if let Some(word) = word
        && !keyword.rest.is_empty()
        && word.text.len() != keyword.stem.len()
        && !(word.glued && word.text.len() == keyword.stem.len() + 1)
    {
        return None;
    }
    let rule = keyword.rule.as_str();
    Some(Named { rule, keyword: Some(keyword), place: Place::Word, quote, closed: false, style })
}

/// Whether a token may begin here: not in the middle of a word.
pub(super) fn is_word_start(before: &[u8]) -> bool {
    match before {
        [.., before, last] if last.is_ascii_alphanumeric() || *last == b'_' => is_length(*before),
        [last] => !(last.is_ascii_alphanumeric() || *last == b'_'),
        _ => true,
    }
}

#[derive(Clone, Copy)]
struct Word<'a> {
    text: &'a [u8],
    before: Option<u8>,
    quote: Option<u8>,
    style: Style,
    /// The first byte may be the last one of a length before the word.
    glued: bool,
    /// The byte before the word may be.
    after_length: bool,
}

impl<'a> Word<'a> {
    /// `None` when it is too long to be a name.
    fn ending_at(bytes: &'a [u8], end: usize) -> Option<Self> {
        let head = trim_end(&bytes[..end], |byte| is_word(byte) || byte == b'-');
        if head.is_empty() && bytes.len() == LOOK_BACK_BYTES_MAX {
            return None;
        }
        let before = head.last().copied();
        let quote = before.filter(|byte| is_quote(*byte));
        let after_length = head.len() >= 2 && is_length(head[head.len() - 2]);
        let style = match trim_end(head, is_blank).last() {
            _ if after_length => Style::Plain,
            Some(b'?' | b'&') => Style::Query,
            Some(b';') => Style::Semicolon,
            _ => Style::Plain,
        };
        Some(Self {
            text: &bytes[head.len()..end],
            before,
            quote,
            style,
            glued: before.is_some_and(is_length),
            after_length,
        })
    }
}

/// The high bytes of lengths of frames.
fn is_length(byte: u8) -> bool {
    byte < 9
}

fn trim_end(bytes: &[u8], trims: impl Fn(u8) -> bool) -> &[u8] {
    let trimmed = bytes.iter().rev().take_while(|byte| trims(**byte)).count();
    &bytes[..bytes.len() - trimmed]
}
