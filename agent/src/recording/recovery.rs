//! What an earlier life of the agent left: events in its journals that no segment holds, and sessions without an end.
//! Looking is read-only; the scribe then seals what was found, under its own generation.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::Message;
use weir_proto::seal::Anchor;
use weir_proto::v1::event::Kind;
use weir_proto::v1::{self, Event};
use weir_proto::{RunId, SessionId};

use super::sealing::ChainHead;
use super::{Counters, node_log};
use crate::journal::{FLAG_CLOSED, FLAG_OPENED, JOURNAL_BYTES_MAX, ScanEnd, Scanned, scan};
use crate::spool::Newest;

pub(super) const JOURNAL_SUFFIX: &str = ".journal";

/// A session that goes on from where its last segment ended.
pub(super) struct RecoveredSession {
    pub(super) chain: ChainHead,
    pub(super) journal: [u8; 16],
    /// End of what its segments hold.
    pub(super) to: u64,
    pub(super) records: Vec<RecoveredRecord>,
    /// Its last record says that it was closed.
    pub(super) closed: bool,
    /// What came after its segments was in a file that did not read back.
    pub(super) rotten: bool,
    /// Wall clock of the life it was recorded in; that life may have been another boot.
    pub(super) wall: Anchor,
    pub(super) last_ns: u64,
}

pub(super) struct RecoveredRecord {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) at_ns: u64,
    pub(super) payload: Bytes,
}

/// All that was found.
#[derive(Default)]
pub(super) struct Recovery {
    pub(super) sessions: Vec<RecoveredSession>,
    /// Complete in the spool, and in the node log.
    pub(super) complete: Vec<SessionId>,
    /// Complete in the spool, but the node log's files here do not say so.
    pub(super) unsaid: Vec<v1::SessionClosed>,
    /// To be deleted when all of the above is done.
    pub(super) files: Vec<PathBuf>,
    /// Journals that could not be read; they are set aside.
    pub(super) unreadable: u64,
    /// Taken numbers that the node log does not have.
    pub(super) opened: Vec<v1::SessionOpened>,
    pub(super) next_number: u64,
    /// Sessions that have events but no beginning: their segments are gone from the spool. And those that the node log
    /// says are open, of which nothing is left at all.
    pub(super) lost: Vec<v1::SegmentsLost>,
}

/// Reads the journals in `folder` against the spool's newest segments and the node log.
pub(super) fn look(
    folder: &Path,
    newest: &[Newest],
    log: &node_log::Recovered,
    counters: &Counters,
) -> io::Result<Recovery> {
    let mut found = Found::new(newest, log);
    let mut files = Vec::new();
    for file in fs::read_dir(folder)? {
        let path = file?.path();
        if !path.to_str().is_some_and(|p| p.ends_with(JOURNAL_SUFFIX)) {
            continue;
        }
        match found.read(&path)? {
            ScanEnd::Clean | ScanEnd::Blank => {}
            ScanEnd::Torn => {
                counters.journal_torn.add(1);
                tracing::warn!(journal = %path.display(),
                    "the journal of an earlier life ends in a torn record; what came after it was not on the disk yet");
            }
            ScanEnd::Unreadable => {
                counters.journal_torn.add(1);
                let aside = set_aside(folder, &path)?;
                tracing::error!(journal = %path.display(), aside = %aside.display(),
                    "this file is no journal that can be read (damaged, or of another version): it is set aside, and the \
                     node log will say so");
                found.recovery.unreadable += 1;
                continue;
            }
        }
        files.push(path);
    }
    counters.records_orphaned.add(found.orphans);
    found.miss();
    Ok(found.into_recovery(files))
}

struct Found<'a> {
    log: &'a node_log::Recovered,
    sessions: BTreeMap<SessionId, RecoveredSession>,
    done: HashSet<SessionId>,
    lost: HashSet<SessionId>,
    recovery: Recovery,
    orphans: u64,
}

impl<'a> Found<'a> {
    fn new(newest: &[Newest], log: &'a node_log::Recovered) -> Self {
        let mut recovery = Recovery { next_number: log.next_number, ..Recovery::default() };
        let mut sessions = BTreeMap::new();
        let mut done = HashSet::new();
        for Newest { draft, hash, mended } in newest {
            recovery.next_number = recovery.next_number.max(draft.number.saturating_add(1));
            let chain = ChainHead {
                session: draft.session,
                number: draft.number,
                run: draft.run,
                next_seq: draft.seq + 1,
                head: *hash,
            };
            if draft.last {
                done.insert(draft.session);
                if log.closed.contains(&draft.session) {
                    recovery.complete.push(draft.session);
                } else {
                    recovery.unsaid.push(v1::SessionClosed {
                        number: draft.number,
                        session_id: draft.session.to_field(),
                        segments: chain.next_seq,
                        head_hash: Bytes::copy_from_slice(hash),
                    });
                }
                continue;
            }
            let session = RecoveredSession {
                chain,
                journal: draft.journal.journal,
                to: draft.journal.to,
                records: Vec::new(),
                closed: false,
                rotten: *mended,
                wall: draft.wall,
                last_ns: draft.last_ns,
            };
            sessions.insert(draft.session, session);
        }
        Self { log, sessions, done, lost: HashSet::new(), recovery, orphans: 0 }
    }

    fn read(&mut self, path: &Path) -> io::Result<ScanEnd> {
        use io::Read;
        let mut bytes = Vec::new();
        let mut file = fs::File::open(path)?;
        // A kill leaves it whole in memory only: what is told from here on must not be lost with the power.
        file.sync_all()?;
        file.by_ref().take(JOURNAL_BYTES_MAX + (1 << 20)).read_to_end(&mut bytes)?;
        let file = Bytes::from(bytes);
        let mut records = Vec::new();
        let (id, end) = scan(&file, |record| records.push(record));
        for record in records {
            self.take(id, &file, &record);
        }
        Ok(end)
    }

    fn take(&mut self, journal: [u8; 16], file: &Bytes, record: &Scanned<'_>) {
        // A journal may come back after a power cut, though it was deleted.
        if self.done.contains(&record.session) || self.log.closed.contains(&record.session) {
            return;
        }
        if record.flags & FLAG_OPENED != 0 && !self.sessions.contains_key(&record.session) {
            self.open(journal, record);
        }
        let Some(session) = self.sessions.get_mut(&record.session) else {
            if self.orphans == 0 {
                tracing::warn!(session = %record.session, "a session's events are in the journal, its segments are not in the spool");
            }
            self.orphans += 1;
            self.lose(record.session);
            return;
        };
        if session.journal == journal && record.to <= session.to {
            return;
        }
        session.journal = journal;
        session.to = record.to;
        session.closed |= record.flags & FLAG_CLOSED != 0;
        session.last_ns = session.last_ns.max(record.at_ns);
        session.records.push(RecoveredRecord {
            from: record.from,
            to: record.to,
            at_ns: record.at_ns,
            payload: file.slice_ref(record.payload),
        });
    }

    fn open(&mut self, journal: [u8; 16], record: &Scanned<'_>) {
        let Ok(Event { kind: Some(Kind::Opened(opened)), .. }) = Event::decode(record.payload) else {
            return;
        };
        let number = opened.node_number;
        self.recovery.next_number = self.recovery.next_number.max(number.saturating_add(1));
        if number >= self.log.next_number {
            let session_id = record.session.to_field();
            self.recovery.opened.push(v1::SessionOpened { number, session_id });
        }
        let wall = opened.wall.unwrap_or_default();
        let session = RecoveredSession {
            chain: ChainHead::start(record.session, number, run_of(&opened)),
            journal,
            to: 0,
            records: Vec::new(),
            closed: false,
            rotten: false,
            wall: Anchor { unix_ns: wall.unix_ns, boot_ns: wall.boot_ns, synchronized: wall.synchronized },
            last_ns: record.at_ns,
        };
        self.sessions.insert(record.session, session);
    }

    fn lose(&mut self, session: SessionId) {
        if self.lost.insert(session) {
            self.recovery.lost.push(lost(session, "spool-missing"));
        }
    }

    /// The node log says that it was opened, and nothing else is left of it: somebody or something has removed it.
    fn miss(&mut self) {
        for (session, number) in &self.log.open {
            if self.sessions.contains_key(session)
                || self.done.contains(session)
                || self.lost.contains(session)
            {
                continue;
            }
            tracing::error!(%session, number, "the node log opened this session, and neither journal nor spool knows it");
            self.recovery.lost.push(lost(*session, "session-missing"));
        }
    }

    fn into_recovery(mut self, files: Vec<PathBuf>) -> Recovery {
        self.recovery.opened.sort_by_key(|opened| opened.number);
        self.recovery.sessions = self.sessions.into_values().collect();
        self.recovery.files = files;
        self.recovery
    }
}

fn lost(session: SessionId, reason: &str) -> v1::SegmentsLost {
    v1::SegmentsLost { session_id: session.to_field(), from_seq: 0, reason: reason.to_owned() }
}

/// Moves a journal to where no start looks for journals.
fn set_aside(folder: &Path, path: &Path) -> io::Result<PathBuf> {
    let aside = folder.join("unreadable");
    super::make_folder(&aside)?;
    let to = aside.join(path.file_name().unwrap_or_default());
    fs::rename(path, &to)?;
    crate::spool::sync_folder(&aside)?;
    crate::spool::sync_folder(folder)?;
    Ok(to)
}

/// The run that a session belongs to; all zeros when it has none.
pub(super) fn run_of(opened: &v1::Opened) -> RunId {
    opened
        .run
        .as_ref()
        .and_then(|run| RunId::try_from(&run.id[..]).ok())
        .unwrap_or(RunId::from_bytes([0; 16]))
}
