//! Scripts of the wire, and what holds for every script.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::verdict::GrantKey;

const ME: ExchangeId = ExchangeId(7);

/// Drives one conversation and writes down what it did, in words.
struct Script {
    opaque: Opaque,
    second: u64,
    sent: [Vec<u8>; 2],
    recorded: [Vec<u8>; 2],
}

impl Script {
    fn new(reason: Opacity) -> Self {
        let start = Start { first_exchange: ME, plan: MaskPlan::standard() };
        Self {
            opaque: Opaque::new(reason, start),
            second: 0,
            sent: Default::default(),
            recorded: Default::default(),
        }
    }

    fn give(&mut self, input: Input) -> String {
        self.second += 1;
        let mut out = Effects::default();
        self.opaque.handle(input, Instant::default().after_ms(self.second * 1000), &mut out).unwrap();
        let mut words = Vec::new();
        for effect in out {
            words.push(self.word(effect));
        }
        words.join(" ")
    }

    fn word(&mut self, effect: Effect) -> String {
        match effect {
            Effect::Upstream(cleared) => {
                let bytes = cleared.into_bytes();
                self.sent[0].extend_from_slice(&bytes);
                format!("upstream({})", bytes.escape_ascii())
            }
            Effect::Client(bytes) => {
                self.sent[1].extend_from_slice(&bytes);
                format!("client({})", bytes.escape_ascii())
            }
            Effect::Ask(ME, Operation::Opaque { reason }) => format!("ask({})", reason.word()),
            Effect::Withdraw(ME) => "withdraw".into(),
            Effect::Note(ExchangeId::SESSION, Note::Facts(facts)) => {
                let Some(Coverage::MetadataOnly(why)) = facts.coverage else { panic!("{facts:?}") };
                format!("facts({why})")
            }
            Effect::Note(ME, Note::Asked(record)) => format!("asked({} {})", record.kind, record.verb),
            Effect::Note(ME, Note::Data(side, masked)) => {
                self.recorded[side.index()].extend_from_slice(masked.bytes());
                format!("note({})", masked.bytes().escape_ascii())
            }
            Effect::Note(ME, Note::Finished(finished)) => {
                assert!(finished.operation.kind == "opaque" && finished.asked_at <= finished.finished_at);
                let Finished { outcome, request_bytes, response_bytes, .. } = *finished;
                format!("finished({outcome:?} {request_bytes} {response_bytes} {})", finished.rule)
            }
            Effect::End(side) => format!("end({side:?})"),
            Effect::Abort(cause) => format!("abort({})", cause.word()),
            other => panic!("{other:?}"),
        }
    }

    fn client(&mut self, bytes: &[u8]) -> String {
        self.give(Input::Data(Side::Client, Bytes::copy_from_slice(bytes)))
    }

    fn upstream(&mut self, bytes: &[u8]) -> String {
        self.give(Input::Data(Side::Upstream, Bytes::copy_from_slice(bytes)))
    }

    fn allow(&mut self) -> String {
        let permit = GrantKey::for_tests().permit(ME, "rule".into());
        self.give(Input::Verdict(ME, Verdict::Allow(permit)))
    }

    fn deny(&mut self) -> String {
        let denial = Denial { rule: "rule".into(), reason: "no".into() };
        self.give(Input::Verdict(ME, Verdict::Deny(denial)))
    }
}

#[test]
fn bytes_pass_both_ways_and_are_recorded_first() {
    let mut script = Script::new(Opacity::Unrecognized);
    assert_eq!(script.client(b"ping"), "facts(opaque) asked(opaque opaque) ask(opaque)");
    assert_eq!(script.allow(), "note(ping) upstream(ping)");
    assert_eq!(script.upstream(b"pong"), "note(pong) client(pong)");
    assert_eq!(script.give(Input::End(Side::Client)), "end(Upstream)");
    assert_eq!(script.upstream(b"late"), "note(late) client(late)");
    assert_eq!(script.give(Input::End(Side::Upstream)), "end(Client) finished(Ok 4 8 rule)");
}

#[test]
fn nothing_passes_before_the_verdict() {
    let mut script = Script::new(Opacity::Unparsed);
    assert_eq!(script.upstream(b"hello"), "facts(unparsed) asked(opaque unparsed) ask(unparsed)");
    assert_eq!(script.client(b"there"), "");
    assert_eq!(script.give(Input::End(Side::Client)), "");
    assert_eq!(script.allow(), "note(hello) client(hello) note(there) upstream(there) end(Upstream)");
}

#[test]
fn a_denial_closes_both_sides() {
    let mut script = Script::new(Opacity::Unrecognized);
    script.client(b"secret plans");
    assert_eq!(script.deny(), "finished(Denied 0 0 rule) abort(denied)");
    assert_eq!(script.client(b"more"), "");
    assert!(script.sent[0].is_empty() && !script.opaque.wants_read(Side::Client));
}

#[test]
fn ciphertext_is_counted_not_recorded() {
    for reason in [Opacity::Tls, Opacity::Gss] {
        let mut script = Script::new(reason);
        script.client(b"\x16\x03\x01");
        assert_eq!(script.allow(), "upstream(\\x16\\x03\\x01)");
        assert_eq!(script.upstream(b"\x16\x03"), "client(\\x16\\x03)");
        script.give(Input::End(Side::Upstream));
        assert_eq!(script.give(Input::End(Side::Client)), "end(Upstream) finished(Ok 3 2 rule)");
    }
}

#[test]
fn resets_end_it_wherever_it_is() {
    let mut quiet = Script::new(Opacity::Unrecognized);
    assert_eq!(quiet.give(Input::Reset(Side::Client)), "abort(client-reset)");

    let mut held = Script::new(Opacity::Unrecognized);
    held.client(b"x");
    assert_eq!(
        held.give(Input::Reset(Side::Client)),
        "withdraw finished(Withdrawn 0 0 ) abort(client-reset)"
    );
    assert_eq!(held.allow(), "", "a verdict that comes too late");

    let mut refused = Script::new(Opacity::Unrecognized);
    refused.client(b"x");
    assert_eq!(
        refused.give(Input::Reset(Side::Upstream)),
        "withdraw finished(Aborted 0 0 ) abort(upstream-reset)"
    );

    let mut open = Script::new(Opacity::Unrecognized);
    open.client(b"x");
    open.allow();
    assert_eq!(open.give(Input::Reset(Side::Upstream)), "finished(Aborted 1 0 rule) abort(upstream-reset)");
}

#[test]
fn what_masking_still_holds_comes_out_at_the_end() {
    for last in [Input::End(Side::Upstream), Input::Reset(Side::Client)] {
        let mut script = Script::new(Opacity::Unrecognized);
        script.allow_after(b"x");
        script.upstream(b"see amqp://me:hunter2");
        assert_eq!(script.sent[1], b"see amqp://me:hunter2", "masking delays the record only");
        script.give(last);
        assert_eq!(script.recorded[1].len(), script.sent[1].len());
    }
}

#[test]
fn secrets_are_sent_and_not_recorded() {
    let mut script = Script::new(Opacity::Unrecognized);
    script.allow_after(b"SET PASSW");
    script.client(b"ORD = 'hun");
    script.client(b"ter2'; SELECT 1");
    script.give(Input::End(Side::Client));
    assert_eq!(script.sent[0].escape_ascii().to_string(), "SET PASSWORD = \\'hunter2\\'; SELECT 1");
    assert_eq!(script.recorded[0].escape_ascii().to_string(), "SET PASSWORD = \\'*******\\'; SELECT 1");
}

#[test]
fn what_waits_is_bounded() {
    let mut script = Script::new(Opacity::Unrecognized);
    script.client(&vec![b'x'; HELD_BYTES_MAX - 1]);
    assert!(script.opaque.wants_read(Side::Client));
    script.client(b"x");
    assert!(!script.opaque.wants_read(Side::Client) && script.opaque.wants_read(Side::Upstream));
    script.allow();
    assert!(script.opaque.wants_read(Side::Client));
    assert_eq!(script.sent[0].len(), HELD_BYTES_MAX);
}

#[test]
fn a_permit_of_another_exchange_is_our_fault() {
    let mut script = Script::new(Opacity::Unrecognized);
    script.client(b"x");
    let permit = GrantKey::for_tests().permit(ME.next(), "rule".into());
    let verdict = Input::Verdict(ME, Verdict::Allow(permit));
    assert!(script.opaque.handle(verdict, Instant::default(), &mut Effects::default()).is_err());
}

impl Script {
    fn allow_after(&mut self, first: &[u8]) {
        self.client(first);
        self.allow();
    }
}

proptest! {
    /// Whatever comes, in whatever pieces, and whenever the verdict: the bytes pass unchanged and in order, or not at
    /// all; the record is as long as what passed; there is one end.
    #[test]
    fn transparent(
        pieces in proptest::collection::vec((any::<bool>(), proptest::collection::vec(any::<u8>(), 1..300)), 1..20),
        verdict_after in 0_usize..20,
        allowed in any::<bool>(),
    ) {
        let mut script = Script::new(Opacity::Unrecognized);
        let mut whole = [Vec::new(), Vec::new()];
        let mut ends = String::new();
        for (at, (client, bytes)) in pieces.iter().enumerate() {
            if at == verdict_after.max(1) {
                ends += &if allowed { script.allow() } else { script.deny() };
            }
            whole[usize::from(!client)].extend_from_slice(bytes);
            ends += &if *client { script.client(bytes) } else { script.upstream(bytes) };
        }
        let decided = pieces.len() > verdict_after.max(1);
        ends += &script.give(Input::End(Side::Client));
        ends += &script.give(Input::End(Side::Upstream));
        if decided && allowed {
            prop_assert_eq!(&script.sent, &whole);
            prop_assert_eq!(script.recorded.each_ref().map(Vec::len), whole.each_ref().map(Vec::len));
        } else {
            prop_assert!(script.sent.iter().all(Vec::is_empty));
        }
        prop_assert_eq!(ends.matches("finished(").count(), usize::from(decided));
    }
}
