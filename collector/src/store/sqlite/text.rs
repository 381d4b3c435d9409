//! Full text, in a file of its own (`text.sqlite`): its writer never stands in the way of ingest, and it is made again from
//! the segments whenever it is lost. The cursor is in the same file as the words, so that both are always of one moment.
//!
//! Deleted exchanges are not found from then on. Their words leave the file when the structures they are in are merged;
//! [`SqliteIndex::text_erase`] merges all there are.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use sqlx::sqlite::{
    SqliteAutoVacuum, SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};
use sqlx::{Connection, Row, SqliteConnection};
use tokio::sync::OwnedMutexGuard;

use super::rows::Insert;
use super::stored::segment_row;
use super::{BUSY_TIMEOUT, SqliteIndex, WAL_PAGES};
use crate::store::StoreError;
use crate::store::rows::{ExchangeText, TextProgress, TextRow, TextSegment};

/// Raised whenever text.sql or what goes into it changes: a file of another version is made again.
const VERSION: i64 = 1;
const SCHEMA: &str = include_str!("../../../migrations/sqlite/text.sql");
/// Index pages rewritten by one step of erasing (4 KiB each): readers and the follower wait no longer than that takes.
const ERASE_PAGES_PER_STEP: i64 = 256;
/// Steps of one erasing, of those that rewriting every page takes: what comes meanwhile is merged, too, and would never end.
const ERASE_STEPS_FACTOR: i64 = 4;

static TEXTS: Insert = Insert::new("INSERT INTO exchange_text (rowid, asked, error, body) VALUES", 4, "");

/// Whoever writes or deletes text holds it: what retention deletes must not be written again from an older reading.
pub struct TextTurn {
    _turn: OwnedMutexGuard<()>,
}

/// Opens the file, or makes it (again).
pub(super) async fn open(file: &Path, index: &SqlitePool) -> Result<SqlitePool, StoreError> {
    let mut usable = cursor(file).await;
    if let Ok(next_segment) = usable {
        // Read after the cursor: another process may be committing, and its cursor is never ahead of its index.
        let end: i64 =
            sqlx::query_scalar("SELECT next FROM counter WHERE name = 'segment'").fetch_one(index).await?;
        if next_segment > end {
            usable = Err("it belongs to another index: ids to come would be found by words of others".into());
        }
    }
    if let Err(why) = usable {
        if file.exists() {
            tracing::warn!(file = %file.display(), why, "full text is made again from the segments");
        }
        for suffix in ["", "-wal", "-shm"] {
            let mut path = file.as_os_str().to_owned();
            path.push(suffix);
            let path = PathBuf::from(path);
            match std::fs::remove_file(&path) {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                    return Err(StoreError::Folder { path, source });
                }
                _ => {}
            }
        }
        let mut fresh = SqliteConnection::connect_with(&options(file)).await?;
        sqlx::raw_sql(SCHEMA).execute(&mut fresh).await?;
        sqlx::query(sqlx::AssertSqlSafe(format!("PRAGMA user_version = {VERSION}")))
            .execute(&mut fresh)
            .await?;
        fresh.close().await?;
    }
    Ok(SqlitePoolOptions::new().max_connections(1).connect_with(options(file)).await?)
}

fn options(file: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(file)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        // Words and cursor are lost together with the power, and written again.
        .synchronous(SqliteSynchronous::Normal)
        .auto_vacuum(SqliteAutoVacuum::Incremental)
        .busy_timeout(BUSY_TIMEOUT)
        .pragma("wal_autocheckpoint", WAL_PAGES)
        .pragma("secure_delete", "ON")
}

/// How far a usable file is; `Err`: why it is none.
async fn cursor(file: &Path) -> Result<i64, String> {
    if !file.exists() {
        return Err("there is none".into());
    }
    let told = |error: sqlx::Error| error.to_string();
    let found = SqliteConnection::connect_with(&options(file).create_if_missing(false)).await;
    let mut found = found.map_err(told)?;
    let version: i64 = sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut found).await.map_err(told)?;
    if version != VERSION {
        return Err(format!("it is of version {version}, this collector writes {VERSION}"));
    }
    let next = sqlx::query_scalar("SELECT next_segment FROM progress").fetch_one(&mut found).await;
    found.close().await.map_err(told)?;
    next.map_err(told)
}

impl SqliteIndex {
    /// Waits until nobody else writes or deletes text.
    pub async fn text_turn(&self) -> TextTurn {
        TextTurn { _turn: self.text_turn.clone().lock_owned().await }
    }

    /// Returns when segments were committed since the last time.
    pub async fn text_waits(&self) {
        self.text_waits.notified().await;
    }

    /// How far full text is.
    pub async fn text_progress(&self) -> Result<TextProgress, StoreError> {
        let row = sqlx::query(
            "SELECT p.next_segment, (SELECT received_ms FROM segment g WHERE g.id >= p.next_segment ORDER BY g.id LIMIT 1) AS since \
             FROM words.progress p",
        )
        .fetch_one(&self.readers)
        .await?;
        Ok(TextProgress { next_segment: row.try_get(0)?, waiting_since_ms: row.try_get(1)? })
    }

    /// Segments from this id on, with the rows of their exchanges.
    pub async fn text_segment_list(&self, from: i64, segments: i64) -> Result<Vec<TextSegment>, StoreError> {
        let found = sqlx::query(
            "SELECT g.*, b.key, (SELECT json_group_array(json_array(e.ordinal, e.id, e.protocol)) FROM exchange e \
             WHERE e.id >= g.first_exchange AND e.id < g.first_exchange + g.exchanges) AS rows \
             FROM segment g JOIN bundle b ON b.id = g.bundle WHERE g.id >= ? ORDER BY g.id LIMIT ?",
        )
        .bind(from)
        .bind(segments)
        .fetch_all(&self.readers)
        .await?;
        let mut list = Vec::with_capacity(found.len());
        for row in &found {
            let rows: &str = row.try_get("rows")?;
            let rows: Vec<(u64, i64, Option<String>)> =
                serde_json::from_str(rows).map_err(|_| StoreError::Damaged("exchange"))?;
            let rows = rows.into_iter().map(|(ordinal, id, protocol)| (ordinal, TextRow { id, protocol }));
            list.push(TextSegment {
                id: row.try_get("id")?,
                stored: segment_row(row)?,
                protocol: row.try_get("protocol")?,
                exchanges: rows.collect::<HashMap<_, _>>(),
            });
        }
        Ok(list)
    }

    /// Adds texts; segments below `next_segment` are in from then on.
    pub async fn text_add(
        &self,
        _turn: &TextTurn,
        texts: &[ExchangeText],
        next_segment: i64,
    ) -> Result<(), StoreError> {
        let mut tx = self.text.begin().await?;
        TEXTS
            .all(&mut tx, texts, |query, text| {
                query
                    .bind(text.exchange)
                    .bind(text.asked.clone())
                    .bind(text.error.clone())
                    .bind(text.body.clone())
            })
            .await?;
        sqlx::query("UPDATE progress SET next_segment = ?").bind(next_segment).execute(&mut *tx).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Deletes the texts of exchanges in these ranges, the end not included.
    pub async fn text_delete(&self, _turn: &TextTurn, ranges: &[(i64, i64)]) -> Result<(), StoreError> {
        let mut tx = self.text.begin().await?;
        for (from, to) in ranges {
            sqlx::query("DELETE FROM exchange_text WHERE rowid >= ? AND rowid < ?")
                .bind(from)
                .bind(to)
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// Rewrites the index without the words of what was deleted, in steps; afterwards they are not in the file any more.
    pub async fn text_erase(&self) -> Result<(), StoreError> {
        // The first step says that all structures belong to one merge, the others go on with it.
        let mut pages = -ERASE_PAGES_PER_STEP;
        let all: i64 = sqlx::query_scalar("PRAGMA page_count").fetch_one(&self.text).await?;
        for _ in 0..(all / ERASE_PAGES_PER_STEP + 1).saturating_mul(ERASE_STEPS_FACTOR) {
            let _turn = self.text_turn().await;
            let mut tx = self.text.begin().await?;
            let before: i64 = sqlx::query_scalar("SELECT total_changes()").fetch_one(&mut *tx).await?;
            sqlx::query("INSERT INTO exchange_text (exchange_text, rank) VALUES ('merge', ?)")
                .bind(pages)
                .execute(&mut *tx)
                .await?;
            let after: i64 = sqlx::query_scalar("SELECT total_changes()").fetch_one(&mut *tx).await?;
            tx.commit().await?;
            // The statement itself counts as one.
            if after - before < 2 {
                break;
            }
            pages = ERASE_PAGES_PER_STEP;
        }
        self.text_space_return().await
    }

    /// Gives freed pages back to the file system, a bounded number at a time.
    pub(super) async fn text_space_return(&self) -> Result<(), StoreError> {
        sqlx::query("PRAGMA incremental_vacuum(4096)").execute(&self.text).await?;
        sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&self.text).await?;
        Ok(())
    }
}
