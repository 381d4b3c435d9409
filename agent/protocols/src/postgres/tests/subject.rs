//! PostgreSQL in the property suite.

use bytes::Bytes;

use super::server::Small;
use super::wire::*;
use crate::operation::Operation;
use crate::postgres::Postgres;
use crate::seam::Side::{self, Client, Upstream};
use crate::suite::{self, Step, Subject};

const PASSWORD: &[u8] = b"pl4nted-passw0rd";
const LITERAL: &[u8] = b"pl4nted-literal";

suite::properties!(SUBJECT);

const SUBJECT: Subject = Subject {
    name: "postgres",
    start: |start| Box::new(Postgres::new(start)),
    captures,
    plays,
    server: || Box::new(Small::default()),
    denied: |operation| matches!(operation, Operation::Sql(sql) if contains(&sql.text, FORBIDDEN)),
    forbidden: FORBIDDEN,
    secrets: &[PASSWORD, LITERAL, b"k3y!", b"sasl-pr00f"],
    held_bytes_max: crate::postgres::HELD_BYTES_MAX,
    bulk,
};

const FORBIDDEN: &[u8] = b"FORBIDDEN";

fn contains(text: &[u8], needle: &[u8]) -> bool {
    text.windows(needle.len()).any(|window| window == needle)
}

fn c(bytes: Bytes) -> Step {
    Step::Data(Client, bytes)
}

fn s(messages: &[Bytes]) -> Step {
    Step::Data(Upstream, join(messages))
}

fn opened() -> Vec<Step> {
    vec![
        c(startup(&[("user", "ada"), ("database", "shop"), ("application_name", "psql")])),
        s(&[authentication(10, b"SCRAM-SHA-256\0\0")]),
        c(password(b"SCRAM-SHA-256\0\0\0\0\x10n,,n=,r=sasl-pr00f")),
        s(&[authentication(11, b"r=sasl-pr00f,s=AA,i=4096")]),
        c(password(b"c=biws,r=sasl-pr00f,p=sasl-pr00f")),
        s(&[authentication(12, b"v=sasl-pr00f"), welcome()]),
    ]
}

fn captures() -> Vec<Vec<Step>> {
    let mut all = written();
    // Of psql and pgbench; `real` makes them anew when WEIR_CAPTURES_UPDATE names a folder.
    for capture in [
        &include_bytes!("../../../captures/postgres/copy-in")[..],
        include_bytes!("../../../captures/postgres/copy-out"),
        include_bytes!("../../../captures/postgres/error"),
        include_bytes!("../../../captures/postgres/pipeline"),
    ] {
        all.push(suite::captured(capture));
    }
    all
}

fn written() -> Vec<Vec<Step>> {
    let after = |steps: Vec<Step>| {
        let mut all = opened();
        all.extend(steps);
        all.push(c(terminate()));
        all
    };
    vec![
        after(vec![
            c(query("CREATE ROLE bob PASSWORD 'pl4nted-literal'")),
            s(&[complete("CREATE ROLE"), ready(b'I')]),
            c(query("SELECT 1; SELECT name FROM shop")),
            s(&[
                columns(&[("?column?", 23, 0)]),
                row(&[Some(b"1")]),
                complete("SELECT 1"),
                columns(&[("name", 25, 0)]),
                row(&[Some(b"tea")]),
                row(&[None]),
                complete("SELECT 2"),
                notice("that was all"),
                ready(b'I'),
            ]),
        ]),
        after(vec![
            c(join(&[parse("s1", "SELECT $1::int4", &[23]), describe(b'S', "s1"), sync()])),
            s(&[bare(b'1'), parameter_types(&[23]), columns(&[("int4", 23, 0)]), ready(b'I')]),
            c(join(&[bind("", "s1", 1, &[Some(&[0, 0, 0, 9])], 1), execute("", 0), sync()])),
            s(&[bare(b'2'), row(&[Some(&[0, 0, 0, 9])]), complete("SELECT 1"), ready(b'I')]),
            s(&[notification("jobs", "one")]),
        ]),
        after(vec![
            c(query("COPY t FROM STDIN")),
            s(&[copy_response(b'G')]),
            c(join(&[copy_data(b"1\tone\n"), copy_data(b"2\ttwo\n"), copy_done()])),
            s(&[complete("COPY 2"), ready(b'I')]),
            c(query("COPY t TO STDOUT")),
            s(&[
                copy_response(b'H'),
                copy_data(b"1\tone\n"),
                copy_data(b"2\ttwo\n"),
                bare(b'c'),
                complete("COPY 2"),
            ]),
            s(&[ready(b'I')]),
        ]),
        vec![
            c(ssl_request()),
            Step::Data(Upstream, Bytes::from_static(b"N")),
            c(startup(&[("user", "eve")])),
            s(&[authentication(3, b"")]),
            c(password(PASSWORD)),
            s(&[error("28P01", "password authentication failed for user \"eve\"")]),
            Step::End(Upstream),
            Step::End(Client),
        ],
        vec![c(cancel_request(b"k3y!")), Step::End(Upstream), Step::End(Client)],
        vec![
            c(ssl_request()),
            Step::Data(Upstream, Bytes::from_static(b"S")),
            c(Bytes::from_static(b"\x16\x03\x01 hello")),
            Step::Data(Upstream, Bytes::from_static(b"\x16\x03\x03 hello")),
            Step::End(Client),
            Step::End(Upstream),
        ],
    ]
}

/// Every play logs in by password, against [`Small`].
fn plays() -> Vec<Vec<Bytes>> {
    let login = || vec![startup(&[("user", "ada")]), password(PASSWORD)];
    let batch = |name: &str, text: &str| {
        vec![parse(name, text, &[]), bind("", name, 0, &[], 0), describe(b'P', ""), execute("", 0)]
    };
    let play = |messages: Vec<Vec<Bytes>>| {
        let mut all = login();
        all.extend(messages.iter().map(|messages| join(messages)));
        all
    };
    vec![
        play(vec![
            vec![query("BEGIN")],
            vec![
                query("SELECT 'FORBIDDEN'"),
                query("SELECT 2"),
                query("FAIL"),
                query("SELECT 'FORBIDDEN' again"),
            ],
            vec![query("COMMIT"), terminate()],
        ]),
        play(vec![
            [batch("", "SELECT 1"), batch("", "SELECT FORBIDDEN"), batch("", "SELECT 3"), vec![sync()]]
                .concat(),
            [batch("", "SELECT 4"), vec![sync()], batch("", "FORBIDDEN 5"), vec![sync()]].concat(),
            [batch("s", "SELECT 6"), vec![sync(), query("FORBIDDEN 7"), bind("", "s", 0, &[], 0)]].concat(),
            vec![execute("", 0), flush(), sync()],
            [batch("", "FAIL"), batch("", "FORBIDDEN 8"), vec![sync()], batch("", "SELECT 9"), vec![sync()]]
                .concat(),
        ]),
        play(vec![
            vec![
                query("COPY t FROM STDIN"),
                copy_data(b"1"),
                copy_data(b"2"),
                copy_done(),
                query("SELECT 1"),
            ],
            vec![query("COPY FORBIDDEN FROM STDIN"), copy_data(b"FORBIDDEN"), copy_done(), query("SELECT 2")],
            // Not by the extended protocol: there the server gets a Flush of ours, and not all Syncs (`copy`).
            vec![query("COPY t FROM STDIN"), copy_data(b"1"), copy_fail("no"), query("SELECT 4")],
            vec![call(1598, b"7"), query("SELECT 3")],
        ]),
        play(vec![
            // Larger than a frame, and larger than what is held.
            vec![query(&format!("SELECT '{}'", "x".repeat(100_000))), query("SELECT 1")],
            vec![query(&format!("FORBIDDEN '{}'", "x".repeat(1_200_000))), query("SELECT 2")],
            vec![query(&format!("SELECT '{}'", "y".repeat(1_200_000))), query("SELECT 3")],
        ]),
    ]
}

fn bulk(size: usize) -> Vec<Step> {
    let mut steps = opened();
    for n in 0..size {
        steps.push(c(join(&[
            parse("", &format!("SELECT {n}"), &[]),
            bind("", "", 0, &[], 0),
            execute("", 0),
            sync(),
        ])));
        let rows: Vec<Bytes> = (0..20).map(|_| row(&[Some(b"some value"), None])).collect();
        steps.push(s(&[bare(b'1'), bare(b'2'), join(&rows), complete("SELECT 20"), ready(b'I')]));
    }
    steps
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 300, failure_persistence: None, ..Default::default() })]

    /// Sound frames with random bodies reach deeper than random bytes: the server that answers them is random, too.
    #[test]
    fn no_bodies_panic(
        manner in proptest::num::u8::ANY,
        frames in proptest::collection::vec(
            (proptest::bool::ANY, 0usize..24, proptest::collection::vec(proptest::num::u8::ANY, 0..40)), 0..60),
    ) {
        let client = *b"QPBEDCSHFdcfXpQPBEPBESSS";
        let server = *b"123CDEGHIKNARSTVWZcdnstv";
        let mut data = vec![manner];
        let mut say = |from: Side, bytes: &[u8]| {
            for chunk in bytes.chunks(100) {
                data.push((chunk.len() as u8) << 1 | from.index() as u8);
                data.extend_from_slice(chunk);
            }
        };
        say(Client, &startup(&[("user", "ada")]));
        say(Upstream, &welcome());
        for (side, tag, body) in frames {
            let (from, tag) = if side { (Client, client[tag]) } else { (Upstream, server[tag]) };
            say(from, &crate::postgres::frame::message(tag, &body));
        }
        crate::postgres::fuzz(&data);
    }
}
