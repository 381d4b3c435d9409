//! A real PostgreSQL of its own: scratch cluster, free port, password login, every statement in its own log.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use nix::sys::signal::Signal;

use crate::Site;
use crate::process::{Server, free_port, run};

/// Planted: must never be found in anything that Weir keeps.
pub const PASSWORD: &str = "weir-planted-Pa55word";

pub struct Postgres {
    server: Option<Server>,
    dir: PathBuf,
    pub port: u16,
}

/// How a cluster differs from another.
pub struct Cluster<'a> {
    /// How clients log in, as `initdb` names it.
    pub login: &'a str,
    /// Lines of its configuration.
    pub settings: &'a str,
}

/// What the stories need: a password login, and every statement in its own log.
const STORY: Cluster<'_> = Cluster {
    login: "scram-sha-256",
    settings: "max_connections = 200\nlog_statement = 'all'\nlog_line_prefix = '%m [%p] app=%a '\nshared_buffers = '32MB'\n",
};

impl Postgres {
    pub fn start(site: &Site, name: &str) -> anyhow::Result<Self> {
        Self::start_as(site, name, &STORY)
    }

    pub fn start_as(site: &Site, name: &str, cluster: &Cluster<'_>) -> anyhow::Result<Self> {
        let user =
            nix::unistd::User::from_name("postgres")?.context("no user postgres: `cargo xtask setup`")?;
        let dir = site.folder(name)?;
        chown(&dir, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
        let data = dir.join("data");
        let password_file = dir.join("password");
        fs::write(&password_file, PASSWORD)?;
        fs::set_permissions(&password_file, fs::Permissions::from_mode(0o644))?;
        let bin = bin_dir()?;
        run(as_postgres(&bin.join("initdb"))
            .arg("-D")
            .arg(&data)
            .args(["-U", "postgres", "-A", cluster.login, "--no-sync", "-E", "UTF8", "--pwfile"])
            .arg(&password_file)
            .current_dir(&dir))?;
        let port = free_port()?;
        fs::write(
            data.join("postgresql.auto.conf"),
            format!(
                "listen_addresses = '127.0.0.1,::1'\nport = {port}\nunix_socket_directories = '{}'\nfsync = off\n{}",
                dir.display(),
                cluster.settings
            ),
        )?;
        let mut server = Server::start(
            "postgres",
            as_postgres(&bin.join("postgres")).arg("-D").arg(&data).current_dir(&dir),
            &dir.join("log"),
        )?;
        let log = dir.join("log");
        server.wait_until("PostgreSQL accepts connections", || {
            fs::read_to_string(&log).is_ok_and(|log| log.contains("ready to accept connections"))
        })?;
        Ok(Self { server: Some(server), dir, port })
    }

    pub fn pid(&self) -> anyhow::Result<u32> {
        Ok(self.server.as_ref().context("PostgreSQL is not running")?.pid().as_raw().cast_unsigned())
    }

    /// What a client needs in its environment to reach it by its own address.
    pub fn environment(&self) -> [(&'static str, String); 6] {
        [
            ("PGHOST", "127.0.0.1".into()),
            ("PGPORT", self.port.to_string()),
            ("PGUSER", "postgres".into()),
            ("PGPASSWORD", PASSWORD.into()),
            ("PGDATABASE", "postgres".into()),
            ("PGSSLMODE", "disable".into()),
        ]
    }

    /// A client of this server, not governed.
    pub fn client(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.envs(self.environment());
        command
    }

    pub fn sql(&self, sql: &str) -> anyhow::Result<String> {
        run(self.client("psql").args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql]))
    }

    /// The server's own log: the truth about what was executed.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// The statements that its log names, of clients whose application_name is `application`, in order of the log.
    pub fn statements(&self, application: &str) -> Vec<String> {
        statements_in(&self.log(), application)
    }

    /// Lets a user in by another method than SCRAM.
    pub fn let_in(&self, user: &str, method: &str) -> anyhow::Result<()> {
        let path = self.dir.join("data/pg_hba.conf");
        let rules = fs::read_to_string(&path)?;
        fs::write(&path, format!("host all {user} 127.0.0.1/32 {method}\n{rules}"))?;
        self.sql("SELECT pg_reload_conf()")?;
        Ok(())
    }

    pub fn release(mut self) -> Option<u32> {
        self.server.take().map(Server::release)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(server) = self.server.take()
            && let Err(error) = server.stop(Signal::SIGINT)
        {
            eprintln!("postgres: {error:#}");
        }
    }
}

fn as_postgres(program: &Path) -> Command {
    // The server refuses to run as root.
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
    command
}

/// Debian keeps the server's programs out of PATH, by version.
fn bin_dir() -> anyhow::Result<PathBuf> {
    let mut versions: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .context("no PostgreSQL server: `cargo xtask setup`")?
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .filter(|bin| bin.join("initdb").exists())
        .collect();
    versions.sort();
    versions.pop().context("no PostgreSQL server: `cargo xtask setup`")
}

/// Statements of more than one line go on in lines that begin with a tab.
fn statements_in(log: &str, application: &str) -> Vec<String> {
    let mine = format!(" app={application} LOG:  ");
    let mut statements: Vec<String> = Vec::new();
    let mut inside = false;
    for line in log.lines() {
        if let Some(more) = line.strip_prefix('\t') {
            if let Some(statement) = statements.last_mut().filter(|_| inside) {
                statement.push('\n');
                statement.push_str(more);
            }
            continue;
        }
        let logged = line.split_once(&mine).and_then(|(_, logged)| {
            let executed = || logged.strip_prefix("execute ").and_then(|rest| Some(rest.split_once(": ")?.1));
            logged.strip_prefix("statement: ").or_else(executed)
        });
        inside = logged.is_some();
        statements.extend(logged.map(str::to_owned));
    }
    statements
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_read_from_the_log_by_application() {
        let log = "2026-01-01 UTC [1] app=psql LOG:  statement: SELECT 1,\n\t  2\n\
                   2026-01-01 UTC [1] app=psql ERROR:  no\n\tmore of it\n\
                   2026-01-01 UTC [2] app=other LOG:  statement: SELECT 3\n\
                   2026-01-01 UTC [1] app=psql LOG:  execute P_0: SELECT $1\n\
                   2026-01-01 UTC [1] app=psql DETAIL:  parameters: $1 = '4'\n";
        assert_eq!(statements_in(log, "psql"), ["SELECT 1,\n  2", "SELECT $1"]);
        assert_eq!(statements_in(log, "other"), ["SELECT 3"]);
    }
}
