//! Which processes belong to which run.
//!
//! * [`rules`]: `[[select]]` rules as they stand in the configuration; [`pattern`] and [`container`] are what they are written in
//! * [`process`]: what the kernel and /proc tell of a process, or `unknown`; [`digest`]: of its executable
//! * [`ancestry`]: the processes above it
//! * [`ruling`]: what the rules say about all that
//! * [`run`]: one agent at work; kept on disk so that a restarted node agent knows its runs
//! * [`runs`]: all runs of this node, and the choice for one connection

mod ancestry;
mod container;
mod digest;
mod pattern;
mod process;
mod rules;
mod ruling;
mod run;
mod runs;

pub(crate) use process::{Process, cgroup_of};
pub(crate) use rules::Select;
pub(crate) use run::{NewRun, Root, Run, host_name};
pub(crate) use runs::{Chosen, Runs, RunsError, runs_dir};

#[cfg(test)]
#[cfg(feature = "kernel-tests")]
mod tests;
