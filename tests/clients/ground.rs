//! Where one check runs: a collector and a node agent of its own, and a watchdog that is told that it goes on.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use weir_tests::process::eventually;
use weir_tests::{Agent, Collector, Site};

/// Longest time for one command of a check.
const COMMAND_MAX: Duration = Duration::from_secs(20 * 60);
/// How often the watchdog hears that a command still runs.
const REARM_INTERVAL: Duration = Duration::from_secs(45);

pub(crate) struct Ground {
    pub(crate) agent: Agent,
    pub(crate) collector: Collector,
    pub(crate) site: Site,
}

impl Ground {
    pub(crate) fn make() -> anyhow::Result<Self> {
        let site = Site::new(true)?;
        let collector = Collector::start(&site)?;
        let agent = Agent::start(&site, &collector, "spool_mib = 16384")?;
        Ok(Self { agent, collector, site })
    }

    pub(crate) fn folder(&self, name: &str) -> anyhow::Result<PathBuf> {
        self.site.folder(name)
    }

    /// The same command line, governed.
    pub(crate) fn governed(&self, command: &[&str]) -> anyhow::Result<Command> {
        self.agent.exec(&["task=clients"], command)
    }

    /// Runs to the end, however long it takes within a bound; gives its exit code and what it printed.
    pub(crate) fn run(&mut self, command: &mut Command) -> anyhow::Result<(Option<i32>, String)> {
        let log = self.folder("commands")?.join("output");
        let file = std::fs::File::create(&log)?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .context("starting")?;
        let (start, mut armed) = (Instant::now(), Instant::now());
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if armed.elapsed() > REARM_INTERVAL {
                self.site.rearm()?;
                armed = Instant::now();
            }
            if start.elapsed() > COMMAND_MAX {
                child.kill()?;
                child.wait()?;
                bail!("{command:?} did not end within {COMMAND_MAX:?}");
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        self.site.rearm()?;
        Ok((status.code(), String::from_utf8_lossy(&std::fs::read(&log)?).into_owned()))
    }

    /// The same, and it must succeed.
    pub(crate) fn succeed(&mut self, command: &mut Command) -> anyhow::Result<String> {
        match self.run(command)? {
            (Some(0), output) => Ok(output),
            (code, output) => bail!("{command:?} ended with {code:?}:\n{output}"),
        }
    }

    /// What the collector holds of all runs, once they are whole, and whether it verifies.
    pub(crate) fn recorded(&mut self) -> anyhow::Result<Value> {
        self.agent.wait_until_idle()?;
        self.site.rearm()?;
        let collector = &self.collector;
        let runs = eventually("the runs are whole in the collector", || {
            let runs = collector.runs()?;
            Ok(runs.iter().all(|run| run.count("open_sessions") == 0).then_some(runs))
        })?;
        let total = |name: &str| runs.iter().map(|run| run.count(name)).sum::<u64>();
        let mut verified = true;
        for run in &runs {
            verified &= self.collector.verify(&[&run.id])?.holds();
            self.site.rearm()?;
        }
        Ok(json!({
            "sessions": total("sessions"), "exchanges": total("exchanges"), "gaps": total("gaps"),
            "verified": verified && !runs.is_empty(),
        }))
    }
}
