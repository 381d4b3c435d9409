//! Masking of XML: the text of elements whose name says that it authenticates, as in `<SecretAccessKey>x</SecretAccessKey>`
//! or `<wsse:Password>x</wsse:Password>`. Attributes are found like any other `name="value"`.

use memchr::{memchr, memmem};

use super::names::SECRETS;
use super::plan::Hit;

/// Longest name of an element that is looked at, bytes.
const NAME_BYTES_MAX: usize = 128;
const CDATA: &[u8] = b"<![CDATA[";
const CDATA_END: &[u8] = b"]]>";

#[derive(Debug, Default)]
pub(super) struct XmlScan {
    state: State,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    /// Looking for an element.
    #[default]
    Text,
    /// Behind the name of one that is secret.
    Tag { closes: bool },
    /// In its text.
    Secret,
    /// In a CDATA section of its text.
    Cdata,
}

impl XmlScan {
    /// As `Scanner::scan`.
    pub(super) fn scan(&mut self, content: &[u8], last: bool, hits: &mut Vec<Hit>) -> usize {
        let mut at = 0;
        while at < content.len() {
            let rest = &content[at..];
            match self.state {
                State::Text => {
                    let Some(open) = memchr(b'<', rest) else { return content.len() };
                    let Some(name) = name(&rest[open + 1..], last) else { return at + open };
                    if is_secret(name) {
                        self.state = State::Tag { closes: false };
                    }
                    at += open + 1 + name.len();
                }
                State::Tag { closes } => match memchr(b'>', rest) {
                    Some(end) => {
                        let closes = if end > 0 { rest[end - 1] == b'/' } else { closes };
                        self.state = if closes { State::Text } else { State::Secret };
                        at += end + 1;
                    }
                    None => {
                        self.state = State::Tag { closes: rest.ends_with(b"/") };
                        return content.len();
                    }
                },
                State::Secret => {
                    let end = memchr(b'<', rest).unwrap_or(rest.len());
                    add(hits, at, at + end);
                    at += end;
                    let next = &content[at..];
                    if next.starts_with(CDATA) {
                        self.state = State::Cdata;
                        at += CDATA.len();
                    } else if !last && CDATA.starts_with(next) {
                        return at;
                    } else {
                        self.state = State::Text;
                    }
                }
                State::Cdata => {
                    let found = memmem::find(rest, CDATA_END);
                    let end = match found {
                        Some(end) => end,
                        None if last => rest.len(),
                        None => rest.len().saturating_sub(CDATA_END.len() - 1),
                    };
                    add(hits, at, at + end);
                    at += end;
                    if found.is_none() {
                        return at;
                    }
                    self.state = State::Secret;
                    at += CDATA_END.len();
                }
            }
        }
        at
    }
}

fn add(hits: &mut Vec<Hit>, start: usize, end: usize) {
    if start < end {
        hits.push((start..end, "element"));
    }
}

/// The name behind a `<`; `None` when later bytes belong to it.
fn name(rest: &[u8], last: bool) -> Option<&[u8]> {
    let bounded = &rest[..rest.len().min(NAME_BYTES_MAX)];
    let ends = |byte: &u8| byte.is_ascii_whitespace() || matches!(byte, b'>' | b'/' | b'<' | b'!' | b'?');
    match bounded.iter().position(ends) {
        Some(end) => Some(&rest[..end]),
        None if last || bounded.len() == NAME_BYTES_MAX => Some(bounded),
        None => None,
    }
}

/// With or without the prefix of a namespace.
fn is_secret(name: &[u8]) -> bool {
    let local = name.rsplit(|byte| *byte == b':').next().unwrap_or_default();
    !local.is_empty() && SECRETS.is_secret_name(local)
}
