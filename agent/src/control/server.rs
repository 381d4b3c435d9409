//! The daemon's side of the local socket.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use weir_protocols::mask::MaskPlan;
use zeroize::Zeroizing;

use super::{ANSWER_TIMEOUT, Answer, BypassRequest, ExecRequest, MESSAGE_BYTES_MAX, Request};
use crate::bypass::{Asker, BypassError};
use crate::config::ConfigError;
use crate::node::Node;
use crate::redirection::{Cgroup, RedirectionError};
use crate::reload::{Reloaded, hex};
use crate::selection::{NewRun, Root, RunsError, cgroup_of};

/// How long a connected peer may take to ask.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Peers being answered at once.
const PEERS_MAX: usize = 256;
/// What a run keeps of what a peer says about it, bytes.
const LABEL_BYTES_MAX: usize = 16 * 1024;
const ARGV_BYTES_MAX: usize = 256 * 1024;
const TOKEN_BYTES_MAX: usize = 64 * 1024;

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
pub(crate) fn serve(listener: UnixListener, node: Arc<Node>) {
    let peers = Arc::new(tokio::sync::Semaphore::new(PEERS_MAX));
    let served = node.clone();
    node.connections.spawn(async move {
        loop {
            let stream = tokio::select! {
                accepted = listener.accept() => accepted,
                () = served.draining.cancelled() => return,
            };
            let permit = tokio::select! {
                permit = peers.clone().acquire_owned() => permit,
                () = served.draining.cancelled() => return,
            };
            let Ok(permit) = permit else { return };
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
                Ok(Err(error)) => Answer::Error(chain(&error)),
                Err(_) => Answer::Error("the node agent failed".to_owned()),
            }
        }
        Ok(Request::Status) => Answer::Status(Box::new(node.status().await)),
        Ok(Request::Reload) => done(reload(node, peer.asker()).await),
        Ok(Request::Bypass(request)) => done(bypass(node, peer.asker(), request).await),
        Err(error) => Answer::Error(format!("not a request: {error}")),
    };
    let mut line = serde_json::to_vec(&answer)?;
    line.push(b'\n');
    match tokio::time::timeout(ANSWER_TIMEOUT, write.write_all(&line)).await {
        Ok(written) => written,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

fn done<E: std::error::Error>(result: Result<Value, E>) -> Answer {
    match result {
        Ok(said) => Answer::Done(Box::new(said)),
        Err(error) => Answer::Error(chain(&error)),
    }
}

async fn reload(node: &Node, asker: Asker) -> Result<Value, ReloadError> {
    if asker.uid != 0 && asker.uid != nix::unistd::geteuid().as_raw() {
        return Err(ReloadError::NotRoot(asker.uid));
    }
    let Reloaded { stamp, is_new, restart_for } = crate::reload::reload(node, Some(asker)).await?;
    Ok(json!({ "generation": stamp.generation, "config_sha256": stamp.config_sha256.map(hex),
        "is_new": is_new, "restart_for": restart_for }))
}

async fn bypass(node: &Node, asker: Asker, request: BypassRequest) -> Result<Value, BypassError> {
    match request {
        BypassRequest::Begin { seconds, reason } => {
            node.bypass.begin(node, asker, seconds, &reason).await?;
            Ok(node.bypass.status(node).await)
        }
        BypassRequest::End => Ok(json!({ "passed": node.bypass.end(node, asker).await? })),
    }
}

/// Makes the asking process the first of a new run: own cgroup, kernel tables filled, only then answered.
fn begin(node: &Node, peer: &Peer, request: ExecRequest) -> Result<String, BeginError> {
    check(&request)?;
    peer.still_lives()?;
    let before = cgroup_of(peer.pid);
    let parent = node.runs.of_process(peer.pid);
    let above = parent.as_ref().filter(|run| run.cgroup_id != 0);
    let above = above.map_or_else(|| node.scope.clone(), |run| run.cgroup.clone());
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
        root: Root::of(peer.pid),
        ..NewRun::default()
    };
    let run = match node.runs.begin(&new, &cgroup) {
        Ok(run) => run,
        Err(error) => {
            fs::remove_dir(cgroup.path())?;
            return Err(error.into());
        }
    };
    let governed = cgroup.move_in(peer.pid).map_err(BeginError::from).and_then(|()| {
        // The pid is the peer's only while the peer lives; a process that took it over must not be governed.
        peer.still_lives()?;
        Ok(node.redirection.govern_process(peer.pid, run.id)?)
    });
    if let Err(error) = governed {
        if let Some(before) = before {
            // Whoever has the pid now goes back to where it was; nobody, when nobody has it.
            let back = node.cgroup_mount.join(before.trim_start_matches('/'));
            let _gone = Cgroup::open(&back).and_then(|cgroup| cgroup.move_in(peer.pid));
        }
        node.runs.end(&run);
        return Err(error);
    }
    Ok(run.id.to_string())
}

/// Bounds on what a peer may have kept for it.
fn check(request: &ExecRequest) -> Result<(), BeginError> {
    let label_bytes: usize = request.labels.iter().map(|(key, value)| key.len() + value.len()).sum();
    let argv_bytes: usize = request.argv.iter().map(String::len).sum();
    let token_bytes = request.token.as_ref().map_or(0, String::len);
    for (what, bytes, bytes_max) in [
        ("labels", label_bytes, LABEL_BYTES_MAX),
        ("command line", argv_bytes, ARGV_BYTES_MAX),
        ("token", token_bytes, TOKEN_BYTES_MAX),
    ] {
        if bytes > bytes_max {
            return Err(BeginError::TooLong { what, bytes, bytes_max });
        }
    }
    Ok(())
}

#[derive(Debug, thiserror::Error)]
enum ReloadError {
    #[error("only root may have the configuration read again, and uid {0} asks")]
    NotRoot(u32),
    #[error("the rules that were loaded before go on")]
    Config(#[from] ConfigError),
}

/// The asking process could not be governed.
#[derive(Debug, thiserror::Error)]
enum BeginError {
    #[error("the {what} is {bytes} bytes long, at most {bytes_max} are taken")]
    TooLong { what: &'static str, bytes: usize, bytes_max: usize },
    #[error("cannot tell who asks")]
    Peer(#[from] io::Error),
    #[error("cannot govern the asking process")]
    Redirection(#[from] RedirectionError),
    #[error(transparent)]
    Runs(#[from] RunsError),
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
        if pid == 0 {
            return Err(io::Error::other("it is in another pid namespace, where its pid means nothing here"));
        }
        let pidfd = match getsockopt(stream, sockopt::PeerPidfd) {
            Ok(pidfd) => Some(pidfd),
            // Kernels before 6.5 have no SO_PEERPIDFD: there the peer is taken by its pid while it waits for the answer.
            Err(Errno::ENOPROTOOPT) => None,
            Err(gone) => return Err(gone.into()),
        };
        Ok(Self { pid, uid: credentials.uid(), pidfd })
    }

    fn asker(&self) -> Asker {
        Asker { uid: self.uid, pid: self.pid }
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
