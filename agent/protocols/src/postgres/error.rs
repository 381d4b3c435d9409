//! ErrorResponse: read from servers, written for denials ("Error and Notice Message Fields").

use std::ops::Range;

use bytes::Bytes;

use super::frame::{self, Fields, HEADER_BYTES};
use crate::mask::{MaskPlan, Masked};
use crate::verdict::Denial;

/// insufficient_privilege.
pub(crate) const DENIED: &str = "42501";
/// invalid_authorization_specification.
pub(crate) const CONNECTION_DENIED: &str = "28000";
/// Longest message kept in a record, bytes.
const MESSAGE_BYTES_MAX: usize = 4096;

/// What a server said went wrong.
#[derive(Clone, Debug, Default)]
pub(crate) struct ServerError {
    pub code: Masked,
    pub message: Masked,
}

impl ServerError {
    pub(crate) fn read(frame: &[u8], plan: &MaskPlan) -> Self {
        let field = |wanted: u8| {
            let range = fields(frame).into_iter().find(|(tag, _)| *tag == wanted).map(|(_, range)| range);
            let text = range.map_or(&b""[..], |range| &frame[range]);
            plan.text(&Bytes::copy_from_slice(text)).cut(MESSAGE_BYTES_MAX)
        };
        Self { code: field(b'C').cut(16), message: field(b'M') }
    }
}

/// The texts in an ErrorResponse or a NoticeResponse.
pub(crate) fn texts(frame: &[u8]) -> Vec<Range<usize>> {
    fields(frame).into_iter().map(|(_, range)| range).collect()
}

/// Fields that one message may have; PostgreSQL knows 18.
const FIELDS_MAX: usize = 64;

fn fields(frame: &[u8]) -> Vec<(u8, Range<usize>)> {
    let mut found = Vec::new();
    let mut fields = Fields::of(frame);
    while let Some(tag) = fields.u8() {
        let start = fields.offset();
        if tag == 0 {
            break;
        }
        if found.len() == FIELDS_MAX {
            found.push((tag, start..frame.len()));
            break;
        }
        match fields.cstr() {
            Some(text) => found.push((tag, start..start + text.len())),
            None => {
                found.push((tag, start..frame.len()));
                break;
            }
        }
    }
    found
}

/// An ErrorResponse that says who refused and why.
pub(crate) fn denied(denial: &Denial) -> Bytes {
    response("ERROR", DENIED, denial)
}

/// A fatal one: the connection itself is refused.
pub(crate) fn connection_denied(denial: &Denial) -> Bytes {
    response("FATAL", CONNECTION_DENIED, denial)
}

fn response(severity: &str, code: &str, denial: &Denial) -> Bytes {
    let message = format!("denied by Weir rule \"{}\": {}", denial.rule, denial.reason).replace('\0', " ");
    let mut body = Vec::with_capacity(64 + message.len());
    for (tag, text) in [(b'S', severity), (b'V', severity), (b'C', code), (b'M', message.as_str())] {
        body.push(tag);
        body.extend_from_slice(text.as_bytes());
        body.push(0);
    }
    body.push(0);
    Bytes::from(frame::message(b'E', &body))
}

/// ReadyForQuery with a transaction state.
pub(crate) fn ready(transaction: u8) -> Bytes {
    Bytes::from(frame::message(b'Z', &[transaction]))
}

/// The state in a ReadyForQuery.
pub(crate) fn transaction(frame: &[u8]) -> Option<u8> {
    frame.get(HEADER_BYTES).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let denial = Denial { rule: "no-drops".into(), reason: "ask the \0 owner".into() };
        let frame = denied(&denial);
        let error = ServerError::read(&frame, &MaskPlan::standard());
        assert_eq!(error.code.to_text(), DENIED);
        assert_eq!(error.message.to_text(), "denied by Weir rule \"no-drops\": ask the   owner");
        assert_eq!(fields(&frame).len(), 4);
    }

    #[test]
    fn a_cut_error_is_read_as_far_as_it_goes() {
        let denial = Denial { rule: "r".into(), reason: "why".into() };
        let frame = denied(&denial);
        for end in 0..frame.len() {
            texts(&frame[..end]);
        }
        assert_eq!(fields(b"E\0\0\0\x09Cabc").len(), 1);
    }
}
