//! Tables, times, sizes. What was recorded was written by others: control characters never reach the terminal.

use std::io::Write;

use anyhow::Result;
use comfy_table::{ContentArrangement, Table, presets};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use weir_proto::v1;

/// One line on stdout. A closed pipe ends the program quietly: see [`is_closed_pipe`].
pub(crate) fn line(text: impl AsRef<str>) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_ref().as_bytes())?;
    out.write_all(b"\n")?;
    Ok(())
}

pub(crate) fn json(value: &Value) -> Result<()> {
    line(serde_json::to_string(value)?)
}

/// Columns without borders.
pub(crate) fn table(headings: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Result<()> {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(headings);
    for row in rows {
        table.add_row(row.iter().map(|cell| clean(cell)));
    }
    line(table.trim_fmt())
}

/// Control characters as escapes, so that a recorded statement cannot move the cursor or set the title.
pub(crate) fn clean(text: &str) -> String {
    if !text.chars().any(is_unsafe) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if is_unsafe(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

/// Controls, and the marks that turn the direction of text around.
fn is_unsafe(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// One line of at most `max` characters: runs of white space become one blank.
pub(crate) fn one_line(text: &str, max: usize) -> String {
    let text = clean(&text.split_whitespace().collect::<Vec<_>>().join(" "));
    if text.chars().count() <= max {
        return text;
    }
    text.chars().take(max.saturating_sub(1)).chain(['…']).collect()
}

/// `2026-11-20 17:24:55`, UTC.
pub(crate) fn time(unix_ns: i64) -> String {
    let format = time::macros::format_description!("[year]-[month]-[day] [hour]:[minute]:[second]");
    moment(unix_ns).and_then(|at| at.format(&format).ok()).unwrap_or_default()
}

/// RFC 3339 with nanoseconds, for programs; null for 0.
pub(crate) fn time_json(unix_ns: i64) -> Value {
    if unix_ns == 0 {
        return Value::Null;
    }
    moment(unix_ns).and_then(|at| at.format(&Rfc3339).ok()).map_or(Value::Null, Value::String)
}

fn moment(unix_ns: i64) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ns)).ok()
}

pub(crate) fn duration(ns: u64) -> String {
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{:.0} µs", ns as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} ms", ns as f64 / 1e6),
        1_000_000_000..120_000_000_000 => format!("{:.2} s", ns as f64 / 1e9),
        _ => format!("{} min {} s", ns / 60_000_000_000, ns / 1_000_000_000 % 60),
    }
}

pub(crate) fn bytes(count: u64) -> String {
    match count {
        0..1024 => format!("{count} B"),
        1024..1_048_576 => format!("{:.1} KiB", count as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", count as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", count as f64 / 1_073_741_824.0),
    }
}

pub(crate) fn plural(count: u64, one: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") }
}

/// A 16-byte id field, with hyphens.
pub(crate) fn id(field: &[u8]) -> String {
    weir_proto::SessionId::try_from(field).map_or_else(|_| hex::encode(field), |id| id.to_string())
}

pub(crate) fn address(address: Option<&v1::Address>) -> String {
    match address {
        Some(a) if a.ip.contains(':') => format!("[{}]:{}", a.ip, a.port),
        Some(a) if !a.ip.is_empty() => format!("{}:{}", a.ip, a.port),
        _ => String::new(),
    }
}

pub(crate) fn principal(principal: Option<&v1::Principal>) -> String {
    match principal {
        Some(p) if p.verified_by.is_empty() => format!("unverified({})", short_digest(&p.subject)),
        Some(p) => p.subject.clone(),
        None => String::new(),
    }
}

/// A digest in a table is for the eye; `--json` has all of it.
fn short_digest(subject: &str) -> &str {
    const DIGITS: usize = 12;
    let end = subject.find(" sha256:").map(|at| at + " sha256:".len() + DIGITS);
    end.and_then(|end| subject.get(..end)).unwrap_or(subject)
}

pub(crate) fn outcome(outcome: i32) -> &'static str {
    match v1::Outcome::try_from(outcome) {
        Ok(v1::Outcome::Ok) => "ok",
        Ok(v1::Outcome::Error) => "error",
        Ok(v1::Outcome::Denied) => "denied",
        Ok(v1::Outcome::Withdrawn) => "withdrawn",
        Ok(v1::Outcome::Aborted) => "aborted",
        Ok(v1::Outcome::Unspecified) | Err(_) => "running",
    }
}

/// A reader that has seen enough (`weir show | head`).
pub(crate) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// The error and its causes; of a refusal by the collector only what it said.
pub(crate) fn error_text(error: &anyhow::Error) -> String {
    if let Some(status) = error.downcast_ref::<tonic::Status>() {
        return clean(status.message());
    }
    clean(&weir_collector::chain(error.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_recorded_moves_the_cursor() {
        assert_eq!(clean("a\x1b[2Jb\u{9b}c\u{202e}d\n"), "a\\u{1b}[2Jb\\u{9b}c\\u{202e}d\\n");
        assert_eq!(one_line("select\n   1\x07", 80), "select 1\\u{7}");
        assert_eq!(one_line("abcdef", 4), "abc…");
    }

    #[test]
    fn sizes_and_times() {
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(duration(1_234_567), "1.2 ms");
        assert_eq!(duration(125_000_000_000), "2 min 5 s");
        assert_eq!(time(0), "1970-01-01 00:00:00");
    }
}
