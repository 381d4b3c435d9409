//! Joining a collector: a token, a certificate request, and the proof that the signing key is held.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256};
use weir_proto::credential::{BadCredential, JoinToken};
use weir_proto::seal::{KeyError, SigningKey, VerifyingKey, draw_signing_key, enrol_proof};
use weir_proto::{NodeId, v1};
use zeroize::Zeroizing;

use super::certificate::ClientCertificate;
use super::connection::{ShippingError, connect_to_enroll, shown};
use super::identity::{
    Enrolled, Identity, IdentityError, Prepared, is_enrolled, load_enrolled, load_prepared, store_enrolled,
    store_prepared,
};
use super::stream::fetch_keys;
use crate::recording::{KeyRing, KeyRingError, clock};

#[derive(Debug, thiserror::Error)]
pub(crate) enum EnrollError {
    #[error("the join token cannot be used")]
    Token(#[from] BadCredential),
    #[error(
        "this node has already joined a collector; `--again` gets a new certificate from it. To join another, move {0} away first (its \
         spool belongs to the old one)"
    )]
    AlreadyEnrolled(PathBuf),
    #[error(
        "the token is of another collector than the one that this node has joined; move {0} away to join that one"
    )]
    OtherCollector(PathBuf),
    #[error("the collector takes this node for another one ({0}); nothing was changed here")]
    OtherNode(NodeId),
    #[error("making a certificate request failed")]
    Request(#[from] rcgen::Error),
    #[error("drawing keys failed")]
    Key(#[from] KeyError),
    #[error("the collector did not take the token: {0}")]
    Refused(String),
    #[error("the collector's answer makes no sense: {0}")]
    Nonsense(&'static str),
    #[error(transparent)]
    Shipping(#[from] ShippingError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    KeyRing(#[from] KeyRingError),
}

/// Joins the collector that the token names, and fetches the keys to seal for. Gives this node's new id.
/// `again`: for a node that has joined it before, and needs another certificate because its own has ended.
pub(crate) async fn enroll(
    state: &Path,
    token: &str,
    name: &str,
    again: bool,
) -> Result<NodeId, EnrollError> {
    let before = match is_enrolled(state) {
        true if !again => return Err(EnrollError::AlreadyEnrolled(state.to_owned())),
        true => Some(load_enrolled(state)?),
        false => None,
    };
    let token: JoinToken = token.parse()?;
    let (signing, tls_key) = match &before {
        Some((_, enrolled)) if enrolled.ca_der != token.ca_der => {
            return Err(EnrollError::OtherCollector(state.to_owned()));
        }
        Some((identity, _)) => (identity.signing.clone(), KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?),
        None => keys(state)?,
    };
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    let csr = params.serialize_request(&tls_key)?;

    let request = v1::EnrollRequest {
        token: token.secret.clone(),
        csr_der: Bytes::copy_from_slice(csr.der()),
        signing_key: Bytes::copy_from_slice(signing.verifying_key().as_bytes()),
        proof: Bytes::copy_from_slice(&enrol_proof(&signing, csr.der())),
        name: name.to_owned(),
    };
    let mut client = connect_to_enroll(&token.address, &token.ca_der).await?;
    let answer = client
        .enroll(request)
        .await
        .map_err(|status| EnrollError::Refused(shown(status.message()).to_owned()))?
        .into_inner();

    let node = NodeId::try_from(&answer.node_id[..]).map_err(|_| EnrollError::Nonsense("the node id"))?;
    let receipt_key = answer.receipt_key[..]
        .try_into()
        .ok()
        .and_then(|key| VerifyingKey::from_bytes(key).ok())
        .ok_or(EnrollError::Nonsense("the receipt key"))?;
    if answer.certificate_der.is_empty() {
        return Err(EnrollError::Nonsense("no certificate"));
    }
    if before.is_some_and(|(identity, _)| identity.node != node) {
        return Err(EnrollError::OtherNode(node));
    }
    let identity = Identity { node, signing };
    let enrolled = Enrolled {
        state: state.to_owned(),
        address: token.address,
        receipt_key,
        // The token's CA, which came by a person's hand; not what the wire says.
        ca_der: token.ca_der,
        certificate: ClientCertificate::new(
            answer.certificate_der.to_vec(),
            Zeroizing::new(tls_key.serialize_der()),
            answer.not_after_unix,
            answer.life_seconds,
            clock::unix_seconds(),
        ),
    };
    store_enrolled(state, &identity, name, &enrolled)?;
    let ring = KeyRing::load(&state.join("keys.bin"), receipt_key)?;
    fetch_keys(&enrolled, &identity, &ring).await?;
    Ok(node)
}

/// The keys to join with: on the disk before anybody is asked. An answer that never arrived leaves a node at the collector
/// that this one then still is: with the same token and keys it gives the same node again.
fn keys(state: &Path) -> Result<(SigningKey, KeyPair), EnrollError> {
    let kept = load_prepared(state)?;
    let tls_key = kept.as_ref().and_then(|kept| KeyPair::try_from(&kept.client_key_der[..]).ok());
    if let (Some(kept), Some(tls_key)) = (kept, tls_key) {
        return Ok((kept.signing, tls_key));
    }
    let signing = draw_signing_key()?;
    let tls_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let client_key_der = Zeroizing::new(tls_key.serialize_der());
    store_prepared(state, &Prepared { signing: signing.clone(), client_key_der })?;
    Ok((signing, tls_key))
}

/// Before recording starts: where today's key is not known, asks the collector for it. That it cannot be reached is told
/// by whoever then needs the key.
pub(crate) async fn ensure_keys(state: &Path) {
    let Ok((identity, enrolled)) = super::identity::load_enrolled(state) else { return };
    let Ok(ring) = KeyRing::load(&state.join("keys.bin"), enrolled.receipt_key) else { return };
    if ring.covers(clock::today()) {
        return;
    }
    if let Err(error) = fetch_keys(&enrolled, &identity, &ring).await {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "the collector's sealing keys could not be fetched"
        );
    }
}
