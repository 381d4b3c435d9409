//! Finds exchanges. A search walks the ids of exchanges, which count arrivals, in windows: the next window is larger
//! while windows are quick, so that what is common is found at once, what is rare soon, and a search that takes long can
//! say how far it is and go on later. Nothing that people type becomes SQL or full-text syntax: it is bound, and words are
//! quoted.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sqlx::pool::PoolConnection;
use sqlx::{QueryBuilder, Row, Sqlite, SqliteConnection};
use weir_proto::v1;

use super::exchanges::EXCHANGE_COLUMNS;
use super::{SqliteIndex, uint};
use crate::search::query::{Condition, Expr, Outcome, Query, Text, Within};
use crate::search::values::{Pattern, Range};
use crate::store::StoreError;

/// Ids of the first window, of the smallest after an interruption, and of the largest.
const WINDOW_IDS: i64 = 20_000;
const WINDOW_IDS_MIN: i64 = 500;
const WINDOW_IDS_MAX: i64 = 1 << 40;
/// A window that took less is followed by one eight times as large, one that took less than half of [`WINDOW_SLOW`] by one
/// twice as large (much of its time was the same for any window), and one that took more by one half as large.
const WINDOW_QUICK: Duration = Duration::from_millis(50);
const WINDOW_SLOW: Duration = Duration::from_millis(1_000);
/// One statement; then it is interrupted, and tried with a smaller window.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(4);
/// How many virtual machine steps of SQLite lie between looks at the clock.
const STEPS_PER_LOOK: i32 = 20_000;
/// Words found in fewer exchanges than this are looked up before anything else.
const RARE_EXCHANGES_MAX: i64 = 2_000;
/// Runs or sessions that one part of an id may mean.
const MEANT_MAX: usize = 16;
/// Shortest end of an id that is taken for one.
const ID_END_DIGITS_MIN: usize = 4;
/// How far a node's clock may be ahead of this one's before what just ended there counts as later.
const CLOCKS_APART_MS_MAX: i64 = 10 * 60 * 1000;
const NS_PER_HOUR: i64 = 3_600_000_000_000;

#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    #[error("no {kind} has an id that begins or ends with {part}: `weir {kind}s` lists them")]
    NoSuch { kind: &'static str, part: String },
    #[error("more than {MEANT_MAX} {kind}s have an id that begins or ends with {part}: give more of it")]
    Ambiguous { kind: &'static str, part: String },
    #[error("there are no runs yet")]
    NoRuns,
    #[error(
        "{WINDOW_IDS_MIN} exchanges took longer than {} s: narrow the query by a run, a target or a time, or take longer words than a few letters and a *",
        STATEMENT_TIMEOUT.as_secs()
    )]
    TooSlow,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for SearchError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

/// What to look for, and where to go on.
pub struct Seeking<'a> {
    pub query: &'a Query,
    pub newest_first: bool,
    /// Ids beyond this one, in the order of the search.
    pub after: Option<i64>,
    /// Ids from here on came later than the search began.
    pub before: Option<i64>,
    /// Only what has ended, at this wall-clock time or later.
    pub ended_from_ns: Option<i64>,
    pub rows: usize,
    /// When to answer with what there is.
    pub until: Instant,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Sought {
    /// Of exchanges, in the order of the search.
    pub ids: Vec<i64>,
    /// Everything up to here was looked at: the next `after`.
    pub after: i64,
    /// Nothing is left.
    pub done: bool,
}

/// An exchange that was found.
pub struct HitRow {
    pub hit: v1::SearchHit,
    /// Of the segment in which it ended.
    pub seq: u64,
}

/// How far the index is.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Ids below are in the index.
    pub next: i64,
    /// The text of ids below is in the full text.
    pub indexed: i64,
    /// What was received before is in the full text; `None`: all is.
    pub indexed_to_ms: Option<i64>,
}

impl SqliteIndex {
    pub async fn search_extent(&self) -> Result<Extent, StoreError> {
        let row = sqlx::query(
            "SELECT c.next, g.first_exchange AS waiting, g.received_ms FROM counter c LEFT JOIN segment g ON g.id = \
             (SELECT id FROM segment WHERE id >= (SELECT next_segment FROM words.progress) AND exchanges > 0 ORDER BY id LIMIT 1) \
             WHERE c.name = 'exchange'",
        )
        .fetch_one(&self.readers)
        .await?;
        let next: i64 = row.try_get("next")?;
        let waiting: Option<i64> = row.try_get("waiting")?;
        Ok(Extent { next, indexed: waiting.unwrap_or(next), indexed_to_ms: row.try_get("received_ms")? })
    }

    /// The first id of what was received at that time or later; what ended then was not received before. `None`: nothing was.
    pub async fn received_from(&self, unix_ns: i64) -> Result<Option<i64>, StoreError> {
        let row = sqlx::query(
            "SELECT first_exchange FROM segment WHERE id = (SELECT id FROM segment WHERE exchanges > 0 AND received_ms >= ? \
             ORDER BY received_ms, id LIMIT 1)",
        )
        .bind((unix_ns / 1_000_000).saturating_sub(CLOCKS_APART_MS_MAX))
        .fetch_optional(&self.readers)
        .await?;
        row.map(|row| Ok(row.try_get("first_exchange")?)).transpose()
    }

    /// When the exchange of this id, or the next one, was asked.
    pub async fn asked_near(&self, id: i64) -> Result<Option<i64>, StoreError> {
        let row = sqlx::query(
            "SELECT e.asked_boot_ns + (g.wall_unix_ns - g.wall_boot_ns) AS asked FROM exchange e JOIN segment g ON g.id = e.segment \
             WHERE e.id >= ? ORDER BY e.id LIMIT 1",
        )
        .bind(id)
        .fetch_optional(&self.readers)
        .await?;
        row.map(|row| Ok(row.try_get("asked")?)).transpose()
    }

    /// Until there are enough, nothing is left, or the time is over.
    pub async fn search(&self, seeking: &Seeking<'_>) -> Result<Sought, SearchError> {
        let mut found = Sought::default();
        let meant = self.meant(seeking.query).await?;
        let extent = self.search_extent().await?;
        let mut to = seeking.before.unwrap_or(i64::MAX).min(extent.next);
        if seeking.query.asks_text() {
            to = to.min(extent.indexed);
        }
        let mut reader = Reader::new(self.readers.acquire().await?).await?;
        let bounds = bounds(&mut reader, seeking.query, &meant, (0, to)).await?;
        let (mut from, mut to) = bounds;
        match seeking.after {
            Some(after) if seeking.newest_first => to = to.min(after),
            Some(after) => from = from.max(after.saturating_add(1)),
            None => {}
        }
        // Where a search goes on that finds nothing more now.
        let end = if seeking.newest_first { from } else { to.saturating_sub(1) };
        found.after = match seeking.after {
            Some(after) if seeking.newest_first => after.min(end),
            Some(after) => after.max(end),
            None => end,
        };
        let path = path(&mut reader, seeking.query, &meant, (from, to)).await?;
        let mut window = WINDOW_IDS;
        loop {
            if from >= to {
                found.done = true;
                break;
            }
            let (low, high) = match seeking.newest_first {
                true => (to.saturating_sub(window).max(from), to),
                false => (from, from.saturating_add(window).min(to)),
            };
            let began = Instant::now();
            let step = Step { seeking, meant: &meant, path: &path, low, high };
            let ids = match step.run(&mut reader, seeking.rows - found.ids.len()).await? {
                Some(ids) => ids,
                None if window <= WINDOW_IDS_MIN => return Err(SearchError::TooSlow),
                None => {
                    window = (window / 16).max(WINDOW_IDS_MIN);
                    continue;
                }
            };
            found.ids.extend(ids);
            if found.ids.len() >= seeking.rows {
                break;
            }
            if seeking.newest_first {
                to = low
            } else {
                from = high
            }
            match began.elapsed() {
                took if took < WINDOW_QUICK => window = window.saturating_mul(8).min(WINDOW_IDS_MAX),
                took if took < WINDOW_SLOW / 2 => window = window.saturating_mul(2).min(WINDOW_IDS_MAX),
                took if took > WINDOW_SLOW => window = (window / 2).max(WINDOW_IDS_MIN),
                _ => {}
            }
            if Instant::now() >= seeking.until && from < to {
                break;
            }
        }
        if !found.done {
            found.after = match (found.ids.last(), found.ids.len() >= seeking.rows) {
                (Some(last), true) => *last,
                _ if seeking.newest_first => to,
                _ => from.saturating_sub(1),
            };
        }
        reader.done().await?;
        Ok(found)
    }

    /// The exchanges of these ids, in this order; one that is gone since is left out.
    pub async fn hit_list(&self, ids: &[i64]) -> Result<Vec<HitRow>, StoreError> {
        let mut query = QueryBuilder::<Sqlite>::new("SELECT ");
        query.push(EXCHANGE_COLUMNS).push(
            ", g.seq, g.run_id, s.node_id, n.name AS node_name, r.host, r.principal_issuer, r.principal_subject, \
             r.principal_verified_by FROM exchange e JOIN segment g ON g.id = e.segment JOIN session s ON s.id = g.session_id \
             JOIN run r ON r.id = g.run_id JOIN node n ON n.id = s.node_id WHERE e.id IN (",
        );
        let mut list = query.separated(", ");
        for id in ids {
            list.push_bind(*id);
        }
        query.push(")");
        let rows = query.build().persistent(false).fetch_all(&self.readers).await?;
        let exchanges = self.exchange_rows(&rows).await?;
        let mut found = HashMap::with_capacity(rows.len());
        for (row, exchange) in rows.iter().zip(exchanges) {
            let hit = v1::SearchHit {
                exchange: Some(exchange),
                run_id: row.try_get::<Vec<u8>, _>("run_id")?.into(),
                node_id: row.try_get::<Vec<u8>, _>("node_id")?.into(),
                node_name: row.try_get("node_name")?,
                run_host: row.try_get("host")?,
                principal: Some(v1::Principal {
                    issuer: row.try_get("principal_issuer")?,
                    subject: row.try_get("principal_subject")?,
                    verified_by: row.try_get("principal_verified_by")?,
                    ..Default::default()
                }),
                snippets: Vec::new(),
            };
            found.insert(row.try_get::<i64, _>("id")?, HitRow { hit, seq: uint(row, "seq")? });
        }
        Ok(ids.iter().filter_map(|id| found.remove(id)).collect())
    }

    /// What parts of ids mean: a query names runs as people do.
    async fn meant(&self, query: &Query) -> Result<Meant, SearchError> {
        let mut meant = Meant::default();
        let mut conditions = Vec::new();
        if let Some(root) = &query.root {
            collect(root, &mut conditions);
        }
        for condition in conditions {
            match condition {
                Condition::Run(part) if !meant.runs.contains_key(part) => {
                    let ids = self.ids_meant("run", part).await?;
                    meant.runs.insert(part.clone(), ids);
                }
                Condition::Session(part) if !meant.sessions.contains_key(part) => {
                    let ids = self.ids_meant("session", part).await?;
                    meant.sessions.insert(part.clone(), ids);
                }
                Condition::Principal(Pattern::Is(name)) if !meant.principals.contains_key(name) => {
                    let rows = sqlx::query(
                        "SELECT DISTINCT principal_subject FROM run WHERE principal_subject = ?1 \
                         OR (principal_subject >= ?1 || ' sha256:' AND principal_subject < ?1 || ' sha256;') LIMIT 2",
                    )
                    .bind(name)
                    .fetch_all(&self.readers)
                    .await?;
                    let names = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
                    meant.principals.insert(name.clone(), names);
                }
                Condition::LastRun if meant.last_run.is_empty() => {
                    let row = sqlx::query("SELECT id FROM run ORDER BY first_unix_ns DESC, id DESC LIMIT 1")
                        .fetch_optional(&self.readers)
                        .await?;
                    meant.last_run = row.ok_or(SearchError::NoRuns)?.try_get(0)?;
                }
                _ => {}
            }
        }
        Ok(meant)
    }

    /// Beginnings are a range of the primary key; ends are looked for only where nothing begins so.
    async fn ids_meant(&self, kind: &'static str, part: &str) -> Result<Vec<Vec<u8>>, SearchError> {
        let bound = |fill: char| {
            let digits: String = part.chars().chain(std::iter::repeat(fill)).take(32).collect();
            hex::decode(digits).unwrap_or_default()
        };
        let limit = MEANT_MAX as i64 + 1;
        let mut rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "SELECT id FROM {kind} WHERE id BETWEEN ? AND ? ORDER BY id LIMIT ?"
        )))
        .bind(bound('0'))
        .bind(bound('F'))
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        if rows.is_empty() && part.len() >= ID_END_DIGITS_MIN {
            let sql = format!("SELECT id FROM {kind} WHERE substr(hex(id), ?) = ? ORDER BY id LIMIT ?");
            rows = sqlx::query(sqlx::AssertSqlSafe(sql))
                .bind(-(part.len() as i64))
                .bind(part)
                .bind(limit)
                .fetch_all(&self.readers)
                .await?;
        }
        let part = || part.to_ascii_lowercase();
        match rows.len() {
            0 => Err(SearchError::NoSuch { kind, part: part() }),
            count if count > MEANT_MAX => Err(SearchError::Ambiguous { kind, part: part() }),
            _ => Ok(rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?),
        }
    }
}

/// Ids behind what was typed.
#[derive(Default)]
struct Meant {
    runs: HashMap<String, Vec<Vec<u8>>>,
    sessions: HashMap<String, Vec<Vec<u8>>>,
    last_run: Vec<u8>,
    /// Two at most: whether it is one is what matters.
    principals: HashMap<String, Vec<String>>,
}

impl Meant {
    /// `None`: several are meant.
    fn principal<'m>(&'m self, name: &'m str) -> Option<&'m str> {
        match self.principals.get(name).map(Vec::as_slice) {
            Some([]) | None => Some(name),
            Some([one]) => Some(one),
            Some(_) => None,
        }
    }

    fn run(&self, part: &str) -> &[Vec<u8>] {
        self.runs.get(part).map_or(&[], Vec::as_slice)
    }

    fn session(&self, part: &str) -> &[Vec<u8>] {
        self.sessions.get(part).map_or(&[], Vec::as_slice)
    }
}

fn collect<'a>(expr: &'a Expr, into: &mut Vec<&'a Condition>) {
    match expr {
        Expr::All(all) | Expr::Any(all) => all.iter().for_each(|one| collect(one, into)),
        Expr::Not(one) => collect(one, into),
        Expr::Is(condition) => into.push(condition),
        Expr::Text(_) => {}
    }
}

/// A connection whose statements end in time. One that was left in the middle of its work is closed, not used again.
struct Reader {
    connection: PoolConnection<Sqlite>,
    watch: Arc<Watch>,
    in_order: bool,
}

struct Watch {
    began: Instant,
    /// Milliseconds after `began`.
    until_ms: AtomicU64,
    given_up: AtomicBool,
}

impl Reader {
    async fn new(mut connection: PoolConnection<Sqlite>) -> Result<Self, StoreError> {
        let watch = Arc::new(Watch {
            began: Instant::now(),
            until_ms: AtomicU64::new(u64::MAX),
            given_up: AtomicBool::new(false),
        });
        let looked = watch.clone();
        let inner: &mut SqliteConnection = &mut connection;
        inner.lock_handle().await?.set_progress_handler(STEPS_PER_LOOK, move || {
            let over = looked.began.elapsed().as_millis() as u64 > looked.until_ms.load(Ordering::Relaxed);
            !over && !looked.given_up.load(Ordering::Relaxed)
        });
        Ok(Self { connection, watch, in_order: false })
    }

    /// For one statement, whose time begins.
    fn arm(&mut self) -> &mut SqliteConnection {
        let until = self.watch.began.elapsed() + STATEMENT_TIMEOUT;
        self.watch.until_ms.store(until.as_millis() as u64, Ordering::Relaxed);
        &mut self.connection
    }

    async fn done(mut self) -> Result<(), StoreError> {
        let inner: &mut SqliteConnection = &mut self.connection;
        inner.lock_handle().await?.remove_progress_handler();
        self.in_order = true;
        Ok(())
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if !self.in_order {
            self.watch.given_up.store(true, Ordering::Relaxed);
            self.connection.close_on_drop();
        }
    }
}

/// `None`: it took too long.
fn in_time<T>(result: Result<T, sqlx::Error>) -> Result<Option<T>, StoreError> {
    const INTERRUPTED: &str = "9";
    match result {
        Ok(value) => Ok(Some(value)),
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(INTERRUPTED) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The ids in which every answer lies, as far as that is quickly known: by the times asked for, and by the run.
async fn bounds(
    reader: &mut Reader,
    query: &Query,
    meant: &Meant,
    (mut from, mut to): (i64, i64),
) -> Result<(i64, i64), StoreError> {
    for one in query.required() {
        let row = match one {
            Expr::Is(Condition::Asked(range)) => {
                let hour = |ns: Option<i64>, open: i64| ns.map_or(open, |ns| ns.div_euclid(NS_PER_HOUR));
                sqlx::query(
                    "SELECT min(first_segment) AS low, max(last_segment) AS high FROM asked_hour WHERE hour BETWEEN ? AND ?",
                )
                .bind(hour(range.from, i64::MIN))
                .bind(hour(range.to, i64::MAX))
                .fetch_one(reader.arm())
                .await?
            }
            Expr::Is(condition @ (Condition::Run(_) | Condition::LastRun)) => {
                let Some(run) = single_run(condition, meant) else { continue };
                sqlx::query(
                    "SELECT min(id) AS low, max(id) AS high FROM segment INDEXED BY segment_by_run WHERE run_id = ?",
                )
                .bind(run)
                .fetch_one(reader.arm())
                .await?
            }
            _ => continue,
        };
        let segments: (Option<i64>, Option<i64>) = (row.try_get("low")?, row.try_get("high")?);
        let (Some(low), Some(high)) = segments else { return Ok((0, 0)) };
        let row = sqlx::query(
            "SELECT (SELECT first_exchange FROM segment WHERE id >= ?1 AND exchanges > 0 ORDER BY id LIMIT 1) AS low, \
             (SELECT first_exchange + exchanges FROM segment WHERE id <= ?2 AND exchanges > 0 ORDER BY id DESC LIMIT 1) AS high",
        )
        .bind(low)
        .bind(high)
        .fetch_one(reader.arm())
        .await?;
        let (Some(low), Some(high)) =
            (row.try_get::<Option<i64>, _>("low")?, row.try_get::<Option<i64>, _>("high")?)
        else {
            return Ok((0, 0));
        };
        (from, to) = (from.max(low), to.min(high));
    }
    Ok((from, to))
}

fn single_run<'m>(condition: &Condition, meant: &'m Meant) -> Option<&'m [u8]> {
    match condition {
        Condition::LastRun => Some(&meant.last_run),
        Condition::Run(part) => match meant.run(part) {
            [one] => Some(one),
            _ => None,
        },
        _ => None,
    }
}

/// What is walked, in order of id. Everything else is looked at for each of its rows.
enum Path<'q> {
    /// The exchanges with these words.
    Words(String),
    /// The segments of one run, session, principal.
    Run(Vec<u8>),
    Session(Vec<u8>),
    Principal(&'q str),
    /// Exchanges with one of the rare outcomes.
    Outcome(i32),
    WouldDeny,
    /// All segments: something about them is asked for, and there are far fewer of them.
    Segments,
    /// All exchanges.
    All,
}

async fn path<'q>(
    reader: &mut Reader,
    query: &'q Query,
    meant: &'q Meant,
    (from, to): (i64, i64),
) -> Result<Path<'q>, StoreError> {
    let words: Vec<String> = query.required_texts().iter().map(match_text).collect();
    let mut best = Path::All;
    for one in query.required() {
        match one {
            Expr::Is(condition) => {
                let narrow = match condition {
                    Condition::Session(part) => match meant.session(part) {
                        [one] => Some(Path::Session(one.clone())),
                        _ => None,
                    },
                    Condition::Principal(Pattern::Is(name)) => meant.principal(name).map(Path::Principal),
                    Condition::Outcome(outcome) => rare_outcome(*outcome).map(Path::Outcome),
                    Condition::WouldDeny => Some(Path::WouldDeny),
                    run => single_run(run, meant).map(|run| Path::Run(run.to_vec())),
                };
                let by_segment = is_of_segment(one) || matches!(condition, Condition::Host(_));
                let narrow = narrow.or_else(|| by_segment.then_some(Path::Segments));
                if let Some(narrow) = narrow
                    && narrow.rank() < best.rank()
                {
                    best = narrow;
                }
            }
            one if is_of_segment(one) && matches!(best, Path::All) => best = Path::Segments,
            _ => {}
        }
    }
    if words.is_empty() {
        return Ok(best);
    }
    let words = words.join(" AND ");
    if !matches!(best, Path::All) {
        let rare = in_time(
            sqlx::query(
                "SELECT count(*) FROM (SELECT 1 FROM words.exchange_text WHERE exchange_text MATCH ? AND rowid >= ? AND rowid < ? \
                 LIMIT ?)",
            )
            .bind(words.clone())
            .bind(from)
            .bind(to)
            .bind(RARE_EXCHANGES_MAX)
            .fetch_one(reader.arm())
            .await,
        )?;
        let count: i64 = rare.map_or(Ok(RARE_EXCHANGES_MAX), |row| row.try_get(0))?;
        if count >= RARE_EXCHANGES_MAX {
            return Ok(best);
        }
    }
    Ok(Path::Words(words))
}

impl Path<'_> {
    /// The narrower the smaller.
    fn rank(&self) -> u8 {
        match self {
            Self::Words(_) => 0,
            Self::Session(_) => 1,
            Self::Run(_) => 2,
            Self::WouldDeny => 3,
            Self::Outcome(_) => 4,
            Self::Principal(_) => 5,
            Self::Segments => 6,
            Self::All => 7,
        }
    }
}

/// Whether a segment alone says if it holds, with its session, run and node.
fn is_of_segment(expr: &Expr) -> bool {
    match expr {
        Expr::All(all) | Expr::Any(all) => all.iter().all(is_of_segment),
        Expr::Not(one) => is_of_segment(one),
        Expr::Text(_) => false,
        Expr::Is(condition) => matches!(
            condition,
            Condition::Run(_)
                | Condition::LastRun
                | Condition::Session(_)
                | Condition::Node(_)
                | Condition::Target(_)
                | Condition::User(_)
                | Condition::Principal(_)
                | Condition::Database(_)
                | Condition::Label(..)
        ),
    }
}

/// As `exchange_by_outcome` has it.
fn rare_outcome(outcome: Outcome) -> Option<i32> {
    let stored = match outcome {
        Outcome::Error => v1::Outcome::Error,
        Outcome::Denied => v1::Outcome::Denied,
        Outcome::Withdrawn => v1::Outcome::Withdrawn,
        Outcome::Aborted => v1::Outcome::Aborted,
        Outcome::Ok | Outcome::Running => return None,
    };
    Some(stored as i32)
}

/// One window of a search: ids from `low` to below `high`.
struct Step<'a> {
    seeking: &'a Seeking<'a>,
    meant: &'a Meant,
    path: &'a Path<'a>,
    low: i64,
    high: i64,
}

impl Step<'_> {
    /// `None`: it took too long.
    async fn run(&self, reader: &mut Reader, rows: usize) -> Result<Option<Vec<i64>>, StoreError> {
        let mut query = QueryBuilder::new("");
        self.push_statement(&mut query, rows);
        // Each is written for its question: kept statements would only push out those that come again.
        let found = in_time(query.build().persistent(false).fetch_all(reader.arm()).await)?;
        let Some(found) = found else { return Ok(None) };
        Ok(Some(found.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?))
    }

    fn push_statement(&self, query: &mut QueryBuilder<Sqlite>, rows: usize) {
        query.push("SELECT e.id FROM ");
        self.push_tables(query);
        query.push(" WHERE ");
        self.push_path(query);
        query.push(" AND e.id >= ").push_bind(self.low).push(" AND e.id < ").push_bind(self.high);
        if let Some(ended) = self.seeking.ended_from_ns {
            query.push(" AND e.duration_ns IS NOT NULL AND e.asked_boot_ns + e.duration_ns + (g.wall_unix_ns - g.wall_boot_ns) >= ");
            query.push_bind(ended);
        }
        if let Some(root) = &self.seeking.query.root {
            query.push(" AND ");
            self.push(query, root);
        }
        let direction = if self.seeking.newest_first { "DESC" } else { "ASC" };
        let order = match self.path {
            Path::Words(_) => format!("t.rowid {direction}"),
            Path::Run(_) | Path::Session(_) | Path::Principal(_) | Path::Segments => {
                format!("g.id {direction}, e.id {direction}")
            }
            Path::Outcome(_) | Path::WouldDeny | Path::All => format!("e.id {direction}"),
        };
        query.push(format!(" ORDER BY {order} LIMIT ")).push_bind(rows as i64);
    }

    /// CROSS JOIN keeps the order that is written: without statistics the planner guesses.
    fn push_tables(&self, query: &mut QueryBuilder<Sqlite>) {
        const OF_EXCHANGE: &str = " CROSS JOIN segment g ON g.id = e.segment";
        // What is known of the segment is asked before its exchanges are looked at.
        const OF_SEGMENT: &str = " CROSS JOIN exchange e NOT INDEXED ON e.segment = g.id";
        let (first, segment_first) = match self.path {
            Path::Words(_) => ("words.exchange_text t CROSS JOIN exchange e ON e.id = t.rowid", false),
            Path::Outcome(_) => ("exchange e INDEXED BY exchange_by_outcome", false),
            Path::WouldDeny => ("exchange e INDEXED BY exchange_would_deny", false),
            Path::All => ("exchange e NOT INDEXED", false),
            Path::Run(_) => ("segment g INDEXED BY segment_by_run", true),
            Path::Principal(_) => ("segment g INDEXED BY segment_by_principal", true),
            Path::Session(_) => ("segment g", true),
            Path::Segments => ("segment g NOT INDEXED", true),
        };
        query.push(first);
        if !segment_first {
            query.push(OF_EXCHANGE);
        }
        self.push_joins(query);
        if segment_first {
            query.push(OF_SEGMENT);
        }
    }

    fn push_joins(&self, query: &mut QueryBuilder<Sqlite>) {
        let mut conditions = Vec::new();
        if let Some(root) = &self.seeking.query.root {
            collect(root, &mut conditions);
        }
        let needs = |wanted: fn(&Condition) -> bool| conditions.iter().any(|condition| wanted(condition));
        let node = needs(|c| matches!(c, Condition::Node(_)));
        if node
            || needs(|c| {
                matches!(
                    c,
                    Condition::Host(_) | Condition::Target(_) | Condition::User(_) | Condition::Database(_)
                )
            })
        {
            query.push(" CROSS JOIN session s ON s.id = g.session_id");
        }
        if node {
            query.push(" CROSS JOIN node n ON n.id = s.node_id");
        }
    }

    fn push_path(&self, query: &mut QueryBuilder<Sqlite>) {
        let segments = match self.path {
            Path::Words(words) => {
                query.push("t.exchange_text MATCH ").push_bind(words.clone());
                query
                    .push(" AND t.rowid >= ")
                    .push_bind(self.low)
                    .push(" AND t.rowid < ")
                    .push_bind(self.high);
                return;
            }
            Path::Outcome(outcome) => {
                query.push("e.outcome > 1 AND e.outcome = ").push_bind(*outcome);
                return;
            }
            Path::WouldDeny => {
                query.push("e.would_deny = 1");
                return;
            }
            Path::All => {
                query.push("1");
                return;
            }
            Path::Segments => {
                query.push("1");
                for one in self.seeking.query.required() {
                    if let Expr::Is(Condition::Host(pattern)) = one {
                        // Only an HTTP session names hosts besides its own; sessions of PostgreSQL never become one.
                        query.push(" AND (g.protocol <> 'postgres' OR ");
                        push_any(query, SESSION_HOST, pattern);
                        query.push(")");
                    }
                }
                query
            }
            Path::Run(run) => query.push("g.run_id = ").push_bind(run.clone()),
            Path::Session(session) => query.push("g.session_id = ").push_bind(session.clone()),
            Path::Principal(name) => query.push("g.principal = ").push_bind((*name).to_owned()),
        };
        // Segments ascend as their exchanges do.
        segments.push(" AND g.id >= COALESCE((SELECT segment FROM exchange WHERE id >= ");
        segments.push_bind(self.low).push(" ORDER BY id LIMIT 1), 0)");
        segments.push(" AND g.id <= COALESCE((SELECT segment FROM exchange WHERE id < ");
        segments.push_bind(self.high).push(" ORDER BY id DESC LIMIT 1), 0)");
        segments.push(" AND e.id >= g.first_exchange AND e.id < g.first_exchange + g.exchanges");
    }

    fn push(&self, query: &mut QueryBuilder<Sqlite>, expr: &Expr) {
        match expr {
            Expr::All(all) => self.push_many(query, all, " AND "),
            Expr::Any(all) => self.push_many(query, all, " OR "),
            // What is unknown (how long a running exchange takes) is not so, and so its opposite is.
            Expr::Not(one) => {
                query.push("(");
                self.push(query, one);
                query.push(") IS NOT TRUE");
            }
            Expr::Text(text) => {
                // The plus: looked up for each row that the path gives, never walked for each of its segments.
                query.push("+e.id IN (SELECT rowid FROM words.exchange_text WHERE exchange_text MATCH ");
                query.push_bind(match_text(text));
                query.push(" AND rowid >= ").push_bind(self.low);
                query.push(" AND rowid < ").push_bind(self.high).push(")");
            }
            Expr::Is(condition) => {
                query.push("(");
                self.push_condition(query, condition);
                query.push(")");
            }
        }
    }

    fn push_many(&self, query: &mut QueryBuilder<Sqlite>, all: &[Expr], between: &str) {
        query.push("(");
        for (at, one) in all.iter().enumerate() {
            if at > 0 {
                query.push(between);
            }
            self.push(query, one);
        }
        query.push(")");
    }

    fn push_condition(&self, query: &mut QueryBuilder<Sqlite>, condition: &Condition) {
        match condition {
            Condition::Run(part) => push_ids(query, "g.run_id", self.meant.run(part)),
            Condition::LastRun => push_ids(query, "g.run_id", std::slice::from_ref(&self.meant.last_run)),
            Condition::Session(part) => push_ids(query, "g.session_id", self.meant.session(part)),
            Condition::Node(pattern) => {
                push_pattern(query, "n.name", pattern);
                if let Pattern::Is(part) = pattern {
                    push_id_part(query, "n.id", part);
                }
            }
            Condition::Host(pattern) => {
                push_any(query, SESSION_HOST, pattern);
                query.push(" OR ");
                push_any(query, &[URL_HOST, URL_NAME], pattern);
            }
            Condition::Target(pattern) => push_pattern(query, "s.target", pattern),
            Condition::Protocol(pattern) => push_pattern(query, "COALESCE(e.protocol, g.protocol)", pattern),
            Condition::Verb(pattern) => push_pattern(query, "e.verb", pattern),
            Condition::Status(pattern) => push_pattern(query, "e.status", pattern),
            Condition::StatusNumber(range) => {
                query.push("e.status GLOB '[0-9][0-9][0-9]' AND ");
                push_range(query, "CAST(e.status AS INTEGER)", range);
            }
            Condition::Outcome(Outcome::Running) => {
                query.push("e.duration_ns IS NULL");
            }
            Condition::Outcome(outcome) => {
                let stored = rare_outcome(*outcome).unwrap_or(v1::Outcome::Ok as i32);
                query.push("e.duration_ns IS NOT NULL AND e.outcome = ").push_bind(stored);
            }
            Condition::WouldDeny => {
                query.push("e.would_deny = 1");
            }
            Condition::User(pattern) => {
                push_any(query, &["g.principal", "json_extract(s.facts, '$.user')"], pattern);
                if let Pattern::Is(name) = pattern {
                    query.push(" OR ");
                    push_principal(query, name);
                }
            }
            Condition::Principal(Pattern::Is(name)) => push_principal(query, name),
            Condition::Principal(pattern) => push_pattern(query, "g.principal", pattern),
            Condition::Path(pattern) => push_pattern(query, URL_PATH, pattern),
            Condition::Database(pattern) => {
                push_pattern(query, "json_extract(s.facts, '$.database')", pattern)
            }
            Condition::Asked(range) => {
                push_range(query, "(e.asked_boot_ns + (g.wall_unix_ns - g.wall_boot_ns))", range);
            }
            Condition::Duration(range) => push_range(query, "e.duration_ns", range),
            Condition::Rows(range) => push_range(query, "e.rows", range),
            Condition::Bytes(range) => push_range(query, "(e.request_bytes + e.response_bytes)", range),
            Condition::Label(key, pattern) => {
                query.push("EXISTS (SELECT 1 FROM run_label l WHERE l.run_id = g.run_id AND l.key = ");
                query.push_bind(key.clone()).push(" AND ");
                push_pattern(query, "l.value", pattern);
                query.push(")");
            }
        }
    }
}

/// Where a session went.
const SESSION_HOST: &[&str] = &[
    "s.origin_ip",
    "CASE WHEN instr(s.origin_ip, ':') THEN '[' || s.origin_ip || ']' ELSE s.origin_ip END || ':' || s.origin_port",
    "json_extract(s.facts, '$.host')",
];
// What an HTTP exchange asked is `METHOD` and an absolute URL: the piece between `://` and the next `/`, without its port,
// and what follows up to `?`. CASE spares all others the cutting.
const URL_HOST: &str = "CASE WHEN COALESCE(e.protocol, g.protocol) = 'http' THEN (SELECT substr(u, 1, instr(u || '/', '/') - 1) FROM \
    (SELECT substr(e.statement, instr(e.statement, '://') + 3) AS u)) END";
const URL_NAME: &str = "CASE WHEN COALESCE(e.protocol, g.protocol) = 'http' THEN (SELECT substr(h, 1, instr(h || ':', ':') - 1) FROM \
    (SELECT substr(u, 1, instr(u || '/', '/') - 1) AS h FROM (SELECT substr(e.statement, instr(e.statement, '://') + 3) AS u))) END";
const URL_PATH: &str = "CASE WHEN COALESCE(e.protocol, g.protocol) = 'http' THEN (SELECT substr(p, 1, instr(p || '?', '?') - 1) FROM \
    (SELECT substr(u, instr(u || '/', '/')) AS p FROM (SELECT substr(e.statement, instr(e.statement, '://') + 3) AS u))) END";

fn push_any(query: &mut QueryBuilder<Sqlite>, columns: &[&str], pattern: &Pattern) {
    for (at, column) in columns.iter().enumerate() {
        if at > 0 {
            query.push(" OR ");
        }
        push_pattern(query, column, pattern);
    }
}

fn push_pattern(query: &mut QueryBuilder<Sqlite>, column: &str, pattern: &Pattern) {
    query.push(column);
    match pattern {
        Pattern::Is(text) => query.push(" = ").push_bind(text.clone()).push(" COLLATE NOCASE"),
        Pattern::Begins(text) => query.push(" LIKE ").push_bind(like(text) + "%").push(r" ESCAPE '\'"),
        Pattern::Ends(text) => {
            query.push(" LIKE ").push_bind(format!("%{}", like(text))).push(r" ESCAPE '\'")
        }
    };
}

fn like(text: &str) -> String {
    text.replace('\\', r"\\").replace('%', r"\%").replace('_', r"\_")
}

fn push_range(query: &mut QueryBuilder<Sqlite>, column: &str, range: &Range) {
    let (from, to) = (range.from.unwrap_or(i64::MIN), range.to.unwrap_or(i64::MAX));
    query.push(column).push(" BETWEEN ").push_bind(from).push(" AND ").push_bind(to);
}

/// `uid:1000` is everybody of that user, whatever executable its first process ran; `;` comes after `:`.
fn push_principal(query: &mut QueryBuilder<Sqlite>, name: &str) {
    query.push("(g.principal = ").push_bind(name.to_owned());
    query.push(" OR (g.principal >= ").push_bind(format!("{name} sha256:"));
    query.push(" AND g.principal < ").push_bind(format!("{name} sha256;")).push("))");
}

fn push_ids(query: &mut QueryBuilder<Sqlite>, column: &str, ids: &[Vec<u8>]) {
    query.push(column).push(" IN (");
    let mut list = query.separated(", ");
    for id in ids {
        list.push_bind(id.clone());
    }
    query.push(")");
}

fn push_id_part(query: &mut QueryBuilder<Sqlite>, column: &str, part: &str) {
    let digits: String = part.chars().filter(|c| *c != '-').map(|c| c.to_ascii_uppercase()).collect();
    let len = digits.len();
    if !(ID_END_DIGITS_MIN..=32).contains(&len) || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return;
    }
    query.push(format!(" OR substr(hex({column}), 1, {len}) = ")).push_bind(digits.clone());
    query.push(format!(" OR substr(hex({column}), -{len}) = ")).push_bind(digits);
}

/// As FTS5 wants it: between quotation marks nothing but a quotation mark means anything.
fn match_text(text: &Text) -> String {
    let within = match text.within {
        Within::Everything => "",
        Within::Statement => "{asked} : ",
        Within::Error => "{error} : ",
        Within::Body => "{body} : ",
    };
    let star = if text.prefix { " *" } else { "" };
    format!("{within}\"{}\"{star}", text.words.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::parse;

    async fn index() -> (tempfile::TempDir, SqliteIndex) {
        let folder = tempfile::tempdir().unwrap();
        let index = SqliteIndex::open(&folder.path().join("index.sqlite")).await.unwrap();
        (folder, index)
    }

    const ENDLESS: &str =
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";

    #[tokio::test]
    async fn a_statement_that_takes_too_long_is_interrupted_and_the_connection_goes_on() {
        let (_folder, index) = index().await;
        let mut reader = Reader::new(index.readers.acquire().await.unwrap()).await.unwrap();
        reader.arm();
        reader.watch.until_ms.store(0, Ordering::Relaxed);
        let endless = sqlx::query(ENDLESS).fetch_all(&mut *reader.connection).await;
        assert!(in_time(endless).unwrap().is_none());
        let one = sqlx::query("SELECT 1").fetch_all(reader.arm()).await;
        assert_eq!(in_time(one).unwrap().unwrap().len(), 1);
        reader.done().await.unwrap();
        index.probe().await.unwrap();
    }

    #[tokio::test]
    async fn a_search_that_nobody_waits_for_ends_and_leaves_no_connection_in_its_way() {
        let (_folder, index) = index().await;
        for _ in 0..2 * super::super::READERS {
            let mut reader = Reader::new(index.readers.acquire().await.unwrap()).await.unwrap();
            let endless = sqlx::query(ENDLESS).fetch_all(reader.arm());
            assert!(
                tokio::time::timeout(Duration::from_millis(30), endless).await.is_err(),
                "it would go on"
            );
        }
        for _ in 0..2 * super::super::READERS {
            index.probe().await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_search_whose_time_is_over_says_how_far_it_is_and_goes_on() {
        const IDS: i64 = 10 * WINDOW_IDS + 1;
        let (_folder, index) = index().await;
        sqlx::query("UPDATE counter SET next = ? WHERE name = 'exchange'")
            .bind(IDS)
            .execute(&index.writer)
            .await
            .unwrap();
        let query = parse("rows:>1", 0).unwrap();
        for newest_first in [true, false] {
            let (mut after, mut answers) = (None, 0);
            loop {
                let seeking = Seeking {
                    query: &query,
                    newest_first,
                    after,
                    before: None,
                    ended_from_ns: None,
                    rows: 10,
                    until: Instant::now(),
                };
                let found = index.search(&seeking).await.unwrap();
                answers += 1;
                assert!(found.ids.is_empty());
                if found.done {
                    break;
                }
                let further = match after {
                    Some(after) if newest_first => found.after < after,
                    Some(after) => found.after > after,
                    None => true,
                };
                assert!(further, "{:?} after {after:?}", found.after);
                after = Some(found.after);
            }
            assert!(answers > 10, "{answers} answers: one window each");
        }
    }

    /// Sessions, runs and nodes are asked before exchanges, and no path sorts what it walks.
    #[tokio::test]
    async fn every_path_walks_in_order() {
        let (_folder, index) = index().await;
        let meant = Meant {
            runs: HashMap::from([("A".into(), vec![vec![1; 16]])]),
            sessions: HashMap::from([("B".into(), vec![vec![1; 16]])]),
            last_run: vec![1; 16],
            principals: HashMap::from([("two".into(), vec!["two".into(), "two sha256:00".into()])]),
        };
        for (text, first) in [
            ("drop", "SCAN t VIRTUAL TABLE"),
            ("drop target:x", "SCAN t VIRTUAL TABLE"),
            ("path:/a/b", "SCAN t VIRTUAL TABLE"),
            ("run:a", "SEARCH g USING INDEX segment_by_run"),
            ("run:last rows:1", "SEARCH g USING INDEX segment_by_run"),
            ("session:b", "SEARCH g USING"),
            ("principal:x after:1d", "SEARCH g USING INDEX segment_by_principal"),
            ("principal:two", "SEARCH g USING INTEGER PRIMARY KEY"),
            ("outcome:denied target:x", "SEARCH e USING INDEX exchange_by_outcome"),
            ("would:deny", "SEARCH e USING INDEX exchange_would_deny"),
            ("target:x OR node:y", "SEARCH g USING INTEGER PRIMARY KEY"),
            ("label.a:b -database:c rows:>1", "SEARCH g USING INTEGER PRIMARY KEY"),
            ("target:x -a (b OR c)", "SEARCH g USING INTEGER PRIMARY KEY"),
            ("run:a -b", "SEARCH g USING INDEX segment_by_run"),
            ("host:x", "SEARCH g USING INTEGER PRIMARY KEY"),
            ("rows:>1", "SEARCH e USING INTEGER PRIMARY KEY"),
            ("", "SEARCH e USING INTEGER PRIMARY KEY"),
        ] {
            let query = parse(text, 0).unwrap();
            let mut reader = Reader::new(index.readers.acquire().await.unwrap()).await.unwrap();
            let path = path(&mut reader, &query, &meant, (0, 100)).await.unwrap();
            for newest_first in [true, false] {
                let seeking = Seeking {
                    query: &query,
                    newest_first,
                    after: None,
                    before: None,
                    ended_from_ns: Some(0),
                    rows: 10,
                    until: Instant::now(),
                };
                let step = Step { seeking: &seeking, meant: &meant, path: &path, low: 0, high: 100 };
                let mut plan = QueryBuilder::new("EXPLAIN QUERY PLAN ");
                step.push_statement(&mut plan, 10);
                let rows = plan.build().fetch_all(reader.arm()).await.unwrap();
                let lines: Vec<String> = rows.iter().map(|row| row.get("detail")).collect();
                assert!(lines[0].starts_with(first), "{text}: {lines:#?}");
                let walked = lines.iter().any(|line| line.contains("SEARCH e") && line.contains("rowid=?"));
                assert!(!walked || first.contains("VIRTUAL"), "{text}: {lines:#?}");
                let sorts = lines.iter().any(|line| line.contains("TEMP B-TREE FOR ORDER BY"));
                assert!(!sorts || text.starts_with("session"), "{text}: {lines:#?}");
            }
            reader.done().await.unwrap();
        }
    }
}
