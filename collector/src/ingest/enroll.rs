//! A join token becomes a node: its signing key is pinned, its certificate signed. Later its certificate is renewed, for a
//! request that both its old certificate and its signing key vouch for.

use std::time::Duration;

use tonic::Status;
use weir_proto::seal::{self, VerifyingKey};
use weir_proto::{NodeId, v1};

use crate::access::secret_hash;
use crate::clock;
use crate::keys::Keys;
use crate::metrics::Metrics;
use crate::store::Index;
use crate::store::rows::{Enrolled, NewNode, NodeRow};

use super::connected::REVOKED;
use super::stream::store_status;

/// Longest certificate request, token and name taken.
const CSR_BYTES_MAX: usize = 8 * 1024;
const TOKEN_BYTES_MAX: usize = 256;
const NAME_BYTES_MAX: usize = 253;

pub(super) async fn enroll(
    index: &Index,
    keys: &Keys,
    metrics: &Metrics,
    life: Duration,
    request: v1::EnrollRequest,
) -> Result<v1::EnrollResponse, Status> {
    if request.csr_der.len() > CSR_BYTES_MAX || request.token.len() > TOKEN_BYTES_MAX {
        return Err(Status::invalid_argument("the enrolment is larger than one can be"));
    }
    if !is_name(&request.name) {
        return Err(Status::invalid_argument(
            "a node's name is a host name: letters, digits, '-', '_' and '.'",
        ));
    }
    let signing_key = key_of(&request)?;
    let node = NodeId::generate();
    let new = NewNode {
        id: node,
        name: &request.name,
        signing_key: signing_key.to_bytes(),
        token_hash: secret_hash(&request.token),
        now_ms: clock::unix_ms(),
    };
    let enrolled = match index.join_token_known(&new.token_hash, new.now_ms).await {
        Ok(true) => {
            // Signed before the token is spent: a request that cannot be signed costs no use.
            keys.authority
                .node_certificate(&request.csr_der, node, life)
                .map_err(|error| Status::invalid_argument(format!("the certificate request: {error}")))?;
            index.node_enroll(&new, |pattern| matches(pattern, &request.name)).await
        }
        Ok(false) => Ok(Enrolled::Refused),
        Err(error) => Err(error),
    };
    let node = match enrolled {
        Ok(Enrolled::As(node)) => node,
        Ok(Enrolled::Refused) => {
            tracing::warn!(
                name = request.name,
                "an enrolment was refused: no such token, used up, expired, or not for this name"
            );
            return Err(Status::permission_denied(
                "the join token is not valid for this node: used up, expired, or made for other names; make a new one with `weir join-token`",
            ));
        }
        Ok(Enrolled::KnownKey) => {
            return Err(Status::already_exists(
                "this signing key is enrolled already, under another name: join with `--name` as before, or with an empty state directory",
            ));
        }
        Ok(Enrolled::Revoked) => return Err(Status::permission_denied(REVOKED)),
        Err(error) => {
            tracing::error!(error = %crate::chain(&error), "enrolment");
            return Err(Status::unavailable("the collector's store failed: try again"));
        }
    };
    let (certificate, not_after) = keys
        .authority
        .node_certificate(&request.csr_der, node, life)
        .map_err(|error| Status::internal(format!("signing the certificate: {error}")))?;
    index.node_certified(&node, not_after.unix_timestamp()).await.map_err(store_status)?;
    metrics.enrolled.inc();
    tracing::info!(%node, name = request.name, "a node enrolled");
    Ok(v1::EnrollResponse {
        node_id: node.to_field(),
        certificate_der: certificate.into(),
        ca_der: keys.authority.certificate_der().to_vec().into(),
        receipt_key: keys.receipts.verifying_key().to_bytes().to_vec().into(),
        not_after_unix: not_after.unix_timestamp(),
        life_seconds: seconds(life),
    })
}

/// A new certificate for a node that has come with one that still holds.
pub(super) async fn renew(
    index: &Index,
    keys: &Keys,
    metrics: &Metrics,
    life: Duration,
    node: &NodeRow,
    request: v1::RenewRequest,
) -> Result<v1::RenewResponse, Status> {
    if request.csr_der.len() > CSR_BYTES_MAX {
        return Err(Status::invalid_argument("the certificate request is larger than one can be"));
    }
    let key = VerifyingKey::from_bytes(&node.signing_key)
        .map_err(|_| Status::internal("the node's signing key in the index is not one"))?;
    seal::verify_renew_proof(&key, &node.id, &request.csr_der, &request.proof)
        .map_err(|error| Status::permission_denied(error.to_string()))?;
    let (certificate, not_after) = keys
        .authority
        .node_certificate(&request.csr_der, node.id, life)
        .map_err(|error| Status::invalid_argument(format!("the certificate request: {error}")))?;
    index.node_certified(&node.id, not_after.unix_timestamp()).await.map_err(store_status)?;
    metrics.renewed.inc();
    tracing::info!(node = %node.id, name = node.name, until = %not_after, "a node's certificate was renewed");
    Ok(v1::RenewResponse {
        certificate_der: certificate.into(),
        not_after_unix: not_after.unix_timestamp(),
        life_seconds: seconds(life),
    })
}

fn seconds(life: Duration) -> i64 {
    i64::try_from(life.as_secs()).unwrap_or(i64::MAX)
}

/// The signing key, proven to be held by whoever asks.
fn key_of(request: &v1::EnrollRequest) -> Result<VerifyingKey, Status> {
    let bytes: [u8; 32] = request.signing_key[..]
        .try_into()
        .map_err(|_| Status::invalid_argument("a signing key has 32 bytes"))?;
    let key = VerifyingKey::from_bytes(&bytes).map_err(|_| Status::invalid_argument("not an ed25519 key"))?;
    if key.is_weak() {
        return Err(Status::invalid_argument("a weak ed25519 key"));
    }
    seal::verify_enrol_proof(&key, &request.csr_der, &request.proof)
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    Ok(key)
}

fn is_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// `*` stands for any part of a name, also none; everything else for itself. Linear in the name for each star.
pub fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = name.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name, expected) in [
            ("*", "db-1", true),
            ("db-*", "db-1", true),
            ("db-*", "web-1", false),
            ("*.example.com", "a.example.com", true),
            ("*.example.com", "example.com", false),
            ("a*b*c", "abc", true),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxc", false),
            ("ab*ba", "aba", false),
            ("db-1", "db-1", true),
            ("db-1", "db-10", false),
            ("", "", true),
            ("", "a", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} on {name}");
        }
    }

    #[test]
    fn names() {
        assert!(is_name("db-1.example"));
        for name in ["", "a b", "a\n", "ä", &"a".repeat(254)] {
            assert!(!is_name(name), "{name:?}");
        }
    }
}
