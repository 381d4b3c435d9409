//! The Debian packages that building and testing need, and why.

use std::path::Path;
use std::process::Command;

use crate::command;
use crate::steps::Progress;

/// How long to wait for another package manager to finish.
const APT_LOCK_TIMEOUT_SECS: u32 = 600;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// Every build.
    Build,
    /// The eBPF object by Debian's recipe; with a nightly toolchain that has rust-src only LLVM is needed.
    Compiler,
    /// The eBPF linker.
    Linker,
    /// Archives and packages of what is handed out.
    Dist,
    /// The same for another processor than this machine's.
    Cross,
    /// Real clients' own test suites.
    Clients,
    /// The end-to-end tests and the demo: real servers and clients.
    Kernel,
}

#[derive(Debug)]
pub(crate) struct Package {
    pub name: &'static str,
    pub used: Use,
}

pub(crate) const PACKAGES: [Package; 19] = [
    // the C of aws-lc, zstd and SQLite; the C++ of LLVM's bindings
    Package { name: "build-essential", used: Use::Build },
    // a rustc with its own standard library's source: what rustup has only in nightly
    Package { name: "rustc-web", used: Use::Compiler },
    Package { name: "rust-web-src", used: Use::Compiler },
    Package { name: "cargo-web", used: Use::Compiler },
    // bpf-linker is built against the LLVM that rustc has
    Package { name: "llvm-22-dev", used: Use::Linker },
    // strip and objdump, and what finds a package's dependencies
    Package { name: "binutils", used: Use::Dist },
    Package { name: "dpkg-dev", used: Use::Dist },
    Package { name: "g++-aarch64-linux-gnu", used: Use::Cross },
    Package { name: "libc6-dev-arm64-cross", used: Use::Cross },
    // the demo's and the tests' database, with its clients and pgbench
    Package { name: "postgresql", used: Use::Kernel },
    Package { name: "postgresql-client", used: Use::Kernel },
    // network namespaces and addresses of the tests' own
    Package { name: "iproute2", used: Use::Kernel },
    // ordinary clients and servers, run as governed processes
    Package { name: "curl", used: Use::Kernel },
    Package { name: "nginx", used: Use::Kernel },
    Package { name: "netcat-openbsd", used: Use::Kernel },
    Package { name: "python3", used: Use::Kernel },
    Package { name: "python3-requests", used: Use::Kernel },
    // the suites of real clients
    Package { name: "git", used: Use::Clients },
    Package { name: "python3-venv", used: Use::Clients },
];

/// The names of the packages for any of these uses.
pub(crate) fn named(uses: &[Use]) -> Vec<&'static str> {
    PACKAGES.iter().filter(|package| uses.contains(&package.used)).map(|package| package.name).collect()
}

/// Those of `names` that are not installed. Without dpkg none is.
pub(crate) fn missing<'a>(names: &[&'a str]) -> Vec<&'a str> {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat", "${Package} ${db:Status-Status}\n"]).args(names);
    // dpkg-query ends with 1 when it does not know one of them: what it printed about the others counts.
    let known = query.output().map(|output| output.stdout).unwrap_or_default();
    not_installed(names, &String::from_utf8_lossy(&known))
}

pub(crate) fn install(names: &[&str], log: &Path, progress: &Progress) -> anyhow::Result<()> {
    let apt = |arguments: &[&str]| {
        let mut apt = Command::new("apt-get");
        apt.env("DEBIAN_FRONTEND", "noninteractive")
            .arg(format!("--option=DPkg::Lock::Timeout={APT_LOCK_TIMEOUT_SECS}"))
            .args(arguments);
        command::run_logged(&mut apt, log, |line| progress.latest(line))
    };
    apt(&["update"])?;
    // Never at the cost of what is there: a conflict (say, with Debian's older rustc) is the person's decision.
    let flags = ["install", "--yes", "--no-install-recommends", "--no-remove"];
    apt(&[&flags[..], names].concat())
}

fn not_installed<'a>(names: &[&'a str], known: &str) -> Vec<&'a str> {
    let installed = |name: &str| known.lines().any(|line| line.split_once(' ') == Some((name, "installed")));
    names.iter().copied().filter(|name| !installed(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_dpkg_calls_installed_counts() {
        let known = "curl installed\npython3 config-files\n";
        assert_eq!(not_installed(&["curl", "python3", "iproute2"], known), ["python3", "iproute2"]);
        assert_eq!(not_installed(&["curl"], ""), ["curl"]);
    }
}
