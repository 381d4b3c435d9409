//! The harness of the end-to-end tests and of the demo: real servers, real node agents, real collectors, each in a place
//! of its own, and nothing left behind.
//!
//! * [`site`]: one scratch place: folder, cgroups, pins, and the watchdog that removes them whatever happens
//! * [`postgres`], [`echo`]: servers to talk to
//! * [`collector`], [`agent`]: the programs under test
//! * [`process`]: children that die with their owner

pub mod agent;
pub mod collector;
pub mod echo;
pub mod postgres;
pub mod process;
pub mod site;

pub use agent::Agent;
pub use collector::Collector;
pub use echo::Echo;
pub use postgres::Postgres;
pub use site::Site;
