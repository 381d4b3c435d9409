//! Checks recordings on the reader's side, from what is stored, without trusting the collector that sends it. Pure.
//!
//! * [`session`]: the segments of sessions: signatures, chains, receipts, completeness
//! * [`node`]: a node's log, and that every session it names is there
//! * [`spooled`]: which missing segments may still be with their node agent
//! * [`pins`]: the keys and logs seen first, and what it means when they change
//! * [`terms`]: what claims that nobody signed are held against
//!
//! What is proven, and what is only the collector's word, is said by the reports; `docs/security.md` says who can do what.

pub mod node;
pub mod pins;
pub mod session;
mod spooled;
pub mod terms;

pub use node::{Ended, NodeReport, NodeVerifier};
pub use pins::Pins;
pub use session::{SessionReport, SessionVerifier, SessionsReport};
pub use terms::Terms;

use weir_proto::{NodeId, SessionId};

/// Something is wrong.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Problem {
    #[serde(serialize_with = "shown")]
    pub node: Option<NodeId>,
    #[serde(serialize_with = "shown")]
    pub session: Option<SessionId>,
    /// Segment of the session.
    pub seq: Option<u64>,
    pub what: String,
}

/// Wall-clock time, UTC, for people.
fn day(unix_ns: i64) -> String {
    let format = time::macros::format_description!("[year]-[month]-[day] [hour]:[minute]:[second]");
    time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ns))
        .ok()
        .and_then(|at| at.format(&format).ok())
        .unwrap_or_else(|| format!("{unix_ns} ns"))
}

fn shown<T: std::fmt::Display, S: serde::Serializer>(value: &Option<T>, to: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => to.collect_str(value),
        None => to.serialize_none(),
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.session, self.seq, &self.node) {
            (Some(session), Some(seq), _) => write!(f, "session {session} segment {seq}: {}", self.what),
            (Some(session), None, _) => write!(f, "session {session}: {}", self.what),
            (None, _, Some(node)) => write!(f, "node {node}: {}", self.what),
            (None, ..) => f.write_str(&self.what),
        }
    }
}
