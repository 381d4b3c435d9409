//! Every bound, and what happens there.

use super::playbook::Playbook;
use crate::http::{
    CHUNK_LINE_BYTES_MAX, HEAD_BYTES_MAX, HEADERS_MAX, HELD_BYTES_MAX, PIPELINED_MAX, TRAILER_BYTES_MAX,
};
use crate::note::Outcome;
use crate::seam::Cause;
use crate::seam::Side::{Client, Upstream};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\ntea";

fn with(fields: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")
}

#[test]
fn a_head_without_end() {
    for cut in [HEAD_BYTES_MAX * 2, 1000] {
        let mut play = Playbook::new();
        play.client_in_parts(&format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(HEAD_BYTES_MAX)), cut);
        play.answered(431, true).reaches_server("").ended(1, Outcome::Denied, "431", "the head is too long");
        let mut play = Playbook::new();
        play.client(GET).server_in_parts(&format!("HTTP/1.1 200 OK\r\n{}", "X: y\r\n".repeat(20_000)), cut);
        play.answered(502, true).ended(1, Outcome::Error, "502", "the head is too long");
    }
    let fits = with(&format!("X: {}\r\n", "x".repeat(HEAD_BYTES_MAX - with("X: \r\n").len())));
    assert_eq!(fits.len(), HEAD_BYTES_MAX);
    Playbook::new().client(&fits).reaches_server(&fits);
    Playbook::new().client(fits.replace("X: ", "XX: ")).reaches_server("").answered(431, true);
    // Empty lines are no way around it.
    Playbook::new().client("\r\n".repeat(HEAD_BYTES_MAX)).reaches_server("").answered(431, true);
}

#[test]
fn many_fields() {
    Playbook::new().client(with(&"X: y\r\n".repeat(10_000))).reaches_server("").answered(431, true);
    Playbook::new().client(with(&"X: y\r\n".repeat(HEADERS_MAX))).reaches_server("").answered(431, true);
    let fits = with(&"X: y\r\n".repeat(HEADERS_MAX - 1));
    Playbook::new().client(&fits).reaches_server(&fits);
}

#[test]
fn long_lines_of_chunks_and_long_trailers() {
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let long = format!("{head}3;x={}\r\nabc\r\n", "x".repeat(CHUNK_LINE_BYTES_MAX));
    Playbook::new().client(head).client(&long[head.len()..]).reaches_server(head).answered(400, true);
    let fits = format!("{head}3;x={}\r\nabc\r\n", "x".repeat(CHUNK_LINE_BYTES_MAX - 6));
    Playbook::new().client(&fits).reaches_server(&fits);
    let trailers = format!("{head}0\r\nX: {}", "x".repeat(TRAILER_BYTES_MAX));
    Playbook::new()
        .client(head)
        .client("0\r\n")
        .client(&trailers[head.len() + 3..])
        .reaches_server(format!("{head}0\r\n"))
        .answered(431, true);
}

#[test]
fn slow_loris_on_both_sides() {
    let mut play = Playbook::new();
    play.client(GET).client("GET / HT");
    assert!(play.waits());
    play.server(OK).reaches_client(OK).client("TP/1.1\r\n").wait().answered(408, true);
    play.ended(2, Outcome::Denied, "408", "the head took too long").wait();
    assert_eq!(play.aborted, Some(Cause::Finished));
    let mut play = Playbook::new();
    play.client(GET).server("HTTP/1.1 2").wait().answered(502, true);
    play.ended(1, Outcome::Error, "502", "the head took too long");
    // A body may take as long as it likes.
    let mut play = Playbook::new();
    play.client("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\na");
    assert!(!play.waits());
    play.server("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\na");
    assert!(!play.waits());
}

/// Some clients send one line end too many behind a body. That is no head that has begun.
#[test]
fn blank_lines_between_requests_have_no_deadline() {
    let post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
    for (blank, begun) in [("\r", "\nG"), ("\r\n", "G"), ("\r\n\r\n\r", "\nG")] {
        let mut play = Playbook::new();
        play.client(post).server(OK).client(blank);
        assert!(!play.waits() && play.wants_read(Client), "{blank:?}");
        play.client(begun);
        assert!(play.waits(), "{blank:?}");
        play.client(&GET[1..]);
        assert!(!play.waits(), "{blank:?}");
        play.server(OK).ended(2, Outcome::Ok, "200", "");
    }
}

#[test]
fn a_late_head_waits_for_its_turn() {
    let mut play = Playbook::new();
    play.client(GET).client("GET / HT").wait().reaches_client("").server(OK);
    let told = play.take_client();
    assert!(told.starts_with(&format!("{OK}HTTP/1.1 408 ")), "{told}");
}

/// While the other side takes its time with what came before, nobody is late.
#[test]
fn half_a_head_behind_a_body_is_not_late_yet() {
    let mut play = Playbook::new();
    play.client(GET.repeat(2)).server(format!("{OK}HTTP/1.1 2"));
    assert!(!play.waits());
    play.server("0");
    assert!(play.waits());
}

#[test]
fn pipelined_requests_wait_unread() {
    let mut play = Playbook::new();
    play.client(GET.repeat(PIPELINED_MAX + 20));
    assert_eq!((play.asked.len(), play.wants_read(Client)), (PIPELINED_MAX, false));
    play.server(OK.repeat(30));
    assert_eq!((play.asked.len(), play.wants_read(Client)), (PIPELINED_MAX + 20, true));
    play.server(OK.repeat(PIPELINED_MAX - 10)).reaches_server(GET.repeat(PIPELINED_MAX + 20));
    assert_eq!(play.endings().len(), PIPELINED_MAX + 20);
}

/// What waits is not copied with each answer that makes room for one more request.
#[test]
fn a_full_pipeline_is_drained_in_linear_work() {
    let work = |requests: usize| {
        let mut play = Playbook::new();
        crate::reader::work::taken();
        play.client(GET.repeat(requests));
        for _ in 0..requests {
            play.server(OK);
        }
        assert_eq!((play.endings().len(), play.held_bytes()), (requests, 0));
        crate::reader::work::taken()
    };
    let (once, twice) = (work(2000), work(4000));
    assert!(twice <= once * 2 + once / 4, "{once} for a half, {twice} for the whole");
}

#[test]
fn a_body_that_waits_for_its_verdict_is_not_read_further() {
    let mut play = Playbook::judged();
    let put = "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n";
    play.client(put);
    let mut sent = 0;
    while play.wants_read(Client) {
        sent += 10_000;
        play.client([b'x'; 10_000]);
    }
    assert!((HELD_BYTES_MAX..HELD_BYTES_MAX + 10_000).contains(&(sent + put.len())), "{sent}");
    play.allow(1);
    assert!(play.wants_read(Client));
    assert_eq!(play.take_server().len(), sent + put.len());
}

/// Bodies without end pass, and nothing of them stays here.
#[test]
fn endless_bodies_are_streamed() {
    let mut play = Playbook::new();
    play.client("PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    play.server("HTTP/1.1 200 OK\r\n\r\n");
    play.take_server();
    play.take_client();
    for _ in 0..200 {
        play.client(format!("4000\r\n{}\r\n", "y".repeat(0x4000))).server("z".repeat(0x4000));
        assert_eq!((play.take_server().len(), play.take_client().len()), (0x4000 + 8, 0x4000));
        assert!(play.held_bytes() < 200, "{}", play.held_bytes());
    }
    assert_eq!(
        (play.recorded(1, Client).len(), play.recorded(1, Upstream).len()),
        (200 * (0x4000 + 8) + 55, 200 * 0x4000 + 19)
    );
    play.end(Upstream);
}

/// A secret that may still begin, in chunks of one byte whose lines are as long as they may be.
#[test]
fn what_masking_holds_back_is_bounded() {
    let mut play = Playbook::new();
    play.client(GET).server("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    let line = format!("1;{}\r\n", "x".repeat(CHUNK_LINE_BYTES_MAX - 5));
    let (mut wire, mut held_max) = (0, 0);
    for byte in "scheme://user:".bytes().chain(std::iter::repeat_n(b'p', 1000)) {
        let chunk = [line.as_bytes(), &[byte], b"\r\n"].concat();
        wire += chunk.len();
        play.server(chunk);
        held_max = held_max.max(wire + 47 - play.recorded_bytes());
    }
    assert!(held_max > 10_000 && held_max <= 64 * 1024 + 300, "{held_max}");
    assert!(!play.recorded(1, Upstream).contains("\r\np\r\n"));
}
