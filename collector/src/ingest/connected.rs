//! Which agents have a stream now: one each, at most so many, and any of them can be ended at once. What is known of an
//! agent only while it speaks is kept here too.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use tokio_util::sync::CancellationToken;
use tonic::Status;
use weir_proto::NodeId;

use crate::metrics::Metrics;

/// What an agent is told, and tells in its turn, when its node is revoked.
pub const REVOKED: &str = "this node was revoked: nothing more is taken from it, and what it holds stays in its spool. If that was not meant, \
     ask an administrator of the collector; the host joins again as a new node, with a new join token and another state directory";

/// Cheap to clone.
#[derive(Clone)]
pub struct Connected {
    seats: Arc<Mutex<Seats>>,
    max: usize,
    metrics: Metrics,
}

#[derive(Default)]
struct Seats {
    taken: HashMap<NodeId, Taken>,
    next: u64,
}

struct Taken {
    number: u64,
    end: End,
    clock_offset_ms: Option<i64>,
}

/// Why a seat is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Revoked,
    /// The same agent has come again.
    Replaced,
}

/// Ends a stream, with the reason.
#[derive(Clone)]
struct End {
    now: CancellationToken,
    why: Arc<OnceLock<Ending>>,
}

impl End {
    fn say(&self, why: Ending) {
        // The first reason stays.
        let _ = self.why.set(why);
        self.now.cancel();
    }
}

/// An agent's place; free again on drop.
pub struct Seat {
    node: NodeId,
    number: u64,
    end: End,
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
        let end = End { now: shutdown.child_token(), why: Arc::default() };
        let taken = Taken { number, end: end.clone(), clock_offset_ms: None };
        if let Some(old) = seats.taken.insert(node, taken) {
            old.end.say(Ending::Replaced);
        }
        self.metrics.agents.set(seats.taken.len() as i64);
        Some(Seat { node, number, end, connected: self.clone() })
    }

    pub fn is_connected(&self, node: &NodeId) -> bool {
        self.lock().taken.contains_key(node)
    }

    /// The agent's clock less this one, as it last said; `None` when it is away or says nothing of its clock.
    pub fn clock_offset_ms(&self, node: &NodeId) -> Option<i64> {
        self.lock().taken.get(node)?.clock_offset_ms
    }

    /// Ends a node's stream now, because it was revoked.
    pub fn revoke(&self, node: &NodeId) {
        if let Some(taken) = self.lock().taken.get(node) {
            taken.end.say(Ending::Revoked);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Seat {
    /// Waits until the stream has to end; gives what the agent is told.
    pub async fn ended(&self) -> Status {
        self.end.now.cancelled().await;
        match self.end.why.get() {
            Some(Ending::Revoked) => Status::permission_denied(REVOKED),
            Some(Ending::Replaced) => Status::aborted("a newer stream of this node took over"),
            None => Status::unavailable("the collector is shutting down: come again"),
        }
    }

    /// What the agent's clock said just now, against this one.
    pub fn said_clock(&self, offset_ms: i64) {
        if let Some(taken) = self.connected.lock().taken.get_mut(&self.node)
            && taken.number == self.number
        {
            taken.clock_offset_ms = Some(offset_ms);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = self.connected.lock();
        if seats.taken.get(&self.node).is_some_and(|taken| taken.number == self.number) {
            seats.taken.remove(&self.node);
        }
        self.connected.metrics.agents.set(seats.taken.len() as i64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_seat_is_taken_over_and_freed_once() {
        let connected = Connected::new(1, Metrics::default());
        let shutdown = CancellationToken::new();
        let node = NodeId::generate();
        let first = connected.seat(node, &shutdown).unwrap();
        assert!(connected.seat(NodeId::generate(), &shutdown).is_none(), "one agent is the bound here");
        let second = connected.seat(node, &shutdown).unwrap();
        assert_eq!(first.ended().await.code(), tonic::Code::Aborted);
        assert!(!second.end.now.is_cancelled());
        drop(first);
        assert!(connected.is_connected(&node), "the old stream's end does not free the new one's seat");
        second.said_clock(-7);
        assert_eq!(connected.clock_offset_ms(&node), Some(-7));
        connected.revoke(&node);
        let told = second.ended().await;
        assert!(told.code() == tonic::Code::PermissionDenied && told.message().contains("revoked"));
        drop(second);
        assert!(!connected.is_connected(&node));
        assert_eq!(connected.clock_offset_ms(&node), None);
    }

    #[tokio::test]
    async fn a_shutdown_is_no_revocation() {
        let shutdown = CancellationToken::new();
        let seat = Connected::new(1, Metrics::default()).seat(NodeId::generate(), &shutdown).unwrap();
        shutdown.cancel();
        assert_eq!(seat.ended().await.code(), tonic::Code::Unavailable);
    }
}
