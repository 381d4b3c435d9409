//! `cargo xtask bench`: sets up what the bench needs, builds release programs, and runs it. What is measured and what it
//! may cost is in `tests/load`.

use std::ffi::OsString;
use std::process::Command;

use anyhow::{Context, bail};

use crate::setup::{self, Wants};
use crate::workspace::Workspace;
use crate::{command, ebpf};

/// Another build of the node agent is measured: then only the bench itself is built.
const OTHER_BUILD: &str = "--bins";
/// Measured by a program of the collector's own.
const INGEST: &str = "ingest";
const INGEST_PROGRAM: &str = "weir-ingest-bench";

pub(crate) fn run(workspace: &Workspace, wants: &Wants, arguments: &[OsString]) -> anyhow::Result<()> {
    let (program, arguments) = match arguments.split_first() {
        Some((first, rest)) if first == INGEST => (INGEST_PROGRAM, rest),
        _ => ("weir-bench", arguments),
    };
    let other_build = arguments.iter().any(|argument| argument.to_string_lossy().starts_with(OTHER_BUILD));
    let ready = setup::run(workspace, wants)?;
    let mut build = workspace.cargo("build");
    build.args(["--release", "--bins"]);
    if other_build {
        build.args(["--package", "weir-tests", "--package", "weir-collector"]);
    } else {
        let object = ebpf::build(workspace, ready.toolchain.as_ref())?;
        build.arg("--workspace").envs(ebpf::environment(object));
    }
    if !command::run_watched(&mut build, |_| {})?.success() {
        bail!("the programs do not build");
    }
    let bins = workspace.release_bins();
    let mut bench = Command::new(bins.join(program));
    let status = bench
        .args(arguments)
        .env("WEIR_BIN_DIR", &bins)
        .env("WEIR_COMMIT", commit(workspace))
        .status()
        .with_context(|| format!("starting {program}"))?;
    if !status.success() {
        bail!("the bench did not come to its end, or what it found does not hold");
    }
    Ok(())
}

/// Figures without what they are figures of say nothing.
fn commit(workspace: &Workspace) -> String {
    let git = |arguments: &[&str]| {
        command::capture(Command::new("git").args(arguments).current_dir(&workspace.root)).unwrap_or_default()
    };
    let changed =
        if git(&["status", "--porcelain", "--untracked-files=no"]).is_empty() { "" } else { " and changes" };
    format!("{}{changed}", git(&["rev-parse", "--short=12", "HEAD"]).trim())
}
