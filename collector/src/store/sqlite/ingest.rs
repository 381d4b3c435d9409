//! The transaction of ingest: all of a batch, or nothing of it.

use std::collections::{BTreeMap, HashMap, HashSet};

use prost::Message;
use sqlx::sqlite::SqliteRow;
use sqlx::{Acquire, Row, Sqlite, Transaction};
use weir_proto::seal::Hash;
use weir_proto::{NodeId, RunId, SessionId, v1};

use super::rows::Insert;
use super::{SqliteIndex, fixed, int, uint};
use crate::store::rows::{Accepted, Alert, Batch, ChainRow, Exchange, HeldRow, Untaken, unix_ns};
use crate::store::{Durable, StoreError};

/// Alert rows kept per node and kind. More are only counted: a hostile node must neither fill the disk with them, nor hide
/// a rare kind behind a common one.
const ALERTS_OF_A_KIND_MAX: i64 = 200;
/// What a session's facts may grow to over all its segments, before one last segment's are added.
const FACTS_CHARS_MAX: i64 = 16 * 1024;
const LABELS_PER_RUN_MAX: i64 = 64;
const LABEL_CHARS_MAX: usize = 256;
/// Most rows have this rule: it is kept as NULL.
pub(super) const DEFAULT_RULE: &str = "default";
const HOUR_NS: i64 = 3_600_000_000_000;

impl SqliteIndex {
    /// Where a session's chain stands, `None` before its first segment.
    pub async fn session_chain(&self, session: &SessionId) -> Result<Option<ChainRow>, StoreError> {
        let row = sqlx::query(
            "SELECT node_id, run_id, next_seq, head_hash, closed, expired_seq, protocol FROM session WHERE id = ?",
        )
        .bind(&session.as_bytes()[..])
        .fetch_optional(&self.readers)
        .await?;
        row.as_ref().map(chain_row).transpose()
    }

    /// The same of many, by one statement; those without a segment are not among the answers.
    pub async fn session_chains(
        &self,
        sessions: &HashSet<SessionId>,
    ) -> Result<HashMap<SessionId, ChainRow>, StoreError> {
        let ids: Vec<String> = sessions.iter().map(|session| hex::encode(session.as_bytes())).collect();
        let rows = sqlx::query(
            "SELECT id, node_id, run_id, next_seq, head_hash, closed, expired_seq, protocol FROM session \
             WHERE id IN (SELECT unhex(value) FROM json_each(?))",
        )
        .bind(json(&ids))
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(|row| Ok((SessionId::from_bytes(fixed(row, "id")?), chain_row(row)?))).collect()
    }

    /// The node that a run belongs to.
    pub async fn run_node(&self, run: &RunId) -> Result<Option<NodeId>, StoreError> {
        let row = sqlx::query("SELECT node_id FROM run WHERE id = ?")
            .bind(&run.as_bytes()[..])
            .fetch_optional(&self.readers)
            .await?;
        row.map(|row| Ok(NodeId::from_bytes(fixed(&row, "node_id")?))).transpose()
    }

    /// A segment that is held already.
    pub async fn segment_held(&self, session: &SessionId, seq: u64) -> Result<Option<HeldRow>, StoreError> {
        let row =
            sqlx::query("SELECT hash, received_ms, receipt FROM segment WHERE session_id = ? AND seq = ?")
                .bind(&session.as_bytes()[..])
                .bind(int(seq))
                .fetch_optional(&self.readers)
                .await?;
        row.map(|row| {
            Ok(HeldRow {
                hash: fixed(&row, "hash")?,
                received_ms: row.try_get("received_ms")?,
                receipt: row.try_get("receipt")?,
            })
        })
        .transpose()
    }

    /// The hash of a segment that retention deleted.
    pub async fn segment_expired(&self, session: &SessionId, seq: u64) -> Result<Option<Hash>, StoreError> {
        let row = sqlx::query("SELECT hash FROM expired WHERE session_id = ? AND seq = ?")
            .bind(&session.as_bytes()[..])
            .bind(int(seq))
            .fetch_optional(&self.readers)
            .await?;
        row.map(|row| fixed(&row, "hash")).transpose()
    }

    /// Commits a batch; answers the segments that the index could not take, each with what it said of it. When that happens
    /// every segment is tried by itself, so that one node's rows do not keep the others' out.
    /// Commits only when what has to be durable before is. [`StoreError::Conflict`]: a chain is not where the batch was built on; nothing was written.
    pub async fn batch_commit(&self, batch: &Batch, mut put: Durable) -> Result<Vec<Untaken>, StoreError> {
        let done = match self.batch_write(batch, &mut put, false).await {
            Err(StoreError::Index(error)) if is_of_the_row(&error) && !batch.segments.is_empty() => {
                tracing::error!(error = %crate::chain(&error), "the index refuses a row: the batch's segments are tried one by one");
                self.batch_write(batch, &mut put, true).await
            }
            done => done,
        };
        if done.is_ok() && !batch.segments.is_empty() {
            self.text_waits.notify_one();
        }
        done
    }

    async fn batch_write(
        &self,
        batch: &Batch,
        put: &mut Durable,
        singly: bool,
    ) -> Result<Vec<Untaken>, StoreError> {
        let mut tx = self.begin().await?;
        let mut untaken = Vec::new();
        if let Some(bundle) = &batch.bundle {
            let id = sqlx::query("INSERT INTO bundle (key, bytes, created_ms) VALUES (?, ?, ?)")
                .bind(&bundle.key)
                .bind(int(bundle.bytes))
                .bind(bundle.created_ms)
                .execute(&mut *tx)
                .await?
                .last_insert_rowid();
            if !singly {
                let segments: Vec<_> = batch.segments.iter().collect();
                segments_insert(&mut tx, &segments, id).await?;
            }
            for segment in batch.segments.iter().filter(|_| singly) {
                let mut point = tx.begin().await?;
                let done = segments_insert(&mut point, &[segment], id).await;
                let (session, seq) = (segment.session, segment.seq);
                match done {
                    Ok(()) => point.commit().await?,
                    Err(StoreError::Index(error)) if is_of_the_row(&error) => {
                        point.rollback().await?;
                        untaken.push(Untaken { session, seq, why: Some(error.to_string()) });
                    }
                    // It follows one that was not taken.
                    Err(StoreError::Conflict) => {
                        point.rollback().await?;
                        untaken.push(Untaken { session, seq, why: None });
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        for entries in &batch.node_entries {
            super::fleet::node_entries_insert(&mut tx, entries).await?;
        }
        for alert in &batch.alerts {
            alert_insert(&mut tx, alert).await?;
        }
        // Written while the rows were: no committed row names a bundle that a power cut could take.
        put.wait().await?;
        tx.commit().await?;
        Ok(untaken)
    }
}

fn chain_row(row: &SqliteRow) -> Result<ChainRow, StoreError> {
    Ok(ChainRow {
        node: NodeId::from_bytes(fixed(row, "node_id")?),
        run: RunId::from_bytes(fixed(row, "run_id")?),
        next_seq: uint(row, "next_seq")?,
        head: fixed(row, "head_hash")?,
        closed: row.try_get("closed")?,
        expired_seq: uint(row, "expired_seq")?,
        protocol: row.try_get("protocol")?,
    })
}

/// SQLite refuses what it was given (a constraint, a type, a size, an overflow), rather than being unable to write now.
fn is_of_the_row(error: &sqlx::Error) -> bool {
    const ERROR: u32 = 1;
    const TOO_BIG: u32 = 18;
    const CONSTRAINT: u32 = 19;
    const MISMATCH: u32 = 20;
    let sqlx::Error::Database(error) = error else { return false };
    let code = error.code().and_then(|code| code.parse::<u32>().ok());
    // The low byte is the kind, the rest says more.
    code.is_some_and(|code| matches!(code & 0xff, ERROR | TOO_BIG | CONSTRAINT | MISMATCH))
}

type Tx<'c> = Transaction<'c, Sqlite>;

static SEGMENTS: Insert = Insert::new(
    "INSERT INTO segment (id, session_id, seq, run_id, principal, protocol, bundle, at, len, hash, prev_hash, signature, \
     generation, first_boot_ns, last_boot_ns, wall_unix_ns, wall_boot_ns, events, received_ms, receipt, first_exchange, \
     exchanges, asked_first_ns, asked_last_ns, shapes) VALUES",
    25,
    "",
);
static SESSION_KEYS: Insert = Insert::new(
    "INSERT INTO session_key (session_id, generation, wrapped) VALUES",
    3,
    " ON CONFLICT DO NOTHING",
);
static EXCHANGES: Insert = Insert::new(
    "INSERT INTO exchange (id, segment, ordinal, asked_boot_ns, duration_ns, first_reply_ns, outcome, would_deny, rows, \
     request_bytes, response_bytes, shape, protocol, rule, verb, status, error, statement, detail) VALUES",
    19,
    "",
);

/// A segment with the ids of its rows.
struct Placed<'b> {
    segment: &'b Accepted,
    id: i64,
    first_exchange: i64,
    principal: String,
    protocol: &'b str,
}

/// An exchange with its own.
struct Numbered<'b> {
    id: i64,
    segment: i64,
    /// `None`: as the segment's.
    protocol: Option<&'b str>,
    exchange: &'b Exchange,
}

async fn segments_insert(tx: &mut Tx<'_>, segments: &[&Accepted], bundle: i64) -> Result<(), StoreError> {
    for segment in segments {
        if let Some(opened) = &segment.digest.opened {
            run_upsert(tx, segment, opened).await?;
            session_insert(tx, segment, opened).await?;
        }
        session_advance(tx, segment).await?;
    }
    let principals = runs_advance(tx, segments).await?;
    let placed = place(tx, segments, &principals).await?;
    SEGMENTS
        .all(tx, &placed, |query, placed| {
            let segment = placed.segment;
            let asked = || segment.digest.rows.iter().map(|row| row.asked_ns);
            query
                .bind(placed.id)
                .bind(segment.session.as_bytes().to_vec())
                .bind(int(segment.seq))
                .bind(segment.run.as_bytes().to_vec())
                .bind(placed.principal.clone())
                .bind(placed.protocol.to_owned())
                .bind(bundle)
                .bind(int(segment.at))
                .bind(int(segment.len))
                .bind(segment.hash.to_vec())
                .bind(segment.prev_hash.to_vec())
                .bind(segment.signature.to_vec())
                .bind(segment.generation.as_bytes().to_vec())
                .bind(int(segment.first_boot_ns))
                .bind(int(segment.last_boot_ns))
                .bind(segment.wall.unix_ns)
                .bind(int(segment.wall.boot_ns))
                .bind(i64::from(segment.events))
                .bind(segment.received_ms)
                .bind(segment.receipt.clone())
                .bind(placed.first_exchange)
                .bind(segment.digest.rows.len() as i64)
                .bind(int(asked().min().unwrap_or(0)))
                .bind(int(asked().max().unwrap_or(0)))
                .bind(shapes(segment))
        })
        .await?;
    let mut seen = HashSet::new();
    let mut keys = segments.to_vec();
    keys.retain(|segment| seen.insert((segment.session, segment.generation)));
    SESSION_KEYS
        .all(tx, &keys, |query, segment| {
            query
                .bind(segment.session.as_bytes().to_vec())
                .bind(segment.generation.as_bytes().to_vec())
                .bind(segment.session_key.clone())
        })
        .await?;
    exchanges_insert(tx, &placed).await?;
    asked_hours(tx, &placed).await?;
    for segment in segments {
        gaps_insert(tx, segment).await?;
    }
    Ok(())
}

/// Gives ids to the segments and to room for their exchanges, in this order.
async fn place<'b>(
    tx: &mut Tx<'_>,
    segments: &[&'b Accepted],
    principals: &HashMap<RunId, String>,
) -> Result<Vec<Placed<'b>>, StoreError> {
    let next: HashMap<String, i64> =
        sqlx::query_as("SELECT name, next FROM counter").fetch_all(&mut **tx).await?.into_iter().collect();
    let damaged = StoreError::Damaged("counter");
    let (Some(mut segment_id), Some(mut exchange_id)) =
        (next.get("segment").copied(), next.get("exchange").copied())
    else {
        return Err(damaged);
    };
    let mut placed = Vec::with_capacity(segments.len());
    for segment in segments {
        let digest = &segment.digest;
        placed.push(Placed {
            segment,
            id: segment_id,
            first_exchange: exchange_id,
            principal: principals.get(&segment.run).cloned().unwrap_or_default(),
            protocol: digest.protocol.as_ref().map_or(&segment.protocol, |(name, _)| name),
        });
        segment_id += 1;
        exchange_id += digest.rows.len() as i64;
    }
    sqlx::query("UPDATE counter SET next = CASE name WHEN 'segment' THEN ? ELSE ? END")
        .bind(segment_id)
        .bind(exchange_id)
        .execute(&mut **tx)
        .await?;
    Ok(placed)
}

fn shapes(segment: &Accepted) -> Vec<u8> {
    let mut all = Vec::new();
    for shape in &segment.digest.shapes {
        // Into a vector there is always room.
        let _ = prost::encode_length_delimiter(shape.len(), &mut all);
        all.extend_from_slice(shape);
    }
    all
}

/// Moves the runs' time, and answers whose they are.
async fn runs_advance(tx: &mut Tx<'_>, segments: &[&Accepted]) -> Result<HashMap<RunId, String>, StoreError> {
    let mut lasts: HashMap<RunId, i64> = HashMap::new();
    for segment in segments {
        let last = lasts.entry(segment.run).or_insert(i64::MIN);
        *last = (*last).max(unix_ns(&segment.wall, segment.last_boot_ns));
    }
    let mut principals = HashMap::with_capacity(lasts.len());
    for (run, last) in lasts {
        let principal: Option<String> = sqlx::query_scalar(
            "UPDATE run SET last_unix_ns = MAX(last_unix_ns, ?) WHERE id = ? RETURNING principal_subject",
        )
        .bind(last)
        .bind(run.as_bytes().to_vec())
        .fetch_optional(&mut **tx)
        .await?;
        principals.insert(run, principal.unwrap_or_default());
    }
    Ok(principals)
}

async fn exchanges_insert(tx: &mut Tx<'_>, placed: &[Placed<'_>]) -> Result<(), StoreError> {
    let mut rows = Vec::with_capacity(placed.iter().map(|placed| placed.segment.digest.rows.len()).sum());
    for placed in placed {
        let before = &placed.segment.protocol;
        for (id, exchange) in (placed.first_exchange..).zip(&placed.segment.digest.rows) {
            let told = exchange.protocol.as_deref().or((!before.is_empty()).then_some(before));
            let protocol = told.filter(|told| *told != placed.protocol);
            rows.push(Numbered { id, segment: placed.id, protocol, exchange });
        }
    }
    EXCHANGES
        .all(tx, &rows, |query, row| {
            let exchange = row.exchange;
            query
                .bind(row.id)
                .bind(row.segment)
                .bind(int(exchange.ordinal))
                .bind(int(exchange.asked_ns))
                .bind(exchange.duration_ns.map(int))
                .bind(int(exchange.first_reply_ns))
                .bind(exchange.outcome)
                .bind(exchange.would_deny)
                .bind(int(exchange.rows))
                .bind(int(exchange.request_bytes))
                .bind(int(exchange.response_bytes))
                .bind(i64::from(exchange.shape))
                .bind(row.protocol.map(str::to_owned))
                .bind((exchange.rule != DEFAULT_RULE).then(|| exchange.rule.clone()))
                .bind(exchange.verb.clone())
                .bind(exchange.status.clone())
                .bind(exchange.error.clone())
                .bind(exchange.statement.clone())
                .bind((!exchange.detail.is_empty()).then(|| exchange.detail.clone()))
        })
        .await?;
    // Only now: the segment that ends an exchange may lie in the same batch as the one that began it.
    for placed in placed {
        for (id, exchange) in (placed.first_exchange..).zip(&placed.segment.digest.rows) {
            if exchange.carried || exchange.duration_ns.is_none() {
                running_move(tx, placed.segment, exchange, id).await?;
            }
        }
    }
    Ok(())
}

/// The row of an exchange that an earlier segment told of goes; where it still runs, this one is remembered.
async fn running_move(
    tx: &mut Tx<'_>,
    segment: &Accepted,
    exchange: &Exchange,
    id: i64,
) -> Result<(), StoreError> {
    let before: Option<i64> =
        sqlx::query_scalar("DELETE FROM running WHERE session_id = ? AND ordinal = ? RETURNING exchange")
            .bind(segment.session.as_bytes().to_vec())
            .bind(int(exchange.ordinal))
            .fetch_optional(&mut **tx)
            .await?;
    if let Some(before) = before {
        sqlx::query("DELETE FROM exchange WHERE id = ?").bind(before).execute(&mut **tx).await?;
    }
    if exchange.duration_ns.is_none() {
        sqlx::query("INSERT INTO running (session_id, ordinal, exchange) VALUES (?, ?, ?)")
            .bind(segment.session.as_bytes().to_vec())
            .bind(int(exchange.ordinal))
            .bind(id)
            .execute(&mut **tx)
            .await?;
    }
    Ok(())
}

/// Notes the hours in which these segments' exchanges were asked.
async fn asked_hours(tx: &mut Tx<'_>, placed: &[Placed<'_>]) -> Result<(), StoreError> {
    let mut hours: BTreeMap<i64, (i64, i64)> = BTreeMap::new();
    for placed in placed {
        for row in &placed.segment.digest.rows {
            let hour = unix_ns(&placed.segment.wall, row.asked_ns).div_euclid(HOUR_NS);
            let (first, last) = hours.entry(hour).or_insert((placed.id, placed.id));
            (*first, *last) = ((*first).min(placed.id), (*last).max(placed.id));
        }
    }
    for (hour, (first, last)) in hours {
        sqlx::query(
            "INSERT INTO asked_hour (hour, first_segment, last_segment) VALUES (?, ?, ?) ON CONFLICT (hour) DO UPDATE SET \
             first_segment = MIN(first_segment, excluded.first_segment), last_segment = MAX(last_segment, excluded.last_segment)",
        )
        .bind(hour)
        .bind(first)
        .bind(last)
        .execute(&mut **tx)
        .await?;
    }
    Ok(())
}

async fn run_upsert(tx: &mut Tx<'_>, segment: &Accepted, opened: &v1::Opened) -> Result<(), StoreError> {
    let run = opened.run.clone().unwrap_or_default();
    let principal = run.principal.unwrap_or_default();
    let at = unix_ns(&segment.wall, segment.first_boot_ns);
    // Whoever came first said who the run is; later sessions only move its time.
    sqlx::query(
        "INSERT INTO run (id, node_id, parent, principal_issuer, principal_subject, principal_groups, \
         principal_verified_by, principal_expires_ms, initiator, argv, host, started_boot_ns, first_unix_ns, last_unix_ns) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) \
         ON CONFLICT (id) DO UPDATE SET first_unix_ns = MIN(first_unix_ns, excluded.first_unix_ns), \
         last_unix_ns = MAX(last_unix_ns, excluded.last_unix_ns)",
    )
    .bind(&segment.run.as_bytes()[..])
    .bind(&segment.node.as_bytes()[..])
    .bind((!run.parent.is_empty()).then(|| run.parent.to_vec()))
    .bind(principal.issuer)
    .bind(principal.subject)
    .bind(json(&principal.groups))
    .bind(principal.verified_by)
    .bind(principal.expires_unix_ms)
    .bind(run.initiator)
    .bind(json(&run.argv))
    .bind(run.host)
    .bind(int(run.started_at_ns))
    .bind(at)
    .bind(at)
    .execute(&mut **tx)
    .await?;
    for (key, value) in run.labels.iter().take(LABELS_PER_RUN_MAX as usize) {
        let cut = |text: &str| text.chars().take(LABEL_CHARS_MAX).collect::<String>();
        // Each session of a run may bring other labels: they are counted over all of them.
        sqlx::query(
            "INSERT INTO run_label (run_id, key, value) SELECT ?1, ?2, ?3 \
             WHERE (SELECT count(*) FROM run_label WHERE run_id = ?1) < ?4 ON CONFLICT DO NOTHING",
        )
        .bind(&segment.run.as_bytes()[..])
        .bind(cut(key))
        .bind(cut(value))
        .bind(LABELS_PER_RUN_MAX)
        .execute(&mut **tx)
        .await?;
    }
    Ok(())
}

async fn session_insert(tx: &mut Tx<'_>, segment: &Accepted, opened: &v1::Opened) -> Result<(), StoreError> {
    let origin = opened.origin.clone().unwrap_or_default();
    let process = opened.process.clone().unwrap_or_default().encode_to_vec();
    sqlx::query(
        "INSERT INTO session (id, run_id, node_id, node_number, origin_ip, origin_port, target, process, \
         opened_boot_ns, opened_unix_ns, head_hash) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, zeroblob(32))",
    )
    .bind(&segment.session.as_bytes()[..])
    .bind(&segment.run.as_bytes()[..])
    .bind(&segment.node.as_bytes()[..])
    .bind(int(opened.node_number))
    .bind(origin.ip)
    .bind(i64::from(origin.port))
    .bind(&opened.target)
    .bind(process)
    .bind(int(segment.first_boot_ns))
    .bind(unix_ns(&segment.wall, segment.first_boot_ns))
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Moves the session to this segment, only from exactly the one before: compare and swap.
async fn session_advance(tx: &mut Tx<'_>, segment: &Accepted) -> Result<(), StoreError> {
    let digest = &segment.digest;
    // The closing totals replace what was added up, unless the agent died and did not know them.
    let totals = digest.closed.as_ref().map(|(_, closed)| closed).filter(|closed| closed.events > 0);
    let (coverage, reason) = match (&digest.coverage, &digest.refused) {
        (Some((coverage, reason)), _) => (Some(*coverage), Some(reason.clone())),
        (None, Some((_, reason))) => (Some(v1::Coverage::Refused as i32), Some(reason.clone())),
        (None, None) => (None, None),
    };
    let changed = sqlx::query(
        "UPDATE session SET next_seq = ?1, head_hash = ?2, closed = ?3, \
         protocol = COALESCE(?4, protocol), protocol_version = COALESCE(?5, protocol_version), \
         coverage = COALESCE(?6, coverage), reason = COALESCE(?7, reason), cause = COALESCE(?8, cause), \
         rule = COALESCE(?9, rule), rule_reason = COALESCE(?23, rule_reason), facts = CASE WHEN length(facts) < ?22 THEN json_patch(facts, ?10) ELSE facts END, \
         exchanges = MAX(exchanges, ?11), denied = COALESCE(?12, denied + ?13), gaps = gaps + ?14, \
         request_bytes = COALESCE(?15, request_bytes + ?16), response_bytes = COALESCE(?17, response_bytes + ?18), \
         closed_unix_ns = COALESCE(?19, closed_unix_ns) \
         WHERE id = ?20 AND next_seq = ?21",
    )
    .bind(int(segment.seq.saturating_add(1)))
    .bind(&segment.hash[..])
    .bind(segment.last)
    .bind(digest.protocol.as_ref().map(|(name, _)| name.clone()))
    .bind(digest.protocol.as_ref().map(|(_, version)| version.clone()))
    .bind(coverage)
    .bind(reason)
    .bind(digest.closed.as_ref().map(|(_, closed)| closed.cause.clone()))
    .bind(digest.refused.as_ref().map(|(rule, _)| rule.clone()))
    .bind(json(&digest.facts))
    .bind(int(digest.exchanges.max(totals.map_or(0, |t| t.exchanges))))
    .bind(totals.map(|t| int(t.denied)))
    .bind(int(digest.denied))
    .bind(digest.gaps.len() as i64)
    .bind(totals.map(|t| int(t.request_bytes)))
    .bind(int(digest.request_bytes))
    .bind(totals.map(|t| int(t.response_bytes)))
    .bind(int(digest.response_bytes))
    .bind(digest.closed.as_ref().map(|(at, _)| unix_ns(&segment.wall, *at)))
    .bind(&segment.session.as_bytes()[..])
    .bind(int(segment.seq))
    .bind(FACTS_CHARS_MAX)
    .bind(digest.refused.as_ref().map(|(_, reason)| reason.clone()))
    .execute(&mut **tx)
    .await?
    .rows_affected();
    if changed != 1 {
        return Err(StoreError::Conflict);
    }
    Ok(())
}

async fn gaps_insert(tx: &mut Tx<'_>, segment: &Accepted) -> Result<(), StoreError> {
    for (place, at, gap) in &segment.digest.gaps {
        sqlx::query(
            "INSERT INTO gap (session_id, seq, place, run_id, boot_ns, unix_ns, gap) VALUES (?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(&segment.session.as_bytes()[..])
        .bind(int(segment.seq))
        .bind(i64::from(*place))
        .bind(&segment.run.as_bytes()[..])
        .bind(int(*at))
        .bind(unix_ns(&segment.wall, *at))
        .bind(gap.encode_to_vec())
        .execute(&mut **tx)
        .await?;
    }
    Ok(())
}

async fn alert_insert(tx: &mut Tx<'_>, alert: &Alert) -> Result<(), StoreError> {
    let node = &alert.node.as_bytes()[..];
    let session = alert.session.map(|session| session.as_bytes().to_vec());
    // An agent offers what was refused again at every reconnect: once is enough. What is said of the node as a whole is told
    // apart by what it says.
    let known = sqlx::query(
        "SELECT 1 FROM alert WHERE node_id = ? AND kind = ? AND session_id IS ? AND seq IS ? \
         AND (session_id IS NOT NULL OR detail = ?)",
    )
    .bind(node)
    .bind(alert.kind)
    .bind(session.clone())
    .bind(alert.seq.map(int))
    .bind(&alert.detail)
    .fetch_optional(&mut **tx)
    .await?;
    if known.is_some() {
        return Ok(());
    }
    sqlx::query("UPDATE node SET alerts = alerts + 1 WHERE id = ?").bind(node).execute(&mut **tx).await?;
    let row = sqlx::query("SELECT count(*) FROM alert WHERE node_id = ? AND kind = ?")
        .bind(node)
        .bind(alert.kind)
        .fetch_one(&mut **tx)
        .await?;
    if row.try_get::<i64, _>(0)? >= ALERTS_OF_A_KIND_MAX {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO alert (unix_ms, node_id, session_id, seq, kind, detail) VALUES (?, ?, ?, ?, ?, ?)",
    )
    .bind(alert.unix_ms)
    .bind(node)
    .bind(session)
    .bind(alert.seq.map(int))
    .bind(alert.kind)
    .bind(&alert.detail)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Strings and maps of strings always encode.
fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
