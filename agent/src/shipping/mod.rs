//! Shipping: joining a collector, and one stream that brings it what the spool and the node log hold.
//!
//! * [`identity`]: who this node is, on disk
//! * [`certificate`]: what it shows the collector, replaced whole; [`renewal`]: before it ends
//! * [`enroll`](mod@enroll): joining with a token
//! * [`connection`]: mutual TLS to the collector
//! * [`stream`]: one stream: hello, wraps, segments within a window, receipts
//! * [`start`]: the task that keeps a stream up

mod certificate;
mod connection;
mod enroll;
pub(crate) mod identity;
mod renewal;
mod start;
mod stream;

#[cfg(test)]
mod tests;

pub(crate) use enroll::{enroll, ensure_keys};
pub(crate) use identity::{Identity, IdentityError, is_enrolled};
pub(crate) use start::{Shipping, ShippingStatus};
