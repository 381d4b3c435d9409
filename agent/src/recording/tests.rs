//! The recorder as a whole, in a folder of its own: what is recorded is read back as an auditor would, after orderly
//! ends, kills, torn journals, full and rotten disks.

mod rotation;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use weir_proto::seal::{Chain, NodeChain, SIGNATURE_BYTES, Segment, VerifyingKey, events, unwrap};
use weir_proto::v1::event::Kind;
use weir_proto::v1::{self, Event, node_entry::Mark};
use weir_proto::{GenerationId, NodeId, RunId, SessionId};

use super::{Mode, Moment, Recorder, Recording, RecordingConfig};

fn config(state: &Path) -> RecordingConfig {
    RecordingConfig {
        state_dir: state.to_owned(),
        mode: Mode::Local,
        journal_bytes: 4 << 20,
        spool_quota_bytes: 1 << 30,
        moment: Moment::now,
    }
}

async fn start(state: &Path) -> (Recorder, Recording) {
    Recording::start(config(state)).await.unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn opened() -> v1::Opened {
    let run = v1::Run { id: RunId::from_bytes([9; 16]).to_field(), ..Default::default() };
    v1::Opened { run: Some(run), target: "db".into(), ..Default::default() }
}

fn data(exchange: u64, bytes: &[u8]) -> Kind {
    Kind::Data(v1::Data { exchange, direction: 1, bytes: Bytes::copy_from_slice(bytes), masks: vec![] })
}

fn closed() -> v1::Closed {
    v1::Closed { cause: "client-end".into(), exchanges: 1, ..Default::default() }
}

/// One session as read back.
#[derive(Debug, Default)]
struct Read {
    events: Vec<Event>,
    generations: HashSet<GenerationId>,
    segments: u64,
    closed: bool,
    head: [u8; 32],
    number: u64,
}

impl Read {
    fn marks(&self) -> Vec<u64> {
        let exchange = |e: &Event| match &e.kind {
            Some(Kind::Data(data)) => Some(data.exchange),
            _ => None,
        };
        self.events.iter().filter_map(exchange).collect()
    }

    fn closed(&self) -> &v1::Closed {
        match self.events.last().and_then(|e| e.kind.as_ref()) {
            Some(Kind::Closed(closed)) => closed,
            other => panic!("a session ends with Closed, this one with {other:?}"),
        }
    }

    fn gaps(&self) -> Vec<&str> {
        self.events
            .iter()
            .filter_map(|e| match e.kind.as_ref()? {
                Kind::Gap(gap) => Some(gap.reason.as_str()),
                _ => None,
            })
            .collect()
    }
}

/// Reads a standalone recording with nothing but its files: verifies signatures and chains, opens wraps, decodes.
fn read_back(state: &Path) -> BTreeMap<SessionId, Read> {
    let identity = state.join("identity");
    let key: [u8; 32] = std::fs::read(identity.join("verifying.key")).unwrap().try_into().unwrap();
    let key = VerifyingKey::from_bytes(&key).unwrap();
    let private = std::fs::read(identity.join("local.key")).unwrap();
    let node = node_of(state);
    let mut names: Vec<_> = segment_files(state);
    names.sort();
    let mut sessions: BTreeMap<SessionId, (Chain, Read)> = BTreeMap::new();
    for path in names {
        let file = Bytes::from(std::fs::read(&path).unwrap());
        let cut = file.len() - SIGNATURE_BYTES;
        let segment = Segment::parse(file.slice(..cut)).unwrap();
        segment.verify(&key, &file[cut..]).unwrap();
        let draft = *segment.draft();
        let (chain, read) = sessions
            .entry(draft.session)
            .or_insert_with(|| (Chain::start(draft.session, node), Read::default()));
        chain.accept(&segment).unwrap();
        let wrap = std::fs::read(state.join(format!("spool/wraps/{}.wrap", draft.generation))).unwrap();
        let generation = unwrap(&v1::Wrap::decode(&wrap[..]).unwrap(), &private).unwrap();
        let plain = segment.open(&generation.session_key(&draft.session)).unwrap();
        let found: Vec<Event> = events(plain).collect::<Result<_, _>>().unwrap();
        assert_eq!(found.len(), draft.events as usize);
        read.events.extend(found);
        read.generations.insert(draft.generation);
        read.segments += 1;
        read.closed = draft.last;
        read.head = chain.head;
        read.number = draft.number;
    }
    for (_, read) in sessions.values() {
        let first = read.events.first().and_then(|e| e.kind.clone());
        let Some(Kind::Opened(opened)) = first else { panic!("a session begins with Opened") };
        assert_eq!(opened.node_number, read.number);
    }
    sessions.into_iter().map(|(id, (_, read))| (id, read)).collect()
}

fn node_of(state: &Path) -> NodeId {
    let node: serde_json::Value =
        serde_json::from_slice(&std::fs::read(state.join("identity/node.json")).unwrap()).unwrap();
    node["node_id"].as_str().unwrap().parse().unwrap()
}

fn segment_files_if_any(state: &Path) -> Vec<PathBuf> {
    if state.join("spool/segments").exists() { segment_files(state) } else { Vec::new() }
}

fn segment_files(state: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(state.join("spool/segments"))
        .unwrap()
        .map(|f| f.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "seg"))
        .collect()
}

/// The node log, verified from its beginning.
fn node_log(state: &Path) -> Vec<v1::NodeEntry> {
    let key: [u8; 32] = std::fs::read(state.join("identity/verifying.key")).unwrap().try_into().unwrap();
    let key = VerifyingKey::from_bytes(&key).unwrap();
    let mut files: Vec<_> = std::fs::read_dir(state.join("nodelog"))
        .unwrap()
        .map(|f| f.unwrap().path())
        .filter(|p| p.is_file())
        .collect();
    files.sort();
    let mut chain = NodeChain::start(node_of(state));
    let mut entries = Vec::new();
    for file in files {
        let mut bytes = Bytes::from(std::fs::read(file).unwrap());
        while !bytes.is_empty() {
            let signed = v1::SignedNodeEntry::decode_length_delimited(&mut bytes).unwrap();
            entries.push(chain.accept(&signed, &key).unwrap());
        }
    }
    entries
}

/// Every number is there once, and every session that is closed in the log is closed so in the spool.
fn assert_accounted(state: &Path, sessions: &BTreeMap<SessionId, Read>) {
    let log = node_log(state);
    let mut numbers: Vec<u64> = log.iter().flat_map(|e| e.opened.iter().map(|o| o.number)).collect();
    numbers.sort_unstable();
    let next = log.iter().filter_map(|e| e.heartbeat.as_ref().map(|h| h.next_number)).max().unwrap();
    assert_eq!(numbers, (1..next).collect::<Vec<_>>(), "every number once");
    let mut closings = HashMap::new();
    for closed in log.iter().flat_map(|e| &e.closed) {
        let earlier = closings.insert(closed.session_id.clone(), closed.clone());
        assert!(earlier.is_none_or(|e| e == *closed), "said twice, then the same");
    }
    for (id, read) in sessions {
        let said = closings.get(&id.to_field());
        assert_eq!(said.is_some(), read.closed, "{id}: closed in the log as in the spool");
        if let Some(said) = said {
            assert_eq!((said.segments, &said.head_hash[..]), (read.segments, &read.head[..]), "{id}");
            assert_eq!(said.number, read.number);
        }
    }
}

#[test]
fn a_session_is_read_back_as_it_was_written() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let (recorder, recording) = start(folder.path()).await;
        let mut session = recorder.open(opened()).await.unwrap();
        for n in 1..=10 {
            session.write(data(n, format!("row {n}").as_bytes())).await.unwrap();
        }
        // Longer than a data event may be: cut, and nothing lost.
        let long: Vec<u8> = (0..700_000u32).map(|i| (i / 3) as u8).collect();
        session.write(data(11, &long)).await.unwrap();
        session.close(closed()).await.unwrap();
        recording.drain().await.unwrap();
        drop(recording);

        let sessions = read_back(folder.path());
        assert_eq!(sessions.len(), 1);
        let read = sessions.values().next().unwrap();
        assert_eq!(read.marks()[..10], (1..=10).collect::<Vec<_>>()[..]);
        let long_read: Vec<u8> = read
            .events
            .iter()
            .filter_map(|e| match &e.kind {
                Some(Kind::Data(data)) if data.exchange == 11 => Some(data.bytes.to_vec()),
                _ => None,
            })
            .flatten()
            .collect();
        assert!(long_read == long);
        assert_eq!(read.closed().cause, "client-end");
        assert_eq!(read.closed().events, read.events.len() as u64);
        assert!(read.closed && read.segments > 1);
        assert_accounted(folder.path(), &sessions);
        let log = node_log(folder.path());
        assert!(matches!(log[0].mark, Some(Mark::Started(v1::Started { after_crash: false, .. }))));
        assert!(matches!(log.last().unwrap().mark, Some(Mark::Stopped(_))));
        assert_eq!(
            std::fs::read_dir(folder.path().join("journal")).unwrap().count(),
            0,
            "nothing is left to recover"
        );
    });
}

#[test]
fn a_dropped_record_and_one_left_open_at_the_end_say_so() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let (recorder, recording) = start(folder.path()).await;
        let dropped = recorder.open(opened()).await.unwrap();
        let dropped_id = dropped.session();
        drop(dropped);
        let mut left = recorder.open(opened()).await.unwrap();
        left.write(data(1, b"x")).await.unwrap();
        recording.drain().await.unwrap();
        assert!(matches!(left.write(data(2, b"y")).await, Err(super::RecordError::Stopped)));
        assert!(matches!(recorder.open(opened()).await.err(), Some(super::RecordError::Stopped)));
        let left_id = left.session();
        drop(left);
        drop(recording);
        let sessions = read_back(folder.path());
        assert_eq!(sessions[&dropped_id].closed().cause, "recorder-error");
        assert_eq!(sessions[&left_id].closed().cause, "drained");
        assert_eq!(sessions[&left_id].gaps(), ["drained"]);
        assert_eq!(sessions[&left_id].marks(), [1]);
        assert_accounted(folder.path(), &sessions);
    });
}

#[test]
fn a_second_agent_in_the_same_folder_is_refused_and_numbers_go_on_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        for life in 0..3u64 {
            let (recorder, recording) = start(folder.path()).await;
            let error = Recording::start(config(folder.path())).await.err().unwrap();
            assert!(error.to_string().contains("another node agent"), "{error}");
            recorder.open(opened()).await.unwrap().close(closed()).await.unwrap();
            recording.drain().await.unwrap();
            drop((recorder, recording));
            let sessions = read_back(folder.path());
            let mut numbers: Vec<_> = sessions.values().map(|s| s.number).collect();
            numbers.sort_unstable();
            assert_eq!(numbers, (1..=life + 1).collect::<Vec<_>>());
            assert_accounted(folder.path(), &sessions);
        }
    });
}

#[test]
fn thousands_of_short_sessions_share_their_commits() {
    // More than the open files that a process may have by default.
    const SESSIONS: usize = 3000;
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let (recorder, recording) = start(folder.path()).await;
        for _ in 0..SESSIONS {
            recorder.open(opened()).await.unwrap().close(closed()).await.unwrap();
        }
        recording.drain().await.unwrap();
        let sessions = read_back(folder.path());
        assert_eq!(sessions.len(), SESSIONS);
        assert_accounted(folder.path(), &sessions);
        assert!(node_log(folder.path()).len() < SESSIONS / 10);
        assert_eq!(recorder.counters().spool_write_errors.value(), 0);
    });
}

#[test]
fn an_event_that_is_too_long_leaves_a_gap() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let (recorder, recording) = start(folder.path()).await;
        let mut session = recorder.open(opened()).await.unwrap();
        let operation = v1::Operation { text: "x".repeat(1 << 20), ..Default::default() };
        session.write(Kind::Asked(v1::Asked { exchange: 4, operation: Some(operation) })).await.unwrap();
        session.close(closed()).await.unwrap();
        recording.drain().await.unwrap();
        let sessions = read_back(folder.path());
        assert_eq!(sessions.values().next().unwrap().gaps(), ["event-too-long"]);
    });
}

const CHILD_STATE: &str = "WEIR_TEST_CHILD_STATE";

/// Not a test by itself: the process that the kill test kills. It tells each event only after it was recorded.
#[test]
fn child_that_records_until_it_is_killed() {
    let Some(state) = std::env::var_os(CHILD_STATE) else { return };
    runtime().block_on(async {
        let (recorder, _recording) = start(Path::new(&state)).await;
        println!("\nready");
        let workers = (0..6u64).map(|worker| {
            let recorder = recorder.clone();
            tokio::spawn(async move {
                loop {
                    let mut session = recorder.open(opened()).await.unwrap();
                    let id = session.session();
                    println!("\nopened {id}");
                    // Some sessions are short, some long, some wait in between.
                    let count = [0, 1, 3, 40, 400, 1_000_000][worker as usize];
                    for n in 1..=count {
                        let body = vec![n as u8; (n * 7919 % 3000) as usize];
                        session.write(data(n, &body)).await.unwrap();
                        println!("\nwrote {id} {n}");
                        if worker == 5 {
                            tokio::time::sleep(Duration::from_micros(300)).await;
                        }
                    }
                    session.close(closed()).await.unwrap();
                    println!("\nclosed {id}");
                }
            })
        });
        let workers: Vec<_> = workers.collect();
        // They never end; a failed one shows as a silence that the parent notices.
        std::future::pending::<()>().await;
        drop(workers);
    });
}

/// Lives of a child process, each killed at some moment: while it records, while it recovers, at once.
#[test]
fn a_kill_at_any_moment_loses_nothing_that_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let mut wrote: BTreeMap<SessionId, u64> = BTreeMap::new();
    let mut ended: HashSet<SessionId> = HashSet::new();
    let mut generations: HashMap<GenerationId, usize> = HashMap::new();
    let mut files: HashMap<PathBuf, Bytes> = HashMap::new();
    for (life, run_ms) in [700, 5, 350, 60, 0, 900, 20, 450].into_iter().enumerate() {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "recording::tests::child_that_records_until_it_is_killed",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(CHILD_STATE, &state)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let reader = std::thread::spawn(move || out.lines().map_while(Result::ok).collect::<Vec<_>>());
        std::thread::sleep(Duration::from_millis(run_ms));
        child.kill().unwrap();
        child.wait().unwrap();
        for line in reader.join().unwrap() {
            let mut words = line.split(' ');
            let (what, id) = (words.next().unwrap(), words.next().and_then(|id| id.parse().ok()));
            let Some(id) = id else { continue };
            match (what, words.next().and_then(|n| n.parse().ok())) {
                ("opened", _) => drop(wrote.insert(id, 0)),
                ("wrote", Some(n)) => drop(wrote.insert(id, n)),
                ("closed", _) => drop(ended.insert(id)),
                _ => {}
            }
        }
        // No generation seals in two lives, and what is written is never written differently.
        for path in segment_files_if_any(&state) {
            let bytes = Bytes::from(std::fs::read(&path).unwrap());
            if let Some(earlier) = files.insert(path, bytes.clone()) {
                assert_eq!(earlier, bytes);
                continue;
            }
            let segment = Segment::parse(bytes.slice(..bytes.len() - SIGNATURE_BYTES)).unwrap();
            let sealed_in = *generations.entry(segment.draft().generation).or_insert(life);
            assert_eq!(sealed_in, life, "a generation of an earlier life sealed again");
        }
    }
    assert!(wrote.len() > 20, "the lives were too short to test anything: {} sessions", wrote.len());

    // One more life recovers and ends in order.
    runtime().block_on(async {
        let (_recorder, recording) = start(&state).await;
        recording.drain().await.unwrap();
    });
    let sessions = read_back(&state);
    for (id, n) in &wrote {
        let read = sessions.get(id).unwrap_or_else(|| panic!("{id} is lost"));
        let marks = read.marks();
        assert!(marks.len() as u64 >= *n, "{id}: {} of {n} events", marks.len());
        assert_eq!(marks, (1..=marks.len() as u64).collect::<Vec<_>>(), "{id}: each once, in order");
        assert!(read.closed, "{id} has an end");
        if ended.contains(id) {
            assert_eq!(read.closed().cause, "client-end");
            assert!(read.gaps().is_empty());
        } else if read.closed().cause == "agent-died" {
            assert_eq!(read.gaps(), ["agent-died"]);
        }
    }
    assert!(sessions.values().any(|s| s.closed().cause == "agent-died"));
    assert_accounted(&state, &sessions);
    assert!(node_log(&state).iter().all(|e| e.lost.is_empty()), "nothing is called lost that is there");
    // Nonces: (generation, session, seq) is one file name and one generation; a generation belongs to one life.
    let starts = node_log(&state).into_iter().filter_map(|e| match e.mark {
        Some(Mark::Started(started)) => Some(started.generation_id),
        _ => None,
    });
    let starts: Vec<_> = starts.collect();
    assert_eq!(
        starts.len(),
        starts.iter().collect::<HashSet<_>>().len(),
        "every life draws its own generation"
    );
    assert!(generations.keys().all(|g| starts.contains(&g.to_field())));
}

/// Ends a life without any orderly step, as far as that goes within one process.
async fn abandon(recorder: Recorder, recording: Recording) {
    drop((recorder, recording));
    // The scribe and the sync thread see that nobody holds them.
    tokio::time::sleep(Duration::from_millis(600)).await;
}

#[test]
fn a_torn_journal_gives_what_is_whole_and_says_that_the_agent_died() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let (recorder, recording) = start(folder.path()).await;
        let mut session = recorder.open(opened()).await.unwrap();
        for n in 1..=50 {
            session.write(data(n, &[n as u8; 1000])).await.unwrap();
        }
        let id = session.session();
        std::mem::forget(session);
        abandon(recorder, recording).await;
        // Damage in the middle of what is not in the spool yet.
        let torn = std::fs::read_dir(folder.path().join("journal")).unwrap().map(|f| f.unwrap().path()).find(
            |path| {
                let mut bytes = std::fs::read(path).unwrap();
                let hit = bytes.windows(1000).position(|w| w == [30; 1000]);
                if let Some(at) = hit {
                    bytes[at + 500] ^= 1;
                    std::fs::write(path, bytes).unwrap();
                }
                hit.is_some()
            },
        );
        assert!(torn.is_some());

        let (recorder, recording) = start(folder.path()).await;
        assert_eq!(recorder.counters().journal_torn.value(), 1);
        recording.drain().await.unwrap();
        let sessions = read_back(folder.path());
        assert_eq!(sessions[&id].marks(), (1..=29).collect::<Vec<_>>());
        assert_eq!(sessions[&id].gaps(), ["agent-died"]);
        assert_accounted(folder.path(), &sessions);
    });
}

#[test]
fn very_many_tiny_events_are_recorded_too() {
    const EVENTS: u64 = 40_000;
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let (recorder, recording) = start(folder.path()).await;
        let mut session = recorder.open(opened()).await.unwrap();
        for n in 1..=EVENTS {
            session.write(data(n, b"")).await.unwrap();
        }
        session.close(closed()).await.unwrap();
        recording.drain().await.unwrap();
        let sessions = read_back(folder.path());
        assert_eq!(sessions.values().next().unwrap().marks(), (1..=EVENTS).collect::<Vec<_>>());
    });
}

#[test]
fn a_chain_goes_on_under_a_new_generation_after_the_agent_died() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let (recorder, recording) = start(folder.path()).await;
        let mut session = recorder.open(opened()).await.unwrap();
        let id = session.session();
        for n in 1..=4 {
            session.write(data(n, &vec![n as u8; 100_000])).await.unwrap();
        }
        // The first segment is cut for its size; the rest is in the journal only.
        while segment_files(folder.path()).is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        std::mem::forget(session);
        abandon(recorder, recording).await;
        assert_eq!(segment_files(folder.path()).len(), 1);
        let (_recorder, recording) = start(folder.path()).await;
        recording.drain().await.unwrap();
        let sessions = read_back(folder.path());
        let read = &sessions[&id];
        assert_eq!(read.marks(), [1, 2, 3, 4]);
        assert_eq!((read.generations.len(), read.segments), (2, 2));
        assert_eq!(read.closed().cause, "agent-died");
        assert_accounted(folder.path(), &sessions);
    });
}

#[test]
fn a_rotten_segment_is_set_aside_and_its_loss_is_signed() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let (recorder, recording) = start(folder.path()).await;
        let mut session = recorder.open(opened()).await.unwrap();
        for n in 1..=8 {
            session.write(data(n, &vec![n as u8; 100_000])).await.unwrap();
        }
        let id = session.session();
        session.close(closed()).await.unwrap();
        recorder.open(opened()).await.unwrap().close(closed()).await.unwrap();
        recording.drain().await.unwrap();
        drop((recorder, recording));
        let mut files = segment_files(folder.path());
        files.retain(|f| f.to_str().unwrap().contains(&id.to_string()));
        files.sort();
        assert!(files.len() >= 3);
        let mut bytes = std::fs::read(&files[1]).unwrap();
        bytes[3] ^= 0x20;
        std::fs::write(&files[1], bytes).unwrap();

        let (recorder, recording) = start(folder.path()).await;
        assert_eq!(recorder.counters().spool_quarantined.value(), 1);
        assert_eq!(recording.status().stuck[0].0, id.to_string());
        recorder.open(opened()).await.unwrap().close(closed()).await.unwrap();
        recording.drain().await.unwrap();
        assert_eq!(std::fs::read_dir(folder.path().join("spool/quarantine")).unwrap().count(), 1);
        let lost: Vec<_> = node_log(folder.path()).into_iter().flat_map(|e| e.lost).collect();
        assert_eq!(lost.len(), 1);
        assert_eq!(
            (&lost[0].session_id[..], lost[0].from_seq, &lost[0].reason[..]),
            (&id.as_bytes()[..], 1, "spool-corrupt")
        );
    });
}

#[test]
fn a_rotten_newest_segment_is_a_gap_in_a_chain_that_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let (recorder, recording) = start(folder.path()).await;
        let mut ids = Vec::new();
        for size in [100_000, 10] {
            let mut session = recorder.open(opened()).await.unwrap();
            for n in 1..=4 {
                session.write(data(n, &vec![n as u8; size])).await.unwrap();
            }
            ids.push(session.session());
            session.close(closed()).await.unwrap();
        }
        recording.drain().await.unwrap();
        drop((recorder, recording));
        let mut files = segment_files(folder.path());
        files.sort();
        assert_eq!(files.len(), 3, "two of the first session, one of the second");
        // One in its header, one in its ciphertext.
        for (file, at) in [(&files[1], 6), (&files[2], 210)] {
            let mut bytes = std::fs::read(file).unwrap();
            bytes[at] ^= 0x80;
            std::fs::write(file, bytes).unwrap();
        }
        let (recorder, recording) = start(folder.path()).await;
        assert_eq!(recorder.counters().spool_quarantined.value(), 2);
        recording.drain().await.unwrap();
        let sessions = read_back(folder.path());
        assert_eq!(sessions.keys().collect::<Vec<_>>(), [&ids[0]]);
        let read = &sessions[&ids[0]];
        assert_eq!(read.marks(), [1, 2]);
        assert_eq!(read.gaps(), ["spool-corrupt", "agent-died"]);
        assert!(read.closed);
        // Of the second nothing is left but what the node signs.
        let lost: Vec<_> = node_log(folder.path()).into_iter().flat_map(|e| e.lost).collect();
        assert_eq!(
            lost.iter().map(|l| (&l.session_id[..], l.from_seq)).collect::<Vec<_>>(),
            [(&ids[1].as_bytes()[..], 0)]
        );
    });
}

/// Removes what is in the folder; folders in it stay.
fn empty(folder: &Path) {
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        if path.is_file() {
            std::fs::remove_file(path).unwrap();
        }
    }
}

#[test]
fn a_session_that_somebody_removed_after_a_kill_is_said_to_be_lost() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let (recorder, recording) = start(folder.path()).await;
        let (gone, other) = (recorder.open(opened()).await.unwrap(), recorder.open(opened()).await.unwrap());
        let ids = [gone.session(), other.session()];
        std::mem::forget((gone, other));
        while node_log(folder.path()).iter().map(|e| e.opened.len()).sum::<usize>() < 2 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        abandon(recorder, recording).await;
        empty(&folder.path().join("journal"));
        empty(&folder.path().join("spool/segments"));

        let (_recorder, recording) = start(folder.path()).await;
        recording.drain().await.unwrap();
        let log = node_log(folder.path());
        let lost: HashSet<_> = log.iter().flat_map(|e| &e.lost).map(|l| l.session_id.clone()).collect();
        assert_eq!(lost, ids.iter().map(|id| id.to_field()).collect());
        assert!(log.iter().flat_map(|e| &e.lost).all(|l| l.reason == "session-missing"));
        let beats: Vec<_> = log.iter().filter_map(|e| e.heartbeat.as_ref()).collect();
        assert!(beats.iter().all(|b| b.spooled_segments == 0), "nothing is on its way to anybody");
        // The second life vouches for the first only once it has said what became of its sessions.
        let vouches = log.iter().rposition(|e| e.heartbeat.as_ref().is_some_and(|h| !h.recovered)).unwrap();
        assert!(matches!(log[vouches].mark, Some(Mark::Started(_))));
        assert!(log[vouches + 1].lost.len() == 2 && log[vouches + 1].heartbeat.as_ref().unwrap().recovered);
        drop(recording);

        // Once is enough.
        let (_recorder, recording) = start(folder.path()).await;
        recording.drain().await.unwrap();
        assert_eq!(node_log(folder.path()).iter().map(|e| e.lost.len()).sum::<usize>(), 2);
    });
}

#[test]
fn a_journal_that_cannot_be_read_is_kept_and_said() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let (recorder, recording) = start(folder.path()).await;
        let mut session = recorder.open(opened()).await.unwrap();
        session.write(data(1, b"kept")).await.unwrap();
        std::mem::forget(session);
        while node_log(folder.path()).iter().all(|e| e.opened.is_empty()) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        abandon(recorder, recording).await;
        empty(&folder.path().join("spool/segments"));
        let journal = folder.path().join("journal");
        let mut damaged = Vec::new();
        for file in std::fs::read_dir(&journal).unwrap() {
            let path = file.unwrap().path();
            let mut bytes = std::fs::read(&path).unwrap();
            // A version that is not known here.
            bytes[4] = 9;
            std::fs::write(&path, &bytes).unwrap();
            damaged.push(bytes);
        }
        let (_recorder, recording) = start(folder.path()).await;
        recording.drain().await.unwrap();
        let kept: Vec<_> = std::fs::read_dir(journal.join("unreadable"))
            .unwrap()
            .map(|f| std::fs::read(f.unwrap().path()).unwrap())
            .collect();
        assert_eq!(kept.len(), damaged.len());
        assert!(kept.iter().all(|bytes| damaged.contains(bytes)));
        let log = node_log(folder.path());
        let said: Vec<u64> = log
            .iter()
            .filter_map(|e| match &e.mark {
                Some(Mark::Started(started)) => Some(started.unreadable_journals),
                _ => None,
            })
            .collect();
        assert_eq!(said, [0, damaged.len() as u64]);
        assert_eq!(log.iter().map(|e| e.lost.len()).sum::<usize>(), 1);
    });
}

#[test]
fn a_torn_node_log_goes_on_from_its_last_good_entry() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let (recorder, recording) = start(folder.path()).await;
        recorder.open(opened()).await.unwrap().close(closed()).await.unwrap();
        recording.drain().await.unwrap();
        drop((recorder, recording));
        let before = node_log(folder.path()).len();
        let file = std::fs::read_dir(folder.path().join("nodelog")).unwrap().next().unwrap().unwrap().path();
        let bytes = std::fs::read(&file).unwrap();
        std::fs::write(&file, &bytes[..bytes.len() - 7]).unwrap();
        let (recorder, recording) = start(folder.path()).await;
        recorder.open(opened()).await.unwrap().close(closed()).await.unwrap();
        recording.drain().await.unwrap();
        drop((recorder, recording));
        let log = node_log(folder.path());
        assert!(log.len() > before);
        assert!(matches!(log[before - 1].mark, Some(Mark::Started(v1::Started { after_crash: true, .. }))));
        assert_accounted(folder.path(), &read_back(folder.path()));
    });
}

#[test]
fn a_full_spool_holds_writers_back_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let quota =
            RecordingConfig { spool_quota_bytes: 300_000, journal_bytes: 1 << 20, ..config(folder.path()) };
        let (recorder, recording) = Recording::start(quota).await.unwrap();
        let mut session = recorder.open(opened()).await.unwrap();
        let mut written = 0;
        let noise = noise(60_000);
        // The quota takes some, the journal some; then the writer is told to wait.
        let held = loop {
            match tokio::time::timeout(Duration::from_secs(2), session.write(data(written + 1, &noise))).await
            {
                Ok(done) => done.unwrap(),
                Err(_) => break written,
            }
            written += 1;
        };
        assert!(held >= 10, "{held}");
        assert!(recorder.counters().spool_full.value() > 0);
        let id = session.session();
        session.close(closed()).await.unwrap();
        abandon(recorder, recording).await;

        // The next life has more room.
        let (_recorder, recording) = start(folder.path()).await;
        recording.drain().await.unwrap();
        let sessions = read_back(folder.path());
        assert_eq!(sessions[&id].marks(), (1..=held).collect::<Vec<_>>());
        assert_eq!(sessions[&id].closed().cause, "client-end");
        assert_accounted(folder.path(), &sessions);
    });
}

/// On a small disk of its own, which is full for a while. Mounting needs root; without it, the quota test above stands.
#[test]
fn a_full_disk_holds_writers_back_until_there_is_room() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let disk = Tmpfs::mount(folder.path(), "24m");
    let state = disk.0.join("state");
    runtime().block_on(async {
        let small = RecordingConfig { journal_bytes: 2 << 20, ..config(&state) };
        let (recorder, recording) = Recording::start(small).await.unwrap();
        std::fs::write(disk.0.join("filler"), vec![1; 19 << 20]).unwrap();
        let mut session = recorder.open(opened()).await.unwrap();
        let id = session.session();
        let noise = noise(100_000);
        let mut written = 0;
        while tokio::time::timeout(Duration::from_secs(2), session.write(data(written + 1, &noise)))
            .await
            .is_ok()
        {
            written += 1;
            assert!(written < 200, "a disk of 24 MiB takes no end of data");
        }
        assert!(recorder.counters().spool_write_errors.value() > 0);
        std::fs::remove_file(disk.0.join("filler")).unwrap();
        for n in written + 1..=written + 5 {
            session.write(data(n, &noise)).await.unwrap();
        }
        session.close(closed()).await.unwrap();
        recording.drain().await.unwrap();
        drop((recorder, recording));
        let sessions = read_back(&state);
        assert_eq!(sessions[&id].marks(), (1..=written + 5).collect::<Vec<_>>());
        assert_accounted(&state, &sessions);
    });
}

struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(at: &Path, size: &str) -> Self {
        use nix::mount::{MsFlags, mount};
        mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some(format!("size={size}").as_str()))
            .unwrap();
        Self(at.to_owned())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// Bytes that do not compress.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    })
    .take(len)
    .collect()
}
