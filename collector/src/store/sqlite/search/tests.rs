use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sqlx::{QueryBuilder, Row};

use super::meant::Meant;
use super::path::path;
use super::reader::{Reader, in_time};
use super::statement::Step;
use super::{Seeking, SqliteIndex, WINDOW_IDS};
use crate::search::parse;
use crate::store::sqlite::READERS;

async fn index() -> (tempfile::TempDir, SqliteIndex) {
    let folder = tempfile::tempdir().unwrap();
    let index = SqliteIndex::open(&folder.path().join("index.sqlite")).await.unwrap();
    (folder, index)
}

const ENDLESS: &str =
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";

#[tokio::test]
async fn a_statement_that_takes_too_long_is_interrupted_and_the_connection_goes_on() {
    let (_folder, index) = index().await;
    let mut reader = Reader::new(index.readers.acquire().await.unwrap()).await.unwrap();
    reader.arm();
    reader.watch.until_ms.store(0, Ordering::Relaxed);
    let endless = sqlx::query(ENDLESS).fetch_all(&mut *reader.connection).await;
    assert!(in_time(endless).unwrap().is_none());
    let one = sqlx::query("SELECT 1").fetch_all(reader.arm()).await;
    assert_eq!(in_time(one).unwrap().unwrap().len(), 1);
    reader.done().await.unwrap();
    index.probe().await.unwrap();
}

#[tokio::test]
async fn a_search_that_nobody_waits_for_ends_and_leaves_no_connection_in_its_way() {
    let (_folder, index) = index().await;
    for _ in 0..2 * READERS {
        let mut reader = Reader::new(index.readers.acquire().await.unwrap()).await.unwrap();
        let endless = sqlx::query(ENDLESS).fetch_all(reader.arm());
        assert!(tokio::time::timeout(Duration::from_millis(30), endless).await.is_err(), "it would go on");
    }
    for _ in 0..2 * READERS {
        index.probe().await.unwrap();
    }
}

#[tokio::test]
async fn a_search_whose_time_is_over_says_how_far_it_is_and_goes_on() {
    const IDS: i64 = 10 * WINDOW_IDS + 1;
    let (_folder, index) = index().await;
    sqlx::query("UPDATE counter SET next = ? WHERE name = 'exchange'")
        .bind(IDS)
        .execute(&index.writer)
        .await
        .unwrap();
    let query = parse("rows:>1", 0).unwrap();
    for newest_first in [true, false] {
        let (mut after, mut answers) = (None, 0);
        loop {
            let seeking = Seeking {
                query: &query,
                newest_first,
                after,
                before: None,
                ended_from_ns: None,
                rows: 10,
                until: Instant::now(),
            };
            let found = index.search(&seeking).await.unwrap();
            answers += 1;
            assert!(found.ids.is_empty());
            if found.done {
                break;
            }
            let further = match after {
                Some(after) if newest_first => found.after < after,
                Some(after) => found.after > after,
                None => true,
            };
            assert!(further, "{:?} after {after:?}", found.after);
            after = Some(found.after);
        }
        assert!(answers > 10, "{answers} answers: one window each");
    }
}

/// Sessions, runs and nodes are asked before exchanges, and no path sorts what it walks.
#[tokio::test]
async fn every_path_walks_in_order() {
    let (_folder, index) = index().await;
    let meant = Meant {
        runs: HashMap::from([("A".into(), vec![vec![1; 16]])]),
        sessions: HashMap::from([("B".into(), vec![vec![1; 16]])]),
        last_run: vec![1; 16],
        principals: HashMap::from([("two".into(), vec!["two".into(), "two sha256:00".into()])]),
    };
    for (text, first) in [
        ("drop", "SCAN t VIRTUAL TABLE"),
        ("drop target:x", "SCAN t VIRTUAL TABLE"),
        ("path:/a/b", "SCAN t VIRTUAL TABLE"),
        ("run:a", "SEARCH g USING INDEX segment_by_run"),
        ("run:last rows:1", "SEARCH g USING INDEX segment_by_run"),
        ("session:b", "SEARCH g USING"),
        ("principal:x after:1d", "SEARCH g USING INDEX segment_by_principal"),
        ("principal:two", "SEARCH g USING INTEGER PRIMARY KEY"),
        ("outcome:denied target:x", "SEARCH e USING INDEX exchange_by_outcome"),
        ("would:deny", "SEARCH e USING INDEX exchange_would_deny"),
        ("target:x OR node:y", "SEARCH g USING INTEGER PRIMARY KEY"),
        ("label.a:b -database:c rows:>1", "SEARCH g USING INTEGER PRIMARY KEY"),
        ("target:x -a (b OR c)", "SEARCH g USING INTEGER PRIMARY KEY"),
        ("run:a -b", "SEARCH g USING INDEX segment_by_run"),
        ("host:x", "SEARCH g USING INTEGER PRIMARY KEY"),
        ("rows:>1", "SEARCH e USING INTEGER PRIMARY KEY"),
        ("", "SEARCH e USING INTEGER PRIMARY KEY"),
    ] {
        let query = parse(text, 0).unwrap();
        let mut reader = Reader::new(index.readers.acquire().await.unwrap()).await.unwrap();
        let path = path(&mut reader, &query, &meant, (0, 100)).await.unwrap();
        for newest_first in [true, false] {
            let seeking = Seeking {
                query: &query,
                newest_first,
                after: None,
                before: None,
                ended_from_ns: Some(0),
                rows: 10,
                until: Instant::now(),
            };
            let step = Step { seeking: &seeking, meant: &meant, path: &path, low: 0, high: 100 };
            let mut plan = QueryBuilder::new("EXPLAIN QUERY PLAN ");
            step.push_statement(&mut plan, 10);
            let rows = plan.build().fetch_all(reader.arm()).await.unwrap();
            let lines: Vec<String> = rows.iter().map(|row| row.get("detail")).collect();
            assert!(lines[0].starts_with(first), "{text}: {lines:#?}");
            let walked = lines.iter().any(|line| line.contains("SEARCH e") && line.contains("rowid=?"));
            assert!(!walked || first.contains("VIRTUAL"), "{text}: {lines:#?}");
            let sorts = lines.iter().any(|line| line.contains("TEMP B-TREE FOR ORDER BY"));
            assert!(!sorts || text.starts_with("session"), "{text}: {lines:#?}");
        }
        reader.done().await.unwrap();
    }
}
