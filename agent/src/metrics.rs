//! Counters of the data path, for /metrics.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use weir_protocols::note::Coverage;

/// Typed, owned by the node; no globals.
#[derive(Default)]
pub(crate) struct Metrics {
    pub(crate) accepted: Counter,
    pub(crate) accept_errors: Counter,
    pub(crate) over_limit: Counter,
    pub(crate) without_origin: Counter,
    pub(crate) untouched: Counter,
    pub(crate) denied: Counter,
    pub(crate) dial_errors: Counter,
    pub(crate) record_errors: Counter,
    pub(crate) reload_errors: Counter,
    pub(crate) open: Gauge,
    sessions_inspected: Counter,
    sessions_metadata_only: Counter,
    exchanges: Counter,
    exchanges_denied: Counter,
    request_bytes: Counter,
    response_bytes: Counter,
}

impl Metrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        let counters: [(&str, &str, &Counter<u64, AtomicU64>); 15] = [
            ("accepted", "Redirected connections accepted", &self.accepted),
            (
                "over_limit",
                "Connections reset because as many as the limit of open files allows are being served",
                &self.over_limit,
            ),
            ("accept_errors", "accept() calls that failed", &self.accept_errors),
            (
                "without_origin",
                "Connections to the proxy port that no governed process made: reset",
                &self.without_origin,
            ),
            (
                "untouched",
                "Connections of processes that belong to no run: passed on unrecorded",
                &self.untouched,
            ),
            ("connections_denied", "Connections that policy refused", &self.denied),
            ("dial_errors", "Upstreams that could not be reached", &self.dial_errors),
            ("record_errors", "Connections closed because they could not be recorded", &self.record_errors),
            ("reload_errors", "Configurations that could not be taken over", &self.reload_errors),
            ("sessions_inspected", "Sessions whose every exchange was understood", &self.sessions_inspected),
            (
                "sessions_metadata_only",
                "Sessions that were not, or not wholly, read",
                &self.sessions_metadata_only,
            ),
            ("exchanges", "Exchanges recorded", &self.exchanges),
            ("exchanges_denied", "Exchanges that policy refused", &self.exchanges_denied),
            ("request_bytes", "Bytes forwarded to upstreams", &self.request_bytes),
            ("response_bytes", "Bytes forwarded to clients", &self.response_bytes),
        ];
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
        registry.register("sessions_open", "Sessions being forwarded now", self.open.clone());
    }

    /// A session has ended.
    pub(crate) fn session(&self, tape: &crate::proxy::Tape) {
        match tape.coverage() {
            Coverage::Inspected => self.sessions_inspected.inc(),
            Coverage::MetadataOnly(_) | Coverage::Refused(_) => self.sessions_metadata_only.inc(),
        };
        let (request_bytes, response_bytes) = tape.bytes();
        self.exchanges.inc_by(tape.exchanges());
        self.exchanges_denied.inc_by(tape.denied_count());
        self.request_bytes.inc_by(request_bytes);
        self.response_bytes.inc_by(response_bytes);
    }
}

/// What observed rules would have refused, by rule.
pub(crate) fn register_would_refuse(registry: &mut Registry, counts: &BTreeMap<Arc<str>, u64>) {
    let family = Family::<[(&'static str, String); 1], Counter>::default();
    for (rule, count) in counts {
        family.get_or_create(&[("rule", rule.to_string())]).inc_by(*count);
    }
    registry.register(
        "would_refuse",
        "Connections and exchanges that an observed rule would have refused, were it enforced",
        family,
    );
}
