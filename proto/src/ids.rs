//! A type per id. Each is 16 bytes; those made by the node agent (run, session) are UUIDv7, so they sort by time.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// Bytes that should be an id are not 16 long.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{kind} id has {len} bytes, expected 16")]
pub struct BadId {
    kind: &'static str,
    len: usize,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $new:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u8; 16]);

        impl $name {
            /// A fresh one.
            pub fn generate() -> Self {
                let make: fn() -> Uuid = $new;
                Self(make().into_bytes())
            }

            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }

            /// As a protobuf `bytes` field.
            pub fn to_field(self) -> prost::bytes::Bytes {
                prost::bytes::Bytes::copy_from_slice(&self.0)
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = BadId;
            fn try_from(bytes: &[u8]) -> Result<Self, BadId> {
                match bytes.try_into() {
                    Ok(bytes) => Ok(Self(bytes)),
                    Err(_) => Err(BadId { kind: $kind, len: bytes.len() }),
                }
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, uuid::Error> {
                Uuid::from_str(text).map(|uuid| Self(uuid.into_bytes()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                Uuid::from_bytes(self.0).hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($kind, ":{}"), self)
            }
        }
    };
}

id!(
    /// One agent at work, from its first process to its last. UUIDv7.
    RunId, "run", Uuid::now_v7
);
id!(
    /// One intercepted connection from open to close. UUIDv7.
    SessionId, "session", Uuid::now_v7
);
id!(
    /// A node agent, given by the collector at enrolment (standalone: by itself).
    NodeId, "node", Uuid::new_v4
);
id!(
    /// One life of a sealing key: drawn at agent start, then hourly. Never drawn twice.
    GenerationId, "generation", Uuid::new_v4
);
id!(
    /// One of the collector's HPKE keys.
    KeyId, "key", Uuid::new_v4
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_text_and_bytes() {
        let id = SessionId::generate();
        assert_eq!(id.to_string().parse::<SessionId>().unwrap(), id);
        assert_eq!(SessionId::try_from(&id.as_bytes()[..]), Ok(id));
        assert_eq!(SessionId::try_from(&[1u8; 3][..]), Err(BadId { kind: "session", len: 3 }));
    }

    #[test]
    fn later_sessions_sort_later() {
        let first = SessionId::generate();
        let second = SessionId::generate();
        assert!(first < second);
    }
}
