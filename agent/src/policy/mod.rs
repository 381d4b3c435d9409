//! Who may do what. The only owner of the `GrantKey`: nothing leaves for an upstream that was not permitted here.
//!
//! * [`targets`]: `[[target]]` rules as they stand in the configuration, and matching
//! * [`http`]: `[[target.http]]` rules likewise; [`readings`]: the ways in which servers read one request
//! * [`snapshot`]: one whole state of those rules, and what it says of connections and operations
//! * [`explain`]: what it would say, for whoever writes rules
//! * [`judge`]: turns that into verdicts, and takes new snapshots

pub(crate) mod explain;
mod http;
pub(crate) mod judge;
mod readings;
mod snapshot;
pub(crate) mod targets;

pub(crate) use judge::{Judge, Judgement};
pub(crate) use snapshot::{Snapshot, Stamp};
pub(crate) use targets::{Capture, Rules};
