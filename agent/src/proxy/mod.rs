//! The data path: from an accepted socket to a closed session.
//!
//! * [`accept`]: takes redirected connections at full rate
//! * [`connection`]: the story of one connection, top to bottom
//! * [`refuse`]: tells a client in its own protocol why it may not connect
//! * [`upstream`]: dials where the process wanted to go
//! * [`pump`]: the only I/O loop, over two [`leg`]s
//! * [`tape`]: what a session leaves behind; [`events`]: notes as events of the recording format

pub(crate) mod accept;
pub(crate) mod connection;
mod events;
mod leg;
mod pump;
mod refuse;
mod tape;
mod unsent;
mod upstream;

pub(crate) use tape::Tape;
