//! Against a collector made for this: honest, absent, forgetful, lying.
//!
//! * [`collector`]: that collector
//! * [`joining`]: tokens, keys, and what is said where they are missing
//! * [`streams`]: what is recorded arrives, whatever the collector does
//! * [`log`]: the node log goes on from the collector's
//! * [`fleet`]: certificates that are renewed or end, revocation, other versions

mod collector;
mod fleet;
mod joining;
mod log;
mod streams;

use std::path::Path;
use std::time::Duration;

use weir_proto::SessionId;
use weir_proto::v1;
use weir_proto::v1::event::Kind;

use crate::recording::{Mode, Moment, Recorder, Recording, RecordingConfig};

fn runtime() -> tokio::runtime::Runtime {
    // Another test of this process may have been first.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn config(state: &Path) -> RecordingConfig {
    RecordingConfig {
        state_dir: state.to_owned(),
        mode: Mode::Collector,
        journal_bytes: 4 << 20,
        spool_quota_bytes: 1 << 30,
        moment: Moment::now,
    }
}

async fn start(state: &Path) -> (Recorder, Recording) {
    Recording::start(config(state)).await.unwrap()
}

/// A closed session with this many data events of 50 kB, which do not fit one segment when there are more than 5.
async fn session(recorder: &Recorder, events: u64) -> SessionId {
    let mut session = recorder.open(v1::Opened::default()).await.unwrap();
    for exchange in 1..=events {
        let bytes = vec![exchange as u8; 50_000].into();
        session.write(Kind::Data(v1::Data { exchange, bytes, ..Default::default() })).await.unwrap();
    }
    let id = session.session();
    session.close(v1::Closed::default()).await.unwrap();
    id
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

fn spool_files(state: &Path) -> usize {
    std::fs::read_dir(state.join("spool/segments")).unwrap().count()
}
