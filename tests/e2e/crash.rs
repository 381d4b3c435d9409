//! `kill -9` of the node agent and of the collector, again and again, under load: nothing that a server executed is missing
//! from the recording, and nobody has to lend a hand.

#![expect(clippy::unwrap_used, reason = "a story that cannot go on has failed")]

use std::collections::{HashMap, HashSet};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use weir_tests::peer::Noise;
use weir_tests::process::{Dialogue, program};
use weir_tests::recorded::Exchange;
use weir_tests::sealed::{self, Sightings};
use weir_tests::{Agent, Collector, Echo, Postgres, Site};

const KILLS: usize = 50;
/// For all that the spool holds to arrive after the last kill.
const SETTLING: Duration = Duration::from_secs(120);

/// One connection for each statement.
const PGBENCH: &str = r#"
echo started
while [ ! -e "$STOP" ]; do
    pgbench -n -C -c 2 -T 5 -R 25 -f "$TAG" >/dev/null 2>&1
    sleep 0.1
done"#;

/// Long sessions of many statements, simple and prepared; of many segments each.
const SESSIONS: &str = r#"
echo started
while [ ! -e "$STOP" ]; do
    pgbench -n -M prepared -c 1 -T 3 -R 20 -f "$TAG" >/dev/null 2>&1 &
    while [ ! -e "$STOP" ]; do
        echo "SELECT 'by psql' AS who, $RANDOM$RANDOM$RANDOM AS tag, repeat('w', 30000) AS much;"
        sleep 0.03
    done | psql -X -q >/dev/null 2>&1
    wait
    sleep 0.1
done"#;

struct Ground {
    agent: Agent,
    collector: Collector,
    postgres: Postgres,
    echo: Echo,
    site: Site,
    stop: PathBuf,
}

#[test]
fn over_fifty_kills_nothing_is_lost_and_nothing_is_there_twice() {
    let site = Site::new(true).unwrap();
    let postgres = Postgres::start(&site, "postgres").unwrap();
    let echo = Echo::start("127.0.0.1").unwrap();
    let collector = Collector::start(&site).unwrap();
    let agent = Agent::start(&site, &collector, "").unwrap();
    let stop = site.path().join("stop");
    let mut ground = Ground { agent, collector, postgres, echo, site, stop };

    let load = ground.load();
    let mut probe = Dialogue::start(&mut ground.client("probe", &["probe"])).unwrap();
    assert_eq!(probe.ask(ground.echo.address).unwrap(), "ok echo: probe");
    let witness = Witness::start(&ground.agent.state());
    let neighbour = Neighbour::start(&ground.echo);
    ground.kill_at_random(&mut probe);

    std::fs::write(&ground.stop, "").unwrap();
    for worker in load {
        ground.site.rearm().unwrap();
        assert!(worker.end().unwrap().success());
    }
    assert!(probe.end().unwrap().success());
    let (connected, failed) = neighbour.end();
    assert!(connected > 100 && failed == 0, "a neighbour had {failed} failures in {connected} connections");
    ground.wait_until_settled();
    let seen = witness.end();

    ground.every_run_verifies();
    ground.site.rearm().unwrap();
    ground.the_servers_log_is_in_the_recording();
    ground.site.rearm().unwrap();
    ground.every_segment_is_there_once(seen);
}

impl Ground {
    fn client(&self, story: &str, arguments: &[&str]) -> Command {
        let client = program("weir-test-client").unwrap().display().to_string();
        self.agent.exec(&[&format!("story={story}")], &[&[client.as_str()], arguments].concat()).unwrap()
    }

    fn load(&self) -> Vec<Dialogue> {
        let tag = self.site.path().join("tag.sql");
        std::fs::write(&tag, "\\set n random(1, 1000000000000)\nSELECT :client_id AS client, :n AS tag;\n")
            .unwrap();
        let mut workers = Vec::new();
        for (story, script) in [("pgbench", PGBENCH), ("sessions", SESSIONS)] {
            let mut work = self.agent.exec(&[&format!("story={story}")], &["bash", "-c", script]).unwrap();
            work.envs(self.postgres.environment())
                .env("STOP", &self.stop)
                .env("TAG", &tag)
                .env("PGAPPNAME", "crash");
            workers.push(Dialogue::start(&mut work).unwrap());
        }
        let (address, stop) = (self.echo.address.to_string(), self.stop.display().to_string());
        workers
            .push(Dialogue::start(&mut self.client("reconnect", &["reconnect", &address, &stop])).unwrap());
        // A run that has begun lives on; one that is beginning while the node agent dies is not started.
        for worker in &mut workers {
            assert_eq!(worker.hear().unwrap(), "started");
        }
        workers
    }

    fn kill_at_random(&mut self, probe: &mut Dialogue) {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos();
        let seed =
            std::env::var("WEIR_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(u64::from(now));
        eprintln!("WEIR_SEED={seed}");
        let mut dice = Noise::new(seed);
        let mut pause = |most_ms| std::thread::sleep(Duration::from_millis(dice.below(most_ms)));
        let mut kills = 0;
        let mut turn = 0;
        while kills < KILLS {
            self.site.rearm().unwrap();
            // Now and then long enough for a segment to be cut for its age.
            pause(if turn % 8 == 7 { 9000 } else { 2500 });
            // Of six turns: three for the agent, two for the collector, one for both at once.
            let (agent, collector) = [(1, 0), (0, 1), (1, 0), (1, 1), (1, 0), (0, 1)][turn % 6];
            turn += 1;
            if collector == 1 {
                self.collector.stop(Signal::SIGKILL).unwrap();
                kills += 1;
            }
            if agent == 1 {
                self.agent.stop(Signal::SIGKILL).unwrap();
                kills += 1;
                let refused = probe.ask(self.echo.address).unwrap();
                assert!(refused.contains("refused"), "with the node agent dead, a connection: {refused}");
            }
            pause(600);
            if collector == 1 {
                self.collector.spawn().unwrap();
                if turn % 2 == 0 {
                    pause(400);
                    self.collector.stop(Signal::SIGKILL).unwrap();
                    kills += 1;
                    self.collector.spawn().unwrap();
                }
            }
            if agent == 1 {
                self.agent.spawn().unwrap();
                // During recovery.
                if turn % 3 == 0 {
                    pause(800);
                    self.agent.stop(Signal::SIGKILL).unwrap();
                    kills += 1;
                    self.agent.spawn().unwrap();
                }
                self.agent.wait_ready().unwrap();
                let answered = probe.ask(self.echo.address).unwrap();
                assert_eq!(answered, "ok echo: probe", "after a restart");
            }
            if collector == 1 {
                self.collector.wait_ready().unwrap();
            }
        }
    }

    /// Every session is closed and everything has its receipt.
    fn wait_until_settled(&mut self) {
        let start = Instant::now();
        loop {
            let spooled = self.agent.spooled().unwrap().len();
            let open: u64 = self.collector.runs().unwrap().iter().map(|run| run.count("open_sessions")).sum();
            if spooled == 0 && open == 0 {
                return;
            }
            assert!(
                start.elapsed() < SETTLING,
                "{spooled} segments are spooled and {open} sessions open after {SETTLING:?}: {}\n{}",
                self.agent.status().unwrap(),
                tail(&self.agent.log())
            );
            self.site.rearm().unwrap();
            std::thread::sleep(Duration::from_secs(1));
        }
    }

    fn every_run_verifies(&mut self) {
        let runs = self.collector.runs().unwrap();
        assert_eq!(runs.len(), 4, "{runs:?}");
        let gaps: u64 = runs.iter().map(|run| run.count("gaps")).sum();
        let sessions: u64 = runs.iter().map(|run| run.count("sessions")).sum();
        eprintln!("{sessions} sessions, {gaps} gaps");
        assert!(gaps > 0, "so many kills and not one session was cut");
        for run in &runs {
            self.site.rearm().unwrap();
            let verified = self.collector.verify(&[&run.id]).unwrap();
            assert!(verified.holds(), "{run:?}: {verified:?}");
        }
        let verified = self.collector.verify(&["--node", &self.collector.node().unwrap()]).unwrap();
        assert!(verified.holds(), "{verified:?}");
    }

    fn the_servers_log_is_in_the_recording(&self) {
        let mut recorded: HashMap<String, i64> = HashMap::new();
        for story in ["pgbench", "sessions"] {
            let run = self.collector.settled(story, 1).unwrap();
            for exchange in self.collector.exchanges(&run).unwrap() {
                let statement = spelled_out(&exchange);
                *recorded.entry(statement).or_default() += 1;
            }
        }
        let logged = self.postgres.statements("crash");
        assert!(logged.len() > 200, "only {} statements", logged.len());
        eprintln!("{} statements executed, {} recorded", logged.len(), recorded.values().sum::<i64>());
        let mut missing = Vec::new();
        for statement in &logged {
            let left = recorded.entry(statement.trim().to_owned()).or_default();
            *left -= 1;
            if *left < 0 {
                missing.push(statement);
            }
        }
        assert!(
            missing.is_empty(),
            "{} of {} statements were executed and are not recorded: {missing:?}",
            missing.len(),
            logged.len()
        );
    }

    /// What was ever in the spool is in the collector's index with the same hash, and no nonce was used twice.
    fn every_segment_is_there_once(&self, mut seen: Sightings) {
        let witnessed = seen.len();
        assert!(witnessed > 20, "the witness saw {witnessed} segments only");
        for bundle in sealed::files(&self.collector.data().join("objects").join("bundles")).unwrap() {
            // A write that a kill interrupted: it never got its name, and nobody was promised anything.
            if bundle.to_string_lossy().contains('#') {
                continue;
            }
            for segment in sealed::bundled(&bundle).unwrap() {
                seen.take(&segment).unwrap();
            }
        }
        let (rows, _) = self.collector.index("SELECT session_id, seq, hash FROM segment").unwrap();
        let held: HashSet<&str> = rows.iter().map(String::as_str).collect();
        assert_eq!(held.len(), rows.len(), "a segment is there twice");
        for ((session, seq), hash) in seen.places() {
            let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
            let row = format!("{}|{seq}|{hash}", session.to_string().replace('-', ""));
            assert!(held.contains(row.as_str()), "segment {seq} of session {session} was sealed and is lost");
        }
        assert_eq!(seen.len(), rows.len());
        let sessions = seen.places().filter(|((_, seq), _)| *seq == 0).count();
        eprintln!("{} segments of {sessions} sessions, {witnessed} seen in the spool", rows.len());
        assert!(rows.len() > sessions, "no session had more than one segment");
    }
}

/// A statement as the server's log has it. Prepared ones name their parameters in a line of their own, which is not
/// compared.
fn spelled_out(exchange: &Exchange) -> String {
    if exchange.word("verb") == "prepare" { String::new() } else { exchange.text().trim().to_owned() }
}

fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

/// Looks at the spool all the time and remembers every segment that it saw.
struct Witness {
    done: Arc<AtomicBool>,
    seen: Arc<Mutex<Sightings>>,
    thread: JoinHandle<()>,
}

impl Witness {
    fn start(state: &Path) -> Self {
        let folder = state.join("spool").join("segments");
        let (done, seen) = (Arc::new(AtomicBool::new(false)), Arc::<Mutex<Sightings>>::default());
        let (until, sightings) = (done.clone(), seen.clone());
        let thread = std::thread::spawn(move || {
            let mut known = HashSet::new();
            while !until.load(Ordering::Relaxed) {
                for entry in std::fs::read_dir(&folder).unwrap().flatten() {
                    let path = entry.path();
                    if path.extension().is_none_or(|extension| extension != "seg") || known.contains(&path) {
                        continue;
                    }
                    // It may have gone again: receipted.
                    if let Ok(segment) = sealed::spooled(&path) {
                        sightings.lock().unwrap().take(&segment).unwrap();
                        known.insert(path);
                    }
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Self { done, seen, thread }
    }

    fn end(self) -> Sightings {
        self.done.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

/// A process outside the scope that connects to the same server all the time.
struct Neighbour {
    done: Arc<AtomicBool>,
    counts: Arc<[AtomicU64; 2]>,
    thread: JoinHandle<()>,
}

impl Neighbour {
    fn start(echo: &Echo) -> Self {
        let (done, counts) = (Arc::new(AtomicBool::new(false)), Arc::<[AtomicU64; 2]>::default());
        let (until, count, address) = (done.clone(), counts.clone(), echo.address);
        let thread = std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                count[usize::from(TcpStream::connect(address).is_err())].fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        Self { done, counts, thread }
    }

    /// Connected, and failed.
    fn end(self) -> (u64, u64) {
        self.done.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        (self.counts[0].load(Ordering::Relaxed), self.counts[1].load(Ordering::Relaxed))
    }
}
