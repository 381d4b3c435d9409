//! The properties that every conversation has, as one suite. A protocol brings a [`Subject`], writes
//! `suite::properties!(SUBJECT);` among its tests, and passes unchanged:
//!
//! * how bytes are cut into reads never changes what is forwarded or recorded
//! * a judge that allows all is transparent byte for byte, also when its verdicts come late and out of order
//! * what is denied never leaves; the client's replies are the same, in the same order, whenever verdicts come
//! * whatever happens, each `Asked` has exactly one `Finished`, and nothing panics
//! * the client's bytes held are bounded; work is linear in the input
//! * planted secrets appear in no note
//!
//! [`driver`] is the one legal loop of [`crate::seam`] with a judge and a server at its ends; [`fuzz`] is the entry for
//! arbitrary bytes.

mod driver;
mod fuzz;
mod judge;
mod outcome;

pub use driver::{Chunks, Driver, Server, Step, captured};
pub use fuzz::fuzz;
pub use judge::{Judge, Pace};
pub use outcome::Outcome;

use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::kind::Start;
use crate::mask::MaskPlan;
use crate::operation::Operation;
use crate::seam::{Conversation, ExchangeId, Side};

/// A protocol, as the suite sees it.
#[derive(Clone, Copy)]
pub struct Subject {
    pub name: &'static str,
    pub start: fn(Start) -> Box<dyn Conversation>,
    /// Both directions of whole sessions, in order, as they were on a wire.
    pub captures: fn() -> Vec<Vec<Step>>,
    /// What clients send, piece by piece, to a server of [`Subject::server`].
    pub plays: fn() -> Vec<Vec<Bytes>>,
    /// A small server: answers what reaches it.
    pub server: fn() -> Box<dyn Server>,
    /// What the denying judge denies.
    pub denied: fn(&Operation) -> bool,
    /// In every request that is denied, and nowhere else.
    pub forbidden: &'static [u8],
    /// In captures and plays, and never in a note.
    pub secrets: &'static [&'static [u8]],
    /// What of the client's bytes the conversation may hold, bytes.
    pub held_bytes_max: usize,
    /// A capture that grows with its argument.
    pub bulk: fn(usize) -> Vec<Step>,
}

impl std::fmt::Debug for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subject").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Subject {
    fn begin(&self) -> Box<dyn Conversation> {
        (self.start)(Start { first_exchange: ExchangeId::FIRST, plan: MaskPlan::standard() })
    }

    fn driver(&self, judge: Judge, chunks: Chunks) -> Driver {
        Driver::new(self.begin(), judge, chunks)
    }

    fn replay(&self, steps: &[Step], chunks: Chunks) -> Outcome {
        self.driver(Judge::allowing(), chunks).replay(steps)
    }

    fn play(&self, client: &[Bytes], judge: Judge, chunks: Chunks) -> Outcome {
        self.driver(judge, chunks).play(client, (self.server)())
    }
}

/// Cases of each random property and session.
const CASES: u32 = 24;
/// A session longer than this is tried in fewer cases and in larger reads, bytes.
const LONG_BYTES: usize = 64 * 1024;

/// One test per property, for a subject.
#[macro_export]
macro_rules! suite_properties {
    ($subject:expr) => {
        $crate::suite_properties!(
            $subject;
            chunking_never_changes_the_outcome
            allowing_is_transparent
            slow_verdicts_change_nothing
            denied_bytes_never_leave
            every_exchange_finishes_once
            no_bytes_panic
            work_is_linear
            secrets_stay_out
        );
    };
    ($subject:expr; $($property:ident)*) => {
        $(
            #[test]
            fn $property() {
                $crate::suite::$property($subject);
            }
        )*
    };
}
pub use suite_properties as properties;

fn forall<S: Strategy>(cases: u32, strategy: S, property: impl Fn(S::Value)) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&strategy, |value| {
        property(value);
        Ok(())
    });
    assert!(outcome.is_ok(), "{}", outcome.err().map(|error| error.to_string()).unwrap_or_default());
}

fn chunkings(bytes: usize) -> impl Strategy<Value = Chunks> {
    let least = 1 + bytes / 1000;
    prop_oneof![
        (least..least * 7).prop_map(Chunks::of),
        prop::collection::vec(least..least * 600, 1..20).prop_map(Chunks::cycle),
    ]
}

fn cases(bytes: usize) -> u32 {
    if bytes > LONG_BYTES { 3 } else { CASES }
}

pub fn chunking_never_changes_the_outcome(subject: Subject) {
    for steps in (subject.captures)() {
        let whole = subject.replay(&steps, Chunks::whole());
        assert_eq!(subject.replay(&steps, Chunks::of(1)), whole, "{}: byte by byte", subject.name);
        let bytes = whole.upstream.len() + whole.client.len();
        forall(cases(bytes), chunkings(bytes), |chunks| {
            assert_eq!(subject.replay(&steps, chunks), whole, "{}", subject.name);
        });
    }
}

pub fn allowing_is_transparent(subject: Subject) {
    for steps in (subject.captures)() {
        let outcome = subject.replay(&steps, Chunks::whole());
        assert_eq!(
            escape(&outcome.upstream),
            escape(&sent(&steps, Side::Client)),
            "{}: to the server",
            subject.name
        );
        assert_eq!(
            escape(&outcome.client),
            escape(&sent(&steps, Side::Upstream)),
            "{}: to the client",
            subject.name
        );
    }
    for client in (subject.plays)() {
        let outcome = subject.play(&client, Judge::allowing(), Chunks::whole());
        assert_eq!(escape(&outcome.upstream), escape(&client.concat()), "{}: to the server", subject.name);
        assert_eq!(escape(&outcome.client), escape(&outcome.server_said), "{}: to the client", subject.name);
    }
}

pub fn slow_verdicts_change_nothing(subject: Subject) {
    for client in (subject.plays)() {
        let at_once = subject.play(&client, Judge::allowing(), Chunks::whole());
        let bytes = at_once.upstream.len();
        forall(cases(bytes), (chunkings(bytes), any::<u64>()), |(chunks, seed)| {
            let most = chunks.largest().saturating_add(subject.held_bytes_max);
            let late = subject.play(&client, Judge::allowing().paced(Pace::Late { seed }), chunks);
            assert_eq!(escape(&late.upstream), escape(&at_once.upstream), "{}", subject.name);
            assert_eq!(escape(&late.client), escape(&at_once.client), "{}", subject.name);
            assert!(late.held_max <= most, "{}: {} bytes held", subject.name, late.held_max);
            late.assert_finished_once();
        });
    }
}

pub fn denied_bytes_never_leave(subject: Subject) {
    let mut denials = 0;
    for client in (subject.plays)() {
        let judge = || Judge::denying(subject.denied);
        let at_once = subject.play(&client, judge(), Chunks::whole());
        denials += at_once.denials;
        let outcome_is_right = |outcome: &Outcome| {
            assert!(!contains(&outcome.upstream, subject.forbidden), "{}: denied bytes left", subject.name);
            assert_eq!(escape(&outcome.client), escape(&at_once.client), "{}: replies differ", subject.name);
            outcome.assert_finished_once();
        };
        outcome_is_right(&at_once);
        let bytes = client.iter().map(Bytes::len).sum();
        forall(cases(bytes), (chunkings(bytes), any::<u64>()), |(chunks, seed)| {
            outcome_is_right(&subject.play(&client, judge(), chunks.clone()));
            outcome_is_right(&subject.play(&client, judge().paced(Pace::Late { seed }), chunks));
        });
    }
    assert!(denials > 0, "{}: no play has anything to deny", subject.name);
}

/// However a session is cut off.
pub fn every_exchange_finishes_once(subject: Subject) {
    let endings = prop_oneof![
        Just(vec![Step::Reset(Side::Client)]),
        Just(vec![Step::Reset(Side::Upstream)]),
        Just(vec![Step::End(Side::Upstream), Step::End(Side::Client)]),
        Just(vec![Step::End(Side::Client), Step::End(Side::Upstream)]),
    ];
    let plays: Vec<Bytes> = (subject.plays)().iter().map(|client| Bytes::from(client.concat())).collect();
    let cut = (0..plays.len(), 0.0f64..1.0, endings, any::<u64>());
    forall(CASES, cut, |(which, share, ending, seed)| {
        let client = &plays[which];
        let cut = (client.len() as f64 * share) as usize;
        let chunks = Chunks::of(97 + client.len() / 1000);
        let client = [client.slice(..cut)];
        for pace in [Pace::AtOnce, Pace::Late { seed }, Pace::Never] {
            let mut driver = subject.driver(Judge::denying(subject.denied).paced(pace), chunks.clone());
            driver.serve(&client, (subject.server)());
            driver.steps(&ending);
            driver.outcome().assert_finished_once();
        }
    });
}

pub fn no_bytes_panic(subject: Subject) {
    forall(CASES * 4, prop::collection::vec(any::<u8>(), 0..400), |bytes| fuzz(subject.start, &bytes));
    let captures = (subject.captures)();
    let change = (any::<prop::sample::Index>(), any::<u8>());
    let changes = (0..captures.len(), prop::collection::vec(change, 1..6), chunkings(1));
    forall(CASES * 4, changes, |(which, changes, chunks)| {
        let mut steps = captures[which].clone();
        for (at, byte) in changes {
            let at = at.index(steps.len());
            if let Step::Data(_, bytes) = &mut steps[at] {
                let mut changed = bytes.to_vec();
                let place = byte as usize % changed.len().max(1);
                if let Some(old) = changed.get_mut(place) {
                    *old ^= byte | 1;
                }
                *bytes = Bytes::from(changed);
            }
        }
        steps.extend([Step::End(Side::Client), Step::End(Side::Upstream)]);
        subject.replay(&steps, chunks).assert_finished_once();
    });
}

/// Twice the input is twice the work, in the worst cutting.
pub fn work_is_linear(subject: Subject) {
    let work = |size: usize| {
        let steps = (subject.bulk)(size);
        crate::reader::work::taken();
        let outcome = subject.replay(&steps, Chunks::of(1));
        crate::reader::work::taken() + outcome.effects
    };
    let (once, twice) = (work(50), work(100));
    assert!(twice <= once * 2 + once / 4, "{}: {once} for a half, {twice} for the whole", subject.name);
}

pub fn secrets_stay_out(subject: Subject) {
    for steps in (subject.captures)() {
        for chunks in [Chunks::whole(), Chunks::of(1), Chunks::of(7)] {
            assert_clean(subject, &subject.replay(&steps, chunks));
        }
    }
    for client in (subject.plays)() {
        assert_clean(subject, &subject.play(&client, Judge::denying(subject.denied), Chunks::whole()));
        assert_clean(subject, &subject.play(&client, Judge::allowing(), Chunks::of(997)));
    }
}

fn assert_clean(subject: Subject, outcome: &Outcome) {
    for secret in subject.secrets {
        let found = outcome.recorded().any(|text| contains(text, secret));
        assert!(!found, "{}: {} is in the record", subject.name, escape(secret));
    }
}

/// All that a side sent in a capture.
fn sent(steps: &[Step], side: Side) -> Vec<u8> {
    let mut all = Vec::new();
    for step in steps {
        if let Step::Data(from, bytes) = step
            && *from == side
        {
            all.extend_from_slice(bytes);
        }
    }
    all
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    memchr::memmem::find(haystack, needle).is_some()
}

fn escape(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}
