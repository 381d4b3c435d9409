//! What a person carries from one place to another by copy and paste: a join token for a node agent, a credential for a
//! person or a tool. Both hold where the collector is, the CA certificate to trust it by, and a secret.
//!
//! Text form: a prefix that says what it is (and that secret scanners can look for), then base64url without padding of
//!
//! ```text
//! version u8 = 1 | address: len u16 be, bytes | ca certificate (DER): len u16 be, bytes | secret: len u16 be, bytes
//! ```
//!
//! The whole CA certificate travels instead of its fingerprint: the ordinary verifier can use it, and none has to be
//! written for trust on a fingerprint. No type here is `Debug`: a secret must not reach a log by habit.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// The name that every collector certificate carries: clients check it instead of the address they dial.
pub const SERVER_NAME: &str = "weir-collector";

const JOIN_PREFIX: &str = "weirjoin1-";
const ADMIN_PREFIX: &str = "weiradmin1-";
const VIEWER_PREFIX: &str = "weircred1-";
const BODY_VERSION: u8 = 1;
/// Longest text taken; a real one has about 800 characters.
const TEXT_BYTES_MAX: usize = 16 * 1024;

/// A pasted token or credential cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadCredential {
    #[error("this is not {expected}: it should begin with {prefix}")]
    Prefix { expected: &'static str, prefix: &'static str },
    #[error("damaged: copy it again as a whole, it is one line without spaces")]
    Damaged,
    #[error("made by another version of the collector (body version {0}, this program reads {BODY_VERSION})")]
    Version(u8),
}

/// Lets one node agent (or as many as it has uses) enrol.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// `host:port` of the collector.
    pub address: String,
    /// The CA that signs the collector's certificate, DER.
    pub ca_der: Vec<u8>,
    /// Sent as `EnrollRequest.token`; the collector keeps its hash only.
    pub secret: String,
}

/// Lets a person or a tool ask the collector.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    /// Only a hint for the reader, by the prefix: the collector decides by what it has stored.
    pub admin: bool,
    /// `host:port` of the collector.
    pub address: String,
    /// The CA that signs the collector's certificate, DER.
    pub ca_der: Vec<u8>,
    /// Sent as `authorization: Bearer <secret>`; the collector keeps its hash only.
    pub secret: String,
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{JOIN_PREFIX}{}", body(&self.address, &self.ca_der, &self.secret)?)
    }
}

impl FromStr for JoinToken {
    type Err = BadCredential;
    fn from_str(text: &str) -> Result<Self, BadCredential> {
        let body = text
            .trim()
            .strip_prefix(JOIN_PREFIX)
            .ok_or(BadCredential::Prefix { expected: "a join token", prefix: JOIN_PREFIX })?;
        let (address, ca_der, secret) = parse(body)?;
        Ok(Self { address, ca_der, secret })
    }
}

impl fmt::Display for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = if self.admin { ADMIN_PREFIX } else { VIEWER_PREFIX };
        write!(f, "{prefix}{}", body(&self.address, &self.ca_der, &self.secret)?)
    }
}

impl FromStr for Credential {
    type Err = BadCredential;
    fn from_str(text: &str) -> Result<Self, BadCredential> {
        let text = text.trim();
        let (admin, body) = if let Some(body) = text.strip_prefix(ADMIN_PREFIX) {
            (true, body)
        } else if let Some(body) = text.strip_prefix(VIEWER_PREFIX) {
            (false, body)
        } else {
            return Err(BadCredential::Prefix {
                expected: "a credential",
                prefix: "weiradmin1- or weircred1-",
            });
        };
        let (address, ca_der, secret) = parse(body)?;
        Ok(Self { admin, address, ca_der, secret })
    }
}

fn body(address: &str, ca_der: &[u8], secret: &str) -> Result<String, fmt::Error> {
    let mut bytes = vec![BODY_VERSION];
    for field in [address.as_bytes(), ca_der, secret.as_bytes()] {
        let len = u16::try_from(field.len()).map_err(|_| fmt::Error)?;
        bytes.extend_from_slice(&len.to_be_bytes());
        bytes.extend_from_slice(field);
    }
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

fn parse(body: &str) -> Result<(String, Vec<u8>, String), BadCredential> {
    if body.len() > TEXT_BYTES_MAX {
        return Err(BadCredential::Damaged);
    }
    let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| BadCredential::Damaged)?;
    let (&version, mut rest) = bytes.split_first().ok_or(BadCredential::Damaged)?;
    if version != BODY_VERSION {
        return Err(BadCredential::Version(version));
    }
    let mut field = || -> Result<Vec<u8>, BadCredential> {
        let (len, after) = rest.split_first_chunk::<2>().ok_or(BadCredential::Damaged)?;
        let (field, after) =
            after.split_at_checked(usize::from(u16::from_be_bytes(*len))).ok_or(BadCredential::Damaged)?;
        rest = after;
        Ok(field.to_vec())
    };
    let address = field()?;
    let ca_der = field()?;
    let secret = field()?;
    // A paste that lost its end is short of a field; one with something glued on has bytes left.
    if !rest.is_empty() || address.is_empty() || ca_der.is_empty() || secret.is_empty() {
        return Err(BadCredential::Damaged);
    }
    let text = |bytes| String::from_utf8(bytes).map_err(|_| BadCredential::Damaged);
    Ok((text(address)?, ca_der, text(secret)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        JoinToken { address: "collector:7843".into(), ca_der: vec![0x30; 400], secret: "s3cret".into() }
    }

    #[test]
    fn survives_text() {
        assert!(token().to_string().parse::<JoinToken>() == Ok(token()));
        for admin in [true, false] {
            let JoinToken { address, ca_der, secret } = token();
            let credential = Credential { admin, address, ca_der, secret };
            assert!(format!(" {credential}\n").parse::<Credential>() == Ok(credential));
        }
    }

    #[test]
    fn every_cut_is_refused() {
        let text = token().to_string();
        for end in 0..text.len() {
            assert!(text[..end].parse::<JoinToken>().is_err(), "cut at {end} was taken");
        }
        assert!(format!("{text}AAAA").parse::<JoinToken>().is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in ".{0,200}", body in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let body = URL_SAFE_NO_PAD.encode(body);
            for text in [text, format!("{JOIN_PREFIX}{body}"), format!("{JOIN_PREFIX}AQ{body}")] {
                if let Ok(token) = text.parse::<JoinToken>() {
                    assert_eq!(token.to_string(), text, "one token has one text");
                }
                assert!(text.parse::<Credential>().is_err());
            }
        }
    }

    #[test]
    fn one_is_not_the_other() {
        assert!(token().to_string().parse::<Credential>().is_err());
    }

    #[test]
    fn another_version_says_so() {
        let text = format!("{JOIN_PREFIX}{}", URL_SAFE_NO_PAD.encode([9u8, 0, 0]));
        assert!(text.parse::<JoinToken>() == Err(BadCredential::Version(9)));
    }
}
