//! SHA-256 of executables: computed once per file, off the data path, and remembered by what the file system says of the
//! file.
//!
//! A file is read through `/proc/PID/exe`, which is the file that runs, whatever its path leads to by now.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use nix::sys::statfs::{FUSE_SUPER_MAGIC, fstatfs};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, watch};

/// Longest file that is read, bytes; the digest of a longer one is unknown.
const FILE_BYTES_MAX: u64 = 2 << 30;
/// How long reading one file may take; then its digest is unknown.
const READ_TIME_MAX: Duration = Duration::from_secs(60);
/// Files read at once.
const READING_MAX: usize = 2;
/// Files read or waiting to be; the digest of one more is unknown.
const WAITING_MAX: usize = 64;
/// Digests remembered; at more, all are forgotten.
const KNOWN_MAX: usize = 4096;
const CHUNK_BYTES: usize = 256 << 10;
/// A file that changed this recently may change again without another change time: clocks of file systems tick in up to 10 ms.
const SETTLED: Duration = Duration::from_millis(100);

/// SHA-256 of an executable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Digest([u8; 32]);

impl Digest {
    pub(super) fn to_field(self) -> Bytes {
        Bytes::copy_from_slice(&self.0)
    }

    fn of(file: &mut File) -> io::Result<Self> {
        let end = Instant::now() + READ_TIME_MAX;
        let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            match file.read(&mut chunk)? {
                0 => break,
                length => context.update(&chunk[..length]),
            }
            if Instant::now() > end {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        context.finish().as_ref().try_into().map(Self).map_err(io::Error::other)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl TryFrom<String> for Digest {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is not a SHA-256: 64 lower-case hex digits, as sha256sum prints them");
        let nibble = |digit: u8| match digit {
            b'0'..=b'9' => Ok(digit - b'0'),
            b'a'..=b'f' => Ok(digit - b'a' + 10),
            _ => Err(wrong()),
        };
        let mut digest = [0; 32];
        if text.len() != 2 * digest.len() {
            return Err(wrong());
        }
        for (byte, digits) in digest.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = nibble(digits[0])? << 4 | nibble(digits[1])?;
        }
        Ok(Self(digest))
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

/// Names one content of one file: a file that is written to has another change time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    device: u64,
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
}

impl Key {
    fn of(file: &File) -> io::Result<Self> {
        // A file system in user space answers what it likes, and may take its time to.
        if fstatfs(file)?.filesystem_type() == FUSE_SUPER_MAGIC {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let metadata = file.metadata()?;
        if metadata.len() > FILE_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    fn is_settled(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let changed = Duration::new(
            u64::try_from(self.changed.0).unwrap_or(u64::MAX),
            u32::try_from(self.changed.1).unwrap_or(0),
        );
        now.saturating_sub(changed) > SETTLED
    }
}

/// A digest that is known, being computed, or unknown for good.
#[derive(Clone, Debug)]
pub(super) enum Digesting {
    Known(Digest),
    /// The channel closes without a value if the file could not be read.
    Running(watch::Receiver<Option<Digest>>),
    Unknown,
}

impl Digesting {
    /// Of the file that a process executes. Opening it may block for as long as its file system likes.
    pub(super) fn start(pid: u32, runtime: &tokio::runtime::Handle) -> Self {
        let opened = File::open(format!("/proc/{pid}/exe")).and_then(|file| Ok((Key::of(&file)?, file)));
        match opened {
            Ok((key, file)) => DIGESTS.start(key, file, runtime),
            Err(error) => {
                tracing::debug!(pid, %error, "the digest of an executable is unknown");
                Self::Unknown
            }
        }
    }

    /// `None` also if it takes longer than that.
    pub(super) async fn wait(&mut self, at_most: Duration) -> Option<Digest> {
        match self {
            Self::Known(digest) => Some(*digest),
            Self::Unknown => None,
            Self::Running(running) => {
                let arrived = tokio::time::timeout(at_most, running.wait_for(Option::is_some)).await;
                arrived.ok()?.ok().and_then(|digest| *digest)
            }
        }
    }
}

struct Digests {
    tables: Mutex<Tables>,
    reading: Arc<Semaphore>,
}

#[derive(Default)]
struct Tables {
    known: HashMap<Key, Digest>,
    /// Each file is read by one task, however many ask.
    running: HashMap<Key, watch::Receiver<Option<Digest>>>,
}

static DIGESTS: std::sync::LazyLock<Digests> = std::sync::LazyLock::new(|| Digests {
    tables: Mutex::default(),
    reading: Arc::new(Semaphore::new(READING_MAX)),
});

impl Digests {
    fn start(&'static self, key: Key, file: File, runtime: &tokio::runtime::Handle) -> Digesting {
        let mut tables = self.tables();
        if let Some(digest) = tables.known.get(&key) {
            return Digesting::Known(*digest);
        }
        if let Some(running) = tables.running.get(&key) {
            return Digesting::Running(running.clone());
        }
        if tables.running.len() >= WAITING_MAX {
            return Digesting::Unknown;
        }
        let (tell, told) = watch::channel(None);
        tables.running.insert(key, told.clone());
        let permits = self.reading.clone();
        let settled = key.is_settled();
        runtime.spawn(async move {
            let permit = permits.acquire_owned().await;
            let computed = tokio::task::spawn_blocking(move || compute(key, file)).await;
            drop(permit);
            let mut tables = self.tables();
            tables.running.remove(&key);
            match computed {
                Ok(Ok(digest)) => {
                    if tables.known.len() >= KNOWN_MAX {
                        tables.known.clear();
                    }
                    if settled {
                        tables.known.insert(key, digest);
                    }
                    tell.send_replace(Some(digest));
                }
                Ok(Err(error)) => tracing::debug!(%error, "an executable could not be read"),
                Err(error) => tracing::error!(%error, "reading an executable"),
            }
        });
        Digesting::Running(told)
    }

    fn tables(&self) -> std::sync::MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn compute(key: Key, mut file: File) -> io::Result<Digest> {
    let digest = Digest::of(&mut file)?;
    // Written to meanwhile: the digest is of no content that the file ever had.
    if Key::of(&file)? == key { Ok(digest) } else { Err(io::Error::other("it changed while it was read")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    const PATIENCE: Duration = Duration::from_secs(20);

    async fn digest_of(file: &File) -> Option<Digest> {
        let key = Key::of(file).unwrap();
        DIGESTS.start(key, file.try_clone().unwrap(), &tokio::runtime::Handle::current()).wait(PATIENCE).await
    }

    #[tokio::test]
    async fn a_file_is_read_once_and_again_when_it_changes() {
        let mut written = tempfile::NamedTempFile::new().unwrap();
        written.write_all(b"abc").unwrap();
        let file = written.reopen().unwrap();
        let before = Key::of(&file).unwrap();
        while !before.is_settled() {
            tokio::time::sleep(SETTLED / 10).await;
        }
        assert_eq!(digest_of(&file).await.unwrap().to_string(), ABC);
        let known = DIGESTS.start(before, file.try_clone().unwrap(), &tokio::runtime::Handle::current());
        assert!(matches!(known, Digesting::Known(_)), "{known:?}");
        written.write_all(b"d").unwrap();
        assert_ne!(Key::of(&file).unwrap(), before);
        assert_ne!(digest_of(&written.reopen().unwrap()).await.unwrap().to_string(), ABC);
    }

    #[tokio::test]
    async fn many_that_ask_wait_for_one_reading() {
        let mut written = tempfile::NamedTempFile::new().unwrap();
        written.write_all(&vec![7; 8 << 20]).unwrap();
        let file = written.reopen().unwrap();
        let key = Key::of(&file).unwrap();
        let runtime = tokio::runtime::Handle::current();
        let mut asked: Vec<_> =
            (0..100).map(|_| DIGESTS.start(key, file.try_clone().unwrap(), &runtime)).collect();
        // The reading cannot have ended: this task has not yielded to it.
        assert!(asked.iter().all(|digesting| matches!(digesting, Digesting::Running(_))));
        assert_eq!(DIGESTS.tables().running.keys().filter(|running| **running == key).count(), 1);
        let first = asked[0].wait(PATIENCE).await.unwrap();
        for digesting in &mut asked {
            assert_eq!(digesting.wait(PATIENCE).await, Some(first));
        }
        assert!(!DIGESTS.tables().running.contains_key(&key));
    }

    #[tokio::test]
    async fn of_a_running_process_it_is_that_of_the_file_that_runs() {
        let runtime = tokio::runtime::Handle::current();
        let mut own = Digesting::start(std::process::id(), &runtime);
        let executable = File::open(std::env::current_exe().unwrap()).unwrap();
        let expected = compute(Key::of(&executable).unwrap(), executable).unwrap();
        assert_eq!(own.wait(PATIENCE).await, Some(expected));
        let mut nobody = Digesting::start(u32::MAX, &runtime);
        assert_eq!(nobody.wait(PATIENCE).await, None);
    }

    #[test]
    fn a_file_that_changes_under_the_reading_has_no_digest() {
        let mut written = tempfile::NamedTempFile::new().unwrap();
        written.write_all(b"abc").unwrap();
        let key = Key::of(written.as_file()).unwrap();
        written.write_all(b"d").unwrap();
        assert!(compute(key, written.reopen().unwrap()).is_err());
    }

    #[test]
    fn digests_are_written_as_sha256sum_writes_them() {
        let digest = Digest::try_from(ABC.to_owned()).unwrap();
        assert_eq!(digest.to_string(), ABC);
        for wrong in [&ABC[1..], &ABC.to_uppercase(), "", "abc"] {
            assert!(Digest::try_from((*wrong).to_owned()).unwrap_err().contains("sha256sum"), "{wrong}");
        }
    }
}
