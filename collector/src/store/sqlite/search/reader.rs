//! Reading with an end: no statement keeps a connection for longer than it may.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sqlx::pool::PoolConnection;
use sqlx::{Sqlite, SqliteConnection};

use crate::store::StoreError;

/// One statement; then it is interrupted, and tried with a smaller window.
pub(super) const STATEMENT_TIMEOUT: Duration = Duration::from_secs(4);
/// How many virtual machine steps of SQLite lie between looks at the clock.
const STEPS_PER_LOOK: i32 = 20_000;

/// A connection whose statements end in time. One that was left in the middle of its work is closed, not used again.
pub(super) struct Reader {
    pub(super) connection: PoolConnection<Sqlite>,
    pub(super) watch: Arc<Watch>,
    in_order: bool,
}

pub(super) struct Watch {
    began: Instant,
    /// Milliseconds after `began`.
    pub(super) until_ms: AtomicU64,
    given_up: AtomicBool,
}

impl Reader {
    pub(super) async fn new(mut connection: PoolConnection<Sqlite>) -> Result<Self, StoreError> {
        let watch = Arc::new(Watch {
            began: Instant::now(),
            until_ms: AtomicU64::new(u64::MAX),
            given_up: AtomicBool::new(false),
        });
        let looked = watch.clone();
        let inner: &mut SqliteConnection = &mut connection;
        inner.lock_handle().await?.set_progress_handler(STEPS_PER_LOOK, move || {
            let over = looked.began.elapsed().as_millis() as u64 > looked.until_ms.load(Ordering::Relaxed);
            !over && !looked.given_up.load(Ordering::Relaxed)
        });
        Ok(Self { connection, watch, in_order: false })
    }

    /// For one statement, whose time begins.
    pub(super) fn arm(&mut self) -> &mut SqliteConnection {
        let until = self.watch.began.elapsed() + STATEMENT_TIMEOUT;
        self.watch.until_ms.store(until.as_millis() as u64, Ordering::Relaxed);
        &mut self.connection
    }

    pub(super) async fn done(mut self) -> Result<(), StoreError> {
        let inner: &mut SqliteConnection = &mut self.connection;
        inner.lock_handle().await?.remove_progress_handler();
        self.in_order = true;
        Ok(())
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if !self.in_order {
            self.watch.given_up.store(true, Ordering::Relaxed);
            self.connection.close_on_drop();
        }
    }
}

/// `None`: it took too long.
pub(super) fn in_time<T>(result: Result<T, sqlx::Error>) -> Result<Option<T>, StoreError> {
    const INTERRUPTED: &str = "9";
    match result {
        Ok(value) => Ok(Some(value)),
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(INTERRUPTED) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
