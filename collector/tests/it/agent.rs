//! A node agent as far as the collector can tell: it enrols, wraps a generation key, seals, and ships.

use bytes::Bytes;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Identity;
use tonic::{Status, Streaming};
use weir_proto::credential::JoinToken;
use weir_proto::seal::{
    self, Anchor, Chain, Draft, GenerationKey, JournalRange, NodeChain, Sealed, Sealer, Segment, SigningKey,
    VerifyingKey,
};
use weir_proto::v1::ingest_client::IngestClient;
use weir_proto::v1::{self, event::Kind, to_agent, to_collector};
use weir_proto::{GenerationId, NodeId, RunId, SessionId};

use crate::collector::{Collector, channel, endpoint, pem};

pub(crate) const WALL: i64 = 1_763_000_000_000_000_000;
pub(crate) const BOOT: u64 = 1_000_000_000_000;

pub(crate) struct Agent {
    pub(crate) node: NodeId,
    pub(crate) signer: SigningKey,
    pub(crate) identity: Identity,
    pub(crate) receipts: VerifyingKey,
    pub(crate) ca_der: Vec<u8>,
    pub(crate) generation: GenerationId,
    pub(crate) key: GenerationKey,
    pub(crate) log: NodeChain,
    pub(crate) next_number: u64,
}

/// What an enrolment sends; tests change it.
#[derive(Clone)]
pub(crate) struct Joining {
    pub(crate) request: v1::EnrollRequest,
    pub(crate) signer: SigningKey,
    key_pem: String,
}

impl Joining {
    pub(crate) fn new(token: &JoinToken, name: &str) -> Self {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
        let signer = seal::draw_signing_key().unwrap();
        let request = v1::EnrollRequest {
            token: token.secret.clone(),
            csr_der: csr.der().to_vec().into(),
            signing_key: signer.verifying_key().to_bytes().to_vec().into(),
            proof: seal::enrol_proof(&signer, csr.der()).to_vec().into(),
            name: name.to_owned(),
        };
        Self { request, signer, key_pem: key.serialize_pem() }
    }

    pub(crate) async fn send(&self, token: &JoinToken) -> Result<v1::EnrollResponse, Status> {
        let channel = channel(&token.address, &token.ca_der, None).await;
        Ok(IngestClient::new(channel).enroll(self.request.clone()).await?.into_inner())
    }
}

impl Agent {
    pub(crate) async fn join(collector: &Collector, name: &str) -> Self {
        let (token, _) = collector.issuer().await.join_token(1, 60, "*", "test").await.unwrap();
        let joining = Joining::new(&token, name);
        let answer = joining.send(&token).await.unwrap();
        Self::of(joining, answer)
    }

    pub(crate) fn of(joining: Joining, answer: v1::EnrollResponse) -> Self {
        let node = NodeId::try_from(&answer.node_id[..]).unwrap();
        Self {
            node,
            identity: Identity::from_pem(pem("CERTIFICATE", &answer.certificate_der), joining.key_pem),
            signer: joining.signer,
            receipts: VerifyingKey::from_bytes(answer.receipt_key[..].try_into().unwrap()).unwrap(),
            ca_der: answer.ca_der.to_vec(),
            generation: GenerationId::generate(),
            key: GenerationKey::draw().unwrap(),
            log: NodeChain::start(node),
            next_number: 1,
        }
    }

    /// One that never joined a collector.
    pub(crate) fn standalone() -> Self {
        let (node, signer) = (NodeId::generate(), seal::draw_signing_key().unwrap());
        Self {
            node,
            identity: Identity::from_pem("", ""),
            receipts: signer.verifying_key(),
            signer,
            ca_der: Vec::new(),
            generation: GenerationId::generate(),
            key: GenerationKey::draw().unwrap(),
            log: NodeChain::start(node),
            next_number: 1,
        }
    }

    pub(crate) fn wrap(&self, welcome: &v1::Welcome) -> v1::Wrap {
        let keys = seal::verify_key_set(&self.receipts, welcome.keys.as_ref().unwrap()).unwrap();
        assert_eq!(keys.keys.len(), 36, "today and 35 days ahead");
        seal::wrap(&self.generation, &self.key, &self.node, &keys.keys[0]).unwrap()
    }

    /// Asks for a new certificate, and shows it from now on.
    pub(crate) async fn renew(&mut self, collector: &Collector) -> Result<v1::RenewResponse, Status> {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
        let proof = seal::renew_proof(&self.signer, &self.node, csr.der()).to_vec().into();
        let request = v1::RenewRequest { csr_der: csr.der().to_vec().into(), proof };
        let answer = self.ask_renewal(collector, request).await?;
        self.identity = Identity::from_pem(pem("CERTIFICATE", &answer.certificate_der), key.serialize_pem());
        Ok(answer)
    }

    pub(crate) async fn ask_renewal(
        &self,
        collector: &Collector,
        request: v1::RenewRequest,
    ) -> Result<v1::RenewResponse, Status> {
        let channel =
            channel(&collector.address(), &collector.admin.ca_der, Some(self.identity.clone())).await;
        Ok(IngestClient::new(channel).renew(request).await?.into_inner())
    }

    /// Connects, says hello, sends the wrap.
    pub(crate) async fn ship(&self, collector: &Collector) -> Shipping {
        let mut shipping = self.connect(collector).await.unwrap();
        let wrap = self.wrap(&shipping.welcome);
        shipping.send(to_collector::Message::Wrap(wrap)).await;
        shipping
    }

    /// Connects and says hello.
    pub(crate) async fn connect(&self, collector: &Collector) -> Result<Shipping, Status> {
        let hello = v1::Hello {
            format_min: 1,
            format_max: 1,
            agent_version: "test".into(),
            node_id: self.node.to_field(),
            ..Default::default()
        };
        self.connect_saying(collector, to_collector::Message::Hello(hello)).await
    }

    pub(crate) async fn connect_saying(
        &self,
        collector: &Collector,
        first: to_collector::Message,
    ) -> Result<Shipping, Status> {
        let endpoint = endpoint(&collector.address(), &collector.admin.ca_der, Some(self.identity.clone()));
        let channel = endpoint.connect().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let (to, messages) = mpsc::channel(64);
        to.send(v1::ToCollector { message: Some(first) }).await.unwrap();
        let mut client = IngestClient::new(channel).max_encoding_message_size(64 << 20);
        let mut answers = client.ship(ReceiverStream::new(messages)).await?.into_inner();
        match answers.message().await?.and_then(|answer| answer.message) {
            Some(to_agent::Message::Welcome(welcome)) => Ok(Shipping { to, answers, welcome }),
            other => panic!("expected a welcome, got {other:?}"),
        }
    }

    /// A session with a number of its own, of this run.
    pub(crate) fn session(&mut self, run: RunId) -> Recorded {
        let number = self.next_number;
        self.next_number += 1;
        Recorded::new(self, SessionId::generate(), run, number)
    }

    /// One more entry of the node log.
    pub(crate) fn entry(&mut self, entry: v1::NodeEntry) -> Bytes {
        let entry = v1::NodeEntry { wall: Some(wall()), at_ns: BOOT, ..entry };
        self.log.append(entry, &self.signer).encode_to_vec().into()
    }

    /// Likewise, with the times that it names itself.
    pub(crate) fn said(&mut self, entry: v1::NodeEntry) -> Bytes {
        self.log.append(entry, &self.signer).encode_to_vec().into()
    }

    pub(crate) fn opened(recorded: &[&Recorded]) -> v1::NodeEntry {
        let opened = recorded
            .iter()
            .map(|r| v1::SessionOpened { number: r.number, session_id: r.session.to_field() })
            .collect();
        v1::NodeEntry { opened, ..Default::default() }
    }

    pub(crate) fn closed(&self, recorded: &[&Recorded]) -> v1::NodeEntry {
        let closed = recorded
            .iter()
            .map(|r| v1::SessionClosed {
                number: r.number,
                session_id: r.session.to_field(),
                segments: r.chain.next_seq,
                head_hash: Bytes::copy_from_slice(&r.chain.head),
            })
            .collect();
        let heartbeat = v1::Heartbeat { next_number: self.next_number, ..Default::default() };
        v1::NodeEntry { closed, heartbeat: Some(heartbeat), ..Default::default() }
    }
}

pub(crate) fn wall() -> v1::WallClock {
    v1::WallClock { unix_ns: WALL, boot_ns: BOOT, synchronized: true }
}

/// A session while its segments are made.
pub(crate) struct Recorded {
    pub(crate) session: SessionId,
    pub(crate) run: RunId,
    pub(crate) number: u64,
    pub(crate) chain: Chain,
    node: NodeId,
    generation: GenerationId,
    key: GenerationKey,
    signer: SigningKey,
}

impl Recorded {
    pub(crate) fn new(agent: &Agent, session: SessionId, run: RunId, number: u64) -> Self {
        Self {
            session,
            run,
            number,
            chain: Chain::start(session, agent.node),
            node: agent.node,
            generation: agent.generation,
            key: agent.key.clone(),
            signer: agent.signer.clone(),
        }
    }

    pub(crate) fn opened_event(&self) -> v1::Event {
        event(
            0,
            Kind::Opened(v1::Opened {
                session_id: self.session.to_field(),
                node_id: self.node.to_field(),
                node_number: self.number,
                run: Some(v1::Run {
                    id: self.run.to_field(),
                    principal: Some(v1::Principal { subject: "uid:1000".into(), ..Default::default() }),
                    initiator: "exec uid:1000".into(),
                    labels: [("team".to_owned(), "db".to_owned())].into(),
                    argv: vec!["psql".into(), "-c".into(), "SELECT 1".into()],
                    host: "host-1".into(),
                    ..Default::default()
                }),
                process: Some(v1::Process { pid: 42, comm: "psql".into(), uid: 1000, ..Default::default() }),
                origin: Some(v1::Address { ip: "10.0.0.9".into(), port: 5432 }),
                target: "orders".into(),
                wall: Some(wall()),
                ..Default::default()
            }),
        )
    }

    /// From now on sealed under another signature.
    pub(crate) fn sign_with(&mut self, signer: SigningKey) {
        self.signer = signer;
    }

    /// The next segment, with these events.
    pub(crate) fn seal(&mut self, events: &[v1::Event], last: bool) -> Sealed {
        let draft = self.draft(events, last);
        self.seal_as(draft, events)
    }

    pub(crate) fn draft(&self, events: &[v1::Event], last: bool) -> Draft {
        Draft {
            node: self.node,
            session: self.session,
            number: self.number,
            run: self.run,
            generation: self.generation,
            seq: self.chain.next_seq,
            prev_hash: self.chain.head,
            last,
            first_ns: events.first().map_or(BOOT, |event| event.at_ns),
            last_ns: events.last().map_or(BOOT, |event| event.at_ns),
            wall: Anchor { unix_ns: WALL, boot_ns: BOOT, synchronized: true },
            events: events.len() as u32,
            journal: JournalRange { journal: [0; 16], from: 0, to: 0 },
        }
    }

    pub(crate) fn seal_as(&mut self, draft: Draft, events: &[v1::Event]) -> Sealed {
        let mut plain = Vec::new();
        for event in events {
            seal::push_event(&mut plain, &event.encode_to_vec());
        }
        self.seal_plain(draft, &plain)
    }

    pub(crate) fn seal_plain(&mut self, draft: Draft, plain: &[u8]) -> Sealed {
        let key = self.key.session_key(&draft.session);
        let sealed = Sealer::new(self.signer.clone(), 1).seal(&draft, plain, &key).unwrap();
        let segment = Segment::parse(sealed.bytes.clone()).unwrap();
        let _ = self.chain.accept(&segment);
        sealed
    }

    /// A whole small session in `count` segments: opened and one exchange, more data, closed.
    pub(crate) fn whole(&mut self, count: u64) -> Vec<Sealed> {
        let mut out = Vec::new();
        for seq in 0..count {
            let mut events = Vec::new();
            if seq == 0 {
                events.push(self.opened_event());
                events.push(event(
                    10,
                    Kind::Facts(v1::Facts {
                        protocol: "postgres".into(),
                        protocol_version: "3.0".into(),
                        coverage: v1::Coverage::Inspected as i32,
                        ..Default::default()
                    }),
                ));
            }
            let exchange = seq + 1;
            let at = 100 * exchange;
            events.push(event(at, Kind::Asked(v1::Asked { exchange, operation: Some(operation(exchange)) })));
            events.push(event(
                at + 1,
                Kind::Data(v1::Data {
                    exchange,
                    direction: v1::Direction::Response as i32,
                    bytes: Bytes::from(format!("row {exchange}")),
                    ..Default::default()
                }),
            ));
            events.push(event(at + 2, Kind::Finished(finished(exchange, at))));
            if seq + 1 == count {
                events.push(event(
                    at + 3,
                    Kind::Closed(v1::Closed {
                        coverage: v1::Coverage::Inspected as i32,
                        cause: "client-end".into(),
                        exchanges: count,
                        events: 3 * count + 3,
                        request_bytes: 7,
                        response_bytes: 9,
                        ..Default::default()
                    }),
                ));
            }
            let sealed = self.seal(&events, seq + 1 == count);
            out.push(sealed);
        }
        out
    }
}

pub(crate) fn event(after_ns: u64, kind: Kind) -> v1::Event {
    v1::Event { at_ns: BOOT + after_ns, kind: Some(kind) }
}

pub(crate) fn operation(exchange: u64) -> v1::Operation {
    v1::Operation {
        kind: "sql".into(),
        verb: "query".into(),
        text: format!("SELECT {exchange}"),
        ..Default::default()
    }
}

pub(crate) fn finished(exchange: u64, at: u64) -> v1::Finished {
    v1::Finished {
        exchange,
        operation: Some(operation(exchange)),
        outcome: v1::Outcome::Ok as i32,
        status: "SELECT 1".into(),
        rows: 1,
        asked_at_ns: BOOT + at,
        finished_at_ns: BOOT + at + 2,
        ..Default::default()
    }
}

/// An open stream.
pub(crate) struct Shipping {
    pub(crate) to: mpsc::Sender<v1::ToCollector>,
    pub(crate) answers: Streaming<v1::ToAgent>,
    pub(crate) welcome: v1::Welcome,
}

impl Shipping {
    pub(crate) async fn send(&mut self, message: to_collector::Message) {
        self.to.send(v1::ToCollector { message: Some(message) }).await.unwrap();
    }

    pub(crate) async fn answer(&mut self) -> Result<to_agent::Message, Status> {
        match self.answers.message().await? {
            Some(answer) => Ok(answer.message.expect("an answer says something")),
            None => Err(Status::ok("the stream ended")),
        }
    }

    /// Sends a segment and waits for its answer.
    pub(crate) async fn offer(&mut self, sealed: &Sealed) -> to_agent::Message {
        self.send(to_collector::Message::Segment(sealed.to_message())).await;
        self.answer().await.unwrap()
    }

    pub(crate) async fn receipt(&mut self, sealed: &Sealed) -> v1::Receipt {
        match self.offer(sealed).await {
            to_agent::Message::Receipt(receipt) => receipt,
            other => panic!("expected a receipt, got {other:?}"),
        }
    }

    pub(crate) async fn refused(&mut self, sealed: &Sealed) -> v1::Refused {
        match self.offer(sealed).await {
            to_agent::Message::Refused(refused) => refused,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    pub(crate) async fn entries(&mut self, signed: Vec<Bytes>) -> Result<v1::NodeReceipt, Status> {
        self.send(to_collector::Message::Node(v1::NodeEntries { signed, ..Default::default() })).await;
        match self.answer().await? {
            to_agent::Message::Node(receipt) => Ok(receipt),
            other => panic!("expected a node receipt, got {other:?}"),
        }
    }
}
