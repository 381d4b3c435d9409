//! The way through the index: what is walked for a query, and between which ids.

use sqlx::Row;
use weir_proto::v1;

use super::meant::Meant;
use super::reader::{Reader, in_time};
use super::statement::match_text;
use crate::search::query::{Condition, Expr, Outcome, Query};
use crate::search::values::Pattern;
use crate::store::StoreError;

/// Words found in fewer exchanges than this are looked up before anything else.
const RARE_EXCHANGES_MAX: i64 = 2_000;
const NS_PER_HOUR: i64 = 3_600_000_000_000;

/// The ids in which every answer lies, as far as that is quickly known: by the times asked for, and by the run.
pub(super) async fn bounds(
    reader: &mut Reader,
    query: &Query,
    meant: &Meant,
    (mut from, mut to): (i64, i64),
) -> Result<(i64, i64), StoreError> {
    for one in query.required() {
        let row = match one {
            Expr::Is(Condition::Asked(range)) => {
                let hour = |ns: Option<i64>, open: i64| ns.map_or(open, |ns| ns.div_euclid(NS_PER_HOUR));
                sqlx::query(
                    "SELECT min(first_segment) AS low, max(last_segment) AS high FROM asked_hour WHERE hour BETWEEN ? AND ?",
                )
                .bind(hour(range.from, i64::MIN))
                .bind(hour(range.to, i64::MAX))
                .fetch_one(reader.arm())
                .await?
            }
            Expr::Is(condition @ (Condition::Run(_) | Condition::LastRun)) => {
                let Some(run) = single_run(condition, meant) else { continue };
                sqlx::query(
                    "SELECT min(id) AS low, max(id) AS high FROM segment INDEXED BY segment_by_run WHERE run_id = ?",
                )
                .bind(run)
                .fetch_one(reader.arm())
                .await?
            }
            _ => continue,
        };
        let segments: (Option<i64>, Option<i64>) = (row.try_get("low")?, row.try_get("high")?);
        let (Some(low), Some(high)) = segments else { return Ok((0, 0)) };
        let row = sqlx::query(
            "SELECT (SELECT first_exchange FROM segment WHERE id >= ?1 AND exchanges > 0 ORDER BY id LIMIT 1) AS low, \
             (SELECT first_exchange + exchanges FROM segment WHERE id <= ?2 AND exchanges > 0 ORDER BY id DESC LIMIT 1) AS high",
        )
        .bind(low)
        .bind(high)
        .fetch_one(reader.arm())
        .await?;
        let (Some(low), Some(high)) =
            (row.try_get::<Option<i64>, _>("low")?, row.try_get::<Option<i64>, _>("high")?)
        else {
            return Ok((0, 0));
        };
        (from, to) = (from.max(low), to.min(high));
    }
    Ok((from, to))
}

fn single_run<'m>(condition: &Condition, meant: &'m Meant) -> Option<&'m [u8]> {
    match condition {
        Condition::LastRun => Some(&meant.last_run),
        Condition::Run(part) => match meant.run(part) {
            [one] => Some(one),
            _ => None,
        },
        _ => None,
    }
}

/// What is walked, in order of id. Everything else is looked at for each of its rows.
pub(super) enum Path<'q> {
    /// The exchanges with these words.
    Words(String),
    /// The segments of one run, session, principal.
    Run(Vec<u8>),
    Session(Vec<u8>),
    Principal(&'q str),
    /// Exchanges with one of the rare outcomes.
    Outcome(i32),
    WouldDeny,
    /// All segments: something about them is asked for, and there are far fewer of them.
    Segments,
    /// All exchanges.
    All,
}

pub(super) async fn path<'q>(
    reader: &mut Reader,
    query: &'q Query,
    meant: &'q Meant,
    (from, to): (i64, i64),
) -> Result<Path<'q>, StoreError> {
    let words: Vec<String> = query.required_texts().iter().map(match_text).collect();
    let mut best = Path::All;
    for one in query.required() {
        match one {
            Expr::Is(condition) => {
                let narrow = match condition {
                    Condition::Session(part) => match meant.session(part) {
                        [one] => Some(Path::Session(one.clone())),
                        _ => None,
                    },
                    Condition::Principal(Pattern::Is(name)) => meant.principal(name).map(Path::Principal),
                    Condition::Outcome(outcome) => rare_outcome(*outcome).map(Path::Outcome),
                    Condition::WouldDeny => Some(Path::WouldDeny),
                    run => single_run(run, meant).map(|run| Path::Run(run.to_vec())),
                };
                let by_segment = is_of_segment(one) || matches!(condition, Condition::Host(_));
                let narrow = narrow.or_else(|| by_segment.then_some(Path::Segments));
                if let Some(narrow) = narrow
                    && narrow.rank() < best.rank()
                {
                    best = narrow;
                }
            }
            one if is_of_segment(one) && matches!(best, Path::All) => best = Path::Segments,
            _ => {}
        }
    }
    if words.is_empty() {
        return Ok(best);
    }
    let words = words.join(" AND ");
    if !matches!(best, Path::All) {
        let rare = in_time(
            sqlx::query(
                "SELECT count(*) FROM (SELECT 1 FROM words.exchange_text WHERE exchange_text MATCH ? AND rowid >= ? AND rowid < ? \
                 LIMIT ?)",
            )
            .bind(words.clone())
            .bind(from)
            .bind(to)
            .bind(RARE_EXCHANGES_MAX)
            .fetch_one(reader.arm())
            .await,
        )?;
        let count: i64 = rare.map_or(Ok(RARE_EXCHANGES_MAX), |row| row.try_get(0))?;
        if count >= RARE_EXCHANGES_MAX {
            return Ok(best);
        }
    }
    Ok(Path::Words(words))
}

impl Path<'_> {
    /// The narrower the smaller.
    fn rank(&self) -> u8 {
        match self {
            Self::Words(_) => 0,
            Self::Session(_) => 1,
            Self::Run(_) => 2,
            Self::WouldDeny => 3,
            Self::Outcome(_) => 4,
            Self::Principal(_) => 5,
            Self::Segments => 6,
            Self::All => 7,
        }
    }
}

/// Whether a segment alone says if it holds, with its session, run and node.
fn is_of_segment(expr: &Expr) -> bool {
    match expr {
        Expr::All(all) | Expr::Any(all) => all.iter().all(is_of_segment),
        Expr::Not(one) => is_of_segment(one),
        Expr::Text(_) => false,
        Expr::Is(condition) => matches!(
            condition,
            Condition::Run(_)
                | Condition::LastRun
                | Condition::Session(_)
                | Condition::Node(_)
                | Condition::Target(_)
                | Condition::User(_)
                | Condition::Principal(_)
                | Condition::Database(_)
                | Condition::Label(..)
        ),
    }
}

/// As `exchange_by_outcome` has it.
pub(super) fn rare_outcome(outcome: Outcome) -> Option<i32> {
    let stored = match outcome {
        Outcome::Error => v1::Outcome::Error,
        Outcome::Denied => v1::Outcome::Denied,
        Outcome::Withdrawn => v1::Outcome::Withdrawn,
        Outcome::Aborted => v1::Outcome::Aborted,
        Outcome::Ok | Outcome::Running => return None,
    };
    Some(stored as i32)
}
