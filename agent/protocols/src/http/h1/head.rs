//! Heads and trailers, strictly (RFC 9112, 2 to 6.1): what two readers could take for two different things is refused.

use std::mem::MaybeUninit;

use bytes::Bytes;
use httparse::{Error, Header, ParserConfig, Status};

use super::super::message::{Body, Length, Malformed, RequestHead, ResponseHead, Switch, Version};
use super::super::target;

/// Longest head, bytes.
pub const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Most fields of a head.
pub const HEADERS_MAX: usize = 256;
/// Most fields of a trailer section.
const TRAILERS_MAX: usize = 64;
/// Longest body that a message may announce, bytes: what signed 64-bit readers still read as it is written.
const LENGTH_MAX: u64 = i64::MAX as u64;

/// Looks for the empty line that ends a head, line by line; where it was is kept, so that no byte is looked at twice.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct HeadEnd {
    line_start: usize,
    scanned: usize,
    /// A line that is not empty was seen: an empty one ends the head.
    begun: bool,
}

impl HeadEnd {
    /// For trailers, which may be none at all.
    pub(crate) fn of_trailers() -> Self {
        Self { begun: true, ..Self::default() }
    }

    /// How much was looked at.
    pub(crate) fn scanned(&self) -> usize {
        self.scanned
    }

    /// There is more than empty lines. `bytes` must be those that were looked at last.
    pub(crate) fn has_begun(&self, bytes: &[u8]) -> bool {
        self.begun || !matches!(bytes.get(self.line_start..), None | Some([] | [b'\r']))
    }

    /// The length of the head at the beginning of `bytes`, if it is there whole. `bytes` must begin as they did before.
    pub(crate) fn find(&mut self, bytes: &[u8], bytes_max: usize) -> Result<Option<usize>, Malformed> {
        let bounded = &bytes[..bytes.len().min(bytes_max)];
        while let Some(offset) = memchr::memchr(b'\n', &bounded[self.scanned..]) {
            let feed = self.scanned + offset;
            crate::reader::work::count(offset + 1);
            if feed == 0 || bounded[feed - 1] != b'\r' || feed - 1 < self.line_start {
                self.scanned = feed + 1;
                return Err(Malformed::because("a line ends without a carriage return"));
            }
            let is_empty = feed - 1 == self.line_start;
            self.scanned = feed + 1;
            self.line_start = feed + 1;
            if is_empty && self.begun {
                return Ok(Some(feed + 1));
            }
            self.begun |= !is_empty;
        }
        crate::reader::work::count(bounded.len() - self.scanned);
        self.scanned = bounded.len();
        if bytes.len() >= bytes_max {
            return Err(Malformed::with(431, "the head is too long"));
        }
        Ok(None)
    }
}

/// A whole request head.
pub(crate) fn request(head: &Bytes) -> Result<RequestHead, Malformed> {
    let mut room = [const { MaybeUninit::<Header<'_>>::uninit() }; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut []);
    match ParserConfig::default().parse_request_with_uninit_headers(&mut parsed, head, &mut room) {
        Ok(Status::Complete(length)) if length == head.len() => {}
        Ok(_) => return Err(Malformed::because("the head has no end")),
        Err(Error::Version) if !tells_version(head) => return Err(unsound(Error::Token)),
        Err(error) => return Err(unsound(error)),
    }
    let (Some(method), Some(path), Some(version)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(Malformed::because("the request line is not whole"));
    };
    let version = version_of(version);
    let fields = Fields::of(head, parsed.headers)?;
    let length = fields.length(version)?.unwrap_or(Length::None);
    if fields.lengths > 1 {
        return Err(Malformed::because("several Content-Length fields"));
    }
    if fields.hosts > 1 {
        return Err(Malformed::because("several Host fields"));
    }
    let (method, path) = (head.slice_ref(method.as_bytes()), head.slice_ref(path.as_bytes()));
    let is_connect = &method[..] == b"CONNECT";
    if is_connect && length != Length::None {
        return Err(Malformed::because("CONNECT has no body"));
    }
    if fields.expects.as_deref().is_some_and(|expects| !expects.eq_ignore_ascii_case(b"100-continue")) {
        return Err(Malformed::with(417, "an expectation that nobody knows"));
    }
    let upgrades = fields.upgrade.is_some() && fields.connection.upgrade && version == Version::Http11;
    let (operation, url) = target::read(method, &path, fields.host.as_ref(), version)?;
    Ok(RequestHead {
        operation,
        url,
        version,
        length,
        switch: match (is_connect, upgrades) {
            (true, _) => Some(Switch::Connect),
            (_, true) => Some(Switch::Upgrade),
            _ => None,
        },
        expects_continue: fields.expects.is_some() && version == Version::Http11 && length != Length::None,
        keeps_alive: fields.connection.keeps_alive(version),
        body: fields.body,
        host: fields.host,
        user_agent: fields.user_agent,
    })
}

/// A whole response head; what its body is depends on what was asked.
pub(crate) fn response(head: &Bytes, asked: &Asked) -> Result<ResponseHead, Malformed> {
    let mut room = [const { MaybeUninit::<Header<'_>>::uninit() }; HEADERS_MAX];
    let mut parsed = httparse::Response::new(&mut []);
    match ParserConfig::default().parse_response_with_uninit_headers(&mut parsed, head, &mut room) {
        Ok(Status::Complete(length)) if length == head.len() => {}
        Ok(_) => return Err(Malformed::because("the head has no end")),
        Err(error) => return Err(unsound(error)),
    }
    let (Some(status), Some(version)) = (parsed.code, parsed.version) else {
        return Err(Malformed::because("the status line is not whole"));
    };
    if !(100..=599).contains(&status) {
        return Err(Malformed::because("the status is not between 100 and 599"));
    }
    let fields = Fields::of(head, parsed.headers)?;
    let told = fields.length(version_of(version))?;
    let is_bare = asked.is_head
        || matches!(status, 100..=199 | 204 | 304)
        || (asked.switch == Some(Switch::Connect) && (200..300).contains(&status));
    if status == 101 && asked.switch != Some(Switch::Upgrade) {
        return Err(Malformed::because("a switch of protocols that nobody asked for"));
    }
    Ok(ResponseHead {
        status,
        reason: reason(head, parsed.reason),
        length: if is_bare { Length::None } else { told.unwrap_or(Length::UntilClose) },
        body: fields.body,
        server: fields.server,
        upgrade: fields.upgrade,
    })
}

/// Empty where it is none, or no ASCII.
fn reason(head: &Bytes, phrase: Option<&str>) -> Bytes {
    phrase
        .filter(|phrase| !phrase.is_empty())
        .map_or_else(Bytes::new, |phrase| head.slice_ref(phrase.as_bytes()))
}

/// What of a request the reading of its answer needs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Asked {
    pub is_head: bool,
    pub switch: Option<Switch>,
}

impl Asked {
    pub(crate) fn of(head: &RequestHead) -> Self {
        Self { is_head: &head.operation.method[..] == b"HEAD", switch: head.switch }
    }
}

/// A whole trailer section with the empty line that ends it.
pub(crate) fn trailers(section: &[u8]) -> Result<(), Malformed> {
    let mut room = [httparse::EMPTY_HEADER; TRAILERS_MAX];
    match httparse::parse_headers(section, &mut room) {
        Ok(Status::Complete((length, fields))) if length == section.len() => {
            let frames = |field: &Header<'_>| {
                ["content-length", "transfer-encoding", "host"]
                    .iter()
                    .any(|name| field.name.eq_ignore_ascii_case(name))
            };
            if fields.iter().any(frames) {
                return Err(Malformed::because("a trailer that belongs into the head"));
            }
            Ok(())
        }
        Ok(_) => Err(Malformed::because("the trailers have no end")),
        Err(error) => Err(unsound(error)),
    }
}

fn unsound(error: Error) -> Malformed {
    match error {
        Error::TooManyHeaders => Malformed::with(431, "too many fields"),
        Error::Version => Malformed::with(505, "not HTTP/1.0 or HTTP/1.1"),
        Error::HeaderName => Malformed::because("a field name is not sound"),
        Error::HeaderValue => Malformed::because("a field value is not sound"),
        Error::NewLine => Malformed::because("a line does not end where it should"),
        Error::Status => Malformed::because("the status line is not sound"),
        Error::Token => Malformed::because("the request line is not sound"),
    }
}

/// The request line ends with a version of HTTP, of whatever number.
fn tells_version(head: &[u8]) -> bool {
    let line =
        head.split(|byte| matches!(byte, b'\r' | b'\n')).find(|line| !line.is_empty()).unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    matches!(words.nth(2), Some([b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9']))
        && words.next().is_none()
}

fn version_of(minor: u8) -> Version {
    if minor == 0 { Version::Http10 } else { Version::Http11 }
}

/// The fields that mean something on the way; all others pass unread.
#[derive(Default)]
struct Fields {
    length: Option<u64>,
    /// How often it was said.
    lengths: usize,
    is_chunked: bool,
    connection: Connection,
    upgrade: Option<Bytes>,
    host: Option<Bytes>,
    hosts: usize,
    expects: Option<Bytes>,
    body: Body,
    user_agent: Option<Bytes>,
    server: Option<Bytes>,
}

impl Fields {
    fn of(head: &Bytes, headers: &[Header<'_>]) -> Result<Self, Malformed> {
        let mut fields = Self::default();
        for header in headers {
            fields.add(head, header)?;
        }
        Ok(fields)
    }

    fn add(&mut self, head: &Bytes, header: &Header<'_>) -> Result<(), Malformed> {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        let value = || head.slice_ref(header.value.trim_ascii());
        match header.name.len() {
            4 if is("host") => {
                self.hosts += 1;
                self.host = Some(value());
            }
            6 if is("expect") => self.expects = Some(value()),
            6 if is("server") => self.server = Some(value()),
            7 if is("upgrade") => self.upgrade = Some(value()),
            10 if is("connection") => self.connection.add(header.value),
            10 if is("user-agent") => self.user_agent = Some(value()),
            12 if is("content-type") => self.body.content_type = Some(value()),
            14 if is("content-length") => self.add_length(header.value.trim_ascii())?,
            16 if is("content-encoding") => self.add_coding(value()),
            17 if is("transfer-encoding") => {
                if self.is_chunked || !header.value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                    return Err(Malformed::because("a transfer coding other than chunked, or two"));
                }
                self.is_chunked = true;
            }
            _ => {}
        }
        Ok(())
    }

    /// Servers repeat themselves at times, and that is no harm as long as it is the same (RFC 9110, 8.6).
    fn add_length(&mut self, value: &[u8]) -> Result<(), Malformed> {
        for value in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            if value.is_empty() || value.len() > 19 || !value.iter().all(u8::is_ascii_digit) {
                return Err(Malformed::because("a Content-Length that is no number"));
            }
            let length = value.iter().fold(0_u64, |length, digit| length * 10 + u64::from(digit - b'0'));
            if length > LENGTH_MAX {
                return Err(Malformed::because("a Content-Length beyond all measure"));
            }
            if self.length.is_some_and(|before| before != length) {
                return Err(Malformed::because("several Content-Length fields"));
            }
            self.length = Some(length);
            self.lengths += 1;
        }
        Ok(())
    }

    /// Several fields are one list (RFC 9110, 5.3).
    fn add_coding(&mut self, value: Bytes) {
        self.body.content_encoding = Some(match self.body.content_encoding.take() {
            Some(before) => Bytes::from([&before[..], b", ", &value[..]].concat()),
            None => value,
        });
    }

    fn length(&self, version: Version) -> Result<Option<Length>, Malformed> {
        match (self.length, self.is_chunked) {
            (Some(_), true) => Err(Malformed::because("both Content-Length and Transfer-Encoding")),
            (None, true) if version == Version::Http10 => {
                Err(Malformed::because("Transfer-Encoding in HTTP/1.0"))
            }
            (None, true) => Ok(Some(Length::Chunked)),
            (Some(0), false) => Ok(Some(Length::None)),
            (Some(length), false) => Ok(Some(Length::Exactly(length))),
            (None, false) => Ok(None),
        }
    }
}

/// The options of Connection fields.
#[derive(Clone, Copy, Debug, Default)]
struct Connection {
    close: bool,
    keep_alive: bool,
    upgrade: bool,
}

impl Connection {
    fn add(&mut self, value: &[u8]) {
        for option in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            self.close |= option.eq_ignore_ascii_case(b"close");
            self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
            self.upgrade |= option.eq_ignore_ascii_case(b"upgrade");
        }
    }

    fn keeps_alive(self, version: Version) -> bool {
        !self.close && (version == Version::Http11 || self.keep_alive)
    }
}
