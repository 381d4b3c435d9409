//! Files of the spool: `segments/<session>.<seq>.seg` (header, ciphertext, signature), `wraps/<generation>.wrap`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use weir_proto::SessionId;
use weir_proto::seal::segment::SEGMENT_BYTES_MAX;
use weir_proto::seal::{SIGNATURE_BYTES, Segment, SegmentError, VerifyingKey};

/// No file of the spool is longer.
pub(super) const FILE_BYTES_MAX: usize = SEGMENT_BYTES_MAX + SIGNATURE_BYTES;
/// Threads that sync the files of one batch, and the files below which one thread is enough.
const SYNC_THREADS: usize = 8;
const SYNC_SHARE_MIN: usize = 4;
pub(super) const SEGMENT_SUFFIX: &str = ".seg";
pub(super) const TEMPORARY_SUFFIX: &str = ".tmp";

/// Why a segment's file is not what was written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    /// The disk or this process, not the file: it may read back later.
    #[error("reading it failed")]
    Read(#[from] io::Error),
    #[error("it is not there")]
    Missing,
    #[error("it is longer or shorter than a segment")]
    Length,
    #[error(transparent)]
    Segment(#[from] SegmentError),
    #[error("it holds segment {found} of session {session}, not what its name says")]
    Name { session: SessionId, found: u64 },
}

/// A file's name. Sorted by name they are in order: a session's id begins with its time, and the number has fixed width.
pub(super) fn name(session: SessionId, seq: u64) -> String {
    format!("{session}.{seq:010}{SEGMENT_SUFFIX}")
}

/// The reverse; `None` for files that are not segments.
pub(super) fn parse_name(name: &str) -> Option<(SessionId, u64)> {
    let (session, seq) = name.strip_suffix(SEGMENT_SUFFIX)?.split_once('.')?;
    Some((session.parse().ok()?, seq.parse().ok()?))
}

/// Reads a segment's file and checks that it is what the node wrote under this name.
pub(crate) fn parse_file(
    bytes: Bytes,
    session: SessionId,
    seq: u64,
    key: &VerifyingKey,
) -> Result<(Segment, Bytes), FileError> {
    let cut = bytes.len().checked_sub(SIGNATURE_BYTES).ok_or(FileError::Length)?;
    let signature = bytes.slice(cut..);
    let segment = Segment::parse(bytes.slice(..cut))?;
    segment.verify(key, &signature)?;
    if segment.session() != session || segment.seq() != seq {
        return Err(FileError::Name { session: segment.session(), found: segment.seq() });
    }
    Ok((segment, signature))
}

pub(super) fn open(path: &Path) -> Result<File, FileError> {
    File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => FileError::Missing,
        _ => FileError::Read(error),
    })
}

/// Reads a file of bounded length.
pub(super) fn read_bounded(path: &Path, max: usize) -> Result<Bytes, FileError> {
    use io::Read;
    let mut bytes = Vec::new();
    open(path)?.take(max as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > max {
        return Err(FileError::Length);
    }
    Ok(bytes.into())
}

/// A batch of files on their way to disk. All their data is on the disk before the first gets its name, all names are
/// on the disk before `commit` returns: one group commit, however many sessions it holds.
pub(super) struct Batch<'a> {
    folder: &'a Path,
    written: Vec<(File, PathBuf, PathBuf)>,
}

impl<'a> Batch<'a> {
    pub(super) fn new(folder: &'a Path) -> Self {
        Self { folder, written: Vec::new() }
    }

    /// Writes one file under a temporary name. One that is there already (a repeated attempt) is written anew.
    pub(super) fn add(&mut self, name: &str, parts: &[&[u8]]) -> io::Result<()> {
        let path = self.folder.join(name);
        let temporary = self.folder.join(format!("{name}{TEMPORARY_SUFFIX}"));
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        for part in parts {
            file.write_all(part)?;
        }
        start_writeback(&file);
        self.written.push((file, temporary, path));
        Ok(())
    }

    pub(super) fn commit(self) -> io::Result<()> {
        self.sync()?;
        for (_, temporary, path) in &self.written {
            fs::rename(temporary, path)?;
        }
        sync_folder(self.folder)
    }

    /// Each sync of a file waits for the disk to empty its cache; those that wait together are served by one emptying.
    fn sync(&self) -> io::Result<()> {
        let share = self.written.len().div_ceil(SYNC_THREADS).max(SYNC_SHARE_MIN);
        let mut shares = self.written.chunks(share);
        let sync =
            |files: &[(File, PathBuf, PathBuf)]| files.iter().try_for_each(|(file, _, _)| file.sync_all());
        let first = shares.next().unwrap_or_default();
        std::thread::scope(|scope| {
            let others: Vec<_> = shares.map(|files| scope.spawn(move || sync(files))).collect();
            let own = sync(first);
            let interrupted = || Err(io::ErrorKind::Interrupted.into());
            others
                .into_iter()
                .map(|other| other.join().unwrap_or_else(|_| interrupted()))
                .fold(own, Result::and)
        })
    }
}

/// Makes names that were added to or removed from a folder durable.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Asks the kernel to begin writing now: the first sync of a batch then finds all files on their way, and their inodes
/// go to disk in one transaction. Only a hint: errors show up in the sync.
#[expect(unsafe_code, reason = "neither std nor nix has sync_file_range")]
fn start_writeback(file: &File) {
    use std::os::fd::AsRawFd;
    // SAFETY: an open descriptor and plain integers; no memory is passed.
    unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_and_sort() {
        let session = SessionId::generate();
        assert_eq!(parse_name(&name(session, 17)), Some((session, 17)));
        assert!(name(session, 9) < name(session, 10));
        for nonsense in ["", ".seg", "x.seg", "x.1.seg", "lost+found", &format!("{session}.x.seg")] {
            assert_eq!(parse_name(nonsense), None, "{nonsense}");
        }
    }
}
