//! What is refused: answered in its turn, and never sent.

use super::playbook::Playbook;
use crate::note::Outcome;
use crate::seam::Cause;
use crate::seam::Side::{Client, Upstream};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\ntea";

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")
}

fn post(length: usize) -> String {
    format!("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n")
}

#[test]
fn a_denial_is_a_403_with_its_reason_and_the_connection_lives() {
    let mut play = Playbook::judged();
    play.client(get("/x")).deny(1);
    assert_eq!(
        play.take_client(),
        "HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 40\r\n\
         Cache-Control: no-store\r\n\r\ndenied by Weir rule \"closed\": not today\n"
    );
    play.reaches_server("").ended(1, Outcome::Denied, "403", "not today");
    assert_eq!(&*play.outcome(1).rule, "closed");
    play.client(get("/y")).allow(2).reaches_server(get("/y")).server(OK).reaches_client(OK);
    play.client("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").deny(3);
    assert!(play.take_client().ends_with("\r\n\r\n"));
}

#[test]
fn it_comes_when_its_turn_does() {
    let mut play = Playbook::judged();
    play.client(get("/1") + &get("/2") + &get("/3")).deny(2).allow(1).allow(3).reaches_client("");
    play.reaches_server(get("/1") + &get("/3"));
    play.server(OK.repeat(2));
    let told = play.take_client();
    let (first, rest) = told.split_at(OK.len());
    assert!(first == OK && rest.starts_with("HTTP/1.1 403 ") && rest.ends_with(OK), "{told}");
    assert_eq!(play.endings(), [(1, Outcome::Ok), (2, Outcome::Denied), (3, Outcome::Ok)]);
}

#[test]
fn its_body_is_swallowed_within_a_bound() {
    let mut play = Playbook::judged();
    play.client(post(6) + "abc").deny(1).answered(403, false);
    play.client(format!("def{}", get("/2"))).allow(2).reaches_server(get("/2"));
    assert!(!play.all_recorded().windows(3).any(|part| part == b"def"));
    let mut play = Playbook::judged();
    play.client(post(1_000_000) + "abc").deny(1).answered(403, true);
    assert_eq!(play.ends, [Client, Upstream]);
    play.client("more").client(get("/2")).reaches_server("").reaches_client("");
    assert_eq!(play.asked.len(), 1);
    play.wait();
    assert_eq!(play.aborted, Some(Cause::Finished));
}

#[test]
fn what_follows_a_refusal_that_closes_is_dropped() {
    let chunked = "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let mut play = Playbook::judged();
    play.client(chunked.to_owned() + &get("/2") + &get("/3")).deny(3).deny(1).answered(403, true);
    assert_eq!(play.withdrawn, [2]);
    assert_eq!(play.endings(), [(2, Outcome::Aborted), (3, Outcome::Denied), (1, Outcome::Denied)]);
}

#[test]
fn a_client_that_waits_for_100_gets_403_at_once() {
    let head = "PUT /x HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 3\r\n\r\n";
    let mut play = Playbook::judged();
    play.client(head).deny(1).answered(403, true).reaches_server("");
}

#[test]
fn a_denied_last_request_closes() {
    let mut play = Playbook::judged();
    play.client("GET / HTTP/1.0\r\n\r\n").deny(1).answered(403, true);
    play.end(Client);
    play.end(Upstream);
    assert!(!play.waits() || play.aborted.is_none());
}

#[test]
fn the_earlier_answer_still_comes_before_a_denial_that_closes() {
    let mut play = Playbook::judged();
    play.client(get("/1") + &post(1_000_000)).allow(1).deny(2).reaches_client("");
    play.server(OK);
    let told = play.take_client();
    assert!(told.starts_with(&format!("{OK}HTTP/1.1 403 ")) && told.contains("Connection: close"), "{told}");
    assert_eq!(play.ends, [Client, Upstream]);
}

#[test]
fn a_client_that_ends_is_still_told() {
    let mut play = Playbook::judged();
    play.client(get("/1")).end(Client).deny(1);
    assert!(play.take_client().starts_with("HTTP/1.1 403 "));
    assert_eq!(play.ends, [Upstream]);
    play.end(Upstream);
    assert_eq!(play.ends, [Upstream, Client]);
}
