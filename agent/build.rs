//! Tells the agent where its eBPF object is. It does not build it: that takes another compiler, which
//! `cargo xtask ebpf` knows how to find.
//!
//! `WEIR_EBPF_OBJECT=none` embeds an empty object. It is for machines that cannot have the compiler (no root); such
//! an agent builds and passes the tests that need no kernel, and refuses to start redirection.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

const VARIABLE: &str = "WEIR_EBPF_OBJECT";

/// Where `cargo xtask ebpf` leaves it, from this crate.
const BUILT_BY_XTASK: &str = "../.build/ebpf/weir-ebpf";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed={VARIABLE}");
    let object = match env::var_os(VARIABLE) {
        Some(word) if word == "none" => empty_object()?,
        Some(path) => present(Path::new(&path))?,
        None => present(&Path::new(&env::var("CARGO_MANIFEST_DIR")?).join(BUILT_BY_XTASK))?,
    };
    println!("cargo:rustc-env={VARIABLE}={}", object.display());
    Ok(())
}

fn present(object: &Path) -> Result<PathBuf, String> {
    println!("cargo:rerun-if-changed={}", object.display());
    object.canonicalize().map_err(|error| {
        format!(
            "no eBPF object at {} ({error}): run `cargo xtask ebpf`, or set {VARIABLE}=none \
             to build an agent that cannot redirect",
            object.display()
        )
    })
}

fn empty_object() -> io::Result<PathBuf> {
    let path = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("no-object");
    fs::write(&path, [])?;
    Ok(path)
}
