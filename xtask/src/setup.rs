//! `cargo xtask setup`: makes this machine able to build and test, and says what it did. Every step first looks
//! whether it has anything to do. There is no stamp: looking takes under a second, and a stamp outlives what it
//! vouches for.

use anyhow::{anyhow, bail};

use crate::host::{self, Facts, Problem};
use crate::packages::{self, Use};
use crate::steps::{Progress, Steps};
use crate::toolchain::{self, Compiler, Toolchain};
use crate::workspace::Workspace;

/// What the ritual that calls needs of this machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wants {
    /// Attaching to this kernel: root, BTF, cgroup2, servers and clients to govern.
    pub kernel: bool,
    /// The eBPF object. Without it the rest is built all the same, with an agent that cannot redirect.
    pub object: bool,
    /// What this ritual needs besides.
    pub besides: &'static [Use],
    pub skip_packages: bool,
}

/// What the machine now has.
#[derive(Debug)]
pub(crate) struct Ready {
    /// None only where it was not wanted and could not be had.
    pub toolchain: Option<Toolchain>,
}

impl Wants {
    /// Building the eBPF object, not loading it.
    pub(crate) fn object(skip_packages: bool) -> Self {
        Self { kernel: false, object: true, besides: &[], skip_packages }
    }
}

pub(crate) fn run(workspace: &Workspace, wants: &Wants) -> anyhow::Result<Ready> {
    let mut steps = Steps::new(4);
    let facts = steps.step("this machine", |_| machine(wants))?;
    let compiler = Compiler::find();
    let mut uses = vec![Use::Build];
    if wants.object || facts.root {
        uses.extend((compiler != Some(Compiler::Nightly)).then_some(Use::Compiler));
        uses.push(Use::Linker);
    }
    uses.extend(wants.kernel.then_some(Use::Kernel));
    uses.extend(wants.besides);

    steps.step("Debian packages", |progress| install_packages(workspace, wants, &facts, &uses, progress))?;
    let compiler = steps.step("eBPF compiler", |_| choose_compiler(wants))?;
    let linker = steps.step("eBPF linker", |progress| ensure_linker(workspace, wants, compiler, progress))?;
    let toolchain =
        compiler.filter(|_| linker).map(|compiler| Toolchain { compiler, linker: workspace.bpf_linker() });
    Ok(Ready { toolchain })
}

fn machine(wants: &Wants) -> anyhow::Result<(Facts, String)> {
    let facts = Facts::read();
    let problems = if wants.kernel { host::kernel_problems(&facts) } else { Vec::new() };
    if !problems.is_empty() {
        return Err(told(&problems));
    }
    let words = facts.to_string();
    Ok((facts, words))
}

fn install_packages(
    workspace: &Workspace,
    wants: &Wants,
    facts: &Facts,
    uses: &[Use],
    progress: &Progress,
) -> anyhow::Result<((), String)> {
    if wants.skip_packages {
        return Ok(((), "skipped, as asked".to_owned()));
    }
    let wanted = packages::named(uses);
    let missing = packages::missing(&wanted);
    match host::package_problem(facts, &wanted, &missing) {
        // A build without the kernel needs a C compiler and no more: if that is lacking, it will say so itself.
        Some(_) if !wants.kernel && !wants.object => Ok(((), "left as they are".to_owned())),
        Some(problem) => Err(told(&[problem])),
        None if missing.is_empty() => Ok(((), "all there".to_owned())),
        None => {
            packages::install(&missing, &workspace.log("packages"), progress)?;
            Ok(((), format!("installed {}", missing.join(" "))))
        }
    }
}

fn choose_compiler(wants: &Wants) -> anyhow::Result<(Option<Compiler>, String)> {
    match Compiler::find() {
        Some(compiler) => Ok((Some(compiler), compiler.name().to_owned())),
        None if !wants.object => Ok((None, "none: the agent is built without its eBPF object".to_owned())),
        None => bail!(
            "no compiler for the eBPF object.\n  \
             Either Debian's: apt-get install {}\n  \
             or: rustup toolchain install nightly --component rust-src",
            packages::named(&[Use::Compiler]).join(" ")
        ),
    }
}

fn ensure_linker(
    workspace: &Workspace,
    wants: &Wants,
    compiler: Option<Compiler>,
    progress: &Progress,
) -> anyhow::Result<(bool, String)> {
    if toolchain::linker_works(workspace) {
        return Ok((true, "bpf-linker is there".to_owned()));
    }
    let llvm = toolchain::llvm_prefix();
    let llvm_present = llvm.join("include/llvm-c").exists();
    if !wants.object && (compiler.is_none() || !llvm_present) {
        return Ok((false, "none".to_owned()));
    }
    if !llvm_present {
        bail!(
            "no LLVM to build bpf-linker with at {}.\n  Install {}, or name its place in LLVM_PREFIX",
            llvm.display(),
            packages::named(&[Use::Linker]).join(" ")
        );
    }
    toolchain::install_linker(workspace, &workspace.log("bpf-linker"), progress)?;
    if !toolchain::linker_works(workspace) {
        bail!("{} was built, and does not start", workspace.bpf_linker().display());
    }
    Ok((true, "built bpf-linker".to_owned()))
}

fn told(problems: &[Problem]) -> anyhow::Error {
    let lines = problems.iter().map(Problem::to_string).collect::<Vec<_>>();
    anyhow!("this machine is not ready\n- {}", lines.join("\n- "))
}
