//! Finds exchanges. A search walks the ids of exchanges, which count arrivals, in windows: the next window is larger
//! while windows are quick, so that what is common is found at once, what is rare soon, and a search that takes long can
//! say how far it is and go on later. Nothing that people type becomes SQL or full-text syntax: it is bound, and words are
//! quoted.
//!
//! * [`meant`]: what names and parts of ids mean
//! * [`path`]: what is walked
//! * [`statement`]: the SQL of one window
//! * [`reader`]: a connection whose statements end in time

mod meant;
mod path;
mod reader;
mod statement;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use sqlx::{QueryBuilder, Row, Sqlite};
use weir_proto::v1;

use self::meant::MEANT_MAX;
use self::path::{bounds, path};
use self::reader::{Reader, STATEMENT_TIMEOUT};
use self::statement::Step;
use super::exchanges::EXCHANGE_COLUMNS;
use super::{SqliteIndex, uint};
use crate::search::query::Query;
use crate::store::StoreError;

/// Ids of the first window, of the smallest after an interruption, and of the largest.
const WINDOW_IDS: i64 = 20_000;
const WINDOW_IDS_MIN: i64 = 500;
const WINDOW_IDS_MAX: i64 = 1 << 40;
/// A window that took less is followed by one eight times as large, one that took less than half of [`WINDOW_SLOW`] by one
/// twice as large (much of its time was the same for any window), and one that took more by one half as large.
const WINDOW_QUICK: Duration = Duration::from_millis(50);
const WINDOW_SLOW: Duration = Duration::from_millis(1_000);
/// Shortest end of an id that is taken for one.
const ID_END_DIGITS_MIN: usize = 4;
/// How far a node's clock may be ahead of this one's before what just ended there counts as later.
const CLOCKS_APART_MS_MAX: i64 = 10 * 60 * 1000;

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
}
