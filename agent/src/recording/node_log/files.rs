//! Files of the node log.
//!
//! ```text
//! <first index, 20 digits>.log   entries          open        sessions that entries in deleted files left open
//! abandoned/<uuid>/              what was set aside, for a person to look at
//! next.tmp/ next/ joining/       a log that takes the present one's place: being written; whole; moving in
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bytes::{Buf, Bytes};
use prost::Message;
use weir_proto::SessionId;
use weir_proto::seal::node_log::NODE_ENTRY_BYTES_MAX;
use weir_proto::v1::{NodeEntry, SessionOpened};

use super::super::{make_folder, write_file};
use crate::spool::sync_folder;

/// A file is left for the next one when it has grown to this.
pub(super) const FILE_BYTES: u64 = 1 << 20;
/// No file is longer: it is left at the latest after one more entry.
const FILE_BYTES_MAX: u64 = FILE_BYTES + 2 * NODE_ENTRY_BYTES_MAX as u64;
/// A million open sessions take some 30 MiB.
const OPEN_BYTES_MAX: u64 = 64 << 20;
/// A disk is restored now and then; a collector that denies our log again and again must not fill ours with it.
pub(super) const ABANDONED_MAX: usize = 32;
const SUFFIX: &str = ".log";
const OPEN: &str = "open";
const ABANDONED: &str = "abandoned";
const WRITING: &str = "next.tmp";
const WHOLE: &str = "next";
const JOINING: &str = "joining";

pub(super) fn file_name(first: u64) -> String {
    format!("{first:020}{SUFFIX}")
}

/// The first indexes of a folder's files, ascending.
pub(super) fn list(folder: &Path) -> io::Result<Vec<u64>> {
    let mut firsts = Vec::new();
    for file in fs::read_dir(folder)? {
        let name = file?.file_name();
        if let Some(first) = name.to_str().and_then(|n| n.strip_suffix(SUFFIX)).and_then(|n| n.parse().ok()) {
            firsts.push(first);
        }
    }
    firsts.sort_unstable();
    Ok(firsts)
}

pub(super) fn read(path: &Path) -> io::Result<Bytes> {
    read_to(path, FILE_BYTES_MAX)
}

fn read_to(path: &Path, bytes_max: u64) -> io::Result<Bytes> {
    use io::Read;
    let mut bytes = Vec::new();
    File::open(path)?.take(bytes_max).read_to_end(&mut bytes)?;
    Ok(bytes.into())
}

pub(super) fn open_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// The entries of a file, still encoded; ends at what does not read.
pub(super) fn delimited(bytes: &Bytes) -> impl Iterator<Item = Bytes> {
    let mut rest = bytes.clone();
    std::iter::from_fn(move || {
        let len = prost::decode_length_delimiter(&mut rest).ok()?;
        (len <= rest.remaining()).then(|| rest.split_to(len))
    })
}

/// Moves files out of the log, into a folder where a person can look at them.
pub(super) fn abandon(folder: &Path, firsts: &[u64]) -> io::Result<()> {
    if firsts.is_empty() {
        return Ok(());
    }
    let aside = folder.join(ABANDONED).join(uuid::Uuid::now_v7().to_string());
    make_folder(&aside)?;
    for first in firsts {
        match fs::rename(folder.join(file_name(*first)), aside.join(file_name(*first))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            // One that somebody has removed is what this is about.
            _ => {}
        }
    }
    sync_folder(folder)
}

/// Keeps which sessions are open: before files that say so are deleted.
pub(super) fn write_open(folder: &Path, open: &BTreeMap<SessionId, u64>) -> io::Result<()> {
    let opened = |(session, number): (&SessionId, &u64)| SessionOpened {
        number: *number,
        session_id: session.to_field(),
    };
    let entry = NodeEntry { opened: open.iter().map(opened).collect(), ..NodeEntry::default() };
    write_file(&folder.join(OPEN), &entry.encode_to_vec())
}

/// What [`write_open`] kept. Damaged, it says nothing: sessions that only it knew stay open in the log, which a reader of
/// the whole log notices.
pub(super) fn read_open(folder: &Path) -> io::Result<Vec<SessionOpened>> {
    let path = folder.join(OPEN);
    let bytes = match read_to(&path, OPEN_BYTES_MAX) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read?,
    };
    Ok(NodeEntry::decode(bytes).map(|entry| entry.opened).unwrap_or_else(|error| {
        tracing::error!(path = %path.display(), %error, "the list of open sessions does not read");
        Vec::new()
    }))
}

/// An empty folder for a log that is to take this one's place.
pub(super) fn begin_replacement(folder: &Path) -> io::Result<PathBuf> {
    let abandoned = match fs::read_dir(folder.join(ABANDONED)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        logs => logs?.count(),
    };
    if abandoned >= ABANDONED_MAX {
        return Err(io::Error::other(format!(
            "{ABANDONED_MAX} logs are in its folder `{ABANDONED}` already: see why the collector's log is another one again \
             and again, then move them away"
        )));
    }
    let writing = folder.join(WRITING);
    remove_folder(&writing)?;
    make_folder(&writing)?;
    Ok(writing)
}

/// The new log is whole: from here on it is the log, however often [`replace`] is interrupted.
pub(super) fn commit_replacement(folder: &Path) -> io::Result<()> {
    sync_folder(&folder.join(WRITING))?;
    fs::rename(folder.join(WRITING), folder.join(WHOLE))
}

/// Puts a whole new log in the place of the present files. Does nothing when there is none.
pub(super) fn replace(folder: &Path) -> io::Result<()> {
    let (whole, joining) = (folder.join(WHOLE), folder.join(JOINING));
    if whole.try_exists()? {
        sync_folder(folder)?;
        abandon(folder, &list(folder)?)?;
        fs::rename(whole, &joining)?;
        sync_folder(folder)?;
    }
    if joining.try_exists()? {
        for first in list(&joining)? {
            fs::rename(joining.join(file_name(first)), folder.join(file_name(first)))?;
        }
        sync_folder(folder)?;
        fs::remove_dir(joining)?;
    }
    remove_folder(&folder.join(WRITING))
}

fn remove_folder(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
