//! Every call of `weir.v1.Query` and `weir.v1.Admin`, and the role that it needs.

use crate::access::{Call, Role};

const fn viewer(name: &'static str) -> Call {
    Call { name, needs: Role::Viewer }
}

const fn admin(name: &'static str) -> Call {
    Call { name, needs: Role::Admin }
}

pub const WHOAMI: Call = viewer("Whoami");
pub const RUNS: Call = viewer("Runs");
pub const SESSIONS: Call = viewer("Sessions");
pub const EXCHANGES: Call = viewer("Exchanges");
pub const GAPS: Call = viewer("Gaps");
pub const PLAY: Call = viewer("Play");
pub const COVERAGE: Call = viewer("CoverageOf");
pub const NODES: Call = viewer("Nodes");
pub const PROOF: Call = viewer("Proof");
pub const NODE_PROOF: Call = viewer("NodeProof");
pub const SEARCH: Call = viewer("Search");
pub const TAIL: Call = viewer("Tail");
/// Who read what is itself told to administrators only.
pub const ACCESSES: Call = admin("Accesses");
pub const CREATE_JOIN_TOKEN: Call = admin("CreateJoinToken");
pub const CREATE_CREDENTIAL: Call = admin("CreateCredential");
pub const REVOKE_CREDENTIAL: Call = admin("RevokeCredential");
pub const REVOKE_NODE: Call = admin("RevokeNode");
