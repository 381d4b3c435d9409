//! Takes redirected connections at full rate and gives each its own task.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

use super::{connection, upstream};
use crate::node::Node;

/// Connections that wait to be accepted; the kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 4096;
/// Pause after an accept that failed for want of descriptors or memory: a busy loop would not free any.
const ACCEPT_RETRY: Duration = Duration::from_millis(20);

/// The listener pair of one network namespace, on loopback, ports chosen by the kernel.
pub(crate) struct Listeners {
    pub(crate) v4: TcpListener,
    /// `None` where the namespace has no IPv6.
    pub(crate) v6: Option<TcpListener>,
}

impl Listeners {
    /// Binds both. Call it from inside the agent's own cgroup: the accepted side is handed over by the cgroup that owns
    /// the listening socket.
    pub(crate) fn bind() -> io::Result<Self> {
        let v4 = listen((Ipv4Addr::LOCALHOST, 0).into())?;
        let v6 = match listen((Ipv6Addr::LOCALHOST, 0).into()) {
            Ok(listener) => Some(listener),
            Err(error) => {
                tracing::warn!(%error, "no IPv6 on loopback: IPv6 connections of governed processes will be refused");
                None
            }
        };
        Ok(Self { v4, v6 })
    }

    /// Accepts until the node drains.
    pub(crate) async fn serve(self, node: Arc<Node>) {
        let Self { v4, v6 } = self;
        match v6 {
            Some(v6) => {
                tokio::join!(accept(v4, node.clone()), accept(v6, node));
            }
            None => accept(v4, node).await,
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Accepted sockets inherit it: five system calls less for each.
    upstream::prepare((&socket).into());
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

async fn accept(listener: TcpListener, node: Arc<Node>) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = node.draining.cancelled() => return,
        };
        match accepted {
            Ok((client, _)) if node.connections.len() >= node.sessions_max => {
                node.metrics.over_limit.inc();
                connection::reset(client);
            }
            Ok((client, _)) => {
                node.metrics.accepted.inc();
                let node_of_connection = node.clone();
                node.connections.spawn(async move { connection::serve(client, &node_of_connection).await });
            }
            Err(error) => {
                node.metrics.accept_errors.inc();
                tracing::warn!(%error, "accept failed; governed connections wait");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn accepted_sockets_have_what_both_legs_want() {
        let listener = listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let _client = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let socket = socket2::SockRef::from(&accepted);
        assert!(accepted.nodelay().unwrap() && socket.keepalive().unwrap());
        assert!(socket.out_of_band_inline().unwrap());
        let fresh = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
        assert_ne!(socket.tcp_keepalive_time().unwrap(), fresh.tcp_keepalive_time().unwrap());
        assert_ne!(socket.tcp_keepalive_interval().unwrap(), fresh.tcp_keepalive_interval().unwrap());
    }
}
