//! What a fleet needs over months, in a minute: certificates that renew under load, a node that is revoked, a collector
//! that is replaced by another machine, and agents that stay away, each with its reason on record.

#![expect(clippy::unwrap_used, reason = "a story that cannot go on has failed")]

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use weir_tests::process::{eventually, program, run};
use weir_tests::{Agent, Collector, Echo, Site};

fn talk(agent: &Agent, story: &str, echo: &Echo) {
    let client = program("weir-test-client").unwrap().display().to_string();
    let address = echo.address.to_string();
    let mut command = agent.exec(&[&format!("story={story}")], &[&client, "talk", &address]).unwrap();
    assert_eq!(run(&mut command).unwrap(), format!("{address} echo: hello\n"));
}

fn only_agent(collector: &Collector) -> Value {
    let agents = collector.json(&["agents"]).unwrap();
    assert_eq!(agents.as_array().unwrap().len(), 1, "{agents}");
    agents[0].clone()
}

fn gaps(collector: &Collector) -> Vec<String> {
    let agent = only_agent(collector);
    let gaps = agent["gaps"].as_array().unwrap();
    gaps.iter().map(|gap| gap["kind"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn certificates_renew_under_load_and_a_replaced_collector_is_the_same_one() {
    /// Of each certificate: it is renewed after four seconds, and of no use after six.
    const LIFE_S: u64 = 6;
    const ROUNDS: usize = 60;
    let mut site = Site::new(true).unwrap();
    let echo = Echo::start("127.0.0.1").unwrap();
    let mut collector = Collector::start_with(&site, &format!("certificate_life = \"{LIFE_S}s\"\n")).unwrap();
    let agent = Agent::start(&site, &collector, "").unwrap();
    let ends =
        || agent.status().unwrap()["recording"]["collector"]["certificate_not_after_unix"].as_i64().unwrap();
    let (first, begun) = (ends(), Instant::now());
    for round in 0..ROUNDS {
        talk(&agent, &format!("load-{round}"), &echo);
        std::thread::sleep(Duration::from_millis(150));
    }
    eventually("three lives have gone by", || {
        Ok((begun.elapsed() > Duration::from_secs(3 * LIFE_S)).then_some(()))
    })
    .unwrap();
    let renewed = ends();
    assert!(renewed >= first + 2 * LIFE_S as i64, "from {first} to {renewed}");
    talk(&agent, "long-after", &echo);
    let run = collector.settled("long-after", 1).unwrap();
    assert!(collector.verify(&[&run.id]).unwrap().holds());
    eventually("all has arrived", || Ok(agent.spooled()?.is_empty().then_some(()))).unwrap();
    for round in 0..ROUNDS {
        let run = collector.settled(&format!("load-{round}"), 1).unwrap();
        assert_eq!((run.count("sessions"), run.count("gaps")), (1, 0));
    }
    let node = collector.node().unwrap();
    let verified = collector.verify(&["--node", &node]).unwrap();
    assert!(verified.holds() && !verified.said.contains("no heartbeat"), "{}", verified.said);
    site.rearm().unwrap();

    // How it stands, for people and for tools.
    let stands = only_agent(&collector);
    assert_eq!(stands["state"], "connected");
    let standing = &stands["agent"];
    assert!(standing["gates"].as_array().unwrap().iter().any(|gate| gate["holds"] == true), "{stands}");
    assert_eq!(standing["config"]["sha256"].as_str().unwrap().len(), 64, "{stands}");
    assert!(standing["kernel"].as_str().is_some_and(|kernel| kernel.contains('.')), "{stands}");
    // It says so with what it sends, on every stream anew.
    let offset_ms =
        eventually("its clock is known", || Ok(only_agent(&collector)["clock_offset_ms"].as_i64()));
    assert!(offset_ms.unwrap().abs() < 5000, "{stands}");
    assert!(collector.text(&["agents", &node]).unwrap().contains("certificate"));

    // The same collector on another machine: its folder, not its process, is what agents trust.
    collector.stop(Signal::SIGTERM).unwrap();
    talk(&agent, "meanwhile", &echo);
    collector.move_data(&site.path().join("another-machine")).unwrap();
    collector.resume().unwrap();
    let run = collector.settled("meanwhile", 1).unwrap();
    assert!(collector.verify(&[&run.id]).unwrap().holds());
    assert_eq!(gaps(&collector), Vec::<String>::new(), "it was the collector that was away");
}

#[test]
fn a_revoked_node_is_told_at_once_and_goes_on_recording_for_itself() {
    let site = Site::new(true).unwrap();
    let echo = Echo::start("127.0.0.1").unwrap();
    let collector = Collector::start(&site).unwrap();
    let mut agent = Agent::start(&site, &collector, "").unwrap();
    talk(&agent, "before", &echo);
    collector.settled("before", 1).unwrap();
    let node = collector.node().unwrap();
    collector.text(&["revoke-node", &node]).unwrap();
    let told = eventually("it is told", || {
        let status = agent.status()?["recording"]["collector"].clone();
        Ok(status["error"].as_str().filter(|error| error.contains("revoked")).map(str::to_owned))
    })
    .unwrap();
    assert!(told.contains("spool") && told.contains("join token"), "says what to do: {told}");
    assert!(agent.log().contains("this node was revoked"), "{}", agent.log());
    talk(&agent, "after", &echo);
    eventually("the spool keeps it", || Ok((!agent.spooled()?.is_empty()).then_some(()))).unwrap();
    assert_eq!(only_agent(&collector)["state"], "revoked");
    assert!(collector.run_labelled("story", "after").unwrap().is_none());
    // Neither a restart nor a token brings it back as itself.
    agent.stop(Signal::SIGTERM).unwrap();
    let token = collector.join_token().unwrap();
    let refused = agent.join_again(&token).unwrap_err().to_string();
    assert!(refused.contains("revoked"), "{refused}");
    agent.resume().unwrap();
    talk(&agent, "later", &echo);
    assert!(collector.run_labelled("story", "later").unwrap().is_none());
    assert!(!agent.spooled().unwrap().is_empty());
}

#[test]
fn why_an_agent_was_away_is_on_record() {
    let site = Site::new(true).unwrap();
    let echo = Echo::start("127.0.0.1").unwrap();
    let collector = Collector::start(&site).unwrap();
    let mut agent = Agent::start(&site, &collector, "").unwrap();
    talk(&agent, "one", &echo);
    collector.settled("one", 1).unwrap();

    agent.stop(Signal::SIGTERM).unwrap();
    eventually("that it stopped is known", || {
        Ok((only_agent(&collector)["state"] == "stopped").then_some(()))
    })
    .unwrap();
    assert_eq!(gaps(&collector), ["stopped"]);
    agent.resume().unwrap();
    talk(&agent, "two", &echo);
    collector.settled("two", 1).unwrap();

    agent.stop(Signal::SIGKILL).unwrap();
    agent.resume().unwrap();
    talk(&agent, "three", &echo);
    collector.settled("three", 1).unwrap();
    eventually("that it died is known", || Ok((gaps(&collector) == ["died", "stopped"]).then_some(())))
        .unwrap();
    let node = collector.node().unwrap();
    let verified = collector.verify(&["--node", &node]).unwrap();
    assert!(verified.holds(), "{}", verified.said);
    for kind in ["no heartbeat: stopped", "no heartbeat: died"] {
        assert!(verified.said.contains(kind), "the signed log says so itself: {}", verified.said);
    }
    // What the collector claims and what the log proves are the same.
    let claimed = only_agent(&collector);
    let report = collector.json(&["verify", "--node", &node]).unwrap();
    let entries = |gaps: &Value| -> Vec<u64> {
        let mut entries: Vec<_> =
            gaps.as_array().unwrap().iter().map(|gap| gap["before_entry"].as_u64().unwrap()).collect();
        entries.sort_unstable();
        entries
    };
    assert_eq!(entries(&report["report"]["silences"]), entries(&claimed["gaps"]));
    fs::metadata(agent.state().join("identity/client.json")).unwrap();
}
