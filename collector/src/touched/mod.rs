//! What a run touched: where it went, which databases, tables and paths, and whether it read or wrote them. Pure.
//!
//! * [`report`]: adds up sessions and exchanges
//! * [`tables`]: the tables of a statement, by the grammar
//! * [`analyst`]: the grammar on a thread of its own, which may be given up
//! * [`paths`]: paths of one kind, under one name

pub mod analyst;
pub mod paths;
pub mod report;
pub mod tables;

pub use report::Report;
