//! The list of protocols. Adding one is a line here, one in `detect`, and a folder.

use crate::operation::Opacity;
use crate::seam::Conversation;

/// A protocol that a session can be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Opaque(Opacity),
    Postgres,
    Http,
    /// Not known: found out by what both sides say, as at the beginning of a connection.
    Detect,
}

impl Kind {
    /// A conversation of this kind, at its start.
    pub fn start(self, start: Start) -> Box<dyn Conversation> {
        match self {
            Kind::Opaque(reason) => Box::new(crate::opaque::Opaque::new(reason, start)),
            Kind::Postgres => Box::new(crate::postgres::Postgres::new(start)),
            Kind::Http => Box::new(crate::http::Http1::new(start)),
            Kind::Detect => Box::new(crate::detect::Detect::new()),
        }
    }

    pub const fn word(self) -> &'static str {
        match self {
            Kind::Opaque(_) => "opaque",
            Kind::Postgres => "postgres",
            Kind::Http => "http",
            Kind::Detect => "detect",
        }
    }
}

/// What a conversation begins with.
#[derive(Clone, Debug)]
pub struct Start {
    /// The first free ordinal: a session that changes its kind goes on counting.
    pub first_exchange: crate::seam::ExchangeId,
    /// What must not enter the record.
    pub plan: crate::mask::MaskPlan,
}
