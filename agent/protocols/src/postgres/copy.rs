//! Copy-in ("COPY Operations"): a server that takes copy data passes over Sync and Flush and fails on anything else, and
//! whether it does take data only its answer tells. So nothing follows an exchange that may copy in until the server has
//! answered it or has asked for the data: which Syncs it honoured, and what of a later batch ran, is then never a guess.

use bytes::Bytes;

use super::Postgres;
use super::expected::Expected;
use super::frame;
use super::request::What;
use crate::operation::{Sql, SqlVerb};
use crate::seam::{Cause, Effect, Effects, Side};
use crate::verdict::Control;

/// What becomes of the head of the line, as far as copying is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Go,
    /// Until the server has answered.
    Wait,
    /// The server would pass over it.
    Pass,
    /// The server would fail, and take it for a part of the copy.
    Broken,
}

/// Whether the statement may be a COPY from the client. A keyword cannot be escaped, and neither functions nor statements
/// prepared by SQL can copy from the client.
pub(super) fn may_copy_in(sql: &Sql) -> bool {
    matches!(sql.verb, SqlVerb::Query | SqlVerb::Execute)
        && (sql.oversized || sql.text.windows(4).any(|word| word.eq_ignore_ascii_case(b"copy")))
}

impl Postgres {
    pub(super) fn copy_turn(&self, what: &What) -> Turn {
        // It ends the connection, whatever the server is at; and a message that has begun must end.
        if matches!(what, What::More { .. } | What::Terminate | What::End) {
            return Turn::Go;
        }
        if self.flags.copying_in {
            return match what {
                What::CopyData | What::CopyEnd | What::Flush => Turn::Go,
                What::Sync => Turn::Pass,
                _ => Turn::Broken,
            };
        }
        let copies = |expected: &Expected| expected.exchange().is_some_and(|exchange| exchange.may_copy_in);
        if self.replies.back().is_some_and(copies) {
            return Turn::Wait;
        }
        match what {
            // After a copy that failed, or for no reason.
            What::CopyData | What::CopyEnd => Turn::Pass,
            _ => Turn::Go,
        }
    }

    pub(super) fn pass_over(&mut self, what: &What, more: bool) {
        if matches!(what, What::Sync) {
            self.flags.copy_synced |= self.flags.copy_begun;
        }
        self.dropped(more);
    }

    /// The server takes copy data from now on.
    pub(super) fn begin_copy_in(&mut self) {
        if self.replies.len() > 1 {
            // Not seen coming: what of the rest it will answer cannot be known.
            self.closing = Some(Cause::Limit(Side::Upstream, "unexpected-copy-in"));
        }
        self.flags.copying_in = true;
        self.flags.copy_begun = false;
        self.flags.copy_synced = false;
    }

    /// However it ended. Says whether a Sync came between its data.
    pub(super) fn end_copy_in(&mut self) -> bool {
        self.flags.copying_in = false;
        std::mem::take(&mut self.flags.copy_synced)
    }

    /// The copy failed, and the server skips to Sync. A Sync between the data is the one that it skips to: the client may
    /// not send another.
    pub(super) fn sync_after_failed_copy(&mut self, out: &mut Effects) {
        if self.flags.skipping && self.streaming.is_none() {
            self.release_sync();
            out.push(Effect::Upstream(Control::PostgresResync.clear(Bytes::from(frame::message(b'S', b"")))));
        }
    }

    /// The server is asked for the replies that it keeps back, because something here waits for them.
    pub(super) fn flush_server(&mut self, out: &mut Effects) {
        if self.streaming.is_none() && std::mem::take(&mut self.flags.unflushed) {
            out.push(Effect::Upstream(Control::PostgresResync.clear(Bytes::from(frame::message(b'H', b"")))));
        }
    }
}
