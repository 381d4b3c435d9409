//! What deletes. Content goes segment by segment, by the time it was received; a session's row stays as its tombstone,
//! so that a verifier can tell "expired" from "missing". The node log stays: it is how absence is proven.

use sqlx::Row;
use weir_proto::SessionId;

use super::{SqliteIndex, fixed};
use crate::store::StoreError;

type Tx = sqlx::Transaction<'static, sqlx::Sqlite>;

/// Sessions and segments handled by one transaction: the writer must not be held for long.
const SESSIONS_PER_STEP: i64 = 100;
const SEGMENTS_PER_STEP: i64 = 100;

/// What one step did.
#[derive(Default, Debug, PartialEq, Eq)]
pub struct Expired {
    pub sessions: u64,
    pub segments: u64,
}

/// The beginning of a session that has to go.
struct Old {
    session: SessionId,
    /// Segments below.
    upto: i64,
}

impl SqliteIndex {
    /// Deletes segments received before `before_ms`, with all that was drawn from them, of some sessions. Nothing
    /// deleted: nothing is left to do.
    pub async fn segments_expire(&self, before_ms: i64, now_ms: i64) -> Result<Expired, StoreError> {
        // Text first: what is killed in between is done again, and nothing is left that no row would lead to.
        let turn = self.text_turn().await;
        let mut done = Expired::default();
        let mut olds = Vec::new();
        let mut ranges = Vec::new();
        for session in self.sessions_old(before_ms).await? {
            let (old, exchanges) = self.segments_old(session, before_ms).await?;
            done.sessions += 1;
            done.segments += exchanges.len() as u64;
            ranges.extend(exchanges);
            olds.push(old);
            if done.segments >= SEGMENTS_PER_STEP as u64 {
                break;
            }
        }
        if olds.is_empty() {
            return Ok(done);
        }
        self.text_delete(&turn, &ranges).await?;
        let mut tx = self.begin().await?;
        for old in &olds {
            if let Some(run) = old_delete(&mut tx, old, now_ms).await? {
                run_forget(&mut tx, &run).await?;
            }
        }
        sqlx::query(
            "DELETE FROM asked_hour WHERE last_segment < COALESCE((SELECT min(id) FROM segment), 9223372036854775807)",
        )
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(done)
    }

    async fn sessions_old(&self, before_ms: i64) -> Result<Vec<SessionId>, StoreError> {
        let found = sqlx::query(
            "SELECT g.session_id FROM segment g JOIN session s ON s.id = g.session_id \
             WHERE g.received_ms < ? AND s.legal_hold = 0 \
             AND NOT EXISTS (SELECT 1 FROM segment p WHERE p.session_id = g.session_id AND p.seq < g.seq) LIMIT ?",
        )
        .bind(before_ms)
        .bind(SESSIONS_PER_STEP)
        .fetch_all(&self.readers)
        .await?;
        found.iter().map(|row| Ok(SessionId::from_bytes(fixed(row, "session_id")?))).collect()
    }

    /// Only as far as all is old: a clock that was ahead for a while leaves old times behind young ones. With the ranges of
    /// exchanges, one for each segment.
    async fn segments_old(
        &self,
        session: SessionId,
        before_ms: i64,
    ) -> Result<(Old, Vec<(i64, i64)>), StoreError> {
        let found = sqlx::query(
            "SELECT seq, first_exchange, exchanges FROM segment WHERE session_id = ?1 AND seq < \
             COALESCE((SELECT min(seq) FROM segment WHERE session_id = ?1 AND received_ms >= ?2), 9223372036854775807) \
             ORDER BY seq LIMIT ?3",
        )
        .bind(&session.as_bytes()[..])
        .bind(before_ms)
        .bind(SEGMENTS_PER_STEP)
        .fetch_all(&self.readers)
        .await?;
        let mut old = Old { session, upto: 0 };
        let mut ranges = Vec::with_capacity(found.len());
        for row in &found {
            old.upto = row.try_get::<i64, _>("seq")?.saturating_add(1);
            let first: i64 = row.try_get("first_exchange")?;
            ranges.push((first, first.saturating_add(row.try_get("exchanges")?)));
        }
        Ok((old, ranges))
    }

    /// Bundles that no segment is in any more: (row id, key).
    pub async fn bundle_list_empty(&self) -> Result<Vec<(i64, String)>, StoreError> {
        let rows = sqlx::query(
            "SELECT id, key FROM bundle b WHERE NOT EXISTS (SELECT 1 FROM segment g WHERE g.bundle = b.id) LIMIT 1000",
        )
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(|row| Ok((row.try_get("id")?, row.try_get("key")?))).collect()
    }

    /// To be called when the object is gone.
    pub async fn bundle_forget(&self, id: i64) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM bundle WHERE id = ?").bind(id).execute(&self.writer).await?;
        Ok(())
    }

    pub async fn bundle_known(&self, key: &str) -> Result<bool, StoreError> {
        let row =
            sqlx::query("SELECT 1 FROM bundle WHERE key = ?").bind(key).fetch_optional(&self.readers).await?;
        Ok(row.is_some())
    }

    /// Private keys of days long past, with the wraps that only they open; used-up tokens; old accesses.
    pub async fn keys_expire(
        &self,
        before_day: u32,
        now_ms: i64,
        accesses_before_ms: i64,
    ) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        sqlx::query("DELETE FROM wrap WHERE key_id IN (SELECT id FROM hpke_key WHERE day < ?)")
            .bind(i64::from(before_day))
            .execute(&mut *tx)
            .await?;
        sqlx::query("DELETE FROM hpke_key WHERE day < ?")
            .bind(i64::from(before_day))
            .execute(&mut *tx)
            .await?;
        sqlx::query("DELETE FROM join_token WHERE expires_ms < ?").bind(now_ms).execute(&mut *tx).await?;
        sqlx::query("DELETE FROM access_log WHERE unix_ms < ?")
            .bind(accesses_before_ms)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(())
    }

    /// Gives freed pages back to the file system, a bounded number at a time.
    pub async fn space_return(&self) -> Result<(), StoreError> {
        sqlx::query("PRAGMA incremental_vacuum(4096)").execute(&self.writer).await?;
        sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&self.writer).await?;
        self.text_space_return().await
    }
}

/// Answers the session's run when nothing of the session is left.
async fn old_delete(tx: &mut Tx, old: &Old, now_ms: i64) -> Result<Option<Vec<u8>>, StoreError> {
    let (id, upto) = (&old.session.as_bytes()[..], old.upto);
    sqlx::query(
        "DELETE FROM exchange WHERE id IN (SELECT e.id FROM segment g JOIN exchange e \
         ON e.id >= g.first_exchange AND e.id < g.first_exchange + g.exchanges WHERE g.session_id = ? AND g.seq < ?)",
    )
    .bind(id)
    .bind(upto)
    .execute(&mut **tx)
    .await?;
    sqlx::query(
        "DELETE FROM running WHERE session_id = ? AND NOT EXISTS (SELECT 1 FROM exchange e WHERE e.id = running.exchange)",
    )
    .bind(id)
    .execute(&mut **tx)
    .await?;
    sqlx::query(
        "INSERT INTO expired (session_id, seq, hash) SELECT session_id, seq, hash FROM segment \
         WHERE session_id = ? AND seq < ? ON CONFLICT DO NOTHING",
    )
    .bind(id)
    .bind(upto)
    .execute(&mut **tx)
    .await?;
    sqlx::query("DELETE FROM segment WHERE session_id = ? AND seq < ?")
        .bind(id)
        .bind(upto)
        .execute(&mut **tx)
        .await?;
    sqlx::query("DELETE FROM gap WHERE session_id = ? AND seq < ?")
        .bind(id)
        .bind(upto)
        .execute(&mut **tx)
        .await?;
    sqlx::query(
        "DELETE FROM session_key WHERE session_id = ?1 AND generation NOT IN \
         (SELECT generation FROM segment WHERE session_id = ?1)",
    )
    .bind(id)
    .execute(&mut **tx)
    .await?;
    let row = sqlx::query(
        "UPDATE session SET expired_seq = ?2, expired_ms = ?3, \
         facts = CASE WHEN ?2 >= next_seq THEN '{}' ELSE facts END, \
         process = CASE WHEN ?2 >= next_seq THEN x'' ELSE process END WHERE id = ?1 \
         RETURNING run_id, expired_seq >= next_seq AS gone",
    )
    .bind(id)
    .bind(upto)
    .bind(now_ms)
    .fetch_one(&mut **tx)
    .await?;
    let gone: bool = row.try_get("gone")?;
    Ok(if gone { Some(row.try_get("run_id")?) } else { None })
}

/// What a run itself says about content goes when the last of its sessions has gone.
async fn run_forget(tx: &mut Tx, run: &[u8]) -> Result<(), StoreError> {
    const GONE: &str =
        "NOT EXISTS (SELECT 1 FROM session s WHERE s.run_id = ?1 AND s.expired_seq < s.next_seq)";
    for forget in [
        "DELETE FROM run_label WHERE run_id = ?1",
        "UPDATE run SET argv = '[]' WHERE argv <> '[]' AND id = ?1",
    ] {
        let sql = sqlx::AssertSqlSafe(format!("{forget} AND {GONE}"));
        sqlx::query(sql).bind(run).execute(&mut **tx).await?;
    }
    Ok(())
}
