//! The keys seen first. A node's signing key never changes in its life, a collector's receipt key neither: one that is
//! another one today was replaced by somebody. And how far each node's log went: it only ever grows.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use weir_proto::NodeId;

/// Of one collector. Kept by `weir` in its configuration folder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pins {
    /// Hex.
    pub receipt_key: Option<String>,
    /// Node id to signing key, hex.
    pub nodes: BTreeMap<String, String>,
    /// Node id to its log, as far as it was checked and held.
    #[serde(default)]
    pub logs: BTreeMap<String, PinnedLog>,
}

/// How far a node's log went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinnedLog {
    pub entries: u64,
    /// Hash of the last of them, hex.
    pub head: String,
}

/// How a key compares with the one seen first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pinned {
    New,
    Same,
    Changed,
}

impl Pins {
    pub fn receipt_key(&mut self, key: &[u8]) -> Pinned {
        let key = hex::encode(key);
        match &self.receipt_key {
            None => {
                self.receipt_key = Some(key);
                Pinned::New
            }
            Some(first) if *first == key => Pinned::Same,
            Some(_) => Pinned::Changed,
        }
    }

    pub fn node(&mut self, node: &NodeId, key: &[u8]) -> Pinned {
        let key = hex::encode(key);
        match self.nodes.get(&node.to_string()) {
            None => {
                self.nodes.insert(node.to_string(), key);
                Pinned::New
            }
            Some(first) if *first == key => Pinned::Same,
            Some(_) => Pinned::Changed,
        }
    }
}
