//! `weir show`: what happened, in order of time.

use anyhow::Result;
use serde_json::{Value, json};
use weir_proto::v1::{self, Coverage};

use crate::How;
use crate::agents::{gap_json as node_gap_json, gap_text};
use crate::client::{Client, PAGE_ROWS, Subject, page, page_at};
use crate::lists::{coverage, process, run_json, session_json};
use crate::output::{self, address, bytes, id, one_line, outcome, plural, time, time_json};

/// Characters of a statement on one line.
const STATEMENT_CHARS: usize = 120;
const PARAMETER_CHARS: usize = 40;

#[derive(clap::Args)]
pub(crate) struct Show {
    /// RUN, SESSION or `last`
    subject: String,
    /// How many sessions, exchanges and gaps at most, each
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    limit: usize,
    /// Whole statements instead of one line each
    #[arg(long)]
    full: bool,
}

/// All that a timeline is made of.
struct Story {
    run: Option<v1::RunSummary>,
    sessions: Vec<v1::SessionSummary>,
    exchanges: Vec<v1::ExchangeSummary>,
    gaps: Vec<v1::GapSummary>,
    /// Times within the run in which the node agent was not at work.
    node_gaps: Vec<v1::NodeGap>,
    /// Some were left out for the limit.
    cut: bool,
}

impl Show {
    pub(crate) async fn run(self, how: &How) -> Result<()> {
        let mut client = Client::connect(how).await?;
        let subject = client.subject(&self.subject).await?;
        let story = story(&mut client, subject, self.limit).await?;
        if how.json { output::json(&story_json(&story)) } else { tell(&story, self.full) }
    }
}

async fn story(client: &mut Client, subject: Subject, limit: usize) -> Result<Story> {
    let (run_id, session_id) = subject.fields();
    let asked =
        v1::SessionsRequest { run_id: run_id.clone(), session_id: session_id.clone(), ..Default::default() };
    let sessions = client.sessions(asked, limit).await?;
    let run = match sessions.first() {
        Some(session) => {
            let asked = v1::RunsRequest {
                page: page(1),
                id_prefix: hex::encode(&session.run_id),
                ..Default::default()
            };
            client.query.runs(asked).await?.into_inner().runs.pop()
        }
        None => None,
    };
    let exchanges = exchanges(client, &run_id, &session_id, limit).await?;
    let gaps = gaps(client, &run_id, &session_id, limit).await?;
    let node_gaps = match &run {
        Some(run) => {
            let run_id = run.run.clone().unwrap_or_default().id;
            let asked = v1::CoverageRequest { run_id, ..Default::default() };
            client.query.coverage_of(asked).await?.into_inner().node_gaps
        }
        None => Vec::new(),
    };
    let cut = [sessions.len(), exchanges.len(), gaps.len()].into_iter().any(|count| count >= limit);
    Ok(Story { run, sessions, exchanges, gaps, node_gaps, cut })
}

pub(crate) async fn exchanges(
    client: &mut Client,
    run_id: &prost::bytes::Bytes,
    session_id: &prost::bytes::Bytes,
    limit: usize,
) -> Result<Vec<v1::ExchangeSummary>> {
    let mut found = Vec::new();
    let mut cursor = String::new();
    loop {
        let asked = v1::ExchangesRequest {
            page: page_at(PAGE_ROWS, cursor),
            run_id: run_id.clone(),
            session_id: session_id.clone(),
        };
        let answer = client.query.exchanges(asked).await?.into_inner();
        found.extend(answer.exchanges);
        cursor = answer.next_cursor;
        if cursor.is_empty() || found.len() >= limit {
            found.truncate(limit);
            return Ok(found);
        }
    }
}

async fn gaps(
    client: &mut Client,
    run_id: &prost::bytes::Bytes,
    session_id: &prost::bytes::Bytes,
    limit: usize,
) -> Result<Vec<v1::GapSummary>> {
    let mut found = Vec::new();
    let mut cursor = String::new();
    loop {
        let asked = v1::GapsRequest {
            page: page_at(PAGE_ROWS, cursor),
            run_id: run_id.clone(),
            session_id: session_id.clone(),
        };
        let answer = client.query.gaps(asked).await?.into_inner();
        found.extend(answer.gaps);
        cursor = answer.next_cursor;
        if cursor.is_empty() || found.len() >= limit {
            found.truncate(limit);
            return Ok(found);
        }
    }
}

fn tell(story: &Story, full: bool) -> Result<()> {
    if let Some(run) = &story.run {
        heading(run, &story.node_gaps)?;
    }
    let begin = story.sessions.iter().map(|session| session.opened_unix_ns).min().unwrap_or(0);
    let mut lines: Vec<(i64, u64, String)> = Vec::new();
    for session in &story.sessions {
        session_lines(session, &mut lines);
    }
    for exchange in &story.exchanges {
        lines.push((exchange.asked_unix_ns, exchange.node_number, exchange_line(exchange, full)));
    }
    for gap in &story.gaps {
        lines.push((gap.unix_ns, gap.node_number, gap_line(gap)));
    }
    // Stable: what happened at the same instant stays in the order opened, exchanges, closed.
    lines.sort_by_key(|(at, ..)| *at);
    let width = lines.iter().map(|(_, number, _)| number.to_string().len()).max().unwrap_or(1);
    for (at, number, text) in &lines {
        let offset = (at - begin) as f64 / 1e9;
        output::line(format!("{offset:>+10.3}s  #{number:<width$}  {text}"))?;
    }
    if story.cut {
        output::line("... cut here: there is more, see --limit")?;
    }
    Ok(())
}

fn heading(summary: &v1::RunSummary, node_gaps: &[v1::NodeGap]) -> Result<()> {
    let run = summary.run.clone().unwrap_or_default();
    let labels: Vec<String> = run.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    output::line(format!("run {}", id(&run.id)))?;
    let what =
        if run.argv.is_empty() { String::new() } else { one_line(&run.argv.join(" "), STATEMENT_CHARS) };
    if !what.is_empty() {
        output::line(format!("  {what}"))?;
    }
    output::line(output::clean(&format!(
        "  {} on {}, begun by {}, {} UTC, {}{}",
        output::principal(run.principal.as_ref()),
        summary.node_name,
        run.initiator,
        time(summary.first_unix_ns),
        output::duration(u64::try_from(summary.last_unix_ns - summary.first_unix_ns).unwrap_or(0)),
        if labels.is_empty() { String::new() } else { format!(", {}", labels.join(" ")) },
    )))?;
    output::line(format!(
        "  {}, {}, {} denied, {}{}",
        plural(summary.sessions, "session"),
        plural(summary.exchanges, "exchange"),
        summary.denied,
        plural(summary.gaps, "gap"),
        if summary.expired { ", content EXPIRED by retention" } else { "" },
    ))?;
    for gap in node_gaps {
        output::line(format!("  NODE AGENT {}", gap_text(gap)))?;
    }
    output::line("")
}

fn session_lines(session: &v1::SessionSummary, lines: &mut Vec<(i64, u64, String)>) {
    let to = match session.target.as_str() {
        "" => address(session.origin.as_ref()),
        target => format!("{} ({target})", address(session.origin.as_ref())),
    };
    let who = process(session.process.as_ref());
    let refused = session.coverage == Coverage::Refused as i32;
    let text = if refused {
        let rule =
            if session.rule.is_empty() { String::new() } else { format!(" by rule {:?}", session.rule) };
        let why = if session.rule_reason.is_empty() { &session.reason } else { &session.rule_reason };
        format!("DENIED     {to}{rule}: {why}  {who}")
    } else {
        let protocol = if session.protocol.is_empty() { "unknown" } else { &session.protocol };
        let facts: Vec<String> = ["user", "database", "application_name"]
            .iter()
            .filter_map(|key| Some(format!("{key}={}", session.facts.get(*key)?)))
            .collect();
        format!("opened     {protocol} {to}  {who}  {}", facts.join(" "))
    };
    lines.push((session.opened_unix_ns, session.node_number, output::clean(text.trim_end())));
    if session.expired_segments > 0 {
        let text = format!("expired    {} deleted by retention", plural(session.expired_segments, "segment"));
        lines.push((session.opened_unix_ns, session.node_number, text));
    }
    if session.closed_unix_ns != 0 && !refused {
        let text = format!(
            "closed     {}, {}, {} sent, {} received",
            session.cause,
            coverage(session),
            bytes(session.request_bytes),
            bytes(session.response_bytes)
        );
        lines.push((session.closed_unix_ns, session.node_number, output::clean(&text)));
    }
}

fn exchange_line(exchange: &v1::ExchangeSummary, full: bool) -> String {
    let finished = exchange.finished.clone().unwrap_or_default();
    let operation = finished.operation.clone().unwrap_or_default();
    let max = if full { usize::MAX } else { STATEMENT_CHARS };
    let mut what = one_line(&operation.text, max);
    if operation.text_truncated {
        what.push('…');
    }
    if what.is_empty() && !operation.name.is_empty() {
        what = format!("({})", one_line(&operation.name, PARAMETER_CHARS));
    }
    if !operation.parameters.is_empty() {
        let shown: Vec<String> = operation.parameters.iter().enumerate().map(parameter).collect();
        what.push_str(&format!("  [{}]", shown.join(", ")));
    }
    let verb = output::clean(if operation.verb.is_empty() { &operation.kind } else { &operation.verb });
    format!("{verb:<10} {what}  → {}", result(exchange, &finished))
}

fn parameter((at, value): (usize, &v1::Value)) -> String {
    let shown = if value.null { "NULL".to_owned() } else { one_line(&value.shown, PARAMETER_CHARS) };
    format!("${}={shown}", at + 1)
}

pub(crate) fn result(exchange: &v1::ExchangeSummary, finished: &v1::Finished) -> String {
    let mut parts = Vec::new();
    match finished.outcome() {
        v1::Outcome::Ok => {
            parts.push(if finished.status.is_empty() { "ok".into() } else { finished.status.clone() })
        }
        v1::Outcome::Error => {
            parts.push(format!("ERROR {}: {}", finished.status, one_line(&finished.error, STATEMENT_CHARS)))
        }
        v1::Outcome::Denied => parts.push(format!("DENIED by rule {:?} {}", finished.rule, finished.error)),
        v1::Outcome::Unspecified => return "running".into(),
        v1::Outcome::Withdrawn | v1::Outcome::Aborted => parts.push(outcome(finished.outcome).to_uppercase()),
    }
    if finished.tags.iter().any(|tag| tag == "would-deny") {
        parts.push(format!("WOULD BE DENIED by rule {:?}, which observes", finished.rule));
    }
    if finished.rows > 0 {
        parts.push(plural(finished.rows, "row"));
    }
    parts.push(output::duration(exchange.duration_ns));
    output::clean(&parts.join(" · "))
}

fn gap_line(summary: &v1::GapSummary) -> String {
    let gap = summary.gap.clone().unwrap_or_default();
    let missing = if gap.bytes > 0 { format!(", {} not recorded", bytes(gap.bytes)) } else { String::new() };
    output::clean(&format!("GAP        {}{missing}", gap.reason))
}

fn story_json(story: &Story) -> Value {
    let refused = |session: &&v1::SessionSummary| session.coverage == Coverage::Refused as i32;
    json!({
        "run": story.run.as_ref().map(run_json),
        "sessions": story.sessions.iter().map(session_json).collect::<Vec<_>>(),
        "exchanges": story.exchanges.iter().map(exchange_json).collect::<Vec<_>>(),
        "denied": story.sessions.iter().filter(refused).map(session_json).collect::<Vec<_>>(),
        "gaps": story.gaps.iter().map(gap_json).collect::<Vec<_>>(),
        "node_gaps": story.node_gaps.iter().map(node_gap_json).collect::<Vec<_>>(),
        "cut": story.cut,
    })
}

pub(crate) fn exchange_json(exchange: &v1::ExchangeSummary) -> Value {
    let finished = exchange.finished.clone().unwrap_or_default();
    let operation = finished.operation.clone().unwrap_or_default();
    json!({
        "session": id(&exchange.session_id),
        "session_number": exchange.node_number,
        "exchange": exchange.ordinal,
        "protocol": exchange.protocol,
        "origin": address(exchange.origin.as_ref()),
        "target": exchange.target,
        "kind": operation.kind,
        "verb": operation.verb,
        "statement": operation.text,
        "statement_truncated": operation.text_truncated,
        "name": operation.name,
        "defined_by": operation.defined_by,
        "oversized": operation.oversized,
        "parameters": operation.parameters.iter().map(|value| json!({
            "type": value.r#type, "value": (!value.null).then_some(&value.shown), "null": value.null, "bytes": value.bytes,
            "truncated": value.truncated,
        })).collect::<Vec<_>>(),
        "outcome": outcome(finished.outcome),
        "status": finished.status,
        "error": finished.error,
        "rows": finished.rows,
        "columns": finished.columns.iter().map(|column| json!({ "name": column.name, "type": column.r#type }))
            .collect::<Vec<_>>(),
        "asked": time_json(exchange.asked_unix_ns),
        "duration_ns": exchange.duration_ns,
        "request_bytes": finished.request_bytes,
        "response_bytes": finished.response_bytes,
        "rule": finished.rule,
        "tags": finished.tags,
    })
}

fn gap_json(summary: &v1::GapSummary) -> Value {
    let gap = summary.gap.clone().unwrap_or_default();
    json!({
        "session": id(&summary.session_id),
        "session_number": summary.node_number,
        "at": time_json(summary.unix_ns),
        "reason": gap.reason,
        "bytes": gap.bytes,
        "exchange": (gap.exchange != 0).then_some(gap.exchange),
    })
}
