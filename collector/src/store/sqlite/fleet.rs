//! How each node stands: its log as it comes in, what the log says of the agent, and the times without a sign of life.

use prost::Message;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, Transaction};
use weir_proto::{NodeId, RunId, v1};

use super::reads::{Cursor, ReadError, page_rows};
use super::{SqliteIndex, fixed, int, uint};
use crate::heartbeats::{Kind, Life, NodeGap, Said, Sign};
use crate::store::StoreError;
use crate::store::rows::AcceptedEntries;

/// Gaps kept per node; the log itself still proves those that are not.
const GAPS_PER_NODE_MAX: i64 = 10_000;
/// Gaps told with a node, and with a run.
const GAPS_SHOWN: i64 = 20;

type Tx<'c> = Transaction<'c, Sqlite>;

impl SqliteIndex {
    /// In order of enrolment; one node, or all. What is known only while a node is connected is not the index's to know.
    pub async fn node_list(
        &self,
        page: &v1::Page,
        node: Option<NodeId>,
    ) -> Result<v1::NodesResponse, ReadError> {
        let rows = page_rows(page);
        let cursor = Cursor::parse(&page.cursor)?;
        let found = sqlx::query(
            "SELECT * FROM node WHERE (enrolled_ms, id) > (?1, ?2) AND (?3 IS NULL OR id = ?3) \
             ORDER BY enrolled_ms, id LIMIT ?4",
        )
        .bind(cursor.as_ref().map_or(i64::MIN, |cursor| cursor.time))
        .bind(cursor.map(|cursor| cursor.id).unwrap_or_default())
        .bind(node.map(|node| node.as_bytes().to_vec()))
        .bind(int(rows))
        .fetch_all(&self.readers)
        .await?;
        let mut nodes = Vec::with_capacity(found.len());
        for row in &found {
            let mut node = node_summary(row)?;
            (node.gap_count, node.gaps) = self.node_gaps(&node.node_id).await?;
            nodes.push(node);
        }
        let next_cursor = match found.last() {
            Some(last) if found.len() as u64 == rows => {
                Cursor::show(last.try_get("enrolled_ms")?, &fixed::<16>(last, "id")?, 0)
            }
            _ => String::new(),
        };
        Ok(v1::NodesResponse { nodes, next_cursor })
    }

    async fn node_gaps(&self, node: &[u8]) -> Result<(u64, Vec<v1::NodeGap>), StoreError> {
        let count = sqlx::query("SELECT count(*) AS n FROM node_gap WHERE node_id = ?")
            .bind(node)
            .fetch_one(&self.readers)
            .await?;
        let rows = sqlx::query(
            "SELECT * FROM node_gap WHERE node_id = ? ORDER BY before_entry DESC, from_unix_ns DESC LIMIT ?",
        )
        .bind(node)
        .bind(GAPS_SHOWN)
        .fetch_all(&self.readers)
        .await?;
        Ok((uint(&count, "n")?, rows.iter().map(gap_row).collect::<Result<_, _>>()?))
    }

    /// Times within a run, or of a node, in which its agent was not at work: what happened then is on no record. A time in
    /// which only the collector could not be reached is none.
    pub async fn unattended(
        &self,
        run: Option<RunId>,
        node: Option<NodeId>,
    ) -> Result<Vec<v1::NodeGap>, StoreError> {
        let rows = match (run, node) {
            (Some(run), _) => {
                sqlx::query(
                    "SELECT g.* FROM run r JOIN node_gap g ON g.node_id = r.node_id WHERE r.id = ?1 AND g.kind <> ?2 \
                     AND g.from_unix_ns <= r.last_unix_ns AND (g.to_unix_ns = 0 OR g.to_unix_ns >= r.first_unix_ns) \
                     ORDER BY g.before_entry LIMIT ?3",
                )
                .bind(run.as_bytes().to_vec())
                .bind(Kind::Unreachable as i32)
                .bind(GAPS_SHOWN)
                .fetch_all(&self.readers)
                .await?
            }
            (None, Some(node)) => {
                sqlx::query(
                    "SELECT * FROM node_gap WHERE node_id = ?1 AND kind <> ?2 ORDER BY before_entry DESC LIMIT ?3",
                )
                .bind(node.as_bytes().to_vec())
                .bind(Kind::Unreachable as i32)
                .bind(GAPS_SHOWN)
                .fetch_all(&self.readers)
                .await?
            }
            (None, None) => Vec::new(),
        };
        rows.iter().map(gap_row).collect()
    }

    /// When the latest certificate that a node was given ends.
    pub async fn node_certified(&self, id: &NodeId, not_after_unix: i64) -> Result<(), StoreError> {
        sqlx::query("UPDATE node SET certificate_not_after = ? WHERE id = ?")
            .bind(not_after_unix)
            .bind(&id.as_bytes()[..])
            .execute(&self.writer)
            .await?;
        Ok(())
    }

    /// Puts on record which agents have not been heard of since then and did not say that they would stop. Answers how
    /// many those are that were not on record yet.
    pub async fn nodes_fall_silent(&self, heard_before_ms: i64) -> Result<u64, StoreError> {
        const SILENT: &str = "heard_ms > 0 AND heard_ms < ?1 AND stopped = 0 AND revoked_ms IS NULL \
             AND NOT EXISTS (SELECT 1 FROM node_gap g WHERE g.node_id = node.id AND g.before_entry = node.log_entries AND g.kind = ?2)";
        let any = sqlx::query(sqlx::AssertSqlSafe(format!("SELECT 1 FROM node WHERE {SILENT} LIMIT 1")))
            .bind(heard_before_ms)
            .bind(Kind::Silent as i32)
            .fetch_optional(&self.readers)
            .await?;
        if any.is_none() {
            return Ok(0);
        }
        let done = sqlx::query(sqlx::AssertSqlSafe(format!(
            "INSERT INTO node_gap (node_id, before_entry, kind, from_unix_ns) \
             SELECT id, log_entries, ?2, heard_ms * 1000000 FROM node WHERE {SILENT}"
        )))
        .bind(heard_before_ms)
        .bind(Kind::Silent as i32)
        .execute(&self.writer)
        .await?;
        Ok(done.rows_affected())
    }
}

/// Entries that continue a node's log, what they say of the agent, and the gaps that they end.
pub(super) async fn node_entries_insert(
    tx: &mut Tx<'_>,
    accepted: &AcceptedEntries,
) -> Result<(), StoreError> {
    let (Some(first), Some(last)) = (accepted.entries.first(), accepted.entries.last()) else {
        return Ok(());
    };
    let node = &accepted.node.as_bytes()[..];
    let now_ms = crate::clock::unix_ms();
    let mut life = node_life(tx, node).await?;
    let mut gaps = Vec::new();
    for entry in &accepted.entries {
        sqlx::query(
            "INSERT INTO node_entry (node_id, idx, hash, unix_ns, signed, received_ms) VALUES (?, ?, ?, ?, ?, ?)",
        )
        .bind(node)
        .bind(int(entry.index))
        .bind(&entry.hash[..])
        .bind(entry.unix_ns)
        .bind(&entry.signed)
        .bind(now_ms)
        .execute(&mut **tx)
        .await?;
        gaps.extend(life.goes_on(entry.sign.clone()));
    }
    silence_settle(tx, node, first.index, now_ms, &gaps).await?;
    gaps.extend(life.going_on());
    for gap in &gaps {
        gap_put(tx, node, gap).await?;
    }
    let beat = accepted.entries.iter().rev().find_map(|entry| entry.heartbeat.clone());
    let opened = accepted.entries.iter().map(|entry| entry.opened_max).max().unwrap_or(0);
    let agent = accepted.entries.iter().rev().find_map(|entry| entry.agent.clone());
    let number = beat.as_ref().map_or(0, |beat| beat.next_number).max(opened.saturating_add(1));
    let of_beat = |value: fn(&v1::Heartbeat) -> u64| beat.as_ref().map(|beat| int(value(beat)));
    let sign = &last.sign;
    let changed = sqlx::query(
        "UPDATE node SET log_entries = ?1, log_head = ?2, next_number = MAX(next_number, ?3), \
         spooled_segments = COALESCE(?4, spooled_segments), spooled_bytes = COALESCE(?5, spooled_bytes), \
         unobserved = COALESCE(?6, unobserved), open_sessions = COALESCE(?7, open_sessions), \
         redirected = COALESCE(?8, redirected), refused = COALESCE(?9, refused), \
         agent_state = COALESCE(?10, agent_state), clock_synchronized = ?11, heard_ms = ?12, log_boot_ns = ?13, \
         log_unix_ns = ?14, boot_id = ?15, stopped = ?16, bypassed = ?17 WHERE id = ?18 AND log_entries = ?19",
    )
    .bind(int(last.index.saturating_add(1)))
    .bind(&last.hash[..])
    .bind(int(number))
    .bind(of_beat(|beat| beat.spooled_segments))
    .bind(of_beat(|beat| beat.spooled_bytes))
    .bind(of_beat(|beat| beat.unobserved))
    .bind(of_beat(|beat| beat.open_sessions))
    .bind(of_beat(|beat| beat.redirected))
    .bind(of_beat(|beat| beat.refused))
    .bind(agent)
    .bind(last.synchronized)
    .bind(now_ms)
    .bind(int(sign.at_ns))
    .bind(sign.unix_ns)
    .bind(&sign.boot_id)
    .bind(life.last.as_ref().is_some_and(|last| last.said == Said::Stopped))
    .bind(int(life.bypass.map_or(0, |(entry, _)| entry.saturating_add(1))))
    .bind(node)
    .bind(int(accepted.from))
    .execute(&mut **tx)
    .await?
    .rows_affected();
    if changed == 1 { Ok(()) } else { Err(StoreError::Conflict) }
}

/// As it stood after the last entry that is held.
async fn node_life(tx: &mut Tx<'_>, node: &[u8]) -> Result<Life, StoreError> {
    let row = sqlx::query(
        "SELECT log_entries, log_boot_ns, log_unix_ns, boot_id, stopped, bypassed, heard_ms, \
         (SELECT from_unix_ns FROM node_gap g WHERE g.node_id = node.id AND g.before_entry = node.bypassed - 1 AND g.kind = ?2) \
         AS bypassed_unix_ns FROM node WHERE id = ?1",
    )
    .bind(node)
    .bind(Kind::Bypassed as i32)
    .fetch_optional(&mut **tx)
    .await?;
    let Some(row) = row else { return Ok(Life::default()) };
    let entries = uint(&row, "log_entries")?;
    // An index of an earlier version does not know when the last entry was written: the next one is the first that counts.
    if entries == 0 || uint(&row, "heard_ms")? == 0 {
        return Ok(Life::default());
    }
    let stopped: bool = row.try_get("stopped")?;
    let bypass = match uint(&row, "bypassed")? {
        0 => None,
        entry => Some((entry - 1, row.try_get::<Option<i64>, _>("bypassed_unix_ns")?.unwrap_or(0))),
    };
    let last = Sign {
        index: entries - 1,
        at_ns: uint(&row, "log_boot_ns")?,
        unix_ns: row.try_get("log_unix_ns")?,
        boot_id: row.try_get("boot_id")?,
        said: if stopped { Said::Stopped } else { Said::Lives },
    };
    Ok(Life { last: Some(last), bypass })
}

/// The agent is heard of again: that it was silent has now a reason, or was only that it could not be heard.
async fn silence_settle(
    tx: &mut Tx<'_>,
    node: &[u8],
    before_entry: u64,
    now_ms: i64,
    gaps: &[NodeGap],
) -> Result<(), StoreError> {
    let silent = sqlx::query(
        "DELETE FROM node_gap WHERE node_id = ? AND before_entry = ? AND kind = ? RETURNING from_unix_ns",
    )
    .bind(node)
    .bind(int(before_entry))
    .bind(Kind::Silent as i32)
    .fetch_optional(&mut **tx)
    .await?;
    let Some(silent) = silent else { return Ok(()) };
    let explained = gaps.iter().any(|gap| gap.before_entry == before_entry && gap.kind != Kind::Bypassed);
    if explained {
        return Ok(());
    }
    let unreachable = NodeGap {
        kind: Kind::Unreachable,
        from_unix_ns: silent.try_get("from_unix_ns")?,
        to_unix_ns: now_ms.saturating_mul(1_000_000),
        before_entry,
    };
    gap_put(tx, node, &unreachable).await
}

async fn gap_put(tx: &mut Tx<'_>, node: &[u8], gap: &NodeGap) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO node_gap (node_id, before_entry, kind, from_unix_ns, to_unix_ns) SELECT ?1, ?2, ?3, ?4, ?5 \
         WHERE (SELECT count(*) FROM node_gap WHERE node_id = ?1) < ?6 \
         ON CONFLICT DO UPDATE SET to_unix_ns = excluded.to_unix_ns",
    )
    .bind(node)
    .bind(int(gap.before_entry))
    .bind(gap.kind as i32)
    .bind(gap.from_unix_ns)
    .bind(gap.to_unix_ns)
    .bind(GAPS_PER_NODE_MAX)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

fn gap_row(row: &SqliteRow) -> Result<v1::NodeGap, StoreError> {
    Ok(v1::NodeGap {
        kind: row.try_get("kind")?,
        from_unix_ns: row.try_get("from_unix_ns")?,
        to_unix_ns: row.try_get("to_unix_ns")?,
        before_entry: uint(row, "before_entry")?,
    })
}

fn node_summary(row: &SqliteRow) -> Result<v1::NodeSummary, StoreError> {
    let agent: &[u8] = row.try_get("agent_state")?;
    let revoked_ms: Option<i64> = row.try_get("revoked_ms")?;
    Ok(v1::NodeSummary {
        node_id: NodeId::from_bytes(fixed(row, "id")?).to_field(),
        name: row.try_get("name")?,
        agent_version: row.try_get("agent_version")?,
        last_seen_unix_ms: row.try_get("last_seen_ms")?,
        revoked: revoked_ms.is_some(),
        node_entries: uint(row, "log_entries")?,
        next_number: uint(row, "next_number")?,
        spooled_segments: uint(row, "spooled_segments")?,
        spooled_bytes: uint(row, "spooled_bytes")?,
        alerts: uint(row, "alerts")?,
        clock_synchronized: row.try_get("clock_synchronized")?,
        signing_key: row.try_get::<Vec<u8>, _>("signing_key")?.into(),
        heard_unix_ms: row.try_get("heard_ms")?,
        agent: v1::AgentState::decode(agent).ok().filter(|_| !agent.is_empty()),
        certificate_not_after_unix: row.try_get("certificate_not_after")?,
        open_sessions: uint(row, "open_sessions")?,
        enrolled_unix_ms: row.try_get("enrolled_ms")?,
        revoked_unix_ms: revoked_ms.unwrap_or(0),
        stopped: row.try_get("stopped")?,
        redirected: uint(row, "redirected")?,
        refused: uint(row, "refused")?,
        unobserved: uint(row, "unobserved")?,
        ..Default::default()
    })
}
