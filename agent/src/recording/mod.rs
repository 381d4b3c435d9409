//! Recording: notes become events, events go to the journal, one thread cuts sealed segments from it and keeps the node
//! log. Nothing is forwarded that is not in the journal; nothing leaves the journal that is not in the spool.
//!
//! * [`recorder`]: [`Recorder`] and [`SessionRecord`], what the proxy holds
//! * [`batch`], [`fields`]: events of one turn, encoded from what they borrow
//! * [`start`](mod@start): opening a state folder, and [`Recording`], the handle to what runs
//! * [`recovery`]: what an earlier life of the agent left in its journals and spool
//! * [`scribe`]: the thread that seals: from journal to spool, in group commits
//! * [`sealing`]: records become a segment that continues its session's chain
//! * [`generation`], [`keyring`]: what segments are sealed with, and for whom
//! * [`node_log`]: the node's signed chain on disk; [`standing`]: what it says of the agent itself
//! * [`clock`], [`counters`]

mod batch;
pub(crate) mod clock;
mod counters;
pub(crate) mod fields;
mod generation;
mod keyring;
mod node_log;
mod recorder;
mod recovery;
mod scribe;
mod sealing;
mod standing;
mod start;

#[cfg(test)]
mod tests;

pub(crate) use counters::Counters;
pub(crate) use generation::Moment;
pub(crate) use keyring::{KeyRing, KeyRingError};
pub(crate) use node_log::{LogStanding, NodeLog, NodeLogError};
pub(crate) use recorder::{Numbering, RecordError, Recorder, SessionRecord};
pub(crate) use start::{MarkError, Mode, Recording, RecordingConfig};

/// Makes a folder that only its owner enters.
pub(crate) fn make_folder(path: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Writes a small file so that after a crash it holds the old or the new bytes, never a part: owner-only.
pub(crate) fn write_file(path: &std::path::Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let temporary = path.with_extension("tmp");
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    match path.parent() {
        Some(folder) => std::fs::File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}
