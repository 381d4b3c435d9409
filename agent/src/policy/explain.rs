//! What rules would say, for whoever writes them: `weir-agent policy check` and `weir-agent policy test`. The same snapshot
//! decides as in the node agent.

use std::net::SocketAddr;

use serde_json::{Value, json};
use weir_protocols::operation::{Http, Opacity};
use weir_protocols::{Denial, Operation};

use super::snapshot::{Ruling, Snapshot};
use super::targets::{Access, Fallback, Mode};

/// What a connection, and a request on it, would come to.
pub(crate) struct Explanation {
    target: String,
    connection: Ruling,
    /// A request was asked about, and not only the connection.
    is_of_request: bool,
    /// Of the request that was asked about; without one, of traffic that is not HTTP.
    then: Vec<(String, Ruling)>,
}

/// `--http "GET http://host/path"` cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a request such as \"GET http://host/path\"")]
pub(crate) struct NotARequest(String);

/// Reads `METHOD URL` or `METHOD /path`.
pub(crate) fn request(text: &str) -> Result<Http, NotARequest> {
    let wrong = || NotARequest(text.to_owned());
    let (method, target) = text.trim().split_once(' ').ok_or_else(wrong)?;
    let (authority, path) = match target.trim_start().split_once("://") {
        Some((_, rest)) => rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len())),
        None if target.starts_with('/') => ("", target),
        None => return Err(wrong()),
    };
    let (path, query) = match path.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (path, None),
    };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port.parse().map_err(|_| wrong())?)),
        _ => (authority, None),
    };
    let bytes = |text: &str| text.as_bytes().to_vec().into();
    Ok(Http {
        method: bytes(method),
        host: bytes(&host.to_ascii_lowercase()),
        port,
        path: bytes(if path.is_empty() { "/" } else { path }),
        query: query.map(bytes),
    })
}

/// Asks the rules.
pub(crate) fn explain(snapshot: &Snapshot, destination: SocketAddr, http: Option<Http>) -> Explanation {
    let (at, connection) = snapshot.connection(destination);
    let is_of_request = http.is_some();
    let then = match http {
        _ if connection.denied.is_some() => Vec::new(),
        Some(request) => vec![("request".to_owned(), snapshot.operation(at, &Operation::Http(request)))],
        None => [Opacity::Tls, Opacity::Unrecognized]
            .into_iter()
            .map(|reason| {
                (
                    format!("what cannot be read ({})", reason.word()),
                    snapshot.operation(at, &Operation::Opaque { reason }),
                )
            })
            .collect(),
    };
    let target = at.map_or_else(String::new, |_| snapshot.rule_name(at).to_string());
    Explanation { target, connection, is_of_request, then }
}

impl Explanation {
    /// Everything asked about would be let through.
    pub(crate) fn is_allowed(&self) -> bool {
        let then = self.then.iter().filter(|_| self.is_of_request);
        self.connection.denied.is_none()
            && then.map(|(_, ruling)| ruling).all(|ruling| ruling.denied.is_none())
    }

    pub(crate) fn to_json(&self) -> Value {
        let rulings = self.rulings().map(|(what, ruling)| (what.to_owned(), ruling_json(ruling)));
        json!({ "target": self.target, "allowed": self.is_allowed(), "rulings": rulings.collect::<serde_json::Map<_, _>>() })
    }

    /// Lines for people.
    pub(crate) fn to_text(&self) -> String {
        let target = if self.target.is_empty() { "none" } else { &self.target };
        let lines = self.rulings().map(|(what, ruling)| format!("{what}: {}\n", words(ruling)));
        format!("target: {target}\n{}", lines.collect::<String>())
    }

    fn rulings(&self) -> impl Iterator<Item = (&str, &Ruling)> {
        std::iter::once(("connection", &self.connection))
            .chain(self.then.iter().map(|(what, ruling)| (what.as_str(), ruling)))
    }
}

fn ruling_json(ruling: &Ruling) -> Value {
    let would = ruling.would_deny.as_ref();
    json!({ "allowed": ruling.denied.is_none(), "rule": &*ruling.rule, "reason": ruling.denied.as_deref(),
        "would_deny": would.map(|denial| json!({ "rule": &*denial.rule, "reason": &*denial.reason })) })
}

fn words(ruling: &Ruling) -> String {
    let Ruling { rule, denied, would_deny } = ruling;
    match (denied, would_deny) {
        (Some(reason), _) => format!("refused by {rule}: {reason}"),
        (None, None) => format!("allowed by {rule}"),
        (None, Some(Denial { rule: observed, reason })) => {
            format!("allowed by {rule}; {observed} observes, and would refuse: {reason}")
        }
    }
}

/// The rules in their order, one line each, and what is odd about them.
pub(crate) fn summary(snapshot: &Snapshot) -> Value {
    let rules = &snapshot.rules;
    let targets = rules.targets.iter().enumerate().map(|(at, target)| {
        json!({ "name": target.name, "access": target.access.word(), "mode": snapshot.mode_of(target).word(),
            "http_rules": names(snapshot, at), "refuses_what_is_not_http": snapshot.guards_http(target).map(Mode::word) })
    });
    json!({ "default": rules.default.word(), "mode": rules.mode.word(), "targets": targets.collect::<Vec<_>>(),
        "warnings": warnings(snapshot) })
}

fn names(snapshot: &Snapshot, at: usize) -> Vec<&str> {
    snapshot.http_names(at).iter().map(|name| &**name).collect()
}

/// What is valid and yet hardly meant.
fn warnings(snapshot: &Snapshot) -> Vec<String> {
    let rules = &snapshot.rules;
    let mut warnings = Vec::new();
    if let Some(all) = rules.targets.iter().position(|target| target.covers_all()) {
        let after: Vec<_> = rules.targets[all + 1..].iter().map(|target| target.name.as_str()).collect();
        if !after.is_empty() {
            let name = &rules.targets[all].name;
            warnings.push(format!(
                "target {name:?} covers every destination: those after it never match ({})",
                after.join(", ")
            ));
        }
        if rules.default == Fallback::Deny && rules.targets[all].access != Access::Deny {
            let name = &rules.targets[all].name;
            warnings
                .push(format!("target {name:?} covers every destination: default = \"deny\" denies nothing"));
        }
    }
    for (at, target) in rules.targets.iter().enumerate() {
        let names = names(snapshot, at);
        if let Some(all) = target.http.iter().position(|rule| rule.covers_all())
            && all + 1 < target.http.len()
        {
            warnings.push(format!(
                "HTTP rule {} covers every request: those after it never match ({})",
                names[all],
                names[all + 1..].join(", ")
            ));
        }
        if target.access != Access::Deny && !target.http.is_empty() && snapshot.guards_http(target).is_none()
        {
            warnings.push(format!(
                "the HTTP rules of {:?} only allow, and so does the target: they deny nothing",
                target.name
            ));
        }
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Stamp;

    fn snapshot(text: &str) -> Snapshot {
        Snapshot::new(toml::from_str(text).unwrap(), Stamp::default())
    }

    #[test]
    fn requests_are_read_as_people_write_them() {
        let read = request("GET http://API.example:8080/a/b?c=d").unwrap();
        assert_eq!(
            (&read.method[..], &read.host[..], read.port),
            (&b"GET"[..], &b"api.example"[..], Some(8080))
        );
        assert_eq!((&read.path[..], read.query.as_deref()), (&b"/a/b"[..], Some(&b"c=d"[..])));
        assert_eq!(request("GET http://[::1]/").unwrap().host, "[::1]");
        assert_eq!(request("GET http://h?x").unwrap().path, "/");
        assert_eq!(request("DELETE /x").unwrap().host, "");
        for wrong in ["GET", "GET x", "http://h/", "GET http://h:port/"] {
            assert!(request(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn it_says_which_rule_decides_and_why() {
        let rules = snapshot(
            "default = 'deny'\n[[target]]\nname = 'web'\naddresses = ['10.0.0.1']\n\
             [[target.http]]\nname = 'no-admin'\npaths = ['/admin/**']\naccess = 'deny'\nreason = 'ask first'\n\
             [[target.http]]\nmethods = ['POST']\naccess = 'deny'\nmode = 'observe'",
        );
        let said = |text: &str| explain(&rules, "10.0.0.1:80".parse().unwrap(), Some(request(text).unwrap()));
        let refused = said("GET http://h/x/../admin");
        assert!(!refused.is_allowed());
        assert!(
            refused.to_text().ends_with("request: refused by web/no-admin: ask first\n"),
            "{}",
            refused.to_text()
        );
        let observed = said("POST http://h/");
        assert!(observed.is_allowed());
        assert_eq!(observed.to_json()["rulings"]["request"]["would_deny"]["rule"], "web/http#2");
        let elsewhere = explain(&rules, "10.0.0.2:80".parse().unwrap(), None);
        assert_eq!(
            elsewhere.to_text(),
            "target: none\nconnection: refused by default: no target allows this destination\n"
        );
        let tls = explain(&rules, "10.0.0.1:443".parse().unwrap(), None);
        assert!(
            tls.to_text().contains("(tls): refused by web: this target has rules for HTTP"),
            "{}",
            tls.to_text()
        );
    }

    #[test]
    fn what_is_hardly_meant_is_told() {
        let warned = |text: &str| warnings(&snapshot(text));
        assert!(
            warned("[[target]]\nname = 'a'\naddresses = ['10.0.0.1']\n[[target]]\nname = 'b'").is_empty()
        );
        let unreachable = warned("default = 'deny'\n[[target]]\nname = 'a'\n[[target]]\nname = 'b'");
        assert!(unreachable[0].contains("never match (b)") && unreachable[1].contains("denies nothing"));
        let http = "[[target]]\nname = 'a'\n[[target.http]]\naccess = 'allow'\n";
        assert!(warned(http)[0].contains("deny nothing"));
        let covered = format!("{http}[[target.http]]\nname = 'late'\naccess = 'deny'\npaths = ['/x']");
        assert!(warned(&covered)[0].contains("a/late"));
    }
}
