//! Keys: a generation's, drawn by the node agent and wrapped once to the collector; a session's, derived from it.

use aws_lc_rs::aead::{AES_256_GCM, LessSafeKey, UnboundKey};
use aws_lc_rs::hkdf;
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use bytes::Bytes;
use ed25519_dalek::SigningKey;
use rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256 as SUITE;
use rustls::crypto::hpke::{EncapsulatedSecret, Hpke, HpkePrivateKey, HpkePublicKey};
use zeroize::Zeroizing;

use crate::ids::{GenerationId, NodeId, SessionId};
use crate::v1;

const SESSION_DOMAIN: &[u8] = b"weir session v1";
const WRAP_DOMAIN: &[u8] = b"weir wrap v1";
const KEY_BYTES: usize = 32;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KeyError {
    #[error("the system gives no randomness")]
    Random,
    #[error("the key could not be wrapped to the collector's key: is that an X25519 key?")]
    Wrap,
    #[error("the wrapped key does not open: another key, or changed")]
    Unwrap,
    #[error("a wrap carries malformed {0}")]
    Malformed(&'static str),
}

/// One life of the node agent's sealing: all session keys of that time come from it.
#[derive(Clone)]
pub struct GenerationKey(Zeroizing<[u8; KEY_BYTES]>);

impl GenerationKey {
    /// A fresh one.
    pub fn draw() -> Result<Self, KeyError> {
        Ok(Self(random()?))
    }

    /// From where it was kept; a fixed one is for tests only.
    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The one key that seals this session under this generation.
    #[expect(
        clippy::expect_used,
        reason = "HKDF fails only above 8160 bytes of output; going on would mean a known key"
    )]
    pub fn session_key(&self, session: &SessionId) -> SessionKey {
        let mut out = Zeroizing::new([0; KEY_BYTES]);
        hkdf::Salt::new(hkdf::HKDF_SHA256, &[])
            .extract(&self.0[..])
            .expand(&[SESSION_DOMAIN, session.as_bytes()], KeyLength)
            .and_then(|okm| okm.fill(&mut out[..]))
            .expect("32 bytes are not too many for HKDF");
        SessionKey(out)
    }
}

struct KeyLength;

impl hkdf::KeyType for KeyLength {
    fn len(&self) -> usize {
        KEY_BYTES
    }
}

/// Opens and seals the segments of one session under one generation.
#[derive(Clone)]
pub struct SessionKey(Zeroizing<[u8; KEY_BYTES]>);

impl SessionKey {
    /// From where the collector kept it, under its own wrap.
    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// For the collector to wrap under its own key.
    pub fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    pub(super) fn cipher(&self) -> Option<LessSafeKey> {
        UnboundKey::new(&AES_256_GCM, &self.0[..]).ok().map(LessSafeKey::new)
    }
}

/// An HPKE key pair of the collector (standalone: of the recording directory).
pub struct WrapKeyPair {
    pub public: Vec<u8>,
    pub private: Zeroizing<Vec<u8>>,
}

impl WrapKeyPair {
    pub fn generate() -> Result<Self, KeyError> {
        let (public, private) = SUITE.generate_key_pair().map_err(|_| KeyError::Random)?;
        Ok(Self { public: public.0, private: Zeroizing::new(private.secret_bytes().to_vec()) })
    }
}

/// Wraps a generation's key to one of the collector's keys. Each call gives other bytes.
pub fn wrap(
    generation: &GenerationId,
    key: &GenerationKey,
    node: &NodeId,
    to: &v1::HpkeKey,
) -> Result<v1::Wrap, KeyError> {
    let public = HpkePublicKey(to.public_key.to_vec());
    let (enc, ciphertext) =
        SUITE.seal(&wrap_info(node, generation), &[], &key.0[..], &public).map_err(|_| KeyError::Wrap)?;
    Ok(v1::Wrap {
        generation_id: generation.to_field(),
        key_id: to.id.clone(),
        enc: enc.0.into(),
        ciphertext: ciphertext.into(),
        node_id: node.to_field(),
    })
}

/// Opens a wrap with the private half of the key that it names. The wrap may come from anybody.
pub fn unwrap(wrap: &v1::Wrap, private: &[u8]) -> Result<GenerationKey, KeyError> {
    let node = NodeId::try_from(&wrap.node_id[..]).map_err(|_| KeyError::Malformed("node id"))?;
    let generation =
        GenerationId::try_from(&wrap.generation_id[..]).map_err(|_| KeyError::Malformed("generation id"))?;
    let private = HpkePrivateKey::from(private.to_vec());
    let enc = EncapsulatedSecret(wrap.enc.to_vec());
    let key = SUITE
        .open(&enc, &wrap_info(&node, &generation), &[], &wrap.ciphertext, &private)
        .map(Zeroizing::new)
        .map_err(|_| KeyError::Unwrap)?;
    let key: [u8; KEY_BYTES] = key.as_slice().try_into().map_err(|_| KeyError::Malformed("key"))?;
    Ok(GenerationKey::from_bytes(key))
}

/// A node's or a collector's new signing key.
pub fn draw_signing_key() -> Result<SigningKey, KeyError> {
    Ok(SigningKey::from_bytes(&*random()?))
}

fn wrap_info(node: &NodeId, generation: &GenerationId) -> Bytes {
    [WRAP_DOMAIN, node.as_bytes(), generation.as_bytes()].concat().into()
}

fn random() -> Result<Zeroizing<[u8; KEY_BYTES]>, KeyError> {
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    SystemRandom::new().fill(&mut bytes[..]).map_err(|_| KeyError::Random)?;
    Ok(bytes)
}
