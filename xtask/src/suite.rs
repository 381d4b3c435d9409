//! `cargo xtask test`: everything that must pass, in the order in which a failure is cheapest, then one summary.
//! A failing part does not hide the ones after it.

use std::fmt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::bail;

use crate::ebpf::{self, Object};
use crate::setup::{self, Wants};
use crate::steps::seconds;
use crate::workspace::Workspace;
use crate::{command, lint};

/// Tests that attach to this kernel exist only with these.
pub(crate) const KERNEL_FEATURES: &str = "weir-tests/kernel,weir-agent/kernel-tests";

/// One line of the summary.
struct Part {
    name: &'static str,
    took: Duration,
    tests: Option<Tally>,
    failure: Option<String>,
}

/// What cargo test's closing lines add up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: usize,
    failed: usize,
    ignored: usize,
}

struct Outcome {
    tally: Tally,
    success: bool,
}

struct Suite<'a> {
    workspace: &'a Workspace,
    object: Object,
    filter: Option<&'a str>,
    parts: Vec<Part>,
}

pub(crate) fn run(workspace: &Workspace, wants: &Wants, filter: Option<&str>) -> anyhow::Result<()> {
    let ready = setup::run(workspace, wants)?;
    let object = ebpf::build(workspace, ready.toolchain.as_ref())?;
    let mut suite = Suite { workspace, object, filter, parts: Vec::new() };
    if filter.is_none() {
        suite.part("lint", |_| lint::run(workspace, object).map(|()| None));
    }
    if wants.kernel {
        suite.part("tests of the crates, on this kernel too", |suite| {
            suite.tests(&["--features", "weir-agent/kernel-tests"])
        });
        suite.part("end to end", Suite::end_to_end);
    } else {
        suite.part("tests of the crates", |suite| suite.tests(&[]));
    }
    suite.close()
}

impl Suite<'_> {
    fn part(&mut self, name: &'static str, work: impl FnOnce(&Self) -> anyhow::Result<Option<Outcome>>) {
        eprintln!("\n== {name}");
        let start = Instant::now();
        let (tests, failure) = match work(self) {
            Ok(None) => (None, None),
            Ok(Some(Outcome { tally, success: true })) => (Some(tally), None),
            Ok(Some(Outcome { tally, success: false })) => (Some(tally), Some("see above".to_owned())),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        self.parts.push(Part { name, took: start.elapsed(), tests, failure });
    }

    /// The stories of weir-tests, which start the real programs: those are built first.
    fn end_to_end(&self) -> anyhow::Result<Option<Outcome>> {
        let stories = self.workspace.tests_behind("weir-tests", "kernel");
        if stories.is_empty() {
            bail!("weir-tests has no test target with required-features = [\"kernel\"]");
        }
        let mut build = self.cargo("build");
        if !command::run_watched(build.args(["--bins"]), |_| {})?.success() {
            bail!("the programs under test do not build");
        }
        let targets = stories.iter().flat_map(|story| ["--test", story]);
        self.tests(&["--features", "weir-tests/kernel"].into_iter().chain(targets).collect::<Vec<_>>())
    }

    fn tests(&self, arguments: &[&str]) -> anyhow::Result<Option<Outcome>> {
        let mut cargo = self.cargo("test");
        cargo.arg("--no-fail-fast").args(arguments).arg("--").args(self.filter);
        let mut tally = Tally::default();
        let status = command::run_watched(&mut cargo, |line| tally.add(line))?;
        Ok(Some(Outcome { tally, success: status.success() }))
    }

    /// Always the whole workspace: with one package cargo would choose other features for what the packages share,
    /// and build all of that again.
    fn cargo(&self, subcommand: &str) -> Command {
        let mut cargo = self.workspace.cargo(subcommand);
        cargo
            .arg("--workspace")
            .envs(ebpf::environment(self.object))
            .env("WEIR_BIN_DIR", self.workspace.bins());
        cargo
    }

    fn close(self) -> anyhow::Result<()> {
        let sum = self.parts.iter().filter_map(|part| part.tests).fold(Tally::default(), Tally::plus);
        println!("\n== summary");
        if self.object == Object::None {
            println!("   built without the eBPF object: nothing of this kernel was tested");
        }
        for part in &self.parts {
            println!("{part}");
        }
        println!("{} passed, {} failed, {} skipped", sum.passed, sum.failed, sum.ignored);
        if self.parts.iter().any(|part| part.failure.is_some()) {
            bail!("not everything passed");
        }
        // A suite that ran nothing has shown nothing.
        match (sum.passed, self.filter) {
            (0, Some(filter)) => bail!("no test is called {filter:?}"),
            (0, None) => bail!("no test ran"),
            _ => Ok(()),
        }
    }
}

impl Tally {
    /// Adds up lines of the form `test result: ok. 3 passed; 0 failed; 0 ignored; ...`; other lines are nothing.
    fn add(&mut self, line: &str) {
        let Some((_, counts)) = line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". "))
        else {
            return;
        };
        for count in counts.split("; ") {
            let Some((number, word)) = count.split_once(' ') else { continue };
            let number = number.parse().unwrap_or(0);
            match word {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            ignored: self.ignored + other.ignored,
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.failure.is_some() { "FAILED" } else { "ok" };
        write!(f, "   {verdict:<7}{} ({})", self.name, seconds(self.took))?;
        if let Some(Tally { passed, failed, .. }) = self.tests {
            write!(f, ": {passed} passed, {failed} failed")?;
        }
        match &self.failure {
            Some(reason) => write!(f, ": {reason}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_add_up_and_others_do_not_count() {
        let mut tally = Tally::default();
        for line in [
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test a_test_that_says_9 passed ... ok",
        ] {
            tally.add(line);
        }
        assert_eq!(tally, Tally { passed: 5, failed: 1, ignored: 1 });
    }

    #[test]
    fn a_failed_part_says_so_even_when_no_test_failed() {
        let part = Part {
            name: "end to end",
            took: Duration::from_secs(1),
            tests: Some(Tally { passed: 2, ..Tally::default() }),
            failure: Some("see above".to_owned()),
        };
        assert_eq!(part.to_string(), "   FAILED end to end (1.0 s): 2 passed, 0 failed: see above");
    }
}
