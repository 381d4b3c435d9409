//! Bounds: random bytes never find them.

use bytes::Bytes;

use super::playbook::Playbook;
use super::wire::*;
use crate::kind::Kind;
use crate::note::Outcome;
use crate::operation::Opacity;
use crate::postgres::{HELD_BYTES_MAX, OUTSTANDING_MAX};
use crate::seam::Side;

#[test]
fn a_client_is_not_read_while_too_much_is_held() {
    let mut play = Playbook::judged();
    let statement = query(&format!("SELECT '{}'", "x".repeat(60_000)));
    let mut sent = 0;
    while play.wants_read(Side::Client) {
        play.client(std::slice::from_ref(&statement));
        sent += statement.len();
    }
    assert!(sent >= HELD_BYTES_MAX && sent < HELD_BYTES_MAX + 2 * statement.len());
    for exchange in 1..=play.asked.len() as u64 {
        play.allow(exchange);
    }
    assert!(play.wants_read(Side::Client));
}

#[test]
fn a_client_is_not_read_while_too_many_replies_are_owed() {
    let mut play = Playbook::ready();
    let many = join(&vec![query("SELECT 1"); OUTSTANDING_MAX + 10]);
    play.client(&[many]);
    assert!(!play.wants_read(Side::Client));
    let before = play.asked.len();
    assert_eq!(before, OUTSTANDING_MAX);
    play.server(&[complete("SELECT 1"), ready(b'I')]);
    assert_eq!(play.asked.len(), before + 1, "what was read already goes on");
    let replies = |count| join(&vec![join(&[complete("SELECT 1"), ready(b'I')]); count]);
    play.server(&[replies(OUTSTANDING_MAX)]).server(&[replies(9)]);
    assert!(play.wants_read(Side::Client));
    assert_eq!(play.finished.len(), OUTSTANDING_MAX + 10);
}

#[test]
fn a_statement_too_long_to_hold_is_asked_about_by_its_beginning() {
    let mut play = Playbook::judged();
    let statement = query(&format!("DELETE {}", "x".repeat(2 * HELD_BYTES_MAX)));
    let mut rest = statement.clone();
    while play.wants_read(Side::Client) && !rest.is_empty() {
        let chunk = rest.split_to(rest.len().min(100_000));
        play.client(&[chunk]);
    }
    assert!(!rest.is_empty(), "the client waits");
    let sql = play.asked[0].1.clone();
    assert!(sql.oversized);
    assert_eq!(sql.text.len(), HELD_BYTES_MAX - 5);
    play.allow(1);
    while !rest.is_empty() {
        assert!(play.wants_read(Side::Client));
        let chunk = rest.split_to(rest.len().min(100_000));
        play.client(&[chunk]);
    }
    play.reaches_server(std::slice::from_ref(&statement));
    play.server(&[complete("DELETE 1"), ready(b'I')]);
    let finished = play.outcome(1);
    assert!(finished.operation.oversized && finished.operation.text_truncated);
    assert_eq!(finished.request_bytes, statement.len() as u64);
    assert_eq!(play.recorded(1, Side::Client).len(), statement.len());
}

#[test]
fn a_denied_long_statement_is_swallowed_whole() {
    let mut play = Playbook::judged();
    let statement = query(&"x".repeat(3 * HELD_BYTES_MAX));
    let (head, rest) = statement.split_at(HELD_BYTES_MAX + 1000);
    play.client(&[Bytes::copy_from_slice(head)]).deny(1);
    play.client(&[Bytes::copy_from_slice(rest), query("SELECT 1")]).allow(2);
    play.reaches_server(&[query("SELECT 1")]);
}

#[test]
fn a_secret_over_the_seam_of_two_parts_is_masked() {
    let text =
        format!("SELECT '{}'; ALTER ROLE a PASSWORD 'hunter2-hunter2'", "x".repeat(HELD_BYTES_MAX - 46));
    let statement = query(&text);
    for cut in HELD_BYTES_MAX - 12..statement.len() {
        let mut play = Playbook::ready();
        play.client(&[statement.slice(..cut)]).client(&[statement.slice(cut..)]);
        let recorded = play.recorded(1, Side::Client);
        assert_eq!(recorded.len(), statement.len());
        assert!(!recorded.windows(7).any(|window| window == b"hunter2"), "cut at {cut}");
    }
}

#[test]
fn a_large_row_streams_to_the_client() {
    let mut play = Playbook::ready();
    play.client(&[query("SELECT")]).drain();
    let large = row(&[Some(&vec![b'x'; 1_000_000])]);
    for chunk in large.chunks(70_000) {
        play.server(&[Bytes::copy_from_slice(chunk)]);
    }
    assert!(play.sends > 10);
    play.server(&[complete("SELECT 1"), ready(b'I')]);
    play.reaches_client(&[large.clone(), complete("SELECT 1"), ready(b'I')]);
    assert_eq!(play.outcome(1).rows, 1);
    assert_eq!(play.outcome(1).response_bytes as usize, large.len() + complete("SELECT 1").len() + 6);
}

#[test]
fn lengths_that_cannot_be_make_the_session_opaque() {
    for length in [0u32, 3, 1 << 30, 1 << 31] {
        let bad = Bytes::from([&b"Q"[..], &length.to_be_bytes(), b"rest"].concat());
        let mut play = Playbook::judged();
        play.client(&[query("HELD"), bad.clone()]);
        assert!(play.became.is_none(), "not while policy has not answered");
        play.deny(1).reaches_server(&[]);
        assert_eq!(play.became, Some((Kind::Opaque(Opacity::Unparsed), [bad.clone(), Bytes::new()])));
        assert_eq!(play.outcome(1).outcome, Outcome::Denied);

        let mut play = Playbook::ready();
        play.client(&[query("RUNNING")]).server(std::slice::from_ref(&bad));
        assert_eq!(play.became, Some((Kind::Opaque(Opacity::Unparsed), [Bytes::new(), bad])));
        assert_eq!(play.outcome(1).outcome, Outcome::Aborted);
    }
}

#[test]
fn a_length_of_a_gibibyte_less_one_streams() {
    let mut play = Playbook::ready();
    play.client(&[query("SELECT")]).drain();
    let head = Bytes::from([&b"D"[..], &0x3fff_ffffu32.to_be_bytes(), &vec![7; 100_000]].concat());
    play.server(std::slice::from_ref(&head)).reaches_client(&[head]);
    play.end(Side::Upstream);
    assert_eq!(play.outcome(1).outcome, Outcome::Aborted);
}

#[test]
fn a_half_message_does_not_leave() {
    let mut play = Playbook::ready();
    play.client(&[query("SELECT 1").slice(..9)]).end(Side::Client);
    play.reaches_server(&[]);
    assert_eq!(
        (play.gaps.as_slice(), play.ends.as_slice()),
        (&["truncated-message"][..], &[Side::Upstream][..])
    );
}

/// What of a name is in the head of a long message says enough.
#[test]
fn a_name_longer_than_a_head_is_not_the_unnamed_one() {
    let mut play = Playbook::ready();
    play.client(&[parse("", "BENIGN", &[]), sync()]).server(&[bare(b'1'), ready(b'I')]);
    let long = "a".repeat(2 * HELD_BYTES_MAX);
    play.client(&[bind("", &long, 0, &[], 0), execute("", 0), sync()]);
    let sql = &play.asked.last().unwrap().1;
    assert_eq!((&sql.text[..], sql.oversized), (&b""[..], true));
}

/// A pipeline that is longer than what may be owed: the server keeps its replies back until a Sync that is not read yet.
#[test]
fn the_server_is_asked_for_its_replies_when_too_many_are_owed() {
    let mut play = Playbook::ready();
    let one = join(&[parse("", "SELECT 1", &[]), bind("", "", 0, &[], 0), execute("", 0)]);
    let (third, rounds) = (OUTSTANDING_MAX / 3 + 1, 3);
    play.client(&vec![one.clone(); third * rounds]).client(&[sync()]);
    let replies = join(&[bare(b'1'), bare(b'2'), complete("SELECT 1")]);
    let mut flushes = 0;
    for _ in 0..rounds {
        let sent = play.take_sent();
        flushes += usize::from(sent.ends_with(&flush()));
        play.server(&vec![replies.clone(); OUTSTANDING_MAX / 3]);
    }
    assert_eq!(flushes, rounds);
    assert!(play.take_sent().ends_with(&sync()));
}

#[test]
fn a_client_is_not_read_while_too_much_is_kept_of_what_it_is_owed() {
    let mut play = Playbook::ready();
    let statement = query(&"x".repeat(HELD_BYTES_MAX - 10));
    let mut sent = 0;
    while play.wants_read(Side::Client) {
        play.client(std::slice::from_ref(&statement));
        sent += 1;
    }
    assert!((60..=70).contains(&sent), "{sent} records of 64 KiB");
    play.server(&[complete("X"), ready(b'I')]);
    assert!(play.wants_read(Side::Client));
}
