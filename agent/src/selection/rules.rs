//! `[[select]]`: which processes inside the scope are governed without an `exec`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Processes in this cgroup, or below it, form a run: one per cgroup, from its first process to its last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Select {
    pub(crate) name: String,
    /// Path in the cgroup2 hierarchy, e.g. "/system.slice/ci-runner.service".
    pub(crate) cgroup: String,
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
}

impl Select {
    pub(crate) fn matches(&self, cgroup: &str) -> bool {
        let rule = self.cgroup.trim_end_matches('/');
        cgroup == rule || cgroup.strip_prefix(rule).is_some_and(|rest| rest.starts_with('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_covers_its_cgroup_and_what_is_below() {
        let rule = Select { name: "ci".into(), cgroup: "/ci.slice/".into(), labels: BTreeMap::new() };
        assert!(rule.matches("/ci.slice"));
        assert!(rule.matches("/ci.slice/job-1"));
        assert!(!rule.matches("/ci.slice2/job-1"));
        assert!(!rule.matches("/"));
    }
}
