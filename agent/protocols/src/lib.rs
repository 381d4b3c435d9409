//! The pure side of the proxy: every protocol is a [`Conversation`], a state machine that takes inputs and gives effects.
//!
//! Nothing here knows a socket, a clock, a thread or a file. Time and the verdicts of policy are inputs; what should be
//! sent, asked and recorded are effects. The pump in `weir-agent` carries them out, in order.
//!
//! * [`seam`]: [`Conversation`], [`Input`], [`Effect`], the vocabulary
//! * [`verdict`]: permission as a value: [`Permit`](verdict::Permit), [`Grant`](verdict::Grant), [`Cleared`](verdict::Cleared)
//! * [`operation`]: what an exchange wants: all that policy reads
//! * [`note`]: what is recorded; carries only [`Masked`](mask::Masked)
//! * [`mask`]: the only maker of `Masked`; the data file of what authenticates
//! * [`kind`]: the list of protocols
//! * `coding`: content codings, for reading only
//! * [`detect`]: who speaks first, and what
//! * [`opaque`], [`postgres`], [`http`]: the conversations
//! * [`reader`]: bytes into frames, for every protocol that has some
//! * [`view`]: rendering of recorded bytes for people
//! * `suite` (a feature): the properties that every conversation has

pub(crate) mod coding;
pub mod detect;
pub mod http;
pub mod kind;
pub mod mask;
pub mod note;
pub mod opaque;
pub mod operation;
pub mod postgres;
pub mod reader;
pub mod seam;
#[cfg(any(test, feature = "suite"))]
pub mod suite;
pub mod verdict;
pub mod view;

pub use kind::Kind;
pub use note::Note;
pub use operation::Operation;
pub use seam::{Cause, Conversation, Effect, Effects, ExchangeId, Fault, Input, Instant, Side};
pub use verdict::{Cleared, Control, Denial, Grant, GrantKey, Permit, Verdict};
