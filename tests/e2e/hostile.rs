//! Peers that lie, disks that fill or rot, collectors that are not there or talk nonsense: an error or a record each,
//! nothing lost, memory bounded.

#![expect(clippy::unwrap_used, reason = "a story that cannot go on has failed")]

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use weir_tests::peer::{Noise, how_it_ended};
use weir_tests::process::{Dialogue, eventually, output, program, resident_bytes, run};
use weir_tests::{Agent, Collector, Echo, Peer, Site, sealed};

const PATIENCE: Duration = Duration::from_secs(30);
/// How much a node agent may grow over hostile bytes.
const GROWTH_BYTES_MAX: u64 = 64 << 20;

fn client(agent: &Agent, story: &str, arguments: &[&str]) -> Command {
    let client = program("weir-test-client").unwrap().display().to_string();
    agent.exec(&[&format!("story={story}")], &[&[client.as_str()], arguments].concat()).unwrap()
}

fn talk(agent: &Agent, story: &str, echo: &Echo) {
    let address = echo.address.to_string();
    assert_eq!(
        run(&mut client(agent, story, &["talk", &address])).unwrap(),
        format!("{address} echo: hello\n")
    );
}

#[test]
fn a_collector_that_is_away_or_talks_nonsense_or_is_a_stranger_costs_nothing() {
    let mut site = Site::new(true).unwrap();
    let echo = Echo::start("127.0.0.1").unwrap();
    let mut collector = Collector::start(&site).unwrap();
    let mut agent = Agent::start(&site, &collector, "").unwrap();
    talk(&agent, "before", &echo);
    collector.settled("before", 1).unwrap();
    collector.stop(Signal::SIGTERM).unwrap();

    let before = resident_bytes(agent.pid().unwrap()).unwrap();
    for number in 0..10 {
        talk(&agent, &format!("away-{number}"), &echo);
    }
    eventually("the spool holds ten sessions", || Ok((agent.spooled()?.len() >= 10).then_some(()))).unwrap();

    // Something else answers in its place: noise without end, then TLS by a stranger.
    let babble = Babble::start(collector.port);
    eventually("the node agent has heard nonsense", || Ok((babble.heard() > 2).then_some(()))).unwrap();
    babble.end();
    let stranger = Stranger::new(&site);
    let server = stranger.serve(collector.port);
    talk(&agent, "stranger", &echo);
    std::thread::sleep(Duration::from_secs(3));
    drop(server);
    site.rearm().unwrap();
    assert!(agent.is_alive(), "{}", agent.log());
    let spooled = agent.spooled().unwrap().len();
    assert!(spooled >= 11, "{spooled} segments are left in the spool: a stranger was believed");
    let grown = resident_bytes(agent.pid().unwrap()).unwrap().saturating_sub(before);
    assert!(grown < GROWTH_BYTES_MAX, "the node agent grew by {grown} bytes");

    collector.resume().unwrap();
    eventually("all has arrived", || Ok(agent.spooled()?.is_empty().then_some(()))).unwrap();
    for story in (0..10).map(|number| format!("away-{number}")).chain(["stranger".to_owned()]) {
        let run = collector.settled(&story, 1).unwrap();
        assert_eq!((run.count("sessions"), run.count("gaps")), (1, 0));
        assert!(collector.verify(&[&run.id]).unwrap().holds());
    }
    let node = collector.node().unwrap();
    assert!(collector.verify(&["--node", &node]).unwrap().holds());

    // The other way round: a stranger at the collector's door, and noise.
    let told = stranger.knock(collector.port);
    assert!(told.to_lowercase().contains("alert"), "a stranger's certificate was taken: {told}");
    let mut noise = vec![0; 256 * 1024];
    Noise::new(1).fill(&mut noise);
    let mut stream = TcpStream::connect(("127.0.0.1", collector.port)).unwrap();
    let _refused = stream.write_all(&noise);
    let ended = how_it_ended(&mut stream, PATIENCE);
    assert!(ended.starts_with("end") || ended.starts_with("reset"), "{ended}");
    assert!(collector.is_alive());
}

#[test]
fn a_join_token_works_once_and_nonsense_never() {
    let site = Site::new(true).unwrap();
    let collector = Collector::start(&site).unwrap();
    let agent = Agent::configured(&site, "").unwrap();
    let token = collector.join_token().unwrap();
    let mut changed = token.clone().into_bytes();
    let middle = changed.len() - 6;
    changed[middle] = if changed[middle] == b'A' { b'B' } else { b'A' };
    for nonsense in ["", "weirjoin1-", "weirjoin1-AAAA", "hello", &String::from_utf8(changed).unwrap()] {
        assert!(agent.join(nonsense).is_err(), "{nonsense:?} was taken");
    }
    agent.join(&token).unwrap();
    // Another node with the same token.
    fs::rename(agent.state(), site.path().join("first")).unwrap();
    let refused = agent.join(&token).unwrap_err().to_string();
    assert!(refused.contains("token"), "{refused}");
    assert_eq!(collector.json(&["nodes"]).unwrap().as_array().unwrap().len(), 1);
    // Without an identity nothing runs.
    let mut run = Command::new(program("weir-agent").unwrap());
    let refused = output(run.args(["run", "--config"]).arg(agent.config())).unwrap();
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("join"), "{refused:?}");
}

/// The node agent's disk in the test of a full one; it keeps 256 MiB of it free.
const DISK: &str = "size=420m";
/// More than journal and sockets can hold.
const STALLED_BYTES: u64 = 96 << 20;

#[test]
fn on_a_full_disk_connections_wait_and_go_on_when_there_is_room_again() {
    // The mount is seen by this test alone, and goes with it.
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    let mut site = Site::new(true).unwrap();
    let echo = Echo::start("127.0.0.1").unwrap();
    let sent = Arc::new(AtomicU64::new(0));
    let count = sent.clone();
    let source = Peer::start("127.0.0.1", move |mut stream| {
        let mut byte = [0];
        while stream.read(&mut byte).is_ok_and(|read| read > 0) && byte[0] != b'\n' {}
        let mut noise = Noise::new(STALLED_BYTES);
        let mut block = vec![0; 64 * 1024];
        for _ in 0..STALLED_BYTES / block.len() as u64 {
            noise.fill(&mut block);
            if stream.write_all(&block).is_err() {
                return;
            }
            count.fetch_add(block.len() as u64, Ordering::Relaxed);
        }
    })
    .unwrap();
    let collector = Collector::start(&site).unwrap();
    let disk = Disk::mount(&site.folder("agent").unwrap().join("state"));
    let mut agent = Agent::start(&site, &collector, "journal_mib = 16\n").unwrap();
    talk(&agent, "before", &echo);

    // Begun before: on a full disk nothing new is begun, because it could not be kept over a restart.
    let address = source.address.to_string();
    let bytes = STALLED_BYTES.to_string();
    let script = r#"read go; exec "$0" "$@""#;
    let program = program("weir-test-client").unwrap().display().to_string();
    let command = ["sh", "-c", script, &program, "download", &address, &bytes];
    let mut download = Dialogue::start(&mut agent.exec(&["story=stalled"], &command).unwrap()).unwrap();
    let mut probe = Dialogue::start(&mut client(&agent, "probe", &["probe"])).unwrap();
    disk.fill();
    let refused = output(&mut agent.exec(&[], &["true"]).unwrap()).unwrap();
    assert_eq!(refused.status.code(), Some(125), "{refused:?}");
    download.say("go").unwrap();
    let mut last = u64::MAX;
    eventually("the transfer stands still", || {
        std::thread::sleep(Duration::from_secs(2));
        let now = sent.load(Ordering::Relaxed);
        Ok((now > 0 && std::mem::replace(&mut last, now) == now).then_some(()))
    })
    .unwrap();
    assert!(sent.load(Ordering::Relaxed) < STALLED_BYTES, "what could not be recorded was forwarded");
    assert!(agent.is_alive(), "{}", agent.log());
    // The journal takes a few small sessions more; then a new connection waits and is refused, or one that was still
    // opened stands still.
    let refused = (0..1000).map(|_| probe.ask(echo.address).unwrap()).find(|told| told.starts_with("failed"));
    let waited = |told: &String| told.contains("reset") || told.contains("temporarily unavailable");
    assert!(refused.as_ref().is_some_and(waited), "{refused:?}");
    disk.free();
    assert_eq!(download.hear().unwrap(), bytes, "after there was room again");
    assert!(download.end().unwrap().success());
    site.rearm().unwrap();
    let run = collector.settled("stalled", 1).unwrap();
    let session = &collector.sessions(&run).unwrap()[0];
    assert_eq!(session.json["response_bytes"], STALLED_BYTES);
    assert_eq!(run.count("gaps"), 0);
    assert!(collector.verify(&[&run.id]).unwrap().holds());

    assert_eq!(probe.ask(echo.address).unwrap(), "ok echo: probe");
    assert!(probe.end().unwrap().success());
    site.rearm().unwrap();

    // Not a byte is free: it can be killed and started again, and goes on when there is room.
    disk.fill();
    agent.stop(Signal::SIGKILL).unwrap();
    agent.spawn().unwrap();
    std::thread::sleep(Duration::from_secs(2));
    disk.free();
    if !agent.is_alive() {
        agent.spawn().unwrap();
    }
    agent.wait_ready().unwrap();
    talk(&agent, "after", &echo);
    let run = collector.settled("after", 1).unwrap();
    assert!(collector.verify(&[&run.id]).unwrap().holds());
    let node = collector.node().unwrap();
    let verified = eventually("the node log has arrived", || {
        let verified = collector.verify(&["--node", &node])?;
        Ok(verified.holds().then_some(verified))
    });
    assert!(verified.is_ok(), "{:?}", collector.verify(&["--node", &node]));
    drop(agent);
    drop(disk);
}

#[test]
fn a_torn_journal_and_a_rotten_spool_are_named_and_do_not_stop_it() {
    let mut site = Site::new(true).unwrap();
    let echo = Echo::start("127.0.0.1").unwrap();
    let mut collector = Collector::start(&site).unwrap();
    let mut agent = Agent::start(&site, &collector, "").unwrap();
    talk(&agent, "before", &echo);
    collector.settled("before", 1).unwrap();
    eventually("the spool is empty", || Ok(agent.spooled()?.is_empty().then_some(()))).unwrap();
    collector.stop(Signal::SIGTERM).unwrap();
    talk(&agent, "rotten", &echo);
    let rotten = eventually("a session is spooled", || {
        for file in agent.spooled()? {
            let segment = sealed::spooled(&file)?;
            if segment.draft().last {
                return Ok(Some((file, segment)));
            }
        }
        Ok(None)
    })
    .unwrap();
    talk(&agent, "sound", &echo);
    let mut open = Dialogue::start(&mut client(&agent, "open", &["probe"])).unwrap();
    assert_eq!(open.ask(echo.address).unwrap(), "ok echo: probe");
    agent.stop(Signal::SIGKILL).unwrap();
    assert!(open.end().unwrap().success());
    let (file, segment) = rotten;
    flip(&file, segment.bytes().len() as u64 / 2);
    // The journal's last record is cut in the middle: everything from there on is noise.
    for journal in sealed::files(&agent.state().join("journal")).unwrap() {
        tear(&journal);
    }
    site.rearm().unwrap();

    agent.resume().unwrap();
    talk(&agent, "after", &echo);
    collector.resume().unwrap();
    for story in ["sound", "after"] {
        let run = collector.settled(story, 1).unwrap();
        assert!(collector.verify(&[&run.id]).unwrap().holds(), "{story}");
    }
    let quarantined = sealed::files(&agent.state().join("spool").join("quarantine")).unwrap();
    assert_eq!(quarantined.len(), 1, "{}", agent.log());
    let node = collector.node().unwrap();
    let session = segment.session().to_string();
    let verified = eventually("the loss is known", || {
        let verified = collector.verify(&["--node", &node])?;
        Ok(verified.said.contains(&session).then_some(verified))
    })
    .unwrap();
    assert_eq!(verified.code, Some(1), "{verified:?}");
}

fn flip(file: &Path, at: u64) {
    let mut bytes = fs::read(file).unwrap();
    bytes[usize::try_from(at).unwrap()] ^= 0x40;
    fs::write(file, bytes).unwrap();
}

/// Writes noise from the middle of the last bytes that are not zero.
fn tear(journal: &Path) {
    let mut bytes = fs::read(journal).unwrap();
    let Some(end) = bytes.iter().rposition(|byte| *byte != 0) else { return };
    let mut noise = vec![0; 4096.min(bytes.len() - end)];
    Noise::new(3).fill(&mut noise);
    let from = end.saturating_sub(3);
    let to = (from + noise.len()).min(bytes.len());
    bytes[from..to].copy_from_slice(&noise[..to - from]);
    fs::write(journal, bytes).unwrap();
}

/// AuthenticationOk, ReadyForQuery.
const READY: &[u8] = b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";
/// StartupMessage 3.0 of user `weir`.
const STARTUP: &[u8] = b"\0\0\0\x13\0\x03\0\0user\0weir\0\0";
/// What a hostile peer declares: a length of 0, of 3, of 2^31, of 1 GiB; an unknown tag; a length cut short.
const LIES: [&[u8]; 6] = [
    b"Q\0\0\0\0",
    b"Q\0\0\0\x03",
    b"Q\x80\0\0\0SELECT 1",
    b"Q\x40\0\0\0SELECT 1",
    b"\xff\0\0\0\x08abcd",
    b"Q\0\0",
];

#[test]
fn bytes_that_lie_on_either_side_are_survived_and_recorded() {
    let mut site = Site::new(true).unwrap();
    let echo = Echo::start("127.0.0.1").unwrap();
    // A server that is as the client wants it: ready, then whatever the port says.
    let reached = Arc::new(AtomicU64::new(0));
    let count = reached.clone();
    let sink = Peer::start("127.0.0.1", move |mut stream| {
        if stream.read_exact(&mut [0; STARTUP.len()]).is_err() || stream.write_all(READY).is_err() {
            return;
        }
        let mut block = [0; 4096];
        while let Ok(read @ 1..) = stream.read(&mut block) {
            count.fetch_add(read as u64, Ordering::Relaxed);
        }
    })
    .unwrap();
    let liars: Vec<_> = LIES
        .iter()
        .map(|lie| liar(&[READY, lie].concat()))
        .chain([liar_of_noise(2), liar_of_noise(3)])
        .collect();
    let rules =
        format!("[[target]]\nname = \"guarded\"\nports = [{}]\naccess = \"guarded\"\n", sink.address.port());
    let collector = Collector::start(&site).unwrap();
    let mut agent = Agent::start(&site, &collector, &rules).unwrap();
    talk(&agent, "before", &echo);
    let before = resident_bytes(agent.pid().unwrap()).unwrap();
    let mut said = 0;

    // From the client, to a guarded target: framing that lies does not reach the server.
    let address = sink.address.to_string();
    for lie in LIES {
        let told =
            run(&mut client(&agent, "client", &["send", &address, &hex(&[STARTUP, lie].concat())])).unwrap();
        assert!(told.starts_with("end") || told.starts_with("reset"), "{lie:?}: {told}");
        said += 1;
    }
    for lie in [
        &b"\0\0\0\0"[..],
        b"\x7f\xff\xff\xff\0\x03\0\0",
        b"\0\0\0\x08\x04\xd2\x16\x2f",
        b"\0\0\0\x08\x04\xd2",
        b"\0",
    ] {
        let told = run(&mut client(&agent, "client", &["send", &address, &hex(lie)])).unwrap();
        assert!(!told.is_empty());
        said += 1;
    }
    for seed in 0..4 {
        run(&mut client(&agent, "noise", &["send-noise", &address, &seed.to_string(), "200000"])).unwrap();
    }
    let reached = reached.load(Ordering::Relaxed);
    assert!(reached < 64, "{reached} bytes that lie reached a guarded server");
    site.rearm().unwrap();

    // From the server.
    for liar in &liars {
        let address = liar.address.to_string();
        let told = run(&mut client(&agent, "server", &["send", &address, &hex(STARTUP)])).unwrap();
        assert!(told.starts_with("end") || told.starts_with("reset"), "{told}");
    }

    assert!(agent.is_alive(), "{}", agent.log());
    assert!(!agent.log().contains("panicked"), "{}", agent.log());
    let grown = resident_bytes(agent.pid().unwrap()).unwrap().saturating_sub(before);
    assert!(grown < GROWTH_BYTES_MAX, "the node agent grew by {grown} bytes");
    talk(&agent, "after", &echo);
    collector.settled("after", 1).unwrap();
    let count = |story: &str| {
        let runs = collector.runs().unwrap();
        let mine: Vec<_> = runs.into_iter().filter(|run| run.json["labels"]["story"] == story).collect();
        for run in &mine {
            assert!(collector.verify(&[&run.id]).unwrap().holds(), "{run:?}");
        }
        mine.iter().map(|run| run.count("sessions")).sum::<u64>()
    };
    site.rearm().unwrap();
    eventually("every session is there", || {
        Ok((count("client") == said && count("noise") == 4 && count("server") == liars.len() as u64)
            .then_some(()))
    })
    .unwrap();
}

/// A server that says this to whoever has spoken, and then nothing.
fn liar(words: &[u8]) -> Peer {
    let words = words.to_vec();
    Peer::start("127.0.0.1", move |mut stream| {
        let _heard = stream.read_exact(&mut [0; STARTUP.len()]);
        let _said = stream.write_all(&words).and_then(|()| stream.shutdown(std::net::Shutdown::Write));
        let _rest = how_it_ended(&mut stream, PATIENCE);
    })
    .unwrap()
}

fn liar_of_noise(seed: u64) -> Peer {
    let mut noise = vec![0; 200_000];
    Noise::new(seed).fill(&mut noise);
    liar(&[READY, &noise].concat())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_neighbour_at_the_proxys_door_is_reset_and_counted() {
    let site = Site::new(true).unwrap();
    let echo = Echo::start("127.0.0.1").unwrap();
    let collector = Collector::start(&site).unwrap();
    let agent = Agent::start(&site, &collector, "").unwrap();
    let counted = || -> u64 {
        let metrics = agent.metrics().unwrap();
        let line = metrics.lines().find(|line| line.starts_with("weir_agent_without_origin_total"));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_else(|| panic!("{metrics}"))
    };
    let before = counted();
    let listening = run(Command::new("ss").args(["-Hltnp"])).unwrap();
    let mine = format!("pid={},", agent.pid().unwrap());
    let doors: Vec<std::net::SocketAddr> = listening
        .lines()
        .filter(|line| line.contains(&mine))
        .filter_map(|line| line.split_whitespace().nth(3)?.parse().ok())
        .collect();
    assert!(doors.len() >= 2, "{listening}");
    let mut resets = 0;
    for door in &doors {
        let mut stream = TcpStream::connect(door).unwrap();
        let said = stream.write_all(b"\0\0\0\x08\x04\xd2\x16\x2f");
        let ended = how_it_ended(&mut stream, PATIENCE);
        // The reset may come before or after the words.
        if ended.starts_with("reset") || said.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset) {
            resets += 1;
        }
    }
    assert!(resets >= 2, "{doors:?}");
    assert_eq!(counted() - before, resets);
    // A governed process that finds the door is let alone by the hooks, and is reset just the same.
    let told = run(&mut client(&agent, "door", &["send", &doors[0].to_string(), "00"])).unwrap();
    assert!(told.starts_with("reset") || told.starts_with("end"), "{told}");
    talk(&agent, "after", &echo);
}

/// Answers noise to everybody on the collector's port.
struct Babble {
    done: Arc<AtomicU64>,
    heard: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<()>,
}

impl Babble {
    fn start(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (done, heard) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (until, count) = (done.clone(), heard.clone());
        let thread = std::thread::spawn(move || {
            while until.load(Ordering::Relaxed) == 0 {
                let Ok((mut stream, _)) = listener.accept() else {
                    std::thread::sleep(Duration::from_millis(20));
                    continue;
                };
                let seed = count.fetch_add(1, Ordering::Relaxed);
                let mut noise = vec![0; 100_000];
                Noise::new(seed).fill(&mut noise);
                // Once noise, once what looks like TLS, once another protocol.
                let head: &[u8] =
                    [&b""[..], b"\x16\x03\x03\x40\x00", b"HTTP/1.1 200 OK\r\n\r\n"][(seed % 3) as usize];
                let _said = stream.write_all(head).and_then(|()| stream.write_all(&noise));
            }
        });
        Self { done, heard, thread }
    }

    fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }

    fn end(self) {
        self.done.store(1, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

/// Somebody with a certificate of his own making.
struct Stranger {
    key: PathBuf,
    certificate: PathBuf,
}

struct Openssl(Child);

impl Drop for Openssl {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}

impl Stranger {
    fn new(site: &Site) -> Self {
        let (key, certificate) = (site.path().join("stranger.key"), site.path().join("stranger.pem"));
        run(Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "1",
            ])
            .args(["-subj", "/CN=weir-collector", "-addext", "subjectAltName=DNS:weir-collector", "-keyout"])
            .arg(&key)
            .arg("-out")
            .arg(&certificate))
        .unwrap();
        Self { key, certificate }
    }

    fn openssl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(arguments[0]);
        command
            .args(&arguments[1..])
            .arg("-cert")
            .arg(&self.certificate)
            .arg("-key")
            .arg(&self.key)
            .args(["-alpn", "h2"]);
        command
    }

    fn serve(&self, port: u16) -> Openssl {
        let port = format!("127.0.0.1:{port}");
        let mut serve = self.openssl(&["openssl", "s_server", "-quiet", "-accept", &port]);
        Openssl(serve.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    /// What is told to him at the collector's door.
    fn knock(&self, port: u16) -> String {
        let port = format!("127.0.0.1:{port}");
        let mut knock = self.openssl(&[
            "timeout",
            "20",
            "openssl",
            "s_client",
            "-connect",
            &port,
            "-servername",
            "weir-collector",
            "-ign_eof",
        ]);
        let mut child =
            knock.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // The preface of HTTP/2, so that the server looks at him.
        if let Some(input) = child.stdin.as_mut() {
            let _said = input.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
        }
        let told = child.wait_with_output().unwrap();
        format!("{}{}", String::from_utf8_lossy(&told.stdout), String::from_utf8_lossy(&told.stderr))
    }
}

/// A small disk of the test's own.
struct Disk {
    place: PathBuf,
}

impl Disk {
    fn mount(place: &Path) -> Self {
        fs::create_dir_all(place).unwrap();
        mount(Some("weir-test"), place, Some("tmpfs"), MsFlags::empty(), Some(DISK)).unwrap();
        Self { place: place.to_owned() }
    }

    /// To the last byte.
    fn fill(&self) {
        let mut ballast = fs::File::create(self.place.join("ballast")).unwrap();
        let block = vec![1; 1 << 20];
        while ballast.write_all(&block).is_ok() {}
        while ballast.write_all(&block[..4096]).is_ok() {}
    }

    fn free(&self) {
        fs::remove_file(self.place.join("ballast")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = nix::mount::umount2(&self.place, nix::mount::MntFlags::MNT_DETACH) {
            eprintln!("the test's disk stays mounted, in a mount namespace that ends with the test: {error}");
        }
    }
}
