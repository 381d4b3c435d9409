//! The spool: sealed segments on disk until the collector has promised to hold them. Files are written once, under
//! their final name only when their bytes are on the disk, and sent byte for byte.
//!
//! * [`files`]: names, durable writing, reading back with a check
//! * [`store`]: what is there, in which order it leaves, when it may be deleted, quota

mod files;
mod store;

pub(crate) use files::sync_folder;
pub(crate) use store::{Newest, SegmentRef, Spool, SpoolError, SpoolLimits, Spooled};
