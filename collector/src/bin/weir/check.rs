//! `weir verify`: what is stored is fetched as it is and checked here.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;
use weir_collector::verify::terms::KEEP_MIN;
use weir_collector::verify::{NodeReport, NodeVerifier, Pins, SessionVerifier, SessionsReport, Terms};
use weir_collector::{clock, config};
use weir_proto::v1;

use crate::How;
use crate::client::{Client, Subject};
use crate::{home, output};

const WRONG: u8 = 1;

#[derive(clap::Args)]
pub(crate) struct Verify {
    /// RUN, SESSION or `last`
    #[arg(required_unless_present = "node", conflicts_with = "node")]
    subject: Option<String>,
    /// The node's whole log: is every session there that it ever opened?
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    /// With --node: fetch and check every segment of every closed session too, not only the last one of each
    #[arg(long, requires = "node")]
    full: bool,
    /// Recordings are kept here at least this long: what is younger cannot have expired [default: 1h, the least a
    /// collector can be set to]
    #[arg(long, value_name = "DURATION", value_parser = config::parse_duration)]
    keep: Option<Duration>,
}

impl Verify {
    pub(crate) async fn run(self, how: &How) -> Result<ExitCode> {
        let mut client = Client::connect(how).await?;
        let credential = client.credential.clone();
        let mut pins = home::pins(&credential)?;
        let before = pins.clone();
        let terms = Terms {
            now_unix_ms: clock::unix_ms(),
            keep: self.keep.unwrap_or(KEEP_MIN),
            local: how.local.is_some(),
        };
        let ok = match (&self.subject, &self.node) {
            (Some(subject), _) => {
                let subject = client.subject(subject).await?;
                let verifier = SessionVerifier::new(&mut pins, subject.into(), terms);
                let report = proven(&mut client, subject, verifier).await?;
                tell_sessions(&report, how.json)?;
                report.is_ok()
            }
            (None, Some(node)) => {
                let node = client.node(node).await?;
                let asked = v1::NodeProofRequest { node_id: node.to_field() };
                let mut items = client.query.node_proof(asked).await?.into_inner();
                let mut verifier = NodeVerifier::new(&mut pins, node, terms);
                while let Some(item) = items.message().await? {
                    verifier.take(item);
                }
                let mut report = verifier.finish();
                if self.full {
                    every_segment(&mut client, &mut pins, terms, &mut report).await?;
                }
                tell_node(&report, self.full, how.json)?;
                report.is_ok()
            }
            (None, None) => anyhow::bail!("name a run, a session or a node"),
        };
        if pins != before {
            home::keep_pins(&credential, &pins).context("keeping the keys seen for the first time")?;
        }
        Ok(if ok { ExitCode::SUCCESS } else { ExitCode::from(WRONG) })
    }
}

async fn proven(
    client: &mut Client,
    subject: Subject,
    mut verifier: SessionVerifier<'_>,
) -> Result<SessionsReport> {
    let (run_id, session_id) = subject.fields();
    let mut items = client.query.proof(v1::ProofRequest { run_id, session_id }).await?.into_inner();
    while let Some(item) = items.message().await? {
        verifier.take(item);
    }
    Ok(verifier.finish())
}

/// Of the sessions that the node's log says are closed; what is found is added to the node's report.
async fn every_segment(
    client: &mut Client,
    pins: &mut Pins,
    terms: Terms,
    report: &mut NodeReport,
) -> Result<()> {
    for ended in std::mem::take(&mut report.ended) {
        let verifier = SessionVerifier::of_log(pins, ended, terms);
        let found = proven(client, Subject::Session(ended.session), verifier).await?;
        report.segments += found.sessions.iter().map(|session| session.segments).sum::<u64>();
        report.new_keys.extend(found.new_keys);
        report.problems_untold += found.problems_untold;
        report.complete -= u64::from(!found.problems.is_empty());
        for problem in found.problems {
            report.push(problem);
        }
    }
    Ok(())
}

fn tell_sessions(report: &SessionsReport, as_json: bool) -> Result<()> {
    if as_json {
        let told = serde_json::to_value(report)?;
        return output::json(&json!({ "ok": report.is_ok(), "report": told }));
    }
    common(&report.new_keys, &report.alerts)?;
    output::line(format!("checked: {}", report.subject))?;
    let sum =
        |of: fn(&weir_collector::verify::SessionReport) -> u64| report.sessions.iter().map(of).sum::<u64>();
    let closed = report.sessions.iter().filter(|session| session.closed).count();
    output::line(format!(
        "{}: {} checked, {closed} closed, {} still open, {}",
        output::plural(report.sessions.len() as u64, "session"),
        output::plural(sum(|s| s.segments), "segment"),
        report.sessions.len() - closed,
        output::plural(sum(|s| s.gaps), "gap"),
    ))?;
    let expired = sum(|s| s.expired);
    if expired > 0 {
        output::line(format!(
            "{} expired by retention, as the collector says",
            output::plural(expired, "segment")
        ))?;
    }
    problems(&report.problems, report.problems_untold)?;
    if report.is_ok() {
        output::line(
            "ok: every segment is signed by its node, follows the one before, is complete from the first, and has its receipt",
        )?;
        output::line(
            "not proven by this: that no whole session is missing (`weir verify --node NODE` proves that), and that what `weir show` \
             lists from the collector's index is what the segments say (`weir play` reads the segments)",
        )?;
    }
    Ok(())
}

fn tell_node(report: &NodeReport, full: bool, as_json: bool) -> Result<()> {
    if as_json {
        let told = serde_json::to_value(report)?;
        return output::json(&json!({ "ok": report.is_ok(), "report": told }));
    }
    common(&report.new_keys, &report.alerts)?;
    output::line(output::clean(&format!(
        "node {} ({}): {} checked, {} numbered",
        report.node,
        report.name,
        if report.entries == 1 {
            "1 log entry".to_owned()
        } else {
            format!("{} log entries", report.entries)
        },
        output::plural(report.sessions, "session")
    )))?;
    output::line(format!(
        "{} complete, {} open, {} still with the agent, {} expired by retention, {} too new for the log",
        report.complete, report.open, report.pending, report.expired, report.newer
    ))?;
    if let Some(ends) = &report.log_ends {
        output::line(format!("the log ends at {ends} (UTC, by the node's clock)"))?;
    }
    for bypass in &report.bypasses {
        output::line(output::clean(&format!("BYPASS {bypass}")))?;
    }
    if report.bypasses_untold > 0 {
        output::line(format!("and {} more lines about bypasses", report.bypasses_untold))?;
    }
    for silence in &report.silences {
        let until = silence.to.as_deref().unwrap_or("the log's end");
        let what = if silence.kind == "bypassed" { "unrecorded by request" } else { "no heartbeat" };
        output::line(format!(
            "{what}: {} from {} to {until} (UTC, by the node's clock)",
            silence.kind, silence.from
        ))?;
    }
    if report.silences_untold > 0 {
        output::line(format!("no heartbeat: and {} more", output::plural(report.silences_untold, "time")))?;
    }
    if full {
        output::line(format!("{} of closed sessions checked", output::plural(report.segments, "segment")))?;
    }
    problems(&report.problems, report.problems_untold)?;
    if report.is_ok() {
        output::line(if full {
            "ok: the log is whole, and every session that the node closed is here, every segment of it, with the end that it signed"
        } else {
            "ok: the log is whole, and of every session that the node closed the last segment is here: the end that it signed"
        })?;
        if !full {
            output::line(
                "not proven by this: the segments before the last of each session (`--full`, or `weir verify RUN`)",
            )?;
        }
        output::line(
            "not proven by this: entries newer than the last one here, and that what is said to have expired did",
        )?;
    }
    Ok(())
}

fn common(new_keys: &[String], alerts: &[String]) -> Result<()> {
    for key in new_keys {
        output::line(format!("seen for the first time, trusted from now on: {key}"))?;
    }
    for alert in alerts {
        output::line(output::clean(&format!("alert of the collector: {alert}")))?;
    }
    Ok(())
}

fn problems(problems: &[weir_collector::verify::Problem], untold: u64) -> Result<()> {
    for problem in problems {
        output::line(output::clean(&format!("WRONG: {problem}")))?;
    }
    if untold > 0 {
        output::line(format!("WRONG: and {untold} more"))?;
    }
    Ok(())
}
