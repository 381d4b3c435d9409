//! How this node agent stands, for its log: the kernel it runs on, which gates hold, which configuration it runs by.

use weir_proto::v1::{AgentState, ConfigState, GateState as StateField, gate_state::State};

use crate::node::Node;
use crate::redirection::{Gate, GateState};

/// A reason is a sentence or two; the log keeps so much of it.
const DETAIL_BYTES_MAX: usize = 512;

pub(crate) fn of(node: &Node) -> AgentState {
    let kernel = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
    let stamp = node.judge.current().stamp.clone();
    AgentState {
        kernel_release: kernel.unwrap_or_default(),
        gates: node.redirection.gates().iter().map(field).collect(),
        config: Some(ConfigState {
            sha256: stamp.config_sha256.map(|digest| digest.to_vec()).unwrap_or_default().into(),
            generation: stamp.generation,
            loaded_unix_ns: stamp.loaded_unix_ns,
        }),
        ..AgentState::default()
    }
}

fn field(gate: &Gate) -> StateField {
    let (state, detail) = match &gate.state {
        GateState::Holds => (State::Holds, ""),
        GateState::NotOnThisKernel(why) => (State::NotOnThisKernel, why.as_str()),
        GateState::Weakened(by) => (State::Weakened, by.as_str()),
    };
    let detail = detail[..detail.floor_char_boundary(DETAIL_BYTES_MAX)].to_owned();
    StateField { name: gate.name.to_owned(), state: state.into(), detail }
}
