//! HTTP/1 as scripts of the wire, both directions in order.

mod bodies;
mod denial;
mod keep_alive;
mod limits;
mod playbook;
mod rendering;
mod secrets;
mod server;
mod smuggling;
mod subject;
mod switching;
