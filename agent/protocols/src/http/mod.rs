//! HTTP/1.0 and 1.1, on the way between a client and a server.
//!
//! Two rungs. `h1` is the framing and the [`Conversation`](crate::Conversation): it cuts bytes into heads and bodies, keeps
//! the order of requests and answers, and passes on exactly the bytes that came. `exchange` is what one request and its
//! answer mean for the record, whatever version of HTTP carries them; HTTP/2 will feed it as well.
//!
//! ```text
//!  client ─► read ─► open exchanges ─► release ─► upstream    read: frame, note, ask                  (h1/request.rs)
//!                       ▲ verdicts                            release: forward, deny, in order        (h1/release.rs)
//!  client ◄─ answers of ours, in their turn ◄──── upstream    relay: frame, note, pass on, in order   (h1/response.rs)
//! ```
//!
//! * `message`: what heads say; `target`: where a request goes; `verb`: methods as words
//! * `exchange`: one exchange; `answer`: what we answer in the server's place
//! * `refusal`: what to say when the connection itself is denied
//! * `recognize`: whether first bytes are HTTP's; `rendering`: recorded exchanges for people and for search

mod answer;
mod exchange;
mod h1;
mod message;
pub(crate) mod recognize;
mod refusal;
pub(crate) mod rendering;
mod target;
#[cfg(test)]
mod tests;
mod verb;

pub use h1::{
    CHUNK_LINE_BYTES_MAX, HEAD_BYTES_MAX, HEAD_MS_MAX, HEADERS_MAX, HELD_BYTES_MAX, Http1, PIPELINED_MAX,
    SWALLOWED_BYTES_MAX, TRAILER_BYTES_MAX,
};
pub use refusal::{Refusal, refuse};

/// The entry for fuzzers.
#[cfg(any(test, feature = "suite"))]
pub fn fuzz(data: &[u8]) {
    crate::suite::fuzz(|start| Box::new(Http1::new(start)), data);
}
