//! Renderings of recorded exchanges, of masked ones and of nonsense.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::seam::Side::{Client, Upstream};

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    [&[tag][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat()
}

fn piece(from: Side, bytes: Vec<u8>) -> Piece {
    Piece { from, bytes: Bytes::from(bytes) }
}

fn text(line: &str) -> Option<String> {
    Some(line.to_owned())
}

#[test]
fn a_query_with_rows() {
    let columns = [
        &b"\0\x02id\0\0\0\0\0\0\0\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0"[..],
        b"name\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0",
    ];
    let pieces = [
        piece(Client, message(b'Q', b"SELECT *\nFROM t\0")),
        piece(Upstream, message(b'T', &columns.concat())),
        piece(Upstream, message(b'D', b"\0\x02\0\0\0\x011\0\0\0\x04gr\xc3\xbc")),
        piece(Upstream, message(b'D', b"\0\x02\0\0\0\x012\xff\xff\xff\xff")),
        piece(Upstream, [message(b'C', b"SELECT 2\0"), message(b'Z', b"I")].concat()),
    ];
    let lines = render("postgres", &[], pieces.into_iter());
    assert_eq!(
        lines,
        [
            Line::Request("SELECT *\nFROM t".into()),
            Line::Columns(vec!["id".into(), "name".into()]),
            Line::Row(vec![text("1"), text("gr\u{fc}")]),
            Line::Row(vec![text("2"), None]),
            Line::Reply("SELECT 2".into()),
        ]
    );
}

#[test]
fn binary_rows_are_read_by_their_columns_alone() {
    let columns = [("n".to_owned(), "int4 binary".to_owned()), ("t".to_owned(), "bool binary".to_owned())];
    let row = message(b'D', b"\0\x02\0\0\0\x04\0\0\x01\0\0\0\0\x01\x01");
    let lines = render("postgres", &columns, [piece(Upstream, row)].into_iter());
    assert_eq!(lines, [Line::Columns(vec!["n".into(), "t".into()]), Line::Row(vec![text("256"), text("t")])]);
}

#[test]
fn errors_notices_and_masked_values() {
    let pieces = [
        piece(Upstream, message(b'N', b"SNOTICE\0Mlook\0\0")),
        piece(Upstream, message(b'E', b"SERROR\0C42P01\0Mno \x1b[31mtable\0\0")),
        piece(Upstream, message(b'D', b"\0\x01\0\0\0\x03***")),
    ];
    let lines = render("postgres", &[], pieces.into_iter());
    assert_eq!(
        lines,
        [
            Line::Reply("notice: look".into()),
            Line::Error("42P01: no \\x1b[31mtable".into()),
            Line::Row(vec![text("***")]),
        ]
    );
}

#[test]
fn what_does_not_read_is_bytes() {
    let pieces =
        [piece(Client, vec![0, 0, 0, 9, 1]), piece(Client, vec![2]), piece(Upstream, vec![b'D', 0, 0])];
    let lines = render("postgres", &[], pieces.into_iter());
    let bytes = |from, text: &str| Line::Bytes { from, text: text.into() };
    assert_eq!(
        lines,
        [bytes(Client, "\\x00\\x00\\x00\\t\\x01"), bytes(Client, "\\x02"), bytes(Upstream, "D\\x00\\x00")]
    );
    let lines = render("opaque", &[], [piece(Client, b"GET /\r\n".to_vec())].into_iter());
    assert_eq!(lines, [bytes(Client, "GET /\\r\\n")]);
}

#[test]
fn a_rendering_has_an_end() {
    let rows = message(b'D', b"\0\x01\0\0\0\x011").repeat(1000);
    let lines = render("postgres", &[], (0..=LINES_MAX / 1000).map(|_| piece(Upstream, rows.clone())));
    assert_eq!(lines.len(), LINES_MAX + 1);
    assert!(matches!(lines.last(), Some(Line::Cut { bytes }) if *bytes > 0));

    let wide = vec![b'x'; 1_000_000];
    let lines = render("opaque", &[], (0..100).map(|_| piece(Upstream, wide.clone())));
    let shown: usize = lines.iter().map(size).sum();
    assert!(shown <= TEXT_BYTES_MAX, "{shown}");
    assert!(matches!(lines.last(), Some(Line::Cut { .. })));
}

proptest! {
    #[test]
    fn no_bytes_panic(pieces in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..60)), 0..20)) {
        let pieces = pieces.into_iter().map(|(side, bytes)| piece(if side { Client } else { Upstream }, bytes));
        render("postgres", &[("n".to_owned(), "numeric binary".to_owned())], pieces);
    }

    /// Sound frames with random bodies reach deeper.
    #[test]
    fn no_bodies_panic(frames in prop::collection::vec((any::<bool>(), "[A-Za-z0-9]", prop::collection::vec(any::<u8>(), 0..40)), 0..20)) {
        let columns = [("n".to_owned(), "int4[] binary".to_owned())];
        let pieces = frames.into_iter().map(|(side, tag, body)| {
            piece(if side { Client } else { Upstream }, message(tag.as_bytes()[0], &body))
        });
        render("postgres", &columns, pieces);
    }
}
