//! `cargo xtask clients`: the test suites of real clients and heavy transfers, run directly and governed. What passes
//! directly passes governed, and what fails fails: to a client, Weir is not there.

mod ground;
mod pytest;
mod transfers;

use std::process::ExitCode;

use anyhow::bail;
use clap::Parser;
use serde_json::{Value, json};

use crate::ground::Ground;

/// Runs clients' own test suites directly and under `weir-agent exec`, and compares.
#[derive(Parser)]
#[command(name = "cargo xtask clients", max_term_width = 100)]
struct Flags {
    /// Only these: psycopg, requests, httpx, pg-dump, bulk
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// A checkout of psycopg's sources at the version of the suite [default: cloned from its repository]
    #[arg(long, value_name = "DIR", env = "WEIR_PSYCOPG_SOURCES")]
    psycopg_sources: Option<std::path::PathBuf>,
    /// Print the result as one JSON object on the last line
    #[arg(long)]
    json: bool,
}

/// What one comparison came to.
struct Finding {
    name: &'static str,
    /// Nothing differs.
    same: bool,
    facts: Value,
}

type Check = fn(&mut Ground, &Flags) -> anyhow::Result<Finding>;

const CHECKS: [(&str, Check); 5] = [
    ("requests", pytest::requests),
    ("httpx", pytest::httpx),
    ("psycopg", pytest::psycopg),
    ("pg-dump", transfers::dump_and_restore),
    ("bulk", transfers::bulk),
];

fn main() -> ExitCode {
    match run(&Flags::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(flags: &Flags) -> anyhow::Result<bool> {
    if let Some(unknown) = flags.only.iter().find(|name| CHECKS.iter().all(|(known, _)| known != name)) {
        bail!("no check is called {unknown}; known are {}", CHECKS.map(|(name, _)| name).join(", "));
    }
    let wanted = |name: &str| flags.only.is_empty() || flags.only.iter().any(|only| only == name);
    let mut findings = Vec::new();
    for (name, check) in CHECKS.into_iter().filter(|(name, _)| wanted(name)) {
        eprintln!("== {name}");
        let mut ground = Ground::make()?;
        let finding = check(&mut ground, flags)?;
        let recorded = ground.recorded()?;
        eprintln!("   {}: {} {recorded}", if finding.same { "same" } else { "DIFFERENT" }, finding.facts);
        findings.push((finding, recorded));
    }
    let all = findings.iter().all(|(finding, recorded)| finding.same && recorded["verified"] == true);
    if flags.json {
        let list: Vec<Value> = findings
            .iter()
            .map(|(finding, recorded)| {
                json!({ "name": finding.name, "same": finding.same, "facts": finding.facts, "recorded": recorded })
            })
            .collect();
        println!("{}", json!({ "same": all, "checks": list }));
    }
    Ok(all)
}
