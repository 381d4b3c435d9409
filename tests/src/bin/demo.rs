//! `cargo xtask demo`: the main job on real input, on this machine, in a minute.
//!
//! Starts a PostgreSQL, a collector and a node agent of its own, runs one small agent under `weir-agent exec`, and shows
//! what was recorded of it.

use std::fs;
use std::io::Write as _;
use std::process::ExitCode;

use anyhow::bail;
use clap::Parser;
use serde_json::{Value, json};
use weir_tests::process::{eventually, program};
use weir_tests::recorded::Run;
use weir_tests::{Agent, Collector, Echo, Postgres, Site};

/// Shows Weir's main job on a PostgreSQL, a collector and a node agent of its own.
#[derive(Parser)]
#[command(name = "cargo xtask demo")]
struct Flags {
    /// Print the result as one JSON object on the last line.
    #[arg(long)]
    json: bool,
    /// Leave everything running and say how to look around.
    #[arg(long)]
    keep: bool,
}

/// What the governed agent does. Nothing in it knows of Weir.
const AGENT: &str = r#"
set -u
psql() { command psql -X -q -v ON_ERROR_STOP=1 "$@"; }

# simple statements
psql -c "CREATE TABLE orders (id int PRIMARY KEY, customer text, amount numeric(10,2))"
psql -c "INSERT INTO orders VALUES (1, 'Ada', 12.50), (2, 'Grace', 99.00), (3, 'Edsger', 7.25)"
psql -c "SELECT * FROM orders ORDER BY id"

# prepared statements with parameters, over the extended protocol
pgbench -n -M prepared -t 3 -f "$DEMO_DIR/lookup.sql" >/dev/null 2>&1

# COPY in and out
printf '4\tBarbara\t31.00\n5\tTony\t64.50\n' | psql -c "\copy orders FROM STDIN"
psql -c "\copy orders TO '$DEMO_DIR/orders.tsv'"

# a secret in a statement, and an error
psql -c "CREATE ROLE reporting LOGIN PASSWORD 'weir-planted-literal'"
psql -c "SELECT * FROM no_such_table" || true

# a protocol that nobody parses
exec 3<>"/dev/tcp/127.0.0.1/$ECHO_PORT"
echo "SET build:17 done" >&3
head -n 1 <&3
exec 3>&-

# a destination that policy denies
PGPORT=$DENIED_PORT psql -c "SELECT secret FROM vault" || true
"#;

fn main() -> ExitCode {
    match demo(&Flags::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo(flags: &Flags) -> anyhow::Result<bool> {
    let site = Site::new(!flags.keep)?;
    step("PostgreSQL, with password login");
    let postgres = Postgres::start(&site, "postgres")?;
    let echo = Echo::start("127.0.0.1")?;
    let vault = Echo::start("127.0.0.1")?;
    step("collector");
    let collector = Collector::start(&site)?;
    step("node agent, joined to the collector");
    let rules = format!(
        "[[target]]\nname = \"orders-db\"\naddresses = [\"127.0.0.1\"]\nports = [{}]\naccess = \"guarded\"\n\n\
         [[target]]\nname = \"vault\"\naddresses = [\"127.0.0.1\"]\nports = [{}]\naccess = \"deny\"\n\
         reason = \"agents get secrets from the broker\"\n",
        postgres.port,
        vault.address.port()
    );
    let agent = Agent::start(&site, &collector, &rules)?;

    step("an agent at work, governed");
    let dir = site.folder("work")?;
    fs::write(dir.join("agent.sh"), AGENT)?;
    fs::write(
        dir.join("lookup.sql"),
        "\\set id random(1, 3)\nSELECT customer, amount FROM orders WHERE id = :id;\n",
    )?;
    let script = dir.join("agent.sh").display().to_string();
    let mut exec = agent.exec(&["task=demo"], &["bash", &script])?;
    exec.envs(postgres.environment())
        .env("DEMO_DIR", &dir)
        .env("ECHO_PORT", echo.address.port().to_string())
        .env("DENIED_PORT", vault.address.port().to_string());
    let output = weir_tests::process::output(&mut exec)?;
    eprint!("{}{}", indented(&output.stdout), indented(&output.stderr));
    if !output.status.success() {
        bail!("the governed agent ended with {}", output.status);
    }
    if vault.accepted() > 0 {
        bail!("the denied destination was reached");
    }

    step("what was recorded");
    let run = eventually("the run is whole in the collector", || finished_run(&collector))?;
    let id = run.id.clone();
    let result = summary(&collector, &run)?;
    if !flags.json {
        for arguments in [&["show", &id][..], &["play", &id], &["coverage", &id], &["verify", &id]] {
            println!("\n$ weir {}", arguments.join(" "));
            print!("{}", collector.text(arguments)?);
        }
        std::io::stdout().flush()?;
    }
    if flags.keep {
        keep(site, postgres, collector, agent, &id)?;
    }
    if flags.json {
        println!("{result}");
    }
    Ok(result["verified"] == true)
}

/// The run, once all of its sessions are closed and received.
fn finished_run(collector: &Collector) -> anyhow::Result<Option<Run>> {
    // 8 psql, 1 pgbench (it connects twice: once to look, once to work), 1 opaque, 1 denied.
    let whole = |run: &Run| run.count("open_sessions") == 0 && run.count("sessions") >= 11;
    Ok(collector.runs()?.into_iter().next().filter(whole))
}

fn summary(collector: &Collector, run: &Run) -> anyhow::Result<Value> {
    Ok(json!({
        "run": run.id,
        "sessions": run.count("sessions"),
        "exchanges": run.count("exchanges"),
        "denied": run.count("denied"),
        "gaps": run.count("gaps"),
        "coverage": {
            "inspected": collector.share(run, "inspected")?,
            "opaque": collector.share(run, "metadata-only")?,
            "unobserved": collector.share(run, "unobserved")?,
        },
        "verified": collector.verify(&[&run.id])?.holds(),
    }))
}

/// Everything goes on; how to look around and how to end it.
fn keep(site: Site, postgres: Postgres, collector: Collector, agent: Agent, run: &str) -> anyhow::Result<()> {
    let weir = program("weir")?.display().to_string();
    let weir_agent = program("weir-agent")?.display().to_string();
    let config = agent.config().display().to_string();
    let environment: Vec<String> =
        postgres.environment().iter().map(|(name, value)| format!("{name}={value}")).collect();
    println!("\nAll of it goes on. Look around:\n");
    println!("  export WEIR_CREDENTIAL={}", collector.credential());
    println!("  {weir} runs");
    println!("  {weir} show {run}");
    println!("  {weir_agent} status --config {config}");
    println!("  {} {weir_agent} exec --config {config} -- psql", environment.join(" "));
    let pids: Vec<String> = [agent.release(), collector.release(), postgres.release()]
        .into_iter()
        .flatten()
        .map(|pid| pid.to_string())
        .collect();
    let removal = site.removal();
    let dir = site.keep();
    println!(
        "\nEnd it:\n\n  kill {}; sleep 6; sh -c '{removal}'; rm -rf {}\n",
        pids.join(" "),
        dir.display()
    );
    Ok(())
}

fn step(what: &str) {
    eprintln!("== {what}");
}

fn indented(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).lines().map(|line| format!("   | {line}\n")).collect()
}
