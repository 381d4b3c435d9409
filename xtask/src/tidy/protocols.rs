//! Rules about protocols: what `Kind` lists has its source, its page and its fuzz entry.

use super::{Finding, Tree, numbered};

const KIND: &str = "agent/protocols/src/kind.rs";

/// Either feeds arbitrary bytes: the property suite that all conversations pass, or an entry of the protocol's own.
const FUZZED: [&str; 2] = ["suite::properties!(", "pub fn fuzz"];

pub(super) fn complete(tree: &Tree) -> Vec<Finding> {
    let listed = numbered(tree.text(KIND).unwrap_or_default());
    let protocols = listed.filter_map(|(line, text)| Some((line, word(text)?))).collect::<Vec<_>>();
    if protocols.is_empty() {
        // A list that moved would otherwise pass for one in which nothing is missing.
        return vec![Finding::new(
            KIND,
            1,
            "no line `Kind::Name => \"name\"`: this rule reads the list of protocols there",
        )];
    }
    protocols.into_iter().flat_map(|(line, name)| missing(tree, line, name)).collect()
}

fn missing(tree: &Tree, line: usize, name: &str) -> Vec<Finding> {
    let mut messages = Vec::new();
    let sources = sources(tree, name).collect::<Vec<_>>();
    if sources.is_empty() {
        messages.push(format!("{name} has no source in agent/protocols/src/{name}"));
    } else if !sources.iter().any(|text| FUZZED.iter().any(|entry| text.contains(entry))) {
        messages.push(format!(
            "{name} has no fuzz entry: bring a Subject to `suite::properties!`, or a `pub fn fuzz`"
        ));
    }
    let page = format!("docs/protocols/{name}.md");
    if !tree.has(&page) {
        messages.push(format!("{name} has no page {page}"));
    }
    messages.into_iter().map(|message| Finding::new(KIND, line, message)).collect()
}

/// `Kind::Postgres => "postgres",` gives `postgres`.
fn word(line: &str) -> Option<&str> {
    let (_, rest) = line.trim().strip_prefix("Kind::")?.split_once("=> \"")?;
    rest.split_once('"').map(|(word, _)| word)
}

fn sources<'a>(tree: &'a Tree, name: &'a str) -> impl Iterator<Item = &'a str> {
    tree.ending(".rs").filter_map(move |(path, text)| {
        let rest = path.strip_prefix("agent/protocols/src/")?.strip_prefix(name)?;
        (rest == ".rs" || rest.starts_with('/')).then_some(text)
    })
}

#[cfg(test)]
mod tests {
    use super::super::{found, tree};
    use super::*;

    const LIST: &str = "match self {\n    Kind::Opaque(_) => \"opaque\",\n    Kind::Mysql => \"mysql\",\n    Kind::Redis => \"redis\",\n}\n";

    #[test]
    fn a_listed_protocol_has_source_page_and_fuzz_entry() {
        let entry = "pub fn fuzz_opaque(data: &[u8]) {}\n";
        let suite = "suite::properties!(SUBJECT);\n";
        let tree = tree(&[
            (KIND, LIST),
            ("agent/protocols/src/opaque.rs", entry),
            ("docs/protocols/opaque.md", ""),
            ("agent/protocols/src/mysql/mod.rs", "//! Speaks.\n"),
            ("agent/protocols/src/mysql_names.rs", entry),
            ("agent/protocols/src/redis/tests.rs", suite),
            ("docs/protocols/redis.md", ""),
        ]);
        let findings = complete(&tree);
        assert_eq!(found(&findings), ["agent/protocols/src/kind.rs:3", "agent/protocols/src/kind.rs:3"]);
        assert!(findings[0].message.contains("fuzz entry") && findings[1].message.contains("mysql.md"));
    }

    #[test]
    fn a_list_that_moved_is_not_an_empty_one() {
        assert_eq!(found(&complete(&tree(&[]))), ["agent/protocols/src/kind.rs:1"]);
    }
}
