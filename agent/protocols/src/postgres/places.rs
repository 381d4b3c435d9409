//! Where in messages the texts and the values stand: what masking looks at, and what people are shown.

use std::ops::Range;

use super::frame::{self, Fields, HEADER_BYTES};
use crate::note::PARAMETERS_MAX;
use crate::reader::Extent;

/// The places in a run of whole frames where values stand: the columns of each DataRow, the body of any other message.
pub(crate) fn values(run: &[u8]) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let mut at = 0;
    while let Ok(Extent::Frame { length, .. }) = frame::measure_upstream(&run[at..]) {
        let end = at.saturating_add(length).min(run.len());
        if run[at] == b'D' {
            let mut fields = Fields::at(&run[..end], at + HEADER_BYTES);
            let columns = fields.count().unwrap_or(0);
            for _ in 0..columns {
                match fields.value() {
                    Some(Some(range)) => ranges.push(range),
                    Some(None) => {}
                    None => break,
                }
            }
            // What no column covers is not left out: a malformed row is a value of its own.
            if fields.offset() < end {
                ranges.push(fields.offset()..end);
            }
        } else {
            ranges.push((at + HEADER_BYTES).min(end)..end);
        }
        at = end;
        if at >= run.len() {
            break;
        }
    }
    ranges
}

/// Format codes, as Bind has them for parameters and for results.
pub(crate) fn read_formats(fields: &mut Fields<'_>) -> Vec<i16> {
    let count = fields.count().unwrap_or(0);
    let read: Vec<i16> = (0..count).map_while(|_| fields.i16()).collect();
    read.into_iter().take(PARAMETERS_MAX).collect()
}

/// One code holds for all, none means text.
pub(crate) fn format_of(formats: &[i16], n: usize) -> i16 {
    match formats {
        [] => 0,
        [all] => *all,
        each => each.get(n).copied().unwrap_or(0),
    }
}

/// Where the texts of a Query (its statement) or of a Parse (its name, its statement, what follows) are. What is not as it should be
/// belongs to the statement.
pub(crate) fn texts(frame: &[u8]) -> Vec<Range<usize>> {
    let end = frame.len();
    if frame.first() == Some(&b'P') {
        let mut fields = Fields::of(frame);
        if fields.cstr().is_none() {
            return vec![HEADER_BYTES..HEADER_BYTES, HEADER_BYTES..end];
        }
        let start = fields.offset();
        let text_end = fields.cstr().map_or(end, |text| start + text.len());
        return vec![HEADER_BYTES..start - 1, start..text_end, (text_end + 1).min(end)..end];
    }
    let end = if frame.last() == Some(&0) { end - 1 } else { end };
    vec![HEADER_BYTES.min(end)..end]
}

/// Where the values of a Bind are; of one that does not read, all of it.
pub(crate) fn bind_values(frame: &[u8]) -> Vec<Range<usize>> {
    let all = vec![HEADER_BYTES.min(frame.len())..frame.len()];
    let mut fields = Fields::of(frame);
    if fields.cstr().is_none() || fields.cstr().is_none() {
        return all;
    }
    // The names, too: nothing is left out.
    let mut ranges = vec![HEADER_BYTES..fields.offset()];
    let _ = read_formats(&mut fields);
    for _ in 0..fields.count().unwrap_or(0) {
        let start = fields.offset();
        match fields.value() {
            Some(Some(range)) => ranges.push(range),
            Some(None) => {}
            None => {
                ranges.push(start..frame.len());
                return ranges;
            }
        }
    }
    ranges.push(fields.offset()..frame.len());
    ranges
}

#[cfg(test)]
mod tests {
    use super::super::frame::message;
    use super::*;

    #[test]
    fn values_of_rows_and_of_half_rows() {
        let frame = message(b'D', b"\0\x02\0\0\0\x01a\xff\xff\xff\xff");
        assert_eq!(values(&frame), vec![11..12]);
        let short = message(b'D', b"\0\x02\0\0\0\x09a");
        assert_eq!(values(&short), vec![11..12], "a value longer than its row is looked at as it is");
    }

    #[test]
    fn texts_are_found_also_where_nothing_ends_them() {
        assert_eq!(texts(&message(b'Q', b"abc\0")), vec![5..8]);
        assert_eq!(texts(&message(b'Q', b"abc")), vec![5..8]);
        assert_eq!(texts(&message(b'P', b"s\0abc\0\0\0")), vec![5..6, 7..10, 11..13]);
        assert_eq!(texts(&message(b'P', b"abc")), vec![5..5, 5..8]);
        assert_eq!(bind_values(&message(b'B', b"abc")), vec![5..8]);
    }
}
