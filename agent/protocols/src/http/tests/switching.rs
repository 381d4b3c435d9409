//! Upgrade and CONNECT: what is said after them is found out anew.

use super::playbook::Playbook;
use crate::kind::Kind;
use crate::note::Outcome;
use crate::operation::Opacity;
use crate::seam::Side::{Client, Upstream};

const UPGRADE: &str =
    "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n";
const CONNECT: &str = "CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\n";
const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\ntea";
const SWITCHING: &str =
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";

#[test]
fn after_101_both_sides_are_handed_over() {
    let mut play = Playbook::new();
    play.client(UPGRADE).client("\x01early").reaches_server(UPGRADE);
    assert!(!play.wants_read(Client));
    play.server(format!("{SWITCHING}\x02first")).reaches_client(SWITCHING);
    let (kind, [client, upstream]) = play.became.clone().unwrap();
    assert_eq!(
        (kind, &client[..], &upstream[..]),
        (Kind::Opaque(Opacity::WebSocket), &b"\x01early"[..], &b"\x02first"[..])
    );
    play.ended(1, Outcome::Ok, "101", "");
    assert_eq!(play.recorded(1, Upstream), SWITCHING);
}

#[test]
fn whatever_else_it_is_is_found_out() {
    let mut play = Playbook::new();
    play.client(UPGRADE.replace("websocket", "h2c")).server(SWITCHING.replace("websocket", "h2c"));
    assert_eq!(play.became.as_ref().unwrap().0, Kind::Detect);
}

#[test]
fn a_tunnel_is_handed_over() {
    let established = "HTTP/1.1 200 Connection established\r\nContent-Length: 5\r\n\r\n";
    let mut play = Playbook::judged();
    play.client(CONNECT);
    assert_eq!((&play.asked[0].1.host[..], play.asked[0].1.port), (&b"db"[..], Some(5432)));
    play.allow(1).server(established).reaches_client(established);
    assert_eq!(play.became.as_ref().unwrap().0, Kind::Detect);
    assert_eq!(play.outcome(1).operation.text.to_text(), "db:5432");
}

#[test]
fn when_it_does_not_come_about_http_goes_on() {
    for (request, refusal) in [(UPGRADE, OK), (CONNECT, "HTTP/1.1 502 Bad\r\nContent-Length: 1\r\n\r\nx")] {
        let mut play = Playbook::new();
        play.client(format!("{request}{GET}")).reaches_server(request);
        play.server(refusal).reaches_client(refusal).reaches_server(GET).server(OK).reaches_client(OK);
        assert!(play.became.is_none());
        assert_eq!(play.endings().len(), 2);
        let mut play = Playbook::judged();
        play.client(format!("{request}{GET}")).deny(1).answered(403, false);
        play.allow(2).reaches_server(GET);
    }
}

#[test]
fn a_switch_is_only_made_when_asked_for() {
    let mut play = Playbook::new();
    play.client(GET).server(SWITCHING).answered(502, true);
    // Not by Upgrade alone, which is no option of the connection.
    let mut play = Playbook::new();
    play.client("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\n\r\n").server(SWITCHING).answered(502, true);
}

#[test]
fn the_client_leaves_while_nobody_knows() {
    let mut play = Playbook::new();
    play.client(UPGRADE).end(Client);
    assert_eq!(play.ends, [Upstream]);
    play.end(Upstream).ended(1, Outcome::Aborted, "", "");
}
