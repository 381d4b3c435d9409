//! Which protocol a connection speaks, from its first bytes.

use crate::kind::Kind;

/// What a rule says about the first bytes of a side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recognition {
    Match(Kind),
    /// These bytes cannot be the beginning of what the rule knows.
    No,
    /// They may be; more are needed to tell.
    NeedMore,
}
