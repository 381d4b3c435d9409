//! Certificates that are renewed or end, revocation, collectors of other versions.

use std::time::Duration;

use super::collector::{Collector, DAYS, Manner};
use super::{runtime, session, spool_files, start, wait_for};
use crate::recording::{Recording, clock};
use crate::shipping::enroll;

fn said(recording: &Recording) -> String {
    serde_json::to_string(&recording.status()).unwrap()
}

#[test]
fn a_certificate_is_renewed_under_load_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let collector = Collector::new(Manner::Honest);
        collector.held().life_seconds = 3;
        let (port, _server) = collector.listen(0).await;
        enroll(folder.path(), &Collector::token(port), "host", false).await.unwrap();
        let (recorder, recording) = start(folder.path()).await;
        let mut sessions = Vec::new();
        for n in 0..40 {
            sessions.push((session(&recorder, n % 7).await, n % 7));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        for (id, n) in sessions {
            collector
                .until("each session is whole", |held| held.chains.get(&id).is_some_and(|c| c.closed))
                .await;
            assert_eq!(collector.held().marks(id), (1..=n).collect::<Vec<_>>());
        }
        {
            let held = collector.held();
            assert_eq!(held.renewals, 1, "its successor lives for an hour");
            assert_ne!(held.shown.first(), held.shown.last(), "a stream was opened with the new one");
        }
        let identity = folder.path().join("identity");
        assert!(!identity.join("client.next.json").exists(), "it has taken the old one's place");
        recording.drain().await.unwrap();
        assert_eq!(spool_files(folder.path()), 0);
        drop((recorder, recording));
        // The next start goes on with it.
        let streams = collector.held().shown.len();
        let (recorder, recording) = start(folder.path()).await;
        session(&recorder, 1).await;
        collector.until("it is back", |held| held.shown.len() > streams).await;
        let shown = collector.held().shown.clone();
        assert_eq!(shown[streams - 1], shown[streams]);
        recording.drain().await.unwrap();
    });
}

#[test]
fn a_renewal_that_fails_is_told_and_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let collector = Collector::new(Manner::Stingy);
        collector.held().life_seconds = 2;
        let (port, _server) = collector.listen(0).await;
        enroll(folder.path(), &Collector::token(port), "host", false).await.unwrap();
        let (_recorder, recording) = start(folder.path()).await;
        wait_for("it is told", || said(&recording).contains("gave no new certificate")).await;
        assert!(said(&recording).contains("\"connected\":true"), "the stream goes on meanwhile");
        collector.manner(Manner::Honest);
        collector.until("it was renewed", |held| held.renewals == 1).await;
        wait_for("it is told no more", || said(&recording).contains("\"renewal_error\":null")).await;
        recording.drain().await.unwrap();
    });
}

#[test]
fn a_renewed_certificate_that_no_collector_takes_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let collector = Collector::new(Manner::Forger);
        collector.held().life_seconds = 3;
        let (port, _server) = collector.listen(0).await;
        enroll(folder.path(), &Collector::token(port), "host", false).await.unwrap();
        let (recorder, recording) = start(folder.path()).await;
        collector.until("a bad one was given", |held| held.renewals > 0).await;
        let streams = collector.held().shown.len();
        collector.manner(Manner::Honest);
        collector.until("it came back with the old one", |held| held.shown.len() > streams).await;
        let shown = collector.held().shown.clone();
        assert_eq!(shown[0], shown[streams]);
        // And then, once more, gets a good one.
        collector.until("it was renewed", |held| held.shown.last() != held.shown.first()).await;
        let id = session(&recorder, 3).await;
        collector.until("it ships", |held| held.chains.get(&id).is_some_and(|c| c.closed)).await;
        recording.drain().await.unwrap();
    });
}

#[test]
fn a_revoked_node_is_told_so_and_keeps_its_spool() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let collector = Collector::new(Manner::Honest);
        let (port, _server) = collector.listen(0).await;
        enroll(folder.path(), &Collector::token(port), "host", false).await.unwrap();
        collector.manner(Manner::Final);
        let (recorder, recording) = start(folder.path()).await;
        session(&recorder, 3).await;
        wait_for("it is told", || {
            said(&recording).contains("refuses this node agent: this node was revoked")
        })
        .await;
        wait_for("the spool has it", || spool_files(folder.path()) > 0).await;
        assert!(said(&recording).len() < 2000, "what a collector says is cut");
        recording.drain().await.unwrap();
        assert!(spool_files(folder.path()) > 0, "and keeps it");
    });
}

#[test]
fn a_collector_of_a_later_version_may_say_more() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let collector = Collector::new(Manner::Chatty);
        let (port, _server) = collector.listen(0).await;
        enroll(folder.path(), &Collector::token(port), "host", false).await.unwrap();
        let (recorder, recording) = start(folder.path()).await;
        // Each message is answered by twenty that mean nothing here: more than may make no sense.
        for n in 1..20 {
            let id = session(&recorder, n).await;
            collector.until("it ships", |held| held.chains.get(&id).is_some_and(|c| c.closed)).await;
        }
        assert_eq!(recorder.counters().disconnects.value(), 0);
        // Among what it says are newer keys: they are taken, for as long as the stream lives and after it.
        let until = clock::today() + DAYS;
        assert!(said(&recording).contains(&format!("\"keys_until_day\":{until}")), "{}", said(&recording));
        recording.drain().await.unwrap();
    });
}

#[test]
fn a_node_joins_again_as_itself_and_only_where_it_belongs() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let collector = Collector::new(Manner::Honest);
        let (port, server) = collector.listen(0).await;
        let node = enroll(folder.path(), &Collector::token(port), "host", false).await.unwrap();
        server.abort();
        let _ = server.await;
        let (recorder, recording) = start(folder.path()).await;
        session(&recorder, 2).await;
        wait_for("it is spooled", || spool_files(folder.path()) > 0).await;

        // While the agent runs: it goes on with the new one by itself.
        collector.held().tokens_used = 0;
        let (_, _server) = collector.listen(port).await;
        let again = enroll(folder.path(), &Collector::token(port), "host", true).await.unwrap();
        assert_eq!(again, node);
        collector.until("what was spooled comes", |held| held.chains.values().any(|c| c.closed)).await;
        recording.drain().await.unwrap();
        assert_eq!(spool_files(folder.path()), 0);

        // A collector that takes the node for another one.
        collector.held().tokens_used = 0;
        collector.held().node = weir_proto::NodeId::generate();
        let before = std::fs::read(folder.path().join("identity/client.json")).unwrap();
        let refused = enroll(folder.path(), &Collector::token(port), "host", true).await.unwrap_err();
        assert!(refused.to_string().contains("another one"), "{refused}");
        assert_eq!(std::fs::read(folder.path().join("identity/client.json")).unwrap(), before);
    });
}

#[test]
fn a_certificate_that_has_ended_is_told_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let collector = Collector::new(Manner::Late);
        let (port, _server) = collector.listen(0).await;
        // By the collector's clock; this node's says that there is an hour left.
        let mut told = String::new();
        for attempt in 0..100 {
            collector.held().tokens_used = 0;
            let token = Collector::token(port);
            told = enroll(folder.path(), &token, "host", attempt > 0).await.unwrap_err().to_string();
            // This server closes at once, so that the reason may be lost on the way; a real one lets it be read.
            if told.contains("weir-agent join --again") {
                break;
            }
        }
        assert!(told.contains("weir-agent join --again"), "{told}");
    });
}
