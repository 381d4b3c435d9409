//! What people ask for: runs, sessions, exchanges, gaps, coverage, nodes. Every list is a page by key, never by offset,
//! and bounded.

use prost::Message;
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, Sqlite};
use weir_proto::{NodeId, RunId, SessionId, v1};

use super::{SqliteIndex, fixed, int, uint};
use crate::store::StoreError;

/// Rows of one page: the choice, and the most.
const PAGE_ROWS: u64 = 200;
const PAGE_ROWS_MAX: u64 = 1000;
/// Label conditions of one query.
const LABELS_MAX: usize = 16;

/// A cursor that this collector did not make.
#[derive(Debug, thiserror::Error)]
#[error("the page cursor is not one of this collector's")]
pub struct BadCursor;

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error(transparent)]
    Cursor(#[from] BadCursor),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for ReadError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

/// Which runs.
#[derive(Default)]
pub struct RunFilter {
    pub labels: Vec<(String, String)>,
    pub node: Option<NodeId>,
    pub from_unix_ns: Option<i64>,
    pub to_unix_ns: Option<i64>,
    pub principal: Option<String>,
    /// Upper-case hex digits of the beginning or the end of the id.
    pub id_part: Option<String>,
}

/// Which sessions.
#[derive(Default)]
pub struct SessionFilter {
    pub run: Option<RunId>,
    pub session: Option<SessionId>,
    pub protocol: Option<String>,
    pub target: Option<String>,
    pub id_part: Option<String>,
}

/// Exchanges and gaps: of a run or of one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    Run(RunId),
    Session(SessionId),
}

pub(super) fn page_rows(page: &v1::Page) -> u64 {
    match page.limit {
        0 => PAGE_ROWS,
        limit => u64::from(limit).min(PAGE_ROWS_MAX),
    }
}

/// `number:hexid[:number]`
pub(super) struct Cursor {
    pub(super) time: i64,
    pub(super) id: Vec<u8>,
    pub(super) ordinal: i64,
}

impl Cursor {
    pub(super) fn parse(text: &str) -> Result<Option<Self>, BadCursor> {
        if text.is_empty() {
            return Ok(None);
        }
        let mut parts = text.split(':');
        let mut part = || parts.next().ok_or(BadCursor);
        let time = part()?.parse().map_err(|_| BadCursor)?;
        let id = hex::decode(part()?).map_err(|_| BadCursor)?;
        let ordinal = part()?.parse().map_err(|_| BadCursor)?;
        Ok(Some(Self { time, id, ordinal }))
    }

    pub(super) fn show(time: i64, id: &[u8], ordinal: i64) -> String {
        format!("{time}:{}:{ordinal}", hex::encode(id))
    }
}

impl SqliteIndex {
    // Sums below are total(), which is a float and cannot overflow: sum() fails as a whole when one node's numbers are absurd.

    /// Latest first.
    pub async fn run_list(&self, filter: &RunFilter, page: &v1::Page) -> Result<v1::RunsResponse, ReadError> {
        let rows = page_rows(page);
        let mut query = QueryBuilder::<Sqlite>::new("SELECT id, first_unix_ns FROM run WHERE 1");
        for (key, value) in filter.labels.iter().take(LABELS_MAX) {
            query.push(" AND EXISTS (SELECT 1 FROM run_label l WHERE l.run_id = run.id AND l.key = ");
            query.push_bind(key.clone()).push(" AND l.value = ").push_bind(value.clone()).push(")");
        }
        if let Some(node) = filter.node {
            query.push(" AND node_id = ").push_bind(node.as_bytes().to_vec());
        }
        if let Some(from) = filter.from_unix_ns {
            query.push(" AND last_unix_ns >= ").push_bind(from);
        }
        if let Some(to) = filter.to_unix_ns {
            query.push(" AND first_unix_ns < ").push_bind(to);
        }
        if let Some(principal) = &filter.principal {
            // "uid:1000" is everybody of that user, whatever executable its first process ran; `;` comes after `:`.
            query.push(" AND (principal_subject = ").push_bind(principal.clone());
            query.push(" OR (principal_subject >= ").push_bind(format!("{principal} sha256:"));
            query.push(" AND principal_subject < ").push_bind(format!("{principal} sha256;")).push("))");
        }
        if let Some(part) = &filter.id_part {
            push_id_part(&mut query, "run.id", part);
        }
        if let Some(cursor) = Cursor::parse(&page.cursor)? {
            query
                .push(" AND (first_unix_ns, id) < (")
                .push_bind(cursor.time)
                .push(", ")
                .push_bind(cursor.id)
                .push(")");
        }
        query.push(" ORDER BY first_unix_ns DESC, id DESC LIMIT ").push_bind(int(rows));
        let found = query.build().fetch_all(&self.readers).await?;
        let mut runs = Vec::with_capacity(found.len());
        let mut next_cursor = String::new();
        for row in &found {
            let id: [u8; 16] = fixed(row, "id")?;
            next_cursor = Cursor::show(row.try_get("first_unix_ns")?, &id, 0);
            runs.extend(self.run_summary(&RunId::from_bytes(id)).await?);
        }
        if (found.len() as u64) < rows {
            next_cursor.clear();
        }
        Ok(v1::RunsResponse { runs, next_cursor })
    }

    pub async fn run_summary(&self, run: &RunId) -> Result<Option<v1::RunSummary>, StoreError> {
        let row = sqlx::query(
            "SELECT r.*, n.name AS node_name, count(*) AS sessions, CAST(total(s.exchanges) AS INTEGER) AS exchanges, \
             CAST(total(MAX(s.denied, s.coverage = 3)) AS INTEGER) AS denied, CAST(total(s.gaps) AS INTEGER) AS gaps, sum(NOT s.closed) AS open, \
             min(s.expired_seq >= s.next_seq) AS expired, \
             (SELECT json_group_object(key, value) FROM run_label l WHERE l.run_id = r.id) AS labels \
             FROM run r JOIN node n ON n.id = r.node_id JOIN session s ON s.run_id = r.id \
             WHERE r.id = ? GROUP BY r.id",
        )
        .bind(&run.as_bytes()[..])
        .fetch_optional(&self.readers)
        .await?;
        row.as_ref().map(run_row).transpose()
    }

    /// In order of opening inside a run.
    pub async fn session_list(
        &self,
        filter: &SessionFilter,
        page: &v1::Page,
    ) -> Result<v1::SessionsResponse, ReadError> {
        let rows = page_rows(page);
        let mut query = QueryBuilder::<Sqlite>::new(
            "SELECT s.*, r.host FROM session s JOIN run r ON r.id = s.run_id WHERE 1",
        );
        if let Some(run) = filter.run {
            query.push(" AND s.run_id = ").push_bind(run.as_bytes().to_vec());
        }
        if let Some(session) = filter.session {
            query.push(" AND s.id = ").push_bind(session.as_bytes().to_vec());
        }
        if let Some(protocol) = &filter.protocol {
            query.push(" AND s.protocol = ").push_bind(protocol.clone());
        }
        if let Some(target) = &filter.target {
            query.push(" AND s.target = ").push_bind(target.clone());
        }
        if let Some(part) = &filter.id_part {
            push_id_part(&mut query, "s.id", part);
        }
        if let Some(cursor) = Cursor::parse(&page.cursor)? {
            query.push(" AND (s.opened_boot_ns, s.id) > (").push_bind(cursor.time);
            query.push(", ").push_bind(cursor.id).push(")");
        }
        query.push(" ORDER BY s.opened_boot_ns, s.id LIMIT ").push_bind(int(rows));
        let found = query.build().fetch_all(&self.readers).await?;
        let sessions = found.iter().map(session_row).collect::<Result<Vec<_>, _>>()?;
        let next_cursor = match found.last() {
            Some(last) if found.len() as u64 == rows => {
                Cursor::show(last.try_get("opened_boot_ns")?, &fixed::<16>(last, "id")?, 0)
            }
            _ => String::new(),
        };
        Ok(v1::SessionsResponse { sessions, next_cursor })
    }

    /// In order of time.
    pub async fn gap_list(&self, subject: Subject, page: &v1::Page) -> Result<v1::GapsResponse, ReadError> {
        let rows = page_rows(page);
        let mut query = QueryBuilder::<Sqlite>::new(
            "SELECT g.*, s.node_number FROM gap g JOIN session s ON s.id = g.session_id WHERE ",
        );
        push_subject(&mut query, subject, "g");
        if let Some(cursor) = Cursor::parse(&page.cursor)? {
            query
                .push(" AND (g.boot_ns, g.session_id, g.seq * 1000000 + g.place) > (")
                .push_bind(cursor.time);
            query.push(", ").push_bind(cursor.id).push(", ").push_bind(cursor.ordinal).push(")");
        }
        query
            .push(" ORDER BY g.boot_ns, g.session_id, g.seq * 1000000 + g.place LIMIT ")
            .push_bind(int(rows));
        let found = query.build().fetch_all(&self.readers).await?;
        let mut gaps = Vec::with_capacity(found.len());
        let mut next_cursor = String::new();
        for row in &found {
            let session: [u8; 16] = fixed(row, "session_id")?;
            let place =
                row.try_get::<i64, _>("seq")?.saturating_mul(1_000_000) + row.try_get::<i64, _>("place")?;
            next_cursor = Cursor::show(row.try_get("boot_ns")?, &session, place);
            gaps.push(v1::GapSummary {
                session_id: SessionId::from_bytes(session).to_field(),
                node_number: uint(row, "node_number")?,
                unix_ns: row.try_get("unix_ns")?,
                gap: Some(decode(row, "gap")?),
            });
        }
        if (found.len() as u64) < rows {
            next_cursor.clear();
        }
        Ok(v1::GapsResponse { gaps, next_cursor })
    }

    /// Shares by bytes and sessions; of one run, one node, or all.
    pub async fn coverage(
        &self,
        run: Option<RunId>,
        node: Option<NodeId>,
    ) -> Result<v1::CoverageResponse, StoreError> {
        let mut query = QueryBuilder::<Sqlite>::new(
            "SELECT coverage, reason, count(*) AS sessions, CAST(total(request_bytes) + total(response_bytes) AS INTEGER) AS bytes, \
             CAST(total(gaps) AS INTEGER) AS gaps, CAST(total(MAX(denied, coverage = 3)) AS INTEGER) AS denied, sum(NOT closed) AS open FROM session WHERE 1",
        );
        if let Some(run) = run {
            query.push(" AND run_id = ").push_bind(run.as_bytes().to_vec());
        }
        if let Some(node) = node {
            query.push(" AND node_id = ").push_bind(node.as_bytes().to_vec());
        }
        query.push(" GROUP BY coverage, reason ORDER BY bytes DESC, coverage, reason");
        let mut answer = v1::CoverageResponse::default();
        for row in query.build().fetch_all(&self.readers).await? {
            let sessions = uint(&row, "sessions")?;
            answer.sessions += sessions;
            answer.open_sessions += uint(&row, "open")?;
            answer.gaps = answer.gaps.saturating_add(uint(&row, "gaps")?);
            answer.denied = answer.denied.saturating_add(uint(&row, "denied")?);
            answer.shares.push(v1::CoverageShare {
                coverage: coverage_name(row.try_get("coverage")?).to_owned(),
                reason: row.try_get("reason")?,
                sessions,
                bytes: uint(&row, "bytes")?,
            });
        }
        // The kernel counts connections that passed unobserved per node, not per run.
        if run.is_none() {
            let mut query = QueryBuilder::<Sqlite>::new(
                "SELECT CAST(total(unobserved) AS INTEGER) AS unobserved FROM node WHERE 1",
            );
            if let Some(node) = node {
                query.push(" AND id = ").push_bind(node.as_bytes().to_vec());
            }
            let row = query.build().fetch_one(&self.readers).await?;
            answer.unobserved_connections = uint(&row, "unobserved")?;
        }
        Ok(answer)
    }
}

/// The hex digits are the beginning of the id, or its end (which is random, and so the shorter name of one of many).
fn push_id_part(query: &mut QueryBuilder<Sqlite>, id: &str, part: &str) {
    query.push(format!(" AND (substr(hex({id}), 1, {len}) = ", len = part.len())).push_bind(part.to_owned());
    if part.len() >= 4 {
        query.push(format!(" OR substr(hex({id}), -{len}) = ", len = part.len())).push_bind(part.to_owned());
    }
    query.push(")");
}

fn push_subject(query: &mut QueryBuilder<Sqlite>, subject: Subject, table: &str) {
    match subject {
        Subject::Run(run) => query.push(format!("{table}.run_id = ")).push_bind(run.as_bytes().to_vec()),
        Subject::Session(session) => {
            query.push(format!("{table}.session_id = ")).push_bind(session.as_bytes().to_vec())
        }
    };
}

fn run_row(row: &SqliteRow) -> Result<v1::RunSummary, StoreError> {
    let principal = v1::Principal {
        issuer: row.try_get("principal_issuer")?,
        subject: row.try_get("principal_subject")?,
        groups: from_json(row, "principal_groups")?,
        verified_by: row.try_get("principal_verified_by")?,
        expires_unix_ms: row.try_get("principal_expires_ms")?,
    };
    let run = v1::Run {
        id: RunId::from_bytes(fixed(row, "id")?).to_field(),
        parent: row.try_get::<Option<Vec<u8>>, _>("parent")?.unwrap_or_default().into(),
        principal: Some(principal),
        initiator: row.try_get("initiator")?,
        labels: from_json(row, "labels")?,
        argv: from_json(row, "argv")?,
        started_at_ns: uint(row, "started_boot_ns")?,
        host: row.try_get("host")?,
    };
    Ok(v1::RunSummary {
        run: Some(run),
        node_id: NodeId::from_bytes(fixed(row, "node_id")?).to_field(),
        node_name: row.try_get("node_name")?,
        first_unix_ns: row.try_get("first_unix_ns")?,
        last_unix_ns: row.try_get("last_unix_ns")?,
        sessions: uint(row, "sessions")?,
        exchanges: uint(row, "exchanges")?,
        denied: uint(row, "denied")?,
        gaps: uint(row, "gaps")?,
        open_sessions: uint(row, "open")?,
        expired: row.try_get("expired")?,
    })
}

fn session_row(row: &SqliteRow) -> Result<v1::SessionSummary, StoreError> {
    Ok(v1::SessionSummary {
        session_id: SessionId::from_bytes(fixed(row, "id")?).to_field(),
        run_id: RunId::from_bytes(fixed(row, "run_id")?).to_field(),
        node_id: NodeId::from_bytes(fixed(row, "node_id")?).to_field(),
        node_number: uint(row, "node_number")?,
        protocol: row.try_get("protocol")?,
        origin: Some(origin(row)?),
        target: row.try_get("target")?,
        process: Some(decode(row, "process")?),
        opened_unix_ns: row.try_get("opened_unix_ns")?,
        closed_unix_ns: row.try_get("closed_unix_ns")?,
        coverage: row.try_get("coverage")?,
        reason: row.try_get("reason")?,
        cause: row.try_get("cause")?,
        exchanges: uint(row, "exchanges")?,
        denied: uint(row, "denied")?,
        gaps: uint(row, "gaps")?,
        request_bytes: uint(row, "request_bytes")?,
        response_bytes: uint(row, "response_bytes")?,
        segments: uint(row, "next_seq")?,
        facts: from_json(row, "facts")?,
        rule: row.try_get("rule")?,
        rule_reason: row.try_get("rule_reason")?,
        protocol_version: row.try_get("protocol_version")?,
        expired_segments: uint(row, "expired_seq")?,
        expired_unix_ms: row.try_get("expired_ms")?,
        run_host: row.try_get("host")?,
        opened_at_ns: uint(row, "opened_boot_ns")?,
    })
}

pub(super) fn origin(row: &SqliteRow) -> Result<v1::Address, StoreError> {
    Ok(v1::Address {
        ip: row.try_get("origin_ip")?,
        port: u32::try_from(row.try_get::<i64, _>("origin_port")?).unwrap_or(0),
    })
}

pub(super) fn decode<M: Message + Default>(row: &SqliteRow, column: &'static str) -> Result<M, StoreError> {
    let bytes: &[u8] = row.try_get(column)?;
    M::decode(bytes).map_err(|_| StoreError::Damaged(column))
}

fn from_json<T: serde::de::DeserializeOwned>(row: &SqliteRow, column: &'static str) -> Result<T, StoreError> {
    let text: &str = row.try_get(column)?;
    serde_json::from_str(text).map_err(|_| StoreError::Damaged(column))
}

/// As people and programs read it.
pub fn coverage_name(coverage: i32) -> &'static str {
    match v1::Coverage::try_from(coverage) {
        Ok(v1::Coverage::Inspected) => "inspected",
        Ok(v1::Coverage::MetadataOnly) => "metadata-only",
        Ok(v1::Coverage::Refused) => "refused",
        Ok(v1::Coverage::Unspecified) | Err(_) => "unknown",
    }
}
