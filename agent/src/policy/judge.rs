//! The judge: every connection and every operation is decided here, over one immutable snapshot of the rules.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::oneshot;
use weir_protocols::{Denial, ExchangeId, GrantKey, Operation, Permit, Verdict};

use super::targets::{Access, Capture, Fallback, Rules, Target};

/// Decides. The only place where permits are made.
pub(crate) struct Judge {
    key: GrantKey,
    rules: Arc<Rules>,
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

/// What a connection was judged to be: fixed for the session.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    /// The matching target's name, or "".
    pub(crate) target: Arc<str>,
    pub(crate) guarded: bool,
    pub(crate) capture: Capture,
    pub(crate) durable: bool,
    /// The rule that allowed the connection.
    pub(crate) rule: Arc<str>,
}

impl Judge {
    pub(crate) fn new(key: GrantKey, rules: Arc<Rules>) -> Self {
        Self {
            key,
            rules,
            #[cfg(test)]
            hold: None,
        }
    }

    /// May this connection be made at all? `Err` carries the standing too: a refusal is recorded with its target.
    pub(crate) fn connect(&self, destination: SocketAddr) -> Result<(Permit, Standing), (Denial, Standing)> {
        let target = self.rules.target_of(destination);
        let standing = Standing {
            target: target.map_or_else(|| Arc::from(""), |target| Arc::from(&*target.name)),
            guarded: target.is_some_and(|target| target.access == Access::Guarded),
            capture: target.map_or(Capture::Full, |target| target.capture),
            durable: target.is_some_and(|target| target.durable),
            rule: target.map_or_else(|| Arc::from("default"), |target| Arc::from(&*target.name)),
        };
        let denied = match target {
            Some(target) => target.access == Access::Deny,
            None => self.rules.default == Fallback::Deny,
        };
        if denied {
            return Err((Denial { rule: standing.rule.clone(), reason: reason_of(target) }, standing));
        }
        Ok((self.key.permit(ExchangeId::SESSION, standing.rule.clone()), standing))
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
        let unreadable = match operation {
            Operation::Opaque { reason } => Some(reason.word()),
            Operation::Sql(sql) if sql.oversized => Some("oversized"),
            Operation::Connect { .. } | Operation::Sql(_) | Operation::Http(_) => None,
        };
        match unreadable {
            Some(what) if standing.guarded => Verdict::Deny(Denial {
                rule: standing.rule.clone(),
                reason: Arc::from(format!("this target is guarded and its traffic cannot be read ({what})")),
            }),
            _ => Verdict::Allow(self.key.permit(exchange, standing.rule.clone())),
        }
    }
}

fn reason_of(target: Option<&Target>) -> Arc<str> {
    Arc::from(match target {
        Some(target) => target.reason.as_deref().unwrap_or("this target is denied"),
        None => "no target allows this destination",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_protocols::operation::Opacity;

    fn judge(text: &str) -> Judge {
        Judge::new(GrantKey::for_tests(), Arc::new(toml::from_str(text).unwrap()))
    }

    #[test]
    fn an_allowlist_denies_the_rest_by_name() {
        let judge = judge("default = 'deny'\n[[target]]\nname = 'db'\naddresses = ['10.1.1.1']");
        let (permit, standing) = judge.connect("10.1.1.1:5432".parse().unwrap()).unwrap();
        assert_eq!(&**permit.rule(), "db");
        assert_eq!(&*standing.target, "db");
        let (denial, _) = judge.connect("10.1.1.2:5432".parse().unwrap()).unwrap_err();
        assert_eq!(&*denial.rule, "default");
    }

    #[test]
    fn guarded_refuses_what_cannot_be_read() {
        let judge = judge("[[target]]\nname = 'db'\naccess = 'guarded'");
        let (_, standing) = judge.connect("10.1.1.1:5432".parse().unwrap()).unwrap();
        let opaque = Operation::Opaque { reason: Opacity::Tls };
        assert!(matches!(judge.verdict(&standing, ExchangeId(1), &opaque), Verdict::Deny(_)));
        let open = Standing { guarded: false, ..standing };
        assert!(matches!(judge.verdict(&open, ExchangeId(1), &opaque), Verdict::Allow(_)));
    }
}
