//! A real node agent over a cgroup subtree of its own.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context as _;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::Site;
use crate::collector::Collector;
use crate::process::{Server, eventually, program, run};

pub struct Agent {
    server: Option<Server>,
    dir: PathBuf,
    config: PathBuf,
    program: PathBuf,
    log_filter: &'static str,
}

/// Secrets are looked for in its log, so it is to say much.
const STORY_LOG: &str = "info,weir_agent=debug";

impl Agent {
    /// Joined to `collector` and running. `rules` is appended to its configuration.
    pub fn start(site: &Site, collector: &Collector, rules: &str) -> anyhow::Result<Self> {
        let mut agent = Self::configured(site, rules)?;
        agent.join(&collector.join_token()?)?;
        agent.resume()?;
        Ok(agent)
    }

    /// Neither joined nor running.
    pub fn configured(site: &Site, rules: &str) -> anyhow::Result<Self> {
        let dir = site.folder("agent")?;
        let config = dir.join("agent.toml");
        fs::write(
            &config,
            format!(
                "scope = \"{}\"\nown_cgroup = \"{}\"\nstate_dir = \"{}\"\npins_dir = \"{}\"\nsocket = \"{}\"\n\
                 socket_mode = \"0666\"\nadmin = \"127.0.0.1:0\"\ndrain_s = 5\n{rules}\n",
                site.cgroup_path("scope"),
                site.cgroup_path("agent"),
                dir.join("state").display(),
                site.pins().display(),
                dir.join("agent.sock").display(),
            ),
        )?;
        Ok(Self { server: None, dir, config, program: program("weir-agent")?, log_filter: STORY_LOG })
    }

    /// Another build of it.
    pub fn built_as(mut self, program: PathBuf) -> Self {
        self.program = program;
        self
    }

    /// Says as much as `filter` lets through.
    pub fn logging(mut self, log_filter: &'static str) -> Self {
        self.log_filter = log_filter;
        self
    }

    pub fn join(&self, token: &str) -> anyhow::Result<()> {
        run(self.command()?.args(["join", "--config"]).arg(&self.config).env("WEIR_JOIN_TOKEN", token))?;
        Ok(())
    }

    /// For another certificate, as the node that it is.
    pub fn join_again(&self, token: &str) -> anyhow::Result<()> {
        let mut join = self.command()?;
        join.args(["join", "--again", "--config"]).arg(&self.config).env("WEIR_JOIN_TOKEN", token);
        run(&mut join).map(drop)
    }

    fn command(&self) -> anyhow::Result<Command> {
        Ok(Command::new(&self.program))
    }

    /// Starts it again over the same state.
    pub fn resume(&mut self) -> anyhow::Result<()> {
        self.spawn()?;
        self.wait_ready()
    }

    /// Starts it again and does not wait until it is ready.
    pub fn spawn(&mut self) -> anyhow::Result<()> {
        let server = Server::start(
            "weir-agent",
            self.command()?.args(["run", "--config"]).arg(&self.config).env("WEIR_LOG", self.log_filter),
            &self.dir.join("log"),
        )?;
        self.server = Some(server);
        Ok(())
    }

    pub fn wait_ready(&mut self) -> anyhow::Result<()> {
        let mut look = self.command()?;
        look.args(["status", "--json", "--config"]).arg(&self.config);
        let server = self.server.as_mut().context("the node agent was not started")?;
        server.wait_until("the node agent answers", || {
            look.output().is_ok_and(|output| {
                serde_json::from_slice::<Value>(&output.stdout).is_ok_and(|status| status["ready"] == true)
            })
        })
    }

    pub fn pid(&self) -> anyhow::Result<u32> {
        Ok(self.server.as_ref().context("the node agent is not running")?.pid().as_raw().cast_unsigned())
    }

    pub fn is_alive(&mut self) -> bool {
        self.server.as_mut().is_some_and(Server::is_alive)
    }

    pub fn stop(&mut self, signal: Signal) -> anyhow::Result<()> {
        self.server.take().map_or(Ok(()), |server| server.stop(signal))
    }

    pub fn status(&self) -> anyhow::Result<Value> {
        let text = run(self.command()?.args(["status", "--json", "--config"]).arg(&self.config))?;
        serde_json::from_str(&text).context("status")
    }

    /// Waits until every run has ended: then nothing of them is kept but their record.
    pub fn wait_until_idle(&self) -> anyhow::Result<()> {
        eventually("every run has ended", || {
            Ok(self.status()?["runs"].as_array().is_some_and(Vec::is_empty).then_some(()))
        })
    }

    /// A command that becomes a governed run.
    pub fn exec(&self, labels: &[&str], command: &[&str]) -> anyhow::Result<Command> {
        let mut exec = self.command()?;
        exec.args(["exec", "--config"]).arg(&self.config);
        for label in labels {
            exec.args(["--label", label]);
        }
        exec.arg("--").args(command);
        Ok(exec)
    }

    /// Prometheus text, from the admin listener that its log names.
    pub fn metrics(&self) -> anyhow::Result<String> {
        crate::process::admin_page(&self.log(), "admin listener", "/metrics")
    }

    pub fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// The segments in its spool, by file.
    pub fn spooled(&self) -> anyhow::Result<Vec<PathBuf>> {
        let files = crate::sealed::files(&self.state().join("spool").join("segments"))?;
        Ok(files
            .into_iter()
            .filter(|path| path.extension().is_some_and(|extension| extension == "seg"))
            .collect())
    }

    pub fn config(&self) -> &std::path::Path {
        &self.config
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// Lets it live on, attached.
    pub fn release(mut self) -> Option<u32> {
        let pid = self.server.take().map(Server::release);
        std::mem::forget(self);
        pid
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Err(error) = self.stop(Signal::SIGTERM) {
            eprintln!("weir-agent: {error:#}");
        }
        // The site removes the pins whatever comes of this.
        let detached =
            self.command().and_then(|mut detach| run(detach.args(["detach", "--config"]).arg(&self.config)));
        if let Err(error) = detached {
            eprintln!("weir-agent detach: {error:#}");
        }
    }
}
