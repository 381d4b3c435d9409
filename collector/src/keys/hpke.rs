//! The key pairs that node agents wrap their generation keys to: one per retention class and day, made ahead, so that
//! an agent that cannot reach the collector still has a key for its day.

use weir_proto::seal::{self, SigningKey, WrapKeyPair};
use weir_proto::v1::{HpkeKey, KeySet, SignedKeySet};
use weir_proto::{GenerationId, KeyId, NodeId};
use zeroize::Zeroizing;

use super::{Kek, KeysError};

/// The only retention class for now.
pub const DEFAULT_CLASS: &str = "default";
/// Keys are handed out for this many days to come, today not counted.
pub const DAYS_AHEAD: u32 = 35;
/// A private key is kept this long after its day, for agents that were away all that time.
pub const DAYS_KEPT: u32 = 90;

/// Days since 1970-01-01 UTC.
pub fn day_of(unix_ms: i64) -> u32 {
    u32::try_from(unix_ms.div_euclid(86_400_000)).unwrap_or(0)
}

/// One key pair as the index keeps it.
#[derive(Clone)]
pub struct StoredHpkeKey {
    pub id: KeyId,
    pub class: String,
    pub day: u32,
    pub public: Vec<u8>,
    /// The private half under the key-encryption key.
    pub wrapped: Vec<u8>,
}

impl StoredHpkeKey {
    pub fn generate(kek: &Kek, class: &str, day: u32) -> Result<Self, KeysError> {
        let pair = WrapKeyPair::generate()?;
        Self::adopt(kek, KeyId::generate(), class, day, pair.public, &pair.private)
    }

    /// A pair that was made elsewhere: that of a standalone recording.
    pub fn adopt(
        kek: &Kek,
        id: KeyId,
        class: &str,
        day: u32,
        public: Vec<u8>,
        private: &[u8],
    ) -> Result<Self, KeysError> {
        let wrapped = kek.wrap(&context(&id), private)?;
        Ok(Self { id, class: class.to_owned(), day, public, wrapped })
    }

    pub fn private(&self, kek: &Kek) -> Result<Zeroizing<Vec<u8>>, KeysError> {
        kek.unwrap(&context(&self.id), &self.wrapped)
    }
}

fn context(id: &KeyId) -> Vec<u8> {
    [b"weir hpke private v1".as_slice(), id.as_bytes()].concat()
}

/// What an agent is given: the public halves, signed.
pub fn key_set(signer: &SigningKey, keys: &[StoredHpkeKey], now_unix_ms: i64) -> SignedKeySet {
    let keys = keys
        .iter()
        .map(|key| HpkeKey {
            id: key.id.to_field(),
            class: key.class.clone(),
            day: key.day,
            public_key: key.public.clone().into(),
        })
        .collect();
    seal::sign_key_set(signer, &KeySet { keys, issued_unix: now_unix_ms / 1000 })
}

/// A session's key, wrapped for this session alone.
pub fn session_key_wrap(
    kek: &Kek,
    session: &weir_proto::SessionId,
    generation: &GenerationId,
    key: &seal::SessionKey,
) -> Result<Vec<u8>, KeysError> {
    kek.wrap(&session_context(session, generation), key.as_bytes())
}

pub fn session_key_unwrap(
    kek: &Kek,
    session: &weir_proto::SessionId,
    generation: &GenerationId,
    wrapped: &[u8],
) -> Result<seal::SessionKey, KeysError> {
    let plain = kek.unwrap(&session_context(session, generation), wrapped)?;
    let key: [u8; 32] = plain.as_slice().try_into().map_err(|_| KeysError::Unwrap)?;
    Ok(seal::SessionKey::from_bytes(key))
}

fn session_context(session: &weir_proto::SessionId, generation: &GenerationId) -> Vec<u8> {
    [b"weir session key v1".as_slice(), session.as_bytes(), generation.as_bytes()].concat()
}

/// A wrap as it came over the stream, its ids checked.
pub struct ReceivedWrap {
    pub generation: GenerationId,
    pub key: KeyId,
    pub wrap: weir_proto::v1::Wrap,
}

impl ReceivedWrap {
    /// `None`: malformed, or wrapped for another node than the one that sends it.
    pub fn of(wrap: weir_proto::v1::Wrap, node: NodeId) -> Option<Self> {
        let generation = GenerationId::try_from(&wrap.generation_id[..]).ok()?;
        let key = KeyId::try_from(&wrap.key_id[..]).ok()?;
        (wrap.node_id[..] == node.as_bytes()[..] && wrap.enc.len() <= 256 && wrap.ciphertext.len() <= 256)
            .then_some(Self { generation, key, wrap })
    }
}
