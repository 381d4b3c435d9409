//! What `weir verify` finds when somebody who owns the collector's disk deletes or changes something.

use sqlx::SqlitePool;
use weir_collector::verify::{NodeReport, NodeVerifier, Pins, SessionVerifier, SessionsReport};
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
        let mut verifier = SessionVerifier::new(&mut self.pins);
        items.into_iter().for_each(|item| verifier.take(item));
        verifier.finish()
    }

    async fn node(&mut self) -> NodeReport {
        let asked = v1::NodeProofRequest { node_id: self.agent.node.to_field() };
        let mut query = self.collector.query().await;
        let mut items = query.node_proof(self.collector.asked(asked)).await.unwrap().into_inner();
        let mut verifier = NodeVerifier::new(&mut self.pins, self.agent.node);
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
    "DELETE FROM exchange WHERE session_id = SECOND",
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

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(walk(&path)) } else { found.push(path) }
    }
    found
}
