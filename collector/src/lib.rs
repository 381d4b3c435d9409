//! The collector: takes sealed sessions from node agents, keeps them, and answers people who ask what happened.
//!
//! * [`config`]: the one table of options
//! * [`serve`]: starts everything, in order, and stops it again
//! * [`listener`]: TCP and TLS, bounded
//! * [`ingest`]: from a node agent's stream to a receipt
//! * [`store`]: bundles and index
//! * [`keys`]: the collector's own keys
//! * [`access`]: the one door to every read
//! * [`api`]: what people and tools ask
//! * [`search`]: what people type to find exchanges
//! * [`touched`]: what a run touched, added up from exchanges (used by `weir`)
//! * [`heartbeats`]: what the spacing of a node's signed log says
//! * [`retention`]: what deletes, and the keys of the days to come
//! * [`operations`]: health, readiness and metrics for the operator
//! * [`verify`]: checks recordings without trusting the collector (used by `weir`)
//! * [`local`]: a standalone recording, read without a collector (used by `weir --local`)
//! * [`disk`], [`metrics`], [`clock`], [`logs`]: free space, counters, time, logging

pub mod access;
pub mod api;
pub mod clock;
pub mod config;
pub mod disk;
pub mod heartbeats;
pub mod ingest;
pub mod keys;
pub mod listener;
pub mod local;
pub mod logs;
pub mod metrics;
pub mod operations;
pub mod retention;
pub mod search;
pub mod serve;
pub mod store;
pub mod touched;
pub mod verify;

/// An error with its causes, on one line, for logs.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Transparent wrappers repeat their cause.
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}
