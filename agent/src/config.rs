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

/// Most targets: all are looked at for each connection.
const TARGETS_MAX: usize = 4096;

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
    /// The file it is from.
    #[serde(skip)]
    pub(crate) origin: Option<Origin>,
}

/// Where a configuration is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    path: PathBuf,
    /// Somebody named it, or it was there once: that it is missing now is a mistake, and not a wish for the defaults.
    must_exist: bool,
    /// Of its bytes, as `sha256sum` tells it; `None`: there was no file.
    pub(crate) sha256: Option<[u8; 32]>,
}

/// Options that a reload takes over. What the others say holds from the next start on.
const AT_RUN_TIME: [&str; 3] = ["default", "mode", "target"];

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
        doc: "A named destination: `name`; `addresses` (IP addresses and CIDRs, empty = any); `ports` (ports and \"first-last\" ranges, empty = any); `access` = \"allow\", \"deny\" or \"guarded\" (what cannot be read is refused); `mode`; `capture` = \"none\", \"metadata\", \"statements\" or \"full\" (default); `durable` = true writes the record to the disk before the bytes are sent on, at the price of a disk write for each; `reason`, told to a denied client. The first match decides.\n\n`[[target.http]]` are rules for HTTP requests inside the target: `name`; `hosts` (names, or \"*.example.com\"), `methods`, `paths` (\"/a/*/c\", \"/a/**\"), each empty = any; `access` = \"allow\" or \"deny\"; `reason`; `mode`. The first match decides, else the target's `access`. A target whose HTTP rules may deny refuses what is not HTTP. See [policy](policy.md).",
        example: "[[target]]\nname = \"orders\"\naddresses = [\"10.0.0.5\", \"10.1.0.0/16\"]\nports = [5432, \"6000-6100\"]\naccess = \"guarded\"\n\n[[target]]\nname = \"metadata-service\"\naddresses = [\"169.254.169.254\"]\naccess = \"deny\"\nreason = \"use the secrets broker\"\n\n[[target]]\nname = \"issues\"\naddresses = [\"10.2.0.9\"]\nports = [80]\n\n[[target.http]]\nname = \"no-deletes\"\nmethods = [\"DELETE\"]\npaths = [\"/api/**\"]\naccess = \"deny\"\nreason = \"close issues instead\"\nmode = \"observe\"",
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
            origin: None,
        }
    }
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("cannot read the configuration {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}:{line}: {problem}; `weir-agent reference` documents every option", path.display())]
    Line { path: PathBuf, line: usize, problem: String },
    #[error("{option}: {problem}")]
    Value {
        option: &'static str,
        /// Which of several tables of that name.
        item: usize,
        problem: String,
    },
}

impl Config {
    /// Reads a named file, which must be there; or the default one, which need not.
    pub(crate) fn load(named: Option<&Path>) -> Result<Self, ConfigError> {
        Self::read(named.unwrap_or(Path::new(DEFAULT_PATH)), named.is_some())
    }

    /// Reads the same file once more.
    pub(crate) fn again(&self) -> Result<Self, ConfigError> {
        match &self.origin {
            Some(origin) => Self::read(&origin.path, origin.must_exist),
            None => Ok(self.clone()),
        }
    }

    fn read(path: &Path, must_exist: bool) -> Result<Self, ConfigError> {
        let (text, is_there) = match fs::read_to_string(path) {
            Ok(text) => (text, true),
            Err(error) if !must_exist && error.kind() == io::ErrorKind::NotFound => (String::new(), false),
            Err(source) => return Err(ConfigError::Read { path: path.to_owned(), source }),
        };
        let mut config = Self::parse(path, &text)?;
        config.origin = Some(Origin {
            path: std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
            must_exist: must_exist || is_there,
            sha256: is_there.then(|| sha256(text.as_bytes())),
        });
        Ok(config)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let at = |line, problem| ConfigError::Line { path: path.to_owned(), line, problem };
        let config: Self = toml::from_str(text).map_err(|error| {
            let begins = error.span().map_or(0, |span| span.start);
            at(line_at(text, begins), error.message().to_owned())
        })?;
        config.check().map_err(|error| match &error {
            ConfigError::Value { option, item, .. } => at(line_of(text, option, *item), error.to_string()),
            _ => error,
        })?;
        Ok(config)
    }

    /// Options that differ and are not taken over by a reload.
    pub(crate) fn restart_for(&self, next: &Self) -> Vec<String> {
        let [now, next] = [self, next].map(|config| toml::Table::try_from(config).unwrap_or_default());
        let names: std::collections::BTreeSet<&String> = now.keys().chain(next.keys()).collect();
        let waits =
            |name: &&&String| !AT_RUN_TIME.contains(&name.as_str()) && now.get(**name) != next.get(**name);
        names.iter().filter(waits).map(|name| (*name).clone()).collect()
    }

    fn check(&self) -> Result<(), ConfigError> {
        let wrong_at = |option, item, problem: &str| {
            Err(ConfigError::Value { option, item, problem: problem.to_owned() })
        };
        let wrong = |option, problem: &str| wrong_at(option, 0, problem);
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
        for (item, target) in self.target.iter().enumerate() {
            if target.name.is_empty() || !names.insert(&target.name) {
                let problem = format!("names must be there and differ: {:?}", target.name);
                return wrong_at("target", item, &problem);
            }
            if let Err(problem) = target.check() {
                return wrong_at("target", item, &problem);
            }
        }
        if self.target.len() > TARGETS_MAX {
            return wrong(
                "target",
                &format!("there are {}, at most {TARGETS_MAX} are taken", self.target.len()),
            );
        }
        Ok(())
    }

    pub(crate) fn socket_permissions(&self) -> Result<u32, ConfigError> {
        u32::from_str_radix(&self.socket_mode, 8).ok().filter(|mode| *mode <= 0o777).ok_or_else(|| {
            ConfigError::Value {
                option: "socket_mode",
                item: 0,
                problem: format!("{:?} is not a mode such as \"0660\"", self.socket_mode),
            }
        })
    }

    pub(crate) fn rules(&self) -> Rules {
        Rules { default: self.default, mode: self.mode, targets: self.target.clone() }
    }
}

/// Lines count from 1.
fn line_at(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1
}

/// Where an option is set; the first line where it is not.
fn line_of(text: &str, option: &str, item: usize) -> usize {
    let Ok(table) = toml::de::DeTable::parse(text) else { return 1 };
    let found = table.get_ref().iter().find(|(key, _)| key.get_ref() == option).map(|(key, value)| {
        let item = value.get_ref().as_array().and_then(|items| items.get(item));
        item.map_or_else(|| key.span().start, |item| item.span().start)
    });
    line_at(text, found.unwrap_or(0))
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut digest = [0; 32];
    digest.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref());
    digest
}

/// The reference page: docs/operating/agent-config.md.
pub(crate) fn reference() -> String {
    let mut page = String::from(
        "# Configuration of the node agent\n\n\
         Generated by `weir-agent reference`; do not edit. The node agent reads `/etc/weir/agent.toml`, or the file named by\n\
         `--config`. Every option may be left out. Unknown keys are refused. `weir-agent policy check FILE` reads a file as the\n\
         node agent would; `weir-agent reload` (or SIGHUP) makes it take over what holds at a reload.\n",
    );
    for option in OPTIONS {
        let Opt { name, kind, default, doc, example } = option;
        let holds = if AT_RUN_TIME.contains(name) { "from a reload on" } else { "from the next start on" };
        // Writing to a String cannot fail.
        let _ = write!(
            page,
            "\n## `{name}`\n\n{doc}\n\n- type: {kind}\n- default: `{default}`\n- a change holds {holds}\n\n```toml\n{example}\n```\n"
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
        assert!(AT_RUN_TIME.iter().all(|name| documented.contains(name)));
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
    fn mistakes_are_named_by_file_and_line() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("agent.toml");
        for (text, line, needle) in [
            ("drain_s = 1\nspoolmib = 3", 2, "spoolmib"),
            ("drain_s = 1\n\njournal_mib = 1", 3, "16 to 4096"),
            ("mode =", 1, ""),
            ("[[target]]\nname = 'a'\n\n[[target]]\nname = 'a'", 4, "differ"),
            (
                "[[target]]\nname = 'a'\n[[target.http]]\naccess = 'deny'\npaths = [\n '/a',\n 'b']",
                5,
                "slash",
            ),
            ("[[target]]\nname = 'a'\naccess = 'deny'\n[[target.http]]\naccess = 'deny'", 1, "nothing"),
        ] {
            fs::write(&file, text).unwrap();
            let error = Config::load(Some(&file)).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{}:{line}: ", file.display())), "{text}: {error}");
            assert!(error.contains(needle), "{text}: {error}");
        }
    }

    #[test]
    fn a_file_that_was_there_must_be_there_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("agent.toml");
        let before = Config::read(&file, false).unwrap();
        assert_eq!(before.origin.as_ref().unwrap().sha256, None);
        fs::write(&file, "mode = 'observe'\ndrain_s = 7").unwrap();
        let there = before.again().unwrap();
        assert_eq!((there.mode, there.drain_s), (Mode::Observe, 7));
        assert_eq!(before.restart_for(&there), ["drain_s"], "the mode is taken over");
        fs::remove_file(&file).unwrap();
        assert!(matches!(there.again().unwrap_err(), ConfigError::Read { .. }));
        assert!(before.again().is_ok(), "it was never there");
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
