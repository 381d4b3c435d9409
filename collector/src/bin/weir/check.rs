//! `weir verify`: what is stored is fetched as it is and checked here.

use std::process::ExitCode;

use anyhow::{Context, Result};
use serde_json::json;
use weir_collector::verify::{NodeReport, NodeVerifier, SessionVerifier, SessionsReport};
use weir_proto::v1;

use crate::How;
use crate::client::Client;
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
}

impl Verify {
    pub(crate) async fn run(self, how: &How) -> Result<ExitCode> {
        let mut client = Client::connect(how).await?;
        let credential = client.credential.clone();
        let mut pins = home::pins(&credential)?;
        let before = pins.clone();
        let ok = match (&self.subject, &self.node) {
            (Some(subject), _) => {
                let (run_id, session_id) = client.subject(subject).await?.fields();
                let asked = v1::ProofRequest { run_id, session_id };
                let mut items = client.query.proof(asked).await?.into_inner();
                let mut verifier = SessionVerifier::new(&mut pins);
                while let Some(item) = items.message().await? {
                    verifier.take(item);
                }
                let report = verifier.finish();
                tell_sessions(&report, how.json)?;
                report.is_ok()
            }
            (None, Some(node)) => {
                let node = client.node(node).await?;
                let asked = v1::NodeProofRequest { node_id: node.to_field() };
                let mut items = client.query.node_proof(asked).await?.into_inner();
                let mut verifier = NodeVerifier::new(&mut pins, node);
                while let Some(item) = items.message().await? {
                    verifier.take(item);
                }
                let report = verifier.finish();
                tell_node(&report, how.json)?;
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

fn tell_sessions(report: &SessionsReport, as_json: bool) -> Result<()> {
    if as_json {
        let told = serde_json::to_value(report)?;
        return output::json(&json!({ "ok": report.is_ok(), "report": told }));
    }
    common(&report.new_keys, &report.alerts)?;
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
            "not proven by this: that no whole session is missing (`weir verify --node NODE` proves that)",
        )?;
    }
    Ok(())
}

fn tell_node(report: &NodeReport, as_json: bool) -> Result<()> {
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
    problems(&report.problems, report.problems_untold)?;
    if report.is_ok() {
        output::line(
            "ok: the log is whole, and every session that the node closed is here with the end that it signed",
        )?;
        output::line(
            "not proven by this: what is inside the sessions (`weir verify RUN`), and entries newer than the last one here",
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
