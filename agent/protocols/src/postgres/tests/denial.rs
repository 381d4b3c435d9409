//! What a client sees of a denial, and what the server does not.

use bytes::Bytes;

use super::playbook::Playbook;
use super::wire::*;
use crate::note::Outcome;
use crate::seam::{Cause, Side};

fn refusal() -> Bytes {
    Bytes::from_static(b"E\0\0\0\x43SERROR\0VERROR\0C42501\0Mdenied by Weir rule \"closed\": not today\0\0")
}

#[test]
fn the_message_is_an_error_with_a_code_and_a_reason() {
    let mut play = Playbook::judged();
    play.client(&[query("DROP TABLE t")]).deny(1);
    play.reaches_server(&[]).reaches_client(&[refusal(), ready(b'I')]);
    let finished = play.outcome(1);
    assert_eq!(
        (finished.outcome, finished.status.to_text().as_str(), &*finished.rule),
        (Outcome::Denied, "42501", "closed")
    );
    assert_eq!(finished.error.to_text(), "not today");
}

#[test]
fn a_denied_query_has_the_true_transaction_state() {
    let mut play = Playbook::judged();
    play.client(&[query("BEGIN")]).allow(1).server(&[complete("BEGIN"), ready(b'T')]).drain();
    play.client(&[query("DROP TABLE t")]).deny(2).reaches_client(&[refusal(), ready(b'T')]);
    play.client(&[query("COMMIT")]).allow(3).reaches_server(&[query("COMMIT")]);
}

#[test]
fn a_denied_query_waits_for_its_turn() {
    let mut play = Playbook::judged();
    play.client(&[query("BEGIN"), query("DROP"), query("SELECT 1")]);
    play.deny(2).allow(3).reaches_server(&[]).reaches_client(&[]);
    play.allow(1).reaches_server(&[query("BEGIN"), query("SELECT 1")]).reaches_client(&[]);
    play.server(&[complete("BEGIN"), ready(b'T')]);
    play.reaches_client(&[complete("BEGIN"), ready(b'T'), refusal(), ready(b'T')]);
    play.server(&[complete("SELECT 1"), ready(b'T')]).reaches_client(&[complete("SELECT 1"), ready(b'T')]);
    assert_eq!(play.endings(), [(1, Outcome::Ok), (2, Outcome::Denied), (3, Outcome::Ok)]);
}

#[test]
fn a_reply_and_a_denial_in_one_read_keep_their_order() {
    let mut play = Playbook::judged();
    play.client(&[query("A"), query("DROP"), query("B")]).allow(1).deny(2).allow(3).drain();
    play.server(&[complete("A"), ready(b'I'), complete("B"), ready(b'I')]);
    play.reaches_client(&[complete("A"), ready(b'I'), refusal(), ready(b'I'), complete("B"), ready(b'I')]);
}

fn batch(text: &str) -> [Bytes; 3] {
    [parse("", text, &[]), bind("", "", 0, &[], 0), execute("", 0)]
}

#[test]
fn a_denied_parse_drops_what_follows_up_to_sync() {
    let mut play = Playbook::judged();
    play.client(&batch("FIRST")).client(&batch("DROP")).client(&batch("THIRD")).client(&[sync()]);
    play.client(&batch("NEXT")).client(&[sync()]);
    for exchange in [1, 2, 5, 6, 7] {
        play.allow(exchange);
    }
    play.reaches_server(&batch("FIRST"));
    play.deny(3);
    let kept_replies_are_asked_for = flush();
    let [parse, bind, execute] = batch("NEXT");
    play.reaches_server(&[kept_replies_are_asked_for, sync(), parse, bind]);
    play.allow(8).reaches_server(&[execute, sync()]);
    assert_eq!(play.withdrawn, [4], "nobody needs to decide about the Execute of a denied Parse");
    play.reaches_client(&[]);
    play.server(&[bare(b'1'), bare(b'2'), complete("FIRST")]);
    play.reaches_client(&[bare(b'1'), bare(b'2'), complete("FIRST"), refusal()]);
    play.server(&[ready(b'I')]).reaches_client(&[ready(b'I')]);
    play.server(&[bare(b'1'), bare(b'2'), complete("NEXT"), ready(b'I')]);
    let mut endings = play.endings();
    endings.sort_by_key(|(exchange, _)| *exchange);
    use Outcome::{Aborted, Denied, Ok};
    assert_eq!(
        endings,
        [(1, Ok), (2, Ok), (3, Denied), (4, Aborted), (5, Aborted), (6, Aborted), (7, Ok), (8, Ok)]
    );
}

#[test]
fn a_denied_execute_leaves_its_statement() {
    let mut play = Playbook::judged();
    play.client(&[parse("s", "DELETE", &[]), sync()]).allow(1).server(&[bare(b'1'), ready(b'I')]).drain();
    play.client(&[bind("", "s", 0, &[], 0), execute("", 0), sync()]).deny(2);
    play.reaches_server(&[bind("", "s", 0, &[], 0), flush(), sync()]);
    play.server(&[bare(b'2'), ready(b'I')]).reaches_client(&[bare(b'2'), refusal(), ready(b'I')]);
    play.client(&[bind("", "s", 0, &[], 0), execute("", 0), sync()]);
    assert_eq!(play.asked.last().map(|(_, sql)| sql.text.clone()), Some(Bytes::from_static(b"DELETE")));
}

#[test]
fn a_denied_statement_is_not_defined() {
    let mut play = Playbook::judged();
    play.client(&[parse("", "OLD", &[]), sync()]).allow(1).server(&[bare(b'1'), ready(b'I')]);
    play.client(&[parse("", "NEW", &[]), sync()]).deny(2).server(&[ready(b'I')]);
    play.client(&[bind("", "", 0, &[], 0), execute("", 0), sync()]);
    assert_eq!(play.asked.last().map(|(_, sql)| sql.text.clone()), Some(Bytes::from_static(b"OLD")));
}

#[test]
fn the_servers_own_error_comes_first_and_alone() {
    let mut play = Playbook::judged();
    play.client(&batch("FAIL")).client(&batch("DROP")).client(&[sync()]);
    play.allow(1).allow(2).deny(3).drain();
    play.server(&[bare(b'1'), bare(b'2'), error("22012", "division by zero"), ready(b'I')]);
    play.reaches_client(&[bare(b'1'), bare(b'2'), error("22012", "division by zero"), ready(b'I')]);
    assert_eq!(play.outcome(3).outcome, Outcome::Denied);
}

#[test]
fn a_query_denied_in_an_open_batch_gets_the_servers_own_ready() {
    let mut play = Playbook::judged();
    play.client(&batch("FIRST")).client(&[query("DROP")]).allow(1).allow(2).drain();
    play.deny(3).reaches_server(&[sync()]);
    play.server(&[bare(b'1'), bare(b'2'), complete("FIRST"), ready(b'I')]);
    play.reaches_client(&[bare(b'1'), bare(b'2'), complete("FIRST"), refusal(), ready(b'I')]);
}

#[test]
fn a_held_client_that_resets_is_withdrawn() {
    let mut play = Playbook::judged();
    play.client(&[query("RUNNING"), query("HELD")]).allow(1).reset(Side::Client);
    assert_eq!(play.endings(), [(1, Outcome::Aborted), (2, Outcome::Withdrawn)]);
    assert_eq!(play.withdrawn, [2]);
    assert_eq!(play.aborted, Some(Cause::Reset(Side::Client)));
}

#[test]
fn a_server_that_leaves_aborts_what_is_open() {
    let mut play = Playbook::judged();
    play.client(&[query("RUNNING"), query("HELD")]).allow(1);
    play.server(&[error("57P01", "terminating connection")]).end(Side::Upstream);
    assert_eq!(play.endings(), [(1, Outcome::Error), (2, Outcome::Aborted)]);
    assert_eq!((play.withdrawn.as_slice(), play.ends.as_slice()), (&[2][..], &[Side::Client][..]));
}

#[test]
fn a_half_close_goes_on_behind_what_is_held() {
    let mut play = Playbook::judged();
    play.client(&[query("SELECT 1")]).end(Side::Client);
    assert!(play.ends.is_empty());
    play.allow(1).reaches_server(&[query("SELECT 1")]);
    assert_eq!(play.ends, [Side::Upstream]);
    play.server(&[complete("SELECT 1"), ready(b'I')]).end(Side::Upstream);
    assert_eq!((play.outcome(1).outcome, play.ends.len()), (Outcome::Ok, 2));
}

#[test]
fn a_verdict_that_nobody_waits_for_is_ignored() {
    let mut play = Playbook::judged();
    play.allow(7).deny(1).client(&[query("SELECT 1")]).reaches_server(&[]);
    play.allow(1).reaches_server(&[query("SELECT 1")]).deny(1);
    assert!(play.finished.is_empty());
}
