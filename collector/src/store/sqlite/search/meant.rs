//! What the names and parts of ids in a query mean.

use std::collections::HashMap;

use sqlx::Row;

use super::{ID_END_DIGITS_MIN, SearchError};
use crate::search::query::{Condition, Expr, Query};
use crate::search::values::Pattern;
use crate::store::sqlite::SqliteIndex;

/// Runs or sessions that one part of an id may mean.
pub(super) const MEANT_MAX: usize = 16;

/// Ids behind what was typed.
#[derive(Default)]
pub(super) struct Meant {
    pub(super) runs: HashMap<String, Vec<Vec<u8>>>,
    pub(super) sessions: HashMap<String, Vec<Vec<u8>>>,
    pub(super) last_run: Vec<u8>,
    /// Two at most: whether it is one is what matters.
    pub(super) principals: HashMap<String, Vec<String>>,
}

impl Meant {
    /// `None`: several are meant.
    pub(super) fn principal<'m>(&'m self, name: &'m str) -> Option<&'m str> {
        match self.principals.get(name).map(Vec::as_slice) {
            Some([]) | None => Some(name),
            Some([one]) => Some(one),
            Some(_) => None,
        }
    }

    pub(super) fn run(&self, part: &str) -> &[Vec<u8>] {
        self.runs.get(part).map_or(&[], Vec::as_slice)
    }

    pub(super) fn session(&self, part: &str) -> &[Vec<u8>] {
        self.sessions.get(part).map_or(&[], Vec::as_slice)
    }
}

pub(super) fn collect<'a>(expr: &'a Expr, into: &mut Vec<&'a Condition>) {
    match expr {
        Expr::All(all) | Expr::Any(all) => all.iter().for_each(|one| collect(one, into)),
        Expr::Not(one) => collect(one, into),
        Expr::Is(condition) => into.push(condition),
        Expr::Text(_) => {}
    }
}

impl SqliteIndex {
    /// What parts of ids mean: a query names runs as people do.
    pub(super) async fn meant(&self, query: &Query) -> Result<Meant, SearchError> {
        let mut meant = Meant::default();
        let mut conditions = Vec::new();
        if let Some(root) = &query.root {
            collect(root, &mut conditions);
        }
        for condition in conditions {
            match condition {
                Condition::Run(part) if !meant.runs.contains_key(part) => {
                    let ids = self.ids_meant("run", part).await?;
                    meant.runs.insert(part.clone(), ids);
                }
                Condition::Session(part) if !meant.sessions.contains_key(part) => {
                    let ids = self.ids_meant("session", part).await?;
                    meant.sessions.insert(part.clone(), ids);
                }
                Condition::Principal(Pattern::Is(name)) if !meant.principals.contains_key(name) => {
                    let rows = sqlx::query(
                        "SELECT DISTINCT principal_subject FROM run WHERE principal_subject = ?1 \
                         OR (principal_subject >= ?1 || ' sha256:' AND principal_subject < ?1 || ' sha256;') LIMIT 2",
                    )
                    .bind(name)
                    .fetch_all(&self.readers)
                    .await?;
                    let names = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
                    meant.principals.insert(name.clone(), names);
                }
                Condition::LastRun if meant.last_run.is_empty() => {
                    let row = sqlx::query("SELECT id FROM run ORDER BY first_unix_ns DESC, id DESC LIMIT 1")
                        .fetch_optional(&self.readers)
                        .await?;
                    meant.last_run = row.ok_or(SearchError::NoRuns)?.try_get(0)?;
                }
                _ => {}
            }
        }
        Ok(meant)
    }

    /// Beginnings are a range of the primary key; ends are looked for only where nothing begins so.
    async fn ids_meant(&self, kind: &'static str, part: &str) -> Result<Vec<Vec<u8>>, SearchError> {
        let bound = |fill: char| {
            let digits: String = part.chars().chain(std::iter::repeat(fill)).take(32).collect();
            hex::decode(digits).unwrap_or_default()
        };
        let limit = MEANT_MAX as i64 + 1;
        let mut rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "SELECT id FROM {kind} WHERE id BETWEEN ? AND ? ORDER BY id LIMIT ?"
        )))
        .bind(bound('0'))
        .bind(bound('F'))
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        if rows.is_empty() && part.len() >= ID_END_DIGITS_MIN {
            let sql = format!("SELECT id FROM {kind} WHERE substr(hex(id), ?) = ? ORDER BY id LIMIT ?");
            rows = sqlx::query(sqlx::AssertSqlSafe(sql))
                .bind(-(part.len() as i64))
                .bind(part)
                .bind(limit)
                .fetch_all(&self.readers)
                .await?;
        }
        let part = || part.to_ascii_lowercase();
        match rows.len() {
            0 => Err(SearchError::NoSuch { kind, part: part() }),
            count if count > MEANT_MAX => Err(SearchError::Ambiguous { kind, part: part() }),
            _ => Ok(rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?),
        }
    }
}
