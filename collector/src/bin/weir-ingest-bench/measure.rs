//! What the collector used, how large the index became, and how fast it answers.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, Connection, Row};
use weir_collector::store::Store;

/// Runs of one query, the first of which warms.
const QUERY_RUNS: usize = 21;

/// Processor time of a process so far, user and system.
pub(crate) fn cpu(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("reading processor time")?;
    let after = stat.rsplit_once(") ").context("a process's stat")?.1;
    let ticks: u64 = after.split(' ').skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    // USER_HZ is 100 on every Linux that Weir runs on.
    Ok(Duration::from_millis(ticks * 10))
}

/// Most memory a process had, bytes.
pub(crate) fn memory_max(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).context("VmHWM")?;
    Ok(line.split_whitespace().nth(1).context("VmHWM")?.parse::<u64>()? * 1024)
}

/// The index, read only, with its words.
pub(crate) async fn open(data: &Path) -> Result<SqliteConnection> {
    let options = SqliteConnectOptions::new().filename(data.join("index.sqlite")).read_only(true);
    let mut index = SqliteConnection::connect_with(&options).await?;
    sqlx::query("ATTACH DATABASE ? AS words")
        .bind(data.join("text.sqlite").to_string_lossy().into_owned())
        .execute(&mut index)
        .await?;
    Ok(index)
}

/// Exchanges in the index, segments not in the full text, and since when the first of them waits.
pub(crate) async fn behind(index: &mut SqliteConnection) -> Result<(i64, Option<i64>)> {
    let row = sqlx::query(
        "SELECT (SELECT next - 1 FROM counter WHERE name = 'exchange'), \
         (SELECT received_ms FROM segment WHERE id >= (SELECT next_segment FROM words.progress) ORDER BY id LIMIT 1)",
    )
    .fetch_one(&mut *index)
    .await?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}

/// Bytes of each table and index, the largest first.
pub(crate) async fn sizes(index: &mut SqliteConnection) -> Result<Vec<(String, i64)>> {
    let mut all = Vec::new();
    for schema in ["main", "words"] {
        let sql = format!("SELECT name, sum(pgsize) AS bytes FROM dbstat('{schema}') GROUP BY name");
        for row in sqlx::query(AssertSqlSafe(sql)).fetch_all(&mut *index).await? {
            all.push((row.try_get("name")?, row.try_get("bytes")?));
        }
    }
    all.sort_by_key(|(_, bytes)| -bytes);
    Ok(all)
}

/// One question and the time it took, the median of warm runs.
pub(crate) struct Answered {
    pub(crate) name: &'static str,
    pub(crate) rows: usize,
    pub(crate) median: Duration,
    pub(crate) max: Duration,
}

pub(crate) async fn query(
    index: &mut SqliteConnection,
    name: &'static str,
    sql: &'static str,
    values: &[String],
) -> Result<Answered> {
    let (mut times, mut rows) = (Vec::new(), 0);
    for _ in 0..QUERY_RUNS {
        let started = Instant::now();
        let mut query = sqlx::query(sql);
        for value in values {
            query = match value.parse::<i64>() {
                Ok(number) => query.bind(number),
                Err(_) => query.bind(value.clone()),
            };
        }
        rows = query.fetch_all(&mut *index).await?.len();
        times.push(started.elapsed());
    }
    times.remove(0);
    times.sort();
    let max = times.last().copied().unwrap_or_default();
    Ok(Answered { name, rows, median: times.get(times.len() / 2).copied().unwrap_or_default(), max })
}

/// What deleting the first thirtieth took: a day of thirty.
pub(crate) struct Retained {
    pub(crate) exchanges: u64,
    pub(crate) expire: Duration,
    /// The writer is held for so long at a time.
    pub(crate) slowest_step: Duration,
    pub(crate) erase: Duration,
}

pub(crate) async fn retention(data: &Path) -> Result<Retained> {
    const COUNT: &str = "SELECT sum(exchanges), (SELECT received_ms FROM segment WHERE id = (SELECT max(id) / 30 FROM segment)) FROM segment";
    let mut index = open(data).await?;
    let row = sqlx::query(COUNT).fetch_one(&mut index).await?;
    let (before, until_ms): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
    let store = Store::open(data).await?;
    let (started, mut slowest_step) = (Instant::now(), Duration::ZERO);
    loop {
        let step = Instant::now();
        let done = store.index.segments_expire(until_ms, weir_collector::clock::unix_ms()).await?;
        slowest_step = slowest_step.max(step.elapsed());
        if done.sessions == 0 {
            break;
        }
    }
    let expire = started.elapsed();
    let started = Instant::now();
    store.index.text_erase().await?;
    let erase = started.elapsed();
    let after: i64 = sqlx::query(COUNT).fetch_one(&mut index).await?.try_get(0)?;
    index.close().await?;
    store.index.close().await;
    Ok(Retained { exchanges: u64::try_from(before - after).unwrap_or(0), expire, slowest_step, erase })
}

/// Of sorted times.
pub(crate) fn percentile(sorted: &[Duration], of_hundred: usize) -> Duration {
    let place = (sorted.len() * of_hundred / 100).min(sorted.len().saturating_sub(1));
    sorted.get(place).copied().unwrap_or_default()
}

/// Bytes of all files below a folder.
pub(crate) fn folder_bytes(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => folder_bytes(&entry.path()),
            _ => entry.metadata().map_or(0, |metadata| metadata.len()),
        })
        .sum()
}
