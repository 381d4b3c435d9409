//! The configuration: one table of options, from which the reference page, the defaults' documentation and the checks come.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::policy::Rules;
use crate::policy::targets::{Fallback, Mode, Target};
use crate::selection::Select;

/// Where the configuration is looked for.
pub(crate) const DEFAULT_PATH: &str = "/etc/weir/agent.toml";

/// What an operator can set. Unknown keys are refused: a misspelt rule must not be a missing rule.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    pub(crate) scope: String,
    pub(crate) own_cgroup: String,
    pub(crate) state_dir: PathBuf,
    pub(crate) pins_dir: PathBuf,
    pub(crate) socket: PathBuf,
    pub(crate) socket_mode: String,
    pub(crate) admin: Option<SocketAddr>,
    pub(crate) drain_s: u64,
    pub(crate) journal_mib: u64,
    pub(crate) spool_mib: u64,
    pub(crate) default: Fallback,
    pub(crate) mode: Mode,
    pub(crate) target: Vec<Target>,
    pub(crate) select: Vec<Select>,
}

/// One option: everything the reference says about it.
struct Opt {
    name: &'static str,
    kind: &'static str,
    default: &'static str,
    doc: &'static str,
    example: &'static str,
}

const OPTIONS: &[Opt] = &[
    Opt {
        name: "scope",
        kind: "cgroup path",
        default: "\"/weir\"",
        doc: "The cgroup (in the cgroup2 hierarchy, whose mount is found) at which the hooks are attached. Runs live below it, and `[[select]]` rules hold inside it only. A process that leaves it is no longer seen. Created if it is missing.",
        example: "scope = \"/system.slice\"",
    },
    Opt {
        name: "own_cgroup",
        kind: "cgroup path",
        default: "\"/weir-agent\"",
        doc: "The node agent's own leaf cgroup, which it moves into before it listens. Must not lie inside `scope`.",
        example: "own_cgroup = \"/weir-agent\"",
    },
    Opt {
        name: "state_dir",
        kind: "path",
        default: "\"/var/lib/weir\"",
        doc: "Identity, journal, spool, node log and runs. Mode 0700. Must survive a reboot: what has no receipt yet lives here only.",
        example: "state_dir = \"/var/lib/weir\"",
    },
    Opt {
        name: "pins_dir",
        kind: "path",
        default: "\"/sys/fs/bpf/weir\"",
        doc: "Where links and maps are pinned, on a bpffs. While the pins stand and no node agent runs, governed connections are refused.",
        example: "pins_dir = \"/sys/fs/bpf/weir\"",
    },
    Opt {
        name: "socket",
        kind: "path",
        default: "\"/run/weir/agent.sock\"",
        doc: "The local socket on which `weir-agent exec` and `weir-agent status` ask. Who may open it may begin runs.",
        example: "socket = \"/run/weir/agent.sock\"",
    },
    Opt {
        name: "socket_mode",
        kind: "octal mode",
        default: "\"0660\"",
        doc: "Permissions of `socket`. Give it to a group with `chgrp` on its directory (setgid) to let that group's members begin runs.",
        example: "socket_mode = \"0666\"",
    },
    Opt {
        name: "admin",
        kind: "address:port",
        default: "\"127.0.0.1:9464\"",
        doc: "HTTP listener for /healthz (alive), /readyz (redirecting and recording) and /metrics (Prometheus text). Give it an address that only your monitoring reaches.",
        example: "admin = \"10.0.0.7:9464\"",
    },
    Opt {
        name: "drain_s",
        kind: "seconds",
        default: "30",
        doc: "After SIGTERM, how long open sessions may go on before they are closed (recorded as `drained`). New governed connections are refused meanwhile.",
        example: "drain_s = 600",
    },
    Opt {
        name: "journal_mib",
        kind: "MiB, 16 to 4096",
        default: "64",
        doc: "Size of the journal that holds events until they are sealed into the spool. When it is full, governed connections wait.",
        example: "journal_mib = 256",
    },
    Opt {
        name: "spool_mib",
        kind: "MiB",
        default: "4096",
        doc: "Most disk that sealed segments without a receipt may take. When it is reached, governed connections wait and are then refused: nothing goes unrecorded.",
        example: "spool_mib = 65536",
    },
    Opt {
        name: "default",
        kind: "\"allow\" or \"deny\"",
        default: "\"allow\"",
        doc: "What holds for a destination that no `[[target]]` matches. `deny` makes the targets an egress allowlist.",
        example: "default = \"deny\"",
    },
    Opt {
        name: "mode",
        kind: "\"enforce\" or \"observe\"",
        default: "\"enforce\"",
        doc: "What holds for rules that do not say. `observe` refuses nothing: what a rule would have refused is recorded (`would-deny`) and counted by rule. See [policy](policy.md).",
        example: "mode = \"observe\"",
    },
    Opt {
        name: "target",
        kind: "array of tables",
        default: "[]",
        doc: "A named destination: `name`; `addresses` (IP addresses and CIDRs, empty = any); `ports` (ports and \"first-last\" ranges, empty = any); `access` = \"allow\", \"deny\" or \"guarded\" (what cannot be read is refused); `capture` = \"none\", \"metadata\", \"statements\" or \"full\" (default); `durable` = true writes the record to the disk before the bytes are sent on, at the price of a disk write for each; `reason`, told to a denied client. The first match decides.",
        example: "[[target]]\nname = \"orders\"\naddresses = [\"10.0.0.5\", \"10.1.0.0/16\"]\nports = [5432, \"6000-6100\"]\naccess = \"guarded\"\n\n[[target]]\nname = \"metadata-service\"\naddresses = [\"169.254.169.254\"]\naccess = \"deny\"\nreason = \"use the secrets broker\"",
    },
    Opt {
        name: "select",
        kind: "array of tables",
        default: "[]",
        doc: "Processes inside `scope` to govern without an `exec`. A rule has a `name` and conditions, of which all must hold; of a list, any entry: `cgroup` (a path inside `scope`: it and all below it), `containers` (ids, or their first 8 or more digits), `users` (names or uids), `executables` (paths; `*` and `?` within one component, `**` across), `executable_sha256`. The first rule that fits decides. `govern` = false leaves alone what it matches. `labels` and `principal` are given to its runs. What cannot be told about a process is taken to fit. See [selection](selection.md).",
        example: "[[select]]\nname = \"ci\"\ncgroup = \"/weir/ci-runner.service\"\nlabels = { team = \"platform\" }\n\n[[select]]\nname = \"claude\"\nexecutables = [\"/usr/local/bin/claude\", \"/opt/**/claude\"]\nusers = [1000]\nprincipal = \"claude-code\"",
    },
];

impl Default for Config {
    fn default() -> Self {
        Self {
            scope: "/weir".into(),
            own_cgroup: "/weir-agent".into(),
            state_dir: "/var/lib/weir".into(),
            pins_dir: "/sys/fs/bpf/weir".into(),
            socket: "/run/weir/agent.sock".into(),
            socket_mode: "0660".into(),
            admin: Some(SocketAddr::from(([127, 0, 0, 1], 9464))),
            drain_s: 30,
            journal_mib: 64,
            spool_mib: 4096,
            default: Fallback::Allow,
            mode: Mode::Enforce,
            target: Vec::new(),
            select: Vec::new(),
        }
    }
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("cannot read the configuration {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the configuration {} is not valid; `weir-agent reference` documents every option", path.display())]
    Parse { path: PathBuf, source: Box<toml::de::Error> },
    #[error("the configuration's {option}: {problem}")]
    Value { option: &'static str, problem: String },
}

impl Config {
    /// Reads a named file, which must be there; or the default one, which need not.
    pub(crate) fn load(named: Option<&Path>) -> Result<Self, ConfigError> {
        let path = named.unwrap_or(Path::new(DEFAULT_PATH));
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if named.is_none() && error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(ConfigError::Read { path: path.to_owned(), source }),
        };
        let config: Self = toml::from_str(&text)
            .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let wrong = |option, problem: &str| Err(ConfigError::Value { option, problem: problem.to_owned() });
        for (option, path) in [("scope", &self.scope), ("own_cgroup", &self.own_cgroup)] {
            if !path.starts_with('/') || path.split('/').any(|part| part == "..") {
                return wrong(option, "must be an absolute cgroup path such as /weir");
            }
        }
        if (self.own_cgroup.clone() + "/").starts_with(&(self.scope.trim_end_matches('/').to_owned() + "/"))
            && self.scope != "/"
        {
            return wrong("own_cgroup", "must not lie inside scope: the node agent would govern itself");
        }
        if !(16..=4096).contains(&self.journal_mib) {
            return wrong("journal_mib", "must be 16 to 4096");
        }
        if self.spool_mib == 0 {
            return wrong("spool_mib", "must be at least 1");
        }
        let mut rule_names = std::collections::BTreeSet::new();
        for rule in &self.select {
            if let Err(problem) = rule.check(&self.scope) {
                return wrong("select", &problem);
            }
            if !rule_names.insert(&rule.name) {
                return wrong("select", &format!("two rules are called {:?}", rule.name));
            }
        }
        self.socket_permissions()?;
        let mut names = std::collections::BTreeSet::new();
        for target in &self.target {
            if target.name.is_empty() || !names.insert(&target.name) {
                return wrong("target", &format!("names must be there and differ: {:?}", target.name));
            }
        }
        Ok(())
    }

    pub(crate) fn socket_permissions(&self) -> Result<u32, ConfigError> {
        u32::from_str_radix(&self.socket_mode, 8).ok().filter(|mode| *mode <= 0o777).ok_or_else(|| {
            ConfigError::Value {
                option: "socket_mode",
                problem: format!("{:?} is not a mode such as \"0660\"", self.socket_mode),
            }
        })
    }

    pub(crate) fn rules(&self) -> Rules {
        Rules { default: self.default, mode: self.mode, targets: self.target.clone() }
    }
}

/// The reference page: docs/operating/agent-config.md.
pub(crate) fn reference() -> String {
    let mut page = String::from(
        "# Configuration of the node agent\n\n\
         Generated by `weir-agent reference`; do not edit. The node agent reads `/etc/weir/agent.toml`, or the file named by\n\
         `--config`. Every option may be left out. Unknown keys are refused.\n",
    );
    for option in OPTIONS {
        let Opt { name, kind, default, doc, example } = option;
        // Writing to a String cannot fail.
        let _ = write!(
            page,
            "\n## `{name}`\n\n{doc}\n\n- type: {kind}\n- default: `{default}`\n\n```toml\n{example}\n```\n"
        );
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_every_option_with_its_default() {
        let defaults = toml::Table::try_from(Config::default()).unwrap();
        let mut documented: Vec<_> = OPTIONS.iter().map(|option| option.name).collect();
        documented.sort_unstable();
        let mut real: Vec<_> = defaults.keys().map(String::as_str).collect();
        real.sort_unstable();
        assert_eq!(documented, real);
        for option in OPTIONS {
            let stated: toml::Table = toml::from_str(&format!("x = {}", option.default)).unwrap();
            assert_eq!(stated["x"], defaults[option.name], "default of {}", option.name);
        }
    }

    #[test]
    fn every_example_is_accepted() {
        for option in OPTIONS {
            let config: Config = toml::from_str(option.example).unwrap();
            config.check().unwrap();
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (text, needle) in [
            ("own_cgroup = '/weir/agent'", "own_cgroup"),
            ("[[select]]\nname = 'ci'\ncgroup = '/elsewhere'", "not inside scope"),
            ("socket_mode = 'rw'", "socket_mode"),
            ("journal_mib = 1", "journal_mib"),
            ("[[target]]\nname = 'a'\n[[target]]\nname = 'a'", "differ"),
        ] {
            let config: Config = toml::from_str(text).unwrap();
            assert!(config.check().unwrap_err().to_string().contains(needle), "{text}");
        }
    }

    #[test]
    fn the_reference_page_is_current() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operating/agent-config.md");
        if std::env::var_os("WEIR_UPDATE_GOLDEN").is_some() {
            fs::write(&path, reference()).unwrap();
        }
        let page = fs::read_to_string(&path).unwrap_or_default();
        assert!(page == reference(), "run this test with WEIR_UPDATE_GOLDEN=1 to renew {}", path.display());
    }
}
