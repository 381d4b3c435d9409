//! All runs of this node: begun by `exec` or by a rule, ended with their last process, kept over a restart.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, RwLock};

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
    /// Of a lone `exec`.
    only: OnceLock<Arc<Run>>,
    /// A rule's run is begun by one connection at a time.
    beginning: Mutex<()>,
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
        let runs = Self {
            redirection,
            rules,
            cgroup_mount,
            dir,
            alive: RwLock::default(),
            only: OnceLock::new(),
            beginning: Mutex::new(()),
        };
        let this_boot = super::process::boot_id();
        for run in kept {
            let run = Arc::new(run);
            if run.boot_id != this_boot {
                runs.end(&run);
                continue;
            }
            // The kernel's table has outlived us, so this changes nothing as a rule; and one run must not stop the rest.
            if let Ok(cgroup) = Cgroup::open(&run.cgroup)
                && let Err(error) = runs.redirection.govern_cgroup(cgroup.id(), run.id)
            {
                tracing::error!(run = %run.id, %error, "a run that was alive could not be governed again");
            }
            runs.insert(run);
        }
        runs.sweep();
        Ok(runs)
    }

    /// Begins a run over a cgroup: from now on every process in it is governed.
    pub(crate) fn begin(&self, new: &NewRun, cgroup: &Cgroup) -> Result<Arc<Run>, RunsError> {
        if self.count() >= RUNS_MAX {
            return Err(RunsError::Full);
        }
        let run = Arc::new(Run::new(new, cgroup.id()));
        run.save(&self.dir, new.token.as_ref())
            .map_err(|source| RunsError::Keep { dir: self.dir.clone(), source })?;
        if let Err(error) = self.redirection.govern_cgroup(cgroup.id(), run.id) {
            self.forget(&run);
            return Err(error.into());
        }
        self.insert(run.clone());
        tracing::info!(run = %run.id, initiator = %run.initiator, "run begun");
        Ok(run)
    }

    /// Whose connection is this?
    pub(crate) fn choose(&self, flow: &Flow, process: &Process) -> Chosen {
        if let Some(id) = flow.run {
            return Chosen::Governed(self.find(id).unwrap_or_else(|| self.unknown(id, process)));
        }
        if let Some(run) = self.only.get() {
            return Chosen::Governed(run.clone());
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

    /// Everything in the scope belongs to this run: a lone `exec` governs nothing else, and leaves nothing untouched.
    pub(crate) fn keep_to(&self, run: &Arc<Run>) {
        // Set once, by the only caller.
        let _first = self.only.set(run.clone());
    }

    /// The run that a process belongs to by the process tree, or by the cgroup it is in.
    pub(crate) fn of_process(&self, pid: u32) -> Option<Arc<Run>> {
        if let Some(run) = self.redirection.process_run(pid).and_then(|id| self.find(id)) {
            return Some(run);
        }
        let path = self.cgroup_mount.join(super::process::cgroup_of(pid)?.trim_start_matches('/'));
        let within = |run: &Arc<Run>| run.cgroup_id != 0 && path.starts_with(&run.cgroup);
        // The nearest one, as the kernel programs look it up.
        self.list().into_iter().filter(within).max_by_key(|run| run.cgroup.components().count())
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
            // Processes that left the cgroup stay in the run through the process tree.
            if !young && is_deserted(&run) && self.redirection.members(run.id).is_empty() {
                self.end(&run);
            }
        }
    }

    /// Ends a run whose last process is known to be gone.
    pub(crate) fn end(&self, run: &Run) {
        if run.owns_cgroup
            && let Err(error) = fs::remove_dir(&run.cgroup)
            && error.kind() != io::ErrorKind::NotFound
        {
            // A run inside it has not ended yet, or a process came back: the next sweep tries again.
            tracing::debug!(run = %run.id, %error, "the run's cgroup is still in use");
            return;
        }
        self.alive.write().unwrap_or_else(|poison| poison.into_inner()).remove(&run.id);
        if run.cgroup_id != 0
            && let Err(error) = self.redirection.forget_cgroup(run.cgroup_id)
        {
            tracing::warn!(run = %run.id, %error, "the run's cgroup stays in the kernel's table");
        }
        self.forget(run);
        tracing::info!(run = %run.id, "run ended");
    }

    fn forget(&self, run: &Run) {
        if let Err(error) = run.remove(&self.dir) {
            tracing::warn!(run = %run.id, %error, "the run's file stays");
        }
    }

    fn insert(&self, run: Arc<Run>) {
        self.alive.write().unwrap_or_else(|poison| poison.into_inner()).insert(run.id, run);
    }

    /// The run of a rule: one per cgroup that the rule names.
    fn of_rule(&self, rule: &Select, process: &Process) -> Arc<Run> {
        let _one_at_a_time = self.beginning.lock().unwrap_or_else(|poison| poison.into_inner());
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
            let run = Arc::new(Run::new(&new, 0));
            self.insert(run.clone());
            run
        })
    }

    /// The run of processes that were gone before anybody could look: one for the life of this node agent.
    fn undetermined(&self, process: &Process) -> Arc<Run> {
        const INITIATOR: &str = "select:undetermined";
        let _one_at_a_time = self.beginning.lock().unwrap_or_else(|poison| poison.into_inner());
        if let Some(run) = self.list().into_iter().find(|run| run.initiator == INITIATOR) {
            return run;
        }
        let new = NewRun { uid: process.uid(), initiator: INITIATOR.to_owned(), ..NewRun::default() };
        let run = Arc::new(Run::new(&new, 0));
        self.insert(run.clone());
        run
    }

    /// The kernel knows the run, its file is lost: governed under the kernel's id.
    fn unknown(&self, id: RunId, process: &Process) -> Arc<Run> {
        let new = NewRun { uid: process.uid(), initiator: "unknown".to_owned(), ..NewRun::default() };
        let run = Arc::new(Run { id, ..Run::new(&new, 0) });
        self.insert(run.clone());
        run
    }
}

/// Whether no process is in the run's cgroup. What cannot be read is not known to be empty; a run without a cgroup of its own
/// has none that could be.
fn is_deserted(run: &Run) -> bool {
    if run.cgroup_id == 0 {
        return false;
    }
    match fs::read_to_string(run.cgroup.join("cgroup.events")) {
        Ok(events) => events.lines().any(|line| line == "populated 0"),
        Err(error) => {
            error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ENODEV)
        }
    }
}

/// Where the runs of a node agent are kept.
pub(crate) fn runs_dir(state: &Path) -> PathBuf {
    state.join("runs")
}
