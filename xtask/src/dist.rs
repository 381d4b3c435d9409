//! `cargo xtask dist`: what is handed out, per target: one archive with the three programs, Debian packages, and the
//! checksums of it all, in `.build/dist`.
//!
//! The programs link the C library and nothing else dynamically; that is checked, and the oldest glibc that they start
//! with is printed. A target that cannot be built here is left out and said so.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::packages::{self, Use};
use crate::setup::{self, Wants};
use crate::steps::{Progress, Steps};
use crate::workspace::Workspace;
use crate::{command, ebpf};

const CARGO_DEB_VERSION: &str = "3.8.0";
const PROGRAMS: [&str; 3] = ["weir-agent", "weir-collector", "weir"];
const SHELLS: [&str; 3] = ["bash", "zsh", "fish"];

/// What a near-static program may still ask the system for.
const LIBRARIES: [&str; 6] = [
    "libc.so.6",
    "libm.so.6",
    "libgcc_s.so.1",
    "ld-linux-x86-64.so.2",
    "ld-linux-aarch64.so.1",
    "libdl.so.2",
];

/// Packages and the crate and variant that hold them.
const PACKAGES: [(&str, Option<&str>); 3] =
    [("weir-agent", None), ("weir-collector", None), ("weir-collector", Some("client"))];

/// A target with the Debian names of its cross tools.
#[derive(Debug)]
pub(crate) struct Target {
    triple: &'static str,
    /// Prefix of the binutils and the compiler.
    tools: &'static str,
}

pub(crate) const TARGETS: [Target; 2] = [
    Target { triple: "x86_64-unknown-linux-gnu", tools: "x86_64-linux-gnu" },
    Target { triple: "aarch64-unknown-linux-gnu", tools: "aarch64-linux-gnu" },
];

pub(crate) fn run(workspace: &Workspace, only: Option<&str>, skip_packages: bool) -> anyhow::Result<()> {
    let targets: Vec<&Target> =
        TARGETS.iter().filter(|target| only.is_none_or(|wanted| target.triple == wanted)).collect();
    if targets.is_empty() {
        let known = TARGETS.map(|target| target.triple).join(", ");
        bail!("no such target: {}. Known are {known}", only.unwrap_or_default());
    }
    let host = host_triple()?;
    let ready = setup::run(workspace, &Wants::object(skip_packages))?;
    let object = ebpf::build(workspace, ready.toolchain.as_ref())?;
    let out = workspace.root.join(".build/dist");
    if out.exists() {
        fs::remove_dir_all(&out).with_context(|| format!("emptying {}", out.display()))?;
    }
    fs::create_dir_all(out.join("completions"))?;

    let mut steps = Steps::new(2 + targets.len() * 3);
    steps.step("packaging tools", |progress| tools(workspace, &targets, &host, skip_packages, progress))?;
    let mut left_out = Vec::new();
    for target in order(targets, &host) {
        if let Err(why) = can_build(target, &host) {
            left_out.push((target.triple, why));
            continue;
        }
        let programs = workspace.target.join(target.triple).join("release");
        steps.step(&format!("{}: programs", target.triple), |progress| {
            build(workspace, target, &host, object, progress)?;
            let oldest = near_static(target, &programs)?;
            Ok(((), format!("built; they need glibc {oldest} or newer, and nothing else")))
        })?;
        if target.triple == host {
            completions(&programs, &out.join("completions"))?;
        }
        steps
            .step(&format!("{}: archive", target.triple), |_| archive(workspace, target, &programs, &out))?;
        steps.step(&format!("{}: Debian packages", target.triple), |progress| {
            debs(workspace, target, &out, progress)
        })?;
    }
    steps.step("checksums", |_| checksums(&out))?;
    for (triple, why) in left_out {
        eprintln!("left out: {triple}: {why}");
    }
    println!("{}", out.display());
    Ok(())
}

/// This machine's own first: its programs print the completions that all packages hold.
fn order<'t>(mut targets: Vec<&'t Target>, host: &str) -> Vec<&'t Target> {
    targets.sort_by_key(|target| target.triple != host);
    targets
}

fn host_triple() -> anyhow::Result<String> {
    let version = command::capture(Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("`rustc -vV` names no host")?.to_owned())
}

fn tools(
    workspace: &Workspace,
    targets: &[&Target],
    host: &str,
    skip_packages: bool,
    progress: &Progress,
) -> anyhow::Result<((), String)> {
    let cross = targets.iter().any(|target| target.triple != host);
    if !skip_packages {
        let wanted = packages::named(if cross { &[Use::Dist, Use::Cross] } else { &[Use::Dist] });
        let missing = packages::missing(&wanted);
        if !missing.is_empty() {
            packages::install(&missing, &workspace.log("packages"), progress)?;
        }
    }
    for target in targets.iter().filter(|target| target.triple != host) {
        // Whether it worked is seen by `can_build`, which says what is missing.
        let mut add = Command::new("rustup");
        add.args(["target", "add", target.triple]);
        let _ = command::run_logged(&mut add, &workspace.log("rustup-target"), |line| progress.latest(line));
    }
    if cargo_deb_works(workspace) {
        return Ok(((), "all there".to_owned()));
    }
    let mut install = workspace.cargo("install");
    install
        .args(["cargo-deb", "--locked", "--force", "--version", CARGO_DEB_VERSION, "--root"])
        .arg(&workspace.tools)
        .env("CARGO_TARGET_DIR", workspace.tools.join("build"));
    command::run_logged(&mut install, &workspace.log("cargo-deb"), |line| progress.latest(line))
        .context("building cargo-deb")?;
    fs::remove_dir_all(workspace.tools.join("build")).context("removing cargo-deb's build")?;
    Ok(((), "built cargo-deb".to_owned()))
}

fn cargo_deb(workspace: &Workspace) -> PathBuf {
    workspace.tools.join("bin/cargo-deb")
}

fn cargo_deb_works(workspace: &Workspace) -> bool {
    let version = command::capture(Command::new(cargo_deb(workspace)).arg("--version"));
    version.is_ok_and(|text| text.contains(CARGO_DEB_VERSION))
}

/// What a foreign target lacks here, in words.
fn can_build(target: &Target, host: &str) -> Result<(), String> {
    if target.triple == host {
        return Ok(());
    }
    let sysroot = command::capture(Command::new("rustc").args(["--print", "sysroot"]))
        .map_err(|error| error.to_string())?;
    if !Path::new(sysroot.trim()).join("lib/rustlib").join(target.triple).join("lib").exists() {
        return Err(format!("its standard library is missing: rustup target add {}", target.triple));
    }
    let compiler = format!("{}-gcc", target.tools);
    command::capture(Command::new(&compiler).arg("--version"))
        .map(drop)
        .map_err(|_| format!("its C compiler is missing: apt-get install gcc-{}", target.tools))
}

fn build(
    workspace: &Workspace,
    target: &Target,
    host: &str,
    object: ebpf::Object,
    progress: &Progress,
) -> anyhow::Result<()> {
    let mut build = workspace.cargo("build");
    build
        .args(["--release", "--locked", "--package", "weir-agent", "--package", "weir-collector", "--bins"])
        .args(["--target", target.triple])
        .envs(ebpf::environment(object));
    if target.triple != host {
        let upper = target.triple.to_uppercase().replace('-', "_");
        let lower = target.triple.replace('-', "_");
        build
            .env(format!("CARGO_TARGET_{upper}_LINKER"), format!("{}-gcc", target.tools))
            .env(format!("CC_{lower}"), format!("{}-gcc", target.tools))
            .env(format!("CXX_{lower}"), format!("{}-g++", target.tools))
            .env(format!("AR_{lower}"), format!("{}-ar", target.tools));
    }
    command::run_logged(&mut build, &workspace.log("dist"), |line| progress.latest(line))
}

/// The oldest glibc that the programs start with. Any other library is a mistake: it would be missing elsewhere.
fn near_static(target: &Target, programs: &Path) -> anyhow::Result<String> {
    let mut oldest = (0, 0);
    for program in PROGRAMS {
        let mut objdump = Command::new(format!("{}-objdump", target.tools));
        let headers = command::capture(objdump.arg("-p").arg(programs.join(program)))?;
        let strange: BTreeSet<_> = needed(&headers).filter(|name| !LIBRARIES.contains(name)).collect();
        if !strange.is_empty() {
            bail!("{program} links {strange:?}: only the C library may be linked dynamically");
        }
        oldest = oldest.max(newest_glibc(&headers));
    }
    Ok(format!("{}.{}", oldest.0, oldest.1))
}

fn needed(headers: &str) -> impl Iterator<Item = &str> {
    headers.lines().filter_map(|line| line.trim().strip_prefix("NEEDED").map(str::trim))
}

fn newest_glibc(headers: &str) -> (u32, u32) {
    let versions = headers.split_whitespace().filter_map(|word| {
        let mut numbers = word.strip_prefix("GLIBC_")?.split('.').map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    });
    versions.max().unwrap_or_default()
}

fn completions(programs: &Path, out: &Path) -> anyhow::Result<()> {
    for program in PROGRAMS {
        for shell in SHELLS {
            let script = command::capture(Command::new(programs.join(program)).args(["completions", shell]))?;
            fs::write(out.join(format!("{program}.{shell}")), script)?;
        }
    }
    Ok(())
}

/// One folder with the programs, the units and the licences; the same bytes for the same commit and compiler.
fn archive(
    workspace: &Workspace,
    target: &Target,
    programs: &Path,
    out: &Path,
) -> anyhow::Result<((), String)> {
    let name = format!("weir-{}-{}", env!("CARGO_PKG_VERSION"), target.triple);
    let folder = out.join(&name);
    fs::create_dir_all(&folder)?;
    for program in PROGRAMS {
        let mut strip = Command::new(format!("{}-strip", target.tools));
        strip.arg("--strip-debug").arg("-o").arg(folder.join(program)).arg(programs.join(program));
        command::capture(&mut strip)?;
    }
    for file in ["README.md", "CHANGELOG.md", "LICENSE", "LICENSE-APACHE", "LICENSE-MIT"] {
        fs::copy(workspace.root.join(file), folder.join(file)).with_context(|| format!("copying {file}"))?;
    }
    for part in ["deploy/systemd", "deploy/etc"] {
        for file in fs::read_dir(workspace.root.join(part))? {
            let file = file?;
            fs::copy(file.path(), folder.join(file.file_name()))?;
        }
    }
    let mut git = Command::new("git");
    git.current_dir(&workspace.root).args(["log", "-1", "--format=%ct"]);
    let committed = command::capture(&mut git)?;
    let file = out.join(format!("{name}.tar.gz"));
    let mut tar = Command::new("tar");
    tar.current_dir(out)
        .args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mode=u+rwX,go+rX,go-w"])
        .arg(format!("--mtime=@{}", committed.trim()))
        .args(["--use-compress-program=gzip -9n", "-cf"])
        .arg(&file)
        .arg(&name);
    command::capture(&mut tar)?;
    fs::remove_dir_all(&folder)?;
    Ok(((), words(&file)))
}

fn debs(
    workspace: &Workspace,
    target: &Target,
    out: &Path,
    progress: &Progress,
) -> anyhow::Result<((), String)> {
    for (package, variant) in PACKAGES {
        let mut deb = Command::new(cargo_deb(workspace));
        deb.current_dir(&workspace.root)
            .args(["--package", package, "--no-build", "--locked", "--target", target.triple, "--output"])
            .arg(out);
        if let Some(variant) = variant {
            deb.args(["--variant", variant]);
        }
        command::run_logged(&mut deb, &workspace.log("deb"), |line| progress.latest(line))?;
    }
    Ok(((), format!("{} packages", PACKAGES.len())))
}

fn checksums(out: &Path) -> anyhow::Result<((), String)> {
    let mut names: Vec<String> = fs::read_dir(out)?
        .filter_map(|file| file.ok()?.file_name().into_string().ok())
        .filter(|name| name.ends_with(".deb") || name.ends_with(".tar.gz"))
        .collect();
    names.sort();
    let sums = command::capture(Command::new("sha256sum").current_dir(out).args(&names))?;
    fs::write(out.join("SHA256SUMS"), sums)?;
    Ok(((), format!("{} files", names.len())))
}

fn words(file: &Path) -> String {
    let bytes = fs::metadata(file).map_or(0, |found| found.len());
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADERS: &str = "  NEEDED               libgcc_s.so.1\n  NEEDED               libc.so.6\n\
        0x09691a75 0x00 05 GLIBC_2.2.5\n 0x069691b4 0x00 04 GLIBC_2.34\n 0x0 0x00 03 GLIBC_2.4\n";

    #[test]
    fn libraries_and_versions_are_read_from_the_headers() {
        assert_eq!(needed(HEADERS).collect::<Vec<_>>(), ["libgcc_s.so.1", "libc.so.6"]);
        assert_eq!(newest_glibc(HEADERS), (2, 34));
    }

    #[test]
    fn this_machines_own_target_comes_first() {
        let [x86, arm] = &TARGETS;
        let triples = |host| order(vec![x86, arm], host).into_iter().map(|t| t.triple).collect::<Vec<_>>();
        assert_eq!(triples(arm.triple), [arm.triple, x86.triple]);
        assert_eq!(triples(x86.triple), [x86.triple, arm.triple]);
    }

    #[test]
    fn a_target_without_its_compiler_is_told_what_to_install() {
        let strange = Target { triple: "riscv64gc-unknown-linux-gnu", tools: "riscv64-linux-gnu" };
        let why = can_build(&strange, "x86_64-unknown-linux-gnu").unwrap_err();
        assert!(why.contains("rustup target add") || why.contains("apt-get install"), "{why}");
    }
}
