//! The calls of `weir.v1.Ingest`. Enroll is open to whoever holds a join token; Ship and Renew to whoever holds a node's
//! certificate. A query credential opens none.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use weir_proto::seal::VerifyingKey;
use weir_proto::v1::ingest_server::Ingest;
use weir_proto::v1::{self, to_collector};

use super::acceptance::Answer;
use super::committer::{Budget, Committer};
use super::connected::{Connected, REVOKED, Seat};
use super::enroll::{enroll, renew};
use super::stream::{AGENT_BYTES_MAX, ANSWERS_MAX, AgentStream, store_status};
use crate::keys::{Keys, node_of_certificate};
use crate::listener::Peer;
use crate::metrics::Metrics;
use crate::store::Index;
use crate::store::rows::NodeRow;

/// Enrolments and renewals at a time: the first are the only work that a stranger can cause, and each signs.
pub const ENROLMENTS_MAX: usize = 4;
/// A stream that says nothing at first is given up.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

pub struct IngestService {
    pub index: Index,
    pub keys: Arc<Keys>,
    pub committer: Committer,
    /// Of [`ENROLMENTS_MAX`].
    pub enrolments: Semaphore,
    pub all: Budget,
    pub connected: Connected,
    /// How long the certificates given out are good for.
    pub certificate_life: Duration,
    pub shutdown: CancellationToken,
    pub metrics: Metrics,
}

#[tonic::async_trait]
impl Ingest for IngestService {
    async fn enroll(
        &self,
        request: Request<v1::EnrollRequest>,
    ) -> Result<Response<v1::EnrollResponse>, Status> {
        let closed = |_| Status::unavailable("the collector is shutting down");
        let _place = self.enrolments.acquire().await.map_err(closed)?;
        let acquaintance = request.extensions().get::<Peer>().cloned();
        let life = self.certificate_life;
        let answer = enroll(&self.index, &self.keys, &self.metrics, life, request.into_inner()).await?;
        acquaintance.iter().for_each(Peer::is_known);
        Ok(Response::new(answer))
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::RenewResponse>, Status> {
        let node = self.node_of(&request).await?;
        let closed = |_| Status::unavailable("the collector is shutting down");
        let _place = self.enrolments.acquire().await.map_err(closed)?;
        let life = self.certificate_life;
        renew(&self.index, &self.keys, &self.metrics, life, &node, request.into_inner())
            .await
            .map(Response::new)
    }

    type ShipStream = ReceiverStream<Answer>;

    async fn ship(
        &self,
        request: Request<Streaming<v1::ToCollector>>,
    ) -> Result<Response<Self::ShipStream>, Status> {
        let node = self.node_of(&request).await?;
        let seat = self.seat(&node)?;
        let (answers, stream) = mpsc::channel(ANSWERS_MAX);
        let agent = self.agent(&node)?;
        let inbound = request.into_inner();
        // The answer's head must leave before the agent has said anything: it may be waiting for it.
        tokio::spawn(hello(agent, inbound, answers, seat));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

impl IngestService {
    async fn node_of<T>(&self, request: &Request<T>) -> Result<NodeRow, Status> {
        let stranger =
            || Status::unauthenticated("shipping needs a node's client certificate: enrol with a join token");
        let peer = request.extensions().get::<Peer>().ok_or_else(stranger)?;
        let node = peer.certificate().and_then(|leaf| node_of_certificate(leaf)).ok_or_else(stranger)?;
        let row = self.index.node(&node).await.map_err(store_status)?.ok_or_else(stranger)?;
        if row.revoked {
            return Err(Status::permission_denied(REVOKED));
        }
        peer.is_known();
        Ok(row)
    }

    fn seat(&self, node: &NodeRow) -> Result<Seat, Status> {
        self.connected.seat(node.id, &self.shutdown).ok_or_else(|| {
            Status::resource_exhausted("the collector has as many agents as it takes: try later")
        })
    }

    fn agent(&self, node: &NodeRow) -> Result<AgentStream, Status> {
        let key = VerifyingKey::from_bytes(&node.signing_key)
            .map_err(|_| Status::internal("the node's signing key in the index is not one"))?;
        Ok(AgentStream {
            node: node.id,
            key,
            index: self.index.clone(),
            keys: self.keys.clone(),
            committer: self.committer.clone(),
            all: self.all.clone(),
            mine: Budget::new(AGENT_BYTES_MAX),
            generations: Default::default(),
        })
    }
}

async fn hello(
    agent: AgentStream,
    mut inbound: Streaming<v1::ToCollector>,
    answers: mpsc::Sender<Answer>,
    seat: Seat,
) {
    let node = agent.node;
    let first = tokio::time::timeout(HELLO_TIMEOUT, inbound.message()).await;
    let hello = match first {
        Ok(Ok(Some(v1::ToCollector { message: Some(to_collector::Message::Hello(hello)) }))) => Ok(hello),
        Ok(Ok(Some(_))) => Err(Status::invalid_argument("a stream begins with a hello")),
        Ok(Ok(None)) => return,
        Ok(Err(status)) => Err(status),
        Err(_) => Err(Status::deadline_exceeded("a stream begins with a hello, and none came")),
    };
    let stream_version = hello.as_ref().map_or(0, |hello| hello.stream_version);
    let welcome = match hello {
        Ok(hello) => agent.welcome(&hello).await,
        Err(status) => Err(status),
    };
    let failed = welcome.is_err();
    if let Err(status) = &welcome {
        tracing::info!(%node, %status, "an agent's stream did not begin");
    }
    if answers.send(welcome).await.is_err() || failed {
        return;
    }
    tracing::info!(%node, "an agent's stream began");
    agent.run(inbound, answers, seat, stream_version).await;
}
