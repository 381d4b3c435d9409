//! Rules about source text.

use super::{Finding, Tree, numbered};

/// What must not stay in the code. Put together from halves, so that this file passes its own rule.
const LEFTOVERS: [(&str, &str); 5] = [
    (concat!("to", "do!("), "write it, or open an issue and leave it out"),
    (concat!("unimple", "mented!("), "write it, or open an issue and leave it out"),
    (concat!("TO", "DO"), "do it, or open an issue"),
    (concat!("FIX", "ME"), "fix it, or open an issue"),
    (concat!("#[ig", "nore"), "a test that cannot run says so and fails: put it behind a feature"),
];

/// Folders of one person's machine.
const MACHINE_FOLDERS: [&str; 4] = ["/home/", "/root/", "/Users/", concat!("/wo", "rk/")];

/// `lib.rs`, `main.rs` and `mod.rs` are tables of contents: they open with what the module is.
pub(super) fn module_docs(tree: &Tree) -> Vec<Finding> {
    let contents =
        |path: &str| ["lib.rs", "main.rs", "mod.rs"].contains(&path.rsplit('/').next().unwrap_or(path));
    tree.ending(".rs")
        .filter(|(path, _)| contents(path))
        .filter_map(|(path, text)| {
            let (line, first) = first_statement(text);
            let message = "starts without `//!`: say in a paragraph what this module is";
            (!first.starts_with("//!")).then(|| Finding::new(path, line, message))
        })
        .collect()
}

pub(super) fn leftovers(tree: &Tree) -> Vec<Finding> {
    each_line(tree, ".rs", |line| {
        let found = LEFTOVERS.iter().find(|(needle, _)| line.contains(needle));
        found.map(|(needle, remedy)| format!("`{needle}`: {remedy}"))
    })
}

pub(super) fn machine_paths(tree: &Tree) -> Vec<Finding> {
    let suffixes = [".rs", ".toml", ".md", ".sh", ".py", ".yaml", ".service", ".ci/run"];
    let found = |line: &str| {
        let folder = MACHINE_FOLDERS.iter().find(|folder| names_path(line, folder))?;
        Some(format!("`{folder}` is a path of one machine"))
    };
    suffixes.iter().flat_map(|suffix| each_line(tree, suffix, found)).collect()
}

/// The first line that is neither empty nor an attribute of the whole file.
fn first_statement(text: &str) -> (usize, &str) {
    numbered(text).find(|(_, line)| !line.trim().is_empty() && !line.starts_with("#![")).unwrap_or((1, ""))
}

/// `folder` at the start of a path: part of a longer one, or of an address, is not meant.
fn names_path(line: &str, folder: &str) -> bool {
    line.match_indices(folder).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || "._-~}*".contains(c))
            // A list of folders, like the one above, ends its word here.
            && line[at + folder.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '.')
    })
}

fn each_line(tree: &Tree, suffix: &str, judge: impl Fn(&str) -> Option<String>) -> Vec<Finding> {
    let lines = tree
        .ending(suffix)
        .flat_map(|(path, text)| numbered(text).map(move |(line, text)| (path, line, text)));
    lines.filter_map(|(path, line, text)| Some(Finding::new(path, line, judge(text)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{found, tree};
    use super::*;

    #[test]
    fn a_table_of_contents_needs_words() {
        let tree = tree(&[
            ("a/src/lib.rs", "#![no_std]\n\n//! Words.\n"),
            ("b/src/mod.rs", "\nmod x;\n"),
            ("c/src/main.rs", ""),
            ("d/src/other.rs", "fn f() {}\n"),
        ]);
        assert_eq!(found(&module_docs(&tree)), ["b/src/mod.rs:2", "c/src/main.rs:1"]);
    }

    #[test]
    fn leftovers_are_found_where_they_are() {
        let text = format!("fn f() {{\n    {}\n}}\n{}]\n", LEFTOVERS[0].0, LEFTOVERS[4].0);
        assert_eq!(found(&leftovers(&tree(&[("a.rs", &text)]))), ["a.rs:2", "a.rs:4"]);
        assert_eq!(leftovers(&tree(&[("a.rs", "let ignored = 1;\n"), ("a.md", LEFTOVERS[2].0)])), []);
    }

    #[test]
    fn paths_of_one_machine_are_found_and_addresses_are_not() {
        let hit = format!("see {}anna/notes", MACHINE_FOLDERS[0]);
        let miss = "https://example.org/home/page, $HOME/.cache, /homebrew, x/root/y";
        assert_eq!(found(&machine_paths(&tree(&[("a.md", &hit), ("b.md", miss)]))), ["a.md:1"]);
    }
}
