//! Extended query: prepared statements, portals, pipelines.

use bytes::Bytes;

use super::playbook::Playbook;
use super::wire::*;
use crate::note::Outcome;
use crate::seam::{Cause, ExchangeId, Side};

#[test]
fn parse_and_execute_are_two_exchanges_and_the_second_names_the_first() {
    let mut play = Playbook::judged();
    let batch = [
        parse("", "SELECT $1::int4, $2", &[23, 25]),
        bind("", "", 1, &[Some(&[0, 0, 0, 9]), None], 1),
        describe(b'P', ""),
        execute("", 0),
        sync(),
    ];
    play.client(&batch).reaches_server(&[]);
    assert_eq!(play.asked.len(), 2, "one round of policy for the batch");
    let sql = &play.asked[1].1;
    assert_eq!((sql.text.as_ref(), sql.defined_by), (&b"SELECT $1::int4, $2"[..], Some(ExchangeId(1))));
    play.allow(2).reaches_server(&[]).allow(1).reaches_server(&batch);

    let reply = [
        bare(b'1'),
        bare(b'2'),
        columns(&[("int4", 23, 1), ("?column?", 25, 1)]),
        row(&[Some(&[0, 0, 0, 9]), None]),
        complete("SELECT 1"),
        ready(b'I'),
    ];
    play.server(&reply).reaches_client(&reply);
    assert_eq!(play.endings(), [(1, Outcome::Ok), (2, Outcome::Ok)]);
    let finished = play.outcome(2);
    assert_eq!(finished.operation.text.to_text(), "SELECT $1::int4, $2");
    assert_eq!(finished.operation.defined_by, Some(ExchangeId(1)));
    let shown: Vec<_> =
        finished.operation.parameters.iter().map(|p| (&*p.type_name, p.shown.to_text(), p.null)).collect();
    assert_eq!(shown, [("int4", "9".to_owned(), false), ("text", String::new(), true)]);
    assert_eq!(finished.columns[0].1, "int4 binary");
    assert_eq!(finished.rows, 1);
}

#[test]
fn a_described_statement_lends_types_and_columns_to_its_portals() {
    let mut play = Playbook::ready();
    play.client(&[parse("s", "SELECT $1", &[]), describe(b'S', "s"), sync()]);
    play.server(&[bare(b'1'), parameter_types(&[20]), columns(&[("n", 20, 0)]), ready(b'I')]);
    play.client(&[bind("p", "s", 1, &[Some(&7i64.to_be_bytes())], 1), execute("p", 0), sync()]);
    play.server(&[bare(b'2'), row(&[Some(&7i64.to_be_bytes())]), complete("SELECT 1"), ready(b'I')]);
    let finished = play.outcome(2);
    assert_eq!(finished.operation.parameters[0].shown.to_text(), "7");
    assert_eq!(finished.operation.name.to_text(), "p");
    assert_eq!(finished.columns[0].1, "int8 binary", "the portal says binary");
}

#[test]
fn a_suspended_portal_is_executed_again() {
    let mut play = Playbook::ready();
    play.client(&[
        parse("", "SELECT", &[]),
        bind("p", "", 0, &[], 0),
        execute("p", 1),
        execute("p", 1),
        sync(),
    ]);
    play.server(&[
        bare(b'1'),
        bare(b'2'),
        row(&[Some(b"1")]),
        bare(b's'),
        row(&[Some(b"2")]),
        complete("SELECT 1"),
    ]);
    play.server(&[ready(b'T')]);
    assert_eq!(play.outcome(2).status.to_text(), "SUSPENDED");
    assert_eq!((play.outcome(2).rows, play.outcome(3).rows), (1, 1));
    assert_eq!(play.outcome(3).operation.text.to_text(), "SELECT");
}

#[test]
fn an_error_ends_the_batch_and_only_it() {
    let mut play = Playbook::ready();
    let one = |text| [parse("", text, &[]), bind("", "", 0, &[], 0), execute("", 0)];
    play.client(&one("FAIL")).client(&one("SKIPPED")).client(&[sync()]).client(&one("RUN")).client(&[sync()]);
    play.server(&[bare(b'1'), bare(b'2'), error("22012", "division by zero"), ready(b'I')]);
    play.server(&[bare(b'1'), bare(b'2'), complete("SELECT 0"), ready(b'I')]);
    let endings: Vec<_> = play.endings();
    assert_eq!(
        endings,
        [
            (1, Outcome::Ok),
            (2, Outcome::Error),
            (3, Outcome::Aborted),
            (4, Outcome::Aborted),
            (5, Outcome::Ok),
            (6, Outcome::Ok)
        ]
    );
    assert!(play.gaps.is_empty());
}

#[test]
fn what_comes_after_an_error_and_before_sync_gets_no_reply() {
    let mut play = Playbook::ready();
    play.client(&[parse("", "BAD", &[]), flush()]).server(&[error("42601", "syntax error")]);
    play.client(&[bind("", "", 0, &[], 0), execute("", 0), query("SELECT 1")]);
    play.client(&[sync()]).server(&[ready(b'I')]);
    play.client(&[query("SELECT 2")]).server(&[complete("SELECT 1"), ready(b'I')]);
    assert_eq!(
        play.endings(),
        [(1, Outcome::Error), (2, Outcome::Aborted), (3, Outcome::Aborted), (4, Outcome::Ok)]
    );
    assert!(play.gaps.is_empty());
}

#[test]
fn an_error_of_bind_is_its_executes() {
    let mut play = Playbook::ready();
    play.client(&[
        parse("", "SELECT $1::int", &[]),
        bind("", "", 0, &[Some(b"x")], 0),
        execute("", 0),
        sync(),
    ]);
    play.server(&[bare(b'1'), error("22P02", "invalid input syntax for type integer: \"x\""), ready(b'I')]);
    assert_eq!(play.outcome(2).outcome, Outcome::Error);
    assert_eq!(play.outcome(2).status.to_text(), "22P02");
}

#[test]
fn a_closed_statement_is_not_known_any_more() {
    let mut play = Playbook::ready();
    play.client(&[
        parse("s", "SELECT 1", &[]),
        close(b'S', "s"),
        bind("", "s", 0, &[], 0),
        execute("", 0),
        sync(),
    ]);
    assert_eq!(play.asked[1].1.text, "");
    assert_eq!(play.asked[1].1.defined_by, None);
}

/// The server decides what a name means when two batches are in flight; a guess could be another text than the one policy
/// was asked about.
#[test]
fn a_name_that_is_unsure_waits_for_the_server() {
    let mut play = Playbook::ready();
    play.client(&[parse("", "FIRST", &[]), sync()]).server(&[bare(b'1'), ready(b'I')]);
    play.client(&[parse("", "SECOND", &[]), sync(), bind("", "", 0, &[], 0), execute("", 0), sync()]);
    assert_eq!(play.asked.len(), 2, "the Execute is not asked about yet");
    assert!(!play.wants_read(crate::seam::Side::Client));
    play.server(&[error("42601", "syntax error"), ready(b'I')]);
    assert_eq!(play.asked[2].1.text, "FIRST", "the second was never defined");
    assert!(play.wants_read(crate::seam::Side::Client));
    play.server(&[bare(b'2'), complete("SELECT 0"), ready(b'I')]);
    assert_eq!(play.outcome(3).outcome, Outcome::Ok);
}

#[test]
fn what_sql_deallocates_is_forgotten() {
    let mut play = Playbook::ready();
    play.client(&[parse("s", "SELECT 1", &[]), sync()]).server(&[bare(b'1'), ready(b'I')]);
    play.client(&[query("DEALLOCATE s")]).server(&[complete("DEALLOCATE"), ready(b'I')]);
    play.client(&[query("PREPARE s AS DELETE FROM t")]).server(&[complete("PREPARE"), ready(b'I')]);
    play.client(&[bind("", "s", 0, &[], 0), execute("", 0), sync()]);
    assert_eq!(play.asked.last().map(|(_, sql)| sql.text.len()), Some(0), "not the text it once had");
}

#[test]
fn the_end_of_a_transaction_takes_its_portals() {
    let mut play = Playbook::ready();
    play.client(&[parse("", "SELECT 1", &[]), bind("c", "", 0, &[], 0), sync()]);
    play.server(&[bare(b'1'), bare(b'2'), ready(b'I')]);
    play.client(&[query("DECLARE c CURSOR WITH HOLD FOR DELETE")])
        .server(&[complete("DECLARE CURSOR"), ready(b'I')]);
    play.client(&[execute("c", 0), sync()]);
    assert_eq!(play.asked.last().map(|(_, sql)| sql.text.len()), Some(0));
}

/// The server compares the first 63 bytes of a name, in its own encoding.
#[test]
fn names_that_only_the_server_can_tell_apart_are_not_resolved() {
    let a = "a".repeat(63);
    let [a1, a2, a3] = [1, 2, 3].map(|n| format!("{a}{n}"));
    for used in [&a2, &a] {
        let mut play = Playbook::ready();
        play.client(&[parse(used, "BENIGN", &[]), sync()]).server(&[bare(b'1'), ready(b'I')]);
        play.client(&[close(b'S', &a3), sync()]).server(&[bare(b'3'), ready(b'I')]);
        play.client(&[parse(&a1, "EVIL", &[]), sync()]).server(&[bare(b'1'), ready(b'I')]);
        play.client(&[bind("", used, 0, &[], 0), execute("", 0), sync()]);
        let sql = &play.asked.last().unwrap().1;
        assert_eq!((&sql.text[..], sql.oversized), (&b""[..], true), "{used}");
        play.server(&[bare(b'2'), complete("DELETE 1"), ready(b'I')]);
        assert_eq!(play.outcome(3).operation.text.to_text(), "");
    }

    let mut play = Playbook::ready();
    play.client(&[parse("\u{fc}", "BENIGN", &[]), sync()]).server(&[bare(b'1'), ready(b'I')]);
    play.client(&[bind("", "\u{fc}", 0, &[], 0), execute("", 0), sync()]);
    assert!(play.asked.last().unwrap().1.oversized && play.asked.last().unwrap().1.text.is_empty());
}

#[test]
fn portals_that_only_the_server_can_tell_apart_are_not_resolved() {
    let a = "a".repeat(63);
    let mut play = Playbook::ready();
    play.client(&[parse("benign", "BENIGN", &[]), parse("evil", "EVIL", &[]), query("BEGIN")]);
    play.server(&[bare(b'1'), bare(b'1'), complete("BEGIN"), ready(b'T')]);
    play.client(&[bind(&a, "benign", 0, &[], 0), close(b'P', &format!("{a}3"))]);
    play.client(&[bind(&format!("{a}1"), "evil", 0, &[], 0), execute(&a, 0), sync()]);
    let sql = &play.asked.last().unwrap().1;
    assert_eq!((&sql.text[..], sql.oversized), (&b""[..], true));
}

#[test]
fn a_name_of_exactly_63_bytes_is_resolved() {
    let a = "a".repeat(63);
    let mut play = Playbook::ready();
    play.client(&[parse(&a, "SELECT 1", &[]), sync()]).server(&[bare(b'1'), ready(b'I')]);
    play.client(&[bind("", &a, 0, &[], 0), execute("", 0), sync()]);
    assert_eq!(play.asked.last().unwrap().1.text, "SELECT 1");
}

/// The server fails it and skips to Sync: nothing that follows may count as defined.
#[test]
fn a_flush_with_a_body_closes_the_connection() {
    let mut play = Playbook::ready();
    play.client(&[parse("", "BENIGN", &[]), sync()]).server(&[bare(b'1'), ready(b'I')]).drain();
    let bad = Bytes::from_static(b"H\0\0\0\x05x");
    play.client(&[bad, parse("", "EVIL", &[]), sync()]).reaches_server(&[]);
    assert_eq!(play.aborted, Some(Cause::Limit(Side::Client, "malformed-flush")));
}

#[test]
fn a_message_of_an_unknown_tag_closes_the_connection() {
    let mut play = Playbook::ready();
    play.client(&[query("SELECT 1")]).drain();
    play.client(&[Bytes::from_static(b"z\0\0\0\x05x"), query("SELECT 2")]).reaches_server(&[]);
    assert_eq!(play.aborted, Some(Cause::Limit(Side::Client, "unknown-message")));
}

#[test]
fn a_timeout_between_two_messages_skips_what_follows_up_to_sync() {
    let mut play = Playbook::ready();
    play.client(&[parse("s", "FIRST", &[]), flush()]).server(&[bare(b'1')]);
    play.server(&[error("57014", "canceling statement due to statement timeout")]);
    play.client(&[close(b'S', "s"), parse("s", "SECOND", &[]), sync()]).server(&[ready(b'I')]);
    assert_eq!(play.outcome(2).outcome, Outcome::Error, "the error that kept it from running");
    play.client(&[bind("", "s", 0, &[], 0), execute("", 0), sync()]);
    assert_eq!(play.asked.last().unwrap().1.text, "FIRST");
    play.server(&[bare(b'2'), complete("SELECT 1"), ready(b'I')]);
    assert!(play.gaps.is_empty());
    assert_eq!(play.outcome(3).outcome, Outcome::Ok);
}

/// Whatever made the server skip: what it has not answered when it is ready again is not there.
#[test]
fn a_server_that_is_ready_has_defined_nothing_it_has_not_said() {
    let mut play = Playbook::ready();
    play.client(&[parse("s", "FIRST", &[]), sync()]).server(&[bare(b'1'), ready(b'I')]);
    play.client(&[close(b'S', "s"), parse("s", "SECOND", &[]), sync()]).server(&[ready(b'I')]);
    assert_eq!((play.outcome(2).outcome, &play.gaps[..]), (Outcome::Aborted, &["reply-out-of-step"][..]));
    play.client(&[bind("", "s", 0, &[], 0), execute("", 0), sync()]);
    assert_eq!(play.asked.last().unwrap().1.text, "FIRST");
    play.server(&[bare(b'2'), complete("SELECT 1"), ready(b'I')]);
    assert_eq!(play.outcome(3).outcome, Outcome::Ok);
}

#[test]
fn a_binary_parameter_is_masked_before_it_is_shown_as_hex() {
    let mut play = Playbook::ready();
    let secret = b"host=db password=hunter2";
    play.client(&[
        parse("", "SELECT $1", &[17]),
        bind("", "", 1, &[Some(secret)], 0),
        execute("", 0),
        sync(),
    ]);
    play.server(&[bare(b'1'), bare(b'2'), complete("SELECT 1"), ready(b'I')]);
    let shown = play.outcome(2).operation.parameters[0].shown.to_text();
    assert!(shown.starts_with("\\x686f7374") && !shown.contains("68756e746572"), "{shown}");
}

#[test]
fn names_wait_while_sql_may_redefine_them() {
    let mut play = Playbook::ready();
    play.client(&[query("PREPARE sp AS EVIL"), parse("sp", "BENIGN", &[]), sync()]);
    play.client(&[bind("", "sp", 0, &[], 0), execute("", 0), sync()]);
    assert_eq!(play.asked.len(), 2, "the name has two meanings");
    play.server(&[complete("PREPARE"), ready(b'I')]);
    assert_eq!(play.asked.len(), 2, "still: its Parse is not answered");
    play.server(&[error("42P05", "prepared statement \"sp\" already exists"), ready(b'I')]);
    assert_eq!(play.asked[2].1.text, "", "not the text that was never defined");

    let mut play = Playbook::ready();
    play.client(&[parse("s", "BENIGN", &[]), sync()]).server(&[bare(b'1'), ready(b'I')]);
    play.client(&[
        query("Deallocate s; Prepare s AS EVIL"),
        bind("", "s", 0, &[], 0),
        execute("", 0),
        sync(),
    ]);
    assert_eq!(play.asked.len(), 2);
    play.server(&[complete("DEALLOCATE"), complete("PREPARE"), ready(b'I')]);
    assert_eq!(play.asked[2].1.text, "");
}

#[test]
fn what_sql_declares_takes_the_portals_names() {
    let mut play = Playbook::ready();
    play.client(&[query("BEGIN")]).server(&[complete("BEGIN"), ready(b'T')]);
    play.client(&[parse("", "BENIGN", &[]), bind("c", "", 0, &[], 0), sync()]);
    play.server(&[bare(b'1'), bare(b'2'), ready(b'T')]);
    play.client(&[query("CLOSE c; DECLARE c CURSOR FOR SELECT evil()")]);
    play.server(&[complete("CLOSE CURSOR"), complete("DECLARE CURSOR"), ready(b'T')]);
    play.client(&[execute("c", 0), sync()]);
    assert_eq!(play.asked.last().unwrap().1.text, "");
}

/// Within a batch the server keeps the answer back that the name waits for.
#[test]
fn a_name_that_waits_within_its_batch_asks_for_the_reply() {
    let mut play = Playbook::ready();
    play.client(&[parse("s", "BENIGN", &[]), sync()]).server(&[bare(b'1'), ready(b'I')]).drain();
    let first = [parse("", "DEALLOCATE ALL", &[]), bind("", "", 0, &[], 0), execute("", 0)];
    play.client(&first).client(&[bind("", "s", 0, &[], 0), execute("", 0), sync()]);
    play.reaches_server(&[join(&first), flush()]);
    play.server(&[bare(b'1'), bare(b'2'), complete("DEALLOCATE ALL")]);
    assert_eq!(play.asked.last().unwrap().1.text, "");
}

#[test]
fn names_and_ends_of_messages_are_masked_in_what_is_recorded() {
    let mut play = Playbook::ready();
    let secret = "host=db password=hunter2";
    let after = Bytes::from(crate::postgres::frame::message(b'P', b"\0SELECT 1\0host=db password=hunter2"));
    play.client(&[after, bind(secret, "", 0, &[], 0), bind("", secret, 0, &[], 0), sync()]);
    let recorded: Vec<u8> = play.data.iter().flat_map(|(_, _, bytes)| bytes.to_vec()).collect();
    let recorded = String::from_utf8_lossy(&recorded).into_owned();
    assert!(recorded.contains("SELECT 1") && !recorded.contains("hunter2"), "{recorded:?}");
}
