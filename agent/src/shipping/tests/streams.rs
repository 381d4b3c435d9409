//! What is recorded arrives, whatever the collector does.

use std::time::Duration;

use weir_proto::SessionId;
use weir_proto::v1::node_entry::Mark;

use super::collector::{Collector, Manner};
use super::{runtime, session, spool_files, start, wait_for};
use crate::shipping::{enroll, is_enrolled};

#[test]
fn what_is_recorded_arrives_and_then_leaves_the_spool() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    runtime().block_on(async {
        let collector = Collector::new(Manner::Honest);
        let (port, _server) = collector.listen(0).await;
        let node = enroll(&state, &Collector::token(port), "host", false).await.unwrap();
        assert_eq!(node, collector.held().node);
        assert!(is_enrolled(&state));
        let again = enroll(&state, &Collector::token(port), "host", false).await.unwrap_err();
        assert!(again.to_string().contains("already joined"), "{again}");

        let (recorder, recording) = start(&state).await;
        let long = session(&recorder, 20).await;
        let short = session(&recorder, 1).await;
        recording.drain().await.unwrap();
        {
            let held = collector.held();
            assert_eq!(held.marks(long), (1..=20).collect::<Vec<_>>());
            assert_eq!(held.marks(short), [1]);
            assert!(held.chains.values().all(|c| c.closed));
            let closed: Vec<_> = held.entries.iter().flat_map(|e| &e.closed).collect();
            assert_eq!(closed.len(), 2);
            assert!(closed.iter().all(|c| {
                let chain = &held.chains[&SessionId::try_from(&c.session_id[..]).unwrap()];
                (c.segments, &c.head_hash[..]) == (chain.next_seq, &chain.head[..])
            }));
            assert!(matches!(held.entries.last().unwrap().mark, Some(Mark::Stopped(_))));
        }
        assert_eq!(spool_files(&state), 0);
    });
}

#[test]
fn a_collector_that_was_away_gets_everything_once_it_is_back() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let collector = Collector::new(Manner::Nervous);
        let (port, server) = collector.listen(0).await;
        enroll(folder.path(), &Collector::token(port), "host", false).await.unwrap();
        server.abort();
        let (recorder, recording) = start(folder.path()).await;
        let mut sessions = Vec::new();
        for n in 0..30 {
            sessions.push((session(&recorder, n % 9).await, n % 9));
        }
        wait_for("the spool keeps it all", || spool_files(folder.path()) >= 30).await;
        // Back, but it drops each stream after a few messages; the agent restarts meanwhile, too.
        let (_, _server) = collector.listen(port).await;
        collector.until("some have come", |held| held.chains.len() > 5).await;
        drop((recorder, recording));
        tokio::time::sleep(Duration::from_millis(600)).await;
        collector.manner(Manner::Honest);
        let (_recorder, recording) = start(folder.path()).await;
        for (id, n) in sessions {
            collector
                .until("each session is whole", |held| held.chains.get(&id).is_some_and(|c| c.closed))
                .await;
            assert_eq!(collector.held().marks(id), (1..=n).collect::<Vec<_>>());
        }
        recording.drain().await.unwrap();
        assert_eq!(spool_files(folder.path()), 0);
    });
}

#[test]
fn lies_delete_nothing_and_the_truth_still_arrives() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let collector = Collector::new(Manner::Lying);
        let (port, _server) = collector.listen(0).await;
        enroll(folder.path(), &Collector::token(port), "host", false).await.unwrap();
        let (recorder, recording) = start(folder.path()).await;
        let id = session(&recorder, 30).await;
        wait_for("lies were told", || recorder.counters().receipts_false.value() > 5).await;
        assert!(spool_files(folder.path()) > 3, "nothing was deleted");
        assert_eq!(recorder.counters().receipts.value(), 0);
        collector.manner(Manner::Honest);
        // What was sent to the liar has no receipt: the next stream sends it again.
        drop((recorder, recording));
        tokio::time::sleep(Duration::from_millis(600)).await;
        let (_recorder, recording) = start(folder.path()).await;
        collector.until("the session is whole", |held| held.chains.get(&id).is_some_and(|c| c.closed)).await;
        assert_eq!(collector.held().marks(id), (1..=30).collect::<Vec<_>>());
        recording.drain().await.unwrap();
    });
}

#[test]
fn a_collector_that_is_not_itself_gets_nothing() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let collector = Collector::new(Manner::Honest);
        let (port, _server) = collector.listen(0).await;
        enroll(folder.path(), &Collector::token(port), "host", false).await.unwrap();
        for (manner, said) in [
            (Manner::Disguised, "not signed by the collector's receipt key"),
            (Manner::Newer, "upgrade the older one"),
            (Manner::Confused, "made no sense"),
        ] {
            collector.manner(manner);
            let (recorder, recording) = start(folder.path()).await;
            wait_for(said, || serde_json::to_string(&recording.status()).unwrap().contains(said)).await;
            session(&recorder, 1).await;
            let collected = collector.held().chains.len();
            assert_eq!(collected, 0, "{manner:?}");
            drop((recorder, recording));
            tokio::time::sleep(Duration::from_millis(600)).await;
        }
        collector.manner(Manner::Honest);
        let (_recorder, recording) = start(folder.path()).await;
        collector.until("all have come", |held| held.chains.values().filter(|c| c.closed).count() == 3).await;
        recording.drain().await.unwrap();
        assert!(collector.held().entries.iter().all(|e| !matches!(e.mark, Some(Mark::RolledBack(_)))));
    });
}

#[test]
fn a_segment_that_cannot_be_read_now_is_sent_later_and_counts_as_on_its_way() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let collector = Collector::new(Manner::Honest);
        let (port, server) = collector.listen(0).await;
        enroll(folder.path(), &Collector::token(port), "host", false).await.unwrap();
        server.abort();
        let _ = server.await;
        let (recorder, recording) = start(folder.path()).await;
        let id = session(&recorder, 1).await;
        let file = folder.path().join(format!("spool/segments/{id}.0000000000.seg"));
        wait_for("it is spooled", || file.exists()).await;
        let hidden = folder.path().join("hidden");
        std::fs::rename(&file, &hidden).unwrap();
        // Opens, and reading it is an error of the disk.
        std::fs::create_dir(&file).unwrap();
        let (_, _server) = collector.listen(port).await;
        let connects = recorder.counters().connects.value();
        wait_for("it is back", || recorder.counters().connects.value() > connects).await;
        collector
            .until("it says that one is on its way", |held| {
                held.entries
                    .iter()
                    .filter(|e| e.closed.iter().any(|c| c.session_id == id.to_field()))
                    .any(|e| e.heartbeat.as_ref().is_some_and(|h| h.spooled_segments == 1))
            })
            .await;
        assert_eq!(recorder.counters().spool_quarantined.value(), 0);
        std::fs::remove_dir(&file).unwrap();
        std::fs::rename(&hidden, &file).unwrap();
        collector.until("it has come", |held| held.chains.get(&id).is_some_and(|c| c.closed)).await;
        recording.drain().await.unwrap();
        let held = collector.held();
        assert!(held.entries.iter().all(|e| e.lost.is_empty()));
        assert_eq!(held.entries.last().unwrap().heartbeat.as_ref().unwrap().spooled_segments, 0);
        assert!(held.entries.iter().all(|e| !matches!(e.mark, Some(Mark::RolledBack(_)))));
    });
}

#[test]
fn refusals_are_answered_with_what_is_wanted() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let collector = Collector::new(Manner::Fussy);
        let (port, _server) = collector.listen(0).await;
        enroll(folder.path(), &Collector::token(port), "host", false).await.unwrap();
        let (recorder, recording) = start(folder.path()).await;
        let id = session(&recorder, 30).await;
        collector.until("the session is whole", |held| held.chains.get(&id).is_some_and(|c| c.closed)).await;
        assert_eq!(collector.held().marks(id), (1..=30).collect::<Vec<_>>());
        assert!(recorder.counters().refused.value() >= 3);
        recording.drain().await.unwrap();
        assert_eq!(spool_files(folder.path()), 0);
    });
}

#[test]
fn what_is_called_tampered_with_stays_in_the_spool() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let collector = Collector::new(Manner::Suspicious);
        let (port, _server) = collector.listen(0).await;
        enroll(folder.path(), &Collector::token(port), "host", false).await.unwrap();
        let (recorder, recording) = start(folder.path()).await;
        let id = session(&recorder, 1).await;
        wait_for("it was refused", || recorder.counters().refused_tamper.value() > 0).await;
        assert_eq!(spool_files(folder.path()), 1);
        assert_eq!(recording.status().stuck, [(id.to_string(), "refused as tampered with")]);
        recording.drain().await.unwrap();
    });
}
