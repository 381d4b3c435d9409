//! One agent at work: who it is, who asked for it, its labels. Kept on disk while it lives.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};
use weir_proto::{RunId, v1};
use zeroize::Zeroizing;

use super::digest::Digest;
use crate::recording::{clock, write_file};
use crate::redirection::ProcessStart;

/// What is known when a run begins.
#[derive(Debug, Default)]
pub(crate) struct NewRun {
    pub(crate) parent: Option<RunId>,
    pub(crate) uid: u32,
    /// "exec uid:1000", "select:ci".
    pub(crate) initiator: String,
    pub(crate) labels: BTreeMap<String, String>,
    /// After record masking.
    pub(crate) argv: Vec<String>,
    /// The identity token handed in with the run; never recorded. Verified when identities are.
    pub(crate) token: Option<Zeroizing<String>>,
    /// Directory of the run's cgroup; empty when it has none.
    pub(crate) cgroup: PathBuf,
    /// Whether the node agent made the cgroup, so removes it at the end.
    pub(crate) owns_cgroup: bool,
    /// Name of the rule that began it.
    pub(crate) rule: Option<String>,
    /// Who it is, in place of uid and executable.
    pub(crate) principal: Option<String>,
    /// Its first process. A run that has no cgroup ends with the last process of the tree below it.
    pub(crate) root: Option<Root>,
}

/// The first process of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Root {
    pub(crate) pid: u32,
    /// In ticks since boot: another process with its pid has another.
    start: u64,
}

impl Root {
    /// `None` if there is no such process.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        ProcessStart::of(pid).map(|start| Self { pid, start: start.ticks() })
    }

    pub(super) fn lives(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }
}

/// A run that is known to this node. Immutable, but for what its executable is found to be.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Run {
    #[serde(with = "run_id")]
    pub(crate) id: RunId,
    #[serde(with = "run_id::optional")]
    pub(crate) parent: Option<RunId>,
    pub(crate) uid: u32,
    pub(crate) initiator: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) argv: Vec<String>,
    pub(crate) started_at_ns: u64,
    pub(crate) boot_id: String,
    pub(crate) host: String,
    pub(crate) cgroup: PathBuf,
    /// What the kernel knows the cgroup by; 0 = it has none.
    pub(crate) cgroup_id: u64,
    pub(crate) owns_cgroup: bool,
    pub(crate) has_token: bool,
    #[serde(default)]
    pub(crate) rule: Option<String>,
    #[serde(default)]
    pub(crate) principal: Option<String>,
    #[serde(default)]
    pub(crate) root: Option<Root>,
    /// What its first process executed when the run first connected: once found, or found not to be knowable, it stays.
    #[serde(default, with = "found")]
    pub(crate) executable: OnceLock<Option<Digest>>,
}

impl Run {
    pub(crate) fn new(new: &NewRun, cgroup_id: u64) -> Self {
        Self {
            id: RunId::generate(),
            parent: new.parent,
            uid: new.uid,
            initiator: new.initiator.clone(),
            labels: new.labels.clone(),
            argv: new.argv.clone(),
            started_at_ns: clock::now().0,
            boot_id: super::process::boot_id().to_owned(),
            host: host_name(),
            cgroup: new.cgroup.clone(),
            cgroup_id,
            owns_cgroup: new.owns_cgroup,
            has_token: new.token.is_some(),
            rule: new.rule.clone(),
            principal: new.principal.clone(),
            root: new.root,
            executable: OnceLock::new(),
        }
    }

    pub(crate) fn to_message(&self) -> v1::Run {
        v1::Run {
            id: self.id.to_field(),
            parent: self.parent.map(RunId::to_field).unwrap_or_default(),
            principal: Some(v1::Principal { subject: self.subject(), ..Default::default() }),
            initiator: self.initiator.clone(),
            labels: self.labels.clone(),
            argv: self.argv.clone(),
            started_at_ns: self.started_at_ns,
            host: self.host.clone(),
        }
    }

    /// Whether it is in no cgroup, but consists of a process and all below it.
    pub(super) fn is_tree(&self) -> bool {
        self.cgroup_id == 0 && self.rule.is_some()
    }

    /// Whether a file of it is kept over a restart.
    pub(super) fn is_kept(&self) -> bool {
        self.cgroup_id != 0 || self.is_tree()
    }

    /// Nobody has verified it: what a rule calls it, else uid and executable.
    fn subject(&self) -> String {
        match (&self.principal, self.executable.get()) {
            (Some(name), _) => name.clone(),
            (None, Some(Some(digest))) => format!("uid:{} sha256:{digest}", self.uid),
            (None, _) => format!("uid:{}", self.uid),
        }
    }

    /// Keeps it, and the token apart, readable by root only.
    pub(crate) fn save(&self, dir: &Path, token: Option<&Zeroizing<String>>) -> io::Result<()> {
        let json = serde_json::to_vec_pretty(self)?;
        write_file(&dir.join(format!("{}.json", self.id)), &json)?;
        match token {
            Some(token) => write_file(&dir.join(format!("{}.token", self.id)), token.as_bytes()),
            None => Ok(()),
        }
    }

    /// Forgets it, and its token.
    pub(crate) fn remove(&self, dir: &Path) -> io::Result<()> {
        for suffix in ["token", "json"] {
            match fs::remove_file(dir.join(format!("{}.{suffix}", self.id))) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// All runs kept in `dir`; files that do not read are named, not fatal.
    pub(crate) fn load_all(dir: &Path) -> io::Result<Vec<Self>> {
        let mut runs = Vec::new();
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match fs::read(&path).and_then(|bytes| Ok(serde_json::from_slice::<Self>(&bytes)?)) {
                Ok(run) => runs.push(run),
                Err(error) => tracing::error!(path = %path.display(), %error, "a kept run cannot be read"),
            }
        }
        Ok(runs)
    }
}

pub(crate) fn host_name() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Not found yet is not kept.
mod found {
    use std::sync::OnceLock;

    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    use super::Digest;

    pub(super) fn serialize<S: Serializer>(
        found: &OnceLock<Option<Digest>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        found.get().copied().flatten().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<OnceLock<Option<Digest>>, D::Error> {
        let kept = Option::<Digest>::deserialize(deserializer)?;
        Ok(kept.map_or_else(OnceLock::new, |digest| OnceLock::from(Some(digest))))
    }
}

mod run_id {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use weir_proto::RunId;

    pub(super) fn serialize<S: Serializer>(id: &RunId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(id)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<RunId, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }

    pub(super) mod optional {
        use super::{Deserialize, Deserializer, Error, RunId, Serializer};

        pub(in super::super) fn serialize<S: Serializer>(
            id: &Option<RunId>,
            serializer: S,
        ) -> Result<S::Ok, S::Error> {
            match id {
                Some(id) => serializer.collect_str(id),
                None => serializer.serialize_none(),
            }
        }

        pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
            d: D,
        ) -> Result<Option<RunId>, D::Error> {
            let text = Option::<String>::deserialize(d)?;
            text.map(|text| text.parse().map_err(D::Error::custom)).transpose()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHA: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn a_run_is_kept_whole() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::of(std::process::id());
        let new = NewRun { uid: 7, rule: Some("ci".into()), root, ..NewRun::default() };
        let run = Run::new(&new, 0);
        run.executable.set(Some(Digest::try_from(SHA.to_owned()).unwrap())).unwrap();
        run.save(dir.path(), None).unwrap();
        let kept = Run::load_all(dir.path()).unwrap();
        assert_eq!(format!("{kept:?}"), format!("[{run:?}]"));
        assert!(kept[0].root.unwrap().lives());
    }

    #[test]
    fn a_run_that_an_earlier_version_kept_is_read() {
        let run = Run::new(&NewRun::default(), 0);
        let mut json = serde_json::to_value(&run).unwrap();
        for new in ["rule", "principal", "root", "executable"] {
            json.as_object_mut().unwrap().remove(new).unwrap();
        }
        let read: Run = serde_json::from_value(json).unwrap();
        assert_eq!(format!("{read:?}"), format!("{run:?}"));
    }

    #[test]
    fn the_principal_is_what_the_rule_says_else_user_and_executable() {
        let subject = |run: &Run| run.to_message().principal.unwrap().subject;
        let run = Run::new(&NewRun { uid: 1000, ..NewRun::default() }, 0);
        assert_eq!(subject(&run), "uid:1000");
        run.executable.set(Some(Digest::try_from(SHA.to_owned()).unwrap())).unwrap();
        assert_eq!(subject(&run), format!("uid:1000 sha256:{SHA}"));
        let named = Run::new(&NewRun { principal: Some("ci-bot".into()), ..NewRun::default() }, 0);
        assert_eq!(subject(&named), "ci-bot");
    }
}
