//! Rules about manifests: everything that was chosen says why.

use super::{Finding, Tree, numbered};

const MANIFEST: &str = "Cargo.toml";
const DENY: &str = "deny.toml";

/// Lists of deny.toml whose entries are exceptions from, or additions to, its rules.
const DENY_LISTS: [&str; 5] = ["deny", "exceptions", "ignore", "skip", "skip-tree"];

/// Every outside dependency of the workspace says what it is for, on its line.
pub(super) fn dependency_purposes(tree: &Tree) -> Vec<Finding> {
    without_comment(tree, "[workspace.dependencies]", "what is this dependency for?")
}

/// Every lint that the workspace sets says why.
pub(super) fn lint_reasons(tree: &Tree) -> Vec<Finding> {
    let mut findings = without_comment(tree, "[workspace.lints.rust]", "why this lint?");
    findings.extend(without_comment(tree, "[workspace.lints.clippy]", "why this lint?"));
    findings
}

/// Every exception in deny.toml carries a reason, on its line or in the comment above it.
pub(super) fn deny_reasons(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut inside = false;
    let mut explained = false;
    for (number, line) in numbered(tree.text(DENY).unwrap_or_default()) {
        let line = line.trim();
        let opens = line.split_once('=').is_some_and(|(key, rest)| {
            DENY_LISTS.contains(&key.trim()) && rest.trim_start().starts_with('[')
        });
        // The first entry may share the line with the bracket.
        let entry = if opens { line.split_once('[').map_or("", |(_, rest)| rest).trim() } else { line };
        inside |= opens;
        if inside && (entry.starts_with('{') || entry.starts_with('"')) {
            let reasoned = explained || entry.contains("reason =") || entry.contains('#');
            findings.extend((!reasoned).then(|| Finding::new(DENY, number, "an exception needs its reason")));
        }
        if entry.ends_with(']') {
            inside = false;
        }
        explained = line.starts_with('#');
    }
    findings
}

/// The lines `name = ...` of a section of the root manifest that end without a comment. Our own crates need none.
fn without_comment(tree: &Tree, section: &str, question: &str) -> Vec<Finding> {
    let text = tree.text(MANIFEST).unwrap_or_default();
    let lines = numbered(text).skip_while(|(_, line)| line.trim() != section).skip(1);
    lines
        .take_while(|(_, line)| !line.starts_with('['))
        .filter(|(_, line)| line.contains('=') && !line.trim_start().starts_with('#'))
        .filter(|(_, line)| !line.contains("{ path = ") && !line.contains(" # "))
        .map(|(number, _)| Finding::new(MANIFEST, number, question))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::{found, tree};
    use super::*;

    #[test]
    fn a_dependency_and_a_lint_say_why() {
        let manifest = "[workspace.dependencies]\n\
                        weir-proto = { path = \"proto\" }\n\
                        # Kernel\n\
                        aya = \"0.14\" # loads the programs\n\
                        bytes = \"1\"\n\
                        [workspace.lints.rust]\n\
                        unsafe_code = \"deny\"\n\
                        [profile.dev]\n\
                        debug = false\n";
        let tree = tree(&[(MANIFEST, manifest)]);
        assert_eq!(found(&dependency_purposes(&tree)), ["Cargo.toml:5"]);
        assert_eq!(found(&lint_reasons(&tree)), ["Cargo.toml:7"]);
    }

    #[test]
    fn an_exception_says_why() {
        let deny = "[bans]\n\
                    deny = [\n\
                    { crate = \"ring\", reason = \"one provider\" },\n\
                    { crate = \"openssl\" },\n\
                    # because\n\
                    \"native-tls\",\n\
                    ]\n\
                    skip = [{ crate = \"syn\" }]\n\
                    [licenses]\n\
                    allow = [\n\"MIT\",\n]\n";
        assert_eq!(found(&deny_reasons(&tree(&[(DENY, deny)]))), ["deny.toml:4", "deny.toml:8"]);
    }
}
