//! The compiler and the linker of the eBPF object.
//!
//! The object needs the standard library's source for `-Z build-std=core`, which rustup gives only to a nightly
//! toolchain. Where nightly with rust-src is installed, it is used. Elsewhere Debian's `rustc-web` comes with its
//! source, and RUSTC_BOOTSTRAP=1 opens the same flags. bpf-linker reads rustc's bitcode, so its LLVM must be at
//! least rustc's; both recipes here are LLVM 22.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use crate::command;
use crate::steps::Progress;
use crate::workspace::Workspace;

const LLVM_MAJOR: u32 = 22;
const LINKER_VERSION: &str = "0.13";

/// The workspace's `rust-version`: an older compiler refuses the shared crates.
const RUSTC_MINOR_MIN: u32 = 95;

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";

/// Found by sysroot: the same place in both recipes.
const LIBRARY_SOURCE: &str = "lib/rustlib/src/rust/library/Cargo.toml";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compiler {
    /// rustup's nightly with rust-src.
    Nightly,
    /// Debian's rustc-web, cargo-web and rust-web-src.
    Debian,
}

#[derive(Debug)]
pub(crate) struct Toolchain {
    pub compiler: Compiler,
    pub linker: PathBuf,
}

/// What a compiler says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Release {
    minor: u32,
    llvm_major: u32,
}

impl Compiler {
    /// The first that works. Nightly first: whoever installed rust-src meant it to be used.
    pub(crate) fn find() -> Option<Self> {
        [Self::Nightly, Self::Debian].into_iter().find(|compiler| compiler.works())
    }

    /// Cargo of this toolchain, with nothing left of the toolchain that built xtask.
    pub(crate) fn cargo(self) -> Command {
        let mut cargo = match self {
            Self::Nightly => rustup_run("cargo"),
            Self::Debian => {
                let mut cargo = Command::new(DEBIAN_CARGO);
                command::forget_toolchain(&mut cargo).env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                cargo
            }
        };
        cargo.env("RUSTUP_AUTO_INSTALL", "0");
        cargo
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nightly => "nightly with rust-src",
            Self::Debian => "Debian's rustc-web",
        }
    }

    fn rustc(self) -> Command {
        match self {
            Self::Nightly => rustup_run("rustc"),
            Self::Debian => Command::new(DEBIAN_RUSTC),
        }
    }

    fn works(self) -> bool {
        let ask = |argument: &[&str]| command::capture(self.rustc().args(argument)).ok();
        let fits = ask(&["-vV"]).and_then(|text| Release::parse(&text)).is_some_and(Release::fits);
        fits && ask(&["--print", "sysroot"])
            .is_some_and(|sysroot| Path::new(sysroot.trim()).join(LIBRARY_SOURCE).exists())
    }
}

impl Release {
    fn parse(verbose_version: &str) -> Option<Self> {
        let value = |key: &str| verbose_version.lines().find_map(|line| line.strip_prefix(key));
        let minor = value("release: 1.")?.split('.').next()?;
        let llvm_major = value("LLVM version: ")?.split('.').next()?;
        Some(Self { minor: minor.parse().ok()?, llvm_major: llvm_major.parse().ok()? })
    }

    fn fits(self) -> bool {
        self.minor >= RUSTC_MINOR_MIN && self.llvm_major <= LLVM_MAJOR
    }
}

/// Whether the linker in the tool cache is there, of the right version, and finds its LLVM.
pub(crate) fn linker_works(workspace: &Workspace) -> bool {
    let version = command::capture(Command::new(workspace.bpf_linker()).arg("--version"));
    version.is_ok_and(|text| text.starts_with(&format!("bpf-linker {LINKER_VERSION}.")))
}

/// Builds the linker into the tool cache. Minutes, once per machine.
pub(crate) fn install_linker(workspace: &Workspace, log: &Path, progress: &Progress) -> anyhow::Result<()> {
    let scratch = workspace.tools.join("build");
    fs::create_dir_all(&scratch).with_context(|| format!("creating {}", scratch.display()))?;
    let mut install = workspace.cargo("install");
    install
        .args(["bpf-linker", "--locked", "--force", "--no-default-features"])
        .args(["--version", &format!("^{LINKER_VERSION}"), "--features", &format!("llvm-{LLVM_MAJOR}")])
        .arg("--root")
        .arg(&workspace.tools)
        .env("LLVM_PREFIX", llvm_prefix())
        .env("CARGO_TARGET_DIR", &scratch)
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    command::run_logged(&mut install, log, |line| progress.latest(line))
        .with_context(|| format!("building bpf-linker against LLVM {LLVM_MAJOR}"))?;
    fs::remove_dir_all(&scratch).with_context(|| format!("removing {}", scratch.display()))
}

/// Where the linker's LLVM is.
pub(crate) fn llvm_prefix() -> PathBuf {
    std::env::var_os("LLVM_PREFIX")
        .map_or_else(|| PathBuf::from(format!("/usr/lib/llvm-{LLVM_MAJOR}")), PathBuf::from)
}

/// rustup must not go and fetch a toolchain because we asked whether it is there.
fn rustup_run(program: &str) -> Command {
    let mut rustup = Command::new("rustup");
    command::forget_toolchain(&mut rustup).env("RUSTUP_AUTO_INSTALL", "0").args(["run", "nightly", program]);
    rustup
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release(minor: u32, llvm: u32) -> Option<Release> {
        Release::parse(&format!(
            "rustc 1.{minor}.0\nbinary: rustc\nrelease: 1.{minor}.0-nightly\nLLVM version: {llvm}.1.4\n"
        ))
    }

    #[test]
    fn a_compiler_must_be_new_enough_and_its_llvm_not_newer_than_the_linkers() {
        assert_eq!(release(97, 22), Some(Release { minor: 97, llvm_major: 22 }));
        assert!(release(97, 22).unwrap().fits());
        assert!(!release(97, 23).unwrap().fits(), "bitcode of LLVM 23 cannot be read by 22");
        assert!(!release(63, 14).unwrap().fits(), "Debian 12's ordinary rustc");
    }

    #[test]
    fn anything_else_that_answers_is_no_compiler() {
        assert_eq!(Release::parse("rustc 1.95.0\n"), None);
    }
}
