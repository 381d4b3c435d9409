//! Named destinations and their rules, from the configuration. The first target that matches decides.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::http::{HttpAccess, HttpRule};

/// Most hosts, methods, paths and rules for HTTP in one target. Whoever sends requests decides how long their paths are, so
/// this bounds what one request may cost.
const HTTP_PATTERNS_MAX: usize = 1024;

/// All connection rules: one immutable snapshot.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Rules {
    /// What holds where no target matches.
    pub(crate) default: Fallback,
    /// What holds where a target or rule does not say.
    pub(crate) mode: Mode,
    /// In order: the first match decides.
    #[serde(rename = "target")]
    pub(crate) targets: Vec<Target>,
}

/// What holds where no target matches. `deny` makes the targets an egress allowlist.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Fallback {
    #[default]
    Allow,
    Deny,
}

/// Whether what a rule says is done, or only recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// Refuses nothing; records what it would have refused.
    Observe,
    #[default]
    Enforce,
}

impl Mode {
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Mode::Observe => "observe",
            Mode::Enforce => "enforce",
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Target {
    pub(crate) name: String,
    /// Addresses and CIDRs; empty = any.
    #[serde(default)]
    pub(crate) addresses: Vec<Network>,
    /// Ports and ranges; empty = any.
    #[serde(default)]
    pub(crate) ports: Vec<Ports>,
    #[serde(default)]
    pub(crate) access: Access,
    #[serde(default)]
    pub(crate) capture: Capture,
    /// What is recorded of it is on the disk before the bytes are sent on: a power cut loses nothing.
    #[serde(default)]
    pub(crate) durable: bool,
    /// Told to the client and recorded when this target denies.
    #[serde(default)]
    pub(crate) reason: Option<String>,
    #[serde(default)]
    pub(crate) mode: Option<Mode>,
    /// For HTTP requests, in order: the first match decides, else `access`.
    #[serde(default)]
    pub(crate) http: Vec<HttpRule>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Access {
    #[default]
    Allow,
    Deny,
    /// What cannot be read is refused.
    Guarded,
}

impl Fallback {
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Fallback::Allow => "allow",
            Fallback::Deny => "deny",
        }
    }
}

impl Access {
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Access::Allow => "allow",
            Access::Deny => "deny",
            Access::Guarded => "guarded",
        }
    }
}

/// How much of a session is kept. Opening, closing, verdicts and byte counts are always kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Capture {
    None,
    Metadata,
    Statements,
    #[default]
    Full,
}

impl Capture {
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Capture::None => "none",
            Capture::Metadata => "metadata",
            Capture::Statements => "statements",
            Capture::Full => "full",
        }
    }
}

/// `10.0.0.5` or `10.0.0.0/8`, v4 or v6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Network(IpNet);

impl TryFrom<String> for Network {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        net.map(Self).map_err(|_| format!("{text:?} is neither an IP address nor a CIDR such as 10.0.0.0/8"))
    }
}

impl From<Network> for String {
    fn from(network: Network) -> String {
        network.0.to_string()
    }
}

/// `5432` or `"6000-6100"`, inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "PortsText", into = "String")]
pub(crate) struct Ports {
    first: u16,
    last: u16,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum PortsText {
    One(u16),
    Text(String),
}

impl TryFrom<PortsText> for Ports {
    type Error = String;
    fn try_from(text: PortsText) -> Result<Self, String> {
        let text = match text {
            PortsText::One(port) => return Ok(Self { first: port, last: port }),
            PortsText::Text(text) => text,
        };
        let (first, last) = text.split_once('-').unwrap_or((&text, &text));
        match (first.trim().parse(), last.trim().parse()) {
            (Ok(first), Ok(last)) if first <= last => Ok(Self { first, last }),
            _ => Err(format!("{text:?} is neither a port nor a range such as 6000-6100")),
        }
    }
}

impl From<Ports> for String {
    fn from(ports: Ports) -> String {
        format!("{}-{}", ports.first, ports.last)
    }
}

impl Target {
    /// Every destination.
    pub(crate) fn covers_all(&self) -> bool {
        self.addresses.is_empty() && self.ports.is_empty()
    }

    /// A rule that can say nothing is a mistake.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.access == Access::Deny && !self.http.is_empty() && !self.opens_for_http() {
            return Err(format!(
                "{:?} is denied, so no request is ever made there and its HTTP rules say nothing: allow some, or leave them out",
                self.name
            ));
        }
        let patterns: usize = self.http.iter().map(|rule| 1 + rule.patterns()).sum();
        if patterns > HTTP_PATTERNS_MAX {
            return Err(format!(
                "the HTTP rules of {:?} have {patterns} parts, at most {HTTP_PATTERNS_MAX} are taken: every request is compared \
                 with all of them",
                self.name
            ));
        }
        let mut names = std::collections::BTreeSet::new();
        match self.http.iter().filter_map(|rule| rule.name.as_ref()).find(|name| !names.insert(*name)) {
            Some(name) => Err(format!("two HTTP rules of {:?} are called {name:?}", self.name)),
            None => Ok(()),
        }
    }

    /// It denies, but some HTTP requests are allowed: connections have to be let through to be read.
    pub(crate) fn opens_for_http(&self) -> bool {
        self.access == Access::Deny && self.http.iter().any(|rule| rule.access == HttpAccess::Allow)
    }

    fn matches(&self, destination: SocketAddr) -> bool {
        let ip = destination.ip().to_canonical();
        let port = destination.port();
        (self.addresses.is_empty() || self.addresses.iter().any(|network| network.0.contains(&ip)))
            && (self.ports.is_empty()
                || self.ports.iter().any(|ports| (ports.first..=ports.last).contains(&port)))
    }
}

impl Rules {
    /// The index of the first that matches.
    pub(crate) fn target_of(&self, destination: SocketAddr) -> Option<usize> {
        self.targets.iter().position(|target| target.matches(destination))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Rules {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn first_match_decides_over_addresses_and_ports() {
        let rules = rules(
            r#"
            default = "deny"
            [[target]]
            name = "orders"
            addresses = ["10.0.0.5"]
            ports = [5432]
            access = "guarded"
            [[target]]
            name = "lab"
            addresses = ["10.0.0.0/8", "fd00::/8"]
            ports = ["6000-6100", 22]
            "#,
        );
        let name =
            |text: &str| rules.target_of(text.parse().unwrap()).map(|at| rules.targets[at].name.clone());
        assert_eq!(name("10.0.0.5:5432").as_deref(), Some("orders"));
        assert_eq!(name("10.0.0.5:6050").as_deref(), Some("lab"));
        assert_eq!(name("[fd00::1]:22").as_deref(), Some("lab"));
        assert_eq!(
            name("[::ffff:10.0.0.5]:5432").as_deref(),
            Some("orders"),
            "a mapped address is the v4 one"
        );
        assert_eq!(name("10.0.0.6:5432"), None);
        assert_eq!(rules.default, Fallback::Deny);
    }

    #[test]
    fn what_one_request_may_cost_is_bounded() {
        let paths: Vec<String> = (0..HTTP_PATTERNS_MAX).map(|number| format!("'/{number}'")).collect();
        let target = |count: usize| {
            let text = format!(
                "[[target]]\nname = 'x'\n[[target.http]]\naccess = 'deny'\npaths = [{}]",
                paths[..count].join(",")
            );
            rules(&text).targets.remove(0)
        };
        assert!(target(HTTP_PATTERNS_MAX - 1).check().is_ok());
        assert!(target(HTTP_PATTERNS_MAX).check().unwrap_err().contains("at most"));
    }

    #[test]
    fn mistakes_are_refused_with_what_is_wrong() {
        for (text, needle) in [
            ("[[target]]\nname = 'x'\naddresses = ['10.0.0.0/99']", "CIDR"),
            ("[[target]]\nname = 'x'\nports = ['9-1']", "range"),
            ("[[target]]\nname = 'x'\nacces = 'deny'", "acces"),
            ("default = 'maybe'", "maybe"),
            ("[[target]]\nname = 'x'\n[[target.http]]\naccess = 'guarded'", "guarded"),
        ] {
            let error = toml::from_str::<Rules>(text).unwrap_err().to_string();
            assert!(error.contains(needle), "{error}");
        }
    }
}
