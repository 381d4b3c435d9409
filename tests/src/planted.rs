//! Secrets that a test plants and that nobody may find again.

use std::fs;
use std::path::Path;

use crate::sealed::files;

/// A secret of one kind; its value occurs nowhere else.
#[derive(Clone, Copy, Debug)]
pub struct Planted {
    pub kind: &'static str,
    pub value: &'static str,
}

const fn planted(kind: &'static str, value: &'static str) -> Planted {
    Planted { kind, value }
}

/// One of each kind that must never be recorded.
pub const ALL: &[Planted] = &[
    planted("PostgreSQL login password", crate::postgres::PASSWORD),
    planted("clear-text password message", "plantedCleartext31"),
    planted("PASSWORD literal", "plantedLiteral01"),
    planted("user mapping option", "plantedMapping02"),
    planted("dblink string", "plantedDblink03"),
    planted("password in a DSN", "plantedDsn04"),
    planted("password in a URL", "plantedUrl05"),
    planted("--token argument", "plantedToken06"),
    planted("--api-key argument", "plantedApiKey07"),
    planted("token file", "plantedTokenFile08"),
    planted("authorization", "plantedAuthorization10"),
    planted("proxy-authorization", "plantedProxyAuth11"),
    planted("cookie", "plantedCookie12"),
    planted("set-cookie", "plantedSetCookie13"),
    planted("x-api-key", "plantedXApiKey14"),
    planted("api-key", "plantedHeaderApiKey15"),
    planted("x-goog-api-key", "plantedGoog16"),
    planted("x-amz-security-token", "plantedAmz17"),
    planted("x-vault-token", "plantedVault18"),
    planted("private-token", "plantedPrivate19"),
    planted("key=", "plantedQueryKey20"),
    planted("access_token=", "plantedAccessToken21"),
    planted("sig=", "plantedSig22"),
    planted("X-Amz-Signature=", "plantedAmzSignature23"),
];

pub fn value(kind: &str) -> &'static str {
    ALL.iter().find(|planted| planted.kind == kind).map_or("", |planted| planted.value)
}

/// What of `secrets` occurs in these bytes.
pub fn found<'a>(bytes: &[u8], secrets: &'a [Planted]) -> Vec<&'a Planted> {
    secrets.iter().filter(|planted| contains(bytes, planted.value.as_bytes())).collect()
}

/// What occurs in any file below a folder, with the file.
pub fn found_below(folder: &Path, secrets: &[Planted]) -> anyhow::Result<Vec<String>> {
    let mut all = Vec::new();
    for file in files(folder)? {
        // A file may go while we look: it is no longer at rest then.
        let Ok(bytes) = fs::read(&file) else { continue };
        all.extend(
            found(&bytes, secrets).iter().map(|planted| format!("{} in {}", planted.kind, file.display())),
        );
    }
    Ok(all)
}

pub fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    memchr::memmem::find(bytes, needle).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_differ_and_are_found() {
        for planted in ALL {
            assert_eq!(found(format!("x{}y", planted.value).as_bytes(), ALL).len(), 1, "{}", planted.kind);
        }
        assert!(found(b"nothing", ALL).is_empty());
    }
}
