//! All runs of this node: begun by `exec` or by a rule, ended with their last process, kept over a restart.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use weir_proto::RunId;

use super::{NewRun, Process, Run, Select};
use crate::recording::clock;
use crate::redirection::{Cgroup, Flow, Redirection, RedirectionError};

/// Most runs alive at once; one more is refused.
const RUNS_MAX: usize = 4096;
/// A run this young is not over because it has no process: its first one is still being moved in.
const RUN_GRACE_NS: u64 = 10_000_000_000;

/// A run could not be begun.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunsError {
    #[error("{RUNS_MAX} runs are alive on this node already; end some first")]
    Full,
    #[error("cannot keep the run in {}", dir.display())]
    Keep { dir: PathBuf, source: io::Error },
    #[error("cannot govern the run's cgroup")]
    Redirection(#[from] RedirectionError),
}

/// What a connection turned out to be.
#[derive(Debug)]
pub(crate) enum Chosen {
    Governed(Arc<Run>),
    /// Inside the scope, but of no run: passed on untouched.
    Untouched,
}

pub(crate) struct Runs {
    redirection: Arc<Redirection>,
    rules: Vec<Select>,
    cgroup_mount: PathBuf,
    /// Where runs are kept over a restart.
    dir: PathBuf,
    alive: RwLock<HashMap<RunId, Arc<Run>>>,
}

impl Runs {
    /// Adopts the runs that an earlier node agent left alive and ends those that are over.
    pub(crate) fn adopt(
        redirection: Arc<Redirection>,
        rules: Vec<Select>,
        cgroup_mount: PathBuf,
        dir: PathBuf,
    ) -> Result<Self, RunsError> {
        let keep = |source| RunsError::Keep { dir: dir.clone(), source };
        fs::create_dir_all(&dir).map_err(keep)?;
        let kept = Run::load_all(&dir).map_err(keep)?;
        let runs = Self { redirection, rules, cgroup_mount, dir, alive: RwLock::default() };
        let this_boot = super::process::boot_id();
        for run in kept {
            let cgroup = Cgroup::open(&run.cgroup).ok().filter(|_| run.boot_id == this_boot);
            match cgroup {
                Some(cgroup) => {
                    runs.redirection.govern_cgroup(cgroup.id(), run.id)?;
                    runs.insert(Arc::new(run));
                }
                None => runs.forget(&run),
            }
        }
        runs.sweep();
        Ok(runs)
    }

    /// Begins a run over a cgroup: from now on every process in it is governed.
    pub(crate) fn begin(&self, new: &NewRun, cgroup: &Cgroup) -> Result<Arc<Run>, RunsError> {
        if self.count() >= RUNS_MAX {
            return Err(RunsError::Full);
        }
        let run = Arc::new(Run::new(new));
        run.save(&self.dir, new.token.as_ref())
            .map_err(|source| RunsError::Keep { dir: self.dir.clone(), source })?;
        self.redirection.govern_cgroup(cgroup.id(), run.id)?;
        self.insert(run.clone());
        tracing::info!(run = %run.id, initiator = %run.initiator, "run begun");
        Ok(run)
    }

    /// Whose connection is this?
    pub(crate) fn choose(&self, flow: &Flow, process: &Process) -> Chosen {
        if let Some(id) = flow.run {
            return Chosen::Governed(self.find(id).unwrap_or_else(|| self.unknown(id, process)));
        }
        match &process.cgroup {
            Some(cgroup) => match self.rules.iter().find(|rule| rule.matches(cgroup)) {
                Some(rule) => Chosen::Governed(self.of_rule(rule, process)),
                None => Chosen::Untouched,
            },
            None if self.rules.is_empty() => Chosen::Untouched,
            // /proc can no longer tell and a rule would need it: the stricter side.
            None => Chosen::Governed(self.undetermined(process)),
        }
    }

    pub(crate) fn find(&self, id: RunId) -> Option<Arc<Run>> {
        self.alive.read().unwrap_or_else(|poison| poison.into_inner()).get(&id).cloned()
    }

    pub(crate) fn list(&self) -> Vec<Arc<Run>> {
        self.alive.read().unwrap_or_else(|poison| poison.into_inner()).values().cloned().collect()
    }

    pub(crate) fn count(&self) -> usize {
        self.alive.read().unwrap_or_else(|poison| poison.into_inner()).len()
    }

    /// Ends the runs whose last process is gone. Called once a second.
    pub(crate) fn sweep(&self) {
        for run in self.list() {
            let young = clock::now().0.saturating_sub(run.started_at_ns) < RUN_GRACE_NS;
            if young || run.cgroup.as_os_str().is_empty() {
                continue; // without a cgroup there is nothing to be empty
            }
            let populated = Cgroup::open(&run.cgroup).and_then(|cgroup| cgroup.populated()).unwrap_or(false);
            // Processes that left the cgroup stay in the run through the process tree.
            if !populated && self.redirection.members(run.id).is_empty() {
                self.end(&run);
            }
        }
    }

    /// Ends a run whose last process is known to be gone.
    pub(crate) fn end(&self, run: &Run) {
        self.alive.write().unwrap_or_else(|poison| poison.into_inner()).remove(&run.id);
        if let Ok(cgroup) = Cgroup::open(&run.cgroup)
            && let Err(error) = self.redirection.forget_cgroup(cgroup.id())
        {
            tracing::warn!(run = %run.id, %error, "the run's cgroup stays in the kernel's table");
        }
        self.forget(run);
        tracing::info!(run = %run.id, "run ended");
    }

    fn forget(&self, run: &Run) {
        if run.owns_cgroup
            && let Err(error) = fs::remove_dir(&run.cgroup)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::debug!(run = %run.id, %error, "the run's cgroup stays");
        }
        if let Err(error) = run.remove(&self.dir) {
            tracing::warn!(run = %run.id, %error, "the run's file stays");
        }
    }

    fn insert(&self, run: Arc<Run>) {
        self.alive.write().unwrap_or_else(|poison| poison.into_inner()).insert(run.id, run);
    }

    /// The run of a rule: one per cgroup that the rule names.
    fn of_rule(&self, rule: &Select, process: &Process) -> Arc<Run> {
        let initiator = format!("select:{}", rule.name);
        if let Some(run) = self.list().into_iter().find(|run| run.initiator == initiator) {
            return run;
        }
        let path = self.cgroup_mount.join(rule.cgroup.trim_start_matches('/'));
        let new = NewRun {
            uid: process.uid(),
            initiator,
            labels: rule.labels.clone(),
            cgroup: path.clone(),
            owns_cgroup: false,
            ..NewRun::default()
        };
        let begun = Cgroup::open(&path).map_err(RunsError::from).and_then(|cgroup| self.begin(&new, &cgroup));
        begun.unwrap_or_else(|error| {
            // The connection is governed all the same, under a run that only this node agent remembers.
            tracing::warn!(rule = %rule.name, error = &error as &dyn std::error::Error, "a rule's run");
            let run = Arc::new(Run::new(&new));
            self.insert(run.clone());
            run
        })
    }

    /// The run of processes that were gone before anybody could look: one for the life of this node agent.
    fn undetermined(&self, process: &Process) -> Arc<Run> {
        const INITIATOR: &str = "select:undetermined";
        if let Some(run) = self.list().into_iter().find(|run| run.initiator == INITIATOR) {
            return run;
        }
        let new = NewRun { uid: process.uid(), initiator: INITIATOR.to_owned(), ..NewRun::default() };
        let run = Arc::new(Run::new(&new));
        self.insert(run.clone());
        run
    }

    /// The kernel knows the run, its file is lost: governed under the kernel's id.
    fn unknown(&self, id: RunId, process: &Process) -> Arc<Run> {
        let new = NewRun { uid: process.uid(), initiator: "unknown".to_owned(), ..NewRun::default() };
        let run = Arc::new(Run { id, ..Run::new(&new) });
        self.insert(run.clone());
        run
    }
}

/// Where the runs of a node agent are kept.
pub(crate) fn runs_dir(state: &Path) -> PathBuf {
    state.join("runs")
}
