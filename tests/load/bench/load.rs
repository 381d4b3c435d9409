//! Running one load and reading from its client what was done.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Context as _;
use serde_json::Value;
use weir_tests::process::{program, run};

use crate::ground::Ground;
use crate::scenarios::{Load, Mode};
use crate::weir::Expected;

/// Share of pgbench's transactions whose duration it writes down: writing costs the client time, too.
const LOGGED_SHARE: &str = "0.1";
/// pgbench's threads, and the cores of the machines that figures are compared on.
const PGBENCH_THREADS: u64 = 2;

/// What a client says it has done.
#[derive(Clone, Debug, Default)]
pub(crate) struct Done {
    /// In the scenario's own unit.
    pub(crate) operations: f64,
    pub(crate) rate: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) expected: Expected,
}

impl Load {
    /// Runs it as `wrapped` by the way that is measured. `label` names it.
    pub(crate) fn run(
        &self,
        ground: &mut Ground,
        secs: f64,
        label: &str,
        wrapped: impl FnOnce(&Command) -> anyhow::Result<Command>,
    ) -> anyhow::Result<Done> {
        let mut done = match *self {
            Self::Pgbench { mode, clients, connect_each } => {
                pgbench(ground, mode, clients, connect_each, secs, wrapped)
            }
            Self::Psql { before, statement, units, .. } => psql(ground, before, statement, units, wrapped),
            Self::Http { path, connections, connect_each } => {
                let to = format!("127.0.0.1:{}", ground.http_port()?);
                let mut command = Command::new(program("weir-load")?);
                command.args(["http", "--to", &to, "--path", path, "--secs", &secs.to_string()]);
                command
                    .args(["--connections", &connections.to_string()])
                    .args(connect_each.then_some("--close"));
                let told = told(wrapped(&command)?)?;
                Ok(Done { expected: exchanges(&told), ..done(&told, 1.0) })
            }
            Self::PingPong { connections } => {
                let to = format!("127.0.0.1:{}", ground.raw_port()?);
                let mut command = Command::new(program("weir-load")?);
                command.args(["pingpong", "--to", &to, "--secs", &secs.to_string()]);
                command.args(["--connections", &connections.to_string()]);
                let told = told(wrapped(&command)?)?;
                Ok(Done { expected: bytes(&told), ..done(&told, 1.0) })
            }
            Self::Bulk { megabytes } => {
                let to = format!("127.0.0.1:{}", ground.raw_port()?);
                let mut command = Command::new(program("weir-load")?);
                command.args(["bulk", "--to", &to, "--bytes", &(megabytes * 1_000_000).to_string()]);
                let told = told(wrapped(&command)?)?;
                Ok(Done { expected: bytes(&told), ..done(&told, megabytes as f64) })
            }
        }?;
        done.expected.label = label.to_owned();
        Ok(done)
    }
}

fn pgbench(
    ground: &mut Ground,
    mode: Mode,
    clients: u64,
    connect_each: bool,
    secs: f64,
    wrapped: impl FnOnce(&Command) -> anyhow::Result<Command>,
) -> anyhow::Result<Done> {
    let script = ground.select_script();
    let logs = ground.site.folder("clients/log")?;
    fs::remove_dir_all(&logs)?;
    fs::create_dir(&logs)?;
    let mut command = ground.postgres()?.client("pgbench");
    command
        .args(["-n", "-M", mode.name(), "-f"])
        .arg(script)
        .args(["-c", &clients.to_string(), "-j", &clients.min(PGBENCH_THREADS).to_string()])
        // It counts in whole seconds.
        .args(["-T", &(secs.round().max(1.0) as u64).to_string()])
        .args(["-l", "--sampling-rate", LOGGED_SHARE, "--log-prefix"])
        .arg(logs.join("t"))
        .args(connect_each.then_some("-C"));
    let said = run(&mut wrapped(&command)?)?;
    let number = |before: &str| -> anyhow::Result<f64> {
        let rest =
            said.split_once(before).with_context(|| format!("pgbench does not say {before:?}: {said}"))?.1;
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        Ok(rest[..end].parse()?)
    };
    let statements = number("number of transactions actually processed: ")?;
    let mut durations = durations_us(&logs)?;
    durations.sort_unstable();
    let quantile = |share: f64| {
        let place = (durations.len().saturating_sub(1) as f64 * share) as usize;
        durations.get(place).map_or(0.0, |us| *us as f64)
    };
    let exchanges = match mode {
        Mode::Simple => statements as u64,
        // Naming a statement is an exchange, too: once for each client, ...
        Mode::Prepared => statements as u64 + clients,
        // ... and anew for each statement.
        Mode::Extended => 2 * statements as u64,
    };
    // It connects once more before it begins, to look; with -C, each client once more at its end.
    let sessions = if connect_each { statements as u64 + 1 } else { clients + 1 };
    Ok(Done {
        operations: statements,
        rate: number("tps = ")?,
        p50_us: quantile(0.50),
        p99_us: quantile(0.99),
        expected: Expected { sessions, exchanges: Some(exchanges), ..Expected::default() },
    })
}

/// The third word of each line of its logs.
fn durations_us(logs: &Path) -> anyhow::Result<Vec<u64>> {
    let mut durations = Vec::new();
    for entry in fs::read_dir(logs)? {
        let text = fs::read_to_string(entry?.path())?;
        durations.extend(text.lines().filter_map(|line| line.split(' ').nth(2)?.parse::<u64>().ok()));
    }
    Ok(durations)
}

fn psql(
    ground: &mut Ground,
    before: &str,
    statement: &str,
    units: u64,
    wrapped: impl FnOnce(&Command) -> anyhow::Result<Command>,
) -> anyhow::Result<Done> {
    let postgres = ground.postgres()?;
    if !before.is_empty() {
        postgres.sql(before)?;
    }
    let mut command = postgres.client("psql");
    command
        .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null"])
        .args(["-c", "\\timing on", "-c", statement])
        .env("LC_ALL", "C");
    let said = run(&mut wrapped(&command)?)?;
    // Its own clock: how long a client takes to start is not of this scenario.
    let time = said.split_once("Time: ").and_then(|(_, rest)| rest.split_once(" ms"));
    let elapsed = time.with_context(|| format!("psql tells no time: {said}"))?.0.parse::<f64>()? / 1e3;
    Ok(Done {
        operations: units as f64,
        rate: units as f64 / elapsed,
        p50_us: elapsed * 1e6,
        p99_us: elapsed * 1e6,
        expected: Expected { sessions: 1, exchanges: Some(1), ..Expected::default() },
    })
}

/// The JSON that `weir-load` prints.
fn told(mut command: Command) -> anyhow::Result<Value> {
    let said = run(&mut command)?;
    serde_json::from_str(&said).with_context(|| format!("weir-load said {said}"))
}

fn done(told: &Value, units: f64) -> Done {
    let number = |name: &str| told[name].as_f64().unwrap_or(0.0);
    let operations = number("ops") * units;
    Done {
        operations,
        rate: operations / number("seconds").max(1e-9),
        p50_us: number("p50_us"),
        p99_us: number("p99_us"),
        expected: Expected::default(),
    }
}

fn exchanges(told: &Value) -> Expected {
    Expected {
        sessions: told["connections"].as_u64().unwrap_or(0),
        exchanges: told["ops"].as_u64(),
        ..Expected::default()
    }
}

fn bytes(told: &Value) -> Expected {
    Expected {
        sessions: told["connections"].as_u64().unwrap_or(0),
        exchanges: None,
        bytes_min: told["bytes"].as_u64().unwrap_or(0),
        ..Expected::default()
    }
}
