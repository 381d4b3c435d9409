//! Commands about the rules: check and test them, have them read again, let everything pass for a while.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use serde_json::Value;

use super::ConfigFile;
use crate::config::Config;
use crate::control::{self, Answer, BypassRequest, Request};
use crate::policy::{Snapshot, explain};
use crate::reload;

/// Exit code of `policy test` for what would be refused.
const REFUSED: u8 = 3;

#[derive(Subcommand)]
pub(super) enum PolicyCommand {
    /// Read a configuration file as the node agent would, say what its rules are and what is odd about them.
    Check {
        /// [default: the node agent's own]
        file: Option<PathBuf>,
        /// One JSON object instead of lines for people.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Say what the rules of a configuration file would do, which rule decides, and why. The running node agent is not asked.
    /// Exit code: 0 what is asked about would be let through, 3 it would be refused.
    Test {
        /// Where a governed process connects to.
        #[arg(long, value_name = "ADDRESS:PORT")]
        connect: SocketAddr,
        /// A request on that connection: "GET http://host/path".
        #[arg(long, value_name = "REQUEST")]
        http: Option<String>,
        /// One JSON object instead of lines for people.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        config: ConfigFile,
    },
}

#[derive(Args)]
pub(super) struct ReloadArgs {
    #[command(flatten)]
    config: ConfigFile,
    /// The node agent's socket [default: as configured]
    #[arg(long, value_name = "PATH", env = "WEIR_SOCKET")]
    socket: Option<PathBuf>,
    /// One JSON object instead of lines for people.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(super) struct BypassArgs {
    #[command(flatten)]
    config: ConfigFile,
    /// The node agent's socket [default: as configured]
    #[arg(long, value_name = "PATH", env = "WEIR_SOCKET")]
    socket: Option<PathBuf>,
    /// For how long: 90s, 10m, 2h; at most 24h. The kernel ends it then, whether a node agent lives or not.
    #[arg(long = "for", value_name = "TIME", value_parser = seconds, required_unless_present = "end")]
    lasts_s: Option<u64>,
    /// Why. It is recorded.
    #[arg(long, required_unless_present = "end")]
    reason: Option<String>,
    /// End the one that is under way.
    #[arg(long, conflicts_with_all = ["lasts_s", "reason"])]
    end: bool,
    /// One JSON object instead of lines for people.
    #[arg(long)]
    json: bool,
}

fn seconds(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a time such as 90s, 10m or 2h");
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let seconds_each: u64 = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(wrong()),
    };
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(seconds_each)).ok_or_else(wrong)
}

pub(super) fn policy(command: PolicyCommand) -> anyhow::Result<ExitCode> {
    match command {
        PolicyCommand::Check { file, json, config } => {
            let snapshot = snapshot(file.or(config.config))?;
            let summary = explain::summary(&snapshot);
            if json {
                println!("{summary}")
            } else {
                show_summary(&summary)
            }
            Ok(ExitCode::SUCCESS)
        }
        PolicyCommand::Test { connect, http, json, config } => {
            let snapshot = snapshot(config.config)?;
            let request = http.as_deref().map(explain::request).transpose()?;
            let explanation = explain::explain(&snapshot, connect, request);
            if json {
                println!("{}", explanation.to_json())
            } else {
                print!("{}", explanation.to_text())
            }
            Ok(if explanation.is_allowed() { ExitCode::SUCCESS } else { ExitCode::from(REFUSED) })
        }
    }
}

fn snapshot(file: Option<PathBuf>) -> anyhow::Result<Snapshot> {
    let config = Config::load(file.as_deref())?;
    Ok(Snapshot::new(config.rules(), reload::stamp(&config)))
}

fn show_summary(summary: &Value) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    println!("default {}, mode {}", text(&summary["default"]), text(&summary["mode"]));
    for target in summary["targets"].as_array().into_iter().flatten() {
        print!("target {}: {}, {}", text(&target["name"]), text(&target["access"]), text(&target["mode"]));
        if let Some(mode) = target["refuses_what_is_not_http"].as_str() {
            print!(", refuses what is not HTTP ({mode})");
        }
        println!();
        for name in target["http_rules"].as_array().into_iter().flatten() {
            println!("  {}", text(name));
        }
    }
    for warning in summary["warnings"].as_array().into_iter().flatten() {
        println!("warning: {}", text(warning));
    }
}

pub(super) fn reload(args: ReloadArgs) -> anyhow::Result<ExitCode> {
    let said = ask(args.socket, args.config, &Request::Reload)?;
    if args.json {
        println!("{said}");
        return Ok(ExitCode::SUCCESS);
    }
    let word = if said["is_new"] == true { "loaded" } else { "unchanged" };
    println!("{word}: generation {}", said["generation"]);
    let waits: Vec<&str> =
        said["restart_for"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if !waits.is_empty() {
        println!("these wait for the next start of the node agent: {}", waits.join(", "));
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn bypass(args: BypassArgs) -> anyhow::Result<ExitCode> {
    let request = match (args.end, args.lasts_s, args.reason) {
        (true, ..) => BypassRequest::End,
        (false, Some(seconds), Some(reason)) => BypassRequest::Begin { seconds, reason },
        _ => bail!("say --for how long and for what --reason"),
    };
    let said = ask(args.socket, args.config, &Request::Bypass(request))?;
    if args.json {
        println!("{said}");
    } else if args.end {
        println!("ended: {} connections passed unrecorded; new ones are redirected again", said["passed"]);
    } else {
        println!(
            "BYPASS: new connections of governed processes pass directly and UNRECORDED for {} s; `weir-agent bypass --end` \
             ends it before",
            said["seconds_left"]
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn ask(socket: Option<PathBuf>, file: ConfigFile, request: &Request) -> anyhow::Result<Value> {
    let socket = match socket {
        Some(socket) => socket,
        // A file that cannot be read must not keep anybody from saying so, or from ending a bypass.
        None => {
            Config::load(file.config.as_deref())
                .context("give --socket PATH to ask without reading it")?
                .socket
        }
    };
    let Answer::Done(said) = control::ask(&socket, request)? else {
        bail!("the node agent gave an answer that does not fit");
    };
    Ok(*said)
}

#[cfg(test)]
mod tests {
    use super::seconds;

    #[test]
    fn times_are_read_as_people_write_them() {
        assert_eq!([seconds("90s"), seconds("10m"), seconds("2h")], [Ok(90), Ok(600), Ok(7200)]);
        for wrong in ["", "m", "10", "1.5h", "-1m", "10 m", "99999999999999999h", "1ü"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
