//! For whom segments are sealed: the collector's key of the day, or the recording directory's own.

use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use prost::Message;
use weir_proto::seal::{PromiseError, VerifyingKey, verify_key_set};
use weir_proto::v1::{HpkeKey, SignedKeySet};

/// The retention class that is sealed for, until rules can say others.
const CLASS: &str = "default";
/// The collector hands out 35 days; more are of no use.
const KEYS_MAX: usize = 100;

#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyRingError {
    #[error("reading or writing {path} failed")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{path} does not hold a key set; connect to the collector to get a new one")]
    Decode { path: PathBuf, source: prost::DecodeError },
    #[error("the collector's key set is not to be trusted")]
    Promise(#[from] PromiseError),
}

/// The keys that generations are wrapped to.
pub(crate) enum KeyRing {
    /// Handed out by a collector, signed by its receipt key, kept in a file.
    Collector { path: PathBuf, receipt_key: VerifyingKey, keys: RwLock<Vec<HpkeKey>> },
    /// One key pair beside the recording, for every day.
    Local(HpkeKey),
}

impl KeyRing {
    /// The key set as last received; empty when there was none yet.
    pub(crate) fn load(path: &Path, receipt_key: VerifyingKey) -> Result<Self, KeyRingError> {
        let io = |source| KeyRingError::Io { path: path.to_owned(), source };
        let keys = match std::fs::read(path) {
            Ok(bytes) => {
                let signed = SignedKeySet::decode(&bytes[..])
                    .map_err(|source| KeyRingError::Decode { path: path.to_owned(), source })?;
                trusted(&signed, &receipt_key)?
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(io(error)),
        };
        Ok(Self::Collector { path: path.to_owned(), receipt_key, keys: RwLock::new(keys) })
    }

    /// Takes a new set, if it is the collector's: kept on disk first.
    pub(crate) fn update(&self, signed: &SignedKeySet) -> Result<(), KeyRingError> {
        let Self::Collector { path, receipt_key, keys } = self else { return Ok(()) };
        let new = trusted(signed, receipt_key)?;
        super::write_file(path, &signed.encode_to_vec())
            .map_err(|source| KeyRingError::Io { path: path.clone(), source })?;
        *keys.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    /// The key of a day (days since 1970-01-01 UTC).
    pub(crate) fn for_day(&self, day: u32) -> Option<HpkeKey> {
        match self {
            Self::Local(key) => Some(key.clone()),
            Self::Collector { keys, .. } => {
                let keys = keys.read().unwrap_or_else(PoisonError::into_inner);
                keys.iter().find(|key| key.day == day).cloned()
            }
        }
    }
}

fn trusted(signed: &SignedKeySet, receipt_key: &VerifyingKey) -> Result<Vec<HpkeKey>, KeyRingError> {
    let set = verify_key_set(receipt_key, signed)?;
    Ok(set.keys.into_iter().filter(|key| key.class == CLASS).take(KEYS_MAX).collect())
}
