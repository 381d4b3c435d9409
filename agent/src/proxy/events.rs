//! Notes as events of the recording format (`recording.proto`). The four that every exchange has are written field by field from
//! what the note borrows; the rare ones are built as messages.

use weir_proto::v1;
use weir_protocols::mask::Masked;
use weir_protocols::note::{Coverage, Facts, Finished, OperationRecord, Outcome, ValueRecord};
use weir_protocols::{ExchangeId, Side, Verdict};

use crate::recording::fields;

/// The fields of `Event`.
const AT_NS: u32 = 1;
const ASKED: u32 = 3;
const JUDGED: u32 = 4;
const FINISHED: u32 = 6;

pub(super) fn coverage(coverage: Coverage) -> (v1::Coverage, &'static str) {
    match coverage {
        Coverage::Inspected => (v1::Coverage::Inspected, ""),
        Coverage::MetadataOnly(reason) => (v1::Coverage::MetadataOnly, reason),
        Coverage::Refused(reason) => (v1::Coverage::Refused, reason),
    }
}

pub(super) fn direction(from: Side) -> v1::Direction {
    match from {
        Side::Client => v1::Direction::Request,
        Side::Upstream => v1::Direction::Response,
    }
}

pub(super) fn facts(facts: Facts) -> v1::Facts {
    let (coverage, reason) = facts.coverage.map_or((v1::Coverage::Unspecified, ""), coverage);
    v1::Facts {
        protocol: facts.protocol.to_owned(),
        protocol_version: facts.protocol_version.into_owned(),
        values: facts.values.into_iter().map(|(name, value)| (name.into_owned(), value.to_text())).collect(),
        coverage: coverage.into(),
        reason: reason.to_owned(),
    }
}

/// `texts`: the capture level keeps statements and parameters.
pub(super) fn asked(
    out: &mut Vec<u8>,
    at_ns: u64,
    exchange: ExchangeId,
    record: &OperationRecord,
    texts: bool,
) {
    fields::uint(out, AT_NS, at_ns);
    fields::message(out, ASKED, 0, |out| {
        fields::uint(out, 1, exchange.0);
        fields::message(out, 2, 0, |out| operation(out, record, texts));
    });
}

pub(super) fn judged(out: &mut Vec<u8>, at_ns: u64, exchange: ExchangeId, verdict: &Verdict, waited_ns: u64) {
    let (allowed, rule, reason, would_deny) = match verdict {
        Verdict::Allow(permit) => {
            let would_deny = permit.would_deny();
            (true, permit.rule(), would_deny.map_or("", |why| why), would_deny.is_some())
        }
        Verdict::Deny(denial) => (false, &denial.rule, &*denial.reason, false),
    };
    fields::uint(out, AT_NS, at_ns);
    fields::message(out, JUDGED, 0, |out| {
        fields::uint(out, 1, exchange.0);
        fields::flag(out, 2, allowed);
        fields::bytes(out, 3, rule.as_bytes());
        fields::bytes(out, 4, reason.as_bytes());
        fields::uint(out, 5, waited_ns);
        fields::flag(out, 6, would_deny);
    });
}

pub(super) fn finished(
    out: &mut Vec<u8>,
    at_ns: u64,
    exchange: ExchangeId,
    finished: &Finished,
    texts: bool,
    tags: &[&str],
) {
    let outcome = match finished.outcome {
        Outcome::Ok => v1::Outcome::Ok,
        Outcome::Error => v1::Outcome::Error,
        Outcome::Denied => v1::Outcome::Denied,
        Outcome::Withdrawn => v1::Outcome::Withdrawn,
        Outcome::Aborted => v1::Outcome::Aborted,
    };
    fields::uint(out, AT_NS, at_ns);
    fields::message(out, FINISHED, 0, |out| {
        fields::uint(out, 1, exchange.0);
        fields::message(out, 2, 0, |out| operation(out, &finished.operation, texts));
        fields::uint(out, 3, outcome as u64);
        masked(out, 4, &finished.status);
        masked(out, 5, &finished.error);
        fields::uint(out, 6, finished.rows);
        for (name, kind) in &finished.columns {
            fields::message(out, 7, 0, |out| {
                masked(out, 1, name);
                fields::bytes(out, 2, kind.as_bytes());
            });
        }
        fields::uint(out, 8, finished.asked_at.0);
        fields::uint(out, 9, finished.first_reply_at.map_or(0, |at| at.0));
        fields::uint(out, 10, finished.finished_at.0);
        fields::uint(out, 11, finished.request_bytes);
        fields::uint(out, 12, finished.response_bytes);
        fields::bytes(out, 13, finished.rule.as_bytes());
        for tag in tags {
            fields::bytes(out, 14, tag.as_bytes());
        }
    });
}

fn operation(out: &mut Vec<u8>, record: &OperationRecord, texts: bool) {
    let OperationRecord { kind, verb, text, text_truncated, defined_by, name, parameters, oversized } =
        record;
    fields::bytes(out, 1, kind.as_bytes());
    fields::bytes(out, 2, verb.as_bytes());
    if texts {
        masked(out, 3, text);
    }
    fields::flag(out, 4, *text_truncated || !texts);
    fields::uint(out, 6, defined_by.map_or(0, |exchange| exchange.0));
    masked(out, 7, name);
    if texts {
        for parameter in parameters {
            fields::message(out, 8, 0, |out| value(out, parameter));
        }
    }
    fields::flag(out, 9, *oversized);
}

fn value(out: &mut Vec<u8>, value: &ValueRecord) {
    let ValueRecord { type_name, shown, null, bytes, truncated } = value;
    fields::bytes(out, 1, type_name.as_bytes());
    masked(out, 2, shown);
    fields::flag(out, 3, *null);
    fields::uint(out, 4, *bytes);
    fields::flag(out, 5, *truncated);
}

fn masked(out: &mut Vec<u8>, field: u32, value: &Masked) {
    fields::text(out, field, value.bytes());
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use weir_proto::v1::event::Kind;
    use weir_protocols::GrantKey;
    use weir_protocols::Instant;
    use weir_protocols::mask::MaskPlan;

    use super::*;

    const AT: u64 = 1_700_000_000_000;

    fn shown(text: &str) -> Masked {
        MaskPlan::standard().text(&bytes::Bytes::copy_from_slice(text.as_bytes()))
    }

    fn record() -> OperationRecord {
        OperationRecord {
            kind: "sql",
            verb: "execute",
            text: shown(&"SELECT $1 -- é\n".repeat(40)),
            text_truncated: true,
            defined_by: Some(ExchangeId(300)),
            name: shown("s1"),
            parameters: vec![
                ValueRecord {
                    type_name: "int4".into(),
                    shown: shown("-7"),
                    null: false,
                    bytes: 4,
                    truncated: true,
                },
                ValueRecord {
                    type_name: "".into(),
                    shown: shown(""),
                    null: true,
                    bytes: 0,
                    truncated: false,
                },
            ],
            oversized: true,
        }
    }

    fn operation_of(record: &OperationRecord) -> v1::Operation {
        v1::Operation {
            kind: record.kind.into(),
            verb: record.verb.into(),
            text: record.text.to_text(),
            text_truncated: true,
            text_sha256: Default::default(),
            defined_by: 300,
            name: "s1".into(),
            parameters: vec![
                v1::Value {
                    r#type: "int4".into(),
                    shown: "-7".into(),
                    null: false,
                    bytes: 4,
                    truncated: true,
                },
                v1::Value { null: true, ..Default::default() },
            ],
            oversized: true,
        }
    }

    fn same(written: impl FnOnce(&mut Vec<u8>), kind: Kind) {
        let mut out = Vec::new();
        written(&mut out);
        let expected = v1::Event { at_ns: AT, kind: Some(kind) };
        assert_eq!(v1::Event::decode(&out[..]).unwrap(), expected);
        assert_eq!(out, expected.encode_to_vec(), "as prost writes it");
    }

    #[test]
    fn what_is_written_is_what_prost_writes() {
        let (record, exchange) = (record(), ExchangeId(301));
        let operation = operation_of(&record);
        let asked_of = |operation| Kind::Asked(v1::Asked { exchange: 301, operation: Some(operation) });
        same(|out| asked(out, AT, exchange, &record, true), asked_of(operation.clone()));
        let without = v1::Operation { text: String::new(), parameters: Vec::new(), ..operation.clone() };
        same(|out| asked(out, AT, exchange, &record, false), asked_of(without));
        let empty = v1::Operation { text_truncated: false, ..Default::default() };
        same(|out| asked(out, AT, exchange, &OperationRecord::default(), true), asked_of(empty));

        let all = Finished {
            operation: record,
            outcome: Outcome::Aborted,
            status: shown("SELECT 1"),
            error: shown("no"),
            rows: 1 << 33,
            columns: vec![(shown("abalance"), "int4".into()), (shown(""), "".into())],
            asked_at: Instant(5),
            first_reply_at: Some(Instant(1 << 50)),
            finished_at: Instant(u64::MAX),
            request_bytes: 127,
            response_bytes: 128,
            rule: "db".into(),
        };
        let message = v1::Finished {
            exchange: 301,
            operation: Some(operation),
            outcome: v1::Outcome::Aborted.into(),
            status: "SELECT 1".into(),
            error: "no".into(),
            rows: 1 << 33,
            columns: vec![
                v1::Column { name: "abalance".into(), r#type: "int4".into() },
                v1::Column::default(),
            ],
            asked_at_ns: 5,
            first_reply_at_ns: 1 << 50,
            finished_at_ns: u64::MAX,
            request_bytes: 127,
            response_bytes: 128,
            rule: "db".into(),
            tags: vec!["a".into(), "b".into()],
        };
        same(|out| finished(out, AT, exchange, &all, true, &["a", "b"]), Kind::Finished(message));
    }

    #[test]
    fn verdicts_too() {
        let permit = GrantKey::for_tests().permit(ExchangeId(1), "db".into());
        let message = v1::Judged {
            exchange: 1,
            allowed: true,
            rule: "db".into(),
            reason: String::new(),
            waited_ns: 1 << 20,
            would_deny: false,
        };
        let verdict = Verdict::Allow(permit);
        same(|out| judged(out, AT, ExchangeId(1), &verdict, 1 << 20), Kind::Judged(message.clone()));
        let denial = weir_protocols::Denial { rule: "db".into(), reason: "no".into() };
        let denied = v1::Judged { allowed: false, reason: "no".into(), waited_ns: 0, ..message };
        same(|out| judged(out, AT, ExchangeId(1), &Verdict::Deny(denial), 0), Kind::Judged(denied));
    }

    #[test]
    fn what_is_not_utf_8_is_shown_as_such() {
        let name = MaskPlan::standard().text(&bytes::Bytes::from_static(b"a\xffb"));
        let record = OperationRecord { name: name.clone(), ..OperationRecord::default() };
        let operation = v1::Operation { name: name.to_text(), ..Default::default() };
        let kind = Kind::Asked(v1::Asked { exchange: 1, operation: Some(operation) });
        same(|out| asked(out, AT, ExchangeId(1), &record, true), kind);
    }
}
