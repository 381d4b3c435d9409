//! Measures ingest: a real collector, real TLS, segments sealed before the clock starts. Prints exchanges per second, how
//! long a receipt took, how far full text was behind, what the collector's and the load's processors did, how large the
//! index became, and how fast it answers. Bounded: it ships so many exchanges and stops.

#![allow(clippy::expect_used, reason = "the load is made here: what does not seal is a fault of the bench")]

mod measure;
mod node;
mod workload;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use serde_json::{Value, json};
use sqlx::Connection;
use weir_proto::credential::Credential;

use measure::percentile;
use node::Node;
use workload::SEGMENTS_PER_SESSION;

/// Far longer than full text may lag.
const TEXT_PATIENCE: Duration = Duration::from_secs(120);
const SAMPLE_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Parser)]
#[command(about = "Measures how fast a collector takes recordings, and how large its index becomes")]
struct Arguments {
    /// Exchanges in all, rounded up to whole sessions.
    #[arg(long, default_value_t = 1_000_000)]
    exchanges: u64,
    /// Exchanges of one segment.
    #[arg(long, default_value_t = 100)]
    per_segment: u64,
    /// Node agents, one stream each.
    #[arg(long, default_value_t = 8)]
    agents: u64,
    /// Segments of one agent that wait for their receipts at a time.
    #[arg(long, default_value_t = 2)]
    in_flight: usize,
    /// Where the collector's data lies meanwhile. A new folder is made in it, and removed.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    folder: PathBuf,
    /// Leaves the data there.
    #[arg(long)]
    keep: bool,
    /// One JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

fn main() -> Result<()> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let arguments = Arguments::parse();
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run(arguments))
}

async fn run(arguments: Arguments) -> Result<()> {
    let folder = Folder::new(&arguments)?;
    let data = folder.path.join("data");
    let mut collector = Collector::start(&data)?;
    let mut nodes = Vec::new();
    for agent in 0..arguments.agents {
        nodes.push(Node::join(&collector.admin, format!("node-{agent}")).await?);
    }
    let per_session = SEGMENTS_PER_SESSION * arguments.per_segment;
    let sessions = arguments.exchanges.div_ceil(per_session).max(1);
    let exchanges = sessions * per_session;
    eprintln!("sealing {exchanges} exchanges in {} segments", sessions * SEGMENTS_PER_SESSION);
    let now_ns = weir_collector::clock::unix_ms() * 1_000_000;
    let sealed: Vec<_> = std::thread::scope(|scope| {
        let handles: Vec<_> = nodes
            .iter()
            .zip(0..)
            .map(|(node, agent)| {
                let (agents, per_segment) = (arguments.agents, arguments.per_segment);
                scope.spawn(move || workload::sealed(node, agent, agents, sessions, per_segment, now_ns))
            })
            .collect();
        handles.into_iter().map(|handle| handle.join().expect("sealing does not fail")).collect()
    });
    let sealed_bytes: usize = sealed.iter().flatten().map(|segment| segment.bytes.len()).sum();
    let mut streams = Vec::new();
    for node in &nodes {
        streams.push(node.connect().await?);
    }

    eprintln!("shipping {} MiB", sealed_bytes >> 20);
    let pid = collector.child.id();
    let (cpu_before, own_before) = (measure::cpu(pid)?, measure::cpu(std::process::id())?);
    let started = Instant::now();
    let shipping: Vec<_> = streams
        .into_iter()
        .zip(sealed)
        .map(|(stream, sealed)| tokio::spawn(stream.ship(sealed, arguments.in_flight)))
        .collect();
    let lag = tokio::spawn(lag(data.clone(), exchanges as i64));
    let mut waited = Vec::new();
    for shipped in shipping {
        waited.extend(shipped.await??);
    }
    let took = started.elapsed();
    let cpu_ingest = measure::cpu(pid)? - cpu_before;
    let cpu_load = measure::cpu(std::process::id())? - own_before;
    let lag_max = lag.await??;
    let took_text = started.elapsed();
    let cpu_all = measure::cpu(pid)? - cpu_before;
    let memory = measure::memory_max(pid)?;
    collector.stop()?;
    waited.sort();

    let mut index = measure::open(&data).await?;
    let sizes = measure::sizes(&mut index).await?;
    let file = |name: &str| std::fs::metadata(data.join(name)).map_or(0, |metadata| metadata.len());
    let (index_bytes, text_bytes) = (file("index.sqlite"), file("text.sqlite"));
    let answers = questions(&mut index, workload::identity_day(sessions, now_ns)).await?;
    index.close().await?;
    let retention = measure::retention(&data).await?;
    let rate = |took: Duration| exchanges as f64 / took.as_secs_f64();
    let each = |bytes: u64| bytes as f64 / exchanges as f64;
    let us = |cpu: Duration| cpu.as_secs_f64() * 1e6 / exchanges as f64;
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let report = json!({
        "exchanges": exchanges,
        "segments": waited.len(),
        "agents": arguments.agents,
        "in_flight": arguments.in_flight,
        "per_segment": arguments.per_segment,
        "sealed_bytes": sealed_bytes,
        "receipted_per_s": rate(took),
        "searchable_per_s": rate(took_text),
        "receipt_ms": { "p50": ms(percentile(&waited, 50)), "p99": ms(percentile(&waited, 99)), "max": ms(percentile(&waited, 100)) },
        "text_lag_max_ms": lag_max.as_millis() as u64,
        "collector_cpu_us_per_exchange": { "until_last_receipt": us(cpu_ingest), "with_full_text": us(cpu_all) },
        "load_cpu_us_per_exchange": us(cpu_load),
        "collector_memory_max_bytes": memory,
        "index_bytes_per_exchange": each(index_bytes),
        "text_bytes_per_exchange": each(text_bytes),
        "both_bytes_per_exchange": each(index_bytes + text_bytes),
        "objects_bytes_per_exchange": each(measure::folder_bytes(&data.join("objects"))),
        "tables": sizes.iter().take(12).map(|(name, bytes)| json!({ "name": name, "bytes_per_exchange": each(*bytes as u64) })).collect::<Vec<_>>(),
        "queries": answers.iter().map(|answer| json!({ "name": answer.name, "rows": answer.rows, "median_ms": ms(answer.median), "max_ms": ms(answer.max) })).collect::<Vec<_>>(),
        "retention": {
            "exchanges": retention.exchanges,
            "expire_ms": ms(retention.expire),
            "slowest_step_ms": ms(retention.slowest_step),
            "erase_text_ms": ms(retention.erase),
        },
        "commit": std::env::var("WEIR_COMMIT").unwrap_or_default(),
    });
    if arguments.json {
        println!("{report}");
    } else {
        show("", &report);
    }
    Ok(())
}

/// Everything that is written, removed in the end.
struct Folder {
    path: PathBuf,
    keep: bool,
}

impl Folder {
    fn new(arguments: &Arguments) -> Result<Self> {
        let path = arguments.folder.join(format!("weir-ingest-bench-{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Self { path, keep: arguments.keep })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.keep {
            eprintln!("the data stays in {}", self.path.display());
        } else if let Err(error) = std::fs::remove_dir_all(&self.path) {
            eprintln!("{} stays: {error}", self.path.display());
        }
    }
}

/// One figure a line, what belongs together with a common beginning.
fn show(name: &str, value: &Value) {
    match value {
        Value::Object(of) => {
            let label = of.get("name").and_then(Value::as_str);
            let inner = |key: &str| match label {
                Some(label) => format!("{name} {label}: {key}"),
                None if name.is_empty() => key.to_owned(),
                None => format!("{name} {key}"),
            };
            of.iter().filter(|(key, _)| *key != "name").for_each(|(key, value)| show(&inner(key), value));
        }
        Value::Array(of) => of.iter().for_each(|value| show(name, value)),
        Value::Number(number) => match number.as_u64() {
            Some(whole) => println!("{name:<70} {whole:>14}"),
            None => println!("{name:<70} {:>14.2}", number.as_f64().unwrap_or_default()),
        },
        other => println!("{name:<70} {other}"),
    }
}

/// Looks how far full text is behind until everything is in; answers the most.
async fn lag(data: PathBuf, exchanges: i64) -> Result<Duration> {
    let mut index = measure::open(&data).await?;
    let mut most = 0;
    let started = Instant::now();
    let mut all_since = None;
    loop {
        let (there, since) = measure::behind(&mut index).await?;
        most = most.max(since.map_or(0, |since| weir_collector::clock::unix_ms() - since));
        if there >= exchanges {
            let since_all = *all_since.get_or_insert_with(Instant::now);
            ensure!(since_all.elapsed() < TEXT_PATIENCE, "full text does not follow");
            if since.is_none() {
                return Ok(Duration::from_millis(u64::try_from(most).unwrap_or(0)));
            }
        }
        ensure!(started.elapsed() < TEXT_PATIENCE * 10, "ingest does not come to its end");
        tokio::time::sleep(SAMPLE_INTERVAL).await;
    }
}

async fn questions(
    index: &mut sqlx::sqlite::SqliteConnection,
    (identity, from_ns, to_ns): (String, i64, i64),
) -> Result<Vec<measure::Answered>> {
    const HOUR_NS: i64 = 3_600_000_000_000;
    let mut identity_day = vec![identity];
    identity_day
        .extend([from_ns / HOUR_NS, to_ns / HOUR_NS, from_ns, to_ns].map(|number| number.to_string()));
    const IDENTITY_DAY: &str = "SELECT e.id, e.statement FROM segment g CROSS JOIN exchange e \
         ON e.id >= g.first_exchange AND e.id < g.first_exchange + g.exchanges WHERE g.principal = ?1 \
         AND g.id >= (SELECT min(first_segment) FROM asked_hour WHERE hour BETWEEN ?2 AND ?3) \
         AND g.id <= (SELECT max(last_segment) FROM asked_hour WHERE hour BETWEEN ?2 AND ?3) \
         AND e.asked_boot_ns + (g.wall_unix_ns - g.wall_boot_ns) BETWEEN ?4 AND ?5 ORDER BY g.id DESC, e.id DESC LIMIT 200";
    const WORDS: &str = "SELECT e.id, e.statement FROM words.exchange_text t CROSS JOIN exchange e ON e.id = t.rowid \
         WHERE t.exchange_text MATCH ?1 ORDER BY t.rowid DESC LIMIT 200";
    const WORDS_COUNT: &str = "SELECT count(*) FROM words.exchange_text WHERE exchange_text MATCH ?1";
    let mut answers =
        vec![measure::query(index, "identity + one day, newest 200", IDENTITY_DAY, &identity_day).await?];
    for (name, sql, words) in [
        ("phrase \"drop table\", newest 200", WORDS, "\"drop table\""),
        ("phrase \"drop table\", count", WORDS_COUNT, "\"drop table\""),
        ("word in one exchange of eight, newest 200", WORDS, "information_schema"),
        ("phrase in 200 exchanges, newest 200", WORDS, "\"set ledger to 17\""),
        ("prefix stag*, newest 200", WORDS, "stag*"),
        ("prefix in*, newest 200", WORDS, "in*"),
        ("two words, newest 200", WORDS, "payroll AND forecast"),
    ] {
        answers.push(measure::query(index, name, sql, &[words.to_owned()]).await?);
    }
    Ok(answers)
}

/// The real program.
struct Collector {
    child: Child,
    admin: Credential,
}

impl Collector {
    fn start(data: &Path) -> Result<Self> {
        let bins = match std::env::var_os("WEIR_BIN_DIR") {
            Some(bins) => PathBuf::from(bins),
            None => std::env::current_exe()?.parent().context("a program lies in a folder")?.to_owned(),
        };
        let program = bins.join("weir-collector");
        let mut child = Command::new(&program)
            .args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "off", "--data"])
            .arg(data)
            .stdout(Stdio::piped())
            .stderr(Stdio::from(std::fs::File::create(data.with_extension("log"))?))
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let started =
            child.stdout.take().context("its output").and_then(|stdout| told(BufReader::new(stdout)));
        match started {
            Ok(admin) => Ok(Self { child, admin }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                let log = std::fs::read_to_string(data.with_extension("log")).unwrap_or_default();
                Err(error.context(log))
            }
        }
    }

    /// In order, so that the logs are written back and the files have their size.
    fn stop(&mut self) -> Result<()> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id())?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        ensure!(self.child.wait()?.success(), "the collector did not stop in order");
        Ok(())
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The credential of a first start, with the address that it listens on.
fn told(stdout: impl BufRead) -> Result<Credential> {
    let mut credential: Option<Credential> = None;
    for line in stdout.lines() {
        let line = line?;
        if line.starts_with("weiradmin1-") {
            credential = line.parse().ok();
        } else if let Some(address) = line.strip_prefix("listening on ") {
            let mut credential = credential.context("the collector made no credential")?;
            credential.address = address.to_owned();
            return Ok(credential);
        }
    }
    bail!("the collector did not start")
}
