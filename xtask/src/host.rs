//! What this machine is, and what stands in the way. Reading and judging are apart, so that every complaint can
//! be tested on a machine that has nothing to complain about.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// The oldest kernel on which the whole hook set was proven.
pub(crate) const KERNEL_MIN: KernelVersion = KernelVersion { major: 6, minor: 1 };

/// The kernel's own type information; the loader needs it.
const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct KernelVersion {
    pub major: u32,
    pub minor: u32,
}

#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub root: bool,
    pub distribution: Distribution,
    /// None when the kernel's release does not start with two numbers.
    pub kernel: Option<KernelVersion>,
    pub btf: bool,
    pub cgroup2: Option<PathBuf>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Distribution {
    pub id: String,
    pub version: String,
    pub name: String,
}

/// Why a ritual cannot go on. Shown to a person: what is wrong, then what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Problem {
    NotRootForKernel,
    NotRootForPackages { missing: Vec<String> },
    NoBtf,
    NoCgroup2,
    KernelTooOld { found: Option<KernelVersion> },
    OtherDistribution { found: String, packages: Vec<String> },
}

/// What stops the tests that attach to this kernel; all of it at once, not one complaint per try.
pub(crate) fn kernel_problems(facts: &Facts) -> Vec<Problem> {
    let mut problems = Vec::new();
    if !facts.root {
        problems.push(Problem::NotRootForKernel);
    }
    if facts.kernel.is_none_or(|found| found < KERNEL_MIN) {
        problems.push(Problem::KernelTooOld { found: facts.kernel });
    }
    if !facts.btf {
        problems.push(Problem::NoBtf);
    }
    if facts.cgroup2.is_none() {
        problems.push(Problem::NoCgroup2);
    }
    problems
}

/// What stops the installation of `missing` packages; `wanted` is the whole list, for those who install by hand.
pub(crate) fn package_problem(facts: &Facts, wanted: &[&str], missing: &[&str]) -> Option<Problem> {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    if !facts.distribution.is_debian_12() {
        return Some(Problem::OtherDistribution {
            found: facts.distribution.name.clone(),
            packages: owned(wanted),
        });
    }
    let stuck = !missing.is_empty() && !facts.root;
    stuck.then(|| Problem::NotRootForPackages { missing: owned(missing) })
}

impl Facts {
    pub(crate) fn read() -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Self {
            root: effective_uid(&text("/proc/self/status")) == Some(0),
            distribution: Distribution::parse(&text("/etc/os-release")),
            kernel: KernelVersion::parse(&text("/proc/sys/kernel/osrelease")),
            btf: Path::new(BTF_PATH).exists(),
            cgroup2: cgroup2_mount(&text("/proc/self/mounts")),
        }
    }
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.distribution.name)?;
        if let Some(kernel) = self.kernel {
            write!(f, ", kernel {kernel}")?;
        }
        f.write_str(if self.root { ", root" } else { ", not root" })
    }
}

impl Distribution {
    fn parse(os_release: &str) -> Self {
        let value = |key: &str| {
            let line = os_release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            line.unwrap_or_default().trim_matches('"').to_owned()
        };
        Self { id: value("ID"), version: value("VERSION_ID"), name: value("PRETTY_NAME") }
    }

    fn is_debian_12(&self) -> bool {
        self.id == "debian" && self.version == "12"
    }
}

impl KernelVersion {
    fn parse(release: &str) -> Option<Self> {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        Some(Self { major: numbers.next()?.ok()?, minor: numbers.next()?.ok()? })
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRootForKernel => f.write_str(
                "not root: attaching eBPF programs and making cgroups needs it.\n  \
                 Run this as root, or what needs no root: cargo xtask test --no-kernel",
            ),
            Self::NotRootForPackages { missing } => write!(
                f,
                "not root, and packages are missing: {0}.\n  \
                 Run this as root, or have them installed: apt-get install {0}\n  \
                 What needs no root: cargo xtask test --no-kernel",
                missing.join(" ")
            ),
            Self::NoBtf => write!(
                f,
                "this kernel has no type information at {BTF_PATH}.\n  \
                 Boot a kernel built with CONFIG_DEBUG_INFO_BTF=y (Debian's own are), \
                 or run: cargo xtask test --no-kernel"
            ),
            Self::NoCgroup2 => f.write_str(
                "no cgroup2 filesystem is mounted; governed processes are selected by their cgroup.\n  \
                 Mount it: mkdir -p /sys/fs/cgroup/unified && \
                 mount -t cgroup2 none /sys/fs/cgroup/unified\n  \
                 or run: cargo xtask test --no-kernel",
            ),
            Self::KernelTooOld { found } => {
                let found =
                    found.map_or_else(|| "of unknown version".to_owned(), |kernel| kernel.to_string());
                write!(
                    f,
                    "this kernel ({found}) is older than {KERNEL_MIN}, the oldest that the eBPF programs support.\n  \
                     Boot Debian 12's kernel or a newer one, or run: cargo xtask test --no-kernel"
                )
            }
            Self::OtherDistribution { found, packages } => write!(
                f,
                "packages are installed on Debian 12 only, and this is {}.\n  \
                 Install by hand what these Debian packages hold: {}\n  \
                 The eBPF compiler may be instead: rustup toolchain install nightly --component rust-src\n  \
                 The linker needs LLVM 22 (LLVM_PREFIX names it when it is not in /usr/lib/llvm-22)\n  \
                 Then run again with --skip-packages, or set WEIR_SKIP_PACKAGES=true",
                if found.is_empty() { "something else" } else { found },
                packages.join(" ")
            ),
        }
    }
}

/// The second number of the `Uid:` line; the first is the real one.
fn effective_uid(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Hybrid hosts mount it beside version 1, so the place is asked for, not assumed.
fn cgroup2_mount(mounts: &str) -> Option<PathBuf> {
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields.into_iter().find_map(|line| (line.get(2) == Some(&"cgroup2")).then(|| PathBuf::from(line[1])))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBIAN_12: &str = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID=\"12\"\nID=debian\n";

    fn able() -> Facts {
        Facts {
            root: true,
            distribution: Distribution::parse(DEBIAN_12),
            kernel: Some(KERNEL_MIN),
            btf: true,
            cgroup2: Some(PathBuf::from("/sys/fs/cgroup")),
        }
    }

    #[test]
    fn a_fit_machine_has_no_problem() {
        assert_eq!(kernel_problems(&able()), []);
        assert_eq!(package_problem(&able(), &["postgresql"], &["postgresql"]), None);
    }

    #[test]
    fn every_kernel_problem_is_told_at_once_and_says_what_to_do() {
        let facts = Facts {
            root: false,
            kernel: Some(KernelVersion { major: 5, minor: 15 }),
            btf: false,
            cgroup2: None,
            ..able()
        };
        let problems = kernel_problems(&facts);
        assert_eq!(problems.len(), 4);
        let told = problems.iter().map(Problem::to_string).collect::<Vec<_>>();
        assert!(told.iter().all(|text| text.contains("--no-kernel")), "{told:?}");
        assert!(told.iter().any(|text| text.contains("mount -t cgroup2")), "{told:?}");
        assert!(told.iter().any(|text| text.contains("5.15")), "{told:?}");
    }

    #[test]
    fn an_unreadable_kernel_version_is_not_taken_for_a_new_one() {
        let problems = kernel_problems(&Facts { kernel: None, ..able() });
        assert_eq!(problems, [Problem::KernelTooOld { found: None }]);
    }

    #[test]
    fn missing_packages_need_root_but_present_ones_do_not() {
        let facts = Facts { root: false, ..able() };
        assert_eq!(package_problem(&facts, &["iproute2"], &[]), None);
        let told = package_problem(&facts, &["iproute2", "curl"], &["curl"]).unwrap().to_string();
        assert!(told.contains("apt-get install curl") && !told.contains("iproute2"), "{told}");
    }

    #[test]
    fn another_distribution_is_told_the_whole_list() {
        let distribution = Distribution::parse("ID=fedora\nVERSION_ID=43\nPRETTY_NAME=\"Fedora 43\"\n");
        let facts = Facts { distribution, ..able() };
        let told = package_problem(&facts, &["iproute2", "curl"], &[]).unwrap().to_string();
        for word in ["Fedora 43", "iproute2 curl", "--skip-packages", "rust-src"] {
            assert!(told.contains(word), "{word} is not in: {told}");
        }
    }

    #[test]
    fn facts_are_read_from_the_kernels_own_formats() {
        assert_eq!(effective_uid("Name:\tx\nUid:\t1000\t0\t0\t0\n"), Some(0));
        assert_eq!(KernelVersion::parse("6.12.5+deb13-amd64\n"), Some(KernelVersion { major: 6, minor: 12 }));
        assert_eq!(KernelVersion::parse("unknown"), None);
        let mounts = "proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(cgroup2_mount(mounts), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(cgroup2_mount("cgroup /sys/fs/cgroup cgroup rw 0 0\n"), None);
    }
}
