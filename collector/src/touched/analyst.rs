//! The grammar on a thread of its own. What was recorded is hostile, and no recursive parser is proof against all of it: one
//! that takes too long is left behind, and after a few the rest counts as unparsed. For programs that end soon, such as
//! `weir`, never for the collector itself.

use std::collections::HashMap;
use std::sync::mpsc;
use std::time::Duration;

use super::tables::{SQL_BYTES_MAX, Tables, tables};

/// Deep statements need room; it is reserved, and used only by those.
const STACK_BYTES: usize = 256 * 1024 * 1024;
/// Longest time for one statement.
const PARSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Threads left behind before no further statement is tried.
const LEFT_BEHIND_MAX: usize = 3;
/// Statements remembered, for agents say the same again and again; and the longest that is.
const REMEMBERED_MAX: usize = 10_000;
const REMEMBERED_BYTES_MAX: usize = 2 * 1024;

/// Parses statements, one after the other.
#[derive(Default)]
pub struct Analyst {
    worker: Option<Worker>,
    left_behind: usize,
    remembered: HashMap<String, Option<Tables>>,
}

struct Worker {
    to: mpsc::SyncSender<String>,
    from: mpsc::Receiver<Option<Tables>>,
}

impl Analyst {
    /// `None`: it does not parse, at all or in time.
    pub fn tables(&mut self, sql: &str) -> Option<Tables> {
        if let Some(known) = self.remembered.get(sql) {
            return known.clone();
        }
        let found = if sql.len() > SQL_BYTES_MAX { None } else { self.parse(sql) };
        if sql.len() <= REMEMBERED_BYTES_MAX && self.remembered.len() < REMEMBERED_MAX {
            self.remembered.insert(sql.to_owned(), found.clone());
        }
        found
    }

    fn parse(&mut self, sql: &str) -> Option<Tables> {
        if self.left_behind >= LEFT_BEHIND_MAX {
            return None;
        }
        let worker = match self.worker.take() {
            Some(worker) => worker,
            None => Worker::start()?,
        };
        worker.to.send(sql.to_owned()).ok()?;
        match worker.from.recv_timeout(PARSE_TIMEOUT) {
            Ok(found) => {
                self.worker = Some(worker);
                found
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                self.left_behind += 1;
                None
            }
            // It panicked: the next statement gets another one.
            Err(mpsc::RecvTimeoutError::Disconnected) => None,
        }
    }
}

impl Worker {
    fn start() -> Option<Self> {
        let (to, statements) = mpsc::sync_channel::<String>(1);
        let (answers, from) = mpsc::sync_channel(1);
        let work = move || {
            while let Ok(sql) = statements.recv() {
                if answers.send(tables(&sql)).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("sql".into()).stack_size(STACK_BYTES).spawn(work).ok()?;
        Some(Self { to, from })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_made_to_hurt_end_in_time() {
        let mut analyst = Analyst::default();
        let deep = |open: &str, middle: &str, close: &str, times: usize| {
            format!("SELECT {}{middle}{}", open.repeat(times), close.repeat(times))
        };
        for sql in [
            deep("(", "1", ")", 10_000),
            deep("((", "", "", 3_000),
            deep("(SELECT ", "1", ")", 2_000),
            deep("NOT ", "a", "", 7_000),
            deep("- ", "1", "", 15_000),
            deep("INTERVAL ", "'1'", "", 3_000),
            deep("CASE WHEN ", "a", "", 3_000),
            deep("ARRAY[", "1", "]", 4_000),
            deep("1+", "1", "", 15_000),
            deep("a.", "b", "", 15_000),
            deep("1", "", "::int", 6_000),
            deep("f(", "1", ")", 10_000),
            deep("CAST(1 AS ", "int", ")", 2_000),
            deep("EXTRACT(", "1", "", 3_000),
            format!("SELECT * FROM {}t{}", "(".repeat(5_000), ")".repeat(5_000)),
            format!("SELECT * FROM t {}", "JOIN (t ".repeat(3_000)),
            format!("SELECT * FROM t{}", " NATURAL JOIN t".repeat(2_000)),
            format!("{}SELECT 1", "EXPLAIN ".repeat(3_000)),
            format!("{}SELECT 1", "WITH a AS (".repeat(2_000)),
            format!("SELECT 1{}", " UNION SELECT 1".repeat(2_000)),
            format!("SELECT a{}", "[1:(b".repeat(3_000)),
            format!("CREATE TABLE t (a {}int", "STRUCT<".repeat(3_000)),
            "\u{0}'\"$$".repeat(1_000),
            "/*".repeat(10_000),
        ] {
            let _ = analyst.tables(&sql);
        }
        assert!(analyst.left_behind < LEFT_BEHIND_MAX, "{} threads were left behind", analyst.left_behind);
        assert!(analyst.tables("SELECT * FROM t").is_some_and(|tables| tables.contains_key("t")));
    }

    proptest::proptest! {
        #[test]
        fn any_text_has_tables_or_none(sql in "\\PC{0,120}") {
            let _ = Analyst::default().tables(&sql);
        }
    }
}
