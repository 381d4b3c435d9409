//! From text to a question. Any text either is one, or the error says where it is not and what to do.
//!
//! ```text
//! query   = any
//! any     = all { "OR" all }
//! all     = term { ["AND"] term }
//! term    = ("-" | "NOT") term | "(" any ")" | field ":" value { "," value } | text
//! text    = word ["*"] | '"' anything '"' ["*"]
//! ```

use super::fields::{self, FIELDS, Field};
use super::query::{Condition, DEPTH_MAX, Expr, Outcome, QUERY_BYTES_MAX, Query, TERMS_MAX, Text, Within};
use super::values::{Pattern, Range, count, duration, instant, size};

/// Where a text is not a question, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the query is wrong at character {}: {why}", at + 1)]
pub struct Mistake {
    /// Characters before it.
    pub at: usize,
    pub why: Why,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    #[error("it is longer than {QUERY_BYTES_MAX} bytes: make it shorter")]
    TooLong,
    #[error("it has more than {TERMS_MAX} terms: ask in several queries")]
    TooManyTerms,
    #[error("more than {DEPTH_MAX} parentheses and negations are inside each other")]
    TooDeep,
    #[error("a NUL character cannot be searched for")]
    Nul,
    #[error(
        "this quotation mark has no end: add a \" where the phrase ends, or write \\\" for the mark itself"
    )]
    OpenQuote,
    #[error("this parenthesis is not closed: add a ), or put the text into quotation marks")]
    OpenParenthesis,
    #[error("this ) closes nothing: leave it out, or put the text into quotation marks")]
    StrayParenthesis,
    #[error("{0} needs a term after it")]
    NothingAfter(&'static str),
    #[error("{0} needs a term before it")]
    NothingBefore(&'static str),
    #[error("there is nothing between the parentheses")]
    EmptyParentheses,
    #[error("{0:?} has no letter and no digit: only words can be searched for")]
    NoWord(String),
    #[error("* stands only at the end of a word or a phrase: put other text into quotation marks")]
    Star,
    #[error(
        "there is no field {name:?}: {}; to search for the text itself, put it into quotation marks",
        near.map(|near| format!("did you mean {near}:")).unwrap_or_else(|| format!("there are {}", all_names()))
    )]
    UnknownField { name: String, near: Option<&'static str> },
    #[error("{0}: has no value")]
    NoValue(String),
    #[error("{value:?} is no value for {name}: it takes {takes}")]
    BadValue { name: &'static str, value: String, takes: &'static str },
    #[error("a label is searched for as label.KEY:VALUE")]
    LabelWithoutKey,
}

fn all_names() -> String {
    FIELDS.iter().map(|entry| entry.names[0]).collect::<Vec<_>>().join(", ")
}

/// Reads a question. `now_ns` is what relative times are relative to.
pub fn parse(text: &str, now_ns: i64) -> Result<Query, Mistake> {
    if text.len() > QUERY_BYTES_MAX {
        return Err(Mistake { at: 0, why: Why::TooLong });
    }
    let mut parser = Parser { chars: text.chars().collect(), at: 0, terms: 0, now_ns };
    if let Some(at) = parser.chars.iter().position(|c| *c == '\0') {
        return Err(Mistake { at, why: Why::Nul });
    }
    parser.blanks();
    if parser.at == parser.chars.len() {
        return Ok(Query { root: None });
    }
    let root = parser.any(0)?;
    match parser.peek() {
        None => Ok(Query { root: Some(root) }),
        Some(_) => Err(parser.mistake(parser.at, Why::StrayParenthesis)),
    }
}

struct Parser {
    chars: Vec<char>,
    at: usize,
    terms: usize,
    now_ns: i64,
}

/// A word or a phrase as it was written, before anything is made of it.
struct Written {
    at: usize,
    text: String,
    quoted: bool,
    /// A quotation with a star behind it.
    star: bool,
}

type Parsed<T> = Result<T, Mistake>;

impl Parser {
    fn any(&mut self, depth: usize) -> Parsed<Expr> {
        let mut all = vec![self.all(depth)?];
        while self.keyword("OR") {
            let at = self.at;
            self.at += 2;
            self.blanks();
            if self.ends() {
                return Err(self.mistake(at, Why::NothingAfter("OR")));
            }
            all.push(self.all(depth)?);
        }
        Ok(one_or(all, Expr::Any))
    }

    /// At least one term.
    fn all(&mut self, depth: usize) -> Parsed<Expr> {
        let mut all = Vec::new();
        loop {
            self.blanks();
            let at = self.at;
            if self.ends() || (self.keyword("OR") && !all.is_empty()) {
                break;
            }
            if self.keyword("OR") {
                return Err(self.mistake(at, Why::NothingBefore("OR")));
            }
            if self.keyword("AND") {
                if all.is_empty() {
                    return Err(self.mistake(at, Why::NothingBefore("AND")));
                }
                self.at += 3;
                self.blanks();
                if self.ends() || self.keyword("OR") || self.keyword("AND") {
                    return Err(self.mistake(at, Why::NothingAfter("AND")));
                }
            }
            all.push(self.term(depth)?);
        }
        if all.is_empty() {
            return Err(self.mistake(self.at, Why::NothingBefore(")")));
        }
        Ok(one_or(all, Expr::All))
    }

    fn term(&mut self, depth: usize) -> Parsed<Expr> {
        let at = self.at;
        if depth >= DEPTH_MAX {
            return Err(self.mistake(at, Why::TooDeep));
        }
        let negation = if self.peek() == Some('-') { Some(("-", 1)) } else { None };
        let negation = negation.or_else(|| self.keyword("NOT").then_some(("NOT", 3)));
        if let Some((name, chars)) = negation {
            self.at += chars;
            if name == "NOT" {
                self.blanks();
            }
            let nothing = self.ends() || self.peek().is_some_and(char::is_whitespace);
            if nothing || self.keyword("OR") || self.keyword("AND") {
                return Err(self.mistake(at, Why::NothingAfter(name)));
            }
            return Ok(Expr::Not(Box::new(self.term(depth + 1)?)));
        }
        if self.peek() == Some('(') {
            return self.parenthesis(depth);
        }
        match self.field_name() {
            Some(name) => self.field(name),
            None => {
                let written = self.written(false)?;
                self.text(written, Within::Everything)
            }
        }
    }

    fn parenthesis(&mut self, depth: usize) -> Parsed<Expr> {
        let at = self.at;
        self.at += 1;
        self.blanks();
        match self.peek() {
            Some(')') => return Err(self.mistake(at, Why::EmptyParentheses)),
            None => return Err(self.mistake(at, Why::OpenParenthesis)),
            Some(_) => {}
        }
        let inside = self.any(depth + 1)?;
        self.blanks();
        if self.peek() != Some(')') {
            return Err(self.mistake(at, Why::OpenParenthesis));
        }
        self.at += 1;
        Ok(inside)
    }

    /// `name:` ahead, of letters, digits, `_`, `-` and `.`, a letter first. Nothing is taken unless it is there.
    fn field_name(&mut self) -> Option<String> {
        let rest = &self.chars[self.at..];
        let len = rest.iter().position(|c| !(c.is_alphanumeric() || matches!(c, '_' | '-' | '.')))?;
        if rest[len] != ':' || !rest[0].is_alphabetic() {
            return None;
        }
        self.at += len;
        Some(rest_text(&self.chars[self.at - len..self.at]))
    }

    /// After the name, at the colon.
    fn field(&mut self, name: String) -> Parsed<Expr> {
        let at = self.at - name.chars().count();
        let (known, key) = match name.split_once('.') {
            Some((label, key)) if label.eq_ignore_ascii_case("label") && !key.is_empty() => {
                (fields::named("label"), Some(key.to_owned()))
            }
            _ => (fields::named(&name), None),
        };
        let Some(entry) = known else {
            let near = fields::nearest(&name);
            return Err(self.mistake(at, Why::UnknownField { name, near }));
        };
        if entry.field == Field::Label && key.is_none() {
            return Err(self.mistake(at, Why::LabelWithoutKey));
        }
        self.at += 1;
        let mut any = Vec::new();
        loop {
            if self.ends() || self.peek().is_some_and(|c| c.is_whitespace() || c == ',') {
                return Err(self.mistake(at, Why::NoValue(name)));
            }
            let written = self.written(true)?;
            any.push(self.value(entry, key.as_deref(), written)?);
            if self.peek() != Some(',') {
                return Ok(one_or(any, Expr::Any));
            }
            self.at += 1;
        }
    }

    fn value(&mut self, entry: &'static fields::Entry, key: Option<&str>, written: Written) -> Parsed<Expr> {
        let within = match entry.field {
            Field::Text => Some(Within::Statement),
            Field::Error => Some(Within::Error),
            Field::Body => Some(Within::Body),
            _ => None,
        };
        if let Some(within) = within {
            return self.text(written, within);
        }
        self.count_term(written.at)?;
        let at = written.at;
        let bad = |takes| {
            let value = written.text.clone();
            Mistake { at, why: Why::BadValue { name: entry.names[0], value, takes } }
        };
        let now = self.now_ns;
        let text = written.text.as_str();
        let pattern = || pattern(&written).ok_or(Mistake { at, why: Why::Star });
        let range =
            |read: fn(&str) -> Option<(i64, i64)>, takes| Range::read(text, read).ok_or_else(|| bad(takes));
        let when = || instant(text, now).ok_or_else(|| bad(TIMES));
        let condition = match entry.field {
            Field::Run if text.eq_ignore_ascii_case("last") => Condition::LastRun,
            Field::Run => Condition::Run(id_part(text).ok_or_else(|| bad(IDS))?),
            Field::Session => Condition::Session(id_part(text).ok_or_else(|| bad(IDS))?),
            Field::Node => Condition::Node(pattern()?),
            Field::Host => Condition::Host(pattern()?),
            Field::Target => Condition::Target(pattern()?),
            Field::Protocol => Condition::Protocol(pattern()?),
            Field::Verb => Condition::Verb(pattern()?),
            Field::Status if !written.quoted && is_comparison(text) => {
                Condition::StatusNumber(range(count, "a number after the comparison: >=500, 400..499")?)
            }
            Field::Status => match status_class(text) {
                Some(range) if !written.quoted => Condition::StatusNumber(range),
                _ => Condition::Status(pattern()?),
            },
            Field::Outcome => Condition::Outcome(
                outcome(text).ok_or_else(|| bad("ok, error, denied, withdrawn, aborted or running"))?,
            ),
            Field::Would if ["deny", "denied"].iter().any(|word| text.eq_ignore_ascii_case(word)) => {
                Condition::WouldDeny
            }
            Field::Would => return Err(bad("deny")),
            Field::User => Condition::User(pattern()?),
            Field::Principal => Condition::Principal(pattern()?),
            Field::Path => Condition::Path(pattern()?),
            Field::Database => Condition::Database(pattern()?),
            Field::After => Condition::Asked(Range { from: Some(when()?.0), to: None }),
            Field::Before => Condition::Asked(Range { from: None, to: Some(when()?.0.saturating_sub(1)) }),
            Field::On => {
                let (from, width) = when()?;
                Condition::Asked(Range { from: Some(from), to: Some(from.saturating_add(width - 1)) })
            }
            Field::Duration => Condition::Duration(range(duration, "a time with its unit: >1s, 10ms..2m")?),
            Field::Rows => Condition::Rows(range(count, "a number: 0, >100, 10..20")?),
            Field::Bytes => Condition::Bytes(range(size, "a size: >1MiB, 0..512")?),
            Field::Label => Condition::Label(key.unwrap_or_default().to_owned(), pattern()?),
            Field::Text | Field::Error | Field::Body => return Err(bad("words")),
        };
        Ok(Expr::Is(condition))
    }

    fn text(&mut self, written: Written, within: Within) -> Parsed<Expr> {
        self.count_term(written.at)?;
        let (words, prefix) = match written.text.strip_suffix('*') {
            Some(words) if !written.quoted => (words.to_owned(), true),
            _ => (written.text, written.star),
        };
        if !written.quoted && words.contains('*') && words.chars().any(char::is_alphanumeric) {
            return Err(self.mistake(written.at, Why::Star));
        }
        if !words.chars().any(char::is_alphanumeric) {
            return Err(self.mistake(written.at, Why::NoWord(words)));
        }
        Ok(Expr::Text(Text { words, prefix, within }))
    }

    /// A quotation, or everything up to a blank, a parenthesis or a quotation mark; in a list also up to a comma.
    fn written(&mut self, in_list: bool) -> Parsed<Written> {
        let at = self.at;
        let mut text = String::new();
        if self.peek() != Some('"') {
            while let Some(c) = self.peek() {
                if c.is_whitespace() || matches!(c, '(' | ')' | '"') || (in_list && c == ',') {
                    break;
                }
                text.push(c);
                self.at += 1;
            }
            return Ok(Written { at, text, quoted: false, star: false });
        }
        self.at += 1;
        loop {
            let c = self.peek().ok_or_else(|| self.mistake(at, Why::OpenQuote))?;
            self.at += 1;
            match (c, self.peek()) {
                ('"', _) => break,
                ('\\', Some(next @ ('"' | '\\'))) => {
                    text.push(next);
                    self.at += 1;
                }
                _ => text.push(c),
            }
        }
        let star = self.peek() == Some('*');
        self.at += usize::from(star);
        Ok(Written { at, text, quoted: true, star })
    }

    fn count_term(&mut self, at: usize) -> Parsed<()> {
        self.terms += 1;
        if self.terms > TERMS_MAX { Err(self.mistake(at, Why::TooManyTerms)) } else { Ok(()) }
    }

    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn blanks(&mut self) {
        while self.peek().is_some_and(char::is_whitespace) {
            self.at += 1;
        }
    }

    /// The end, or of what is in parentheses.
    fn ends(&self) -> bool {
        matches!(self.peek(), None | Some(')'))
    }

    /// A word by itself, in capitals.
    fn keyword(&self, word: &str) -> bool {
        let len = word.chars().count();
        let ahead = self.chars[self.at..].iter().take(len);
        let after = self.chars.get(self.at + len);
        ahead.copied().eq(word.chars())
            && after.is_none_or(|c| c.is_whitespace() || matches!(c, '(' | ')' | '"'))
    }

    fn mistake(&self, at: usize, why: Why) -> Mistake {
        Mistake { at, why }
    }
}

const IDS: &str = "hex digits of an id, 32 at most; a run also `last`";
const TIMES: &str = "2026-11-20, 2026-11-20T10:30, today, yesterday, or 10m, 1h, 7d before now";

fn rest_text(chars: &[char]) -> String {
    chars.iter().collect()
}

fn one_or(mut all: Vec<Expr>, many: fn(Vec<Expr>) -> Expr) -> Expr {
    match all.len() {
        1 => all.remove(0),
        _ => many(all),
    }
}

/// `None`: a star where none may be.
fn pattern(written: &Written) -> Option<Pattern> {
    let text = &written.text;
    if written.quoted {
        let text = text.clone();
        return Some(if written.star { Pattern::Begins(text) } else { Pattern::Is(text) });
    }
    let found = match (text.strip_prefix('*'), text.strip_suffix('*')) {
        (_, Some(begin)) => Pattern::Begins(begin.to_owned()),
        (Some(end), None) => Pattern::Ends(end.to_owned()),
        (None, None) => Pattern::Is(text.clone()),
    };
    let (Pattern::Is(rest) | Pattern::Begins(rest) | Pattern::Ends(rest)) = &found;
    (!rest.contains('*')).then_some(found)
}

/// Upper-case hex digits; hyphens are for the eye.
fn id_part(text: &str) -> Option<String> {
    let digits: String = text.chars().filter(|c| *c != '-').map(|c| c.to_ascii_uppercase()).collect();
    ((1..=32).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit())).then_some(digits)
}

fn is_comparison(text: &str) -> bool {
    text.starts_with(['<', '>']) || text.contains("..")
}

/// `4xx`
fn status_class(text: &str) -> Option<Range> {
    let hundreds = text.strip_suffix("xx").or_else(|| text.strip_suffix("XX"))?;
    let hundreds = hundreds.parse::<i64>().ok().filter(|digit| (1..=9).contains(digit))?;
    Some(Range { from: Some(hundreds * 100), to: Some(hundreds * 100 + 99) })
}

fn outcome(text: &str) -> Option<Outcome> {
    Outcome::ALL.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)).map(|(_, outcome)| *outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_763_640_000_000_000_000;

    fn words(words: &str) -> Expr {
        Expr::Text(Text { words: words.into(), prefix: false, within: Within::Everything })
    }

    fn read(text: &str) -> Expr {
        parse(text, NOW).unwrap_or_else(|mistake| panic!("{text}: {mistake}")).root.unwrap()
    }

    fn wrong(text: &str) -> (usize, Why) {
        let mistake = parse(text, NOW).unwrap_err();
        (mistake.at, mistake.why)
    }

    fn is(pattern: fn(Pattern) -> Condition, text: &str) -> Expr {
        Expr::Is(pattern(Pattern::Is(text.into())))
    }

    #[test]
    fn words_phrases_prefixes_and_logic() {
        assert_eq!(parse("  ", NOW).unwrap().root, None);
        assert_eq!(read("drop"), words("drop"));
        assert_eq!(read("drop table"), Expr::All(vec![words("drop"), words("table")]));
        assert_eq!(read("drop AND table"), read("drop table"));
        assert_eq!(read("\"drop table\""), words("drop table"));
        assert_eq!(read(r#""a \"b\" \\ \n""#), words(r#"a "b" \ \n"#));
        let pre =
            |text: &str| Expr::Text(Text { words: text.into(), prefix: true, within: Within::Everything });
        assert_eq!(read("cust*"), pre("cust"));
        assert_eq!(read("\"from cust\"*"), pre("from cust"));
        assert_eq!(read("a OR b c"), Expr::Any(vec![words("a"), Expr::All(vec![words("b"), words("c")])]));
        assert_eq!(read("(a OR b) c"), Expr::All(vec![Expr::Any(vec![words("a"), words("b")]), words("c")]));
        assert_eq!(read("a -b"), Expr::All(vec![words("a"), Expr::Not(Box::new(words("b")))]));
        assert_eq!(read("NOT (a b)"), Expr::Not(Box::new(read("a b"))));
        assert_eq!(read("-(a b)"), read("NOT (a b)"));
        assert_eq!(read("or and not"), Expr::All(vec![words("or"), words("and"), words("not")]));
        assert_eq!(
            read("x-y a=b 10.0.0.9:5432 /api/v1?q=1 #1"),
            Expr::All(vec![
                words("x-y"),
                words("a=b"),
                words("10.0.0.9:5432"),
                words("/api/v1?q=1"),
                words("#1"),
            ])
        );
    }

    #[test]
    fn fields() {
        assert_eq!(read("Target:orders"), is(Condition::Target, "orders"));
        assert_eq!(read("method:GET"), read("verb:GET"));
        assert_eq!(read("host:\"a b\""), is(Condition::Host, "a b"));
        assert_eq!(
            read("host:*.example.com"),
            Expr::Is(Condition::Host(Pattern::Ends(".example.com".into())))
        );
        assert_eq!(read("target:ord*"), Expr::Is(Condition::Target(Pattern::Begins("ord".into()))));
        assert_eq!(
            read("verb:GET,\"HE,AD\",p*"),
            Expr::Any(vec![
                is(Condition::Verb, "GET"),
                is(Condition::Verb, "HE,AD"),
                Expr::Is(Condition::Verb(Pattern::Begins("p".into()))),
            ])
        );
        assert_eq!(read("run:last"), Expr::Is(Condition::LastRun));
        assert_eq!(read("run:0199-ab"), Expr::Is(Condition::Run("0199AB".into())));
        assert_eq!(read("outcome:Denied"), Expr::Is(Condition::Outcome(Outcome::Denied)));
        assert_eq!(read("would:deny"), Expr::Is(Condition::WouldDeny));
        let range = |from, to| Range { from, to };
        assert_eq!(read("rows:>100"), Expr::Is(Condition::Rows(range(Some(101), None))));
        assert_eq!(read("status:4xx"), Expr::Is(Condition::StatusNumber(range(Some(400), Some(499)))));
        assert_eq!(read("status:>=500"), Expr::Is(Condition::StatusNumber(range(Some(500), None))));
        assert_eq!(read("status:42P01"), is(Condition::Status, "42P01"));
        assert_eq!(read("bytes:>1MiB"), Expr::Is(Condition::Bytes(range(Some(1_048_577), None))));
        assert_eq!(read("after:1h"), Expr::Is(Condition::Asked(range(Some(NOW - 3_600_000_000_000), None))));
        assert_eq!(
            read("before:2025-11-20T12:00:00"),
            Expr::Is(Condition::Asked(range(None, Some(NOW - 1))))
        );
        assert_eq!(
            read("label.Team:db"),
            Expr::Is(Condition::Label("Team".into(), Pattern::Is("db".into())))
        );
        assert_eq!(
            read("error:\"no such\",timeout"),
            Expr::Any(
                ["no such", "timeout"]
                    .map(|words| Expr::Text(Text {
                        words: words.into(),
                        prefix: false,
                        within: Within::Error
                    }))
                    .into()
            )
        );
        assert_eq!(read("-(target:a OR target:b)"), Expr::Not(Box::new(read("target:a OR target:b"))));
    }

    #[test]
    fn mistakes_say_where_and_what() {
        assert_eq!(wrong("a \"b"), (2, Why::OpenQuote));
        assert_eq!(wrong("(a"), (0, Why::OpenParenthesis));
        assert_eq!(wrong("a)"), (1, Why::StrayParenthesis));
        assert_eq!(wrong("()"), (0, Why::EmptyParentheses));
        assert_eq!(wrong("OR a"), (0, Why::NothingBefore("OR")));
        assert_eq!(wrong("a OR"), (2, Why::NothingAfter("OR")));
        assert_eq!(wrong("a OR OR b"), (5, Why::NothingBefore("OR")));
        assert_eq!(wrong("a AND"), (2, Why::NothingAfter("AND")));
        assert_eq!(wrong("(AND a)"), (1, Why::NothingBefore("AND")));
        assert_eq!(wrong("a - b"), (2, Why::NothingAfter("-")));
        assert_eq!(wrong("NOT"), (0, Why::NothingAfter("NOT")));
        assert_eq!(wrong("a ***"), (2, Why::NoWord("**".into())));
        assert_eq!(wrong("fo*o"), (0, Why::Star));
        assert_eq!(wrong("target:"), (0, Why::NoValue("target".into())));
        assert_eq!(wrong("target:a,"), (0, Why::NoValue("target".into())));
        assert_eq!(wrong("label:x"), (0, Why::LabelWithoutKey));
        assert_eq!(wrong("a\0"), (1, Why::Nul));
        assert_eq!(wrong(&"(".repeat(17)), (16, Why::TooDeep));
        assert_eq!(wrong(&"-".repeat(4000)), (16, Why::TooDeep));
        assert_eq!(wrong(&"a ".repeat(65)), (128, Why::TooManyTerms));
        assert_eq!(wrong(&"a".repeat(4097)), (0, Why::TooLong));
        let said = |text| parse(text, NOW).unwrap_err().to_string();
        assert_eq!(
            said("x hots:y"),
            "the query is wrong at character 3: there is no field \"hots\": did you mean host:; to search for the text itself, \
             put it into quotation marks"
        );
        assert!(said("http://x/").contains("quotation marks"));
        assert!(said("zzzzzz:1").contains("there are run, session"));
        assert!(said("rows:many").contains("\"many\" is no value for rows: it takes a number"));
        assert!(said("after:tomorrow").contains("2026-11-20T10:30"));
        assert!(said("outcome:fine").contains("denied"));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_question_or_a_mistake_inside_it(text in "\\PC{0,80}") {
            if let Err(mistake) = parse(&text, NOW) {
                assert!(mistake.at <= text.chars().count());
                assert!(!mistake.to_string().is_empty());
            }
        }

        #[test]
        fn operators_in_any_order_are_a_question_or_a_mistake(
            parts in proptest::collection::vec(
                proptest::sample::select(vec![
                    "(", ")", "\"", "*", "-", ":", ",", " ", "OR", "AND", "NOT", "NEAR(a b, 2)", "a", "b*", "host:", "rows:>",
                    "..", "\\", "after:1h", "{text}:", "^a", "'", ";--", "%", "label.k:", "last", "é", "\u{202e}", "4xx", "+",
                ]),
                0..40,
            )
        ) {
            let text = parts.concat();
            if let Err(mistake) = parse(&text, NOW) {
                assert!(mistake.at <= text.chars().count());
            }
        }
    }
}
