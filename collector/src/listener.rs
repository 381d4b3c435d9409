//! TCP and TLS: accepts, bounds how many connections there are and how long a handshake may take, and hands finished
//! ones over. A stranger who connects and says nothing costs one connection for a few seconds.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::{Connected, TlsConnectInfo};

use crate::metrics::Metrics;

/// Handshakes at a time, of anybody; each ends within [`HANDSHAKE_TIMEOUT`].
const HANDSHAKES_MAX: usize = 1024;
/// Connections at a time without a client certificate: people, those who enrol, strangers.
const STRANGERS_MAX: usize = 1024;
/// Connections at a time with a node's certificate: strangers cannot take their places.
const NODES_MAX: usize = 4096;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// After an accept that failed (most likely: out of file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Finished handshakes that wait to be served.
const READY_MAX: usize = 64;

/// A connection after its handshake; holds its place until it is closed.
pub struct Secured {
    tls: TlsStream<TcpStream>,
    _place: OwnedSemaphorePermit,
}

/// Accepts until the shutdown.
pub fn accept(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    shutdown: CancellationToken,
    metrics: Metrics,
) -> ReceiverStream<std::io::Result<Secured>> {
    let (ready, stream) = mpsc::channel(READY_MAX);
    tokio::spawn(async move {
        let acceptor = TlsAcceptor::from(tls);
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        let places = Places {
            strangers: Arc::new(Semaphore::new(STRANGERS_MAX)),
            nodes: Arc::new(Semaphore::new(NODES_MAX)),
        };
        // The next connection, or the end.
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = shutdown.cancelled() => return,
            };
            let tcp = match accepted {
                Ok((tcp, _)) => tcp,
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(turn) = handshakes.clone().try_acquire_owned() else {
                metrics.connections_refused.inc();
                continue;
            };
            tokio::spawn(handshake(
                acceptor.clone(),
                tcp,
                turn,
                places.clone(),
                ready.clone(),
                metrics.clone(),
            ));
        }
    });
    ReceiverStream::new(stream)
}

#[derive(Clone)]
struct Places {
    strangers: Arc<Semaphore>,
    nodes: Arc<Semaphore>,
}

async fn handshake(
    acceptor: TlsAcceptor,
    tcp: TcpStream,
    turn: OwnedSemaphorePermit,
    places: Places,
    ready: mpsc::Sender<std::io::Result<Secured>>,
    metrics: Metrics,
) {
    // Receipts are small and waited for.
    let _ = tcp.set_nodelay(true);
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(tcp)).await {
        Ok(Ok(tls)) => {
            let of_a_node = tls.get_ref().1.peer_certificates().is_some();
            let places = if of_a_node { places.nodes } else { places.strangers };
            let Ok(place) = places.try_acquire_owned() else {
                metrics.connections_refused.inc();
                return;
            };
            drop(turn);
            let _ = ready.send(Ok(Secured { tls, _place: place })).await;
        }
        Ok(Err(error)) => {
            metrics.connections_refused.inc();
            tracing::debug!(%error, "a TLS handshake failed");
        }
        Err(_) => {
            metrics.connections_refused.inc();
            tracing::debug!("a TLS handshake took too long");
        }
    }
}

impl Connected for Secured {
    type ConnectInfo = TlsConnectInfo<<TcpStream as Connected>::ConnectInfo>;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.tls.connect_info()
    }
}

mod io {
    //! Reads and writes go straight to the TLS stream.

    use std::io::{IoSlice, Result};
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

    use super::Secured;

    impl AsyncRead for Secured {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<Result<()>> {
            Pin::new(&mut self.tls).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for Secured {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize>> {
            Pin::new(&mut self.tls).poll_write(cx, buf)
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<Result<usize>> {
            Pin::new(&mut self.tls).poll_write_vectored(cx, bufs)
        }

        fn is_write_vectored(&self) -> bool {
            self.tls.is_write_vectored()
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
            Pin::new(&mut self.tls).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
            Pin::new(&mut self.tls).poll_shutdown(cx)
        }
    }
}
