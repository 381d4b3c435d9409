//! Weir in between: a node agent, alone or with its collector on the same machine, and what they have recorded.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use weir_tests::{Agent, Collector, Site};

use crate::cgroup::{Group, Memory};

/// Disk for what no collector has taken yet, MiB: a scenario's rounds fit.
const SPOOL_MIB: u32 = 24 * 1024;
/// How long sealing or shipping may make no progress at all: a node agent asks for its collector every 30 s at last.
const STALL: Duration = Duration::from_secs(90);
/// The watchdog has less patience than a long wait.
const REARM_INTERVAL: Duration = Duration::from_secs(30);
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// What programs say unasked.
const LOG: &str = "warn";

/// Which of Weir's programs run while the clock runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    /// As the table names it.
    pub(crate) name: String,
    pub(crate) with_collector: bool,
    /// Another build of the node agent.
    pub(crate) agent: Option<PathBuf>,
}

/// What a load should have left in the recording.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Expected {
    /// The run's label.
    pub(crate) label: String,
    pub(crate) sessions: u64,
    /// None: nobody parses this, so bytes count.
    pub(crate) exchanges: Option<u64>,
    /// At least so many bytes of the protocol went both ways.
    pub(crate) bytes_min: u64,
}

impl Expected {
    pub(crate) fn exchanges(label: &str, sessions: u64, exchanges: u64) -> Self {
        Self { label: label.to_owned(), sessions, exchanges: Some(exchanges), bytes_min: 0 }
    }

    /// The run's record holds what was done: no less, no more, no gap. Says how many exchanges that is.
    fn is_all_of(&self, run: &Value) -> anyhow::Result<u64> {
        let count = |name: &str| run[name].as_u64().with_context(|| format!("`weir runs` tells no {name}"));
        let (sessions, exchanges) = (count("sessions")?, count("exchanges")?);
        let (gaps, open) = (count("gaps")?, count("open_sessions")?);
        ensure!(gaps == 0, "the recording has {gaps} gaps");
        ensure!(open == 0, "{open} sessions were not closed");
        ensure!(
            sessions == self.sessions,
            "{sessions} sessions were recorded, {} were opened",
            self.sessions
        );
        if let Some(done) = self.exchanges {
            ensure!(exchanges == done, "{exchanges} exchanges were recorded, {done} were done");
        }
        Ok(exchanges)
    }
}

pub(crate) struct Weir {
    pub(crate) setting: Setting,
    agent: Agent,
    collector: Collector,
    agent_group: Group,
    collector_group: Group,
    scope_group: Group,
    expected: Vec<Expected>,
    // Last: its cgroups go when the processes in them have ended.
    site: Site,
}

/// Processor time of its parts so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Times {
    pub(crate) client: Duration,
    pub(crate) agent: Duration,
    pub(crate) collector: Duration,
}

impl Weir {
    pub(crate) fn start(setting: &Setting) -> anyhow::Result<Self> {
        let site = Site::new(true)?;
        let mut collector = Collector::start(&site)?;
        let collector_group = Group::make(site.cgroup().join("collector"))?;
        collector_group.take(collector.pid()?)?;
        let mut agent = Agent::configured(&site, &format!("spool_mib = {SPOOL_MIB}"))?.logging(LOG);
        if let Some(program) = &setting.agent {
            agent = agent.built_as(program.clone());
        }
        agent.join(&collector.join_token()?)?;
        agent.resume()?;
        if !setting.with_collector {
            collector.stop(Signal::SIGTERM)?;
        }
        Ok(Self {
            setting: setting.clone(),
            agent,
            collector,
            agent_group: Group::named(site.cgroup().join("agent")),
            collector_group,
            scope_group: Group::named(site.cgroup().join("scope")),
            expected: Vec::new(),
            site,
        })
    }

    /// The command as a governed run.
    pub(crate) fn around(&self, label: &str, command: &Command) -> anyhow::Result<Command> {
        let words: Vec<String> = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut exec = self.agent.exec(&[&format!("bench={label}")], &words)?;
        exec.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        Ok(exec)
    }

    pub(crate) fn times(&self) -> anyhow::Result<Times> {
        Ok(Times {
            client: self.scope_group.processor_time()?,
            agent: self.agent_group.processor_time()?,
            collector: self.collector_group.processor_time()?,
        })
    }

    pub(crate) fn memory(&self) -> anyhow::Result<Memory> {
        Memory::of(self.agent.pid()?)
    }

    pub(crate) fn agent_pid(&self) -> anyhow::Result<u32> {
        self.agent.pid()
    }

    pub(crate) fn collector_pid(&self) -> anyhow::Result<u32> {
        self.collector.pid()
    }

    /// As when its machine is lost.
    pub(crate) fn take_collector_away(&mut self) -> anyhow::Result<()> {
        self.collector.stop(Signal::SIGKILL)
    }

    pub(crate) fn bring_collector_back(&mut self) -> anyhow::Result<()> {
        self.collector.resume()?;
        self.collector_group.take(self.collector.pid()?)
    }

    pub(crate) fn status(&self) -> anyhow::Result<Value> {
        self.agent.status()
    }

    /// The watchdog's time begins anew.
    pub(crate) fn rearm(&mut self) -> anyhow::Result<()> {
        self.site.rearm()
    }

    pub(crate) fn expect(&mut self, expected: Expected) {
        self.expected.push(expected);
    }

    /// Waits until everything so far is sealed into the spool, and, with a collector, received.
    pub(crate) fn settle(&mut self) -> anyhow::Result<()> {
        self.site.rearm()?;
        let with_collector = self.setting.with_collector;
        self.wait("what was recorded is sealed", |status| {
            let recording = &status["recording"];
            let shipped = !with_collector || recording["spool_segments"] == 0;
            status["open_sessions"] == 0 && recording["journal_used_bytes"] == 0 && shipped
        })
    }

    /// The collector takes everything; what it then holds is what was done. Says how much that is, in exchanges.
    pub(crate) fn account(&mut self) -> anyhow::Result<u64> {
        if !self.setting.with_collector {
            self.collector.resume()?;
            // Started anew it asks at once; by now it would do so every 30 s.
            self.agent.stop(Signal::SIGTERM)?;
            self.agent.resume()?;
        }
        self.wait("the collector has everything", |status| {
            status["open_sessions"] == 0 && status["recording"]["spool_segments"] == 0
        })?;
        let runs = self.collector.json(&["runs", "--limit", "1000000"])?;
        let runs = runs.as_array().context("`weir runs` gives no list")?;
        let mut exchanges = 0;
        for expected in &self.expected {
            exchanges += self.compare(runs, expected).with_context(|| expected.label.clone())?;
        }
        Ok(exchanges)
    }

    fn compare(&self, runs: &[Value], expected: &Expected) -> anyhow::Result<u64> {
        let run = runs.iter().find(|run| run["labels"]["bench"] == *expected.label);
        let run = run.context("nothing of this run was recorded")?;
        let exchanges = expected.is_all_of(run)?;
        if expected.bytes_min > 0 {
            let id = run["id"].as_str().context("a run without an id")?;
            let sessions = self.collector.json(&["sessions", id, "--limit", "1000000"])?;
            let sessions = sessions.as_array().context("`weir sessions` gives no list")?;
            let both = |session: &Value| {
                session["request_bytes"].as_u64().unwrap_or(0)
                    + session["response_bytes"].as_u64().unwrap_or(0)
            };
            let bytes: u64 = sessions.iter().map(both).sum();
            ensure!(
                bytes >= expected.bytes_min,
                "{bytes} bytes were recorded, at least {} were moved",
                expected.bytes_min
            );
        }
        Ok(exchanges)
    }

    /// Waits for a state of the node agent as long as something moves.
    fn wait(&mut self, what: &str, done: impl Fn(&Value) -> bool) -> anyhow::Result<()> {
        let mut moved = Instant::now();
        let mut armed = Instant::now();
        let mut before = Value::Null;
        loop {
            let status = self.agent.status()?;
            if done(&status) {
                return Ok(());
            }
            let recording = &status["recording"];
            let now = serde_json::json!([
                status["open_sessions"],
                recording["journal_used_bytes"],
                recording["spool_bytes"],
                recording["spool_segments"]
            ]);
            if now != before {
                (before, moved) = (now, Instant::now());
            }
            if moved.elapsed() > STALL {
                bail!("{what}: nothing has moved for {STALL:?}: {recording}");
            }
            if armed.elapsed() > REARM_INTERVAL {
                self.site.rearm()?;
                armed = Instant::now();
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recording_that_is_not_whole_is_named() {
        let run = |sessions: u64, exchanges: u64, gaps: u64| serde_json::json!({ "sessions": sessions, "exchanges": exchanges, "gaps": gaps, "open_sessions": 0 });
        let expected = Expected::exchanges("x", 2, 10);
        assert_eq!(expected.is_all_of(&run(2, 10, 0)).unwrap(), 10);
        for (wrong, named) in [
            (run(2, 9, 0), "9 exchanges were recorded, 10 were done"),
            (run(2, 11, 0), "11 exchanges"),
            (run(1, 10, 0), "1 sessions"),
            (run(2, 10, 1), "1 gaps"),
            (serde_json::json!({}), "tells no sessions"),
        ] {
            let error = expected.is_all_of(&wrong).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
