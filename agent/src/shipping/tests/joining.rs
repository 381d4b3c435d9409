//! Tokens, keys, and what is said where they are missing.

use rcgen::{CertificateParams, KeyPair};
use tokio::net::TcpListener;
use weir_proto::credential::JoinToken;

use super::collector::{Collector, Manner};
use super::{config, runtime, session, spool_files, start};
use crate::recording::Recording;
use crate::shipping::{enroll, is_enrolled};

#[test]
fn a_used_token_a_strangers_certificate_and_nobody_there_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let collector = Collector::new(Manner::Honest);
        let (port, _server) = collector.listen(0).await;
        enroll(&folder.path().join("a"), &Collector::token(port), "a", false).await.unwrap();
        let used = enroll(&folder.path().join("b"), &Collector::token(port), "b", false).await.unwrap_err();
        assert!(used.to_string().contains("did not take the token"), "{used}");

        let stranger = CertificateParams::default().self_signed(&KeyPair::generate().unwrap()).unwrap();
        let token = JoinToken {
            address: format!("127.0.0.1:{port}"),
            ca_der: stranger.der().to_vec(),
            secret: "secret".into(),
        };
        let error = enroll(&folder.path().join("c"), &token.to_string(), "c", false).await.unwrap_err();
        assert!(error.to_string().contains("is this its certificate"), "{error}");

        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let token = Collector::token(free.local_addr().unwrap().port());
        drop(free);
        let error = enroll(&folder.path().join("d"), &token, "d", false).await.unwrap_err();
        assert!(error.to_string().contains("is it running there"), "{error}");
        for state in ["b", "c", "d"] {
            assert!(!is_enrolled(&folder.path().join(state)), "a failed attempt leaves nothing half done");
        }
        let error = enroll(&folder.path().join("e"), "weirjoin1-nonsense", "e", false).await.unwrap_err();
        assert!(error.to_string().contains("token"), "{error}");
    });
}

#[test]
fn an_enrolment_that_failed_is_repeated_with_the_same_keys() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let collector = Collector::new(Manner::Honest);
        let (port, _server) = collector.listen(0).await;
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let nobody = Collector::token(gone.local_addr().unwrap().port());
        drop(gone);
        enroll(folder.path(), &nobody, "host", false).await.unwrap_err();
        let key = |name: &str| std::fs::read(folder.path().join("identity").join(name)).unwrap();
        let (signing, verifying, tls) = (key("signing.key"), key("verifying.key"), key("client.key.der"));
        assert!(!is_enrolled(folder.path()));
        enroll(folder.path(), &Collector::token(port), "host", false).await.unwrap();
        assert_eq!((signing, tls), (key("signing.key"), key("client.key.der")));
        assert_eq!(collector.held().node_key.unwrap().as_bytes()[..], verifying);
        let (recorder, recording) = start(folder.path()).await;
        session(&recorder, 1).await;
        recording.drain().await.unwrap();
        assert_eq!(spool_files(folder.path()), 0);
    });
}

#[test]
fn a_node_that_never_joined_or_never_saw_a_key_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let never = config(&folder.path().join("never"));
        let error = Recording::start(never).await.err().unwrap();
        assert!(error.to_string().contains("weir-agent join"), "{error}");

        let collector = Collector::new(Manner::Honest);
        let (port, server) = collector.listen(0).await;
        let state = folder.path().join("state");
        enroll(&state, &Collector::token(port), "host", false).await.unwrap();
        server.abort();
        std::fs::remove_file(state.join("keys.bin")).unwrap();
        let error = Recording::start(config(&state)).await.err().unwrap();
        assert!(error.to_string().contains("key for today"), "{error}");
    });
}
