//! A real node agent over a cgroup subtree of its own.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context as _;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::Site;
use crate::collector::Collector;
use crate::process::{Server, program, run};

pub struct Agent {
    server: Option<Server>,
    dir: PathBuf,
    config: PathBuf,
}

impl Agent {
    /// Joined to `collector` and running. `rules` is appended to its configuration.
    pub fn start(site: &Site, collector: &Collector, rules: &str) -> anyhow::Result<Self> {
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
        let mut agent = Self { server: None, dir, config };
        run(agent.command()?.args(["join", "--config"]).arg(&agent.config).env("WEIR_JOIN_TOKEN", collector.join_token()?))?;
        agent.resume()?;
        Ok(agent)
    }

    fn command(&self) -> anyhow::Result<Command> {
        Ok(Command::new(program("weir-agent")?))
    }

    /// Starts it again over the same state.
    pub fn resume(&mut self) -> anyhow::Result<()> {
        let mut server = Server::start(
            "weir-agent",
            self.command()?.args(["run", "--config"]).arg(&self.config),
            &self.dir.join("log"),
        )?;
        let mut look = self.command()?;
        look.args(["status", "--json", "--config"]).arg(&self.config);
        server.wait_until("the node agent answers", || {
            look.output().is_ok_and(|output| {
                serde_json::from_slice::<Value>(&output.stdout).is_ok_and(|status| status["ready"] == true)
            })
        })?;
        self.server = Some(server);
        Ok(())
    }

    pub fn stop(&mut self, signal: Signal) -> anyhow::Result<()> {
        self.server.take().map_or(Ok(()), |server| server.stop(signal))
    }

    pub fn status(&self) -> anyhow::Result<Value> {
        let text = run(self.command()?.args(["status", "--json", "--config"]).arg(&self.config))?;
        serde_json::from_str(&text).context("status")
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

    pub fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    pub fn config(&self) -> &std::path::Path {
        &self.config
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    pub fn release(mut self) -> Option<u32> {
        self.server.take().map(Server::release)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Err(error) = self.stop(Signal::SIGTERM) {
            eprintln!("weir-agent: {error:#}");
        }
        // The site removes the pins whatever comes of this.
        let detached = self.command().and_then(|mut detach| run(detach.args(["detach", "--config"]).arg(&self.config)));
        if let Err(error) = detached {
            eprintln!("weir-agent detach: {error:#}");
        }
    }
}
