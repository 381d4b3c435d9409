//! All runs of this node: begun by `exec` or by a rule, ended with their last process, kept over a restart.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use weir_proto::RunId;

use super::ancestry::{Ancestor, Line};
use super::digest::Digesting;
use super::process::{Facts, ImageKey, image_key};
use super::rules::{Extent, Fit};
use super::ruling::{Ruling, rule_on};
use super::{NewRun, Process, Root, Run, Select};
use crate::recording::clock;
use crate::redirection::{Cgroup, Flow, Redirection, RedirectionError};

/// Most runs alive at once; one more is refused.
const RUNS_MAX: usize = 4096;
/// A run this young is not over because it has no process: its first one is still being moved in.
const RUN_GRACE_NS: u64 = 10_000_000_000;
/// Images of processes that the rules have been asked about; at more, they are asked anew.
const SETTLED_MAX: usize = 8192;
/// How long the digest of a first process is waited for, to name its run by.
const NAMING_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a decision waits for the digest of an ancestor.
const DIGEST_TIMEOUT: Duration = Duration::from_secs(5);

/// The sort of run that what cannot be told goes to, and its principal.
const UNDETERMINED: &str = "undetermined";

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
    /// The cgroup inside which rules hold, as a path in the hierarchy.
    scope: String,
    /// Where runs are kept over a restart.
    dir: PathBuf,
    alive: RwLock<HashMap<RunId, Arc<Run>>>,
    /// Of a lone `exec`.
    only: OnceLock<Arc<Run>>,
    /// A rule's run is begun by one connection at a time.
    beginning: Mutex<()>,
    /// What the rules said about an image: it stays true as long as it runs. `None` = no rule is about it.
    settled: Mutex<HashMap<Subject, Option<RunId>>>,
}

/// All of a connection that what the rules say depends on: image, uid, cgroup, and the run the kernel knows it by.
type Subject = (ImageKey, u32, u64, Option<RunId>);

impl Runs {
    /// Adopts the runs that an earlier node agent left alive and ends those that are over.
    pub(crate) fn adopt(
        redirection: Arc<Redirection>,
        rules: Vec<Select>,
        cgroup_mount: PathBuf,
        scope: &Path,
        dir: PathBuf,
    ) -> Result<Self, RunsError> {
        let keep = |source| RunsError::Keep { dir: dir.clone(), source };
        fs::create_dir_all(&dir).map_err(keep)?;
        let kept = Run::load_all(&dir).map_err(keep)?;
        let scope = scope.strip_prefix(&cgroup_mount).unwrap_or(scope);
        let runs = Self {
            redirection,
            rules,
            scope: format!("/{}", scope.display()),
            cgroup_mount,
            dir,
            alive: RwLock::default(),
            only: OnceLock::new(),
            beginning: Mutex::new(()),
            settled: Mutex::default(),
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
    pub(crate) async fn choose(&self, flow: &Flow, process: &mut Process) -> Chosen {
        let chosen = self.decide(flow, process).await;
        if let Chosen::Governed(run) = &chosen {
            self.name(run, process).await;
        }
        chosen
    }

    async fn decide(&self, flow: &Flow, process: &mut Process) -> Chosen {
        let own = flow.run.map(|id| self.find(id).unwrap_or_else(|| self.unknown(id, process)));
        if own.is_none()
            && let Some(run) = self.only.get()
        {
            return Chosen::Governed(run.clone());
        }
        // Rules that stand before that of the run which the kernel knows it by still go first.
        let rank = own.as_ref().map_or(self.rules.len(), |run| self.rank(run));
        if rank == 0 {
            return own.map_or(Chosen::Untouched, Chosen::Governed);
        }
        let subject = (image_key(flow), flow.uid, flow.cgroup_id, flow.run);
        let settled = self.settled().get(&subject).copied();
        match settled.map(|id| id.map(|id| self.find(id))) {
            Some(None) => return Chosen::Untouched,
            Some(Some(Some(run))) => return Chosen::Governed(run),
            Some(Some(None)) | None => {}
        }
        let (chosen, certain) = self.ask_rules(flow, process, own, rank).await;
        if certain {
            let mut settled = self.settled();
            if settled.len() >= SETTLED_MAX {
                settled.clear();
            }
            let run = match &chosen {
                Chosen::Governed(run) => Some(run.id),
                Chosen::Untouched => None,
            };
            settled.insert(subject, run);
        }
        chosen
    }

    /// What the rules say, and whether that is certain.
    async fn ask_rules(
        &self,
        flow: &Flow,
        process: &mut Process,
        own: Option<Arc<Run>>,
        rank: usize,
    ) -> (Chosen, bool) {
        let mut joined = None;
        let mut line = self.line(flow, rank, |pid| {
            let run = self.redirection.process_run(pid).filter(|run| Some(*run) != flow.run);
            joined = run.and_then(|id| self.find(id));
            joined.is_some()
        });
        // An ancestor is in a run: this process was started before that run was known, and is in it all the same.
        let joined = joined.map(|run| (self.rank(&run), run)).filter(|(joined, _)| *joined < rank);
        let (rank, otherwise) = match joined {
            Some((rank, run)) => {
                self.govern_line(flow, &line.ancestors, &run);
                (rank, Some(run))
            }
            None => (rank, own),
        };
        let rules = &self.rules[..rank];
        find_digests(rules, process, &mut line).await;
        let facts: Vec<&Facts> =
            std::iter::once(&process.facts).chain(line.ancestors.iter().map(|above| &above.facts)).collect();
        match rule_on(rules, &facts, line.whole) {
            Ruling::Governs { rule, root } => {
                let above = line.ancestors.get(..root).unwrap_or_default();
                (Chosen::Governed(self.of_rule(&rules[rule], flow, process, above)), true)
            }
            Ruling::Exempts => (Chosen::Untouched, true),
            Ruling::Undetermined { rule, unknown } if otherwise.is_none() => {
                (Chosen::Governed(self.undetermined(&rules[rule], unknown, process)), false)
            }
            Ruling::Undetermined { .. } | Ruling::Nothing => {
                let certain = otherwise.is_some()
                    || line.whole
                    || rules.iter().all(|rule| rule.extent() != Extent::Tree);
                (otherwise.map_or(Chosen::Untouched, Chosen::Governed), certain)
            }
        }
    }

    /// The processes above the one that connects, if a rule is about trees.
    fn line(&self, flow: &Flow, rank: usize, stop: impl FnMut(u32) -> bool) -> Line {
        let rules = &self.rules[..rank];
        if rules.iter().all(|rule| rule.extent() != Extent::Tree) {
            return Line::default();
        }
        let runtime = tokio::runtime::Handle::current();
        let digests = rules.iter().any(Select::needs_digest).then_some(&runtime);
        let line = Line::above(flow.pid, &self.scope, digests, stop);
        // All this was about another process if it has ended meanwhile.
        if flow.still_runs() { line } else { Line::default() }
    }

    /// Where in the list the rule of a run stands; what is before it goes first. No rule goes before an `exec`, which was asked
    /// for.
    fn rank(&self, run: &Run) -> usize {
        let rule = run.rule.as_ref();
        rule.and_then(|name| self.rules.iter().position(|rule| rule.name == *name)).unwrap_or(0)
    }

    /// Finds out what the run's first process executes, once. Before the run's first session is opened: who a run is does not
    /// change between its sessions.
    async fn name(&self, run: &Run, process: &Process) {
        if run.principal.is_some() || run.executable.get().is_some() {
            return;
        }
        let digest = match run.root {
            Some(root) if root.pid != process.pid() => {
                let runtime = tokio::runtime::Handle::current();
                let opened = tokio::task::spawn_blocking(move || Digesting::start(root.pid, &runtime));
                let found = tokio::time::timeout(NAMING_TIMEOUT, async {
                    match opened.await {
                        Ok(mut digesting) => digesting.wait(NAMING_TIMEOUT).await,
                        Err(_) => None,
                    }
                });
                found.await.unwrap_or_default().filter(|_| root.lives())
            }
            _ => process.facts.digest,
        };
        if run.executable.set(digest).is_ok()
            && digest.is_some()
            && run.is_kept()
            && let Err(error) = run.save(&self.dir, None)
        {
            tracing::warn!(run = %run.id, %error, "the run's file is as it was");
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

    /// The run of a rule: one per cgroup that the rule names, container, or tree of processes. `above` are the ancestors that
    /// are part of the tree, the nearest first.
    fn of_rule(&self, rule: &Select, flow: &Flow, process: &Process, above: &[Ancestor]) -> Arc<Run> {
        let _one_at_a_time = self.beginning.lock().unwrap_or_else(|poison| poison.into_inner());
        let container = process.facts.cgroup.as_deref().and_then(|cgroup| rule.container_cgroup(cgroup));
        let cgroup = match rule.extent() {
            Extent::Cgroup => rule.cgroup.as_deref(),
            Extent::Container => container,
            Extent::Tree => None,
        };
        let begun = match cgroup {
            Some(cgroup) => self.of_cgroup(rule, cgroup, process),
            None => self.of_tree(rule, flow, process, above),
        };
        begun.unwrap_or_else(|error| {
            // The connection is governed all the same, under a run that only this node agent remembers.
            tracing::warn!(rule = %rule.name, error = &error as &dyn std::error::Error, "a rule's run");
            self.remembered("apart", rule)
        })
    }

    fn of_cgroup(&self, rule: &Select, cgroup: &str, process: &Process) -> Result<Arc<Run>, RunsError> {
        let path = self.cgroup_mount.join(cgroup.trim_start_matches('/'));
        let is_it = |run: &Arc<Run>| run.rule.as_ref() == Some(&rule.name) && run.cgroup == path;
        if let Some(run) = self.list().into_iter().find(is_it) {
            return Ok(run);
        }
        let opened = Cgroup::open(&path)?;
        self.begin(&NewRun { cgroup: path, ..new_run(rule, process) }, &opened)
    }

    fn of_tree(
        &self,
        rule: &Select,
        flow: &Flow,
        process: &Process,
        above: &[Ancestor],
    ) -> Result<Arc<Run>, RunsError> {
        let root = above.last().map_or(flow.pid, |ancestor| ancestor.pid);
        let found = self.redirection.process_run(root).and_then(|id| self.find(id));
        if let Some(run) = found.filter(|run| run.rule.as_ref() == Some(&rule.name)) {
            self.govern_line(flow, above, &run);
            return Ok(run);
        }
        if self.count() >= RUNS_MAX {
            return Err(RunsError::Full);
        }
        let uid = above.last().and_then(|ancestor| ancestor.facts.uid).unwrap_or(process.uid());
        // A process that has ended since is the only one of its run.
        let new = NewRun { root: Root::of(root), uid, ..new_run(rule, process) };
        let run = Arc::new(Run::new(&new, 0));
        run.save(&self.dir, None).map_err(|source| RunsError::Keep { dir: self.dir.clone(), source })?;
        self.govern_line(flow, above, &run);
        self.insert(run.clone());
        tracing::info!(run = %run.id, initiator = %run.initiator, root, "run begun");
        Ok(run)
    }

    /// Tells the kernel of a line of processes, the topmost first: what a process starts from then on is in its run.
    fn govern_line(&self, flow: &Flow, above: &[Ancestor], run: &Run) {
        for pid in above.iter().rev().map(|ancestor| ancestor.pid).chain([flow.pid]) {
            if pid == flow.pid && !flow.still_runs() {
                continue;
            }
            if let Err(error) = self.redirection.govern_process(pid, run.id) {
                // It has ended, or the table is full: then its further connections are decided here again.
                tracing::debug!(run = %run.id, pid, %error, "a process of a run");
            }
        }
    }

    /// The run of processes that a rule would govern if what nobody can tell any more fitted it: one for each rule, for the
    /// life of this node agent.
    fn undetermined(&self, rule: &Select, unknown: &'static str, process: &Process) -> Arc<Run> {
        tracing::debug!(rule = %rule.name, unknown, uid = process.uid(), "governed, because it cannot be told");
        let _one_at_a_time = self.beginning.lock().unwrap_or_else(|poison| poison.into_inner());
        self.remembered(UNDETERMINED, rule)
    }

    /// A run that is kept in memory only, of a rule and for all processes of one sort.
    fn remembered(&self, sort: &str, rule: &Select) -> Arc<Run> {
        let initiator = format!("select:{}:{sort}", rule.name);
        if let Some(run) = self.list().into_iter().find(|run| run.initiator == initiator) {
            return run;
        }
        let new = NewRun {
            initiator,
            labels: rule.labels.clone(),
            // Of nobody in particular: its processes are each recorded with their own user.
            principal: Some(sort.to_owned()),
            uid: u32::MAX,
            ..NewRun::default()
        };
        let run = Arc::new(Run::new(&new, 0));
        self.insert(run.clone());
        run
    }

    fn settled(&self) -> MutexGuard<'_, HashMap<Subject, Option<RunId>>> {
        self.settled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kernel knows the run, its file is lost: governed under the kernel's id.
    fn unknown(&self, id: RunId, process: &Process) -> Arc<Run> {
        let new = NewRun { uid: process.uid(), initiator: "unknown".to_owned(), ..NewRun::default() };
        let run = Arc::new(Run { id, ..Run::new(&new, 0) });
        self.insert(run.clone());
        run
    }
}

fn new_run(rule: &Select, process: &Process) -> NewRun {
    NewRun {
        uid: process.uid(),
        initiator: format!("select:{}", rule.name),
        labels: rule.labels.clone(),
        rule: Some(rule.name.clone()),
        principal: rule.principal.clone(),
        ..NewRun::default()
    }
}

/// Digests take time: they are waited for where nothing else speaks against the rule that asks for them.
async fn find_digests(rules: &[Select], process: &mut Process, line: &mut Line) {
    for rule in rules.iter().filter(|rule| rule.needs_digest()) {
        if matches!(rule.fit(&process.facts), Fit::Maybe(_)) {
            process.insist_on_digest().await;
        }
        for ancestor in &mut line.ancestors {
            if ancestor.facts.digest.is_none() && matches!(rule.fit(&ancestor.facts), Fit::Maybe(_)) {
                ancestor.facts.digest = ancestor.digesting.wait(DIGEST_TIMEOUT).await;
            }
        }
    }
}

/// Whether no process is in the run's cgroup. What cannot be read is not known to be empty; a tree of processes has none of its
/// own, and what has neither never ends.
fn is_deserted(run: &Run) -> bool {
    if run.cgroup_id == 0 {
        return run.is_tree();
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
