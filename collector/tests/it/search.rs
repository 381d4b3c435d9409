//! Searching, following, and what a run touched: over the real sockets and the real index.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tonic::Code;
use weir_proto::RunId;
use weir_proto::v1::{self, Outcome, event::Kind};

use crate::agent::{Agent, BOOT, Recorded, Shipping, WALL, event, finished};
use crate::client::{said, weir};
use crate::collector::Collector;

/// Full text follows within 2 s; a machine under load is given more.
const INDEXED_TIMEOUT: Duration = Duration::from_secs(30);

/// One exchange as a test thinks of it.
#[derive(Clone)]
struct Said {
    kind: &'static str,
    verb: &'static str,
    text: String,
    error: &'static str,
    status: &'static str,
    outcome: Outcome,
    rows: u64,
    took_ns: u64,
    bytes: u64,
    parameter: &'static str,
    would: bool,
    body: &'static str,
}

fn sql(text: &str) -> Said {
    Said {
        kind: "sql",
        verb: "query",
        text: text.to_owned(),
        error: "",
        status: "SELECT 1",
        outcome: Outcome::Ok,
        rows: 1,
        took_ns: 1_000,
        bytes: 100,
        parameter: "",
        would: false,
        body: "",
    }
}

fn http(method: &'static str, url: &str, status: &'static str) -> Said {
    let outcome = if status >= "400" { Outcome::Error } else { Outcome::Ok };
    Said { kind: "http", verb: method, status, outcome, rows: 0, ..sql(url) }
}

impl Said {
    fn events(&self, exchange: u64, at: u64) -> Vec<v1::Event> {
        let operation = v1::Operation {
            kind: self.kind.into(),
            verb: self.verb.into(),
            text: self.text.clone(),
            parameters: (!self.parameter.is_empty())
                .then(|| v1::Value { shown: self.parameter.into(), ..Default::default() })
                .into_iter()
                .collect(),
            ..Default::default()
        };
        let finished = v1::Finished {
            operation: Some(operation.clone()),
            outcome: self.outcome as i32,
            status: self.status.into(),
            error: self.error.into(),
            rows: self.rows,
            finished_at_ns: BOOT + at + self.took_ns,
            response_bytes: self.bytes,
            tags: if self.would { vec!["would-deny".into()] } else { Vec::new() },
            ..finished(exchange, at)
        };
        let asked = event(at, Kind::Asked(v1::Asked { exchange, operation: Some(operation) }));
        let data = event(
            at,
            Kind::Data(v1::Data {
                exchange,
                direction: v1::Direction::Response as i32,
                bytes: self.body.into(),
                ..Default::default()
            }),
        );
        let finished = event(at + self.took_ns, Kind::Finished(finished));
        if self.body.is_empty() { vec![asked, finished] } else { vec![asked, data, finished] }
    }
}

/// A session while its exchanges are shipped.
struct Talk {
    recorded: Recorded,
    exchange: u64,
    at: u64,
    protocol: &'static str,
    principal: &'static str,
}

impl Talk {
    fn new(agent: &mut Agent, run: RunId, protocol: &'static str) -> Self {
        Self { recorded: agent.session(run), exchange: 0, at: 100, protocol, principal: "uid:1000" }
    }

    /// The next segment.
    async fn ship(&mut self, shipping: &mut Shipping, said: &[Said]) {
        let mut events = Vec::new();
        if self.exchange == 0 {
            let mut opened = self.recorded.opened_event();
            if let Some(Kind::Opened(opened)) = &mut opened.kind
                && let Some(principal) = opened.run.as_mut().and_then(|run| run.principal.as_mut())
            {
                principal.subject = self.principal.into();
            }
            events.push(opened);
            let values = [("database", "shop"), ("user", "alice")];
            let values = values.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
            let facts = v1::Facts {
                protocol: self.protocol.into(),
                coverage: v1::Coverage::Inspected as i32,
                values,
                ..Default::default()
            };
            events.push(event(10, Kind::Facts(facts)));
        }
        for one in said {
            self.exchange += 1;
            events.extend(one.events(self.exchange, self.at));
            self.at += one.took_ns + 1;
        }
        let sealed = self.recorded.seal(&events, false);
        shipping.receipt(&sealed).await;
    }
}

async fn ask(collector: &Collector, asked: v1::SearchRequest) -> Result<v1::SearchResponse, tonic::Status> {
    Ok(collector.query().await.search(collector.asked(asked)).await?.into_inner())
}

async fn search(collector: &Collector, query: &str) -> Result<Vec<v1::SearchHit>, tonic::Status> {
    let asked = v1::SearchRequest { query: query.into(), ..Default::default() };
    let answer = ask(collector, asked).await?;
    assert!(answer.next_cursor.is_empty() && !answer.incomplete, "{query}: one page");
    Ok(answer.hits)
}

async fn indexed(collector: &Collector) {
    let began = Instant::now();
    while ask(collector, v1::SearchRequest::default()).await.unwrap().unindexed > 0 {
        assert!(began.elapsed() < INDEXED_TIMEOUT, "full text does not follow");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// (session number, exchange)
fn place(hit: &v1::SearchHit) -> (u64, u64) {
    let exchange = hit.exchange.as_ref().unwrap();
    (exchange.node_number, exchange.ordinal)
}

async fn found(collector: &Collector, query: &str) -> Vec<(u64, u64)> {
    let mut found: Vec<_> = search(collector, query).await.unwrap().iter().map(place).collect();
    found.sort_unstable();
    found
}

#[tokio::test]
async fn words_and_fields_find_what_they_should() {
    let collector = Collector::start().await;
    let mut agent = Agent::join(&collector, "db-1").await;
    let mut shipping = agent.ship(&collector).await;
    let run = RunId::generate();
    let mut talk = Talk::new(&mut agent, run, "postgres");
    talk.ship(
        &mut shipping,
        &[
            sql("SELECT * FROM customers WHERE name = $1"),
            Said { rows: 5_000, bytes: 2 << 20, took_ns: 2_000_000_000, ..sql("select id from orders_2024") },
            Said {
                outcome: Outcome::Error,
                status: "42P01",
                error: "relation \"missing\" does not exist",
                rows: 0,
                ..sql("SELECT * FROM missing")
            },
            Said { outcome: Outcome::Denied, error: "not for agents", ..sql("DROP TABLE customers") },
            Said {
                parameter: "alice's étude",
                would: true,
                ..sql("UPDATE customers SET a = $1 WHERE b = '50%_x'")
            },
        ],
    )
    .await;
    let other = RunId::generate();
    let mut web = Talk::new(&mut agent, other, "http");
    web.principal = "uid:1000 sha256:00ff";
    web.ship(
        &mut shipping,
        &[
            http("GET", "http://api.example.com:8080/v1/users/17?drop=table", "200"),
            http("POST", "http://api.example.com:8080/v1/users", "503"),
            Said {
                body: "HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\nContent-Length: 28\r\n\r\nnothing here, said Bob twice",
                ..http("GET", "http://files.example.com/v1", "404")
            },
        ],
    )
    .await;
    indexed(&collector).await;
    let all = [(1, 1), (1, 2), (1, 3), (1, 4), (1, 5), (2, 1), (2, 2), (2, 3)];
    let run_end = run.to_string()[28..].to_owned();
    for (query, wanted) in [
        ("", &all[..]),
        ("customers", &[(1, 1), (1, 4), (1, 5)]),
        ("CUSTOMERS -drop", &[(1, 1), (1, 5)]),
        ("\"drop table\"", &[(1, 4), (2, 1)]),
        ("drop table outcome:denied", &[(1, 4)]),
        ("\"table drop\"", &[]),
        ("custom*", &[(1, 1), (1, 4), (1, 5)]),
        ("\"from cust\"*", &[(1, 1)]),
        ("custom", &[]),
        ("orders", &[(1, 2)]),
        ("orders_2024", &[(1, 2)]),
        ("missing OR orders", &[(1, 2), (1, 3)]),
        ("(missing OR orders) -relation", &[(1, 2)]),
        ("error:relation", &[(1, 3)]),
        ("error:customers", &[]),
        ("text:alice", &[(1, 5)]),
        ("etude", &[(1, 5)]),
        ("body:customers", &[]),
        ("body:\"said bob\"", &[(2, 3)]),
        ("bob error:bob OR bob", &[(2, 3)]),
        ("outcome:error", &[(1, 3), (2, 2), (2, 3)]),
        ("outcome:ok", &[(1, 1), (1, 2), (1, 5), (2, 1)]),
        ("outcome:denied,error protocol:postgres", &[(1, 3), (1, 4)]),
        ("would:deny", &[(1, 5)]),
        ("-would:deny run:last -outcome:error", &[(2, 1)]),
        ("rows:>100", &[(1, 2)]),
        ("rows:0 protocol:POSTGRES", &[(1, 3)]),
        ("duration:>1s", &[(1, 2)]),
        ("bytes:>1MiB", &[(1, 2)]),
        ("bytes:100..100 run:last", &[(2, 1), (2, 2), (2, 3)]),
        ("status:5xx", &[(2, 2)]),
        ("status:>=400 method:get", &[(2, 3)]),
        ("status:42P01", &[(1, 3)]),
        ("host:api.example.com", &[(2, 1), (2, 2)]),
        ("host:api.example.com:8080 verb:POST", &[(2, 2)]),
        ("host:*.example.com", &[(2, 1), (2, 2), (2, 3)]),
        ("host:10.0.0.9", &all),
        ("host:10.0.0.9:5432", &all),
        ("host:10.0.0", &[]),
        ("path:/v1/users", &[(2, 2)]),
        ("path:/v1*", &[(2, 1), (2, 2), (2, 3)]),
        ("path:/v1", &[(2, 3)]),
        ("path:/v1/us*", &[(2, 1), (2, 2)]),
        ("-path:/v1* protocol:http", &[]),
        ("path:*users", &[(2, 2)]),
        ("target:orders", &all),
        ("target:ORD*", &all),
        ("target:order", &[]),
        ("node:db-1", &all),
        ("node:db-2", &[]),
        ("user:alice outcome:denied", &[(1, 4)]),
        ("user:uid:1000 outcome:denied", &[(1, 4)]),
        ("principal:uid:1000 outcome:denied", &[(1, 4)]),
        ("principal:uid:1000", &all),
        ("user:UID:1000 status:404", &[]),
        ("user:uid:1000 status:404", &[(2, 3)]),
        ("principal:\"uid:1000 sha256:00ff\"", &[(2, 1), (2, 2), (2, 3)]),
        ("principal:uid:1000*", &all),
        ("principal:uid:100", &[]),
        ("principal:alice", &[]),
        ("database:shop outcome:denied", &[(1, 4)]),
        ("label.team:db outcome:denied", &[(1, 4)]),
        ("label.team:x", &[]),
        ("label.other:db", &[]),
        ("text:50%_x", &[(1, 5)]),
        ("on:2025-11-13", &all),
        ("before:2025-11-13", &[]),
        ("after:2025-11-13T02:13:20 customers", &[(1, 1), (1, 4), (1, 5)]),
        ("after:1h", &[]),
        ("before:1h outcome:denied", &[(1, 4)]),
        ("outcome:running", &[]),
        ("-customers -orders -missing", &[(2, 1), (2, 2), (2, 3)]),
        ("run:last", &[(2, 1), (2, 2), (2, 3)]),
        ("-run:last", &[(1, 1), (1, 2), (1, 3), (1, 4), (1, 5)]),
        (&format!("run:{run_end} drop"), &[(1, 4)]),
        (&format!("session:{}", talk.recorded.session), &[(1, 1), (1, 2), (1, 3), (1, 4), (1, 5)]),
        (
            &format!("session:{} OR status:404", talk.recorded.session),
            &[(1, 1), (1, 2), (1, 3), (1, 4), (1, 5), (2, 3)],
        ),
    ] {
        assert_eq!(found(&collector, query).await, wanted, "{query}");
    }

    let hits = search(&collector, "\"drop table\" protocol:postgres").await.unwrap();
    let [snippet] = &hits[0].snippets[..] else { panic!("{:?}", hits[0].snippets) };
    assert_eq!((snippet.of.as_str(), snippet.text.as_str()), ("statement", "DROP TABLE customers"));
    assert_eq!((snippet.highlights[0].start, snippet.highlights[0].length), (0, 10));
    assert_eq!(hits[0].node_name, "db-1");
    assert_eq!(hits[0].run_id, run.to_field());
    let hits = search(&collector, "bob").await.unwrap();
    let [snippet] = &hits[0].snippets[..] else { panic!("{:?}", hits[0].snippets) };
    assert_eq!((snippet.of.as_str(), snippet.highlights.len()), ("body", 1), "{snippet:?}");
    assert!(snippet.text.contains("said Bob twice"), "{snippet:?}");
    let newest: Vec<_> = search(&collector, "v1").await.unwrap().iter().map(place).collect();
    assert_eq!(newest, [(2, 3), (2, 2), (2, 1)], "the newest first");

    let refused = async |query: &str| search(&collector, query).await.unwrap_err();
    assert_eq!(refused("run:ffff").await.code(), Code::NotFound);
    assert_eq!(refused("hots:x").await.code(), Code::InvalidArgument);
    assert!(refused("hots:x").await.message().contains("did you mean host"));
    assert_eq!(refused(&"a ".repeat(65)).await.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn no_string_breaks_the_search() {
    let collector = Collector::start().await;
    let mut agent = Agent::join(&collector, "db-1").await;
    let mut shipping = agent.ship(&collector).await;
    let run = RunId::generate();
    Talk::new(&mut agent, run, "postgres").ship(&mut shipping, &[sql("SELECT 1"), sql("a b c NEAR")]).await;
    indexed(&collector).await;
    let run = run.to_string();
    let parts = [
        "(",
        ")",
        "\"",
        "*",
        "-",
        ":",
        ",",
        " ",
        " OR ",
        " AND ",
        "NOT ",
        "NEAR(a b, 2)",
        "a",
        "b*",
        "host:",
        "rows:>",
        "..",
        "\\",
        "after:1h",
        "before:now",
        "{asked}:",
        "{error} : ",
        "^a",
        "'",
        "';--",
        "%",
        "_",
        "label.k:",
        "last",
        "é",
        "\u{202e}",
        "4xx",
        "+",
        "[",
        "]",
        "run:",
        "run:last ",
        "session:0",
        "target:",
        "*x",
        "x*",
        "user:",
        "path:/",
        "status:",
        "½",
        "\u{0301}",
        "あ",
        "🦀",
        "verb:",
        "database:",
        "text:",
        "error:\"",
        "body:",
        "duration:<1s",
        "bytes:1..",
        "\u{7f}",
        "\n",
        "protocol:",
        "node:",
        "outcome:ok",
        "would:deny",
        "principal:",
        "on:today",
        "\u{fffd}",
        "0x",
        "NULL",
        "\"\"\"",
        "a\"b",
        "\t",
    ];
    let mut query = collector.query().await;
    let mut dice: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut draw = |below: usize| {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        (dice % below as u64) as usize
    };
    let mut answered = 0;
    for round in 0..600 {
        let text: String = (0..1 + draw(9)).map(|_| parts[draw(parts.len())]).collect();
        let text = if round % 10 == 0 { format!("run:{run} {text}") } else { text };
        let asked = v1::SearchRequest { query: text.clone(), order: round % 3, page: None };
        match query.search(collector.asked(asked)).await {
            Ok(_) => answered += 1,
            Err(status) => assert!(
                matches!(status.code(), Code::InvalidArgument | Code::NotFound),
                "{text:?}: {status:?}"
            ),
        }
    }
    assert!(answered > 50, "only {answered} of them were questions");
}

#[tokio::test]
async fn pages_stay_right_while_others_write() {
    const FIRST: usize = 1_500;
    let mut collector = Collector::start().await;
    let mut agent = Agent::join(&collector, "db-1").await;
    let mut shipping = agent.ship(&collector).await;
    let run = RunId::generate();
    let mut talk = Talk::new(&mut agent, run, "postgres");
    let some = |count: usize| (0..count).map(|n| sql(&format!("SELECT needle {n}"))).collect::<Vec<_>>();
    for _ in 0..FIRST / 100 {
        talk.ship(&mut shipping, &some(100)).await;
    }
    indexed(&collector).await;
    for (query, order) in [
        ("needle", v1::SearchOrder::NewestFirst),
        ("", v1::SearchOrder::NewestFirst),
        ("needle", v1::SearchOrder::OldestFirst),
        ("run:last", v1::SearchOrder::OldestFirst),
        ("principal:uid:1000 rows:1", v1::SearchOrder::NewestFirst),
    ] {
        let before = talk.exchange;
        let mut seen = Vec::new();
        let mut cursor = String::new();
        loop {
            let page = Some(v1::Page { limit: 77, cursor });
            let asked = v1::SearchRequest { query: query.into(), page, order: order as i32 };
            let answer = ask(&collector, asked).await.unwrap();
            seen.extend(answer.hits.iter().map(|hit| place(hit).1));
            cursor = answer.next_cursor;
            if cursor.is_empty() {
                break;
            }
            // More comes while people read.
            talk.ship(&mut shipping, &some(10)).await;
        }
        let mut wanted: Vec<u64> = (1..=before).collect();
        if order == v1::SearchOrder::NewestFirst {
            wanted.reverse();
        }
        if seen != wanted {
            // Text that was not indexed when the first page was asked for is not in it; nothing else may differ.
            assert!(query == "needle", "{query}: {} of {} seen", seen.len(), wanted.len());
            let unique: BTreeSet<_> = seen.iter().collect();
            assert_eq!(unique.len(), seen.len(), "{query}: none twice");
            assert!(seen.len() >= FIRST, "{query}: {}", seen.len());
        }
        indexed(&collector).await;
    }

    let page = |cursor: &str| Some(v1::Page { limit: 5, cursor: cursor.into() });
    let asked =
        |query: &str, cursor: &str| v1::SearchRequest { query: query.into(), page: page(cursor), order: 0 };
    let first = ask(&collector, asked("needle", "")).await.unwrap();
    let cursor = first.next_cursor;
    let mut changed = cursor.clone().into_bytes();
    changed[3] ^= 1;
    let changed = String::from_utf8(changed).unwrap();
    for wrong in [
        asked("other", &cursor),
        asked("needle", &changed),
        asked("needle", "17"),
        v1::SearchRequest { order: v1::SearchOrder::OldestFirst as i32, ..asked("needle", &cursor) },
    ] {
        let refused = ask(&collector, wrong).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    }
    drop(shipping);
    collector.restart(async |_| {}).await;
    let second = ask(&collector, asked("needle", &cursor)).await.unwrap();
    assert_eq!(second.hits.len(), 5, "a cursor outlives the process");
    assert_ne!(place(&second.hits[0]), place(&first.hits[0]));
}

/// Takes items until so many hits came, or all that is known did.
async fn follow(
    stream: &mut tonic::Streaming<v1::TailItem>,
    wanted: usize,
    cursor: &mut String,
) -> Vec<(u64, u64)> {
    let mut hits = Vec::new();
    while hits.len() < wanted {
        let item = tokio::time::timeout(INDEXED_TIMEOUT, stream.message()).await.expect("a hit in time");
        let item = item.unwrap().expect("the tail goes on");
        hits.extend(item.hits.iter().map(place));
        *cursor = item.cursor;
    }
    hits
}

#[tokio::test]
async fn a_tail_outlives_its_collector_and_tells_everything_once() {
    let mut collector = Collector::start().await;
    let mut agent = Agent::join(&collector, "db-1").await;
    let mut shipping = agent.ship(&collector).await;
    let run = RunId::generate();
    let mut talk = Talk::new(&mut agent, run, "postgres");
    let round = |n: u64| [sql(&format!("SELECT needle {n}")), sql("hay")];
    talk.ship(&mut shipping, &round(0)).await;

    for query in ["needle", "text:needle OR body:needle", ""] {
        let step = if query.is_empty() { 1 } else { 2 };
        let tail = async |collector: &Collector, asked: v1::TailRequest| {
            collector.query().await.tail(collector.asked(asked)).await.unwrap().into_inner()
        };
        let mut told = Vec::new();
        let mut cursor = String::new();
        let began = talk.exchange;
        let asked = v1::TailRequest { query: query.into(), ..Default::default() };
        let mut stream = tail(&collector, asked.clone()).await;
        // The first item comes at once and says where the tail stands.
        let first = tokio::time::timeout(INDEXED_TIMEOUT, stream.message()).await.unwrap().unwrap().unwrap();
        assert!(first.hits.is_empty() && !first.cursor.is_empty(), "{query}: nothing from before");
        cursor.clone_from(&first.cursor);
        for n in 0..3 {
            talk.ship(&mut shipping, &round(n)).await;
        }
        told.extend(follow(&mut stream, 6 / step, &mut cursor).await);
        drop(stream);
        talk.ship(&mut shipping, &round(9)).await;
        drop(shipping);
        collector.restart(async |_| {}).await;
        shipping = agent.ship(&collector).await;
        talk.ship(&mut shipping, &round(10)).await;
        let again = v1::TailRequest { cursor: cursor.clone(), ..asked.clone() };
        let mut stream = tail(&collector, again).await;
        talk.ship(&mut shipping, &round(11)).await;
        told.extend(follow(&mut stream, 6 / step, &mut cursor).await);
        let wanted: Vec<_> = (began + 1..=began + 12).step_by(step).map(|exchange| (1, exchange)).collect();
        assert_eq!(told, wanted, "{query}");
        drop(stream);

        let wrong = v1::TailRequest { query: "other".into(), cursor, ..Default::default() };
        let refused = collector.query().await.tail(collector.asked(wrong)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }

    // Since a time, and only what is known.
    let all = talk.exchange;
    for (since, wanted) in [(1, all), (WALL, all), (WALL + 4 * 3600 * 1_000_000_000, 0)] {
        let asked = v1::TailRequest { since_unix_ns: since, no_follow: true, ..Default::default() };
        let mut stream = collector.query().await.tail(collector.asked(asked)).await.unwrap().into_inner();
        let mut hits = Vec::new();
        while let Some(item) = stream.message().await.unwrap() {
            hits.extend(item.hits.iter().map(place));
        }
        assert_eq!(hits.len() as u64, wanted, "since {since}");
    }
}

#[tokio::test]
async fn what_runs_is_told_when_it_ends_and_only_then() {
    let collector = Collector::start().await;
    let mut agent = Agent::join(&collector, "db-1").await;
    let mut shipping = agent.ship(&collector).await;
    let mut talk = Talk::new(&mut agent, RunId::generate(), "postgres");
    let mut stream =
        collector.query().await.tail(collector.asked(v1::TailRequest::default())).await.unwrap().into_inner();
    stream.message().await.unwrap();
    let long = Said { took_ns: 50, ..sql("SELECT pg_sleep(60)") };
    let [asked, ended] = <[v1::Event; 2]>::try_from(long.events(1, 200)).unwrap();
    let opened = talk.recorded.opened_event();
    let sealed = talk.recorded.seal(&[opened, asked], false);
    shipping.receipt(&sealed).await;
    assert_eq!(found(&collector, "outcome:running").await, [(1, 1)]);
    assert_eq!(found(&collector, "outcome:ok").await, []);
    let sealed = talk.recorded.seal(&[ended], false);
    shipping.receipt(&sealed).await;
    assert_eq!(follow(&mut stream, 1, &mut String::new()).await, [(1, 1)]);
    assert_eq!(found(&collector, "outcome:running").await, []);
    assert_eq!(found(&collector, "outcome:ok").await, [(1, 1)]);
}

#[tokio::test]
async fn a_search_answers_in_windows_over_many_rows() {
    const SEGMENTS: usize = 300;
    let collector = Collector::start().await;
    let mut agent = Agent::join(&collector, "db-1").await;
    let mut shipping = agent.ship(&collector).await;
    let mut talk = Talk::new(&mut agent, RunId::generate(), "postgres");
    for segment in 0..SEGMENTS {
        let mut said: Vec<_> = (0..100).map(|n| sql(&format!("SELECT {segment} {n}"))).collect();
        if segment == 3 {
            said[50] = Said { rows: 777, ..sql("SELECT needle") };
        }
        talk.ship(&mut shipping, &said).await;
    }
    indexed(&collector).await;
    for query in
        ["needle", "rows:777", "select needle rows:777", "run:last rows:>776", "-(outcome:ok rows:1)"]
    {
        assert_eq!(found(&collector, query).await, [(1, 351)], "{query}");
    }
    let asked = v1::SearchRequest {
        query: "select".into(),
        page: Some(v1::Page { limit: u32::MAX, cursor: String::new() }),
        order: 0,
    };
    assert_eq!(ask(&collector, asked).await.unwrap().hits.len(), 1000, "a page is bounded");
}

#[tokio::test]
async fn the_client_searches_follows_and_adds_up() {
    let mut collector = Collector::start().await;
    // The next life of the collector is to be found where the first was.
    collector.config.listen = collector.address().parse().unwrap();
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    said(home, &["login", &collector.admin.to_string()]).await;
    let mut agent = Agent::join(&collector, "db-1").await;
    let mut shipping = agent.ship(&collector).await;
    let mut talk = Talk::new(&mut agent, RunId::generate(), "postgres");
    talk.ship(
        &mut shipping,
        &[
            sql("SELECT * FROM customers"),
            Said { verb: "execute", ..sql("INSERT INTO orders SELECT * FROM basket") },
            Said { outcome: Outcome::Denied, error: "no", ..sql("DROP TABLE orders") },
            sql("SELECT '\x1b[2J' FROM"),
        ],
    )
    .await;
    indexed(&collector).await;

    let out = weir(home, &["search", "customers", "OR", "drop"]).await;
    let (text, hint) = (String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap());
    assert!(text.contains("SELECT * FROM customers") && text.contains("DROP TABLE orders"), "{text}");
    assert!(
        text.contains("denied") && text.contains("db-1") && text.contains("10.0.0.9:5432 (orders)"),
        "{text}"
    );
    assert!(hint.contains("2 exchanges shown") && hint.contains("weir play"), "{hint}");
    assert!(!text.contains('\x1b'));
    let named = text.split_whitespace().find_map(|word| word.split_once("/3")).unwrap().0;
    assert!(said(home, &["show", named]).await.contains("DROP TABLE orders"), "the short name is a name");
    let lines =
        said(home, &["search", "--json", "--oldest-first", "--limit", "2", "protocol:postgres", "-execute"])
            .await;
    let lines: Vec<serde_json::Value> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2, "a line for each");
    assert_eq!(
        (&lines[0]["statement"], &lines[0]["exchange"]),
        (&"SELECT * FROM customers".into(), &1.into())
    );
    let lines = said(home, &["search", "-denied", "customers", "-database:x", "--all", "--json"]).await;
    let hit: serde_json::Value = serde_json::from_str(&lines).unwrap();
    assert_eq!(hit["snippets"][0]["highlights"][0], serde_json::json!([14, 9]));
    assert_eq!(said(home, &["search", "nowhere"]).await, "nothing found\n");
    let wrong = weir(home, &["search", "a", "hots:x"]).await;
    let told = String::from_utf8(wrong.stderr).unwrap();
    assert_eq!(wrong.status.code(), Some(1));
    assert!(told.contains("  a hots:x\n    ^\n") && told.contains("did you mean host:"), "{told}");
    assert!(said(home, &["search", "--help"]).await.contains("label.KEY:VALUE"));

    let touched = said(home, &["touched", "last"]).await;
    let row = |name: &str| {
        touched.lines().find(|line| line.trim_start().starts_with(name)).unwrap_or_default().to_owned()
    };
    assert!(row("basket").contains("shop at 10.0.0.9:5432") && row("basket").contains("read"), "{touched}");
    assert!(row("orders").contains("written"), "{touched}");
    assert!(touched.contains("the tables of 1 statement are not known: 1 unparsed"), "{touched}");
    assert!(!touched.contains('\x1b'));
    let touched: serde_json::Value =
        serde_json::from_str(&said(home, &["touched", "last", "--json"]).await).unwrap();
    assert_eq!(touched["hosts"][0]["address"], "10.0.0.9:5432");
    assert_eq!(touched["databases"][0]["database"], "shop");
    assert_eq!(touched["tables"].as_array().unwrap().len(), 3);
    assert_eq!(touched["unparsed"], 1);

    let known = said(home, &["tail", "--since", "2025-01-01", "--no-follow", "--json", "orders"]).await;
    assert_eq!(known.lines().count(), 2, "{known}");

    // A tail that lives through a restart.
    let mut tail = tokio::process::Command::new(env!("CARGO_BIN_EXE_weir"))
        .args(["tail", "--json", "--since", "2025-01-01"])
        .env("WEIR_CONFIG_DIR", home)
        .env_remove("WEIR_CREDENTIAL")
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = {
        use tokio::io::AsyncBufReadExt as _;
        tokio::io::BufReader::new(tail.stdout.take().unwrap()).lines()
    };
    let mut next = async || {
        let line = tokio::time::timeout(INDEXED_TIMEOUT, lines.next_line()).await.expect("a line in time");
        let hit: serde_json::Value = serde_json::from_str(&line.unwrap().unwrap()).unwrap();
        hit["exchange"].as_u64().unwrap()
    };
    for exchange in 1..=4 {
        assert_eq!(next().await, exchange);
    }
    drop(shipping);
    collector.restart(async |_| {}).await;
    let mut shipping = agent.ship(&collector).await;
    talk.ship(&mut shipping, &[sql("SELECT 5")]).await;
    assert_eq!(next().await, 5);
    tail.start_kill().unwrap();
    tail.wait().await.unwrap();

    for shell in ["bash", "zsh", "fish"] {
        let completions = said(home, &["completions", shell]).await;
        for command in ["search", "tail", "touched"] {
            assert!(completions.contains(command), "{shell}: {command}");
        }
    }
    let accesses = said(home, &["accesses"]).await;
    assert!(
        accesses.contains("Search") && accesses.contains("query a hots:x") && accesses.contains("Tail"),
        "{accesses}"
    );
}
