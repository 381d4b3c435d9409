//! Scripts of the wire, both directions in order, and the property suite.

mod server;
mod subject;
mod wire;
