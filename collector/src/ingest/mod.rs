//! From a node agent's stream to a receipt: verify -> put bundle -> one SQL transaction -> signed receipt.
//!
//! * [`service`]: the calls of `weir.v1.Ingest`, and who may make them; [`bounded`]: how much room the small ones get
//! * [`enroll`]: a join token becomes a node, a node's certificate is renewed
//! * [`stream`]: one agent's stream, bounded in all it can hold
//! * [`check`]: what one sealed segment must prove by itself
//! * [`digest`]: what its events say, for the index
//! * [`acceptance`]: what it must prove against the session's chain; commits a batch
//! * [`committer`]: groups what all streams bring into batches
//! * [`text`]: full text, which follows
//! * [`connected`]: which agents have a stream now

pub mod acceptance;
pub mod bounded;
pub mod check;
pub mod committer;
pub mod connected;
pub mod digest;
pub mod enroll;
pub mod service;
pub mod stream;
pub mod text;

pub use acceptance::Acceptance;
pub use bounded::Bounded;
pub use committer::Committer;
pub use connected::Connected;
pub use service::IngestService;
pub use text::TextFollower;
