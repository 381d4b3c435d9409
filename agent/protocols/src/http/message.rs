//! What the head of a message says, whatever version of HTTP carried it.

use bytes::Bytes;

use crate::coding::Coding;
use crate::mask::Content;
use crate::operation;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    Http10,
    Http11,
}

impl Version {
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Version::Http10 => "1.0",
            Version::Http11 => "1.1",
        }
    }
}

/// How long a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Length {
    None,
    /// Bytes.
    Exactly(u64),
    Chunked,
    /// Up to the end of the connection; of responses only.
    UntilClose,
}

/// What a request wants to turn the connection into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Switch {
    Upgrade,
    Connect,
}

#[derive(Clone, Debug)]
pub(crate) struct RequestHead {
    pub operation: operation::Http,
    /// The whole URL, unmasked.
    pub url: Bytes,
    pub version: Version,
    pub length: Length,
    pub switch: Option<Switch>,
    pub expects_continue: bool,
    pub keeps_alive: bool,
    pub body: Body,
    /// The Host field as it came.
    pub host: Option<Bytes>,
    pub user_agent: Option<Bytes>,
}

#[derive(Clone, Debug)]
pub(crate) struct ResponseHead {
    pub status: u16,
    pub reason: Bytes,
    pub length: Length,
    pub body: Body,
    pub server: Option<Bytes>,
    /// What the Upgrade field names.
    pub upgrade: Option<Bytes>,
}

impl ResponseHead {
    pub(crate) fn is_web_socket(&self) -> bool {
        self.upgrade.as_ref().is_some_and(|name| name.eq_ignore_ascii_case(b"websocket"))
    }

    /// More heads follow before the answer. 101 is the last of them.
    pub(crate) fn is_interim(&self) -> bool {
        (100..200).contains(&self.status) && self.status != SWITCHING_PROTOCOLS
    }
}

pub(crate) const SWITCHING_PROTOCOLS: u16 = 101;

/// What the fields say about the body.
#[derive(Clone, Debug, Default)]
pub(crate) struct Body {
    pub content_type: Option<Bytes>,
    pub content_encoding: Option<Bytes>,
}

impl Body {
    /// How its bytes are to be read for masking.
    pub(crate) fn content(&self) -> Content {
        match self.coding() {
            Ok(None) => self.decoded_content(),
            Ok(Some(coding)) => Content::Coded(coding, Box::new(self.decoded_content())),
            Err(_) => Content::Withheld("coded"),
        }
    }

    /// The same of what a coding decodes to.
    fn decoded_content(&self) -> Content {
        let media_type = self.media_type();
        if media_type.eq_ignore_ascii_case(b"application/x-www-form-urlencoded") {
            return Content::Form;
        }
        if media_type
            .get(media_type.len().saturating_sub(3)..)
            .is_some_and(|end| end.eq_ignore_ascii_case(b"xml"))
        {
            return Content::Xml;
        }
        match self.boundary() {
            Some(boundary) => Content::Multipart(boundary),
            None => Content::Plain,
        }
    }

    pub(crate) fn coding(&self) -> Result<Option<Coding>, crate::coding::UnknownCoding> {
        Coding::of(self.content_encoding.as_deref().unwrap_or_default())
    }

    pub(crate) fn media_type(&self) -> &[u8] {
        let value = self.content_type.as_deref().unwrap_or_default();
        value.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii()
    }

    fn boundary(&self) -> Option<Bytes> {
        let value = self.content_type.as_ref()?;
        if !self.media_type().get(..10).is_some_and(|start| start.eq_ignore_ascii_case(b"multipart/")) {
            return None;
        }
        value.split(|byte| *byte == b';').skip(1).find_map(|parameter| {
            let at = memchr::memchr(b'=', parameter)?;
            let (name, boundary) = (parameter[..at].trim_ascii(), parameter[at + 1..].trim_ascii());
            let boundary = boundary
                .strip_prefix(b"\"")
                .map_or(boundary, |rest| rest.strip_suffix(b"\"").unwrap_or(rest));
            name.eq_ignore_ascii_case(b"boundary").then(|| value.slice_ref(boundary))
        })
    }
}

/// Why a message is not passed on, and what a client is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub(crate) struct Malformed {
    pub status: u16,
    pub reason: &'static str,
}

impl Malformed {
    pub(crate) const fn because(reason: &'static str) -> Self {
        Self { status: 400, reason }
    }

    pub(crate) const fn with(status: u16, reason: &'static str) -> Self {
        Self { status, reason }
    }
}
