//! Masking of the heads and trailers of HTTP messages: line by line, each field for itself.

use super::form::decoded_hits;
use super::names::SECRETS;
use super::plan::{Hit, Syntax};
use super::scan::{Scanner, may_hold_secret};

/// What authenticates in whole lines (RFC 9112, 5), the start line among them. Places count from `base`.
pub(super) fn hits(lines: &[u8], base: usize, hits: &mut Vec<Hit>) {
    let is_escaped = memchr::memchr(b'%', lines).is_some();
    if !is_escaped && !may_hold_secret(lines) {
        return;
    }
    let mut at = 0;
    for line in lines.split_inclusive(|byte| *byte == b'\n') {
        field(line.trim_ascii_end(), base + at, hits);
        at += line.len();
    }
}

/// The same of lines that are not sound: any line break counts, and what continues a secret field is secret.
pub(super) fn unsound_hits(lines: &[u8], hits: &mut Vec<Hit>) {
    let (mut at, mut was_secret) = (0, false);
    for line in lines.split_inclusive(|byte| matches!(byte, b'\r' | b'\n')) {
        let text = line.trim_ascii_end();
        let continues = line.first().is_some_and(|byte| matches!(byte, b' ' | b'\t'));
        if continues && was_secret {
            hits.push((at..at + text.len(), "header"));
        } else if !text.is_empty() {
            let before = hits.len();
            field(text, at, hits);
            was_secret = hits.len() > before;
        }
        at += line.len();
    }
}

fn field(line: &[u8], base: usize, hits: &mut Vec<Hit>) {
    if let Some(colon) = memchr::memchr(b':', line)
        && SECRETS.is_secret_name(line[..colon].trim_ascii_end())
    {
        let value = &line[colon + 1..];
        let blanks = value.len() - value.trim_ascii_start().len();
        hits.push((base + colon + 1 + blanks..base + line.len(), "header"));
        return;
    }
    // In a list of its own: the scanner makes one of two hits that touch.
    let mut found = Vec::new();
    Scanner::new(Syntax::Bytes).scan(line, true, &mut found);
    if memchr::memchr(b'%', line).is_some() {
        decoded_hits(line, &mut found);
    }
    hits.extend(found.into_iter().map(|(range, rule)| (range.start + base..range.end + base, rule)));
}
