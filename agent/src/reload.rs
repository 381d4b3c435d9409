//! Taking over other rules while the node agent runs: SIGHUP, or `weir-agent reload`. The file is read and checked whole, or
//! nothing of it holds.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use weir_proto::v1::RulesLoaded;
use weir_proto::v1::node_entry::Mark;

use crate::bypass::Asker;
use crate::config::{Config, ConfigError};
use crate::node::Node;
use crate::policy::{Judge, Stamp};

/// The configuration of a running node agent.
pub(crate) struct Loaded {
    started: Config,
    current: Mutex<Current>,
}

struct Current {
    config: Config,
    /// What the last reload failed of.
    error: Option<String>,
}

/// What a reload brought.
pub(crate) struct Reloaded {
    pub(crate) stamp: Stamp,
    /// The file is another than before.
    pub(crate) is_new: bool,
    /// Options that differ from those of the start, and wait for the next one.
    pub(crate) restart_for: Vec<String>,
}

impl Loaded {
    pub(crate) fn new(config: Config) -> Self {
        Self { started: config.clone(), current: Mutex::new(Current { config, error: None }) }
    }

    /// Reads the file again and gives the judge its rules.
    fn again(&self, judge: &Judge) -> Result<Reloaded, ConfigError> {
        let mut current = self.current();
        let next = match current.config.again() {
            Ok(next) => next,
            Err(error) => {
                current.error = Some(error.to_string());
                return Err(error);
            }
        };
        current.error = None;
        let is_new = next.origin != current.config.origin;
        let stamp = match is_new {
            true => judge.replace(next.rules(), stamp(&next)),
            false => judge.current().stamp.clone(),
        };
        current.config = next;
        Ok(Reloaded { stamp, is_new, restart_for: self.started.restart_for(&current.config) })
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        // It is only ever replaced whole.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For `weir-agent status`.
    pub(crate) fn status(&self, judge: &Judge) -> Value {
        let snapshot = judge.current();
        let current = self.current();
        json!({
            "generation": snapshot.stamp.generation,
            "config_sha256": snapshot.stamp.config_sha256.map(hex),
            "loaded_unix_ms": snapshot.stamp.loaded_unix_ns / 1_000_000,
            "mode": snapshot.rules.mode.word(),
            "restart_for": self.started.restart_for(&current.config),
            "reload_error": current.error,
            "would_refuse": judge.would_refuse().iter().map(|(rule, count)| (rule.to_string(), json!(count)))
                .collect::<serde_json::Map<_, _>>(),
        })
    }
}

/// Of a configuration that is taken over now; its generation is not known yet.
pub(crate) fn stamp(config: &Config) -> Stamp {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Stamp {
        generation: 0,
        config_sha256: config.origin.as_ref().and_then(|origin| origin.sha256),
        loaded_unix_ns: i64::try_from(now.as_nanos()).unwrap_or(i64::MAX),
    }
}

/// Reads the configuration once more; after an error the last good one goes on. `asker` is `None` for a signal.
pub(crate) async fn reload(node: &Node, asker: Option<Asker>) -> Result<Reloaded, ConfigError> {
    let reloaded = node.loaded.again(&node.judge).inspect_err(|error| {
        node.metrics.reload_errors.inc();
        tracing::error!(
            error = error as &dyn std::error::Error,
            "the configuration cannot be taken over: the rules that were loaded before go on; correct it and reload"
        );
    })?;
    let Stamp { generation, config_sha256, .. } = &reloaded.stamp;
    if !reloaded.is_new {
        tracing::info!(generation, "the configuration is as it was");
        return Ok(reloaded);
    }
    tracing::info!(generation, restart_for = ?reloaded.restart_for, "other rules hold from now on");
    let mark = Mark::RulesLoaded(RulesLoaded {
        generation: *generation,
        config_sha256: config_sha256.map(|digest| digest.to_vec()).unwrap_or_default().into(),
        uid: asker.map_or(0, |asker| asker.uid),
        pid: asker.map_or(0, |asker| asker.pid),
        by_signal: asker.is_none(),
    });
    if let Err(error) = node.mark(mark).await {
        tracing::error!(
            error = &error as &dyn std::error::Error,
            "that other rules hold is not on record yet"
        );
    }
    Ok(reloaded)
}

pub(crate) fn hex(digest: [u8; 32]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
