//! What is recorded. Every text and every byte in a note is [`Masked`]; numbers, enums and our own words are plain.

use std::borrow::Cow;

use crate::mask::Masked;
use crate::seam::{ExchangeId, Instant, Side};

/// One thing to record, about an exchange or about the session ([`ExchangeId::SESSION`]).
#[derive(Debug)]
pub enum Note {
    /// Something was learned about the session.
    Facts(Facts),
    /// A request is understood. Comes with the `Ask`, before any verdict.
    Asked(OperationRecord),
    /// Protocol bytes that were, or are about to be, sent on; from which side they came.
    Data(Side, Masked),
    /// The exchange is over. Exactly one per `Asked`.
    Finished(Box<Finished>),
    /// Something is missing, and why.
    Gap { reason: &'static str, bytes: u64 },
}

#[derive(Debug, Default)]
pub struct Facts {
    pub protocol: &'static str,
    pub protocol_version: Cow<'static, str>,
    pub values: Vec<(Cow<'static, str>, Masked)>,
    /// How the session counts from here on.
    pub coverage: Option<Coverage>,
}

/// Exactly one holds for a session at its end. `Refused` is set by the connection, never by a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coverage {
    Inspected,
    MetadataOnly(&'static str),
    Refused(&'static str),
}

#[derive(Clone, Debug, Default)]
pub struct OperationRecord {
    /// "sql", "opaque", ...
    pub kind: &'static str,
    pub verb: &'static str,
    /// At most [`TEXT_BYTES_MAX`], else cut.
    pub text: Masked,
    pub text_truncated: bool,
    pub defined_by: Option<ExchangeId>,
    /// Of the prepared statement or portal.
    pub name: Masked,
    /// At most [`PARAMETERS_MAX`].
    pub parameters: Vec<ValueRecord>,
    pub oversized: bool,
}

/// Longest statement text kept in an `asked` event, bytes; the whole text is in the `data` events.
pub const TEXT_BYTES_MAX: usize = 64 * 1024;
/// Most parameters shown of one exchange; all are in the `data` events.
pub const PARAMETERS_MAX: usize = 256;
/// Longest shown parameter, bytes.
pub const SHOWN_BYTES_MAX: usize = 1024;

#[derive(Clone, Debug)]
pub struct ValueRecord {
    pub type_name: Cow<'static, str>,
    pub shown: Masked,
    pub null: bool,
    pub bytes: u64,
    pub truncated: bool,
}

#[derive(Debug)]
pub struct Finished {
    pub operation: OperationRecord,
    pub outcome: Outcome,
    /// Command tag or error code: "SELECT 5", "42P01".
    pub status: Masked,
    pub error: Masked,
    pub rows: u64,
    /// Name and type; at most [`PARAMETERS_MAX`].
    pub columns: Vec<(Masked, Cow<'static, str>)>,
    pub asked_at: Instant,
    pub first_reply_at: Option<Instant>,
    pub finished_at: Instant,
    pub request_bytes: u64,
    pub response_bytes: u64,
    /// Of the verdict; empty when none came.
    pub rule: std::sync::Arc<str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Ok,
    /// The upstream said so.
    Error,
    /// Policy said so.
    Denied,
    /// The client left before the verdict.
    Withdrawn,
    /// The connection ended first.
    Aborted,
}
