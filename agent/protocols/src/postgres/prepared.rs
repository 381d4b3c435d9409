//! Prepared statements and portals by name, as the server has them.
//!
//! A definition counts when the server confirmed it. Until then it is pending, and only what follows it in the same batch
//! (up to the next Sync) may rely on it: if it fails, the server skips what follows, too. In a later batch, a name that
//! has both a pending definition and another one is [`Found::Unsure`]: what it means is known when the server has
//! answered, so the request waits. Otherwise a client could have policy asked about one text and the server run another.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};

use aho_corasick::AhoCorasick;
use bytes::Bytes;

use super::exchange::Column;
use crate::mask::Masked;
use crate::note::ValueRecord;
use crate::operation::{Sql, SqlVerb};
use crate::seam::ExchangeId;

/// Names in one table. More are not remembered: their Execute is asked as `oversized`, without text.
pub(crate) const NAMES_MAX: usize = 16 * 1024;
/// What texts, values and columns kept by name may take in one session, bytes. Beyond it a text is not kept, and its
/// Execute is asked as `oversized`; values and columns are not shown.
pub(crate) const KEPT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// What a server reads of a name, bytes (its `NAMEDATALEN` less the NUL): longer names that begin the same are one name.
const NAME_BYTES_MAX: usize = 63;

#[derive(Debug, Default)]
pub(crate) struct Statement {
    pub defined_by: Option<ExchangeId>,
    pub text: Bytes,
    pub shown: Masked,
    pub shown_truncated: bool,
    pub oversized: bool,
    /// `None`: there was no room for its text.
    #[expect(dead_code, reason = "held for its Drop")]
    pub kept: Option<Kept>,
    /// As Parse declared them, 0 where it did not.
    pub declared: Vec<u32>,
    /// As Describe told them.
    pub types: OnceLock<Vec<u32>>,
    pub columns: OnceLock<KeptColumns>,
}

/// Columns as Describe told them.
#[derive(Debug)]
pub(crate) struct KeptColumns {
    pub columns: Arc<[Column]>,
    #[expect(dead_code, reason = "held for its Drop")]
    kept: Kept,
}

impl Statement {
    pub(crate) fn type_of(&self, parameter: usize) -> u32 {
        let told = self.types.get().and_then(|types| types.get(parameter));
        told.or_else(|| self.declared.get(parameter)).copied().unwrap_or(0)
    }
}

/// The budget of [`KEPT_BYTES_MAX`].
#[derive(Debug, Default)]
pub(crate) struct Budget(Arc<AtomicUsize>);

/// A share of the budget, given back when the last user is gone.
#[derive(Debug)]
pub(crate) struct Kept(Arc<AtomicUsize>, usize);

/// What a value or a column takes beside its text, about, bytes.
pub(crate) const ENTRY_BYTES: usize = 128;

impl Budget {
    /// `None` when there is no room.
    pub(crate) fn take(&self, bytes: usize) -> Option<Kept> {
        let kept = self.0.load(Ordering::Relaxed);
        if kept.saturating_add(bytes) > KEPT_BYTES_MAX {
            return None;
        }
        self.0.store(kept + bytes, Ordering::Relaxed);
        Some(Kept(self.0.clone(), bytes))
    }

    pub(crate) fn taken(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn columns(&self, columns: Arc<[Column]>) -> Option<KeptColumns> {
        let kept = self.take(columns.iter().map(|column| column.name.bytes().len() + ENTRY_BYTES).sum())?;
        Some(KeptColumns { columns, kept })
    }

    /// The values, if there is room for them.
    pub(crate) fn values(&self, values: Vec<ValueRecord>) -> (Vec<ValueRecord>, Option<Kept>) {
        match self.take(values.iter().map(|value| value.shown.bytes().len() + ENTRY_BYTES).sum()) {
            Some(kept) => (values, Some(kept)),
            None => (Vec::new(), None),
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
pub(crate) struct Portal {
    /// `None` when it was not made by a Parse that was seen: `PREPARE` as SQL makes such ones.
    pub statement: Option<Arc<Statement>>,
    pub forgotten: bool,
    pub parameters: Vec<ValueRecord>,
    pub result_formats: Vec<i16>,
    pub columns: OnceLock<KeptColumns>,
    /// For the parameters.
    pub kept: Option<Kept>,
}

impl Portal {
    /// One code holds for all columns, none means text ("Bind").
    pub(crate) fn result_format(&self, column: usize) -> i16 {
        match self.result_formats.as_slice() {
            [] => 0,
            [all] => *all,
            each => each.get(column).copied().unwrap_or(0),
        }
    }
}

/// Names of one kind. `V` is shared with the requests that use it.
#[derive(Debug)]
pub(crate) struct Table<V> {
    /// The empty name, which most messages use.
    unnamed: Slot<V>,
    slots: HashMap<Bytes, Slot<V>>,
    next: u64,
    /// A name was not remembered: an unknown one may be it.
    overflowed: bool,
}

#[derive(Debug)]
struct Slot<V> {
    confirmed: Option<Meaning<V>>,
    pending: VecDeque<Pending<V>>,
}

impl<V> Default for Slot<V> {
    fn default() -> Self {
        Self { confirmed: None, pending: VecDeque::new() }
    }
}

impl<V> Slot<V> {
    fn is_vacant(&self) -> bool {
        self.confirmed.is_none() && self.pending.is_empty()
    }
}

#[derive(Debug)]
struct Pending<V> {
    change: Change,
    batch: u64,
    /// `None` closes the name.
    to: Option<Meaning<V>>,
}

#[derive(Debug)]
enum Meaning<V> {
    Known(Arc<V>),
    /// Defined or closed by a name that only the server can tell from this one, or not.
    Forgotten,
}

/// One pending definition or close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Change(u64);

#[derive(Debug)]
pub(crate) enum Found<V> {
    Known(Arc<V>),
    /// Of an earlier batch, not confirmed: the only meaning it has here.
    Pending(Arc<V>),
    Unknown,
    /// It was there once, and the table was full.
    Forgotten,
    /// Wait for the server's answers.
    Unsure,
}

impl<V> Default for Table<V> {
    fn default() -> Self {
        Self { unnamed: Slot::default(), slots: HashMap::new(), next: 0, overflowed: false }
    }
}

impl<V> Table<V> {
    pub(crate) fn find(&self, name: &[u8], batch: u64) -> Found<V> {
        let Key::Exact(name) = key(name) else { return Found::Forgotten };
        let slot = if name.is_empty() { Some(&self.unnamed) } else { self.slots.get(name) };
        let Some(slot) = slot.filter(|slot| !slot.is_vacant()) else { return self.unknown() };
        let known = |to: &Option<Meaning<V>>| match to {
            Some(Meaning::Known(v)) => Found::Known(v.clone()),
            Some(Meaning::Forgotten) => Found::Forgotten,
            None => Found::Unknown,
        };
        match slot.pending.back() {
            None => known(&slot.confirmed),
            Some(last) if last.batch == batch => known(&last.to),
            Some(last) if slot.pending.len() == 1 && slot.confirmed.is_none() => match known(&last.to) {
                Found::Known(v) => Found::Pending(v),
                found => found,
            },
            Some(_) => Found::Unsure,
        }
    }

    fn unknown(&self) -> Found<V> {
        if self.overflowed { Found::Forgotten } else { Found::Unknown }
    }

    /// A definition, or with `None` a close, is asked for.
    pub(crate) fn change(&mut self, name: &[u8], batch: u64, to: Option<Arc<V>>) -> Change {
        self.next += 1;
        let change = Change(self.next);
        let closes = to.is_none();
        let (name, to) = match key(name) {
            Key::Exact(name) => (name, to.map(Meaning::Known)),
            Key::Beginning(name) => (name, Some(Meaning::Forgotten)),
            Key::Converted => return change,
        };
        if self.slot(name).is_none_or(|slot| slot.is_vacant()) {
            if closes {
                return change;
            }
            if self.slots.len() >= NAMES_MAX {
                self.overflowed = true;
                return change;
            }
            if !name.is_empty() {
                self.slots.insert(Bytes::copy_from_slice(name), Slot::default());
            }
        }
        if let Some(slot) = self.slot(name) {
            slot.pending.push_back(Pending { change, batch, to });
        }
        change
    }

    fn slot(&mut self, name: &[u8]) -> Option<&mut Slot<V>> {
        if name.is_empty() { Some(&mut self.unnamed) } else { self.slots.get_mut(name) }
    }

    /// The server did it.
    pub(crate) fn confirm(&mut self, name: &[u8], change: Change) {
        self.settle(name, change, |slot, to| slot.confirmed = to);
    }

    /// It did not happen.
    pub(crate) fn revoke(&mut self, name: &[u8], change: Change) {
        self.settle(name, change, |_, _| {});
    }

    /// What is confirmed is gone: a transaction's end takes portals, `DEALLOCATE ALL` takes statements.
    pub(crate) fn clear_confirmed(&mut self) {
        self.unnamed.confirmed = None;
        if self.slots.is_empty() {
            return;
        }
        self.slots.retain(|_, slot| {
            slot.confirmed = None;
            !slot.pending.is_empty()
        });
    }

    fn settle(&mut self, name: &[u8], change: Change, apply: impl FnOnce(&mut Slot<V>, Option<Meaning<V>>)) {
        let (Key::Exact(name) | Key::Beginning(name)) = key(name) else { return };
        let Some(slot) = self.slot(name) else { return };
        let Some(place) = slot.pending.iter().position(|pending| pending.change == change) else { return };
        if let Some(pending) = slot.pending.remove(place) {
            apply(slot, pending.to);
        }
        if slot.is_vacant() && !name.is_empty() {
            self.slots.remove(name);
        }
    }
}

/// Whether the statement may define, take or close a name by SQL. Their keywords cannot be escaped; only a function's body
/// or a DO block could hide them.
pub(crate) fn may_name(sql: &Sql) -> bool {
    static WORDS: LazyLock<Option<AhoCorasick>> = LazyLock::new(|| {
        let words = ["prepare", "deallocate", "discard", "declare", "close"];
        AhoCorasick::builder().ascii_case_insensitive(true).build(words).ok()
    });
    let named = || WORDS.as_ref().is_none_or(|words| words.is_match(&sql.text));
    matches!(sql.verb, SqlVerb::Query | SqlVerb::Execute) && (sql.oversized || named())
}

/// What can be said of a name without knowing what the server makes of it.
enum Key<'a> {
    Exact(&'a [u8]),
    /// Longer than the server reads: it may be the name that ends here.
    Beginning(&'a [u8]),
    /// Other bytes may be the same name after conversion to the server's encoding. Such a name is never that of an `Exact`
    /// one: all encodings that a client may choose leave ASCII as it is.
    Converted,
}

fn key(name: &[u8]) -> Key<'_> {
    match name.get(..NAME_BYTES_MAX).filter(|_| name.len() > NAME_BYTES_MAX) {
        None if name.is_ascii() => Key::Exact(name),
        Some(beginning) if beginning.is_ascii() => Key::Beginning(beginning),
        _ => Key::Converted,
    }
}

/// As much of a name as the table looks at, in memory of its own: a name must not pin the message it came in.
pub(crate) fn kept(name: &[u8]) -> Bytes {
    Bytes::copy_from_slice(&name[..name.len().min(NAME_BYTES_MAX + 1)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(found: Found<u8>) -> Option<u8> {
        match found {
            Found::Known(value) | Found::Pending(value) => Some(*value),
            _ => None,
        }
    }

    #[test]
    fn the_same_batch_relies_on_what_is_pending() {
        let mut table = Table::default();
        table.change(b"s", 1, Some(Arc::new(7)));
        assert_eq!(known(table.find(b"s", 1)), Some(7));
        assert_eq!(known(table.find(b"s", 2)), Some(7), "nothing else can be meant");
    }

    #[test]
    fn a_later_batch_waits_while_two_things_can_be_meant() {
        let mut table = Table::default();
        let first = table.change(b"", 1, Some(Arc::new(1)));
        table.confirm(b"", first);
        let second = table.change(b"", 2, Some(Arc::new(2)));
        assert!(matches!(table.find(b"", 3), Found::Unsure));
        table.revoke(b"", second);
        assert_eq!(known(table.find(b"", 3)), Some(1), "the server still has the first");
        let third = table.change(b"", 4, Some(Arc::new(3)));
        table.confirm(b"", third);
        assert_eq!(known(table.find(b"", 5)), Some(3));
    }

    #[test]
    fn the_budget_comes_back() {
        let budget = Budget::default();
        let most = budget.take(KEPT_BYTES_MAX);
        assert!(most.is_some() && budget.take(1).is_none());
        drop(most);
        assert!(budget.take(1).is_some());
    }

    #[test]
    fn closed_is_unknown_and_forgotten_is_said() {
        let mut table = Table::default();
        let made = table.change(b"s", 1, Some(Arc::new(1)));
        table.confirm(b"s", made);
        let closed = table.change(b"s", 1, None);
        assert!(matches!(table.find(b"s", 1), Found::Unknown));
        table.confirm(b"s", closed);
        assert!(table.slots.is_empty());
        for n in 0..=NAMES_MAX {
            table.change(n.to_string().as_bytes(), 1, Some(Arc::new(1)));
        }
        assert_eq!(table.slots.len(), NAMES_MAX);
        assert!(matches!(table.find(b"never", 1), Found::Forgotten));
    }
}
