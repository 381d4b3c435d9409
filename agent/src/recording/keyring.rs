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
/// A node that was cut off for longer than its keys reach goes on under the last of them for so many days: the collector
/// keeps the private half for 90 days after its day. Then it refuses, for what it sealed could never be opened.
const LATE_DAYS_MAX: u32 = 30;
/// With fewer days ahead than this, somebody should know.
const DAYS_AHEAD_MIN: u32 = 7;
/// A set from further in the future than this is not taken: it would keep out all that come after it until then.
const FUTURE_SECONDS_MAX: i64 = 24 * 3600;

#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyRingError {
    #[error("reading or writing {path} failed")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{path} does not hold a key set; connect to the collector to get a new one")]
    Decode { path: PathBuf, source: prost::DecodeError },
    #[error("the collector's key set is not to be trusted")]
    Promise(#[from] PromiseError),
    #[error("the collector's key set holds no key for class {CLASS:?}")]
    Empty,
    #[error(
        "the collector's key set is dated {ahead_s} s after this node's clock; set the clock of the one that is wrong"
    )]
    Future { ahead_s: i64 },
}

/// The keys that generations are wrapped to.
pub(crate) enum KeyRing {
    /// Handed out by a collector, signed by its receipt key, kept in a file.
    Collector { path: PathBuf, receipt_key: VerifyingKey, keys: RwLock<Keys> },
    /// One key pair beside the recording, for every day.
    Local(HpkeKey),
}

/// A key set whose signature holds.
#[derive(Default)]
pub(crate) struct Keys {
    /// Ascending by day.
    keys: Vec<HpkeKey>,
    issued_unix: i64,
}

/// A key to seal for, and how it was come by.
pub(crate) struct SealFor {
    pub(crate) key: HpkeKey,
    /// Days since the last one that there is a key for.
    pub(crate) late_days: u32,
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
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Keys::default(),
            Err(error) => return Err(io(error)),
        };
        Ok(Self::Collector { path: path.to_owned(), receipt_key, keys: RwLock::new(keys) })
    }

    /// Takes a new set, if it is the collector's and not older than the one at hand: kept on disk first. One that is not to
    /// be had is an error only where there is nothing to go on with.
    pub(crate) fn update(&self, signed: &SignedKeySet, now_unix: i64) -> Result<(), KeyRingError> {
        let Self::Collector { path, receipt_key, keys } = self else { return Ok(()) };
        let new = trusted(signed, receipt_key)?;
        let held = keys.read().unwrap_or_else(PoisonError::into_inner);
        let (held_issued, held_any) = (held.issued_unix, !held.keys.is_empty());
        drop(held);
        let ahead_s = new.issued_unix.saturating_sub(now_unix);
        let refusal = if new.keys.is_empty() {
            Some(KeyRingError::Empty)
        } else if ahead_s > FUTURE_SECONDS_MAX {
            Some(KeyRingError::Future { ahead_s })
        } else {
            None
        };
        match refusal {
            Some(error) if held_any => {
                tracing::error!(%error, "the collector's new key set is not taken; sealing goes on with the one at hand");
                return Ok(());
            }
            Some(error) => return Err(error),
            None => {}
        }
        if new.issued_unix < held_issued {
            tracing::error!(
                issued_unix = new.issued_unix,
                held_issued,
                "the collector's key set is older than the one at hand, and not taken: was the collector's clock set back, \
                 or its disk restored?"
            );
            return Ok(());
        }
        let today = u32::try_from(now_unix.div_euclid(24 * 3600)).unwrap_or(0);
        if new.until() < today.saturating_add(DAYS_AHEAD_MIN) {
            tracing::warn!(
                until_day = new.until(),
                today,
                "the collector's keys end soon; it should hand out 35 days"
            );
        }
        super::write_file(path, &signed.encode_to_vec())
            .map_err(|source| KeyRingError::Io { path: path.clone(), source })?;
        *keys.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    /// There is a key of this very day (days since 1970-01-01 UTC).
    pub(crate) fn covers(&self, day: u32) -> bool {
        self.for_day(day).is_some_and(|found| found.late_days == 0)
    }

    /// The key to seal for on a day.
    pub(crate) fn for_day(&self, day: u32) -> Option<SealFor> {
        match self {
            Self::Local(key) => Some(SealFor { key: key.clone(), late_days: 0 }),
            Self::Collector { keys, .. } => keys.read().unwrap_or_else(PoisonError::into_inner).for_day(day),
        }
    }

    /// Not even the last key may be sealed for any more.
    pub(crate) fn ran_out(&self, day: u32) -> bool {
        self.until_day() != 0 && day > self.until_day().saturating_add(LATE_DAYS_MAX)
    }

    /// The last day that there is a key for; 0 = none, or for every day.
    pub(crate) fn until_day(&self) -> u32 {
        match self {
            Self::Local(_) => 0,
            Self::Collector { keys, .. } => keys.read().unwrap_or_else(PoisonError::into_inner).until(),
        }
    }
}

impl Keys {
    fn until(&self) -> u32 {
        self.keys.last().map_or(0, |key| key.day)
    }

    fn for_day(&self, day: u32) -> Option<SealFor> {
        let (first, last) = (self.keys.first()?, self.keys.last()?);
        let found = |key: &HpkeKey, late_days| Some(SealFor { key: key.clone(), late_days });
        if let Some(key) = self.keys.iter().find(|key| key.day == day) {
            return found(key, 0);
        }
        // At midnight the collector's clock may be the first to turn.
        if day.checked_add(1) == Some(first.day) {
            return found(first, 0);
        }
        match day.checked_sub(last.day) {
            Some(late_days) if late_days <= LATE_DAYS_MAX => found(last, late_days),
            _ => None,
        }
    }
}

fn trusted(signed: &SignedKeySet, receipt_key: &VerifyingKey) -> Result<Keys, KeyRingError> {
    let set = verify_key_set(receipt_key, signed)?;
    let mut keys: Vec<_> = set.keys.into_iter().filter(|key| key.class == CLASS).take(KEYS_MAX).collect();
    keys.sort_by_key(|key| key.day);
    Ok(Keys { keys, issued_unix: set.issued_unix })
}

#[cfg(test)]
mod tests {
    use weir_proto::seal::{SigningKey, sign_key_set};
    use weir_proto::v1::KeySet;

    use super::*;

    const TODAY: u32 = 20_000;
    const NOW: i64 = TODAY as i64 * 24 * 3600 + 60;

    fn collector() -> SigningKey {
        SigningKey::from_bytes(&[9; 32])
    }

    fn set(days: std::ops::Range<u32>, issued_unix: i64) -> SignedKeySet {
        signed_by(&collector(), days, issued_unix)
    }

    fn signed_by(key: &SigningKey, days: std::ops::Range<u32>, issued_unix: i64) -> SignedKeySet {
        let key_of = |day: u32| HpkeKey {
            id: vec![day as u8; 16].into(),
            class: CLASS.into(),
            day,
            public_key: vec![1; 32].into(),
        };
        sign_key_set(key, &KeySet { keys: days.map(key_of).collect(), issued_unix })
    }

    fn ring(folder: &Path) -> KeyRing {
        KeyRing::load(&folder.join("keys.bin"), collector().verifying_key()).unwrap()
    }

    #[test]
    fn it_seals_for_the_day_then_for_the_last_day_then_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let ring = ring(folder.path());
        assert!(ring.for_day(TODAY).is_none(), "nothing is known yet");
        ring.update(&set(TODAY..TODAY + 36, NOW), NOW).unwrap();
        assert_eq!(ring.until_day(), TODAY + 35);
        let late = |day| ring.for_day(day).map(|found| (found.key.day, found.late_days));
        assert_eq!(late(TODAY), Some((TODAY, 0)));
        assert_eq!(late(TODAY + 35), Some((TODAY + 35, 0)));
        assert_eq!(late(TODAY + 36), Some((TODAY + 35, 1)));
        assert_eq!(late(TODAY + 65), Some((TODAY + 35, 30)));
        assert_eq!(late(TODAY + 66), None, "what is sealed now could not be opened for long");
        assert!(!ring.ran_out(TODAY + 65) && ring.ran_out(TODAY + 66));
        assert!(ring.covers(TODAY + 35) && !ring.covers(TODAY + 36));
        assert_eq!(late(TODAY - 1), Some((TODAY, 0)), "the collector's midnight came first");
        assert_eq!(late(TODAY - 2), None, "this node's clock is wrong");
    }

    #[test]
    fn an_older_set_does_not_replace_a_newer_one_on_disk_either() {
        let folder = tempfile::tempdir().unwrap();
        let held = ring(folder.path());
        held.update(&set(TODAY..TODAY + 36, NOW), NOW).unwrap();
        held.update(&set(TODAY - 9..TODAY + 9, NOW - 1), NOW).unwrap();
        assert_eq!(held.until_day(), TODAY + 35);
        assert_eq!(ring(folder.path()).until_day(), TODAY + 35);
        held.update(&set(TODAY + 1..TODAY + 37, NOW), NOW).unwrap();
        assert_eq!(ring(folder.path()).until_day(), TODAY + 36, "one of the same second is taken");
    }

    #[test]
    fn what_is_forged_empty_or_from_the_future_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let ring = ring(folder.path());
        let future = set(TODAY..TODAY + 36, NOW + 25 * 3600);
        let told = ring.update(&future, NOW).unwrap_err().to_string();
        assert!(told.contains("clock"), "{told}");
        assert!(matches!(ring.update(&set(0..0, NOW), NOW), Err(KeyRingError::Empty)));
        ring.update(&set(TODAY..TODAY + 36, NOW), NOW).unwrap();
        // From here on there is something to go on with: shipping does not stop for it.
        ring.update(&future, NOW).unwrap();
        ring.update(&set(0..0, NOW + 1), NOW).unwrap();
        ring.update(&set(TODAY + 1..TODAY + 37, NOW + 2), NOW).unwrap();
        assert_eq!(ring.until_day(), TODAY + 36, "the set of the future did not keep this one out");
        let forged = signed_by(&SigningKey::from_bytes(&[8; 32]), TODAY..TODAY + 40, NOW + 3);
        assert!(matches!(ring.update(&forged, NOW), Err(KeyRingError::Promise(_))));
    }
}
