//! Runs, sessions, coverage, accesses: what is a table.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use weir_collector::store::sqlite::coverage_name;
use weir_proto::v1;

use crate::How;
use crate::agents::{gap_json, gap_text};
use crate::client::{Client, PAGE_ROWS, page_at};
use crate::output::{self, address, bytes, id, one_line, principal, time, time_json};

#[derive(clap::Args)]
pub(crate) struct Runs {
    /// Only runs with this label; may be given several times
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    /// Only runs of this node
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    /// Only runs of this principal
    #[arg(long, value_name = "SUBJECT")]
    principal: Option<String>,
    /// How many at most
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,
}

impl Runs {
    pub(crate) async fn run(self, how: &How) -> Result<()> {
        let mut client = Client::connect(how).await?;
        let label = |text: &String| {
            let (key, value) = text.split_once('=').context("--label takes KEY=VALUE")?;
            anyhow::Ok((key.to_owned(), value.to_owned()))
        };
        let node_id = match &self.node {
            Some(node) => client.node(node).await?.to_field(),
            None => Default::default(),
        };
        let asked = v1::RunsRequest {
            labels: self.labels.iter().map(label).collect::<Result<_>>()?,
            node_id,
            principal: self.principal.unwrap_or_default(),
            ..Default::default()
        };
        let mut runs = Vec::new();
        let mut cursor = String::new();
        while runs.len() < self.limit {
            let asked = v1::RunsRequest { page: page_at(PAGE_ROWS, cursor), ..asked.clone() };
            let answer = client.query.runs(asked).await?.into_inner();
            runs.extend(answer.runs);
            cursor = answer.next_cursor;
            if cursor.is_empty() {
                break;
            }
        }
        runs.truncate(self.limit);
        if how.json {
            return output::json(&Value::Array(runs.iter().map(run_json).collect()));
        }
        if runs.is_empty() {
            return output::line("no runs");
        }
        let headings =
            ["RUN", "BEGAN (UTC)", "NODE", "WHO", "WHAT", "SESSIONS", "EXCHANGES", "DENIED", "GAPS", ""];
        output::table(&headings, runs.iter().map(run_cells))
    }
}

fn run_cells(summary: &v1::RunSummary) -> Vec<String> {
    let run = summary.run.clone().unwrap_or_default();
    let labels = run.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ");
    let what = if run.argv.is_empty() { run.initiator.clone() } else { run.argv.join(" ") };
    let note = match (summary.expired, summary.open_sessions) {
        (true, _) => "expired".to_owned(),
        (false, 0) => labels,
        (false, open) => format!("{open} open {labels}"),
    };
    vec![
        id(&run.id),
        time(summary.first_unix_ns),
        summary.node_name.clone(),
        principal(run.principal.as_ref()),
        one_line(&what, 48),
        summary.sessions.to_string(),
        summary.exchanges.to_string(),
        summary.denied.to_string(),
        summary.gaps.to_string(),
        one_line(&note, 40),
    ]
}

pub(crate) fn run_json(summary: &v1::RunSummary) -> Value {
    let run = summary.run.clone().unwrap_or_default();
    json!({
        "id": id(&run.id),
        "parent": (!run.parent.is_empty()).then(|| id(&run.parent)),
        "node": id(&summary.node_id),
        "node_name": summary.node_name,
        "principal": run.principal.map(|p| json!({
            "issuer": p.issuer, "subject": p.subject, "groups": p.groups, "verified_by": p.verified_by,
            "verified": !p.verified_by.is_empty(),
        })),
        "initiator": run.initiator,
        "labels": run.labels,
        "argv": run.argv,
        "host": run.host,
        "first": time_json(summary.first_unix_ns),
        "last": time_json(summary.last_unix_ns),
        "sessions": summary.sessions,
        "open_sessions": summary.open_sessions,
        "exchanges": summary.exchanges,
        "denied": summary.denied,
        "gaps": summary.gaps,
        "expired": summary.expired,
    })
}

#[derive(clap::Args)]
pub(crate) struct Sessions {
    /// The run; without it sessions of all runs
    run: Option<String>,
    /// Only this protocol
    #[arg(long)]
    protocol: Option<String>,
    /// Only this target
    #[arg(long)]
    target: Option<String>,
    /// How many at most
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: usize,
}

impl Sessions {
    pub(crate) async fn run(self, how: &How) -> Result<()> {
        let mut client = Client::connect(how).await?;
        let run_id = match &self.run {
            Some(run) => client.run(run).await?.to_field(),
            None => Default::default(),
        };
        let asked = v1::SessionsRequest {
            run_id,
            protocol: self.protocol.unwrap_or_default(),
            target: self.target.unwrap_or_default(),
            ..Default::default()
        };
        let sessions = client.sessions(asked, self.limit).await?;
        if how.json {
            return output::json(&Value::Array(sessions.iter().map(session_json).collect()));
        }
        if sessions.is_empty() {
            return output::line("no sessions");
        }
        let headings = [
            "#",
            "SESSION",
            "OPENED (UTC)",
            "PROTOCOL",
            "TO",
            "TARGET",
            "PROCESS",
            "COVERAGE",
            "EXCHANGES",
            "DENIED",
            "SENT",
            "RECEIVED",
            "END",
        ];
        output::table(&headings, sessions.iter().map(session_cells))
    }
}

fn session_cells(session: &v1::SessionSummary) -> Vec<String> {
    vec![
        session.node_number.to_string(),
        id(&session.session_id),
        time(session.opened_unix_ns),
        session.protocol.clone(),
        address(session.origin.as_ref()),
        session.target.clone(),
        process(session.process.as_ref()),
        coverage(session),
        session.exchanges.to_string(),
        session.denied.to_string(),
        bytes(session.request_bytes),
        bytes(session.response_bytes),
        if session.closed_unix_ns == 0 { "open".to_owned() } else { session.cause.clone() },
    ]
}

pub(crate) fn process(process: Option<&v1::Process>) -> String {
    process.filter(|p| p.pid != 0).map(|p| format!("{}[{}]", p.comm, p.pid)).unwrap_or_default()
}

pub(crate) fn coverage(session: &v1::SessionSummary) -> String {
    let name = coverage_name(session.coverage);
    if session.reason.is_empty() { name.to_owned() } else { format!("{name}({})", session.reason) }
}

pub(crate) fn session_json(session: &v1::SessionSummary) -> Value {
    json!({
        "id": id(&session.session_id),
        "run": id(&session.run_id),
        "node": id(&session.node_id),
        "number": session.node_number,
        "protocol": session.protocol,
        "protocol_version": session.protocol_version,
        "origin": address(session.origin.as_ref()),
        "target": session.target,
        "process": session.process.as_ref().map(|p| json!({
            "boot_id": p.boot_id, "pid": p.pid, "start_time_ns": p.start_time_ns, "uid": p.uid, "gid": p.gid, "comm": p.comm,
            "executable": p.executable, "argv": p.argv, "cgroup": p.cgroup,
            "executable_sha256": hex::encode(&p.executable_sha256), "container": p.container,
        })),
        "opened": time_json(session.opened_unix_ns),
        "closed": time_json(session.closed_unix_ns),
        "coverage": coverage_name(session.coverage),
        "reason": session.reason,
        "rule": session.rule,
        "rule_reason": session.rule_reason,
        "cause": session.cause,
        "exchanges": session.exchanges,
        "denied": session.denied,
        "gaps": session.gaps,
        "request_bytes": session.request_bytes,
        "response_bytes": session.response_bytes,
        "segments": session.segments,
        "expired_segments": session.expired_segments,
        "facts": session.facts,
    })
}

#[derive(clap::Args)]
pub(crate) struct CoverageOf {
    /// The run; without it everything, or one node
    run: Option<String>,
    #[arg(long, value_name = "NODE", conflicts_with = "run")]
    node: Option<String>,
}

impl CoverageOf {
    pub(crate) async fn run(self, how: &How) -> Result<()> {
        let mut client = Client::connect(how).await?;
        let mut asked = v1::CoverageRequest::default();
        if let Some(run) = &self.run {
            asked.run_id = client.run(run).await?.to_field();
        }
        if let Some(node) = &self.node {
            asked.node_id = client.node(node).await?.to_field();
        }
        let found = client.query.coverage_of(asked).await?.into_inner();
        if how.json {
            return output::json(&coverage_json(&found));
        }
        let all: u64 = found.shares.iter().map(|share| share.bytes).sum();
        let headings = ["COVERAGE", "REASON", "SESSIONS", "BYTES", "SHARE"];
        output::table(
            &headings,
            found.shares.iter().map(|share| {
                let percent = if all == 0 { 0.0 } else { share.bytes as f64 * 100.0 / all as f64 };
                vec![
                    share.coverage.clone(),
                    share.reason.clone(),
                    share.sessions.to_string(),
                    bytes(share.bytes),
                    format!("{percent:.1} %"),
                ]
            }),
        )?;
        let unobserved = match self.run {
            Some(_) => String::new(),
            None => format!(", {} unobserved", output::plural(found.unobserved_connections, "connection")),
        };
        output::line(format!(
            "{} ({} open), {} denied, {}{unobserved}",
            output::plural(found.sessions, "session"),
            found.open_sessions,
            found.denied,
            output::plural(found.gaps, "gap"),
        ))?;
        for gap in &found.node_gaps {
            output::line(format!("node agent  {}", gap_text(gap)))?;
        }
        Ok(())
    }
}

pub(crate) fn coverage_json(found: &v1::CoverageResponse) -> Value {
    json!({
        "shares": found.shares.iter().map(|share| json!({
            "coverage": share.coverage, "reason": share.reason, "sessions": share.sessions, "bytes": share.bytes,
        })).collect::<Vec<_>>(),
        "sessions": found.sessions,
        "open_sessions": found.open_sessions,
        "denied": found.denied,
        "gaps": found.gaps,
        "unobserved_connections": found.unobserved_connections,
        "node_gaps": found.node_gaps.iter().map(gap_json).collect::<Vec<_>>(),
    })
}

#[derive(clap::Args)]
pub(crate) struct Accesses {
    /// How many at most
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
}

impl Accesses {
    pub(crate) async fn run(self, how: &How) -> Result<()> {
        let mut client = Client::connect(how).await?;
        let mut accesses = Vec::new();
        let mut cursor = String::new();
        while accesses.len() < self.limit {
            let asked = v1::AccessesRequest { page: page_at(PAGE_ROWS, cursor) };
            let answer = client.query.accesses(asked).await?.into_inner();
            accesses.extend(answer.accesses);
            cursor = answer.next_cursor;
            if cursor.is_empty() {
                break;
            }
        }
        accesses.truncate(self.limit);
        if how.json {
            let access = |access: &v1::Access| {
                json!({
                    "at": time_json(access.unix_ms.saturating_mul(1_000_000)), "who": access.who, "call": access.call,
                    "subject": access.subject, "allowed": access.allowed, "times": access.times,
                })
            };
            return output::json(&Value::Array(accesses.iter().map(access).collect()));
        }
        let headings = ["AT (UTC)", "WHO", "CALL", "SUBJECT", "", "TIMES"];
        output::table(
            &headings,
            accesses.iter().map(|access| {
                vec![
                    time(access.unix_ms.saturating_mul(1_000_000)),
                    if access.who.is_empty() {
                        "(no valid credential)".to_owned()
                    } else {
                        access.who.clone()
                    },
                    access.call.clone(),
                    access.subject.clone(),
                    if access.allowed { "allowed" } else { "REFUSED" }.to_owned(),
                    access.times.to_string(),
                ]
            }),
        )
    }
}
