//! A real collector of its own, and its client `weir`.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context as _;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::Site;
use crate::process::{Server, free_port, program, run};

pub struct Collector {
    server: Option<Server>,
    dir: PathBuf,
    pub port: u16,
    credential: String,
}

impl Collector {
    pub fn start(site: &Site) -> anyhow::Result<Self> {
        let mut collector =
            Self { server: None, dir: site.folder("collector")?, port: free_port()?, credential: String::new() };
        collector.resume()?;
        let log = collector.log();
        let credential = log.split_whitespace().find(|word| word.starts_with("weircred1-"));
        collector.credential = credential.context("the collector's first start printed no credential")?.to_owned();
        Ok(collector)
    }

    /// Starts it again over the same data.
    pub fn resume(&mut self) -> anyhow::Result<()> {
        let mut server = Server::start(
            "weir-collector",
            Command::new(program("weir-collector")?)
                .arg("serve")
                .args(["--listen", &format!("127.0.0.1:{}", self.port), "--admin", "127.0.0.1:0", "--data"])
                .arg(self.dir.join("data")),
            &self.dir.join("log"),
        )?;
        let port = self.port;
        server.wait_until("the collector listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok())?;
        self.server = Some(server);
        Ok(())
    }

    pub fn stop(&mut self, signal: Signal) -> anyhow::Result<()> {
        self.server.take().map_or(Ok(()), |server| server.stop(signal))
    }

    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    pub fn credential(&self) -> &str {
        &self.credential
    }

    /// The client, with its credential.
    pub fn weir(&self, arguments: &[&str]) -> anyhow::Result<Command> {
        let mut command = Command::new(program("weir")?);
        command.args(arguments).env("WEIR_CREDENTIAL", &self.credential).env("WEIR_CONFIG_DIR", self.dir.join("client"));
        Ok(command)
    }

    pub fn text(&self, arguments: &[&str]) -> anyhow::Result<String> {
        run(&mut self.weir(arguments)?)
    }

    pub fn json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let text = self.text(&[arguments, &["--json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("weir {arguments:?} printed {text}"))
    }

    pub fn join_token(&self) -> anyhow::Result<String> {
        let text = self.text(&["join-token"])?;
        let token = text.split_whitespace().find(|word| word.starts_with("weirjoin1-"));
        Ok(token.with_context(|| format!("no token in {text}"))?.to_owned())
    }

    pub fn release(mut self) -> Option<u32> {
        self.server.take().map(Server::release)
    }
}
