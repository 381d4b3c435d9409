//! Where messages end, in both directions.

use super::playbook::Playbook;
use crate::note::Outcome;
use crate::seam::Cause;
use crate::seam::Side::{Client, Upstream};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\ntea";

fn put(length: usize) -> String {
    format!("PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n")
}

#[test]
fn a_body_streams_while_it_comes() {
    let mut play = Playbook::new();
    play.client(put(6)).reaches_server(put(6)).client("abc").reaches_server("abc");
    play.client(format!("def{GET}")).reaches_server(format!("def{GET}"));
    assert_eq!(play.recorded(1, Client), put(6) + "abcdef");
    play.server(&OK[..OK.len() - 1]).reaches_client(&OK[..OK.len() - 1]);
    play.server("a").reaches_client("a").ended(1, Outcome::Ok, "200", "");
}

#[test]
fn answers_without_bodies_end_with_their_heads() {
    for (request, answer) in [
        ("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"),
        ("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (GET, "HTTP/1.1 204 No Content\r\n\r\n"),
        (GET, "HTTP/1.1 304 Not Modified\r\nContent-Length: 100\r\n\r\n"),
        (GET, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        (GET, "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n"),
    ] {
        let mut play = Playbook::new();
        play.client(request).client(GET).server(answer).reaches_client(answer);
        play.server(OK).reaches_client(OK).ended(2, Outcome::Ok, "200", "");
    }
}

#[test]
fn interim_answers_are_passed_on_and_the_final_one_counts() {
    let mut play = Playbook::new();
    let interim = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    play.client(GET).server(interim).reaches_client(interim).server(interim.repeat(2) + OK);
    play.reaches_client(interim.repeat(2) + OK).ended(1, Outcome::Ok, "200", "");
    assert_eq!(play.recorded(1, Upstream), interim.repeat(3) + OK);
}

#[test]
fn expect_continue_is_between_client_and_server() {
    let head = "PUT /x HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n";
    let go_on = "HTTP/1.1 100 Continue\r\n\r\n";
    let mut play = Playbook::new();
    play.client(head).reaches_server(head).server(go_on).reaches_client(go_on);
    play.client("abc").reaches_server("abc").server(OK).ended(1, Outcome::Ok, "200", "");
    // One that does not wait.
    let mut play = Playbook::new();
    play.client(format!("{head}abc")).reaches_server(format!("{head}abc"));
    play.server(format!("{go_on}{OK}")).reaches_client(format!("{go_on}{OK}"));
    play.ended(1, Outcome::Ok, "200", "");
}

#[test]
fn an_early_answer_lets_the_request_go_on() {
    let mut play = Playbook::new();
    play.client(put(6) + "abc").server("HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n");
    play.take_client();
    assert!(play.endings().is_empty());
    play.take_server();
    play.client("def").reaches_server("def").ended(1, Outcome::Error, "413", "413 Too Large");
    play.client(GET).server(OK).ended(2, Outcome::Ok, "200", "");
    let mut play = Playbook::new();
    play.client(put(6) + "abc").server("HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n").end(Upstream);
    play.ended(1, Outcome::Error, "413", "413 Too Large");
    assert_eq!(play.ends, [Client]);
}

#[test]
fn an_answer_up_to_the_end_of_the_connection() {
    let mut play = Playbook::new();
    play.client(GET).server("HTTP/1.1 200 OK\r\n\r\nabc").server("def");
    assert!(play.endings().is_empty());
    play.end(Upstream).reaches_client("HTTP/1.1 200 OK\r\n\r\nabcdef").ended(1, Outcome::Ok, "200", "");
    assert_eq!(play.ends, [Client]);
}

#[test]
fn chunks_and_trailers() {
    let body = "5\r\nhello\r\nA;x=\"y\"\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\n";
    let answer = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n{body}");
    let mut play = Playbook::new();
    play.client(GET.repeat(2)).server(answer.clone() + OK).reaches_client(answer.clone() + OK);
    assert_eq!(play.recorded(1, Upstream), answer);
    play.ended(1, Outcome::Ok, "200", "").ended(2, Outcome::Ok, "200", "");
}

#[test]
fn a_server_that_leaves_in_the_middle_cuts_the_answer() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n",
    ] {
        let mut play = Playbook::new();
        play.client(GET).server(answer).end(Upstream).ended(1, Outcome::Aborted, "200", "");
        assert_eq!((play.gaps.as_slice(), play.ends.as_slice()), (&["truncated-message"][..], &[Client][..]));
        assert!(answer.starts_with(&play.take_client()) && answer.starts_with(&play.recorded(1, Upstream)));
    }
}

#[test]
fn a_request_that_breaks_off_is_sent_as_far_as_it_came() {
    let mut play = Playbook::new();
    play.client(put(6) + "abc").end(Client).reaches_server(put(6) + "abc");
    assert_eq!(play.ends, [Upstream]);
    play.end(Upstream).ended(1, Outcome::Aborted, "", "");
}

#[test]
fn what_nobody_asked_for_is_not_passed_on() {
    for before in ["", GET] {
        let mut play = Playbook::judged();
        if !before.is_empty() {
            play.client(before);
        }
        play.server(OK).reaches_client("");
        assert_eq!(play.aborted, Some(Cause::Limit(Upstream, "unsolicited-response")));
        assert_eq!(play.gaps, ["unsolicited-response"]);
    }
    let mut play = Playbook::new();
    play.client(GET).server(OK.repeat(2)).reaches_client(OK);
    assert_eq!(play.aborted, Some(Cause::Limit(Upstream, "unsolicited-response")));
}
