//! Generations end with their hour and their day; sessions go on under the next.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

/// Hours by which the clocks of this test are ahead.
static AHEAD_HOURS: AtomicU64 = AtomicU64::new(0);

fn ahead() -> Moment {
    let (now, hours) = (Moment::now(), AHEAD_HOURS.load(Ordering::Relaxed));
    Moment { boot_ns: now.boot_ns + hours * 3_600_000_000_000, day: now.day + (hours / 24) as u32 }
}

async fn wait_for(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..600 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not within 30 s: {what}");
}

/// Fills a segment, and waits until it is in the spool.
async fn segment(session: &mut crate::recording::SessionRecord, state: &Path, exchange: u64) {
    let before = segment_files(state).len();
    for _ in 0..6 {
        session.write(data(exchange, &vec![exchange as u8; 50_000])).await.unwrap();
    }
    wait_for("a segment is sealed", || segment_files(state).len() > before).await;
}

#[test]
fn a_session_goes_on_under_the_key_of_the_next_hour_and_of_the_next_day() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path();
    runtime().block_on(async {
        let config = RecordingConfig { moment: ahead, ..config(state) };
        let (recorder, recording) = Recording::start(config).await.unwrap();
        let mut long = recorder.open(opened()).await.unwrap();
        let id = long.session();
        segment(&mut long, state, 1).await;
        assert_eq!(recorder.counters().generations.value(), 1, "the hour is not over");
        for (step, hours) in [2u64, 26, 27].into_iter().enumerate() {
            AHEAD_HOURS.store(hours, Ordering::Relaxed);
            wait_for("the next key is drawn", || recorder.counters().generations.value() == step as u64 + 2)
                .await;
            segment(&mut long, state, step as u64 + 2).await;
        }
        long.close(closed()).await.unwrap();
        recording.drain().await.unwrap();
        // Verifies signatures and the chain, and opens each segment with the wrap of its own generation.
        let read = &read_back(state)[&id];
        assert!(read.closed && read.gaps().is_empty());
        let mut exchanges = read.marks();
        exchanges.dedup();
        assert_eq!(exchanges, [1, 2, 3, 4]);
        assert_eq!(read.generations.len(), 4, "each hour seals under a key of its own");
    });
}
