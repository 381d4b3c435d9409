//! What `weir verify` finds when somebody who owns the collector's disk deletes or changes something.

use sqlx::SqlitePool;
use weir_collector::clock;
use weir_collector::store::sqlite::Subject;
use weir_collector::verify::{NodeReport, NodeVerifier, Pins, SessionVerifier, SessionsReport, Terms};
use weir_proto::RunId;
use weir_proto::v1;

use crate::agent::{Agent, Recorded};
use crate::collector::Collector;

/// Three sessions of one run, logged, shipped, closed.
struct Scene {
    collector: Collector,
    agent: Agent,
    run: RunId,
    recorded: Vec<Recorded>,
    pins: Pins,
}

impl Scene {
    async fn new() -> Self {
        let collector = Collector::start().await;
        let mut agent = Agent::join(&collector, "db-1").await;
        let mut shipping = agent.ship(&collector).await;
        let run = RunId::generate();
        let mut recorded = Vec::new();
        let mut entries = Vec::new();
        for _ in 0..3 {
            let mut session = agent.session(run);
            entries.push(agent.entry(Agent::opened(&[&session])));
            for sealed in session.whole(3) {
                shipping.receipt(&sealed).await;
            }
            let closed = agent.closed(&[&session]);
            entries.push(agent.entry(closed));
            recorded.push(session);
        }
        assert_eq!(shipping.entries(entries).await.unwrap().entries, 6);
        Self { collector, agent, run, recorded, pins: Pins::default() }
    }

    async fn sessions(&mut self) -> SessionsReport {
        let items = proof(&self.collector, self.run).await;
        let asked = Subject::Run(self.run);
        let mut verifier = SessionVerifier::new(&mut self.pins, asked, Terms::at(clock::unix_ms()));
        items.into_iter().for_each(|item| verifier.take(item));
        verifier.finish()
    }

    async fn node(&mut self) -> NodeReport {
        self.node_by(Terms::at(clock::unix_ms())).await
    }

    async fn node_by(&mut self, terms: Terms) -> NodeReport {
        let asked = v1::NodeProofRequest { node_id: self.agent.node.to_field() };
        let mut query = self.collector.query().await;
        let mut items = query.node_proof(self.collector.asked(asked)).await.unwrap().into_inner();
        let mut verifier = NodeVerifier::new(&mut self.pins, self.agent.node, terms);
        while let Some(item) = items.message().await.unwrap() {
            verifier.take(item);
        }
        verifier.finish()
    }

    /// What somebody does who owns the collector's disk.
    async fn tamper(&mut self, statements: &[&'static str]) {
        let statements: Vec<_> = statements
            .iter()
            .map(|sql| {
                let id = hex::encode(self.recorded[1].session.as_bytes());
                sql.replace("SECOND", &format!("x'{id}'"))
            })
            .collect();
        self.collector
            .restart(async |data| {
                let options = sqlx::sqlite::SqliteConnectOptions::new().filename(data.join("index.sqlite"));
                let pool = SqlitePool::connect_with(options.foreign_keys(false)).await.unwrap();
                for statement in statements {
                    let done =
                        sqlx::query(sqlx::AssertSqlSafe(statement.clone())).execute(&pool).await.unwrap();
                    assert!(done.rows_affected() > 0, "{statement} did nothing");
                }
                pool.close().await;
            })
            .await;
    }
}

pub(crate) async fn proof(collector: &Collector, run: RunId) -> Vec<v1::ProofItem> {
    let asked = v1::ProofRequest { run_id: run.to_field(), ..Default::default() };
    let mut query = collector.query().await;
    let mut stream = query.proof(collector.asked(asked)).await.unwrap().into_inner();
    let mut items = Vec::new();
    while let Some(item) = stream.message().await.unwrap() {
        items.push(item);
    }
    items
}

const SESSION_GONE: &[&str] = &[
    "DELETE FROM segment WHERE session_id = SECOND",
    "DELETE FROM exchange WHERE segment NOT IN (SELECT id FROM segment)",
    "DELETE FROM session_key WHERE session_id = SECOND",
    "DELETE FROM session WHERE id = SECOND",
];

#[tokio::test]
async fn what_is_whole_verifies() {
    let mut scene = Scene::new().await;
    let report = scene.sessions().await;
    assert!(report.is_ok(), "{:?}", report.problems);
    assert_eq!(report.sessions.len(), 3);
    assert!(report.sessions.iter().all(|session| session.closed && session.segments == 3 && session.ok));
    let report = scene.node().await;
    assert!(report.is_ok(), "{:?}", report.problems);
    assert_eq!((report.entries, report.sessions, report.complete), (6, 3, 3));
}

#[tokio::test]
async fn a_whole_session_deleted_is_named() {
    let mut scene = Scene::new().await;
    scene.tamper(SESSION_GONE).await;
    assert!(scene.sessions().await.is_ok(), "the run alone cannot tell");
    let report = scene.node().await;
    assert_eq!(report.complete, 2);
    assert_eq!(report.problems.len(), 1, "{:?}", report.problems);
    let problem = &report.problems[0];
    assert_eq!(problem.session, Some(scene.recorded[1].session));
    assert!(problem.what.contains("MISSING") && problem.what.contains("number 2"), "{problem}");
}

#[tokio::test]
async fn a_deleted_segment_is_named() {
    let mut scene = Scene::new().await;
    scene.tamper(&["DELETE FROM segment WHERE session_id = SECOND AND seq = 1"]).await;
    let report = scene.sessions().await;
    assert_eq!(report.problems.len(), 1, "{:?}", report.problems);
    assert_eq!(report.problems[0].session, Some(scene.recorded[1].session));
    assert!(report.problems[0].what.contains("segment 1 is missing"), "{}", report.problems[0]);
    let report = scene.node().await;
    assert!(report.problems[0].what.contains("1 of its segments are missing"), "{:?}", report.problems);
}

#[tokio::test]
async fn a_cut_end_is_named_even_when_the_index_agrees() {
    let mut scene = Scene::new().await;
    scene.tamper(&[
        "DELETE FROM segment WHERE session_id = SECOND AND seq = 2",
        "UPDATE session SET next_seq = 2, closed = 0, head_hash = (SELECT hash FROM segment WHERE session_id = SECOND AND seq = 1) WHERE id = SECOND",
    ]).await;
    let report = scene.node().await;
    assert_eq!(report.problems.len(), 1, "{:?}", report.problems);
    assert!(report.problems[0].what.contains("2 of 3 segments are held"), "{}", report.problems[0]);
}

#[tokio::test]
async fn changed_bytes_are_named() {
    let mut scene = Scene::new().await;
    let mut flipped = 0;
    scene
        .collector
        .restart(async |data| {
            for file in walk(&data.join("objects/bundles")) {
                let mut bytes = std::fs::read(&file).unwrap();
                let last = bytes.len() - 1;
                bytes[last] ^= 1;
                std::fs::write(&file, bytes).unwrap();
                flipped += 1;
            }
        })
        .await;
    let report = scene.sessions().await;
    assert!(flipped > 0 && !report.is_ok());
    let told: Vec<_> = report.problems.iter().map(|problem| problem.what.clone()).collect();
    assert!(told.iter().any(|what| what.contains("signature")), "{told:?}");
    assert!(told.iter().any(|what| what.contains("changed after it was received")), "{told:?}");
}

#[tokio::test]
async fn a_deleted_node_day_is_named() {
    let mut scene = Scene::new().await;
    scene.tamper(&["DELETE FROM node_entry WHERE idx IN (2, 3)"]).await;
    let report = scene.node().await;
    let told: Vec<_> = report.problems.iter().map(|problem| problem.what.clone()).collect();
    assert!(
        told.iter().any(|what| what.contains("log entries 2 to 3 are missing") && what.contains("UTC")),
        "{told:?}"
    );
    assert!(told.iter().any(|what| what.contains("number 2 is nowhere in the log")), "{told:?}");
}

#[tokio::test]
async fn an_agent_on_an_old_disk_is_named() {
    let mut scene = Scene::new().await;
    let mark = v1::node_entry::Mark::RolledBack(v1::RolledBack {
        own_index: 2,
        own_next_number: 2,
        ..Default::default()
    });
    let entry = scene.agent.entry(v1::NodeEntry { mark: Some(mark), ..Default::default() });
    let mut shipping = scene.agent.ship(&scene.collector).await;
    shipping.entries(vec![entry]).await.unwrap();
    let report = scene.node().await;
    assert!(
        report.problems.iter().any(|problem| problem.what.contains("ROLLED BACK")),
        "{:?}",
        report.problems
    );
    assert!(report.alerts.iter().any(|alert| alert.starts_with("rolled-back")));
}

#[tokio::test]
async fn what_the_agent_still_holds_is_not_missing() {
    let mut scene = Scene::new().await;
    let mut session = scene.agent.session(scene.run);
    session.whole(2);
    let opened = scene.agent.entry(Agent::opened(&[&session]));
    let mut closed = scene.agent.closed(&[&session]);
    closed.heartbeat = Some(v1::Heartbeat { next_number: 5, spooled_segments: 2, ..Default::default() });
    let closed = scene.agent.entry(closed);
    let mut shipping = scene.agent.ship(&scene.collector).await;
    shipping.entries(vec![opened, closed]).await.unwrap();
    let report = scene.node().await;
    assert!(report.is_ok(), "{:?}", report.problems);
    assert_eq!(report.pending, 1);
    // Once the agent has signed that its spool is empty, it is.
    let heartbeat = Some(v1::Heartbeat { next_number: 5, ..Default::default() });
    let entry = scene.agent.entry(v1::NodeEntry { heartbeat, ..Default::default() });
    shipping.entries(vec![entry]).await.unwrap();
    let report = scene.node().await;
    assert_eq!(report.problems.len(), 1, "{:?}", report.problems);
}

#[tokio::test]
async fn a_replaced_key_is_shouted() {
    let mut scene = Scene::new().await;
    assert!(scene.sessions().await.is_ok());
    let node = scene.agent.node.to_string();
    scene.pins.nodes.insert(node, "00".repeat(32));
    scene.pins.receipt_key = Some("11".repeat(32));
    let report = scene.sessions().await;
    assert!(report.problems.iter().any(|problem| problem.what.contains("ITS SIGNING KEY IS ANOTHER ONE")));
    assert!(report.problems.iter().any(|problem| problem.what.contains("RECEIPT KEY IS ANOTHER ONE")));
    assert!(!scene.node().await.is_ok());
}

#[tokio::test]
async fn segments_that_only_the_index_still_claims_are_named_by_the_node_too() {
    let mut scene = Scene::new().await;
    scene
        .collector
        .restart(async |data| std::fs::remove_dir_all(data.join("objects/bundles")).unwrap())
        .await;
    let report = scene.node().await;
    assert_eq!((report.complete, report.problems.len()), (0, 3), "{:?}", report.problems);
    assert!(report.problems[0].what.contains("missing or damaged at rest"), "{:?}", report.problems);
}

#[tokio::test]
async fn another_run_than_asked_for_proves_nothing() {
    let mut scene = Scene::new().await;
    let asked = Subject::Run(RunId::generate());
    let items = proof(&scene.collector, scene.run).await;
    let mut verifier = SessionVerifier::new(&mut scene.pins, asked, Terms::at(clock::unix_ms()));
    items.into_iter().for_each(|item| verifier.take(item));
    let report = verifier.finish();
    assert_eq!(report.problems.len(), 3, "{:?}", report.problems);
    assert!(report.problems[0].what.contains("instead of what was asked for"), "{:?}", report.problems);
}

#[tokio::test]
async fn every_segment_of_a_node_is_held_against_its_log() {
    let mut scene = Scene::new().await;
    let ended = scene.node().await.ended;
    assert_eq!(ended.len(), 3);
    let items: Vec<_> = proof(&scene.collector, scene.run).await;
    let of = |items: &[v1::ProofItem], ended, pins: &mut Pins| {
        let mut verifier = SessionVerifier::of_log(pins, ended, Terms::at(clock::unix_ms()));
        items.iter().cloned().for_each(|item| verifier.take(item));
        verifier.finish().problems.into_iter().filter(|p| p.session == Some(ended.session)).count()
    };
    assert_eq!(of(&items, ended[0], &mut scene.pins), 0);
    let mut other = ended[0];
    other.head[0] ^= 1;
    assert_eq!(of(&items, other, &mut scene.pins), 1, "the log names another end");
}

#[tokio::test]
async fn a_session_said_to_have_expired_too_early_is_named() {
    let mut scene = Scene::new().await;
    scene
        .tamper(&[
            "DELETE FROM segment WHERE session_id = SECOND",
            "UPDATE session SET expired_seq = next_seq, expired_ms = 1 WHERE id = SECOND",
        ])
        .await;
    let report = scene.sessions().await;
    assert!(report.problems.iter().any(|p| p.what.contains("too young for that")), "{:?}", report.problems);
    // The node's clock of these tests stands years back: what it signed is old enough, a longer keep is not.
    assert_eq!(scene.node().await.expired, 1);
    let long = std::time::Duration::from_secs(100 * 365 * 86_400);
    let report = scene.node_by(Terms { keep: long, ..Terms::at(clock::unix_ms()) }).await;
    assert!(report.problems.iter().any(|p| p.what.contains("too young for that")), "{:?}", report.problems);
}

#[tokio::test]
async fn a_log_that_became_shorter_is_named() {
    let mut scene = Scene::new().await;
    assert!(scene.node().await.is_ok());
    scene.tamper(&["DELETE FROM node_entry WHERE idx >= 4"]).await;
    let report = scene.node().await;
    assert!(report.problems.iter().any(|p| p.what.contains("CUT OFF: it had 6")), "{:?}", report.problems);
    let report = scene.node().await;
    assert!(report.problems.iter().any(|p| p.what.contains("CUT OFF")), "it is not forgotten");
}

#[tokio::test]
async fn a_session_that_a_restart_forgot_is_named() {
    let mut scene = Scene::new().await;
    let mut session = scene.agent.session(scene.run);
    let entries = [
        Agent::opened(&[&session]),
        v1::NodeEntry {
            mark: Some(v1::node_entry::Mark::Started(v1::Started {
                after_crash: true,
                ..Default::default()
            })),
            ..Default::default()
        },
        v1::NodeEntry {
            mark: Some(v1::node_entry::Mark::Stopped(v1::Stopped::default())),
            ..Default::default()
        },
    ];
    let mut shipping = scene.agent.ship(&scene.collector).await;
    for (at, entry) in entries.into_iter().enumerate() {
        let entry = scene.agent.entry(entry);
        shipping.entries(vec![entry]).await.unwrap();
        assert_eq!(
            scene.node().await.is_ok(),
            at < 2,
            "until the agent has had the time to say what became of it"
        );
    }
    session.whole(1);
    let closed = scene.agent.closed(&[&session]);
    let closed = scene.agent.entry(closed);
    shipping.entries(vec![closed]).await.unwrap();
    let report = scene.node().await;
    assert!(!report.problems.iter().any(|p| p.what.contains("VANISHED")), "{:?}", report.problems);
}

#[tokio::test]
async fn what_the_agent_says_of_its_recovery_counts_and_what_is_held_whole_is_not_lost() {
    let mut scene = Scene::new().await;
    let open = scene.agent.session(scene.run);
    let started = |unreadable_journals| {
        let started = v1::Started { unreadable_journals, ..Default::default() };
        let mark = Some(v1::node_entry::Mark::Started(started));
        v1::NodeEntry { mark, ..Default::default() }
    };
    let beat = |recovered| {
        let heartbeat = Some(v1::Heartbeat { recovered, ..Default::default() });
        v1::NodeEntry { heartbeat, ..Default::default() }
    };
    let lost = |session: &Recorded| {
        let session_id = session.session.to_field();
        let lost = vec![v1::SegmentsLost { session_id, from_seq: 0, reason: "session-missing".into() }];
        v1::NodeEntry { lost, ..Default::default() }
    };
    let whole = lost(&scene.recorded[0]);
    let mut shipping = scene.agent.ship(&scene.collector).await;
    for (entry, says) in [
        (whole, None),
        (Agent::opened(&[&open]), None),
        (started(0), None),
        (beat(false), None),
        (beat(true), Some("VANISHED")),
        (lost(&open), Some("LOST")),
        (started(2), Some("could not read 2 of its journals")),
    ] {
        let entry = scene.agent.entry(entry);
        shipping.entries(vec![entry]).await.unwrap();
        let problems = scene.node().await.problems;
        assert_eq!(problems.is_empty(), says.is_none(), "{problems:?}");
        assert!(says.is_none_or(|says| problems.iter().any(|p| p.what.contains(says))), "{problems:?}");
    }
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(walk(&path)) } else { found.push(path) }
    }
    found
}
