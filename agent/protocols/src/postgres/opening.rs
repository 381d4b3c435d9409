//! Before the startup is done: encryption requests, cancel requests, the StartupMessage ("Start-up", "SSL Session
//! Encryption", "Canceling Requests in Progress").

use bytes::Bytes;

use super::exchange::Exchange;
use super::frame::{self, Fields};
use super::{Phase, Postgres};
use crate::detect::Recognition;
use crate::kind::Kind;
use crate::note::{Coverage, Facts, Note, OperationRecord};
use crate::operation::Opacity;
use crate::reader::Extent;
use crate::seam::{Cause, Effect, Effects, ExchangeId, Instant, Side};
use crate::verdict::Control;

const CANCEL: u32 = 80_877_102;
const SSL: u32 = 80_877_103;
const GSSENC: u32 = 80_877_104;
const UNPARSED: Cause = Cause::Limit(Side::Client, "unparsed-startup");
/// Longest fact kept, bytes.
pub(super) const FACT_BYTES_MAX: usize = 256;
/// Startup parameters kept as facts; the others stand in the recorded message.
const PARAMETERS_KEPT: &[&str] = &["user", "database", "application_name", "replication"];

/// A client's first message, which has no tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opening {
    Encryption(Opacity),
    Cancel,
    /// Of version 3.minor.
    Startup(u16),
}

impl Opening {
    /// From length and code.
    pub(super) fn of(message: &[u8]) -> Option<Self> {
        let code = Fields::at(message, 4).u32()?;
        match (code, message.len()) {
            // Servers look at the code only.
            (SSL, 8..) => Some(Self::Encryption(Opacity::Tls)),
            (GSSENC, 8..) => Some(Self::Encryption(Opacity::Gss)),
            // Process id and key; from 3.2 on a key has up to 256 bytes.
            (CANCEL, 13..=268) => Some(Self::Cancel),
            (version, 9..) if version >> 16 == 3 => Some(Self::Startup((version & 0xffff) as u16)),
            _ => None,
        }
    }
}

/// Whether a client's first bytes are PostgreSQL's.
pub fn recognize(prefix: &[u8]) -> Recognition {
    let Some(head) = prefix.get(..8) else {
        // The first two bytes of a sane length are zero; nothing else common begins so.
        let possible = prefix.iter().take(2).all(|byte| *byte == 0);
        return if possible { Recognition::NeedMore } else { Recognition::No };
    };
    let Ok(Extent::Frame { length, .. }) = frame::measure_startup(head) else { return Recognition::No };
    let code = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
    let sane = match code {
        SSL | GSSENC => true,
        CANCEL => (13..=268).contains(&length),
        version => version >> 16 == 3 && length > 8,
    };
    if sane { Recognition::Match(Kind::Postgres) } else { Recognition::No }
}

impl Postgres {
    pub(super) fn read_opening(&mut self, now: Instant, out: &mut Effects) -> bool {
        let message = match self.client.next(frame::measure_startup) {
            Ok(Some(piece)) => piece.bytes,
            Ok(None) => return self.queue_end(out),
            // What follows may be a password, and opaque bytes are recorded.
            Err(_) => {
                self.closing = Some(UNPARSED);
                return true;
            }
        };
        match Opening::of(&message) {
            Some(Opening::Encryption(opacity)) => {
                self.phase = Phase::Encryption(opacity);
                self.session_data(Side::Client, &message, out);
                out.push(Effect::Upstream(Control::PostgresEncryptionRequest.clear(message)));
            }
            Some(Opening::Cancel) => self.cancel(message, now, out),
            Some(Opening::Startup(minor)) => self.startup(message, minor, out),
            None => self.closing = Some(UNPARSED),
        }
        true
    }

    /// One byte: S or G turn to encryption, N goes on; an old server answers with an ErrorResponse.
    pub(super) fn encryption_answer(&mut self, opacity: Opacity, out: &mut Effects) -> bool {
        let Some(answer) = self.upstream.first() else { return false };
        match (answer, opacity) {
            (b'S', Opacity::Tls) | (b'G', Opacity::Gss) => {
                self.relay_answer(out);
                let coverage = Some(Coverage::MetadataOnly(opacity.word()));
                out.note(
                    ExchangeId::SESSION,
                    Note::Facts(Facts { protocol: "postgres", coverage, ..Facts::default() }),
                );
                self.leave(opacity);
            }
            (b'N', _) => {
                self.relay_answer(out);
                self.phase = Phase::Opening;
            }
            (b'E', _) => self.phase = Phase::Authenticating,
            _ => self.leave(Opacity::Unparsed),
        }
        true
    }

    fn relay_answer(&mut self, out: &mut Effects) {
        if let Some(piece) = self.upstream.take(1) {
            self.session_data(Side::Upstream, &piece.bytes, out);
            out.push(Effect::Client(piece.bytes));
        }
    }

    /// Name and value pairs, each with its NUL, and a NUL.
    fn startup(&mut self, message: Bytes, minor: u16, out: &mut Effects) {
        let mut values = Vec::new();
        let mut places = Vec::new();
        let mut fields = Fields::at(&message, 8);
        let mut withheld = Vec::new();
        let mut parsed = fields.offset();
        while let Some(name) = fields.cstr().filter(|name| !name.is_empty()) {
            let start = fields.offset();
            let Some(value) = fields.cstr() else { break };
            places.push(parsed..start - 1);
            if self.is_secret_name(name) {
                withheld.push(start..start + value.len());
            } else {
                places.push(start..start + value.len());
            }
            parsed = fields.offset();
            if let Some(kept) = PARAMETERS_KEPT.iter().find(|kept| kept.as_bytes() == name) {
                let value = self.plan.text(&Bytes::copy_from_slice(value)).cut(FACT_BYTES_MAX);
                values.push(((*kept).into(), value));
            }
        }
        let facts = Facts {
            protocol: "postgres",
            protocol_version: format!("3.{minor}").into(),
            values,
            coverage: Some(Coverage::Inspected),
        };
        out.note(ExchangeId::SESSION, Note::Facts(facts));
        // The last NUL of a sound message, or what no server would read.
        if message.len() > parsed + 1 {
            withheld.push(parsed..message.len());
        }
        let recorded = self.plan.texts(&message, &places).withheld(&withheld, "postgres-startup");
        out.note(ExchangeId::SESSION, Note::Data(Side::Client, recorded));
        self.phase = Phase::Authenticating;
        out.push(Effect::Upstream(Control::PostgresStartup.clear(message)));
    }

    /// Whether a value would be masked because of this name before it.
    fn is_secret_name(&self, name: &[u8]) -> bool {
        let probe = Bytes::from([name, b"=value"].concat());
        self.plan.text(&probe).marks().iter().any(|mark| mark.offset as usize >= name.len())
    }

    /// On a connection of its own; the server closes it without a word.
    fn cancel(&mut self, message: Bytes, now: Instant, out: &mut Effects) {
        let facts = Facts { protocol: "postgres", coverage: Some(Coverage::Inspected), ..Facts::default() };
        out.note(ExchangeId::SESSION, Note::Facts(facts));
        let id = self.next_exchange;
        self.next_exchange = id.next();
        let pid = Fields::at(&message, 8).u32().unwrap_or(0);
        let name = self.plan.bytes(&Bytes::from(format!("pid {pid}")));
        let record = OperationRecord { kind: "sql", verb: "cancel", name, ..OperationRecord::default() };
        let mut exchange = Exchange::asked(id, record, now, out);
        exchange.request_bytes = message.len() as u64;
        let recorded = self.plan.withheld(&message, &[12..message.len()], "postgres-cancel-key");
        out.note(id, Note::Data(Side::Client, recorded));
        self.phase = Phase::Cancelling(exchange);
        out.push(Effect::Upstream(Control::PostgresCancel.clear(message)));
    }

    /// Nothing may follow a cancel request, and no server reads it.
    pub(super) fn read_after_cancel(&mut self, out: &mut Effects) -> bool {
        let bytes = self.client.take_all();
        if bytes.is_empty() {
            return self.queue_end(out);
        }
        out.note(ExchangeId::SESSION, Note::Gap { reason: "sent-after-the-end", bytes: bytes.len() as u64 });
        true
    }

    fn session_data(&self, side: Side, bytes: &Bytes, out: &mut Effects) {
        out.note(ExchangeId::SESSION, Note::Data(side, self.plan.bytes(bytes)));
    }
}
