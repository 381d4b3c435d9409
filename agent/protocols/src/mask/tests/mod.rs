//! What must never be seen, what must stay readable, and what holds for all bytes.

mod planted;
mod properties;
mod readable;
