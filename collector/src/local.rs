//! A standalone recording (`weir-agent exec --local DIR`), read without a collector: its spool goes through the same
//! ingest into an index inside the folder, and the same services answer, in this process.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::{Buf, Bytes};
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use weir_proto::credential::Credential;
use weir_proto::seal::segment::SEGMENT_BYTES_MAX;
use weir_proto::seal::{self, GenerationKey, SIGNATURE_BYTES, VerifyingKey};
use weir_proto::{GenerationId, KeyId, NodeId, SessionId, v1};

use crate::access::{Access, Role};
use crate::api::admin::{IssueError, Issuer};
use crate::api::reading::Reading;
use crate::api::{AdminService, QueryService, Searching};
use crate::clock;
use crate::disk::Disk;
use crate::ingest::acceptance::Offer;
use crate::ingest::text::TextError;
use crate::ingest::{Acceptance, Connected, TextFollower, check};
use crate::keys::KeysError;
use crate::keys::hpke::{DEFAULT_CLASS, ReceivedWrap, StoredHpkeKey};
use crate::metrics::Metrics;
use crate::serve::{self, Data, ServeError, Services};
use crate::store::StoreError;

/// Segments given to ingest at once, by bytes and by number.
const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;
const BATCH_OFFERS_MAX: usize = 512;
/// Node log entries given at once.
const ENTRIES_MAX: usize = 1024;
/// Bytes between the client and the services of this process.
const PIPE_BYTES: usize = 1024 * 1024;
const CREDENTIAL_NAME: &str = "local";

#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    #[error("{0} is not a folder that `weir-agent exec --local` wrote")]
    NotRecording(PathBuf),
    #[error("{0} belongs to a node agent that ships to a collector: ask the collector")]
    Enrolled(PathBuf),
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{0} is damaged")]
    Damaged(PathBuf),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error(transparent)]
    Keys(#[from] KeysError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Text(#[from] TextError),
    #[error(transparent)]
    Issue(#[from] IssueError),
    #[error("the services of this process")]
    Transport(#[from] tonic::transport::Error),
}

/// The folder, read in, with services that answer for it.
pub struct Local {
    pub channel: Channel,
    pub credential: Credential,
    /// What was in the spool and was not taken, and why.
    pub refused: Vec<String>,
    _lock: serve::Lock,
}

#[derive(serde::Deserialize)]
struct NodeFile {
    node_id: String,
    name: String,
    collector: Option<serde::de::IgnoredAny>,
}

/// Whose recording it is.
struct Owner {
    node: NodeId,
    name: String,
    key: VerifyingKey,
}

impl Local {
    pub async fn open(folder: &Path) -> Result<Self, LocalError> {
        let owner = owner(folder)?;
        let index_folder = folder.join("index");
        let lock = serve::lock(&index_folder)?;
        let Data { keys, store } = Data::open(&index_folder).await?;
        let index = store.index.clone();
        index.node_adopt(&owner.node, &owner.name, owner.key.as_bytes()).await?;
        let private = read(&folder.join("identity/local.key"))?;
        let public = read(&folder.join("identity/local.pub"))?;
        let id = KeyId::from_bytes(*owner.node.as_bytes());
        let key = StoredHpkeKey::adopt(&keys.kek, id, DEFAULT_CLASS, 0, public, &private)?;
        index.hpke_key_add(std::slice::from_ref(&key)).await?;

        let metrics = Metrics::default();
        let disk = Disk::new(&index_folder, 0, 0);
        let acceptance =
            Acceptance { store: store.clone(), keys: keys.clone(), disk, metrics: metrics.clone() };
        let mut intake = Intake {
            acceptance,
            folder,
            owner,
            generations: BTreeMap::new(),
            offers: Vec::new(),
            bytes: 0,
            refused: Vec::new(),
        };
        intake.wraps(&private).await?;
        // In a recording that still goes on, what the log says is closed is in the spool by then.
        intake.log().await?;
        intake.segments().await?;
        let mut follower = TextFollower::new(store.clone(), keys.clone(), metrics.clone());
        follower.catch_up(&CancellationToken::new()).await?;

        let issuer = Issuer { index: index.clone(), keys: keys.clone(), address: CREDENTIAL_NAME.into() };
        // A credential for this process alone: the one of the run before is of no use to anybody.
        index.credential_revoke(CREDENTIAL_NAME, clock::unix_ms()).await?;
        let credential = issuer.credential(CREDENTIAL_NAME, Role::Admin, CREDENTIAL_NAME).await?;
        let access = Access::new(index, metrics.clone());
        let connected = Connected::new(0, metrics);
        let services = Services {
            ingest: None,
            query: QueryService {
                access: access.clone(),
                searching: Searching::open(
                    Reading { store: store.clone(), keys: keys.clone() },
                    CancellationToken::new(),
                )
                .await?,
                reading: Reading { store, keys },
                connected: connected.clone(),
            },
            admin: AdminService { access, issuer, connected },
        };
        Ok(Self { channel: in_process(services).await?, credential, refused: intake.refused, _lock: lock })
    }
}

/// The services on one end of a pipe, the client on the other.
async fn in_process(services: Services) -> Result<Channel, LocalError> {
    let (client, server) = tokio::io::duplex(PIPE_BYTES);
    let router = serve::router(services);
    tokio::spawn(async move {
        let incoming = tokio_stream::once(Ok::<_, std::io::Error>(server));
        let _ = router.serve_with_incoming(incoming).await;
    });
    let mut client = Some(TokioIo::new(client));
    let connector = tower::service_fn(move |_| {
        let client = client.take().ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected));
        std::future::ready(client)
    });
    Ok(Endpoint::from_static("http://local").connect_with_connector(connector).await?)
}

fn owner(folder: &Path) -> Result<Owner, LocalError> {
    let path = folder.join("identity/node.json");
    let bytes = std::fs::read(&path).map_err(|_| LocalError::NotRecording(folder.to_owned()))?;
    let file: NodeFile = serde_json::from_slice(&bytes).map_err(|_| LocalError::Damaged(path.clone()))?;
    if file.collector.is_some() {
        return Err(LocalError::Enrolled(folder.to_owned()));
    }
    let key_path = folder.join("identity/verifying.key");
    let key = read(&key_path)?;
    let key = key.as_slice().try_into().ok().and_then(|key| VerifyingKey::from_bytes(key).ok());
    Ok(Owner {
        node: file.node_id.parse().map_err(|_| LocalError::Damaged(path))?,
        name: file.name,
        key: key.ok_or(LocalError::Damaged(key_path))?,
    })
}

/// From the folder into the index.
struct Intake<'a> {
    acceptance: Acceptance,
    folder: &'a Path,
    owner: Owner,
    generations: BTreeMap<GenerationId, GenerationKey>,
    offers: Vec<(NodeId, Offer)>,
    bytes: usize,
    refused: Vec<String>,
}

impl Intake<'_> {
    async fn wraps(&mut self, private: &[u8]) -> Result<(), LocalError> {
        let index = &self.acceptance.store.index;
        for path in files(&self.folder.join("spool/wraps"), "wrap")? {
            let wrap = v1::Wrap::decode(read(&path)?.as_slice()).ok();
            let received = wrap.and_then(|wrap| ReceivedWrap::of(wrap, self.owner.node));
            let opened = received.as_ref().and_then(|received| seal::unwrap(&received.wrap, private).ok());
            let (Some(received), Some(key)) = (received, opened) else {
                self.refused.push(format!("{}: the key wrap does not open", path.display()));
                continue;
            };
            let ReceivedWrap { generation, key: key_id, wrap } = received;
            index.wrap_put(&generation, &key_id, &self.owner.node, &wrap, clock::unix_ms()).await?;
            self.generations.insert(generation, key);
        }
        Ok(())
    }

    /// In sequence per session; what the index holds already is not read again.
    async fn segments(&mut self) -> Result<(), LocalError> {
        let mut sessions: BTreeMap<SessionId, BTreeMap<u64, PathBuf>> = BTreeMap::new();
        for path in files(&self.folder.join("spool/segments"), "seg")? {
            match named(&path) {
                Some((session, seq)) => {
                    sessions.entry(session).or_default().insert(seq, path);
                }
                None => self.refused.push(format!("{}: not a segment's name", path.display())),
            }
        }
        for (session, segments) in sessions {
            let held = self.acceptance.store.index.session_chain(&session).await?;
            let next = held.map_or(0, |chain| chain.next_seq);
            for (_, path) in segments.range(next..) {
                self.segment(path)?;
                if self.bytes >= BATCH_BYTES_MAX || self.offers.len() >= BATCH_OFFERS_MAX {
                    self.flush().await;
                }
            }
        }
        self.flush().await;
        Ok(())
    }

    fn segment(&mut self, path: &Path) -> Result<(), LocalError> {
        let mut bytes = Bytes::from(read(path)?);
        let Some(sealed_len) =
            bytes.len().checked_sub(SIGNATURE_BYTES).filter(|len| *len <= SEGMENT_BYTES_MAX)
        else {
            self.refused.push(format!("{}: not a segment", path.display()));
            return Ok(());
        };
        let signature = bytes.split_off(sealed_len);
        self.bytes += sealed_len;
        let sealed = v1::SealedSegment { bytes, signature };
        let offer = match check::authentic(sealed, &self.owner.node, &self.owner.key) {
            Err(refusal) => Offer::Refused(refusal),
            Ok((segment, signature)) => match self.generations.get(&segment.draft().generation) {
                None => {
                    self.refused.push(format!("{}: its key wrap is missing", path.display()));
                    return Ok(());
                }
                Some(generation) => {
                    match check::opened(segment, signature, generation, &self.acceptance.keys.kek)? {
                        Ok(checked) => Offer::Segment(Box::new(checked)),
                        Err(refusal) => Offer::Refused(refusal),
                    }
                }
            },
        };
        self.offers.push((self.owner.node, offer));
        Ok(())
    }

    async fn flush(&mut self) {
        self.bytes = 0;
        for answer in self.acceptance.accept(std::mem::take(&mut self.offers)).await {
            match answer {
                Ok(v1::ToAgent { message: Some(v1::to_agent::Message::Refused(refused)) }) => {
                    let session = hex::encode(&refused.session_id);
                    self.refused
                        .push(format!("session {session} segment {}: {}", refused.seq, refused.detail));
                }
                Ok(_) => {}
                Err(status) => self.refused.push(status.message().to_owned()),
            }
        }
    }

    async fn log(&mut self) -> Result<(), LocalError> {
        let mut entries = Vec::new();
        for path in files(&self.folder.join("nodelog"), "log")? {
            let mut bytes = Bytes::from(read(&path)?);
            while let Ok(len) = prost::decode_length_delimiter(&mut bytes) {
                // A recording that is still going on may be in the middle of its last entry.
                if len == 0 || len > bytes.remaining() {
                    break;
                }
                let Ok(entry) = v1::SignedNodeEntry::decode(bytes.split_to(len)) else { break };
                entries.push(entry);
            }
        }
        let held =
            self.acceptance.store.index.node(&self.owner.node).await?.map_or(0, |node| node.log_entries);
        let held = usize::try_from(held).unwrap_or(usize::MAX);
        // What is there already is compared too: a log that was exchanged since is told.
        let from = held.min(entries.len()).saturating_sub(1);
        for some in entries[from..].chunks(ENTRIES_MAX) {
            self.offers.push((self.owner.node, Offer::Entries(self.owner.key, some.to_vec())));
            self.flush().await;
        }
        Ok(())
    }
}

/// `<session id>.<seq>`
fn named(path: &Path) -> Option<(SessionId, u64)> {
    let (session, seq) = path.file_stem()?.to_str()?.split_once('.')?;
    Some((session.parse().ok()?, seq.parse().ok()?))
}

/// Files of a folder with this ending, in order of their names; a folder that is not there has none.
fn files(folder: &Path, ending: &str) -> Result<Vec<PathBuf>, LocalError> {
    let failed = |source| LocalError::Read { path: folder.to_owned(), source };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(failed(source)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == ending) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn read(path: &Path) -> Result<Vec<u8>, LocalError> {
    std::fs::read(path).map_err(|source| LocalError::Read { path: path.to_owned(), source })
}
