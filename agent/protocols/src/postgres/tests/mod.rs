//! Scripts of the wire, both directions in order, and the property suite.

mod copy;
mod denial;
mod extended;
mod limits;
mod opening;
mod playbook;
mod real;
mod server;
mod simple;
mod subject;
mod wire;
