//! Under a service manager: what it is told, and that the shipped unit leaves the node agent enough to work with.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a story that cannot go on has failed")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use weir_tests::process::{Dialogue, PATIENCE, eventually, program};
use weir_tests::{Agent, Collector, Echo, Site};

const AGENT_UNIT: &str = include_str!("../../deploy/systemd/weir-agent.service");
/// What the wrapper says is the watchdog's time, microseconds.
const WATCHDOG_USEC: u32 = 300_000;

#[test]
fn a_node_agent_with_the_units_capabilities_serves_and_says_so() {
    let site = Site::new(true).unwrap();
    let echo = Echo::start("127.0.0.1").unwrap();
    let collector = Collector::start(&site).unwrap();
    let manager = Manager::listen(site.path());
    let wrapper = manager.wrapper(site.path(), "weir-agent", &capabilities(AGENT_UNIT));
    let mut agent = Agent::configured(&site, "").unwrap().built_as(wrapper);
    agent.join(&collector.join_token().unwrap()).unwrap();
    agent.resume().unwrap();
    manager.hears("READY=1");
    let client = program("weir-test-client").unwrap().display().to_string();
    let mut exec = agent.exec(&[], &[&client, "silent", &echo.address.to_string()]).unwrap();
    let mut governed = Dialogue::start(&mut exec).unwrap();
    assert_eq!(governed.hear().unwrap(), "connected");
    eventually("the session is open", || Ok((agent.status()?["open_sessions"] == 1).then_some(()))).unwrap();
    manager.hears("WATCHDOG=1");
    manager.hears("WATCHDOG=1");
    governed.end().unwrap();
    agent.stop(Signal::SIGTERM).unwrap();
    manager.hears("STOPPING=1");
}

#[test]
fn a_collector_says_when_it_serves() {
    let site = Site::new(false).unwrap();
    let manager = Manager::listen(site.path());
    let wrapper = manager.wrapper(site.path(), "weir-collector", "-all");
    let data = site.folder("data").unwrap();
    let mut serve = std::process::Command::new(wrapper);
    serve.args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "off", "--data"]).arg(&data);
    let server =
        weir_tests::process::Server::start("weir-collector", &mut serve, &site.path().join("log")).unwrap();
    manager.hears("READY=1");
    manager.hears("WATCHDOG=1");
    server.stop(Signal::SIGTERM).unwrap();
    manager.hears("STOPPING=1");
}

/// The service manager's end of the notifications.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn listen(site: &Path) -> Self {
        let path = site.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, path }
    }

    /// Starts `name` as the unit would: told whom to notify, with these capabilities (setpriv(1)) and no way to more.
    fn wrapper(&self, site: &Path, name: &str, bounding_set: &str) -> PathBuf {
        let script = format!(
            "#!/bin/sh\nexport NOTIFY_SOCKET='{}' WATCHDOG_USEC={WATCHDOG_USEC}\n\
             exec setpriv --bounding-set='{bounding_set}' --inh-caps=-all --no-new-privs '{}' \"$@\"\n",
            self.path.display(),
            program(name).unwrap().display()
        );
        let path = site.join(format!("as-service-{name}"));
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// Waits for a notification with this line.
    fn hears(&self, line: &str) {
        let mut buffer = [0; 4096];
        loop {
            let length = self.socket.recv(&mut buffer).unwrap_or_else(|error| panic!("no {line}: {error}"));
            if String::from_utf8_lossy(&buffer[..length]).lines().any(|told| told == line) {
                return;
            }
        }
    }
}

/// The unit's `CapabilityBoundingSet=`, in setpriv's words.
fn capabilities(unit: &str) -> String {
    let line = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).unwrap();
    let names = line.split_whitespace().map(|name| name.strip_prefix("CAP_").unwrap().to_lowercase());
    names.fold("-all".to_owned(), |set, name| set + ",+" + &name)
}
