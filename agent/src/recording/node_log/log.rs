//! The log itself: one chain, appended to by one node agent at a time.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::Message;
use weir_proto::seal::{Hash, NO_HASH, NodeChain, SigningKey, VerifyingKey};
use weir_proto::v1::{NodeEntry, RolledBack, SignedNodeEntry, node_entry::Mark};
use weir_proto::{NodeId, SessionId};

use super::files::{self, FILE_BYTES, abandon, delimited, file_name, list, open_file, read};
use crate::recording::make_folder;

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
    /// It is not: this disk is older than what the collector has seen, or another, or has lost what comes next.
    Diverged,
}

/// What the files said when they were opened.
#[derive(Debug, Default)]
pub(crate) struct Recovered {
    /// The next session number, as far as the log knows.
    pub(crate) next_number: u64,
    /// Sessions that a held entry says are closed.
    pub(crate) closed: HashSet<SessionId>,
    /// Sessions, with their numbers, that were opened and neither closed nor lost.
    pub(crate) open: BTreeMap<SessionId, u64>,
    /// The last entry is a `Stopped`.
    pub(crate) stopped: bool,
    pub(crate) boot_id: String,
    /// What entries say that stand behind a damaged one: they are no longer in the log, so it is to be said again.
    pub(crate) again: NodeEntry,
    lost: HashSet<SessionId>,
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
    /// Sessions, with their numbers, that were opened and neither closed nor lost.
    open: BTreeMap<SessionId, u64>,
    /// The files are not where they belong yet: this log took another's place, and the disk failed meanwhile.
    moving: bool,
}

impl NodeLog {
    /// Opens the folder and reads what is there; a torn end is cut off.
    pub(crate) fn open(
        folder: &Path,
        node: NodeId,
        key: SigningKey,
    ) -> Result<(Self, Recovered), NodeLogError> {
        let failed = |doing| move |source| NodeLogError { path: folder.to_owned(), doing, source };
        make_folder(folder).map_err(failed("making its folder"))?;
        files::replace(folder).map_err(failed("putting its files in place"))?;
        let mut firsts = list(folder).map_err(failed("listing its files"))?;
        let mut recovered = Recovered { next_number: 1, ..Recovered::default() };
        recovered.opened(&files::read_open(folder).map_err(failed("reading which sessions are open"))?);
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
                recovered.take_again(&bytes.slice(good as usize..), &node, &key.verifying_key());
                for first in later.iter().filter(|later| **later != first) {
                    let bytes = read(&folder.join(file_name(*first))).map_err(failed("reading it"))?;
                    recovered.take_again(&bytes, &node, &key.verifying_key());
                }
                abandon(folder, &later).map_err(failed("setting broken files aside"))?;
                break;
            }
        }
        if firsts.is_empty() {
            firsts.push(chain.next_index);
            good = 0;
        }
        recovered.settle();
        let path = folder.join(file_name(*firsts.last().unwrap_or(&0)));
        let file = open_file(&path).map_err(failed("opening it"))?;
        file.set_len(good).map_err(failed("cutting off its torn end"))?;
        let open = recovered.open.clone();
        let folder = folder.to_owned();
        Ok((Self { folder, key, chain, file, good, firsts, open, moving: false }, recovered))
    }

    /// Appends an entry; it is on the disk when this returns. After an error nothing was appended.
    pub(crate) fn append(&mut self, entry: NodeEntry) -> Result<(), NodeLogError> {
        self.move_in()?;
        if self.good >= FILE_BYTES || self.firsts.is_empty() {
            self.next_file()?;
        }
        let mut chain = self.chain.clone();
        let bytes = chain.append(entry.clone(), &self.key).encode_length_delimited_to_vec();
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
        self.note(&entry);
        Ok(())
    }

    fn note(&mut self, entry: &NodeEntry) {
        let id = |bytes: &[u8]| SessionId::try_from(bytes).ok();
        self.open.extend(entry.opened.iter().filter_map(|o| Some((id(&o.session_id)?, o.number))));
        let closed = entry.closed.iter().map(|closed| &closed.session_id);
        for session in closed.chain(entry.lost.iter().map(|lost| &lost.session_id)) {
            if let Some(session) = id(session) {
                self.open.remove(&session);
            }
        }
    }

    /// How many entries there are.
    pub(crate) fn entries(&self) -> u64 {
        self.chain.next_index
    }

    /// Compares with what the collector says it holds. That this disk cannot be read now says nothing about it.
    pub(crate) fn standing(&self, entries: u64, head: &Hash) -> Result<LogStanding, NodeLogError> {
        Ok(match self.head_at(entries)? {
            Some(own) if own == *head => LogStanding::Behind(entries),
            _ => LogStanding::Diverged,
        })
    }

    /// Encoded entries from this index on, about as many bytes as asked for, and at least one where there is one. Each is
    /// still what was signed, and follows the one before: it ends before an entry that the disk has changed or lost.
    pub(crate) fn read_from(&self, index: u64, bytes_max: usize) -> Result<Vec<Bytes>, NodeLogError> {
        if self.moving {
            return Err(self.failed("reading it", io::ErrorKind::ResourceBusy.into()));
        }
        let mut out = Vec::new();
        if self.firsts.first().is_none_or(|first| index < *first) {
            return Ok(out);
        }
        let own = self.key.verifying_key();
        let mut chain: Option<NodeChain> = None;
        let mut taken = 0;
        for (at, first) in self.firsts.iter().enumerate() {
            if self.firsts.get(at + 1).is_some_and(|next| *next <= index) {
                continue;
            }
            let bytes = match read(&self.folder.join(file_name(*first))) {
                Ok(bytes) => bytes,
                // Somebody has removed it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(source) => return Err(self.failed("reading it", source)),
            };
            for (this, encoded) in (*first..self.chain.next_index).zip(delimited(&bytes)) {
                if this < index {
                    continue;
                }
                if taken > 0 && taken + encoded.len() > bytes_max {
                    return Ok(out);
                }
                let Some((signed, entry)) = decode(&encoded) else { return Ok(out) };
                let chain = match &mut chain {
                    Some(chain) => chain,
                    none => match entry.prev_hash[..].try_into() {
                        Ok(head) => none.insert(NodeChain { next_index: this, head, ..self.chain.clone() }),
                        Err(_) => return Ok(out),
                    },
                };
                if let Err(error) = chain.accept(&signed, &own) {
                    tracing::error!(index = this, %error, "an entry of the node log is not what was written");
                    return Ok(out);
                }
                taken += encoded.len();
                out.push(encoded);
            }
        }
        Ok(out)
    }

    /// The collector holds this many entries: files that are wholly below go.
    pub(crate) fn receipted(&mut self, entries: u64) {
        if self.moving || self.firsts.get(1).is_none_or(|second| *second > entries) {
            return;
        }
        if let Err(error) = files::write_open(&self.folder, &self.open) {
            tracing::warn!(%error, "the node log's files stay: which sessions are open could not be written");
            return;
        }
        while self.firsts.len() > 1 && self.firsts[1] <= entries {
            let first = self.firsts.remove(0);
            let _ = fs::remove_file(self.folder.join(file_name(first)));
        }
    }

    /// Goes on from the collector's head, because its log is not the beginning of this one. What the files here say is
    /// said again, then what `last` says, with its heartbeat. The new log is written beside the old one, and takes its
    /// place when it is whole; the old files are set aside.
    pub(crate) fn roll_back(
        &mut self,
        entries: u64,
        head: Hash,
        own_next_number: u64,
        last: NodeEntry,
    ) -> Result<(), NodeLogError> {
        self.move_in()?;
        let own = RolledBack {
            own_index: self.chain.next_index,
            own_hash: Bytes::copy_from_slice(&self.chain.head),
            own_next_number,
        };
        let here = self.folder.clone();
        let failed = |doing| {
            let path = here.clone();
            move |source| NodeLogError { path, doing, source }
        };
        let folder = files::begin_replacement(&self.folder).map_err(failed("beginning its successor"))?;
        let file = open_file(&folder.join(file_name(entries))).map_err(failed("beginning its successor"))?;
        let chain = NodeChain { node: self.chain.node, next_index: entries, head };
        let open = self.open.clone();
        let (key, firsts) = (self.key.clone(), vec![entries]);
        let mut next =
            Self { folder, key, chain, file, good: 0, firsts, open: BTreeMap::new(), moving: false };
        let plain = NodeEntry {
            at_ns: last.at_ns,
            wall: last.wall,
            boot_id: last.boot_id.clone(),
            ..NodeEntry::default()
        };
        next.append(NodeEntry { mark: Some(Mark::RolledBack(own)), ..plain.clone() })?;
        for first in &self.firsts {
            for said in self.said_in(*first, &plain)? {
                next.append(said)?;
            }
        }
        for part in split(last) {
            next.append(part)?;
        }
        files::commit_replacement(&self.folder).map_err(failed("taking its successor"))?;
        // From here on the new log is the log, wherever its files are.
        next.folder.clone_from(&self.folder);
        next.open.extend(open);
        next.moving = true;
        *self = next;
        if let Err(error) = self.move_in() {
            tracing::warn!(%error, "the node log's new files wait to be put in place");
        }
        Ok(())
    }

    /// What the entries of one file say about sessions, as entries; what is not as it was signed is left out.
    fn said_in(&self, first: u64, plain: &NodeEntry) -> Result<Vec<NodeEntry>, NodeLogError> {
        let bytes = match read(&self.folder.join(file_name(first))) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Bytes::new(),
            read => read.map_err(|source| self.failed("reading it", source))?,
        };
        let own = self.key.verifying_key();
        let mut said = plain.clone();
        for entry in signed(&bytes, &self.chain.node, &own) {
            repeat(&mut said, entry);
        }
        let nothing = said.opened.is_empty() && said.closed.is_empty() && said.lost.is_empty();
        Ok(if nothing { Vec::new() } else { split(said) })
    }

    /// Puts the files in their place, where that failed before.
    fn move_in(&mut self) -> Result<(), NodeLogError> {
        if self.moving {
            files::replace(&self.folder)
                .map_err(|source| self.failed("putting its files in place", source))?;
            self.moving = false;
        }
        Ok(())
    }

    fn head_at(&self, index: u64) -> Result<Option<Hash>, NodeLogError> {
        if index == self.chain.next_index {
            return Ok(Some(self.chain.head));
        }
        let next = self.read_from(index, 1)?.into_iter().next();
        Ok(next.and_then(|next| decode(&next)?.1.prev_hash[..].try_into().ok()))
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

impl Recovered {
    fn opened(&mut self, opened: &[weir_proto::v1::SessionOpened]) {
        for opened in opened {
            self.next_number = self.next_number.max(opened.number.saturating_add(1));
            if let Ok(session) = SessionId::try_from(&opened.session_id[..]) {
                self.open.insert(session, opened.number);
            }
        }
    }

    fn take(&mut self, entry: NodeEntry) {
        self.opened(&entry.opened);
        let id = |bytes: &Bytes| SessionId::try_from(&bytes[..]).ok();
        self.closed.extend(entry.closed.iter().filter_map(|closed| id(&closed.session_id)));
        self.lost.extend(entry.lost.iter().filter_map(|lost| id(&lost.session_id)));
        let next = entry.heartbeat.map_or(0, |h| h.next_number);
        self.next_number = self.next_number.max(next);
        self.stopped = matches!(entry.mark, Some(Mark::Stopped(_)));
        self.boot_id = entry.boot_id;
    }

    fn take_again(&mut self, bytes: &Bytes, node: &NodeId, own: &VerifyingKey) {
        for entry in signed(bytes, node, own) {
            repeat(&mut self.again, entry.clone());
            let (stopped, boot_id) = (self.stopped, std::mem::take(&mut self.boot_id));
            self.take(entry);
            (self.stopped, self.boot_id) = (stopped, boot_id);
        }
    }

    /// Last, because what is said twice may be said out of order.
    fn settle(&mut self) {
        let (closed, lost) = (&self.closed, &self.lost);
        self.open.retain(|session, _| !closed.contains(session) && !lost.contains(session));
    }
}

/// Cuts what one entry has to say into entries of bounded length: the mark stays with the first; the heartbeat, which
/// vouches for what was said before it, goes with the last.
pub(in crate::recording) fn split(mut entry: NodeEntry) -> Vec<NodeEntry> {
    /// Each names a session in at most some 70 bytes.
    const ITEMS: usize = 2000;
    let (opened, closed, lost) = (
        std::mem::take(&mut entry.opened),
        std::mem::take(&mut entry.closed),
        std::mem::take(&mut entry.lost),
    );
    let (mut mark, mut heartbeat, mut agent) =
        (entry.mark.take(), entry.heartbeat.take(), entry.agent.take());
    let parts = opened.len().max(closed.len()).max(lost.len()).div_ceil(ITEMS).max(1);
    let chunk = |at: usize, len: usize| (at * ITEMS).min(len)..((at + 1) * ITEMS).min(len);
    (0..parts)
        .map(|at| NodeEntry {
            opened: opened[chunk(at, opened.len())].to_vec(),
            closed: closed[chunk(at, closed.len())].to_vec(),
            lost: lost[chunk(at, lost.len())].to_vec(),
            mark: mark.take(),
            agent: agent.take(),
            heartbeat: if at + 1 == parts { heartbeat.take() } else { None },
            ..entry.clone()
        })
        .collect()
}

fn decode(encoded: &Bytes) -> Option<(SignedNodeEntry, NodeEntry)> {
    let signed = SignedNodeEntry::decode(encoded.clone()).ok()?;
    let entry = NodeEntry::decode(signed.entry.clone()).ok()?;
    Some((signed, entry))
}

/// The entries that are as they were signed, whatever stands between them.
fn signed(bytes: &Bytes, node: &NodeId, own: &VerifyingKey) -> impl Iterator<Item = NodeEntry> {
    delimited(bytes).filter_map(move |encoded| {
        let (signed, entry) = decode(&encoded)?;
        let head = entry.prev_hash[..].try_into().ok()?;
        NodeChain { node: *node, next_index: entry.index, head }.accept(&signed, own).ok()
    })
}

/// Adds what an entry says about sessions.
fn repeat(said: &mut NodeEntry, entry: NodeEntry) {
    said.opened.extend(entry.opened);
    said.closed.extend(entry.closed);
    said.lost.extend(entry.lost);
}

fn first_prev_hash(bytes: &Bytes) -> Option<Hash> {
    decode(&delimited(bytes).next()?)?.1.prev_hash[..].try_into().ok()
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
        recovered.take(entry);
    }
}
