//! A real collector of its own, and its client `weir`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::Site;
use crate::process::{Server, eventually, free_port, program, run};

pub struct Collector {
    server: Option<Server>,
    dir: PathBuf,
    data: PathBuf,
    pub port: u16,
    credential: String,
}

impl Collector {
    pub fn start(site: &Site) -> anyhow::Result<Self> {
        Self::start_with(site, "")
    }

    /// With options of its configuration file.
    pub fn start_with(site: &Site, options: &str) -> anyhow::Result<Self> {
        let dir = site.folder("collector")?;
        fs::write(dir.join("collector.toml"), options)?;
        let mut collector =
            Self { server: None, data: dir.join("data"), dir, port: free_port()?, credential: String::new() };
        collector.resume()?;
        // It listens before it prints.
        collector.credential = eventually("the credential that a first start prints", || {
            let log = collector.log();
            let credential = log.split_whitespace().find(|word| word.starts_with("weiradmin1-"));
            Ok(credential.map(str::to_owned))
        })?;
        Ok(collector)
    }

    /// Starts it again over the same data.
    pub fn resume(&mut self) -> anyhow::Result<()> {
        self.spawn()?;
        self.wait_ready()
    }

    /// Starts it again and does not wait until it listens.
    pub fn spawn(&mut self) -> anyhow::Result<()> {
        let server = Server::start(
            "weir-collector",
            Command::new(program("weir-collector")?)
                .arg("serve")
                .args([
                    "--listen",
                    &format!("127.0.0.1:{}", self.port),
                    "--admin-listen",
                    "127.0.0.1:0",
                    "--data",
                ])
                .arg(&self.data)
                .arg("--config")
                .arg(self.dir.join("collector.toml")),
            &self.dir.join("log"),
        )?;
        self.server = Some(server);
        Ok(())
    }

    pub fn wait_ready(&mut self) -> anyhow::Result<()> {
        let port = self.port;
        let server = self.server.as_mut().context("the collector was not started")?;
        server
            .wait_until("the collector listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok())
    }

    pub fn pid(&self) -> anyhow::Result<u32> {
        Ok(self.server.as_ref().context("the collector is not running")?.pid().as_raw().cast_unsigned())
    }

    pub fn is_alive(&mut self) -> bool {
        self.server.as_mut().is_some_and(Server::is_alive)
    }

    pub fn metrics(&self) -> anyhow::Result<String> {
        crate::process::admin_page(&self.log(), "health, readiness and metrics", "/metrics")
    }

    pub fn stop(&mut self, signal: Signal) -> anyhow::Result<()> {
        self.server.take().map_or(Ok(()), |server| server.stop(signal))
    }

    pub fn data(&self) -> PathBuf {
        self.data.clone()
    }

    /// While it is stopped: its next start is somewhere else.
    pub fn move_data(&mut self, to: &Path) -> anyhow::Result<()> {
        fs::rename(&self.data, to)?;
        self.data = to.to_owned();
        Ok(())
    }

    /// Reads or changes its index behind its back: the rows, columns separated by `|`, blobs in hex; and how many rows
    /// were changed.
    pub fn index(&self, statement: &str) -> anyhow::Result<(Vec<String>, i64)> {
        const SCRIPT: &str = "import sqlite3, sys\n\
            index = sqlite3.connect(sys.argv[1])\n\
            cursor = index.execute(sys.argv[2])\n\
            for row in cursor: print('|'.join(v.hex() if isinstance(v, bytes) else str(v) for v in row))\n\
            index.commit()\n\
            print(cursor.rowcount)";
        let index = self.data().join("index.sqlite");
        let text = run(Command::new("python3").args(["-c", SCRIPT]).arg(index).arg(statement))?;
        let mut rows: Vec<String> = text.lines().map(str::to_owned).collect();
        let changed = rows.pop().context("no answer from the index")?;
        Ok((rows, changed.parse()?))
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
        command
            .args(arguments)
            .env("WEIR_CREDENTIAL", &self.credential)
            .env("WEIR_CONFIG_DIR", self.dir.join("client"));
        Ok(command)
    }

    pub fn text(&self, arguments: &[&str]) -> anyhow::Result<String> {
        run(&mut self.weir(arguments)?)
    }

    pub fn json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let text = self.text(&[arguments, &["--json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("weir {arguments:?} printed {text}"))
    }

    /// The same where an answer is a line of JSON each.
    pub fn lines(&self, arguments: &[&str]) -> anyhow::Result<Vec<Value>> {
        let text = self.text(&[arguments, &["--json"]].concat())?;
        let lines = text.lines().map(serde_json::from_str).collect::<Result<_, _>>();
        lines.with_context(|| format!("weir {arguments:?} printed {text}"))
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
