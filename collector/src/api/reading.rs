//! Opens stored segments.

use std::sync::Arc;

use bytes::Bytes;
use tonic::Status;
use weir_proto::seal::Segment;
use weir_proto::v1;

use super::store_status;
use crate::keys::{Keys, hpke};
use crate::store::Store;
use crate::store::rows::StoredSegment;

/// What reads need. Cheap to clone.
#[derive(Clone)]
pub struct Reading {
    pub store: Store,
    pub keys: Arc<Keys>,
}

impl Reading {
    /// As stored: header and ciphertext.
    pub async fn bytes(&self, stored: &StoredSegment) -> Result<Bytes, Status> {
        self.store.bundles.part(&stored.bundle, stored.at, stored.len).await.map_err(store_status)
    }

    /// The events. `None`: the session's key was deleted.
    pub async fn events(&self, stored: &StoredSegment) -> Result<Option<Vec<v1::Event>>, Status> {
        let wrapped =
            self.store.index.session_key(&stored.session, &stored.generation).await.map_err(store_status)?;
        let Some(wrapped) = wrapped else { return Ok(None) };
        let key = hpke::session_key_unwrap(&self.keys.kek, &stored.session, &stored.generation, &wrapped)
            .map_err(|error| damaged(stored, &error))?;
        let bytes = self.bytes(stored).await?;
        let stored = stored.clone();
        let opened = tokio::task::spawn_blocking(move || {
            let segment = Segment::parse(bytes).map_err(|error| damaged(&stored, &error))?;
            let plain = segment.open(&key).map_err(|error| damaged(&stored, &error))?;
            weir_proto::seal::events(plain)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| damaged(&stored, &error))
        });
        opened.await.map_err(|_| Status::internal("opening a segment failed"))?.map(Some)
    }
}

fn damaged(stored: &StoredSegment, error: &dyn std::error::Error) -> Status {
    let what = format!("segment {} of session {} is damaged at rest: {error}", stored.seq, stored.session);
    tracing::error!("{what}");
    Status::data_loss(what)
}
