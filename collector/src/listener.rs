//! TCP and TLS: accepts, bounds how many connections there are, from where, and how long a handshake may take, and hands
//! finished ones over. A stranger who connects and says nothing costs one connection for some seconds; whoever has not
//! shown a credential, a join token or a node's certificate by then is closed, whatever else it said.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use crate::metrics::Metrics;

/// Handshakes at a time, of anybody; each ends within [`HANDSHAKE_TIMEOUT`].
const HANDSHAKES_MAX: usize = 1024;
/// Of these from one source: a whole fleet may stand behind one address.
const HANDSHAKES_PER_SOURCE_MAX: u32 = 512;
/// Connections at a time without a client certificate: people, those who enrol, strangers.
const STRANGERS_MAX: usize = 1024;
/// Of these from one source: one host cannot keep everybody else out.
const STRANGERS_PER_SOURCE_MAX: u32 = 128;
/// Connections at a time with a node's certificate: strangers cannot take their places.
const NODES_MAX: usize = 4096;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// After a handshake that failed, for the peer to read the alert; and how much of what it goes on to send is read.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);
const FAREWELL_READS_MAX: u32 = 16;
/// How long a connection may stay of which no call was let in: of somebody without a credential, of a revoked node.
const UNKNOWN_TIME: Duration = Duration::from_secs(30);
/// After an accept that failed (most likely: out of file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Finished handshakes that wait to be served.
const READY_MAX: usize = 64;

/// What a test makes shorter.
#[derive(Clone, Copy)]
pub struct Patience {
    pub unknown: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { unknown: UNKNOWN_TIME }
    }
}

/// A connection after its handshake; holds its places until it is closed.
pub struct Secured {
    tls: TlsStream<TcpStream>,
    peer: Peer,
    /// When it is closed, unless its peer is known by then.
    unknown_until: Option<Pin<Box<Sleep>>>,
    _place: Place,
}

/// Who is at the other end, as far as the connection says; each call finds it in its extensions.
#[derive(Clone)]
pub struct Peer {
    certificates: Option<Arc<Vec<CertificateDer<'static>>>>,
    known: Arc<AtomicBool>,
}

impl Peer {
    /// That our CA signed it, TLS has checked.
    pub fn certificate(&self) -> Option<&CertificateDer<'static>> {
        self.certificates.as_ref()?.first()
    }

    /// A call of this connection was let in: it may stay.
    pub fn is_known(&self) {
        self.known.store(true, Ordering::Release);
    }
}

/// The limits that all connections share.
#[derive(Clone)]
struct Places {
    strangers: Arc<Semaphore>,
    nodes: Arc<Semaphore>,
    strangers_of: Sources,
    handshakes_of: Sources,
}

struct Place {
    _of_all: OwnedSemaphorePermit,
    _of_source: Option<SourcePlace>,
}

/// Places taken by source; at most as many entries as there are places.
#[derive(Clone, Default)]
struct Sources(Arc<Mutex<HashMap<IpAddr, u32>>>);

struct SourcePlace {
    sources: Sources,
    source: IpAddr,
}

impl Sources {
    fn take(&self, source: IpAddr, max: u32) -> Option<SourcePlace> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_source = taken.entry(source).or_default();
        if *of_source >= max {
            return None;
        }
        *of_source += 1;
        Some(SourcePlace { sources: self.clone(), source })
    }
}

impl Drop for SourcePlace {
    fn drop(&mut self) {
        let mut taken = self.sources.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_source) = taken.get_mut(&self.source) {
            *of_source -= 1;
            if *of_source == 0 {
                taken.remove(&self.source);
            }
        }
    }
}

/// What counts as one source: an IPv6 host has a /64 of addresses to come from.
fn source_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
    }
}

/// Accepts until the shutdown.
pub fn accept(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    shutdown: CancellationToken,
    metrics: Metrics,
    patience: Patience,
) -> ReceiverStream<std::io::Result<Secured>> {
    let (ready, stream) = mpsc::channel(READY_MAX);
    tokio::spawn(async move {
        let acceptor = TlsAcceptor::from(tls);
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        let places = Places {
            strangers: Arc::new(Semaphore::new(STRANGERS_MAX)),
            nodes: Arc::new(Semaphore::new(NODES_MAX)),
            strangers_of: Sources::default(),
            handshakes_of: Sources::default(),
        };
        // The next connection, or the end.
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = shutdown.cancelled() => return,
            };
            let (tcp, source) = match accepted {
                Ok((tcp, from)) => (tcp, source_of(from.ip())),
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let of_source = places.handshakes_of.take(source, HANDSHAKES_PER_SOURCE_MAX);
            let (Ok(of_all), Some(of_source)) = (handshakes.clone().try_acquire_owned(), of_source) else {
                metrics.connections_refused.inc();
                continue;
            };
            let turn = Place { _of_all: of_all, _of_source: Some(of_source) };
            let (acceptor, places) = (acceptor.clone(), places.clone());
            let (ready, metrics) = (ready.clone(), metrics.clone());
            tokio::spawn(async move {
                if let Some(secured) = handshake(acceptor, tcp, source, &places, patience).await {
                    drop(turn);
                    let _ = ready.send(Ok(secured)).await;
                } else {
                    metrics.connections_refused.inc();
                }
            });
        }
    });
    ReceiverStream::new(stream)
}

/// `None`: it failed, took too long, or there is no place for one more of its kind.
async fn handshake(
    acceptor: TlsAcceptor,
    tcp: TcpStream,
    source: IpAddr,
    places: &Places,
    patience: Patience,
) -> Option<Secured> {
    // Receipts are small and waited for.
    let _ = tcp.set_nodelay(true);
    let accepting = acceptor.accept(tcp).into_fallible();
    let tls = match tokio::time::timeout(HANDSHAKE_TIMEOUT, accepting).await {
        Ok(Ok(tls)) => tls,
        Ok(Err((error, tcp))) => {
            tracing::debug!(%error, "a TLS handshake failed");
            let _ = tokio::time::timeout(FAREWELL_TIMEOUT, farewell(tcp)).await;
            return None;
        }
        Err(_) => {
            tracing::debug!("a TLS handshake took too long");
            return None;
        }
    };
    let certificates =
        tls.get_ref().1.peer_certificates().map(|certificates| Arc::new(certificates.to_vec()));
    let place = match &certificates {
        Some(_) => Place { _of_all: places.nodes.clone().try_acquire_owned().ok()?, _of_source: None },
        None => Place {
            _of_source: Some(places.strangers_of.take(source, STRANGERS_PER_SOURCE_MAX)?),
            _of_all: places.strangers.clone().try_acquire_owned().ok()?,
        },
    };
    Some(Secured {
        tls,
        peer: Peer { certificates, known: Arc::default() },
        unknown_until: Some(Box::pin(tokio::time::sleep(patience.unknown))),
        _place: place,
    })
}

/// The peer is to read why (that its certificate has ended, most of all). Closing over what it has sent meanwhile would
/// reset the connection, and the alert would be lost with it.
async fn farewell(mut tcp: TcpStream) -> std::io::Result<()> {
    tcp.shutdown().await?;
    let mut rest = [0; 4096];
    for _ in 0..FAREWELL_READS_MAX {
        if tcp.read(&mut rest).await? == 0 {
            break;
        }
    }
    Ok(())
}

impl Connected for Secured {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

mod io {
    //! Reads and writes go straight to the TLS stream, until the time of an unknown peer is over.

    use std::io::{IoSlice, Result};
    use std::pin::Pin;
    use std::sync::atomic::Ordering;
    use std::task::{Context, Poll, ready};

    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

    use super::Secured;

    impl AsyncRead for Secured {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<Result<()>> {
            if let Poll::Ready(over) = self.poll_over(cx) {
                return Poll::Ready(over);
            }
            Pin::new(&mut self.tls).poll_read(cx, buf)
        }
    }

    impl Secured {
        /// Ready when the peer has stayed unknown for too long. The connection is always waiting to read, so this is found
        /// at the time.
        fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
            if self.peer.known.load(Ordering::Acquire) {
                self.unknown_until = None;
            }
            let Some(until) = &mut self.unknown_until else { return Poll::Pending };
            ready!(until.as_mut().poll(cx));
            if self.peer.known.load(Ordering::Acquire) {
                return Poll::Pending;
            }
            tracing::debug!("a connection of which no call was let in is closed");
            Poll::Ready(Err(std::io::ErrorKind::TimedOut.into()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_gets_its_places_back() {
        let sources = Sources::default();
        let one: IpAddr = "10.0.0.1".parse().unwrap();
        let held: Vec<_> = (0..3).map(|_| sources.take(one, 3).unwrap()).collect();
        assert!(sources.take(one, 3).is_none());
        assert!(sources.take("10.0.0.2".parse().unwrap(), 3).is_some(), "others are not kept out");
        drop(held);
        assert!(sources.take(one, 3).is_some());
        assert!(sources.0.lock().unwrap().is_empty(), "nothing is kept of those that left");
    }

    #[test]
    fn one_host_is_one_source() {
        let of = |text: &str| source_of(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
    }

    /// Reads until the other side closes; gives how long that took.
    async fn closed_after(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Duration {
        let begun = std::time::Instant::now();
        let mut bytes = [0; 64];
        while stream.read(&mut bytes).await.is_ok_and(|read| read > 0) {}
        begun.elapsed()
    }

    #[tokio::test]
    async fn an_unknown_peer_is_closed_however_much_it_says_and_a_known_one_stays() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let keys = crate::keys::Keys::open(&folder.path().join("keys")).unwrap();
        let certificate = crate::keys::ServerCertificate::new(&keys.authority, Vec::new()).unwrap();
        let tls = Arc::new(keys.authority.server_config(certificate).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let patience = Patience { unknown: Duration::from_millis(300) };
        let mut accepted = accept(listener, tls, CancellationToken::new(), Metrics::default(), patience);

        let mut roots = rustls::RootCertStore::empty();
        roots.add(keys.authority.certificate_der().to_vec().into()).unwrap();
        let client = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
        for known in [false, true] {
            let tcp = TcpStream::connect(address).await.unwrap();
            let name = weir_proto::credential::SERVER_NAME.try_into().unwrap();
            let connecting = tokio::spawn(connector.clone().connect(name, tcp));
            let mut served = tokio_stream::StreamExt::next(&mut accepted).await.unwrap().unwrap();
            let mut client = connecting.await.unwrap().unwrap();
            if known {
                served.connect_info().is_known();
            }
            let talking = tokio::spawn(async move {
                for _ in 0..20 {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    if client.write_all(b"a frame that keeps a connection alive").await.is_err() {
                        return;
                    }
                }
            });
            let lasted = closed_after(&mut served).await;
            drop(served);
            talking.await.unwrap();
            assert_eq!(lasted > Duration::from_millis(800), known, "{lasted:?}");
        }
    }
}
