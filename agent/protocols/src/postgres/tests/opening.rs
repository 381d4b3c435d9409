//! Startup, encryption, authentication, cancel.

use bytes::Bytes;

use super::playbook::Playbook;
use super::wire::*;
use crate::detect::Recognition;
use crate::kind::Kind;
use crate::note::Outcome;
use crate::operation::Opacity;
use crate::postgres::recognize;
use crate::seam::{Cause, Side};

fn bytes(text: &'static [u8]) -> Bytes {
    Bytes::from_static(text)
}

fn has(play: &Playbook, name: &str, value: &str) -> bool {
    play.facts.iter().any(|(n, v)| n == name && v == value)
}

#[test]
fn a_startup_tells_who_and_where() {
    let mut play = Playbook::new();
    let first = startup(&[("user", "ada"), ("database", "shop"), ("application_name", "psql")]);
    play.client(std::slice::from_ref(&first)).reaches_server(&[first]);
    play.server(&[welcome()]).reaches_client(&[welcome()]);
    for (name, value) in [
        ("user", "ada"),
        ("database", "shop"),
        ("application_name", "psql"),
        ("server_version", "15.8"),
        ("version", "3.0"),
    ] {
        assert!(has(&play, name, value), "{name}: {:?}", play.facts);
    }
    assert!(has(&play, "coverage", "Inspected"));
}

#[test]
fn an_older_server_negotiates() {
    let mut play = Playbook::new();
    play.client(&[startup_version(0x0003_0002, &[("user", "ada")])]);
    assert!(has(&play, "version", "3.2"));
    let negotiate = Bytes::from_static(b"v\0\0\0\x0c\0\0\0\0\0\0\0\0");
    play.server(&[negotiate, welcome()]);
    assert!(has(&play, "version", "3.0"));
}

#[test]
fn nothing_that_authenticates_is_recorded() {
    let mut play = Playbook::new();
    play.client(&[startup(&[("user", "ada")])]);
    for (request, answer) in
        [(3, "cle4r"), (5, "md5s3cret"), (10, "SCRAM-SHA-256..pr00f"), (11, "pr00f"), (8, "t1cket")]
    {
        play.server(&[authentication(request, if request == 10 { b"SCRAM-SHA-256\0\0" } else { b"s4lt" })]);
        play.client(&[password(answer.as_bytes())]);
    }
    play.server(&[authentication(12, b"v=s1gnature"), welcome()]);
    let recorded: Vec<u8> = play.data.iter().flat_map(|(_, _, bytes)| bytes.to_vec()).collect();
    let recorded = String::from_utf8_lossy(&recorded).into_owned();
    for secret in ["cle4r", "s3cret", "pr00f", "t1cket", "s4lt", "s1gnature", "k3y!"] {
        assert!(!recorded.contains(secret), "{secret}");
    }
    assert!(recorded.contains("SCRAM-SHA-256"), "the mechanisms are no secret");
}

#[test]
fn what_comes_before_the_server_is_ready_waits() {
    let mut play = Playbook::new();
    play.client(&[startup(&[("user", "ada")]), query("SELECT 1")])
        .reaches_server(&[startup(&[("user", "ada")])]);
    play.server(&[welcome()]).reaches_server(&[query("SELECT 1")]);
}

#[test]
fn a_refused_login_is_told() {
    let mut play = Playbook::new();
    play.client(&[startup(&[("user", "eve")])]);
    play.server(&[error("28P01", "password authentication failed")]).end(Side::Upstream);
    assert!(has(&play, "startup_error", "password authentication failed"));
    assert!(has(&play, "startup_sqlstate", "28P01"));
    // The client's own end goes on although the server's came first: the session does not stay open.
    play.end(Side::Client);
    assert_eq!(play.ends, [Side::Client, Side::Upstream]);
}

#[test]
fn no_encryption_goes_on_in_plain_text() {
    let mut play = Playbook::new();
    play.client(&[gssenc_request()]).reaches_server(&[gssenc_request()]);
    play.server(&[bytes(b"N")]).reaches_client(&[bytes(b"N")]);
    play.client(&[ssl_request()]).reaches_server(&[ssl_request()]).server(&[bytes(b"N")]).drain();
    play.client(&[startup(&[("user", "ada")])]).reaches_server(&[startup(&[("user", "ada")])]);
    assert!(has(&play, "coverage", "Inspected"));
}

#[test]
fn encryption_is_the_end_of_inspection_and_says_so() {
    for (request, answer, opacity, coverage) in [
        (ssl_request(), b"S", Opacity::Tls, "MetadataOnly(\"tls\")"),
        (gssenc_request(), b"G", Opacity::Gss, "MetadataOnly(\"gss\")"),
    ] {
        let mut play = Playbook::new();
        play.client(&[request.clone(), bytes(b"too early")]).reaches_server(&[request]);
        play.server(&[bytes(answer), bytes(b"more")]).reaches_client(&[bytes(answer)]);
        assert!(has(&play, "coverage", coverage));
        assert_eq!(play.became, Some((Kind::Opaque(opacity), [bytes(b"too early"), bytes(b"more")])));
    }
}

#[test]
fn a_client_that_leaves_before_it_is_told_of_encryption_does_not_stay_open() {
    let mut play = Playbook::new();
    play.client(&[ssl_request()]);
    assert!(play.wants_read(Side::Client), "it may leave");
    play.end(Side::Client);
    assert_eq!(play.ends, [Side::Upstream]);
    play.end(Side::Upstream);
    assert_eq!(play.ends, [Side::Upstream, Side::Client]);
    let mut play = Playbook::new();
    play.client(&[ssl_request(), bytes(b"too early")]);
    assert!(!play.wants_read(Side::Client), "what follows depends on the answer");
}

#[test]
fn a_server_too_old_for_encryption_says_so_in_its_own_way() {
    let mut play = Playbook::new();
    play.client(&[ssl_request()])
        .server(&[error("0A000", "unsupported frontend protocol")])
        .end(Side::Upstream);
    assert!(has(&play, "startup_sqlstate", "0A000"));
    assert_eq!(play.ends, [Side::Client]);
}

#[test]
fn a_cancel_is_forwarded_as_it_is_and_its_key_is_not_recorded() {
    for key in [&b"k3y!"[..], b"a-longer-k3y-of-protocol-3.2"] {
        let mut play = Playbook::new();
        play.client(&[cancel_request(key)]).reaches_server(&[cancel_request(key)]);
        play.end(Side::Upstream);
        let finished = play.outcome(1);
        assert_eq!((finished.outcome, finished.operation.verb), (Outcome::Ok, "cancel"));
        assert_eq!(finished.operation.name.to_text(), "pid 77");
        assert!(!String::from_utf8_lossy(&play.recorded(1, Side::Client)).contains("k3y"));
    }
}

/// A server may still take it for a startup, and ask for a password.
#[test]
fn a_beginning_that_does_not_parse_closes_the_connection() {
    let mut play = Playbook::new();
    play.client(&[bytes(b"\0\0\0\x09\0\x02\0\0x"), bytes(b"rest")]).reaches_server(&[]);
    assert_eq!(play.aborted, Some(Cause::Limit(Side::Client, "unparsed-startup")));
    let mut play = Playbook::new();
    play.client(&[bytes(b"\xff\0\0\x09\0\x03\0\0x")]).reaches_server(&[]);
    assert_eq!(play.aborted, Some(Cause::Limit(Side::Client, "unparsed-startup")));
    let mut play = Playbook::new();
    play.server(&[bytes(b"220 mail")]);
    assert_eq!(play.aborted, Some(Cause::Limit(Side::Upstream, "unparsed-startup")));
    assert!(play.became.is_none() && play.data.is_empty());
}

#[test]
fn whatever_startup_a_server_takes_is_one_here() {
    for (length, taken) in [(10_000, true), (10_004, true), (10_005, false)] {
        let first = startup(&[("user", "ada"), ("database", &"x".repeat(length - 28))]);
        assert_eq!(first.len(), length);
        assert_eq!(recognize(&first) == Recognition::Match(Kind::Postgres), taken, "{length}");
        let mut play = Playbook::new();
        play.client(std::slice::from_ref(&first));
        assert_eq!(play.aborted.is_none(), taken);
    }
    let mut play = Playbook::new();
    let long = bytes(&[0, 0, 0, 12, 0x04, 0xd2, 0x16, 0x2f, 1, 2, 3, 4]);
    assert_eq!(recognize(&long), Recognition::Match(Kind::Postgres));
    play.client(std::slice::from_ref(&long)).reaches_server(&[long]).server(&[bytes(b"N")]);
    play.client(&[startup(&[("user", "ada")])]);
    assert!(has(&play, "user", "ada"));
}

#[test]
fn bytes_that_may_be_half_a_secret_are_never_opaque() {
    let mut play = Playbook::new();
    play.client(&[startup(&[("user", "ada")])]).server(&[authentication(3, b"")]);
    play.client(&[bytes(b"p\0\0\0\x01s3cret")]);
    assert_eq!(play.aborted, Some(Cause::Limit(Side::Client, "unparsed-authentication")));
    assert!(play.became.is_none());
}

#[test]
fn first_bytes_are_recognized() {
    let postgres = Recognition::Match(Kind::Postgres);
    let first = [startup(&[("user", "a")]), ssl_request(), gssenc_request(), cancel_request(b"k3y!")];
    for first in first {
        assert_eq!(recognize(&first), postgres);
        assert_eq!(recognize(&first[..8]), postgres);
        for end in 0..8 {
            assert_eq!(recognize(&first[..end]), Recognition::NeedMore);
        }
    }
    for stranger in [
        &b"GET / HT"[..],
        b"\x16\x03\x01\x02\0\x01\0\x01",
        b"\0\0\x40\0\0\x03\0\0",
        b"\0\0\0\x08\0\x03\0\0",
        b"\0\0\0\x09\0\x02\0\0",
    ] {
        assert_eq!(recognize(stranger), Recognition::No, "{stranger:?}");
    }
    assert_eq!(recognize(b"*1"), Recognition::No);
}

#[test]
fn secrets_among_the_startups_parameters_are_not_recorded() {
    let first = startup(&[("user", "ada"), ("password", "hunter2 with blanks"), ("api_key", "hunter3")]);
    let rest = [&first[..first.len() - 1], b"passw0rd-without-end"].concat();
    let mut length = (rest.len() as u32).to_be_bytes().to_vec();
    length.extend_from_slice(&rest[4..]);
    for first in [first, Bytes::from(length)] {
        let mut play = Playbook::new();
        play.client(std::slice::from_ref(&first)).reaches_server(std::slice::from_ref(&first));
        let recorded = play.recorded(0, Side::Client);
        assert_eq!(recorded.len(), first.len());
        let recorded = String::from_utf8_lossy(&recorded).into_owned();
        for secret in ["hunter2", "blanks", "hunter3", "passw0rd"] {
            assert!(!recorded.contains(secret), "{secret}: {recorded:?}");
        }
        assert!(recorded.contains("ada") && recorded.contains("api_key"));
    }
}
