//! Segments as they lie on disk, in a spool or in a collector's bundles: read without any key.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use weir_proto::seal::segment::HEADER_BYTES;
use weir_proto::seal::{Hash, Segment, SegmentHeader};
use weir_proto::{GenerationId, SessionId};

/// One segment in one session.
pub type Place = (SessionId, u64);

/// Everything that was seen sealed, over all lives of an agent.
#[derive(Default)]
pub struct Sightings {
    /// By what encrypts it: the generation gives the key with the session, the number is the nonce.
    by_nonce: HashMap<(GenerationId, SessionId, u64), Hash>,
    by_place: HashMap<Place, Hash>,
}

impl Sightings {
    /// Two different segments under one key and nonce, or in one place, are an error.
    pub fn take(&mut self, segment: &Segment) -> anyhow::Result<()> {
        let draft = segment.draft();
        let place = (draft.session, draft.seq);
        let nonce = (draft.generation, draft.session, draft.seq);
        let before = self.by_nonce.insert(nonce, *segment.hash());
        ensure!(before.is_none_or(|hash| hash == *segment.hash()), "a nonce was used twice: {nonce:?}");
        let before = self.by_place.insert(place, *segment.hash());
        ensure!(before.is_none_or(|hash| hash == *segment.hash()), "two different segments are {place:?}");
        Ok(())
    }

    pub fn places(&self) -> impl Iterator<Item = (&Place, &Hash)> {
        self.by_place.iter()
    }

    pub fn len(&self) -> usize {
        self.by_nonce.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_nonce.is_empty()
    }
}

/// A file of the spool.
pub fn spooled(path: &Path) -> anyhow::Result<Segment> {
    let bytes = Bytes::from(fs::read(path)?);
    let cut =
        bytes.len().checked_sub(weir_proto::seal::SIGNATURE_BYTES).context("too short for a segment")?;
    Ok(Segment::parse(bytes.slice(..cut))?)
}

/// The segments of a bundle, one after the other.
pub fn bundled(path: &Path) -> anyhow::Result<Vec<Segment>> {
    let mut rest = Bytes::from(fs::read(path)?);
    let mut segments = Vec::new();
    while !rest.is_empty() {
        let Some(header) = rest.first_chunk::<HEADER_BYTES>() else {
            bail!("{}: a torn bundle", path.display())
        };
        let length = HEADER_BYTES + SegmentHeader::parse(header)?.cipher_len as usize;
        ensure!(rest.len() >= length, "{}: a torn bundle", path.display());
        segments.push(Segment::parse(rest.split_to(length))?);
    }
    Ok(segments)
}

/// Every file below a folder.
pub fn files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
            let entry = entry?;
            match entry.file_type()? {
                kind if kind.is_dir() => folders.push(entry.path()),
                kind if kind.is_file() => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found.sort();
    Ok(found)
}
