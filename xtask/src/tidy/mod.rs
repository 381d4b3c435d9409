//! `cargo xtask tidy`: what clippy cannot check. Each rule is a pure function from the tree's text to findings, so
//! each has a test that makes it fail.

mod docs;
mod manifests;
mod protocols;
mod source;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;

use anyhow::{Context, bail};

use crate::command;
use crate::workspace::Workspace;

/// The text of every file git would take, by path from the root with `/`.
#[derive(Default)]
struct Tree {
    files: BTreeMap<String, String>,
}

/// Something missing, and where to write it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    path: String,
    line: usize,
    message: String,
}

const RULES: [fn(&Tree) -> Vec<Finding>; 9] = [
    source::module_docs,
    source::leftovers,
    source::machine_paths,
    protocols::complete,
    docs::links,
    docs::changelog,
    manifests::dependency_purposes,
    manifests::lint_reasons,
    manifests::deny_reasons,
];

pub(crate) fn run(workspace: &Workspace) -> anyhow::Result<()> {
    let tree = Tree::read(workspace)?;
    let mut findings = RULES.iter().flat_map(|rule| rule(&tree)).collect::<Vec<_>>();
    findings.sort();
    for finding in &findings {
        println!("{finding}");
    }
    match findings.len() {
        0 => {
            eprintln!("tidy: {} files, nothing missing", tree.files.len());
            Ok(())
        }
        count => bail!("tidy found {count} things to do"),
    }
}

impl Tree {
    fn read(workspace: &Workspace) -> anyhow::Result<Self> {
        let mut git = std::process::Command::new("git");
        git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .current_dir(&workspace.root);
        let mut files = BTreeMap::new();
        for path in command::capture(&mut git)?.split('\0').filter(|path| !path.is_empty()) {
            match fs::read(workspace.root.join(path)) {
                // A recording or a picture has no text to check; its path still answers links.
                Ok(bytes) => files.insert(path.to_owned(), String::from_utf8(bytes).unwrap_or_default()),
                // Deleted, and git not told yet.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
                Err(error) => return Err(error).with_context(|| format!("reading {path}")),
            };
        }
        Ok(Self { files })
    }

    fn ending<'a>(&'a self, suffix: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.files
            .iter()
            .filter(move |(path, _)| path.ends_with(suffix))
            .map(|(path, text)| (&**path, &**text))
    }

    fn text(&self, path: &str) -> Option<&str> {
        self.files.get(path).map(String::as_str)
    }

    /// A file, or a folder that holds one.
    fn has(&self, path: &str) -> bool {
        let below = format!("{path}/");
        self.files.contains_key(path)
            || self.files.range(below.clone()..).next().is_some_and(|(found, _)| found.starts_with(&below))
    }
}

impl Finding {
    fn new(path: &str, line: usize, message: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, message: message.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.message)
    }
}

/// Lines with their numbers as editors count them.
fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(index, line)| (index + 1, line))
}

#[cfg(test)]
fn tree(files: &[(&str, &str)]) -> Tree {
    Tree { files: files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect() }
}

#[cfg(test)]
fn found(findings: &[Finding]) -> Vec<String> {
    findings.iter().map(|finding| format!("{}:{}", finding.path, finding.line)).collect()
}
