//! Which agents have a stream now: one each, at most so many, and any of them can be ended at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio_util::sync::CancellationToken;
use weir_proto::NodeId;

use crate::metrics::Metrics;

/// Cheap to clone.
#[derive(Clone)]
pub struct Connected {
    seats: Arc<Mutex<Seats>>,
    max: usize,
    metrics: Metrics,
}

#[derive(Default)]
struct Seats {
    taken: HashMap<NodeId, (u64, CancellationToken)>,
    next: u64,
}

/// An agent's place; free again on drop.
pub struct Seat {
    node: NodeId,
    number: u64,
    /// Ends the stream: revoked, replaced by a newer one, or shutting down.
    pub ended: CancellationToken,
    connected: Connected,
}

impl Connected {
    pub fn new(max: usize, metrics: Metrics) -> Self {
        Self { seats: Arc::default(), max, metrics }
    }

    /// `None`: too many agents. An agent that comes again takes its own seat over: its old stream is a dead connection
    /// that nobody has noticed yet.
    pub fn seat(&self, node: NodeId, shutdown: &CancellationToken) -> Option<Seat> {
        let mut seats = self.lock();
        if seats.taken.len() >= self.max && !seats.taken.contains_key(&node) {
            return None;
        }
        seats.next += 1;
        let number = seats.next;
        let ended = shutdown.child_token();
        if let Some((_, old)) = seats.taken.insert(node, (number, ended.clone())) {
            old.cancel();
        }
        self.metrics.agents.set(seats.taken.len() as i64);
        Some(Seat { node, number, ended, connected: self.clone() })
    }

    pub fn is_connected(&self, node: &NodeId) -> bool {
        self.lock().taken.contains_key(node)
    }

    /// Ends a node's stream now.
    pub fn end(&self, node: &NodeId) {
        if let Some((_, ended)) = self.lock().taken.get(node) {
            ended.cancel();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = self.connected.lock();
        if seats.taken.get(&self.node).is_some_and(|(number, _)| *number == self.number) {
            seats.taken.remove(&self.node);
        }
        self.connected.metrics.agents.set(seats.taken.len() as i64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seat_is_taken_over_and_freed_once() {
        let connected = Connected::new(1, Metrics::default());
        let shutdown = CancellationToken::new();
        let node = NodeId::generate();
        let first = connected.seat(node, &shutdown).unwrap();
        assert!(connected.seat(NodeId::generate(), &shutdown).is_none(), "one agent is the bound here");
        let second = connected.seat(node, &shutdown).unwrap();
        assert!(first.ended.is_cancelled() && !second.ended.is_cancelled());
        drop(first);
        assert!(connected.is_connected(&node), "the old stream's end does not free the new one's seat");
        connected.end(&node);
        assert!(second.ended.is_cancelled());
        drop(second);
        assert!(!connected.is_connected(&node));
    }
}
