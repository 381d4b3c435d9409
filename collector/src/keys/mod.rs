//! The collector's own keys, made at the first start and kept in one folder that only its user can read.
//!
//! * [`authority`]: the CA, the server's certificate, and the certificates of node agents
//! * [`kek`]: the key-encryption key, under which all keys in the index are wrapped
//! * [`hpke`]: the key pairs that node agents wrap their generation keys to
//! * [`files`]: how a secret gets onto the disk

pub mod authority;
pub mod files;
pub mod hpke;
pub mod kek;

use std::path::{Path, PathBuf};

use aws_lc_rs::digest;
use weir_proto::seal::{self, SigningKey};
use zeroize::Zeroizing;

pub use authority::{Authority, ServerCertificate, node_of_certificate};
pub use kek::Kek;

const CA_CERTIFICATE: &str = "ca.crt";
const CA_KEY: &str = "ca.key";
const RECEIPT_KEY: &str = "receipt.key";
const KEK: &str = "kek";

/// Something is wrong with the collector's keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error("cannot {doing} {path}: is the data directory owned by the collector's user?")]
    File { doing: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{path} does not hold a usable key: restore the keys folder from its backup")]
    Damaged { path: PathBuf },
    #[error(
        "the index in this data directory was made with other keys than those in {path}: restore the keys folder that belongs to it"
    )]
    Foreign { path: PathBuf },
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error("key: {0}")]
    Seal(#[from] seal::KeyError),
    #[error("the wrapped key in the index does not open with this key-encryption key")]
    Unwrap,
    #[error("the cipher or the system's randomness failed")]
    Cipher,
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error("TLS client verification: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// All of them, loaded.
pub struct Keys {
    pub authority: Authority,
    /// Signs receipts and key sets.
    pub receipts: SigningKey,
    pub kek: Kek,
}

impl Keys {
    /// Loads the folder; makes it, as a whole or not at all, when there is none yet.
    pub fn open(folder: &Path) -> Result<Self, KeysError> {
        if !folder.exists() {
            Self::create(folder)?;
        }
        let certificate = files::read(&folder.join(CA_CERTIFICATE))?;
        let key = files::read(&folder.join(CA_KEY))?;
        let authority = Authority::load(&certificate, &key)
            .map_err(|_| KeysError::Damaged { path: folder.join(CA_KEY) })?;
        let receipts = SigningKey::from_bytes(&*key_of_32(&folder.join(RECEIPT_KEY))?);
        let kek = Kek::from_bytes(&*key_of_32(&folder.join(KEK))?)?;
        Ok(Self { authority, receipts, kek })
    }

    fn create(folder: &Path) -> Result<(), KeysError> {
        // A half-made folder from a start that was killed is of no use to anybody.
        let making = folder.with_extension("new");
        if making.exists() {
            std::fs::remove_dir_all(&making).map_err(|source| KeysError::File {
                doing: "remove",
                path: making.clone(),
                source,
            })?;
        }
        files::create_folder(&making)?;
        let (certificate, key) = Authority::create()?;
        files::write_secret(&making.join(CA_CERTIFICATE), certificate.as_bytes())?;
        files::write_secret(&making.join(CA_KEY), key.as_bytes())?;
        files::write_secret(&making.join(RECEIPT_KEY), seal::draw_signing_key()?.as_bytes())?;
        files::write_secret(&making.join(KEK), &*kek::draw()?)?;
        files::rename(&making, folder)
    }

    /// Tells these keys from others; the index remembers it.
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(b"weir keys fingerprint v1");
        context.update(self.authority.certificate_der());
        context.update(self.receipts.verifying_key().as_bytes());
        context.update(&self.kek.fingerprint());
        let mut out = [0; 32];
        out.copy_from_slice(context.finish().as_ref());
        out
    }
}

fn key_of_32(path: &Path) -> Result<Zeroizing<[u8; 32]>, KeysError> {
    let bytes = files::read(path)?;
    let key = bytes.as_slice().try_into().map_err(|_| KeysError::Damaged { path: path.to_owned() })?;
    Ok(Zeroizing::new(key))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn made_once_and_loaded_again() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("keys");
        let first = Keys::open(&folder).unwrap().fingerprint();
        assert_eq!(Keys::open(&folder).unwrap().fingerprint(), first);
        for entry in std::fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{entry:?}");
        }
        assert_eq!(std::fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_lost_or_cut_key_is_an_error_and_never_made_anew() {
        for name in [CA_CERTIFICATE, CA_KEY, RECEIPT_KEY, KEK] {
            let dir = tempfile::tempdir().unwrap();
            let folder = dir.path().join("keys");
            Keys::open(&folder).unwrap();
            std::fs::write(folder.join(name), "cut").unwrap();
            assert!(matches!(Keys::open(&folder), Err(KeysError::Damaged { .. })), "{name}");
            std::fs::remove_file(folder.join(name)).unwrap();
            assert!(matches!(Keys::open(&folder), Err(KeysError::File { .. })), "{name}");
        }
    }
}
