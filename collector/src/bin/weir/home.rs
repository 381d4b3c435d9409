//! Where `weir` keeps its credential and the keys it has seen: $WEIR_CONFIG_DIR, else $XDG_CONFIG_HOME/weir, else
//! ~/.config/weir; readable by its owner only.

use std::path::PathBuf;

use anyhow::{Context, Result};
use weir_collector::keys::files;
use weir_collector::verify::Pins;
use weir_proto::credential::Credential;

const CREDENTIAL: &str = "credential";
const CREDENTIAL_VARIABLE: &str = "WEIR_CREDENTIAL";

pub(crate) fn folder() -> Result<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("WEIR_CONFIG_DIR")
        .or_else(|| variable("XDG_CONFIG_HOME").map(|config| config.join("weir")))
        .or_else(|| variable("HOME").map(|home| home.join(".config/weir")))
        .context("no HOME: set WEIR_CONFIG_DIR to a folder for weir's credential and pinned keys")
}

/// WEIR_CREDENTIAL, else what `weir login` kept.
pub(crate) fn credential() -> Result<Credential> {
    let text = match std::env::var(CREDENTIAL_VARIABLE) {
        Ok(text) if !text.is_empty() => text,
        _ => {
            let path = folder()?.join(CREDENTIAL);
            std::fs::read_to_string(&path).with_context(|| {
                format!(
                    "no credential in {}: run `weir login CREDENTIAL`, or set {CREDENTIAL_VARIABLE}",
                    path.display()
                )
            })?
        }
    };
    text.parse().context("the credential")
}

pub(crate) fn keep_credential(credential: &Credential) -> Result<PathBuf> {
    let folder = folder()?;
    files::create_folder(&folder)?;
    let path = folder.join(CREDENTIAL);
    files::write_secret(&path, credential.to_string().as_bytes())?;
    Ok(path)
}

/// Pins are kept per collector; it is told by its CA.
fn pins_path(credential: &Credential) -> Result<PathBuf> {
    let digest = weir_collector::access::secret_hash(&hex::encode(&credential.ca_der));
    Ok(folder()?.join(format!("pins-{}.json", hex::encode(&digest[..8]))))
}

pub(crate) fn pins(credential: &Credential) -> Result<Pins> {
    let path = pins_path(credential)?;
    match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| {
            format!(
                "the pinned keys in {} are damaged: restore them, or delete the file to trust anew",
                path.display()
            )
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Pins::default()),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

pub(crate) fn keep_pins(credential: &Credential, pins: &Pins) -> Result<()> {
    files::create_folder(&folder()?)?;
    files::write_secret(&pins_path(credential)?, &serde_json::to_vec_pretty(pins)?)?;
    Ok(())
}
