//! A node agent as far as the collector can tell: it enrols, wraps a key, and ships what was sealed before.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use weir_proto::credential::{Credential, JoinToken, SERVER_NAME};
use weir_proto::seal::{self, GenerationKey, Sealed, SigningKey, VerifyingKey};
use weir_proto::v1::admin_client::AdminClient;
use weir_proto::v1::ingest_client::IngestClient;
use weir_proto::v1::{self, to_agent, to_collector};
use weir_proto::{GenerationId, NodeId};

pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) name: String,
    pub(crate) signer: SigningKey,
    pub(crate) generation: GenerationId,
    pub(crate) key: GenerationKey,
    identity: Identity,
    receipts: VerifyingKey,
    ca_der: Vec<u8>,
    address: String,
}

impl Node {
    pub(crate) async fn join(admin: &Credential, name: String) -> Result<Self> {
        let channel = endpoint(&admin.address, &admin.ca_der, None)?.connect().await?;
        let asked = v1::CreateJoinTokenRequest { uses: 1, valid_seconds: 600, name_pattern: "*".into() };
        let mut asked = tonic::Request::new(asked);
        asked.metadata_mut().insert("authorization", format!("Bearer {}", admin.secret).parse()?);
        let token = AdminClient::new(channel).create_join_token(asked).await?.into_inner().token;
        let token: JoinToken = token.parse().ok().context("the collector gave a strange token")?;
        let tls_key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let csr = rcgen::CertificateParams::default().serialize_request(&tls_key)?;
        let signer = seal::draw_signing_key()?;
        let request = v1::EnrollRequest {
            token: token.secret,
            csr_der: csr.der().to_vec().into(),
            signing_key: signer.verifying_key().to_bytes().to_vec().into(),
            proof: seal::enrol_proof(&signer, csr.der()).to_vec().into(),
            name: name.clone(),
        };
        let channel = endpoint(&admin.address, &admin.ca_der, None)?.connect().await?;
        let answer = IngestClient::new(channel).enroll(request).await?.into_inner();
        Ok(Self {
            id: NodeId::try_from(&answer.node_id[..]).ok().context("a node id")?,
            name,
            signer,
            generation: GenerationId::generate(),
            key: GenerationKey::draw()?,
            identity: Identity::from_pem(
                pem("CERTIFICATE", &answer.certificate_der),
                tls_key.serialize_pem(),
            ),
            receipts: VerifyingKey::from_bytes(answer.receipt_key[..].try_into()?)?,
            ca_der: answer.ca_der.to_vec(),
            address: admin.address.clone(),
        })
    }

    pub(crate) async fn connect(&self) -> Result<Stream> {
        let channel: Channel =
            endpoint(&self.address, &self.ca_der, Some(self.identity.clone()))?.connect().await?;
        let (to, messages) = mpsc::channel(64);
        let hello = v1::Hello {
            format_min: u32::from(seal::FORMAT_VERSION),
            format_max: u32::from(seal::FORMAT_VERSION),
            agent_version: "bench".into(),
            node_id: self.id.to_field(),
            ..Default::default()
        };
        to.send(say(to_collector::Message::Hello(hello))).await?;
        let mut client = IngestClient::new(channel).max_encoding_message_size(64 << 20);
        let mut answers = client.ship(ReceiverStream::new(messages)).await?.into_inner();
        let welcome = match answers.message().await?.and_then(|answer| answer.message) {
            Some(to_agent::Message::Welcome(welcome)) => welcome,
            other => bail!("instead of a welcome came {other:?}"),
        };
        let keys = seal::verify_key_set(&self.receipts, welcome.keys.as_ref().context("keys")?)?;
        let wrap = seal::wrap(&self.generation, &self.key, &self.id, keys.keys.first().context("a key")?)?;
        to.send(say(to_collector::Message::Wrap(wrap))).await?;
        Ok(Stream { to, answers })
    }
}

/// Said hello, and nothing shipped yet.
pub(crate) struct Stream {
    to: mpsc::Sender<v1::ToCollector>,
    answers: tonic::Streaming<v1::ToAgent>,
}

impl Stream {
    /// Ships everything with so many segments unanswered at a time; answers how long each waited for its receipt.
    pub(crate) async fn ship(mut self, sealed: Vec<Sealed>, in_flight: usize) -> Result<Vec<Duration>> {
        let room = Arc::new(Semaphore::new(in_flight));
        let sent: Arc<Mutex<VecDeque<Instant>>> = Arc::default();
        let count = sealed.len();
        let sending = tokio::spawn({
            let (room, sent, to) = (room.clone(), sent.clone(), self.to.clone());
            async move {
                for segment in sealed {
                    room.acquire().await?.forget();
                    sent.lock().map_err(|_| anyhow::anyhow!("a panic"))?.push_back(Instant::now());
                    to.send(say(to_collector::Message::Segment(segment.to_message()))).await?;
                }
                anyhow::Ok(())
            }
        });
        let mut waited = Vec::with_capacity(count);
        while waited.len() < count {
            match self.answers.message().await?.context("the stream ended")?.message {
                Some(to_agent::Message::Receipt(_)) => {
                    let since = sent.lock().map_err(|_| anyhow::anyhow!("a panic"))?.pop_front();
                    waited.push(since.context("a receipt for nothing")?.elapsed());
                    room.add_permits(1);
                }
                // A later collector's news.
                Some(to_agent::Message::Keys(_)) => {}
                other => bail!("a segment in order was answered with {other:?}"),
            }
        }
        sending.await??;
        Ok(waited)
    }
}

fn say(message: to_collector::Message) -> v1::ToCollector {
    v1::ToCollector { message: Some(message) }
}

fn endpoint(address: &str, ca_der: &[u8], identity: Option<Identity>) -> Result<Endpoint> {
    let mut tls = ClientTlsConfig::new()
        .domain_name(SERVER_NAME)
        .ca_certificate(Certificate::from_pem(pem("CERTIFICATE", ca_der)));
    if let Some(identity) = identity {
        tls = tls.identity(identity);
    }
    Ok(Endpoint::from_shared(format!("https://{address}"))?
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(8 << 20)
        .tls_config(tls)?)
}

fn pem(kind: &str, der: &[u8]) -> String {
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN {kind}-----\n{body}\n-----END {kind}-----\n")
}
