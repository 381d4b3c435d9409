//! Times, durations, sizes, patterns, ranges: what stands behind a field's colon.

use time::format_description::well_known::Rfc3339;
use time::{Date, OffsetDateTime, PrimitiveDateTime, Time, UtcOffset};

const NS_PER_S: i64 = 1_000_000_000;
/// Longest relative time: beyond it nothing was ever recorded.
const YEARS_MAX: f64 = 200.0;
const UNITS: [(&str, f64); 8] = [
    ("ns", 1.0),
    ("us", 1e3),
    ("µs", 1e3),
    ("ms", 1e6),
    ("s", 1e9),
    ("m", 60e9),
    ("min", 60e9),
    ("h", 3600e9),
];
const LONG_UNITS: [(&str, f64); 2] = [("d", 86_400e9), ("w", 7.0 * 86_400e9)];
const SIZES: [(&str, f64); 13] = [
    ("", 1.0),
    ("b", 1.0),
    ("k", 1024.0),
    ("kib", 1024.0),
    ("kb", 1e3),
    ("m", 1_048_576.0),
    ("mib", 1_048_576.0),
    ("mb", 1e6),
    ("g", 1_073_741_824.0),
    ("gib", 1_073_741_824.0),
    ("gb", 1e9),
    ("tib", 1_099_511_627_776.0),
    ("tb", 1e12),
];

/// Text to be compared without regard to the case of ASCII letters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    Is(String),
    Begins(String),
    /// `*.example.com`
    Ends(String),
}

/// Both ends belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub from: Option<i64>,
    pub to: Option<i64>,
}

impl Range {
    /// `5`, `>5`, `>=5`, `<5`, `<=5`, `5..9`. `read` says the value of one end, and how wide it is: `1s` is one
    /// nanosecond wide, a date a day.
    pub fn read(text: &str, read: impl Fn(&str) -> Option<(i64, i64)>) -> Option<Self> {
        if let Some(rest) = text.strip_prefix(">=") {
            return Some(Self { from: Some(read(rest)?.0), to: None });
        }
        if let Some(rest) = text.strip_prefix("<=") {
            return Some(Self { from: None, to: Some(last(read(rest)?)) });
        }
        if let Some(rest) = text.strip_prefix('>') {
            return Some(Self { from: Some(last(read(rest)?).saturating_add(1)), to: None });
        }
        if let Some(rest) = text.strip_prefix('<') {
            return Some(Self { from: None, to: Some(read(rest)?.0.saturating_sub(1)) });
        }
        if let Some((from, to)) = text.split_once("..") {
            if from.is_empty() && to.is_empty() {
                return None;
            }
            let from = if from.is_empty() { None } else { Some(read(from)?.0) };
            let to = if to.is_empty() { None } else { Some(last(read(to)?)) };
            return Some(Self { from, to });
        }
        let one = read(text)?;
        Some(Self { from: Some(one.0), to: Some(last(one)) })
    }
}

fn last((value, width): (i64, i64)) -> i64 {
    value.saturating_add(width - 1)
}

pub fn count(text: &str) -> Option<(i64, i64)> {
    Some((text.parse::<u64>().ok()?.try_into().unwrap_or(i64::MAX), 1))
}

/// Nanoseconds.
pub fn duration(text: &str) -> Option<(i64, i64)> {
    Some((measured(text, &[&UNITS])?, 1))
}

pub fn size(text: &str) -> Option<(i64, i64)> {
    Some((measured(text, &[&SIZES])?, 1))
}

/// A number and its unit.
fn measured(text: &str, units: &[&[(&str, f64)]]) -> Option<i64> {
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let number: f64 = number.parse().ok()?;
    let unit = unit.trim().to_lowercase();
    let factor = units.iter().flat_map(|some| some.iter()).find(|(name, _)| *name == unit)?.1;
    let value = number * factor;
    (value.is_finite() && value < 9e18).then_some(value as i64)
}

/// An instant and how long it lasts: `2026-11-20` a day, `2026-11-20T10:30` a minute, `...:05` a second; `today`,
/// `yesterday`, `now`; `90s`, `10m`, `1h`, `7d`, `2w` before now. UTC where no offset is given.
pub fn instant(text: &str, now_ns: i64) -> Option<(i64, i64)> {
    const DAY_NS: i64 = 86_400 * NS_PER_S;
    let today = now_ns.div_euclid(DAY_NS) * DAY_NS;
    match text.to_ascii_lowercase().as_str() {
        "now" => return Some((now_ns, 1)),
        "today" => return Some((today, DAY_NS)),
        "yesterday" => return Some((today.saturating_sub(DAY_NS), DAY_NS)),
        _ => {}
    }
    if let Some(ago) = measured(text, &[&UNITS, &LONG_UNITS]) {
        let ok = (ago as f64) < YEARS_MAX * 366.0 * DAY_NS as f64;
        return ok.then_some((now_ns.saturating_sub(ago), 1));
    }
    if let Ok(at) = OffsetDateTime::parse(text, &Rfc3339) {
        let width = if text.contains('.') { 1 } else { NS_PER_S };
        return Some((unix_ns(at)?, width));
    }
    let (date, clock) = match text.split_once(['T', 't', ' ']) {
        Some((date, clock)) => (date, Some(clock)),
        None => (text, None),
    };
    let date = Date::parse(date, time::macros::format_description!("[year]-[month]-[day]")).ok()?;
    let Some(clock) = clock else {
        return Some((unix_ns(PrimitiveDateTime::new(date, Time::MIDNIGHT).assume_utc())?, DAY_NS));
    };
    let (clock, offset) = offset(clock)?;
    let (clock, width) = match clock.len() {
        5 => (Time::parse(clock, time::macros::format_description!("[hour]:[minute]")).ok()?, 60 * NS_PER_S),
        _ => {
            let format = time::macros::format_description!("[hour]:[minute]:[second]");
            (Time::parse(clock, format).ok()?, NS_PER_S)
        }
    };
    Some((unix_ns(PrimitiveDateTime::new(date, clock).assume_offset(offset))?, width))
}

/// `10:30`, `10:30Z`, `10:30+02:00`
fn offset(clock: &str) -> Option<(&str, UtcOffset)> {
    if let Some(clock) = clock.strip_suffix(['Z', 'z']) {
        return Some((clock, UtcOffset::UTC));
    }
    let Some(at) = clock.find(['+', '-']) else { return Some((clock, UtcOffset::UTC)) };
    let (clock, text) = clock.split_at(at);
    let sign: i8 = if text.starts_with('-') { -1 } else { 1 };
    let (hours, minutes) = text[1..].split_once(':')?;
    let offset = UtcOffset::from_hms(sign * hours.parse::<i8>().ok()?, sign * minutes.parse::<i8>().ok()?, 0);
    Some((clock, offset.ok()?))
}

fn unix_ns(at: OffsetDateTime) -> Option<i64> {
    i64::try_from(at.unix_timestamp_nanos()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_763_640_000 * NS_PER_S; // 2025-11-20T12:00:00Z

    #[test]
    fn instants() {
        let at = |text| instant(text, NOW);
        assert_eq!(at("2025-11-20"), Some((NOW - 12 * 3600 * NS_PER_S, 86_400 * NS_PER_S)));
        assert_eq!(at("today"), at("2025-11-20"));
        assert_eq!(at("yesterday"), at("2025-11-19"));
        assert_eq!(at("2025-11-20T12:00"), Some((NOW, 60 * NS_PER_S)));
        assert_eq!(at("2025-11-20T12:00:00Z"), Some((NOW, NS_PER_S)));
        assert_eq!(at("2025-11-20 14:00+02:00"), Some((NOW, 60 * NS_PER_S)));
        assert_eq!(at("1h"), Some((NOW - 3600 * NS_PER_S, 1)));
        assert_eq!(at("7d"), at("1w"));
        for wrong in
            ["", "2025-13-01", "2025-11-20T25:00", "h", "1y", "-1h", "2025-11-20T10:00+99:99", "9e99d"]
        {
            assert_eq!(at(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn ranges_of_durations_and_sizes() {
        let range = |text| Range::read(text, duration);
        assert_eq!(range(">1s"), Some(Range { from: Some(1_000_000_001), to: None }));
        assert_eq!(range("<=2.5ms"), Some(Range { from: None, to: Some(2_500_000) }));
        assert_eq!(range("1s..2m"), Some(Range { from: Some(NS_PER_S), to: Some(120 * NS_PER_S) }));
        assert_eq!(range(".."), None);
        assert_eq!(Range::read(">1MiB", size), Some(Range { from: Some(1_048_577), to: None }));
        assert_eq!(Range::read("10", size), Some(Range { from: Some(10), to: Some(10) }));
        assert_eq!(Range::read("1 parsec", size), None);
        assert_eq!(Range::read("99999999999999999999", count), None);
    }
}
