//! Where things are: the checkout, cargo's target directory, and the cache of tools that outlives both.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, anyhow};
use serde_json::Value;

use crate::command;

#[derive(Debug)]
pub(crate) struct Workspace {
    pub root: PathBuf,
    /// Cargo's own answer, so `CARGO_TARGET_DIR` and `.cargo/config.toml` count.
    pub target: PathBuf,
    /// Tools that are built once per machine, not once per clone.
    pub tools: PathBuf,
    packages: Vec<Value>,
}

impl Workspace {
    pub(crate) fn find() -> anyhow::Result<Self> {
        // The path at run time: a binary from a shared target directory may have been built in another clone.
        let manifest_dir = std::env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let mut metadata = Command::new("cargo");
        metadata.args(["metadata", "--no-deps", "--format-version=1"]).current_dir(manifest_dir);
        let metadata: Value = serde_json::from_str(&command::capture(&mut metadata)?)
            .context("reading what `cargo metadata` printed")?;
        let path = |key: &str| {
            metadata[key]
                .as_str()
                .map(PathBuf::from)
                .ok_or_else(|| anyhow!("`cargo metadata` names no {key}"))
        };
        Ok(Self {
            root: path("workspace_root")?,
            target: path("target_directory")?,
            tools: tools_dir()?,
            packages: metadata["packages"].as_array().cloned().unwrap_or_default(),
        })
    }

    /// Cargo as rustup resolves it for this checkout.
    pub(crate) fn cargo(&self, subcommand: &str) -> Command {
        let mut cargo = Command::new("cargo");
        cargo.arg(subcommand).current_dir(&self.root);
        cargo
    }

    /// The eBPF object in the checkout. `agent/build.rs` knows the same path.
    pub(crate) fn ebpf_object(&self) -> PathBuf {
        self.root.join(".build/ebpf/weir-ebpf")
    }

    /// Where cargo puts the programs of a debug build.
    pub(crate) fn bins(&self) -> PathBuf {
        self.target.join("debug")
    }

    /// Where cargo puts the programs of a release build.
    pub(crate) fn release_bins(&self) -> PathBuf {
        self.target.join("release")
    }

    pub(crate) fn bpf_linker(&self) -> PathBuf {
        self.tools.join("bin/bpf-linker")
    }

    /// What a step printed; shown when it fails, kept for a closer look.
    pub(crate) fn log(&self, step: &str) -> PathBuf {
        self.target.join("xtask").join(format!("{step}.log"))
    }

    /// The test targets of `package` that exist only with `feature`.
    pub(crate) fn tests_behind(&self, package: &str, feature: &str) -> Vec<String> {
        let all_targets = self
            .packages
            .iter()
            .filter(|found| found["name"] == package)
            .filter_map(|found| found["targets"].as_array())
            .flatten();
        all_targets
            .filter(|target| {
                contains(&target["kind"], "test") && contains(&target["required-features"], feature)
            })
            .filter_map(|target| target["name"].as_str().map(str::to_owned))
            .collect()
    }
}

fn contains(list: &Value, wanted: &str) -> bool {
    list.as_array().is_some_and(|items| items.iter().any(|item| item == wanted))
}

fn tools_dir() -> anyhow::Result<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))
        .ok_or_else(|| anyhow!("neither XDG_CACHE_HOME nor HOME is set: set one, tools are kept below it"))?;
    Ok(cache.join("weir/tools"))
}
