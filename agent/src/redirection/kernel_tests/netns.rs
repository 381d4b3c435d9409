//! Network namespaces: what is reachable in each, and how a connect() fails where it is not. All in namespaces of the tests' own.

use weir_agent_ebpf::Counter;

use super::super::{Redirection, netns_cookie};
use super::GateState;
use super::ground::{Agent, Ground, listen, value};

/// Runs it in a network namespace of its own, with the loopback up. What it starts is in there too.
pub(crate) fn alone(test: impl FnOnce() + Send + 'static) {
    let inside = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        ip(&["link", "set", "lo", "up"]);
        test();
    };
    std::thread::spawn(inside).join().unwrap();
}

pub(super) fn ip(arguments: &[&str]) {
    let status = std::process::Command::new("ip").args(arguments).status().unwrap();
    assert!(status.success(), "ip {}", arguments.join(" "));
}

/// An interface with addresses. It leads nowhere: nobody is at the other end of it.
pub(crate) fn interface(name: &str, addresses: &[&str]) {
    let peer = format!("{name}-peer");
    ip(&["link", "add", name, "type", "veth", "peer", "name", &peer]);
    ip(&["link", "set", &peer, "up"]);
    for address in addresses {
        let family = if address.contains(':') { "-6" } else { "-4" };
        let no_check = address.contains(':').then_some("nodad");
        let add = [family, "addr", "add", address, "dev", name];
        ip(&add.into_iter().chain(no_check).collect::<Vec<_>>());
    }
    ip(&["link", "set", name, "up"]);
}

/// For what user space learns from the kernel and tells the programs. Bounded in attempts.
fn eventually(holds: impl Fn() -> bool) {
    for _ in 0..40 {
        if holds() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("it never came to hold");
}

#[test]
fn without_a_route_connect_fails_as_it_would_directly() {
    alone(|| {
        let ground = Ground::new();
        let agent = ground.agent();
        let asked = ["198.18.0.1", "2001:db8::1", "::ffff:198.18.0.1"];
        let answers = || asked.map(|host| ground.ask(&["connect", host, "80"]));
        assert_eq!(answers(), ["error=ENETUNREACH"; 3], "only the loopback is up");
        ip(&["route", "add", "198.18.0.0/15", "dev", "lo"]);
        ip(&["-6", "route", "add", "2001:db8::/32", "dev", "lo"]);
        eventually(|| answers().iter().all(|line| line.contains("origin=")));
        // A socket bound to a device needs no route.
        let line = ground.ask(&["device", "192.0.2.1", "80", "lo"]);
        assert_eq!(value(&line, "origin"), "192.0.2.1:80");
        ip(&["route", "replace", "unreachable", "198.18.0.1/32"]);
        ip(&["-6", "route", "add", "prohibit", "2001:db8::1/128"]);
        eventually(|| answers() == ["error=EHOSTUNREACH", "error=EACCES", "error=EHOSTUNREACH"]);
        // Routes go with their interface, for IPv4 without a word.
        ip(&["route", "del", "unreachable", "198.18.0.1/32"]);
        ip(&["link", "set", "lo", "down"]);
        ip(&["link", "set", "lo", "up"]);
        eventually(|| answers()[0] == "error=ENETUNREACH");
        assert!(agent.redirection.counters().unwrap().of(Counter::RefusedNoRoute) >= 7);
        let gates = agent.redirection.gates();
        assert!(gates.iter().any(|gate| gate.name == "no-route" && gate.state == GateState::Holds));
    });
}

/// Everything that ip(8) can say about where a connection may go, asked outside the scope and inside it.
#[test]
fn rules_tables_and_metrics_are_followed_as_the_kernel_follows_them() {
    alone(|| {
        interface("d0", &["10.9.0.1/24", "2001:db8:9::1/64"]);
        for family in ["-4", "-6"] {
            let net = |v4: &'static str, v6: &'static str| if family == "-4" { v4 } else { v6 };
            let route = |arguments: &[&str]| ip(&[&[family, "route", "add"], arguments].concat());
            let rule = |arguments: &[&str]| ip(&[&[family, "rule", "add"], arguments].concat());
            route(&["default", "dev", "d0", "metric", "50"]);
            // A lower metric is taken, also if it leads nowhere.
            route(&["unreachable", net("10.1.0.0/16", "2001:db8:1::/48"), "metric", "1"]);
            route(&[net("10.1.0.0/16", "2001:db8:1::/48"), "dev", "d0", "metric", "2"]);
            route(&[net("10.2.0.0/16", "2001:db8:2::/48"), "dev", "d0", "metric", "1"]);
            route(&["unreachable", net("10.2.0.0/16", "2001:db8:2::/48"), "metric", "2"]);
            route(&["blackhole", net("10.3.0.0/16", "2001:db8:3::/48")]);
            route(&["prohibit", net("10.4.0.0/16", "2001:db8:4::/48")]);
            // A table of one's own, asked first; what it throws the next one answers.
            rule(&["pref", "100", "lookup", "100"]);
            route(&["prohibit", net("10.5.0.0/16", "2001:db8:5::/48"), "table", "100"]);
            route(&["throw", net("10.5.1.0/24", "2001:db8:5:1::/64"), "table", "100"]);
            route(&[net("10.5.2.0/24", "2001:db8:5:2::/64"), "dev", "d0", "table", "100"]);
            rule(&["pref", "101", "to", net("10.6.0.0/16", "2001:db8:6::/48"), "unreachable"]);
            rule(&["pref", "102", "to", net("10.7.0.0/16", "2001:db8:7::/48"), "prohibit"]);
            rule(&["pref", "103", "to", net("10.8.0.0/16", "2001:db8:8::/48"), "blackhole"]);
            // Of what is forwarded, not of what is made here.
            rule(&["pref", "104", "iif", "d0", "prohibit"]);
            // Of no connection without a mark, but nobody can know that.
            rule(&["pref", "105", "fwmark", "7", "prohibit"]);
        }
        let ground = Ground::new();
        let agent = ground.agent();
        let failing = [
            ("10.1.0.1", "2001:db8:1::1", "EHOSTUNREACH"),
            ("10.3.0.1", "2001:db8:3::1", "EINVAL"),
            ("10.4.0.1", "2001:db8:4::1", "EACCES"),
            ("10.5.0.1", "2001:db8:5::1", "EACCES"),
            ("10.6.0.1", "2001:db8:6::1", "ENETUNREACH"),
            ("10.7.0.1", "2001:db8:7::1", "EACCES"),
            ("10.8.0.1", "2001:db8:8::1", "EINVAL"),
            ("224.0.0.5", "ff02::5", "ENETUNREACH"),
            ("255.255.255.255", "ff0e::1", "ENETUNREACH"),
            ("10.9.0.255", "ff01::1", "ENETUNREACH"),
        ];
        let hosts: Vec<&str> = failing.iter().flat_map(|(v4, v6, _)| [*v4, *v6]).collect();
        let ask = [&["each", "80"], &hosts[..]].concat();
        let directly = ground.client(&ground.outside, &ask).go();
        let errors: Vec<String> = failing
            .iter()
            .flat_map(|(_, _, errno)| [format!("error={errno}"), format!("error={errno}")])
            .collect();
        assert_eq!(directly, errors.join("\n"), "{hosts:?} directly");
        assert_eq!(ground.ask(&ask), directly, "{hosts:?}");
        let reached = ["10.2.0.1", "10.5.1.1", "10.5.2.1", "10.0.0.1"];
        let reached = reached.iter().chain(&["2001:db8:2::1", "2001:db8:5:1::1", "2001:db8:5:2::1"]);
        let reached: Vec<&str> = reached.copied().collect();
        let answers = ground.ask(&[&["each", "80"], &reached[..]].concat());
        for (host, line) in reached.iter().zip(answers.lines()) {
            assert!(line.contains("origin="), "{host}: {line}");
        }
        assert_eq!(answers.lines().count(), reached.len());
        // A rule that comes is noticed like a route that comes.
        ip(&["rule", "add", "pref", "99", "to", "10.2.0.0/16", "prohibit"]);
        eventually(|| ground.ask(&["connect", "10.2.0.1", "80"]) == "error=EACCES");
        ip(&["rule", "del", "pref", "99"]);
        eventually(|| ground.ask(&["connect", "10.2.0.1", "80"]).contains("origin="));
        drop(agent);
    });
}

/// Two namespaces with one agent: each has the routes of its own, and one that is left has none and refuses.
#[test]
fn every_namespace_has_routes_of_its_own() {
    alone(|| {
        interface("d0", &["10.9.0.1/24"]);
        let ground = Ground::new();
        let agent = ground.agent();
        let here = netns_cookie(&listen("127.0.0.1:0")).unwrap();
        assert!(agent.redirection.routes_of(Some(here)) > 0);
        let ask = |host| ground.ask(&["connect", host, "80"]);
        assert!(ask("10.9.0.7").contains("origin="), "it has a route in the first");
        assert_eq!(ask("10.8.0.7"), "error=ENETUNREACH");
        std::thread::scope(|scope| {
            let second = || {
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                ip(&["link", "set", "lo", "up"]);
                interface("d1", &["10.8.0.1/24"]);
                assert_eq!(ask("10.8.0.7"), "error=ECONNREFUSED", "nobody serves here: nothing passes");
                let listeners = (listen("127.0.0.1:0"), listen("[::1]:0"));
                let netns = netns_cookie(&listeners.0).unwrap();
                agent.redirection.serve(&listeners.0, Some(&listeners.1)).unwrap();
                assert!(agent.redirection.routes_of(Some(netns)) > 0);
                let waiting = ground.client(&ground.governed, &["connect", "10.8.0.7", "80"]);
                let answered = std::thread::spawn(move || waiting.go());
                let (client, _) = listeners.0.accept().unwrap();
                let flow = agent.redirection.flow_of(&client).unwrap().unwrap();
                assert_eq!((flow.netns_cookie, flow.origin), (netns, "10.8.0.7:80".parse().unwrap()));
                drop(client);
                answered.join().unwrap();
                assert_eq!(ask("10.9.0.7"), "error=ENETUNREACH", "the first one's route is none here");
                agent.redirection.leave(netns).unwrap();
                assert_eq!(agent.redirection.routes_of(Some(netns)), 0, "nothing stays behind");
                assert_eq!(ask("10.8.0.7"), "error=ECONNREFUSED");
            };
            scope.spawn(second).join().unwrap();
        });
        assert!(ask("10.9.0.7").contains("origin="), "the first is served as before");
        agent.die();
        let adopted = Redirection::attach(&ground.scope).unwrap();
        assert_eq!(adopted.routes_of(None), 0, "an agent that starts knows of no namespace");
        let agent = Agent::serving(adopted);
        assert!(ask("10.9.0.7").contains("origin="));
        assert!(agent.redirection.routes_of(Some(here)) > 0);
    });
}

#[test]
fn a_link_local_destination_keeps_its_interface_and_fails_without_one_as_directly() {
    alone(|| {
        interface("d0", &["fe80::1/64"]);
        interface("d1", &["fe80::2/64"]);
        let ground = Ground::new();
        let _agent = ground.agent();
        let index = |name: &str| nix::net::if_::if_nametoindex(name).unwrap();
        for name in ["d0", "d1"] {
            let line = ground.ask(&["scoped", "fe80::7", "80", name]);
            let origin = std::net::SocketAddrV6::new("fe80::7".parse().unwrap(), 80, 0, index(name));
            assert_eq!(value(&line, "origin"), origin.to_string(), "{line}");
            assert_eq!(value(&line, "device"), name, "{line}");
        }
        // The socket's own interface is as good as one that is given.
        let line = ground.ask(&["scoped", "fe80::7", "80", "-", "d1"]);
        assert!(value(&line, "origin").contains(&format!("%{}", index("d1"))), "{line}");
        let line = ground.ask(&["scoped", "fe80::7", "80", "d1", "d1"]);
        assert!(value(&line, "origin").contains(&format!("%{}", index("d1"))), "{line}");
        for ask in [vec!["scoped", "fe80::7", "80", "-"], vec!["scoped", "fe80::7", "80", "d0", "d1"]] {
            assert_eq!(ground.client(&ground.outside, &ask).go(), "error=EINVAL", "directly: {ask:?}");
            assert_eq!(ground.ask(&ask), "error=EINVAL", "{ask:?}");
        }
    });
}
