//! `cargo xtask demo`: sets up what the demo needs, builds the programs, and runs it.

use anyhow::bail;

use crate::setup::{self, Wants};
use crate::workspace::Workspace;
use crate::{command, ebpf};

pub(crate) fn run(workspace: &Workspace, wants: &Wants, arguments: &[String]) -> anyhow::Result<()> {
    let ready = setup::run(workspace, wants)?;
    let object = ebpf::build(workspace, ready.toolchain.as_ref())?;
    let mut build = workspace.cargo("build");
    build.args(["--workspace", "--bins"]).envs(ebpf::environment(object));
    if !command::run_watched(&mut build, |_| {})?.success() {
        bail!("the programs do not build");
    }
    let mut demo = std::process::Command::new(workspace.bins().join("weir-demo"));
    if !demo.args(arguments).env("WEIR_BIN_DIR", workspace.bins()).status()?.success() {
        bail!("the demo did not come to its end");
    }
    Ok(())
}
