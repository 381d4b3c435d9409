//! `weir-collector`: takes recordings from node agents, keeps them, answers `weir`.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use weir_collector::access::Role;
use weir_collector::api::admin::Issuer;
use weir_collector::config::{self, Config};
use weir_collector::serve::{self, Data};
use weir_collector::{keys, logs};

/// Part of the watchdog's time after which it hears from us: one late turn does not get us killed.
const WATCHDOG_PART: u32 = 3;

/// Weir's collector: takes sealed recordings from node agents, keeps them, and answers who asks.
#[derive(Parser)]
#[command(version, max_term_width = 110)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve until SIGTERM or SIGINT.
    ///
    /// The first start makes the keys and prints an administrator's credential once; give it to `weir login`.
    /// "listening on ADDRESS" on stdout says that everything is ready.
    Serve(Serve),
    /// Make a join token for node agents, on the collector's own machine (else: `weir join-token`).
    Token(Token),
    /// Make a credential for a person or a tool, on the collector's own machine: also the way back in when the
    /// administrator's credential is lost.
    Credential(CredentialFor),
    /// Print the reference of all configuration options (Markdown).
    ConfigReference,
    /// Print completions for a shell.
    Completions { shell: clap_complete::Shell },
}

#[derive(clap::Args)]
struct Place {
    /// Configuration, TOML; without it the defaults (see `weir-collector config-reference`)
    #[arg(long, value_name = "FILE", env = "WEIR_COLLECTOR_CONFIG")]
    config: Option<PathBuf>,
    /// Recordings, index and keys [default: the configuration's `data`]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

#[derive(clap::Args)]
struct Serve {
    #[command(flatten)]
    place: Place,
    /// Where agents and `weir` connect; port 0 takes a free one [default: the configuration's `listen`]
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<SocketAddr>,
    /// Health, readiness and metrics; `off` for none [default: the configuration's `admin_listen`]
    #[arg(long, value_name = "IP:PORT")]
    admin_listen: Option<String>,
    /// Write the first start's credential to this file (only its owner may read it) instead of printing it
    #[arg(long, value_name = "FILE")]
    credential_file: Option<PathBuf>,
    /// Logs as JSON
    #[arg(long)]
    log_json: bool,
}

#[derive(clap::Args)]
struct Token {
    #[command(flatten)]
    place: Place,
    /// How many nodes may join with it
    #[arg(long, value_name = "N", default_value_t = 1)]
    uses: u32,
    /// How long it is good for: 90s, 15m, 12h, 30d
    #[arg(long, value_name = "DURATION", default_value = "1h")]
    valid: String,
    /// Which node names it is good for; `*` stands for any part of a name
    #[arg(long, value_name = "PATTERN", default_value = "*")]
    name: String,
    /// The address that agents reach this collector at [default: as it was last served]
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<String>,
}

#[derive(clap::Args)]
struct CredentialFor {
    #[command(flatten)]
    place: Place,
    /// Whose it is: the access log names it
    #[arg(long, value_name = "NAME")]
    name: String,
    /// `viewer` or `admin`
    #[arg(long, value_name = "ROLE", default_value = "viewer")]
    role: String,
    /// The address that people reach this collector at [default: as it was last served]
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Whatever the data directory's own mode: what the collector writes is for its user alone.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    match act(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weir-collector: {}", weir_collector::chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn act(arguments: Arguments) -> anyhow::Result<()> {
    // One provider for all of TLS; nobody has installed another one before main.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Runtime::new().context("starting the runtime")?;
    match arguments.command {
        Command::Serve(serve) => runtime.block_on(run(serve)),
        Command::Token(token) => runtime.block_on(make_token(token)),
        Command::Credential(credential) => runtime.block_on(make_credential(credential)),
        Command::ConfigReference => {
            println!("{}", config::reference());
            Ok(())
        }
        Command::Completions { shell } => {
            let mut command = Arguments::command();
            clap_complete::generate(shell, &mut command, "weir-collector", &mut std::io::stdout());
            Ok(())
        }
    }
}

async fn run(arguments: Serve) -> anyhow::Result<()> {
    let mut config = load(&arguments.place)?;
    if let Some(listen) = arguments.listen {
        config.listen = listen;
    }
    match arguments.admin_listen.as_deref() {
        Some("off") => config.admin_listen = None,
        Some(address) => {
            config.admin_listen = Some(address.parse().context("--admin-listen takes IP:PORT, or off")?)
        }
        None => {}
    }
    logs::start(config.log_json || arguments.log_json);
    let mut terminated = signal(SignalKind::terminate()).context("watching for SIGTERM")?;
    let running = serve::start(&config).await?;
    if let Some(credential) = &running.first_credential {
        first_credential(&credential.to_string(), arguments.credential_file.as_deref())?;
    }
    if let Some(address) = running.admin_address {
        tracing::info!(%address, "health, readiness and metrics");
    }
    say(&format!("listening on {}", running.address))?;
    tell(&[NotifyState::Ready, NotifyState::Status(&format!("listening on {}", running.address))]);
    tokio::spawn(watched());
    // Either way to ask for the end.
    tokio::select! {
        _ = terminated.recv() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted.context("watching for SIGINT")?,
    }
    tracing::info!("shutting down");
    tell(&[NotifyState::Stopping]);
    running.stop().await;
    Ok(())
}

/// Tells a service manager's watchdog, where there is one, that the runtime turns.
async fn watched() {
    let Some(timeout) = sd_notify::watchdog_enabled() else { return };
    let mut interval = tokio::time::interval((timeout / WATCHDOG_PART).max(Duration::from_millis(1)));
    loop {
        interval.tick().await;
        tell(&[NotifyState::Watchdog]);
    }
}

/// For a service manager (sd_notify(3)); without one, nothing happens.
fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}

fn first_credential(credential: &str, file: Option<&Path>) -> anyhow::Result<()> {
    match file {
        Some(path) => {
            keys::files::write_secret(path, credential.as_bytes())?;
            say(&format!("administrator's credential written to {}", path.display()))
        }
        None => {
            say(&format!("administrator's credential, shown only now (weir login CREDENTIAL):\n{credential}"))
        }
    }
}

/// stdout may be a closed pipe: that is no reason to panic.
fn say(line: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("writing to stdout")
}

async fn make_token(arguments: Token) -> anyhow::Result<()> {
    let issuer = issuer(&arguments.place, arguments.address).await?;
    let valid = config::parse_duration(&arguments.valid).map_err(anyhow::Error::msg)?;
    let seconds = i64::try_from(valid.as_secs()).context("--valid is too long")?;
    let (token, _) =
        issuer.join_token(arguments.uses, seconds, &arguments.name, "weir-collector token").await?;
    say(&token.to_string())
}

async fn make_credential(arguments: CredentialFor) -> anyhow::Result<()> {
    let issuer = issuer(&arguments.place, arguments.address).await?;
    let role = Role::named(&arguments.role).context("--role is `viewer` or `admin`")?;
    let credential = issuer.credential(&arguments.name, role, "weir-collector credential").await?;
    say(&credential.to_string())
}

/// Beside a collector that is serving, or without one: the index is shared by its own locks.
async fn issuer(place: &Place, address: Option<String>) -> anyhow::Result<Issuer> {
    let config = load(place)?;
    let Data { keys, store } = Data::open(&config.data).await?;
    let served =
        store.index.meta_value(serve::ADDRESS).await?.and_then(|bytes| String::from_utf8(bytes).ok());
    let configured = Some(config.advertise).filter(|advertised| !advertised.is_empty());
    let address = address.or(configured).or(served).unwrap_or_else(|| config.listen.to_string());
    Ok(Issuer { index: store.index, keys, address })
}

fn load(place: &Place) -> anyhow::Result<Config> {
    let mut config = Config::load(place.config.as_deref())?;
    if let Some(data) = &place.data {
        config.data = data.clone();
    }
    Ok(config)
}
