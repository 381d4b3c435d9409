//! A question, understood: what an exchange has to be like.

use super::values::{Pattern, Range};

/// Longest question, bytes.
pub const QUERY_BYTES_MAX: usize = 4096;
/// Words, phrases and fields in it; every item of a list counts.
pub const TERMS_MAX: usize = 64;
/// Parentheses and negations inside each other.
pub const DEPTH_MAX: usize = 16;

/// The whole of it. `None` is every exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    pub root: Option<Expr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expr {
    All(Vec<Expr>),
    Any(Vec<Expr>),
    Not(Box<Expr>),
    Text(Text),
    Is(Condition),
}

/// Words that follow each other. What a word is, the index decides; what is between words never matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    pub words: String,
    /// The last word may go on.
    pub prefix: bool,
    pub within: Within,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Within {
    Everything,
    /// Statement or URL, and parameters.
    Statement,
    Error,
    Body,
}

/// One fact about an exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Upper-case hex digits: the beginning or the end of the id.
    Run(String),
    LastRun,
    Session(String),
    /// By name, or as a part of the id.
    Node(Pattern),
    /// Where it went: address, `address:port`, or the name that was asked for.
    Host(Pattern),
    Target(Pattern),
    Protocol(Pattern),
    Verb(Pattern),
    Status(Pattern),
    StatusNumber(Range),
    Outcome(Outcome),
    WouldDeny,
    /// The run's principal, or the name it logged in with.
    User(Pattern),
    /// The run's principal alone, in its own case: it is an identifier, and has an index.
    Principal(Pattern),
    Path(Pattern),
    Database(Pattern),
    /// Nanoseconds since 1970-01-01 UTC.
    Asked(Range),
    /// Nanoseconds.
    Duration(Range),
    Rows(Range),
    /// Both directions together.
    Bytes(Range),
    Label(String, Pattern),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Running,
    Ok,
    Error,
    Denied,
    Withdrawn,
    Aborted,
}

impl Outcome {
    pub const ALL: [(&'static str, Self); 6] = [
        ("ok", Self::Ok),
        ("error", Self::Error),
        ("denied", Self::Denied),
        ("withdrawn", Self::Withdrawn),
        ("aborted", Self::Aborted),
        ("running", Self::Running),
    ];
}

impl Query {
    /// What must hold of every answer, each by itself.
    pub fn required(&self) -> &[Expr] {
        match &self.root {
            None => &[],
            Some(Expr::All(all)) => all,
            Some(one) => std::slice::from_ref(one),
        }
    }

    /// Every text that an answer may contain: what is highlighted. What is excluded is not among them.
    pub fn texts(&self) -> Vec<&Text> {
        let mut found = Vec::new();
        if let Some(root) = &self.root {
            root.texts(&mut found);
        }
        found
    }

    /// Words that every answer has: those that were asked for, and those of a path, by which it is found.
    pub fn required_texts(&self) -> Vec<Text> {
        let of = |one: &Expr| match one {
            Expr::Text(text) => Some(text.clone()),
            Expr::Is(Condition::Path(pattern)) => path_text(pattern),
            _ => None,
        };
        self.required().iter().filter_map(of).collect()
    }

    /// Whether the answer depends on full text, which follows the rest of the index at a distance.
    pub fn asks_text(&self) -> bool {
        self.root.as_ref().is_some_and(Expr::asks_text) || !self.required_texts().is_empty()
    }
}

/// What stands in a URL with this path: words end where the path does, and begin where it begins.
fn path_text(pattern: &Pattern) -> Option<Text> {
    let (path, prefix) = match pattern {
        Pattern::Is(path) => (path, false),
        Pattern::Begins(path) => (path, path.ends_with(char::is_alphanumeric)),
        Pattern::Ends(_) => return None,
    };
    let has_word = path.starts_with('/') && path.chars().any(|c| c.is_ascii_alphanumeric());
    has_word.then(|| Text { words: path.clone(), prefix, within: Within::Statement })
}

impl Expr {
    fn texts<'a>(&'a self, found: &mut Vec<&'a Text>) {
        match self {
            Self::All(all) | Self::Any(all) => all.iter().for_each(|one| one.texts(found)),
            Self::Text(text) => found.push(text),
            Self::Not(_) | Self::Is(_) => {}
        }
    }

    pub fn asks_text(&self) -> bool {
        match self {
            Self::All(all) | Self::Any(all) => all.iter().any(Self::asks_text),
            Self::Not(one) => one.asks_text(),
            Self::Text(_) => true,
            Self::Is(_) => false,
        }
    }
}
