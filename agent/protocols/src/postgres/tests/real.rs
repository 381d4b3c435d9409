//! Real clients and a real server, with the conversation between them: psql, pgbench, pg_dump and pg_basebackup must not
//! notice it, and every exchange must be understood.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant as Clock};

use bytes::Bytes;

use crate::kind::{Kind, Start};
use crate::mask::MaskPlan;
use crate::note::Note;
use crate::operation::Opacity;
use crate::seam::{Effect, Effects, ExchangeId, Input, Instant, Side};
use crate::suite::{Outcome, Step};
use crate::verdict::{GrantKey, Verdict};

const PASSWORD: &str = "pl4nted-real-passw0rd";

#[test]
fn real_clients_do_not_notice() {
    let server = Server::start();
    let relay = Relay::start(server.port);
    let psql =
        |script: &str| server.client("psql", relay.port, &["-X", "-v", "ON_ERROR_STOP=0", "-c", script]);

    let said = psql("CREATE TABLE t (n int, s text)");
    assert!(said.status.success(), "{said:?}");
    let copy_in =
        server.with_input("psql", relay.port, &["-X", "-c", "COPY t FROM STDIN"], "1\tone\n2\ttwo\n");
    assert!(copy_in.status.success(), "{copy_in:?}");
    let copied = psql("COPY t TO STDOUT");
    assert_eq!(String::from_utf8_lossy(&copied.stdout), "1\tone\n2\ttwo\n");
    let failed = psql("SELECT 1/0");
    assert!(String::from_utf8_lossy(&failed.stderr).contains("division by zero"));
    psql("CREATE ROLE bob PASSWORD 'pl4nted-real-literal'");
    let large = psql("SELECT repeat('x', 5000000)");
    assert!(large.stdout.len() > 5_000_000);

    for mode in ["simple", "extended", "prepared"] {
        let init = server.client("pgbench", relay.port, &["-i", "-q", "-s", "1"]);
        assert!(init.status.success(), "{init:?}");
        let bench = server.client("pgbench", relay.port, &["-n", "-M", mode, "-c", "4", "-t", "25"]);
        assert!(bench.status.success(), "{bench:?}");
        assert!(String::from_utf8_lossy(&bench.stdout).contains("100/100"), "{bench:?}");
    }
    let script = server.folder.join("pipeline.sql");
    std::fs::write(&script, "\\startpipeline\nSELECT 1;\nSELECT 2;\nSELECT 3;\n\\endpipeline\n").unwrap();
    let script = script.to_string_lossy().into_owned();
    let piped = server.client("pgbench", relay.port, &["-n", "-M", "prepared", "-t", "20", "-f", &script]);
    assert!(piped.status.success(), "{piped:?}");

    let dump = server.client("pg_dump", relay.port, &["--schema-only"]);
    assert!(String::from_utf8_lossy(&dump.stdout).contains("CREATE TABLE public.t"), "{dump:?}");

    let slow = Clock::now();
    let mut interrupted =
        server.command("psql", relay.port, &["-X", "-c", "SELECT pg_sleep(60)"]).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(1));
    Command::new("kill").args(["-INT", &interrupted.id().to_string()]).status().unwrap();
    interrupted.wait().unwrap();
    assert!(slow.elapsed() < Duration::from_secs(50), "the cancel request arrived");

    let backup = server.folder.join("backup").to_string_lossy().into_owned();
    let args = ["-D", &backup, "-X", "stream", "-c", "fast"];
    let backed_up =
        server.command("pg_basebackup", relay.port, &args).env_remove("PGDATABASE").output().unwrap();
    assert!(backed_up.status.success(), "{backed_up:?}");

    let sessions = relay.sessions();
    let streams =
        sessions.iter().filter(|session| session.became == Some(Kind::Opaque(Opacity::Streaming))).count();
    assert_eq!(streams, 1, "the log of a base backup is a stream");
    let mut verbs = std::collections::BTreeMap::<&str, usize>::new();
    for session in &sessions {
        // A Terminate that crosses the server's own end has nobody left to go to, and says so.
        let gaps: Vec<_> = session
            .outcome
            .notes
            .values()
            .flatten()
            .filter(|note| note.starts_with("gap") && !note.contains("sent-after-the-end 5"))
            .collect();
        assert!(gaps.is_empty(), "{gaps:?}");
        for secret in [PASSWORD, "pl4nted-real-literal"] {
            let mut recorded = session.outcome.recorded();
            assert!(
                !recorded.any(|text| memchr::memmem::find(text, secret.as_bytes()).is_some()),
                "{secret}"
            );
        }
        for note in session.outcome.notes.values().flatten().filter(|note| note.starts_with("asked")) {
            for verb in ["query", "prepare", "execute", "cancel"] {
                *verbs.entry(verb).or_default() += usize::from(note.contains(&format!("verb: \"{verb}\"")));
            }
        }
    }
    assert!(verbs["query"] > 700 && verbs["prepare"] > 700 && verbs["execute"] > 1400, "{verbs:?}");
    assert_eq!(verbs["cancel"], 1);

    if let Some(folder) = std::env::var_os("WEIR_CAPTURES_UPDATE") {
        save(&sessions, Path::new(&folder));
    }
}

/// A few short sessions, for `captured/`.
fn save(sessions: &[Session], folder: &Path) {
    let has = |session: &&Session, text: &str| {
        session.outcome.notes.values().flatten().any(|note| note.contains(text))
    };
    for (name, text) in
        [("copy-in", "COPY t FROM"), ("copy-out", "COPY t TO"), ("error", "1/0"), ("pipeline", "SELECT 3")]
    {
        let session = sessions.iter().find(|session| has(session, text)).expect(text);
        let mut file = Vec::new();
        for step in session.steps.iter().take(60) {
            if let Step::Data(side, bytes) = step {
                file.push(side.index() as u8);
                file.extend((bytes.len() as u32).to_be_bytes());
                file.extend_from_slice(bytes);
            }
        }
        std::fs::write(folder.join(name), file).unwrap();
    }
}

/// A PostgreSQL of our own: own folder, own port, own socket.
struct Server {
    folder: PathBuf,
    port: u16,
    process: Child,
}

impl Server {
    fn start() -> Self {
        let folder = std::env::temp_dir().join(format!("weir-postgres-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("password"), PASSWORD).unwrap();
        let path = |name: &str| folder.join(name).to_string_lossy().into_owned();
        let root = Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
        if root {
            let given = Command::new("chown").arg("-R").arg("postgres").arg(&folder).status().unwrap();
            assert!(given.success(), "there is no user postgres: apt install postgresql");
        }
        // It refuses to run as root.
        let command = |program: &str| {
            let program = bin(program);
            if !root {
                return Command::new(program);
            }
            let mut command = Command::new("setpriv");
            command.args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups"]).arg(program);
            command
        };
        let made = command("initdb")
            .args([
                "-D",
                &path("data"),
                "-U",
                "ada",
                "-A",
                "scram-sha-256",
                "--pwfile",
                &path("password"),
                "--no-sync",
            ])
            .current_dir(&folder)
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let process = command("postgres")
            .args([
                "-D",
                &path("data"),
                "-p",
                &port.to_string(),
                "-k",
                &path(""),
                "-c",
                "fsync=off",
                "-c",
                "wal_level=replica",
            ])
            .current_dir(&folder)
            .stderr(
                std::fs::File::create(std::env::temp_dir().join(format!("weir-postgres-{port}.log")))
                    .unwrap(),
            )
            .spawn()
            .unwrap();
        let mut server = Self { folder, port, process };
        let waiting = Clock::now();
        while !server.client("pg_isready", port, &[]).status.success() {
            assert_eq!(server.process.try_wait().unwrap(), None, "the server ended");
            assert!(waiting.elapsed() < Duration::from_secs(60), "the server did not get ready");
            std::thread::sleep(Duration::from_millis(100));
        }
        server
    }

    fn command(&self, program: &str, port: u16, args: &[&str]) -> Command {
        let mut command = Command::new(bin(program));
        command.args(args).env("PGHOST", "127.0.0.1").env("PGPORT", port.to_string()).env("PGUSER", "ada");
        command.env("PGDATABASE", "postgres").env("PGPASSWORD", PASSWORD).env("PGCONNECT_TIMEOUT", "20");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn client(&self, program: &str, port: u16, args: &[&str]) -> Output {
        self.command(program, port, args).output().unwrap()
    }

    fn with_input(&self, program: &str, port: u16, args: &[&str], input: &str) -> Output {
        let mut child = self.command(program, port, args).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SIGINT is its fast shutdown; its children go with it.
        let _ = Command::new("kill").args(["-INT", &self.process.id().to_string()]).status();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
        let _ = std::fs::remove_file(std::env::temp_dir().join(format!("weir-postgres-{}.log", self.port)));
    }
}

fn bin(program: &str) -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<_> =
        versions.map(|version| version.path().join("bin").join(program)).filter(|p| p.exists()).collect();
    found.sort();
    found.pop().unwrap_or_else(|| panic!("no {program} in /usr/lib/postgresql: apt install postgresql"))
}

#[derive(Default)]
struct Session {
    steps: Vec<Step>,
    outcome: Outcome,
    became: Option<Kind>,
}

/// One thread per connection around the conversation.
struct Relay {
    port: u16,
    sessions: Arc<Mutex<Vec<Session>>>,
    open: Arc<Mutex<usize>>,
}

impl Relay {
    fn start(upstream: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let relay = Self {
            port: listener.local_addr().unwrap().port(),
            sessions: Arc::default(),
            open: Arc::default(),
        };
        let (sessions, open) = (relay.sessions.clone(), relay.open.clone());
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                let server = TcpStream::connect(("127.0.0.1", upstream)).unwrap();
                let (sessions, open) = (sessions.clone(), open.clone());
                *open.lock().unwrap() += 1;
                std::thread::spawn(move || {
                    let session = relay_one(client, server);
                    sessions.lock().unwrap().push(session);
                    *open.lock().unwrap() -= 1;
                });
            }
        });
        relay
    }

    /// Of all connections, which must be closed.
    fn sessions(&self) -> Vec<Session> {
        let waiting = Clock::now();
        while *self.open.lock().unwrap() > 0 {
            assert!(waiting.elapsed() < Duration::from_secs(20), "a session does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
        std::mem::take(&mut *self.sessions.lock().unwrap())
    }
}

fn read(side: Side, mut stream: TcpStream, inputs: Sender<(Side, Option<Bytes>)>) {
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let length = stream.read(&mut buffer).unwrap_or(0);
            let bytes = (length > 0).then(|| Bytes::copy_from_slice(&buffer[..length]));
            if inputs.send((side, bytes)).is_err() || length == 0 {
                return;
            }
        }
    });
}

fn relay_one(client: TcpStream, server: TcpStream) -> Session {
    let (sender, inputs) = channel();
    read(Side::Client, client.try_clone().unwrap(), sender.clone());
    read(Side::Upstream, server.try_clone().unwrap(), sender);
    let key = GrantKey::for_tests();
    let mut streams = [client, server];
    let mut session = Session::default();
    let start = Start { first_exchange: ExchangeId::FIRST, plan: MaskPlan::standard() };
    let mut conversation = Kind::Postgres.start(start);
    let mut queue = VecDeque::new();
    let mut waiting: VecDeque<(Side, Option<Bytes>)> = VecDeque::new();
    let mut ended = 0;
    while ended < 2 {
        let ready = waiting.iter().position(|(side, _)| conversation.wants_read(*side));
        let (side, bytes) = match ready.and_then(|place| waiting.remove(place)) {
            Some(input) => input,
            None => {
                let Ok(input) = inputs.recv() else { break };
                waiting.push_back(input);
                continue;
            }
        };
        queue.push_back(match bytes {
            Some(bytes) => {
                session.steps.push(Step::Data(side, bytes.clone()));
                Input::Data(side, bytes)
            }
            None => Input::End(side),
        });
        while let Some(input) = queue.pop_front() {
            let mut effects = Effects::default();
            conversation.handle(input, Instant(1), &mut effects).unwrap();
            for effect in effects {
                match effect {
                    Effect::Upstream(cleared) => {
                        let _ = streams[1].write_all(&cleared.into_bytes());
                    }
                    Effect::Client(bytes) => {
                        let _ = streams[0].write_all(&bytes);
                    }
                    Effect::Ask(id, _) => {
                        queue.push_back(Input::Verdict(id, Verdict::Allow(key.permit(id, "open".into()))))
                    }
                    Effect::Withdraw(_) => {}
                    // The log of a whole server is a lot.
                    Effect::Note(_, Note::Data(..)) if session.became.is_some() => {}
                    Effect::Note(id, note) => session.outcome.note(id, note),
                    Effect::End(side) => {
                        ended += 1;
                        let _ = streams[side.index()].shutdown(Shutdown::Write);
                    }
                    Effect::Abort(cause) => panic!("{cause:?}"),
                    Effect::Become(kind, pending) => {
                        session.became = Some(kind);
                        let first_exchange = ExchangeId(1_000_000);
                        conversation = kind.start(Start { first_exchange, plan: MaskPlan::standard() });
                        let sides = [Side::Client, Side::Upstream].into_iter().zip(pending);
                        queue.extend(
                            sides
                                .filter(|(_, b)| !b.is_empty())
                                .map(|(side, bytes)| Input::Data(side, bytes)),
                        );
                    }
                }
            }
        }
    }
    for stream in &streams {
        let _ = stream.shutdown(Shutdown::Both);
    }
    session
}
