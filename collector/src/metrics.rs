//! What the collector counts. No value of a recording, no name of a credential is ever a label.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Cheap to clone: all clones count together.
#[derive(Clone, Default)]
pub struct Metrics {
    pub segments_accepted: Counter<u64, AtomicU64>,
    pub segments_repeated: Counter<u64, AtomicU64>,
    pub segments_refused: Counter<u64, AtomicU64>,
    pub segment_bytes: Counter<u64, AtomicU64>,
    pub batches: Counter<u64, AtomicU64>,
    pub store_errors: Counter<u64, AtomicU64>,
    pub alerts: Counter<u64, AtomicU64>,
    pub enrolled: Counter<u64, AtomicU64>,
    pub renewed: Counter<u64, AtomicU64>,
    pub calls_allowed: Counter<u64, AtomicU64>,
    pub calls_refused: Counter<u64, AtomicU64>,
    pub connections_refused: Counter<u64, AtomicU64>,
    pub segments_expired: Counter<u64, AtomicU64>,
    pub orphans_swept: Counter<u64, AtomicU64>,
    pub text_segments: Counter<u64, AtomicU64>,
    pub text_unreadable: Counter<u64, AtomicU64>,
    pub text_lag_ms: Gauge,
    pub agents: Gauge,
    pub nodes_fell_silent: Counter<u64, AtomicU64>,
    pub in_flight_bytes: Gauge,
    pub free_bytes: Gauge,
}

impl Metrics {
    /// For the admin listener.
    pub fn registry(&self) -> Arc<Registry> {
        let mut registry = Registry::with_prefix("weir_collector");
        let r = &mut registry;
        r.register("segments_accepted", "Segments stored and receipted", self.segments_accepted.clone());
        r.register(
            "segments_repeated",
            "Segments offered again and acknowledged again",
            self.segments_repeated.clone(),
        );
        r.register("segments_refused", "Segments refused, for any reason", self.segments_refused.clone());
        r.register("segment_bytes", "Bytes of sealed segments stored", self.segment_bytes.clone());
        r.register("batches", "Transactions of ingest", self.batches.clone());
        r.register("store_errors", "Failures of disk or index", self.store_errors.clone());
        r.register("alerts", "Signs of tampering", self.alerts.clone());
        r.register("enrolled", "Node agents enrolled", self.enrolled.clone());
        r.register("renewed", "Certificates of node agents renewed", self.renewed.clone());
        r.register("calls_allowed", "Queries and admin calls allowed", self.calls_allowed.clone());
        r.register("calls_refused", "Queries and admin calls refused", self.calls_refused.clone());
        r.register(
            "connections_refused",
            "Connections refused: too many, or a failed TLS handshake",
            self.connections_refused.clone(),
        );
        r.register("segments_expired", "Segments deleted by retention", self.segments_expired.clone());
        r.register(
            "orphans_swept",
            "Bundles deleted because no transaction ever named them",
            self.orphans_swept.clone(),
        );
        r.register(
            "nodes_fell_silent",
            "Times that a node agent's heartbeats stayed away",
            self.nodes_fell_silent.clone(),
        );
        r.register("text_segments", "Segments whose words are in the full text", self.text_segments.clone());
        r.register(
            "text_unreadable",
            "Segments without full text because they do not open",
            self.text_unreadable.clone(),
        );
        r.register(
            "text_lag_ms",
            "Age of the oldest segment that is not in the full text",
            self.text_lag_ms.clone(),
        );
        r.register("agents", "Node agents with a stream now", self.agents.clone());
        r.register(
            "in_flight_bytes",
            "Bytes of segments received and not yet answered",
            self.in_flight_bytes.clone(),
        );
        r.register("free_bytes", "Free space of the data directory", self.free_bytes.clone());
        Arc::new(registry)
    }
}
