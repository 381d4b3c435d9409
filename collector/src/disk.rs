//! Free space: warns long before anything is refused, refuses before the index could no longer commit.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::metrics::Metrics;

/// Cheap to clone; the numbers are shared and taken anew by [`Disk::measure`].
#[derive(Clone)]
pub struct Disk {
    path: PathBuf,
    floor: u64,
    warn: u64,
    free: Arc<AtomicU64>,
    warned: Arc<AtomicBool>,
}

impl Disk {
    pub fn new(path: &Path, warn_bytes: u64, floor_bytes: u64) -> Self {
        let disk = Self {
            path: path.to_owned(),
            floor: floor_bytes,
            warn: warn_bytes,
            free: Arc::new(AtomicU64::new(u64::MAX)),
            warned: Arc::new(AtomicBool::new(false)),
        };
        disk.measure(None);
        disk
    }

    /// Looks. To be called every few seconds.
    pub fn measure(&self, metrics: Option<&Metrics>) {
        let free = match nix::sys::statvfs::statvfs(&self.path) {
            Ok(fs) => fs.blocks_available() * fs.fragment_size(),
            Err(error) => {
                tracing::error!(path = %self.path.display(), %error, "cannot tell the free space of the data directory");
                return;
            }
        };
        self.free.store(free, Ordering::Relaxed);
        if let Some(metrics) = metrics {
            metrics.free_bytes.set(i64::try_from(free).unwrap_or(i64::MAX));
        }
        let low = free < self.warn;
        if low && !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                free_bytes = free,
                floor_bytes = self.floor,
                path = %self.path.display(),
                "the data directory is running full: below the floor new segments are refused and stay with their agents; shorten `keep` or give it more space"
            );
        } else if !low {
            self.warned.store(false, Ordering::Relaxed);
        }
    }

    /// New segments must be refused.
    pub fn is_full(&self) -> bool {
        self.free.load(Ordering::Relaxed) < self.floor
    }

    /// For readiness and tests.
    pub fn free_bytes(&self) -> u64 {
        self.free.load(Ordering::Relaxed)
    }
}
