//! `[[select]]`: which processes inside the scope are governed without an `exec`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::container::{ContainerPrefix, containers};
use super::digest::Digest;
use super::pattern::PathPattern;
use super::process::{Contained, Facts};

/// What all of its conditions hold for. A condition that is a list holds where any of it does; one that is not given holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Select {
    pub(crate) name: String,
    /// False: what it matches is left alone.
    #[serde(default = "governs")]
    pub(crate) govern: bool,
    /// Path in the cgroup2 hierarchy, e.g. "/system.slice/ci-runner.service": it and all below it.
    #[serde(default)]
    pub(crate) cgroup: Option<String>,
    #[serde(default)]
    pub(crate) containers: Vec<ContainerPrefix>,
    #[serde(default)]
    pub(crate) users: Vec<User>,
    #[serde(default)]
    pub(crate) executables: Vec<PathPattern>,
    #[serde(default)]
    pub(crate) executable_sha256: Vec<Digest>,
    /// Of its runs.
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
    /// Who its runs are, in place of uid and executable. Said, not verified.
    #[serde(default)]
    pub(crate) principal: Option<String>,
}

fn governs() -> bool {
    true
}

/// Does a process fit a rule?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    No,
    /// Nothing that is known speaks against it, but this is not known.
    Maybe(&'static str),
    Yes,
}

/// What belongs to one run of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// Everything in the rule's cgroup.
    Cgroup,
    /// Everything in one container.
    Container,
    /// A process that fits and all that it starts.
    Tree,
}

impl Select {
    /// What is wrong with it, if anything. `scope` is the cgroup inside which rules hold.
    pub(crate) fn check(&self, scope: &str) -> Result<(), String> {
        let scope = scope.trim_end_matches('/');
        if self.name.is_empty() {
            return Err("a rule must have a name".to_owned());
        }
        if let Some(cgroup) = &self.cgroup
            && !(cgroup.clone() + "/").starts_with(&format!("{scope}/"))
        {
            return Err(format!("{cgroup:?} is not inside scope, so no process would match"));
        }
        let conditions = self.containers.len()
            + self.users.len()
            + self.executables.len()
            + self.executable_sha256.len()
            + usize::from(self.cgroup.is_some());
        if conditions == 0 {
            return Err(format!(
                "rule {:?} has no condition; to govern everything in the scope, give the scope as its cgroup",
                self.name
            ));
        }
        if self.principal.as_ref().is_some_and(String::is_empty) {
            return Err(format!("rule {:?} has an empty principal", self.name));
        }
        Ok(())
    }

    pub(super) fn fit(&self, facts: &Facts) -> Fit {
        let mut fit = Fit::Yes;
        for one in [
            self.fit_user(facts),
            self.fit_cgroup(facts),
            self.fit_container(facts),
            self.fit_executable(facts),
            self.fit_digest(facts),
        ] {
            match one {
                Fit::No => return Fit::No,
                Fit::Maybe(_) if fit == Fit::Yes => fit = one,
                Fit::Maybe(_) | Fit::Yes => {}
            }
        }
        fit
    }

    pub(super) fn extent(&self) -> Extent {
        let of_process =
            !(self.users.is_empty() && self.executables.is_empty() && self.executable_sha256.is_empty());
        match (of_process, self.containers.is_empty()) {
            (true, _) => Extent::Tree,
            (false, false) => Extent::Container,
            (false, true) => Extent::Cgroup,
        }
    }

    /// Digests take time to compute: they are, if a rule needs them.
    pub(super) fn needs_digest(&self) -> bool {
        !self.executable_sha256.is_empty()
    }

    /// The innermost container of this cgroup that the rule names, as the path of the container's own cgroup.
    pub(super) fn container_cgroup<'a>(&self, cgroup: &'a str) -> Option<&'a str> {
        containers(cgroup)
            .rev()
            .find(|container| self.containers.iter().any(|prefix| prefix.matches(container.id)))
            .map(|container| container.cgroup)
    }

    fn fit_user(&self, facts: &Facts) -> Fit {
        match facts.uid {
            _ if self.users.is_empty() => Fit::Yes,
            Some(uid) => Fit::of(self.users.iter().any(|user| user.uid == uid)),
            None => Fit::Maybe("user"),
        }
    }

    fn fit_cgroup(&self, facts: &Facts) -> Fit {
        match (&self.cgroup, &facts.cgroup) {
            (None, _) => Fit::Yes,
            (Some(_), None) => Fit::Maybe("cgroup"),
            (Some(rule), Some(cgroup)) => Fit::of(lies_within(cgroup, rule)),
        }
    }

    fn fit_container(&self, facts: &Facts) -> Fit {
        match &facts.container {
            _ if self.containers.is_empty() => Fit::Yes,
            Contained::Unknown => Fit::Maybe("container"),
            Contained::In(ids) => {
                Fit::of(ids.iter().any(|id| self.containers.iter().any(|prefix| prefix.matches(id))))
            }
        }
    }

    fn fit_executable(&self, facts: &Facts) -> Fit {
        match &facts.executable {
            _ if self.executables.is_empty() => Fit::Yes,
            Some(path) => Fit::of(self.executables.iter().any(|pattern| pattern.matches(path))),
            None => Fit::Maybe("executable"),
        }
    }

    fn fit_digest(&self, facts: &Facts) -> Fit {
        match &facts.digest {
            _ if self.executable_sha256.is_empty() => Fit::Yes,
            Some(digest) => Fit::of(self.executable_sha256.contains(digest)),
            None => Fit::Maybe("executable_sha256"),
        }
    }
}

impl Fit {
    fn of(fits: bool) -> Self {
        if fits { Self::Yes } else { Self::No }
    }
}

/// Whether a cgroup is another, or below it.
pub(super) fn lies_within(cgroup: &str, above: &str) -> bool {
    let above = above.trim_end_matches('/');
    cgroup.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// A user by number or by name; a name is looked up once, when the configuration is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "UserText", into = "u32")]
pub(crate) struct User {
    uid: u32,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum UserText {
    Uid(u32),
    Name(String),
}

impl TryFrom<UserText> for User {
    type Error = String;
    fn try_from(text: UserText) -> Result<Self, String> {
        match text {
            UserText::Uid(uid) => Ok(Self { uid }),
            UserText::Name(name) => match nix::unistd::User::from_name(&name) {
                Ok(Some(user)) => Ok(Self { uid: user.uid.as_raw() }),
                // A rule that cannot be enforced must not be a missing rule.
                Ok(None) => {
                    Err(format!("no user is called {name:?} on this host; give the uid if it comes later"))
                }
                Err(errno) => Err(format!("the user {name:?} cannot be looked up: {errno}")),
            },
        }
    }
}

impl From<User> for u32 {
    fn from(user: User) -> Self {
        user.uid
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0f3a1cde9b7e4b1d8a6f5c4d3e2b1a0f9e8d7c6b5a4938271605f4e3d2c1b0a9";
    const SHA: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn rule(text: &str) -> Select {
        toml::from_str(&format!("name = 'r'\n{text}")).unwrap()
    }

    fn facts() -> Facts {
        let cgroup = format!("/ci.slice/docker-{ID}.scope/x");
        Facts {
            uid: Some(1000),
            container: Contained::In(vec![ID.to_owned()]),
            cgroup: Some(cgroup),
            executable: Some("/usr/bin/psql".to_owned()),
            digest: Some(Digest::try_from(SHA.to_owned()).unwrap()),
        }
    }

    #[test]
    fn a_rule_covers_its_cgroup_and_what_is_below() {
        let rule = rule("cgroup = '/ci.slice/'");
        let at = |cgroup: &str| rule.fit(&Facts { cgroup: Some(cgroup.to_owned()), ..facts() });
        assert_eq!(at("/ci.slice"), Fit::Yes);
        assert_eq!(at("/ci.slice/job-1"), Fit::Yes);
        assert_eq!(at("/ci.slice2/job-1"), Fit::No);
        assert_eq!(at("/"), Fit::No);
        assert!(lies_within("/", "/") && lies_within("/a", "/"));
    }

    #[test]
    fn every_condition_decides_alone() {
        for (text, fit) in [
            ("users = [0, 1000]", Fit::Yes),
            ("users = ['root']", Fit::No),
            ("executables = ['/bin/sh', '/usr/bin/ps*']", Fit::Yes),
            ("executables = ['/usr/bin']", Fit::No),
            ("containers = ['0f3a1cde9b7e']", Fit::Yes),
            ("containers = ['aaaaaaaaaaaa']", Fit::No),
            (&format!("executable_sha256 = ['{SHA}']"), Fit::Yes),
            (&format!("executable_sha256 = ['{ID}']"), Fit::No),
            ("cgroup = '/ci.slice'", Fit::Yes),
        ] {
            assert_eq!(rule(text).fit(&facts()), fit, "{text}");
        }
    }

    #[test]
    fn all_conditions_must_hold_and_what_speaks_against_it_outweighs_what_is_unknown() {
        let rule = rule("users = [1000]\nexecutables = ['/usr/bin/psql']");
        assert_eq!(rule.fit(&facts()), Fit::Yes);
        assert_eq!(rule.fit(&Facts { uid: Some(1), ..facts() }), Fit::No);
        assert_eq!(rule.fit(&Facts { executable: None, ..facts() }), Fit::Maybe("executable"));
        assert_eq!(rule.fit(&Facts { executable: None, uid: Some(1), ..facts() }), Fit::No);
        assert_eq!(rule.fit(&Facts::default()), Fit::Maybe("user"));
    }

    #[test]
    fn whatever_is_unknown_may_fit() {
        for (text, what) in [
            ("users = [1]", "user"),
            ("cgroup = '/x'", "cgroup"),
            ("containers = ['aaaaaaaaaaaa']", "container"),
            ("executables = ['/x']", "executable"),
            (&format!("executable_sha256 = ['{SHA}']"), "executable_sha256"),
        ] {
            assert_eq!(rule(text).fit(&Facts::default()), Fit::Maybe(what), "{text}");
        }
    }

    #[test]
    fn a_run_extends_over_what_the_rule_names() {
        for (text, extent) in [
            ("cgroup = '/a'", Extent::Cgroup),
            ("containers = ['aaaaaaaaaaaa']\ncgroup = '/a'", Extent::Container),
            ("containers = ['aaaaaaaaaaaa']\nusers = [0]", Extent::Tree),
            ("executables = ['/x']", Extent::Tree),
        ] {
            assert_eq!(rule(text).extent(), extent, "{text}");
        }
        let path = format!("/ci.slice/docker-{ID}.scope/x");
        let rule = rule("containers = ['0f3a1cde9b7e']");
        assert_eq!(rule.container_cgroup(&path), path.strip_suffix("/x"));
        assert_eq!(rule.container_cgroup("/ci.slice"), None);
    }

    #[test]
    fn mistakes_are_refused_with_what_is_wrong() {
        for (text, needle) in [
            ("cgroup = '/elsewhere'", "not inside scope"),
            ("labels = { a = 'b' }", "no condition"),
            ("users = [1]\nprincipal = ''", "empty principal"),
        ] {
            let error = rule(text).check("/weir").unwrap_err();
            assert!(error.contains(needle), "{error}");
        }
        assert!(rule("users = [1]").check("/weir").is_ok());
        assert!(rule("cgroup = '/weir'").check("/weir/").is_ok());
        for (text, needle) in [
            ("users = ['no such user']", "no user is called"),
            ("executables = ['psql']", "absolute"),
            ("executable_sha256 = ['abc']", "sha256sum"),
            ("containers = ['web']", "hex digits"),
            ("executable = ['/x']", "executable"),
        ] {
            let error = toml::from_str::<Select>(&format!("name = 'r'\n{text}")).unwrap_err().to_string();
            assert!(error.contains(needle), "{error}");
        }
    }
}
