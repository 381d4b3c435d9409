//! Connections behave as without Weir, and each is recorded with the destination it asked for.

#![expect(clippy::unwrap_used, reason = "a story that cannot go on has failed")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::signal::Signal;
use weir_tests::peer::{Noise, how_it_ended, reset};
use weir_tests::process::{Dialogue, eventually, program, resident_bytes, run};
use weir_tests::recorded::Session;
use weir_tests::site::enter_own_network;
use weir_tests::{Agent, Collector, Echo, Peer, Postgres, Site};

/// An address of the test's own network that is not loopback.
const FAR: &str = "198.18.0.1";
const PATIENCE: Duration = Duration::from_secs(30);

/// A collector, a node agent, and governed clients.
struct Ground {
    agent: Agent,
    collector: Collector,
    site: Site,
}

impl Ground {
    fn new(rules: &str) -> Self {
        Self::with(|_| rules.to_owned())
    }

    fn with(rules: impl FnOnce(&Site) -> String) -> Self {
        enter_own_network().unwrap();
        for arguments in ["address add 198.18.0.1/32 dev lo", "route add unreachable 198.18.2.0/24"] {
            run(Command::new("ip").args(arguments.split(' '))).unwrap();
        }
        let site = Site::new(true).unwrap();
        let collector = Collector::start(&site).unwrap();
        let agent = Agent::start(&site, &collector, &rules(&site)).unwrap();
        Self { agent, collector, site }
    }

    fn client(&self, story: &str, arguments: &[&str]) -> Command {
        let client = program("weir-test-client").unwrap().display().to_string();
        let label = format!("story={story}");
        self.agent.exec(&[&label], &[&[client.as_str()], arguments].concat()).unwrap()
    }

    /// What the deed printed.
    fn does(&self, story: &str, arguments: &[&str]) -> String {
        run(&mut self.client(story, arguments)).unwrap()
    }

    /// The one session that a story left.
    fn session(&self, story: &str) -> Session {
        let run = self.collector.settled(story, 1).unwrap();
        let mut sessions = self.collector.sessions(&run).unwrap();
        assert_eq!(sessions.len(), 1, "{story}: {sessions:?}");
        assert!(self.collector.verify(&[&run.id]).unwrap().holds());
        sessions.remove(0)
    }
}

#[test]
fn a_connection_keeps_its_origin_and_ends_as_its_ends_want() {
    let mut ground = Ground::new("");

    // Origins, as the client sees its peer and as the record names it.
    for (story, ip) in [("v4", "127.0.0.1"), ("v6", "::1"), ("far", FAR)] {
        let echo = Echo::start(ip).unwrap();
        let told = ground.does(story, &["talk", &echo.address.to_string()]);
        assert_eq!(told, format!("{} echo: hello\n", echo.address));
        assert_eq!(ground.session(story).origin(), Some(echo.address));
    }
    let echo = Echo::start("127.0.0.1").unwrap();
    let told = ground.does("mapped", &["talk-mapped", &echo.address.to_string()]);
    assert_eq!(told, format!("[::ffff:127.0.0.1]:{} echo: hello\n", echo.address.port()));
    assert_eq!(ground.session("mapped").origin(), Some(echo.address));

    // Half-close by the client: the answer comes after its end was seen.
    let late = Peer::start("127.0.0.1", |mut stream| {
        let mut question = String::new();
        if stream.read_to_string(&mut question).is_ok() {
            std::thread::sleep(Duration::from_millis(300));
            let _told = write!(stream, "{} bytes, late answer", question.len());
        }
    })
    .unwrap();
    assert_eq!(ground.does("late", &["end-then-read", &late.address.to_string()]), "9 bytes, late answer");
    assert_eq!(ground.session("late").word("cause"), "client-end");

    // Half-close by the server: the client still sends all it has.
    let (heard, hear) = mpsc::channel();
    let leaving = Peer::start("127.0.0.1", move |mut stream| {
        let _told = stream.write_all(b"goodbye\n").and_then(|()| stream.shutdown(Shutdown::Write));
        let _heard = heard.send(Noise::new(7).receive(&mut stream).map_err(|error| error.to_string()));
    })
    .unwrap();
    let told = ground.does("leaving", &["read-then-write", &leaving.address.to_string()]);
    assert_eq!(told, "goodbye then 300000 bytes\n");
    assert_eq!(hear.recv_timeout(PATIENCE).unwrap(), Ok(300_000));
    assert_eq!(ground.session("leaving").word("cause"), "upstream-end");

    // Resets are resets on the other side, both ways.
    let (heard, hear) = mpsc::channel();
    let victim = Peer::start("127.0.0.1", move |mut stream| {
        let mut line = String::new();
        let _read = stream.try_clone().map(|stream| BufReader::new(stream).read_line(&mut line));
        let _told = stream.write_all(b"echo: hello\n");
        let _heard = heard.send(how_it_ended(&mut stream, PATIENCE));
    })
    .unwrap();
    ground.does("reset", &["reset", &victim.address.to_string()]);
    assert_eq!(hear.recv_timeout(PATIENCE).unwrap(), "reset after 0");
    assert_eq!(ground.session("reset").word("cause"), "client-reset");
    let rude = Peer::start("127.0.0.1", |mut stream| {
        let _read = stream.read(&mut [0; 16]);
        let _reset = reset(stream);
    })
    .unwrap();
    assert_eq!(ground.does("rude", &["await-end", &rude.address.to_string()]), "reset after 0\n");
    assert_eq!(ground.session("rude").word("cause"), "upstream-reset");
    ground.site.rearm().unwrap();

    // An answer before the request has ended.
    let hasty = Peer::start("127.0.0.1", |mut stream| {
        let _told = stream.write_all(b"I know already, ");
        let all = Noise::new(3_000_000).receive(&mut stream).map_err(|error| error.to_string());
        let _told = write!(stream, "{all:?}");
    })
    .unwrap();
    assert_eq!(
        ground.does("hasty", &["upload", &hasty.address.to_string(), "3000000"]),
        "I know already, Ok(3000000)"
    );

    // A client that sends nothing is connected all the same, and its end reaches the server.
    let (heard, hear) = mpsc::channel();
    let patient = Peer::start("127.0.0.1", move |mut stream| {
        let _heard = heard.send(how_it_ended(&mut stream, PATIENCE));
    })
    .unwrap();
    let mut silent =
        Dialogue::start(&mut ground.client("silent", &["silent", &patient.address.to_string()])).unwrap();
    assert_eq!(silent.hear().unwrap(), "connected");
    assert!(hear.recv_timeout(Duration::from_millis(300)).is_err(), "nothing has ended yet");
    assert!(silent.end().unwrap().success());
    assert_eq!(hear.recv_timeout(PATIENCE).unwrap(), "end after 0");
    assert_eq!(ground.session("silent").origin(), Some(patient.address));
}

#[test]
fn children_threads_and_leaderless_processes_stay_in_their_run_and_a_neighbour_does_not_enter_it() {
    let ground = Ground::new("");
    let echo = Echo::start(FAR).unwrap();
    let address = echo.address.to_string();
    let told = ground.does("family", &["family", &address]);
    // The orphan speaks when it likes.
    let mut lines: Vec<_> = told.lines().map(|line| line.rsplit(' ').next().unwrap().to_owned()).collect();
    lines.sort();
    let run = ground.collector.settled("family", 3).unwrap();
    let sessions = ground.collector.sessions(&run).unwrap();
    assert_eq!(sessions.len(), 3, "{told:?} {sessions:?}");
    assert!(sessions.iter().all(|session| session.origin() == Some(echo.address)), "{sessions:?}");
    assert!(lines.contains(&"thread".to_owned()) && lines.contains(&"leaderless".to_owned()), "{told:?}");

    // A process outside the scope: direct, with its own address at the server, and in no record.
    let (heard, hear) = mpsc::channel();
    let server = Peer::start(FAR, move |mut stream| {
        let from = stream.peer_addr();
        let mut line = String::new();
        let _read = stream.try_clone().map(|stream| BufReader::new(stream).read_line(&mut line));
        let _told = stream.write_all(b"echo: hello\n");
        let _heard = heard.send(from.map_err(|error| error.to_string()));
    })
    .unwrap();
    let runs = ground.collector.runs().unwrap().len();
    let mut stream = TcpStream::connect(server.address).unwrap();
    let own = stream.local_addr().unwrap();
    assert_eq!(stream.peer_addr().unwrap(), server.address);
    stream.write_all(b"hello\n").unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    assert_eq!(answer, "echo: hello\n");
    assert_eq!(hear.recv_timeout(PATIENCE).unwrap(), Ok(own));
    assert_eq!(ground.collector.runs().unwrap().len(), runs);
}

#[test]
fn what_cannot_be_reached_is_refused_and_recorded() {
    let ground = Ground::new("");
    let mut probe = Dialogue::start(&mut ground.client("unreachable", &["probe"])).unwrap();
    let closed = |ip: &str| -> SocketAddr {
        let listener = std::net::TcpListener::bind((ip, 0)).unwrap();
        listener.local_addr().unwrap()
    };
    // On loopback connect() itself says so, and there is no session.
    let refused = probe.ask(closed("127.0.0.1")).unwrap();
    assert!(refused.contains("refused"), "{refused}");
    let refused = probe.ask(closed("::1")).unwrap();
    assert!(refused.contains("refused"), "{refused}");
    // Without a route connect() says what it says to a neighbour.
    let nowhere: SocketAddr = "198.19.0.1:5432".parse().unwrap();
    let directly = TcpStream::connect(nowhere).unwrap_err().to_string();
    let told = probe.ask(nowhere).unwrap();
    assert!(told.contains(&directly), "{told}; a neighbour: {directly}");
    // A port that nobody listens on elsewhere is a reset after connect(), and a session.
    let port = closed(FAR);
    let told = probe.ask(port).unwrap();
    assert!(told.starts_with("failed") && told.contains("reset"), "{told}");
    let told = probe.ask("198.18.2.9:5432").unwrap();
    assert!(told.starts_with("failed"), "{told}");
    assert!(probe.end().unwrap().success());
    let run = ground.collector.settled("unreachable", 1).unwrap();
    let sessions = ground.collector.sessions(&run).unwrap();
    assert_eq!(sessions[0].origin(), Some(port));
    assert_eq!(sessions[0].word("cause"), "upstream-refused");
    assert!(sessions.iter().all(|session| session.word("coverage") == "refused"), "{sessions:?}");
    assert!(ground.collector.verify(&[&run.id]).unwrap().holds());
}

#[test]
fn a_rule_governs_what_is_in_its_cgroup_and_what_no_rule_names_passes_untouched() {
    let rules = |site: &Site| {
        let cgroup = site.cgroup_path("scope/ci");
        format!("[[select]]\nname = \"ci\"\ncgroup = \"{cgroup}\"\nlabels = {{ story = \"selected\" }}\n")
    };
    let ground = Ground::with(rules);
    let echo = Echo::start(FAR).unwrap();
    let address = echo.address.to_string();
    let told = format!("{address} echo: hello\n");
    let in_cgroup = |name: &str| {
        let cgroup = ground.site.cgroup().join("scope").join(name);
        std::fs::create_dir_all(&cgroup).unwrap();
        let mut enter = Command::new("sh");
        enter.args(["-c", r#"echo $$ > "$0/cgroup.procs" && exec "$@""#]).arg(cgroup);
        enter.arg(program("weir-test-client").unwrap()).args(["talk", &address]);
        run(&mut enter).unwrap()
    };
    assert_eq!(in_cgroup("ci/job-1"), told);
    assert_eq!(in_cgroup("ci"), told);
    assert_eq!(in_cgroup("other"), told);
    let run = ground.collector.settled("selected", 2).unwrap();
    assert_eq!(run.json["initiator"], "select:ci");
    let sessions = ground.collector.sessions(&run).unwrap();
    assert_eq!(sessions.len(), 2, "{sessions:?}");
    assert!(sessions.iter().all(|session| session.origin() == Some(echo.address)), "{sessions:?}");
    assert_eq!(ground.collector.runs().unwrap().len(), 1);
    assert!(ground.agent.metrics().unwrap().contains("weir_agent_untouched_total 1"));
}

#[test]
fn rules_about_executables_and_users_govern_what_fits_and_all_it_starts() {
    let client = program("weir-test-client").unwrap();
    let rules = format!(
        "[[select]]\nname = 'nobody'\nusers = [4242]\nexecutables = ['/**']\n\
         [[select]]\nname = 'client'\nusers = ['root']\nexecutables = ['{}']\nlabels = {{ story = 'executable' }}\n",
        client.display()
    );
    let ground = Ground::with(|_| rules);
    let echo = Echo::start(FAR).unwrap();
    let address = echo.address.to_string();
    let scope = ground.site.cgroup().join("scope");
    let mut enter = Command::new("sh");
    enter.args(["-c", r#"echo $$ > "$0/cgroup.procs" && exec "$@""#]).arg(&scope).arg(&client);
    assert_eq!(run(enter.args(["talk", &address])).unwrap(), format!("{address} echo: hello\n"));
    // Another executable, and it waits to be looked at.
    let mut enter = Command::new("bash");
    let (ip, port) = (echo.address.ip(), echo.address.port());
    let script = format!(
        r#"echo $$ > "$0/cgroup.procs"; exec 3<>/dev/tcp/{ip}/{port}; echo hi >&3; read -u 3 told; echo $told"#
    );
    assert_eq!(run(enter.args(["-c", &script]).arg(&scope)).unwrap(), "echo: hi\n");
    assert!(ground.agent.metrics().unwrap().contains("weir_agent_untouched_total 1"));
    let recorded = ground.collector.settled("executable", 1).unwrap();
    assert_eq!(recorded.json["initiator"], "select:client");
    let sessions = ground.collector.sessions(&recorded).unwrap();
    assert_eq!(sessions[0].origin(), Some(echo.address));
    let process = &sessions[0].json["process"];
    assert_eq!(process["executable"], client.display().to_string());
    let digest = run(Command::new("sha256sum").arg(&client)).unwrap();
    let digest = digest.split(' ').next().unwrap();
    assert_eq!(process["executable_sha256"], digest);
    assert_eq!(recorded.json["principal"]["subject"], format!("uid:0 sha256:{digest}"));
}

#[test]
fn a_stopping_agent_lets_open_sessions_go_on_for_a_while_and_the_next_one_takes_over() {
    let mut ground = Ground::new("");
    let echo = Echo::start(FAR).unwrap();
    let address = echo.address.to_string();
    // Each of them holds one connection open and speaks on it when told.
    let talker = |story: &str| {
        let script = format!(
            "exec 3<>/dev/tcp/{}/{}; while read word; do echo $word >&3; read -r answer <&3 || answer=gone; echo $answer; done",
            FAR,
            echo.address.port()
        );
        let label = format!("story={story}");
        Dialogue::start(&mut ground.agent.exec(&[&label], &["bash", "-c", &script]).unwrap()).unwrap()
    };
    let (mut patient, mut stubborn) = (talker("patient"), talker("stubborn"));
    assert_eq!(patient.ask("one").unwrap(), "echo: one");
    assert_eq!(stubborn.ask("one").unwrap(), "echo: one");
    let mut probe = Dialogue::start(&mut ground.client("probe", &["probe"])).unwrap();
    assert_eq!(probe.ask(&address).unwrap(), "ok echo: probe");

    let pid = nix::unistd::Pid::from_raw(ground.agent.pid().unwrap().cast_signed());
    nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
    eventually("new connections are refused", || Ok(probe.ask(&address)?.contains("refused").then_some(())))
        .unwrap();
    assert_eq!(
        patient.ask("two").unwrap(),
        "echo: two",
        "an open session goes on while the node agent drains"
    );
    assert!(patient.end().unwrap().success());
    // The other one stays until the drain is over, and is closed.
    ground.agent.stop(Signal::SIGTERM).unwrap();
    assert_eq!(stubborn.ask("two").unwrap(), "gone");
    assert!(probe.ask(&address).unwrap().contains("refused"), "the hooks stay");
    stubborn.kill().unwrap();
    ground.site.rearm().unwrap();

    ground.agent.resume().unwrap();
    assert_eq!(probe.ask(&address).unwrap(), "ok echo: probe", "the run lives on over a restart");
    assert!(probe.end().unwrap().success());
    for (story, cause) in [("patient", "client-end"), ("stubborn", "drained")] {
        let session = ground.session(story);
        assert_eq!((session.word("cause"), session.json["gaps"].as_u64()), (cause, Some(0)), "{session:?}");
    }
}

/// Processes and short connections of each.
const PROCESSES: usize = 4;
const CONNECTIONS: usize = 500;

#[test]
fn of_two_thousand_short_connections_each_is_recorded_with_its_own_origin() {
    let mut ground = Ground::new("");
    let echoes: Vec<_> =
        ["127.0.0.1", "::1", FAR, "127.0.0.2"].iter().map(|ip| Echo::start(ip).unwrap()).collect();
    let addresses: Vec<_> = echoes.iter().map(|echo| echo.address.to_string()).collect();
    let count = CONNECTIONS.to_string();
    let mut clients = Vec::new();
    for process in 0..PROCESSES {
        // Each begins elsewhere, so that the resets (every fourth) hit every destination.
        let mut arguments = vec!["many", "--count", &count];
        arguments.extend((0..3).map(|turn| addresses[(process + turn) % addresses.len()].as_str()));
        let mut client = Dialogue::start(&mut ground.client(&format!("many-{process}"), &arguments)).unwrap();
        clients.push((process, client.pid(), move || -> anyhow::Result<_> {
            let told = client.hear()?;
            Ok((told, client.end()?))
        }));
    }
    let mut pids = Vec::new();
    for (process, pid, finish) in clients {
        let (told, status) = finish().unwrap();
        assert!(status.success(), "process {process}: {told}");
        assert_eq!(told, count);
        pids.push(pid);
    }
    ground.site.rearm().unwrap();
    for (process, pid) in pids.iter().enumerate() {
        let run = ground.collector.settled(&format!("many-{process}"), CONNECTIONS as u64).unwrap();
        let sessions = ground.collector.sessions(&run).unwrap();
        assert_eq!(sessions.len(), CONNECTIONS);
        assert!(sessions.iter().all(|session| session.pid() == u64::from(*pid)));
        let mut got: BTreeMap<SocketAddr, usize> = BTreeMap::new();
        for session in &sessions {
            *got.entry(session.origin().unwrap()).or_default() += 1;
        }
        let mut wanted: BTreeMap<SocketAddr, usize> = BTreeMap::new();
        for number in 0..CONNECTIONS {
            *wanted.entry(echoes[(process + number % 3) % echoes.len()].address).or_default() += 1;
        }
        assert_eq!(got, wanted);
        assert!(ground.collector.verify(&[&run.id]).unwrap().holds());
    }
    let node = ground.collector.node().unwrap();
    let verified = ground.collector.verify(&["--node", &node]).unwrap();
    assert!(verified.holds(), "{verified:?}");
}

/// Far more than all buffers on the way.
const LARGE_BYTES: u64 = 200 << 20;
/// What back-pressure must leave of [`LARGE_BYTES`] at the server: sockets and the agent's own buffers.
const BUFFERED_BYTES_MAX: u64 = 48 << 20;
/// How much the node agent may grow while clients do not read: its journal is mapped and comes on top.
const GROWTH_BYTES_MAX: u64 = 96 << 20;

#[test]
fn large_transfers_arrive_bit_for_bit_and_a_client_that_never_reads_costs_no_memory() {
    let mut ground = Ground::new("");
    let up = Peer::start(FAR, |mut stream| {
        let all = Noise::new(LARGE_BYTES).receive(&mut stream).map_err(|error| error.to_string());
        let _told = write!(stream, "{all:?}");
    })
    .unwrap();
    let down = Peer::start(FAR, |mut stream| {
        let mut line = String::new();
        let _read = stream.try_clone().map(|stream| BufReader::new(stream).read_line(&mut line));
        let bytes = line.trim().parse().unwrap_or(0);
        let _sent = Noise::new(bytes).send(&mut stream, bytes);
    })
    .unwrap();
    let bytes = LARGE_BYTES.to_string();
    assert_eq!(ground.does("up", &["upload", &up.address.to_string(), &bytes]), format!("Ok({LARGE_BYTES})"));
    ground.site.rearm().unwrap();
    assert_eq!(
        ground.does("down", &["download", &down.address.to_string(), &bytes]),
        format!("{LARGE_BYTES}\n")
    );
    ground.site.rearm().unwrap();
    for story in ["up", "down"] {
        let session = ground.session(story);
        let moved = session.json["request_bytes"].as_u64().unwrap()
            + session.json["response_bytes"].as_u64().unwrap();
        assert!((LARGE_BYTES..LARGE_BYTES + 64).contains(&moved), "{session:?}");
    }

    let poured = Arc::new(AtomicU64::new(0));
    let count = poured.clone();
    let fountain = Peer::start(FAR, move |mut stream| {
        let _read = stream.read(&mut [0; 16]);
        let block = [b'x'; 64 * 1024];
        for _ in 0..LARGE_BYTES / block.len() as u64 {
            if stream.write_all(&block).is_err() {
                return;
            }
            count.fetch_add(block.len() as u64, Ordering::Relaxed);
        }
    })
    .unwrap();
    let before = resident_bytes(ground.agent.pid().unwrap()).unwrap();
    let address = fountain.address.to_string();
    let mut stubborn: Vec<_> = (0..4)
        .map(|_| Dialogue::start(&mut ground.client("stubborn", &["never-reads", &address])).unwrap())
        .collect();
    for client in &mut stubborn {
        assert_eq!(client.hear().unwrap(), "connected");
    }
    let mut last = u64::MAX;
    eventually("the fountain stands still", || {
        std::thread::sleep(Duration::from_secs(1));
        let now = poured.load(Ordering::Relaxed);
        Ok((now > 0 && std::mem::replace(&mut last, now) == now).then_some(()))
    })
    .unwrap();
    let poured = poured.load(Ordering::Relaxed);
    assert!(poured < 4 * BUFFERED_BYTES_MAX, "no back-pressure: {poured} bytes were taken from the server");
    let grown = resident_bytes(ground.agent.pid().unwrap()).unwrap().saturating_sub(before);
    assert!(grown < GROWTH_BYTES_MAX, "the node agent grew by {grown} bytes");
    for client in stubborn {
        assert!(client.end().unwrap().success());
    }
}

/// Rows of [`ROW_BYTES`] that go in and out by COPY.
const ROWS: u64 = 200_000;
const ROW_BYTES: u64 = 1000;

#[test]
fn a_copy_of_two_hundred_megabytes_is_whole_both_ways() {
    let mut ground = Ground::new("");
    let postgres = Postgres::start(&ground.site, "postgres").unwrap();
    postgres.sql("CREATE UNLOGGED TABLE bulk (line text)").unwrap();
    let file = ground.site.path().join("bulk.tsv");
    let mut writer = std::io::BufWriter::new(std::fs::File::create(&file).unwrap());
    let mut noise = Noise::new(1);
    for _ in 0..ROWS {
        let line: String =
            (0..ROW_BYTES - 1).map(|_| char::from(b'a' + u8::try_from(noise.below(26)).unwrap())).collect();
        writeln!(writer, "{line}").unwrap();
    }
    writer.flush().unwrap();
    let copy = |story: &str, sql: String| {
        let label = format!("story={story}");
        let mut psql =
            ground.agent.exec(&[&label], &["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", &sql]).unwrap();
        run(psql.envs(postgres.environment())).unwrap();
    };
    copy("in", format!("\\copy bulk FROM '{}'", file.display()));
    let back = ground.site.path().join("back.tsv");
    copy("out", format!("\\copy bulk TO '{}'", back.display()));
    ground.site.rearm().unwrap();
    run(Command::new("cmp").arg(&file).arg(&back)).unwrap();
    for story in ["in", "out"] {
        let run = ground.collector.settled(story, 1).unwrap();
        let exchanges = ground.collector.exchanges(&run).unwrap();
        let copy = exchanges.iter().find(|exchange| exchange.text().starts_with("COPY")).unwrap();
        assert_eq!(copy.rows(), ROWS, "{copy:?}");
        assert!(ground.collector.verify(&[&run.id]).unwrap().holds());
    }
}
