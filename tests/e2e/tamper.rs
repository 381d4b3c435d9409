//! Whoever deletes or changes what was recorded is found out, and `weir verify` names what is wrong.

#![expect(clippy::unwrap_used, reason = "a story that cannot go on has failed")]

use std::fs;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use weir_tests::process::{eventually, program, run};
use weir_tests::{Agent, Collector, Echo, Site, sealed};

struct Ground {
    agent: Agent,
    collector: Collector,
    echo: Echo,
    site: Site,
}

impl Ground {
    fn new() -> Self {
        let site = Site::new(true).unwrap();
        let collector = Collector::start(&site).unwrap();
        let agent = Agent::start(&site, &collector, "").unwrap();
        Self { agent, collector, echo: Echo::start("127.0.0.1").unwrap(), site }
    }

    /// One governed connection.
    fn talk(&self, story: &str) {
        let client = program("weir-test-client").unwrap().display().to_string();
        let (label, address) = (format!("story={story}"), self.echo.address.to_string());
        run(&mut self.agent.exec(&[&label], &[&client, "talk", &address]).unwrap()).unwrap();
    }

    /// The id of the one session of a story.
    fn session(&self, story: &str) -> String {
        let run = self.collector.settled(story, 1).unwrap();
        self.collector.sessions(&run).unwrap()[0].id.clone()
    }

    fn node(&self) -> String {
        self.collector.node().unwrap()
    }

    /// All that the node agent holds has arrived.
    fn wait_until_shipped(&self) {
        eventually("the spool is empty", || {
            let waiting = self.agent.spooled()?;
            Ok(waiting.is_empty().then_some(()))
        })
        .unwrap();
    }

    /// Changes rows of the collector's index behind its back.
    fn index(&self, statement: &str) {
        let (_, changed) = self.collector.index(statement).unwrap();
        assert!(changed > 0, "nothing was changed by {statement}");
    }
}

#[test]
fn a_session_deleted_from_the_spool_is_named() {
    let mut ground = Ground::new();
    ground.talk("before");
    let node = ground.node();
    ground.session("before");
    ground.collector.stop(Signal::SIGTERM).unwrap();
    ground.talk("deleted");
    ground.talk("kept");
    let victims = eventually("two sessions are spooled and closed", || {
        let files = ground.agent.spooled()?;
        let mut closed = Vec::new();
        for file in &files {
            let segment = sealed::spooled(file)?;
            if segment.draft().last {
                closed.push((segment.draft().number, segment.session(), file.clone()));
            }
        }
        closed.sort_by_key(|(number, ..)| *number);
        Ok((closed.len() >= 2).then_some(closed))
    })
    .unwrap();
    ground.agent.stop(Signal::SIGTERM).unwrap();
    let (number, session, _) = victims[victims.len() - 2].clone();
    for file in ground.agent.spooled().unwrap() {
        if sealed::spooled(&file).unwrap().session() == session {
            fs::remove_file(file).unwrap();
        }
    }
    ground.collector.resume().unwrap();
    ground.agent.resume().unwrap();
    ground.session("kept");
    ground.wait_until_shipped();
    let verified = eventually("the node log has arrived", || {
        let verified = ground.collector.verify(&["--node", &node])?;
        Ok((verified.code == Some(1)).then_some(verified))
    })
    .unwrap();
    let named = verified.said.contains(&session.to_string()) || verified.said.contains(&format!("{number}"));
    assert!(named, "session {session} (number {number}) is not named: {}", verified.said);
    // What is there still verifies by itself.
    let run = ground.collector.settled("kept", 1).unwrap();
    assert!(ground.collector.verify(&[&run.id]).unwrap().holds());
}

#[test]
fn a_node_day_a_segment_and_a_session_deleted_at_the_collector_and_a_changed_byte_are_named() {
    let mut ground = Ground::new();
    for story in ["one", "two", "three"] {
        ground.talk(story);
        ground.session(story);
    }
    ground.wait_until_shipped();
    let node = ground.node();
    let (one, two) =
        (ground.collector.settled("one", 1).unwrap(), ground.collector.settled("two", 1).unwrap());
    let (first, second) = (ground.session("one"), ground.session("two"));
    eventually("all is well", || Ok(ground.collector.verify(&["--node", &node])?.holds().then_some(())))
        .unwrap();
    ground.agent.stop(Signal::SIGTERM).unwrap();
    ground.collector.stop(Signal::SIGTERM).unwrap();
    let (data, kept) = (ground.collector.data(), ground.site.path().join("kept"));
    run(Command::new("cp").arg("-a").arg(&data).arg(&kept)).unwrap();

    // What a rooted collector may try, each on a fresh copy; what verify must name, and where.
    let blob = |id: &str| format!("x'{}'", id.replace('-', ""));
    let attempts = [
        (
            "a node day",
            format!("DELETE FROM node_entry WHERE idx = 2 AND node_id = {}", blob(&node)),
            "--node",
            node.clone(),
            "log",
        ),
        (
            "the end of the node log",
            format!("DELETE FROM node_entry WHERE idx >= 2 AND node_id = {}", blob(&node)),
            "--node",
            node.clone(),
            "log",
        ),
        (
            "a session with its row",
            format!("DELETE FROM session WHERE id = {}", blob(&second)),
            "--node",
            node.clone(),
            second.as_str(),
        ),
        (
            "a whole session",
            format!("DELETE FROM segment WHERE session_id = {}", blob(&second)),
            "--node",
            node.clone(),
            second.as_str(),
        ),
        (
            "a segment",
            format!("DELETE FROM segment WHERE seq = 0 AND session_id = {}", blob(&first)),
            "",
            one.id.clone(),
            first.as_str(),
        ),
    ];
    for (what, statement, flag, subject, named) in &attempts {
        ground.index(statement);
        ground.collector.resume().unwrap();
        let arguments: Vec<&str> =
            [flag, subject.as_str()].into_iter().filter(|word| !word.is_empty()).collect();
        let verified = ground.collector.verify(&arguments).unwrap();
        assert!(verified.names(named), "{what} deleted: {verified:?}");
        ground.collector.stop(Signal::SIGTERM).unwrap();
        restore(&kept, &data);
    }

    // One flipped bit in a stored bundle: the session it belongs to, and no other.
    let mut changed = 0;
    for file in sealed::files(&data.join("objects")).unwrap() {
        let Ok(segments) = sealed::bundled(&file) else { continue };
        let mut at = 0;
        let mut bytes = fs::read(&file).unwrap();
        for segment in segments {
            let length = segment.bytes().len();
            if segment.session().to_string() == second {
                bytes[at + length - 20] ^= 1;
                changed += 1;
            }
            at += length;
        }
        fs::write(&file, bytes).unwrap();
    }
    assert!(changed > 0, "the session's segments were not found in any bundle");
    ground.collector.resume().unwrap();
    let verified = ground.collector.verify(&[&two.id]).unwrap();
    assert!(verified.names(&second), "a changed byte: {verified:?}");
    assert!(ground.collector.verify(&[&one.id]).unwrap().holds());
}

#[test]
fn an_agent_rolled_back_to_an_old_disk_copy_is_named() {
    let mut ground = Ground::new();
    ground.talk("before");
    ground.session("before");
    ground.wait_until_shipped();
    ground.agent.stop(Signal::SIGTERM).unwrap();
    let (state, kept) = (ground.agent.state(), ground.site.path().join("kept"));
    run(Command::new("cp").arg("-a").arg(&state).arg(&kept)).unwrap();
    ground.agent.resume().unwrap();
    ground.talk("lost on the disk");
    let lost = ground.session("lost on the disk");
    ground.wait_until_shipped();
    let node = ground.node();
    eventually("all is well", || Ok(ground.collector.verify(&["--node", &node])?.holds().then_some(())))
        .unwrap();
    ground.agent.stop(Signal::SIGTERM).unwrap();
    ground.site.rearm().unwrap();

    restore(&kept, &state);
    ground.agent.resume().unwrap();
    ground.talk("after");
    let after = ground.session("after");
    assert_ne!(lost, after);
    let verified = eventually("the rollback is known", || {
        let verified = ground.collector.verify(&["--node", &node])?;
        Ok((verified.code == Some(1)).then_some(verified))
    })
    .unwrap();
    let said = verified.said.to_lowercase();
    assert!(said.contains("rolled back") || said.contains("rollback"), "{verified:?}");
    // What was received before the rollback is still there, and whole.
    for story in ["before", "lost on the disk", "after"] {
        let run = ground.collector.settled(story, 1).unwrap();
        assert!(ground.collector.verify(&[&run.id]).unwrap().holds(), "{story}");
    }
}

fn restore(kept: &Path, place: &Path) {
    fs::remove_dir_all(place).unwrap();
    run(Command::new("cp").arg("-a").arg(kept).arg(place)).unwrap();
}
