//! `cargo xtask bench`: what recording costs, as ratios to the same load without Weir, in one interleaved run.
//!
//! * [`scenarios`]: what is measured and what it may cost
//! * [`ground`]: servers and clients, with and without Weir the same; [`load`]: running one load
//! * [`weir`]: the programs in between, and whether the recording is whole; [`cgroup`]: processor time and memory
//! * [`rounds`]: direct and Weir in turn; [`report`]: the table and the verdict
//! * [`connections`]: many at once, most of them idle; [`soak`]: steady work for a long time, and a collector that goes away

mod cgroup;
mod connections;
mod ground;
mod load;
mod report;
mod rounds;
mod scenarios;
mod soak;
mod weir;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::{Args, Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::Value;

use crate::connections::Connections;
use crate::ground::Ground;
use crate::report::Report;
use crate::rounds::Plan;
use crate::scenarios::{SCENARIOS, Scenario};
use crate::soak::Soak;
use crate::weir::Setting;

/// Short, to see that everything works: the figures say little.
const QUICK: (u32, f64) = (1, 1.0);
const USUAL: (u32, f64) = (5, 3.0);

#[derive(Parser)]
#[command(
    name = "cargo xtask bench",
    about = "What recording costs",
    max_term_width = 100,
    args_conflicts_with_subcommands = true
)]
struct Flags {
    #[command(flatten)]
    compare: Compare,
    #[command(subcommand)]
    other: Option<Other>,
}

#[derive(Subcommand)]
enum Other {
    /// Many connections at once, most of them idle
    Connections(Connections),
    /// Steady work for a long time, without a collector in the middle of it
    Soak(Soak),
}

#[derive(Args)]
struct Compare {
    /// One short round
    #[arg(long)]
    quick: bool,
    /// Print the result as one JSON object on the last line
    #[arg(long)]
    json: bool,
    /// Only scenarios whose name contains this; may be given several times
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// How often each way is measured
    #[arg(long)]
    rounds: Option<u32>,
    /// How long a load runs, where it has a duration
    #[arg(long)]
    secs: Option<f64>,
    /// Also measure with the collector and its index on this machine
    #[arg(long)]
    with_collector: bool,
    /// Measure the weir-agent in this folder instead of a fresh build; several are compared with each other
    #[arg(long, value_name = "DIR")]
    bins: Vec<PathBuf>,
    /// Fail when a budget is missed
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    match run(&Flags::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(flags: &Flags) -> anyhow::Result<ExitCode> {
    // Clients and servers inherit it.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    match &flags.other {
        None => compare(&flags.compare),
        Some(Other::Connections(flags)) => {
            Ok(told(connections::measure(flags)?, flags.json, connections::table))
        }
        Some(Other::Soak(flags)) => Ok(told(soak::measure(flags)?, flags.json, soak::table)),
    }
}

/// What was found, and what is wrong with it.
fn told((found, wrong): (Value, Vec<String>), json: bool, table: impl FnOnce(&Value) -> String) -> ExitCode {
    if json {
        println!("{found}");
    } else {
        print!("{}", table(&found));
        let all = if wrong.is_empty() { "  everything holds\n" } else { "" };
        print!("\n== summary\n{all}");
    }
    for wrong in &wrong {
        eprintln!("  WRONG  {wrong}");
    }
    if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn compare(flags: &Compare) -> anyhow::Result<ExitCode> {
    let wanted = |scenario: &&Scenario| {
        flags.only.is_empty() || flags.only.iter().any(|word| scenario.name.contains(word.as_str()))
    };
    let chosen: Vec<&Scenario> = SCENARIOS.iter().filter(wanted).collect();
    if chosen.is_empty() {
        let names: Vec<_> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
        bail!("no scenario is called {:?}: there are {}", flags.only, names.join(", "));
    }
    let (rounds, secs) = if flags.quick { QUICK } else { USUAL };
    let plan = Plan {
        rounds: flags.rounds.unwrap_or(rounds).max(1),
        secs: flags.secs.unwrap_or(secs),
        settings: settings(flags),
    };
    let mut report = Report::default();
    let mut ground = Ground::make()?;
    for scenario in chosen {
        let result = rounds::measure(&mut ground, scenario, &plan);
        if !flags.json {
            print!("{}", report::table(scenario, &result));
        }
        report.add(scenario, result);
    }
    drop(ground);
    if flags.json {
        println!("{}", report.json(&plan));
    } else {
        print!("{}", report.summary(&plan));
    }
    let failed = report.has_failed() || (flags.check && report.misses_a_budget());
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn settings(flags: &Compare) -> Vec<Setting> {
    let alone = |name: String, agent| Setting { name, with_collector: false, agent };
    let mut settings: Vec<Setting> = flags
        .bins
        .iter()
        .map(|folder| alone(format!("agent of {}", folder.display()), Some(folder.join("weir-agent"))))
        .collect();
    if settings.is_empty() {
        settings.push(alone("agent alone".to_owned(), None));
    }
    if flags.with_collector {
        settings.push(Setting { name: "with collector".to_owned(), with_collector: true, agent: None });
    }
    settings
}
