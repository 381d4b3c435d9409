//! Simple query, function call, notifications.

use std::slice::from_ref;

use bytes::Bytes;

use super::playbook::Playbook;
use super::wire::*;
use crate::note::Outcome;
use crate::seam::Side::{Client, Upstream};

#[test]
fn a_query_is_one_exchange() {
    let mut play = Playbook::judged();
    play.client(&[query("SELECT name FROM shop")]).reaches_server(&[]);
    assert_eq!(play.asked[0].1.text, "SELECT name FROM shop");
    play.allow(1).reaches_server(&[query("SELECT name FROM shop")]);
    let reply =
        [columns(&[("name", 25, 0)]), row(&[Some(b"tea")]), row(&[None]), complete("SELECT 2"), ready(b'I')];
    play.server(&reply).reaches_client(&reply);
    let finished = play.outcome(1);
    assert_eq!((finished.outcome, finished.rows), (Outcome::Ok, 2));
    assert_eq!(finished.status.to_text(), "SELECT 2");
    assert_eq!((finished.columns[0].0.to_text().as_str(), &*finished.columns[0].1), ("name", "text"));
    assert_eq!(finished.response_bytes, join(&reply).len() as u64);
    assert_eq!(finished.request_bytes, query("SELECT name FROM shop").len() as u64);
    assert_eq!(&*finished.rule, "open");
    assert_eq!(play.recorded(1, Upstream), join(&reply));
    assert_eq!(play.sends, 1, "one read is one send");
    assert_eq!(play.data.len(), 2, "one note each way");
}

#[test]
fn several_statements_add_up() {
    let mut play = Playbook::ready();
    play.client(&[query("INSERT ..; UPDATE ..; SELECT 1/0")]);
    play.server(&[
        complete("INSERT 0 5"),
        complete("UPDATE 3"),
        columns(&[("a", 23, 0)]),
        row(&[Some(b"1")]),
    ]);
    play.server(&[error("22012", "division by zero"), ready(b'I')]);
    let finished = play.outcome(1);
    assert_eq!((finished.outcome, finished.rows), (Outcome::Error, 9));
    assert_eq!(
        (finished.status.to_text(), finished.error.to_text()),
        ("22012".into(), "division by zero".into())
    );
}

#[test]
fn an_empty_query_is_ok() {
    let mut play = Playbook::ready();
    play.client(&[query("")]).server(&[bare(b'I'), ready(b'I')]);
    assert_eq!(play.outcome(1).outcome, Outcome::Ok);
    assert_eq!(play.outcome(1).status.to_text(), "EMPTY");
}

#[test]
fn a_read_full_of_rows_is_one_slice_and_one_note() {
    let mut play = Playbook::ready();
    play.client(&[query("SELECT")]).server(&[columns(&[("a", 25, 0)])]);
    let rows = join(&(0..1000).map(|n| row(&[Some(format!("{n:060}").as_bytes())])).collect::<Vec<_>>());
    play.drain();
    play.data.clear();
    play.server(from_ref(&rows));
    assert_eq!((play.sends, play.data.len()), (1, 1));
    assert_eq!(play.data[0].2, rows);
    play.server(&[complete("SELECT 1000"), ready(b'I')]);
    assert_eq!(play.outcome(1).rows, 1000);
}

#[test]
fn passwords_in_statements_and_errors_are_masked() {
    let mut play = Playbook::ready();
    play.client(&[query("ALTER ROLE bob PASSWORD 'hunter2'")]);
    play.server(&[error("42601", "in: ALTER ROLE bob PASSWORD 'hunter2'"), ready(b'I')]);
    let finished = play.outcome(1);
    assert_eq!(finished.operation.text.to_text(), "ALTER ROLE bob PASSWORD '*******'");
    assert!(!finished.error.to_text().contains("hunter2"));
    for side in [Client, Upstream] {
        assert!(!String::from_utf8_lossy(&play.recorded(1, side)).contains("hunter2"));
    }
}

#[test]
fn notifications_notices_and_settings_come_at_any_time() {
    let mut play = Playbook::ready();
    let said = [notification("jobs", "one"), parameter("application_name", "worker"), notice("hello")];
    play.server(&said).reaches_client(&said);
    assert_eq!(
        play.facts.last().map(|(name, value)| (name.as_str(), value.as_str())),
        Some(("application_name", "worker"))
    );
    play.client(&[query("SELECT 1")]);
    play.server(&[notification("jobs", "two"), complete("SELECT 1"), ready(b'I')]);
    assert_eq!(play.outcome(1).outcome, Outcome::Ok);
    assert!(play.gaps.is_empty());
}

#[test]
fn a_function_call_is_an_exchange() {
    let mut play = Playbook::ready();
    play.client(&[call(1598, &[0, 0, 0, 7])]).server(&[call_result(b"1"), ready(b'I')]);
    let finished = play.outcome(1);
    assert_eq!((finished.outcome, finished.operation.verb), (Outcome::Ok, "call"));
    assert_eq!(finished.operation.name.to_text(), "oid 1598");
    assert_eq!(finished.operation.parameters[0].shown.to_text(), "\\x00000007");
}

#[test]
fn text_that_no_string_ends_is_asked_about_whole() {
    let mut play = Playbook::judged();
    let hidden = Bytes::from_static(b"Q\0\0\0\x13SELECT 1\0DROP t");
    play.client(from_ref(&hidden));
    assert_eq!(play.asked[0].1.text, &b"SELECT 1\0DROP t"[..]);
    play.allow(1).reaches_server(&[hidden]);
    play.server(&[error("08P01", "invalid message format"), ready(b'I')]);
    assert!(play.became.is_none(), "the session goes on, and is still read");
}

#[test]
fn an_unknown_reply_is_forwarded_untouched() {
    let mut play = Playbook::ready();
    let odd = Bytes::from_static(b"y\0\0\0\x07abc");
    play.drain().client(&[query("SELECT 1")]).server(&[odd.clone(), complete("SELECT 1"), ready(b'I')]);
    play.reaches_client(&[odd, complete("SELECT 1"), ready(b'I')]);
    assert_eq!((&play.gaps[..], play.outcome(1).outcome), (&["reply-out-of-step"][..], Outcome::Ok));
}
