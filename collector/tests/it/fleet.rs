//! A fleet of node agents: certificates that are renewed and end, versions that do not meet, heartbeats that stay away.

use std::time::Duration;

use tonic::Code;
use weir_collector::config::Config;
use weir_collector::serve::Data;
use weir_proto::seal;
use weir_proto::v1::node_entry::Mark;
use weir_proto::v1::node_gap::Kind;
use weir_proto::v1::{self, to_collector};
use weir_proto::{NodeId, RunId};

use crate::agent::{Agent, BOOT, Joining, WALL};
use crate::collector::Collector;

const SECOND_NS: u64 = 1_000_000_000;

async fn node_of(collector: &Collector, node: NodeId) -> v1::NodeSummary {
    let asked = v1::NodesRequest { node_id: node.to_field(), ..Default::default() };
    let answer = collector.query().await.nodes(collector.asked(asked)).await.unwrap().into_inner();
    assert_eq!(answer.nodes.len(), 1, "one was asked for");
    answer.nodes.into_iter().next().unwrap()
}

fn kinds(node: &v1::NodeSummary) -> Vec<(Kind, bool)> {
    node.gaps.iter().map(|gap| (gap.kind(), gap.to_unix_ns == 0)).collect()
}

fn unix_seconds() -> i64 {
    weir_collector::clock::unix_ms() / 1000
}

/// So many seconds after the agent's first entry, in this boot.
fn at(seconds: u64, boot_id: &str) -> v1::NodeEntry {
    v1::NodeEntry {
        at_ns: BOOT + seconds * SECOND_NS,
        boot_id: boot_id.into(),
        wall: Some(v1::WallClock {
            unix_ns: WALL + (seconds * SECOND_NS) as i64,
            boot_ns: BOOT + seconds * SECOND_NS,
            synchronized: true,
        }),
        heartbeat: Some(v1::Heartbeat { next_number: 1, ..Default::default() }),
        ..Default::default()
    }
}

fn started(seconds: u64, boot_id: &str, after_crash: bool) -> v1::NodeEntry {
    let mark = v1::Started { after_crash, ..Default::default() };
    v1::NodeEntry { mark: Some(Mark::Started(mark)), ..at(seconds, boot_id) }
}

fn stopped(seconds: u64) -> v1::NodeEntry {
    let mark = v1::Stopped { cause: "drained".into() };
    v1::NodeEntry { mark: Some(Mark::Stopped(mark)), ..at(seconds, "a") }
}

/// As if this much time had gone by since anything was heard.
async fn time_goes_by(collector: &Collector, time: Duration) -> u64 {
    let Data { store, .. } = Data::open(&collector.config.data).await.unwrap();
    let heard_before = weir_collector::clock::unix_ms() + time.as_millis() as i64
        - weir_collector::heartbeats::SILENCE_MAX.as_millis() as i64;
    store.index.nodes_fall_silent(heard_before).await.unwrap()
}

#[tokio::test]
async fn a_certificate_is_renewed_for_who_holds_both_keys() {
    let short = |config: &mut Config| config.certificate_life = Duration::from_secs(3600);
    let collector = Collector::start_with(short).await;
    let mut agent = Agent::join(&collector, "db-1").await;
    let other = Agent::join(&collector, "db-2").await;
    let first = node_of(&collector, agent.node).await.certificate_not_after_unix;
    assert!((3500..=3600).contains(&(first - unix_seconds())), "the option says how long");

    let key = rcgen::KeyPair::generate().unwrap();
    let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
    let request = |proof: [u8; 64], csr_der: Vec<u8>| v1::RenewRequest {
        csr_der: csr_der.into(),
        proof: proof.to_vec().into(),
    };
    let own = seal::renew_proof(&agent.signer, &agent.node, csr.der());
    for (proof, csr_der, code) in [
        // The certificate was stolen, the signing key not.
        (
            seal::renew_proof(&other.signer, &agent.node, csr.der()),
            csr.der().to_vec(),
            Code::PermissionDenied,
        ),
        (
            seal::renew_proof(&agent.signer, &other.node, csr.der()),
            csr.der().to_vec(),
            Code::PermissionDenied,
        ),
        // An enrolment's proof is none.
        (seal::enrol_proof(&agent.signer, csr.der()), csr.der().to_vec(), Code::PermissionDenied),
        (own, b"another request".to_vec(), Code::PermissionDenied),
        (
            seal::renew_proof(&agent.signer, &agent.node, b"nonsense"),
            b"nonsense".to_vec(),
            Code::InvalidArgument,
        ),
        (own, vec![0x30; 9000], Code::InvalidArgument),
    ] {
        let refused = agent.ask_renewal(&collector, request(proof, csr_der)).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
    }
    // Without a certificate of ours.
    let mut stranger = v1::ingest_client::IngestClient::new(collector.channel(None).await);
    let refused = stranger.renew(request(own, csr.der().to_vec())).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);

    let segments = agent.session(RunId::generate()).whole(2);
    let mut shipping = agent.ship(&collector).await;
    shipping.receipt(&segments[0]).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let renewed = agent.renew(&collector).await.unwrap();
    assert_eq!(renewed.life_seconds, 3600);
    assert!(renewed.not_after_unix > first);
    assert_eq!(node_of(&collector, agent.node).await.certificate_not_after_unix, renewed.not_after_unix);
    // The open stream did not mind, and the new one opens another.
    shipping.receipt(&segments[1]).await;
    let welcome = agent.connect(&collector).await.unwrap().welcome;
    assert_eq!(welcome.stream_version, seal::STREAM_VERSION);
}

#[tokio::test]
async fn a_certificate_that_has_ended_opens_nothing_until_the_node_joins_again() {
    let short = |config: &mut Config| config.certificate_life = Duration::from_secs(1);
    let collector = Collector::start_with(short).await;
    let issuer = collector.issuer().await;
    let (token, _) = issuer.join_token(1, 60, "*", "test").await.unwrap();
    let joining = Joining::new(&token, "db-1");
    let agent = Agent::of(joining.clone(), joining.send(&token).await.unwrap());
    tokio::time::sleep(Duration::from_millis(2100)).await;
    let refused = agent.connect(&collector).await.err().unwrap();
    assert!(format!("{refused:?}").contains("CertificateExpired"), "{refused:?}");
    let refused = agent.ask_renewal(&collector, v1::RenewRequest::default()).await;
    assert!(refused.is_err(), "an ended certificate does not get itself a new one");

    let used = joining.send(&token).await.unwrap();
    assert_eq!(used.node_id, agent.node.to_field(), "the same token again: the answer may have been lost");
    let (fresh, _) = issuer.join_token(1, 60, "*", "test").await.unwrap();
    let mut again = joining.clone();
    again.request.token = fresh.secret.clone();
    let again = Agent::of(again.clone(), again.send(&fresh).await.unwrap());
    assert_eq!(again.node, agent.node);
    again.connect(&collector).await.unwrap();
}

#[tokio::test]
async fn what_the_other_side_cannot_read_is_refused_with_what_to_do() {
    let collector = Collector::start().await;
    let mut agent = Agent::join(&collector, "db-1").await;
    let hello = |min, max| {
        to_collector::Message::Hello(v1::Hello {
            format_min: min,
            format_max: max,
            agent_version: "9.9.9".into(),
            node_id: agent.node.to_field(),
            ..Default::default()
        })
    };
    for (min, max, upgrade) in
        [(2, 3, "upgrade this collector"), (u32::MAX, u32::MAX, "upgrade this collector")]
    {
        let refused = agent.connect_saying(&collector, hello(min, max)).await.err().unwrap();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(refused.message().contains(upgrade) && refused.message().contains("spool"), "{refused}");
    }
    let backwards = agent.connect_saying(&collector, hello(3, 1)).await.err().unwrap();
    assert_eq!(backwards.code(), Code::FailedPrecondition);
    // One that can write both, and one of the first version, which did not say what it understands.
    for (min, max) in [(1, 2), (1, 1), (0, 0)] {
        let shipping = agent.connect_saying(&collector, hello(min, max)).await.unwrap();
        assert_eq!(shipping.welcome.format_max, 1);
    }
    let segments = agent.session(RunId::generate()).whole(1);
    agent.ship(&collector).await.receipt(&segments[0]).await;
}

#[tokio::test]
async fn silence_is_on_record_until_the_log_says_why() {
    let collector = Collector::start().await;
    let mut agent = Agent::join(&collector, "db-1").await;
    assert_eq!(time_goes_by(&collector, Duration::from_secs(3600)).await, 0, "it has never been heard of");
    let mut shipping = agent.ship(&collector).await;
    let first = [started(0, "a", false), at(10, "a"), at(20, "a")].map(|entry| agent.said(entry)).to_vec();
    shipping.entries(first).await.unwrap();
    let heard = node_of(&collector, agent.node).await;
    assert!(heard.heard_unix_ms > 0 && heard.gaps.is_empty());

    // It lives, and the collector cannot hear it.
    assert_eq!(time_goes_by(&collector, Duration::ZERO).await, 0, "just heard of");
    assert_eq!(time_goes_by(&collector, Duration::from_secs(60)).await, 1);
    assert_eq!(time_goes_by(&collector, Duration::from_secs(90)).await, 0, "once is enough");
    assert_eq!(kinds(&node_of(&collector, agent.node).await), [(Kind::Silent, true)]);
    let entries = [at(30, "a"), at(40, "a"), at(50, "a")].map(|entry| agent.said(entry)).to_vec();
    shipping.entries(entries).await.unwrap();
    assert_eq!(kinds(&node_of(&collector, agent.node).await), [(Kind::Unreachable, false)]);

    // It dies, is not heard of, and comes back.
    assert_eq!(time_goes_by(&collector, Duration::from_secs(60)).await, 1);
    let entries = [started(200, "a", true), at(210, "a")].map(|entry| agent.said(entry)).to_vec();
    shipping.entries(entries).await.unwrap();
    let node = node_of(&collector, agent.node).await;
    assert_eq!(kinds(&node), [(Kind::Died, false), (Kind::Unreachable, false)]);
    let died = node.gaps[0];
    assert_eq!(died.to_unix_ns - died.from_unix_ns, 150 * SECOND_NS as i64, "by its own signed times");

    // It stops in order: that is known at once, and is no silence.
    shipping.entries(vec![agent.said(stopped(215))]).await.unwrap();
    assert_eq!(kinds(&node_of(&collector, agent.node).await)[0], (Kind::Stopped, true));
    assert_eq!(time_goes_by(&collector, Duration::from_secs(3600)).await, 0);
    shipping.entries(vec![agent.said(started(300, "b", false))]).await.unwrap();
    assert_eq!(kinds(&node_of(&collector, agent.node).await)[0], (Kind::Stopped, false));

    // Suspended, then rebooted, with nobody connected all that time: the log alone says so.
    let entries =
        [at(305, "b"), at(365, "b"), started(900, "c", true)].map(|entry| agent.said(entry)).to_vec();
    shipping.entries(entries).await.unwrap();
    let node = node_of(&collector, agent.node).await;
    let found: Vec<_> = kinds(&node).into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(found[..3], [Kind::Rebooted, Kind::Stalled, Kind::Stopped]);
    assert_eq!(node.gap_count, 5);

    // The coverage of the node tells them, but for the one in which it was at work.
    let asked = v1::CoverageRequest { node_id: agent.node.to_field(), ..Default::default() };
    let coverage = collector.query().await.coverage_of(collector.asked(asked)).await.unwrap().into_inner();
    assert_eq!(coverage.node_gaps.len(), 4);
    assert!(coverage.node_gaps.iter().all(|gap| gap.kind() != Kind::Unreachable));
}

#[tokio::test]
async fn a_node_that_is_revoked_or_gone_for_good_is_not_silent() {
    let collector = Collector::start().await;
    let mut agent = Agent::join(&collector, "db-1").await;
    let mut shipping = agent.ship(&collector).await;
    shipping.entries(vec![agent.said(started(0, "a", false))]).await.unwrap();
    let asked = v1::RevokeNodeRequest { node_id: agent.node.to_field() };
    collector.admin().await.revoke_node(collector.asked(asked)).await.unwrap();
    assert_eq!(time_goes_by(&collector, Duration::from_secs(3600)).await, 0);
    let node = node_of(&collector, agent.node).await;
    assert!(node.revoked && node.revoked_unix_ms > 0 && node.gaps.is_empty());
}

#[tokio::test]
async fn how_an_agent_stands_is_what_it_signed_last() {
    let collector = Collector::start().await;
    let mut agent = Agent::join(&collector, "db-1").await;
    let mut shipping = agent.ship(&collector).await;
    let gate = |name: &str, state: v1::gate_state::State, detail: &str| v1::GateState {
        name: name.into(),
        state: state.into(),
        detail: detail.into(),
    };
    let standing = v1::AgentState {
        agent_version: "0.1.0".into(),
        kernel_release: "6.18.0".into(),
        gates: vec![
            gate("connect", v1::gate_state::State::Holds, ""),
            gate("cgroup-move", v1::gate_state::State::Weakened, "the scope is not the root"),
        ],
        config: Some(v1::ConfigState { sha256: vec![0xab; 32].into(), generation: 3, loaded_unix_ns: WALL }),
        keys_until_day: 20_000,
        ..Default::default()
    };
    let beat = v1::Heartbeat { next_number: 8, spooled_segments: 4, open_sessions: 2, ..Default::default() };
    let entry =
        v1::NodeEntry { agent: Some(standing.clone()), heartbeat: Some(beat), ..started(0, "a", false) };
    let signed = vec![agent.said(entry)];
    // Its clock is an hour and a bit ahead.
    let sent_unix_ns = (weir_collector::clock::unix_ms() + 3_700_000) * 1_000_000;
    shipping.send(to_collector::Message::Node(v1::NodeEntries { signed, sent_unix_ns })).await;
    shipping.answer().await.unwrap();
    // What says nothing of it leaves it as it is; what a heartbeat does not carry stays too.
    let bare = v1::NodeEntry { heartbeat: None, ..at(5, "a") };
    let signed = vec![agent.said(bare)];
    shipping.entries(signed).await.unwrap();
    let node = node_of(&collector, agent.node).await;
    assert_eq!(node.agent, Some(standing));
    assert_eq!((node.spooled_segments, node.open_sessions, node.next_number), (4, 2, 8));
    assert!(node.clock_known && node.clock_synchronized);
    assert!((3_699_000..=3_701_000).contains(&node.clock_offset_ms), "{}", node.clock_offset_ms);
}

#[tokio::test]
async fn an_enrolment_has_the_room_that_one_needs() {
    let collector = Collector::start().await;
    let (token, _) = collector.issuer().await.join_token(1, 60, "*", "test").await.unwrap();
    let mut bloated = Joining::new(&token, "db-1");
    bloated.request.csr_der = vec![0x30; 100 * 1024].into();
    let refused = bloated.send(&token).await.unwrap_err();
    assert!(format!("{refused:?}").contains("length limit"), "cut off while it comes in: {refused:?}");
    Joining::new(&token, "db-1").send(&token).await.unwrap();
}
