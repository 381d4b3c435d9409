//! Permission as a value. No request byte reaches the upstream without a [`Cleared`], and those are made in two ways
//! only: by an exchange's [`Grant`], which a [`Permit`] of policy becomes, or by [`Control`], a closed list of bytes
//! that belong to no exchange.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use crate::seam::ExchangeId;

/// The right to permit. Taken once in `main`, owned by policy.
#[derive(Debug)]
pub struct GrantKey(());

static GRANT_KEY_TAKEN: AtomicBool = AtomicBool::new(false);

impl GrantKey {
    /// The process's only key; `None` when somebody has it already.
    pub fn take() -> Option<Self> {
        (!GRANT_KEY_TAKEN.swap(true, Ordering::SeqCst)).then_some(Self(()))
    }

    /// A key for judges of tests.
    #[cfg(any(test, feature = "suite"))]
    pub fn for_tests() -> Self {
        Self(())
    }

    pub fn permit(&self, exchange: ExchangeId, rule: Arc<str>) -> Permit {
        Permit { exchange, rule, would_deny: None }
    }

    /// A permit that is only given because the rule observes: enforcing it would have said `denial`.
    pub fn permit_observed(&self, exchange: ExchangeId, denial: Denial) -> Permit {
        let Denial { rule, reason } = denial;
        Permit { exchange, rule, would_deny: Some(reason) }
    }
}

/// Policy's answer.
#[derive(Debug)]
pub enum Verdict {
    Allow(Permit),
    Deny(Denial),
}

/// Permission for one exchange. Not `Clone`: used once.
#[derive(Debug)]
pub struct Permit {
    exchange: ExchangeId,
    rule: Arc<str>,
    would_deny: Option<Arc<str>>,
}

impl Permit {
    /// The name of the rule that decided.
    pub fn rule(&self) -> &Arc<str> {
        &self.rule
    }

    /// The reason for which that rule would have refused, were it enforced.
    pub fn would_deny(&self) -> Option<&Arc<str>> {
        self.would_deny.as_ref()
    }

    /// Turns into the grant under which the exchange's request streams; `None` when it was given for another exchange.
    pub fn redeem(self, exchange: ExchangeId) -> Option<Grant> {
        (self.exchange == exchange).then_some(Grant { exchange, rule: self.rule })
    }
}

/// An exchange that is allowed to send its request.
#[derive(Debug)]
pub struct Grant {
    exchange: ExchangeId,
    rule: Arc<str>,
}

impl Grant {
    pub fn exchange(&self) -> ExchangeId {
        self.exchange
    }

    pub fn rule(&self) -> &Arc<str> {
        &self.rule
    }

    pub fn clear(&self, bytes: Bytes) -> Cleared {
        Cleared(bytes)
    }
}

/// Why something was refused: told to the client and recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    pub rule: Arc<str>,
    pub reason: Arc<str>,
}

/// Bytes that belong to no exchange and may be sent all the same. A closed list: a new entry is a review of what it
/// lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// PostgreSQL: SSLRequest, GSSENCRequest.
    PostgresEncryptionRequest,
    /// PostgreSQL: StartupMessage.
    PostgresStartup,
    /// PostgreSQL: CancelRequest on its own connection.
    PostgresCancel,
    /// PostgreSQL: PasswordMessage, SASLInitialResponse, SASLResponse, GSSResponse.
    PostgresAuthentication,
    /// PostgreSQL: Describe, Close, Flush, Sync, Terminate: they run no statement.
    PostgresSession,
    /// PostgreSQL: a Sync of our own, in place of what was dropped, or a Flush, for replies that something here waits for.
    PostgresResync,
}

impl Control {
    pub fn clear(self, bytes: Bytes) -> Cleared {
        Cleared(bytes)
    }
}

/// Request bytes that may leave.
#[derive(Debug)]
pub struct Cleared(Bytes);

impl Cleared {
    pub fn into_bytes(self) -> Bytes {
        self.0
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
