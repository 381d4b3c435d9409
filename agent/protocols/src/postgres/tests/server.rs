//! A small PostgreSQL: enough of the protocol for the property suite. Like the real one it keeps extended replies until a
//! Sync or a Flush, passes over a failed batch, and passes over Sync during copy-in.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::wire;
use crate::postgres::frame::{self, Fields};
use crate::reader::Reader;
use crate::suite::Server;

#[derive(Default)]
pub(super) struct Small {
    reader: Reader,
    stage: Stage,
    statements: BTreeMap<Vec<u8>, Vec<u8>>,
    portals: BTreeMap<Vec<u8>, Vec<u8>>,
    transaction: bool,
    failed_transaction: bool,
    skipping: bool,
    /// Copying in, by the extended protocol or not.
    copying: Option<bool>,
    kept: Vec<u8>,
    said: Vec<u8>,
}

#[derive(Default, PartialEq)]
enum Stage {
    #[default]
    Opening,
    Password,
    Ready,
}

impl Server for Small {
    fn receive(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.reader.push(Bytes::copy_from_slice(bytes));
        loop {
            let measure =
                if self.stage == Stage::Opening { frame::measure_startup } else { frame::measure_client };
            match self.reader.next(measure) {
                Ok(Some(piece)) if self.stage == Stage::Opening => self.opening(&piece.bytes),
                Ok(Some(piece)) => self.message(&piece.bytes),
                _ => return std::mem::take(&mut self.said),
            }
        }
    }
}

impl Small {
    fn opening(&mut self, message: &[u8]) {
        if message.len() == 8 {
            return self.say(b"N");
        }
        self.stage = Stage::Password;
        self.say(&wire::authentication(3, b""));
    }

    fn say(&mut self, bytes: &[u8]) {
        self.said.extend_from_slice(bytes);
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.kept.extend_from_slice(bytes);
    }

    fn release(&mut self) {
        let kept = std::mem::take(&mut self.kept);
        self.say(&kept);
    }

    fn ready(&mut self) {
        let state = match (self.transaction, self.failed_transaction) {
            (false, _) => b'I',
            (true, false) => b'T',
            (true, true) => b'E',
        };
        self.release();
        self.say(&wire::ready(state));
    }

    fn fail(&mut self, extended: bool) {
        self.release();
        self.say(&wire::error("22012", "division by zero"));
        self.failed_transaction = self.transaction;
        self.skipping = extended;
        self.copying = None;
    }

    fn message(&mut self, message: &[u8]) {
        if self.stage == Stage::Password {
            self.stage = Stage::Ready;
            return self.say(&wire::welcome());
        }
        let tag = message[0];
        if let Some(extended) = self.copying {
            match tag {
                b'c' => {
                    self.copying = None;
                    self.keep(&wire::complete("COPY 2"));
                    if !extended {
                        self.ready();
                    }
                }
                b'f' => {
                    self.fail(extended);
                    if !extended {
                        self.ready();
                    }
                }
                _ => {}
            }
            return;
        }
        if self.skipping && tag != b'S' {
            return;
        }
        let mut fields = Fields::of(message);
        let mut name = || fields.cstr().unwrap_or_default().to_vec();
        match tag {
            b'Q' => {
                let text = name();
                let copying = self.run(&text, false);
                if !copying {
                    self.ready();
                }
            }
            b'P' => {
                let (name, text) = (name(), name());
                self.statements.insert(name, text);
                self.keep(&wire::bare(b'1'));
            }
            b'B' => {
                let (portal, statement) = (name(), name());
                match self.statements.get(&statement) {
                    Some(text) => {
                        self.portals.insert(portal, text.clone());
                        self.keep(&wire::bare(b'2'));
                    }
                    None => self.fail(true),
                }
            }
            b'D' => self.keep(&wire::columns(&[("said", 25, 0)])),
            b'C' => self.keep(&wire::bare(b'3')),
            b'E' => match self.portals.get(&name()).cloned() {
                Some(text) => {
                    self.run(&text, true);
                }
                None => self.fail(true),
            },
            b'F' => {
                self.keep(&wire::call_result(b"7"));
                self.ready();
            }
            b'H' => self.release(),
            b'S' => {
                self.skipping = false;
                self.ready();
            }
            _ => {}
        }
    }

    /// Says whether copy data is awaited.
    fn run(&mut self, text: &[u8], extended: bool) -> bool {
        if text.starts_with(b"FAIL") {
            self.fail(extended);
        } else if text.starts_with(b"BEGIN") {
            self.transaction = true;
            self.keep(&wire::complete("BEGIN"));
        } else if text.starts_with(b"COMMIT") {
            (self.transaction, self.failed_transaction) = (false, false);
            self.keep(&wire::complete("COMMIT"));
        } else if text.starts_with(b"COPY") {
            self.copying = Some(extended);
            self.keep(&wire::copy_response(b'G'));
            self.release();
            return true;
        } else {
            if !extended {
                self.keep(&wire::columns(&[("said", 25, 0)]));
            }
            self.keep(&wire::row(&[Some(text)]));
            self.keep(&wire::row(&[None]));
            self.keep(&wire::complete("SELECT 2"));
        }
        false
    }
}
