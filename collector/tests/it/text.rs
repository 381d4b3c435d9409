//! Full text follows ingest, survives whatever happens to its file, and forgets what retention deletes.

use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, Connection};
use weir_collector::metrics::Metrics;
use weir_collector::retention::{Keep, Retention};
use weir_collector::store::Store;
use weir_proto::RunId;
use weir_proto::v1::to_collector::Message;
use weir_proto::v1::{self, event::Kind, to_agent};

use crate::agent::{Agent, BOOT, event, finished, operation};
use crate::collector::Collector;

/// Far longer than it takes, on any machine.
const PATIENCE: Duration = Duration::from_secs(60);
const DAY_MS: i64 = 86_400_000;

#[tokio::test]
async fn statements_parameters_and_errors_are_found() {
    let collector = Collector::start().await;
    let mut agent = Agent::join(&collector, "db-1").await;
    let mut recorded = agent.session(RunId::generate());
    let mut asked = operation(1);
    asked.text = "INSERT INTO public.orders_2024 (note) VALUES ($1)".into();
    asked.parameters = vec![v1::Value { shown: "Crème brûlée".into(), ..Default::default() }];
    let mut failed = finished(1, 1);
    failed.operation = Some(asked);
    failed.outcome = v1::Outcome::Error as i32;
    failed.error = "duplicate key value violates unique constraint \"orders_pkey\"".into();
    let events = [recorded.opened_event(), event(3, Kind::Finished(failed))];
    agent.ship(&collector).await.receipt(&recorded.seal(&events, false)).await;
    indexed(&collector).await;
    let data = &collector.config.data;
    for words in [
        "orders",
        "\"public.orders_2024\"",
        "\"insert into\"",
        "ord*",
        "\"creme brulee\"",
        "asked : brulee",
        "error : orders_pkey",
        "{asked error} : unique",
    ] {
        assert_eq!(found(data, words).await, [1], "{words}");
    }
    for words in ["order", "error : brulee", "body : orders", "\"orders public\""] {
        assert!(found(data, words).await.is_empty(), "{words}");
    }
}

#[tokio::test]
async fn an_exchange_that_outlives_its_segment_is_one_row_and_one_text() {
    let collector = Collector::start().await;
    let mut agent = Agent::join(&collector, "db-1").await;
    let run = RunId::generate();
    let mut recorded = agent.session(run);
    let ask = |exchange| Kind::Asked(v1::Asked { exchange, operation: Some(operation(exchange)) });
    let first = [recorded.opened_event(), event(1, ask(1)), event(2, ask(2))];
    let second = [event(10, Kind::Finished(finished(2, 2)))];
    let mut failed = finished(1, 1);
    failed.error = "canceled".into();
    let third = [event(20, Kind::Finished(failed))];
    let mut shipping = agent.ship(&collector).await;
    shipping.receipt(&recorded.seal(&first, false)).await;
    assert_eq!(exchanges(&collector, run).await, [(1, false), (2, false)]);
    indexed(&collector).await;
    assert_eq!(found(&collector.config.data, "select").await.len(), 2, "what runs is found, too");
    for events in [&second[..], &third[..]] {
        shipping.receipt(&recorded.seal(events, false)).await;
    }
    assert_eq!(exchanges(&collector, run).await, [(1, true), (2, true)], "in the order they were asked");
    indexed(&collector).await;
    assert_eq!(found(&collector.config.data, "canceled AND select").await.len(), 1);
    let rows = scalar(&collector.config.data, "SELECT count(*) FROM exchange").await;
    assert_eq!((rows, scalar(&collector.config.data, "SELECT count(*) FROM running").await), (2, 0));
}

/// All of its segments in one batch: nothing is waited for between them.
#[tokio::test]
async fn an_exchange_that_outlives_its_segment_within_a_batch_is_one_row() {
    const SESSIONS: usize = 20;
    let collector = Collector::start().await;
    let mut agent = Agent::join(&collector, "db-1").await;
    let run = RunId::generate();
    let mut shipping = agent.ship(&collector).await;
    for _ in 0..SESSIONS {
        let mut recorded = agent.session(run);
        let asked = Kind::Asked(v1::Asked { exchange: 1, operation: Some(operation(1)) });
        let first = [recorded.opened_event(), event(1, asked)];
        let last = [event(10, Kind::Finished(finished(1, 1)))];
        for events in [&first[..], &last[..]] {
            let sealed = recorded.seal(events, false);
            shipping.send(Message::Segment(sealed.to_message())).await;
        }
    }
    for _ in 0..2 * SESSIONS {
        assert!(matches!(shipping.answer().await.unwrap(), to_agent::Message::Receipt(_)));
    }
    assert_eq!(exchanges(&collector, run).await, [(1, true); SESSIONS]);
    assert_eq!(scalar(&collector.config.data, "SELECT count(*) FROM running").await, 0);
}

#[tokio::test]
async fn text_of_bodies_is_found_also_where_a_body_crosses_segments() {
    let collector = Collector::start().await;
    let mut agent = Agent::join(&collector, "db-1").await;
    let mut recorded = agent.session(RunId::generate());
    let data = |exchange, direction: v1::Direction, bytes: &'static str| {
        let bytes = bytes.as_bytes().into();
        Kind::Data(v1::Data { exchange, direction: direction as i32, bytes, ..Default::default() })
    };
    let facts = v1::Facts { protocol: "http".into(), ..Default::default() };
    let ask = |exchange| Kind::Asked(v1::Asked { exchange, operation: Some(operation(exchange)) });
    let request = "POST /a HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 21\r\n\r\n{\"animal\":\"reindeer\"}";
    let reply = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 13\r\n\r\na fine walrus";
    let first = [
        recorded.opened_event(),
        event(1, Kind::Facts(facts)),
        event(2, ask(1)),
        event(3, data(1, v1::Direction::Request, request)),
        event(4, data(1, v1::Direction::Response, reply)),
        event(5, Kind::Finished(finished(1, 2))),
        event(6, ask(2)),
        event(7, data(2, v1::Direction::Request, request)),
        event(8, data(2, v1::Direction::Response, &reply[..reply.len() - 6])),
    ];
    let second = [
        event(20, data(2, v1::Direction::Response, &reply[reply.len() - 6..])),
        event(21, Kind::Finished(finished(2, 6))),
    ];
    let mut shipping = agent.ship(&collector).await;
    for events in [&first[..], &second[..]] {
        shipping.receipt(&recorded.seal(events, false)).await;
    }
    indexed(&collector).await;
    let data = &collector.config.data;
    assert_eq!(found(data, "body : reindeer AND body : \"fine walrus\"").await, [1, 3]);
    assert!(found(data, "asked : reindeer").await.is_empty());
}

#[tokio::test]
async fn hostile_text_is_only_text() {
    let collector = Collector::start().await;
    let mut agent = Agent::join(&collector, "db-1").await;
    let mut recorded = agent.session(RunId::generate());
    let texts = [
        "'); DROP TABLE exchange_text; --".to_owned(),
        "\u{202e}\u{0}\u{1}\u{fffd} NEAR(a b) AND OR NOT * ^ \" ' : { } - + ( )".to_owned(),
        "a".repeat(150_000),
        (0..30_000).map(|n| format!("{n:x} ")).collect(),
        "e\u{301}".repeat(20_000),
        String::new(),
    ];
    let mut events = vec![recorded.opened_event()];
    for (at, text) in (1..).zip(&texts) {
        let mut finished = finished(at, at);
        finished.operation = Some(v1::Operation { text: format!("{text} ending{at}"), ..operation(at) });
        finished.error = text.clone();
        // Above what an event may be.
        finished.error.truncate(finished.error.floor_char_boundary(20_000));
        events.push(event(at, Kind::Finished(finished)));
    }
    agent.ship(&collector).await.receipt(&recorded.seal(&events, false)).await;
    indexed(&collector).await;
    let data = &collector.config.data;
    assert_eq!(found(data, "\"drop table exchange_text\"").await, [1]);
    for (at, text) in (1..).zip(&texts) {
        let whole = text.len() < 64_000;
        let found = found(data, &format!("asked : ending{at}")).await;
        assert_eq!(found, if whole { vec![at] } else { vec![] }, "{at}: beyond the bound nothing is indexed");
    }
    assert_eq!(scalar(data, "SELECT count(*) FROM exchange").await, 6);
}

#[tokio::test]
async fn a_lost_or_foreign_file_is_made_again_and_a_damaged_segment_is_skipped() {
    let mut collector = Collector::start().await;
    let mut agent = Agent::join(&collector, "db-1").await;
    let (mut one, mut two) = (agent.session(RunId::generate()), agent.session(RunId::generate()));
    let mut shipping = agent.ship(&collector).await;
    shipping.receipt(&one.whole(1)[0]).await;
    shipping.receipt(&two.whole(1)[0]).await;
    indexed(&collector).await;
    assert_eq!(found(&collector.config.data, "select").await.len(), 2);
    let damages: [fn(&Path); 4] = [
        |file| std::fs::remove_file(file).unwrap(),
        |file| std::fs::write(file, b"this is no database").unwrap(),
        |file| edit(file, "UPDATE progress SET next_segment = 1000"),
        |file| edit(file, "PRAGMA user_version = 99"),
    ];
    for damage in damages {
        collector
            .restart(async |data| {
                let file = data.join("text.sqlite");
                tokio::task::spawn_blocking(move || damage(&file)).await.unwrap();
            })
            .await;
        indexed(&collector).await;
        assert_eq!(found(&collector.config.data, "select").await.len(), 2);
    }
    collector
        .restart(async |data| {
            std::fs::remove_file(data.join("text.sqlite")).unwrap();
            // Of the first segment the ciphertext changes.
            let bundle = files(&data.join("objects/bundles")).remove(0);
            let mut bytes = std::fs::read(&bundle).unwrap();
            let end = bytes.len() - 1;
            bytes[end] ^= 1;
            std::fs::write(&bundle, bytes).unwrap();
        })
        .await;
    indexed(&collector).await;
    assert_eq!(found(&collector.config.data, "select").await.len(), 1, "the other one is there");
}

#[tokio::test]
async fn what_expires_is_neither_found_nor_in_the_file() {
    let mut collector = Collector::start().await;
    let mut agent = Agent::join(&collector, "db-1").await;
    let mut recorded = agent.session(RunId::generate());
    let mut events = vec![recorded.opened_event()];
    for at in 1..=300 {
        let mut finished = finished(at, at);
        finished.operation = Some(v1::Operation { text: format!("zyzzyva{at}quetzal"), ..operation(at) });
        events.push(event(at, Kind::Finished(finished)));
    }
    agent.ship(&collector).await.receipt(&recorded.seal(&events, false)).await;
    indexed(&collector).await;
    assert_eq!(found(&collector.config.data, "zyzzyva17quetzal").await.len(), 1);
    assert!(holds(&collector.config.data, b"quetzal"));
    collector
        .restart(async |data| {
            let store = Store::open(data).await.unwrap();
            let keep =
                Keep { recordings: Some(Duration::from_secs(3600)), accesses: Duration::from_secs(1 << 30) };
            let retention = Retention { store, keep, metrics: Metrics::default() };
            let now = weir_collector::clock::unix_ms() + DAY_MS;
            for round in 0..2 {
                retention.round(now + round * 600_000).await.unwrap();
            }
            retention.store.index.close().await;
        })
        .await;
    assert!(found(&collector.config.data, "zyz*").await.is_empty());
    assert!(!holds(&collector.config.data, b"quetzal") && !holds(&collector.config.data, b"zyzzyva"));
    // Words that come later are found under ids of their own.
    let mut later = agent.session(RunId::generate());
    agent.ship(&collector).await.receipt(&later.whole(1)[0]).await;
    indexed(&collector).await;
    assert_eq!(found(&collector.config.data, "select").await, [301]);
}

/// Words on disk: of index and full text, with their logs.
fn holds(data: &Path, word: &[u8]) -> bool {
    ["index.sqlite", "index.sqlite-wal", "text.sqlite", "text.sqlite-wal"].iter().any(|name| {
        let bytes = std::fs::read(data.join(name)).unwrap_or_default();
        bytes.windows(word.len()).any(|window| window == word)
    })
}

/// Waits until all that was committed is in.
pub(crate) async fn indexed(collector: &Collector) {
    let store = Store::open(&collector.config.data).await.unwrap();
    let waited = tokio::time::timeout(PATIENCE, async {
        while store.index.text_progress().await.unwrap().waiting_since_ms.is_some() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    waited.await.expect("full text follows");
    store.index.close().await;
}

async fn connection(file: &Path) -> SqliteConnection {
    SqliteConnection::connect_with(&SqliteConnectOptions::new().filename(file)).await.unwrap()
}

/// Ids of the exchanges with these words.
pub(crate) async fn found(data: &Path, words: &str) -> Vec<i64> {
    let mut text = connection(&data.join("text.sqlite")).await;
    let found =
        sqlx::query_scalar("SELECT rowid FROM exchange_text WHERE exchange_text MATCH ? ORDER BY rowid")
            .bind(words)
            .fetch_all(&mut text)
            .await
            .unwrap();
    text.close().await.unwrap();
    found
}

async fn scalar(data: &Path, sql: &'static str) -> i64 {
    let mut index = connection(&data.join("index.sqlite")).await;
    let value = sqlx::query_scalar(sql).fetch_one(&mut index).await.unwrap();
    index.close().await.unwrap();
    value
}

/// (ordinal, finished) in the order they are listed, by pages of one.
async fn exchanges(collector: &Collector, run: RunId) -> Vec<(u64, bool)> {
    let mut query = collector.query().await;
    let mut all = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = Some(v1::Page { limit: 1, cursor });
        let asked = v1::ExchangesRequest { run_id: run.to_field(), page, ..Default::default() };
        let answer = query.exchanges(collector.asked(asked)).await.unwrap().into_inner();
        for exchange in &answer.exchanges {
            let finished = exchange.finished.as_ref().unwrap();
            assert_eq!(finished.operation, Some(operation(exchange.ordinal)));
            assert_eq!(finished.asked_at_ns, BOOT + exchange.ordinal);
            all.push((exchange.ordinal, finished.finished_at_ns != 0));
        }
        cursor = answer.next_cursor;
        if cursor.is_empty() {
            return all;
        }
    }
}

fn edit(file: &Path, sql: &'static str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut text = connection(file).await;
        sqlx::query(AssertSqlSafe(sql)).execute(&mut text).await.unwrap();
        text.close().await.unwrap();
    });
}

fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { all.extend(files(&path)) } else { all.push(path) }
    }
    all.sort();
    all
}
