//! How a secret gets onto the disk: readable by its owner only, complete or not at all.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use zeroize::Zeroizing;

use super::KeysError;

/// No key file is longer.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// A folder that only its owner can enter.
pub fn create_folder(path: &Path) -> Result<(), KeysError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| error("create", path, e))
}

/// Writes the whole file, then gives it its name, then syncs the folder.
pub fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), KeysError> {
    let making = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        // A left-over of a killed run may have other permissions: begin from nothing.
        match std::fs::remove_file(&making) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&making)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|e| error("write", &making, e))?;
    rename(&making, path)
}

pub(super) fn rename(from: &Path, to: &Path) -> Result<(), KeysError> {
    let sync = || -> std::io::Result<()> {
        std::fs::rename(from, to)?;
        match to.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
            _ => File::open(".")?.sync_all(),
        }
    };
    sync().map_err(|e| error("rename", to, e))
}

pub(super) fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeysError> {
    let mut bytes = Zeroizing::new(Vec::new());
    File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut bytes))
        .map_err(|e| error("read", path, e))?;
    Ok(bytes)
}

fn error(doing: &'static str, path: &Path, source: std::io::Error) -> KeysError {
    KeysError::File { doing, path: path.to_owned(), source }
}
