//! Who may become a node, and what a node's certificate is good for.

use tonic::Code;
use weir_proto::v1::{self, to_collector};
use weir_proto::{NodeId, RunId};

use crate::agent::{Agent, Joining};
use crate::collector::{Collector, asked_with, channel};

#[tokio::test]
async fn a_token_is_good_for_its_uses() {
    let collector = Collector::start().await;
    let (token, _) = collector.issuer().await.join_token(2, 60, "db-*", "test").await.unwrap();
    let first = Joining::new(&token, "db-1");
    let node = first.send(&token).await.unwrap().node_id;
    assert_eq!(first.send(&token).await.unwrap().node_id, node, "the answer was lost: the same node again");
    assert_ne!(Joining::new(&token, "db-2").send(&token).await.unwrap().node_id, node);
    let used = Joining::new(&token, "db-3").send(&token).await.unwrap_err();
    assert_eq!(used.code(), Code::PermissionDenied);
    assert!(used.message().contains("weir join-token"), "says what to do: {used}");
}

#[tokio::test]
async fn a_token_is_for_its_names_and_its_time() {
    let collector = Collector::start().await;
    let issuer = collector.issuer().await;
    let (token, _) = issuer.join_token(9, 60, "db-*", "test").await.unwrap();
    let refused = |error: tonic::Status| error.code();
    assert_eq!(
        refused(Joining::new(&token, "web-1").send(&token).await.unwrap_err()),
        Code::PermissionDenied
    );
    assert_eq!(refused(Joining::new(&token, "db 1").send(&token).await.unwrap_err()), Code::InvalidArgument);
    let mut guessed = token.clone();
    guessed.secret.push('x');
    assert_eq!(
        refused(Joining::new(&guessed, "db-1").send(&guessed).await.unwrap_err()),
        Code::PermissionDenied
    );

    let (old, _) = issuer.join_token(9, 1, "*", "test").await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    assert_eq!(refused(Joining::new(&old, "db-1").send(&old).await.unwrap_err()), Code::PermissionDenied);
}

#[tokio::test]
async fn the_signing_key_must_be_held_and_new() {
    let collector = Collector::start().await;
    let issuer = collector.issuer().await;
    let (token, _) = issuer.join_token(9, 60, "*", "test").await.unwrap();
    let honest = Joining::new(&token, "db-1");
    let mut thief = Joining::new(&token, "db-2");
    thief.request.signing_key = honest.request.signing_key.clone();
    assert_eq!(thief.send(&token).await.unwrap_err().code(), Code::InvalidArgument, "proof by another key");
    let mut moved = Joining::new(&token, "db-2");
    moved.request.csr_der = honest.request.csr_der.clone();
    assert_eq!(
        moved.send(&token).await.unwrap_err().code(),
        Code::InvalidArgument,
        "proof for another request"
    );
    for csr in [&b"nonsense"[..], &[0x30; 9000]] {
        let mut bad = Joining::new(&token, "db-2");
        bad.request.csr_der = csr.to_vec().into();
        bad.request.proof = weir_proto::seal::enrol_proof(&bad.signer, csr).to_vec().into();
        assert_eq!(bad.send(&token).await.unwrap_err().code(), Code::InvalidArgument);
    }
    let enrolled = honest.send(&token).await.unwrap();
    let (other, _) = issuer.join_token(9, 60, "*", "test").await.unwrap();
    let mut again = honest.request.clone();
    again.token = other.secret.clone();
    let mut client = v1::ingest_client::IngestClient::new(collector.channel(None).await);
    let mut renamed = again.clone();
    renamed.name = "db-9".into();
    assert_eq!(client.enroll(renamed).await.unwrap_err().code(), Code::AlreadyExists, "under another name");
    let answer = client.enroll(again.clone()).await.unwrap().into_inner();
    assert_eq!(answer.node_id, enrolled.node_id, "who holds the key is the node, also with another token");
    let asked = v1::RevokeNodeRequest { node_id: answer.node_id };
    collector.admin().await.revoke_node(collector.asked(asked)).await.unwrap();
    let revoked = client.enroll(again).await.unwrap_err();
    assert!(revoked.code() == Code::PermissionDenied && revoked.message().contains("revoked"), "{revoked}");
}

#[tokio::test]
async fn shipping_needs_a_certificate_of_ours() {
    let collector = Collector::start().await;
    let agent = Agent::join(&collector, "db-1").await;
    let hello =
        || to_collector::Message::Hello(v1::Hello { node_id: agent.node.to_field(), ..Default::default() });

    // Without any, also not with an administrator's credential.
    let (to, messages) = tokio::sync::mpsc::channel(1);
    to.send(v1::ToCollector { message: Some(hello()) }).await.unwrap();
    let stream = tokio_stream::wrappers::ReceiverStream::new(messages);
    let mut client = v1::ingest_client::IngestClient::new(collector.channel(None).await);
    let refused = client.ship(asked_with(&collector.admin.secret, stream)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);

    // With one of another collector's CA: it does not get through the handshake.
    let elsewhere = Collector::start().await;
    let mut stranger = Agent::join(&elsewhere, "db-1").await;
    stranger.node = agent.node;
    let ended = stranger.connect_saying(&collector, hello()).await;
    assert!(ended.is_err(), "a stranger's certificate opened a stream");

    // Under another node's name.
    let name = v1::Hello { node_id: NodeId::generate().to_field(), ..Default::default() };
    let refused = agent.connect_saying(&collector, to_collector::Message::Hello(name)).await;
    assert_eq!(refused.err().map(|status| status.code()), Some(Code::PermissionDenied));
    // Without a hello.
    let wrap = to_collector::Message::Wrap(v1::Wrap::default());
    let refused = agent.connect_saying(&collector, wrap).await;
    assert_eq!(refused.err().map(|status| status.code()), Some(Code::InvalidArgument));
}

#[tokio::test]
async fn an_agent_cannot_ask() {
    let collector = Collector::start().await;
    let agent = Agent::join(&collector, "db-1").await;
    let channel = channel(&collector.address(), &agent.ca_der, Some(agent.identity.clone())).await;
    let refused =
        v1::query_client::QueryClient::new(channel).runs(v1::RunsRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_revoked_node_is_refused_at_once() {
    let collector = Collector::start().await;
    let mut agent = Agent::join(&collector, "db-1").await;
    let segments = agent.session(RunId::generate()).whole(2);
    let mut shipping = agent.ship(&collector).await;
    shipping.receipt(&segments[0]).await;
    let asked = v1::RevokeNodeRequest { node_id: agent.node.to_field() };
    collector.admin().await.revoke_node(collector.asked(asked)).await.unwrap();
    let ended = shipping.answer().await.unwrap_err();
    assert!(ended.code() == Code::PermissionDenied && ended.message().contains("revoked"), "{ended}");
    let refused = agent.connect(&collector).await.err().unwrap();
    assert_eq!((refused.code(), refused.message()), (ended.code(), ended.message()), "and stays ended");
    let refused = agent.renew(&collector).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "nor is its certificate renewed");
    let nodes = collector
        .query()
        .await
        .nodes(collector.asked(v1::NodesRequest::default()))
        .await
        .unwrap()
        .into_inner();
    assert!(nodes.nodes[0].revoked && !nodes.nodes[0].connected);
}

#[tokio::test]
async fn a_newer_stream_of_the_same_agent_takes_over() {
    let collector = Collector::start().await;
    let mut agent = Agent::join(&collector, "db-1").await;
    let segments = agent.session(RunId::generate()).whole(2);
    let mut old = agent.ship(&collector).await;
    old.receipt(&segments[0]).await;
    let mut new = agent.ship(&collector).await;
    assert_eq!(old.answer().await.unwrap_err().code(), Code::Aborted);
    new.receipt(&segments[1]).await;
}
