//! What is held as it came: where segments are, signed log entries, and what the index claims about them.

use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, Sqlite};
use weir_proto::seal::Anchor;
use weir_proto::{GenerationId, NodeId, RunId, SessionId, v1};

use super::{SqliteIndex, fixed, int, uint};
use crate::store::StoreError;
use crate::store::rows::StoredSegment;

impl SqliteIndex {
    /// Segments of a session from `from_seq` on, in sequence.
    pub async fn segment_list(
        &self,
        session: &SessionId,
        from_seq: u64,
        rows: u64,
    ) -> Result<Vec<StoredSegment>, StoreError> {
        let found = sqlx::query(
            "SELECT g.*, b.key FROM segment g JOIN bundle b ON b.id = g.bundle \
             WHERE g.session_id = ? AND g.seq >= ? ORDER BY g.seq LIMIT ?",
        )
        .bind(&session.as_bytes()[..])
        .bind(int(from_seq))
        .bind(int(rows))
        .fetch_all(&self.readers)
        .await?;
        found.iter().map(segment_row).collect()
    }

    /// Segments of a session before `before_seq` with events at or after `from_boot_ns`, the first so many.
    pub async fn segment_list_within(
        &self,
        session: &SessionId,
        from_boot_ns: u64,
        before_seq: u64,
        rows: u64,
    ) -> Result<Vec<StoredSegment>, StoreError> {
        let found = sqlx::query(
            "SELECT g.*, b.key FROM segment g JOIN bundle b ON b.id = g.bundle \
             WHERE g.session_id = ? AND g.seq < ? AND g.last_boot_ns >= ? ORDER BY g.seq LIMIT ?",
        )
        .bind(&session.as_bytes()[..])
        .bind(int(before_seq))
        .bind(int(from_boot_ns))
        .bind(int(rows))
        .fetch_all(&self.readers)
        .await?;
        found.iter().map(segment_row).collect()
    }

    /// Segments of a run in order of their first event, after (`first_boot_ns`, session, seq).
    pub async fn run_segment_list(
        &self,
        run: &RunId,
        after: Option<(u64, SessionId, u64)>,
        rows: u64,
    ) -> Result<Vec<StoredSegment>, StoreError> {
        let (time, session, seq) = match after {
            Some((time, session, seq)) => (int(time), session.as_bytes().to_vec(), int(seq)),
            None => (-1, Vec::new(), 0),
        };
        let found = sqlx::query(
            "SELECT g.*, b.key FROM session s JOIN segment g ON g.session_id = s.id JOIN bundle b ON b.id = g.bundle \
             WHERE s.run_id = ? AND (g.first_boot_ns, g.session_id, g.seq) > (?, ?, ?) \
             ORDER BY g.first_boot_ns, g.session_id, g.seq LIMIT ?",
        )
        .bind(&run.as_bytes()[..])
        .bind(time)
        .bind(session)
        .bind(seq)
        .bind(int(rows))
        .fetch_all(&self.readers)
        .await?;
        found.iter().map(segment_row).collect()
    }

    /// What the collector claims to hold of a session.
    pub async fn session_claim(&self, session: &SessionId) -> Result<Option<v1::ProofSession>, StoreError> {
        let row = sqlx::query("SELECT * FROM session WHERE id = ?")
            .bind(&session.as_bytes()[..])
            .fetch_optional(&self.readers)
            .await?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(v1::ProofSession {
            session_id: session.to_field(),
            run_id: RunId::from_bytes(fixed(&row, "run_id")?).to_field(),
            node_id: NodeId::from_bytes(fixed(&row, "node_id")?).to_field(),
            node_number: uint(&row, "node_number")?,
            segments: uint(&row, "next_seq")?,
            head_hash: row.try_get::<Vec<u8>, _>("head_hash")?.into(),
            closed: row.try_get("closed")?,
            expired_segments: uint(&row, "expired_seq")?,
            expired_unix_ms: row.try_get("expired_ms")?,
        }))
    }

    /// Ids of a run's sessions after `after`, in order of id (they are made in order of time).
    pub async fn session_ids(
        &self,
        run: &RunId,
        after: Option<SessionId>,
        rows: u64,
    ) -> Result<Vec<SessionId>, StoreError> {
        let found = sqlx::query("SELECT id FROM session WHERE run_id = ? AND id > ? ORDER BY id LIMIT ?")
            .bind(&run.as_bytes()[..])
            .bind(after.map(|id| id.as_bytes().to_vec()).unwrap_or_default())
            .bind(int(rows))
            .fetch_all(&self.readers)
            .await?;
        found.iter().map(|row| Ok(SessionId::from_bytes(fixed(row, "id")?))).collect()
    }

    /// Encoded signed entries of a node's log from `from` on.
    pub async fn node_entry_list(
        &self,
        node: &NodeId,
        from: u64,
        rows: u64,
    ) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        let found = sqlx::query(
            "SELECT idx, signed FROM node_entry WHERE node_id = ? AND idx >= ? ORDER BY idx LIMIT ?",
        )
        .bind(&node.as_bytes()[..])
        .bind(int(from))
        .bind(int(rows))
        .fetch_all(&self.readers)
        .await?;
        found.iter().map(|row| Ok((uint(row, "idx")?, row.try_get("signed")?))).collect()
    }

    /// What is held of a node's sessions, by number, after (`number`, session).
    pub async fn held_list(
        &self,
        node: &NodeId,
        after: (u64, Vec<u8>),
        rows: u64,
    ) -> Result<Vec<v1::HeldSession>, StoreError> {
        let found = sqlx::query(
            "SELECT s.*, (SELECT count(*) FROM segment g WHERE g.session_id = s.id) AS held FROM session s \
             WHERE s.node_id = ? AND (s.node_number, s.id) > (?, ?) ORDER BY s.node_number, s.id LIMIT ?",
        )
        .bind(&node.as_bytes()[..])
        .bind(int(after.0))
        .bind(after.1)
        .bind(int(rows))
        .fetch_all(&self.readers)
        .await?;
        found
            .iter()
            .map(|row| {
                Ok(v1::HeldSession {
                    number: uint(row, "node_number")?,
                    session_id: SessionId::from_bytes(fixed(row, "id")?).to_field(),
                    segments: uint(row, "next_seq")?,
                    head_hash: row.try_get::<Vec<u8>, _>("head_hash")?.into(),
                    closed: row.try_get("closed")?,
                    gaps: uint(row, "gaps")?,
                    expired_segments: uint(row, "expired_seq")?,
                    held_segments: uint(row, "held")?,
                    last: None,
                })
            })
            .collect()
    }

    /// Alerts of a node, or of one session; the oldest first, bounded by what is kept.
    pub async fn alert_list(
        &self,
        node: &NodeId,
        session: Option<&SessionId>,
    ) -> Result<Vec<v1::ProofAlert>, StoreError> {
        let mut query = QueryBuilder::<Sqlite>::new("SELECT * FROM alert WHERE node_id = ");
        query.push_bind(node.as_bytes().to_vec());
        if let Some(session) = session {
            query.push(" AND session_id = ").push_bind(session.as_bytes().to_vec());
        }
        let found = query.push(" ORDER BY id").build().fetch_all(&self.readers).await?;
        found
            .iter()
            .map(|row| {
                Ok(v1::ProofAlert {
                    unix_ms: row.try_get("unix_ms")?,
                    node_id: node.to_field(),
                    session_id: row.try_get::<Option<Vec<u8>>, _>("session_id")?.unwrap_or_default().into(),
                    kind: row.try_get("kind")?,
                    detail: row.try_get("detail")?,
                })
            })
            .collect()
    }
}

pub(super) fn segment_row(row: &SqliteRow) -> Result<StoredSegment, StoreError> {
    Ok(StoredSegment {
        session: SessionId::from_bytes(fixed(row, "session_id")?),
        seq: uint(row, "seq")?,
        bundle: row.try_get("key")?,
        at: uint(row, "at")?,
        len: uint(row, "len")?,
        hash: fixed(row, "hash")?,
        signature: row.try_get("signature")?,
        generation: GenerationId::from_bytes(fixed(row, "generation")?),
        first_boot_ns: uint(row, "first_boot_ns")?,
        wall: Anchor {
            unix_ns: row.try_get("wall_unix_ns")?,
            boot_ns: uint(row, "wall_boot_ns")?,
            synchronized: true,
        },
        received_ms: row.try_get("received_ms")?,
        receipt: row.try_get("receipt")?,
    })
}
