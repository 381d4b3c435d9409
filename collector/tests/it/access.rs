//! No read without a credential, every read on record.

use bytes::Bytes;
use tonic::Code;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic_prost::ProstCodec;
use weir_proto::v1;

use crate::collector::{Collector, asked_with};

/// (service, call) of everything that people may call, from the contract itself: a new call is in this test by being
/// in the contract.
fn calls() -> Vec<(String, String)> {
    let proto = include_str!("../../../proto/v1/query.proto");
    let mut service = String::new();
    let mut calls = Vec::new();
    for line in proto.lines() {
        let mut words = line.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
        match words.next() {
            Some("service") => service = words.next().unwrap().to_owned(),
            Some("rpc") => calls.push((service.clone(), words.next().unwrap().to_owned())),
            _ => {}
        }
    }
    assert!(calls.len() >= 15, "the contract was not read: {calls:?}");
    calls
}

/// Calls by path with an empty message, which is a valid one of any type; the first answer or the refusal.
async fn call(channel: &Channel, service: &str, name: &str, secret: Option<&str>) -> Result<(), Code> {
    let mut client = Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let path = PathAndQuery::try_from(format!("/weir.v1.{service}/{name}")).unwrap();
    let codec = ProstCodec::<v1::WhoamiRequest, v1::WhoamiRequest>::default();
    let request = match secret {
        Some(secret) => asked_with(secret, v1::WhoamiRequest {}),
        None => tonic::Request::new(v1::WhoamiRequest {}),
    };
    let mut answer =
        client.server_streaming(request, path, codec).await.map_err(|status| status.code())?.into_inner();
    answer.message().await.map(|_| ()).map_err(|status| status.code())
}

#[tokio::test]
async fn every_call_refuses_without_a_credential_and_writes_it_down() {
    let collector = Collector::start().await;
    let channel = collector.channel(None).await;
    let wrong = weir_collector::access::new_secret().unwrap();
    for (service, name) in calls() {
        let long = "x".repeat(5000);
        let ask = |secret| call(&channel, &service, &name, secret);
        // At once: whoever waits is written down together with others, and nobody twice.
        let (a, b, c, d) =
            tokio::join!(ask(None), ask(Some(wrong.as_str())), ask(Some("")), ask(Some(&long)));
        for refused in [a, b, c, d] {
            assert_eq!(refused, Err(Code::Unauthenticated), "{service}/{name}");
        }
    }
    let accesses = accesses(&collector).await;
    for (_, name) in calls() {
        let refused: u64 = accesses
            .iter()
            .filter(|access| access.call == name && access.who.is_empty() && !access.allowed)
            .map(|access| access.times)
            .sum();
        assert_eq!(refused, 4, "refusals of {name} in the access log");
    }
}

#[tokio::test]
async fn a_viewer_reads_and_changes_nothing() {
    let collector = Collector::start().await;
    let asked = v1::CreateCredentialRequest { name: "eve".into(), role: "viewer".into() };
    let made = collector.admin().await.create_credential(collector.asked(asked)).await.unwrap().into_inner();
    let viewer: weir_proto::credential::Credential = made.credential.parse().unwrap();
    assert!(!viewer.admin && viewer.address == collector.address());
    let channel = collector.channel(None).await;
    for (service, name) in calls() {
        let answered = call(&channel, &service, &name, Some(&viewer.secret)).await;
        if service == "Admin" || name == "Accesses" {
            assert_eq!(answered, Err(Code::PermissionDenied), "{name}");
        } else {
            assert!(
                !matches!(answered, Err(Code::PermissionDenied | Code::Unauthenticated)),
                "{name}: {answered:?}"
            );
        }
    }
    let accesses = accesses(&collector).await;
    assert!(accesses.iter().any(|access| access.who == "eve" && access.call == "Runs" && access.allowed));
    assert!(
        accesses.iter().any(|access| access.who == "eve" && access.call == "RevokeNode" && !access.allowed)
    );

    let asked = v1::RevokeCredentialRequest { name: "eve".into() };
    collector.admin().await.revoke_credential(collector.asked(asked)).await.unwrap();
    assert_eq!(call(&channel, "Query", "Whoami", Some(&viewer.secret)).await, Err(Code::Unauthenticated));
}

#[tokio::test]
async fn malformed_questions_are_refused_kindly() {
    let collector = Collector::start().await;
    let mut query = collector.query().await;
    let page = |cursor: &str| Some(v1::Page { limit: 1, cursor: cursor.into() });
    for cursor in ["x", "1:zz:1", "1:00", "::", "99999999999999999999:00:1"] {
        let runs = v1::RunsRequest { page: page(cursor), ..Default::default() };
        assert_eq!(
            query.runs(collector.asked(runs)).await.unwrap_err().code(),
            Code::InvalidArgument,
            "{cursor}"
        );
    }
    for id_prefix in ["x'; DROP TABLE run; --", "%", &"a".repeat(33)] {
        let runs = v1::RunsRequest { id_prefix: id_prefix.into(), ..Default::default() };
        assert_eq!(
            query.runs(collector.asked(runs)).await.unwrap_err().code(),
            Code::InvalidArgument,
            "{id_prefix}"
        );
    }
    let both = v1::ExchangesRequest {
        run_id: Bytes::from_static(&[1; 16]),
        session_id: Bytes::from_static(&[1; 16]),
        ..Default::default()
    };
    assert_eq!(query.exchanges(collector.asked(both)).await.unwrap_err().code(), Code::InvalidArgument);
    let short = v1::SessionsRequest { run_id: Bytes::from_static(&[1; 3]), ..Default::default() };
    assert_eq!(query.sessions(collector.asked(short)).await.unwrap_err().code(), Code::InvalidArgument);
}

async fn accesses(collector: &Collector) -> Vec<v1::Access> {
    let asked = v1::AccessesRequest { page: Some(v1::Page { limit: 1000, cursor: String::new() }) };
    collector.query().await.accesses(collector.asked(asked)).await.unwrap().into_inner().accesses
}
