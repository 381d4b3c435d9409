//! `weir`: asks the collector what agents did, plays it, and verifies it.
//!
//! * [`home`]: where credentials and pinned keys are kept
//! * [`client`]: the connection, and what everyone names: a run, a session, a node
//! * [`output`]: tables, times, sizes; nothing of a recording reaches the terminal unescaped
//! * the commands: [`lists`], [`timeline`], [`play`], [`search`], [`tail`], [`touched`], [`check`], [`agents`], [`administration`]

mod administration;
mod agents;
mod check;
mod client;
mod hits;
mod home;
mod lists;
mod output;
mod play;
mod search;
mod tail;
mod timeline;
mod touched;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// Ask Weir what agents did.
///
/// RUN and SESSION are ids as `weir runs` and `weir sessions` show them, or a part: the beginning, or at least four
/// digits of the end. `last` is the latest run.
///
/// The credential comes from `weir login`, or from WEIR_CREDENTIAL.
#[derive(Parser)]
#[command(version, max_term_width = 110)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// JSON on stdout instead of text for people: one document, of `search` and `tail` a line for each exchange
    #[arg(long, global = true)]
    json: bool,
    /// Ask a folder that `weir-agent exec --local DIR` wrote, instead of a collector
    #[arg(long, global = true, value_name = "DIR")]
    local: Option<PathBuf>,
}

/// How to ask and to answer.
struct How {
    json: bool,
    local: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Keep a credential for the next calls
    Login {
        /// `weiradmin1-...` or `weircred1-...`; `-` reads it from stdin, so that it is in no shell history
        credential: String,
    },
    /// Who the collector takes you for
    Whoami,
    /// Runs, the latest first
    Runs(lists::Runs),
    /// Sessions of a run, in order of opening; without RUN of all
    Sessions(lists::Sessions),
    /// The timeline of a run or a session: exchanges, refusals, gaps
    Show(timeline::Show),
    /// The recorded rows and bytes themselves
    Play(play::Play),
    /// Find exchanges by words, phrases and fields, the newest first
    Search(search::Search),
    /// What a run touched: hosts, databases, tables, paths; read or written
    ///
    /// Tables are those that statements name, by a grammar of PostgreSQL: functions, triggers and views may touch others.
    /// What is not known is said too: statements that do not parse, sessions that were not looked into, gaps.
    Touched(touched::Touched),
    /// Follow exchanges as they end
    Tail(tail::Tail),
    /// Check signatures, chains, receipts and completeness on this machine, without trusting the collector
    ///
    /// Exit code 0: all holds. 1: something is wrong, and is named. 2: it could not be checked.
    Verify(check::Verify),
    /// What share of the traffic was inspected, opaque, refused or unobserved
    Coverage(lists::CoverageOf),
    /// How the node agents stand: version, heartbeat, gates, spool, configuration, clock, certificate, gaps
    #[command(visible_alias = "nodes")]
    Agents(agents::Agents),
    /// Make a join token for node agents
    JoinToken(administration::JoinToken),
    /// Make a credential for a person or a tool
    Credential(administration::Credential),
    /// Revoke a credential by its name
    RevokeCredential { name: String },
    /// Revoke a node: its stream ends now, and it may not come again
    RevokeNode { node: String },
    /// The access log: who asked what
    Accesses(lists::Accesses),
    /// Print completions for a shell
    Completions { shell: clap_complete::Shell },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse_from(search::with_negations(std::env::args_os()));
    // One provider for all of TLS; nobody has installed another one before main.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let verifying = matches!(arguments.command, Command::Verify(_));
    match run(arguments).await {
        Ok(code) => code,
        Err(error) if output::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weir: {}", output::error_text(&error));
            ExitCode::from(if verifying { 2 } else { 1 })
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let how = &How { json: arguments.json, local: arguments.local };
    match arguments.command {
        Command::Login { credential } => administration::login(&credential).await?,
        Command::Whoami => administration::whoami(how).await?,
        Command::Runs(command) => command.run(how).await?,
        Command::Sessions(command) => command.run(how).await?,
        Command::Show(command) => command.run(how).await?,
        Command::Play(command) => command.run(how).await?,
        Command::Search(command) => command.run(how).await?,
        Command::Touched(command) => command.run(how).await?,
        Command::Tail(command) => command.run(how).await?,
        Command::Verify(command) => return command.run(how).await,
        Command::Coverage(command) => command.run(how).await?,
        Command::Agents(command) => command.run(how).await?,
        Command::JoinToken(command) => command.run(how).await?,
        Command::Credential(command) => command.run(how).await?,
        Command::RevokeCredential { name } => administration::revoke_credential(how, &name).await?,
        Command::RevokeNode { node } => administration::revoke_node(how, &node).await?,
        Command::Accesses(command) => command.run(how).await?,
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "weir", &mut std::io::stdout());
        }
    }
    Ok(ExitCode::SUCCESS)
}
