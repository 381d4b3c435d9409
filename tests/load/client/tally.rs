//! Counting what was done, and how long each of it took.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Stack of a connection's thread, bytes: it holds a few small buffers' addresses.
const STACK_BYTES: usize = 256 * 1024;

/// What one connection, or all of them, have done.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) connections: u64,
    pub(crate) bytes: u64,
    pub(crate) elapsed: Duration,
    /// Of each operation.
    latencies: Vec<Duration>,
    /// The first that went wrong: a run with one counts for nothing.
    pub(crate) error: Option<String>,
}

/// Tells a connection's thread when to stop, and takes what it did.
pub(crate) struct Clock {
    end: Instant,
    tally: Tally,
}

impl Clock {
    /// At least one operation is done, however short the time is.
    pub(crate) fn is_over(&self) -> bool {
        !self.tally.latencies.is_empty() && Instant::now() >= self.end
    }

    pub(crate) fn connected(&mut self) {
        self.tally.connections += 1;
    }

    pub(crate) fn done(&mut self, since: Instant, bytes: u64) {
        self.tally.latencies.push(since.elapsed());
        self.tally.bytes += bytes;
    }
}

/// Runs `session` on so many threads, again and again until the time is over or it fails.
pub(crate) fn drive(
    threads: usize,
    time: Duration,
    session: impl Fn(&mut Clock) -> anyhow::Result<()> + Sync,
) -> Tally {
    let start = Instant::now();
    let one = || {
        let mut clock = Clock { end: start + time, tally: Tally::default() };
        while clock.tally.error.is_none() && !clock.is_over() {
            if let Err(error) = session(&mut clock) {
                clock.tally.error = Some(format!("{error:#}"));
            }
        }
        clock.tally
    };
    let mut all = Tally::default();
    std::thread::scope(|scope| {
        let started: Vec<_> = (0..threads)
            .map(|_| std::thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, one))
            .collect();
        for thread in started {
            match thread.map(std::thread::ScopedJoinHandle::join) {
                Ok(Ok(tally)) => all.add(tally),
                Ok(Err(_)) => all.error = Some("a connection's thread panicked".to_owned()),
                Err(error) => all.error = Some(format!("no thread: {error}")),
            }
        }
    });
    all.elapsed = start.elapsed();
    all.latencies.sort_unstable();
    all
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.connections += other.connections;
        self.bytes += other.bytes;
        self.latencies.extend(other.latencies);
        self.error = self.error.take().or(other.error);
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "ops": self.latencies.len(),
            "connections": self.connections,
            "bytes": self.bytes,
            "seconds": self.elapsed.as_secs_f64(),
            "p50_us": self.quantile(0.50),
            "p99_us": self.quantile(0.99),
            "most_us": self.quantile(1.0),
            "error": self.error,
        })
    }

    fn quantile(&self, share: f64) -> f64 {
        let last = self.latencies.len().saturating_sub(1);
        let place = (last as f64 * share) as usize;
        self.latencies.get(place).map_or(0.0, |latency| latency.as_secs_f64() * 1e6)
    }
}
