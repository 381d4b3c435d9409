//! The node agent: redirects the sockets of governed processes, decides, records, ships.

mod admin;
mod bypass;
mod cli;
mod config;
mod control;
mod doctor;
mod exec;
mod journal;
mod metrics;
mod node;
mod policy;
mod proxy;
mod recording;
mod redirection;
mod reload;
mod selection;
mod service;
mod shipping;
mod spool;
mod standing;

use std::process::ExitCode;

fn main() -> ExitCode {
    // One provider for all TLS of this process.
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        eprintln!("weir-agent: a second TLS provider in one process");
        return ExitCode::FAILURE;
    }
    match cli::run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("weir-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}
