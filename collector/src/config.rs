//! Options: one table, from which the defaults, the checks, the reference page and `--help` come.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

/// One option of the configuration file.
pub struct ConfigOption {
    pub name: &'static str,
    pub kind: &'static str,
    /// As TOML.
    pub default: &'static str,
    /// Unit and range.
    pub unit: &'static str,
    pub doc: &'static str,
    /// As TOML.
    pub example: &'static str,
}

/// All of them, in the order of the reference page.
pub const OPTIONS: &[ConfigOption] = &[
    ConfigOption {
        name: "listen",
        kind: "address",
        default: r#""127.0.0.1:7843""#,
        unit: "IP:port; port 0 takes a free one",
        doc: "Where node agents and `weir` connect: TLS, gRPC. Flag `--listen`.",
        example: r#""0.0.0.0:7843""#,
    },
    ConfigOption {
        name: "data",
        kind: "path",
        default: r#""/var/lib/weir-collector""#,
        unit: "folder on a local file system",
        doc: "Recordings, index and keys. Only the collector's user may read it; back up `keys/` apart from the rest. Flag `--data`.",
        example: r#""/srv/weir""#,
    },
    ConfigOption {
        name: "advertise",
        kind: "text",
        default: r#""""#,
        unit: "host:port; empty = the address of `listen`",
        doc: "The address that join tokens and credentials carry: how agents and people reach this collector.",
        example: r#""weir.example.com:7843""#,
    },
    ConfigOption {
        name: "names",
        kind: "list of text",
        default: "[]",
        unit: "host names and IP addresses",
        doc: "More names for the server's certificate, for other TLS clients. Agents and `weir` need none: they check the name `weir-collector`.",
        example: r#"["weir.example.com", "10.0.0.5"]"#,
    },
    ConfigOption {
        name: "admin_listen",
        kind: "address",
        default: r#""127.0.0.1:7844""#,
        unit: "IP:port; empty = off",
        doc: "Health, readiness and Prometheus metrics, plain HTTP, without recordings and without access control.",
        example: r#""10.0.0.5:7844""#,
    },
    ConfigOption {
        name: "keep",
        kind: "duration",
        default: r#""30d""#,
        unit: "s, m, h, d; `forever`; at least 1h",
        doc: "Recordings older than this are deleted, with their keys. A tombstone per session stays, so that `weir verify` says \"expired\", not \"missing\".",
        example: r#""90d""#,
    },
    ConfigOption {
        name: "keep_accesses",
        kind: "duration",
        default: r#""400d""#,
        unit: "s, m, h, d; at least 1d",
        doc: "How long the access log (who asked what) is kept.",
        example: r#""730d""#,
    },
    ConfigOption {
        name: "free_space_warn",
        kind: "bytes",
        default: r#""5GiB""#,
        unit: "B, KiB, MiB, GiB, TiB",
        doc: "Below this much free space in `data` a warning is logged.",
        example: r#""20GiB""#,
    },
    ConfigOption {
        name: "free_space_floor",
        kind: "bytes",
        default: r#""1GiB""#,
        unit: "B, KiB, MiB, GiB, TiB",
        doc: "Below this much free space new segments are refused and stay in the agents' spools; reads go on.",
        example: r#""4GiB""#,
    },
    ConfigOption {
        name: "agents_max",
        kind: "number",
        default: "1000",
        unit: "1 to 4000 streams",
        doc: "Node agents connected at a time. Each may hold up to 32 MiB in flight, all together 256 MiB.",
        example: "200",
    },
    ConfigOption {
        name: "certificate_life",
        kind: "duration",
        default: r#""90d""#,
        unit: "s, m, h, d; 5s to 3650d",
        doc: "How long the certificates of node agents are good for. An agent renews its own after two thirds of that; one that was away for longer than the rest joins again with a new token, and keeps its identity and its spool.",
        example: r#""30d""#,
    },
    ConfigOption {
        name: "log_json",
        kind: "true or false",
        default: "false",
        unit: "",
        doc: "Logs on stderr as JSON, one object per line. Flag `--log-json`.",
        example: "true",
    },
];

/// Shorter is for tests; longer, and stolen certificates hardly ever end.
const CERTIFICATE_LIFE_MIN: Duration = Duration::from_secs(5);
const CERTIFICATE_LIFE_MAX: Duration = Duration::from_secs(3650 * 24 * 3600);

/// What the collector runs by.
#[derive(Clone, Debug, Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub listen: SocketAddr,
    pub data: PathBuf,
    pub advertise: String,
    pub names: Vec<String>,
    #[serde(deserialize_with = "address_or_none")]
    pub admin_listen: Option<SocketAddr>,
    #[serde(deserialize_with = "duration_or_forever")]
    pub keep: Option<Duration>,
    #[serde(deserialize_with = "duration")]
    pub keep_accesses: Duration,
    #[serde(deserialize_with = "bytes")]
    pub free_space_warn: u64,
    #[serde(deserialize_with = "bytes")]
    pub free_space_floor: u64,
    pub agents_max: usize,
    #[serde(deserialize_with = "duration")]
    pub certificate_life: Duration,
    pub log_json: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the configuration {path} is not TOML: {source}")]
    Toml { path: PathBuf, source: Box<toml::de::Error> },
    #[error("the configuration: {0}")]
    Value(#[from] Box<toml::de::Error>),
    #[error("the configuration has an unknown option `{0}`: known are {known}", known = names())]
    Unknown(String),
    #[error("the configuration: {0}")]
    Range(&'static str),
}

impl Config {
    /// The defaults, then the file.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        let mut table = defaults()?;
        if let Some(path) = file {
            let text = std::fs::read_to_string(path)
                .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
            let given: toml::Table = toml::from_str(&text)
                .map_err(|source| ConfigError::Toml { path: path.to_owned(), source: source.into() })?;
            for (name, value) in given {
                if !OPTIONS.iter().any(|option| option.name == name) {
                    return Err(ConfigError::Unknown(name));
                }
                table.insert(name, value);
            }
        }
        let config: Self = table.try_into().map_err(Box::new)?;
        config.checked()
    }

    fn checked(self) -> Result<Self, ConfigError> {
        if self.keep.is_some_and(|keep| keep < Duration::from_secs(3600)) {
            return Err(ConfigError::Range("`keep` is at least 1h"));
        }
        if self.keep_accesses < Duration::from_secs(24 * 3600) {
            return Err(ConfigError::Range("`keep_accesses` is at least 1d"));
        }
        if self.free_space_warn < self.free_space_floor {
            return Err(ConfigError::Range(
                "`free_space_warn` is above `free_space_floor`, or it would warn too late",
            ));
        }
        if !(1..=4000).contains(&self.agents_max) {
            return Err(ConfigError::Range("`agents_max` is 1 to 4000"));
        }
        if !(CERTIFICATE_LIFE_MIN..=CERTIFICATE_LIFE_MAX).contains(&self.certificate_life) {
            return Err(ConfigError::Range("`certificate_life` is 5s to 3650d"));
        }
        Ok(self)
    }
}

fn defaults() -> Result<toml::Table, ConfigError> {
    let text: String =
        OPTIONS.iter().map(|option| format!("{} = {}\n", option.name, option.default)).collect();
    Ok(toml::from_str(&text).map_err(Box::new)?)
}

fn names() -> String {
    OPTIONS.iter().map(|option| option.name).collect::<Vec<_>>().join(", ")
}

/// The reference, as the documentation shows it.
pub fn reference() -> String {
    let mut text = String::new();
    for option in OPTIONS {
        let ConfigOption { name, kind, default, unit, doc, example } = option;
        text.push_str(&format!("### `{name}`\n\n{doc}\n\n"));
        text.push_str(&format!("- type: {kind}\n- default: `{default}`\n"));
        if !unit.is_empty() {
            text.push_str(&format!("- unit: {unit}\n"));
        }
        text.push_str(&format!("- example: `{name} = {example}`\n\n"));
    }
    text.truncate(text.trim_end().len());
    text
}

fn address_or_none<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SocketAddr>, D::Error> {
    let text = String::deserialize(from)?;
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(D::Error::custom) }
}

fn duration_or_forever<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(from)?;
    if text == "forever" { Ok(None) } else { parse_duration(&text).map(Some).map_err(D::Error::custom) }
}

fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    parse_duration(&String::deserialize(from)?).map_err(D::Error::custom)
}

fn bytes<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let text = String::deserialize(from)?;
    let units = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1u64)];
    parse_unit(&text, &units)
        .ok_or_else(|| D::Error::custom(format!("{text:?} is not a size such as \"5GiB\"")))
}

/// "90s", "15m", "12h", "30d".
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let units = [("s", 1), ("m", 60), ("h", 3600), ("d", 24 * 3600u64)];
    parse_unit(text, &units)
        .map(Duration::from_secs)
        .ok_or_else(|| format!("{text:?} is not a duration such as \"90s\", \"15m\", \"12h\" or \"30d\""))
}

fn parse_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (number, factor) =
        units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)))?;
    number.trim().parse::<u64>().ok()?.checked_mul(*factor)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_table_is_the_struct() {
        let config = Config::load(None).unwrap();
        let fields = serde_json::to_value(&config).unwrap();
        let fields: BTreeSet<_> = fields.as_object().unwrap().keys().cloned().collect();
        let options: BTreeSet<_> = OPTIONS.iter().map(|option| option.name.to_owned()).collect();
        assert_eq!(fields, options);
    }

    #[test]
    fn every_example_is_accepted() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        let text: String =
            OPTIONS.iter().map(|option| format!("{} = {}\n", option.name, option.example)).collect();
        std::fs::write(&file, text).unwrap();
        let config = Config::load(Some(&file)).unwrap();
        assert_eq!(config.keep, Some(Duration::from_secs(90 * 24 * 3600)));
        assert_eq!(config.free_space_floor, 4 << 30);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        for (text, expected) in [
            ("kep = \"3d\"", "unknown option `kep`"),
            ("keep = \"3 weeks\"", "is not a duration"),
            ("keep = \"1s\"", "at least 1h"),
            ("keep = 3", "invalid type"),
            ("free_space_warn = \"1MiB\"", "warn too late"),
            ("agents_max = 0", "1 to 4000"),
            ("certificate_life = \"1s\"", "5s to 3650d"),
            ("listen = ", "is not TOML"),
        ] {
            std::fs::write(&file, text).unwrap();
            let error = crate::chain(&Config::load(Some(&file)).unwrap_err());
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    /// The reference in the documentation is the table's. `WEIR_UPDATE_DOCS=1` writes it.
    #[test]
    fn the_documentation_has_the_reference() {
        const FROM: &str = "<!-- reference: made from collector/src/config.rs -->\n\n";
        const TO: &str = "\n\n<!-- end of reference -->";
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operating/collector.md");
        let text = std::fs::read_to_string(page).unwrap();
        let (before, rest) = text.split_once(FROM).expect("the page has a place for the reference");
        let (old, after) = rest.split_once(TO).expect("the place ends");
        if std::env::var_os("WEIR_UPDATE_DOCS").is_some() {
            std::fs::write(page, format!("{before}{FROM}{}{TO}{after}", reference())).unwrap();
        } else {
            assert_eq!(old, reference(), "run this test with WEIR_UPDATE_DOCS=1");
        }
    }
}
