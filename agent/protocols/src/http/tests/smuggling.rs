//! Every published way to make two readers of one connection disagree, and what comes of it here.

use proptest::prelude::*;

use super::playbook::Playbook;
use crate::note::Outcome;
use crate::seam::Cause;
use crate::seam::Side::{Client, Upstream};

/// Name, lines of a head behind `POST / HTTP/1.1` and `Host: a`, status.
const HEADS: &[(&str, &str, u16)] = &[
    ("CL.TE and TE.CL", "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", 400),
    ("TE.CL, the other way round", "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", 400),
    ("TE.TE, one of them unknown", "Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n", 400),
    ("TE.TE, twice the same", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 400),
    ("chunked is not the last", "Transfer-Encoding: chunked, identity\r\n", 400),
    ("chunked is not alone", "Transfer-Encoding: gzip, chunked\r\n", 400),
    ("a coding that looks like chunked", "Transfer-Encoding: xchunked\r\n", 400),
    ("a coding in quotes", "Transfer-Encoding: \"chunked\"\r\n", 400),
    ("a coding with a vertical tab", "Transfer-Encoding: \x0bchunked\r\n", 400),
    ("no coding at all", "Transfer-Encoding:\r\n", 400),
    ("space before the colon", "Transfer-Encoding : chunked\r\n", 400),
    ("tab before the colon", "Content-Length\t: 4\r\n", 400),
    ("a folded line", "Transfer-Encoding:\r\n chunked\r\n", 400),
    ("a folded name", "X: y\r\n\tTransfer-Encoding: chunked\r\n", 400),
    ("a bare line feed", "X: y\nTransfer-Encoding: chunked\r\n", 400),
    ("a bare carriage return", "X: y\rTransfer-Encoding: chunked\r\n", 400),
    ("NUL in a value", "X: y\0z\r\n", 400),
    ("NUL in a name", "X\0: y\r\n", 400),
    ("a control in a value", "X: \x01\r\n", 400),
    ("a line without a colon", "Transfer-Encoding\r\n", 400),
    ("no name", ": y\r\n", 400),
    ("CL.CL, different", "Content-Length: 4\r\nContent-Length: 5\r\n", 400),
    ("CL.CL, the same", "Content-Length: 4\r\nContent-Length: 4\r\n", 400),
    ("a list of lengths", "Content-Length: 4, 5\r\n", 400),
    ("a list of the same length", "Content-Length: 4, 4\r\n", 400),
    ("a length with a sign", "Content-Length: +4\r\n", 400),
    ("a negative length", "Content-Length: -4\r\n", 400),
    ("a length in hex", "Content-Length: 0x4\r\n", 400),
    ("a length with a blank", "Content-Length: 4 2\r\n", 400),
    ("no length", "Content-Length:\r\n", 400),
    ("a length beyond 63 bits", "Content-Length: 9223372036854775808\r\n", 400),
    ("a length of many digits", "Content-Length: 00000000000000000004\r\n", 400),
    ("two hosts", "Host: b\r\n", 400),
    ("an expectation that hides one", "Expect: y 100-continue\r\n", 417),
];

#[test]
fn heads_that_two_readers_could_read_in_two_ways() {
    for (name, lines, status) in HEADS {
        let request =
            format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n");
        for cut in [request.len(), 1] {
            let mut play = Playbook::new();
            play.client_in_parts(&request, cut);
            play.reaches_server("").answered(*status, true);
            assert!(play.asked.is_empty(), "{name}: policy was asked");
            assert_eq!(play.endings(), [(1, Outcome::Denied)], "{name}");
            assert!(!play.outcome(1).error.is_empty(), "{name}: no reason");
            assert_eq!(play.outcome(1).operation.text.to_text(), "POST / HTTP/1.1", "{name}");
        }
    }
}

#[test]
fn request_lines_that_are_none() {
    for (line, status) in [
        ("GET  / HTTP/1.1", 400),
        ("GET /", 400),
        ("GET / HTTP/1.1 ", 400),
        ("GET /\t HTTP/1.1", 400),
        ("GET /a b HTTP/1.1", 400),
        ("G\x01T / HTTP/1.1", 400),
        (" GET / HTTP/1.1", 400),
        ("GET / HTTP/2.0", 505),
        ("GET / http/1.1", 400),
        ("GET / HTTP/1.10", 400),
        ("GET http://b/ HTTP/1.1", 400),
        ("GET http://evil.example\\@a/ HTTP/1.1", 400),
        ("GET http://u:p@a/ HTTP/1.1", 400),
        ("GET http://@a/ HTTP/1.1", 400),
        ("GET b HTTP/1.1", 400),
        ("CONNECT / HTTP/1.1", 400),
    ] {
        let mut play = Playbook::new();
        play.client(format!("{line}\r\nHost: a\r\n\r\n")).reaches_server("").answered(status, true);
        assert!(play.asked.is_empty(), "{line}");
    }
    for no_host in ["GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n"] {
        Playbook::new().client(no_host).reaches_server("").answered(400, true);
    }
    let coded = "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    Playbook::new().client(coded).reaches_server("").answered(400, true);
    let connect = "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nContent-Length: 3\r\n\r\nabc";
    Playbook::new().client(connect).reaches_server("").answered(400, true);
}

/// Bodies behind `Transfer-Encoding: chunked`, and what of them is sound.
const CHUNKS: &[(&str, &str, &str)] = &[
    ("no size", "\r\nabc", ""),
    ("no number", "z\r\nabc", ""),
    ("a size with a prefix", "0x3\r\nabc", ""),
    ("a size with a sign", "+3\r\nabc", ""),
    ("a size of 17 digits", "00000000000000003\r\nabc", ""),
    ("a size that overflows", "10000000000000003\r\nabc", ""),
    ("a size beyond 63 bits", "8000000000000000\r\nabc", ""),
    ("a size with a blank behind it", "3 \r\nabc", ""),
    ("a carriage return before an extension", "3\r;x\r\nabc", ""),
    ("a form feed before an extension", "3\x0c;x\r\nabc", ""),
    ("a bare line feed behind the size", "3\nabc", ""),
    ("a bare line feed in an extension", "3;x\nabc\r\n0\r\n\r\n", ""),
    ("a bare carriage return in an extension", "3;a\rb\r\nabc", ""),
    ("a chunk longer than its size", "3\r\nabcd\r\n0\r\n\r\n", "3\r\nabc"),
    ("a bare line feed behind a chunk", "3\r\nabc\n0\r\n\r\n", "3\r\nabc"),
    ("something else than a line end behind a chunk", "3\r\nabcxx0\r\n\r\n", "3\r\nabc"),
    ("a bare line feed in the trailers", "0\r\nX: y\n\r\n", "0\r\n"),
    ("a trailer that frames", "0\r\nContent-Length: 5\r\n\r\n", "0\r\n"),
    ("a trailer that is none", "0\r\nX y\r\n\r\n", "0\r\n"),
    ("a folded trailer", "0\r\nX: y\r\n z\r\n\r\n", "0\r\n"),
];

#[test]
fn chunks_that_two_readers_could_read_in_two_ways() {
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (name, body, sound) in CHUNKS {
        let request = format!("{head}{body}");
        for cut in [request.len(), 1] {
            let mut play = Playbook::new();
            play.client_in_parts(&request, cut);
            let sent = play.take_server();
            assert!(
                format!("{head}{sound}").as_bytes().starts_with(&sent),
                "{name}: {}",
                sent.escape_ascii()
            );
            play.answered(400, true);
            assert_eq!(play.endings(), [(1, Outcome::Denied)], "{name}");
            assert!(!play.outcome(1).error.is_empty(), "{name}: no reason");
            assert_eq!(play.ends, [Client, Upstream], "{name}");
        }
    }
}

#[test]
fn a_refused_request_is_answered_in_its_turn() {
    let mut play = Playbook::new();
    play.client("GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\n\r\n").reaches_client("");
    let ok = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    play.server(ok);
    assert!(play.take_client().starts_with(&format!("{ok}HTTP/1.1 400 ")));
    assert_eq!(play.endings(), [(1, Outcome::Ok), (2, Outcome::Denied)]);
}

/// Of answers the same is refused; the client gets a 502 as long as it has nothing of the answer.
#[test]
fn answers_that_two_readers_could_read_in_two_ways() {
    let request_only = |name: &str| {
        ["two hosts", "an expectation", "CL.CL, the same", "a list of the same"]
            .iter()
            .any(|start| name.starts_with(start))
    };
    for (name, lines, _) in HEADS.iter().filter(|(name, ..)| !request_only(name)) {
        let answer = format!("HTTP/1.1 200 OK\r\n{lines}\r\n0\r\n\r\n");
        for cut in [answer.len(), 1] {
            let mut play = Playbook::new();
            play.client("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
            play.server_in_parts(&answer, cut);
            play.answered(502, true);
            assert_eq!(play.endings(), [(1, Outcome::Error)], "{name}");
        }
    }
    for answer in
        ["HTTP/1.1 20 OK\r\n\r\n", "HTTP/1.1 700 OK\r\n\r\n", "ICY 200 OK\r\n\r\n", "HTTP/2 200\r\n\r\n"]
    {
        Playbook::new().client("GET / HTTP/1.1\r\nHost: a\r\n\r\n").server(answer).answered(502, true);
    }
}

#[test]
fn a_server_may_repeat_itself() {
    for lines in ["Content-Length: 3\r\nContent-Length: 3\r\n", "Content-Length: 3, 3\r\n"] {
        let answer = format!("HTTP/1.1 200 OK\r\n{lines}\r\ntea");
        Playbook::new().client("GET / HTTP/1.1\r\nHost: a\r\n\r\n").server(&answer).reaches_client(&answer);
    }
}

#[test]
fn a_verdict_on_its_way_to_a_request_that_broke_is_too_late() {
    let mut play = Playbook::judged();
    play.client("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nz\r\n").answered(400, true);
    assert_eq!(play.withdrawn, [1]);
    let mut play = Playbook::judged();
    play.client("GET / HTTP/1.1\r\nHost: a\r\n\r\nPOST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nz\r\n");
    play.allow(2).allow(1).reaches_server("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
}

#[test]
fn an_answer_that_breaks_in_the_middle_ends_the_connection() {
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (name, body, sound) in CHUNKS {
        let answer = format!("{head}{body}");
        for cut in [answer.len(), 1] {
            let mut play = Playbook::new();
            play.client("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
            play.server_in_parts(&answer, cut);
            assert!(format!("{head}{sound}").starts_with(&play.take_client()), "{name}");
            assert_eq!(play.aborted, Some(Cause::Limit(Upstream, "malformed-response")), "{name}");
            assert_eq!(play.outcome(1).outcome, Outcome::Aborted);
            assert!(!play.outcome(1).error.is_empty(), "{name}");
        }
    }
}

#[test]
fn a_request_that_breaks_while_it_is_answered_ends_the_connection() {
    let mut play = Playbook::new();
    play.client("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
    play.server("HTTP/1.1 200 OK\r\n\r\nbegun").client("z\r\n");
    assert_eq!(play.aborted, Some(Cause::Limit(Client, "malformed-request")));
    assert_eq!(play.endings(), [(1, Outcome::Denied)]);
    // The answer is whole already.
    let mut play = Playbook::new();
    play.client("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
    play.server("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").client("z\r\n");
    assert_eq!(play.aborted, Some(Cause::Limit(Client, "malformed-request")));
    play.ended(1, Outcome::Denied, "200", "a chunk's size is no number, or beyond all measure");
}

#[test]
fn secrets_of_what_is_refused_stay_out() {
    for lines in ["Authorization : Basic c2VjcmV0OnNlY3JldA==\r\n", "Cookie:\r\n id=c2VjcmV0OnNlY3JldA==\r\n"]
    {
        let mut play = Playbook::new();
        play.client(format!("GET /?token=c2VjcmV0OnNlY3JldA HTTP/1.1\r\nHost: a\r\n{lines}\r\n"));
        let recorded = play.all_recorded();
        assert!(!recorded.windows(8).any(|part| part == b"c2VjcmV0"), "{}", recorded.escape_ascii());
    }
}

proptest! {
    /// Whatever stands in a head, either nothing leaves or all of it does; and cuts do not matter.
    #[test]
    fn all_or_nothing(lines in proptest::collection::vec(
        prop_oneof![
            Just("Transfer-Encoding: chunked\r\n".to_owned()),
            Just("Content-Length: 0\r\n".to_owned()),
            "(?s-u:[\\x00-\\x7f]{0,12})",
            "[a-zA-Z-]{1,10}: [ -~]{0,10}\r\n",
        ], 0..5), cut in 1_usize..40) {
        let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", lines.concat());
        let run = |cut: usize| {
            let mut play = Playbook::new();
            play.client_in_parts(&head, cut);
            (play.take_server(), play.endings().len(), play.asked.len())
        };
        let whole = run(head.len());
        prop_assert!(whole.0.is_empty() || head.as_bytes().starts_with(&whole.0));
        prop_assert_eq!(whole, run(cut));
    }
}
