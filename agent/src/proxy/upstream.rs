//! Dials where the process wanted to go: from its network namespace, with the source address and device it had bound.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, TcpStream};

use crate::redirection::{Flow, netns_cookie};

/// Linux gives up on a SYN after about two minutes; so do we, so that a client waits no longer than it would directly.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(130);
/// Both legs notice a peer that vanished without a word.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(120);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);

/// There is no connection to where the process wanted to go.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("cannot make a socket")]
    Socket(#[source] io::Error),
    #[error("the process is in another network namespace than this agent dials from")]
    Netns,
    #[error("the process had bound its socket to interface {index}, which the agent's cannot be bound to")]
    Device { index: u32, source: io::Error },
    #[error("the process had bound its socket to {address}, which the agent's cannot be bound to")]
    Source { address: IpAddr, source: io::Error },
    #[error("connecting failed")]
    Connect(#[source] io::Error),
    #[error("no answer within {CONNECT_TIMEOUT:?}")]
    TimedOut,
    #[error("the client reset its connection")]
    ClientGone,
    #[error("the node agent is ending")]
    Drained,
}

impl DialError {
    /// The word recorded in `Closed.cause`.
    pub(crate) fn cause(&self) -> &'static str {
        match self {
            Self::Device { .. } => "device-unavailable",
            Self::Source { .. } => "source-unavailable",
            Self::Netns => "other-netns",
            Self::Socket(_) => "agent-error",
            Self::TimedOut => "upstream-timeout",
            Self::ClientGone => "client-reset",
            Self::Drained => "drained",
            Self::Connect(error) => match error.kind() {
                ErrorKind::ConnectionRefused => "upstream-refused",
                ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => "upstream-without-route",
                ErrorKind::TimedOut => "upstream-timeout",
                _ => "upstream-error",
            },
        }
    }

    /// The reason for which the session counts as refused.
    pub(crate) fn refused(&self) -> &'static str {
        if self.is_upstreams() { "upstream-unreachable" } else { self.cause() }
    }

    pub(crate) fn is_upstreams(&self) -> bool {
        matches!(self, Self::Connect(_) | Self::TimedOut)
    }
}

pub(crate) async fn dial(flow: &Flow) -> Result<TcpStream, DialError> {
    let made = match flow.origin {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    };
    let socket = made.map_err(DialError::Socket)?;
    // An address means another place in every network namespace, an interface index another interface.
    if netns_cookie(&socket).map_err(DialError::Socket)? != flow.netns_cookie {
        return Err(DialError::Netns);
    }
    bind(&socket, flow)?;
    match tokio::time::timeout(CONNECT_TIMEOUT, socket.connect(flow.origin)).await {
        Ok(Ok(stream)) => {
            prepare(SockRef::from(&stream));
            Ok(stream)
        }
        Ok(Err(error)) => Err(DialError::Connect(error)),
        Err(_) => Err(DialError::TimedOut),
    }
}

/// As the process had bound its own socket. What cannot be carried over is an error: the process had forbidden every other way.
fn bind(socket: &TcpSocket, flow: &Flow) -> Result<(), DialError> {
    if let Some(index) = flow.bound_device {
        let failed = |source| DialError::Device { index, source };
        let name = flow.device_name().ok_or_else(|| failed(io::Error::from_raw_os_error(libc::ENODEV)))?;
        socket.bind_device(Some(name.as_bytes())).map_err(failed)?;
    }
    let Some(bound) = flow.bound_source else { return Ok(()) };
    let address = bound.ip();
    let to = |port| match address {
        // A link-local address is one only together with its interface.
        IpAddr::V6(ip) => SocketAddrV6::new(ip, port, 0, flow.device().unwrap_or(0)).into(),
        IpAddr::V4(ip) => SocketAddr::from((ip, port)),
    };
    // The port is the client's own socket's. Two sockets may have it if both say so, as a client does that chose its port;
    // whether it did is seen by trying.
    if bound.port() != 0 && SockRef::from(socket).set_reuse_address(true).is_ok() {
        if socket.bind(to(bound.port())).is_ok() {
            return Ok(());
        }
        // Left on, it would let others bind to our port.
        SockRef::from(socket).set_reuse_address(false).map_err(DialError::Socket)?;
    }
    if address.is_unspecified() {
        return Ok(());
    }
    // Else a port would be taken for every destination at once, and there are only so many.
    if let Err(errno) = setsockopt(socket, sockopt::IpBindAddressNoPort, &true) {
        tracing::debug!(%errno, "a port is chosen before the destination is known");
    }
    socket.bind(to(0)).map_err(|source| DialError::Source { address, source })
}

/// What both legs want; accepted sockets have it from their listener. A socket option that fails costs latency, not
/// correctness.
pub(crate) fn prepare(socket: SockRef<'_>) {
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL);
    // Urgent bytes stay in their place in the stream; out of band they would be neither forwarded nor recorded.
    let result = socket
        .set_tcp_nodelay(true)
        .and_then(|()| socket.set_tcp_keepalive(&keepalive))
        .and_then(|()| socket.set_out_of_band_inline(true));
    if let Err(error) = result {
        tracing::debug!(%error, "socket options");
    }
}

#[cfg(test)]
#[cfg(feature = "kernel-tests")]
mod tests;
