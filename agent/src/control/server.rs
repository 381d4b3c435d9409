//! The daemon's side of the local socket.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use weir_protocols::mask::MaskPlan;
use zeroize::Zeroizing;

use super::{Answer, ExecRequest, MESSAGE_BYTES_MAX, Request};
use crate::node::Node;
use crate::selection::NewRun;

/// How long a connected peer may take to ask.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Peers being answered at once.
const PEERS_MAX: usize = 256;

/// Binds the socket, replacing one that a dead node agent left.
pub(crate) fn bind(path: &Path, mode: u32) -> io::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            format!("another node agent answers on {}; stop it first", path.display()),
        ));
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok(listener)
}

/// Answers until the node drains.
pub(crate) async fn serve(path: &Path, mode: u32, node: Arc<Node>) -> io::Result<()> {
    let listener = bind(path, mode)?;
    let peers = Arc::new(tokio::sync::Semaphore::new(PEERS_MAX));
    let served = node.clone();
    node.connections.spawn(async move {
        loop {
            let stream = tokio::select! {
                accepted = listener.accept() => accepted,
                () = served.draining.cancelled() => return,
            };
            let Ok(permit) = peers.clone().acquire_owned().await else { return };
            match stream {
                Ok((stream, _)) => {
                    let node = served.clone();
                    tokio::spawn(async move {
                        let _permit = permit;
                        if let Err(error) = answer(stream, &node).await {
                            tracing::debug!(%error, "a peer of the local socket");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the local socket");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    });
    Ok(())
}

async fn answer(stream: UnixStream, node: &Arc<Node>) -> io::Result<()> {
    let peer = Peer::of(&stream)?;
    let (read, mut write) = stream.into_split();
    let mut line = Zeroizing::new(String::new());
    let mut reader = BufReader::new(read.take(MESSAGE_BYTES_MAX));
    match tokio::time::timeout(REQUEST_TIMEOUT, reader.read_line(&mut line)).await {
        Ok(read) => read?,
        Err(_) => return Err(io::ErrorKind::TimedOut.into()),
    };
    let answer = match serde_json::from_str::<Request>(&line) {
        Ok(Request::Exec(request)) => {
            let node = node.clone();
            let begun = tokio::task::spawn_blocking(move || begin(&node, &peer, request)).await;
            match begun {
                Ok(Ok(run)) => Answer::Run(run),
                Ok(Err(error)) => Answer::Error(chain(&*error)),
                Err(_) => Answer::Error("the node agent failed".to_owned()),
            }
        }
        Ok(Request::Status) => Answer::Status(Box::new(node.status())),
        Err(error) => Answer::Error(format!("not a request: {error}")),
    };
    let mut line = serde_json::to_vec(&answer)?;
    line.push(b'\n');
    write.write_all(&line).await
}

/// Makes the asking process the first of a new run: own cgroup, kernel tables filled, only then answered.
fn begin(
    node: &Node,
    peer: &Peer,
    request: ExecRequest,
) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
    let parent = node.redirection.process_run(peer.pid).and_then(|run| node.runs.find(run));
    let above = parent.as_ref().map_or_else(|| node.scope.clone(), |run| run.cgroup.clone());
    let cgroup = node.make_cgroup(&above)?;
    let new = NewRun {
        parent: parent.map(|run| run.id),
        uid: peer.uid,
        initiator: format!("exec uid:{}", peer.uid),
        labels: request.labels,
        argv: MaskPlan::standard().argv(&request.argv),
        token: request.token.map(Zeroizing::new),
        cgroup: cgroup.path().to_owned(),
        owns_cgroup: true,
    };
    let begun = node.runs.begin(&new, &cgroup).map_err(Box::from).and_then(|run| {
        cgroup.move_in(peer.pid)?;
        node.redirection.govern_process(peer.pid, run.id)?;
        // The pid is the peer's only while the peer lives; a process that took it over must not have been governed.
        peer.still_lives()?;
        Ok(run.id.to_string())
    });
    if begun.is_err() {
        // Busy while the peer is in it; then its run ends like any other, with its last process.
        let _busy = fs::remove_dir(cgroup.path());
        tracing::warn!(pid = peer.pid, "a run could not begin");
    }
    begun
}

/// Who asks, as the kernel tells it.
struct Peer {
    pid: u32,
    uid: u32,
    pidfd: Option<OwnedFd>,
}

impl Peer {
    fn of(stream: &UnixStream) -> io::Result<Self> {
        let credentials = getsockopt(stream, sockopt::PeerCredentials)?;
        let pid = u32::try_from(credentials.pid()).map_err(io::Error::other)?;
        // Kernels before 6.5 have no SO_PEERPIDFD: there the peer is taken by its pid while it waits for the answer.
        let pidfd = getsockopt(stream, sockopt::PeerPidfd).ok();
        Ok(Self { pid, uid: credentials.uid(), pidfd })
    }

    fn still_lives(&self) -> io::Result<()> {
        let gone = || io::Error::new(io::ErrorKind::NotFound, "the asking process is gone");
        let Some(pidfd) = &self.pidfd else { return Ok(()) };
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
        let pid = info.lines().find_map(|line| line.strip_prefix("Pid:")).map(str::trim);
        if pid == Some(self.pid.to_string().as_str()) { Ok(()) } else { Err(gone()) }
    }
}

/// An error and all its causes in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        source = cause.source();
    }
    line
}
