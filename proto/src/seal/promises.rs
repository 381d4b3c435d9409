//! What the collector promises under its receipt key (receipts, key sets), and what a node proves when it joins.

use bytes::Bytes;
use ed25519_dalek::{SigningKey, VerifyingKey};
use prost::Message;

use super::{Hash, SIGNATURE_BYTES, hash, sign, signature_holds};
use crate::ids::{NodeId, SessionId};
use crate::v1::{KeySet, Receipt, SignedKeySet};

/// No encoded key set is longer.
pub const KEY_SET_BYTES_MAX: usize = 64 * 1024;

const RECEIPT_DOMAIN: &[u8] = b"weir receipt v1";
const KEYS_DOMAIN: &[u8] = b"weir keys v1";
const ENROL_DOMAIN: &[u8] = b"weir enroll v1";
const RENEW_DOMAIN: &[u8] = b"weir renew v1";

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PromiseError {
    #[error("a receipt carries a malformed {0}")]
    Malformed(&'static str),
    #[error("the {0} is not signed by the collector's receipt key")]
    Signature(&'static str),
    #[error("a key set of {0} bytes, at most {KEY_SET_BYTES_MAX} are allowed")]
    TooLong(usize),
    #[error("the key set does not decode: {0}")]
    Decode(#[from] prost::DecodeError),
    #[error("the node does not hold the signing key that it names")]
    Enrol,
}

/// What a verified receipt says: the collector holds this segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipted {
    pub session: SessionId,
    pub seq: u64,
    pub hash: Hash,
    pub received_unix_ms: i64,
}

/// The collector: "I hold this segment".
pub fn sign_receipt(key: &SigningKey, said: &Receipted) -> Receipt {
    Receipt {
        session_id: said.session.to_field(),
        seq: said.seq,
        segment_hash: Bytes::copy_from_slice(&said.hash),
        received_unix_ms: said.received_unix_ms,
        signature: Bytes::copy_from_slice(&sign(key, RECEIPT_DOMAIN, &receipt_message(said))),
    }
}

/// Before anything is deleted for a receipt, it passes here.
pub fn verify_receipt(key: &VerifyingKey, receipt: &Receipt) -> Result<Receipted, PromiseError> {
    let said = Receipted {
        session: SessionId::try_from(&receipt.session_id[..])
            .map_err(|_| PromiseError::Malformed("session id"))?,
        seq: receipt.seq,
        hash: receipt.segment_hash[..].try_into().map_err(|_| PromiseError::Malformed("segment hash"))?,
        received_unix_ms: receipt.received_unix_ms,
    };
    if signature_holds(key, RECEIPT_DOMAIN, &receipt_message(&said), &receipt.signature) {
        Ok(said)
    } else {
        Err(PromiseError::Signature("receipt"))
    }
}

fn receipt_message(said: &Receipted) -> Vec<u8> {
    [&said.session.as_bytes()[..], &said.seq.to_be_bytes(), &said.hash, &said.received_unix_ms.to_be_bytes()]
        .concat()
}

/// The collector: "wrap to these keys".
pub fn sign_key_set(key: &SigningKey, keys: &KeySet) -> SignedKeySet {
    let key_set = Bytes::from(keys.encode_to_vec());
    let signature = Bytes::copy_from_slice(&sign(key, KEYS_DOMAIN, &key_set));
    SignedKeySet { key_set, signature }
}

pub fn verify_key_set(key: &VerifyingKey, signed: &SignedKeySet) -> Result<KeySet, PromiseError> {
    if signed.key_set.len() > KEY_SET_BYTES_MAX {
        return Err(PromiseError::TooLong(signed.key_set.len()));
    }
    if !signature_holds(key, KEYS_DOMAIN, &signed.key_set, &signed.signature) {
        return Err(PromiseError::Signature("key set"));
    }
    Ok(KeySet::decode(signed.key_set.clone())?)
}

/// The node: "I hold this signing key, and it belongs to this certificate request".
pub fn enrol_proof(key: &SigningKey, csr_der: &[u8]) -> [u8; SIGNATURE_BYTES] {
    sign(key, ENROL_DOMAIN, &hash(&[csr_der]))
}

pub fn verify_enrol_proof(key: &VerifyingKey, csr_der: &[u8], proof: &[u8]) -> Result<(), PromiseError> {
    if signature_holds(key, ENROL_DOMAIN, &hash(&[csr_der]), proof) {
        Ok(())
    } else {
        Err(PromiseError::Enrol)
    }
}

/// The node: "this request for a new certificate is mine". Who has only stolen the TLS key cannot keep itself alive.
pub fn renew_proof(key: &SigningKey, node: &NodeId, csr_der: &[u8]) -> [u8; SIGNATURE_BYTES] {
    sign(key, RENEW_DOMAIN, &renew_message(node, csr_der))
}

pub fn verify_renew_proof(
    key: &VerifyingKey,
    node: &NodeId,
    csr_der: &[u8],
    proof: &[u8],
) -> Result<(), PromiseError> {
    if signature_holds(key, RENEW_DOMAIN, &renew_message(node, csr_der), proof) {
        Ok(())
    } else {
        Err(PromiseError::Enrol)
    }
}

fn renew_message(node: &NodeId, csr_der: &[u8]) -> Vec<u8> {
    [&node.as_bytes()[..], &hash(&[csr_der])].concat()
}
