//! Out to the server: under the exchange's grant or as session control, recorded first, the parts of a large message after
//! its head.

use bytes::Bytes;

use super::Postgres;
use super::expected::Expected;
use super::frame::{Fields, HEADER_BYTES};
use super::places;
use crate::mask::{MaskPlan, Masked, StreamMask, Syntax};
use crate::note::Note;
use crate::seam::{Effect, Effects, ExchangeId, Fault, Side};
use crate::verdict::{Cleared, Control};

/// Where the parts of a large message go, after its head.
#[derive(Debug)]
pub(crate) struct Streaming {
    pub route: Route,
    pub mask: StreamedMask,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    Control(Control),
    /// Under the exchange's grant.
    Exchange(ExchangeId),
    Dropped,
}

#[derive(Debug)]
pub(crate) enum StreamedMask {
    Scanned(Box<StreamMask>),
    Withheld(&'static str),
}

impl StreamedMask {
    pub(crate) fn push(&mut self, bytes: Bytes, last: bool, plan: &MaskPlan) -> [Masked; 2] {
        match self {
            Self::Scanned(scan) => {
                let masked = scan.push(bytes);
                [masked, if last { scan.finish() } else { Masked::default() }]
            }
            Self::Withheld(rule) => [plan.withheld(&bytes, &[0..bytes.len()], rule), Masked::default()],
        }
    }

    /// What was held back, when no more will come.
    pub(crate) fn finish(&mut self) -> Masked {
        match self {
            Self::Scanned(scan) => scan.finish(),
            Self::Withheld(_) => Masked::default(),
        }
    }
}

impl Postgres {
    /// The rest of a large message goes where its head went.
    pub(super) fn dropped(&mut self, more: bool) {
        if more {
            let mask = StreamedMask::Withheld("dropped");
            self.streaming = Some(Streaming { route: Route::Dropped, mask });
        }
    }

    /// Copy data belongs to the exchange that the server is at.
    pub(super) fn copy_route(&self) -> Route {
        let copying = self.replies.front().and_then(Expected::exchange);
        copying.map_or(Route::Dropped, |exchange| Route::Exchange(exchange.id))
    }

    pub(super) fn send(
        &mut self,
        route: Route,
        bytes: Bytes,
        more: bool,
        out: &mut Effects,
    ) -> Result<(), Fault> {
        if route == Route::Dropped {
            self.dropped(more);
            return Ok(());
        }
        let notes = if more {
            let (note, mask) = self.begin_stream(&bytes);
            self.streaming = Some(Streaming { route, mask });
            note
        } else {
            [self.mask_request(&bytes), Masked::default()]
        };
        self.send_noted(route, bytes, notes, out)
    }

    pub(super) fn send_more(&mut self, bytes: Bytes, last: bool, out: &mut Effects) -> Result<(), Fault> {
        let Some(mut streaming) = self.streaming.take() else {
            return Err(fault("a part of a message came without its head"));
        };
        let route = streaming.route;
        let notes = if route == Route::Dropped {
            None
        } else {
            Some(streaming.mask.push(bytes.clone(), last, &self.plan))
        };
        if !last {
            self.streaming = Some(streaming);
        }
        match notes {
            Some(notes) => self.send_noted(route, bytes, notes, out),
            None => Ok(()),
        }
    }

    fn send_noted(
        &mut self,
        route: Route,
        bytes: Bytes,
        notes: [Masked; 2],
        out: &mut Effects,
    ) -> Result<(), Fault> {
        let (owner, cleared) = match route {
            Route::Dropped => return Ok(()),
            Route::Control(control) => (ExchangeId::SESSION, control.clear(bytes)),
            Route::Exchange(id) => self.clear_for(id, bytes)?,
        };
        for note in notes {
            if !note.is_empty() {
                out.note(owner, Note::Data(Side::Client, note));
            }
        }
        out.push(Effect::Upstream(cleared));
        Ok(())
    }

    /// Under the exchange's grant, also when the exchange ended while its request was still coming.
    fn clear_for(&mut self, id: ExchangeId, bytes: Bytes) -> Result<(ExchangeId, Cleared), Fault> {
        let mine = |expected: &&mut Expected| expected.exchange().is_some_and(|exchange| exchange.id == id);
        if let Some(exchange) = self.replies.iter_mut().rev().find(mine).and_then(Expected::exchange_mut) {
            exchange.request_bytes += bytes.len() as u64;
            let grant = exchange.grant.as_ref().ok_or(fault("an exchange left without its grant"))?;
            return Ok((id, grant.clear(bytes)));
        }
        match &self.last_grant {
            Some(grant) if grant.exchange() == id => Ok((ExchangeId::SESSION, grant.clear(bytes))),
            _ => Err(fault("a request's grant is gone before its last part")),
        }
    }

    fn mask_request(&self, bytes: &Bytes) -> Masked {
        let body = || vec![HEADER_BYTES.min(bytes.len())..bytes.len()];
        match bytes.first() {
            Some(b'Q' | b'P') => self.plan.texts(bytes, &places::texts(bytes)),
            Some(b'B') => self.plan.fields(bytes, || places::bind_values(bytes)),
            Some(b'd') => self.plan.fields(bytes, || places::values(bytes)),
            Some(b'p') => self.plan.withheld(bytes, &body(), self.credential_rule),
            _ => self.plan.fields(bytes, body),
        }
    }

    /// The head of a large message: what is recorded of it, and how its parts will be masked.
    fn begin_stream(&self, head: &Bytes) -> ([Masked; 2], StreamedMask) {
        let text_start = match head.first() {
            Some(b'p') => {
                let note = self.plan.withheld(head, &[HEADER_BYTES..head.len()], self.credential_rule);
                return ([note, Masked::default()], StreamedMask::Withheld(self.credential_rule));
            }
            Some(b'Q') => HEADER_BYTES,
            Some(b'P') => {
                let mut fields = Fields::of(head);
                if fields.cstr().is_some() { fields.offset() } else { HEADER_BYTES }
            }
            _ => {
                let mut scan = self.plan.stream(Syntax::Bytes);
                let header = self.plan.bytes(&head.slice(..HEADER_BYTES));
                let note = scan.push(head.slice(HEADER_BYTES..));
                return ([header, note], StreamedMask::Scanned(Box::new(scan)));
            }
        };
        let mut scan = self.plan.stream(Syntax::Sql);
        let before = self.plan.bytes(&head.slice(..text_start));
        let note = scan.push(head.slice(text_start..));
        ([before, note], StreamedMask::Scanned(Box::new(scan)))
    }
}

pub(super) fn fault(what: &'static str) -> Fault {
    Fault { protocol: "postgres", what }
}
