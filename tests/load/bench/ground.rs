//! What is there with and without Weir: the servers, and a client that reaches them directly.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::Signal;
use weir_tests::Site;
use weir_tests::postgres::{Cluster, Postgres};
use weir_tests::process::{Server, free_port, program, run};

use crate::cgroup::Group;

/// 1 000 000 accounts, as in the peers' bench.
const PGBENCH_SCALE: u32 = 10;
const CLUSTER: Cluster<'_> = Cluster {
    login: "trust",
    settings: "max_connections = 200\nshared_buffers = '256MB'\nautovacuum = off\njit = off\n",
};
/// One row by its key: the text of pgbench's own `-S`, without the statements that `-S` asks first.
const SELECT: &str =
    "\\set aid random(1, 1000000)\nSELECT abalance FROM pgbench_accounts WHERE aid = :aid;\n";

/// Servers on loopback, in a cgroup of their own; those that a bench does not need are never started.
pub(crate) struct Ground {
    postgres: Option<Postgres>,
    nginx: Option<(Server, u16)>,
    raw: Option<Raw>,
    pub(crate) origins: Group,
    /// Where clients run that nobody governs.
    pub(crate) clients: Group,
    // Last: its cgroups go when the processes in them have ended.
    pub(crate) site: Site,
}

struct Raw {
    child: Child,
    port: u16,
}

impl Ground {
    pub(crate) fn make() -> anyhow::Result<Self> {
        let site = Site::new(true)?;
        let origins = Group::make(site.cgroup().join("origins"))?;
        let clients = Group::make(site.cgroup().join("clients"))?;
        let script = site.folder("clients")?.join("select.sql");
        fs::write(script, SELECT)?;
        Ok(Self { postgres: None, nginx: None, raw: None, origins, clients, site })
    }

    /// Where pgbench's statement is.
    pub(crate) fn select_script(&self) -> PathBuf {
        self.site.path().join("clients/select.sql")
    }

    pub(crate) fn postgres(&mut self) -> anyhow::Result<&Postgres> {
        if self.postgres.is_none() {
            let postgres = Postgres::start_as(&self.site, "postgres", &CLUSTER)?;
            self.origins.take(postgres.pid()?)?;
            self.site.rearm()?;
            let scale = PGBENCH_SCALE.to_string();
            run(postgres.client("pgbench").args(["-i", "-q", "-s", &scale]))?;
            postgres.sql("CHECKPOINT")?;
            self.site.rearm()?;
            self.postgres = Some(postgres);
        }
        self.postgres.as_ref().context("PostgreSQL is not running")
    }

    /// The port of an nginx with files of 1 KiB and 64 KiB: filler, JSON, random bytes.
    pub(crate) fn http_port(&mut self) -> anyhow::Result<u16> {
        if let Some((_, port)) = &self.nginx {
            return Ok(*port);
        }
        let dir = self.site.folder("nginx")?;
        write_bodies(&self.site.folder("nginx/www")?)?;
        let port = free_port()?;
        let config = dir.join("nginx.conf");
        fs::write(&config, nginx_config(&dir, port))?;
        let mut server =
            Server::start("nginx", Command::new("nginx").arg("-c").arg(&config), &dir.join("log"))?;
        server.wait_until("nginx listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok())?;
        for pid in family(server.pid().as_raw().cast_unsigned())? {
            self.origins.take(pid)?;
        }
        self.nginx = Some((server, port));
        Ok(port)
    }

    /// The port of `weir-load serve`.
    pub(crate) fn raw_port(&mut self) -> anyhow::Result<u16> {
        if let Some(raw) = &self.raw {
            return Ok(raw.port);
        }
        let mut command = self.origins.around(Command::new(program("weir-load")?).arg("serve"));
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no stdout")?).read_line(&mut line)?;
        let port = line.trim().parse().context("weir-load serve told no port")?;
        self.raw = Some(Raw { child, port });
        Ok(port)
    }

    /// Which processes serve now: to keep them on one core for a while.
    pub(crate) fn servers(&self) -> anyhow::Result<Vec<u32>> {
        let mut pids = Vec::new();
        if let Some(postgres) = &self.postgres {
            pids.extend(family(postgres.pid()?)?);
        }
        if let Some((nginx, _)) = &self.nginx {
            pids.extend(family(nginx.pid().as_raw().cast_unsigned())?);
        }
        Ok(pids)
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if let Some((nginx, _)) = self.nginx.take()
            && let Err(error) = nginx.stop(Signal::SIGTERM)
        {
            eprintln!("nginx: {error:#}");
        }
        if let Some(Raw { mut child, .. }) = self.raw.take() {
            // It may have ended already; then there is nobody to kill or to wait for.
            let _ended = child.kill();
            let _status = child.wait();
        }
    }
}

fn nginx_config(dir: &Path, port: u16) -> String {
    let dir = dir.display();
    format!(
        "user root; worker_processes 2; daemon off; pid {dir}/pid; error_log {dir}/error.log; worker_rlimit_nofile 65536;\n\
         events {{ worker_connections 16384; }}\n\
         http {{\n  access_log off; default_type application/json; keepalive_requests 100000000; keepalive_timeout 3600;\n  \
         sendfile on; tcp_nodelay on; open_file_cache max=100;\n  client_body_temp_path {dir}/body;\n  \
         server {{ listen 127.0.0.1:{port} backlog=8192; root {dir}/www; }}\n}}\n"
    )
}

/// Filler compresses to nothing, JSON to a part, random bytes not at all.
fn write_bodies(folder: &Path) -> anyhow::Result<()> {
    for (name, bytes) in [("1k", 1024), ("64k", 65536)] {
        fs::write(folder.join(name), format!("{{\"d\":\"{}\"}}", "x".repeat(bytes - 8)))?;
        let records = (0..).map(|n: u64| {
            let amount = n.wrapping_mul(2_654_435_761) % 100_000;
            format!(
                "{{\"id\":{n},\"customer\":\"c-{amount:05}\",\"amount\":{amount},\"status\":\"shipped\"}},\n"
            )
        });
        let mut json = String::with_capacity(bytes + 128);
        for record in records {
            json.push_str(&record);
            if json.len() >= bytes {
                break;
            }
        }
        json.truncate(bytes);
        fs::write(folder.join(format!("{name}.json")), json)?;
        let mut random = vec![0; bytes];
        std::io::Read::read_exact(&mut fs::File::open("/dev/urandom")?, &mut random)?;
        fs::write(folder.join(format!("{name}.random")), random)?;
    }
    Ok(())
}

/// A process and its children: servers fork no deeper.
fn family(pid: u32) -> anyhow::Result<Vec<u32>> {
    // Workers are forked after the port is open.
    std::thread::sleep(Duration::from_millis(100));
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let mut pids = vec![pid];
    for child in children.split_whitespace() {
        pids.push(child.parse()?);
    }
    Ok(pids)
}
