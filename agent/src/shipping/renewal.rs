//! A new certificate before the old one ends: a new key, asked for over the connection that the old one opened.

use std::time::Duration;

use bytes::Bytes;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use tonic::transport::Channel;
use weir_proto::seal::renew_proof;
use weir_proto::v1;
use weir_proto::v1::ingest_client::IngestClient;
use zeroize::Zeroizing;

use super::certificate::{ClientCertificate, store_next};
use super::connection::{CONNECT_TIMEOUT, ShippingError};
use super::identity::IdentityError;
use super::start::jitter;
use super::stream::Shipper;
use crate::recording::clock;

/// The wall clock is looked at this often: it may be set, and the machine may have slept.
const LOOK_TIME: Duration = Duration::from_secs(60);
/// Between attempts; doubles up to the maximum. A third of the certificate's life is there to try in.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(3600);

#[derive(Debug, thiserror::Error)]
pub(super) enum RenewalError {
    #[error("making a certificate request failed")]
    Request(#[from] rcgen::Error),
    #[error("the collector gave no new certificate")]
    Refused(#[source] Box<tonic::Status>),
    #[error("the collector did not answer within {CONNECT_TIMEOUT:?}")]
    Timeout,
    #[error("the collector's answer holds no certificate")]
    Nonsense,
    #[error("keeping the new certificate failed")]
    Identity(#[from] IdentityError),
}

impl Shipper {
    /// Returns when a new certificate is on the disk: to be shown by the next connection.
    pub(super) async fn renewed(&self, mut client: IngestClient<Channel>, current: &ClientCertificate) {
        let mut pause = RETRY_MIN;
        loop {
            wait_until(current.renew_unix).await;
            match self.renew(&mut client).await {
                Ok(next) => {
                    tracing::info!(not_after_unix = next.not_after_unix, "the certificate was renewed");
                    self.progress.renewal(None);
                    return;
                }
                Err(error) => {
                    let told = super::start::with_causes(&error);
                    tracing::warn!(
                        error = told,
                        not_after_unix = current.not_after_unix,
                        retry_s = pause.as_secs(),
                        "the certificate was not renewed; the one at hand goes on until it ends"
                    );
                    self.progress.renewal(Some(told));
                }
            }
            tokio::time::sleep(pause + jitter(pause / 2)).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    async fn renew(&self, client: &mut IngestClient<Channel>) -> Result<ClientCertificate, RenewalError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let csr = CertificateParams::default().serialize_request(&key)?;
        let request = v1::RenewRequest {
            csr_der: Bytes::copy_from_slice(csr.der()),
            proof: Bytes::copy_from_slice(&renew_proof(
                &self.identity.signing,
                &self.identity.node,
                csr.der(),
            )),
        };
        let answer = tokio::time::timeout(CONNECT_TIMEOUT, client.renew(request))
            .await
            .map_err(|_| RenewalError::Timeout)?
            .map_err(|status| RenewalError::Refused(Box::new(status)))?
            .into_inner();
        if answer.certificate_der.is_empty() {
            return Err(RenewalError::Nonsense);
        }
        let next = ClientCertificate::new(
            answer.certificate_der.to_vec(),
            Zeroizing::new(key.serialize_der()),
            answer.not_after_unix,
            answer.life_seconds,
            clock::unix_seconds(),
        );
        store_next(&self.enrolled.state, &next)?;
        Ok(next)
    }
}

async fn wait_until(unix: i64) {
    loop {
        let left = unix.saturating_sub(clock::unix_seconds());
        if left <= 0 {
            return;
        }
        tokio::time::sleep(Duration::from_secs(left.unsigned_abs()).min(LOOK_TIME)).await;
    }
}

/// A connection attempt that failed, seen in the light of the certificate that was shown.
pub(super) fn explained(error: ShippingError, shown: &ClientCertificate) -> ShippingError {
    let ended = shown.is_over(clock::unix_seconds()) || says_expired(&error);
    match error {
        ShippingError::Connect { .. } | ShippingError::Call(_) if ended => {
            ShippingError::Expired { not_after: rfc3339(shown.not_after_unix), source: Box::new(error) }
        }
        error => error,
    }
}

/// The collector's TLS said so, by its own clock. HTTP/2 hands the cause of a connection's end on as text only.
fn says_expired(error: &dyn std::error::Error) -> bool {
    let said = rustls::Error::AlertReceived(rustls::AlertDescription::CertificateExpired).to_string();
    super::start::with_causes(error).contains(&said)
}

/// UTC, as people and tools read it.
fn rfc3339(unix: i64) -> String {
    let time = time::OffsetDateTime::from_unix_timestamp(unix).ok();
    time.and_then(|time| time.format(&time::format_description::well_known::Rfc3339).ok())
        .unwrap_or_else(|| unix.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expired_certificate_is_told_from_a_collector_that_is_away() {
        let alert = rustls::Error::AlertReceived(rustls::AlertDescription::CertificateExpired);
        let said =
            ShippingError::Call(Box::new(tonic::Status::from_error(Box::new(std::io::Error::other(alert)))));
        let shown = |not_after| {
            ClientCertificate::new(vec![], Zeroizing::new(vec![]), not_after, 60, clock::unix_seconds())
        };
        let fresh = clock::unix_seconds() + 60;
        let told = explained(said, &shown(fresh)).to_string();
        assert!(told.contains("weir-agent join --again"), "{told}");
        let away = ShippingError::Call(Box::new(tonic::Status::unavailable("away")));
        assert!(matches!(explained(away, &shown(fresh)), ShippingError::Call(_)));
        let away = ShippingError::Call(Box::new(tonic::Status::unavailable("away")));
        assert!(matches!(explained(away, &shown(1)), ShippingError::Expired { .. }));
    }
}
