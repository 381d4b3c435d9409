//! `weir-load`: what the bench's clients do. One blocking thread per connection, so that the client costs as little CPU as
//! possible beside what is measured. Every request that was begun is finished, so that what was done can be compared with
//! what was recorded. Prints one JSON object.

mod http;
mod idle;
mod raw;
mod tally;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::tally::drive;

#[derive(Parser)]
#[command(name = "weir-load")]
struct Flags {
    #[command(subcommand)]
    load: Load,
}

#[derive(Subcommand)]
enum Load {
    /// GET one path over and over
    Http {
        #[command(flatten)]
        how: How,
        #[arg(long)]
        path: String,
        /// A new connection for every request
        #[arg(long)]
        close: bool,
        /// How long each connection rests after an answer, milliseconds
        #[arg(long, default_value_t = 0)]
        pause_ms: u64,
    },
    /// Open connections, use each once and keep it; told on stdin what to do
    Idle {
        #[arg(long)]
        to: SocketAddr,
        #[arg(long)]
        path: String,
    },
    /// Messages there and back, in a protocol that nobody parses
    Pingpong {
        #[command(flatten)]
        how: How,
        /// Size of a message, bytes
        #[arg(long, default_value_t = 64)]
        bytes: usize,
    },
    /// One download, in a protocol that nobody parses
    Bulk {
        #[arg(long)]
        to: SocketAddr,
        #[arg(long)]
        bytes: u64,
    },
    /// The other end of `pingpong` and `bulk`: prints its port and serves until it is killed
    Serve,
}

#[derive(clap::Args)]
struct How {
    #[arg(long)]
    to: SocketAddr,
    #[arg(long, default_value_t = 1)]
    connections: usize,
    #[arg(long, default_value_t = 1.0)]
    secs: f64,
}

impl How {
    fn time(&self) -> Duration {
        Duration::from_secs_f64(self.secs)
    }
}

fn main() -> ExitCode {
    match run(Flags::parse().load) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weir-load: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(load: Load) -> anyhow::Result<()> {
    let tally = match load {
        Load::Http { how, path, close, pause_ms } => {
            let request = http::Request::new(how.to, &path, close, Duration::from_millis(pause_ms));
            drive(how.connections, how.time(), |clock| http::session(&request, clock))
        }
        Load::Pingpong { how, bytes } => {
            drive(how.connections, how.time(), |clock| raw::pingpong(how.to, bytes, clock))
        }
        Load::Bulk { to, bytes } => drive(1, Duration::ZERO, |clock| raw::bulk(to, bytes, clock)),
        Load::Idle { to, path } => {
            return idle::keep(&http::Request::new(to, &path, false, Duration::ZERO));
        }
        Load::Serve => return raw::serve(),
    };
    println!("{}", tally.json());
    match tally.error {
        Some(error) => anyhow::bail!("{error}"),
        None => Ok(()),
    }
}
