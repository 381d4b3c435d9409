//! One node agent, wired: kernel hooks, listeners, runs, policy, recording. Nothing here decides anything.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weir_agent_ebpf::Counter as Counted;
use weir_proto::RunId;
use weir_proto::v1::node_entry::Mark;
use weir_protocols::GrantKey;
use weir_protocols::mask::MaskPlan;

use crate::bypass::Bypass;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::policy::Judge;
use crate::proxy::accept::Listeners;
use crate::recording::{MarkError, Mode, Moment, Recorder, Recording, RecordingConfig};
use crate::redirection::{
    Cgroup, Gate, GateState, Otherwise, Redirection, RedirectionError, Scope, find_cgroup2_mount,
};
use crate::reload::{self, Loaded};
use crate::selection::{Runs, runs_dir};
use crate::{admin, control};

/// How often runs are checked for their end.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// In how many of these the gates are looked at once more.
const SWEEPS_PER_LOOK: u32 = 10;
/// Most sessions at once, whatever the limit of open files.
const SESSIONS_MAX: usize = 100_000;
/// Both legs, and what looking at the process takes for a moment.
const FILES_PER_SESSION: usize = 3;
/// Open files that sessions leave to the journal, the spool, shipping and the kernel tables.
const FILES_RESERVED: usize = 256;
/// After the drain, how long closed sessions may take to be recorded.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a node agent works. The daemon's comes from its configuration, a lone `exec` makes one for itself.
pub(crate) struct Place {
    /// Directory of the governed scope's cgroup.
    pub(crate) scope: PathBuf,
    /// Directory of the node agent's own leaf cgroup.
    pub(crate) own: PathBuf,
    pub(crate) pins: PathBuf,
    pub(crate) state: PathBuf,
    pub(crate) socket: PathBuf,
    pub(crate) mode: Mode,
}

/// The shared state of the data path.
pub(crate) struct Node {
    pub(crate) redirection: Arc<Redirection>,
    pub(crate) judge: Judge,
    pub(crate) recorder: Recorder,
    pub(crate) runs: Runs,
    pub(crate) plan: MaskPlan,
    pub(crate) metrics: Metrics,
    pub(crate) scope: PathBuf,
    pub(crate) cgroup_mount: PathBuf,
    /// Most connections served at once; one more is reset and counted.
    pub(crate) sessions_max: usize,
    /// Every task that serves a peer.
    pub(crate) connections: TaskTracker,
    /// No new work is taken.
    pub(crate) draining: CancellationToken,
    /// What still runs is to end now.
    pub(crate) drained: CancellationToken,
    pub(crate) loaded: Loaded,
    pub(crate) bypass: Bypass,
    recording: Recording,
    drain: Duration,
}

impl Place {
    /// The daemon's place.
    pub(crate) fn of(config: &Config) -> anyhow::Result<Self> {
        let mount = find_cgroup2_mount()?;
        let below = |path: &str| mount.join(path.trim_start_matches('/'));
        Ok(Self {
            scope: below(&config.scope),
            own: below(&config.own_cgroup),
            pins: config.pins_dir.clone(),
            state: config.state_dir.clone(),
            socket: config.socket.clone(),
            mode: Mode::Collector,
        })
    }
}

impl Node {
    /// Starts everything; governed connections flow when it returns. Call it from inside the tokio runtime.
    pub(crate) async fn start(place: Place, config: &Config) -> anyhow::Result<Arc<Self>> {
        // Recovery comes first: while it runs the pinned hooks refuse, and nothing is forwarded that cannot be recorded.
        let (recorder, recording) = Recording::start(RecordingConfig {
            state_dir: place.state.clone(),
            mode: place.mode,
            journal_bytes: config.journal_mib << 20,
            spool_quota_bytes: config.spool_mib << 20,
            moment: Moment::now,
        })
        .await
        .context("cannot start recording")?;

        // Everything else that can fail does so before the hooks are attached: from then on connections are refused.
        let control = control::bind(&place.socket, config.socket_permissions()?)
            .with_context(|| format!("cannot listen on {}", place.socket.display()))?;
        let admin = match config.admin {
            Some(address) => Some(
                admin::bind(address)
                    .await
                    .with_context(|| format!("cannot listen on the admin address {address}"))?,
            ),
            None => None,
        };
        let scope = Cgroup::create(&place.scope).context("cannot make the scope's cgroup")?;
        let adopts = place.pins.exists();
        let redirection = Redirection::attach(&Scope {
            governed: place.scope.clone(),
            own: place.own.clone(),
            pins: place.pins.clone(),
            otherwise: Otherwise::Undecided,
            tuples_max: None,
        })
        .context("cannot attach the kernel hooks; `weir-agent doctor` says what this kernel lacks")?;
        let redirection = Arc::new(redirection);
        let node = Self::wire(&place, config, scope, redirection.clone(), recorder, recording);
        let node = node.inspect_err(|_| {
            // Hooks that an earlier node agent left go on refusing, as they did; a first start leaves none.
            if !adopts && let Err(error) = redirection.detach() {
                tracing::error!(%error, "the kernel hooks stay attached; `weir-agent detach` removes them");
            }
        })?;
        if let Err(error) = node.bypass.adopt(&node).await {
            tracing::error!(error = &error as &dyn std::error::Error, "a bypass of an earlier node agent");
        }
        control::serve(control, node.clone());
        if let Some(admin) = admin {
            admin::serve(admin, node.clone());
        }
        Ok(node)
    }

    /// The hooks are attached: from here to listeners that serve.
    fn wire(
        place: &Place,
        config: &Config,
        scope: Cgroup,
        redirection: Arc<Redirection>,
        recorder: Recorder,
        recording: Recording,
    ) -> anyhow::Result<Arc<Self>> {
        let mount = find_cgroup2_mount()?;
        let runs = Runs::adopt(
            redirection.clone(),
            config.select.clone(),
            mount.clone(),
            scope.path(),
            runs_dir(&place.state),
        )?;
        let key = GrantKey::take().context("a second judge in one process")?;
        let node = Arc::new(Self {
            redirection,
            judge: Judge::new(key, config.rules(), reload::stamp(config)),
            recorder,
            runs,
            plan: MaskPlan::standard(),
            metrics: Metrics::default(),
            scope: scope.path().to_owned(),
            cgroup_mount: mount,
            sessions_max: sessions_max()?,
            connections: TaskTracker::new(),
            draining: CancellationToken::new(),
            drained: CancellationToken::new(),
            loaded: Loaded::new(config.clone()),
            bypass: Bypass::new(&place.state),
            recording,
            drain: Duration::from_secs(config.drain_s),
        });

        let listeners = Listeners::bind().context("cannot listen on loopback")?;
        node.redirection.serve(&listeners.v4, listeners.v6.as_ref())?;
        node.connections.spawn(listeners.serve(node.clone()));
        node.connections.spawn(sweep(node.clone()));
        Ok(node)
    }

    /// Refuses new connections, gives open ones their time, then records what is left and flushes.
    pub(crate) async fn stop(&self) {
        tracing::info!(open = self.metrics.open.get(), "draining");
        if let Err(error) = self.redirection.withdraw() {
            tracing::error!(%error, "the kernel hooks could not be told to refuse");
        }
        self.draining.cancel();
        self.connections.close();
        if tokio::time::timeout(self.drain, self.connections.wait()).await.is_err() {
            tracing::warn!(open = self.metrics.open.get(), "sessions were closed at the end of the drain");
            self.drained.cancel();
            if tokio::time::timeout(CLOSE_TIMEOUT, self.connections.wait()).await.is_err() {
                tracing::error!("sessions did not close in time; they will be recovered from the journal");
            }
        }
        if let Err(error) = self.recording.drain().await {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "not everything was sealed; the journal keeps it"
            );
        }
    }

    /// A fresh cgroup for a run, below `above`.
    pub(crate) fn make_cgroup(&self, above: &Path) -> Result<Cgroup, RedirectionError> {
        Cgroup::create(&above.join(format!("run-{}", RunId::generate())))
    }

    /// Redirecting and recording.
    pub(crate) fn is_ready(&self) -> bool {
        !self.draining.is_cancelled() && self.recording.is_healthy()
    }

    /// The recorder's threads live. A full disk does not end them: a restart would not help there.
    pub(crate) fn is_recording(&self) -> bool {
        self.recording.is_running()
    }

    /// Says something in the node log.
    pub(crate) async fn mark(&self, mark: Mark) -> Result<(), MarkError> {
        self.recording.mark(mark).await
    }

    /// What `weir-agent status --json` prints.
    pub(crate) async fn status(&self) -> Value {
        let runs: Vec<Value> = self
            .runs
            .list()
            .iter()
            .map(|run| {
                json!({ "run": run.id.to_string(), "initiator": run.initiator, "labels": run.labels,
                    "argv": run.argv, "processes": self.redirection.members(run.id).len() })
            })
            .collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "ready": self.is_ready(),
            "draining": self.draining.is_cancelled(),
            "scope": self.scope,
            "bypass": self.bypass.status(self).await,
            "policy": self.loaded.status(&self.judge),
            "runs": runs,
            "open_sessions": self.metrics.open.get(),
            "recording": self.recording.status(),
            "kernel": self.kernel_counters(),
            "gates": self.redirection.gates().iter().map(gate_json).collect::<Vec<_>>(),
        })
    }

    /// Hands the kernel's counters on to the node log's heartbeats.
    fn count(&self) {
        match self.redirection.counters() {
            Ok(counters) => {
                // A full table shows as a connection without a record: counted there.
                let refused = [
                    Counted::RefusedNotReady,
                    Counted::RefusedDevice,
                    Counted::StrangerPort,
                    Counted::NoRecord,
                ];
                let refused = refused.into_iter().map(|counter| counters.of(counter)).sum();
                let unobserved = self.metrics.untouched.get() + counters.of(Counted::PassedBypass);
                self.recording.kernel_counted(counters.of(Counted::Redirected), refused, unobserved);
            }
            Err(error) => tracing::warn!(%error, "the kernel's counters"),
        }
    }

    fn kernel_counters(&self) -> Value {
        match self.redirection.counters() {
            Ok(counters) => {
                counters.iter().map(|(name, value)| (name.to_owned(), Value::from(value))).collect()
            }
            Err(error) => json!({ "error": error.to_string() }),
        }
    }

    /// Prometheus text.
    pub(crate) fn metrics_text(&self) -> Result<String, std::fmt::Error> {
        let mut registry = Registry::with_prefix("weir_agent");
        self.metrics.register(&mut registry);
        crate::metrics::register_would_refuse(&mut registry, &self.judge.would_refuse());
        for (name, value) in self.redirection.counters().iter().flat_map(|counters| counters.iter()) {
            let counter = Counter::<u64>::default();
            counter.inc_by(value);
            registry.register(format!("kernel_{name}"), "Counted by the kernel programs", counter);
        }
        self.recording.register_metrics(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

/// Raises the limit of open files to what this process may have, and says how many sessions that allows.
fn sessions_max() -> anyhow::Result<usize> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("cannot raise the limit of open files")?;
    let hard = usize::try_from(hard).unwrap_or(usize::MAX);
    let sessions = hard.saturating_sub(FILES_RESERVED) / FILES_PER_SESSION;
    if sessions == 0 {
        anyhow::bail!(
            "at most {hard} files may be open, which is too few: raise the hard limit (LimitNOFILE=)"
        );
    }
    Ok(sessions.min(SESSIONS_MAX))
}

/// A gate as scripts read it.
pub(crate) fn gate_json(gate: &Gate) -> Value {
    json!({ "name": gate.name, "state": gate_state(&gate.state) })
}

/// A gate's state in one line.
pub(crate) fn gate_state(state: &GateState) -> String {
    match state {
        GateState::Holds => "holds".to_owned(),
        GateState::NotOnThisKernel(why) => format!("not on this kernel: {why}"),
        GateState::Weakened(by) => format!("weakened: {by}"),
    }
}

async fn sweep(node: Arc<Node>) {
    let mut interval = tokio::time::interval(SWEEP_INTERVAL);
    let mut sweeps = 0u32;
    loop {
        tokio::select! {
            _ = interval.tick() => {
                node.runs.sweep();
                node.count();
                if sweeps.is_multiple_of(SWEEPS_PER_LOOK) {
                    node.recording.describe(crate::standing::of(&node));
                }
                sweeps = sweeps.wrapping_add(1);
                node.bypass.sweep(&node).await;
            }
            () = node.draining.cancelled() => return,
        }
    }
}
