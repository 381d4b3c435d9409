//! Retention: what goes is gone, what stays says so.

use std::time::Duration;

use weir_collector::metrics::Metrics;
use weir_collector::retention::{Keep, Retention};
use weir_collector::store::sqlite::Subject;
use weir_collector::store::{Bundles, Store};
use weir_collector::verify::{Pins, SessionVerifier, Terms};
use weir_proto::RunId;
use weir_proto::v1::{self, event::Kind, refused::Why};

use crate::agent::{Agent, BOOT, Recorded, event};
use crate::collector::Collector;
use crate::verification::proof;

const DAY_MS: i64 = 86_400_000;

#[tokio::test]
async fn old_sessions_leave_a_tombstone_and_nothing_else() {
    let mut collector = Collector::start().await;
    let mut agent = Agent::join(&collector, "db-1").await;
    let run = RunId::generate();
    let mut recorded = agent.session(run);
    let segments = recorded.whole(2);
    let mut shipping = agent.ship(&collector).await;
    for sealed in &segments {
        shipping.receipt(sealed).await;
    }
    let objects = collector.config.data.join("objects/bundles");
    assert_ne!(files(&objects), 0);
    collector
        .restart(async |data| {
            let store = Store::open(data).await.unwrap();
            let keep =
                Keep { recordings: Some(Duration::from_secs(3600)), accesses: Duration::from_secs(1 << 30) };
            let retention = Retention { store, keep, metrics: Metrics::default() };
            let now = weir_collector::clock::unix_ms();
            retention.round(now).await.unwrap();
            assert_eq!(retention.metrics.segments_expired.get(), 0, "an hour is not over");
            retention.round(now + DAY_MS).await.unwrap();
            assert_eq!(
                retention.metrics.segments_expired.get(),
                0,
                "one reading of the clock deletes nothing"
            );
            retention.round(now + DAY_MS + 600_000).await.unwrap();
            assert_eq!(retention.metrics.segments_expired.get(), 2);
            retention.store.index.close().await;
        })
        .await;
    assert_eq!(files(&objects), 0, "bundles without segments are deleted");

    let mut query = collector.query().await;
    let asked = v1::SessionsRequest { run_id: run.to_field(), ..Default::default() };
    let session = query.sessions(collector.asked(asked)).await.unwrap().into_inner().sessions.remove(0);
    assert_eq!((session.segments, session.expired_segments), (2, 2));
    assert_eq!(session.process.unwrap(), v1::Process::default());
    let asked = v1::ExchangesRequest { run_id: run.to_field(), ..Default::default() };
    assert!(query.exchanges(collector.asked(asked)).await.unwrap().into_inner().exchanges.is_empty());
    let summary =
        query.runs(collector.asked(v1::RunsRequest::default())).await.unwrap().into_inner().runs.remove(0);
    assert!(summary.expired && summary.run.as_ref().unwrap().argv.is_empty());
    // What was said is in no page of the index any more, not even in a free one.
    let index = std::fs::read(collector.config.data.join("index.sqlite")).unwrap();
    assert!(!index.windows(9).any(|bytes| bytes == b"SELECT 1\0" || bytes.starts_with(b"SELECT 2")));

    let now = weir_collector::clock::unix_ms();
    let mut pins = Pins::default();
    let items = proof(&collector, run).await;
    for (now, believed) in [(now + DAY_MS, true), (now, false)] {
        let mut verifier = SessionVerifier::new(&mut pins, Subject::Run(run), Terms::at(now));
        items.iter().cloned().for_each(|item| verifier.take(item));
        let report = verifier.finish();
        assert_eq!(
            report.is_ok(),
            believed,
            "a minute after it was recorded nothing is old: {:?}",
            report.problems
        );
        assert_eq!(report.sessions[0].expired, 2);
    }

    // The agent never saw its receipt: it may still let go of what was held and expired.
    let mut shipping = agent.ship(&collector).await;
    shipping.receipt(&segments[1]).await;
    // Of nothing else, though: no receipt promises what was never here.
    let mut other = Recorded::new(&agent, recorded.session, run, recorded.number);
    let events = [other.opened_event(), event(7, Kind::Gap(v1::Gap::default()))];
    assert_eq!(shipping.refused(&other.seal(&events, false)).await.why(), Why::Tamper);
    let asked = v1::PlayRequest { run_id: run.to_field(), ..Default::default() };
    let mut events = query.play(collector.asked(asked)).await.unwrap().into_inner();
    assert!(events.message().await.unwrap().is_none(), "{BOOT}");
}

#[tokio::test]
async fn a_bundle_without_a_transaction_is_swept_after_a_day() {
    let mut collector = Collector::start().await;
    let mut agent = Agent::join(&collector, "db-1").await;
    let sealed = agent.session(RunId::generate()).whole(1).remove(0);
    agent.ship(&collector).await.receipt(&sealed).await;
    let objects = collector.config.data.join("objects/bundles");
    let mut shipping = agent.connect(&collector).await.unwrap();
    collector
        .restart(async |data| {
            let store = Store::open(data).await.unwrap();
            // As after a kill between PUT and COMMIT.
            let key = Bundles::new_key(weir_collector::clock::unix_ms());
            store.bundles.clone().put(key, vec![sealed.bytes.clone()]).await.unwrap();
            assert_eq!(files(&objects), 2);
            let keep = Keep { recordings: None, accesses: Duration::from_secs(1 << 30) };
            let retention = Retention { store, keep, metrics: Metrics::default() };
            let now = weir_collector::clock::unix_ms();
            for _ in 0..2 {
                retention.round(now + DAY_MS - 60_000).await.unwrap();
            }
            assert_eq!(files(&objects), 2, "its transaction might still be under way");
            retention.round(now + DAY_MS + 60_000).await.unwrap();
            assert_eq!(files(&objects), 1);
            assert_eq!(retention.metrics.orphans_swept.get(), 1);
            retention.store.index.close().await;
        })
        .await;
    assert!(shipping.answer().await.is_err());
    agent.ship(&collector).await.receipt(&sealed).await;
}

/// Files below a folder.
pub(crate) fn files(folder: &std::path::Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries.map(|entry| entry.unwrap().path()).map(|path| if path.is_dir() { files(&path) } else { 1 }).sum()
}
