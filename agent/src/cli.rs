//! The command line: what can be asked of `weir-agent`.

mod rules;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Args, CommandFactory, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::config::{self, Config};
use crate::control::{self, Answer, AskError, Request};
use crate::exec::{self, Exec, NOT_STARTED};
use crate::node::{Node, Place};
use crate::redirection::Redirection;
use crate::{doctor, reload, service, shipping};

/// Records what agents do to infrastructure: the node agent of Weir.
#[derive(Parser)]
#[command(name = "weir-agent", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the node agent as a daemon, in the foreground.
    ///
    /// Attaches the kernel hooks, serves governed connections, records and ships. SIGTERM drains; the hooks stay pinned and
    /// refuse governed connections until the next start. `weir-agent detach` removes them.
    Run(ConfigFile),
    /// Run a command as a governed run.
    ///
    /// Asks the node agent to govern this process and then becomes the command: same pid, terminal and signals. Without a
    /// node agent, --local records into a directory, as root. Exit code: the command's; 125 when it was not started because it
    /// could not be governed, 126 when it cannot be run, 127 when it was not found.
    Exec(ExecArgs),
    /// Join a collector with a one-time token (`weir join-token`, on the collector's side).
    Join(JoinArgs),
    /// Show how the node agent stands: runs, sessions, spool, gates.
    Status(StatusArgs),
    /// Say what this kernel offers and what is missing, and what to do about it.
    Doctor {
        /// One JSON object instead of lines for people.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Check rules, and ask what they would do.
    #[command(subcommand)]
    Policy(rules::PolicyCommand),
    /// Have the node agent read its configuration again (SIGHUP does the same). Invalid rules change nothing.
    Reload(rules::ReloadArgs),
    /// Let governed connections pass directly and unrecorded for a time. Root only, and itself on record.
    ///
    /// For when Weir is what is broken. New connections are let through by the kernel hooks until the time is over; open ones
    /// go on through the node agent.
    Bypass(rules::BypassArgs),
    /// Remove the kernel hooks that a stopped node agent left in place. Governed processes then connect unrecorded.
    Detach(ConfigFile),
    /// Print the reference of the configuration file (Markdown).
    Reference,
    /// Print a completion script for a shell.
    Completions { shell: clap_complete::Shell },
    /// The child's part of a lone `exec`.
    #[command(hide = true)]
    Become(BecomeArgs),
}

#[derive(Args)]
struct ConfigFile {
    /// Configuration file [default: /etc/weir/agent.toml, if it is there]
    #[arg(long, value_name = "FILE", env = "WEIR_AGENT_CONFIG")]
    config: Option<PathBuf>,
}

#[derive(Args)]
struct ExecArgs {
    #[command(flatten)]
    config: ConfigFile,
    /// The node agent's socket [default: as configured]
    #[arg(long, value_name = "PATH", env = "WEIR_SOCKET")]
    socket: Option<PathBuf>,
    /// Without a node agent: record into this directory, which `weir --local DIR` reads. Needs root.
    #[arg(long, value_name = "DIR")]
    local: Option<PathBuf>,
    /// A label of the run; may be given several times.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// A file with the identity token of whoever asked for this run. Kept with the run, never recorded.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    command: Vec<OsString>,
}

#[derive(Args)]
struct JoinArgs {
    #[command(flatten)]
    config: ConfigFile,
    /// The token. Better given by --token-file: an argument is seen by every user of the host.
    #[arg(env = "WEIR_JOIN_TOKEN", hide_env_values = true)]
    token: Option<String>,
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    token_file: Option<PathBuf>,
    /// This node's name [default: the host name]
    #[arg(long)]
    name: Option<String>,
    /// Join the same collector once more, because the certificate has ended: the node keeps its identity and its spool.
    #[arg(long)]
    again: bool,
}

#[derive(Args)]
struct StatusArgs {
    #[command(flatten)]
    config: ConfigFile,
    /// The node agent's socket [default: as configured]
    #[arg(long, value_name = "PATH", env = "WEIR_SOCKET")]
    socket: Option<PathBuf>,
    /// One JSON object instead of lines for people.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct BecomeArgs {
    #[arg(long)]
    cgroup: PathBuf,
    #[arg(long)]
    run: String,
    #[arg(long)]
    foreground: bool,
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("a label is KEY=VALUE")?;
    if key.is_empty() { Err("a label's key is empty".into()) } else { Ok((key.to_owned(), value.to_owned())) }
}

/// Carries out the command line.
pub(crate) fn run() -> anyhow::Result<ExitCode> {
    match Cli::parse().command {
        Command::Run(file) => daemon(&file),
        Command::Exec(args) => Ok(start(args)),
        Command::Join(args) => join(args),
        Command::Status(args) => status(&args),
        Command::Doctor { json, config } => {
            let config = Config::load(config.config.as_deref())?;
            Ok(doctor::report(&config, json))
        }
        Command::Detach(file) => {
            let config = Config::load(file.config.as_deref())?;
            Redirection::detach_abandoned(&config.pins_dir)?;
            println!("detached: governed processes now connect directly and unrecorded");
            Ok(ExitCode::SUCCESS)
        }
        Command::Policy(command) => rules::policy(command),
        Command::Reload(args) => rules::reload(args),
        Command::Bypass(args) => rules::bypass(args),
        Command::Reference => {
            print!("{}", config::reference());
            Ok(ExitCode::SUCCESS)
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "weir-agent", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::Become(args) => {
            if let Err(error) = exec::become_in(&args.cgroup, args.foreground) {
                eprintln!("weir-agent: {:#}", anyhow::Error::from(error));
                return Ok(ExitCode::from(NOT_STARTED));
            }
            Ok(exec::become_command(&args.command, &args.run))
        }
    }
}

fn daemon(file: &ConfigFile) -> anyhow::Result<ExitCode> {
    log_to_stderr("info");
    let config = Config::load(file.config.as_deref())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let node = Node::start(Place::of(&config)?, &config).await?;
        tracing::info!(scope = %node.scope.display(), "ready");
        service::ready(&node.scope);
        let running = node.clone();
        tokio::spawn(service::watched(move || running.is_recording()));
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hangup.recv() => {
                    // What is wrong with it is in the log and the status.
                    let _said = reload::reload(&node, None).await;
                }
            }
        }
        service::stopping();
        node.stop().await;
        anyhow::Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The command is started governed, or not at all.
fn start(args: ExecArgs) -> ExitCode {
    let not_started = |error: &anyhow::Error| {
        eprintln!("weir-agent: {error:#}");
        eprintln!("weir-agent: the command was not started");
        ExitCode::from(NOT_STARTED)
    };
    let config = match Config::load(args.config.config.as_deref()) {
        Ok(config) => config,
        Err(error) => return not_started(&error.into()),
    };
    let socket = args.socket.unwrap_or_else(|| config.socket.clone());
    let labels: BTreeMap<_, _> = args.labels.into_iter().collect();
    let exec = Exec { command: args.command, labels, token_file: args.token_file };
    let result = match exec.through_daemon(&socket) {
        Ok(code) => return code,
        Err(error @ AskError::Nobody { .. }) => match args.local {
            Some(local) => {
                log_to_stderr("warn");
                exec::supervise(&exec, config, &local)
            }
            None => Err(anyhow::Error::from(error).context(
                "start the node agent (`weir-agent run`), or record into a directory with --local DIR",
            )),
        },
        Err(error) => Err(error.into()),
    };
    result.unwrap_or_else(|error| not_started(&error))
}

fn join(args: JoinArgs) -> anyhow::Result<ExitCode> {
    let config = Config::load(args.config.config.as_deref())?;
    let token = match (args.token, args.token_file) {
        (Some(token), _) => token,
        (None, Some(file)) => {
            std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?
        }
        (None, None) => bail!("give a join token: --token-file FILE, or WEIR_JOIN_TOKEN"),
    };
    let name = args.name.unwrap_or_else(crate::selection::host_name);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let node_id = runtime.block_on(shipping::enroll(&config.state_dir, token.trim(), &name, args.again))?;
    println!(
        "joined as {name} ({node_id}); start the node agent with `weir-agent run`, one that runs goes on by itself"
    );
    Ok(ExitCode::SUCCESS)
}

fn status(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let config = Config::load(args.config.config.as_deref())?;
    let socket = args.socket.clone().unwrap_or(config.socket);
    let Answer::Status(status) = control::ask(&socket, &Request::Status)? else {
        bail!("the node agent gave an answer that does not fit");
    };
    if args.json {
        println!("{status}");
    } else {
        doctor::show_status(&status);
    }
    Ok(ExitCode::SUCCESS)
}

fn log_to_stderr(default: &str) {
    use tracing_subscriber::EnvFilter;
    // What the loader prints of every relocation helps nobody who asks what the node agent does.
    let wanted = std::env::var("WEIR_LOG").unwrap_or_else(|_| default.to_owned());
    let filter = EnvFilter::new(format!("{wanted},aya=warn,aya_obj=warn"));
    let json = std::env::var("WEIR_LOG_FORMAT").is_ok_and(|format| format == "json");
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second subscriber is a second call in one process, which main never makes.
    let _installed = if json { builder.json().try_init() } else { builder.try_init() };
}
