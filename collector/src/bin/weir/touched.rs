//! `weir touched`: what a run touched, added up on this machine from its sessions and exchanges.

use std::io::IsTerminal;

use anyhow::Result;
use serde_json::{Value, json};
use weir_collector::touched::Report;
use weir_collector::touched::report::{Counts, HostCounts, Lines};
use weir_proto::v1;

use crate::How;
use crate::client::{Client, PAGE_ROWS, page_at};
use crate::output::{self, bytes, id, one_line, plural};

/// Names shown of a host.
const NAMES_SHOWN: usize = 3;
const UNPARSED_SHOWN_CHARS: usize = 100;

#[derive(clap::Args)]
pub(crate) struct Touched {
    /// RUN, SESSION or `last`
    subject: String,
}

impl Touched {
    pub(crate) async fn run(self, how: &How) -> Result<()> {
        let mut client = Client::connect(how).await?;
        let (run_id, session_id) = client.subject(&self.subject).await?.fields();
        let mut report = Report::default();
        let asked = v1::SessionsRequest {
            run_id: run_id.clone(),
            session_id: session_id.clone(),
            ..Default::default()
        };
        let mut cursor = String::new();
        loop {
            let asked = v1::SessionsRequest { page: page_at(PAGE_ROWS, cursor), ..asked.clone() };
            let answer = client.query.sessions(asked).await?.into_inner();
            answer.sessions.iter().for_each(|session| report.session(session));
            cursor = answer.next_cursor;
            if cursor.is_empty() {
                break;
            }
        }
        let tells = std::io::stderr().is_terminal();
        loop {
            let asked = v1::ExchangesRequest {
                page: page_at(PAGE_ROWS, cursor),
                run_id: run_id.clone(),
                session_id: session_id.clone(),
            };
            let answer = client.query.exchanges(asked).await?.into_inner();
            answer.exchanges.iter().for_each(|exchange| report.exchange(exchange));
            cursor = answer.next_cursor;
            if cursor.is_empty() {
                break;
            }
            if tells {
                eprint!("\r\x1b[Kweir: {} read", plural(report.exchanges, "exchange"));
            }
        }
        if tells {
            eprint!("\r\x1b[K");
        }
        let subject = id(if run_id.is_empty() { &session_id } else { &run_id });
        if how.json { output::json(&report_json(&subject, &report)) } else { tell(&report) }
    }
}

fn tell(report: &Report) -> Result<()> {
    if report.sessions == 0 && report.exchanges == 0 {
        return output::line("nothing");
    }
    let headings = [
        "HOST",
        "TARGET",
        "PROTOCOL",
        "NAMES",
        "SESSIONS",
        "ACCESS",
        "EXCHANGES",
        "ERRORS",
        "DENIED",
        "ROWS",
        "SENT",
        "RECEIVED",
        "NOTE",
    ];
    output::table(
        &headings,
        report.hosts.sorted().into_iter().map(|(host, counts)| {
            let of = &counts.counts;
            vec![
                host.address.clone(),
                host.target.clone(),
                host.protocol.clone(),
                names(counts),
                counts.sessions.to_string(),
                of.access().to_owned(),
                of.exchanges.to_string(),
                of.errors.to_string(),
                of.denied.to_string(),
                of.rows.to_string(),
                bytes(counts.sent_bytes.max(of.request_bytes)),
                bytes(counts.received_bytes.max(of.response_bytes)),
                note(counts),
            ]
        }),
    )?;
    others(&report.hosts, "host")?;
    section("DATABASE", &report.databases, |key| [key.database.clone(), key.address.clone()])?;
    section("TABLE", &report.tables, |key| [key.table.clone(), join(&key.database, &key.address)])?;
    section("PATH", &report.paths, |key| [key.path.clone(), key.host.clone()])?;
    if report.unparsed + report.cut > 0 {
        output::line(format!(
            "\nthe tables of {} are not known: {} unparsed, {} not kept whole",
            plural(report.unparsed + report.cut, "statement"),
            report.unparsed,
            report.cut
        ))?;
        for statement in &report.unparsed_shown {
            output::line(format!("  unparsed: {}", one_line(statement, UNPARSED_SHOWN_CHARS)))?;
        }
    }
    Ok(())
}

fn join(database: &str, address: &str) -> String {
    if database.is_empty() { address.to_owned() } else { format!("{database} at {address}") }
}

fn section<K: Ord + std::hash::Hash + Eq>(
    heading: &str,
    lines: &Lines<K, Counts>,
    name: impl Fn(&K) -> [String; 2],
) -> Result<()> {
    if lines.lines.is_empty() {
        return Ok(());
    }
    output::line("")?;
    let headings = [heading, "OF", "ACCESS", "EXCHANGES", "ERRORS", "DENIED", "ROWS", "SENT", "RECEIVED"];
    output::table(
        &headings,
        lines.sorted().into_iter().map(|(key, counts)| {
            let [name, of] = name(key);
            vec![
                if name.is_empty() { "(unknown)".to_owned() } else { name },
                of,
                counts.access().to_owned(),
                counts.exchanges.to_string(),
                counts.errors.to_string(),
                counts.denied.to_string(),
                counts.rows.to_string(),
                bytes(counts.request_bytes),
                bytes(counts.response_bytes),
            ]
        }),
    )?;
    others(lines, &heading.to_lowercase())
}

fn others<K, V>(lines: &Lines<K, V>, one: &str) -> Result<()> {
    if lines.others == 0 {
        return Ok(());
    }
    output::line(format!("and other {one}s, touched {}", plural(lines.others, "time")))
}

fn names(counts: &HostCounts) -> String {
    let shown: Vec<&str> = counts.names.keys().take(NAMES_SHOWN).map(String::as_str).collect();
    let more = counts.names.len().saturating_sub(shown.len());
    match more {
        0 => shown.join(" "),
        more => format!("{} and {more} more", shown.join(" ")),
    }
}

/// What is not known of it.
fn note(counts: &HostCounts) -> String {
    let parts = [(counts.opaque, "not looked into"), (counts.refused, "refused"), (counts.gaps, "gaps")];
    let told: Vec<_> =
        parts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    told.join(", ")
}

fn report_json(subject: &str, report: &Report) -> Value {
    let hosts = report.hosts.sorted().into_iter().map(|(host, counts)| {
        merged(
            json!({
                "address": host.address, "target": host.target, "protocol": host.protocol, "names": counts.names,
                "sessions": counts.sessions, "not_inspected": counts.opaque, "refused": counts.refused, "gaps": counts.gaps,
                "session_request_bytes": counts.sent_bytes, "session_response_bytes": counts.received_bytes,
            }),
            &counts.counts,
        )
    });
    let databases = report
        .databases
        .sorted()
        .into_iter()
        .map(|(key, counts)| merged(json!({ "database": key.database, "address": key.address }), counts));
    let tables = report.tables.sorted().into_iter().map(|(key, counts)| {
        merged(json!({ "table": key.table, "database": key.database, "address": key.address }), counts)
    });
    let paths = report
        .paths
        .sorted()
        .into_iter()
        .map(|(key, counts)| merged(json!({ "path": key.path, "host": key.host }), counts));
    json!({
        "subject": subject,
        "sessions": report.sessions,
        "exchanges": report.exchanges,
        "hosts": hosts.collect::<Vec<_>>(),
        "databases": databases.collect::<Vec<_>>(),
        "tables": tables.collect::<Vec<_>>(),
        "paths": paths.collect::<Vec<_>>(),
        "others": {
            "hosts": report.hosts.others, "databases": report.databases.others,
            "tables": report.tables.others, "paths": report.paths.others,
        },
        "unparsed": report.unparsed,
        "unparsed_examples": report.unparsed_shown,
        "recorded_in_part": report.cut,
    })
}

fn merged(mut value: Value, counts: &Counts) -> Value {
    let more = json!({
        "read": counts.read > 0, "written": counts.written > 0,
        "exchanges": counts.exchanges, "reads": counts.read, "writes": counts.written,
        "errors": counts.errors, "denied": counts.denied, "rows": counts.rows,
        "request_bytes": counts.request_bytes, "response_bytes": counts.response_bytes,
    });
    if let (Value::Object(value), Value::Object(more)) = (&mut value, more) {
        value.extend(more);
    }
    value
}
