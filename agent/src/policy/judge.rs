//! The judge: every connection and every operation is decided here, over one immutable snapshot of the rules.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use tokio::sync::oneshot;
use weir_protocols::{Denial, ExchangeId, GrantKey, Operation, Permit, Verdict};

use super::snapshot::{Ruling, Snapshot, Stamp};
use super::targets::{Capture, Rules};

/// Rules that would-be refusals are counted for, by name; reloads may bring ever new names. The rest is counted together.
const COUNTED_RULES_MAX: usize = 1024;

/// Decides. The only place where permits are made.
pub(crate) struct Judge {
    key: GrantKey,
    current: RwLock<Arc<Snapshot>>,
    /// Of `current`, to be looked at without a lock.
    generation: AtomicU64,
    would_refuse: Mutex<BTreeMap<Arc<str>, u64>>,
    /// Holds every operation until the sender is used: how tests stand in for a person who takes time.
    #[cfg(test)]
    pub(crate) hold: Option<tokio::sync::mpsc::UnboundedSender<(ExchangeId, oneshot::Sender<Verdict>)>>,
}

/// An answer now, or later (a hold: a verdict that takes its time). Dropping the receiver withdraws the question.
pub(crate) enum Judgement {
    Now(Verdict),
    #[cfg_attr(not(test), expect(dead_code, reason = "made by tests now; by approvals when they come"))]
    Held(oneshot::Receiver<Verdict>),
}

/// What a connection was judged to be. What is recorded of it is fixed for the session; what may be sent on it is asked of
/// the rules that hold when it is sent.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    /// The matching target's name, or "".
    pub(crate) target: Arc<str>,
    pub(crate) capture: Capture,
    pub(crate) durable: bool,
    destination: SocketAddr,
    place: Arc<Mutex<Place>>,
}

/// Which target of which rules a connection belongs to.
#[derive(Clone, Debug)]
struct Place {
    snapshot: Arc<Snapshot>,
    target: Option<usize>,
}

impl Judge {
    /// With the rules of the start: generation 1.
    pub(crate) fn new(key: GrantKey, rules: Rules, stamp: Stamp) -> Self {
        let stamp = Stamp { generation: 1, ..stamp };
        Self {
            key,
            current: RwLock::new(Arc::new(Snapshot::new(rules, stamp))),
            generation: AtomicU64::new(1),
            would_refuse: Mutex::default(),
            #[cfg(test)]
            hold: None,
        }
    }

    #[cfg(test)]
    pub(crate) fn for_tests(rules: &str) -> Self {
        Self::new(GrantKey::for_tests(), toml::from_str(rules).unwrap(), Stamp::default())
    }

    /// The rules that hold now.
    pub(crate) fn current(&self) -> Arc<Snapshot> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts other rules in their place, whole, and gives them the next generation.
    pub(crate) fn replace(&self, rules: Rules, stamp: Stamp) -> Stamp {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let stamp = Stamp { generation: current.stamp.generation + 1, ..stamp };
        *current = Arc::new(Snapshot::new(rules, stamp.clone()));
        self.generation.store(stamp.generation, Ordering::Release);
        stamp
    }

    /// How often each rule would have refused, were it enforced.
    pub(crate) fn would_refuse(&self) -> BTreeMap<Arc<str>, u64> {
        self.would_refuse.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// May this connection be made at all? `Err` carries the standing too: a refusal is recorded with its target.
    pub(crate) fn connect(&self, destination: SocketAddr) -> Result<(Permit, Standing), (Denial, Standing)> {
        let snapshot = self.current();
        let (at, ruling) = snapshot.connection(destination);
        let target = at.map(|at| &snapshot.rules.targets[at]);
        let standing = Standing {
            target: at.map_or_else(|| Arc::from(""), |_| snapshot.rule_name(at).clone()),
            capture: target.map_or(Capture::Full, |target| target.capture),
            durable: target.is_some_and(|target| target.durable),
            destination,
            place: Arc::new(Mutex::new(Place { snapshot: snapshot.clone(), target: at })),
        };
        match self.verdict_of(ExchangeId::SESSION, ruling) {
            Verdict::Allow(permit) => Ok((permit, standing)),
            Verdict::Deny(denial) => Err((denial, standing)),
        }
    }

    /// May this operation be sent?
    pub(crate) fn decide(
        &self,
        standing: &Standing,
        exchange: ExchangeId,
        operation: &Operation,
    ) -> Judgement {
        #[cfg(test)]
        if let Some(hold) = &self.hold {
            let (answer, later) = oneshot::channel();
            if hold.send((exchange, answer)).is_ok() {
                return Judgement::Held(later);
            }
        }
        Judgement::Now(self.verdict(standing, exchange, operation))
    }

    pub(crate) fn verdict(
        &self,
        standing: &Standing,
        exchange: ExchangeId,
        operation: &Operation,
    ) -> Verdict {
        let mut place = standing.place.lock().unwrap_or_else(PoisonError::into_inner);
        if place.snapshot.stamp.generation != self.generation.load(Ordering::Acquire) {
            let snapshot = self.current();
            *place = Place { target: snapshot.rules.target_of(standing.destination), snapshot };
        }
        let ruling = place.snapshot.operation(place.target, operation);
        drop(place);
        self.verdict_of(exchange, ruling)
    }

    fn verdict_of(&self, exchange: ExchangeId, ruling: Ruling) -> Verdict {
        let Ruling { rule, denied, would_deny } = ruling;
        match (denied, would_deny) {
            (Some(reason), _) => Verdict::Deny(Denial { rule, reason }),
            (None, Some(denial)) => {
                self.count(&denial.rule);
                Verdict::Allow(self.key.permit_observed(exchange, denial))
            }
            (None, None) => Verdict::Allow(self.key.permit(exchange, rule)),
        }
    }

    fn count(&self, rule: &Arc<str>) {
        let mut counts = self.would_refuse.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = counts.len() >= COUNTED_RULES_MAX;
        if let Some(count) = counts.get_mut(rule) {
            *count += 1;
        } else {
            *counts.entry(if is_full { Arc::from("(more)") } else { rule.clone() }).or_default() += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_protocols::operation::Opacity;

    const OPAQUE: Operation = Operation::Opaque { reason: Opacity::Tls };

    fn rules(text: &str) -> Rules {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn an_allowlist_denies_the_rest_by_name() {
        let judge = Judge::for_tests("default = 'deny'\n[[target]]\nname = 'db'\naddresses = ['10.1.1.1']");
        let (permit, standing) = judge.connect("10.1.1.1:5432".parse().unwrap()).unwrap();
        assert_eq!(&**permit.rule(), "db");
        assert_eq!(&*standing.target, "db");
        let Err((denial, _)) = judge.connect("10.1.1.2:5432".parse().unwrap()) else {
            panic!("it is allowed")
        };
        assert_eq!(&*denial.rule, "default");
    }

    #[test]
    fn other_rules_hold_at_once_also_for_what_is_open() {
        let judge = Judge::for_tests("");
        let (_, standing) = judge.connect("10.1.1.1:5432".parse().unwrap()).unwrap();
        let verdict = || judge.verdict(&standing, ExchangeId(1), &OPAQUE);
        assert!(matches!(verdict(), Verdict::Allow(_)));
        for (text, rule) in [
            ("[[target]]\nname = 'db'\naccess = 'guarded'", "db"),
            ("[[target]]\nname = 'off'\naccess = 'deny'\nreason = 'closed'", "off"),
            ("default = 'deny'", "default"),
        ] {
            judge.replace(rules(text), Stamp::default());
            let Verdict::Deny(denial) = verdict() else { panic!("{text} allows") };
            assert_eq!(&*denial.rule, rule);
        }
        assert_eq!(judge.replace(rules(""), Stamp::default()).generation, 5);
        assert!(matches!(verdict(), Verdict::Allow(_)));
    }

    #[test]
    fn what_would_be_refused_is_counted_by_rule() {
        let judge = Judge::for_tests("mode = 'observe'\n[[target]]\nname = 'db'\naccess = 'guarded'");
        let (_, standing) = judge.connect("10.1.1.1:5432".parse().unwrap()).unwrap();
        for _ in 0..2 {
            let Verdict::Allow(permit) = judge.verdict(&standing, ExchangeId(1), &OPAQUE) else {
                panic!("observe refuses nothing")
            };
            assert!(permit.would_deny().is_some_and(|reason| reason.contains("guarded")));
        }
        assert_eq!(judge.would_refuse().into_iter().collect::<Vec<_>>(), [("db".into(), 2)]);
    }
}
