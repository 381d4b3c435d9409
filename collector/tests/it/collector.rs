//! A collector in a folder of its own.

use std::path::Path;

use tempfile::TempDir;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use weir_collector::api::admin::Issuer;
use weir_collector::config::Config;
use weir_collector::serve::{self, Data, Running};
use weir_proto::credential::{Credential, SERVER_NAME};
use weir_proto::v1::admin_client::AdminClient;
use weir_proto::v1::query_client::QueryClient;

pub(crate) struct Collector {
    _folder: TempDir,
    pub(crate) config: Config,
    pub(crate) running: Option<Running>,
    pub(crate) admin: Credential,
}

impl Collector {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path());
        change(&mut config);
        let running = serve::start(&config).await.unwrap();
        let admin = running.first_credential.clone().unwrap();
        Self { _folder: folder, config, running: Some(running), admin }
    }

    /// Stops, changes what the closure changes on disk, starts again on another port.
    pub(crate) async fn restart(&mut self, while_down: impl AsyncFnOnce(&Path)) {
        self.running.take().unwrap().stop().await;
        while_down(&self.config.data).await;
        let running = serve::start(&self.config).await.unwrap();
        assert!(running.first_credential.is_none(), "only the first start makes a credential");
        self.admin.address = running.address.to_string();
        self.running = Some(running);
    }

    pub(crate) fn address(&self) -> String {
        self.running.as_ref().unwrap().address.to_string()
    }

    /// Tokens and credentials without the network, as `weir-collector token` makes them.
    pub(crate) async fn issuer(&self) -> Issuer {
        let Data { keys, store } = Data::open(&self.config.data).await.unwrap();
        Issuer { index: store.index, keys, address: self.address() }
    }

    pub(crate) async fn channel(&self, identity: Option<Identity>) -> Channel {
        channel(&self.address(), &self.admin.ca_der, identity).await
    }

    pub(crate) async fn query(&self) -> QueryClient<Channel> {
        QueryClient::new(self.channel(None).await)
    }

    pub(crate) async fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(self.channel(None).await)
    }

    /// A request of the first administrator.
    pub(crate) fn asked<T>(&self, message: T) -> tonic::Request<T> {
        asked_with(&self.admin.secret, message)
    }
}

pub(crate) fn config(data: &Path) -> Config {
    let mut config = Config::load(None).unwrap();
    config.listen = "127.0.0.1:0".parse().unwrap();
    config.admin_listen = None;
    config.data = data.join("data");
    config.free_space_warn = 0;
    config.free_space_floor = 0;
    config
}

pub(crate) fn asked_with<T>(secret: &str, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    let header: AsciiMetadataValue = format!("Bearer {secret}").parse().unwrap();
    request.metadata_mut().insert("authorization", header);
    request
}

pub(crate) async fn channel(address: &str, ca_der: &[u8], identity: Option<Identity>) -> Channel {
    endpoint(address, ca_der, identity).connect().await.unwrap()
}

pub(crate) fn endpoint(address: &str, ca_der: &[u8], identity: Option<Identity>) -> Endpoint {
    let mut tls = ClientTlsConfig::new()
        .domain_name(SERVER_NAME)
        .ca_certificate(Certificate::from_pem(pem("CERTIFICATE", ca_der)));
    if let Some(identity) = identity {
        tls = tls.identity(identity);
    }
    Endpoint::from_shared(format!("https://{address}")).unwrap().tls_config(tls).unwrap()
}

pub(crate) fn pem(kind: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN {kind}-----\n{body}\n-----END {kind}-----\n")
}
