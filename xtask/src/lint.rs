//! `cargo xtask lint`: what must hold before a test is worth running.

use std::process::Command;

use anyhow::bail;

use crate::command;
use crate::ebpf::{self, Object};
use crate::suite::KERNEL_FEATURES;
use crate::tidy;
use crate::workspace::Workspace;

pub(crate) fn run(workspace: &Workspace, object: Object) -> anyhow::Result<()> {
    // All three, also after one has failed: one round of fixing instead of three.
    let mut failed = Vec::new();
    let format = ["--all", "--check", "--", "--color", "never"];
    let clippy = ["--workspace", "--all-targets", "--features", KERNEL_FEATURES, "--", "-D", "warnings"];
    for (name, arguments) in [("fmt", &format[..]), ("clippy", &clippy[..])] {
        let mut cargo = workspace.cargo(name);
        if !passes(cargo.args(arguments).envs(ebpf::environment(object)))? {
            failed.push(format!("cargo {name}"));
        }
    }
    if let Err(error) = tidy::run(workspace) {
        eprintln!("{error:#}");
        failed.push("cargo xtask tidy".to_owned());
    }
    if !failed.is_empty() {
        bail!("not clean: {}", failed.join(", "));
    }
    Ok(())
}

fn passes(cargo: &mut Command) -> anyhow::Result<bool> {
    eprintln!("{}", command::describe(cargo));
    Ok(command::run_watched(cargo, |_| {})?.success())
}
