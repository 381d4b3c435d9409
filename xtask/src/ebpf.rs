//! `cargo xtask ebpf`: builds the object that the node agent embeds and puts it where `agent/build.rs` finds it.
//! Building is here and not in a build script, because it takes another compiler than the workspace's, and a
//! `cargo check` should not depend on that one.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::command;
use crate::steps::Steps;
use crate::toolchain::Toolchain;
use crate::workspace::Workspace;

/// Tells `agent/build.rs` to build without an object. The agent then says so when it is started.
const NO_OBJECT: (&str, &str) = ("WEIR_EBPF_OBJECT", "none");

const TARGET: &str = "bpfel-unknown-none";
const PROFILE: &str = "ebpf";

/// Whether the agent that is built next can redirect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Object {
    Built,
    /// This machine has no compiler for it.
    None,
}

/// Builds and publishes the object, or says that there is none.
pub(crate) fn build(workspace: &Workspace, toolchain: Option<&Toolchain>) -> anyhow::Result<Object> {
    let Some(toolchain) = toolchain else {
        return Ok(Object::None);
    };
    let mut steps = Steps::new(1);
    steps.step("eBPF object", |progress| {
        let target = workspace.target.join("ebpf");
        let mut cargo = toolchain.compiler.cargo();
        cargo
            .current_dir(&workspace.root)
            .args(["build", "--package", "weir-agent-ebpf", "--bin", "weir-ebpf", "--features", "program"])
            .args(["--target", TARGET, "--profile", PROFILE, "-Z", "build-std=core"])
            // The lock file is the workspace's: another cargo must not rewrite it.
            .arg("--locked")
            .env("CARGO_TARGET_DIR", &target)
            .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &toolchain.linker)
            // The kernel wants BTF. Set whole, so that nobody's RUSTFLAGS for the host reach the object.
            .env("RUSTFLAGS", "-C link-arg=--btf");
        command::run_logged(&mut cargo, &workspace.log("ebpf"), |line| progress.latest(line))?;
        let changed =
            publish(&target.join(TARGET).join(PROFILE).join("weir-ebpf"), &workspace.ebpf_object())?;
        let words = if changed { "built" } else { "unchanged" };
        Ok((Object::Built, format!("{words} with {}", toolchain.compiler.name())))
    })
}

/// For what compiles the agent and never runs it: an object from earlier will do, and so will none.
pub(crate) fn present(workspace: &Workspace) -> Object {
    if workspace.ebpf_object().exists() { Object::Built } else { Object::None }
}

/// What cargo must be told to build the agent with or without it.
pub(crate) fn environment(object: Object) -> Option<(&'static str, &'static str)> {
    (object == Object::None).then_some(NO_OBJECT)
}

/// Copies only what differs: a new modification time would rebuild the agent.
fn publish(built: &Path, published: &Path) -> anyhow::Result<bool> {
    let object = fs::read(built).with_context(|| format!("reading {}", built.display()))?;
    if fs::read(published).is_ok_and(|present| present == object) {
        return Ok(false);
    }
    let folder = published.parent().map(PathBuf::from).unwrap_or_default();
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    // By rename: a build that runs meanwhile reads the old object or the new one, never half of it.
    let fresh = published.with_extension("new");
    fs::write(&fresh, object).with_context(|| format!("writing {}", fresh.display()))?;
    fs::rename(&fresh, published).with_context(|| format!("writing {}", published.display()))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unchanged_object_is_not_written_again() {
        let folder = tempfile::tempdir().unwrap();
        let (built, published) = (folder.path().join("built"), folder.path().join("deep/published"));
        fs::write(&built, b"one").unwrap();
        assert!(publish(&built, &published).unwrap());
        assert!(!publish(&built, &published).unwrap());
        fs::write(&built, b"two").unwrap();
        assert!(publish(&built, &published).unwrap());
        assert_eq!(fs::read(&published).unwrap(), b"two");
    }

    #[test]
    fn a_missing_object_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let error = publish(&folder.path().join("absent"), &folder.path().join("published")).unwrap_err();
        assert!(error.to_string().contains("absent"));
    }
}
