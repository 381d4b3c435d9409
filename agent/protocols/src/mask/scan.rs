//! Finds what authenticates, in one pass over bytes that may come in parts.
//!
//! Most bytes are only searched for anchors: a separator, a letter of a keyword, the end of a token's prefix. At an anchor
//! the bytes before it are looked at, within a bound; what follows is then read state by state. A state that needs to see
//! further waits, within a named bound. So every decision depends on the same bytes, however they were cut.

use super::anchors::{Anchor, Anchors};
use super::gap::{Gap, Lead, Named};
use super::look_back::{
    LookBack, Scratch, ends_with_name, is_word_start, name_before_separator, word_before_stem,
};
use super::names::{SECRETS, Token};
use super::plan::{Hit, Syntax};
use super::userinfo::{self, Userinfo};
use super::value::{Reach, Style, Value};
use super::view::{Peek, View, is_word};

/// Longest rest of a word behind a keyword's stem, bytes.
const WORD_BYTES_MAX: usize = 64;

#[derive(Clone, Debug)]
pub(super) struct Scanner {
    syntax: Syntax,
    state: State,
    behind: LookBack,
}

#[derive(Clone, Debug)]
enum State {
    /// Looking for an anchor.
    Search,
    /// Behind a keyword's stem.
    Word(Named),
    /// Between a name and its value.
    Gap(Gap),
    Value(Value, After),
    /// Behind `scheme:`
    Scheme,
    /// Behind a token's prefix.
    Token(&'static Token),
}

/// What a value is followed by.
#[derive(Clone, Debug)]
enum After {
    Search,
    /// Maybe another value of the same gap.
    Again(Gap),
    /// The same gap: it was a comment.
    Gap(Gap),
}

/// How far a state has read.
enum Progress {
    To(usize, State),
    /// More bytes are needed; this state has decided up to here.
    Wait(usize, State),
}

impl Scanner {
    pub(super) fn new(syntax: Syntax) -> Self {
        Self { syntax, state: State::Search, behind: LookBack::default() }
    }

    /// Reads `buffer`, adds what to mask to `hits` in order, and returns up to where all is decided. What lies behind that
    /// is to be given again, with more after it. Without more (`last`) all is decided.
    pub(super) fn scan(&mut self, buffer: &[u8], last: bool, hits: &mut Vec<Hit>) -> usize {
        let view = View { buffer, last };
        let mut anchors = Anchors::new(buffer);
        let mut at = 0;
        loop {
            match self.step(view, at, &mut anchors, hits) {
                Progress::To(next, state) => {
                    at = next;
                    self.state = state;
                }
                Progress::Wait(decided, state) => {
                    let decided = if last { buffer.len() } else { decided };
                    self.state = state;
                    if !last {
                        self.behind.keep(&buffer[..decided]);
                    }
                    return decided;
                }
            }
        }
    }

    fn step(
        &mut self,
        view: View<'_>,
        at: usize,
        anchors: &mut Anchors<'_>,
        hits: &mut Vec<Hit>,
    ) -> Progress {
        match std::mem::replace(&mut self.state, State::Search) {
            State::Search => self.search(view, at, anchors),
            State::Word(named) => word(view, at, named),
            State::Gap(gap) => self.gap(view, at, gap),
            State::Value(value, after) => self.value(view, at, value, after, hits),
            State::Scheme => self.scheme(view, at, hits),
            State::Token(token) => match view.run(at, token.min, |byte| token.set.contains(byte)) {
                None => Progress::Wait(at, State::Token(token)),
                Some(length) if length < token.min => Progress::To(at, State::Search),
                Some(_) => Progress::To(at, State::Value(Value::shape(token.rule, token.set), After::Search)),
            },
        }
    }

    fn search(&self, view: View<'_>, mut at: usize, anchors: &mut Anchors<'_>) -> Progress {
        let mut scratch = Scratch::default();
        while let Some(anchor) = anchors.next(at, &self.behind) {
            match anchor {
                Anchor::Separator(place) => {
                    let separator = view.buffer[place];
                    let before = self.behind.before(view.buffer, place, &mut scratch);
                    if let Some(named) = name_before_separator(before, separator) {
                        return Progress::To(place, State::Gap(Gap::after(named)));
                    }
                    if separator == b':' && before.last().is_some_and(u8::is_ascii_alphanumeric) {
                        return Progress::To(place + 1, State::Scheme);
                    }
                    at = place + 1;
                }
                Anchor::Stem(place, keyword) => {
                    let before = self.behind.before(view.buffer, place + 1, &mut scratch);
                    if let Some(named) = word_before_stem(before, &SECRETS.keywords[keyword]) {
                        return Progress::To(place + 1, State::Word(named));
                    }
                    at = place + 1;
                }
                Anchor::Prefix(end, token) => {
                    let token = &SECRETS.tokens[token];
                    let upto = self.behind.before(view.buffer, end, &mut scratch);
                    if is_word_start(&upto[..upto.len().saturating_sub(token.prefix.len())]) {
                        return Progress::To(end, State::Token(token));
                    }
                    at = end;
                }
            }
        }
        Progress::Wait(view.end(), State::Search)
    }

    fn gap(&mut self, view: View<'_>, at: usize, mut gap: Gap) -> Progress {
        match gap.lead(view, at, self.syntax == Syntax::Sql) {
            Lead::Wait(decided) => Progress::Wait(decided, State::Gap(gap)),
            Lead::Nothing(next) => Progress::To(next, State::Search),
            Lead::Comment(next, comment) => Progress::To(next, State::Value(comment, After::Gap(gap))),
            Lead::Value(next, value) => Progress::To(next, State::Value(value, After::Again(gap))),
        }
    }

    fn value(
        &mut self,
        view: View<'_>,
        at: usize,
        mut value: Value,
        after: After,
        hits: &mut Vec<Hit>,
    ) -> Progress {
        let reach = value.reach(view, at);
        let (Reach::Open(to) | Reach::Ended(to, _)) = reach;
        add(hits, at..to, value.rule);
        match reach {
            Reach::Open(decided) => Progress::Wait(decided, State::Value(value, after)),
            Reach::Ended(_, next) => {
                self.behind.cut(next);
                let state = match after {
                    After::Gap(gap) => State::Gap(gap),
                    After::Again(gap)
                        if value.may_continue(gap.is_of_keyword(), view.buffer.get(next).copied()) =>
                    {
                        State::Gap(gap.again())
                    }
                    After::Search | After::Again(_) => State::Search,
                };
                Progress::To(next, state)
            }
        }
    }

    fn scheme(&mut self, view: View<'_>, at: usize, hits: &mut Vec<Hit>) -> Progress {
        match userinfo::read(view, at) {
            None => Progress::Wait(at, State::Scheme),
            Some(Userinfo::None(next)) => Progress::To(next, State::Search),
            Some(Userinfo::Password(start, end)) => {
                add(hits, start..end, userinfo::RULE);
                self.behind.cut(end);
                Progress::To(end, State::Search)
            }
            Some(Userinfo::Endless(start)) => {
                Progress::To(start, State::Value(Value::bare(userinfo::RULE, Style::Plain, 0), After::Search))
            }
        }
    }
}

/// Whether any part of the buffer, read for itself, may hold a secret. Looks at no word's beginning: where the parts begin
/// is not known here. Stops at the first suspicion.
pub(super) fn may_hold_secret(buffer: &[u8]) -> bool {
    let view = View { buffer, last: true };
    let (mut anchors, behind, mut at) = (Anchors::new(buffer), LookBack::default(), 0);
    while let Some(anchor) = anchors.next(at, &behind) {
        let (place, is_suspicious) = match anchor {
            Anchor::Stem(place, _) => (place, true),
            Anchor::Separator(place) => {
                let is_url = || {
                    matches!(
                        userinfo::read(view, place + 1),
                        Some(Userinfo::Password(..) | Userinfo::Endless(_))
                    )
                };
                (place, ends_with_name(&buffer[..place]) || (buffer[place] == b':' && is_url()))
            }
            Anchor::Prefix(end, token) => {
                let token = &SECRETS.tokens[token];
                // The next anchor is looked for behind this one.
                (end - 1, view.run(end, token.min, |byte| token.set.contains(byte)) >= Some(token.min))
            }
        };
        if is_suspicious {
            return true;
        }
        at = place + 1;
    }
    false
}

/// The rest of the word that a stem is in; a `-` belongs to it between letters only.
fn word(view: View<'_>, at: usize, named: Named) -> Progress {
    let Some(length) = word_length(view, at) else { return Progress::Wait(at, State::Word(named)) };
    let rest = named.keyword.map_or("", |keyword| keyword.rest.as_str());
    let fits = rest.is_empty() || view.buffer[at..at + length].eq_ignore_ascii_case(rest.as_bytes());
    if !fits || length >= WORD_BYTES_MAX {
        return Progress::To(at + length, State::Search);
    }
    Progress::To(at + length, State::Gap(Gap::after(named)))
}

fn word_length(view: View<'_>, at: usize) -> Option<usize> {
    let mut length = 0;
    loop {
        length += view.run(at + length, WORD_BYTES_MAX - length, is_word)?;
        let goes_on = length < WORD_BYTES_MAX
            && view.peek(at + length)? == Peek::Byte(b'-')
            && view.peek(at + length + 1)?.is(is_word);
        if !goes_on {
            return Some(length);
        }
        length += 1;
    }
}

/// Hits that touch become one.
fn add(hits: &mut Vec<Hit>, range: std::ops::Range<usize>, rule: &'static str) {
    if range.is_empty() {
        return;
    }
    match hits.last_mut() {
        Some((last, last_rule)) if last.end == range.start && *last_rule == rule => last.end = range.end,
        _ => hits.push((range, rule)),
    }
}

/// How many steps reading takes.
#[cfg(test)]
pub(super) fn steps(bytes: &[u8]) -> usize {
    let mut scanner = Scanner::new(Syntax::Bytes);
    let (view, mut anchors) = (View { buffer: bytes, last: true }, Anchors::new(bytes));
    let (mut at, mut steps, mut hits) = (0, 0, Vec::new());
    while let Progress::To(next, state) = scanner.step(view, at, &mut anchors, &mut hits) {
        (at, scanner.state, steps) = (next, state, steps + 1);
    }
    steps
}
