//! The node log on disk: files of length-delimited signed entries, each file named by the index of its first entry.
//! Kept until the collector holds them (standalone: for good).
//!
//! * [`log`]: opening, appending, reading back, comparing with the collector's copy, going on from it
//! * [`files`]: names, reading, which sessions the deleted files left open, and how one log takes another's place

mod files;
mod log;
#[cfg(test)]
mod tests;

pub(crate) use log::{LogStanding, NodeLog, NodeLogError};
pub(super) use log::{Recovered, split};
