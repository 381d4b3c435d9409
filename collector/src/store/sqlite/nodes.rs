//! Nodes: enrolment, revocation, their wraps, and the keys that open them. How they stand is in [`super::fleet`].

use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use weir_proto::{GenerationId, KeyId, NodeId, SessionId, v1};

use super::{SqliteIndex, fixed, int, uint};
use crate::keys::hpke::StoredHpkeKey;
use crate::store::StoreError;
use crate::store::rows::{Enrolled, NewNode, NodeRow};

/// Wraps one node may leave here; one is made at every agent start and then hourly, and retention takes old ones away.
const WRAPS_PER_NODE_MAX: i64 = 200_000;

impl SqliteIndex {
    pub async fn node(&self, id: &NodeId) -> Result<Option<NodeRow>, StoreError> {
        let row = sqlx::query(
            "SELECT id, name, signing_key, revoked_ms, log_entries, log_head, next_number FROM node WHERE id = ?",
        )
        .bind(&id.as_bytes()[..])
        .fetch_optional(&self.readers)
        .await?;
        row.as_ref().map(node_row).transpose()
    }

    /// There is such a join token and it has not expired: asked of a reader, so that strangers do not reach the writer.
    pub async fn join_token_known(&self, hash: &[u8; 32], now_ms: i64) -> Result<bool, StoreError> {
        let row = sqlx::query("SELECT 1 FROM join_token WHERE hash = ? AND expires_ms > ?")
            .bind(&hash[..])
            .bind(now_ms)
            .fetch_optional(&self.readers)
            .await?;
        Ok(row.is_some())
    }

    /// Takes one use of a join token and makes the node, both or nothing. `may` says whether the token's name pattern
    /// allows the name.
    pub async fn node_enroll(
        &self,
        new: &NewNode<'_>,
        may: impl Fn(&str) -> bool + Send,
    ) -> Result<Enrolled, StoreError> {
        let mut tx = self.begin().await?;
        let token = sqlx::query("SELECT name_pattern, uses_left, expires_ms FROM join_token WHERE hash = ?")
            .bind(&new.token_hash[..])
            .fetch_optional(&mut *tx)
            .await?;
        let Some(token) = token else { return Ok(Enrolled::Refused) };
        let pattern: String = token.try_get("name_pattern")?;
        let expires_ms: i64 = token.try_get("expires_ms")?;
        if expires_ms <= new.now_ms || !may(&pattern) {
            return Ok(Enrolled::Refused);
        }
        let known = sqlx::query("SELECT id, join_token, name, revoked_ms FROM node WHERE signing_key = ?")
            .bind(&new.signing_key[..])
            .fetch_optional(&mut *tx)
            .await?;
        // Who holds a node's signing key is that node: it gets its own id again, and a certificate in place of one that it
        // lost or let expire.
        let again = match &known {
            Some(known) if known.try_get::<Option<i64>, _>("revoked_ms")?.is_some() => {
                return Ok(Enrolled::Revoked);
            }
            Some(known) if known.try_get::<&str, _>("name")? != new.name => return Ok(Enrolled::KnownKey),
            Some(known) => Some(NodeId::from_bytes(fixed(known, "id")?)),
            None => None,
        };
        // The answer to the first attempt was lost: that costs the token no second use.
        let repeated = match &known {
            Some(known) => known.try_get::<Option<&[u8]>, _>("join_token")? == Some(&new.token_hash[..]),
            None => false,
        };
        if let Some(node) = again.filter(|_| repeated) {
            return Ok(Enrolled::As(node));
        }
        if uint(&token, "uses_left")? == 0 {
            return Ok(Enrolled::Refused);
        }
        sqlx::query("UPDATE join_token SET uses_left = uses_left - 1 WHERE hash = ?")
            .bind(&new.token_hash[..])
            .execute(&mut *tx)
            .await?;
        if let Some(node) = again {
            sqlx::query("UPDATE node SET join_token = ? WHERE id = ?")
                .bind(&new.token_hash[..])
                .bind(&node.as_bytes()[..])
                .execute(&mut *tx)
                .await?;
            tx.commit().await?;
            return Ok(Enrolled::As(node));
        }
        sqlx::query(
            "INSERT INTO node (id, name, signing_key, join_token, enrolled_ms, last_seen_ms) VALUES (?, ?, ?, ?, ?, ?)",
        )
        .bind(&new.id.as_bytes()[..])
        .bind(new.name)
        .bind(&new.signing_key[..])
        .bind(&new.token_hash[..])
        .bind(new.now_ms)
        .bind(new.now_ms)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(Enrolled::As(new.id))
    }

    /// A node that nobody enrolled: the one of a standalone recording folder.
    pub async fn node_adopt(
        &self,
        id: &NodeId,
        name: &str,
        signing_key: &[u8; 32],
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO node (id, name, signing_key, enrolled_ms) VALUES (?, ?, ?, 0) ON CONFLICT (id) DO NOTHING",
        )
        .bind(&id.as_bytes()[..])
        .bind(name)
        .bind(&signing_key[..])
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    /// Answers whether there is such a node.
    pub async fn node_revoke(&self, id: &NodeId, now_ms: i64) -> Result<bool, StoreError> {
        let done = sqlx::query("UPDATE node SET revoked_ms = COALESCE(revoked_ms, ?) WHERE id = ?")
            .bind(now_ms)
            .bind(&id.as_bytes()[..])
            .execute(&self.writer)
            .await?;
        Ok(done.rows_affected() == 1)
    }

    pub async fn node_seen(&self, id: &NodeId, version: &str, now_ms: i64) -> Result<(), StoreError> {
        sqlx::query("UPDATE node SET last_seen_ms = ?, agent_version = ? WHERE id = ?")
            .bind(now_ms)
            .bind(version)
            .bind(&id.as_bytes()[..])
            .execute(&self.writer)
            .await?;
        Ok(())
    }

    /// Hash of one entry of a node's log.
    pub async fn node_entry_hash(&self, id: &NodeId, index: u64) -> Result<Option<[u8; 32]>, StoreError> {
        let row = sqlx::query("SELECT hash FROM node_entry WHERE node_id = ? AND idx = ?")
            .bind(&id.as_bytes()[..])
            .bind(int(index))
            .fetch_optional(&self.readers)
            .await?;
        row.map(|row| fixed(&row, "hash")).transpose()
    }

    /// Keeps a wrap; the first one of a generation stays. Answers false when this node has left too many.
    pub async fn wrap_put(
        &self,
        generation: &GenerationId,
        key: &KeyId,
        node: &NodeId,
        wrap: &v1::Wrap,
        now_ms: i64,
    ) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        let row = sqlx::query("SELECT count(*) FROM wrap WHERE node_id = ?")
            .bind(&node.as_bytes()[..])
            .fetch_one(&mut *tx)
            .await?;
        if row.try_get::<i64, _>(0)? >= WRAPS_PER_NODE_MAX {
            return Ok(false);
        }
        sqlx::query(
            "INSERT INTO wrap (generation, node_id, key_id, enc, ciphertext, received_ms) VALUES (?, ?, ?, ?, ?, ?) \
             ON CONFLICT DO NOTHING",
        )
        .bind(&generation.as_bytes()[..])
        .bind(&node.as_bytes()[..])
        .bind(&key.as_bytes()[..])
        .bind(&wrap.enc[..])
        .bind(&wrap.ciphertext[..])
        .bind(now_ms)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(true)
    }

    /// The wrap of a generation of this node, with the key that opens it.
    pub async fn wrap(
        &self,
        generation: &GenerationId,
        node: &NodeId,
    ) -> Result<Option<(v1::Wrap, StoredHpkeKey)>, StoreError> {
        let row = sqlx::query(
            "SELECT w.enc, w.ciphertext, k.id, k.class, k.day, k.public_key, k.wrapped \
             FROM wrap w JOIN hpke_key k ON k.id = w.key_id WHERE w.generation = ? AND w.node_id = ?",
        )
        .bind(&generation.as_bytes()[..])
        .bind(&node.as_bytes()[..])
        .fetch_optional(&self.readers)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let key = hpke_row(&row)?;
        let wrap = v1::Wrap {
            generation_id: generation.to_field(),
            key_id: key.id.to_field(),
            enc: row.try_get::<Vec<u8>, _>("enc")?.into(),
            ciphertext: row.try_get::<Vec<u8>, _>("ciphertext")?.into(),
            node_id: node.to_field(),
        };
        Ok(Some((wrap, key)))
    }

    /// Keys of a class from this day on, by day.
    pub async fn hpke_key_list(&self, class: &str, from_day: u32) -> Result<Vec<StoredHpkeKey>, StoreError> {
        let rows = sqlx::query(
            "SELECT id, class, day, public_key, wrapped FROM hpke_key WHERE class = ? AND day >= ? ORDER BY day",
        )
        .bind(class)
        .bind(i64::from(from_day))
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(hpke_row).collect()
    }

    pub async fn hpke_key(&self, id: &KeyId) -> Result<Option<StoredHpkeKey>, StoreError> {
        let row = sqlx::query("SELECT id, class, day, public_key, wrapped FROM hpke_key WHERE id = ?")
            .bind(&id.as_bytes()[..])
            .fetch_optional(&self.readers)
            .await?;
        row.as_ref().map(hpke_row).transpose()
    }

    /// Adds keys; one that exists for its class and day stays.
    pub async fn hpke_key_add(&self, keys: &[StoredHpkeKey]) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        for key in keys {
            sqlx::query(
                "INSERT INTO hpke_key (id, class, day, public_key, wrapped) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            )
            .bind(&key.id.as_bytes()[..])
            .bind(&key.class)
            .bind(i64::from(key.day))
            .bind(&key.public)
            .bind(&key.wrapped)
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// The wrapped key of one session under one generation; `None` when it was shredded.
    pub async fn session_key(
        &self,
        session: &SessionId,
        generation: &GenerationId,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let row = sqlx::query("SELECT wrapped FROM session_key WHERE session_id = ? AND generation = ?")
            .bind(&session.as_bytes()[..])
            .bind(&generation.as_bytes()[..])
            .fetch_optional(&self.readers)
            .await?;
        row.map(|row| Ok(row.try_get(0)?)).transpose()
    }
}

fn node_row(row: &SqliteRow) -> Result<NodeRow, StoreError> {
    Ok(NodeRow {
        id: NodeId::from_bytes(fixed(row, "id")?),
        name: row.try_get("name")?,
        signing_key: fixed(row, "signing_key")?,
        revoked: row.try_get::<Option<i64>, _>("revoked_ms")?.is_some(),
        log_entries: uint(row, "log_entries")?,
        log_head: row.try_get("log_head")?,
        next_number: uint(row, "next_number")?,
    })
}

fn hpke_row(row: &SqliteRow) -> Result<StoredHpkeKey, StoreError> {
    Ok(StoredHpkeKey {
        id: KeyId::from_bytes(fixed(row, "id")?),
        class: row.try_get("class")?,
        day: u32::try_from(row.try_get::<i64, _>("day")?).map_err(|_| StoreError::Damaged("day"))?,
        public: row.try_get("public_key")?,
        wrapped: row.try_get("wrapped")?,
    })
}
