//! A bypass lets connections through for a time, and the kernel ends it.

use std::time::Duration;

use weir_agent_ebpf::{BYPASS_NS_MAX, Counter};

use super::super::attachment::boot_ns;
use super::ground::{Ground, value};
use super::{GateState, Server};

const SECOND_NS: u64 = 1_000_000_000;

#[test]
fn while_it_is_under_way_connections_reach_their_destination_directly() {
    let ground = Ground::new();
    let agent = ground.agent();
    let server = Server::start();
    let ask = ["connect", "127.0.0.1", &server.port()];
    let gate = || {
        let gates = agent.redirection.gates();
        gates.into_iter().find(|gate| gate.name == "no-bypass").map(|gate| gate.state)
    };
    assert!(value(&ground.ask(&ask), "origin").ends_with(&server.port()));
    assert_eq!(gate(), Some(GateState::Holds));

    agent.redirection.bypass(boot_ns().unwrap() + 60 * SECOND_NS).unwrap();
    let line = ground.ask(&ask);
    assert!(line.ends_with("direct"), "{line}");
    assert!(matches!(gate(), Some(GateState::Weakened(_))));
    assert_eq!(agent.redirection.counters().unwrap().of(Counter::PassedBypass), 1);

    agent.redirection.bypass(0).unwrap();
    assert!(value(&ground.ask(&ask), "origin").ends_with(&server.port()), "redirected again at once");
    assert_eq!(gate(), Some(GateState::Holds));
    // What nobody could have meant opens nothing.
    agent.redirection.bypass(boot_ns().unwrap() + BYPASS_NS_MAX + 60 * SECOND_NS).unwrap();
    assert!(value(&ground.ask(&ask), "origin").ends_with(&server.port()));
    assert_eq!(agent.redirection.counters().unwrap().of(Counter::PassedBypass), 1);
}

#[test]
fn it_ends_by_itself_also_when_the_agent_was_killed_meanwhile() {
    let ground = Ground::new();
    let agent = ground.agent();
    let server = Server::start();
    let ask = ["connect", "127.0.0.1", &server.port()];
    let until = boot_ns().unwrap() + 4 * SECOND_NS;
    agent.redirection.bypass(until).unwrap();
    agent.die();
    let line = ground.ask(&ask);
    assert!(line.ends_with("direct"), "the host goes on without an agent: {line}");
    while boot_ns().unwrap() <= until {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(ground.ask(&ask), "error=ECONNREFUSED", "nobody had to end it");
    let agent = ground.agent();
    assert_eq!(agent.redirection.bypass_until().unwrap(), until, "the next agent finds it");
    assert_eq!(agent.redirection.counters().unwrap().of(Counter::PassedBypass), 1, "and what it let through");
    assert!(value(&ground.ask(&ask), "origin").ends_with(&server.port()));
}
