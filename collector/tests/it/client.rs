//! The `weir` program itself: what it prints, what it keeps, how it exits.

use std::path::Path;
use std::process::Output;

use serde_json::Value;
use weir_proto::RunId;
use weir_proto::v1::{self, event::Kind};

use crate::agent::{Agent, event, finished};
use crate::collector::Collector;

/// Runs `weir` with a configuration folder of its own.
pub(crate) async fn weir(home: &Path, arguments: &[&str]) -> Output {
    tokio::process::Command::new(env!("CARGO_BIN_EXE_weir"))
        .args(arguments)
        .env("WEIR_CONFIG_DIR", home)
        .env_remove("WEIR_CREDENTIAL")
        .output()
        .await
        .unwrap()
}

pub(crate) async fn said(home: &Path, arguments: &[&str]) -> String {
    let output = weir(home, arguments).await;
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{arguments:?}: {err}");
    assert_eq!(err, "", "{arguments:?}");
    out
}

async fn json(home: &Path, arguments: &[&str]) -> Value {
    serde_json::from_str(&said(home, &[arguments, &["--json"]].concat()).await).unwrap()
}

#[tokio::test]
async fn a_run_is_listed_shown_played_and_verified() {
    let mut collector = Collector::start().await;
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let lost = weir(home, &["runs"]).await;
    assert_eq!(lost.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&lost.stderr).contains("weir login"), "says what to do");
    assert_eq!(weir(home, &["verify", "last"]).await.status.code(), Some(2), "could not be checked");

    let login = said(home, &["login", &collector.admin.to_string()]).await;
    assert!(login.contains("as admin (admin)"), "{login}");
    assert_eq!(json(home, &["whoami"]).await["role"], "admin");
    assert_eq!(said(home, &["runs"]).await, "no runs\n");

    let mut agent = Agent::join(&collector, "db-1").await;
    let mut shipping = agent.ship(&collector).await;
    let run = RunId::generate();
    let mut asked = agent.session(run);
    for sealed in asked.whole(2) {
        shipping.receipt(&sealed).await;
    }
    let mut denied = agent.session(run);
    let judged =
        v1::Judged { rule: "no-billing".into(), reason: "not for agents".into(), ..Default::default() };
    let closed = v1::Closed {
        coverage: v1::Coverage::Refused as i32,
        reason: "not for agents".into(),
        cause: "denied".into(),
        events: 3,
        ..Default::default()
    };
    let sealed = denied.seal(
        &[denied.opened_event(), event(400, Kind::Judged(judged)), event(401, Kind::Closed(closed))],
        true,
    );
    shipping.receipt(&sealed).await;
    let mut hostile = agent.session(run);
    let mut evil = finished(1, 500);
    evil.operation.as_mut().unwrap().text = "SELECT '\x1b[2J\x07'\n  ,2".into();
    let gap = v1::Gap { reason: "agent-died".into(), ..Default::default() };
    let sealed = hostile
        .seal(&[hostile.opened_event(), event(502, Kind::Finished(evil)), event(503, Kind::Gap(gap))], false);
    shipping.receipt(&sealed).await;
    let entries = [Agent::opened(&[&asked, &denied, &hostile]), agent.closed(&[&asked, &denied])];
    let entries = entries.map(|entry| agent.entry(entry));
    shipping.entries(entries.to_vec()).await.unwrap();

    let runs = said(home, &["runs"]).await;
    assert!(
        runs.contains(&run.to_string()) && runs.contains("psql -c SELECT 1") && runs.contains("team=db"),
        "{runs}"
    );
    let short = &run.to_string()[28..];
    for named in ["last", short, &run.to_string()] {
        let shown = said(home, &["show", named]).await;
        assert!(shown.contains("SELECT 2  → SELECT 1 · 1 row · 2 ns"), "{shown}");
        assert!(
            shown.contains("DENIED     10.0.0.9:5432 (orders) by rule \"no-billing\": not for agents"),
            "{shown}"
        );
        assert!(shown.contains("GAP        agent-died"), "{shown}");
        assert!(shown.contains("SELECT '\\u{1b}[2J\\u{7}' ,2"), "{shown}");
        assert!(!shown.contains('\x1b'));
    }
    let shown = json(home, &["show", "last"]).await;
    assert_eq!(shown["exchanges"].as_array().unwrap().len(), 3);
    assert_eq!(shown["denied"][0]["rule"], "no-billing");
    assert_eq!(shown["gaps"][0]["reason"], "agent-died");
    assert_eq!(shown["exchanges"][0]["statement"], "SELECT 1");
    assert_eq!(shown["run"]["labels"]["team"], "db");

    let sessions = json(home, &["sessions", "last"]).await;
    assert_eq!(sessions.as_array().unwrap().len(), 3);
    assert_eq!(sessions[0]["process"]["comm"], "psql");
    let session = sessions[0]["id"].as_str().unwrap();
    assert!(said(home, &["show", session]).await.contains("SELECT 2"));
    let played = said(home, &["play", session, "--exchange", "2"]).await;
    assert!(played.contains("SELECT 2") && !played.contains("SELECT 1\n"), "{played}");
    assert!(json(home, &["play", "last"]).await.as_array().unwrap().len() >= 3);

    let coverage = json(home, &["coverage", "last"]).await;
    assert_eq!(
        (&coverage["sessions"], &coverage["denied"], &coverage["gaps"]),
        (&3.into(), &1.into(), &1.into())
    );
    assert!(said(home, &["coverage"]).await.contains("inspected"));
    assert_eq!(json(home, &["nodes"]).await[0]["name"], "db-1");

    let verified = said(home, &["verify", "last"]).await;
    assert!(verified.contains("3 sessions: 4 segments checked, 2 closed, 1 still open, 1 gap"), "{verified}");
    assert!(verified.contains("ok: every segment is signed"), "{verified}");
    assert!(!said(home, &["verify", "last"]).await.contains("first time"), "keys are pinned");
    assert!(said(home, &["verify", "--node", "db-1"]).await.contains("2 complete, 1 open"));
    assert_eq!(json(home, &["verify", "last"]).await["ok"], true);

    let accesses = json(home, &["accesses"]).await;
    let subject = format!("run {run}");
    assert!(accesses.as_array().unwrap().iter().any(|a| a["call"] == "Proof" && a["subject"] == *subject));

    drop(shipping);
    collector.restart(async |data| {
        let index = data.join("index.sqlite");
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(index).foreign_keys(false);
        let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
        sqlx::query("DELETE FROM segment WHERE seq = 0 AND session_id IN (SELECT id FROM session WHERE node_number = 1)")
            .execute(&pool)
            .await
            .unwrap();
        pool.close().await;
    }).await;
    said(home, &["login", &collector.admin.to_string()]).await;
    let wrong = weir(home, &["verify", "last"]).await;
    assert_eq!(wrong.status.code(), Some(1));
    let told = String::from_utf8(wrong.stdout).unwrap();
    assert!(
        told.contains(&format!("WRONG: session {}", asked.session)) && told.contains("segment 0 is missing"),
        "{told}"
    );
    let wrong = weir(home, &["verify", "--node", "db-1"]).await;
    assert_eq!(wrong.status.code(), Some(1));
}

#[tokio::test]
async fn tokens_credentials_and_refusals() {
    let collector = Collector::start().await;
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    said(home, &["login", &collector.admin.to_string()]).await;
    let token = said(home, &["join-token", "--uses", "2", "--valid", "15m", "--name", "db-*"]).await;
    let token: weir_proto::credential::JoinToken = token.parse().unwrap();
    assert_eq!(token.address, collector.address());
    let viewer = said(home, &["credential", "eve"]).await;
    assert!(viewer.starts_with("weircred1-"));
    said(home, &["login", viewer.trim()]).await;
    let refused = weir(home, &["join-token"]).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("needs the role admin"));
    let wrong = weir(home, &["login", "weircred1-AQAA"]).await;
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("copy it again"), "{wrong:?}");
    for (arguments, expected) in [
        (&["show", "last"][..], "no runs yet"),
        (&["show", "abcd"][..], "weir runs"),
        (&["show", "x y"][..], "hex digits"),
        (&["verify", "--node", "nobody"][..], "weir agents"),
    ] {
        let output = weir(home, arguments).await;
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && told.contains(expected), "{arguments:?}: {told}");
    }
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(home.join("credential")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}
