//! What claims that nobody signed are held against. "Expired by retention" is one: it excuses what is missing.

use std::time::Duration;

use weir_proto::SessionId;

/// The shortest that any collector keeps recordings: what is younger cannot have expired.
pub const KEEP_MIN: Duration = Duration::from_secs(3600);

#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// The verifier's own clock.
    pub now_unix_ms: i64,
    /// Recordings are kept at least this long.
    pub keep: Duration,
    /// The recording is a folder: there is no agent that could still hold what is not in it.
    pub local: bool,
}

impl Terms {
    /// With what every collector keeps.
    pub fn at(now_unix_ms: i64) -> Self {
        Self { now_unix_ms, keep: KEEP_MIN, local: false }
    }

    /// Something of this time can be old enough to have expired.
    pub(super) fn may_be_expired(&self, unix_ms: i64) -> bool {
        let keep_ms = i64::try_from(self.keep.as_millis()).unwrap_or(i64::MAX);
        self.now_unix_ms.saturating_sub(unix_ms) >= keep_ms
    }
}

/// When the node agent made the id: session ids are UUIDv7, which begin with 48 bits of Unix milliseconds.
pub(super) fn made_unix_ms(session: &SessionId) -> i64 {
    let [a, b, c, d, e, f, ..] = *session.as_bytes();
    i64::from_be_bytes([0, 0, a, b, c, d, e, f])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_tells_when_it_was_made() {
        let before = crate::clock::unix_ms();
        let made = made_unix_ms(&SessionId::generate());
        assert!((before..=crate::clock::unix_ms()).contains(&made));
    }
}
