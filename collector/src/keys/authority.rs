//! The collector's CA: it signs the collector's own certificate and those of the node agents, and nothing else.

use std::net::IpAddr;
use std::sync::{Arc, RwLock};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use time::{Duration, OffsetDateTime};
use weir_proto::NodeId;
use weir_proto::credential::SERVER_NAME;

use super::KeysError;

const CA_LIFE: Duration = Duration::days(20 * 365);
const SERVER_LIFE: Duration = Duration::days(397);
/// Clocks differ: certificates are valid a little before they were made.
const CLOCK_SLACK: Duration = Duration::hours(1);
/// How a node's certificate names its node.
const NODE_URI: &str = "weir:node:";

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl Authority {
    /// A new CA: certificate and key, PEM.
    pub(super) fn create() -> Result<(String, zeroize::Zeroizing<String>), KeysError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "Weir collector CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        validity(&mut params, CA_LIFE);
        let certificate = params.self_signed(&key)?;
        Ok((certificate.pem(), key.serialize_pem().into()))
    }

    pub(super) fn load(certificate_pem: &[u8], key_pem: &[u8]) -> Result<Self, KeysError> {
        let not_text = |_| rcgen::Error::CouldNotParseKeyPair;
        let certificate = CertificateDer::from_pem_slice(certificate_pem)
            .map_err(|_| rcgen::Error::CouldNotParseCertificate)?;
        let key = KeyPair::from_pem(std::str::from_utf8(key_pem).map_err(not_text)?)?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        Ok(Self { issuer, certificate })
    }

    /// What clients trust.
    pub fn certificate_der(&self) -> &[u8] {
        &self.certificate
    }

    /// Signs a node agent's request. Only its public key is taken over: the names in it are the requester's wish.
    pub fn node_certificate(
        &self,
        csr_der: &[u8],
        node: NodeId,
        life: std::time::Duration,
    ) -> Result<(Vec<u8>, OffsetDateTime), KeysError> {
        let mut request =
            CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr_der))?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, node.to_string());
        params.subject_alt_names = vec![SanType::URI(format!("{NODE_URI}{node}").try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        validity(&mut params, Duration::try_from(life).unwrap_or(CA_LIFE));
        let not_after = params.not_after;
        request.params = params;
        Ok((request.signed_by(&self.issuer)?.der().to_vec(), not_after))
    }

    fn server_certificate(&self, names: &[String]) -> Result<CertifiedKey, KeysError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, SERVER_NAME);
        for name in
            [SERVER_NAME, "localhost", "127.0.0.1", "::1"].into_iter().chain(names.iter().map(String::as_str))
        {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(ip) => SanType::IpAddress(ip),
                Err(_) => SanType::DnsName(name.try_into()?),
            });
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        validity(&mut params, SERVER_LIFE);
        let certificate = params.signed_by(&key, &self.issuer)?;
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)?;
        Ok(CertifiedKey::new(vec![certificate.der().clone()], key))
    }

    /// TLS 1.3, HTTP/2; a client certificate of ours is asked for, and what calls need it is decided above TLS.
    pub fn server_config(&self, certificate: Arc<ServerCertificate>) -> Result<ServerConfig, KeysError> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
            .allow_unauthenticated()
            .build()?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(certificate);
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

fn validity(params: &mut CertificateParams, life: Duration) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - CLOCK_SLACK;
    params.not_after = now + life;
}

/// The server's certificate. It lives in memory only (clients trust the CA), so every start makes a new one.
pub struct ServerCertificate {
    current: RwLock<Arc<CertifiedKey>>,
    made: RwLock<OffsetDateTime>,
    names: Vec<String>,
}

impl ServerCertificate {
    pub fn new(authority: &Authority, names: Vec<String>) -> Result<Arc<Self>, KeysError> {
        let first = authority.server_certificate(&names)?;
        Ok(Arc::new(Self {
            current: RwLock::new(Arc::new(first)),
            made: RwLock::new(OffsetDateTime::now_utc()),
            names,
        }))
    }

    /// To be called once a day: replaces the certificate after a third of its life.
    pub fn renew_if_old(&self, authority: &Authority) -> Result<(), KeysError> {
        let made = *self.made.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        if OffsetDateTime::now_utc() < made + SERVER_LIFE / 3 {
            return Ok(());
        }
        let next = authority.server_certificate(&self.names)?;
        *self.current.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = Arc::new(next);
        *self.made.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = OffsetDateTime::now_utc();
        Ok(())
    }
}

impl std::fmt::Debug for ServerCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerCertificate").field("names", &self.names).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone())
    }
}

/// The node that a client certificate names. That our CA signed it, TLS has checked.
pub fn node_of_certificate(der: &[u8]) -> Option<NodeId> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        x509_parser::extensions::GeneralName::URI(uri) => uri.strip_prefix(NODE_URI)?.parse().ok(),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const A_DAY: std::time::Duration = std::time::Duration::from_secs(24 * 3600);

    fn authority() -> Authority {
        let (certificate, key) = Authority::create().unwrap();
        Authority::load(certificate.as_bytes(), key.as_bytes()).unwrap()
    }

    #[test]
    fn a_node_gets_its_own_name_whatever_it_asked_for() {
        let key = KeyPair::generate().unwrap();
        let mut wish = CertificateParams::new(vec!["weir-collector".to_owned()]).unwrap();
        wish.distinguished_name.push(DnType::CommonName, "somebody else");
        let csr = wish.serialize_request(&key).unwrap();
        let node = NodeId::generate();
        let (der, _) = authority().node_certificate(csr.der(), node, A_DAY).unwrap();
        assert_eq!(node_of_certificate(&der), Some(node));
        let (_, certificate) = x509_parser::parse_x509_certificate(&der).unwrap();
        assert!(!certificate.subject().to_string().contains("somebody"));
        assert_eq!(certificate.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 1);
    }

    #[test]
    fn a_request_that_is_not_signed_by_its_key_is_refused() {
        let key = KeyPair::generate().unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap();
        let mut der = csr.der().to_vec();
        let last = der.len() - 1;
        der[last] ^= 1;
        assert!(authority().node_certificate(&der, NodeId::generate(), A_DAY).is_err());
        assert!(authority().node_certificate(b"nonsense", NodeId::generate(), A_DAY).is_err());
    }

    #[test]
    fn the_ca_certificate_itself_names_no_node() {
        assert_eq!(node_of_certificate(authority().certificate_der()), None);
        assert_eq!(node_of_certificate(b"nonsense"), None);
    }
}
