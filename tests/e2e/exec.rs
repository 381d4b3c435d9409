//! `weir-agent exec`: the command starts governed or not at all, and is the same process, terminal and exit code as ever.

#![expect(clippy::unwrap_used, reason = "a story that cannot go on has failed")]

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use weir_tests::process::{Dialogue, output, program, run};
use weir_tests::{Agent, Collector, Echo, Site, planted};

fn client() -> String {
    program("weir-test-client").unwrap().display().to_string()
}

fn code(command: &mut Command) -> Option<i32> {
    output(command).unwrap().status.code()
}

#[test]
fn the_command_is_this_process_with_its_terminal_signals_and_exit_code() {
    let site = Site::new(true).unwrap();
    let collector = Collector::start(&site).unwrap();
    let agent = Agent::start(&site, &collector, "").unwrap();

    for wanted in [0, 1, 7, 125, 255] {
        assert_eq!(
            code(&mut agent.exec(&[], &["sh", "-c", &format!("exit {wanted}")]).unwrap()),
            Some(wanted)
        );
    }
    assert_eq!(code(&mut agent.exec(&[], &["/no/such/program"]).unwrap()), Some(127));
    assert_eq!(code(&mut agent.exec(&[], &["no-such-program-anywhere"]).unwrap()), Some(127));
    let text = site.path().join("not-executable");
    std::fs::write(&text, "plain text").unwrap();
    assert_eq!(code(&mut agent.exec(&[], &[text.to_str().unwrap()]).unwrap()), Some(126));
    assert_eq!(code(&mut agent.exec(&[], &["/tmp"]).unwrap()), Some(126));
    let killed = output(&mut agent.exec(&[], &["sh", "-c", "kill -TERM $$"]).unwrap()).unwrap();
    assert_eq!(killed.status.signal(), Some(15), "{killed:?}");

    // The same pid: exec became the command; its stdin is ours; the run's id is told; the cgroup is the run's own.
    let mut who = Dialogue::start(&mut agent.exec(&["story=who"], &[&client(), "who"]).unwrap()).unwrap();
    let told = who.hear().unwrap();
    let [pid, id, cgroup] = told.split(' ').collect::<Vec<_>>()[..] else { panic!("{told:?}") };
    assert_eq!(pid, who.pid().to_string());
    assert!(cgroup.starts_with(&site.cgroup_path("scope")), "{cgroup}");
    assert_eq!(who.hear().unwrap(), "waiting");
    let status = agent.status().unwrap();
    let known = status["runs"].as_array().unwrap().iter().find(|known| known["run"] == id).unwrap().clone();
    assert_eq!(known["labels"]["story"], "who");
    assert_eq!(known["processes"], 1);
    // A signal sent to the pid reaches the command.
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(who.pid().cast_signed()),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    assert_eq!(who.end().unwrap().signal(), Some(15));
    agent.wait_until_idle().unwrap();

    // What monitoring and people ask.
    let page = |path: &str| weir_tests::process::admin_page(&agent.log(), "admin listener", path).unwrap();
    assert_eq!((page("/healthz"), page("/readyz")), ("ok\n".to_owned(), "ready\n".to_owned()));
    let mut doctor = Command::new(program("weir-agent").unwrap());
    let told = run(doctor.args(["doctor", "--json", "--config"]).arg(agent.config())).unwrap();
    assert!(serde_json::from_str::<serde_json::Value>(&told).is_ok(), "{told}");

    // A terminal stays the command's own: script(1) gives one, the command asks for it.
    let exec = agent.exec(&[], &["sh", "-c", "test -t 0 && ps -o tpgid=,pgid= -p $$ && tty"]).unwrap();
    let line = format!("{exec:?}").replace("\"sh\" \"-c\"", "sh -c");
    let seen = output(Command::new("script").args(["-qec", &line, "/dev/null"])).unwrap();
    let seen = String::from_utf8_lossy(&seen.stdout).into_owned();
    let mut words = seen.split_whitespace();
    let (foreground, group) = (words.next(), words.next());
    assert!(foreground.is_some() && foreground == group, "not in the foreground: {seen:?}");
    assert!(words.next().is_some_and(|tty| tty.starts_with("/dev/pts/")), "{seen:?}");
}

#[test]
fn without_a_node_agent_nothing_is_started() {
    let site = Site::new(true).unwrap();
    let marker = site.path().join("started");
    let touch = marker.display().to_string();
    let agent = Agent::configured(&site, "").unwrap();
    let refused = output(&mut agent.exec(&[], &["touch", &touch]).unwrap()).unwrap();
    assert_eq!(refused.status.code(), Some(125), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("not started"), "{refused:?}");
    assert!(!marker.exists(), "the command was started ungoverned");

    // Something answers nonsense on the socket: still nothing is started.
    let socket = site.path().join("agent").join("agent.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let nonsense = std::thread::spawn(move || {
        use std::io::Write;
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
    });
    let refused = output(&mut agent.exec(&[], &["touch", &touch]).unwrap()).unwrap();
    nonsense.join().unwrap();
    assert_eq!(refused.status.code(), Some(125), "{refused:?}");
    assert!(!marker.exists(), "the command was started ungoverned");
}

#[test]
fn a_nested_exec_is_a_run_of_its_own_with_its_parent_and_is_recorded_once() {
    let site = Site::new(true).unwrap();
    let echo = Echo::start("127.0.0.1").unwrap();
    let address = echo.address.to_string();
    let collector = Collector::start(&site).unwrap();
    let agent = Agent::start(&site, &collector, "").unwrap();
    let token_file = site.path().join("token");
    std::fs::write(&token_file, planted::value("token file")).unwrap();

    let inner = agent.exec(&["story=inner", "depth=2"], &[&client(), "talk", &address]).unwrap();
    let mut outer = Command::new(program("weir-agent").unwrap());
    outer
        .args(["exec", "--config"])
        .arg(agent.config())
        .args(["--label", "story=outer", "--token-file"])
        .arg(&token_file);
    outer.args(["--", "sh", "-c", &format!("'{}' talk {address} && {inner:?}", client())]);
    let told = weir_tests::process::run(&mut outer).unwrap();
    assert_eq!(told, format!("{address} echo: hello\n{address} echo: hello\n"));

    let outer = collector.settled("outer", 1).unwrap();
    let inner = collector.settled("inner", 1).unwrap();
    assert_eq!(inner.json["labels"]["depth"], "2");
    assert_eq!(inner.json["parent"], outer.id.as_str());
    for run in [&outer, &inner] {
        let sessions = collector.sessions(run).unwrap();
        assert_eq!(sessions.len(), 1, "{sessions:?}");
        assert_eq!(sessions[0].origin(), Some(echo.address));
        assert!(collector.verify(&[&run.id]).unwrap().holds());
    }
    assert_eq!(echo.accepted(), 2);

    // The identity token is kept while the run lives and found nowhere after it.
    agent.wait_until_idle().unwrap();
    for place in [agent.state(), collector.data()] {
        assert_eq!(planted::found_below(&place, planted::ALL).unwrap(), Vec::<String>::new());
    }
    assert!(planted::found(agent.log().as_bytes(), planted::ALL).is_empty());
}

#[test]
fn alone_it_supervises_records_into_a_folder_and_stays_for_the_children() {
    let site = Site::new(true).unwrap();
    let echo = Echo::start("127.0.0.1").unwrap();
    let address = echo.address.to_string();
    let agent = Agent::configured(&site, "").unwrap();
    let local = site.path().join("local");
    let client = client();

    // The background child outlives the command and is recorded all the same.
    let script = format!("'{client}' talk {address}; (sleep 1; '{client}' talk {address}) & exit 3");
    let mut exec = Command::new("sh");
    // Its cgroups are made below the one it is started in.
    exec.args(["-c", r#"echo $$ > "$0/cgroup.procs" && exec "$@""#]).arg(site.cgroup());
    exec.arg(program("weir-agent").unwrap())
        .args(["exec", "--config"])
        .arg(agent.config())
        .arg("--local")
        .arg(&local);
    exec.args(["--label", "story=alone", "--", "sh", "-c", &script]);
    let done = exec.stdin(Stdio::null()).output().unwrap();
    assert_eq!(done.status.code(), Some(3), "{done:?}");
    let told = String::from_utf8_lossy(&done.stdout).into_owned();
    assert_eq!(told, format!("{address} echo: hello\n{address} echo: hello\n"));

    let weir = |arguments: &[&str]| {
        weir_tests::process::run(
            Command::new(program("weir").unwrap()).arg("--local").arg(&local).args(arguments),
        )
        .unwrap()
    };
    let runs: serde_json::Value = serde_json::from_str(&weir(&["runs", "--json"])).unwrap();
    let run = &runs[0];
    assert_eq!(run["labels"]["story"], "alone", "{runs}");
    assert_eq!(run["sessions"], 2, "{runs}");
    assert_eq!(run["open_sessions"], 0, "{runs}");
    assert!(weir(&["show", "last"]).contains(&address));
    weir(&["verify", "last"]);
    assert!(!site.pins().exists() || std::fs::read_dir(site.pins()).unwrap().next().is_none(), "pins stay");
    let left: Vec<_> =
        std::fs::read_dir(site.cgroup()).unwrap().flatten().filter(|entry| entry.path().is_dir()).collect();
    assert!(left.is_empty(), "cgroups stay: {left:?}");
}
