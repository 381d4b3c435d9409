//! What the collector keeps: sealed segments in bundles (objects, created once), everything about them in an index (SQL).
//!
//! * [`bundles`]: the objects
//! * [`rows`]: what goes into the index and comes out of it
//! * [`sqlite`]: the index of the embedded collector
//!
//! The rest of the collector knows [`Index`] by its methods only; no SQL is written outside of this module. The second
//! implementation (PostgreSQL, for several replicas over one bucket) turns this name into an enum of the two.

pub mod bundles;
pub mod rows;
pub mod sqlite;

use std::path::{Path, PathBuf};

use tokio::task::JoinHandle;

pub use bundles::Bundles;
pub use sqlite::SqliteIndex as Index;

/// The store cannot do what was asked; what was asked for and is not there is never an error.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot use the folder {path}")]
    Folder { path: PathBuf, source: std::io::Error },
    #[error("the object store")]
    Objects(#[from] object_store::Error),
    #[error(
        "the object store overwrites what it should only create: it cannot hold recordings safely, use another"
    )]
    NotCreateOnly,
    #[error("writing a bundle did not come to its end")]
    Unwritten,
    #[error("the index")]
    Index(#[from] sqlx::Error),
    #[error("bringing the index to this version's schema")]
    Migration(#[from] sqlx::migrate::MigrateError),
    #[error("the index holds something that does not read back: {0}")]
    Damaged(&'static str),
    #[error("a session moved on while its segments were being committed")]
    Conflict,
}

/// What has to be durable before a transaction may commit, under way since this was made.
#[derive(Default)]
pub struct Durable {
    /// `None`: nothing, or it was waited for.
    put: Option<JoinHandle<Result<(), StoreError>>>,
}

impl Durable {
    pub fn after(put: impl Future<Output = Result<(), StoreError>> + Send + 'static) -> Self {
        Self { put: Some(tokio::spawn(put)) }
    }

    /// Waits for it; the second time it is durable already.
    pub async fn wait(&mut self) -> Result<(), StoreError> {
        match self.put.take() {
            Some(put) => put.await.map_err(|_| StoreError::Unwritten)?,
            None => Ok(()),
        }
    }
}

/// Both halves.
#[derive(Clone)]
pub struct Store {
    pub bundles: Bundles,
    pub index: Index,
}

impl Store {
    pub async fn open(data: &Path) -> Result<Self, StoreError> {
        let bundles = Bundles::local(&data.join("objects")).await?;
        let index = Index::open(&data.join("index.sqlite")).await?;
        Ok(Self { bundles, index })
    }
}
