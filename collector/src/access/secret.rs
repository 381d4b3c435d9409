//! Secrets of credentials and join tokens: 256 random bits, known to their holder only.

use aws_lc_rs::digest;
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::keys::KeysError;

pub fn new_secret() -> Result<String, KeysError> {
    let mut bytes = zeroize::Zeroizing::new([0u8; 32]);
    SystemRandom::new().fill(&mut bytes[..]).map_err(|_| KeysError::Cipher)?;
    Ok(URL_SAFE_NO_PAD.encode(&bytes[..]))
}

/// What the index keeps. One round of SHA-256 is enough: nobody guesses 256 random bits.
pub fn secret_hash(secret: &str) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(b"weir secret v1");
    context.update(secret.as_bytes());
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}
