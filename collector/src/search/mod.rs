//! What people type to find exchanges, and what is made of what was found. Pure: no SQL, no clock, no I/O.
//!
//! * [`query`]: a question, understood
//! * [`fields`]: the one table of fields: parser, help and documentation are made from it
//! * [`parse`]: from text to a question, or an error that says where and what to do
//! * [`values`]: times, durations, sizes, patterns, ranges
//! * [`cursor`]: where a list goes on; signed, and bound to its question
//! * [`snippet`]: the piece of a text that answers, and what in it does

pub mod cursor;
pub mod fields;
pub mod parse;
pub mod query;
pub mod snippet;
pub mod values;

pub use cursor::{CursorKey, Position};
pub use parse::{Mistake, parse};
pub use query::Query;
