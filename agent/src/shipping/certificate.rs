//! The certificate that this node shows the collector, with its key: one file, so that both are the old or both the new,
//! whenever the power goes.
//!
//! ```text
//! identity/client.json        the one in use
//! identity/client.next.json   renewed, and not yet shown to the collector: it takes the other's place when it was welcomed
//! identity/client.der, identity/client.key.der   as enrolment of the first version stored them
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

use super::identity::{IdentityError, folder};
use crate::recording::write_file;

/// How long the certificates of the first version's collectors are good for: they did not say.
const FIRST_LIFE_SECONDS: i64 = 365 * 24 * 3600;

/// A certificate and its key.
#[derive(Clone)]
pub(crate) struct ClientCertificate {
    pub(crate) certificate_der: Vec<u8>,
    pub(crate) key_der: Zeroizing<Vec<u8>>,
    /// By the collector's clock.
    pub(crate) not_after_unix: i64,
    /// By this node's clock: after two thirds of its life.
    pub(crate) renew_unix: i64,
}

/// What to connect with.
pub(super) struct Certificates {
    pub(super) current: ClientCertificate,
    pub(super) next: Option<ClientCertificate>,
}

#[derive(Serialize, Deserialize)]
struct CertificateFile {
    certificate: String,
    key: String,
    not_after_unix: i64,
    renew_unix: i64,
}

impl Drop for CertificateFile {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl ClientCertificate {
    /// One that was just given out.
    pub(super) fn new(
        certificate_der: Vec<u8>,
        key_der: Zeroizing<Vec<u8>>,
        not_after_unix: i64,
        life_seconds: i64,
        now_unix: i64,
    ) -> Self {
        // The first version's collectors do not say; then what is left is taken for the whole.
        let life = if life_seconds > 0 { life_seconds } else { not_after_unix.saturating_sub(now_unix) };
        let renew_unix = now_unix.saturating_add(life.max(0) / 3 * 2);
        Self { certificate_der, key_der, not_after_unix, renew_unix }
    }

    /// By this node's clock; the collector's decides.
    pub(super) fn is_over(&self, now_unix: i64) -> bool {
        self.not_after_unix != 0 && now_unix >= self.not_after_unix
    }
}

impl Certificates {
    pub(super) fn load(state: &Path, first_not_after_unix: i64) -> Result<Self, IdentityError> {
        let current = match read(&current_path(state))? {
            Some(current) => current,
            None => first(state, first_not_after_unix)?,
        };
        Ok(Self { current, next: read(&next_path(state))? })
    }
}

/// Keeps a renewed certificate until it has been welcomed.
pub(super) fn store_next(state: &Path, certificate: &ClientCertificate) -> Result<(), IdentityError> {
    write(&next_path(state), certificate)
}

/// It was welcomed: from now on it is the one in use.
pub(super) fn promote_next(state: &Path) -> Result<(), IdentityError> {
    let path = next_path(state);
    fs::rename(&path, current_path(state))
        .and_then(|()| fs::File::open(folder(state))?.sync_all())
        .map_err(|source| IdentityError::Io { path, doing: "putting it in use", source })
}

/// The collector takes the old one and not this: it is of no use.
pub(super) fn drop_next(state: &Path) -> Result<(), IdentityError> {
    remove(&next_path(state))
}

/// What enrolment gave, in place of all there was.
pub(super) fn store(state: &Path, certificate: &ClientCertificate) -> Result<(), IdentityError> {
    remove(&next_path(state))?;
    write(&current_path(state), certificate)
}

fn current_path(state: &Path) -> PathBuf {
    folder(state).join("client.json")
}

fn next_path(state: &Path) -> PathBuf {
    folder(state).join("client.next.json")
}

fn read(path: &Path) -> Result<Option<ClientCertificate>, IdentityError> {
    let damaged = || IdentityError::Damaged(path.to_owned());
    let bytes = match fs::read(path) {
        Ok(bytes) => Zeroizing::new(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(IdentityError::Io { path: path.to_owned(), doing: "reading it", source });
        }
    };
    let file: CertificateFile = serde_json::from_slice(&bytes).map_err(|_| damaged())?;
    Ok(Some(ClientCertificate {
        certificate_der: STANDARD.decode(&file.certificate).map_err(|_| damaged())?,
        key_der: Zeroizing::new(STANDARD.decode(&file.key).map_err(|_| damaged())?),
        not_after_unix: file.not_after_unix,
        renew_unix: file.renew_unix,
    }))
}

fn first(state: &Path, not_after_unix: i64) -> Result<ClientCertificate, IdentityError> {
    let read = |name: &str| {
        let path = folder(state).join(name);
        fs::read(&path).map_err(|source| IdentityError::Io { path, doing: "reading it", source })
    };
    Ok(ClientCertificate {
        certificate_der: read("client.der")?,
        key_der: Zeroizing::new(read("client.key.der")?),
        not_after_unix,
        renew_unix: not_after_unix.saturating_sub(FIRST_LIFE_SECONDS / 3),
    })
}

fn write(path: &Path, certificate: &ClientCertificate) -> Result<(), IdentityError> {
    let file = CertificateFile {
        certificate: STANDARD.encode(&certificate.certificate_der),
        key: STANDARD.encode(&certificate.key_der),
        not_after_unix: certificate.not_after_unix,
        renew_unix: certificate.renew_unix,
    };
    let io = |source| IdentityError::Io { path: path.to_owned(), doing: "writing it", source };
    let bytes = Zeroizing::new(serde_json::to_vec(&file).map_err(|error| io(error.into()))?);
    write_file(path, &bytes).map_err(io)
}

fn remove(path: &Path) -> Result<(), IdentityError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(IdentityError::Io { path: path.to_owned(), doing: "removing it", source: error })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(mark: u8) -> ClientCertificate {
        ClientCertificate::new(vec![mark; 9], Zeroizing::new(vec![mark; 7]), 10_000, 300, 1_000)
    }

    #[test]
    fn the_next_one_takes_over_only_when_it_was_welcomed() {
        let state = tempfile::tempdir().unwrap();
        fs::create_dir(folder(state.path())).unwrap();
        store(state.path(), &certificate(1)).unwrap();
        store_next(state.path(), &certificate(2)).unwrap();
        // Killed here, the next start tries it, with the old one to fall back on.
        let found = Certificates::load(state.path(), 0).unwrap();
        assert_eq!((found.current.certificate_der[0], found.next.unwrap().key_der[0]), (1, 2));
        promote_next(state.path()).unwrap();
        let found = Certificates::load(state.path(), 0).unwrap();
        assert_eq!((found.current.certificate_der[0], found.current.key_der[0]), (2, 2));
        assert!(found.next.is_none());
        store_next(state.path(), &certificate(3)).unwrap();
        drop_next(state.path()).unwrap();
        drop_next(state.path()).unwrap();
        assert!(Certificates::load(state.path(), 0).unwrap().next.is_none());
    }

    #[test]
    fn it_is_renewed_after_two_thirds_of_its_life_by_this_clock() {
        assert_eq!(certificate(1).renew_unix, 1_200);
        let unsaid = ClientCertificate::new(vec![], Zeroizing::new(vec![]), 4_000, 0, 1_000);
        assert_eq!(unsaid.renew_unix, 3_000);
        assert!(!unsaid.is_over(3_999) && unsaid.is_over(4_000));
    }

    #[test]
    fn the_files_of_the_first_version_are_read() {
        let state = tempfile::tempdir().unwrap();
        fs::create_dir(folder(state.path())).unwrap();
        fs::write(folder(state.path()).join("client.der"), b"certificate").unwrap();
        fs::write(folder(state.path()).join("client.key.der"), b"key").unwrap();
        let found = Certificates::load(state.path(), FIRST_LIFE_SECONDS).unwrap().current;
        assert_eq!(found.certificate_der, b"certificate");
        assert_eq!(found.renew_unix, FIRST_LIFE_SECONDS - FIRST_LIFE_SECONDS / 3);
        fs::write(current_path(state.path()), b"{}").unwrap();
        assert!(matches!(Certificates::load(state.path(), 0), Err(IdentityError::Damaged(_))));
    }
}
