//! The harness of the end-to-end tests and of the demo: real servers, real node agents, real collectors, each in a place
//! of its own, and nothing left behind.
//!
//! * [`site`]: one scratch place: folder, cgroups, pins, and the watchdog that removes them whatever happens
//! * [`postgres`], [`nginx`], [`echo`], [`peer`]: servers to talk to
//! * [`collector`], [`agent`]: the programs under test
//! * [`recorded`]: what the collector says about runs, sessions and exchanges
//! * [`sealed`]: segments as they lie on disk, without any key
//! * [`planted`]: secrets that must not be found again
//! * [`process`]: children that die with their owner

pub mod agent;
pub mod collector;
pub mod echo;
pub mod nginx;
pub mod peer;
pub mod planted;
pub mod postgres;
pub mod process;
pub mod recorded;
pub mod sealed;
pub mod site;

pub use agent::Agent;
pub use collector::Collector;
pub use echo::Echo;
pub use nginx::Nginx;
pub use peer::Peer;
pub use postgres::Postgres;
pub use site::Site;
