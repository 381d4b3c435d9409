//! An exchange on this connection that is not over.

use std::collections::VecDeque;

use bytes::Bytes;

use super::super::exchange::Exchange;
use super::super::message::{Length, Malformed, RequestHead};
use super::{Asked, SWALLOWED_BYTES_MAX};
use crate::verdict::{Denial, Grant};

#[derive(Debug)]
pub(crate) struct Open {
    pub exchange: Exchange,
    pub standing: Standing,
    pub asked: Asked,
    /// Bytes of the request that have not left.
    pub held: VecDeque<Bytes>,
    /// Something of it has left.
    pub head_sent: bool,
    /// All of it has been read.
    pub is_whole: bool,
    /// The client has all of the answer.
    pub is_answered: bool,
    /// Another request may follow it.
    pub keeps_alive: bool,
    /// When we answer in the server's place, the connection is over: what follows could not be told apart, or is too long.
    pub closes_if_refused: bool,
}

/// What may become of a request.
#[derive(Debug)]
pub(crate) enum Standing {
    Asked,
    Granted(Grant),
    Denied(Denial),
    /// It could not be read to its end: we answer, and close.
    Malformed(Malformed),
}

impl Open {
    /// We answer it, not the server.
    pub(crate) fn is_refused(&self) -> bool {
        matches!(self.standing, Standing::Denied(_) | Standing::Malformed(_))
    }

    pub(crate) fn asked(exchange: Exchange, head: &RequestHead) -> Self {
        let is_swallowed = match head.length {
            Length::None => true,
            Length::Exactly(length) => length <= SWALLOWED_BYTES_MAX,
            Length::Chunked | Length::UntilClose => false,
        };
        Self {
            exchange,
            standing: Standing::Asked,
            asked: Asked::of(head),
            held: VecDeque::new(),
            head_sent: false,
            is_whole: false,
            is_answered: false,
            keeps_alive: head.keeps_alive,
            // A client that waits for a 100 may send its body or not (RFC 9110, 10.1.1): nobody can tell which.
            closes_if_refused: !is_swallowed || !head.keeps_alive || head.expects_continue,
        }
    }

    pub(crate) fn malformed(exchange: Exchange, fault: Malformed) -> Self {
        Self {
            exchange,
            standing: Standing::Malformed(fault),
            asked: Asked::default(),
            held: VecDeque::new(),
            head_sent: false,
            is_whole: true,
            is_answered: false,
            keeps_alive: false,
            closes_if_refused: true,
        }
    }
}
