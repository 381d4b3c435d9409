//! The task that keeps a stream up, and how it stands.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::certificate::ClientCertificate;
use super::connection::ShippingError;
use super::identity::{Enrolled, Identity};
use super::stream::{Ended, Shipper};
use crate::recording::{Counters, KeyRing, NodeLog, Numbering};
use crate::spool::Spool;

/// Between attempts; doubles up to the maximum, each time with up to half of it added by chance.
const BACKOFF_MIN: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// How often the end looks whether all has left.
const SHIPPED_INTERVAL: Duration = Duration::from_millis(50);

/// How shipping stands.
#[derive(Default)]
pub(super) struct Progress {
    connected: AtomicBool,
    /// Node log entries that the collector holds.
    entries: AtomicU64,
    /// A receipt has come since the last failure: the next attempt need not wait long.
    fruitful: AtomicBool,
    error: Mutex<Option<String>>,
    /// When the certificate in use ends, and why it could not be renewed the last time that was tried.
    certificate_not_after_unix: AtomicI64,
    renewal_error: Mutex<Option<String>>,
    /// The first attempt has come to an answer or to its end.
    greeted: watch::Sender<bool>,
}

impl Progress {
    pub(super) fn connected(&self, connected: bool) {
        self.connected.store(connected, Ordering::Release);
        if connected {
            self.greeted.send_replace(true);
            *self.error.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    pub(super) fn entries(&self, entries: u64) {
        self.entries.store(entries, Ordering::Release);
    }

    pub(super) fn certificate(&self, shown: &ClientCertificate) {
        self.certificate_not_after_unix.store(shown.not_after_unix, Ordering::Release);
    }

    pub(super) fn renewal(&self, error: Option<String>) {
        *self.renewal_error.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }

    pub(super) fn receipted(&self) {
        self.fruitful.store(true, Ordering::Release);
    }

    fn failed(&self, error: &ShippingError) {
        self.greeted.send_replace(true);
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(with_causes(error));
    }
}

/// For `weir-agent status`.
#[derive(Debug, Serialize)]
pub(crate) struct ShippingStatus {
    address: String,
    connected: bool,
    /// Why it is not connected, when that is known.
    error: Option<String>,
    node_log_entries_held: u64,
    certificate_not_after_unix: i64,
    /// Why the certificate was not renewed, when that was tried and failed.
    renewal_error: Option<String>,
}

/// The running task.
pub(crate) struct Shipping {
    address: String,
    spool: Arc<Spool>,
    log: Arc<Mutex<NodeLog>>,
    progress: Arc<Progress>,
    task: AbortHandle,
}

impl Shipping {
    /// Starts the task; call it from inside the tokio runtime.
    pub(crate) fn start(
        identity: Identity,
        enrolled: Enrolled,
        spool: Arc<Spool>,
        log: Arc<Mutex<NodeLog>>,
        ring: Arc<KeyRing>,
        numbering: Numbering,
        counters: Arc<Counters>,
    ) -> Self {
        let progress = Arc::new(Progress::default());
        progress.certificate(&enrolled.certificate);
        let address = enrolled.address.clone();
        let shipper = Shipper {
            identity,
            enrolled,
            spool: spool.clone(),
            log: log.clone(),
            ring,
            numbering,
            counters,
            progress: progress.clone(),
            next_failed: AtomicBool::new(false),
        };
        let task = tokio::spawn(keep_up(shipper)).abort_handle();
        Self { address, spool, log, progress, task }
    }

    /// Waits until the collector has answered, or the first attempt to reach it has failed.
    pub(crate) async fn greeted(&self) {
        // The sender lives as long as `self`.
        let _ = self.progress.greeted.subscribe().wait_for(|greeted| *greeted).await;
    }

    pub(crate) fn status(&self) -> ShippingStatus {
        ShippingStatus {
            address: self.address.clone(),
            connected: self.progress.connected.load(Ordering::Acquire),
            error: self.progress.error.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            node_log_entries_held: self.progress.entries.load(Ordering::Acquire),
            certificate_not_after_unix: self.certificate_not_after_unix(),
            renewal_error: self.progress.renewal_error.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    pub(crate) fn certificate_not_after_unix(&self) -> i64 {
        self.progress.certificate_not_after_unix.load(Ordering::Acquire)
    }

    /// Waits until the collector holds everything that can leave.
    pub(crate) async fn shipped(&self) {
        loop {
            let entries = self.log.lock().unwrap_or_else(PoisonError::into_inner).entries();
            if self.spool.unreceipted() == 0 && self.progress.entries.load(Ordering::Acquire) >= entries {
                return;
            }
            tokio::time::sleep(SHIPPED_INTERVAL).await;
        }
    }

    /// Ends the task; what is unreceipted is sent after the next start.
    pub(crate) fn stop(&self) {
        self.task.abort();
    }
}

impl Drop for Shipping {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn keep_up(shipper: Shipper) {
    let mut backoff = BACKOFF_MIN;
    loop {
        let ended = shipper.run().await;
        shipper.spool.resend_all();
        let error = match ended {
            Ok(Ended::Renewed) => continue,
            Err(error) => error,
        };
        shipper.counters.disconnects.add(1);
        shipper.progress.failed(&error);
        if shipper.progress.fruitful.swap(false, Ordering::AcqRel) {
            backoff = BACKOFF_MIN;
        }
        let (told, retry_ms) = (with_causes(&error), backoff.as_millis() as u64);
        if matches!(error, ShippingError::Refused(_) | ShippingError::Expired { .. }) {
            tracing::error!(
                error = told,
                retry_ms,
                "shipping waits for a person; the spool keeps everything"
            );
        } else {
            tracing::warn!(error = told, retry_ms, "shipping waits; the spool keeps everything");
        }
        tokio::time::sleep(backoff + jitter(backoff / 2)).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

/// Up to `most`, by chance: agents that lost their collector together do not come back together.
pub(super) fn jitter(most: Duration) -> Duration {
    let chance = uuid::Uuid::new_v4().as_u128() as u32;
    most.mul_f64(f64::from(chance) / f64::from(u32::MAX))
}

pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
