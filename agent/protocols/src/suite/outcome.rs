//! What a driven session came to.

use std::collections::BTreeMap;

use crate::note::{Note, Outcome as Ending};
use crate::seam::{Cause, ExchangeId, Side};

/// All that can be seen of a session from outside, but no times.
#[derive(Debug, Default)]
pub struct Outcome {
    pub upstream: Vec<u8>,
    pub client: Vec<u8>,
    /// Per exchange, in order, what is not data.
    pub notes: BTreeMap<ExchangeId, Vec<String>>,
    /// Per exchange and side, as recorded, put together.
    pub data: BTreeMap<(ExchangeId, usize), Vec<u8>>,
    pub endings: BTreeMap<ExchangeId, Vec<Ending>>,
    pub asked: BTreeMap<ExchangeId, usize>,
    pub withdrawn: Vec<ExchangeId>,
    pub ended: [bool; 2],
    pub aborted: Option<Cause>,
    pub kinds: Vec<&'static str>,

    /// What the server of a play said.
    pub server_said: Vec<u8>,
    /// The most that was taken from the client and neither forwarded nor refused, bytes; while nothing was denied.
    pub held_max: usize,
    pub denials: u64,
    pub effects: u64,
    /// Bytes of captures that nobody wanted to read.
    pub unread: [usize; 2],
}

impl PartialEq for Outcome {
    /// What must not depend on how bytes came.
    fn eq(&self, other: &Self) -> bool {
        self.upstream == other.upstream
            && self.client == other.client
            && self.notes == other.notes
            && self.data == other.data
            && self.ended == other.ended
            && self.aborted == other.aborted
            && self.kinds == other.kinds
            && self.unread == other.unread
    }
}

impl Outcome {
    pub(crate) fn note(&mut self, exchange: ExchangeId, note: Note) {
        let text = match note {
            Note::Data(side, masked) => {
                self.data.entry((exchange, side.index())).or_default().extend_from_slice(masked.bytes());
                return;
            }
            Note::Asked(record) => {
                *self.asked.entry(exchange).or_default() += 1;
                format!("asked {record:?}")
            }
            Note::Finished(finished) => {
                self.endings.entry(exchange).or_default().push(finished.outcome);
                let f = &finished;
                format!(
                    "finished {:?} {:?} {:?} {:?} {} {:?} {} {} {}",
                    f.operation,
                    f.outcome,
                    f.status,
                    f.error,
                    f.rows,
                    f.columns,
                    f.request_bytes,
                    f.response_bytes,
                    f.rule
                )
            }
            Note::Facts(facts) => format!("{facts:?}"),
            Note::Gap { reason, bytes } => format!("gap {reason} {bytes}"),
        };
        self.notes.entry(exchange).or_default().push(text);
    }

    /// Of the session and of every exchange: each `Asked` has one `Finished`, and no other has any.
    pub fn assert_finished_once(&self) {
        if self.aborted.is_none() && self.ended != [true, true] {
            return;
        }
        for (exchange, asked) in &self.asked {
            assert_eq!(*asked, 1, "exchange {} was noted as asked {asked} times", exchange.0);
            let endings = self.endings.get(exchange).map(Vec::as_slice).unwrap_or_default();
            assert_eq!(endings.len(), 1, "exchange {} ended as {endings:?}\n{:#?}", exchange.0, self.notes);
        }
        for exchange in self.endings.keys() {
            assert!(self.asked.contains_key(exchange), "exchange {} ended without a beginning", exchange.0);
        }
    }

    /// Everything that went into the record.
    pub fn recorded(&self) -> impl Iterator<Item = &[u8]> {
        self.notes.values().flatten().map(String::as_bytes).chain(self.data.values().map(Vec::as_slice))
    }

    /// What was recorded of one direction of an exchange.
    pub fn data_of(&self, exchange: u64, side: Side) -> &[u8] {
        self.data.get(&(ExchangeId(exchange), side.index())).map(Vec::as_slice).unwrap_or_default()
    }
}
