//! What an exchange wants: the closed enum that policy reads, and nothing else.

use std::net::SocketAddr;

use bytes::Bytes;

use crate::seam::ExchangeId;

/// Unmasked, on its way to policy and never further. What is recorded of it is a [`crate::note::OperationRecord`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Open a connection.
    Connect { destination: SocketAddr },
    /// Pass bytes that nobody reads.
    Opaque { reason: Opacity },
    /// Run, or define, a SQL statement.
    Sql(Sql),
    /// Send an HTTP request.
    Http(Http),
}

/// Why bytes are not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Opacity {
    /// No known protocol.
    Unrecognized,
    /// The session turned to TLS.
    Tls,
    /// The session turned to GSSAPI encryption.
    Gss,
    /// HTTP/2 without TLS: its heads are compressed, so nothing of it can be masked.
    Http2,
    /// WebSocket frames: what a client says in them is scrambled, so nothing of it can be masked.
    WebSocket,
    /// A known protocol stopped making sense.
    Unparsed,
    /// Unix-style streaming replication or another mode that has no exchanges.
    Streaming,
}

impl Opacity {
    /// The word recorded as the reason of coverage.
    pub const fn word(self) -> &'static str {
        match self {
            Opacity::Unrecognized => "opaque",
            Opacity::Tls => "tls",
            Opacity::Gss => "gss",
            Opacity::Http2 => "http2",
            Opacity::WebSocket => "websocket",
            Opacity::Unparsed => "unparsed",
            Opacity::Streaming => "streaming",
        }
    }
}

/// The head of an HTTP request, as far as policy reads it. All bytes as sent unless said otherwise: a rule that compares
/// paths must reckon with escapes and dot segments itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http {
    /// The method, case kept (RFC 9110, 9.1).
    pub method: Bytes,
    /// Host of the request's authority, in lower case, without port; empty when the request names none (HTTP/1.0).
    pub host: Bytes,
    /// Port of the authority, where it names one.
    pub port: Option<u16>,
    /// Path without query; empty for CONNECT and for `OPTIONS *`.
    pub path: Bytes,
    /// What follows the first `?`, where there is one.
    pub query: Option<Bytes>,
}

/// A statement in one of the ways a SQL protocol carries it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sql {
    pub verb: SqlVerb,
    /// The statement's text; of an Execute the text that its Parse defined. Empty for a function call.
    pub text: Bytes,
    /// The exchange that defined the statement (its Parse).
    pub defined_by: Option<ExchangeId>,
    /// The text was longer than `HELD_BYTES_MAX`: only its beginning is here.
    pub oversized: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SqlVerb {
    /// Simple query: may hold several statements.
    Query,
    /// Parse: defines, does not run.
    Prepare,
    /// Execute of a portal.
    Execute,
    /// FunctionCall (fastpath).
    Call,
}

impl SqlVerb {
    pub const fn word(self) -> &'static str {
        match self {
            SqlVerb::Query => "query",
            SqlVerb::Prepare => "prepare",
            SqlVerb::Execute => "execute",
            SqlVerb::Call => "call",
        }
    }
}
