//! Against a collector made for this: honest, absent, forgetful, lying. It checks what it gets as a real one would.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use rcgen::{BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Certificate, Identity as TlsIdentity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};
use weir_proto::credential::{JoinToken, SERVER_NAME};
use weir_proto::seal::{
    Chain, NodeChain, Receipted, Segment, SigningKey, VerifyingKey, WrapKeyPair, events, sign_key_set,
    sign_receipt, unwrap, verify_enrol_proof, verify_renew_proof,
};
use weir_proto::v1::event::Kind;
use weir_proto::v1::ingest_server::{Ingest, IngestServer};
use weir_proto::v1::node_entry::Mark;
use weir_proto::v1::refused::Why;
use weir_proto::v1::{self, ToAgent, ToCollector, to_agent, to_collector};
use weir_proto::{GenerationId, KeyId, NodeId, SessionId};

use super::enroll;
use crate::recording::{Mode, Moment, Recorder, Recording, RecordingConfig, clock};

/// How the collector behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    Honest,
    /// Receipts signed by another key, for other hashes, for sessions it never saw; and plain nonsense.
    Lying,
    /// Says that it lacks the wrap, wants earlier segments, is full: each once, then it is honest.
    Fussy,
    /// Refuses all as tampered with.
    Suspicious,
    /// Ends each stream after a few messages.
    Nervous,
    /// Its keys are signed by somebody else.
    Disguised,
    /// Reads other formats only.
    Newer,
    /// Its copy of the node log has a head that is no hash, and no end.
    Confused,
    /// Renews nothing.
    Stingy,
    /// Renews with a certificate that is good for nothing.
    Forger,
    /// Has revoked the node.
    Final,
    /// Says things that this version does not know.
    Chatty,
}

struct Held {
    manner: Manner,
    signing: SigningKey,
    pair: WrapKeyPair,
    node: NodeId,
    node_key: Option<VerifyingKey>,
    tokens_used: u32,
    wraps: HashMap<GenerationId, v1::Wrap>,
    chains: BTreeMap<SessionId, Chain>,
    hashes: HashMap<(SessionId, u64), [u8; 32]>,
    events: BTreeMap<SessionId, Vec<v1::Event>>,
    log: NodeChain,
    entries: Vec<v1::NodeEntry>,
    fussed: Vec<Why>,
    repeats: u64,
    /// Of the certificate that joining gives.
    life_seconds: i64,
    renewals: u64,
    /// The certificates that streams were opened with.
    shown: Vec<Vec<u8>>,
}

#[derive(Clone)]
struct Collector(Arc<Mutex<Held>>);

type Answers = Pin<Box<dyn tokio_stream::Stream<Item = Result<ToAgent, Status>> + Send>>;

#[tonic::async_trait]
impl Ingest for Collector {
    type ShipStream = Answers;

    async fn enroll(
        &self,
        request: Request<v1::EnrollRequest>,
    ) -> Result<Response<v1::EnrollResponse>, Status> {
        let request = request.into_inner();
        let mut held = self.0.lock().unwrap();
        held.tokens_used += 1;
        if request.token != "secret" || held.tokens_used > 1 {
            return Err(Status::permission_denied("the token is not valid"));
        }
        let key = VerifyingKey::from_bytes(request.signing_key[..].try_into().unwrap()).unwrap();
        verify_enrol_proof(&key, &request.csr_der, &request.proof).unwrap();
        held.node_key = Some(key);
        let csr = CertificateSigningRequestParams::from_der(&request.csr_der.to_vec().into()).unwrap();
        let site = site();
        let certificate = csr.signed_by(&site.issuer()).unwrap();
        Ok(Response::new(v1::EnrollResponse {
            node_id: held.node.to_field(),
            certificate_der: Bytes::copy_from_slice(certificate.der()),
            ca_der: Bytes::new(),
            receipt_key: Bytes::copy_from_slice(held.signing.verifying_key().as_bytes()),
            not_after_unix: clock::unix_seconds() + held.life_seconds,
            life_seconds: held.life_seconds,
        }))
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::RenewResponse>, Status> {
        let mut held = self.0.lock().unwrap();
        if request.peer_certs().is_none_or(|certs| certs.is_empty()) {
            return Err(Status::unauthenticated("no certificate"));
        }
        if held.manner == Manner::Stingy {
            return Err(Status::unavailable("not now"));
        }
        let request = request.into_inner();
        let key = held.node_key.unwrap();
        verify_renew_proof(&key, &held.node, &request.csr_der, &request.proof).unwrap();
        held.renewals += 1;
        let der = if held.manner == Manner::Forger {
            // Signed by nobody that it trusts itself.
            let stranger = KeyPair::generate().unwrap();
            CertificateParams::default().self_signed(&stranger).unwrap().der().to_vec()
        } else {
            let csr = CertificateSigningRequestParams::from_der(&request.csr_der.to_vec().into()).unwrap();
            csr.signed_by(&site().issuer()).unwrap().der().to_vec()
        };
        Ok(Response::new(v1::RenewResponse {
            certificate_der: der.into(),
            not_after_unix: clock::unix_seconds() + 3600,
            life_seconds: 3600,
        }))
    }

    async fn ship(&self, request: Request<Streaming<ToCollector>>) -> Result<Response<Answers>, Status> {
        let Some(shown) = request.peer_certs().and_then(|certs| certs.first().map(|der| der.to_vec())) else {
            return Err(Status::unauthenticated("no certificate"));
        };
        {
            let mut held = self.held();
            if held.manner == Manner::Final {
                return Err(Status::permission_denied(format!("this node was revoked{}", "!".repeat(900))));
            }
            held.shown.push(shown);
        }
        let mut inbox = request.into_inner();
        let (outbox, answers) = mpsc::channel(64);
        let collector = self.clone();
        tokio::spawn(async move {
            let mut taken = 0;
            while let Ok(Some(ToCollector { message: Some(message) })) = inbox.message().await {
                let answers = collector.0.lock().unwrap().take(message);
                if collector.held().manner == Manner::Chatty {
                    // What prost makes of a kind of message that it does not know.
                    for _ in 0..20 {
                        let _ = outbox.try_send(Ok(ToAgent { message: None }));
                    }
                }
                for answer in answers {
                    if outbox.send(Ok(ToAgent { message: Some(answer) })).await.is_err() {
                        return;
                    }
                }
                taken += 1;
                if collector.0.lock().unwrap().manner == Manner::Nervous && taken > 4 {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}

impl Held {
    fn take(&mut self, message: to_collector::Message) -> Vec<to_agent::Message> {
        match message {
            to_collector::Message::Hello(hello) => {
                assert_eq!(hello.node_id, self.node.to_field());
                let mut welcome = self.welcome();
                match self.manner {
                    Manner::Disguised => {
                        let keys = v1::KeySet::default();
                        welcome.keys = Some(sign_key_set(&SigningKey::from_bytes(&[66; 32]), &keys));
                    }
                    Manner::Newer => (welcome.format_min, welcome.format_max) = (7, 9),
                    Manner::Confused => {
                        welcome.node_entries = u64::MAX;
                        welcome.next_number = u64::MAX;
                        welcome.node_head = Bytes::from_static(b"no hash");
                    }
                    _ => {}
                }
                vec![to_agent::Message::Welcome(welcome)]
            }
            to_collector::Message::Wrap(wrap) => {
                let id = GenerationId::try_from(&wrap.generation_id[..]).unwrap();
                self.wraps.insert(id, wrap);
                vec![]
            }
            to_collector::Message::Segment(segment) => self.segment(segment),
            to_collector::Message::Node(entries) => self.node_entries(entries),
        }
    }

    fn welcome(&self) -> v1::Welcome {
        let today = clock::today();
        let key = |day| v1::HpkeKey {
            id: KeyId::from_bytes([day as u8; 16]).to_field(),
            class: "default".into(),
            day,
            public_key: self.pair.public.clone().into(),
        };
        let keys = v1::KeySet { keys: (today..today + 35).map(key).collect(), issued_unix: 1 };
        v1::Welcome {
            format_min: 1,
            format_max: 1,
            collector_version: "test".into(),
            keys: Some(sign_key_set(&self.signing, &keys)),
            node_entries: self.log.next_index,
            node_head: if self.log.next_index == 0 {
                Bytes::new()
            } else {
                Bytes::copy_from_slice(&self.log.head)
            },
            next_number: self.entries.iter().flat_map(|e| &e.opened).map(|o| o.number + 1).max().unwrap_or(1),
            stream_version: 0,
        }
    }

    fn segment(&mut self, sealed: v1::SealedSegment) -> Vec<to_agent::Message> {
        let segment = Segment::parse(sealed.bytes).unwrap();
        segment.verify(self.node_key.as_ref().unwrap(), &sealed.signature).unwrap();
        let (session, seq) = (segment.session(), segment.seq());
        let refuse = |why: Why, wanted| {
            let refused = v1::Refused {
                session_id: session.to_field(),
                seq,
                why: why.into(),
                wanted,
                detail: "é".repeat(300),
            };
            vec![to_agent::Message::Refused(refused)]
        };
        let said = Receipted { session, seq, hash: *segment.hash(), received_unix_ms: 1 };
        match self.manner {
            Manner::Suspicious => return refuse(Why::Tamper, 0),
            Manner::Lying => return self.lies(&said),
            Manner::Fussy => {
                for (why, wanted) in
                    [(Why::NoWrap, 0), (Why::WantSeq, 0), (Why::WantSeq, 77), (Why::TryLater, 0)]
                {
                    let early = why == Why::WantSeq && wanted == 0;
                    if self.fussed.len() < 4 && !self.fussed.contains(&why) && (!early || seq > 0) {
                        self.fussed.push(why);
                        if early {
                            // As if the start had never come.
                            self.chains.remove(&session);
                            self.events.remove(&session);
                        }
                        return refuse(why, wanted);
                    }
                }
            }
            Manner::Honest
            | Manner::Nervous
            | Manner::Disguised
            | Manner::Newer
            | Manner::Confused
            | Manner::Stingy
            | Manner::Forger
            | Manner::Final
            | Manner::Chatty => {}
        }
        if let Some(hash) = self.hashes.get(&(session, seq))
            && self.chains.get(&session).is_some_and(|c| c.next_seq > seq)
        {
            assert_eq!(hash, segment.hash(), "a segment is sent again byte for byte");
            self.repeats += 1;
            return vec![to_agent::Message::Receipt(sign_receipt(&self.signing, &said))];
        }
        let chain = self.chains.entry(session).or_insert_with(|| Chain::start(session, self.node));
        if seq > chain.next_seq {
            let wanted = chain.next_seq;
            return refuse(Why::WantSeq, wanted);
        }
        if chain.accept(&segment).is_err() {
            return refuse(Why::Tamper, 0);
        }
        let wrap = &self.wraps[&segment.draft().generation];
        let key = unwrap(wrap, &self.pair.private).unwrap().session_key(&session);
        let read = events(segment.open(&key).unwrap()).map(Result::unwrap);
        self.events.entry(session).or_default().extend(read);
        self.hashes.insert((session, seq), *segment.hash());
        vec![to_agent::Message::Receipt(sign_receipt(&self.signing, &said))]
    }

    fn lies(&self, said: &Receipted) -> Vec<to_agent::Message> {
        let stranger = SigningKey::from_bytes(&[66; 32]);
        let other = Receipted { hash: [1; 32], ..*said };
        let unknown = Receipted { session: SessionId::generate(), ..*said };
        vec![
            to_agent::Message::Receipt(sign_receipt(&stranger, said)),
            to_agent::Message::Receipt(sign_receipt(&self.signing, &other)),
            to_agent::Message::Receipt(sign_receipt(&self.signing, &unknown)),
            to_agent::Message::Receipt(v1::Receipt::default()),
            to_agent::Message::Refused(v1::Refused::default()),
            to_agent::Message::Refused(v1::Refused {
                session_id: unknown.session.to_field(),
                why: 99,
                ..Default::default()
            }),
            to_agent::Message::Node(v1::NodeReceipt {
                entries: u64::MAX,
                head: Bytes::from_static(&[7; 32]),
                diverged: false,
            }),
            to_agent::Message::Node(v1::NodeReceipt {
                entries: 1,
                head: Bytes::from_static(b"short"),
                diverged: false,
            }),
        ]
    }

    fn node_entries(&mut self, entries: v1::NodeEntries) -> Vec<to_agent::Message> {
        let mut diverged = false;
        for signed in entries.signed {
            let signed = v1::SignedNodeEntry::decode(signed).unwrap();
            match self.log.accept(&signed, self.node_key.as_ref().unwrap()) {
                Ok(entry) => self.entries.push(entry),
                Err(_) => diverged = true,
            }
        }
        let head = Bytes::copy_from_slice(&self.log.head);
        vec![to_agent::Message::Node(v1::NodeReceipt { entries: self.log.next_index, head, diverged })]
    }

    /// The data events of a session, by exchange number.
    fn marks(&self, session: SessionId) -> Vec<u64> {
        let of = |e: &v1::Event| match &e.kind {
            Some(Kind::Data(data)) => Some(data.exchange),
            _ => None,
        };
        self.events.get(&session).into_iter().flatten().filter_map(of).collect()
    }
}

/// The CA and the server's certificate, one for all tests.
struct Site {
    ca: rcgen::Certificate,
    ca_key: KeyPair,
    ca_params: CertificateParams,
    server_pem: String,
    server_key_pem: String,
}

impl Site {
    fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::from_params(&self.ca_params, &self.ca_key)
    }
}

fn site() -> &'static Site {
    static SITE: std::sync::OnceLock<Site> = std::sync::OnceLock::new();
    SITE.get_or_init(|| {
        let ca_key = KeyPair::generate().unwrap();
        let mut ca_params = CertificateParams::default();
        ca_params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = ca_params.self_signed(&ca_key).unwrap();
        let key = KeyPair::generate().unwrap();
        let server = CertificateParams::new(vec![SERVER_NAME.to_owned()])
            .unwrap()
            .signed_by(&key, &Issuer::from_params(&ca_params, &ca_key))
            .unwrap();
        Site { ca, ca_key, ca_params, server_pem: server.pem(), server_key_pem: key.serialize_pem() }
    })
}

impl Collector {
    fn new(manner: Manner) -> Self {
        let node = NodeId::generate();
        Self(Arc::new(Mutex::new(Held {
            manner,
            signing: SigningKey::from_bytes(&[42; 32]),
            pair: WrapKeyPair::generate().unwrap(),
            node,
            node_key: None,
            tokens_used: 0,
            wraps: HashMap::new(),
            chains: BTreeMap::new(),
            hashes: HashMap::new(),
            events: BTreeMap::new(),
            log: NodeChain::start(node),
            entries: Vec::new(),
            fussed: Vec::new(),
            repeats: 0,
            life_seconds: 3600,
            renewals: 0,
            shown: Vec::new(),
        })))
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.0.lock().unwrap()
    }

    fn manner(&self, manner: Manner) {
        self.held().manner = manner;
    }

    /// Listens until the returned task is aborted; `port` 0 finds one.
    async fn listen(&self, port: u16) -> (u16, tokio::task::JoinHandle<()>) {
        let listener = loop {
            match TcpListener::bind(("127.0.0.1", port)).await {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        };
        let port = listener.local_addr().unwrap().port();
        let site = site();
        let tls = ServerTlsConfig::new()
            .identity(TlsIdentity::from_pem(&site.server_pem, &site.server_key_pem))
            .client_ca_root(Certificate::from_pem(site.ca.pem()))
            .client_auth_optional(true);
        let server = Server::builder()
            .tls_config(tls)
            .unwrap()
            .add_service(IngestServer::new(self.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        (port, tokio::spawn(async move { server.await.unwrap() }))
    }

    fn token(port: u16) -> String {
        JoinToken {
            address: format!("127.0.0.1:{port}"),
            ca_der: site().ca.der().to_vec(),
            secret: "secret".into(),
        }
        .to_string()
    }

    /// Waits for something to become true at the collector.
    async fn until(&self, what: &str, holds: impl Fn(&Held) -> bool) {
        for _ in 0..600 {
            if holds(&self.held()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("not within 30 s: {what}");
    }
}

fn runtime() -> tokio::runtime::Runtime {
    // Another test of this process may have been first.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

async fn start(state: &Path) -> (Recorder, Recording) {
    let config = RecordingConfig {
        state_dir: state.to_owned(),
        mode: Mode::Collector,
        journal_bytes: 4 << 20,
        spool_quota_bytes: 1 << 30,
        moment: Moment::now,
    };
    Recording::start(config).await.unwrap()
}

/// A closed session with this many data events of 50 kB, which do not fit one segment when there are more than 5.
async fn session(recorder: &Recorder, events: u64) -> SessionId {
    let mut session = recorder.open(v1::Opened::default()).await.unwrap();
    for exchange in 1..=events {
        let bytes = vec![exchange as u8; 50_000].into();
        session.write(Kind::Data(v1::Data { exchange, bytes, ..Default::default() })).await.unwrap();
    }
    let id = session.session();
    session.close(v1::Closed::default()).await.unwrap();
    id
}

async fn wait_for(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..600 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not within 30 s: {what}");
}

fn spool_files(state: &Path) -> usize {
    std::fs::read_dir(state.join("spool/segments")).unwrap().count()
}

#[test]
fn what_is_recorded_arrives_and_then_leaves_the_spool() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    runtime().block_on(async {
        let collector = Collector::new(Manner::Honest);
        let (port, _server) = collector.listen(0).await;
        let node = enroll(&state, &Collector::token(port), "host", false).await.unwrap();
        assert_eq!(node, collector.held().node);
        assert!(super::is_enrolled(&state));
        let again = enroll(&state, &Collector::token(port), "host", false).await.unwrap_err();
        assert!(again.to_string().contains("already joined"), "{again}");

        let (recorder, recording) = start(&state).await;
        let long = session(&recorder, 20).await;
        let short = session(&recorder, 1).await;
        recording.drain().await.unwrap();
        {
            let held = collector.held();
            assert_eq!(held.marks(long), (1..=20).collect::<Vec<_>>());
            assert_eq!(held.marks(short), [1]);
            assert!(held.chains.values().all(|c| c.closed));
            let closed: Vec<_> = held.entries.iter().flat_map(|e| &e.closed).collect();
            assert_eq!(closed.len(), 2);
            assert!(closed.iter().all(|c| {
                let chain = &held.chains[&SessionId::try_from(&c.session_id[..]).unwrap()];
                (c.segments, &c.head_hash[..]) == (chain.next_seq, &chain.head[..])
            }));
            assert!(matches!(held.entries.last().unwrap().mark, Some(Mark::Stopped(_))));
        }
        assert_eq!(spool_files(&state), 0);
    });
}

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
            assert!(
                !super::is_enrolled(&folder.path().join(state)),
                "a failed attempt leaves nothing half done"
            );
        }
        let error = enroll(&folder.path().join("e"), "weirjoin1-nonsense", "e", false).await.unwrap_err();
        assert!(error.to_string().contains("token"), "{error}");
    });
}

#[test]
fn a_collector_that_was_away_gets_everything_once_it_is_back() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let collector = Collector::new(Manner::Nervous);
        let (port, server) = collector.listen(0).await;
        enroll(folder.path(), &Collector::token(port), "host", false).await.unwrap();
        server.abort();
        let (recorder, recording) = start(folder.path()).await;
        let mut sessions = Vec::new();
        for n in 0..30 {
            sessions.push((session(&recorder, n % 9).await, n % 9));
        }
        wait_for("the spool keeps it all", || spool_files(folder.path()) >= 30).await;
        // Back, but it drops each stream after a few messages; the agent restarts meanwhile, too.
        let (_, _server) = collector.listen(port).await;
        collector.until("some have come", |held| held.chains.len() > 5).await;
        drop((recorder, recording));
        tokio::time::sleep(Duration::from_millis(600)).await;
        collector.manner(Manner::Honest);
        let (_recorder, recording) = start(folder.path()).await;
        for (id, n) in sessions {
            collector
                .until("each session is whole", |held| held.chains.get(&id).is_some_and(|c| c.closed))
                .await;
            assert_eq!(collector.held().marks(id), (1..=n).collect::<Vec<_>>());
        }
        recording.drain().await.unwrap();
        assert_eq!(spool_files(folder.path()), 0);
    });
}

#[test]
fn lies_delete_nothing_and_the_truth_still_arrives() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let collector = Collector::new(Manner::Lying);
        let (port, _server) = collector.listen(0).await;
        enroll(folder.path(), &Collector::token(port), "host", false).await.unwrap();
        let (recorder, recording) = start(folder.path()).await;
        let id = session(&recorder, 30).await;
        wait_for("lies were told", || recorder.counters().receipts_false.value() > 5).await;
        assert!(spool_files(folder.path()) > 3, "nothing was deleted");
        assert_eq!(recorder.counters().receipts.value(), 0);
        collector.manner(Manner::Honest);
        // What was sent to the liar has no receipt: the next stream sends it again.
        drop((recorder, recording));
        tokio::time::sleep(Duration::from_millis(600)).await;
        let (_recorder, recording) = start(folder.path()).await;
        collector.until("the session is whole", |held| held.chains.get(&id).is_some_and(|c| c.closed)).await;
        assert_eq!(collector.held().marks(id), (1..=30).collect::<Vec<_>>());
        recording.drain().await.unwrap();
    });
}

#[test]
fn a_collector_that_is_not_itself_gets_nothing() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let collector = Collector::new(Manner::Honest);
        let (port, _server) = collector.listen(0).await;
        enroll(folder.path(), &Collector::token(port), "host", false).await.unwrap();
        for (manner, said) in [
            (Manner::Disguised, "not signed by the collector's receipt key"),
            (Manner::Newer, "upgrade the older one"),
            (Manner::Confused, "made no sense"),
        ] {
            collector.manner(manner);
            let (recorder, recording) = start(folder.path()).await;
            wait_for(said, || serde_json::to_string(&recording.status()).unwrap().contains(said)).await;
            session(&recorder, 1).await;
            let collected = collector.held().chains.len();
            assert_eq!(collected, 0, "{manner:?}");
            drop((recorder, recording));
            tokio::time::sleep(Duration::from_millis(600)).await;
        }
        collector.manner(Manner::Honest);
        let (_recorder, recording) = start(folder.path()).await;
        collector.until("all have come", |held| held.chains.values().filter(|c| c.closed).count() == 3).await;
        recording.drain().await.unwrap();
        assert!(collector.held().entries.iter().all(|e| !matches!(e.mark, Some(Mark::RolledBack(_)))));
    });
}

#[test]
fn a_node_log_that_was_deleted_goes_on_from_the_collectors_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let collector = Collector::new(Manner::Honest);
        let (port, _server) = collector.listen(0).await;
        enroll(folder.path(), &Collector::token(port), "host", false).await.unwrap();
        let (recorder, recording) = start(folder.path()).await;
        session(&recorder, 1).await;
        collector
            .until("it is closed in the log", |held| held.entries.iter().any(|e| !e.closed.is_empty()))
            .await;
        // Below the running agent.
        for file in std::fs::read_dir(folder.path().join("nodelog")).unwrap() {
            std::fs::remove_file(file.unwrap().path()).unwrap();
        }
        session(&recorder, 2).await;
        let rolled_back =
            |held: &Held| held.entries.iter().any(|e| matches!(e.mark, Some(Mark::RolledBack(_))));
        collector.until("it says that it was rolled back", rolled_back).await;
        recording.drain().await.unwrap();
        let held = collector.held();
        let mut numbers: Vec<u64> = held.entries.iter().flat_map(|e| &e.opened).map(|o| o.number).collect();
        numbers.dedup();
        assert!(numbers.contains(&1), "{numbers:?}");
        assert!(matches!(held.entries.last().unwrap().mark, Some(Mark::Stopped(_))));
    });
}

#[test]
fn an_entry_that_rots_before_it_is_sent_does_not_stop_the_log() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let collector = Collector::new(Manner::Honest);
        let (port, server) = collector.listen(0).await;
        enroll(folder.path(), &Collector::token(port), "host", false).await.unwrap();
        server.abort();
        let _ = server.await;
        let (recorder, recording) = start(folder.path()).await;
        let rotten = session(&recorder, 1).await;
        let log = folder.path().join("nodelog").join(format!("{:020}.log", 0));
        let place = || {
            let bytes = std::fs::read(&log).unwrap();
            bytes.windows(16).position(|w| w == rotten.as_bytes()).map(|at| (bytes, at))
        };
        wait_for("it is in the log", || place().is_some()).await;
        let (mut bytes, at) = place().unwrap();
        bytes[at] ^= 1;
        // In place: the agent has the file open.
        use std::os::unix::fs::FileExt;
        std::fs::OpenOptions::new()
            .write(true)
            .open(&log)
            .unwrap()
            .write_at(&bytes[at..=at], at as u64)
            .unwrap();
        let (_, _server) = collector.listen(port).await;
        let later = session(&recorder, 1).await;
        collector
            .until("the log goes on", |held| {
                held.entries.iter().flat_map(|e| &e.closed).any(|c| c.session_id == later.to_field())
            })
            .await;
        assert!(collector.held().entries.iter().any(|e| matches!(e.mark, Some(Mark::RolledBack(_)))));
        recording.drain().await.unwrap();
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
        assert!(!super::is_enrolled(folder.path()));
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
fn a_segment_that_cannot_be_read_now_is_sent_later_and_counts_as_on_its_way() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let collector = Collector::new(Manner::Honest);
        let (port, server) = collector.listen(0).await;
        enroll(folder.path(), &Collector::token(port), "host", false).await.unwrap();
        server.abort();
        let _ = server.await;
        let (recorder, recording) = start(folder.path()).await;
        let id = session(&recorder, 1).await;
        let file = folder.path().join(format!("spool/segments/{id}.0000000000.seg"));
        wait_for("it is spooled", || file.exists()).await;
        let hidden = folder.path().join("hidden");
        std::fs::rename(&file, &hidden).unwrap();
        // Opens, and reading it is an error of the disk.
        std::fs::create_dir(&file).unwrap();
        let (_, _server) = collector.listen(port).await;
        let connects = recorder.counters().connects.value();
        wait_for("it is back", || recorder.counters().connects.value() > connects).await;
        collector
            .until("it says that one is on its way", |held| {
                held.entries
                    .iter()
                    .filter(|e| e.closed.iter().any(|c| c.session_id == id.to_field()))
                    .any(|e| e.heartbeat.as_ref().is_some_and(|h| h.spooled_segments == 1))
            })
            .await;
        assert_eq!(recorder.counters().spool_quarantined.value(), 0);
        std::fs::remove_dir(&file).unwrap();
        std::fs::rename(&hidden, &file).unwrap();
        collector.until("it has come", |held| held.chains.get(&id).is_some_and(|c| c.closed)).await;
        recording.drain().await.unwrap();
        let held = collector.held();
        assert!(held.entries.iter().all(|e| e.lost.is_empty()));
        assert_eq!(held.entries.last().unwrap().heartbeat.as_ref().unwrap().spooled_segments, 0);
        assert!(held.entries.iter().all(|e| !matches!(e.mark, Some(Mark::RolledBack(_)))));
    });
}

#[test]
fn refusals_are_answered_with_what_is_wanted() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let collector = Collector::new(Manner::Fussy);
        let (port, _server) = collector.listen(0).await;
        enroll(folder.path(), &Collector::token(port), "host", false).await.unwrap();
        let (recorder, recording) = start(folder.path()).await;
        let id = session(&recorder, 30).await;
        collector.until("the session is whole", |held| held.chains.get(&id).is_some_and(|c| c.closed)).await;
        assert_eq!(collector.held().marks(id), (1..=30).collect::<Vec<_>>());
        assert!(recorder.counters().refused.value() >= 3);
        recording.drain().await.unwrap();
        assert_eq!(spool_files(folder.path()), 0);
    });
}

#[test]
fn what_is_called_tampered_with_stays_in_the_spool() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let collector = Collector::new(Manner::Suspicious);
        let (port, _server) = collector.listen(0).await;
        enroll(folder.path(), &Collector::token(port), "host", false).await.unwrap();
        let (recorder, recording) = start(folder.path()).await;
        let id = session(&recorder, 1).await;
        wait_for("it was refused", || recorder.counters().refused_tamper.value() > 0).await;
        assert_eq!(spool_files(folder.path()), 1);
        assert_eq!(recording.status().stuck, [(id.to_string(), "refused as tampered with")]);
        recording.drain().await.unwrap();
    });
}

#[test]
fn an_agent_on_an_old_disk_says_so_and_goes_on_from_the_collectors_log() {
    let folder = tempfile::tempdir().unwrap();
    let (state, old) = (folder.path().join("state"), folder.path().join("old"));
    runtime().block_on(async {
        let collector = Collector::new(Manner::Honest);
        let (port, _server) = collector.listen(0).await;
        enroll(&state, &Collector::token(port), "host", false).await.unwrap();
        let (recorder, recording) = start(&state).await;
        session(&recorder, 1).await;
        recording.drain().await.unwrap();
        drop((recorder, recording));
        copy(&state, &old);
        let (recorder, recording) = start(&state).await;
        session(&recorder, 1).await;
        session(&recorder, 1).await;
        recording.drain().await.unwrap();
        drop((recorder, recording));
        let known = collector.held().entries.len();

        std::fs::remove_dir_all(&state).unwrap();
        std::fs::rename(&old, &state).unwrap();
        let (recorder, recording) = start(&state).await;
        collector.until("it says that it was rolled back", |held| held.entries.len() > known).await;
        session(&recorder, 1).await;
        recording.drain().await.unwrap();
        let held = collector.held();
        let Some(Mark::RolledBack(said)) = held.entries[known].mark.clone() else {
            panic!("{:?}", held.entries[known])
        };
        assert!(said.own_index < known as u64);
        assert_eq!(said.own_next_number, 2);
        let last: Vec<u64> = held.entries[known..].iter().flat_map(|e| &e.opened).map(|o| o.number).collect();
        assert_eq!(
            last,
            [1, 4],
            "all is said again; numbers go on after the highest that the collector knows"
        );
        assert!(
            held.entries.last().unwrap().mark == Some(Mark::Stopped(v1::Stopped { cause: "drained".into() }))
        );
    });
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        if file.file_type().unwrap().is_dir() {
            copy(&file.path(), &to.join(file.file_name()));
        } else {
            std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    }
}

#[test]
fn a_node_that_never_joined_or_never_saw_a_key_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let config = RecordingConfig {
            state_dir: folder.path().join("never"),
            mode: Mode::Collector,
            journal_bytes: 4 << 20,
            spool_quota_bytes: 1 << 30,
            moment: Moment::now,
        };
        let error = Recording::start(config).await.err().unwrap();
        assert!(error.to_string().contains("weir-agent join"), "{error}");

        let collector = Collector::new(Manner::Honest);
        let (port, server) = collector.listen(0).await;
        let state = folder.path().join("state");
        enroll(&state, &Collector::token(port), "host", false).await.unwrap();
        server.abort();
        std::fs::remove_file(state.join("keys.bin")).unwrap();
        let config = RecordingConfig {
            state_dir: state,
            mode: Mode::Collector,
            journal_bytes: 4 << 20,
            spool_quota_bytes: 1 << 30,
            moment: Moment::now,
        };
        let error = Recording::start(config).await.err().unwrap();
        assert!(error.to_string().contains("key for today"), "{error}");
    });
}
