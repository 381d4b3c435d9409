//! The collector over its real sockets: agents made here seal, enrol and ship through `weir_proto::seal`, as the real
//! one does. No root, no kernel.

mod access;
mod agent;
mod client;
mod collector;
mod crash;
mod enrolment;
mod ingest;
mod keeping;
mod standalone;
mod verification;
