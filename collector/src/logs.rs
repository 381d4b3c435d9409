//! Logging: to stderr, for people or as JSON. Answers go to stdout, so the two never mix.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// `RUST_LOG` narrows or widens what is logged.
pub fn start(json: bool) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    if json {
        logs.json().init();
    } else {
        logs.init();
    }
}
