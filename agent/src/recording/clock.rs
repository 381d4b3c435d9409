//! The one clock of the record: CLOCK_BOOTTIME, as in kernel records. The wall clock appears as an anchor only.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use weir_proto::seal::Anchor;
use weir_proto::v1;
use weir_protocols::Instant;

/// Now.
pub(crate) fn now() -> Instant {
    Instant(read(ClockId::CLOCK_BOOTTIME) as u64)
}

/// How long until then; zero when it has passed.
pub(crate) fn until(deadline: Instant) -> Duration {
    Duration::from_nanos(deadline.0.saturating_sub(now().0))
}

/// Wall-clock time at one boot-clock instant, and whether the kernel's clock discipline vouches for it.
pub(crate) fn anchor() -> Anchor {
    // The two clocks are read around each other: the anchor lies between the two boot-clock readings.
    let before = read(ClockId::CLOCK_BOOTTIME) as u64;
    let unix_ns = read(ClockId::CLOCK_REALTIME);
    let after = read(ClockId::CLOCK_BOOTTIME) as u64;
    Anchor { unix_ns, boot_ns: before.midpoint(after), synchronized: synchronized() }
}

/// The anchor as messages carry it.
pub(crate) fn wall() -> v1::WallClock {
    let Anchor { unix_ns, boot_ns, synchronized } = anchor();
    v1::WallClock { unix_ns, boot_ns, synchronized }
}

/// Seconds since 1970-01-01 UTC, by the wall clock.
pub(crate) fn unix_seconds() -> i64 {
    read(ClockId::CLOCK_REALTIME) / 1_000_000_000
}

/// Days since 1970-01-01 UTC, by the wall clock.
pub(crate) fn today() -> u32 {
    const DAY_NS: i64 = 86_400 * 1_000_000_000;
    (read(ClockId::CLOCK_REALTIME) / DAY_NS).try_into().unwrap_or(0)
}

/// The kernel's id of this boot: boot-clock times compare only within it.
pub(crate) fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_or_else(|_| String::new(), |id| id.trim().to_owned())
}

fn read(clock: ClockId) -> i64 {
    // These two clocks exist on every Linux that can run the agent.
    clock_gettime(clock).map_or(0, |t| t.tv_sec().saturating_mul(1_000_000_000).saturating_add(t.tv_nsec()))
}

fn synchronized() -> bool {
    adjtimex_state().is_some_and(|state| state != libc::TIME_ERROR)
}

#[expect(unsafe_code, reason = "nix has no adjtimex")]
fn adjtimex_state() -> Option<i32> {
    // SAFETY: an all-zero timex is valid (plain integers), and modes = 0 only reads.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live, writable timex for the length of the call.
    let state = unsafe { libc::adjtimex(&raw mut timex) };
    (state >= 0).then_some(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_anchor_joins_both_clocks() {
        let before = now().0;
        let anchor = anchor();
        assert!(before <= anchor.boot_ns && anchor.boot_ns <= now().0);
        assert!(anchor.unix_ns > 1_700_000_000_000_000_000);
        assert!(today() > 19_000);
        assert!(!boot_id().is_empty());
    }
}
