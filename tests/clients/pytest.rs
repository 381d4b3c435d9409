//! Suites that pytest runs: twice directly and once governed. A test counts whose two direct runs agree; it must end the
//! same way governed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use weir_tests::Postgres;
use weir_tests::process::run;

use crate::ground::Ground;
use crate::{Finding, Flags};

/// Most differing tests that are named.
const NAMED_MAX: usize = 40;

/// A Python client with its suite.
struct Suite {
    name: &'static str,
    version: &'static str,
    /// What the suite needs besides pytest.
    requirements: &'static [&'static str],
    /// After `pytest`, in the folder of the sources.
    arguments: &'static [&'static str],
    /// Tests that must end otherwise governed, and why.
    refused: &'static [(&'static str, &'static str)],
}

const REQUESTS: Suite = Suite {
    name: "requests",
    version: "2.32.3",
    requirements: &[
        "pytest==8.3.3",
        "pytest-reportlog==0.4.0",
        "pytest-httpbin==2.1.0",
        "httpbin==0.10.2",
        "pytest-mock==3.14.0",
        "trustme==1.2.0",
        "PySocks==1.7.1",
        "setuptools==75.1.0",
    ],
    arguments: &["tests"],
    refused: &[(
        "tests/test_lowlevel.py::test_conflicting_content_lengths",
        "an answer with two lengths is refused with 502 (RFC 9112, 6.3), where the client would have to refuse it",
    )],
};

const HTTPX: Suite = Suite {
    name: "httpx",
    version: "0.27.2",
    requirements: &[
        "pytest==8.3.3",
        "pytest-reportlog==0.4.0",
        "trio==0.26.2",
        "trustme==1.1.0",
        "uvicorn==0.30.6",
        "chardet==5.2.0",
        "anyio==4.6.0",
        "h2==4.1.0",
        "socksio==1.0.0",
        "brotli==1.1.0",
        "zstandard==0.23.0",
        "click==8.1.7",
        "pygments==2.18.0",
        "rich==13.8.1",
    ],
    arguments: &["tests"],
    refused: &[],
};

const PSYCOPG: Suite = Suite {
    name: "psycopg",
    version: "3.2.3",
    requirements: &[
        "pytest==8.3.3",
        "pytest-reportlog==0.4.0",
        "anyio==4.6.0",
        "pproxy==2.7.9",
        "pytest-randomly==3.15.0",
        "typing-extensions==4.12.2",
        "dnspython==2.6.1",
        "shapely==2.0.6",
        "numpy==2.1.1",
        "setuptools==75.1.0",
    ],
    arguments: &["tests", "-p", "no:randomly", "-m", "not slow and not timing and not mypy"],
    refused: &[],
};
const PSYCOPG_REPOSITORY: &str = "https://github.com/psycopg/psycopg";

pub(crate) fn requests(ground: &mut Ground, _: &Flags) -> anyhow::Result<Finding> {
    let python = python(ground)?;
    let sources = sdist(ground, &python, &REQUESTS)?;
    compare(ground, &REQUESTS, &python, &sources, &[])
}

pub(crate) fn httpx(ground: &mut Ground, _: &Flags) -> anyhow::Result<Finding> {
    let python = python(ground)?;
    let sources = sdist(ground, &python, &HTTPX)?;
    compare(ground, &HTTPX, &python, &sources, &[])
}

pub(crate) fn psycopg(ground: &mut Ground, flags: &Flags) -> anyhow::Result<Finding> {
    // What is published to the package index has no tests.
    let sources = ground.folder("sources")?.join("psycopg");
    match &flags.psycopg_sources {
        Some(given) => run(Command::new("cp").arg("-a").arg(given).arg(&sources))?,
        None => run(Command::new("git")
            .args(["clone", "--quiet", "--depth", "1", "--branch", PSYCOPG.version, PSYCOPG_REPOSITORY])
            .arg(&sources))
        .context("psycopg's sources could not be cloned; give a checkout with --psycopg-sources")?,
    };
    let postgres = Postgres::start(&ground.site, "postgres")?;
    let environment = postgres.environment();
    let dsn = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", postgres.port);
    let mut variables: Vec<(&str, String)> = environment.into_iter().collect();
    variables.push(("PSYCOPG_TEST_DSN", dsn));
    variables.push(("PSYCOPG_IMPL", "python".to_owned()));
    let python = python(ground)?;
    compare(ground, &PSYCOPG, &python, &sources, &variables)
}

/// Python of a virtual environment of this check's own.
fn python(ground: &mut Ground) -> anyhow::Result<PathBuf> {
    let folder = ground.folder("python")?;
    ground.succeed(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
    Ok(folder.join("bin/python"))
}

/// Pip of that environment.
fn pip(python: &Path, action: &str) -> Command {
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "--quiet", "--disable-pip-version-check", action]);
    pip
}

/// The sources as they were published, with their tests.
fn sdist(ground: &mut Ground, python: &Path, suite: &Suite) -> anyhow::Result<PathBuf> {
    let folder = ground.folder("sources")?;
    let mut download = pip(python, "download");
    download.args(["--no-deps", "--no-binary", ":all:", "--dest"]).arg(&folder);
    ground.succeed(download.arg(format!("{}=={}", suite.name, suite.version)))?;
    let name = format!("{}-{}", suite.name, suite.version);
    let archive = folder.join(format!("{name}.tar.gz"));
    ground.succeed(Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(&folder))?;
    Ok(folder.join(name))
}

fn compare(
    ground: &mut Ground,
    suite: &Suite,
    python: &Path,
    sources: &Path,
    variables: &[(&str, String)],
) -> anyhow::Result<Finding> {
    let client = if suite.name == PSYCOPG.name { sources.join("psycopg") } else { sources.to_owned() };
    ground.succeed(pip(python, "install").args(suite.requirements).arg(client))?;
    let mut once = |governed: bool, report: &str| -> anyhow::Result<BTreeMap<String, String>> {
        let report = ground.folder("reports")?.join(report);
        let report_flag = format!("--report-log={}", report.display());
        let python = python.display().to_string();
        let line: Vec<&str> =
            [&[python.as_str(), "-m", "pytest", "-q", &report_flag], suite.arguments].concat();
        let mut command = if governed {
            ground.governed(&line)?
        } else {
            let mut direct = Command::new(line[0]);
            direct.args(&line[1..]);
            direct
        };
        command.current_dir(sources).envs(variables.iter().map(|(name, value)| (*name, value.as_str())));
        let (code, output) = ground.run(&mut command)?;
        let outcomes = outcomes(&report).with_context(|| format!("pytest ended with {code:?}:\n{output}"))?;
        eprintln!(
            "   {} {}: {}",
            suite.name,
            if governed { "governed" } else { "directly" },
            output.lines().last().unwrap_or_default()
        );
        Ok(outcomes)
    };
    let first = once(false, "direct-1")?;
    let governed = once(true, "governed")?;
    let second = once(false, "direct-2")?;
    if first.is_empty() {
        bail!("{}: no test was run", suite.name);
    }
    let names: BTreeSet<&String> = first.keys().chain(second.keys()).chain(governed.keys()).collect();
    let (steady, unsteady): (Vec<&String>, Vec<_>) =
        names.into_iter().partition(|name| first.get(*name) == second.get(*name));
    let differs = |name: &str| first.get(name) != governed.get(name);
    let is_refused = |name: &str| suite.refused.iter().any(|(refused, _)| *refused == name);
    let different: Vec<&String> =
        steady.iter().copied().filter(|name| differs(name) != is_refused(name)).collect();
    for name in different.iter().take(NAMED_MAX) {
        eprintln!("   {name}: {:?} directly, {:?} governed", first.get(*name), governed.get(*name));
    }
    let count = |outcome: &str| governed.values().filter(|found| *found == outcome).count();
    Ok(Finding {
        name: suite.name,
        same: different.is_empty(),
        facts: json!({
            "version": suite.version, "tests": first.len(), "passed": count("passed"), "failed": count("failed"),
            "skipped": count("skipped"), "different": different.len(),
            "refused_as_documented": suite.refused.len(), "unsteady": unsteady.len(),
        }),
    })
}

/// By test: what the worst of its phases came to.
fn outcomes(report: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let text = fs::read_to_string(report)?;
    let mut outcomes = BTreeMap::<String, String>::new();
    for line in text.lines() {
        let entry: Value = serde_json::from_str(line)?;
        let (Some(test), Some(outcome)) = (entry["nodeid"].as_str(), entry["outcome"].as_str()) else {
            continue;
        };
        if entry["$report_type"] != "TestReport" {
            continue;
        }
        let worst = outcomes.entry(test.to_owned()).or_insert_with(|| "passed".to_owned());
        if outcome == "failed" || (outcome == "skipped" && worst == "passed") {
            *worst = outcome.to_owned();
        }
    }
    Ok(outcomes)
}
