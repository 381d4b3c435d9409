//! What to say to an HTTP client whose connection policy denies.

use bytes::Bytes;

use super::answer;
use super::h1::{HEAD_BYTES_MAX, HeadEnd};
use super::recognize;
use crate::detect::Recognition;
use crate::verdict::Denial;

/// What follows from a client's first bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Not enough to tell, or the head is not whole: read on.
    NeedMore,
    /// Send this, then close.
    Last(Bytes),
    NotHttp,
}

/// Called with all bytes that the client sent, until there is a last word.
pub fn refuse(first_bytes: &[u8], denial: &Denial) -> Refusal {
    match recognize::request(first_bytes) {
        Recognition::Match(crate::Kind::Http) => {}
        Recognition::NeedMore => return Refusal::NeedMore,
        Recognition::Match(_) | Recognition::No => return Refusal::NotHttp,
    }
    // An answer that comes before the head is whole may be lost with it.
    if let Ok(None) = HeadEnd::default().find(first_bytes, HEAD_BYTES_MAX) {
        return Refusal::NeedMore;
    }
    Refusal::Last(answer::denied(denial, first_bytes.starts_with(b"HEAD "), true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_head_is_told_and_strangers_are_left_alone() {
        let denial = Denial { rule: "closed".into(), reason: "not this host".into() };
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        for end in 0..head.len() {
            assert_eq!(refuse(&head[..end], &denial), Refusal::NeedMore);
        }
        let Refusal::Last(answer) = refuse(head, &denial) else { panic!("a request is refused") };
        let text = String::from_utf8_lossy(&answer);
        assert!(text.starts_with("HTTP/1.1 403 ") && text.contains("\r\nConnection: close\r\n"), "{text}");
        assert!(text.ends_with("\"closed\": not this host\n"), "{text}");
        assert_eq!(refuse(b"EHLO x\r\n", &denial), Refusal::NotHttp);
        assert_eq!(refuse(b"PRI * HTTP/2.0\r\n\r\n", &denial), Refusal::NotHttp);
    }
}
