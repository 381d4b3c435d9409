//! Adds up what sessions and exchanges say. Bounded: what finds no place of its own is counted with the others.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

use weir_proto::v1::{self, Outcome};

use super::analyst::Analyst;
use super::paths::{grouped, url};
use super::tables::Access;

/// Lines of each kind.
const HOSTS_MAX: usize = 1_000;
const DATABASES_MAX: usize = 1_000;
const TABLES_MAX: usize = 5_000;
const PATHS_MAX: usize = 1_000;
/// Sessions remembered, for what their exchanges do not say.
const SESSIONS_MAX: usize = 200_000;
/// Statements shown of those that do not parse, and characters of each.
const UNPARSED_SHOWN_MAX: usize = 5;
const UNPARSED_CHARS_MAX: usize = 200;
const LINE_CHARS_MAX: usize = 300;

/// What happened to one thing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub exchanges: u64,
    /// Exchanges that read it, and that wrote it; those that were denied did neither.
    pub read: u64,
    pub written: u64,
    pub errors: u64,
    pub denied: u64,
    /// Of the exchanges as a whole, also when they touched more than one thing.
    pub rows: u64,
    pub request_bytes: u64,
    pub response_bytes: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Host {
    /// `address:port`
    pub address: String,
    pub target: String,
    pub protocol: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostCounts {
    pub sessions: u64,
    /// Sessions that were not looked into, or refused.
    pub opaque: u64,
    pub refused: u64,
    /// Of sessions: also what belongs to no exchange, and what was not looked into.
    pub sent_bytes: u64,
    pub received_bytes: u64,
    pub gaps: u64,
    /// Names that were asked for there.
    pub names: BTreeMap<String, u64>,
    pub counts: Counts,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Database {
    pub address: String,
    pub database: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Table {
    pub address: String,
    pub database: String,
    /// As written; in lower case where it was not quoted.
    pub table: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Path {
    /// The name that was asked for, with its port where it is said.
    pub host: String,
    pub path: String,
}

/// Lines by name, and what found no place among them.
#[derive(Debug)]
pub struct Lines<K, V> {
    pub lines: HashMap<K, V>,
    /// Times that a thing found no place.
    pub others: u64,
    max: usize,
}

impl<K: Hash + Eq, V: Default> Lines<K, V> {
    fn new(max: usize) -> Self {
        Self { lines: HashMap::new(), others: 0, max }
    }

    fn of(&mut self, key: K) -> Option<&mut V> {
        if self.lines.len() >= self.max && !self.lines.contains_key(&key) {
            self.others += 1;
            return None;
        }
        Some(self.lines.entry(key).or_default())
    }

    /// By name.
    pub fn sorted(&self) -> Vec<(&K, &V)>
    where
        K: Ord,
    {
        let mut all: Vec<_> = self.lines.iter().collect();
        all.sort_by_key(|(key, _)| *key);
        all
    }
}

/// All of it.
pub struct Report {
    pub hosts: Lines<Host, HostCounts>,
    pub databases: Lines<Database, Counts>,
    pub tables: Lines<Table, Counts>,
    pub paths: Lines<Path, Counts>,
    /// Statements whose tables are not known: the grammar does not take them.
    pub unparsed: u64,
    /// Statements that were recorded only in part, or not at all.
    pub cut: u64,
    /// Some of them.
    pub unparsed_shown: Vec<String>,
    pub sessions: u64,
    pub exchanges: u64,
    databases_of: HashMap<Vec<u8>, String>,
    analyst: Analyst,
}

impl Default for Report {
    fn default() -> Self {
        Self {
            hosts: Lines::new(HOSTS_MAX),
            databases: Lines::new(DATABASES_MAX),
            tables: Lines::new(TABLES_MAX),
            paths: Lines::new(PATHS_MAX),
            unparsed: 0,
            cut: 0,
            unparsed_shown: Vec::new(),
            sessions: 0,
            exchanges: 0,
            databases_of: HashMap::new(),
            analyst: Analyst::default(),
        }
    }
}

impl Report {
    /// Sessions come before their exchanges.
    pub fn session(&mut self, session: &v1::SessionSummary) {
        self.sessions += 1;
        let host = Host {
            address: address(session.origin.as_ref()),
            target: line(&session.target),
            protocol: line(&session.protocol),
        };
        if let Some(counts) = self.hosts.of(host) {
            counts.sessions += 1;
            counts.opaque += u64::from(session.coverage() == v1::Coverage::MetadataOnly);
            counts.refused += u64::from(session.coverage() == v1::Coverage::Refused);
            counts.sent_bytes += session.request_bytes;
            counts.received_bytes += session.response_bytes;
            counts.gaps += session.gaps;
        }
        let database = session.facts.get("database").filter(|database| !database.is_empty());
        if let Some(database) = database
            && self.databases_of.len() < SESSIONS_MAX
        {
            self.databases_of.insert(session.session_id.to_vec(), line(database));
        }
    }

    pub fn exchange(&mut self, exchange: &v1::ExchangeSummary) {
        self.exchanges += 1;
        let finished = exchange.finished.clone().unwrap_or_default();
        let operation = finished.operation.clone().unwrap_or_default();
        let one = One {
            outcome: finished.outcome(),
            rows: finished.rows,
            request_bytes: finished.request_bytes,
            response_bytes: finished.response_bytes,
        };
        let host = Host {
            address: address(exchange.origin.as_ref()),
            target: line(&exchange.target),
            protocol: line(&exchange.protocol),
        };
        let address = host.address.clone();
        let (access, name) = match operation.kind.as_str() {
            "http" => self.http(&operation, &one),
            "sql" => (self.sql(exchange, &address, &operation, &one), None),
            _ => (Access::default(), None),
        };
        if let Some(counts) = self.hosts.of(host) {
            counts.counts.add(&one, access);
            if let Some(name) = name
                && (counts.names.len() < HOSTS_MAX || counts.names.contains_key(&name))
            {
                *counts.names.entry(name).or_default() += 1;
            }
        }
    }

    /// Also the name that was asked for.
    fn http(&mut self, operation: &v1::Operation, one: &One) -> (Access, Option<String>) {
        let url = url(&operation.text);
        let host = line(url.authority);
        let read = ["GET", "HEAD", "OPTIONS", "TRACE"].contains(&operation.verb.as_str());
        // What goes through a tunnel is not in its CONNECT.
        let access = match operation.verb.as_str() {
            "CONNECT" => Access::default(),
            _ => Access { read, written: !read },
        };
        if operation.verb != "CONNECT"
            && let Some(counts) = self.paths.of(Path { host: host.clone(), path: grouped(url.path) })
        {
            counts.add(one, access);
        }
        (access, (!host.is_empty()).then_some(host))
    }

    fn sql(
        &mut self,
        exchange: &v1::ExchangeSummary,
        address: &str,
        operation: &v1::Operation,
        one: &One,
    ) -> Access {
        // To prepare is not to run, and a cancel names no statement.
        let runs = matches!(operation.verb.as_str(), "query" | "execute" | "call");
        let database = self.databases_of.get(&exchange.session_id[..]).cloned().unwrap_or_default();
        let mut access = Access::default();
        if runs {
            let in_part = operation.text_truncated || (operation.oversized && operation.text.is_empty());
            // A function called by its number says nothing of tables.
            let named = operation.verb != "call" && !in_part;
            let found = if named { self.analyst.tables(&operation.text) } else { None };
            match found {
                None if in_part => self.cut += 1,
                None => {
                    self.unparsed += 1;
                    if self.unparsed_shown.len() < UNPARSED_SHOWN_MAX {
                        let text = if operation.text.is_empty() { &operation.verb } else { &operation.text };
                        let shown = text.chars().take(UNPARSED_CHARS_MAX).collect();
                        if !self.unparsed_shown.contains(&shown) {
                            self.unparsed_shown.push(shown);
                        }
                    }
                }
                Some(tables) => {
                    for (table, touched) in tables {
                        access.read |= touched.read;
                        access.written |= touched.written;
                        let table = Table { address: address.to_owned(), database: database.clone(), table };
                        if let Some(counts) = self.tables.of(table) {
                            counts.add(one, touched);
                        }
                    }
                }
            }
        }
        let database = Database { address: address.to_owned(), database };
        if let Some(counts) = self.databases.of(database) {
            counts.add(one, access);
        }
        access
    }
}

struct One {
    outcome: Outcome,
    rows: u64,
    request_bytes: u64,
    response_bytes: u64,
}

impl Counts {
    fn add(&mut self, one: &One, access: Access) {
        self.exchanges += 1;
        let denied = matches!(one.outcome, Outcome::Denied | Outcome::Withdrawn);
        self.read += u64::from(access.read && !denied);
        self.written += u64::from(access.written && !denied);
        self.errors += u64::from(matches!(one.outcome, Outcome::Error | Outcome::Aborted));
        self.denied += u64::from(one.outcome == Outcome::Denied);
        self.rows = self.rows.saturating_add(one.rows);
        self.request_bytes = self.request_bytes.saturating_add(one.request_bytes);
        self.response_bytes = self.response_bytes.saturating_add(one.response_bytes);
    }

    /// In one word: `read`, `written`, `read, written`, or what it was instead.
    pub fn access(&self) -> &'static str {
        match (self.read > 0, self.written > 0) {
            (true, true) => "read, written",
            (true, false) => "read",
            (false, true) => "written",
            (false, false) if self.denied > 0 => "denied",
            (false, false) => "",
        }
    }
}

fn address(address: Option<&v1::Address>) -> String {
    match address {
        Some(a) if a.ip.contains(':') => format!("[{}]:{}", a.ip, a.port),
        Some(a) if !a.ip.is_empty() => format!("{}:{}", a.ip, a.port),
        _ => String::new(),
    }
}

fn line(text: &str) -> String {
    text.chars().take(LINE_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(id: u8, protocol: &str, database: &str) -> v1::SessionSummary {
        v1::SessionSummary {
            session_id: vec![id].into(),
            protocol: protocol.into(),
            origin: Some(v1::Address { ip: "10.0.0.9".into(), port: 5432 }),
            target: "orders".into(),
            coverage: v1::Coverage::Inspected as i32,
            request_bytes: 10,
            response_bytes: 20,
            facts: [("database".to_owned(), database.to_owned())].into(),
            ..Default::default()
        }
    }

    fn exchange(id: u8, kind: &str, verb: &str, text: &str, outcome: Outcome) -> v1::ExchangeSummary {
        let protocol = if kind == "sql" { "postgres" } else { "http" };
        v1::ExchangeSummary {
            session_id: vec![id].into(),
            protocol: protocol.into(),
            origin: Some(v1::Address { ip: "10.0.0.9".into(), port: 5432 }),
            target: "orders".into(),
            finished: Some(v1::Finished {
                operation: Some(v1::Operation {
                    kind: kind.into(),
                    verb: verb.into(),
                    text: text.into(),
                    ..Default::default()
                }),
                outcome: outcome as i32,
                rows: 5,
                response_bytes: 100,
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn exchanges_add_up_by_what_they_touched() {
        let mut report = Report::default();
        report.session(&session(1, "postgres", "shop"));
        let sql = |verb, text, outcome| exchange(1, "sql", verb, text, outcome);
        report.exchange(&sql("prepare", "DELETE FROM nothing_yet", Outcome::Ok));
        report.exchange(&sql("execute", "SELECT * FROM orders", Outcome::Ok));
        report.exchange(&sql("query", "INSERT INTO orders SELECT * FROM items", Outcome::Error));
        report.exchange(&sql("query", "DROP TABLE customers", Outcome::Denied));
        report.exchange(&sql("query", "MAKE IT SO", Outcome::Error));
        report.exchange(&sql("call", "", Outcome::Ok));
        let mut cut = sql("query", "SELECT * FROM o", Outcome::Ok);
        cut.finished.as_mut().unwrap().operation.as_mut().unwrap().text_truncated = true;
        report.exchange(&cut);

        let told: Vec<_> = report
            .tables
            .sorted()
            .into_iter()
            .map(|(table, counts)| {
                assert_eq!((&*table.address, &*table.database), ("10.0.0.9:5432", "shop"));
                (
                    table.table.as_str(),
                    counts.access(),
                    counts.exchanges,
                    counts.errors,
                    counts.denied,
                    counts.rows,
                )
            })
            .collect();
        assert_eq!(
            told,
            [
                ("customers", "denied", 1, 0, 1, 5),
                ("items", "read", 1, 1, 0, 5),
                ("orders", "read, written", 2, 1, 0, 10)
            ]
        );
        assert_eq!((report.unparsed, report.cut, report.exchanges), (2, 1, 7));
        assert_eq!(report.unparsed_shown, ["MAKE IT SO", "call"]);
        let (_, host) = report.hosts.sorted()[0];
        assert_eq!((host.sessions, host.sent_bytes, host.counts.exchanges), (1, 10, 7));
        assert_eq!(report.databases.sorted()[0].1.denied, 1);
    }

    #[test]
    fn methods_and_paths() {
        let mut report = Report::default();
        let http = |verb, url| exchange(2, "http", verb, url, Outcome::Ok);
        report.exchange(&http("GET", "http://api:8080/users/17?x=1"));
        report.exchange(&http("DELETE", "http://api:8080/users/18"));
        report.exchange(&http("POST", "http://api:8080/users"));
        report.exchange(&http("CONNECT", "other:443"));
        let told: Vec<_> = report
            .paths
            .sorted()
            .into_iter()
            .map(|(path, counts)| (path.host.as_str(), path.path.as_str(), counts.access(), counts.exchanges))
            .collect();
        assert_eq!(
            told,
            [("api:8080", "/users", "written", 1), ("api:8080", "/users/{id}", "read, written", 2)]
        );
        let (_, host) = report.hosts.sorted()[0];
        assert_eq!(host.names.keys().map(String::as_str).collect::<Vec<_>>(), ["api:8080", "other:443"]);
    }

    #[test]
    fn lines_are_bounded_and_the_rest_is_counted() {
        let mut report = Report::default();
        for n in 0..PATHS_MAX + 7 {
            report.exchange(&exchange(1, "http", "GET", &format!("http://a/p{n}x"), Outcome::Ok));
        }
        assert_eq!((report.paths.lines.len(), report.paths.others), (PATHS_MAX, 7));
        assert_eq!(report.hosts.sorted()[0].1.counts.exchanges as usize, PATHS_MAX + 7);
    }
}
