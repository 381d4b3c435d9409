//! The node log on disk: files of length-delimited signed entries, each file named by the index of its first entry.
//! Kept until the collector holds them (standalone: for good).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bytes::{Buf, Bytes};
use prost::Message;
use weir_proto::seal::node_log::NODE_ENTRY_BYTES_MAX;
use weir_proto::seal::{Hash, NO_HASH, NodeChain, SigningKey};
use weir_proto::v1::{NodeEntry, RolledBack, SignedNodeEntry, node_entry::Mark};
use weir_proto::{NodeId, SessionId};

/// A file is left for the next one when it has grown to this.
const FILE_BYTES: u64 = 1 << 20;
/// No file is longer: it is left at the latest after one more entry.
const FILE_BYTES_MAX: u64 = FILE_BYTES + 2 * NODE_ENTRY_BYTES_MAX as u64;
const SUFFIX: &str = ".log";

#[derive(Debug, thiserror::Error)]
#[error("node log {path}: {doing} failed")]
pub(crate) struct NodeLogError {
    path: PathBuf,
    doing: &'static str,
    source: io::Error,
}

/// How the collector's copy compares to this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogStanding {
    /// It is the beginning of this one: entries from here on are missing there.
    Behind(u64),
    /// It is not: this disk is older than what the collector has seen, or another.
    Diverged,
}

/// What the files said when they were opened.
#[derive(Debug, Default)]
pub(crate) struct Recovered {
    /// The next session number, as far as the log knows.
    pub(crate) next_number: u64,
    /// Sessions that a held entry says are closed.
    pub(crate) closed: std::collections::HashSet<SessionId>,
    /// The last entry is a `Stopped`.
    pub(crate) stopped: bool,
    pub(crate) boot_id: String,
}

pub(crate) struct NodeLog {
    folder: PathBuf,
    key: SigningKey,
    chain: NodeChain,
    file: File,
    /// Length of what is known to be good in `file`.
    good: u64,
    /// First indexes of the files held, ascending; the last is `file`.
    firsts: Vec<u64>,
    /// The first entry of this life.
    born: u64,
}

impl NodeLog {
    /// Opens the folder and reads what is there; a torn end is cut off.
    pub(crate) fn open(
        folder: &Path,
        node: NodeId,
        key: SigningKey,
    ) -> Result<(Self, Recovered), NodeLogError> {
        let failed = |doing| move |source| NodeLogError { path: folder.to_owned(), doing, source };
        super::make_folder(folder).map_err(failed("making its folder"))?;
        let mut firsts = list(folder).map_err(failed("listing its files"))?;
        let mut recovered = Recovered { next_number: 1, ..Recovered::default() };
        let mut chain = NodeChain::start(node);
        let mut good = 0;
        for at in 0..firsts.len() {
            let first = firsts[at];
            let bytes = read(&folder.join(file_name(first))).map_err(failed("reading it"))?;
            let continues = at == 0 || first == chain.next_index;
            if at == 0 {
                chain =
                    NodeChain { node, next_index: first, head: first_prev_hash(&bytes).unwrap_or(NO_HASH) };
            }
            good = if continues { replay(&bytes, &mut chain, &key, &mut recovered) } else { 0 };
            let whole = continues && good == bytes.len() as u64;
            if !whole {
                let later = firsts.split_off(if continues { at + 1 } else { at });
                if !later.is_empty() || bytes.len() as u64 - good > 0 {
                    tracing::warn!(
                        index = chain.next_index,
                        files = later.len(),
                        "the node log does not read on; it continues from its last good entry"
                    );
                }
                abandon(folder, &later).map_err(failed("setting broken files aside"))?;
                break;
            }
        }
        if firsts.is_empty() {
            firsts.push(chain.next_index);
            good = 0;
        }
        let path = folder.join(file_name(*firsts.last().unwrap_or(&0)));
        let file = open_file(&path).map_err(failed("opening it"))?;
        file.set_len(good).map_err(failed("cutting off its torn end"))?;
        let born = chain.next_index;
        Ok((Self { folder: folder.to_owned(), key, chain, file, good, firsts, born }, recovered))
    }

    /// Appends an entry; it is on the disk when this returns. After an error nothing was appended.
    pub(crate) fn append(&mut self, entry: NodeEntry) -> Result<(), NodeLogError> {
        if self.good >= FILE_BYTES || self.firsts.is_empty() {
            self.next_file()?;
        }
        let mut chain = self.chain.clone();
        let bytes = chain.append(entry, &self.key).encode_length_delimited_to_vec();
        let written = self
            .file
            .seek(SeekFrom::Start(self.good))
            .and_then(|_| self.file.write_all(&bytes))
            .and_then(|()| self.file.sync_data());
        if let Err(source) = written {
            // Best effort: what is left there is overwritten by the next attempt, or cut off at the next start.
            let _ = self.file.set_len(self.good);
            return Err(self.failed("writing it", source));
        }
        self.good += bytes.len() as u64;
        self.chain = chain;
        Ok(())
    }

    /// How many entries there are.
    pub(crate) fn entries(&self) -> u64 {
        self.chain.next_index
    }

    /// Compares with what the collector says it holds.
    pub(crate) fn standing(&self, entries: u64, head: &Hash) -> LogStanding {
        match self.head_at(entries) {
            Some(own) if own == *head => LogStanding::Behind(entries),
            _ => LogStanding::Diverged,
        }
    }

    /// Encoded entries from this index on, about as many bytes as asked for, and at least one where there is one.
    pub(crate) fn read_from(&self, index: u64, bytes_max: usize) -> Vec<Bytes> {
        let mut out = Vec::new();
        let mut taken = 0;
        for (at, first) in self.firsts.iter().enumerate() {
            if self.firsts.get(at + 1).is_some_and(|next| *next <= index) {
                continue;
            }
            let Ok(bytes) = read(&self.folder.join(file_name(*first))) else { break };
            for (offset, entry) in delimited(&bytes).enumerate() {
                let this = first + offset as u64;
                if this < index || this >= self.chain.next_index {
                    continue;
                }
                if taken > 0 && taken + entry.len() > bytes_max {
                    return out;
                }
                taken += entry.len();
                out.push(entry);
            }
        }
        out
    }

    /// The collector holds this many entries: files that are wholly below go.
    pub(crate) fn receipted(&mut self, entries: u64) {
        while self.firsts.len() > 1 && self.firsts[1] <= entries {
            let first = self.firsts.remove(0);
            let _ = fs::remove_file(self.folder.join(file_name(first)));
        }
    }

    /// Goes on from the collector's head, because its log is not the beginning of this one. What this life had said
    /// since its start is said again; the old files are set aside.
    pub(crate) fn roll_back(
        &mut self,
        entries: u64,
        head: Hash,
        own_next_number: u64,
        mut mark: NodeEntry,
    ) -> Result<(), NodeLogError> {
        let own = RolledBack {
            own_index: self.chain.next_index,
            own_hash: Bytes::copy_from_slice(&self.chain.head),
            own_next_number,
        };
        for said in self.read_from(self.born, usize::MAX) {
            let entry = SignedNodeEntry::decode(said).and_then(|signed| NodeEntry::decode(signed.entry));
            if let Ok(entry) = entry {
                mark.opened.extend(entry.opened);
                mark.closed.extend(entry.closed);
                mark.lost.extend(entry.lost);
            }
        }
        mark.mark = Some(Mark::RolledBack(own));
        abandon(&self.folder, &self.firsts).map_err(|source| self.failed("setting it aside", source))?;
        self.chain = NodeChain { node: self.chain.node, next_index: entries, head };
        self.born = entries;
        self.firsts.clear();
        self.next_file()?;
        for part in split(mark) {
            self.append(part)?;
        }
        Ok(())
    }

    fn head_at(&self, index: u64) -> Option<Hash> {
        if index == self.chain.next_index {
            return Some(self.chain.head);
        }
        let next = self.read_from(index, 1).into_iter().next()?;
        if index < *self.firsts.first()? {
            return None;
        }
        let entry = NodeEntry::decode(SignedNodeEntry::decode(next).ok()?.entry).ok()?;
        (entry.index == index).then_some(())?;
        entry.prev_hash[..].try_into().ok()
    }

    fn next_file(&mut self) -> Result<(), NodeLogError> {
        let first = self.chain.next_index;
        let path = self.folder.join(file_name(first));
        self.file = open_file(&path)
            .and_then(|file| {
                file.set_len(0)?;
                crate::spool::sync_folder(&self.folder)?;
                Ok(file)
            })
            .map_err(|source| self.failed("opening its next file", source))?;
        self.good = 0;
        self.firsts.push(first);
        Ok(())
    }

    fn failed(&self, doing: &'static str, source: io::Error) -> NodeLogError {
        NodeLogError { path: self.folder.clone(), doing, source }
    }
}

/// Cuts what one entry has to say into entries of bounded length; the mark and heartbeat stay with the first.
pub(super) fn split(mut entry: NodeEntry) -> Vec<NodeEntry> {
    /// Each names a session in at most some 70 bytes.
    const ITEMS: usize = 2000;
    let (opened, closed, lost) = (
        std::mem::take(&mut entry.opened),
        std::mem::take(&mut entry.closed),
        std::mem::take(&mut entry.lost),
    );
    let parts = opened.len().max(closed.len()).max(lost.len()).div_ceil(ITEMS).max(1);
    let chunk = |at: usize, len: usize| (at * ITEMS).min(len)..((at + 1) * ITEMS).min(len);
    (0..parts)
        .map(|at| NodeEntry {
            opened: opened[chunk(at, opened.len())].to_vec(),
            closed: closed[chunk(at, closed.len())].to_vec(),
            lost: lost[chunk(at, lost.len())].to_vec(),
            mark: if at == 0 { entry.mark.take() } else { None },
            ..entry.clone()
        })
        .collect()
}

fn file_name(first: u64) -> String {
    format!("{first:020}{SUFFIX}")
}

fn list(folder: &Path) -> io::Result<Vec<u64>> {
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

fn read(path: &Path) -> io::Result<Bytes> {
    use io::Read;
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes.into())
}

fn open_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// The entries of a file, still encoded; ends at what does not read.
fn delimited(bytes: &Bytes) -> impl Iterator<Item = Bytes> {
    let mut rest = bytes.clone();
    std::iter::from_fn(move || {
        let len = prost::decode_length_delimiter(&mut rest).ok()?;
        (len <= rest.remaining()).then(|| rest.split_to(len))
    })
}

fn first_prev_hash(bytes: &Bytes) -> Option<Hash> {
    let signed = SignedNodeEntry::decode(delimited(bytes).next()?).ok()?;
    NodeEntry::decode(signed.entry).ok()?.prev_hash[..].try_into().ok()
}

/// Follows the chain through a file; gives the length of what is good.
fn replay(bytes: &Bytes, chain: &mut NodeChain, key: &SigningKey, recovered: &mut Recovered) -> u64 {
    let own = key.verifying_key();
    let mut rest = bytes.clone();
    loop {
        let good = (bytes.len() - rest.len()) as u64;
        if rest.is_empty() {
            return good;
        }
        let Ok(signed) = SignedNodeEntry::decode_length_delimited(&mut rest) else { return good };
        let Ok(entry) = chain.accept(&signed, &own) else { return good };
        let next = entry.heartbeat.map_or(0, |h| h.next_number);
        recovered.next_number = recovered.next_number.max(next);
        recovered
            .closed
            .extend(entry.closed.iter().filter_map(|c| SessionId::try_from(&c.session_id[..]).ok()));
        recovered.stopped = matches!(entry.mark, Some(Mark::Stopped(_)));
        recovered.boot_id = entry.boot_id;
    }
}

/// Moves files out of the log, into a folder where a person can look at them.
fn abandon(folder: &Path, firsts: &[u64]) -> io::Result<()> {
    if firsts.is_empty() {
        return Ok(());
    }
    let aside = folder.join("abandoned").join(uuid::Uuid::now_v7().to_string());
    super::make_folder(&aside)?;
    for first in firsts {
        match fs::rename(folder.join(file_name(*first)), aside.join(file_name(*first))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            // One that somebody has removed is what this is about.
            _ => {}
        }
    }
    crate::spool::sync_folder(folder)
}
