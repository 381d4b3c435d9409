//! The node log goes on from where the collector's copy ends, and says so where that is not its own.

use std::path::Path;

use weir_proto::v1;
use weir_proto::v1::node_entry::Mark;

use super::collector::{Collector, Held, Manner};
use super::{runtime, session, start, wait_for};
use crate::shipping::enroll;

#[test]
fn a_node_log_that_was_deleted_goes_on_from_the_collectors_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let collector = Collector::new(Manner::Honest);
        let (port, _server) = collector.listen(0).await;
        enroll(folder.path(), &Collector::token(port), "host", false).await.unwrap();
        let (recorder, recording) = start(folder.path()).await;
        session(&recorder, 1).await;
        collector
            .until("it is closed in the log", |held| held.entries.iter().any(|e| !e.closed.is_empty()))
            .await;
        // Below the running agent.
        for file in std::fs::read_dir(folder.path().join("nodelog")).unwrap() {
            std::fs::remove_file(file.unwrap().path()).unwrap();
        }
        session(&recorder, 2).await;
        let rolled_back =
            |held: &Held| held.entries.iter().any(|e| matches!(e.mark, Some(Mark::RolledBack(_))));
        collector.until("it says that it was rolled back", rolled_back).await;
        recording.drain().await.unwrap();
        let held = collector.held();
        let mut numbers: Vec<u64> = held.entries.iter().flat_map(|e| &e.opened).map(|o| o.number).collect();
        numbers.dedup();
        assert!(numbers.contains(&1), "{numbers:?}");
        assert!(matches!(held.entries.last().unwrap().mark, Some(Mark::Stopped(_))));
    });
}

#[test]
fn an_entry_that_rots_before_it_is_sent_does_not_stop_the_log() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let collector = Collector::new(Manner::Honest);
        let (port, server) = collector.listen(0).await;
        enroll(folder.path(), &Collector::token(port), "host", false).await.unwrap();
        server.abort();
        let _ = server.await;
        let (recorder, recording) = start(folder.path()).await;
        let rotten = session(&recorder, 1).await;
        let log = folder.path().join("nodelog").join(format!("{:020}.log", 0));
        let place = || {
            let bytes = std::fs::read(&log).unwrap();
            bytes.windows(16).position(|w| w == rotten.as_bytes()).map(|at| (bytes, at))
        };
        wait_for("it is in the log", || place().is_some()).await;
        let (mut bytes, at) = place().unwrap();
        bytes[at] ^= 1;
        // In place: the agent has the file open.
        use std::os::unix::fs::FileExt;
        std::fs::OpenOptions::new()
            .write(true)
            .open(&log)
            .unwrap()
            .write_at(&bytes[at..=at], at as u64)
            .unwrap();
        let (_, _server) = collector.listen(port).await;
        let later = session(&recorder, 1).await;
        collector
            .until("the log goes on", |held| {
                held.entries.iter().flat_map(|e| &e.closed).any(|c| c.session_id == later.to_field())
            })
            .await;
        assert!(collector.held().entries.iter().any(|e| matches!(e.mark, Some(Mark::RolledBack(_)))));
        recording.drain().await.unwrap();
    });
}

#[test]
fn an_agent_on_an_old_disk_says_so_and_goes_on_from_the_collectors_log() {
    let folder = tempfile::tempdir().unwrap();
    let (state, old) = (folder.path().join("state"), folder.path().join("old"));
    runtime().block_on(async {
        let collector = Collector::new(Manner::Honest);
        let (port, _server) = collector.listen(0).await;
        enroll(&state, &Collector::token(port), "host", false).await.unwrap();
        let (recorder, recording) = start(&state).await;
        session(&recorder, 1).await;
        recording.drain().await.unwrap();
        drop((recorder, recording));
        copy(&state, &old);
        let (recorder, recording) = start(&state).await;
        session(&recorder, 1).await;
        session(&recorder, 1).await;
        recording.drain().await.unwrap();
        drop((recorder, recording));
        let known = collector.held().entries.len();

        std::fs::remove_dir_all(&state).unwrap();
        std::fs::rename(&old, &state).unwrap();
        let (recorder, recording) = start(&state).await;
        collector.until("it says that it was rolled back", |held| held.entries.len() > known).await;
        session(&recorder, 1).await;
        recording.drain().await.unwrap();
        let held = collector.held();
        let Some(Mark::RolledBack(said)) = held.entries[known].mark.clone() else {
            panic!("{:?}", held.entries[known])
        };
        assert!(said.own_index < known as u64);
        assert_eq!(said.own_next_number, 2);
        let last: Vec<u64> = held.entries[known..].iter().flat_map(|e| &e.opened).map(|o| o.number).collect();
        assert_eq!(
            last,
            [1, 4],
            "all is said again; numbers go on after the highest that the collector knows"
        );
        assert!(
            held.entries.last().unwrap().mark == Some(Mark::Stopped(v1::Stopped { cause: "drained".into() }))
        );
    });
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        if file.file_type().unwrap().is_dir() {
            copy(&file.path(), &to.join(file.file_name()));
        } else {
            std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    }
}
