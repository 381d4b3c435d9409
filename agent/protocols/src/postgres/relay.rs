//! Back to the client: the server's messages as they are, recorded as whose they are.

use super::expected::Expected;
use super::frame::{self, Fields, HEADER_BYTES};
use super::outbox::Masking;
use super::send::{Route, StreamedMask};
use super::{Phase, Postgres};
use crate::mask::{Masked, Syntax};
use crate::note::Note;
use crate::reader::{Part, Piece};
use crate::seam::{Cause, Effect, Effects, ExchangeId, Instant, Side};

/// A message longer than a frame is recorded in parts.
#[derive(Debug)]
pub(crate) struct LargeReply {
    owner: ExchangeId,
    mask: StreamedMask,
}

impl Postgres {
    pub(super) fn read_upstream(&mut self, now: Instant, out: &mut Effects) {
        while self.leaving.is_none() && self.closing.is_none() {
            let further = match self.phase {
                Phase::Opening => self.upstream_before_startup(),
                Phase::Encryption(opacity) => self.encryption_answer(opacity, out),
                Phase::Authenticating | Phase::Ready => self.read_reply(now, out),
                Phase::Cancelling(_) | Phase::Over => self.relay_unread(out),
            };
            if !further {
                break;
            }
        }
        self.outbox.flush(&self.upstream, &self.plan, out);
    }

    /// A server has nothing to say before a startup: this is something else.
    fn upstream_before_startup(&mut self) -> bool {
        if self.upstream.buffered() > 0 {
            self.closing = Some(Cause::Limit(Side::Upstream, "unparsed-startup"));
        }
        false
    }

    fn relay_unread(&mut self, out: &mut Effects) -> bool {
        let bytes = self.upstream.take_all();
        if !bytes.is_empty() {
            out.note(ExchangeId::SESSION, Note::Data(Side::Upstream, self.plan.bytes(&bytes)));
            out.push(Effect::Client(bytes));
        }
        false
    }

    fn read_reply(&mut self, now: Instant, out: &mut Effects) -> bool {
        if let Some(tag @ (b'D' | b'd')) = self.upstream.first()
            && let Some(exchange) = self.replies.front_mut().and_then(Expected::exchange_mut)
        {
            let mut rows = 0;
            let run = self.upstream.run(frame::measure_upstream, |frame| {
                let mine = frame[0] == tag;
                rows += u64::from(mine);
                mine
            });
            if let Some(run) = run {
                exchange.rows(if tag == b'D' { rows } else { 0 });
                exchange.replied(run.bytes.len(), now);
                let owner = exchange.id;
                self.outbox.add(owner, &run, Masking::Values, &self.upstream, &self.plan, out);
                return true;
            }
        }
        match self.upstream.next(frame::measure_upstream) {
            Ok(Some(piece)) => self.reply(piece, now, out),
            Ok(None) => return false,
            Err(_) => self.malformed(Side::Upstream),
        }
        true
    }

    fn reply(&mut self, piece: Piece, now: Instant, out: &mut Effects) {
        match piece.part {
            Part::Whole => {
                let tag = piece.bytes[0];
                let owner = self.relay(&piece, now, out);
                self.react(tag, &piece.bytes, owner, now, out);
            }
            Part::Head => {
                let tag = piece.bytes[0];
                let owner = self.owner(tag);
                let mask = match self.masking(tag, &piece.bytes) {
                    Masking::Withheld(_, rule) => StreamedMask::Withheld(rule),
                    Masking::Texts => StreamedMask::Scanned(Box::new(self.plan.stream(Syntax::Sql))),
                    Masking::Values => StreamedMask::Scanned(Box::new(self.plan.stream(Syntax::Bytes))),
                };
                self.large_reply = Some(LargeReply { owner, mask });
                self.relay_part(&piece, now, out);
                self.react(tag, &piece.bytes, owner, now, out);
            }
            Part::More | Part::Last => self.relay_part(&piece, now, out),
        }
    }

    fn relay(&mut self, piece: &Piece, now: Instant, out: &mut Effects) -> ExchangeId {
        let tag = piece.bytes[0];
        let owner = self.owner(tag);
        self.count(owner, piece.bytes.len(), now);
        let masking = self.masking(tag, &piece.bytes);
        self.outbox.add(owner, piece, masking, &self.upstream, &self.plan, out);
        owner
    }

    fn relay_part(&mut self, piece: &Piece, now: Instant, out: &mut Effects) {
        let Some(mut large) = self.large_reply.take() else { return };
        let last = piece.part == Part::Last;
        let [masked, rest] = large.mask.push(piece.bytes.clone(), last, &self.plan);
        let owner = self.still(large.owner);
        self.count(owner, piece.bytes.len(), now);
        self.outbox.add_noted(owner, piece, [masked, rest], &self.upstream, &self.plan, out);
        if !last {
            self.large_reply = Some(large);
        }
    }

    /// What masking holds back of large messages that end here, in the middle.
    pub(super) fn note_tails(&mut self, out: &mut Effects) {
        if let Some(mut large) = self.large_reply.take() {
            let owner = self.still(large.owner);
            note_tail(owner, Side::Upstream, large.mask.finish(), out);
        }
        if let Some(mut streaming) = self.streaming.take() {
            let owner = match streaming.route {
                Route::Exchange(id) => self.still(id),
                Route::Control(_) => ExchangeId::SESSION,
                Route::Dropped => return,
            };
            note_tail(owner, Side::Client, streaming.mask.finish(), out);
        }
    }

    /// The exchange, while it has not ended.
    fn still(&self, owner: ExchangeId) -> ExchangeId {
        let lives = self.replies.iter().filter_map(Expected::exchange).any(|exchange| exchange.id == owner);
        if lives { owner } else { ExchangeId::SESSION }
    }

    fn count(&mut self, owner: ExchangeId, bytes: usize, now: Instant) {
        if owner == ExchangeId::SESSION {
            return;
        }
        let owned =
            |expected: &mut Expected| expected.exchange().is_some_and(|exchange| exchange.id == owner);
        if let Some(expected) = self.replies.iter_mut().find_map(|e| owned(e).then_some(e))
            && let Some(exchange) = expected.exchange_mut()
        {
            exchange.replied(bytes, now);
        }
    }

    /// The exchange that a message belongs to: the one whose turn it is; an error of a Bind or a Describe is told to the
    /// Execute that comes with it.
    fn owner(&self, tag: u8) -> ExchangeId {
        if matches!(self.phase, Phase::Authenticating) || matches!(tag, b'A' | b'S' | b'K' | b'R' | b'v') {
            return ExchangeId::SESSION;
        }
        match self.replies.front() {
            Some(Expected::Bind { .. } | Expected::Describe(_)) if tag == b'E' => self
                .replies
                .iter()
                .take_while(|expected| !matches!(expected, Expected::Sync))
                .find(|expected| matches!(expected, Expected::Execute(_))),
            front => front,
        }
        .and_then(Expected::exchange)
        .map_or(ExchangeId::SESSION, |exchange| exchange.id)
    }

    fn masking(&self, tag: u8, frame: &[u8]) -> Masking {
        match tag {
            b'E' | b'N' => Masking::Texts,
            // The process id is public, the key that follows it is not.
            b'K' => Masking::Withheld(HEADER_BYTES + 4, "postgres-cancel-key"),
            b'R' => match Fields::of(frame).i32() {
                // The names of mechanisms.
                Some(10) => Masking::Values,
                Some(11 | 12) => Masking::Withheld(HEADER_BYTES + 4, "postgres-sasl"),
                Some(7..=9) => Masking::Withheld(HEADER_BYTES + 4, "postgres-gss"),
                _ => Masking::Withheld(HEADER_BYTES + 4, "postgres-password"),
            },
            _ => Masking::Values,
        }
    }
}

fn note_tail(owner: ExchangeId, side: Side, tail: Masked, out: &mut Effects) {
    if !tail.is_empty() {
        out.note(owner, Note::Data(side, tail));
    }
}
