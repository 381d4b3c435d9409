//! The operator's listener: `/healthz` (the process answers), `/readyz` (the index answers and there is space),
//! `/metrics` (Prometheus). Plain HTTP and no recordings: bind it to loopback or to the monitoring network.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::disk::Disk;
use crate::store::Index;

const CONNECTIONS_MAX: usize = 32;
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// However slowly an answer is read, the connection ends.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

pub struct Operations {
    pub registry: Arc<Registry>,
    pub index: Index,
    pub disk: Disk,
}

impl Operations {
    /// Serves until the shutdown.
    pub fn start(self, listener: TcpListener, shutdown: CancellationToken) {
        let this = Arc::new(self);
        tokio::spawn(async move {
            let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
            // The next connection, or the end.
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    () = shutdown.cancelled() => return,
                };
                let Ok((tcp, _)) = accepted else {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                };
                let Ok(place) = places.clone().try_acquire_owned() else { continue };
                let this = this.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| answer(this.clone(), request));
                    let served = hyper::server::conn::http1::Builder::new()
                        .timer(TokioTimer::new())
                        .header_read_timeout(HEAD_TIMEOUT)
                        .keep_alive(false)
                        .serve_connection(TokioIo::new(tcp), service);
                    let _ = tokio::time::timeout(CONNECTION_TIMEOUT, served).await;
                    drop(place);
                });
            }
        });
    }

    async fn ready(&self) -> Result<(), &'static str> {
        if self.disk.is_full() {
            return Err("below the free-space floor: new segments are refused\n");
        }
        match tokio::time::timeout(PROBE_TIMEOUT, self.index.probe()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err("the index does not answer\n"),
        }
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}

async fn answer(
    this: Arc<Operations>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let reads = request.method() == Method::GET || request.method() == Method::HEAD;
    let (status, body) = match request.uri().path() {
        _ if !reads => (StatusCode::METHOD_NOT_ALLOWED, String::new()),
        "/healthz" => (StatusCode::OK, "ok\n".to_owned()),
        "/readyz" => match this.ready().await {
            Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
            Err(why) => (StatusCode::SERVICE_UNAVAILABLE, why.to_owned()),
        },
        "/metrics" => (StatusCode::OK, this.metrics()),
        _ => (StatusCode::NOT_FOUND, "try /healthz, /readyz or /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    if request.uri().path() == "/metrics" {
        let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        response.headers_mut().insert("content-type", hyper::header::HeaderValue::from_static(kind));
    }
    Ok(response)
}
