//! Which processes belong to which run.
//!
//! * [`process`]: what /proc tells of a process, or `unknown`
//! * [`run`]: one agent at work; kept on disk so that a restarted node agent knows its runs
//! * [`runs`]: all runs of this node, and the choice for one connection
//! * [`rules`]: `[[select]]` rules as they stand in the configuration

mod process;
mod rules;
mod run;
mod runs;

pub(crate) use process::{Process, cgroup_of};
pub(crate) use rules::Select;
pub(crate) use run::{NewRun, Run, host_name};
pub(crate) use runs::{Chosen, Runs, RunsError, runs_dir};
