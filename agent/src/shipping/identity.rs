//! Who this node is: its id and signing key, and after enrolment its certificate and the collector it trusts.
//!
//! ```text
//! identity/node.json        node id, name, the collector's address and receipt key
//! identity/signing.key      ed25519 seed, 32 bytes          identity/verifying.key   its public half, 32 bytes
//! identity/client.key.der   PKCS#8 of the TLS key that the node joined with    identity/ca.der   the collector's CA
//! identity/client.json, identity/client.next.json   the certificate in use, and its successor: [`super::certificate`]
//! identity/local.key        standalone only: HPKE private key, 32 bytes; identity/local.pub its public half
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use weir_proto::seal::{KeyError, SigningKey, VerifyingKey, WrapKeyPair, draw_signing_key};
use weir_proto::{KeyId, NodeId, v1};
use zeroize::Zeroizing;

use super::certificate::{self, Certificates, ClientCertificate};
use crate::recording::{make_folder, write_file};

#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    #[error(
        "this node has not joined a collector; run `weir-agent join` with a token from `weir join-token`"
    )]
    NotEnrolled,
    #[error("this state directory belongs to a standalone recording; choose another one for the daemon")]
    Standalone,
    #[error(
        "this directory belongs to a node agent that ships to a collector; choose another one for --local"
    )]
    Enrolled,
    #[error("{path}: {doing} failed")]
    Io { path: PathBuf, doing: &'static str, source: io::Error },
    #[error("{0} is damaged; restore it, or join again with a new token")]
    Damaged(PathBuf),
    #[error("drawing keys failed")]
    Key(#[from] KeyError),
}

/// A node that can sign.
pub(crate) struct Identity {
    pub(crate) node: NodeId,
    pub(crate) signing: SigningKey,
}

/// What enrolment gave.
#[derive(Clone)]
pub(crate) struct Enrolled {
    /// Where it is stored: certificates are read from there for each connection.
    pub(crate) state: PathBuf,
    pub(crate) address: String,
    pub(crate) receipt_key: VerifyingKey,
    pub(crate) ca_der: Vec<u8>,
    pub(crate) certificate: ClientCertificate,
}

/// What a node brings to its enrolment.
pub(crate) struct Prepared {
    pub(crate) signing: SigningKey,
    pub(crate) client_key_der: Zeroizing<Vec<u8>>,
}

#[derive(Serialize, Deserialize)]
struct NodeFile {
    node_id: String,
    name: String,
    collector: Option<CollectorFile>,
}

#[derive(Serialize, Deserialize)]
struct CollectorFile {
    address: String,
    receipt_key: String,
    certificate_not_after_unix: i64,
}

pub(super) fn folder(state: &Path) -> PathBuf {
    state.join("identity")
}

/// This state directory has joined a collector.
pub(crate) fn is_enrolled(state: &Path) -> bool {
    matches!(read_node(state), Ok(Some(NodeFile { collector: Some(_), .. })))
}

/// The identity that enrolment stored.
pub(crate) fn load_enrolled(state: &Path) -> Result<(Identity, Enrolled), IdentityError> {
    let node = read_node(state)?.ok_or(IdentityError::NotEnrolled)?;
    let identity = load(state, &node)?;
    let collector = node.collector.ok_or(IdentityError::Standalone)?;
    let damaged = || IdentityError::Damaged(folder(state).join("node.json"));
    let receipt_key: [u8; 32] =
        decode_hex(&collector.receipt_key).and_then(|k| k.try_into().ok()).ok_or_else(damaged)?;
    let enrolled = Enrolled {
        state: state.to_owned(),
        address: collector.address,
        receipt_key: VerifyingKey::from_bytes(&receipt_key).map_err(|_| damaged())?,
        ca_der: read(state, "ca.der")?,
        certificate: Certificates::load(state, collector.certificate_not_after_unix)?.current,
    };
    Ok((identity, enrolled))
}

/// The certificates at hand now: they are renewed while the agent runs, and `weir-agent join --again` replaces them.
pub(super) fn certificates(state: &Path) -> Result<Certificates, IdentityError> {
    let node = read_node(state)?.ok_or(IdentityError::NotEnrolled)?;
    Certificates::load(state, node.collector.map_or(0, |collector| collector.certificate_not_after_unix))
}

/// The keys of an enrolment that did not come to its end; `None` when there was none, or not all of it was stored.
pub(crate) fn load_prepared(state: &Path) -> Result<Option<Prepared>, IdentityError> {
    if read_node(state)?.is_some_and(|node| node.collector.is_none()) {
        return Err(IdentityError::Standalone);
    }
    let (Some(seed), Some(client_key)) =
        (read_if_any(state, "signing.key")?, read_if_any(state, "client.key.der")?)
    else {
        return Ok(None);
    };
    let (seed, client_key_der) = (Zeroizing::new(seed), Zeroizing::new(client_key));
    let Ok(seed) = <[u8; 32]>::try_from(&seed[..]).map(Zeroizing::new) else { return Ok(None) };
    Ok(Some(Prepared { signing: SigningKey::from_bytes(&seed), client_key_der }))
}

/// Stores the keys to join with, before anybody is asked.
pub(crate) fn store_prepared(state: &Path, prepared: &Prepared) -> Result<(), IdentityError> {
    store_signing(state, &prepared.signing)?;
    write(state, "client.key.der", &prepared.client_key_der)
}

/// Stores what enrolment gave beside the keys that it was asked with. The node file comes last: with it the node has joined, before it nothing has happened.
pub(crate) fn store_enrolled(
    state: &Path,
    identity: &Identity,
    name: &str,
    enrolled: &Enrolled,
) -> Result<(), IdentityError> {
    certificate::store(state, &enrolled.certificate)?;
    write(state, "ca.der", &enrolled.ca_der)?;
    let collector = CollectorFile {
        address: enrolled.address.clone(),
        receipt_key: encode_hex(enrolled.receipt_key.as_bytes()),
        certificate_not_after_unix: enrolled.certificate.not_after_unix,
    };
    let file =
        NodeFile { node_id: identity.node.to_string(), name: name.to_owned(), collector: Some(collector) };
    write_node(state, &file)
}

/// A standalone recording's identity, made at first use, and the key that everything is wrapped to.
pub(crate) fn load_or_make_local(state: &Path) -> Result<(Identity, v1::HpkeKey), IdentityError> {
    let identity = match read_node(state)? {
        Some(NodeFile { collector: Some(_), .. }) => return Err(IdentityError::Enrolled),
        Some(node) => load(state, &node)?,
        None => {
            let identity = Identity { node: NodeId::generate(), signing: draw_signing_key()? };
            let pair = WrapKeyPair::generate()?;
            store_signing(state, &identity.signing)?;
            write(state, "local.key", &pair.private)?;
            write(state, "local.pub", &pair.public)?;
            let name = "local".to_owned();
            write_node(state, &NodeFile { node_id: identity.node.to_string(), name, collector: None })?;
            identity
        }
    };
    let key = v1::HpkeKey {
        id: KeyId::from_bytes(*identity.node.as_bytes()).to_field(),
        class: "default".to_owned(),
        day: 0,
        public_key: Bytes::from(read(state, "local.pub")?),
    };
    Ok((identity, key))
}

fn load(state: &Path, node: &NodeFile) -> Result<Identity, IdentityError> {
    let damaged = |name: &str| IdentityError::Damaged(folder(state).join(name));
    let seed = Zeroizing::new(read(state, "signing.key")?);
    let seed: Zeroizing<[u8; 32]> =
        Zeroizing::new(seed.as_slice().try_into().map_err(|_| damaged("signing.key"))?);
    Ok(Identity {
        node: node.node_id.parse().map_err(|_| damaged("node.json"))?,
        signing: SigningKey::from_bytes(&seed),
    })
}

fn store_signing(state: &Path, signing: &SigningKey) -> Result<(), IdentityError> {
    let io = |doing| {
        let path = folder(state);
        move |source| IdentityError::Io { path, doing, source }
    };
    make_folder(&folder(state)).map_err(io("making it"))?;
    write(state, "signing.key", signing.as_bytes())?;
    write(state, "verifying.key", signing.verifying_key().as_bytes())
}

fn read_node(state: &Path) -> Result<Option<NodeFile>, IdentityError> {
    let path = folder(state).join("node.json");
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|_| IdentityError::Damaged(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(IdentityError::Io { path, doing: "reading it", source }),
    }
}

fn write_node(state: &Path, file: &NodeFile) -> Result<(), IdentityError> {
    let damaged = || IdentityError::Damaged(folder(state).join("node.json"));
    write(state, "node.json", &serde_json::to_vec_pretty(file).map_err(|_| damaged())?)
}

fn read(state: &Path, name: &str) -> Result<Vec<u8>, IdentityError> {
    let path = folder(state).join(name);
    fs::read(&path).map_err(|source| IdentityError::Io { path, doing: "reading it", source })
}

fn read_if_any(state: &Path, name: &str) -> Result<Option<Vec<u8>>, IdentityError> {
    match read(state, name) {
        Err(IdentityError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    }
}

fn write(state: &Path, name: &str, bytes: &[u8]) -> Result<(), IdentityError> {
    let path = folder(state).join(name);
    write_file(&path, bytes).map_err(|source| IdentityError::Io { path, doing: "writing it", source })
}

fn encode_hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut out, byte| {
        // Writing to a String cannot fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}

fn decode_hex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}
