//! What the stories leave on the machine: nothing, also after the worst end.

#![expect(clippy::unwrap_used, reason = "a story that cannot go on has failed")]

use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use weir_tests::process::{Dialogue, program, run};
use weir_tests::{Agent, Collector, Echo, Site};

#[test]
fn nothing_is_left_of_a_killed_agent_its_pins_cgroups_and_runs() {
    let site = Site::new(true).unwrap();
    let echo = Echo::start("127.0.0.1").unwrap();
    let collector = Collector::start(&site).unwrap();
    let mut agent = Agent::start(&site, &collector, "").unwrap();
    let client = program("weir-test-client").unwrap().display().to_string();
    let mut waiting =
        Dialogue::start(&mut agent.exec(&[], &[&client, "silent", &echo.address.to_string()]).unwrap())
            .unwrap();
    assert_eq!(waiting.hear().unwrap(), "connected");
    let (pins, cgroup, folder) = (site.pins(), site.cgroup(), site.path().to_owned());
    assert!(!beginning_with(&pins).is_empty(), "the daemon pins its hooks");
    agent.stop(Signal::SIGKILL).unwrap();
    assert!(!beginning_with(&pins).is_empty(), "the hooks stay while the node agent is dead");
    drop(agent);
    assert_eq!(beginning_with(&pins).iter().filter(|path| !is_empty(path)).count(), 0, "detach leaves pins");
    drop((collector, site));
    assert_eq!(beginning_with(&pins), Vec::<PathBuf>::new());
    assert!(!cgroup.exists(), "{}", cgroup.display());
    assert!(!folder.exists(), "{}", folder.display());
    assert_eq!(processes_of(&folder), Vec::<String>::new());
    // The governed process went with its cgroup.
    drop(waiting);
}

#[test]
fn the_watchdogs_script_removes_what_a_dead_owner_left() {
    let site = Site::new(false).unwrap();
    let (pins, cgroup) = (site.pins(), site.cgroup());
    let collector = Collector::start(&site).unwrap();
    let agent = Agent::start(&site, &collector, "").unwrap();
    assert!(!beginning_with(&pins).is_empty());
    run(std::process::Command::new("sh").args(["-c", &site.removal()])).unwrap();
    assert_eq!(beginning_with(&pins), Vec::<PathBuf>::new());
    assert!(!cgroup.exists(), "{}", cgroup.display());
    drop(agent);
}

fn beginning_with(path: &Path) -> Vec<PathBuf> {
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    let entries = std::fs::read_dir(path.parent().unwrap()).unwrap().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&name))
        .map(|entry| entry.path())
        .collect()
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

/// Command lines that name the folder.
fn processes_of(folder: &Path) -> Vec<String> {
    let folder = folder.display().to_string();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|process| std::fs::read(process.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(&folder))
        .collect()
}
