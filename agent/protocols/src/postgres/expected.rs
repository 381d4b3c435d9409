//! What the client is still owed, in the order of its requests.

use bytes::Bytes;

use super::exchange::Exchange;
use super::prepared::Change;
use super::request::Described;
use crate::verdict::Denial;

/// A reply that the server, or we, still owe the client. In the order of the requests.
#[derive(Debug)]
pub(crate) enum Expected {
    Query(Box<Exchange>),
    Call(Box<Exchange>),
    Parse {
        exchange: Box<Exchange>,
        name: Bytes,
        change: Change,
    },
    Execute(Box<Exchange>),
    Bind {
        name: Bytes,
        change: Change,
    },
    Describe(Described),
    CloseStatement {
        name: Bytes,
        change: Change,
    },
    ClosePortal {
        name: Bytes,
        change: Change,
    },
    Sync,
    /// Ours: an ErrorResponse, and for simple requests ReadyForQuery.
    Denied {
        exchange: Box<Exchange>,
        denial: Denial,
        ready: bool,
    },
}

impl Expected {
    pub(crate) fn exchange(&self) -> Option<&Exchange> {
        match self {
            Self::Query(exchange) | Self::Call(exchange) | Self::Execute(exchange) => Some(exchange),
            Self::Parse { exchange, .. } => Some(exchange),
            _ => None,
        }
    }

    pub(crate) fn exchange_mut(&mut self) -> Option<&mut Exchange> {
        match self {
            Self::Query(exchange) | Self::Call(exchange) | Self::Execute(exchange) => Some(exchange),
            Self::Parse { exchange, .. } => Some(exchange),
            _ => None,
        }
    }

    pub(crate) fn into_exchange(self) -> Option<Box<Exchange>> {
        match self {
            Self::Query(exchange) | Self::Call(exchange) | Self::Execute(exchange) => Some(exchange),
            Self::Parse { exchange, .. } | Self::Denied { exchange, .. } => Some(exchange),
            _ => None,
        }
    }

    /// Whether a message can be the reply.
    pub(crate) fn fits(&self, tag: u8) -> bool {
        match self {
            Self::Query(_) => matches!(tag, b'T' | b'D' | b'C' | b'I' | b'G' | b'H' | b'W' | b'd' | b'c'),
            Self::Execute(_) => {
                matches!(tag, b'T' | b'D' | b'C' | b'I' | b's' | b'G' | b'H' | b'W' | b'd' | b'c')
            }
            Self::Call(_) => tag == b'V',
            Self::Parse { .. } => tag == b'1',
            Self::Bind { .. } => tag == b'2',
            Self::CloseStatement { .. } | Self::ClosePortal { .. } => tag == b'3',
            Self::Describe(_) => matches!(tag, b't' | b'T' | b'n'),
            Self::Sync | Self::Denied { .. } => false,
        }
    }
}
