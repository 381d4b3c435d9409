//! Mutual TLS to the collector: its certificate must come from the CA in the join token and carry the one name that all
//! collectors carry; ours is the one from enrolment.

use std::time::Duration;

use base64::Engine as _;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use weir_proto::credential::SERVER_NAME;
use weir_proto::v1::ingest_client::IngestClient;
use zeroize::Zeroizing;

use super::certificate::ClientCertificate;
use super::identity::Enrolled;

pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A dead connection is noticed after these two.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Nothing that a collector says is longer; a key set of 35 days has some 3 KiB.
const ANSWER_BYTES_MAX: usize = 256 * 1024;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ShippingError {
    #[error("{0} is not an address (host:port) of a collector")]
    Address(String),
    #[error(
        "connecting to the collector at {address} failed; is it running there, and is this its certificate?"
    )]
    Connect { address: String, source: tonic::transport::Error },
    #[error("the collector at {address} did not answer within {CONNECT_TIMEOUT:?}")]
    Timeout { address: String },
    #[error("the collector ended the stream")]
    Call(#[source] Box<tonic::Status>),
    /// A person has to do something, here or there.
    #[error("the collector refuses this node agent: {0}")]
    Refused(String),
    #[error(
        "this node's certificate ended on {not_after}: make a join token (`weir join-token`) and run `weir-agent join --again` with it; \
         the node keeps its identity, and its spool keeps everything"
    )]
    Expired { not_after: String, source: Box<ShippingError> },
    #[error("the collector made no sense: {0}")]
    Nonsense(&'static str),
    #[error(
        "the collector reads segment formats {min} to {max}, this node agent writes {ours}; upgrade the older one"
    )]
    Format { min: u32, max: u32, ours: u32 },
    #[error("the collector closed the stream")]
    Closed,
    #[error("the collector took segments but gave no receipt for {0:?}")]
    Silent(Duration),
    #[error("the node log's entries from {0} on cannot be read back from this disk")]
    NodeLogGone(u64),
    #[error(transparent)]
    KeyRing(#[from] crate::recording::KeyRingError),
    #[error(transparent)]
    Identity(#[from] super::identity::IdentityError),
    #[error(transparent)]
    NodeLog(#[from] crate::recording::NodeLogError),
}

impl From<tonic::Status> for ShippingError {
    fn from(status: tonic::Status) -> Self {
        use tonic::Code::{FailedPrecondition, PermissionDenied, Unauthenticated};
        match status.code() {
            PermissionDenied | FailedPrecondition | Unauthenticated => {
                Self::Refused(shown(status.message()).to_owned())
            }
            _ => Self::Call(Box::new(status)),
        }
    }
}

/// A peer's text for the log: bounded.
pub(super) fn shown(detail: &str) -> &str {
    const SHOWN_BYTES_MAX: usize = 400;
    &detail[..detail.floor_char_boundary(SHOWN_BYTES_MAX)]
}

/// Connects as an enrolled node that shows this certificate.
pub(super) async fn connect(
    enrolled: &Enrolled,
    shown: &ClientCertificate,
) -> Result<IngestClient<Channel>, ShippingError> {
    let certificate = pem("CERTIFICATE", &shown.certificate_der);
    let key = pem("PRIVATE KEY", &shown.key_der);
    let identity = tonic::transport::Identity::from_pem(certificate.as_bytes(), key.as_bytes());
    dial(&enrolled.address, tls(&enrolled.ca_der).identity(identity)).await
}

/// Connects as a stranger, who may enrol and nothing else.
pub(super) async fn connect_to_enroll(
    address: &str,
    ca_der: &[u8],
) -> Result<IngestClient<Channel>, ShippingError> {
    dial(address, tls(ca_der)).await
}

fn tls(ca_der: &[u8]) -> ClientTlsConfig {
    let ca = pem("CERTIFICATE", ca_der);
    ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca.as_bytes())).domain_name(SERVER_NAME)
}

async fn dial(address: &str, tls: ClientTlsConfig) -> Result<IngestClient<Channel>, ShippingError> {
    let failed = |source| ShippingError::Connect { address: address.to_owned(), source };
    let endpoint = Endpoint::from_shared(format!("https://{address}"))
        .map_err(|_| ShippingError::Address(address.to_owned()))?
        .tls_config(tls)
        .map_err(failed)?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .tcp_nodelay(true);
    let channel = tokio::time::timeout(CONNECT_TIMEOUT, endpoint.connect())
        .await
        .map_err(|_| ShippingError::Timeout { address: address.to_owned() })?
        .map_err(failed)?;
    Ok(IngestClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX))
}

/// tonic takes certificates and keys as PEM only.
fn pem(label: &str, der: &[u8]) -> Zeroizing<String> {
    const LINE: usize = 64;
    let body = Zeroizing::new(base64::engine::general_purpose::STANDARD.encode(der));
    let mut out =
        Zeroizing::new(String::with_capacity(body.len() + body.len() / LINE + 2 * label.len() + 40));
    out.push_str(&format!("-----BEGIN {label}-----\n"));
    // Base64 is ASCII: every index is a character's edge.
    for start in (0..body.len()).step_by(LINE) {
        out.push_str(&body[start..body.len().min(start + LINE)]);
        out.push('\n');
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}
