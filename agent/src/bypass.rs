//! Letting governed connections through for a time, because we are wrong and somebody says so: `weir-agent bypass`.
//!
//! ```text
//!  begin:  file -> node log -> kernel        end, asked:      kernel -> node log -> file
//!                                            end, over time:  (the kernel has ended it) node log -> file
//! ```
//! The kernel's word alone lets anything through, and it ends with the boot clock whatever becomes of the node agent. The file
//! only remembers who asked and why: it never opens anything again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use weir_agent_ebpf::{BYPASS_NS_MAX, Counter};
use weir_proto::v1::node_entry::Mark;
use weir_proto::v1::{BypassBegan, BypassEnded};
use weir_protocols::mask::MaskPlan;

use crate::node::Node;
use crate::recording::{MarkError, clock, write_file};
use crate::redirection::RedirectionError;

/// Longest reason, bytes.
const REASON_BYTES_MAX: usize = 1024;
/// As long as it is under way the log says so, this often.
const REMINDER_INTERVAL: Duration = Duration::from_secs(60);

/// Who asked, as the kernel tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asker {
    pub(crate) uid: u32,
    pub(crate) pid: u32,
}

/// The bypass of one node agent.
pub(crate) struct Bypass {
    file: PathBuf,
    under_way: Mutex<Option<UnderWay>>,
}

/// What is remembered over a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct UnderWay {
    boot_id: String,
    /// CLOCK_BOOTTIME, as are all times here.
    began_ns: u64,
    until_ns: u64,
    reason: String,
    uid: u32,
    pid: u32,
    /// The kernel's count of what passed before.
    passed_before: u64,
    #[serde(skip)]
    reminded_ns: u64,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum BypassError {
    #[error("only root may let connections through unrecorded, and uid {0} asks")]
    NotRoot(u32),
    #[error("a bypass lasts 1 second to 24 hours, not {0} seconds")]
    Duration(u64),
    #[error("say why, in at most {REASON_BYTES_MAX} bytes: --reason is recorded")]
    Reason,
    #[error("no bypass is under way")]
    None,
    #[error("cannot remember the bypass in {}; it was not begun", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("the bypass was not begun, because it could not be recorded")]
    Unrecorded(#[from] MarkError),
    #[error("the bypass has ended, but not on record")]
    EndUnrecorded(#[source] MarkError),
    #[error("the kernel could not be told")]
    Kernel(#[from] RedirectionError),
}

impl Bypass {
    pub(crate) fn new(state: &Path) -> Self {
        Self { file: state.join("bypass.json"), under_way: Mutex::new(None) }
    }

    /// At the start: goes on with one that an earlier node agent began, or puts its end on record.
    pub(crate) async fn adopt(&self, node: &Node) -> Result<(), BypassError> {
        let mut under_way = self.under_way.lock().await;
        let until_ns = node.redirection.bypass_until()?;
        let found =
            fs::read(&self.file).ok().and_then(|bytes| serde_json::from_slice::<UnderWay>(&bytes).ok());
        let now = clock::now().0;
        let Some(found) = found else {
            if until_ns > now {
                // Nobody is on record for it.
                node.redirection.bypass(0)?;
                tracing::error!("a bypass was under way that nobody is on record for: it was ended");
                let ended = BypassEnded { cause: "unaccounted".into(), ended_ns: now, ..Default::default() };
                node.mark(Mark::BypassEnded(ended)).await.map_err(BypassError::EndUnrecorded)?;
            }
            return Ok(());
        };
        let is_same = found.boot_id == clock::boot_id() && found.until_ns == until_ns;
        if is_same && until_ns > now {
            tracing::warn!(
                seconds = (until_ns - now) / 1_000_000_000,
                reason = found.reason,
                "BYPASS goes on: governed connections pass unrecorded"
            );
            *under_way = Some(found);
            return Ok(());
        }
        node.redirection.bypass(0)?;
        let (cause, ended_ns) = if is_same { ("expired-unattended", until_ns) } else { ("hooks-gone", 0) };
        let passed = if is_same { found.passed(node) } else { 0 };
        let ended = BypassEnded { cause: cause.into(), passed, ended_ns, ..Default::default() };
        self.ended(node, ended).await
    }

    /// Begins one, or gives one that is under way another end.
    pub(crate) async fn begin(
        &self,
        node: &Node,
        asker: Asker,
        seconds: u64,
        reason: &str,
    ) -> Result<(), BypassError> {
        if asker.uid != 0 {
            return Err(BypassError::NotRoot(asker.uid));
        }
        let lasts_ns = seconds.checked_mul(1_000_000_000).filter(|ns| (1..=BYPASS_NS_MAX).contains(ns));
        let lasts_ns = lasts_ns.ok_or(BypassError::Duration(seconds))?;
        let reason = reason.trim();
        if reason.is_empty() || reason.len() > REASON_BYTES_MAX {
            return Err(BypassError::Reason);
        }
        // Somebody in a hurry may paste a whole command line.
        let reason = MaskPlan::standard().argv(&[reason.to_owned()]).concat();
        let mut under_way = self.under_way.lock().await;
        let passed = node.redirection.counters()?.of(Counter::PassedBypass);
        let now = clock::now().0;
        let before = under_way.as_ref();
        let next = UnderWay {
            boot_id: clock::boot_id(),
            began_ns: before.map_or(now, |before| before.began_ns),
            until_ns: now + lasts_ns,
            reason: reason.clone(),
            uid: asker.uid,
            pid: asker.pid,
            passed_before: before.map_or(passed, |before| before.passed_before),
            reminded_ns: now,
        };
        self.remember(&next)?;
        let began = BypassBegan {
            until_ns: next.until_ns,
            reason,
            uid: asker.uid,
            pid: asker.pid,
            extended: before.is_some(),
        };
        if let Err(error) = node.mark(Mark::BypassBegan(began)).await {
            match before {
                Some(before) => self.remember(before)?,
                None => self.forget(),
            }
            return Err(error.into());
        }
        if let Err(error) = node.redirection.bypass(next.until_ns) {
            let ended = BypassEnded { cause: "not-begun".into(), ended_ns: now, ..Default::default() };
            self.ended(node, ended).await?;
            *under_way = None;
            return Err(error.into());
        }
        tracing::warn!(
            seconds,
            reason = next.reason,
            uid = asker.uid,
            pid = asker.pid,
            "BYPASS: governed connections pass unrecorded"
        );
        *under_way = Some(next);
        Ok(())
    }

    /// Ends the one under way; gives how many connections passed.
    pub(crate) async fn end(&self, node: &Node, asker: Asker) -> Result<u64, BypassError> {
        if asker.uid != 0 {
            return Err(BypassError::NotRoot(asker.uid));
        }
        let mut under_way = self.under_way.lock().await;
        let Some(ending) = under_way.as_ref() else { return Err(BypassError::None) };
        node.redirection.bypass(0)?;
        let passed = ending.passed(node);
        *under_way = None;
        let ended = BypassEnded {
            cause: "asked".into(),
            uid: asker.uid,
            pid: asker.pid,
            passed,
            ended_ns: clock::now().0,
        };
        self.ended(node, ended).await?;
        Ok(passed)
    }

    /// Now and then: puts an end that has come by itself on record, and reminds.
    pub(crate) async fn sweep(&self, node: &Node) {
        let mut under_way = self.under_way.lock().await;
        let Some(current) = under_way.as_mut() else { return };
        let now = clock::now().0;
        if now < current.until_ns {
            if now.saturating_sub(current.reminded_ns) >= REMINDER_INTERVAL.as_nanos() as u64 {
                current.reminded_ns = now;
                tracing::warn!(
                    passed = current.passed(node),
                    "BYPASS goes on: governed connections pass unrecorded"
                );
            }
            return;
        }
        let ended = BypassEnded {
            cause: "expired".into(),
            passed: current.passed(node),
            ended_ns: current.until_ns,
            ..Default::default()
        };
        *under_way = None;
        if let Err(error) = self.ended(node, ended).await {
            tracing::error!(error = &error as &dyn std::error::Error, "the end of a bypass");
        }
    }

    /// For `weir-agent status`; null where none is under way.
    pub(crate) async fn status(&self, node: &Node) -> Value {
        let under_way = self.under_way.lock().await;
        let Some(current) = under_way.as_ref() else { return Value::Null };
        let now = clock::now().0;
        let ns_left = current.until_ns.saturating_sub(now);
        json!({ "seconds_left": ns_left.div_ceil(1_000_000_000), "seconds_so_far": (now - current.began_ns) / 1_000_000_000,
            "reason": current.reason, "uid": current.uid, "pid": current.pid, "passed": current.passed(node) })
    }

    async fn ended(&self, node: &Node, ended: BypassEnded) -> Result<(), BypassError> {
        tracing::warn!(cause = ended.cause, passed = ended.passed, "the bypass has ended");
        // Until its end is on record it is remembered: the next start says it then.
        node.mark(Mark::BypassEnded(ended)).await.map_err(BypassError::EndUnrecorded)?;
        self.forget();
        Ok(())
    }

    fn remember(&self, under_way: &UnderWay) -> Result<(), BypassError> {
        let failed = |source| BypassError::File { path: self.file.clone(), source };
        let bytes = serde_json::to_vec(under_way).map_err(|error| failed(error.into()))?;
        write_file(&self.file, &bytes).map_err(failed)
    }

    fn forget(&self) {
        match fs::remove_file(&self.file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, "{} stays; it opens nothing", self.file.display());
            }
            _ => {}
        }
    }
}

impl UnderWay {
    /// Connections that went through so far.
    fn passed(&self, node: &Node) -> u64 {
        let counted = node.redirection.counters().map_or(0, |counters| counters.of(Counter::PassedBypass));
        counted.saturating_sub(self.passed_before)
    }
}
