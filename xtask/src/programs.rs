//! What `cargo xtask demo` and `clients` have in common: set up what they need, build all programs, run one of them.

use anyhow::bail;

use crate::setup::{self, Wants};
use crate::workspace::Workspace;
use crate::{command, ebpf};

pub(crate) fn run(
    workspace: &Workspace,
    wants: &Wants,
    program: &str,
    arguments: &[String],
) -> anyhow::Result<()> {
    let ready = setup::run(workspace, wants)?;
    let object = ebpf::build(workspace, ready.toolchain.as_ref())?;
    let mut build = workspace.cargo("build");
    build.args(["--workspace", "--bins"]).envs(ebpf::environment(object));
    if !command::run_watched(&mut build, |_| {})?.success() {
        bail!("the programs do not build");
    }
    let mut run = std::process::Command::new(workspace.bins().join(program));
    if !run.args(arguments).env("WEIR_BIN_DIR", workspace.bins()).status()?.success() {
        bail!("{program} did not come to a good end");
    }
    Ok(())
}
