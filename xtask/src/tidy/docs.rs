//! Rules about pages.

use super::{Finding, Tree, numbered};

const CHANGELOG: &str = "CHANGELOG.md";

/// Every relative link of a page leads to a file or folder of this repository.
pub(super) fn links(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, text) in tree.ending(".md") {
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let mut in_code = false;
        for (line, text) in numbered(text) {
            in_code ^= text.trim_start().starts_with("```");
            if in_code {
                continue;
            }
            let broken = targets(text).filter(|target| leads_nowhere(tree, folder, target));
            findings
                .extend(broken.map(|target| Finding::new(path, line, format!("nothing is at `{target}`"))));
        }
    }
    findings
}

pub(super) fn changelog(tree: &Tree) -> Vec<Finding> {
    let present = tree.text(CHANGELOG).is_some_and(|text| text.lines().any(|line| line == "## [Unreleased]"));
    let message = "needs a section `## [Unreleased]`: users read there what changes";
    if present { Vec::new() } else { vec![Finding::new(CHANGELOG, 1, message)] }
}

/// What stands in the round brackets of `[text](target)`.
fn targets(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| rest.split_once(')').map(|(target, _)| target.trim()))
}

fn leads_nowhere(tree: &Tree, folder: &str, target: &str) -> bool {
    let file = target.split(['#', '?']).next().unwrap_or_default();
    let elsewhere = target.contains("://") || target.starts_with("mailto:");
    if elsewhere || file.is_empty() {
        return false;
    }
    resolve(folder, file).is_none_or(|path| !path.is_empty() && !tree.has(&path))
}

/// The path from the root; None when the link climbs out of the repository.
fn resolve(folder: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::super::{found, tree};
    use super::*;

    #[test]
    fn links_are_followed_from_their_page() {
        let page = "[up](../README.md#map) [folder](protocols) [site](https://example.org/x) [here](#words)\n\
                    ```\n[code](is/not/a/link)\n```\n\
                    [gone](protocols/mysql.md) and [out](../../secrets)\n";
        let tree = tree(&[
            ("README.md", "[d](docs/format.md)\n"),
            ("docs/format.md", page),
            ("docs/protocols/x.md", ""),
        ]);
        assert_eq!(found(&links(&tree)), ["docs/format.md:5", "docs/format.md:5"]);
    }

    #[test]
    fn a_changelog_has_a_place_for_what_comes() {
        assert_eq!(changelog(&tree(&[(CHANGELOG, "# Changelog\n\n## [Unreleased]\n")])), []);
        assert_eq!(found(&changelog(&tree(&[(CHANGELOG, "## [0.1.0]\n")]))), ["CHANGELOG.md:1"]);
        assert_eq!(changelog(&tree(&[])).len(), 1);
    }
}
