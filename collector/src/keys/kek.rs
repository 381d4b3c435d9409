//! The key-encryption key: AES-256-GCM over the keys that the index holds, so that the index alone opens nothing.

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, RandomizedNonceKey};
use aws_lc_rs::digest;
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use super::KeysError;

/// Nonces are drawn at random for each wrap: good for 2^32 wraps, some thousand years of sessions.
pub struct Kek {
    key: RandomizedNonceKey,
    fingerprint: [u8; 32],
}

/// A fresh one, as the file keeps it.
pub(super) fn draw() -> Result<Zeroizing<[u8; 32]>, KeysError> {
    let mut key = Zeroizing::new([0; 32]);
    SystemRandom::new().fill(&mut key[..]).map_err(|_| KeysError::Cipher)?;
    Ok(key)
}

impl Kek {
    pub(super) fn from_bytes(bytes: &[u8; 32]) -> Result<Self, KeysError> {
        let key = RandomizedNonceKey::new(&AES_256_GCM, bytes).map_err(|_| KeysError::Cipher)?;
        let mut fingerprint = [0; 32];
        let hashed = digest::digest(&digest::SHA256, &[b"weir kek fingerprint v1", &bytes[..]].concat());
        fingerprint.copy_from_slice(hashed.as_ref());
        Ok(Self { key, fingerprint })
    }

    pub(super) fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }

    /// nonce || ciphertext || tag. `context` says whose key this is: it opens under the same context only.
    pub fn wrap(&self, context: &[u8], plain: &[u8]) -> Result<Vec<u8>, KeysError> {
        let mut sealed = plain.to_vec();
        let nonce = self
            .key
            .seal_in_place_append_tag(Aad::from(context), &mut sealed)
            .map_err(|_| KeysError::Cipher)?;
        Ok([&nonce.as_ref()[..], &sealed].concat())
    }

    pub fn unwrap(&self, context: &[u8], wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>, KeysError> {
        let (nonce, sealed) = wrapped.split_first_chunk::<NONCE_LEN>().ok_or(KeysError::Unwrap)?;
        let mut plain = Zeroizing::new(sealed.to_vec());
        let len = self
            .key
            .open_in_place(nonce.into(), Aad::from(context), &mut plain)
            .map_err(|_| KeysError::Unwrap)?
            .len();
        plain.truncate(len);
        Ok(plain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_only_whole_and_in_its_context() {
        let kek = Kek::from_bytes(&[3; 32]).unwrap();
        let wrapped = kek.wrap(b"a", b"secret").unwrap();
        assert_ne!(wrapped, kek.wrap(b"a", b"secret").unwrap(), "every wrap has a nonce of its own");
        assert_eq!(kek.unwrap(b"a", &wrapped).unwrap().as_slice(), b"secret");
        assert!(kek.unwrap(b"b", &wrapped).is_err());
        for at in 0..wrapped.len() {
            let mut bad = wrapped.clone();
            bad[at] ^= 1;
            assert!(kek.unwrap(b"a", &bad).is_err(), "byte {at}");
            assert!(kek.unwrap(b"a", &wrapped[..at]).is_err(), "cut at {at}");
        }
        assert!(Kek::from_bytes(&[4; 32]).unwrap().unwrap(b"a", &wrapped).is_err());
    }
}
