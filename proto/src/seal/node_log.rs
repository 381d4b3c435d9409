//! The node log: entries of one node agent, each signed, each naming the hash of the one before.

use std::time::Duration;

use bytes::Bytes;
use ed25519_dalek::{SigningKey, VerifyingKey};
use prost::Message;

use super::{FORMAT_VERSION, Hash, NO_HASH, hash, sign, signature_holds};
use crate::ids::NodeId;
use crate::v1::{NodeEntry, SignedNodeEntry};

/// No encoded entry is longer; the agent splits what it has to say.
pub const NODE_ENTRY_BYTES_MAX: usize = 256 * 1024;

/// While it lives, an agent says so in its log at least this often, whether the collector can be reached or not.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);

const DOMAIN: &[u8] = b"weir node v1";

/// Where a node's log stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeChain {
    pub node: NodeId,
    /// The index of the next entry; also how many are there.
    pub next_index: u64,
    /// Hash of the last entry, zeros when there is none.
    pub head: Hash,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NodeLogError {
    #[error("a node log entry of {0} bytes, at most {NODE_ENTRY_BYTES_MAX} are allowed")]
    TooLong(usize),
    #[error("a node log entry does not decode: {0}")]
    Decode(#[from] prost::DecodeError),
    #[error("node log entry format {0} is not known here")]
    Format(u32),
    #[error("node log entry {index} is of another node")]
    Foreign { index: u64 },
    #[error("node log entry {got} out of order, {wanted} is next")]
    Index { wanted: u64, got: u64 },
    #[error("node log entry {index} does not follow the entry before it: its predecessor's hash differs")]
    Broken { index: u64 },
    #[error("node log entry {index} is not signed by this node's key")]
    Signature { index: u64 },
}

impl NodeChain {
    /// A log without entries yet.
    pub fn start(node: NodeId) -> Self {
        Self { node, next_index: 0, head: NO_HASH }
    }

    /// Numbers, chains and signs one more entry.
    pub fn append(&mut self, mut entry: NodeEntry, key: &SigningKey) -> SignedNodeEntry {
        entry.format = u32::from(FORMAT_VERSION);
        entry.node_id = self.node.to_field();
        entry.index = self.next_index;
        entry.prev_hash = Bytes::copy_from_slice(&self.head);
        let bytes = Bytes::from(entry.encode_to_vec());
        let hash = entry_hash(&self.head, &bytes);
        self.next_index += 1;
        self.head = hash;
        SignedNodeEntry { entry: bytes, signature: Bytes::copy_from_slice(&sign(key, DOMAIN, &hash)) }
    }

    /// Takes the next entry, or says why it is not; the entry may come from anybody.
    pub fn accept(
        &mut self,
        signed: &SignedNodeEntry,
        key: &VerifyingKey,
    ) -> Result<NodeEntry, NodeLogError> {
        if signed.entry.len() > NODE_ENTRY_BYTES_MAX {
            return Err(NodeLogError::TooLong(signed.entry.len()));
        }
        let entry = NodeEntry::decode(signed.entry.clone())?;
        let index = entry.index;
        if entry.format != u32::from(FORMAT_VERSION) {
            return Err(NodeLogError::Format(entry.format));
        }
        if entry.node_id[..] != self.node.as_bytes()[..] {
            return Err(NodeLogError::Foreign { index });
        }
        if index != self.next_index {
            return Err(NodeLogError::Index { wanted: self.next_index, got: index });
        }
        if entry.prev_hash[..] != self.head[..] {
            return Err(NodeLogError::Broken { index });
        }
        let hash = entry_hash(&self.head, &signed.entry);
        if !signature_holds(key, DOMAIN, &hash, &signed.signature) {
            return Err(NodeLogError::Signature { index });
        }
        self.next_index = index.saturating_add(1);
        self.head = hash;
        Ok(entry)
    }
}

fn entry_hash(prev: &Hash, entry: &[u8]) -> Hash {
    hash(&[DOMAIN, prev, entry])
}

/// For the fuzzers.
pub fn fuzz_node_entry(data: &[u8]) {
    let key = SigningKey::from_bytes(&[7; 32]).verifying_key();
    if let Ok(signed) = SignedNodeEntry::decode(data) {
        let accepted = NodeChain::start(NodeId::from_bytes([1; 16])).accept(&signed, &key);
        assert!(accepted.is_err(), "random bytes are signed by nobody");
    }
}
