//! Opening a state folder: what is there is read, recovery is handed to the scribe, and new sessions can be recorded.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde::Serialize;
use tokio::sync::oneshot;
use weir_proto::v1::{self, NodeEntry, node_entry::Mark};

use super::counters::CounterKind;
use super::generation::{Generation, GenerationError, Moment};
use super::recorder::{Bell, Numbering, Numbers, Shared};
use super::recovery::{self, JOURNAL_SUFFIX};
use super::scribe::{Asked, Scribe, Stop};
use super::sealing::Sealing;
use super::{Counters, KeyRing, KeyRingError, NodeLog, NodeLogError, Recorder, clock, make_folder};
use crate::journal::{Journal, JournalError};
use crate::shipping::{Identity, IdentityError, Shipping, ShippingStatus, ensure_keys, identity};
use crate::spool::{Spool, SpoolError, SpoolLimits};

/// Sessions are spread over at most this many journals.
const JOURNALS_MAX: u64 = 4;
/// The journals' data goes to disk this often: what a power cut may cost.
const SYNC_TIME: Duration = Duration::from_millis(100);
/// Sessions that the status names.
const STUCK_SHOWN: usize = 20;
/// How long the start waits for the collector's word on where the session numbers stand.
const GREETING_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the end waits for the disk, and then for the collector.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// How long somebody waits for the node log.
const MARK_TIMEOUT: Duration = Duration::from_secs(5);
const SHIP_TIMEOUT: Duration = Duration::from_secs(5);

/// Where recordings go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// To the collector that this state folder has joined.
    Collector,
    /// They stay in the folder, sealed for the key in it.
    Local,
}

#[derive(Debug, Clone)]
pub(crate) struct RecordingConfig {
    pub(crate) state_dir: PathBuf,
    pub(crate) mode: Mode,
    /// All journals together.
    pub(crate) journal_bytes: u64,
    pub(crate) spool_quota_bytes: u64,
    /// The clocks that generations go by: [`Moment::now`], but for a test.
    pub(crate) moment: fn() -> Moment,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("the state directory {path}: {doing} failed")]
    Io { path: PathBuf, doing: &'static str, source: io::Error },
    #[error("another node agent works in the state directory {0}")]
    InUse(PathBuf),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    KeyRing(#[from] KeyRingError),
    #[error(transparent)]
    Spool(#[from] SpoolError),
    #[error(transparent)]
    NodeLog(#[from] NodeLogError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Generation(#[from] GenerationError),
    #[error("recovering what an earlier node agent left failed to run")]
    Interrupted,
}

/// Not everything could be sealed before the end; the journals keep it for the next start.
#[derive(Debug, thiserror::Error)]
#[error("sealing did not finish within {DRAIN_TIMEOUT:?}")]
pub(crate) struct DrainError;

/// It may still be said later.
#[derive(Debug, thiserror::Error)]
#[error("the node log could not be written within {MARK_TIMEOUT:?}: see to the disk of the state directory")]
pub(crate) struct MarkError;

/// The handle to a running recording. Dropped without [`Recording::drain`] it ends as by a kill.
pub(crate) struct Recording {
    shared: Arc<Shared>,
    spool: Arc<Spool>,
    log: Arc<Mutex<NodeLog>>,
    ring: Arc<KeyRing>,
    scribe: mpsc::Sender<Asked>,
    shipping: Option<Shipping>,
    _lock: Flock<fs::File>,
}

/// For `weir-agent status`.
#[derive(Debug, Serialize)]
pub(crate) struct RecordingStatus {
    node: String,
    sessions_open: u64,
    next_session_number: u64,
    journal_bytes: u64,
    journal_used_bytes: u64,
    spool_segments: u64,
    spool_bytes: u64,
    spool_unreceipted: u64,
    /// Some of the sessions that cannot leave the spool, and why.
    pub(crate) stuck: Vec<(String, &'static str)>,
    node_log_entries: u64,
    /// Last day (since 1970-01-01) that a sealing key of the collector is known for; 0 = none is needed, or known.
    keys_until_day: u32,
    collector: Option<ShippingStatus>,
}

impl Recording {
    /// Opens the state folder. Call it from inside the tokio runtime. What an earlier life left is being sealed when this
    /// returns; new sessions can be opened at once.
    pub(crate) async fn start(config: RecordingConfig) -> Result<(Recorder, Self), StartError> {
        if config.mode == Mode::Collector {
            ensure_keys(&config.state_dir).await;
        }
        // Reading the spool and the journals of an earlier life takes its time on a full disk.
        let opened = tokio::task::spawn_blocking(move || open(&config))
            .await
            .map_err(|_| StartError::Interrupted)??;
        let Opened { shared, spool, log, ring, scribe, identity, enrolled, lock } = opened;
        let (asking, asked) = mpsc::channel();
        spawn("weir-scribe", move || scribe.run(&asked))?;
        spawn("weir-sync", {
            let shared = Arc::downgrade(&shared);
            move || sync_journals(&shared)
        })?;
        let shipping = match enrolled {
            Some(enrolled) => {
                let (numbering, counters) = (Numbering::new(shared.clone()), shared.counters.clone());
                let shipping = Shipping::start(
                    identity,
                    enrolled,
                    spool.clone(),
                    log.clone(),
                    ring.clone(),
                    numbering,
                    counters,
                );
                // A disk restored from an old copy would give session numbers a second time; the collector knows better.
                let _ = tokio::time::timeout(GREETING_TIMEOUT, shipping.greeted()).await;
                Some(shipping)
            }
            None => None,
        };
        let recorder = Recorder::new(shared.clone());
        Ok((recorder, Self { shared, spool, log, ring, scribe: asking, shipping, _lock: lock }))
    }

    /// Seals everything and says in the node log that this end was orderly; then gives the collector a moment.
    pub(crate) async fn drain(&self) -> Result<(), DrainError> {
        let (done, finished) = oneshot::channel();
        let asked = self.scribe.send(Asked::Stop(Stop { cause: "drained".to_owned(), done }));
        self.shared.bell.ring();
        if asked.is_err() || !matches!(tokio::time::timeout(DRAIN_TIMEOUT, finished).await, Ok(Ok(()))) {
            return Err(DrainError);
        }
        if let Some(shipping) = &self.shipping {
            // What is left then is sent after the next start.
            let _ = tokio::time::timeout(SHIP_TIMEOUT, shipping.shipped()).await;
            shipping.stop();
        }
        Ok(())
    }

    /// Its threads live: neither failed nor drained.
    pub(crate) fn is_running(&self) -> bool {
        !self.shared.stopped.load(std::sync::atomic::Ordering::Acquire)
    }

    /// Says something in the node log; it is on the disk when this returns.
    pub(crate) async fn mark(&self, mark: Mark) -> Result<(), MarkError> {
        let (done, said) = oneshot::channel();
        self.scribe.send(Asked::Mark(mark, done)).map_err(|_| MarkError)?;
        self.shared.bell.ring();
        match tokio::time::timeout(MARK_TIMEOUT, said).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(MarkError),
        }
    }

    /// Events are taken and find their way to the disk.
    pub(crate) fn is_healthy(&self) -> bool {
        self.is_running() && self.shared.journals.iter().all(|j| j.used() < j.capacity() / 10 * 9)
    }

    /// Everything recorded so far is on the disk.
    #[cfg(test)]
    pub(crate) fn is_synced(&self) -> bool {
        !self.shared.journals.iter().any(Journal::unsynced)
    }

    pub(crate) fn status(&self) -> RecordingStatus {
        let (next_session_number, sessions_open) = {
            let numbers = self.shared.numbers.lock().unwrap_or_else(PoisonError::into_inner);
            (numbers.next, numbers.open)
        };
        let (spool_segments, spool_bytes) = self.spool.held();
        RecordingStatus {
            node: self.shared.node.to_string(),
            sessions_open,
            next_session_number,
            journal_bytes: self.shared.journals.iter().map(Journal::capacity).sum(),
            journal_used_bytes: self.shared.journals.iter().map(Journal::used).sum(),
            spool_segments,
            spool_bytes,
            spool_unreceipted: self.spool.unreceipted(),
            stuck: self.spool.stuck(STUCK_SHOWN).into_iter().map(|(id, why)| (id.to_string(), why)).collect(),
            node_log_entries: self.log.lock().unwrap_or_else(PoisonError::into_inner).entries(),
            keys_until_day: self.ring.until_day(),
            collector: self.shipping.as_ref().map(Shipping::status),
        }
    }

    /// How the agent stands, for the node log: what is said here, and what shipping and sealing know themselves.
    pub(crate) fn describe(&self, state: v1::AgentState) {
        let certificate = self.shipping.as_ref().map_or(0, Shipping::certificate_not_after_unix);
        self.shared.standing().is(v1::AgentState {
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            certificate_not_after_unix: certificate,
            keys_until_day: self.ring.until_day(),
            ..state
        });
    }

    /// What the kernel programs have counted, for the node log's heartbeats.
    pub(crate) fn kernel_counted(&self, redirected: u64, refused: u64, unobserved: u64) {
        let counters = &self.shared.counters;
        counters.kernel_redirected.set(redirected);
        counters.kernel_refused.set(refused);
        counters.kernel_unobserved.set(unobserved);
    }

    pub(crate) fn register_metrics(&self, registry: &mut Registry) {
        for shown in self.shared.counters.shown() {
            let help = shown.help.trim_end_matches('.');
            match shown.kind {
                CounterKind::Total => {
                    let counter = Counter::<u64>::default();
                    counter.inc_by(shown.value);
                    registry.register(shown.name, help, counter);
                }
                CounterKind::Gauge => {
                    let gauge: Gauge = Gauge::default();
                    gauge.set(shown.value.try_into().unwrap_or(i64::MAX));
                    registry.register(shown.name, help, gauge);
                }
            }
        }
    }
}

struct Opened {
    shared: Arc<Shared>,
    spool: Arc<Spool>,
    log: Arc<Mutex<NodeLog>>,
    ring: Arc<KeyRing>,
    scribe: Scribe,
    identity: Identity,
    enrolled: Option<identity::Enrolled>,
    lock: Flock<fs::File>,
}

/// Everything that touches the disk before the first session.
fn open(config: &RecordingConfig) -> Result<Opened, StartError> {
    let state = &config.state_dir;
    let io = |doing| move |source| StartError::Io { path: state.clone(), doing, source };
    make_folder(state).map_err(io("making it"))?;
    let lock = lock(state)?;
    let (identity, enrolled, ring) = match config.mode {
        Mode::Collector => {
            let (identity, enrolled) = identity::load_enrolled(state)?;
            let ring = KeyRing::load(&state.join("keys.bin"), enrolled.receipt_key)?;
            (identity, Some(enrolled), ring)
        }
        Mode::Local => {
            let (identity, key) = identity::load_or_make_local(state)?;
            (identity, None, KeyRing::Local(key))
        }
    };
    let node = identity.node;
    let counters = Arc::new(Counters::default());

    let (mut log, mut logged) = NodeLog::open(&state.join("nodelog"), node, identity.signing.clone())?;
    let limits = SpoolLimits { quota_bytes: config.spool_quota_bytes, ..SpoolLimits::default() };
    let spool =
        Spool::open(&state.join("spool"), limits, identity.signing.verifying_key(), counters.clone())?;
    let newest = spool.newest()?;
    let journal_folder = state.join("journal");
    make_folder(&journal_folder).map_err(io("making its journal folder"))?;
    let mut found =
        recovery::look(&journal_folder, &newest, &logged, &counters).map_err(io("reading its journals"))?;

    let generation = Generation::draw(&ring, &node, &spool, (config.moment)())?;
    spool.prune_wraps(generation.id);
    let journals = new_journals(&journal_folder, config.journal_bytes)?;
    let numbers = Numbers { next: found.next_number, opened: std::mem::take(&mut found.opened), open: 0 };
    let shared = Arc::new(Shared {
        node,
        journals,
        numbers: Mutex::new(numbers),
        late: Mutex::default(),
        stopped: AtomicBool::new(false),
        recovered: AtomicBool::new(false),
        ships: config.mode == Mode::Collector,
        bell: Bell::default(),
        counters: counters.clone(),
        keys_ran_out: AtomicBool::new(false),
        standing: Mutex::default(),
        moment: config.moment,
    });
    let started = v1::Started {
        generation_id: generation.id.to_field(),
        after_crash: log.entries() > 0 && !logged.stopped,
        unreadable_journals: found.unreadable,
    };
    begin(&mut log, &shared, started, std::mem::take(&mut logged.again))?;
    counters.generations.add(1);
    let same_boot = logged.boot_id == clock::boot_id();
    let sealing = Sealing::new(node, identity.signing.clone(), generation, counters);
    let (spool, log, ring) = (Arc::new(spool), Arc::new(Mutex::new(log)), Arc::new(ring));
    let scribe =
        Scribe::new(shared.clone(), spool.clone(), log.clone(), ring.clone(), sealing, found, same_boot);
    Ok(Opened { shared, spool, log, ring, scribe, identity, enrolled, lock })
}

/// The first entry of this life. Its heartbeat must not run ahead of what is logged as opened, so it says that too, and
/// what the log had said where it was damaged.
fn begin(
    log: &mut NodeLog,
    shared: &Shared,
    started: v1::Started,
    again: NodeEntry,
) -> Result<(), NodeLogError> {
    let mut numbers = shared.numbers.lock().unwrap_or_else(PoisonError::into_inner);
    let entry = NodeEntry {
        at_ns: clock::now().0,
        wall: Some(clock::wall()),
        boot_id: clock::boot_id(),
        opened: again.opened.into_iter().chain(numbers.opened.iter().cloned()).collect(),
        closed: again.closed,
        lost: again.lost,
        heartbeat: Some(shared.heartbeat(&numbers)),
        mark: Some(Mark::Started(started)),
        ..NodeEntry::default()
    };
    for part in super::node_log::split(entry) {
        log.append(part)?;
    }
    numbers.opened.clear();
    Ok(())
}

fn new_journals(folder: &Path, bytes: u64) -> Result<Vec<Journal>, JournalError> {
    let count = std::thread::available_parallelism().map_or(1, |n| n.get() as u64).min(JOURNALS_MAX);
    // Each must be worth having.
    let count = count.min(bytes / crate::journal::JOURNAL_BYTES_MIN).max(1);
    (0..count)
        .map(|_| {
            Journal::create(&folder.join(format!("{}{JOURNAL_SUFFIX}", uuid::Uuid::now_v7())), bytes / count)
        })
        .collect()
}

fn lock(state: &Path) -> Result<Flock<fs::File>, StartError> {
    let failed = |source| StartError::Io { path: state.to_owned(), doing: "locking it", source };
    let file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(state.join("lock"))
        .map_err(failed)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => StartError::InUse(state.to_owned()),
        errno => failed(errno.into()),
    })
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), StartError> {
    std::thread::Builder::new().name(name.to_owned()).spawn(run).map(drop).map_err(|source| StartError::Io {
        path: PathBuf::from(name),
        doing: "starting a thread",
        source,
    })
}

/// The thread that writes the journals to disk, for as long as anybody records.
fn sync_journals(shared: &std::sync::Weak<Shared>) {
    loop {
        std::thread::sleep(SYNC_TIME);
        let Some(shared) = shared.upgrade() else { return };
        for journal in shared.journals.iter().filter(|j| j.unsynced()) {
            if let Err(error) = journal.sync() {
                shared.counters.journal_sync_errors.add(1);
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "a power cut now would lose events"
                );
            }
        }
    }
}
