//! The SQL of one window. Nothing that people type becomes SQL or full-text syntax: it is bound, and words are quoted.

use sqlx::{QueryBuilder, Row, Sqlite};
use weir_proto::v1;

use super::meant::{Meant, collect};
use super::path::{Path, rare_outcome};
use super::reader::{Reader, in_time};
use super::{ID_END_DIGITS_MIN, Seeking};
use crate::search::query::{Condition, Expr, Outcome, Text, Within};
use crate::search::values::{Pattern, Range};
use crate::store::StoreError;

/// One window of a search: ids from `low` to below `high`.
pub(super) struct Step<'a> {
    pub(super) seeking: &'a Seeking<'a>,
    pub(super) meant: &'a Meant,
    pub(super) path: &'a Path<'a>,
    pub(super) low: i64,
    pub(super) high: i64,
}

impl Step<'_> {
    /// `None`: it took too long.
    pub(super) async fn run(&self, reader: &mut Reader, rows: usize) -> Result<Option<Vec<i64>>, StoreError> {
        let mut query = QueryBuilder::new("");
        self.push_statement(&mut query, rows);
        // Each is written for its question: kept statements would only push out those that come again.
        let found = in_time(query.build().persistent(false).fetch_all(reader.arm()).await)?;
        let Some(found) = found else { return Ok(None) };
        Ok(Some(found.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?))
    }

    pub(super) fn push_statement(&self, query: &mut QueryBuilder<Sqlite>, rows: usize) {
        query.push("SELECT e.id FROM ");
        self.push_tables(query);
        query.push(" WHERE ");
        self.push_path(query);
        query.push(" AND e.id >= ").push_bind(self.low).push(" AND e.id < ").push_bind(self.high);
        if let Some(ended) = self.seeking.ended_from_ns {
            query.push(" AND e.duration_ns IS NOT NULL AND e.asked_boot_ns + e.duration_ns + (g.wall_unix_ns - g.wall_boot_ns) >= ");
            query.push_bind(ended);
        }
        if let Some(root) = &self.seeking.query.root {
            query.push(" AND ");
            self.push(query, root);
        }
        let direction = if self.seeking.newest_first { "DESC" } else { "ASC" };
        let order = match self.path {
            Path::Words(_) => format!("t.rowid {direction}"),
            Path::Run(_) | Path::Session(_) | Path::Principal(_) | Path::Segments => {
                format!("g.id {direction}, e.id {direction}")
            }
            Path::Outcome(_) | Path::WouldDeny | Path::All => format!("e.id {direction}"),
        };
        query.push(format!(" ORDER BY {order} LIMIT ")).push_bind(rows as i64);
    }

    /// CROSS JOIN keeps the order that is written: without statistics the planner guesses.
    fn push_tables(&self, query: &mut QueryBuilder<Sqlite>) {
        const OF_EXCHANGE: &str = " CROSS JOIN segment g ON g.id = e.segment";
        // What is known of the segment is asked before its exchanges are looked at.
        const OF_SEGMENT: &str = " CROSS JOIN exchange e NOT INDEXED ON e.segment = g.id";
        let (first, segment_first) = match self.path {
            Path::Words(_) => ("words.exchange_text t CROSS JOIN exchange e ON e.id = t.rowid", false),
            Path::Outcome(_) => ("exchange e INDEXED BY exchange_by_outcome", false),
            Path::WouldDeny => ("exchange e INDEXED BY exchange_would_deny", false),
            Path::All => ("exchange e NOT INDEXED", false),
            Path::Run(_) => ("segment g INDEXED BY segment_by_run", true),
            Path::Principal(_) => ("segment g INDEXED BY segment_by_principal", true),
            Path::Session(_) => ("segment g", true),
            Path::Segments => ("segment g NOT INDEXED", true),
        };
        query.push(first);
        if !segment_first {
            query.push(OF_EXCHANGE);
        }
        self.push_joins(query);
        if segment_first {
            query.push(OF_SEGMENT);
        }
    }

    fn push_joins(&self, query: &mut QueryBuilder<Sqlite>) {
        let mut conditions = Vec::new();
        if let Some(root) = &self.seeking.query.root {
            collect(root, &mut conditions);
        }
        let needs = |wanted: fn(&Condition) -> bool| conditions.iter().any(|condition| wanted(condition));
        let node = needs(|c| matches!(c, Condition::Node(_)));
        if node
            || needs(|c| {
                matches!(
                    c,
                    Condition::Host(_) | Condition::Target(_) | Condition::User(_) | Condition::Database(_)
                )
            })
        {
            query.push(" CROSS JOIN session s ON s.id = g.session_id");
        }
        if node {
            query.push(" CROSS JOIN node n ON n.id = s.node_id");
        }
    }

    fn push_path(&self, query: &mut QueryBuilder<Sqlite>) {
        let segments = match self.path {
            Path::Words(words) => {
                query.push("t.exchange_text MATCH ").push_bind(words.clone());
                query
                    .push(" AND t.rowid >= ")
                    .push_bind(self.low)
                    .push(" AND t.rowid < ")
                    .push_bind(self.high);
                return;
            }
            Path::Outcome(outcome) => {
                query.push("e.outcome > 1 AND e.outcome = ").push_bind(*outcome);
                return;
            }
            Path::WouldDeny => {
                query.push("e.would_deny = 1");
                return;
            }
            Path::All => {
                query.push("1");
                return;
            }
            Path::Segments => {
                query.push("1");
                for one in self.seeking.query.required() {
                    if let Expr::Is(Condition::Host(pattern)) = one {
                        // Only an HTTP session names hosts besides its own; sessions of PostgreSQL never become one.
                        query.push(" AND (g.protocol <> 'postgres' OR ");
                        push_any(query, SESSION_HOST, pattern);
                        query.push(")");
                    }
                }
                query
            }
            Path::Run(run) => query.push("g.run_id = ").push_bind(run.clone()),
            Path::Session(session) => query.push("g.session_id = ").push_bind(session.clone()),
            Path::Principal(name) => query.push("g.principal = ").push_bind((*name).to_owned()),
        };
        // Segments ascend as their exchanges do.
        segments.push(" AND g.id >= COALESCE((SELECT segment FROM exchange WHERE id >= ");
        segments.push_bind(self.low).push(" ORDER BY id LIMIT 1), 0)");
        segments.push(" AND g.id <= COALESCE((SELECT segment FROM exchange WHERE id < ");
        segments.push_bind(self.high).push(" ORDER BY id DESC LIMIT 1), 0)");
        segments.push(" AND e.id >= g.first_exchange AND e.id < g.first_exchange + g.exchanges");
    }

    fn push(&self, query: &mut QueryBuilder<Sqlite>, expr: &Expr) {
        match expr {
            Expr::All(all) => self.push_many(query, all, " AND "),
            Expr::Any(all) => self.push_many(query, all, " OR "),
            // What is unknown (how long a running exchange takes) is not so, and so its opposite is.
            Expr::Not(one) => {
                query.push("(");
                self.push(query, one);
                query.push(") IS NOT TRUE");
            }
            Expr::Text(text) => {
                // The plus: looked up for each row that the path gives, never walked for each of its segments.
                query.push("+e.id IN (SELECT rowid FROM words.exchange_text WHERE exchange_text MATCH ");
                query.push_bind(match_text(text));
                query.push(" AND rowid >= ").push_bind(self.low);
                query.push(" AND rowid < ").push_bind(self.high).push(")");
            }
            Expr::Is(condition) => {
                query.push("(");
                self.push_condition(query, condition);
                query.push(")");
            }
        }
    }

    fn push_many(&self, query: &mut QueryBuilder<Sqlite>, all: &[Expr], between: &str) {
        query.push("(");
        for (at, one) in all.iter().enumerate() {
            if at > 0 {
                query.push(between);
            }
            self.push(query, one);
        }
        query.push(")");
    }

    fn push_condition(&self, query: &mut QueryBuilder<Sqlite>, condition: &Condition) {
        match condition {
            Condition::Run(part) => push_ids(query, "g.run_id", self.meant.run(part)),
            Condition::LastRun => push_ids(query, "g.run_id", std::slice::from_ref(&self.meant.last_run)),
            Condition::Session(part) => push_ids(query, "g.session_id", self.meant.session(part)),
            Condition::Node(pattern) => {
                push_pattern(query, "n.name", pattern);
                if let Pattern::Is(part) = pattern {
                    push_id_part(query, "n.id", part);
                }
            }
            Condition::Host(pattern) => {
                push_any(query, SESSION_HOST, pattern);
                query.push(" OR ");
                push_any(query, &[URL_HOST, URL_NAME], pattern);
            }
            Condition::Target(pattern) => push_pattern(query, "s.target", pattern),
            Condition::Protocol(pattern) => push_pattern(query, "COALESCE(e.protocol, g.protocol)", pattern),
            Condition::Verb(pattern) => push_pattern(query, "e.verb", pattern),
            Condition::Status(pattern) => push_pattern(query, "e.status", pattern),
            Condition::StatusNumber(range) => {
                query.push("e.status GLOB '[0-9][0-9][0-9]' AND ");
                push_range(query, "CAST(e.status AS INTEGER)", range);
            }
            Condition::Outcome(Outcome::Running) => {
                query.push("e.duration_ns IS NULL");
            }
            Condition::Outcome(outcome) => {
                let stored = rare_outcome(*outcome).unwrap_or(v1::Outcome::Ok as i32);
                query.push("e.duration_ns IS NOT NULL AND e.outcome = ").push_bind(stored);
            }
            Condition::WouldDeny => {
                query.push("e.would_deny = 1");
            }
            Condition::User(pattern) => {
                push_any(query, &["g.principal", "json_extract(s.facts, '$.user')"], pattern);
                if let Pattern::Is(name) = pattern {
                    query.push(" OR ");
                    push_principal(query, name);
                }
            }
            Condition::Principal(Pattern::Is(name)) => push_principal(query, name),
            Condition::Principal(pattern) => push_pattern(query, "g.principal", pattern),
            Condition::Path(pattern) => push_pattern(query, URL_PATH, pattern),
            Condition::Database(pattern) => {
                push_pattern(query, "json_extract(s.facts, '$.database')", pattern)
            }
            Condition::Asked(range) => {
                push_range(query, "(e.asked_boot_ns + (g.wall_unix_ns - g.wall_boot_ns))", range);
            }
            Condition::Duration(range) => push_range(query, "e.duration_ns", range),
            Condition::Rows(range) => push_range(query, "e.rows", range),
            Condition::Bytes(range) => push_range(query, "(e.request_bytes + e.response_bytes)", range),
            Condition::Label(key, pattern) => {
                query.push("EXISTS (SELECT 1 FROM run_label l WHERE l.run_id = g.run_id AND l.key = ");
                query.push_bind(key.clone()).push(" AND ");
                push_pattern(query, "l.value", pattern);
                query.push(")");
            }
        }
    }
}

/// Where a session went.
const SESSION_HOST: &[&str] = &[
    "s.origin_ip",
    "CASE WHEN instr(s.origin_ip, ':') THEN '[' || s.origin_ip || ']' ELSE s.origin_ip END || ':' || s.origin_port",
    "json_extract(s.facts, '$.host')",
];
// What an HTTP exchange asked is `METHOD` and an absolute URL: the piece between `://` and the next `/`, without its port,
// and what follows up to `?`. CASE spares all others the cutting.
const URL_HOST: &str = "CASE WHEN COALESCE(e.protocol, g.protocol) = 'http' THEN (SELECT substr(u, 1, instr(u || '/', '/') - 1) FROM \
    (SELECT substr(e.statement, instr(e.statement, '://') + 3) AS u)) END";
const URL_NAME: &str = "CASE WHEN COALESCE(e.protocol, g.protocol) = 'http' THEN (SELECT substr(h, 1, instr(h || ':', ':') - 1) FROM \
    (SELECT substr(u, 1, instr(u || '/', '/') - 1) AS h FROM (SELECT substr(e.statement, instr(e.statement, '://') + 3) AS u))) END";
const URL_PATH: &str = "CASE WHEN COALESCE(e.protocol, g.protocol) = 'http' THEN (SELECT substr(p, 1, instr(p || '?', '?') - 1) FROM \
    (SELECT substr(u, instr(u || '/', '/')) AS p FROM (SELECT substr(e.statement, instr(e.statement, '://') + 3) AS u))) END";

fn push_any(query: &mut QueryBuilder<Sqlite>, columns: &[&str], pattern: &Pattern) {
    for (at, column) in columns.iter().enumerate() {
        if at > 0 {
            query.push(" OR ");
        }
        push_pattern(query, column, pattern);
    }
}

fn push_pattern(query: &mut QueryBuilder<Sqlite>, column: &str, pattern: &Pattern) {
    query.push(column);
    match pattern {
        Pattern::Is(text) => query.push(" = ").push_bind(text.clone()).push(" COLLATE NOCASE"),
        Pattern::Begins(text) => query.push(" LIKE ").push_bind(like(text) + "%").push(r" ESCAPE '\'"),
        Pattern::Ends(text) => {
            query.push(" LIKE ").push_bind(format!("%{}", like(text))).push(r" ESCAPE '\'")
        }
    };
}

fn like(text: &str) -> String {
    text.replace('\\', r"\\").replace('%', r"\%").replace('_', r"\_")
}

fn push_range(query: &mut QueryBuilder<Sqlite>, column: &str, range: &Range) {
    let (from, to) = (range.from.unwrap_or(i64::MIN), range.to.unwrap_or(i64::MAX));
    query.push(column).push(" BETWEEN ").push_bind(from).push(" AND ").push_bind(to);
}

/// `uid:1000` is everybody of that user, whatever executable its first process ran; `;` comes after `:`.
fn push_principal(query: &mut QueryBuilder<Sqlite>, name: &str) {
    query.push("(g.principal = ").push_bind(name.to_owned());
    query.push(" OR (g.principal >= ").push_bind(format!("{name} sha256:"));
    query.push(" AND g.principal < ").push_bind(format!("{name} sha256;")).push("))");
}

fn push_ids(query: &mut QueryBuilder<Sqlite>, column: &str, ids: &[Vec<u8>]) {
    query.push(column).push(" IN (");
    let mut list = query.separated(", ");
    for id in ids {
        list.push_bind(id.clone());
    }
    query.push(")");
}

fn push_id_part(query: &mut QueryBuilder<Sqlite>, column: &str, part: &str) {
    let digits: String = part.chars().filter(|c| *c != '-').map(|c| c.to_ascii_uppercase()).collect();
    let len = digits.len();
    if !(ID_END_DIGITS_MIN..=32).contains(&len) || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return;
    }
    query.push(format!(" OR substr(hex({column}), 1, {len}) = ")).push_bind(digits.clone());
    query.push(format!(" OR substr(hex({column}), -{len}) = ")).push_bind(digits);
}

/// As FTS5 wants it: between quotation marks nothing but a quotation mark means anything.
pub(super) fn match_text(text: &Text) -> String {
    let within = match text.within {
        Within::Everything => "",
        Within::Statement => "{asked} : ",
        Within::Error => "{error} : ",
        Within::Body => "{body} : ",
    };
    let star = if text.prefix { " *" } else { "" };
    format!("{within}\"{}\"{star}", text.words.replace('"', "\"\""))
}
