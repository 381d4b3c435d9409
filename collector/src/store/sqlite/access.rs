//! Who may do what, and who did: credentials, join tokens, the access log.

use sqlx::Row;
use weir_proto::v1;

use super::reads::{ReadError, page_rows};
use super::{SqliteIndex, int};
use crate::store::StoreError;
use crate::store::rows::CredentialRow;

const MINUTE_MS: i64 = 60_000;

/// One call, as the access log tells it.
pub struct AccessEntry<'a> {
    pub unix_ms: i64,
    /// Name of the credential.
    pub who: &'a str,
    pub call: &'a str,
    pub subject: &'a str,
    pub allowed: bool,
}

impl SqliteIndex {
    pub async fn join_token_add(
        &self,
        hash: &[u8; 32],
        uses: u32,
        expires_ms: i64,
        name_pattern: &str,
        created_by: &str,
        now_ms: i64,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO join_token (hash, uses_left, expires_ms, name_pattern, created_ms, created_by) \
             VALUES (?, ?, ?, ?, ?, ?)",
        )
        .bind(&hash[..])
        .bind(i64::from(uses))
        .bind(expires_ms)
        .bind(name_pattern)
        .bind(now_ms)
        .bind(created_by)
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    /// Answers false when the name is taken by a credential that is not revoked; a revoked one's name is free again.
    pub async fn credential_add(
        &self,
        hash: &[u8; 32],
        name: &str,
        role: &str,
        created_by: &str,
        now_ms: i64,
    ) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        sqlx::query("DELETE FROM credential WHERE name = ? AND revoked_ms IS NOT NULL")
            .bind(name)
            .execute(&mut *tx)
            .await?;
        let added = sqlx::query(
            "INSERT INTO credential (hash, name, role, created_ms, created_by) VALUES (?, ?, ?, ?, ?) \
             ON CONFLICT (name) DO NOTHING",
        )
        .bind(&hash[..])
        .bind(name)
        .bind(role)
        .bind(now_ms)
        .bind(created_by)
        .execute(&mut *tx)
        .await?
        .rows_affected();
        tx.commit().await?;
        Ok(added == 1)
    }

    pub async fn credential(&self, hash: &[u8; 32]) -> Result<Option<CredentialRow>, StoreError> {
        let row = sqlx::query("SELECT name, role FROM credential WHERE hash = ? AND revoked_ms IS NULL")
            .bind(&hash[..])
            .fetch_optional(&self.readers)
            .await?;
        row.map(|row| Ok(CredentialRow { name: row.try_get("name")?, role: row.try_get("role")? }))
            .transpose()
    }

    pub async fn credential_count(&self) -> Result<u64, StoreError> {
        let row = sqlx::query("SELECT count(*) FROM credential").fetch_one(&self.readers).await?;
        Ok(u64::try_from(row.try_get::<i64, _>(0)?).unwrap_or(0))
    }

    pub async fn credential_revoke(&self, name: &str, now_ms: i64) -> Result<bool, StoreError> {
        let done = sqlx::query("UPDATE credential SET revoked_ms = ? WHERE name = ? AND revoked_ms IS NULL")
            .bind(now_ms)
            .bind(name)
            .execute(&self.writer)
            .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Written before the call is answered.
    pub async fn access_log(&self, entry: &AccessEntry<'_>) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO access_log (unix_ms, who, call, subject, allowed) VALUES (?, ?, ?, ?, ?)")
            .bind(entry.unix_ms)
            .bind(entry.who)
            .bind(entry.call)
            .bind(entry.subject)
            .bind(entry.allowed)
            .execute(&self.writer)
            .await?;
        Ok(())
    }

    /// Refused calls of strangers, all in one transaction: (call, when, how many).
    pub async fn access_log_strangers(&self, calls: &[(&str, i64, u64)]) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        for (call, unix_ms, times) in calls {
            sqlx::query(
                "INSERT INTO access_log (unix_ms, who, call, subject, allowed, times) VALUES (?, '', ?, '', 0, ?) \
                 ON CONFLICT (call, unix_ms) WHERE who = '' DO UPDATE SET times = times + excluded.times",
            )
            .bind(unix_ms - unix_ms.rem_euclid(MINUTE_MS))
            .bind(*call)
            .bind(int(*times))
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// Latest first.
    pub async fn access_list(&self, page: &v1::Page) -> Result<v1::AccessesResponse, ReadError> {
        let (rows, before) = (page_rows(page), page.cursor.as_str());
        let before: i64 =
            if before.is_empty() { i64::MAX } else { before.parse().map_err(|_| super::BadCursor)? };
        let found = sqlx::query(
            "SELECT id, unix_ms, who, call, subject, allowed, times FROM access_log WHERE id < ? ORDER BY id DESC LIMIT ?",
        )
        .bind(before)
        .bind(int(rows))
        .fetch_all(&self.readers)
        .await?;
        let mut next_cursor = String::new();
        if found.len() as u64 == rows
            && let Some(last) = found.last()
        {
            next_cursor = last.try_get::<i64, _>("id")?.to_string();
        }
        let mut accesses = Vec::with_capacity(found.len());
        for row in found {
            accesses.push(v1::Access {
                unix_ms: row.try_get("unix_ms")?,
                who: row.try_get("who")?,
                call: row.try_get("call")?,
                subject: row.try_get("subject")?,
                allowed: row.try_get("allowed")?,
                times: super::uint(&row, "times")?,
            });
        }
        Ok(v1::AccessesResponse { accesses, next_cursor })
    }
}
