//! The redirection on this kernel, with real processes. Root only; a test that cannot run fails.

mod bypass;
pub(crate) mod ground;
mod images;
pub(crate) mod netns;

use std::collections::{HashMap, HashSet};
use std::net::{SocketAddr, TcpListener};

use ground::{Ground, value};
use weir_agent_ebpf::{Counter, ProcessEntry};
use weir_proto::RunId;

use super::flow::run_words;
use super::{GateState, Otherwise, ProcessStart, Redirection, RedirectionError, Who};

#[test]
fn every_family_keeps_its_origin_and_shows_it_to_the_application() {
    let ground = Ground::new();
    let agent = ground.agent();
    for (ip, form, origin) in [
        ("198.18.0.7", "V4", "198.18.0.7:5432"),
        ("2001:db8::7", "V6", "[2001:db8::7]:5432"),
        ("::ffff:198.18.0.7", "Mapped", "198.18.0.7:5432"),
    ] {
        let line = ground.ask(&["connect", ip, "5432"]);
        assert_eq!(value(&line, "origin"), origin, "{line}");
        assert_eq!(value(&line, "form"), form, "{line}");
        assert_eq!(
            value(&line, "peer"),
            format!("{ip},5432"),
            "getpeername tells what was asked for: {line}"
        );
        assert_eq!(value(&line, "who"), "undecided", "{line}");
        assert_eq!(value(&line, "run"), "-", "{line}");
    }
    assert_eq!(agent.redirection.counters().unwrap().of(Counter::Redirected), 3);
}

#[test]
fn flows_tell_who_connected_and_when() {
    let ground = Ground::new();
    let agent = ground.agent();
    let client = ground.client(&ground.governed, &["connect", "198.18.0.7", "80"]);
    let (pid, start) = (client.pid(), ProcessStart::of(client.pid()).unwrap());
    client.go();
    let arrivals = agent.arrived();
    let [(_, Some(flow))] = &arrivals[..] else { panic!("{arrivals:?}") };
    assert_eq!((flow.pid, flow.tid, flow.uid, flow.gid), (pid, pid, 0, 0));
    assert_eq!(ProcessStart::from_boottime_ns(flow.start_time_ns), Some(start), "as /proc tells it");
    assert!(flow.connected_at_ns > flow.start_time_ns);
    assert!(flow.exec_id > 0 && flow.socket_cookie > 0 && flow.netns_cookie > 0);
    assert_eq!(flow.cgroup_id, ground.governed.id());
    assert!(flow.comm.starts_with("python"), "{}", flow.comm);
    assert!(!flow.still_runs(), "it has ended");
}

#[test]
fn twenty_thousand_short_connections_from_several_processes_each_reach_their_own_destination() {
    const PER_PROCESS: usize = 5_000;
    let ground = Ground::new();
    let agent = ground.agent();
    // Three that read the answer, one that resets as soon as it is connected.
    let clients =
        [(0, "read"), (5_000, "reset"), (10_000, "read"), (15_000, "read")].map(|(first, manner)| {
            let cgroup = if first % 10_000 == 0 { &ground.governed } else { &ground.sibling };
            (manner, ground.client(cgroup, &["many", &first.to_string(), &PER_PROCESS.to_string(), manner]))
        });
    let running = clients.map(|(manner, client)| (manner, std::thread::spawn(move || client.go())));
    let mut asked = HashMap::new();
    for (manner, printed) in running {
        let printed = printed.join().unwrap();
        assert_eq!(printed.lines().count(), PER_PROCESS);
        for line in printed.lines() {
            let [host, port, own, answer] = line.splitn(4, ',').collect::<Vec<_>>()[..] else {
                panic!("{line}")
            };
            let ip: std::net::IpAddr = host.parse().unwrap();
            let origin = SocketAddr::new(ip.to_canonical(), port.parse().unwrap());
            if manner == "read" {
                assert_eq!(value(answer, "origin"), origin.to_string(), "{line}");
            }
            asked.insert(origin, own.parse::<u16>().unwrap());
        }
    }
    assert_eq!(asked.len(), 4 * PER_PROCESS);
    // What the proxy saw of those that never looked: the connection from that very port wanted that very address.
    let arrivals = agent.arrived();
    let mut seen = HashSet::new();
    for (from, flow) in &arrivals {
        let origin = flow.as_ref().expect("every connection has its record").origin;
        assert_eq!(asked.get(&origin), Some(&from.port()), "{origin} came from port {}", from.port());
        assert!(seen.insert(origin), "{origin} came twice");
    }
    // A reset can overtake the accept; then the kernel has dropped the connection and nobody is owed an answer.
    assert!(arrivals.len() >= 3 * PER_PROCESS + PER_PROCESS * 9 / 10, "{} arrived", arrivals.len());
    let counters = agent.redirection.counters().unwrap();
    assert_eq!(counters.of(Counter::Redirected), 4 * PER_PROCESS as u64);
    assert_eq!(counters.of(Counter::NoRecord), 0);
    assert_eq!(agent.redirection.tuples_waiting(), 0, "nothing stays behind");
}

#[test]
fn threads_orphans_and_leaderless_processes_stay_in_their_run() {
    let ground = Ground::new();
    let agent = ground.agent();
    let sibling = ground.sibling.path().to_str().unwrap();
    for arguments in [
        vec!["connect", "198.18.0.1", "80"],
        vec!["thread", "198.18.0.1", "80"],
        vec!["thread_exec", "198.18.0.1", "80"],
        vec!["storm", "500", "198.18.0.1", "80"],
        vec!["leaderless", "198.18.0.1", "80"],
        vec!["orphan", "198.18.0.1", "80", sibling],
    ] {
        let run = RunId::generate();
        let client = ground.client(&ground.governed, &arguments);
        let pid = client.pid();
        agent.redirection.govern_process(pid, run).unwrap();
        assert_eq!(agent.redirection.process_run(pid), Some(run));
        assert_eq!(agent.redirection.members(run), [pid]);
        let line = client.go();
        assert_eq!(value(&line, "run"), run.to_string(), "{arguments:?}: {line}");
        assert_eq!(value(&line, "who"), "governed");
        let same_process = arguments[0] != "orphan";
        assert_eq!(value(&line, "pid") == pid.to_string(), same_process, "{line}");
        let by_main_thread = matches!(arguments[0], "connect" | "thread_exec" | "storm");
        assert_eq!(value(&line, "tid") == pid.to_string(), by_main_thread, "{arguments:?}: {line}");
        assert_eq!(agent.redirection.members(run), [0_u32; 0], "the last thread took the entry with it");
    }
    assert_eq!(agent.redirection.processes_known(), 1, "only the agent itself is left");
}

#[test]
fn a_reused_pid_inherits_nothing_and_passes_nothing_on() {
    let ground = Ground::new();
    let agent = ground.agent();
    for arguments in [
        vec!["connect", "198.18.0.1", "80"],
        vec!["orphan", "198.18.0.1", "80", ground.sibling.path().to_str().unwrap()],
    ] {
        let client = ground.client(&ground.governed, &arguments);
        let start_ticks = ProcessStart::of(client.pid()).unwrap().ticks() - 1;
        let run = RunId::generate();
        let entry =
            ProcessEntry { run: run_words(run), start_ticks, who: Who::Governed as u8, reserved: [0; 7] };
        agent.redirection.remember_process(client.pid(), entry);
        assert_eq!(agent.redirection.process_run(client.pid()), None, "the entry is an earlier process's");
        let line = client.go();
        assert_eq!(value(&line, "who"), "undecided", "{line}");
    }
}

#[test]
fn the_nearest_cgroup_with_a_rule_decides_and_the_process_goes_first() {
    let ground = Ground::new();
    let agent = ground.agent();
    let [outer, inner, own] = [(); 3].map(|()| RunId::generate());
    let scope = super::Cgroup::open(&ground.scope.governed).unwrap();
    agent.redirection.govern_cgroup(scope.id(), outer).unwrap();
    agent.redirection.govern_cgroup(ground.governed.id(), inner).unwrap();
    let ask = ["connect", "198.18.0.1", "80"];
    let run_in = |cgroup| value(&ground.client(cgroup, &ask).go(), "run").to_owned();
    assert_eq!(run_in(&ground.sibling), outer.to_string());
    assert_eq!(run_in(&ground.governed), inner.to_string());
    let client = ground.client(&ground.governed, &ask);
    agent.redirection.govern_process(client.pid(), own).unwrap();
    assert_eq!(value(&client.go(), "run"), own.to_string());
    agent.redirection.forget_cgroup(ground.governed.id()).unwrap();
    assert_eq!(run_in(&ground.governed), outer.to_string());
}

#[test]
fn exempt_processes_and_neighbours_are_untouched() {
    let ground = Ground::new();
    let agent = ground.agent();
    let server = Server::start();
    let ask = ["connect", "127.0.0.1", &server.port()];
    let outside = ground.client(&ground.outside, &ask).go();
    assert!(outside.ends_with("direct"), "{outside}");
    let inside = ground.ask(&ask);
    assert_eq!(
        value(&inside, "origin"),
        format!("127.0.0.1:{}", server.port()),
        "a local service is redirected too"
    );

    let exempt = ground.client(&ground.governed, &ask);
    agent.redirection.exempt_process(exempt.pid()).unwrap();
    assert!(exempt.go().ends_with("direct"));
    agent.redirection.exempt_cgroup(ground.governed.id()).unwrap();
    assert!(ground.ask(&ask).ends_with("direct"));
    assert_eq!(agent.redirection.counters().unwrap().of(Counter::PassedExempt), 2);
}

#[test]
fn a_scope_that_leaves_the_undecided_alone_redirects_only_the_governed() {
    let mut ground = Ground::new();
    ground.scope.otherwise = Otherwise::Exempt;
    let agent = ground.agent();
    let server = Server::start();
    let ask = ["connect", "127.0.0.1", &server.port()];
    assert!(ground.ask(&ask).ends_with("direct"));
    let run = RunId::generate();
    agent.redirection.govern_cgroup(ground.governed.id(), run).unwrap();
    assert_eq!(value(&ground.ask(&ask), "run"), run.to_string());
}

#[test]
fn a_local_port_without_a_listener_is_refused_in_connect() {
    let ground = Ground::new();
    let agent = ground.agent();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    for ip in ["127.0.0.1", "127.8.9.10", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1"] {
        assert_eq!(ground.ask(&["connect", ip, &free]), "error=ECONNREFUSED", "{ip}");
    }
    assert_eq!(agent.redirection.counters().unwrap().of(Counter::RefusedNoListener), 6);
    assert!(agent.arrived().is_empty());
}

#[test]
fn the_unspecified_address_means_this_host() {
    let ground = Ground::new();
    let _agent = ground.agent();
    let server = Server::start();
    let line = ground.ask(&["connect", "0.0.0.0", &server.port()]);
    assert_eq!(value(&line, "origin"), format!("127.0.0.1:{}", server.port()));
}

#[test]
fn bound_sources_and_devices_are_recorded_and_do_not_hang() {
    let ground = Ground::new();
    let _agent = ground.agent();
    let line = ground.ask(&["bound", "198.18.0.1", "80", "127.0.0.9", "0"]);
    assert!(value(&line, "source").starts_with("127.0.0.9:"), "{line}");
    let line = ground.ask(&["bound", "::ffff:198.18.0.1", "80", "::ffff:127.0.0.9", "0"]);
    assert!(value(&line, "source").starts_with("127.0.0.9:"), "{line}");
    let line = ground.ask(&["bound", "2001:db8::1", "80", "::", "23457"]);
    assert_eq!(value(&line, "source"), "[::]:23457", "{line}");
    for ip in ["198.18.0.1", "2001:db8::1"] {
        let line = ground.ask(&["device", ip, "80", "lo"]);
        assert_eq!(value(&line, "device"), "lo", "{line}");
    }
    let line = ground.ask(&["connect", "198.18.0.1", "80"]);
    assert_eq!((value(&line, "source"), value(&line, "device")), ("-", "-"));
}

#[test]
fn a_second_connect_of_a_socket_has_its_own_origin() {
    let ground = Ground::new();
    let _agent = ground.agent();
    let line = ground.ask(&["again", "198.18.0.1", "80", "198.18.0.2", "81"]);
    assert_eq!((value(&line, "origin"), value(&line, "peer")), ("198.18.0.2:81", "198.18.0.2,81"));
}

#[test]
fn fast_open_is_redirected() {
    let ground = Ground::new();
    let _agent = ground.agent();
    let line = ground.ask(&["fastopen", "198.18.0.1", "80"]);
    assert_eq!((value(&line, "origin"), value(&line, "peer")), ("198.18.0.1:80", "198.18.0.1,80"), "{line}");
}

#[test]
fn datagrams_are_not_touched() {
    let ground = Ground::new();
    let agent = ground.agent();
    assert_eq!(ground.ask(&["udp", "127.0.0.1", "53"]), "peer=127.0.0.1,53");
    assert_eq!(agent.redirection.counters().unwrap().of(Counter::Redirected), 0);
}

#[test]
fn mptcp_is_redirected_and_shows_its_origin_as_its_gate_says() {
    let ground = Ground::new();
    let agent = ground.agent();
    let gates = agent.redirection.gates();
    let gate = gates.iter().find(|gate| gate.name == "getpeername-mptcp").unwrap();
    let line = ground.ask(&["mptcp", "198.18.0.1", "80"]);
    match gate.state {
        GateState::NotOnThisKernel(_) => assert!(line.starts_with("error="), "{line}"),
        _ => {
            assert_eq!(value(&line, "origin"), "198.18.0.1:80", "{line}");
            let shows_origin = value(&line, "peer") == "198.18.0.1,80";
            assert_eq!(shows_origin, gate.state == GateState::Holds, "{line}");
        }
    }
}

#[test]
fn a_connection_straight_to_the_proxy_has_no_record() {
    let ground = Ground::new();
    let agent = ground.agent();
    let port = agent.v4.port().to_string();
    assert_eq!(ground.client(&ground.outside, &["connect", "127.0.0.1", &port]).go(), "error=ECONNRESET");
    let direct = ground.ask(&["connect", "127.0.0.1", &port]);
    assert_eq!(direct, "error=ECONNRESET", "a governed process gets nowhere by it either");
    assert!(agent.arrived().iter().all(|(_, flow)| flow.is_none()));
    let counters = agent.redirection.counters().unwrap();
    assert_eq!((counters.of(Counter::NoRecord), counters.of(Counter::PassedProxyPort)), (2, 1));
}

#[test]
fn before_serving_and_after_withdrawing_connects_are_refused() {
    let ground = Ground::new();
    let ask = ["connect", "198.18.0.1", "80"];
    let redirection = Redirection::attach(&ground.scope).unwrap();
    assert_eq!(ground.ask(&ask), "error=ECONNREFUSED");
    let agent = ground::Agent::serving(redirection);
    assert_eq!(value(&ground.ask(&ask), "origin"), "198.18.0.1:80");
    agent.redirection.withdraw().unwrap();
    assert_eq!(ground.ask(&ask), "error=ECONNREFUSED");
    assert_eq!(agent.redirection.counters().unwrap().of(Counter::RefusedNotReady), 2);
}

#[test]
fn while_the_agent_is_dead_connects_are_refused_and_the_next_one_adopts() {
    let ground = Ground::new();
    let run = RunId::generate();
    let ask = ["connect", "198.18.0.1", "80"];
    let client = ground.client(&ground.governed, &ask);
    let agent = ground.agent();
    agent.redirection.govern_process(client.pid(), run).unwrap();
    agent.redirection.govern_cgroup(ground.governed.id(), run).unwrap();
    agent.die();
    assert_eq!(ground.ask(&ask), "error=ECONNREFUSED");
    let links = link_programs(&ground);

    let agent = ground.agent();
    assert_eq!(agent.redirection.process_run(client.pid()), Some(run), "the process table was adopted");
    assert_eq!(value(&client.go(), "run"), run.to_string());
    assert_eq!(value(&ground.ask(&ask), "run"), run.to_string(), "so was the table of cgroups");
    assert_eq!(agent.redirection.counters().unwrap().of(Counter::RefusedNotReady), 1, "and the counters");
    for (name, (link, program)) in link_programs(&ground) {
        let (old_link, old_program) = links[&name];
        assert_ne!(program, old_program, "{name} runs this agent's program");
        let cgroup_hook = !name.ends_with("ed");
        assert_eq!(link == old_link, cgroup_hook, "{name}: a cgroup's link is kept, its program was swapped");
    }
}

#[test]
fn restarts_under_load_refuse_or_redirect_but_never_misdirect() {
    const RESTARTS: usize = 20;
    let ground = Ground::new();
    let run = RunId::generate();
    // One for v6 and mapped addresses as well as v4, one that resets at once.
    let clients = [("0", "read"), ("20000", "reset"), ("40000", "read")]
        .map(|(first, manner)| ground.client(&ground.governed, &["many", first, "6000", manner]));
    let mut agent = ground.agent();
    agent.redirection.govern_cgroup(ground.governed.id(), run).unwrap();
    let running = clients.map(|client| std::thread::spawn(move || client.go()));
    let mut arrivals = Vec::new();
    for _ in 0..RESTARTS {
        std::thread::sleep(std::time::Duration::from_millis(60));
        arrivals.extend(agent.arrived());
        agent.die();
        std::thread::sleep(std::time::Duration::from_millis(20));
        agent = ground.agent();
    }
    let printed = running.map(|client| client.join().unwrap()).join("\n");
    let (mut answered, mut refused) = (0, 0);
    for line in printed.lines() {
        let [host, port, _, answer] = line.splitn(4, ',').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let ip: std::net::IpAddr = host.parse().unwrap();
        match answer {
            "-" => {}
            // Refused while it is dead; reset, or closed without a word, if it dies after the connect.
            "error=ECONNREFUSED" | "error=ECONNRESET" | "" => refused += 1,
            _ => {
                assert_eq!(
                    value(answer, "origin"),
                    SocketAddr::new(ip.to_canonical(), port.parse().unwrap()).to_string()
                );
                assert_eq!(value(answer, "run"), run.to_string());
                answered += 1;
            }
        }
    }
    arrivals.extend(agent.arrived());
    assert!(answered > 1_000 && refused > 100, "{answered} answered, {refused} refused: not much of a load");
    assert!(arrivals.iter().all(|(_, flow)| flow.as_ref().is_some_and(|flow| flow.run == Some(run))));
    assert_eq!(agent.redirection.tuples_waiting(), 0);
}

#[test]
fn a_second_agent_on_the_same_pins_is_turned_away() {
    let ground = Ground::new();
    let _agent = ground.agent();
    let Err(error) = Redirection::attach(&ground.scope) else { panic!("two agents hold the same pins") };
    assert!(matches!(error, RedirectionError::Busy { .. }), "{error}");
    let error = Redirection::detach_abandoned(&ground.scope.pins).unwrap_err();
    assert!(matches!(error, RedirectionError::Busy { .. }), "{error}");
}

#[test]
fn a_stranger_on_a_dead_agents_port_gets_nothing() {
    let ground = Ground::new();
    let agent = ground.agent();
    // A restarted agent that has published the port of listeners it lost: the worst moment there is.
    let (v4, v6) = (agent.v4, agent.v6);
    agent.die();
    let strangers = [v4, v6].map(|address| TcpListener::bind(address).unwrap());
    for ip in ["198.18.0.1", "2001:db8::1", "::ffff:198.18.0.1"] {
        assert_eq!(ground.ask(&["connect", ip, "80"]), "error=ECONNREFUSED", "{ip}");
    }
    for stranger in strangers {
        stranger.set_nonblocking(true).unwrap();
        let error = stranger.accept().unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "no connection reached the stranger");
    }
    let adopted = Redirection::attach(&ground.scope).unwrap();
    assert_eq!(adopted.counters().unwrap().of(Counter::StrangerPort), 3);
}

#[test]
fn a_full_table_of_connections_loses_none_to_another_destination() {
    let mut ground = Ground::new();
    ground.scope.tuples_max = Some(4);
    let redirection = Redirection::attach(&ground.scope).unwrap();
    // Nobody accepts and the queue holds one: the others wait between SYN and accept, with their records in the table.
    let v4 = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    v4.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    v4.listen(0).unwrap();
    let v4: TcpListener = v4.into();
    redirection.serve(&v4, None).unwrap();
    assert_eq!(ground.ask(&["connect", "2001:db8::1", "80"]), "error=ECONNREFUSED", "no IPv6 listener");
    let waiting: Vec<_> = (0..12)
        .map(|number| {
            let client = ground.client(&ground.governed, &["connect", &format!("198.18.0.{number}"), "80"]);
            std::thread::spawn(move || client.go())
        })
        .collect();
    let count = |counter| redirection.counters().unwrap().of(counter);
    for _ in 0..2_000 {
        if count(Counter::Redirected) == 12 && count(Counter::RefusedFull) > 0 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert!(count(Counter::RefusedFull) > 0, "the table of four was not enough for twelve");
    // From here on there is room: whoever's SYN is sent again comes through.
    socket2::SockRef::from(&v4).listen(4096).unwrap();
    let agent = ground::Agent::over(redirection, v4, ground::listen("[::1]:0"));
    let mut answered = 0;
    for (number, client) in waiting.into_iter().enumerate() {
        let line = client.join().unwrap();
        if line == "error=ECONNRESET" {
            continue;
        }
        assert_eq!(value(&line, "origin"), format!("198.18.0.{number}:80"), "{line}");
        answered += 1;
    }
    let counters = agent.redirection.counters().unwrap();
    assert_eq!(counters.of(Counter::Redirected) - counters.of(Counter::RefusedFull), answered);
    assert_eq!(counters.of(Counter::NoRecord), counters.of(Counter::RefusedFull));
}

#[test]
fn nested_agents_leave_each_others_proxies_alone() {
    let ground = Ground::new();
    let outer = ground.agent();
    let inner_scope = super::Scope {
        governed: ground.governed.path().into(),
        pins: ground.scope.pins.join("inner"),
        ..ground.scope.clone()
    };
    let inner = ground::Agent::serving(Redirection::attach(&inner_scope).unwrap());
    let line = ground.ask(&["connect", "198.18.0.1", "80"]);
    assert_eq!((value(&line, "origin"), value(&line, "peer")), ("198.18.0.1:80", "198.18.0.1,80"), "{line}");
    assert_eq!((inner.arrived().len(), outer.arrived().len()), (1, 0), "recorded once, by the inner one");
    assert_eq!(outer.redirection.counters().unwrap().of(Counter::PassedProxyPort), 1);
    inner.redirection.detach().unwrap();
}

#[test]
fn what_dead_agents_left_is_removed_and_what_a_living_one_holds_is_not() {
    let ground = Ground::new();
    let server = Server::start();
    let ask = ["connect", "127.0.0.1", &server.port()];
    let below = |name: &str| super::Scope { pins: ground.scope.pins.join(name), ..ground.scope.clone() };
    drop(Redirection::attach(&below("dead")).unwrap());
    let living = Redirection::attach(&below("living")).unwrap();
    Redirection::detach_abandoned(&ground.scope.pins).unwrap();
    assert!(!ground.scope.pins.join("dead").exists());
    assert_eq!(ground.ask(&ask), "error=ECONNREFUSED", "the living one refuses: it does not serve yet");
    drop(living);
    assert_eq!(ground.ask(&ask), "error=ECONNREFUSED", "and so it does when it is dead");
    Redirection::detach_abandoned(&ground.scope.pins).unwrap();
    assert!(ground.ask(&ask).ends_with("direct"));
    assert!(!ground.scope.pins.exists());
}

#[test]
fn detach_leaves_nothing() {
    let ground = Ground::new();
    let agent = ground.agent();
    let server = Server::start();
    let ask = ["connect", "127.0.0.1", &server.port()];
    assert!(!ground.ask(&ask).ends_with("direct"));
    agent.redirection.detach().unwrap();
    assert!(ground.ask(&ask).ends_with("direct"));
    assert!(!ground.scope.pins.exists());
}

/// Name of each pinned link, with the kernel's numbers for the link and its program.
fn link_programs(ground: &Ground) -> HashMap<String, (u32, u32)> {
    use std::os::fd::AsFd as _;
    let links = std::fs::read_dir(ground.scope.pins.join("links")).unwrap();
    let numbers = links.map(|entry| {
        let path = entry.unwrap().path();
        let link = super::sys::object_get(&path).unwrap();
        let info = super::sys::link_info(link.as_fd()).unwrap();
        (path.file_name().unwrap().to_string_lossy().into_owned(), (info.id, info.program))
    });
    let numbers: HashMap<_, _> = numbers.collect();
    assert_eq!(numbers.len(), super::links::ALL.len());
    numbers
}

/// A service of the host that says `direct`.
struct Server(u16);

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                std::io::Write::write_all(&mut client.unwrap(), b"direct\n").unwrap();
            }
        });
        Self(port)
    }

    fn port(&self) -> String {
        self.0.to_string()
    }
}
