//! What goes back to the client, put together: neighbouring messages of one read leave as one slice of it, and are
//! recorded as one piece per exchange.

use std::ops::Range;

use bytes::Bytes;

use super::{error, places};
use crate::mask::{MaskPlan, Masked};
use crate::note::Note;
use crate::reader::{Piece, Reader};
use crate::seam::{Effect, Effects, ExchangeId, Side};

#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// Recorded next, as one.
    unnoted: Option<(ExchangeId, Range<usize>)>,
    /// Sent next, as one. What is unnoted is its end.
    unsent: Option<Range<usize>>,
}

/// How a server's message is masked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Masking {
    /// Value by value.
    Values,
    /// The texts of an error or a notice: they quote statements.
    Texts,
    /// From this offset on it authenticates.
    Withheld(usize, &'static str),
}

impl Outbox {
    pub(crate) fn add(
        &mut self,
        owner: ExchangeId,
        piece: &Piece,
        masking: Masking,
        reader: &Reader,
        plan: &MaskPlan,
        out: &mut Effects,
    ) {
        let Some(place) = piece.place.clone() else {
            self.flush(reader, plan, out);
            out.note(owner, Note::Data(Side::Upstream, masked(&piece.bytes, masking, plan)));
            out.push(Effect::Client(piece.bytes.clone()));
            return;
        };
        match &mut self.unnoted {
            Some((exchange, range))
                if masking == Masking::Values && *exchange == owner && range.end == place.start =>
            {
                range.end = place.end;
            }
            _ => {
                self.note(reader, plan, out);
                if masking == Masking::Values {
                    self.unnoted = Some((owner, place.clone()));
                } else {
                    out.note(owner, Note::Data(Side::Upstream, masked(&piece.bytes, masking, plan)));
                }
            }
        }
        match &mut self.unsent {
            Some(range) if range.end == place.start => range.end = place.end,
            _ => {
                if let Some(range) = self.unsent.replace(place) {
                    out.push(Effect::Client(reader.slice(range)));
                }
            }
        }
    }

    /// Masked already: a part of a large message.
    pub(crate) fn add_noted(
        &mut self,
        owner: ExchangeId,
        piece: &Piece,
        notes: [Masked; 2],
        reader: &Reader,
        plan: &MaskPlan,
        out: &mut Effects,
    ) {
        self.flush(reader, plan, out);
        for note in notes.into_iter().filter(|note| !note.is_empty()) {
            out.note(owner, Note::Data(Side::Upstream, note));
        }
        out.push(Effect::Client(piece.bytes.clone()));
    }

    /// Records what is to be recorded: before a `Finished` that follows it.
    pub(crate) fn note(&mut self, reader: &Reader, plan: &MaskPlan, out: &mut Effects) {
        if let Some((owner, range)) = self.unnoted.take() {
            let bytes = reader.slice(range);
            out.note(owner, Note::Data(Side::Upstream, masked(&bytes, Masking::Values, plan)));
        }
    }

    pub(crate) fn flush(&mut self, reader: &Reader, plan: &MaskPlan, out: &mut Effects) {
        self.note(reader, plan, out);
        if let Some(range) = self.unsent.take() {
            out.push(Effect::Client(reader.slice(range)));
        }
    }
}

fn masked(bytes: &Bytes, masking: Masking, plan: &MaskPlan) -> Masked {
    match masking {
        Masking::Values => plan.fields(bytes, || places::values(bytes)),
        Masking::Texts => plan.texts(bytes, &error::texts(bytes)),
        Masking::Withheld(from, rule) => plan.withheld(bytes, &[from.min(bytes.len())..bytes.len()], rule),
    }
}
