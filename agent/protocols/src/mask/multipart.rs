//! Masking of `multipart/form-data` (RFC 7578): the parts whose name says that they authenticate.

use memchr::memmem;

use super::form::decoded;
use super::names::SECRETS;
use super::plan::Hit;

/// Longest boundary, bytes: RFC 2046 allows 70.
const BOUNDARY_BYTES_MAX: usize = 200;
/// Longest head of a part, bytes; a part with a longer one is withheld.
const PART_HEAD_BYTES_MAX: usize = 8 * 1024;

#[derive(Debug)]
pub(super) struct MultipartScan {
    /// CRLF, two dashes, the boundary.
    delimiter: Vec<u8>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before the first byte: a delimiter may stand here without its line break.
    Start,
    Head,
    /// `lead`: so many bytes of the head's last line break are still to come.
    Part {
        secret: bool,
        lead: usize,
    },
}

impl MultipartScan {
    pub(super) fn new(boundary: &[u8]) -> Option<Self> {
        let fits = !boundary.is_empty() && boundary.len() <= BOUNDARY_BYTES_MAX;
        fits.then(|| Self { delimiter: [b"\r\n--", boundary].concat(), state: State::Start })
    }

    /// As `Scanner::scan`.
    pub(super) fn scan(&mut self, content: &[u8], last: bool, hits: &mut Vec<Hit>) -> usize {
        let mut at = 0;
        loop {
            let rest = &content[at..];
            match self.state {
                State::Start => {
                    let opening = &self.delimiter[2..];
                    if rest.len() < opening.len() && !last {
                        return at;
                    }
                    let opens = rest.starts_with(opening);
                    at += if opens { opening.len() } else { 0 };
                    self.state = if opens { State::Head } else { State::Part { secret: false, lead: 0 } };
                }
                State::Head => {
                    let bounded = &rest[..rest.len().min(PART_HEAD_BYTES_MAX)];
                    match memmem::find(bounded, b"\r\n\r\n") {
                        Some(end) => {
                            // The line break before a delimiter may be the one that ends the head.
                            self.state = State::Part { secret: is_secret(&rest[..end]), lead: 2 };
                            at += end + 2;
                        }
                        None if bounded.len() == PART_HEAD_BYTES_MAX => {
                            self.state = State::Part { secret: true, lead: 0 };
                        }
                        None if last => return content.len(),
                        None => return at,
                    }
                }
                State::Part { secret, lead } => {
                    let found = memmem::find(rest, &self.delimiter);
                    let end = match found {
                        Some(end) => end,
                        None if last => rest.len(),
                        None => rest.len().saturating_sub(self.delimiter.len() - 1),
                    };
                    let lead_here = lead.min(end);
                    if secret && end > lead_here {
                        hits.push((at + lead_here..at + end, "form"));
                    }
                    if found.is_none() {
                        self.state = State::Part { secret, lead: lead - lead_here };
                        return at + end;
                    }
                    at += end + self.delimiter.len();
                    self.state = State::Head;
                }
            }
        }
    }
}

/// Whether any name in the part's head is one of ours: `name="password"`, `name=password`, `name*=utf-8''password`,
/// `name="user[password]"`.
fn is_secret(head: &[u8]) -> bool {
    head.split(|byte| matches!(byte, b';' | b'\n')).any(|parameter| {
        let Some((name, value)) = split(parameter.trim_ascii()) else { return false };
        if !name.eq_ignore_ascii_case(b"name") && !name.eq_ignore_ascii_case(b"name*") {
            return false;
        }
        decoded(value)
            .split(|byte| matches!(byte, b'[' | b']' | b'"' | b'\''))
            .any(|part| SECRETS.is_secret_name(part.trim_ascii()))
    })
}

fn split(parameter: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = memchr::memchr(b'=', parameter)?;
    Some((parameter[..at].trim_ascii(), &parameter[at + 1..]))
}
