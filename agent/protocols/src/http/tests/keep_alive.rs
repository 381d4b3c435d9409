//! Requests and answers in their order: keep-alive, pipelining, endings.

use super::playbook::Playbook;
use crate::note::Outcome;
use crate::seam::Cause;
use crate::seam::Side::{Client, Upstream};

const GET: &str = "GET /a?b=c HTTP/1.1\r\nHost: shop:81\r\nUser-Agent: curl/8\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nServer: nginx\r\nContent-Length: 3\r\n\r\ntea";

#[test]
fn one_exchange_is_asked_noted_and_passed_on_as_it_came() {
    let mut play = Playbook::judged();
    play.client(GET).reaches_server("");
    let (id, http) = play.asked[0].clone();
    assert_eq!((id, &http.method[..], &http.host[..], http.port), (1, &b"GET"[..], &b"shop"[..], Some(81)));
    assert_eq!((&http.path[..], http.query.as_deref()), (&b"/a"[..], Some(&b"b=c"[..])));
    play.allow(1).reaches_server(GET).server(OK).reaches_client(OK);
    play.ended(1, Outcome::Ok, "200", "");
    let finished = play.outcome(1);
    assert_eq!((finished.operation.kind, finished.operation.verb), ("http", "GET"));
    assert_eq!(finished.operation.text.to_text(), "http://shop:81/a?b=c");
    assert_eq!((finished.request_bytes, finished.response_bytes), (GET.len() as u64, OK.len() as u64));
    assert!(finished.first_reply_at.is_some());
    assert_eq!(&*finished.rule, "open");
    assert_eq!((play.recorded(1, Client), play.recorded(1, Upstream)), (GET.into(), OK.into()));
    let facts: Vec<_> = play.facts.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(facts[..4], ["version=1.1", "host=shop:81", "user_agent=curl/8", "coverage=Inspected"]);
    assert!(facts.contains(&"server=nginx".to_owned()));
}

#[test]
fn a_read_is_one_note_and_one_send() {
    let mut play = Playbook::new();
    play.client(GET).server(OK);
    // Facts of both sides, asked, two of data, finished.
    assert_eq!((play.notes, play.sends), (6, 1));
    play.client(GET.repeat(3)).server(OK.repeat(3));
    assert_eq!((play.notes, play.sends), (6 + 3 * 4, 2));
}

#[test]
fn answers_come_in_the_order_of_requests_whatever_the_order_of_verdicts() {
    let mut play = Playbook::judged();
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
    play.client(get("/1") + &get("/2") + &get("/3"));
    assert_eq!(play.asked.len(), 3);
    play.allow(3).allow(2).reaches_server("");
    play.allow(1).reaches_server(get("/1") + &get("/2") + &get("/3"));
    play.server("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").server(OK.repeat(2));
    play.ended(1, Outcome::Error, "404", "404 Not Found").ended(2, Outcome::Ok, "200", "");
    assert_eq!(play.endings().len(), 3);
}

#[test]
fn an_empty_line_before_a_request_is_passed_on_with_it() {
    let mut play = Playbook::new();
    play.client("\r\n").reaches_server("").client(GET).reaches_server(format!("\r\n{GET}"));
}

#[test]
fn heads_and_bodies_cut_anywhere_are_the_same() {
    let request =
        "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nX: y\r\n\r\n";
    for cut in 1..request.len() {
        let mut play = Playbook::new();
        play.client(&request[..cut]).client(&request[cut..]).reaches_server(request);
        assert_eq!(play.recorded(1, Client), request);
        play.server(&OK[..cut % OK.len()]).server(&OK[cut % OK.len()..]).reaches_client(OK);
        play.ended(1, Outcome::Ok, "200", "");
    }
}

#[test]
fn the_client_ends_and_still_gets_its_answer() {
    let mut play = Playbook::judged();
    play.client(GET).end(Client);
    assert!(play.ends.is_empty());
    play.allow(1).reaches_server(GET);
    assert_eq!(play.ends, [Upstream]);
    play.server(OK).reaches_client(OK).end(Upstream);
    assert_eq!(play.ends, [Upstream, Client]);
    play.ended(1, Outcome::Ok, "200", "");
}

#[test]
fn half_a_request_at_the_end_is_a_gap() {
    let mut play = Playbook::new();
    play.client(GET).client("GET /b HT").end(Client).server(OK);
    assert_eq!((play.gaps.as_slice(), play.ends.as_slice()), (&["truncated-message"][..], &[Upstream][..]));
    assert_eq!(play.endings(), [(1, Outcome::Ok)]);
}

#[test]
fn a_blank_line_at_the_end_is_none() {
    for blank in ["\r", "\r\n", "\r\n\r\n"] {
        let mut play = Playbook::new();
        play.client(GET).server(OK).client(blank).end(Client);
        assert_eq!((play.gaps.as_slice(), play.ends.as_slice()), (&[][..], &[Upstream][..]), "{blank:?}");
    }
    let mut play = Playbook::new();
    play.client(GET).server(OK).client("\r\nG").end(Client);
    assert_eq!(play.gaps, ["truncated-message"]);
}

#[test]
fn the_server_ends_between_exchanges_or_without_an_answer() {
    let mut play = Playbook::new();
    play.client(GET).server(OK).end(Upstream);
    assert_eq!(play.ends, [Client]);
    play.end(Client);
    assert_eq!(play.ends, [Client, Upstream]);
    let mut play = Playbook::new();
    play.client(GET.repeat(2)).end(Upstream);
    assert_eq!(play.endings(), [(1, Outcome::Aborted), (2, Outcome::Aborted)]);
    assert_eq!(play.ends, [Client]);
    play.client(GET).client(GET).end(Client);
    assert_eq!(play.gaps, ["sent-after-the-end"]);
}

#[test]
fn resets_end_everything() {
    let mut play = Playbook::judged();
    play.client(GET.repeat(2)).allow(1).reset(Client);
    assert_eq!(play.endings(), [(1, Outcome::Aborted), (2, Outcome::Withdrawn)]);
    assert_eq!((play.withdrawn.as_slice(), play.aborted), (&[2][..], Some(Cause::Reset(Client))));
    let mut play = Playbook::judged();
    play.client(GET.repeat(2)).allow(1).server(&OK[..OK.len() - 1]).reset(Upstream);
    play.reaches_client(&OK[..OK.len() - 1]);
    assert_eq!(play.endings(), [(1, Outcome::Aborted), (2, Outcome::Aborted)]);
    assert_eq!(play.aborted, Some(Cause::Reset(Upstream)));
}

#[test]
fn after_a_last_request_nothing_is_read() {
    for last in [
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: x, Close\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        "GET / HTTP/1.0\r\nConnection: upgrade\r\n\r\n",
    ] {
        let mut play = Playbook::new();
        play.client(format!("{last}{GET}")).reaches_server(last);
        play.server("HTTP/1.1 200 OK\r\n\r\nall of it").end(Upstream);
        play.ended(1, Outcome::Ok, "200", "");
        assert_eq!((play.endings().len(), play.ends.as_slice()), (1, &[Client][..]));
    }
    let mut play = Playbook::new();
    let first = "GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n";
    play.client(format!("{first}{GET}")).reaches_server(format!("{first}{GET}"));
}

#[test]
fn idle_connections_wait_for_nothing() {
    let mut play = Playbook::new();
    assert!(!play.waits());
    play.client(GET).server(OK);
    assert!(!play.waits() && play.wants_read(Client) && play.wants_read(Upstream));
}
