//! Bundles: the objects that hold sealed segments, one after the other, exactly as the node agents made them.

use std::path::Path as FilePath;
use std::sync::Arc;

use bytes::Bytes;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use tokio_stream::StreamExt;
use uuid::Uuid;

use super::StoreError;

/// A bundle that no row names is swept after this time: its transaction can no longer be under way.
const ORPHAN_AGE: time::Duration = time::Duration::hours(24);
const PREFIX: &str = "bundles";
const PROBES: &str = "probe";
/// A probe older than this was left by a process that was killed; a younger one may be another process's.
const PROBE_AGE: time::Duration = time::Duration::hours(1);

/// Where bundles are kept. Objects are created once and never changed.
#[derive(Clone)]
pub struct Bundles {
    objects: Arc<dyn ObjectStore>,
}

impl Bundles {
    /// On a local disk; every object and its folder are synced before `put` returns.
    pub async fn local(folder: &FilePath) -> Result<Self, StoreError> {
        std::fs::create_dir_all(folder)
            .map_err(|source| StoreError::Folder { path: folder.to_owned(), source })?;
        let objects = LocalFileSystem::new_with_prefix(folder)?.with_fsync(true);
        let bundles = Self { objects: Arc::new(objects) };
        bundles.probe().await?;
        Ok(bundles)
    }

    /// A store that overwrites what it should only create would let a bundle be replaced: it is refused at start.
    async fn probe(&self) -> Result<(), StoreError> {
        let before = time::OffsetDateTime::now_utc() - PROBE_AGE;
        for left in self.keys_before(PROBES, unix_ms(before)).await? {
            self.delete(&left).await?;
        }
        let path = Path::from(format!("{PROBES}/{}", Uuid::now_v7()));
        self.create(&path, vec![Bytes::from_static(b"first")]).await?;
        let second = self.create(&path, vec![Bytes::from_static(b"second")]).await;
        self.objects.delete(&path).await?;
        match second {
            Err(StoreError::Objects(object_store::Error::AlreadyExists { .. })) => Ok(()),
            Err(other) => Err(other),
            Ok(()) => Err(StoreError::NotCreateOnly),
        }
    }

    /// The day in the key makes a folder listing bearable.
    pub fn new_key(unix_ms: i64) -> String {
        format!("{PREFIX}/{}/{}", unix_ms.div_euclid(86_400_000), Uuid::now_v7())
    }

    /// Writes one bundle durably.
    pub async fn put(self, key: String, parts: Vec<Bytes>) -> Result<(), StoreError> {
        self.create(&Path::from(key), parts).await
    }

    async fn create(&self, path: &Path, parts: Vec<Bytes>) -> Result<(), StoreError> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        self.objects.put_opts(path, PutPayload::from_iter(parts), options).await?;
        Ok(())
    }

    /// One segment's bytes.
    pub async fn part(&self, key: &str, at: u64, len: u64) -> Result<Bytes, StoreError> {
        let end = at.saturating_add(len);
        Ok(self.objects.get_range(&Path::from(key), at..end).await?)
    }

    /// Deletes a bundle; one that is gone already is fine.
    pub async fn delete(&self, key: &str) -> Result<(), StoreError> {
        match self.objects.delete(&Path::from(key)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Keys of bundles old enough that a missing row means: nobody will ever name it.
    pub async fn old_keys(&self, now_unix_ms: i64) -> Result<Vec<String>, StoreError> {
        self.keys_before(PREFIX, now_unix_ms.saturating_sub(ORPHAN_AGE.whole_milliseconds() as i64)).await
    }

    async fn keys_before(&self, prefix: &str, before_ms: i64) -> Result<Vec<String>, StoreError> {
        let mut keys = Vec::new();
        let mut listing = self.objects.list(Some(&Path::from(prefix)));
        while let Some(object) = listing.next().await {
            let object = object?;
            if object.last_modified.timestamp_millis() < before_ms {
                keys.push(object.location.to_string());
            }
        }
        Ok(keys)
    }
}

fn unix_ms(time: time::OffsetDateTime) -> i64 {
    (time.unix_timestamp_nanos() / 1_000_000) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_killed_probe_is_swept_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        Bundles::local(folder.path()).await.unwrap();
        let probes = folder.path().join(PROBES);
        std::fs::create_dir_all(&probes).unwrap();
        for (name, age) in
            [("killed", PROBE_AGE + time::Duration::minutes(1)), ("live", time::Duration::ZERO)]
        {
            let file = std::fs::File::create(probes.join(name)).unwrap();
            file.set_modified(std::time::SystemTime::now() - age.unsigned_abs()).unwrap();
        }
        Bundles::local(folder.path()).await.unwrap();
        let left: Vec<_> =
            std::fs::read_dir(&probes).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["live"]);
    }

    #[tokio::test]
    async fn a_bundle_is_read_back_in_parts_and_deleted_twice() {
        let folder = tempfile::tempdir().unwrap();
        let bundles = Bundles::local(folder.path()).await.unwrap();
        let key = Bundles::new_key(0);
        let parts = vec![Bytes::from_static(b"one"), Bytes::from_static(b"three")];
        bundles.clone().put(key.clone(), parts).await.unwrap();
        assert_eq!(bundles.part(&key, 3, 5).await.unwrap(), "three");
        assert!(bundles.part(&key, 6, 5).await.is_err() || bundles.part(&key, 6, 5).await.unwrap().len() < 5);
        assert!(bundles.old_keys(0).await.unwrap().is_empty());
        let far = time::OffsetDateTime::now_utc() + time::Duration::hours(25);
        assert_eq!(bundles.old_keys(unix_ms(far)).await.unwrap(), std::slice::from_ref(&key));
        bundles.delete(&key).await.unwrap();
        bundles.delete(&key).await.unwrap();
        assert!(bundles.part(&key, 0, 3).await.is_err());
    }
}
