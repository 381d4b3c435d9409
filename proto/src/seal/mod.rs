//! Sealing: the one implementation of the formats that the node agent writes and the collector (and anybody offline)
//! checks. Pure: no files, no sockets, no clock. `docs/format.md` specifies every byte.
//!
//! * [`segment`]: header, compression, encryption, hash and signature of one segment
//! * [`events`]: the plaintext of a segment, a bounded sequence of length-delimited events
//! * [`chain`]: the segments of one session, in order and without a hole
//! * [`keys`]: generation and session keys, and their wrap to the collector's key by HPKE
//! * [`node_log`]: the node agent's own signed chain
//! * [`promises`]: receipts, key sets and the proof at enrolment

pub mod chain;
pub mod events;
pub mod keys;
pub mod node_log;
pub mod promises;
pub mod segment;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod properties;

pub use chain::{Chain, ChainError};
pub use events::{EventError, Events, events, push_event};
pub use keys::{GenerationKey, KeyError, SessionKey, WrapKeyPair, draw_signing_key, unwrap, wrap};
pub use node_log::{HEARTBEAT_INTERVAL, NodeChain, NodeLogError};
pub use promises::{
    PromiseError, Receipted, enrol_proof, renew_proof, sign_key_set, sign_receipt, verify_enrol_proof,
    verify_key_set, verify_receipt, verify_renew_proof,
};
pub use segment::{
    Anchor, Draft, JournalRange, SealError, Sealed, Sealer, Segment, SegmentError, SegmentHeader,
};

pub use ed25519_dalek::{SigningKey, VerifyingKey};

/// The version of segments and node entries written here; also the only one read here.
pub const FORMAT_VERSION: u16 = 1;

/// The version of the messages on an agent's stream, beside what they carry: both sides say theirs, and neither sends what
/// the other cannot know. 1 brought renewal and key sets after the welcome.
pub const STREAM_VERSION: u32 = 1;

/// A SHA-256 digest: what chains are made of.
pub type Hash = [u8; 32];

/// What comes before the first of a chain.
pub const NO_HASH: Hash = [0; 32];

/// An ed25519 signature's length.
pub const SIGNATURE_BYTES: usize = 64;

/// SHA-256 over the parts, one after the other. Callers begin with a domain of fixed length, and every part but the
/// last has a fixed length too, so no two different inputs meet.
fn hash(parts: &[&[u8]]) -> Hash {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    for part in parts {
        context.update(part);
    }
    let mut out = NO_HASH;
    out.copy_from_slice(context.finish().as_ref());
    out
}

/// Signs domain || message.
fn sign(key: &SigningKey, domain: &[u8], message: &[u8]) -> [u8; SIGNATURE_BYTES] {
    use ed25519_dalek::Signer;
    key.sign(&[domain, message].concat()).to_bytes()
}

/// Checks a signature over domain || message. Strict: a weak key or a malleable signature does not pass.
fn signature_holds(key: &VerifyingKey, domain: &[u8], message: &[u8], signature: &[u8]) -> bool {
    let Ok(signature) = ed25519_dalek::Signature::from_slice(signature) else { return false };
    key.verify_strict(&[domain, message].concat(), &signature).is_ok()
}
