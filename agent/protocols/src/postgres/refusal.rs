//! What to say to a PostgreSQL client whose connection policy denies: its own kind of fatal error.

use bytes::Bytes;

use super::error;
use super::frame;
use super::opening::Opening;
use crate::reader::Extent;
use crate::verdict::Denial;

/// What follows from a client's first bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Not enough to tell, or the message is not whole: read on.
    NeedMore,
    /// Send this, forget so many of the client's bytes, and go on with what comes.
    Reply(Bytes, usize),
    /// Send this (it may be empty), then close.
    Last(Bytes),
    NotPostgres,
}

/// Called with all bytes that the client sent and no `Reply` has consumed, until there is a last word. An encryption request
/// is answered with no, so that the client sends its startup and can be told in plain text.
pub fn refuse(first_bytes: &[u8], denial: &Denial) -> Refusal {
    let length = match frame::measure_startup(first_bytes) {
        Ok(Extent::Frame { length, .. }) => length,
        Ok(Extent::Need(_)) => return Refusal::NeedMore,
        Err(_) => return Refusal::NotPostgres,
    };
    let Some(code) = first_bytes.get(4..8) else { return Refusal::NeedMore };
    if code[..2] != [0, 3] && code[..2] != [0x04, 0xd2] {
        return Refusal::NotPostgres;
    }
    // Closing while the client still sends would lose the answer.
    let Some(message) = first_bytes.get(..length) else { return Refusal::NeedMore };
    match Opening::of(message) {
        Some(Opening::Encryption(_)) => Refusal::Reply(Bytes::from_static(b"N"), length),
        Some(Opening::Cancel) => Refusal::Last(Bytes::new()),
        Some(Opening::Startup(_)) => Refusal::Last(error::connection_denied(denial)),
        None => Refusal::NotPostgres,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denial() -> Denial {
        Denial { rule: "closed".into(), reason: "not this database".into() }
    }

    #[test]
    fn an_encryption_request_is_answered_and_the_startup_refused() {
        let ssl = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
        let mut startup = vec![0, 0, 0, 17, 0, 3, 0, 0];
        startup.extend(b"user\0me\0\0");
        for end in 0..8 {
            assert_eq!(refuse(&ssl[..end], &denial()), Refusal::NeedMore);
        }
        assert_eq!(refuse(&ssl, &denial()), Refusal::Reply(Bytes::from_static(b"N"), 8));
        assert_eq!(refuse(&startup[..16], &denial()), Refusal::NeedMore);
        let Refusal::Last(reply) = refuse(&startup, &denial()) else { panic!("a startup is refused") };
        let text = String::from_utf8_lossy(&reply);
        assert!(
            text.contains("FATAL")
                && text.contains("28000")
                && text.contains("\"closed\": not this database")
        );
    }

    #[test]
    fn a_cancel_is_closed_and_strangers_are_left_alone() {
        let cancel = [0, 0, 0, 16, 0x04, 0xd2, 0x16, 0x2e, 0, 0, 0, 1, 9, 9, 9, 9];
        assert_eq!(refuse(&cancel, &denial()), Refusal::Last(Bytes::new()));
        assert_eq!(refuse(b"GET / HTTP/1.1\r\n", &denial()), Refusal::NotPostgres);
        assert_eq!(refuse(&[0x16, 3, 1, 2, 0, 1, 0, 1], &denial()), Refusal::NotPostgres);
        assert_eq!(refuse(&[0, 0, 0, 9, 1, 2, 3, 4], &denial()), Refusal::NotPostgres);
    }
}
