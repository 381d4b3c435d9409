//! What a service manager is told (sd_notify(3)): ready, how it goes, alive, stopping. Without one, nothing happens.

use std::time::Duration;

use sd_notify::NotifyState;

/// Part of the watchdog's time after which it hears from us: one late turn does not get us killed.
const WATCHDOG_PART: u32 = 3;

/// Governed connections flow.
pub(crate) fn ready(scope: &std::path::Path) {
    tell(&[NotifyState::Ready, NotifyState::Status(&format!("redirecting below {}", scope.display()))]);
}

/// No new connection is taken; what is open may end.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("draining")]);
}

/// Tells a watchdog, where there is one, that the runtime turns, as long as `alive` says so. Never returns.
pub(crate) async fn watched(alive: impl Fn() -> bool) {
    let Some(timeout) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    let mut interval = tokio::time::interval((timeout / WATCHDOG_PART).max(Duration::from_millis(1)));
    loop {
        interval.tick().await;
        if alive() {
            tell(&[NotifyState::Watchdog]);
        }
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}
