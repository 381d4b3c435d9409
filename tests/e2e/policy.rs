//! Rules that observe, rules that change while the node agent runs, and a bypass that the kernel ends.

#![expect(clippy::unwrap_used, reason = "a story that cannot go on has failed")]

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use weir_tests::process::{Dialogue, eventually, output, program, run};
use weir_tests::{Agent, Collector, Echo, Nginx, Site};

/// `weir-agent` with the configuration of a node agent.
fn ask(agent: &Agent, arguments: &[&str]) -> Command {
    let mut command = Command::new(program("weir-agent").unwrap());
    command.args(arguments).arg("--config").arg(agent.config());
    command
}

/// What it says on stderr when it fails.
fn refusal(command: &mut Command) -> String {
    let output = output(command).unwrap();
    assert!(!output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A governed process that connects whenever it is told to, and tells what it was answered, or that nothing came.
fn caller(agent: &Agent, story: &str, echo: &Echo) -> Dialogue {
    let script = "import socket, sys
host, port = sys.argv[1], int(sys.argv[2])
for line in sys.stdin:
    try:
        with socket.create_connection((host, port), 5) as sock:
            sock.sendall(line.encode())
            print(sock.makefile().readline().strip() or 'nothing', flush=True)
    except OSError as error:
        print('nothing', flush=True)
";
    let (ip, port) = (echo.address.ip().to_string(), echo.address.port().to_string());
    Dialogue::start(
        &mut agent.exec(&[&format!("story={story}")], &["python3", "-c", script, &ip, &port]).unwrap(),
    )
    .unwrap()
}

#[test]
fn what_is_observed_is_let_through_and_counted_until_it_is_enforced() {
    let site = Site::new(true).unwrap();
    let collector = Collector::start(&site).unwrap();
    let echo = Echo::start("127.0.0.1").unwrap();
    let rules = |mode: &str| {
        format!(
            "mode = '{mode}'\n[[target]]\nname = 'echo'\nports = [{}]\naccess = 'deny'\nreason = 'not for agents'\n",
            echo.address.port()
        )
    };
    let mut agent = Agent::start(&site, &collector, &rules("observe")).unwrap();
    let base = fs::read_to_string(agent.config()).unwrap().replace(&rules("observe"), "");
    let mut caller = caller(&agent, "policy", &echo);

    assert_eq!(caller.ask("one").unwrap(), "echo: one");
    assert_eq!(agent.status().unwrap()["policy"]["would_refuse"]["echo"], 1);
    assert!(agent.metrics().unwrap().contains("weir_agent_would_refuse_total{rule=\"echo\"} 1"));

    fs::write(agent.config(), base.clone() + &rules("enforce")).unwrap();
    let said: Value = serde_json::from_str(&run(&mut ask(&agent, &["reload", "--json"])).unwrap()).unwrap();
    assert_eq!((&said["generation"], &said["is_new"]), (&2.into(), &true.into()), "{said}");
    assert_eq!(caller.ask("two").unwrap(), "nothing", "the new rules hold at once");
    let test = ask(&agent, &["policy", "test", "--connect", &echo.address.to_string()]);
    let told = output(&mut { test }).unwrap();
    assert_eq!(told.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&told.stdout).contains("refused by echo: not for agents"), "{told:?}");

    // With a mistake in it nothing of the file holds, and whoever looks is told where it is.
    fs::write(agent.config(), base.clone() + "\n[[target]]\nname = 'echo'\nacces = 'allow'\n").unwrap();
    let line = base.lines().count() + 4;
    let named = format!("{}:{line}: ", agent.config().display());
    let error = refusal(&mut ask(&agent, &["reload", "--socket", socket(&agent).as_str()]));
    assert!(error.contains(&named) && error.contains("acces"), "{error}");
    assert!(refusal(&mut ask(&agent, &["policy", "check"])).contains(&named));
    assert_eq!(caller.ask("three").unwrap(), "nothing", "the last good rules go on");
    fs::remove_file(agent.config()).unwrap();
    kill(Pid::from_raw(agent.pid().unwrap().cast_signed()), Signal::SIGHUP).unwrap();
    eventually("the missing file is noticed", || Ok(agent.log().contains("No such file").then_some(())))
        .unwrap();
    assert_eq!(caller.ask("four").unwrap(), "nothing");

    fs::write(agent.config(), base + &rules("observe")).unwrap();
    kill(Pid::from_raw(agent.pid().unwrap().cast_signed()), Signal::SIGHUP).unwrap();
    eventually("the rules are taken over", || {
        Ok((agent.status()?["policy"]["generation"] == 3).then_some(()))
    })
    .unwrap();
    assert!(agent.status().unwrap()["policy"]["reload_error"].is_null());
    assert_eq!(caller.ask("five").unwrap(), "echo: five");
    assert!(caller.end().unwrap().success());
    assert_eq!(echo.accepted(), 2, "the refused ones did not reach it");

    let run = collector.settled("policy", 5).unwrap();
    assert_eq!((run.count("sessions"), run.count("denied")), (5, 3), "{run:?}");
    agent.stop(Signal::SIGTERM).unwrap();
}

fn socket(agent: &Agent) -> String {
    agent.state().with_file_name("agent.sock").display().to_string()
}

#[test]
fn a_bypass_lets_through_for_its_time_is_on_record_and_outlives_nobody() {
    const LASTS: Duration = Duration::from_secs(12);
    let site = Site::new(true).unwrap();
    let collector = Collector::start(&site).unwrap();
    let echo = Echo::start("127.0.0.1").unwrap();
    let mut agent = Agent::start(&site, &collector, "").unwrap();
    let mut caller = caller(&agent, "bypass", &echo);
    assert_eq!(caller.ask("recorded").unwrap(), "echo: recorded");

    assert!(refusal(&mut ask(&agent, &["bypass", "--for", "25h", "--reason", "x"])).contains("24 hours"));
    assert!(refusal(&mut ask(&agent, &["bypass", "--for", "1m", "--reason", " "])).contains("reason"));
    let mut nobody = Command::new("setpriv");
    nobody
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
        .arg(program("weir-agent").unwrap());
    nobody.args(["bypass", "--for", "1m", "--reason", "x", "--socket", &socket(&agent)]);
    assert!(refusal(&mut nobody).contains("only root"));
    assert_eq!(agent.status().unwrap()["bypass"], Value::Null);

    // Begun and ended by hand.
    run(&mut ask(&agent, &["bypass", "--for", "1h", "--reason", "uploads stall"])).unwrap();
    assert_eq!(caller.ask("past one").unwrap(), "echo: past one");
    let status = agent.status().unwrap();
    assert_eq!(
        (&status["bypass"]["reason"], &status["bypass"]["passed"]),
        (&"uploads stall".into(), &1.into())
    );
    assert!(run(&mut ask(&agent, &["status"])).unwrap().starts_with("BYPASS"));
    run(&mut ask(&agent, &["bypass", "--end"])).unwrap();
    assert!(refusal(&mut ask(&agent, &["bypass", "--end"])).contains("no bypass"));
    assert_eq!(caller.ask("recorded too").unwrap(), "echo: recorded too");

    // Begun, and its node agent is killed: the next one goes on with it, and the kernel ends it while none lives.
    let lasts = format!("{}s", LASTS.as_secs());
    let begun = Instant::now();
    run(&mut ask(&agent, &["bypass", "--for", &lasts, "--reason", "again"])).unwrap();
    agent.stop(Signal::SIGKILL).unwrap();
    assert_eq!(caller.ask("past two").unwrap(), "echo: past two", "without a node agent");
    agent.resume().unwrap();
    assert_eq!(agent.status().unwrap()["bypass"]["reason"], "again");
    assert_eq!(caller.ask("past three").unwrap(), "echo: past three");
    agent.stop(Signal::SIGKILL).unwrap();
    assert!(begun.elapsed() < LASTS, "this machine is too slow for this story");
    std::thread::sleep((LASTS + Duration::from_millis(200)).saturating_sub(begun.elapsed()));
    assert_eq!(caller.ask("refused").unwrap(), "nothing", "its time is over");
    agent.resume().unwrap();
    assert_eq!(agent.status().unwrap()["bypass"], Value::Null);
    assert_eq!(caller.ask("recorded again").unwrap(), "echo: recorded again");
    assert!(caller.end().unwrap().success());

    let run = collector.settled("bypass", 3).unwrap();
    assert_eq!(run.count("sessions"), 3, "{run:?}");
    let node = collector.node().unwrap();
    let checked = eventually("the log tells of both", || {
        let checked = collector.verify(&["--node", &node])?;
        Ok(checked.said.contains("expired-unattended").then_some(checked))
    })
    .unwrap();
    assert!(checked.holds(), "{}", checked.said);
    for told in ["uploads stall", ", asked: 1 connections", "again", ", expired-unattended: 2 connections"] {
        assert!(checked.said.contains(told), "{told}: {}", checked.said);
    }
}

#[test]
fn a_bypass_that_nobody_is_on_record_for_does_not_go_on() {
    let site = Site::new(true).unwrap();
    let collector = Collector::start(&site).unwrap();
    let echo = Echo::start("127.0.0.1").unwrap();
    let mut agent = Agent::start(&site, &collector, "").unwrap();
    let mut caller = caller(&agent, "orphaned", &echo);
    // It runs, governed, before its agent is gone.
    assert_eq!(caller.ask("first").unwrap(), "echo: first");
    let begin = |agent: &mut Agent| {
        run(&mut ask(agent, &["bypass", "--for", "1h", "--reason", "to be forgotten"])).unwrap();
        agent.stop(Signal::SIGKILL).unwrap();
    };

    begin(&mut agent);
    fs::remove_file(agent.state().join("bypass.json")).unwrap();
    agent.resume().unwrap();
    assert_eq!(agent.status().unwrap()["bypass"], Value::Null);
    assert_eq!(caller.ask("recorded").unwrap(), "echo: recorded");

    // Its file opens nothing where the kernel knows of none.
    begin(&mut agent);
    run(&mut ask(&agent, &["detach"])).unwrap();
    agent.resume().unwrap();
    assert_eq!(agent.status().unwrap()["bypass"], Value::Null);
    assert_eq!(caller.ask("recorded too").unwrap(), "echo: recorded too");
    assert!(caller.end().unwrap().success());

    assert_eq!(collector.settled("orphaned", 3).unwrap().count("sessions"), 3);
    let node = collector.node().unwrap();
    let checked = eventually("the log tells how both ended", || {
        let checked = collector.verify(&["--node", &node])?;
        Ok((checked.said.contains("unaccounted") && checked.said.contains("hooks-gone")).then_some(checked))
    })
    .unwrap();
    assert!(checked.holds(), "{}", checked.said);
}

#[test]
fn rules_for_http_hold_whatever_the_spelling_and_refuse_what_is_no_http() {
    let site = Site::new(true).unwrap();
    let collector = Collector::start(&site).unwrap();
    let [shop, trial] = ["shop", "trial"].map(|name| Nginx::start(&site, name).unwrap());
    let echo = Echo::start("127.0.0.1").unwrap();
    let rules = format!(
        "default = 'deny'\n\
         [[target]]\nname = 'shop'\nports = [{}]\naccess = 'deny'\n\
         [[target.http]]\nname = 'reads'\nmethods = ['GET']\nhosts = ['shop.example']\npaths = ['/hello', '/files/**']\naccess = 'allow'\n\
         [[target]]\nname = 'trial'\nports = [{}]\n\
         [[target.http]]\nname = 'no-orders'\npaths = ['/orders']\naccess = 'deny'\nmode = 'observe'\nreason = 'soon'\n\
         [[target]]\nname = 'not-http'\nports = [{}]\n[[target.http]]\npaths = ['/x']\naccess = 'deny'\n",
        shop.port,
        trial.port,
        echo.address.port()
    );
    let agent = Agent::start(&site, &collector, &rules).unwrap();
    let script = "import socket, sys
for line in sys.stdin:
    port, method, target, host = line.split()
    with socket.create_connection(('127.0.0.1', int(port)), 10) as sock:
        sock.sendall(f'{method} {target} HTTP/1.1\\r\\nHost: {host}\\r\\nConnection: close\\r\\n\\r\\n'.encode())
        print(sock.makefile('rb').readline().decode().strip(), flush=True)
";
    let mut client =
        Dialogue::start(&mut agent.exec(&["story=http-rules"], &["python3", "-c", script]).unwrap()).unwrap();
    let mut status = |server: &Nginx, request: &str| {
        let line = client.ask(format!("{} {request}", server.port)).unwrap();
        line.split(' ').nth(1).unwrap_or_default().to_owned()
    };
    for request in [
        "GET /hello shop.example",
        "GET /hello SHOP.example.",
        "GET /files/a/../page.txt shop.example",
        "GET http://shop.example/hello shop.example",
    ] {
        assert!(status(&shop, request) != "403", "{request}");
    }
    for request in [
        "GET /orders shop.example",
        "GET /hello other.example",
        "get /hello shop.example",
        "DELETE /hello shop.example",
        "GET /files/../orders shop.example",
        "GET /files/%2e%2e/orders shop.example",
        "GET /files/..%2forders shop.example",
        "GET /files/..;/orders shop.example",
        "GET /files/..\\orders shop.example",
        "GET //orders shop.example",
        "GET /HELLO shop.example",
        "GET http://other.example/hello other.example",
        "OPTIONS * shop.example",
        "CONNECT shop.example:80 shop.example:80",
    ] {
        assert_eq!(status(&shop, request), "403", "{request}");
    }
    assert_eq!(status(&trial, "GET /orders trial.example"), "200", "observed only");
    assert_eq!(status(&trial, "GET /hello trial.example"), "200");
    assert!(client.end().unwrap().success());
    assert_eq!(shop.requests().len(), 4, "what was refused did not reach it: {:?}", shop.requests());

    // What is no HTTP, where rules for HTTP could not be kept.
    let mut caller = caller(&agent, "no-http", &echo);
    assert_eq!(caller.ask("hello there").unwrap(), "nothing");
    assert!(caller.end().unwrap().success());

    let run = collector.settled("http-rules", 20).unwrap();
    let exchanges = collector.exchanges(&run).unwrap();
    let observed: Vec<_> =
        exchanges.iter().filter(|exchange| exchange.json["tags"][0] == "would-deny").collect();
    assert_eq!(observed.len(), 1, "{exchanges:#?}");
    assert_eq!((observed[0].word("rule"), observed[0].word("outcome")), ("trial/no-orders", "ok"));
    assert_eq!(run.count("denied"), 14, "{run:?}");
    assert_eq!(
        agent.status().unwrap()["policy"]["would_refuse"],
        serde_json::json!({ "trial/no-orders": 1 })
    );
    let played = collector.text(&["play", observed[0].json["session"].as_str().unwrap()]).unwrap();
    assert!(played.contains("would be denied by trial/no-orders, which observes: soon"), "{played}");
    let run = collector.settled("no-http", 1).unwrap();
    assert_eq!(run.count("denied"), 1, "{run:?}");
}
