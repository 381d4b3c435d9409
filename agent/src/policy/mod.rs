//! Who may do what. The only owner of the `GrantKey`: nothing leaves for an upstream that was not permitted here.
//!
//! * [`targets`]: `[[target]]` rules as they stand in the configuration, and matching
//! * [`judge`]: decides connections and operations over one immutable snapshot of those rules

pub(crate) mod judge;
pub(crate) mod targets;

pub(crate) use judge::{Judge, Judgement};
pub(crate) use targets::{Capture, Rules};
