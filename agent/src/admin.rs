//! The admin listener: health, readiness and metrics over HTTP, for monitoring.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

use crate::node::Node;

/// Scrapers being served at once.
const PEERS_MAX: usize = 64;
/// A peer that does not finish its request head in this time is dropped.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address).await?;
    tracing::info!(address = %listener.local_addr()?, "admin listener");
    Ok(listener)
}

/// Answers until the node drains.
pub(crate) fn serve(listener: TcpListener, node: Arc<Node>) {
    let served = node.clone();
    let peers = Arc::new(tokio::sync::Semaphore::new(PEERS_MAX));
    node.connections.spawn(async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = served.draining.cancelled() => return,
            };
            let permit = tokio::select! {
                permit = peers.clone().acquire_owned() => permit,
                () = served.draining.cancelled() => return,
            };
            let Ok(permit) = permit else { return };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let node = served.clone();
            tokio::spawn(async move {
                let _permit = permit;
                let service = service_fn(|request| answer(request, &node));
                let served = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADER_TIMEOUT)
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
                if let Err(error) = served {
                    tracing::debug!(%error, "a peer of the admin listener");
                }
            });
        }
    });
}

async fn answer(request: Request<Incoming>, node: &Node) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, body) = match request.uri().path() {
        "/healthz" => (StatusCode::OK, "ok\n".to_owned()),
        "/readyz" if node.is_ready() => (StatusCode::OK, "ready\n".to_owned()),
        "/readyz" => (StatusCode::SERVICE_UNAVAILABLE, "not ready: see `weir-agent status`\n".to_owned()),
        "/metrics" => match node.metrics_text() {
            Ok(text) => (StatusCode::OK, text),
            Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, "metrics could not be written\n".to_owned()),
        },
        _ => (StatusCode::NOT_FOUND, "try /healthz, /readyz or /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    Ok(response)
}
