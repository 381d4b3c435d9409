//! The one door to every read and every mutation by people: who calls, may they, and a line in the access log before
//! the answer.
//!
//! What answers a call takes a [`Caller`], and only [`Access::admit`] makes one: an answer without a check cannot be
//! written.

pub mod secret;

use std::collections::BTreeMap;
use std::sync::Arc;

use tonic::{Request, Status};

use crate::clock;
use crate::listener::Peer;
use crate::metrics::Metrics;
use crate::store::sqlite::AccessEntry;
use crate::store::{Index, StoreError};

pub use secret::{new_secret, secret_hash};

/// Longest `authorization` header looked at.
const AUTHORIZATION_BYTES_MAX: usize = 1024;
/// Longest subject written to the access log.
const SUBJECT_CHARS_MAX: usize = 200;

/// What a credential may do. An admin may do all that a viewer may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Viewer,
    Admin,
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Admin => "admin",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        [Self::Viewer, Self::Admin].into_iter().find(|role| role.name() == name)
    }
}

/// One call of the API: its name in the access log, and who may make it.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    pub name: &'static str,
    pub needs: Role,
}

/// Somebody who may do what they are about to do, and whose doing is written down.
pub struct Caller {
    name: String,
    role: Role,
}

impl Caller {
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn role(&self) -> Role {
        self.role
    }
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Access {
    index: Index,
    metrics: Metrics,
    strangers: Arc<Strangers>,
}

impl Access {
    pub fn new(index: Index, metrics: Metrics) -> Self {
        Self { index, metrics, strangers: Arc::default() }
    }

    /// Lets a call in, with its message, or refuses it; either way the access log has it first.
    pub async fn admit<T>(
        &self,
        call: Call,
        request: Request<T>,
        subject: impl FnOnce(&T) -> String,
    ) -> Result<(Caller, T), Status> {
        let caller = self.caller(&request).await.map_err(|error| failed(&error))?;
        let peer = request.extensions().get::<Peer>().cloned();
        let message = request.into_inner();
        let refusal = match &caller {
            None => Some(Status::unauthenticated(
                "no valid credential: run `weir login CREDENTIAL`, or set WEIR_CREDENTIAL",
            )),
            Some(caller) if caller.role < call.needs => {
                let needs = call.needs.name();
                Some(Status::permission_denied(format!("{} needs the role {needs}", call.name)))
            }
            Some(_) => None,
        };
        let subject: String = subject(&message).chars().take(SUBJECT_CHARS_MAX).collect();
        // Without its line in the log no call is answered.
        let logged = match &caller {
            Some(caller) => {
                let (unix_ms, who, allowed) = (clock::unix_ms(), caller.name(), refusal.is_none());
                let entry = AccessEntry { unix_ms, who, call: call.name, subject: &subject, allowed };
                self.index.access_log(&entry).await
            }
            None => self.strangers.log(&self.index, call.name).await,
        };
        logged.map_err(|error| failed(&error))?;
        match (caller, refusal) {
            (Some(caller), None) => {
                peer.iter().for_each(Peer::is_known);
                self.metrics.calls_allowed.inc();
                Ok((caller, message))
            }
            (_, refusal) => {
                self.metrics.calls_refused.inc();
                Err(refusal.unwrap_or_else(|| Status::unauthenticated("no valid credential")))
            }
        }
    }

    async fn caller<T>(&self, request: &Request<T>) -> Result<Option<Caller>, StoreError> {
        let Some(header) = request.metadata().get("authorization") else { return Ok(None) };
        let Ok(header) = header.to_str() else { return Ok(None) };
        let Some(secret) = header.strip_prefix("Bearer ").filter(|s| s.len() <= AUTHORIZATION_BYTES_MAX)
        else {
            return Ok(None);
        };
        // Found by its hash: how long that takes tells nothing about a secret of 256 random bits.
        let Some(row) = self.index.credential(&secret_hash(secret)).await? else { return Ok(None) };
        Ok(Role::named(&row.role).map(|role| Caller { name: row.name, role }))
    }
}

/// Calls without a credential that are to be written down. One transaction writes all that came while the one before was
/// under way: a flood of them must not keep the writer from ingest.
#[derive(Default)]
struct Strangers {
    waiting: std::sync::Mutex<BTreeMap<&'static str, u64>>,
    turn: tokio::sync::Mutex<()>,
}

impl Strangers {
    /// Returns when the call is in the log.
    async fn log(&self, index: &Index, call: &'static str) -> Result<(), StoreError> {
        *self.waiting().entry(call).or_default() += 1;
        let _turn = self.turn.lock().await;
        let taken = std::mem::take(&mut *self.waiting());
        // Empty: the one before wrote this call, too.
        if taken.is_empty() {
            return Ok(());
        }
        let now = clock::unix_ms();
        let calls: Vec<_> = taken.iter().map(|(call, times)| (*call, now, *times)).collect();
        let logged = index.access_log_strangers(&calls).await;
        if logged.is_err() {
            // Whoever waits for its turn tries again, with what is not written.
            for (call, times) in taken {
                *self.waiting().entry(call).or_default() += times;
            }
        }
        logged
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, u64>> {
        self.waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn failed(error: &StoreError) -> Status {
    tracing::error!(error = %crate::chain(error), "access could not be checked");
    Status::unavailable("the collector's store failed")
}
