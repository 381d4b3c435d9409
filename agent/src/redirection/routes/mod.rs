//! The kernel programs' copy of the routes of a network namespace.
//!
//! A redirected connect() always has a route: to the loopback. An application that tries addresses in turn (happy eyeballs)
//! relies on being told at once that one has none, so the hook asks this copy and answers as the kernel would have.
//! It errs towards reachable: then the connection goes to the proxy, fails there and is recorded.
//!
//! Each network namespace has routes of its own in it, by its cookie: those whose listeners are served. Where none are served
//! every connect() is refused anyway.
//!
//! * [`message`]: the kernel's routing messages
//! * [`table`]: what they come to, as prefixes and errnos
//! * [`watch`]: reads them, now and whenever they change

mod message;
mod table;
mod watch;

#[cfg(test)]
#[cfg(feature = "kernel-tests")]
pub(super) use watch::of_netns;
pub(super) use watch::{RouteWatch, forget};
