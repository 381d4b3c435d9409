//! Recorded exchanges, as people see them and as search reads them.

use bytes::Bytes;
use proptest::prelude::*;

use super::playbook::Playbook;
use crate::coding::tests::gzip;
use crate::seam::Side::{self, Client, Upstream};
use crate::view::{BODY_TEXT_BYTES_MAX, Line, Piece, body_text, render};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

fn piece(from: Side, bytes: impl AsRef<[u8]>) -> Piece {
    Piece { from, bytes: Bytes::copy_from_slice(bytes.as_ref()) }
}

fn coded(coding: &str, body: &[u8]) -> Vec<u8> {
    let head =
        format!("HTTP/1.1 200 OK\r\nContent-Encoding: {coding}\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

#[test]
fn heads_and_bodies_without_their_framing() {
    let pieces = [
        piece(Client, "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{\"n\":"),
        piece(Client, "\n 1}"),
        piece(Upstream, "HTTP/1.1 100 Continue\r\n\r\n"),
        piece(
            Upstream,
            "HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nno \r\n2\r\nt\x1b",
        ),
        piece(Upstream, "\r\n5\r\nhing!\r\n0\r\nX: y\r\n\r\n"),
    ];
    assert_eq!(
        render("http", &[], pieces.clone().into_iter()),
        [
            Line::Request("POST /x HTTP/1.1\nHost: a\nContent-Length: 9".into()),
            Line::Request("{\"n\":\n 1}".into()),
            Line::Reply("HTTP/1.1 100 Continue".into()),
            Line::Error("HTTP/1.1 404 Not Found\nTransfer-Encoding: chunked".into()),
            Line::Bytes { from: Upstream, text: "no t\\x1bhing!".into() },
        ]
    );
    assert_eq!(body_text("http", pieces.into_iter()).request, "{\"n\":\n 1}");
}

#[test]
fn coded_bodies_are_decoded_within_a_bound() {
    let text = "the quick brown fox ".repeat(5000);
    let answer = coded("gzip", &gzip(text.as_bytes()));
    let pieces = || [piece(Client, GET), piece(Upstream, &answer)].into_iter();
    let lines = render("http", &[], pieces());
    let shown: String = lines
        .iter()
        .filter_map(|line| if let Line::Reply(text) = line { Some(&text[..]) } else { None })
        .skip(1)
        .collect();
    assert_eq!(shown, text);
    let searched = body_text("http", pieces());
    assert_eq!((searched.request.as_str(), searched.response.as_str()), ("", &text[..BODY_TEXT_BYTES_MAX]));

    let bomb = coded("gzip", &gzip(&vec![b' '; 50_000_000]));
    let lines = render("http", &[], [piece(Client, GET), piece(Upstream, bomb)].into_iter());
    let shown: usize =
        lines.iter().map(|line| if let Line::Reply(text) = line { text.len() } else { 0 }).sum();
    assert!((4_000_000..4_400_000).contains(&shown), "{shown}");

    let strange = coded("x-unknown", b"whatever");
    let lines = render("http", &[], [piece(Client, GET), piece(Upstream, strange)].into_iter());
    let Some(Line::Bytes { text, .. }) = lines.last() else { panic!("{lines:?}") };
    assert_eq!(text, "[8 coded bytes are withheld or cannot be decoded]");
}

/// What is recorded of a coded body that holds a secret far behind its beginning.
#[test]
fn a_coded_body_is_shown_up_to_where_it_is_withheld() {
    let mut text = (0..9000).map(|n: u64| format!("{}, ", n * n * n % 78_889)).collect::<String>();
    text.push_str("password='pl4nted-s3cret' and more");
    let answer = coded("gzip", &gzip(text.as_bytes()));
    let mut play = Playbook::new();
    play.client(GET).server(&answer);
    let recorded = play.recorded(1, Upstream);
    assert!(recorded.chars().count() == answer.len() && recorded.ends_with("********"));
    let found = body_text("http", play.pieces(1).into_iter()).response;
    assert_eq!(found, text[..BODY_TEXT_BYTES_MAX]);
    let lines = render("http", &[], play.pieces(1).into_iter());
    let shown: String = lines
        .iter()
        .filter_map(|line| if let Line::Reply(text) = line { Some(&text[..]) } else { None })
        .skip(1)
        .collect();
    assert!(shown.len() > 30_000 && text.starts_with(&shown[..shown.len() - 20]), "{}", shown.len());
    assert!(matches!(lines.last(), Some(Line::Bytes { text, .. }) if text.contains("withheld")));
}

#[test]
fn what_does_not_read_is_bytes() {
    let pieces = [piece(Client, "nonsense"), piece(Upstream, "HTTP/1.1 200 OK\nX")];
    let lines = render("http", &[], pieces.into_iter());
    let bytes = |from, text: &str| Line::Bytes { from, text: text.into() };
    assert_eq!(lines, [bytes(Client, "nonsense"), bytes(Upstream, "HTTP/1.1 200 OK\\nX")]);
    let binary = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n";
    let binary = [binary.as_bytes(), b"\xff\xd8\xff\x00"].concat();
    let lines = render("http", &[], [piece(Client, GET), piece(Upstream, &binary)].into_iter());
    assert_eq!(lines.last(), Some(&bytes(Upstream, "\\xff\\xd8\\xff\\x00")));
    assert_eq!(body_text("http", [piece(Client, GET), piece(Upstream, &binary)].into_iter()).response, "");
}

proptest! {
    #[test]
    fn no_bytes_panic(pieces in prop::collection::vec((any::<bool>(), prop_oneof![
        prop::collection::vec(any::<u8>(), 0..60),
        Just(b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec()),
        Just(b"HTTP/1.1 200 OK\r\nContent-Encoding: zstd\r\n\r\n".to_vec()),
        Just(b"HTTP/1.1 200 OK\r\nContent-Encoding: deflate\r\n\r\n".to_vec()),
        Just(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n".to_vec()),
        Just(b"5\r\nhello\r\n".to_vec()),
    ]), 0..12)) {
        let pieces: Vec<_> = pieces.into_iter().map(|(side, bytes)| piece(if side { Client } else { Upstream }, bytes)).collect();
        render("http", &[], pieces.clone().into_iter());
        body_text("http", pieces.into_iter());
    }
}
