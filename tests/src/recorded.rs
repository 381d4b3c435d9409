//! What the collector says, through `weir ... --json`.

use std::net::SocketAddr;
use std::process::Output;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::Collector;
use crate::process::{PATIENCE, output};

/// As a limit: lists are not cut.
const EVERYTHING: &str = "1000000";

/// A run that is wholly received.
#[derive(Clone, Debug)]
pub struct Run {
    pub id: String,
    pub json: Value,
}

#[derive(Clone, Debug)]
pub struct Session {
    pub id: String,
    pub json: Value,
}

#[derive(Clone, Debug)]
pub struct Exchange {
    pub json: Value,
}

impl Run {
    pub fn count(&self, name: &str) -> u64 {
        self.json[name].as_u64().unwrap_or(0)
    }
}

impl Session {
    pub fn word(&self, name: &str) -> &str {
        self.json[name].as_str().unwrap_or_default()
    }

    pub fn origin(&self) -> Option<SocketAddr> {
        self.word("origin").parse().ok()
    }

    pub fn pid(&self) -> u64 {
        self.json["process"]["pid"].as_u64().unwrap_or(0)
    }
}

impl Exchange {
    pub fn word(&self, name: &str) -> &str {
        self.json[name].as_str().unwrap_or_default()
    }

    pub fn rows(&self) -> u64 {
        self.json["rows"].as_u64().unwrap_or(0)
    }

    pub fn text(&self) -> &str {
        self.word("statement")
    }
}

impl Collector {
    fn list(&self, arguments: &[&str]) -> anyhow::Result<Vec<Value>> {
        let json = self.json(arguments)?;
        json.as_array().cloned().with_context(|| format!("weir {arguments:?} is no list: {json}"))
    }

    pub fn runs(&self) -> anyhow::Result<Vec<Run>> {
        let runs = self.list(&["runs", "--limit", EVERYTHING])?;
        runs.into_iter()
            .map(|json| Ok(Run { id: json["id"].as_str().context("no run id")?.to_owned(), json }))
            .collect()
    }

    /// The run with this label, if any of it is here.
    pub fn run_labelled(&self, key: &str, value: &str) -> anyhow::Result<Option<Run>> {
        Ok(self.runs()?.into_iter().find(|run| run.json["labels"][key] == value))
    }

    /// Waits until the run `story=NAME` has at least so many sessions, all of them closed.
    pub fn settled(&self, story: &str, sessions: u64) -> anyhow::Result<Run> {
        self.settled_within(story, sessions, PATIENCE)
    }

    pub fn settled_within(&self, story: &str, sessions: u64, patience: Duration) -> anyhow::Result<Run> {
        let start = Instant::now();
        loop {
            let run = self.run_labelled("story", story)?;
            if let Some(run) = &run
                && run.count("open_sessions") == 0
                && run.count("sessions") >= sessions
            {
                return Ok(run.clone());
            }
            if start.elapsed() > patience {
                let shown = run.map(|run| self.text(&["show", &run.id])).transpose()?;
                bail!(
                    "the run {story} is not whole within {patience:?} ({sessions} sessions awaited):\n{}",
                    shown.unwrap_or_default()
                );
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Waits until the runs `story=NAME` have at least so many sessions together, all of them closed.
    pub fn all_settled(&self, story: &str, sessions: u64) -> anyhow::Result<Vec<Run>> {
        crate::process::eventually(&format!("the runs {story} are whole"), || {
            let mut runs = self.runs()?;
            runs.retain(|run| run.json["labels"]["story"] == story);
            let total = |name: &str| runs.iter().map(|run| run.count(name)).sum::<u64>();
            let whole = total("open_sessions") == 0 && total("sessions") >= sessions;
            Ok(whole.then_some(runs))
        })
    }

    /// The sessions of a run, in order of opening.
    pub fn sessions(&self, run: &Run) -> anyhow::Result<Vec<Session>> {
        let sessions = self.list(&["sessions", &run.id, "--limit", EVERYTHING])?;
        sessions
            .into_iter()
            .map(|json| Ok(Session { id: json["id"].as_str().context("no session id")?.to_owned(), json }))
            .collect()
    }

    /// The exchanges of a run, interleaved by time.
    pub fn exchanges(&self, run: &Run) -> anyhow::Result<Vec<Exchange>> {
        let story = self.json(&["show", &run.id, "--limit", EVERYTHING])?;
        let exchanges =
            story["exchanges"].as_array().cloned().with_context(|| format!("no exchanges: {story}"))?;
        Ok(exchanges.into_iter().map(|json| Exchange { json }).collect())
    }

    /// Which share of a run's bytes was seen how: `inspected`, `metadata-only`, `refused`.
    pub fn share(&self, run: &Run, coverage: &str) -> anyhow::Result<f64> {
        let json = self.json(&["coverage", &run.id])?;
        let shares = json["shares"].as_array().with_context(|| format!("no shares: {json}"))?;
        let bytes = |wanted: Option<&str>| -> u64 {
            let these = shares.iter().filter(|share| wanted.is_none_or(|wanted| share["coverage"] == wanted));
            these.filter_map(|share| share["bytes"].as_u64()).sum()
        };
        Ok(bytes(Some(coverage)) as f64 / bytes(None).max(1) as f64)
    }

    /// `weir verify ...`: exit code and all that was said.
    pub fn verify(&self, arguments: &[&str]) -> anyhow::Result<Verification> {
        let Output { status, stdout, stderr } = output(&mut self.weir(&[&["verify"], arguments].concat())?)?;
        let said = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        Ok(Verification { code: status.code(), said })
    }

    /// The id of the only node agent.
    pub fn node(&self) -> anyhow::Result<String> {
        let nodes = self.list(&["nodes"])?;
        Ok(nodes.first().and_then(|node| node["id"].as_str()).context("no node has joined")?.to_owned())
    }
}

#[derive(Debug)]
pub struct Verification {
    pub code: Option<i32>,
    pub said: String,
}

impl Verification {
    pub fn holds(&self) -> bool {
        self.code == Some(0)
    }

    /// Something is wrong, and it is named.
    pub fn names(&self, what: &str) -> bool {
        self.code == Some(1) && self.said.contains(what)
    }
}
