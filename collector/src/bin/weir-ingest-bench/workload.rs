//! What is shipped: statements as agents write them, with values of their own, so that neither the index nor its words
//! repeat more than they do in life. The same numbers give the same bytes.

use bytes::Bytes;
use prost::Message;
use weir_proto::seal::{self, Anchor, Draft, JournalRange, Sealed, Sealer, Segment};
use weir_proto::v1::{self, event::Kind};
use weir_proto::{RunId, SessionId};

use crate::node::Node;

/// One exchange in so many answers with [`PAYLOAD_BYTES`], the others with one short row.
const LARGE_EVERY: u64 = 10;
const PAYLOAD_BYTES: usize = 4096;
/// One in so many is what the phrase search looks for.
const DROP_EVERY: u64 = 1000;
pub(crate) const SEGMENTS_PER_SESSION: u64 = 25;
/// Sessions of one agent that go on at the same time.
const SESSIONS_AT_A_TIME: usize = 4;
pub(crate) const IDENTITIES: u64 = 50;
pub(crate) const DAYS: u64 = 30;
const DAY_NS: i64 = 86_400_000_000_000;
/// Between exchanges, and how long one takes.
const PAUSE_NS: u64 = 7_000_000;
const TAKES_NS: u64 = 1_300_000;
/// zstd, as the node agent has it when nothing presses.
const LEVEL: i32 = 3;

/// Splitmix64: enough for values that differ.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.roll() % end
    }

    fn word(&mut self) -> &'static str {
        const WORDS: &[&str] = &[
            "invoice",
            "customer",
            "shipment",
            "warehouse",
            "ledger",
            "refund",
            "coupon",
            "supplier",
            "region",
            "account",
            "balance",
            "payment",
            "delivery",
            "contract",
            "employee",
            "payroll",
            "vacation",
            "ticket",
            "incident",
            "sensor",
            "meter",
            "reading",
            "device",
            "firmware",
            "release",
            "branch",
            "commit",
            "review",
            "session",
            "profile",
            "address",
            "country",
            "currency",
            "exchange",
            "quarter",
            "forecast",
            "budget",
            "project",
            "milestone",
            "report",
        ];
        WORDS[self.below(WORDS.len() as u64) as usize]
    }
}

/// About a hundred bytes.
fn statement(dice: &mut Dice) -> (String, &'static str) {
    if dice.below(DROP_EVERY) == 0 {
        return (
            format!("DROP TABLE IF EXISTS staging.{}_{} CASCADE", dice.word(), dice.below(10_000)),
            "DROP TABLE",
        );
    }
    let (a, b, n, day) = (dice.word(), dice.word(), dice.below(1_000_000), dice.below(28) + 1);
    match dice.below(8) {
        0 => (
            format!(
                "SELECT id, status, total FROM {a}s WHERE customer_id = {n} AND created_at >= '2026-09-{day:02}' ORDER BY id DESC LIMIT 50"
            ),
            "SELECT",
        ),
        1 => (
            format!(
                "SELECT count(*), sum(amount) FROM {a}_{b} WHERE tenant = 'tenant-{}' AND kind = '{b}' GROUP BY kind",
                n % 997
            ),
            "SELECT",
        ),
        2 => (
            format!(
                "UPDATE {a}s SET status = 'done', updated_at = now(), note = '{b} checked' WHERE id = {n}"
            ),
            "UPDATE",
        ),
        3 => (
            format!(
                "INSERT INTO audit.{a}_log (actor, object, detail) VALUES ('agent-{}', {n}, 'set {b} to {day}')",
                n % 53
            ),
            "INSERT 0",
        ),
        4 => (
            format!(
                "SELECT u.email, p.name FROM users u JOIN {a}s p ON p.user_id = u.id WHERE u.email = '{b}{n}@example.com'"
            ),
            "SELECT",
        ),
        5 => (
            format!(
                "DELETE FROM {a}_queue WHERE locked_until < now() - interval '{day} minutes' AND worker = '{b}-{}'",
                n % 89
            ),
            "DELETE",
        ),
        6 => (
            format!(
                "SELECT * FROM information_schema.columns WHERE table_schema = 'public' AND table_name = '{a}_{b}'"
            ),
            "SELECT",
        ),
        _ => (
            format!(
                "EXPLAIN ANALYZE SELECT {a}, {b}, avg(price) FROM sales WHERE region_id = {} GROUP BY 1, 2 HAVING avg(price) > {day}",
                n % 200
            ),
            "EXPLAIN",
        ),
    }
}

/// A row as the protocol carries it: text with values of its own.
fn payload(dice: &mut Dice, bytes: usize) -> Bytes {
    let mut text = String::with_capacity(bytes + 64);
    while text.len() < bytes {
        text.push_str(&format!(
            "{{\"id\":{},\"{}\":\"{}-{:x}\",\"at\":\"2026-10-{:02}\"}},",
            dice.below(10_000_000),
            dice.word(),
            dice.word(),
            dice.roll() >> 24,
            dice.below(28) + 1
        ));
    }
    text.truncate(bytes);
    Bytes::from(text)
}

fn columns() -> Vec<v1::Column> {
    let column = |name: &str, r#type: &str| v1::Column { name: name.into(), r#type: r#type.into() };
    vec![column("id", "int8"), column("status", "text"), column("total", "numeric")]
}

/// What one agent ships, in order. Of `sessions` sessions of the whole load these are every `agents`th.
pub(crate) fn sealed(
    node: &Node,
    agent: u64,
    agents: u64,
    sessions: u64,
    per_segment: u64,
    now_ns: i64,
) -> Vec<Sealed> {
    let mut sealer = Sealer::new(node.signer.clone(), LEVEL);
    let mut out = Vec::new();
    let mine: Vec<u64> = (0..sessions).filter(|session| session % agents == agent).collect();
    for group in mine.chunks(SESSIONS_AT_A_TIME) {
        let mut open: Vec<_> =
            group.iter().map(|session| Recording::new(node, *session, sessions, now_ns)).collect();
        for seq in 0..SEGMENTS_PER_SESSION {
            for recording in &mut open {
                out.push(recording.segment(&mut sealer, seq, per_segment));
            }
        }
    }
    out
}

/// Sessions are spread over the days before now, in the order in which they are shipped.
fn wall_ns(number: u64, sessions: u64, now_ns: i64) -> i64 {
    now_ns - (DAYS as i64 * DAY_NS) / sessions as i64 * (sessions - number) as i64
}

fn identity(number: u64) -> String {
    format!("uid:{}", 1000 + number % IDENTITIES)
}

/// Somebody, and a day on which they did something.
pub(crate) fn identity_day(sessions: u64, now_ns: i64) -> (String, i64, i64) {
    let number = sessions / 3;
    let at_ns = wall_ns(number, sessions, now_ns);
    (identity(number), at_ns - DAY_NS / 2, at_ns + DAY_NS / 2)
}

struct Recording<'n> {
    node: &'n Node,
    session: SessionId,
    run: RunId,
    number: u64,
    wall: Anchor,
    at_ns: u64,
    ordinal: u64,
    head: seal::Hash,
    dice: Dice,
}

impl<'n> Recording<'n> {
    fn new(node: &'n Node, number: u64, sessions: u64, now_ns: i64) -> Self {
        let wall_ns = wall_ns(number, sessions, now_ns);
        let boot_ns = 1_000_000_000_000 + number * 60_000_000_000;
        Self {
            node,
            session: SessionId::generate(),
            run: RunId::generate(),
            number: number + 1,
            wall: Anchor { unix_ns: wall_ns, boot_ns, synchronized: true },
            at_ns: boot_ns,
            ordinal: 0,
            head: seal::NO_HASH,
            dice: Dice(number),
        }
    }

    fn segment(&mut self, sealer: &mut Sealer, seq: u64, exchanges: u64) -> Sealed {
        let (mut plain, mut events) = (Vec::new(), 0);
        let first_ns = self.at_ns;
        let mut push = |at_ns: u64, kind: Kind| {
            seal::push_event(&mut plain, &v1::Event { at_ns, kind: Some(kind) }.encode_to_vec());
            events += 1;
        };
        if seq == 0 {
            push(self.at_ns, Kind::Opened(opened(self.node, self.session, self.run, self.number)));
            let facts = v1::Facts {
                protocol: "postgres".into(),
                protocol_version: "3.0".into(),
                coverage: v1::Coverage::Inspected as i32,
                values: [("user".to_owned(), "app".to_owned()), ("database".to_owned(), "shop".to_owned())]
                    .into(),
                ..Default::default()
            };
            push(self.at_ns, Kind::Facts(facts));
        }
        for _ in 0..exchanges {
            self.ordinal += 1;
            let dice = &mut self.dice;
            let (text, tag) = statement(dice);
            let operation = v1::Operation {
                kind: "sql".into(),
                verb: "query".into(),
                text: text.clone(),
                ..Default::default()
            };
            let (exchange, asked_ns) = (self.ordinal, self.at_ns);
            let end_ns = asked_ns + TAKES_NS + dice.below(TAKES_NS);
            let large = dice.below(LARGE_EVERY) == 0;
            let answer = payload(dice, if large { PAYLOAD_BYTES } else { 60 });
            let request = Bytes::from(format!("Q\0\0\0\0{text}\0"));
            let (request_bytes, response_bytes) = (request.len() as u64, answer.len() as u64);
            let data = |direction: v1::Direction, bytes| {
                Kind::Data(v1::Data { exchange, direction: direction as i32, bytes, ..Default::default() })
            };
            push(asked_ns, Kind::Asked(v1::Asked { exchange, operation: Some(operation.clone()) }));
            push(
                asked_ns,
                Kind::Judged(v1::Judged {
                    exchange,
                    allowed: true,
                    rule: "default".into(),
                    ..Default::default()
                }),
            );
            push(asked_ns, data(v1::Direction::Request, request));
            push(end_ns, data(v1::Direction::Response, answer));
            let rows = dice.below(50);
            let finished = v1::Finished {
                exchange,
                operation: Some(operation),
                outcome: v1::Outcome::Ok as i32,
                status: format!("{tag} {rows}"),
                rows,
                columns: if tag == "SELECT" { columns() } else { Vec::new() },
                asked_at_ns: asked_ns,
                first_reply_at_ns: end_ns - 1000,
                finished_at_ns: end_ns,
                request_bytes,
                response_bytes,
                rule: "default".into(),
                ..Default::default()
            };
            push(end_ns, Kind::Finished(finished));
            self.at_ns = end_ns + PAUSE_NS;
        }
        let draft = Draft {
            node: self.node.id,
            session: self.session,
            number: self.number,
            run: self.run,
            generation: self.node.generation,
            seq,
            prev_hash: self.head,
            last: false,
            first_ns,
            last_ns: self.at_ns,
            wall: self.wall,
            events,
            journal: JournalRange { journal: [0; 16], from: 0, to: 0 },
        };
        let key = self.node.key.session_key(&self.session);
        let sealed = sealer.seal(&draft, &plain, &key).expect("the load is a recording");
        self.head = *Segment::parse(sealed.bytes.clone()).expect("it was just sealed").hash();
        sealed
    }
}

/// Identities take turns, so that each has sessions on every day.
fn opened(node: &Node, session: SessionId, run: RunId, number: u64) -> v1::Opened {
    v1::Opened {
        session_id: session.to_field(),
        node_id: node.id.to_field(),
        node_number: number,
        run: Some(v1::Run {
            id: run.to_field(),
            principal: Some(v1::Principal { subject: identity(number - 1), ..Default::default() }),
            initiator: "exec uid:0".into(),
            argv: vec!["agent".into()],
            host: node.name.clone(),
            ..Default::default()
        }),
        process: Some(v1::Process { pid: 42, comm: "agent".into(), ..Default::default() }),
        origin: Some(v1::Address { ip: "10.0.0.9".into(), port: 5432 }),
        target: "shop".into(),
        ..Default::default()
    }
}
