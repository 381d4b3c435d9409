//! What the recorder counts. Plain atomics: the metrics endpoint reads them, nobody waits for them.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only this module's methods move.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    pub(crate) fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($(#[doc = $help:literal])+ $name:ident: $kind:ident),* $(,)?) => {
        /// All of them; `shown` gives each with its name and meaning.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $($(#[doc = $help])+ pub(crate) $name: Counter,)*
        }

        impl Counters {
            pub(crate) fn shown(&self) -> Vec<Shown> {
                vec![$(Shown {
                    name: stringify!($name),
                    help: concat!($($help),+).trim_ascii(),
                    kind: CounterKind::$kind,
                    value: self.$name.value(),
                },)*]
            }
        }
    };
}

/// One number for the metrics endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    pub(crate) kind: CounterKind,
    pub(crate) value: u64,
}

/// How a number moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CounterKind {
    /// Upwards only.
    Total,
    /// Both ways.
    Gauge,
}

counters! {
    /// Events appended to the journal.
    recorded_events: Total,
    /// Bytes of events appended to the journal.
    recorded_bytes: Total,
    /// Times that a session waited because the journal was full.
    journal_full_waits: Total,
    /// Bytes of the journal that are not in the spool yet.
    journal_used_bytes: Gauge,
    /// Journals of an earlier life that ended in a torn record.
    journal_torn: Total,
    /// Times that journal data could not be written to disk.
    journal_sync_errors: Total,
    /// Events that were too long to record and left a gap instead.
    events_too_long: Total,
    /// Sessions opened.
    sessions_opened: Total,
    /// Sessions closed.
    sessions_closed: Total,
    /// Records in the journal whose session is not known; they are left out.
    records_orphaned: Total,
    /// Sessions that an earlier life of the agent had left open, closed with a gap.
    sessions_recovered: Total,
    /// Segments sealed.
    segments_sealed: Total,
    /// Segments sealed with a faster compression because the journal was half full.
    segments_sealed_fast: Total,
    /// Bytes of events sealed.
    segment_plain_bytes: Total,
    /// Bytes of segments after compression and encryption.
    segment_sealed_bytes: Total,
    /// Key generations drawn.
    generations: Total,
    /// Times that a generation had to go on because the collector's key for the day is not known.
    generations_overdue: Total,
    /// Times that segments could not be written to the spool; they are kept and written again.
    spool_write_errors: Total,
    /// Segments in the spool.
    spool_segments: Gauge,
    /// Segments in the spool that are on their way to a collector: not receipted, and not stuck.
    spool_unreceipted: Gauge,
    /// Bytes in the spool.
    spool_bytes: Gauge,
    /// Times that the spool was at its quota or the disk at its floor.
    spool_full: Total,
    /// Spool files that could not be read back and were set aside.
    spool_quarantined: Total,
    /// Sockets redirected by the kernel programs since they were attached.
    kernel_redirected: Gauge,
    /// Connections refused by the kernel programs since they were attached.
    kernel_refused: Gauge,
    /// Connections that passed without being observed since the kernel programs were attached.
    kernel_unobserved: Gauge,
    /// Entries appended to the node log.
    node_entries: Total,
    /// Times that the node log could not be written.
    node_log_errors: Total,
    /// Times that the collector knew a longer node log than this disk.
    node_log_rolled_back: Total,
    /// Segments sent to the collector, repeated ones included.
    shipped_segments: Total,
    /// Segments that the collector has promised to hold.
    receipts: Total,
    /// Receipts that were not by the collector's key or named what was never sent.
    receipts_false: Total,
    /// Segments refused by the collector.
    refused: Total,
    /// Segments that the collector refused as tampered with; they stay in the spool.
    refused_tamper: Total,
    /// Connections made to the collector.
    connects: Total,
    /// Connections to the collector that failed or ended.
    disconnects: Total,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_is_shown_with_its_help() {
        let counters = Counters::default();
        counters.receipts.add(3);
        let shown = counters.shown();
        assert!(shown.iter().all(|s| s.help.ends_with('.') && !s.help.starts_with(' ')));
        assert!(shown.iter().any(|s| s.name == "receipts" && s.value == 3));
    }
}
