//! What goes with time: segments older than `keep`, empty and orphaned bundles, keys of days long past; and what comes:
//! the keys of the days ahead.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::keys::hpke::{DAYS_AHEAD, DAYS_KEPT, DEFAULT_CLASS, StoredHpkeKey, day_of};
use crate::keys::{Kek, KeysError};
use crate::metrics::Metrics;
use crate::store::{Index, Store, StoreError};

/// How often it is looked what has to go.
const ROUND: Duration = Duration::from_secs(600);

/// The clock went this much further than from one round to the next: it is read once more before anything is deleted.
const JUMP: Duration = Duration::from_secs(6 * 3600);
const LAST_ROUND: &str = "retention_round_ms";
/// Erasing rewrites the whole full text: it is done so often, if anything was deleted.
const ERASE_INTERVAL: Duration = Duration::from_secs(24 * 3600);
const TEXT_DELETED: &str = "text_deleted_ms";
const TEXT_ERASED: &str = "text_erased_ms";

#[derive(Debug, thiserror::Error)]
pub enum RetentionError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Keys(#[from] KeysError),
}

/// How long what is kept.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    /// Recordings. `None`: for ever.
    pub recordings: Option<Duration>,
    /// The access log.
    pub accesses: Duration,
}

/// One pass over everything; also what a test calls.
pub struct Retention {
    pub store: Store,
    pub keep: Keep,
    pub metrics: Metrics,
}

impl Retention {
    pub async fn run(self, keys: std::sync::Arc<crate::keys::Keys>, shutdown: CancellationToken) {
        // The next round, or the end.
        loop {
            let now = clock::unix_ms();
            let done = async {
                keys_ahead(&self.store.index, &keys.kek, now).await?;
                self.round(now).await
            };
            if let Err(error) = done.await {
                tracing::error!(error = %crate::chain(&error), "retention did not finish: it is tried again in {} minutes", ROUND.as_secs() / 60);
            }
            tokio::select! {
                () = tokio::time::sleep(ROUND) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    pub async fn round(&self, now_ms: i64) -> Result<(), RetentionError> {
        let index = &self.store.index;
        if self.jumped(now_ms).await? {
            tracing::warn!(
                now_ms,
                "the clock jumped since the last round of retention: nothing is deleted in this one"
            );
            return Ok(());
        }
        if let Some(keep) = self.keep.recordings {
            let before = now_ms.saturating_sub(millis(keep));
            loop {
                let done = index.segments_expire(before, now_ms).await?;
                if done.sessions == 0 {
                    break;
                }
                index.meta_set(TEXT_DELETED, &now_ms.to_be_bytes()).await?;
                self.metrics.segments_expired.inc_by(done.segments);
                tracing::info!(sessions = done.sessions, segments = done.segments, "expired by retention");
            }
        }
        self.text_erase(now_ms).await?;
        self.bundles_sweep(now_ms).await?;
        let accesses_before = now_ms.saturating_sub(millis(self.keep.accesses));
        index.keys_expire(day_of(now_ms).saturating_sub(DAYS_KEPT), now_ms, accesses_before).await?;
        Ok(index.space_return().await?)
    }

    /// One reading of the clock deletes nothing: a jump (or a long stop of the collector) is believed at the next round.
    async fn jumped(&self, now_ms: i64) -> Result<bool, RetentionError> {
        let index = &self.store.index;
        let last = self.time(LAST_ROUND).await?;
        index.meta_set(LAST_ROUND, &now_ms.to_be_bytes()).await?;
        Ok(last.is_some_and(|last| now_ms.saturating_sub(last) > millis(JUMP)))
    }

    /// What was deleted is not found from then on; its words leave the file here.
    async fn text_erase(&self, now_ms: i64) -> Result<(), RetentionError> {
        let index = &self.store.index;
        let erased = self.time(TEXT_ERASED).await?.unwrap_or(0);
        let Some(deleted) = self.time(TEXT_DELETED).await? else { return Ok(()) };
        if deleted >= erased && now_ms.saturating_sub(erased) >= millis(ERASE_INTERVAL) {
            index.text_erase().await?;
            index.meta_set(TEXT_ERASED, &now_ms.to_be_bytes()).await?;
        }
        Ok(())
    }

    async fn time(&self, key: &str) -> Result<Option<i64>, RetentionError> {
        let value = self.store.index.meta_value(key).await?;
        Ok(value.and_then(|bytes| Some(i64::from_be_bytes(bytes.try_into().ok()?))))
    }

    /// The object first, then its row: killed in between, the next round finds the row and deletes the object again.
    async fn bundles_sweep(&self, now_ms: i64) -> Result<(), RetentionError> {
        let Store { bundles, index } = &self.store;
        loop {
            let empty = index.bundle_list_empty().await?;
            if empty.is_empty() {
                break;
            }
            for (id, key) in empty {
                bundles.delete(&key).await?;
                index.bundle_forget(id).await?;
            }
        }
        for key in bundles.old_keys(now_ms).await? {
            if !index.bundle_known(&key).await? {
                tracing::info!(key, "a bundle that no transaction named is deleted");
                bundles.delete(&key).await?;
                self.metrics.orphans_swept.inc();
            }
        }
        Ok(())
    }
}

/// Makes the keys that are missing for today and the days ahead.
pub async fn keys_ahead(index: &Index, kek: &Kek, now_ms: i64) -> Result<(), RetentionError> {
    let today = day_of(now_ms);
    let have: Vec<u32> = index.hpke_key_list(DEFAULT_CLASS, today).await?.iter().map(|key| key.day).collect();
    let missing = (today..=today + DAYS_AHEAD).filter(|day| !have.contains(day));
    let keys =
        missing.map(|day| StoredHpkeKey::generate(kek, DEFAULT_CLASS, day)).collect::<Result<Vec<_>, _>>()?;
    if !keys.is_empty() {
        index.hpke_key_add(&keys).await?;
    }
    Ok(())
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
