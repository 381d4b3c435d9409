//! A collector made for the tests: it checks what it gets as a real one would, and behaves as it is told.

use std::collections::{BTreeMap, HashMap};
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
use weir_proto::v1::refused::Why;
use weir_proto::v1::{self, ToAgent, ToCollector, to_agent, to_collector};
use weir_proto::{GenerationId, KeyId, NodeId, SessionId};

use crate::recording::clock;

/// What a welcome's key set covers.
pub(super) const DAYS: u32 = 35;

/// How the collector behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
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
    /// Gives out certificates that have ended.
    Late,
    /// Says things that this version does not know.
    Chatty,
}

pub(super) struct Held {
    pub(super) manner: Manner,
    pub(super) signing: SigningKey,
    pub(super) pair: WrapKeyPair,
    pub(super) node: NodeId,
    pub(super) node_key: Option<VerifyingKey>,
    pub(super) tokens_used: u32,
    pub(super) wraps: HashMap<GenerationId, v1::Wrap>,
    pub(super) chains: BTreeMap<SessionId, Chain>,
    pub(super) hashes: HashMap<(SessionId, u64), [u8; 32]>,
    pub(super) events: BTreeMap<SessionId, Vec<v1::Event>>,
    pub(super) log: NodeChain,
    pub(super) entries: Vec<v1::NodeEntry>,
    pub(super) fussed: Vec<Why>,
    pub(super) repeats: u64,
    /// Of the certificate that joining gives.
    pub(super) life_seconds: i64,
    pub(super) renewals: u64,
    /// The certificates that streams were opened with.
    pub(super) shown: Vec<Vec<u8>>,
}

#[derive(Clone)]
pub(super) struct Collector(Arc<Mutex<Held>>);

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
        let mut csr = CertificateSigningRequestParams::from_der(&request.csr_der.to_vec().into()).unwrap();
        let site = site();
        if held.manner == Manner::Late {
            csr.params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        }
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
                for answer in answers {
                    if outbox.send(Ok(ToAgent { message: Some(answer) })).await.is_err() {
                        return;
                    }
                }
                if collector.held().manner == Manner::Chatty {
                    let fresh = collector.held().keys(DAYS + 1, 2);
                    let _ = outbox.try_send(Ok(ToAgent { message: Some(to_agent::Message::Keys(fresh)) }));
                    // What prost makes of a kind of message that it does not know.
                    for _ in 0..20 {
                        let _ = outbox.try_send(Ok(ToAgent { message: None }));
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
        v1::Welcome {
            format_min: 1,
            format_max: 1,
            collector_version: "test".into(),
            keys: Some(self.keys(DAYS, 1)),
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

    /// For so many days from today on.
    fn keys(&self, days: u32, issued_unix: i64) -> v1::SignedKeySet {
        let today = clock::today();
        let key = |day| v1::HpkeKey {
            id: KeyId::from_bytes([day as u8; 16]).to_field(),
            class: "default".into(),
            day,
            public_key: self.pair.public.clone().into(),
        };
        let keys = (today..today + days).map(key).collect();
        sign_key_set(&self.signing, &v1::KeySet { keys, issued_unix })
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
            | Manner::Late
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
    pub(super) fn marks(&self, session: SessionId) -> Vec<u64> {
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
    pub(super) fn new(manner: Manner) -> Self {
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

    pub(super) fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.0.lock().unwrap()
    }

    pub(super) fn manner(&self, manner: Manner) {
        self.held().manner = manner;
    }

    /// Listens until the returned task is aborted; `port` 0 finds one.
    pub(super) async fn listen(&self, port: u16) -> (u16, tokio::task::JoinHandle<()>) {
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

    pub(super) fn token(port: u16) -> String {
        JoinToken {
            address: format!("127.0.0.1:{port}"),
            ca_der: site().ca.der().to_vec(),
            secret: "secret".into(),
        }
        .to_string()
    }

    /// Waits for something to become true at the collector.
    pub(super) async fn until(&self, what: &str, holds: impl Fn(&Held) -> bool) {
        for _ in 0..600 {
            if holds(&self.held()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("not within 30 s: {what}");
    }
}
