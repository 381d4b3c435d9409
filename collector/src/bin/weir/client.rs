//! The connection to the collector, and what everyone names: a run, a session, a node.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use tonic::metadata::AsciiMetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};
use weir_collector::local::Local;
use weir_proto::credential::{Credential, SERVER_NAME};
use weir_proto::v1::admin_client::AdminClient;
use weir_proto::v1::query_client::QueryClient;
use weir_proto::{NodeId, RunId, SessionId, v1};

use crate::{How, home, output};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest answer taken: a page of exchanges with long statements.
const ANSWER_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Rows asked for at once.
pub(crate) const PAGE_ROWS: u32 = 500;

type Service = InterceptedService<Channel, Bearer>;

/// Presents the credential with every call.
#[derive(Clone)]
pub(crate) struct Bearer(AsciiMetadataValue);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// A connected client.
pub(crate) struct Client {
    pub(crate) query: QueryClient<Service>,
    pub(crate) admin: AdminClient<Service>,
    pub(crate) credential: Credential,
    /// The folder stays locked while it is asked.
    local: Option<Local>,
}

/// A run or a session, as somebody named it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    Run(RunId),
    Session(SessionId),
}

impl Client {
    /// With the credential that is kept; or a local folder.
    pub(crate) async fn connect(how: &How) -> Result<Self> {
        match &how.local {
            None => Self::connect_with(&home::credential()?).await,
            Some(folder) => Self::open(Local::open(folder).await?),
        }
    }

    fn open(local: Local) -> Result<Self> {
        for refused in &local.refused {
            eprintln!("weir: not read in: {}", output::clean(refused));
        }
        let mut client = Self::over(local.channel.clone(), &local.credential)?;
        client.local = Some(local);
        Ok(client)
    }

    pub(crate) async fn connect_with(credential: &Credential) -> Result<Self> {
        let pem = format!(
            "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
            base64::engine::general_purpose::STANDARD.encode(&credential.ca_der)
        );
        let tls = ClientTlsConfig::new().domain_name(SERVER_NAME).ca_certificate(Certificate::from_pem(pem));
        let channel = Endpoint::from_shared(format!("https://{}", credential.address))
            .with_context(|| format!("the credential's address {:?}", credential.address))?
            .tls_config(tls)
            .context("the credential's CA certificate")?
            .connect_timeout(CONNECT_TIMEOUT)
            .connect()
            .await
            .with_context(|| format!("cannot reach the collector at {}", credential.address))?;
        Self::over(channel, credential)
    }

    /// Over a channel that is there already.
    fn over(channel: Channel, credential: &Credential) -> Result<Self> {
        let mut header: AsciiMetadataValue =
            format!("Bearer {}", credential.secret).parse().context("the credential's secret")?;
        header.set_sensitive(true);
        let bearer = Bearer(header);
        Ok(Self {
            query: QueryClient::with_interceptor(channel.clone(), bearer.clone())
                .max_decoding_message_size(ANSWER_BYTES_MAX),
            admin: AdminClient::with_interceptor(channel, bearer),
            credential: credential.clone(),
            local: None,
        })
    }

    pub(crate) async fn run(&mut self, named: &str) -> Result<RunId> {
        match self.run_if_any(named).await? {
            Some(run) => Ok(run),
            None if named == "last" => bail!("there are no runs yet"),
            None => bail!("no run {named:?}: `weir runs` lists them"),
        }
    }

    /// A run, else a session.
    pub(crate) async fn subject(&mut self, named: &str) -> Result<Subject> {
        if named == "last" {
            return self.run(named).await.map(Subject::Run);
        }
        if let Some(run) = self.run_if_any(named).await? {
            return Ok(Subject::Run(run));
        }
        let asked = v1::SessionsRequest { page: page(2), id_prefix: named.into(), ..Default::default() };
        let found = self.query.sessions(asked).await?.into_inner().sessions;
        match found.as_slice() {
            [] => bail!("no run and no session {named:?}: `weir runs` and `weir sessions` list them"),
            [one] => {
                as_named(named, &one.session_id)?;
                Ok(Subject::Session(SessionId::try_from(&one.session_id[..])?))
            }
            _ => bail!("{named:?} is the beginning or end of several sessions: give more of the id"),
        }
    }

    async fn run_if_any(&mut self, named: &str) -> Result<Option<RunId>> {
        let last = named == "last";
        let id_prefix = if last { String::new() } else { named.to_owned() };
        let asked = v1::RunsRequest { page: page(if last { 1 } else { 2 }), id_prefix, ..Default::default() };
        let found = self.query.runs(asked).await?.into_inner().runs;
        match found.as_slice() {
            [] => Ok(None),
            [one] => {
                let run = one.run.as_ref().context("the collector sent a run without an id")?;
                if !last {
                    as_named(named, &run.id)?;
                }
                Ok(Some(RunId::try_from(&run.id[..])?))
            }
            _ => bail!("{named:?} is the beginning or end of several runs: give more of the id"),
        }
    }

    /// By id, part of an id, or name.
    pub(crate) async fn node(&mut self, named: &str) -> Result<NodeId> {
        let nodes = self.nodes().await?;
        let part = named.replace('-', "").to_ascii_lowercase();
        let mut found = nodes.iter().filter(|node| {
            let id = hex::encode(&node.node_id);
            node.name == named || id.starts_with(&part) || (part.len() >= 4 && id.ends_with(&part))
        });
        match (found.next(), found.next()) {
            (Some(one), None) => Ok(NodeId::try_from(&one.node_id[..])?),
            (None, _) => bail!("no node {named:?}: `weir agents` lists them"),
            _ => bail!("{named:?} names several nodes: give the id"),
        }
    }

    pub(crate) async fn nodes(&mut self) -> Result<Vec<v1::NodeSummary>> {
        let mut nodes = Vec::new();
        let mut cursor = String::new();
        loop {
            let asked = v1::NodesRequest { page: page_at(PAGE_ROWS, cursor), ..Default::default() };
            let answer = self.query.nodes(asked).await?.into_inner();
            nodes.extend(answer.nodes);
            cursor = answer.next_cursor;
            if cursor.is_empty() {
                return Ok(nodes);
            }
        }
    }

    /// Up to `limit` sessions, in order of opening.
    pub(crate) async fn sessions(
        &mut self,
        asked: v1::SessionsRequest,
        limit: usize,
    ) -> Result<Vec<v1::SessionSummary>> {
        let mut sessions = Vec::new();
        let mut cursor = String::new();
        loop {
            let asked = v1::SessionsRequest { page: page_at(PAGE_ROWS, cursor), ..asked.clone() };
            let answer = self.query.sessions(asked).await?.into_inner();
            sessions.extend(answer.sessions);
            cursor = answer.next_cursor;
            if cursor.is_empty() || sessions.len() >= limit {
                sessions.truncate(limit);
                return Ok(sessions);
            }
        }
    }
}

impl From<Subject> for weir_collector::store::sqlite::Subject {
    fn from(subject: Subject) -> Self {
        match subject {
            Subject::Run(run) => Self::Run(run),
            Subject::Session(session) => Self::Session(session),
        }
    }
}

impl Subject {
    /// (run id, session id) fields, one of them empty.
    pub(crate) fn fields(self) -> (prost::bytes::Bytes, prost::bytes::Bytes) {
        match self {
            Self::Run(run) => (run.to_field(), Default::default()),
            Self::Session(session) => (Default::default(), session.to_field()),
        }
    }
}

/// The collector looked it up; that it found what was named is checked here.
fn as_named(named: &str, id: &[u8]) -> Result<()> {
    let (part, id) = (named.replace('-', "").to_ascii_lowercase(), hex::encode(id));
    if id.starts_with(&part) || (part.len() >= 4 && id.ends_with(&part)) {
        return Ok(());
    }
    bail!("the collector answered with {id}, which is not {named:?}")
}

pub(crate) fn page(limit: u32) -> Option<v1::Page> {
    page_at(limit, String::new())
}

pub(crate) fn page_at(limit: u32, cursor: String) -> Option<v1::Page> {
    Some(v1::Page { limit, cursor })
}
