//! The one door to every read and every mutation by people: who calls, may they, and a line in the access log before
//! the answer.
//!
//! What answers a call takes a [`Caller`], and only [`Access::admit`] makes one: an answer without a check cannot be
//! written.

pub mod secret;

use std::sync::Arc;

use tokio::sync::Semaphore;
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
    /// Strangers write their line one after the other: a flood of them must not keep the writer from ingest.
    strangers: Arc<Semaphore>,
}

impl Access {
    pub fn new(index: Index, metrics: Metrics) -> Self {
        Self { index, metrics, strangers: Arc::new(Semaphore::new(1)) }
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
        let entry = AccessEntry {
            unix_ms: clock::unix_ms(),
            who: caller.as_ref().map_or("", Caller::name),
            call: call.name,
            subject: &subject,
            allowed: refusal.is_none(),
        };
        let _turn = match caller {
            None => self.strangers.acquire().await.ok(),
            Some(_) => None,
        };
        // Without its line in the log no call is answered.
        self.index.access_log(&entry).await.map_err(|error| failed(&error))?;
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

fn failed(error: &StoreError) -> Status {
    tracing::error!(error = %crate::chain(error), "access could not be checked");
    Status::unavailable("the collector's store failed")
}
