//! Without a daemon: this process becomes the node agent of one run and supervises its command, as root.
//!
//! The agent keeps a cgroup and a process group of its own; the command gets its own of each, and the terminal. The run
//! ends with its last process, not with the command: background children stay governed to their end.

use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use weir_protocols::mask::MaskPlan;
use zeroize::Zeroizing;

use super::Exec;
use crate::config::Config;
use crate::node::{Node, Place};
use crate::recording::Mode;
use crate::redirection::{Cgroup, RedirectionError};
use crate::selection::NewRun;

/// How often a run whose command has ended is looked at for processes that go on.
const LEFTOVER_INTERVAL: Duration = Duration::from_millis(100);

/// Runs the command under a node agent of its own, recording into `local`.
pub(crate) fn supervise(exec: &Exec, config: Config, local: &Path) -> anyhow::Result<ExitCode> {
    if !nix::unistd::geteuid().is_root() {
        bail!("without a node agent, exec attaches the kernel hooks itself: run it as root");
    }
    let token = exec.token().context("cannot read the token file")?.map(Zeroizing::new);
    let cgroups = Cgroups::make()?;
    let place = Place {
        scope: cgroups.run.path().to_owned(),
        own: cgroups.agent.path().to_owned(),
        pins: config.pins_dir.join(format!("exec-{}", std::process::id())),
        state: local.to_owned(),
        socket: local.join("agent.sock"),
        mode: Mode::Local,
    };
    let config = Config { admin: None, ..config };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let socket = place.socket.clone();
    let result = runtime.block_on(async {
        let node = Node::start(place, &config).await?;
        let outcome = run(exec, token, &node, &cgroups, &socket).await;
        node.stop().await;
        if let Err(error) = node.redirection.detach() {
            // The command has run: its exit code is the answer.
            eprintln!(
                "weir-agent: the kernel hooks stay attached; `weir-agent detach` removes them: {error}"
            );
        }
        outcome
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    cgroups.remove();
    result
}

async fn run(
    exec: &Exec,
    token: Option<Zeroizing<String>>,
    node: &Node,
    cgroups: &Cgroups,
    socket: &Path,
) -> anyhow::Result<ExitCode> {
    let new = NewRun {
        uid: nix::unistd::getuid().as_raw(),
        initiator: format!("exec uid:{}", nix::unistd::getuid()),
        labels: exec.labels.clone(),
        argv: MaskPlan::standard().argv(&exec.argv()),
        token,
        cgroup: cgroups.run.path().to_owned(),
        ..NewRun::default()
    };
    let run = node.runs.begin(&new, &cgroups.run)?;
    node.runs.keep_to(&run);
    let terminal = Terminal::held();
    let mut hangup = signal(SignalKind::hangup())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut quit = signal(SignalKind::quit())?;
    let mut child_changed = signal(SignalKind::child())?;
    let mut child = tokio::process::Command::new("/proc/self/exe")
        .arg("become")
        .arg("--cgroup")
        .arg(cgroups.run.path())
        .arg("--run")
        .arg(run.id.to_string())
        .args(terminal.as_ref().map(|_| "--foreground"))
        .arg("--")
        .args(&exec.command)
        .env("WEIR_SOCKET", socket)
        .process_group(0)
        .spawn()
        .context("cannot start the command")?;
    let group = child.id().map(|pid| Pid::from_raw(pid.cast_signed()));
    let status = loop {
        let signal = tokio::select! {
            status = child.wait() => break status?,
            _ = hangup.recv() => Signal::SIGHUP,
            _ = interrupt.recv() => Signal::SIGINT,
            _ = terminate.recv() => Signal::SIGTERM,
            _ = quit.recv() => Signal::SIGQUIT,
            _ = child_changed.recv() => {
                if let (Some(terminal), Some(group)) = (&terminal, group) {
                    terminal.follow_stop(group);
                }
                continue;
            }
        };
        if let Some(group) = group {
            // The group may be gone already; its status follows.
            let _gone = nix::sys::signal::killpg(group, signal);
        }
    };
    if let Some(terminal) = &terminal {
        terminal.give_to(terminal.group);
    }
    if let Err(error) = leftovers(node, cgroups, run.id, &mut interrupt, &mut terminate).await {
        // The command has run: its exit code is the answer.
        eprintln!("weir-agent: cannot tell whether background processes go on: {error:#}");
    }
    node.runs.end(&run);
    Ok(exit_code(status))
}

/// Waits for the run's last process. A signal ends them all.
async fn leftovers(
    node: &Node,
    cgroups: &Cgroups,
    run: weir_proto::RunId,
    interrupt: &mut tokio::signal::unix::Signal,
    terminate: &mut tokio::signal::unix::Signal,
) -> anyhow::Result<()> {
    let mut told = false;
    while cgroups.run.populated()? || !node.redirection.members(run).is_empty() {
        if !told && cgroups.run.populated()? {
            eprintln!(
                "weir-agent: the command has ended, its background processes go on; interrupt to end them"
            );
            told = true;
        }
        tokio::select! {
            () = tokio::time::sleep(LEFTOVER_INTERVAL) => {}
            _ = interrupt.recv() => cgroups.run.kill()?,
            _ = terminate.recv() => cgroups.run.kill()?,
        }
    }
    Ok(())
}

/// The command's own code; 128 + signal when a signal ended it, as shells say it.
fn exit_code(status: std::process::ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

/// The command's process could not be prepared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BecomeError {
    #[error("cannot join the run's cgroup")]
    Cgroup(#[from] RedirectionError),
    #[error("cannot take the terminal")]
    Terminal(#[from] io::Error),
}

/// The child's part: joins the run's cgroup, takes the terminal, becomes the command.
pub(crate) fn become_in(cgroup: &Path, foreground: bool) -> Result<(), BecomeError> {
    Cgroup::open(cgroup)?.move_in(std::process::id())?;
    if foreground {
        take_terminal(nix::unistd::getpgrp())?;
    }
    Ok(())
}

/// The terminal that this process had in the foreground and lends to the command.
struct Terminal {
    group: Pid,
}

impl Terminal {
    fn held() -> Option<Self> {
        let group = nix::unistd::getpgrp();
        let terminal = terminal().ok()?;
        (nix::unistd::tcgetpgrp(&terminal) == Ok(group)).then_some(Self { group })
    }

    fn give_to(&self, group: Pid) {
        if let Err(error) = take_terminal(group) {
            tracing::debug!(%error, "the terminal");
        }
    }

    /// When the command was stopped from the terminal (Ctrl-Z), this process stops too, so that the shell notices; when it is
    /// continued, so is the command.
    fn follow_stop(&self, group: Pid) {
        let stopped = waitid(Id::Pid(group), WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG);
        if !matches!(stopped, Ok(WaitStatus::Stopped(..))) {
            return;
        }
        self.give_to(self.group);
        // The node agent's threads stop with it: connections of background processes wait as long.
        let _stopped = nix::sys::signal::kill(Pid::this(), Signal::SIGSTOP);
        // Continued in the background (`bg`), the terminal is the shell's to give.
        if terminal().is_ok_and(|terminal| nix::unistd::tcgetpgrp(&terminal) == Ok(self.group)) {
            self.give_to(group);
        }
        let _gone = nix::sys::signal::killpg(group, Signal::SIGCONT);
    }
}

/// Makes a group the terminal's foreground. A background process that does so is sent SIGTTOU, unless it blocks it.
fn take_terminal(group: Pid) -> io::Result<()> {
    let terminal = terminal()?;
    let mut blocked = SigSet::empty();
    blocked.add(Signal::SIGTTOU);
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&blocked), None)?;
    let taken = nix::unistd::tcsetpgrp(&terminal, group);
    sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&blocked), None)?;
    Ok(taken?)
}

/// The controlling terminal, whatever stdin is.
fn terminal() -> io::Result<fs::File> {
    fs::File::open("/dev/tty")
}

/// `<here>/weir-PID/{agent,run}`: below the cgroup this process was in, so that an outer node agent still sees all of it.
struct Cgroups {
    before: PathBuf,
    base: PathBuf,
    agent: Cgroup,
    run: Cgroup,
}

impl Cgroups {
    fn make() -> anyhow::Result<Self> {
        let before = Cgroup::own_current()?.path().to_owned();
        let base = before.join(format!("weir-{}", std::process::id()));
        Cgroup::create(&base).with_context(|| format!("cannot make the cgroup {}", base.display()))?;
        let agent = Cgroup::create(&base.join("agent"))?;
        let run = Cgroup::create(&base.join("run"))?;
        Ok(Self { before, base, agent, run })
    }

    fn remove(self) {
        let back = Cgroup::open(&self.before).and_then(|cgroup| cgroup.move_in(std::process::id()));
        if let Err(error) = back {
            tracing::debug!(%error, "the cgroup before");
        }
        for path in [self.run.path(), self.agent.path(), &self.base] {
            if let Err(error) = fs::remove_dir(path) {
                tracing::debug!(%error, path = %path.display(), "a cgroup stays");
            }
        }
    }
}
