//! `weir-agent exec -- CMD`: starts a command as a governed run, or does not start it at all.
//!
//! With a daemon this process asks to be governed and then *becomes* the command: same pid, terminal and signals.
//! Without one, as root, it supervises the command itself ([`alone`]).

mod alone;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use crate::control::{self, Answer, AskError, ExecRequest, Request};

pub(crate) use alone::{become_in, supervise};

/// The run could not be set up: the command was not started.
pub(crate) const NOT_STARTED: u8 = 125;
/// The command was found but cannot be run, as in env(1).
const CANNOT_RUN: u8 = 126;
/// The command was not found, as in env(1).
const NOT_FOUND: u8 = 127;

/// What to run, and what is said about it.
pub(crate) struct Exec {
    pub(crate) command: Vec<OsString>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) token_file: Option<PathBuf>,
}

impl Exec {
    fn argv(&self) -> Vec<String> {
        self.command.iter().map(|argument| argument.to_string_lossy().into_owned()).collect()
    }

    fn token(&self) -> io::Result<Option<String>> {
        self.token_file.as_ref().map(std::fs::read_to_string).transpose()
    }

    /// Asks the daemon; on yes, becomes the command. Returns only when the command was not started.
    pub(crate) fn through_daemon(&self, socket: &std::path::Path) -> Result<ExitCode, AskError> {
        let token = match self.token() {
            Ok(token) => token,
            Err(error) => {
                eprintln!("weir-agent: cannot read the token file: {error}");
                return Ok(ExitCode::from(NOT_STARTED));
            }
        };
        let request = Request::Exec(ExecRequest { argv: self.argv(), labels: self.labels.clone(), token });
        match control::ask(socket, &request)? {
            Answer::Run(run) => Ok(become_command(&self.command, &run)),
            answer => Err(AskError::Refused(format!("an answer that does not fit: {answer:?}"))),
        }
    }
}

/// Replaces this process by the command. Returns the exit code of env(1) when that fails.
pub(crate) fn become_command(command: &[OsString], run: &str) -> ExitCode {
    let Some((program, arguments)) = command.split_first() else { return ExitCode::from(NOT_STARTED) };
    let error = Command::new(program).args(arguments).env("WEIR_RUN", run).exec();
    eprintln!("weir-agent: {}: {error}", program.to_string_lossy());
    ExitCode::from(if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { CANNOT_RUN })
}
