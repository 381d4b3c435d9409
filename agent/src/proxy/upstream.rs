//! Dials where the process wanted to go: with the source address and device it had bound.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, TcpStream};

use crate::redirection::Flow;

/// Linux gives up on a SYN after about two minutes; so do we, so that a client waits no longer than it would directly.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(130);
/// Both legs notice a peer that vanished without a word.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(120);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);

pub(crate) async fn dial(flow: &Flow) -> io::Result<TcpStream> {
    let socket = match flow.origin {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if flow.bound_device.is_some() {
        // A device that is gone: the process had forbidden every other way.
        let device = flow.bound_device_name().ok_or(io::Error::from_raw_os_error(libc::ENODEV))?;
        socket.bind_device(Some(device.as_bytes()))?;
    }
    if let Some(source) = flow.bound_source
        && !source.ip().is_unspecified()
    {
        // The port is taken by the client's own socket: the kernel chooses another.
        socket.bind(SocketAddr::new(source.ip(), 0))?;
    }
    match tokio::time::timeout(CONNECT_TIMEOUT, socket.connect(flow.origin)).await {
        Ok(Ok(stream)) => {
            prepare(&stream);
            Ok(stream)
        }
        Ok(Err(error)) => Err(error),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// What both legs want. A socket option that fails costs latency, not correctness.
pub(crate) fn prepare(stream: &TcpStream) {
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL);
    let socket = SockRef::from(stream);
    // Urgent bytes stay in their place in the stream; out of band they would be neither forwarded nor recorded.
    let result = stream
        .set_nodelay(true)
        .and_then(|()| socket.set_tcp_keepalive(&keepalive))
        .and_then(|()| socket.set_out_of_band_inline(true));
    if let Err(error) = result {
        tracing::debug!(%error, "socket options");
    }
}
