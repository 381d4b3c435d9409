//! The local socket: `exec` asks for a run, `status` how things stand, `reload` and `bypass` for what they say. One JSON line
//! each way.
//!
//! The socket's permissions say who may ask. Who asks is taken from the kernel (peer credentials and pidfd), never from
//! the message.

mod server;

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub(crate) use server::{bind, serve};

/// Longest message either way, bytes: argv can be long.
const MESSAGE_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// How long `exec` waits for the daemon's answer before it gives up and does not start the command.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Request {
    Exec(ExecRequest),
    Status,
    Reload,
    Bypass(BypassRequest),
}

/// Of root only.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum BypassRequest {
    Begin { seconds: u64, reason: String },
    End,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ExecRequest {
    pub(crate) argv: Vec<String>,
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) token: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Answer {
    /// The asking process is governed now, under this run.
    Run(String),
    Status(Box<serde_json::Value>),
    /// Done; this is what there is to say.
    Done(Box<serde_json::Value>),
    Error(String),
}

/// Why the daemon gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error("no node agent listens on {path}")]
    Nobody { path: String, source: io::Error },
    #[error("the node agent on {path} gave no answer")]
    Silent { path: String, source: io::Error },
    #[error("the node agent refused: {0}")]
    Refused(String),
}

/// Asks the daemon, blocking.
pub(crate) fn ask(socket: &Path, request: &Request) -> Result<Answer, AskError> {
    let path = socket.display().to_string();
    let stream =
        UnixStream::connect(socket).map_err(|source| AskError::Nobody { path: path.clone(), source })?;
    match exchange(stream, request) {
        Ok(Answer::Error(message)) => Err(AskError::Refused(message)),
        Ok(answer) => Ok(answer),
        Err(source) => Err(AskError::Silent { path, source }),
    }
}

fn exchange(mut stream: UnixStream, request: &Request) -> io::Result<Answer> {
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(stream.take(MESSAGE_BYTES_MAX)).read_line(&mut answer)?;
    Ok(serde_json::from_str(&answer)?)
}
