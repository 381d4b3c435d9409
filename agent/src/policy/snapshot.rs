//! One whole, immutable state of the rules, and what it says. Pure: nothing here permits anything.

use std::net::SocketAddr;
use std::sync::Arc;

use weir_protocols::operation::Http;
use weir_protocols::{Denial, Operation};

use super::http::HttpAccess;
use super::readings::Readings;
use super::targets::{Access, Fallback, Mode, Rules, Target};

/// Which state of the rules holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Counts from 1 at each start of the node agent.
    pub(crate) generation: u64,
    /// SHA-256 of the configuration file's bytes; `None`: there is no file.
    pub(crate) config_sha256: Option<[u8; 32]>,
    /// When it was loaded.
    pub(crate) loaded_unix_ns: i64,
}

#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) rules: Rules,
    pub(crate) stamp: Stamp,
    /// Of each target, in order.
    names: Vec<Names>,
    fallback: Arc<str>,
}

/// What the rules are called on record.
#[derive(Debug)]
struct Names {
    target: Arc<str>,
    http: Vec<Arc<str>>,
}

/// What the rules say of one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ruling {
    /// That which decided.
    pub(crate) rule: Arc<str>,
    /// Refused, and why.
    pub(crate) denied: Option<Arc<str>>,
    /// What all rules, the observed ones too, would have refused were they enforced. `None` where that is what is done.
    pub(crate) would_deny: Option<Denial>,
}

/// One rule that matches, in the order of the rules.
struct Clause<'a> {
    mode: Mode,
    rule: &'a Arc<str>,
    denial: Option<Why<'a>>,
}

/// The reason of a denial, not yet put into words: most are never said.
enum Why<'a> {
    Said(Option<&'a str>),
    Denied,
    NoTarget,
    Unreadable(&'static str),
    NotHttp(&'static str),
}

impl Snapshot {
    pub(crate) fn new(rules: Rules, stamp: Stamp) -> Self {
        let names = rules.targets.iter().map(Names::of).collect();
        Self { rules, stamp, names, fallback: Arc::from("default") }
    }

    /// The name of a target, or of what holds without one.
    pub(crate) fn rule_name(&self, target: Option<usize>) -> &Arc<str> {
        target.map_or(&self.fallback, |at| &self.names[at].target)
    }

    /// The names of a target's HTTP rules.
    pub(crate) fn http_names(&self, target: usize) -> &[Arc<str>] {
        &self.names[target].http
    }

    /// May a connection be made?
    pub(crate) fn connection(&self, destination: SocketAddr) -> (Option<usize>, Ruling) {
        let at = self.rules.target_of(destination);
        let rule = self.rule_name(at);
        let clause = match at.map(|at| &self.rules.targets[at]) {
            None => Clause {
                mode: self.rules.mode,
                rule,
                denial: (self.rules.default == Fallback::Deny).then_some(Why::NoTarget),
            },
            Some(target) => Clause {
                mode: self.mode_of(target),
                rule,
                denial: (target.access == Access::Deny && !target.opens_for_http())
                    .then_some(Why::Said(target.reason.as_deref())),
            },
        };
        (at, settle([clause].into_iter(), rule))
    }

    /// May this be sent on a connection to this target?
    pub(crate) fn operation(&self, target: Option<usize>, operation: &Operation) -> Ruling {
        let name = self.rule_name(target);
        let Some(at) = target else {
            // A connection that was open when the default came to deny.
            let denial = (self.rules.default == Fallback::Deny).then_some(Why::NoTarget);
            return settle(enforced(self.rules.mode, name, denial), name);
        };
        let (target, names) = (&self.rules.targets[at], &self.names[at]);
        let mode = self.mode_of(target);
        let request = match operation {
            Operation::Http(request) if !target.http.is_empty() => Some(request),
            _ => None,
        };
        let unreadable = unreadable(operation)
            .filter(|_| target.access == Access::Guarded)
            .map(|what| Clause { mode, rule: name, denial: Some(Why::Unreadable(what)) });
        let not_http = what_is_not_http(operation).zip(self.guards_http(target)).map(|(what, mode)| Clause {
            mode,
            rule: name,
            denial: Some(Why::NotHttp(what)),
        });
        let of_request = request.into_iter().flat_map(|request| self.clauses(target, names, request));
        let denied = (target.access == Access::Deny).then_some(Why::Said(target.reason.as_deref()));
        let base = if target.opens_for_http() {
            Some(Clause { mode, rule: name, denial: denied })
        } else {
            enforced(mode, name, denied).next()
        };
        settle(unreadable.into_iter().chain(not_http).chain(of_request).chain(base), name)
    }

    pub(crate) fn mode_of(&self, target: &Target) -> Mode {
        target.mode.unwrap_or(self.rules.mode)
    }

    /// A target whose HTTP rules may deny refuses what is not HTTP, where they could not be kept. In which mode?
    pub(crate) fn guards_http(&self, target: &Target) -> Option<Mode> {
        let mode = self.mode_of(target);
        let denying = target.http.iter().filter(|rule| rule.access == HttpAccess::Deny);
        let modes =
            denying.map(|rule| rule.mode.unwrap_or(mode)).chain(target.opens_for_http().then_some(mode));
        modes.reduce(|a, b| if a == Mode::Enforce { a } else { b })
    }

    fn clauses<'a>(
        &'a self,
        target: &'a Target,
        names: &'a Names,
        request: &Http,
    ) -> impl Iterator<Item = Clause<'a>> {
        let read = Readings::of(request);
        let mode = self.mode_of(target);
        target.http.iter().zip(&names.http).filter(move |(rule, _)| rule.matches(&read)).map(
            move |(rule, name)| Clause {
                mode: rule.mode.unwrap_or(mode),
                rule: name,
                denial: (rule.access == HttpAccess::Deny).then_some(match rule.reason.as_deref() {
                    None => Why::Denied,
                    said => Why::Said(said),
                }),
            },
        )
    }
}

/// What is in observe decides nothing: the first that is enforced does. What all together would have said is told besides.
fn settle<'a>(clauses: impl Iterator<Item = Clause<'a>>, otherwise: &Arc<str>) -> Ruling {
    let mut would: Option<Option<Denial>> = None;
    for clause in clauses {
        let denied = clause.denial.map(Why::words);
        if clause.mode == Mode::Enforce {
            let would_deny = would.flatten().filter(|_| denied.is_none());
            return Ruling { rule: clause.rule.clone(), denied, would_deny };
        }
        would.get_or_insert_with(|| denied.map(|reason| Denial { rule: clause.rule.clone(), reason }));
    }
    Ruling { rule: otherwise.clone(), denied: None, would_deny: would.flatten() }
}

/// What holds for a connection, held against what is sent on it: it was let through when other rules held. Observed, it was
/// recorded when the connection was made, and is not again for all that is sent on it.
fn enforced<'a>(mode: Mode, rule: &'a Arc<str>, denial: Option<Why<'a>>) -> impl Iterator<Item = Clause<'a>> {
    let denial = denial.filter(|_| mode == Mode::Enforce);
    [Clause { mode: Mode::Enforce, rule, denial }].into_iter()
}

fn unreadable(operation: &Operation) -> Option<&'static str> {
    match operation {
        Operation::Opaque { reason } => Some(reason.word()),
        Operation::Sql(sql) if sql.oversized => Some("oversized"),
        Operation::Connect { .. } | Operation::Sql(_) | Operation::Http(_) => None,
    }
}

fn what_is_not_http(operation: &Operation) -> Option<&'static str> {
    match operation {
        Operation::Opaque { reason } => Some(reason.word()),
        Operation::Sql(_) => Some("sql"),
        Operation::Connect { .. } | Operation::Http(_) => None,
    }
}

impl Names {
    fn of(target: &Target) -> Self {
        let http = target.http.iter().enumerate().map(|(at, rule)| match &rule.name {
            Some(name) => Arc::from(format!("{}/{name}", target.name)),
            None => Arc::from(format!("{}/http#{}", target.name, at + 1)),
        });
        Self { target: Arc::from(&*target.name), http: http.collect() }
    }
}

impl Why<'_> {
    fn words(self) -> Arc<str> {
        match self {
            Why::Said(reason) => Arc::from(reason.unwrap_or("this target is denied")),
            Why::Denied => Arc::from("this request is denied"),
            Why::NoTarget => Arc::from("no target allows this destination"),
            Why::Unreadable(what) => {
                Arc::from(format!("this target is guarded and its traffic cannot be read ({what})"))
            }
            Why::NotHttp(what) => Arc::from(format!(
                "this target has rules for HTTP, which cannot be kept on other traffic ({what})"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_protocols::operation::{Opacity, Sql, SqlVerb};

    fn snapshot(text: &str) -> Snapshot {
        Snapshot::new(toml::from_str(text).unwrap(), Stamp::default())
    }

    fn connect(snapshot: &Snapshot, destination: &str) -> Ruling {
        snapshot.connection(destination.parse().unwrap()).1
    }

    fn http(method: &'static str, path: &'static str) -> Operation {
        Operation::Http(Http {
            method: method.into(),
            host: "web".into(),
            port: None,
            path: path.into(),
            query: None,
        })
    }

    fn sql() -> Operation {
        Operation::Sql(Sql {
            verb: SqlVerb::Query,
            text: "select 1".into(),
            defined_by: None,
            oversized: false,
        })
    }

    const OPAQUE: Operation = Operation::Opaque { reason: Opacity::Tls };

    fn is_denied(ruling: &Ruling) -> bool {
        assert!(ruling.denied.is_none() || ruling.would_deny.is_none(), "{ruling:?}");
        ruling.denied.is_some()
    }

    /// The rule that would deny.
    fn would(ruling: &Ruling) -> Option<&str> {
        assert!(!is_denied(ruling));
        ruling.would_deny.as_ref().map(|denial| &*denial.rule)
    }

    #[test]
    fn the_first_rule_that_matches_decides_else_the_target() {
        let rules = snapshot(
            "[[target]]\nname = 't'\n\
             [[target.http]]\npaths = ['/open/**']\naccess = 'allow'\n\
             [[target.http]]\nname = 'no-writes'\nmethods = ['POST']\naccess = 'deny'\nreason = 'read only'",
        );
        let said = |operation| rules.operation(Some(0), &operation);
        assert_eq!(&*said(http("POST", "/open/x")).rule, "t/http#1");
        let denied = said(http("POST", "/x"));
        assert_eq!((&*denied.rule, denied.denied.as_deref()), ("t/no-writes", Some("read only")));
        let allowed = said(http("GET", "/x"));
        assert_eq!((&*allowed.rule, allowed.denied), ("t", None));
    }

    #[test]
    fn rules_for_http_that_may_deny_refuse_all_that_is_not_http() {
        let rule = "[[target]]\nname = 't'\n[[target.http]]\npaths = ['/a']\naccess =";
        let denying = snapshot(&format!("{rule} 'deny'"));
        for operation in [OPAQUE, sql()] {
            assert!(is_denied(&denying.operation(Some(0), &operation)), "{operation:?}");
            let allowing = snapshot(&format!("{rule} 'allow'"));
            assert!(!is_denied(&allowing.operation(Some(0), &operation)), "nothing could be missed");
            let observing = snapshot(&format!("mode = 'observe'\n{rule} 'deny'"));
            assert_eq!(would(&observing.operation(Some(0), &operation)), Some("t"));
        }
    }

    #[test]
    fn a_denied_target_opens_for_the_requests_that_are_allowed() {
        let rules = snapshot(
            "default = 'deny'\n[[target]]\nname = 't'\naddresses = ['10.0.0.1']\naccess = 'deny'\n\
             [[target.http]]\npaths = ['/ok']\naccess = 'allow'",
        );
        assert!(!is_denied(&connect(&rules, "10.0.0.1:80")));
        assert!(is_denied(&connect(&rules, "10.0.0.2:80")));
        assert!(!is_denied(&rules.operation(Some(0), &http("GET", "/ok"))));
        for operation in [http("GET", "/no"), OPAQUE, sql()] {
            assert!(is_denied(&rules.operation(Some(0), &operation)), "{operation:?}");
        }
    }

    #[test]
    fn guarded_refuses_what_cannot_be_read() {
        let rules = snapshot("[[target]]\nname = 'db'\naccess = 'guarded'");
        assert!(is_denied(&rules.operation(Some(0), &OPAQUE)));
        let oversized =
            Operation::Sql(Sql { verb: SqlVerb::Query, text: "".into(), defined_by: None, oversized: true });
        assert!(is_denied(&rules.operation(Some(0), &oversized)));
        assert!(!is_denied(&rules.operation(Some(0), &sql())));
        let observed = snapshot("[[target]]\nname = 'db'\naccess = 'guarded'\nmode = 'observe'");
        assert_eq!(would(&observed.operation(Some(0), &OPAQUE)), Some("db"));
    }

    #[test]
    fn observe_refuses_nothing_and_says_what_it_would_have() {
        let observed = snapshot(
            "mode = 'observe'\ndefault = 'deny'\n\
             [[target]]\nname = 'off'\naddresses = ['10.0.0.1']\naccess = 'deny'\nreason = 'no'\n\
             [[target]]\nname = 'hard'\naddresses = ['10.0.0.2']\naccess = 'deny'\nmode = 'enforce'",
        );
        assert_eq!(would(&connect(&observed, "10.0.0.9:1")), Some("default"));
        let off = connect(&observed, "10.0.0.1:1");
        assert_eq!(off.would_deny, Some(Denial { rule: "off".into(), reason: "no".into() }));
        assert!(is_denied(&connect(&observed, "10.0.0.2:1")));
        assert_eq!(would(&observed.operation(Some(0), &sql())), None, "said once, of the connection");
        assert_eq!(would(&observed.operation(None, &sql())), None);
    }

    #[test]
    fn an_observed_rule_takes_nothing_from_those_that_are_enforced() {
        let http_rule = |access: &str, path: &str, mode: &str| {
            format!("[[target.http]]\npaths = ['{path}']\naccess = '{access}'\nmode = '{mode}'\n")
        };
        let rules = |parts: &[String]| snapshot(&format!("[[target]]\nname = 't'\n{}", parts.concat()));
        let request = http("GET", "/a");
        // A trial of a narrower rule must not open what a later one closes.
        let both = rules(&[http_rule("deny", "/a", "observe"), http_rule("deny", "/**", "enforce")]);
        assert_eq!(&*both.operation(Some(0), &request).rule, "t/http#2");
        assert!(is_denied(&both.operation(Some(0), &request)));
        let opening = rules(&[http_rule("allow", "/a", "observe"), http_rule("deny", "/**", "enforce")]);
        assert!(is_denied(&opening.operation(Some(0), &request)));
        // Under enforce the first would have allowed: the second has nothing to say.
        let quiet = rules(&[http_rule("allow", "/a", "observe"), http_rule("deny", "/**", "observe")]);
        assert_eq!(would(&quiet.operation(Some(0), &request)), None);
        assert_eq!(would(&quiet.operation(Some(0), &http("GET", "/b"))), Some("t/http#2"));
        let trial = rules(&[http_rule("deny", "/a", "observe"), http_rule("allow", "/**", "enforce")]);
        assert_eq!(would(&trial.operation(Some(0), &request)), Some("t/http#1"));
    }
}
