//! Starts everything, in order, and stops it again.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use weir_proto::credential::Credential;
use weir_proto::seal::segment::SEGMENT_BYTES_MAX;
use weir_proto::v1::admin_server::AdminServer;
use weir_proto::v1::ingest_server::IngestServer;
use weir_proto::v1::query_server::QueryServer;

use crate::access::{Access, Role};
use crate::api::admin::{IssueError, Issuer};
use crate::api::reading::Reading;
use crate::api::{AdminService, QueryService, Searching};
use crate::clock;
use crate::config::Config;
use crate::disk::Disk;
use crate::heartbeats::SILENCE_MAX;
use crate::ingest::committer::Budget;
use crate::ingest::service::ENROLMENTS_MAX;
use crate::ingest::{Acceptance, Bounded, Committer, Connected, IngestService, TextFollower};
use crate::keys::{Keys, KeysError, ServerCertificate, files};
use crate::listener;
use crate::metrics::Metrics;
use crate::operations::Operations;
use crate::retention::{Keep, Retention, RetentionError, keys_ahead};
use crate::store::{Store, StoreError};

/// A message of an agent: a segment, or node log entries that agents keep below this.
const AGENT_MESSAGE_BYTES_MAX: usize = SEGMENT_BYTES_MAX + 512 * 1024;
/// A question.
const QUERY_MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// Bytes in flight of all agents together.
const ALL_BYTES_MAX: u32 = 256 * 1024 * 1024;
/// HTTP/2 flow control: what one stream, one connection may send ahead of being read.
const STREAM_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
const STREAMS_PER_CONNECTION_MAX: u32 = 64;
const HEADER_LIST_BYTES_MAX: u32 = 16 * 1024;
/// A peer that is gone without a word is noticed after the two.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long calls under way may take to end at shutdown.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);
const DISK_INTERVAL: Duration = Duration::from_secs(5);
/// How often is looked for agents whose heartbeats stay away.
const SILENCE_INTERVAL: Duration = Duration::from_secs(10);
/// A collector that just began has heard nobody: agents come back within their longest pause between attempts.
const RETURN_TIME: Duration = Duration::from_secs(90);
const CERTIFICATE_INTERVAL: Duration = Duration::from_secs(24 * 3600);
const KEYS_FINGERPRINT: &str = "keys_fingerprint";
/// How the collector was last reached: for tokens that are made beside it.
pub const ADDRESS: &str = "address";

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot use the data directory {path}: create it, or name another with --data")]
    Data { path: PathBuf, source: std::io::Error },
    #[error("another process is using the data directory {0}")]
    InUse(PathBuf),
    #[error("cannot listen on {address}: is another program using it?")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error(transparent)]
    Keys(#[from] KeysError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Retention(#[from] RetentionError),
    #[error(transparent)]
    Issue(#[from] IssueError),
}

/// The data directory, opened: keys and store that belong together.
pub struct Data {
    pub keys: Arc<Keys>,
    pub store: Store,
}

impl Data {
    /// Makes the directory at the first start.
    pub async fn open(folder: &std::path::Path) -> Result<Self, ServeError> {
        let keys_folder = folder.join("keys");
        let had_index = folder.join("index.sqlite").exists();
        files::create_folder(folder)?;
        if had_index && !keys_folder.exists() {
            return Err(KeysError::Foreign { path: keys_folder }.into());
        }
        let keys = Arc::new(Keys::open(&keys_folder)?);
        let store = Store::open(folder).await?;
        let fingerprint = keys.fingerprint();
        if store.index.meta_set_once(KEYS_FINGERPRINT, &fingerprint).await? != fingerprint {
            return Err(KeysError::Foreign { path: keys_folder }.into());
        }
        Ok(Self { keys, store })
    }
}

/// Held for as long as a data directory is in use.
pub type Lock = nix::fcntl::Flock<std::fs::File>;

/// A collector at work.
pub struct Running {
    pub address: SocketAddr,
    pub admin_address: Option<SocketAddr>,
    /// Made at the first start; it is told once and kept nowhere.
    pub first_credential: Option<Credential>,
    shutdown: CancellationToken,
    server: JoinHandle<()>,
    committer: JoinHandle<()>,
    store: Store,
    /// Held for the lock on the data directory.
    _lock: Lock,
}

/// Opens the data directory and serves.
pub async fn start(config: &Config) -> Result<Running, ServeError> {
    let lock = lock(&config.data)?;
    let Data { keys, store } = Data::open(&config.data).await?;
    let metrics = Metrics::default();
    let shutdown = CancellationToken::new();
    keys_ahead(&store.index, &keys.kek, clock::unix_ms()).await?;

    let disk = Disk::new(&config.data, config.free_space_warn, config.free_space_floor);
    let (listener, address) = listen(config.listen).await?;
    let advertised = if config.advertise.is_empty() { address.to_string() } else { config.advertise.clone() };
    store.index.meta_set(ADDRESS, advertised.as_bytes()).await?;
    let issuer = Issuer { index: store.index.clone(), keys: keys.clone(), address: advertised };
    let first_credential = match store.index.credential_count().await? {
        0 => Some(issuer.credential("admin", Role::Admin, "first start").await?),
        _ => None,
    };

    let acceptance =
        Acceptance { store: store.clone(), keys: keys.clone(), disk: disk.clone(), metrics: metrics.clone() };
    let (committer, committer_task) = Committer::start(acceptance);
    let connected = Connected::new(config.agents_max, metrics.clone());
    let ingest = IngestService {
        index: store.index.clone(),
        keys: keys.clone(),
        committer,
        enrolments: Semaphore::new(ENROLMENTS_MAX),
        all: Budget::new(ALL_BYTES_MAX),
        connected: connected.clone(),
        certificate_life: config.certificate_life,
        shutdown: shutdown.clone(),
        metrics: metrics.clone(),
    };
    let all = ingest.all.clone();
    let access = Access::new(store.index.clone(), metrics.clone());
    let router = router(Services {
        ingest: Some(ingest),
        query: QueryService {
            access: access.clone(),
            searching: Searching::open(
                Reading { store: store.clone(), keys: keys.clone() },
                shutdown.clone(),
            )
            .await?,
            reading: Reading { store: store.clone(), keys: keys.clone() },
            connected: connected.clone(),
        },
        admin: AdminService { access, issuer, connected },
    });

    let certificate = ServerCertificate::new(&keys.authority, config.names.clone())?;
    let tls = Arc::new(keys.authority.server_config(certificate.clone())?);
    let incoming =
        listener::accept(listener, tls, shutdown.clone(), metrics.clone(), listener::Patience::default());
    let ends = shutdown.clone();
    let server = tokio::spawn(async move {
        let served = router.serve_with_incoming_shutdown(incoming, ends.cancelled_owned()).await;
        if let Err(error) = served {
            tracing::error!(error = %crate::chain(&error), "serving ended");
        }
    });

    let follower = TextFollower::new(store.clone(), keys.clone(), metrics.clone());
    tokio::spawn(follower.run(shutdown.clone()));
    let retention = Retention {
        store: store.clone(),
        keep: Keep { recordings: config.keep, accesses: config.keep_accesses },
        metrics: metrics.clone(),
    };
    tokio::spawn(retention.run(keys.clone(), shutdown.clone()));
    tokio::spawn(watch_silence(store.index.clone(), metrics.clone(), shutdown.clone()));
    every(DISK_INTERVAL, &shutdown, {
        let (disk, metrics) = (disk.clone(), metrics.clone());
        move || {
            disk.measure(Some(&metrics));
            metrics.in_flight_bytes.set(i64::try_from(all.held()).unwrap_or(i64::MAX));
        }
    });
    every(CERTIFICATE_INTERVAL, &shutdown, move || {
        if let Err(error) = certificate.renew_if_old(&keys.authority) {
            tracing::error!(error = %crate::chain(&error), "the server's certificate was not renewed");
        }
    });
    let admin_address = match config.admin_listen {
        Some(address) => {
            let (listener, address) = listen(address).await?;
            let operations = Operations { registry: metrics.registry(), index: store.index.clone(), disk };
            operations.start(listener, shutdown.clone());
            Some(address)
        }
        None => None,
    };
    Ok(Running {
        address,
        admin_address,
        first_credential,
        shutdown,
        server,
        committer: committer_task,
        store,
        _lock: lock,
    })
}

/// The services of one router; a standalone recording folder has no ingest.
pub struct Services {
    pub ingest: Option<IngestService>,
    pub query: QueryService,
    pub admin: AdminService,
}

/// With all bounds of gRPC and HTTP/2.
pub fn router(services: Services) -> tonic::transport::server::Router {
    let ingest = services
        .ingest
        .map(|ingest| Bounded(IngestServer::new(ingest).max_decoding_message_size(AGENT_MESSAGE_BYTES_MAX)));
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .http2_max_header_list_size(HEADER_LIST_BYTES_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .add_optional_service(ingest)
        .add_service(QueryServer::new(services.query).max_decoding_message_size(QUERY_MESSAGE_BYTES_MAX))
        .add_service(AdminServer::new(services.admin).max_decoding_message_size(QUERY_MESSAGE_BYTES_MAX))
}

impl Running {
    /// Ends streams and calls, commits what was offered, closes the index. What got no receipt stays with its agent.
    pub async fn stop(self) {
        self.shutdown.cancel();
        let mut server = self.server;
        if tokio::time::timeout(SHUTDOWN_TIMEOUT, &mut server).await.is_err() {
            tracing::warn!("calls did not end in time: they are cut off");
            server.abort();
            let _ = server.await;
        }
        let _ = tokio::time::timeout(SHUTDOWN_TIMEOUT, self.committer).await;
        let _ = tokio::time::timeout(SHUTDOWN_TIMEOUT, self.store.index.close()).await;
    }
}

/// Two collectors over one directory would both believe that they are the only writer of bundles and keys.
pub fn lock(data: &std::path::Path) -> Result<Lock, ServeError> {
    let failed = |source| ServeError::Data { path: data.to_owned(), source };
    files::create_folder(data)?;
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(data.join("lock"))
        .map_err(failed)?;
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock)
        .map_err(|(_, _)| ServeError::InUse(data.to_owned()))
}

async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), ServeError> {
    let failed = |source| ServeError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// Heartbeats that stay away become a gap on record, whether anybody asks or not.
async fn watch_silence(index: crate::store::Index, metrics: Metrics, shutdown: CancellationToken) {
    let begun_ms = clock::unix_ms();
    let ms = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    // The next time, or the end.
    loop {
        tokio::select! {
            () = tokio::time::sleep(SILENCE_INTERVAL) => {}
            () = shutdown.cancelled() => return,
        }
        let now_ms = clock::unix_ms();
        if now_ms < begun_ms + ms(RETURN_TIME) {
            continue;
        }
        match index.nodes_fall_silent(now_ms - ms(SILENCE_MAX)).await {
            Ok(0) => {}
            Ok(silent) => {
                metrics.nodes_fell_silent.inc_by(silent);
                tracing::warn!(
                    nodes = silent,
                    "heartbeats of node agents stay away; `weir agents` says whose"
                );
            }
            Err(error) => tracing::error!(error = %crate::chain(&error), "looking for silent node agents"),
        }
    }
}

fn every(interval: Duration, shutdown: &CancellationToken, work: impl Fn() + Send + 'static) {
    let shutdown = shutdown.clone();
    tokio::spawn(async move {
        // The next time, or the end.
        loop {
            work();
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                () = shutdown.cancelled() => return,
            }
        }
    });
}
