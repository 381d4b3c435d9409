//! `weir --local DIR`: a folder as `weir-agent exec --local DIR` leaves it (docs/format.md section 7), made by hand.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use prost::Message;
use weir_proto::seal::{self, Sealed, WrapKeyPair};
use weir_proto::v1;
use weir_proto::{KeyId, RunId};

use crate::agent::{Agent, Recorded};

fn weir(home: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weir"))
        .args(arguments)
        .arg("--local")
        .arg(home.join("recording"))
        .env("WEIR_CONFIG_DIR", home.join("config"))
        .output()
        .unwrap()
}

fn said(home: &Path, arguments: &[&str]) -> String {
    let output = weir(home, arguments);
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success() && err.is_empty(), "{arguments:?}: {out}{err}");
    out
}

/// Writes identity, wrap, segments and node log.
fn record(folder: &Path) -> (Agent, Recorded) {
    let mut agent = Agent::standalone();
    for part in ["identity", "spool/segments", "spool/wraps", "nodelog"] {
        fs::create_dir_all(folder.join(part)).unwrap();
    }
    let node = serde_json::json!({ "node_id": agent.node.to_string(), "name": "local", "collector": null });
    fs::write(folder.join("identity/node.json"), node.to_string()).unwrap();
    fs::write(folder.join("identity/verifying.key"), agent.signer.verifying_key().as_bytes()).unwrap();
    let pair = WrapKeyPair::generate().unwrap();
    fs::write(folder.join("identity/local.key"), &*pair.private).unwrap();
    fs::write(folder.join("identity/local.pub"), &pair.public).unwrap();
    let to = v1::HpkeKey {
        id: KeyId::from_bytes(*agent.node.as_bytes()).to_field(),
        public_key: pair.public.clone().into(),
        ..Default::default()
    };
    let wrap = seal::wrap(&agent.generation, &agent.key, &agent.node, &to).unwrap();
    fs::write(folder.join(format!("spool/wraps/{}.wrap", agent.generation)), wrap.encode_to_vec()).unwrap();

    let mut recorded = agent.session(RunId::generate());
    let opened = agent.entry(Agent::opened(&[&recorded]));
    for sealed in recorded.whole(3) {
        spool(folder, &recorded, &sealed);
    }
    let closed = agent.closed(&[&recorded]);
    let closed = agent.entry(closed);
    let mut log = Vec::new();
    for entry in [opened, closed] {
        prost::encode_length_delimiter(entry.len(), &mut log).unwrap();
        log.extend_from_slice(&entry);
    }
    // Cut in its last entry, as while it is being written.
    log.extend_from_slice(&[200, 1, 7]);
    fs::write(folder.join("nodelog/00000000000000000000.log"), log).unwrap();
    (agent, recorded)
}

fn spool(folder: &Path, recorded: &Recorded, sealed: &Sealed) {
    let seq = seal::Segment::parse(sealed.bytes.clone()).unwrap().seq();
    let name = format!("spool/segments/{}.{seq:010}.seg", recorded.session);
    fs::write(folder.join(name), [&sealed.bytes[..], &sealed.signature].concat()).unwrap();
}

#[test]
fn a_folder_is_shown_played_and_verified_without_a_collector() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let (_, recorded) = record(&home.join("recording"));
    // The second time everything is in the index already.
    for _ in 0..2 {
        assert!(said(home, &["runs"]).contains(&recorded.run.to_string()));
        assert!(said(home, &["show", "last"]).contains("SELECT 3  → SELECT 1"));
        assert!(said(home, &["play", "last"]).contains("SELECT 2"));
        let found = said(home, &["search", "--json", "\"select 2\" run:last"]);
        assert!(found.lines().count() == 1 && found.contains("SELECT 2"), "{found}");
        assert_eq!(said(home, &["tail", "--json"]).lines().count(), 3, "a folder ends");
        assert!(said(home, &["touched", "last"]).contains("10.0.0.9:5432"));
        assert!(said(home, &["verify", "last"]).contains("3 segments checked, 1 closed"));
        assert!(said(home, &["verify", "--node", "local"]).contains("1 complete"));
    }
}

#[test]
fn what_is_wrong_with_a_folder_is_told() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let folder = home.join("recording");
    let nothing = weir(home, &["runs"]);
    assert!(String::from_utf8_lossy(&nothing.stderr).contains("is not a folder that"), "{nothing:?}");

    let (_, recorded) = record(&folder);
    let damaged = folder.join(format!("spool/segments/{}.0000000001.seg", recorded.session));
    let mut bytes = fs::read(&damaged).unwrap();
    let middle = bytes.len() - 70;
    bytes[middle] ^= 1;
    fs::write(&damaged, bytes).unwrap();
    let shown = weir(home, &["show", "last"]);
    assert!(shown.status.success(), "what can be read is shown");
    assert!(
        String::from_utf8_lossy(&shown.stderr).contains("not signed")
            || String::from_utf8_lossy(&shown.stderr).contains("signature")
    );
    let verified = weir(home, &["verify", "--node", "local"]);
    assert_eq!(verified.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&verified.stdout).contains("1 of 3 segments are held"), "{verified:?}");
}
