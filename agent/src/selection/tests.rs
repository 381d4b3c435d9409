//! Rules over the real hooks and real processes.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use super::digest::Digest;
use super::{Chosen, Process, Run, Runs, Select};
use crate::redirection::kernel_tests::ground::{Client, Ground, listen};
use crate::redirection::{Cgroup, Flow, Redirection, find_cgroup2_mount};

/// An agent that decides about connections and makes none.
struct Site {
    runs: Runs,
    redirection: Arc<Redirection>,
    listener: TcpListener,
    state: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    ground: Ground,
}

impl Site {
    fn with(rules: &str) -> Self {
        let ground = Ground::new();
        let redirection = Arc::new(Redirection::attach(&ground.scope).unwrap());
        let listener = listen("127.0.0.1:0");
        redirection.serve::<TcpListener>(&listener, None).unwrap();
        let state = tempfile::tempdir().unwrap();
        let runs = adopt(&ground, &redirection, rules, state.path());
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        Self { runs, redirection, listener, state, runtime, ground }
    }

    /// What becomes of the next connection.
    fn choose(&self) -> (Flow, Chosen, weir_proto::v1::Process) {
        let (accepted, _) = self.listener.accept().unwrap();
        self.choose_of(&accepted)
    }

    fn choose_of(&self, accepted: &std::net::TcpStream) -> (Flow, Chosen, weir_proto::v1::Process) {
        let flow = self.redirection.flow_of(accepted).unwrap().unwrap();
        self.runtime.block_on(async {
            let mut process = Process::read(&flow).await;
            let chosen = self.runs.choose(&flow, &mut process).await;
            (flow, chosen, process.to_message())
        })
    }

    /// What becomes of the connection of a client that waits for the answer.
    fn ask(&self, client: Client) -> (Flow, Chosen, weir_proto::v1::Process) {
        let going = std::thread::spawn(move || client.go());
        let answer = self.choose();
        going.join().unwrap();
        answer
    }

    fn client(&self) -> Client {
        self.ground.client(&self.ground.governed, &["connect", "198.18.0.1", "80"])
    }
}

fn adopt(ground: &Ground, redirection: &Arc<Redirection>, rules: &str, state: &Path) -> Runs {
    #[derive(serde::Deserialize)]
    struct Rules {
        #[serde(default)]
        select: Vec<Select>,
    }
    let rules: Rules = toml::from_str(rules).unwrap();
    let mount = find_cgroup2_mount().unwrap();
    Runs::adopt(redirection.clone(), rules.select, mount, &ground.scope.governed, state.to_owned()).unwrap()
}

fn governed(chosen: &Chosen) -> Arc<Run> {
    match chosen {
        Chosen::Governed(run) => run.clone(),
        Chosen::Untouched => panic!("left alone"),
    }
}

fn subject(run: &Run) -> String {
    run.to_message().principal.unwrap().subject
}

/// What sha256sum says of it.
fn digest_of(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap().to_owned()
}

/// The interpreter that clients run in, as /proc shows it.
fn python() -> PathBuf {
    let which = Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output().unwrap();
    std::fs::canonicalize(String::from_utf8(which.stdout).unwrap().trim()).unwrap()
}

/// A copy of bash under another name, that connects: what it executes can be chosen, and deleted.
fn bash_as(path: &Path, ground: &Ground, script: &str) -> std::process::Child {
    std::fs::copy("/bin/bash", path).unwrap();
    Command::new("sh")
        .args(["-c", r#"echo $$ > "$0/cgroup.procs" && exec "$@""#])
        .arg(ground.governed.path())
        .arg(path)
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Waits until its executable is this one.
fn executes(pid: u32, path: &Path) {
    for _ in 0..500 {
        if std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|found| found == path) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("{pid} does not execute {}", path.display());
}

const CONNECT: &str = "read; exec 3<>/dev/tcp/198.18.0.1/80; read -u 3";

#[test]
fn a_process_is_selected_by_all_that_is_known_of_it_and_its_run_says_so() {
    let python = python();
    let digest = digest_of(&python);
    let site = Site::with(&format!(
        "[[select]]
        name = 'other'
        executables = ['{0}']
        users = [4242]
        [[select]]
        name = 'wrong'
        executable_sha256 = ['{1}']
        [[select]]
        name = 'client'
        executables = ['{0}']
        executable_sha256 = ['{digest}']
        users = ['root']
        labels = {{ team = 'x' }}",
        python.display(),
        "0".repeat(64),
    ));
    let client = site.ground.client(&site.ground.governed, &["storm", "3", "198.18.0.1", "80"]);
    let pid = client.pid();
    let (flow, chosen, process) = site.ask(client);
    let run = governed(&chosen);
    assert_eq!((flow.pid, flow.run), (pid, None), "the kernel did not know");
    assert_eq!((run.initiator.as_str(), run.labels["team"].as_str()), ("select:client", "x"));
    assert_eq!(subject(&run), format!("uid:0 sha256:{digest}"));
    assert_eq!(process.executable, python.display().to_string());
    assert_eq!(Digest::try_from(digest).unwrap().to_field(), process.executable_sha256);
    // Another process is another run.
    let (_, other, _) = site.ask(site.client());
    assert_ne!(governed(&other).id, run.id);
}

#[test]
fn what_no_rule_is_about_is_left_alone_and_what_is_exempt_too() {
    let site = Site::with(
        "[[select]]
        name = 'exempt'
        govern = false
        executables = ['**/python*']
        [[select]]
        name = 'all'
        executables = ['/**']",
    );
    assert!(matches!(site.ask(site.client()).1, Chosen::Untouched));
    let folder = tempfile::tempdir().unwrap();
    let mut bash = bash_as(&folder.path().join("bash"), &site.ground, CONNECT);
    drop(bash.stdin.take());
    assert_eq!(governed(&site.choose().1).initiator, "select:all");
    bash.wait().unwrap();
}

#[test]
fn a_child_that_connects_before_its_parent_is_in_its_parents_run() {
    let folder = tempfile::tempdir().unwrap();
    let agent = folder.path().join("agent");
    let site = Site::with(&format!(
        "[[select]]\nname = 'agent'\nexecutables = ['{}']\nprincipal = 'the agent'",
        agent.display()
    ));
    let script = format!("/bin/bash -c '{CONNECT}; true'; {CONNECT}");
    let mut parent = bash_as(&agent, &site.ground, &script);
    executes(parent.id(), &agent);
    let mut stdin = parent.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, b"1\n").unwrap();
    let (flow, chosen, process) = site.choose();
    let run = governed(&chosen);
    assert_ne!(flow.pid, parent.id());
    assert!(process.executable.ends_with("/bash"), "{}", process.executable);
    assert_eq!(subject(&run), "the agent");
    assert_eq!(run.root.unwrap().pid, parent.id(), "the tree begins with what the rule names");
    assert_eq!(site.redirection.process_run(parent.id()), Some(run.id), "and the kernel knows from now on");
    std::io::Write::write_all(&mut stdin, b"2\n").unwrap();
    let (flow, chosen, _) = site.choose();
    assert_eq!((flow.pid, flow.run), (parent.id(), Some(run.id)));
    assert_eq!(governed(&chosen).id, run.id);
    parent.wait().unwrap();
    assert_eq!(site.redirection.members(run.id), [0_u32; 0]);
}

#[test]
fn what_can_no_longer_be_told_is_governed() {
    let folder = tempfile::tempdir().unwrap();
    let agent = folder.path().join("agent");
    let digest = digest_of(Path::new("/bin/bash"));
    let site = Site::with(&format!(
        "[[select]]
        name = 'elsewhere'
        cgroup = '/nowhere'
        [[select]]
        name = 'path'
        executables = ['/nowhere']
        labels = {{ strict = 'yes' }}
        [[select]]
        name = 'content'
        executable_sha256 = ['{digest}']
        cgroup = '/nowhere'",
    ));
    // Ended before anybody looked.
    let client = site.ground.client(&site.ground.governed, &["many", "0", "1", "reset"]);
    let accepting = site.listener.try_clone().unwrap();
    let accepted = std::thread::spawn(move || accepting.accept().unwrap().0);
    client.go();
    let (flow, chosen, process) = site.choose_of(&accepted.join().unwrap());
    let run = governed(&chosen);
    assert!(!flow.still_runs());
    assert_eq!(run.initiator, "select:path:undetermined", "the first rule that nothing speaks against");
    assert_eq!((subject(&run).as_str(), run.labels["strict"].as_str()), ("undetermined", "yes"));
    assert_eq!((process.executable.as_str(), process.executable_sha256.len()), ("", 0));
    assert!(
        process.cgroup.ends_with("/scope/governed"),
        "its cgroup is known all the same: {}",
        process.cgroup
    );
    // Its executable is gone, or another by now: whatever its path was, nobody can say what it is called.
    let mut deleted = bash_as(&agent, &site.ground, CONNECT);
    executes(deleted.id(), &agent);
    std::fs::remove_file(&agent).unwrap();
    drop(deleted.stdin.take());
    let (_, chosen, process) = site.choose();
    assert_eq!(governed(&chosen).id, run.id);
    assert!(process.executable.ends_with(" (deleted)"), "{}", process.executable);
    assert_eq!(
        Digest::try_from(digest).unwrap().to_field(),
        process.executable_sha256,
        "what it runs is known"
    );
    deleted.wait().unwrap();
    // One that is as it seems is not governed.
    assert!(matches!(site.ask(site.client()).1, Chosen::Untouched));
}

#[test]
fn the_digest_is_that_of_what_runs_and_not_of_what_its_path_leads_to() {
    let folder = tempfile::tempdir().unwrap();
    let agent = folder.path().join("agent");
    let digest = digest_of(Path::new("/bin/bash"));
    let site = Site::with(&format!("[[select]]\nname = 'content'\nexecutable_sha256 = ['{digest}']"));
    let mut replaced = bash_as(&agent, &site.ground, CONNECT);
    executes(replaced.id(), &agent);
    let other = folder.path().join("other");
    std::fs::write(&other, "#!/bin/sh\n").unwrap();
    std::fs::rename(&other, &agent).unwrap();
    drop(replaced.stdin.take());
    assert_eq!(governed(&site.choose().1).initiator, "select:content");
    replaced.wait().unwrap();
}

#[test]
fn a_container_is_a_run_and_the_kernel_knows_it_from_its_first_connection() {
    let id = "0f3a1cde9b7e4b1d8a6f5c4d3e2b1a0f9e8d7c6b5a4938271605f4e3d2c1b0a9";
    let site = Site::with(&format!(
        "[[select]]\nname = 'box'\ncontainers = ['{}']\n[[select]]\nname = 'never'\ncontainers = ['ffffffffffff']",
        &id[..12]
    ));
    let container = Cgroup::create(&site.ground.governed.path().join(format!("docker-{id}.scope"))).unwrap();
    let inner = Cgroup::create(&container.path().join("init")).unwrap();
    let ask = ["connect", "198.18.0.1", "80"];
    let (flow, chosen, process) = site.ask(site.ground.client(&inner, &ask));
    let run = governed(&chosen);
    assert_eq!((flow.run, process.container.as_str()), (None, id));
    assert_eq!((run.initiator.as_str(), run.cgroup_id), ("select:box", container.id()));
    let (flow, chosen, _) = site.ask(site.ground.client(&container, &ask));
    assert_eq!((flow.run, governed(&chosen).id), (Some(run.id), run.id));
    assert!(matches!(site.ask(site.client()).1, Chosen::Untouched), "beside the container");
    for cgroup in [inner, container] {
        cgroup.remove().unwrap();
    }
}

#[test]
fn a_rule_before_the_one_that_governs_a_process_goes_first_whatever_connected_when() {
    let folder = tempfile::tempdir().unwrap();
    let [shell, agent] = ["shell", "agent"].map(|name| folder.path().join(name));
    std::fs::copy("/bin/bash", &agent).unwrap();
    let site = Site::with(&format!(
        "[[select]]
        name = 'agent'
        executables = ['{}']
        [[select]]
        name = 'people'
        users = [0]",
        agent.display()
    ));
    let script = format!("{CONNECT}; {} -c '{CONNECT}; /bin/bash -c \"{CONNECT}\"; true'", agent.display());
    let mut parent = bash_as(&shell, &site.ground, &script);
    let mut stdin = parent.stdin.take().unwrap();
    let mut next = || {
        std::io::Write::write_all(&mut stdin, b"\n").unwrap();
        site.choose()
    };
    let people = governed(&next().1);
    assert_eq!(people.initiator, "select:people");
    let (flow, chosen, _) = next();
    assert_eq!(flow.run, Some(people.id), "the kernel takes it for a part of its parent's");
    let run = governed(&chosen);
    assert_eq!((run.initiator.as_str(), run.root.unwrap().pid), ("select:agent", flow.pid));
    let (flow, chosen, _) = next();
    assert_eq!((flow.run, governed(&chosen).id), (Some(run.id), run.id), "and what it starts is its own");
    parent.wait().unwrap();
}

#[test]
fn a_tree_is_known_again_by_the_next_agent_and_ends_with_its_last_process() {
    let folder = tempfile::tempdir().unwrap();
    let agent = folder.path().join("agent");
    let rules = format!("[[select]]\nname = 'agent'\nexecutables = ['{}']", agent.display());
    let site = Site::with(&rules);
    let mut tree = bash_as(&agent, &site.ground, &format!("{CONNECT}; read"));
    executes(tree.id(), &agent);
    let mut stdin = tree.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, b"\n").unwrap();
    let run = governed(&site.choose().1);
    site.runs.sweep();
    assert!(site.runs.find(run.id).is_some(), "its process lives");
    let next = adopt(&site.ground, &site.redirection, &rules, site.state.path());
    assert_eq!(next.find(run.id).map(|run| subject(&run)), Some(subject(&run)));
    drop(stdin);
    tree.wait().unwrap();
    next.end(&run);
    let later = adopt(&site.ground, &site.redirection, &rules, site.state.path());
    assert!(later.find(run.id).is_none());
}
