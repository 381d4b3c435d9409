//! The collector over its real sockets: agents made here seal, enrol and ship through `weir_proto::seal`, as the real
//! one does. No root, no kernel.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests, and what they share")]

mod access;
mod agent;
mod client;
mod collector;
mod crash;
mod enrolment;
mod fleet;
mod ingest;
mod keeping;
mod search;
mod standalone;
mod text;
mod verification;
