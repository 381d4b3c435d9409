//! One agent at work: who it is, who asked for it, its labels. Kept on disk while it lives.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use weir_proto::{RunId, v1};
use zeroize::Zeroizing;

use crate::recording::{clock, write_file};

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
}

/// A run that is known to this node. Immutable.
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
        }
    }

    pub(crate) fn to_message(&self) -> v1::Run {
        v1::Run {
            id: self.id.to_field(),
            parent: self.parent.map(RunId::to_field).unwrap_or_default(),
            principal: Some(v1::Principal { subject: format!("uid:{}", self.uid), ..Default::default() }),
            initiator: self.initiator.clone(),
            labels: self.labels.clone(),
            argv: self.argv.clone(),
            started_at_ns: self.started_at_ns,
            host: self.host.clone(),
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
