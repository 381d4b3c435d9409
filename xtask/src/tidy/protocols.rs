//! Rules about protocols: a folder that speaks one is complete only with its page and its fuzz entry.

use std::collections::BTreeSet;

use super::{Finding, Tree};

const FOLDER: &str = "agent/protocols/src/";

pub(super) fn complete(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for name in spoken(tree) {
        let module = format!("{FOLDER}{name}/mod.rs");
        let page = format!("docs/protocols/{name}.md");
        if !tree.has(&page) {
            findings.push(Finding::new(&module, 1, format!("has no page {page}")));
        }
        let fuzz = format!("{FOLDER}{name}/fuzz.rs");
        if !tree.has(&fuzz) {
            findings.push(Finding::new(&module, 1, format!("has no fuzz entry {fuzz}")));
        }
    }
    findings
}

/// The folders in which a `Conversation` is implemented. The folder list is derived, not kept: a list would be one
/// more thing to forget.
fn spoken(tree: &Tree) -> BTreeSet<&str> {
    let sources = tree.ending(".rs").filter(|(_, text)| text.lines().any(implements_conversation));
    sources.filter_map(|(path, _)| path.strip_prefix(FOLDER)?.split_once('/')).map(|(name, _)| name).collect()
}

fn implements_conversation(line: &str) -> bool {
    line.starts_with("impl") && line.contains("Conversation for ")
}

#[cfg(test)]
mod tests {
    use super::super::{found, tree};
    use super::*;

    #[test]
    fn a_protocol_without_page_and_fuzz_entry_is_found() {
        let speaks = "impl Conversation for Session {\n";
        let tree = tree(&[
            ("agent/protocols/src/opaque/mod.rs", speaks),
            ("agent/protocols/src/opaque/fuzz.rs", ""),
            ("docs/protocols/opaque.md", ""),
            ("agent/protocols/src/mysql/session.rs", speaks),
            ("agent/protocols/src/mask/mod.rs", "//! Not a protocol.\n"),
        ]);
        let findings = complete(&tree);
        assert_eq!(
            found(&findings),
            ["agent/protocols/src/mysql/mod.rs:1", "agent/protocols/src/mysql/mod.rs:1"]
        );
        assert!(findings[0].message.contains("docs/protocols/mysql.md"));
        assert!(findings[1].message.contains("fuzz.rs"));
    }
}
