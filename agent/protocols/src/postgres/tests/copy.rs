//! COPY in all directions.

use bytes::Bytes;

use super::playbook::Playbook;
use super::wire::*;
use crate::kind::Kind;
use crate::note::Outcome;
use crate::operation::Opacity;
use crate::seam::Cause;
use crate::seam::Side::{Client, Upstream};

#[test]
fn copy_in_belongs_to_its_query() {
    let mut play = Playbook::ready();
    play.client(&[query("COPY t FROM STDIN")]).server(&[copy_response(b'G')]).drain();
    let data = [copy_data(b"1\tone\n"), copy_data(b"2\ttwo\n")];
    play.client(&data).reaches_server(&data);
    play.client(&[copy_done()]).server(&[complete("COPY 2"), ready(b'I')]);
    assert_eq!((play.outcome(1).outcome, play.outcome(1).rows), (Outcome::Ok, 2));
    assert_eq!(play.recorded(1, Client), join(&[query("COPY t FROM STDIN"), join(&data), copy_done()]));
}

#[test]
fn copy_out_belongs_to_its_query() {
    let mut play = Playbook::ready();
    play.client(&[query("COPY t TO STDOUT")]).drain();
    let reply = [
        copy_response(b'H'),
        copy_data(b"1\n"),
        copy_data(b"2\n"),
        bare(b'c'),
        complete("COPY 2"),
        ready(b'I'),
    ];
    play.server(&reply).reaches_client(&reply);
    assert_eq!(play.outcome(1).rows, 2);
    assert_eq!(play.recorded(1, Upstream), join(&reply));
}

/// pgdog counted ReadyForQuery per Sync and lost its place here.
#[test]
fn a_sync_during_copy_in_gets_no_reply() {
    let mut play = Playbook::ready();
    play.client(&[parse("", "COPY t FROM STDIN", &[]), bind("", "", 0, &[], 0), execute("", 0), sync()]);
    play.server(&[bare(b'1'), bare(b'2'), copy_response(b'G')]);
    play.client(&[copy_data(b"1"), flush(), sync(), copy_done(), sync()]);
    play.server(&[complete("COPY 1")]).server(&[ready(b'I')]);
    play.client(&[query("SELECT 1")]).server(&[complete("SELECT 1"), ready(b'I')]);
    assert_eq!(play.endings(), [(1, Outcome::Ok), (2, Outcome::Ok), (3, Outcome::Ok)]);
    assert!(play.gaps.is_empty());
}

#[test]
fn copy_data_may_come_before_the_server_asks_for_it() {
    let mut play = Playbook::judged();
    let ahead = [query("COPY t FROM STDIN"), copy_data(b"1"), copy_done(), query("SELECT 1")];
    play.client(&ahead).reaches_server(&[]).allow(2).reaches_server(&[]);
    play.allow(1).reaches_server(&ahead[..1]);
    play.server(&[copy_response(b'G')]).reaches_server(&ahead[1..3]);
    play.server(&[complete("COPY 1"), ready(b'I')]).reaches_server(&ahead[3..]);
    play.server(&[complete("SELECT 1"), ready(b'I')]);
    assert_eq!(play.endings(), [(1, Outcome::Ok), (2, Outcome::Ok)]);
}

#[test]
fn the_rest_of_the_data_of_a_copy_that_failed_does_not_leave() {
    let mut play = Playbook::ready();
    play.client(&[query("COPY t FROM STDIN")]).server(&[copy_response(b'G')]);
    play.client(&[copy_data(b"x")]).server(&[error("22P02", "invalid input"), ready(b'I')]).drain();
    let late = [copy_data(b"y"), copy_done()];
    play.client(&late).reaches_server(&[]);
    play.client(&[query("SELECT 1")]).server(&[complete("SELECT 1"), ready(b'I')]);
    assert_eq!(play.endings(), [(1, Outcome::Error), (2, Outcome::Ok)]);
}

#[test]
fn data_of_a_denied_copy_does_not_leave() {
    let mut play = Playbook::judged();
    play.client(&[query("COPY t FROM STDIN"), copy_data(b"1"), copy_done(), query("SELECT 1")]);
    play.deny(1).reaches_server(&[]).allow(2).reaches_server(&[query("SELECT 1")]);
}

#[test]
fn large_copy_data_streams() {
    let mut play = Playbook::ready();
    play.client(&[query("COPY t FROM STDIN")]).server(&[copy_response(b'G')]).drain();
    let large = copy_data(&vec![b'x'; 300_000]);
    for chunk in large.chunks(50_000) {
        play.client(&[Bytes::copy_from_slice(chunk)]);
        assert!(play.wants_read(Client));
    }
    play.reaches_server(std::slice::from_ref(&large));
    assert_eq!(play.recorded(1, Client).len(), large.len() + query("COPY t FROM STDIN").len());
}

#[test]
fn large_copy_data_is_masked_and_recorded_to_its_end() {
    // The later ones are undecided at the end: a secret may begin there.
    for ending in [" host=db password=hunter2", " host=db passwor", " postgres://ada", " 'pass"] {
        let mut play = Playbook::ready();
        play.client(&[query("COPY t FROM STDIN")]).server(&[copy_response(b'G')]);
        let large = copy_data(&[&vec![b'x'; 100_000][..], ending.as_bytes()].concat());
        let before = play.recorded(1, Client).len();
        for chunk in large.chunks(33_336) {
            play.client(&[Bytes::copy_from_slice(chunk)]);
        }
        let recorded = play.recorded(1, Client);
        assert_eq!(recorded.len() - before, large.len());
        assert!(recorded.ends_with(ending.replace("hunter2", "*******").as_bytes()), "{ending}");
    }
}

#[test]
fn large_copy_data_that_breaks_off_is_recorded_as_far_as_it_came() {
    let mut play = Playbook::ready();
    play.client(&[query("COPY t FROM STDIN")]).server(&[copy_response(b'G')]);
    let large = copy_data(&[&vec![b'x'; 100_000][..], b" host=db passwor"].concat());
    let before = play.recorded(1, Client).len();
    let cut = large.slice(..large.len() - 1);
    play.client(std::slice::from_ref(&cut)).reset(Client);
    assert_eq!(play.recorded(1, Client).len() - before, cut.len());
    assert_eq!(play.outcome(1).outcome, Outcome::Aborted);
}

/// The server passes over it, and forgets by it that it was in a batch.
#[test]
fn stray_copy_messages_do_not_leave() {
    let mut play = Playbook::ready();
    play.client(&[query("SELECT 1")]).server(&[complete("SELECT 1"), ready(b'I')]);
    play.client(&[parse("", "SELECT 2", &[])]).drain();
    let stray = copy_data(&vec![b'x'; 100_000]);
    play.client(&[stray.slice(..70_000)]).server(&[bare(b'1')]);
    play.client(&[stray.slice(70_000..), copy_done(), copy_fail("x"), sync()]).reaches_server(&[sync()]);
}

fn batch(text: &str) -> [Bytes; 3] {
    [parse("", text, &[]), bind("", "", 0, &[], 0), execute("", 0)]
}

/// Whether the server honoured the first Sync depends on when the copy failed: what follows waits until that is plain.
#[test]
fn what_follows_a_copy_that_may_fail_waits_for_its_end() {
    let mut play = Playbook::ready();
    let copy = batch("COPY t FROM STDIN");
    let data = [copy_data(b"bad row"), sync(), copy_done()];
    play.client(&[join(&copy), join(&data), join(&batch("EVIL")), sync()]);
    play.reaches_server(&[join(&copy), flush()]);
    play.server(&[bare(b'1'), bare(b'2'), copy_response(b'G')]);
    play.reaches_server(&[copy_data(b"bad row"), copy_done(), flush()]);
    play.server(&[error("22P02", "invalid input")]);
    // The Sync between the data counts as the one that the server skips to.
    play.reaches_server(&[sync(), join(&batch("EVIL")), sync()]);
    play.server(&[ready(b'I'), bare(b'1'), bare(b'2'), complete("DELETE 1"), ready(b'I')]);
    assert_eq!(
        play.endings(),
        [(1, Outcome::Ok), (2, Outcome::Error), (3, Outcome::Ok), (4, Outcome::Ok)],
        "what ran is not said to be aborted"
    );
    play.client(&[bind("", "", 0, &[], 0), execute("", 0), sync()]);
    assert_eq!(play.asked.last().unwrap().1.text, "EVIL");
    assert!(play.gaps.is_empty());
}

/// As libpq does it: a Sync with the Execute, which copy-in passes over, and one after the data.
#[test]
fn a_failed_copy_of_the_extended_protocol_ends_with_its_last_sync() {
    let mut play = Playbook::ready();
    play.client(&[join(&batch("COPY t FROM STDIN")), sync()]);
    play.server(&[bare(b'1'), bare(b'2'), copy_response(b'G')]).drain();
    play.client(&[copy_data(b"bad row")]).server(&[error("22P02", "invalid input")]);
    play.client(&[copy_done(), sync()]).reaches_server(&[copy_data(b"bad row"), sync()]);
    play.server(&[ready(b'I')]).client(&[query("SELECT 1")]).server(&[complete("SELECT 1"), ready(b'I')]);
    assert_eq!(play.endings(), [(1, Outcome::Ok), (2, Outcome::Error), (3, Outcome::Ok)]);
}

#[test]
fn a_failed_copy_of_a_simple_query_is_over_with_its_ready() {
    let mut play = Playbook::ready();
    play.client(&[query("COPY t FROM STDIN"), copy_data(b"bad row"), sync(), copy_done(), query("NEXT")]);
    play.server(&[copy_response(b'G')])
        .drain()
        .server(&[error("22P02", "invalid input")])
        .reaches_server(&[]);
    play.server(&[ready(b'I')]).reaches_server(&[query("NEXT")]);
    play.server(&[complete("SELECT 1"), ready(b'I')]);
    assert_eq!(play.endings(), [(1, Outcome::Error), (2, Outcome::Ok)]);
}

#[test]
fn a_sync_between_the_data_of_one_copy_is_not_remembered_for_another_request() {
    let mut play = Playbook::ready();
    play.client(&[query("COPY t FROM STDIN")]).server(&[copy_response(b'G')]);
    play.client(&[copy_data(b"1"), sync(), copy_done()]).server(&[complete("COPY 1"), ready(b'I')]).drain();
    play.client(&[parse("", "BAD", &[]), flush()]).server(&[error("42601", "syntax error")]);
    play.reaches_server(&[parse("", "BAD", &[]), flush()]);
}

#[test]
fn a_statement_in_the_middle_of_copy_data_closes_the_connection() {
    let mut play = Playbook::ready();
    play.client(&[query("COPY t FROM STDIN")]).server(&[copy_response(b'G')]).drain();
    play.client(&[copy_data(b"1"), query("NEXT")]).reaches_server(&[copy_data(b"1")]);
    assert_eq!(play.aborted, Some(Cause::Limit(Client, "message-in-copy-in")));
}

#[test]
fn replication_turns_into_a_stream() {
    let mut play = Playbook::new();
    play.client(&[startup(&[("user", "rep"), ("replication", "true")])]).server(&[welcome()]);
    play.client(&[query("IDENTIFY_SYSTEM")]).server(&[complete("IDENTIFY_SYSTEM"), ready(b'I')]);
    play.client(&[query("START_REPLICATION 0/0")]).server(&[copy_response(b'W'), copy_data(b"wal")]);
    assert_eq!(play.endings(), [(1, Outcome::Ok), (2, Outcome::Ok)]);
    assert_eq!(play.became, Some((Kind::Opaque(Opacity::Streaming), [Bytes::new(), copy_data(b"wal")])));
}
