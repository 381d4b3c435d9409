//! `cargo xtask`: the project's rituals. A person and CI run the same ones, so neither knows a step that the
//! other lacks. Each module is one ritual or one thing that several of them stand on.

mod bench;
mod command;
mod dist;
mod ebpf;
mod host;
mod lint;
mod packages;
mod programs;
mod setup;
mod steps;
mod suite;
mod tidy;
mod toolchain;
mod workspace;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::packages::Use;
use crate::setup::Wants;
use crate::workspace::Workspace;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The rituals of the Weir workspace", max_term_width = 100)]
struct Flags {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what this machine lacks: Debian packages, the eBPF compiler and linker
    Setup(SetupFlags),
    /// Build the eBPF object that weir-agent embeds
    Ebpf {
        #[command(flatten)]
        install: InstallFlags,
    },
    /// Set up, lint, and run every test; ends with one summary
    Test {
        #[command(flatten)]
        setup: SetupFlags,
        /// Run only the tests whose name contains this, and no lints
        filter: Option<String>,
    },
    /// Show the main job: psql, governed, against a real PostgreSQL; then what was recorded of it
    Demo {
        #[command(flatten)]
        install: InstallFlags,
        /// Print the result as one JSON object on the last line
        #[arg(long)]
        json: bool,
        /// Leave everything running and say how to look around
        #[arg(long)]
        keep: bool,
    },
    /// Run real clients' own test suites and heavy transfers, directly and governed, and compare; takes long
    Clients {
        #[command(flatten)]
        install: InstallFlags,
        /// `--help` says what there is
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
        arguments: Vec<String>,
    },
    /// Build what is handed out: archives, Debian packages and checksums, in .build/dist
    Dist {
        #[command(flatten)]
        install: InstallFlags,
        /// Only this target [default: x86_64 and aarch64, as far as this machine can]
        #[arg(long, value_name = "TRIPLE")]
        target: Option<String>,
    },
    /// What recording costs, as ratios to the same load without Weir; `bench -- --help` says more
    Bench {
        #[command(flatten)]
        install: InstallFlags,
        /// Given to the bench: --quick, --json, --only NAME, --with-collector ...; connections; soak --for 1h; ingest
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
        arguments: Vec<std::ffi::OsString>,
    },
    /// Formatting, clippy with warnings denied, and tidy
    Lint,
    /// What clippy cannot check: module docs, links, purposes, completeness
    Tidy,
}

#[derive(Args)]
struct SetupFlags {
    /// Leave out what needs root or this kernel's eBPF
    #[arg(long)]
    no_kernel: bool,
    #[command(flatten)]
    install: InstallFlags,
}

#[derive(Args)]
struct InstallFlags {
    /// Install no packages: everything named by the error message is already there
    #[arg(long, env = "WEIR_SKIP_PACKAGES")]
    skip_packages: bool,
}

fn main() -> ExitCode {
    match run(Flags::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> anyhow::Result<()> {
    let workspace = Workspace::find()?;
    match task {
        Task::Setup(flags) => setup::run(&workspace, &flags.wants()).map(drop),
        Task::Ebpf { install } => {
            let ready = setup::run(&workspace, &Wants::object(install.skip_packages))?;
            ebpf::build(&workspace, ready.toolchain.as_ref()).map(drop)
        }
        Task::Test { setup, filter } => suite::run(&workspace, &setup.wants(), filter.as_deref()),
        Task::Demo { install, json, keep } => {
            let flags = [("--json", json), ("--keep", keep)];
            let arguments: Vec<_> =
                flags.into_iter().filter(|(_, given)| *given).map(|(flag, _)| flag.to_owned()).collect();
            programs::run(&workspace, &install.program_wants(&[]), "weir-demo", &arguments)
        }
        Task::Clients { install, arguments } => {
            programs::run(&workspace, &install.program_wants(&[Use::Clients]), "weir-clients", &arguments)
        }
        Task::Dist { install, target } => dist::run(&workspace, target.as_deref(), install.skip_packages),
        Task::Bench { install, arguments } => bench::run(&workspace, &install.program_wants(&[]), &arguments),
        Task::Lint => lint::run(&workspace, ebpf::present(&workspace)),
        Task::Tidy => tidy::run(&workspace),
    }
}

impl SetupFlags {
    fn wants(&self) -> Wants {
        let InstallFlags { skip_packages } = self.install;
        Wants { kernel: !self.no_kernel, object: !self.no_kernel, besides: &[], skip_packages }
    }
}

impl InstallFlags {
    /// What running the programs of weir-tests takes.
    fn program_wants(&self, besides: &'static [Use]) -> Wants {
        Wants { kernel: true, object: true, besides, skip_packages: self.skip_packages }
    }
}
