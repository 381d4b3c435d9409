//! `cargo xtask demo`: the main job on real input, on this machine, in a minute.
//!
//! Starts a PostgreSQL, an nginx, a collector and a node agent of its own, runs one small agent under `weir-agent exec`,
//! and shows what was recorded of it.

use std::fs;
use std::io::Write as _;
use std::process::ExitCode;

use anyhow::bail;
use clap::Parser;
use serde_json::{Value, json};
use weir_tests::process::{eventually, program};
use weir_tests::recorded::Run;
use weir_tests::{Agent, Collector, Echo, Nginx, Postgres, Site};

/// Shows Weir's main job on a PostgreSQL, an nginx, a collector and a node agent of its own.
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

# HTTP: a page, a form, an upload in chunks, one that asks before it sends
curl -sS "$SHOP/hello"
curl -sS -d 'customer=Ada&password=weir-planted-form' "$SHOP/orders"
seq 20000 | curl -sS -T - "$SHOP/put/in-chunks.txt"
curl -sS -H 'Expect: 100-continue' -T "$DEMO_DIR/orders.tsv" "$SHOP/put/asked-first.tsv"

# three requests in one write, and a session of Python's requests
python3 "$DEMO_DIR/pipelined.py" "$SHOP_PORT"
python3 "$DEMO_DIR/session.py" "$SHOP"

# a path that policy denies on this host
curl -sS -X DELETE "$SHOP/admin/customers/7"

# a protocol that nobody parses
exec 3<>"/dev/tcp/127.0.0.1/$ECHO_PORT"
echo "SET build:17 done" >&3
head -n 1 <&3
exec 3>&-

# a destination that policy denies
PGPORT=$DENIED_PORT psql -c "SELECT secret FROM vault" || true
"#;

/// A small client that does not wait for answers.
const PIPELINED: &str = r#"
import socket, sys
shop = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
requests = [b"GET /orders?page=%d HTTP/1.1\r\nHost: shop.internal\r\n" % page for page in (1, 2, 3)]
requests[-1] += b"Connection: close\r\n"
shop.sendall(b"\r\n".join(requests) + b"\r\n")
answer = b"".join(iter(lambda: shop.recv(65536), b""))
assert answer.count(b"HTTP/1.1 200 OK") == 3, answer
print("three answers")
"#;

/// As an agent's tool would: one connection, a token, JSON.
const SESSION: &str = r#"
import sys, requests
with requests.Session() as shop:
    shop.headers.update({"Host": "shop.internal", "Authorization": "Bearer weir-planted-bearer-token"})
    shop.trust_env = False
    base = "http://127.0.0.1:" + sys.argv[1].rsplit(":", 1)[1]
    assert shop.get(base + "/hello").text == "hello\n"
    answer = shop.post(base + "/orders", json={"customer": "Grace", "note": "late delivery"})
    print("requests:", answer.status_code, shop.get(base + "/no-such-page").status_code)
"#;

/// What the run's exchanges are searched for: a word of a statement, of a path, and of a body.
const SEARCHED: [&str; 3] = ["no_such_table", "path:/put/*", "\"late delivery\""];

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
    step("nginx");
    let nginx = Nginx::start(&site, "nginx")?;
    let echo = Echo::start("127.0.0.1")?;
    let vault = Echo::start("127.0.0.1")?;
    step("collector");
    let collector = Collector::start(&site)?;
    step("node agent, joined to the collector");
    let rules = format!(
        "[[target]]\nname = \"orders-db\"\naddresses = [\"127.0.0.1\"]\nports = [{}]\naccess = \"guarded\"\n\n\
         [[target]]\nname = \"vault\"\naddresses = [\"127.0.0.1\"]\nports = [{}]\naccess = \"deny\"\n\
         reason = \"agents get secrets from the broker\"\n\n\
         [[target]]\nname = \"shop\"\naddresses = [\"127.0.0.1\"]\nports = [{}]\n\n\
         [[target.http]]\nhosts = [\"shop.internal\"]\npaths = [\"/admin/**\"]\naccess = \"deny\"\n\
         reason = \"agents do not administer the shop\"\n",
        postgres.port,
        vault.address.port(),
        nginx.port
    );
    let agent = Agent::start(&site, &collector, &rules)?;

    step("an agent at work, governed");
    let dir = site.folder("work")?;
    fs::write(dir.join("agent.sh"), AGENT)?;
    fs::write(
        dir.join("lookup.sql"),
        "\\set id random(1, 3)\nSELECT customer, amount FROM orders WHERE id = :id;\n",
    )?;
    fs::write(dir.join("pipelined.py"), PIPELINED)?;
    fs::write(dir.join("session.py"), SESSION)?;
    // The name is told to curl alone: nothing on this machine resolves it.
    fs::write(dir.join(".curlrc"), format!("resolve = \"shop.internal:{}:127.0.0.1\"\n", nginx.port))?;
    let script = dir.join("agent.sh").display().to_string();
    let mut exec = agent.exec(&["task=demo"], &["bash", &script])?;
    exec.envs(postgres.environment())
        .env("DEMO_DIR", &dir)
        .env("CURL_HOME", &dir)
        .env("SHOP", format!("http://shop.internal:{}", nginx.port))
        .env("SHOP_PORT", nginx.port.to_string())
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
    if nginx.requests().iter().any(|request| request.contains("/admin/")) {
        bail!("the denied request was answered by the server");
    }

    step("what was recorded");
    let run = eventually("the run is whole in the collector", || finished_run(&collector))?;
    let id = run.id.clone();
    let found = searched(&collector, &id)?;
    let result = summary(&collector, &run, found)?;
    if !flags.json {
        let this_run = format!("run:{id}");
        for arguments in [
            &["show", &id][..],
            &["play", &id],
            &["touched", &id],
            &["search", &this_run, SEARCHED[1]],
            &["tail", "--since", "1h", "--no-follow", &this_run, "outcome:denied,error"],
            &["coverage", &id],
            &["verify", &id],
        ] {
            println!("\n$ weir {}", arguments.join(" "));
            print!("{}", collector.text(arguments)?);
        }
        std::io::stdout().flush()?;
    }
    if flags.keep {
        let environment = postgres.environment();
        keep(site, [postgres.release(), nginx.release()], collector, agent, &environment, &id)?;
    }
    if flags.json {
        println!("{result}");
    }
    Ok(result["verified"] == true)
}

/// The run, once all of its sessions are closed and received.
fn finished_run(collector: &Collector) -> anyhow::Result<Option<Run>> {
    // 8 psql, 1 pgbench (it connects twice: once to look, once to work), 5 curl and 2 Python to nginx, 1 opaque, 1 denied.
    let whole = |run: &Run| run.count("open_sessions") == 0 && run.count("sessions") >= 18;
    Ok(collector.runs()?.into_iter().next().filter(whole))
}

/// How many exchanges of the run each search finds. Full text follows what is received within seconds.
fn searched(collector: &Collector, run: &str) -> anyhow::Result<Value> {
    let mut found = serde_json::Map::new();
    for query in SEARCHED {
        let this_run = format!("run:{run}");
        let hits = eventually(&format!("a search finds {query}"), || {
            let hits = collector.lines(&["search", &this_run, query])?;
            Ok((!hits.is_empty()).then_some(hits.len()))
        })?;
        found.insert(query.to_owned(), hits.into());
    }
    Ok(found.into())
}

fn summary(collector: &Collector, run: &Run, found: Value) -> anyhow::Result<Value> {
    let this_run = format!("run:{}", run.id);
    let exchanges = collector.exchanges(run)?;
    let http = exchanges.iter().filter(|exchange| exchange.word("protocol") == "http");
    let tailed = collector.lines(&["tail", "--since", "1h", "--no-follow", &this_run])?;
    let touched = collector.json(&["touched", &run.id])?;
    let touched = |what: &str| touched[what].as_array().map_or(0, Vec::len);
    Ok(json!({
        "run": run.id,
        "sessions": run.count("sessions"),
        "exchanges": run.count("exchanges"),
        "denied": run.count("denied"),
        "gaps": run.count("gaps"),
        "http_exchanges": http.count(),
        "found": found,
        "tailed": tailed.len(),
        "touched": { "hosts": touched("hosts"), "databases": touched("databases"), "tables": touched("tables"),
            "paths": touched("paths") },
        "coverage": {
            "inspected": collector.share(run, "inspected")?,
            "opaque": collector.share(run, "metadata-only")?,
            "unobserved": collector.share(run, "unobserved")?,
        },
        "verified": collector.verify(&[&run.id])?.holds(),
    }))
}

/// Everything goes on; how to look around and how to end it.
fn keep(
    site: Site,
    servers: [Option<u32>; 2],
    collector: Collector,
    agent: Agent,
    environment: &[(&str, String)],
    run: &str,
) -> anyhow::Result<()> {
    let weir = program("weir")?.display().to_string();
    let weir_agent = program("weir-agent")?.display().to_string();
    let config = agent.config().display().to_string();
    let environment: Vec<String> =
        environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
    println!("\nAll of it goes on. Look around:\n");
    println!("  export WEIR_CREDENTIAL={}", collector.credential());
    println!("  {weir} runs");
    println!("  {weir} show {run}");
    println!("  {weir_agent} status --config {config}");
    println!("  {} {weir_agent} exec --config {config} -- psql", environment.join(" "));
    let pids: Vec<String> = [agent.release(), collector.release()]
        .into_iter()
        .chain(servers)
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
