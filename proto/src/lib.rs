//! What the node agent and the collector share: the messages, the ids, and the one implementation of sealing.
//!
//! * [`v1`]: the protobuf messages of `proto/v1/*.proto`
//! * [`ids`]: a type per id
//! * [`credential`]: join tokens and credentials as people copy them
//! * [`seal`]: segments, chain, signatures, key wraps, node log; `docs/format.md` specifies the bytes

pub mod credential;
pub mod ids;
pub mod seal;

pub use ids::{GenerationId, KeyId, NodeId, RunId, SessionId};

/// The protobuf messages, generated from `proto/v1/*.proto`.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::large_futures,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod v1 {
    tonic::include_proto!("weir.v1");
}
