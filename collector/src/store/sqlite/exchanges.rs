//! Exchanges, read back out of their small rows: what a row does not say is in its segment.

use std::collections::{BTreeSet, HashMap};

use prost::Message;
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, Sqlite};
use weir_proto::seal::Anchor;
use weir_proto::{SessionId, v1};

use super::ingest::DEFAULT_RULE;
use super::reads::{Cursor, ReadError, Subject, origin, page_rows};
use super::{SqliteIndex, fixed, int, uint};
use crate::store::StoreError;
use crate::store::rows::unix_ns;

/// What [`SqliteIndex::exchange_rows`] reads, of `exchange e JOIN segment g ON g.id = e.segment JOIN session s ON s.id = g.session_id`.
pub(super) const EXCHANGE_COLUMNS: &str = "e.*, g.session_id, g.protocol AS segment_protocol, g.wall_unix_ns, g.wall_boot_ns, \
     s.origin_ip, s.origin_port, s.target, s.node_number";

/// What the exchanges of a segment share, by the number in their rows.
type Shapes = HashMap<i64, Vec<v1::Finished>>;

impl SqliteIndex {
    /// In order of time.
    pub async fn exchange_list(
        &self,
        subject: Subject,
        page: &v1::Page,
    ) -> Result<v1::ExchangesResponse, ReadError> {
        let rows = page_rows(page);
        let cursor = Cursor::parse(&page.cursor)?;
        let after_ns = cursor.as_ref().map_or(i64::MIN, |cursor| cursor.time);
        let mut enough = rows;
        let found = loop {
            let until_ns = self.asked_until(subject, after_ns, enough).await?;
            let found = self.exchanges_between(subject, cursor.as_ref(), until_ns, rows).await?;
            if found.len() as u64 == rows || until_ns.is_none() {
                break found;
            }
            // Rows that moved to a later segment left holes in the count.
            enough = enough.saturating_mul(2);
        };
        let next_cursor = match found.last() {
            Some(last) if found.len() as u64 == rows => Cursor::show(
                last.try_get("asked_boot_ns")?,
                &fixed::<16>(last, "session_id")?,
                last.try_get("ordinal")?,
            ),
            _ => String::new(),
        };
        Ok(v1::ExchangesResponse { exchanges: self.exchange_rows(&found).await?, next_cursor })
    }

    /// A time (boot) up to which so many exchanges were asked after `after_ns`; `None`: there are fewer.
    async fn asked_until(
        &self,
        subject: Subject,
        after_ns: i64,
        enough: u64,
    ) -> Result<Option<i64>, StoreError> {
        let mut query = QueryBuilder::<Sqlite>::new(
            "SELECT upto FROM (SELECT max(asked_last_ns) OVER before AS upto, \
             total(CASE WHEN asked_first_ns > ",
        );
        query
            .push_bind(after_ns)
            .push(" THEN exchanges ELSE 0 END) OVER before AS many FROM segment g WHERE ");
        push_subject(&mut query, subject);
        query.push(" AND exchanges > 0 AND asked_last_ns >= ").push_bind(after_ns);
        query.push(" WINDOW before AS (ORDER BY asked_first_ns ROWS UNBOUNDED PRECEDING)) WHERE many >= ");
        query.push_bind(int(enough)).push(" LIMIT 1");
        let row = query.build().fetch_optional(&self.readers).await?;
        Ok(row.map(|row| row.try_get(0)).transpose()?)
    }

    async fn exchanges_between(
        &self,
        subject: Subject,
        cursor: Option<&Cursor>,
        until_ns: Option<i64>,
        rows: u64,
    ) -> Result<Vec<SqliteRow>, StoreError> {
        let mut query = QueryBuilder::<Sqlite>::new("SELECT ");
        query.push(EXCHANGE_COLUMNS).push(
            " FROM segment g CROSS JOIN exchange e ON e.id >= g.first_exchange AND e.id < g.first_exchange + g.exchanges \
             JOIN session s ON s.id = g.session_id WHERE ",
        );
        push_subject(&mut query, subject);
        query.push(" AND g.exchanges > 0");
        if let Some(until_ns) = until_ns {
            query.push(" AND g.asked_first_ns <= ").push_bind(until_ns);
            query.push(" AND e.asked_boot_ns <= ").push_bind(until_ns);
        }
        if let Some(cursor) = cursor {
            query.push(" AND g.asked_last_ns >= ").push_bind(cursor.time);
            query.push(" AND (e.asked_boot_ns, g.session_id, e.ordinal) > (").push_bind(cursor.time);
            query.push(", ").push_bind(cursor.id.clone()).push(", ").push_bind(cursor.ordinal).push(")");
        }
        query.push(" ORDER BY e.asked_boot_ns, g.session_id, e.ordinal LIMIT ").push_bind(int(rows));
        Ok(query.build().fetch_all(&self.readers).await?)
    }

    /// Rows with [`EXCHANGE_COLUMNS`], as they are told.
    pub(super) async fn exchange_rows(
        &self,
        rows: &[SqliteRow],
    ) -> Result<Vec<v1::ExchangeSummary>, StoreError> {
        let segments: BTreeSet<i64> =
            rows.iter().map(|row| row.try_get("segment")).collect::<Result<_, _>>()?;
        let mut shapes = Shapes::new();
        for segment in segments {
            let row = sqlx::query("SELECT shapes FROM segment WHERE id = ?")
                .bind(segment)
                .fetch_optional(&self.readers)
                .await?;
            // Gone since: what it shared is not told any more.
            let Some(row) = row else { continue };
            let mut encoded: &[u8] = row.try_get(0)?;
            let mut all = Vec::new();
            while !encoded.is_empty() {
                let shape = v1::Finished::decode_length_delimited(&mut encoded);
                all.push(shape.map_err(|_| StoreError::Damaged("shapes"))?);
            }
            shapes.insert(segment, all);
        }
        rows.iter().map(|row| exchange_row(row, &shapes)).collect()
    }
}

fn push_subject(query: &mut QueryBuilder<Sqlite>, subject: Subject) {
    match subject {
        Subject::Run(run) => query.push("g.run_id = ").push_bind(run.as_bytes().to_vec()),
        Subject::Session(session) => query.push("g.session_id = ").push_bind(session.as_bytes().to_vec()),
    };
}

fn exchange_row(row: &SqliteRow, shapes: &Shapes) -> Result<v1::ExchangeSummary, StoreError> {
    let finished = finished(row, shapes)?;
    let protocol: Option<String> = row.try_get("protocol")?;
    let wall = Anchor {
        unix_ns: row.try_get("wall_unix_ns")?,
        boot_ns: uint(row, "wall_boot_ns")?,
        synchronized: true,
    };
    Ok(v1::ExchangeSummary {
        session_id: SessionId::from_bytes(fixed(row, "session_id")?).to_field(),
        ordinal: uint(row, "ordinal")?,
        protocol: match protocol {
            Some(protocol) => protocol,
            None => row.try_get("segment_protocol")?,
        },
        origin: Some(origin(row)?),
        target: row.try_get("target")?,
        asked_unix_ns: unix_ns(&wall, finished.asked_at_ns),
        duration_ns: finished.finished_at_ns.saturating_sub(finished.asked_at_ns),
        finished: Some(finished),
        node_number: uint(row, "node_number")?,
    })
}

fn finished(row: &SqliteRow, shapes: &Shapes) -> Result<v1::Finished, StoreError> {
    let detail: Option<&[u8]> = row.try_get("detail")?;
    let mut finished =
        v1::Finished::decode(detail.unwrap_or_default()).map_err(|_| StoreError::Damaged("detail"))?;
    finished.exchange = uint(row, "ordinal")?;
    finished.asked_at_ns = uint(row, "asked_boot_ns")?;
    let duration: Option<i64> = row.try_get("duration_ns")?;
    finished.finished_at_ns =
        duration.map_or(0, |ns| finished.asked_at_ns.saturating_add(u64::try_from(ns).unwrap_or(0)));
    finished.outcome = row.try_get("outcome")?;
    finished.status = row.try_get("status")?;
    finished.error = row.try_get("error")?;
    finished.rows = uint(row, "rows")?;
    let operation = finished.operation.get_or_insert_default();
    operation.verb = row.try_get("verb")?;
    operation.text = row.try_get("statement")?;
    // A row of the schema before has all the rest in its detail.
    let Some(shape) = row.try_get::<Option<i64>, _>("shape")? else { return Ok(finished) };
    let segment: i64 = row.try_get("segment")?;
    let shape = shapes.get(&segment).and_then(|all| all.get(usize::try_from(shape).ok()?));
    if let Some(shape) = shape {
        operation.kind = shape.operation.as_ref().map(|asked| asked.kind.clone()).unwrap_or_default();
        finished.columns = shape.columns.clone();
    }
    let first_reply = uint(row, "first_reply_ns")?;
    if first_reply > 0 {
        finished.first_reply_at_ns = finished.asked_at_ns.saturating_add(first_reply);
    }
    finished.request_bytes = uint(row, "request_bytes")?;
    finished.response_bytes = uint(row, "response_bytes")?;
    finished.rule = row.try_get::<Option<String>, _>("rule")?.unwrap_or_else(|| DEFAULT_RULE.to_owned());
    Ok(finished)
}
