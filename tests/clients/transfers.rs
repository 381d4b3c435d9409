//! Whole databases and large files through Weir: identical at the other end, in flat memory.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use serde_json::json;
use weir_tests::process::run;
use weir_tests::{Nginx, Postgres};

use crate::ground::Ground;
use crate::{Finding, Flags};

/// Bytes of the large file.
const BULK_BYTES: u64 = 2 << 30;
/// How much more memory the node agent may have at its peak than before, bytes.
const GROWTH_MAX: u64 = 96 << 20;

/// A database with one column of every common kind, so that every way of writing a value passes.
const KINDS: &str = "\
CREATE TABLE kinds (id serial PRIMARY KEY, n numeric, f float8, t text, b bytea, j jsonb, a int[], ts timestamptz, u uuid, \
e inet, r int4range, x xml); \
INSERT INTO kinds (n, f, t, b, j, a, ts, u, e, r, x) SELECT random() * 1e12, random(), repeat(md5(i::text), i % 40), \
decode(md5(i::text), 'hex'), jsonb_build_object('i', i, 's', E'tab\\there \\u00e9'), ARRAY[i, NULL, -i], \
timestamptz '2026-01-01 00:00:00Z' + i * interval '1 hour', md5(i::text)::uuid, ('10.0.' || i % 256 || '.1')::inet, \
int4range(i, i + 10), xmlparse(CONTENT '<a>' || i || '</a>') FROM generate_series(1, 20000) AS i; \
CREATE INDEX ON kinds (ts); CREATE VIEW recent AS SELECT id, ts FROM kinds WHERE ts > '2027-01-01'; \
CREATE FUNCTION twice(int) RETURNS int LANGUAGE sql AS 'SELECT $1 * 2'; \
SELECT lo_from_bytea(4711, decode(repeat('00ff', 50000), 'hex'));";

/// `pg_dump | psql`, both governed: the restored database dumps as the first one does.
pub(crate) fn dump_and_restore(ground: &mut Ground, _: &Flags) -> anyhow::Result<Finding> {
    let postgres = Postgres::start(&ground.site, "postgres")?;
    run(postgres.client("pgbench").args(["-i", "-q", "-s", "3"]))?;
    postgres.sql(KINDS)?;
    postgres.sql("CREATE DATABASE restored TEMPLATE template0")?;
    let script = "set -o pipefail; pg_dump postgres | psql -X -q -v ON_ERROR_STOP=1 -o /dev/null restored";
    let mut governed = ground.governed(&["bash", "-c", script])?;
    ground.succeed(governed.envs(postgres.environment()))?;
    let dump = |database: &str| run(postgres.client("pg_dump").arg(database));
    let (first, restored) = (dump("postgres")?, dump("restored")?);
    // Since August 2025 a dump has a random key in its \restrict lines.
    let plain = |text: &str| {
        text.lines()
            .filter(|line| !line.contains("restrict "))
            .map(|line| line.to_owned() + "\n")
            .collect::<String>()
    };
    Ok(Finding {
        name: "pg-dump",
        same: plain(&first) == plain(&restored),
        facts: json!({ "bytes": first.len(), "rows": postgres.sql("SELECT count(*) FROM pgbench_accounts")?.trim() }),
    })
}

/// Down and up again, incompressible: bit for bit, while the node agent's memory stays where it was.
pub(crate) fn bulk(ground: &mut Ground, _: &Flags) -> anyhow::Result<Finding> {
    let nginx = Nginx::start(&ground.site, "nginx")?;
    let source = nginx.files().join("bulk.bin");
    let megabytes = (BULK_BYTES >> 20).to_string();
    run(
        Command::new("sh").args(["-c", &format!("head -c {megabytes}M /dev/urandom > {}", source.display())])
    )?;
    let work = ground.folder("work")?;
    let copy = work.join("copy.bin");
    // One small request first, so that what is allocated once does not count.
    let mut small = ground.governed(&["curl", "-sS", "-f", "-o", "/dev/null", &nginx.url("/hello")])?;
    ground.succeed(&mut small)?;
    let before = resident(ground.agent.pid()?)?;
    let peak = Peak::watch(ground.agent.pid()?);
    let path = copy.display().to_string();
    let mut down = ground.governed(&["curl", "-sS", "-f", "-o", &path, &nginx.url("/files/bulk.bin")])?;
    ground.succeed(&mut down)?;
    let mut up = ground.governed(&["curl", "-sS", "-f", "-T", &path, &nginx.url("/put/bulk.bin")])?;
    ground.succeed(&mut up)?;
    let peak = peak.end();
    let sums = [&source, &copy, &nginx.uploads().join("bulk.bin")].map(|file| digest(file));
    let [source, copy, uploaded] = sums;
    let identical = source? == copy? && digest(&nginx.files().join("bulk.bin"))? == uploaded?;
    let growth = peak.saturating_sub(before);
    Ok(Finding {
        name: "bulk",
        same: identical && growth <= GROWTH_MAX,
        facts: json!({
            "bytes": BULK_BYTES, "identical": identical,
            "agent_resident_mib": before >> 20, "agent_peak_mib": peak >> 20,
        }),
    })
}

fn digest(file: &Path) -> anyhow::Result<String> {
    let line = run(Command::new("sha256sum").arg(file))?;
    Ok(line.split_whitespace().next().context("no digest")?.to_owned())
}

/// Anonymous memory of a process, bytes: mapped journal files are the kernel's to give back.
fn resident(pid: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib << 10)
}

/// The highest resident size while something runs.
struct Peak {
    over: Arc<AtomicBool>,
    highest: Arc<AtomicU64>,
    watcher: std::thread::JoinHandle<()>,
}

impl Peak {
    fn watch(pid: u32) -> Self {
        let (over, highest) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ended, seen) = (over.clone(), highest.clone());
        let watcher = std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                if let Ok(now) = resident(pid) {
                    seen.fetch_max(now, Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        Self { over, highest, watcher }
    }

    fn end(self) -> u64 {
        self.over.store(true, Ordering::Relaxed);
        // A watcher that panicked has seen nothing: then the comparison fails on its own.
        let _joined = self.watcher.join();
        self.highest.load(Ordering::Relaxed)
    }
}
