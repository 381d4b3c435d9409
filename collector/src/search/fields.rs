//! The one table of fields. Parser, `weir search --help` and the documentation are made from it.

/// What stands behind a field's colon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    Run,
    Session,
    Node,
    Host,
    Target,
    Protocol,
    Verb,
    Status,
    Outcome,
    Would,
    User,
    Principal,
    Path,
    Database,
    Text,
    Error,
    Body,
    After,
    Before,
    On,
    Duration,
    Rows,
    Bytes,
    Label,
}

/// One row of the table.
pub struct Entry {
    pub field: Field,
    /// The first is its name, the others are accepted.
    pub names: &'static [&'static str],
    pub takes: &'static str,
    pub about: &'static str,
}

const fn entry(
    field: Field,
    names: &'static [&'static str],
    takes: &'static str,
    about: &'static str,
) -> Entry {
    Entry { field, names, takes, about }
}

pub const FIELDS: &[Entry] = &[
    entry(Field::Run, &["run"], "ID", "a run: its id, the beginning or end of it, or `last`"),
    entry(Field::Session, &["session"], "ID", "a session: its id, or the beginning or end of it"),
    entry(
        Field::Node,
        &["node", "agent"],
        "NAME",
        "the node it was recorded on: its name, or a part of its id",
    ),
    entry(
        Field::Host,
        &["host"],
        "HOST",
        "where it went: address, address:port, or the host name it asked for",
    ),
    entry(Field::Target, &["target"], "NAME", "the target it went to, as the node's configuration names it"),
    entry(Field::Protocol, &["protocol"], "NAME", "postgres, http, opaque"),
    entry(Field::Verb, &["verb", "method"], "NAME", "query, prepare, execute, call; GET, POST, ..."),
    entry(Field::Status, &["status"], "STATUS", "how it was answered: 404, 4xx, >=500, 42P01"),
    entry(Field::Outcome, &["outcome"], "WORD", "ok, error, denied, withdrawn, aborted, running"),
    entry(Field::Would, &["would"], "deny", "an observing rule would have denied it"),
    entry(Field::User, &["user"], "NAME", "who: the run's principal, or the user it logged in as"),
    entry(Field::Principal, &["principal"], "NAME", "the run's principal, in its own case; it has an index"),
    entry(Field::Path, &["path"], "PATH", "path of the URL, without the query string"),
    entry(Field::Database, &["database", "db"], "NAME", "the database it was connected to"),
    entry(Field::Text, &["text"], "WORDS", "words in the statement, the URL, or parameters only"),
    entry(Field::Error, &["error"], "WORDS", "words in the error only"),
    entry(Field::Body, &["body"], "WORDS", "words in the bodies only"),
    entry(Field::After, &["after", "since"], "TIME", "asked at that time or later"),
    entry(Field::Before, &["before", "until"], "TIME", "asked before that time"),
    entry(Field::On, &["on"], "DATE", "asked on that day, in that minute, ..."),
    entry(Field::Duration, &["duration"], "TIME", "how long it took: >1s, 10ms..2m"),
    entry(Field::Rows, &["rows"], "NUMBER", "rows returned or changed: >100, 0"),
    entry(Field::Bytes, &["bytes"], "SIZE", "bytes of both directions: >1MiB"),
    entry(Field::Label, &["label"], "VALUE", "a label of the run"),
];

/// The field of this name, whatever its case.
pub fn named(name: &str) -> Option<&'static Entry> {
    FIELDS.iter().find(|entry| entry.names.iter().any(|known| known.eq_ignore_ascii_case(name)))
}

/// The name that was probably meant.
pub fn nearest(name: &str) -> Option<&'static str> {
    let name = name.to_ascii_lowercase();
    let near = |known: &&'static str| distance(&name, known);
    let best = FIELDS.iter().flat_map(|entry| entry.names).copied().min_by_key(near)?;
    // Half of it wrong is another word.
    (distance(&name, best) <= (best.len() / 2).clamp(1, 2)).then_some(best)
}

/// Insertions, deletions, exchanges of a letter and swaps of two; words longer than any name are just far away.
fn distance(a: &str, b: &str) -> usize {
    const CHARS_MAX: usize = 24;
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.len() > CHARS_MAX {
        return usize::MAX;
    }
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = match (i, j) {
                (i, 0) => i,
                (0, j) => j,
                (i, j) => {
                    let differs = usize::from(a[i - 1] != b[j - 1]);
                    let mut best =
                        (rows[i - 1][j] + 1).min(rows[i][j - 1] + 1).min(rows[i - 1][j - 1] + differs);
                    if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                        best = best.min(rows[i - 2][j - 2] + 1);
                    }
                    best
                }
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_and_guessed() {
        assert_eq!(named("METHOD").map(|entry| entry.field), Some(Field::Verb));
        assert_eq!(nearest("hots"), Some("host"));
        assert_eq!(nearest("protcol"), Some("protocol"));
        assert_eq!(nearest("usr"), Some("user"));
        assert_eq!(nearest("zzzzzz"), None);
        assert_eq!(nearest(&"x".repeat(4000)), None);
    }

    #[test]
    fn the_documentation_has_every_field() {
        let page = include_str!("../../../docs/operating/search.md");
        for entry in FIELDS {
            for name in entry.names {
                let shown = if *name == "label" { "`label.KEY:`".to_owned() } else { format!("`{name}:`") };
                assert!(page.contains(&shown), "docs/operating/search.md says nothing of {shown}");
            }
        }
    }

    #[test]
    fn no_name_is_given_twice() {
        let mut names: Vec<_> = FIELDS.iter().flat_map(|entry| entry.names).collect();
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
