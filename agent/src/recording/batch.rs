//! Events on their way into the journal: what one turn of a connection has to record goes there in one piece of work. Small
//! events are encoded here; the bytes of a large one stay where they are until the journal copies them.

use std::ops::Range;

use bytes::Bytes;
use prost::Message;
use weir_proto::seal::events::DATA_BYTES_MAX;
use weir_proto::v1::{Direction, Event};
use weir_protocols::mask::Mark;

use super::fields;

/// With this much in it a batch is to be written before more is added, bytes.
const BATCH_BYTES_MAX: usize = 256 * 1024;
/// The largest memory that an empty batch keeps, bytes: most connections are idle most of the time.
const KEPT_BYTES_MAX: usize = 4 * 1024;

/// Events of one session that are not in the journal yet, in order.
#[derive(Default)]
pub(crate) struct Batch {
    heads: Vec<u8>,
    events: Vec<Encoded>,
    /// So many of them are in the journal.
    appended: usize,
    bytes: usize,
}

/// An encoded event: a head, and what follows it.
struct Encoded {
    at_ns: u64,
    head: Range<usize>,
    body: Bytes,
}

/// One event of a batch, to be copied.
pub(super) struct Part<'a> {
    pub(super) at_ns: u64,
    head: &'a [u8],
    body: &'a [u8],
}

impl Batch {
    /// Adds an event. `write` appends all of it but `body`, which is the end of its encoding.
    pub(crate) fn add(&mut self, at_ns: u64, body: Bytes, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.heads.len();
        write(&mut self.heads);
        self.bytes += self.heads.len() - start + body.len();
        self.events.push(Encoded { at_ns, head: start..self.heads.len(), body });
    }

    pub(crate) fn add_event(&mut self, event: &Event) {
        self.add(event.at_ns, Bytes::new(), |out| {
            // A vector grows as far as it must.
            let encoded = event.encode(out);
            debug_assert!(encoded.is_ok());
        });
    }

    /// A `Data` event. Its bytes are the last field, and stay where they are.
    pub(super) fn add_data(&mut self, at_ns: u64, exchange: u64, direction: Direction, piece: &Piece<'_>) {
        const AT_NS: u32 = 1;
        const DATA: u32 = 5;
        let length = piece.bytes.len();
        self.add(at_ns, piece.bytes.clone(), |out| {
            fields::uint(out, AT_NS, at_ns);
            fields::message(out, DATA, length, |out| {
                fields::uint(out, 1, exchange);
                fields::uint(out, 2, direction as u64);
                for mark in piece.marks() {
                    fields::message(out, 4, 0, |out| {
                        fields::uint(out, 1, u64::from(mark.offset));
                        fields::uint(out, 2, u64::from(mark.length));
                        fields::bytes(out, 3, mark.rule.as_bytes());
                    });
                }
                if length > 0 {
                    fields::length(out, 3, length);
                }
            });
        });
    }

    /// Length of the event added last, bytes.
    pub(crate) fn last_len(&self) -> usize {
        self.events.last().map_or(0, |event| event.head.len() + event.body.len())
    }

    /// Takes back the event added last.
    pub(crate) fn take_back(&mut self) {
        if let Some(event) = self.events.pop() {
            self.bytes -= event.head.len() + event.body.len();
            self.heads.truncate(event.head.start);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.appended == self.events.len()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.bytes >= BATCH_BYTES_MAX
    }

    pub(super) fn parts(&self) -> impl Iterator<Item = Part<'_>> {
        self.events[self.appended..].iter().map(|event| Part {
            at_ns: event.at_ns,
            head: &self.heads[event.head.clone()],
            body: &event.body,
        })
    }

    /// So many more are in the journal.
    pub(super) fn done(&mut self, count: usize) {
        self.appended += count;
        if self.is_empty() {
            self.events.clear();
            self.heads.clear();
            self.heads.shrink_to(KEPT_BYTES_MAX);
            self.events.shrink_to(KEPT_BYTES_MAX / size_of::<Encoded>());
            self.appended = 0;
            self.bytes = 0;
        }
    }
}

/// A part of long data, and the marks of all of it.
pub(super) struct Piece<'m> {
    pub(super) bytes: Bytes,
    start: usize,
    marks: &'m [Mark],
}

/// Cuts long data into events; each takes the marks that lie in it, a mark across a cut is in both.
pub(super) fn pieces<'m>(data: &Bytes, marks: &'m [Mark]) -> impl Iterator<Item = Piece<'m>> {
    (0..data.len().max(1)).step_by(DATA_BYTES_MAX).map(move |start| {
        let end = data.len().min(start + DATA_BYTES_MAX);
        Piece { bytes: data.slice(start..end), start, marks }
    })
}

impl Piece<'_> {
    fn marks(&self) -> impl Iterator<Item = Mark> {
        let (start, end) = (self.start, self.start + self.bytes.len());
        self.marks.iter().filter_map(move |mark| {
            let from = (mark.offset as usize).max(start);
            let to = (mark.offset as usize).saturating_add(mark.length as usize).min(end);
            // Both fit: they lie in a piece of at most DATA_BYTES_MAX.
            (from < to).then(|| Mark { offset: (from - start) as u32, length: (to - from) as u32, ..*mark })
        })
    }
}

impl Part<'_> {
    pub(super) fn len(&self) -> usize {
        self.head.len() + self.body.len()
    }

    pub(super) fn head(&self) -> &[u8] {
        self.head
    }

    pub(super) fn body(&self) -> &[u8] {
        self.body
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_proto::v1::event::Kind;

    fn data(event: &[u8]) -> weir_proto::v1::Data {
        match Event::decode(event).unwrap() {
            Event { at_ns: 9, kind: Some(Kind::Data(data)) } => data,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn long_data_is_cut_and_its_masks_move_along() {
        let bytes: Bytes = (0..DATA_BYTES_MAX * 2 + 10).map(|i| i as u8).collect();
        let mark = |offset: usize, length: u32| Mark { offset: offset as u32, length, rule: "r" };
        let marks = [mark(5, 4), mark(DATA_BYTES_MAX - 2, 6), mark(DATA_BYTES_MAX * 2 + 1, 3)];
        let mut batch = Batch::default();
        for piece in pieces(&bytes, &marks) {
            batch.add_data(9, 3, Direction::Response, &piece);
        }
        let cut: Vec<_> = batch.parts().map(|part| data(&copied(&part))).collect();
        assert_eq!(
            cut.iter().map(|p| p.bytes.len()).collect::<Vec<_>>(),
            [DATA_BYTES_MAX, DATA_BYTES_MAX, 10]
        );
        assert_eq!(cut.iter().flat_map(|p| p.bytes.clone()).collect::<Vec<_>>(), bytes);
        assert!(cut.iter().all(|p| p.exchange == 3 && p.direction() == Direction::Response));
        let masks = |n: usize| {
            cut[n].masks.iter().map(|m| (m.offset as usize, m.length, m.rule.as_str())).collect::<Vec<_>>()
        };
        assert_eq!(masks(0), [(5, 4, "r"), (DATA_BYTES_MAX - 2, 2, "r")]);
        assert_eq!(masks(1), [(0, 4, "r")]);
        assert_eq!(masks(2), [(1, 3, "r")]);
    }

    #[test]
    fn what_is_appended_is_gone_and_the_rest_stays_in_order() {
        let mut batch = Batch::default();
        for n in 1..=5u8 {
            batch.add(u64::from(n), Bytes::copy_from_slice(&[n; 2]), |out| out.push(n));
        }
        batch.done(2);
        let rest: Vec<_> = batch.parts().map(|part| (part.at_ns, copied(&part))).collect();
        assert_eq!(rest, [(3, vec![3; 3]), (4, vec![4; 3]), (5, vec![5; 3])]);
        batch.take_back();
        batch.done(2);
        assert!(batch.is_empty() && batch.parts().next().is_none());
    }

    fn copied(part: &Part<'_>) -> Vec<u8> {
        [part.head(), part.body()].concat()
    }
}
