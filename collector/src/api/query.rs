//! The reading service.

use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use weir_proto::v1::query_server::Query;
use weir_proto::{NodeId, v1};

use super::reading::Reading;
use super::search::{self, Searching};
use super::tail;
use super::{calls, id, id_part, node_text, play, proof, read_status, store_status, subject, subject_text};
use crate::access::Access;
use crate::ingest::Connected;
use crate::store::sqlite::{RunFilter, SessionFilter};

pub struct QueryService {
    pub access: Access,
    pub reading: Reading,
    pub searching: Searching,
    pub connected: Connected,
}

#[tonic::async_trait]
impl Query for QueryService {
    async fn whoami(
        &self,
        request: Request<v1::WhoamiRequest>,
    ) -> Result<Response<v1::WhoamiResponse>, Status> {
        let (caller, _) = self.access.admit(calls::WHOAMI, request, |_| String::new()).await?;
        Ok(Response::new(v1::WhoamiResponse {
            name: caller.name().to_owned(),
            role: caller.role().name().to_owned(),
            collector_version: env!("CARGO_PKG_VERSION").to_owned(),
        }))
    }

    async fn runs(&self, request: Request<v1::RunsRequest>) -> Result<Response<v1::RunsResponse>, Status> {
        let (_caller, asked) =
            self.access.admit(calls::RUNS, request, |asked| node_text(&asked.node_id)).await?;
        let time = |unix_ns: i64| (unix_ns != 0).then_some(unix_ns);
        let filter = RunFilter {
            node: id(&asked.node_id, "node")?,
            from_unix_ns: time(asked.from_unix_ns),
            to_unix_ns: time(asked.to_unix_ns),
            principal: (!asked.principal.is_empty()).then_some(asked.principal),
            id_part: id_part(&asked.id_prefix)?,
            labels: asked.labels.into_iter().collect(),
        };
        let page = asked.page.unwrap_or_default();
        Ok(Response::new(self.reading.store.index.run_list(&filter, &page).await.map_err(read_status)?))
    }

    async fn sessions(
        &self,
        request: Request<v1::SessionsRequest>,
    ) -> Result<Response<v1::SessionsResponse>, Status> {
        let (_caller, asked) = self
            .access
            .admit(calls::SESSIONS, request, |asked| subject_text(&asked.run_id, &asked.session_id))
            .await?;
        let filter = SessionFilter {
            run: id(&asked.run_id, "run")?,
            session: id(&asked.session_id, "session")?,
            protocol: (!asked.protocol.is_empty()).then_some(asked.protocol),
            target: (!asked.target.is_empty()).then_some(asked.target),
            id_part: id_part(&asked.id_prefix)?,
        };
        let page = asked.page.unwrap_or_default();
        Ok(Response::new(self.reading.store.index.session_list(&filter, &page).await.map_err(read_status)?))
    }

    async fn exchanges(
        &self,
        request: Request<v1::ExchangesRequest>,
    ) -> Result<Response<v1::ExchangesResponse>, Status> {
        let (_caller, asked) = self
            .access
            .admit(calls::EXCHANGES, request, |asked| subject_text(&asked.run_id, &asked.session_id))
            .await?;
        let subject = subject(&asked.run_id, &asked.session_id)?;
        let page = asked.page.unwrap_or_default();
        Ok(Response::new(self.reading.store.index.exchange_list(subject, &page).await.map_err(read_status)?))
    }

    async fn gaps(&self, request: Request<v1::GapsRequest>) -> Result<Response<v1::GapsResponse>, Status> {
        let (_caller, asked) = self
            .access
            .admit(calls::GAPS, request, |asked| subject_text(&asked.run_id, &asked.session_id))
            .await?;
        let subject = subject(&asked.run_id, &asked.session_id)?;
        let page = asked.page.unwrap_or_default();
        Ok(Response::new(self.reading.store.index.gap_list(subject, &page).await.map_err(read_status)?))
    }

    type PlayStream = ReceiverStream<Result<v1::PlayedEvent, Status>>;

    async fn play(&self, request: Request<v1::PlayRequest>) -> Result<Response<Self::PlayStream>, Status> {
        let (_caller, asked) = self
            .access
            .admit(calls::PLAY, request, |asked| subject_text(&asked.run_id, &asked.session_id))
            .await?;
        let subject = subject(&asked.run_id, &asked.session_id)?;
        let exchange = (asked.exchange != 0).then_some(asked.exchange);
        Ok(Response::new(play::play(self.reading.clone(), subject, exchange)))
    }

    async fn coverage_of(
        &self,
        request: Request<v1::CoverageRequest>,
    ) -> Result<Response<v1::CoverageResponse>, Status> {
        let (_caller, asked) =
            self.access.admit(calls::COVERAGE, request, |asked| subject_text(&asked.run_id, &[])).await?;
        let (run, node) = (id(&asked.run_id, "run")?, id(&asked.node_id, "node")?);
        let index = &self.reading.store.index;
        let mut answer = index.coverage(run, node).await.map_err(store_status)?;
        answer.node_gaps = index.unattended(run, node).await.map_err(store_status)?;
        Ok(Response::new(answer))
    }

    async fn nodes(&self, request: Request<v1::NodesRequest>) -> Result<Response<v1::NodesResponse>, Status> {
        let (_caller, asked) =
            self.access.admit(calls::NODES, request, |asked| node_text(&asked.node_id)).await?;
        let page = asked.page.unwrap_or_default();
        let one = id(&asked.node_id, "node")?;
        let mut answer = self.reading.store.index.node_list(&page, one).await.map_err(read_status)?;
        for node in &mut answer.nodes {
            let Ok(id) = NodeId::try_from(&node.node_id[..]) else { continue };
            node.connected = self.connected.is_connected(&id);
            let offset = self.connected.clock_offset_ms(&id);
            (node.clock_known, node.clock_offset_ms) = (offset.is_some(), offset.unwrap_or(0));
        }
        Ok(Response::new(answer))
    }

    type ProofStream = ReceiverStream<Result<v1::ProofItem, Status>>;

    async fn proof(&self, request: Request<v1::ProofRequest>) -> Result<Response<Self::ProofStream>, Status> {
        let (_caller, asked) = self
            .access
            .admit(calls::PROOF, request, |asked| subject_text(&asked.run_id, &asked.session_id))
            .await?;
        let subject = subject(&asked.run_id, &asked.session_id)?;
        Ok(Response::new(proof::proof(self.reading.clone(), subject)))
    }

    type NodeProofStream = ReceiverStream<Result<v1::NodeProofItem, Status>>;

    async fn node_proof(
        &self,
        request: Request<v1::NodeProofRequest>,
    ) -> Result<Response<Self::NodeProofStream>, Status> {
        let (_caller, asked) =
            self.access.admit(calls::NODE_PROOF, request, |asked| node_text(&asked.node_id)).await?;
        let node = id(&asked.node_id, "node")?.ok_or_else(|| Status::invalid_argument("name a node"))?;
        Ok(Response::new(proof::node_proof(self.reading.clone(), node)))
    }

    async fn accesses(
        &self,
        request: Request<v1::AccessesRequest>,
    ) -> Result<Response<v1::AccessesResponse>, Status> {
        let (_caller, asked) = self.access.admit(calls::ACCESSES, request, |_| String::new()).await?;
        let page = asked.page.unwrap_or_default();
        Ok(Response::new(self.reading.store.index.access_list(&page).await.map_err(read_status)?))
    }

    async fn search(
        &self,
        request: Request<v1::SearchRequest>,
    ) -> Result<Response<v1::SearchResponse>, Status> {
        let (_caller, asked) =
            self.access.admit(calls::SEARCH, request, |asked| search::subject_text(&asked.query)).await?;
        Ok(Response::new(self.searching.search(asked).await?))
    }

    type TailStream = ReceiverStream<Result<v1::TailItem, Status>>;

    async fn tail(&self, request: Request<v1::TailRequest>) -> Result<Response<Self::TailStream>, Status> {
        let (_caller, asked) =
            self.access.admit(calls::TAIL, request, |asked| search::subject_text(&asked.query)).await?;
        Ok(Response::new(tail::tail(&self.searching, asked).await?))
    }
}
