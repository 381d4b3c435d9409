//! What a test stands on: cgroups and pins of its own, an agent with a proxy in this process, clients in others. All of it is
//! taken away at the end, also of a test that fails, and by a watchdog if this process does not live to do it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::super::{Cgroup, Flow, Otherwise, Redirection, Scope, Who, find_cgroup2_mount};

/// Seconds after which a test's cgroups and pins are removed from outside.
const WATCHDOG_S: u32 = 120;
const CLIENT: &str = include_str!("client.py");

/// attach() moves this whole process: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());
static NUMBER: AtomicU32 = AtomicU32::new(0);

pub(crate) struct Ground {
    /// The cgroup that everything attaches to, and within it: where clients live, and a sibling.
    pub(crate) governed: Cgroup,
    pub(super) sibling: Cgroup,
    /// Beside the scope.
    pub(super) outside: Cgroup,
    pub(crate) scope: Scope,
    root: PathBuf,
    home: Cgroup,
    script: tempfile::TempPath,
    watchdog: Child,
    _alone: MutexGuard<'static, ()>,
}

impl Ground {
    pub(crate) fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "the kernel tests attach eBPF programs: run them as root");
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let home = Cgroup::own_current().unwrap();
        let name = format!("weir-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let root = find_cgroup2_mount().unwrap().join(&name);
        let pins = Path::new("/sys/fs/bpf").join(&name);
        let watchdog = watchdog(&root, &pins);
        Cgroup::create(&root).unwrap();
        let [scope, own, outside] = ["scope", "agent", "outside"].map(|part| root.join(part));
        Cgroup::create(&scope).unwrap();
        let [governed, sibling] =
            ["governed", "sibling"].map(|part| Cgroup::create(&scope.join(part)).unwrap());
        let mut script = tempfile::Builder::new().suffix(".py").tempfile().unwrap();
        script.write_all(CLIENT.as_bytes()).unwrap();
        Self {
            governed,
            sibling,
            outside: Cgroup::create(&outside).unwrap(),
            scope: Scope { governed: scope, own, pins, otherwise: Otherwise::Undecided, tuples_max: None },
            root,
            home,
            script: script.into_temp_path(),
            watchdog,
            _alone: alone,
        }
    }

    /// An agent that serves.
    pub(super) fn agent(&self) -> Agent {
        Agent::serving(Redirection::attach(&self.scope).unwrap())
    }

    /// A client in a cgroup; it waits for [`Client::go`].
    pub(crate) fn client(&self, cgroup: &Cgroup, arguments: &[&str]) -> Client {
        let child = Command::new("sh")
            .args(["-c", r#"echo $$ > "$0/cgroup.procs" && exec python3 "$@""#])
            .arg(cgroup.path())
            .arg(&*self.script)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let client = Client(child);
        client.wait_until_in(cgroup);
        client
    }

    /// What a client in the governed cgroup prints.
    pub(super) fn ask(&self, arguments: &[&str]) -> String {
        self.client(&self.governed, arguments).go()
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        self.home.move_in(std::process::id()).unwrap();
        if let Err(error) = Redirection::detach_abandoned(&self.scope.pins) {
            eprintln!("pins stay until the watchdog comes: {error}");
        }
        for part in ["scope/governed", "scope/sibling", "scope", "agent", "outside", ""] {
            let Ok(cgroup) = Cgroup::open(&self.root.join(part)) else { continue };
            let removed = cgroup.kill().and_then(|()| cgroup.remove());
            if let Err(error) = removed {
                eprintln!("a cgroup stays until the watchdog comes: {error}");
            }
        }
        // Only the sleeping shell: it is in a process group of its own.
        let group = nix::unistd::Pid::from_raw(self.watchdog.id().cast_signed());
        let _gone = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        let _status = self.watchdog.wait();
    }
}

/// Frees the host if this process dies in the middle.
fn watchdog(root: &Path, pins: &Path) -> Child {
    use std::os::unix::process::CommandExt as _;
    let script = r#"sleep "$0"; rm -rf "$1"
for cgroup in "$2/scope/governed" "$2/scope/sibling" "$2/scope" "$2/agent" "$2/outside" "$2"; do
    [ -f "$cgroup/cgroup.kill" ] && { echo 1 > "$cgroup/cgroup.kill"; sleep 0.2; rmdir "$cgroup"; }
done"#;
    Command::new("sh")
        .args(["-c", script, &WATCHDOG_S.to_string()])
        .args([pins, root])
        .process_group(0)
        .stdin(Stdio::null())
        .spawn()
        .unwrap()
}

pub(crate) struct Client(Child);

impl Client {
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Lets it run to its end, or to that of the last process that holds its output.
    pub(crate) fn go(mut self) -> String {
        self.0.stdin.take().unwrap().write_all(b"go\n").unwrap();
        let mut printed = String::new();
        self.0.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
        self.0.wait().unwrap();
        printed.trim_end().to_owned()
    }

    /// Lets it take one step more, of a deed that has several; the last is [`Client::go`].
    pub(crate) fn step(&mut self) {
        writeln!(self.0.stdin.as_mut().unwrap()).unwrap();
    }

    fn wait_until_in(&self, cgroup: &Cgroup) {
        let id = self.pid().to_string();
        for _ in 0..500 {
            let inside = std::fs::read_to_string(cgroup.path().join("cgroup.procs")).unwrap();
            let replaced = std::fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
            if inside.lines().any(|line| line == id) && replaced.starts_with("python") {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the client did not start in {}", cgroup.path().display());
    }
}

/// One accepted connection: where it came from, and the flow if there was one.
pub(super) type Arrival = (SocketAddr, Option<Flow>);

/// A redirection with a proxy that tells every client what the kernel told about it.
pub(super) struct Agent {
    pub(super) redirection: Arc<Redirection>,
    pub(super) v4: SocketAddr,
    pub(super) v6: SocketAddr,
    pub(super) arrivals: Arc<Mutex<Vec<Arrival>>>,
    ending: Arc<AtomicBool>,
    accepting: Vec<JoinHandle<()>>,
}

impl Agent {
    pub(super) fn serving(redirection: Redirection) -> Self {
        let (v4, v6) = (listen("127.0.0.1:0"), listen("[::1]:0"));
        redirection.serve(&v4, Some(&v6)).unwrap();
        Self::over(redirection, v4, v6)
    }

    /// Accepts from listeners that are being served already.
    pub(super) fn over(redirection: Redirection, v4: TcpListener, v6: TcpListener) -> Self {
        let redirection = Arc::new(redirection);
        let (address_v4, address_v6) = (v4.local_addr().unwrap(), v6.local_addr().unwrap());
        let arrivals = Arc::new(Mutex::new(Vec::new()));
        let ending = Arc::new(AtomicBool::new(false));
        let accepting = [v4, v6]
            .into_iter()
            .map(|listener| {
                let (redirection, arrivals, ending) = (redirection.clone(), arrivals.clone(), ending.clone());
                std::thread::spawn(move || accept(&listener, &redirection, &arrivals, &ending))
            })
            .collect();
        Self { redirection, v4: address_v4, v6: address_v6, arrivals, ending, accepting }
    }

    /// As a kill -9 leaves it: every descriptor is closed, nothing is told to the kernel.
    pub(super) fn die(mut self) {
        self.stop();
    }

    pub(super) fn arrived(&self) -> Vec<Arrival> {
        self.arrivals.lock().unwrap().clone()
    }

    fn stop(&mut self) {
        self.ending.store(true, Ordering::Release);
        // accept() is only left with a connection; the test process is exempt, so this one is direct.
        let _woken = [self.v4, self.v6].map(TcpStream::connect);
        for thread in self.accepting.drain(..) {
            thread.join().unwrap();
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop();
    }
}

pub(crate) fn listen(address: &str) -> TcpListener {
    let address: SocketAddr = address.parse().unwrap();
    let socket =
        socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None).unwrap();
    // As std does it; a stranger who takes the port of a dead agent does the same.
    socket.set_reuse_address(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket.listen(4096).unwrap();
    socket.into()
}

fn accept(
    listener: &TcpListener,
    redirection: &Redirection,
    arrivals: &Mutex<Vec<Arrival>>,
    ending: &AtomicBool,
) {
    loop {
        let (mut client, from) = listener.accept().unwrap();
        if ending.load(Ordering::Acquire) {
            return;
        }
        let flow = redirection.flow_of(&client).unwrap();
        arrivals.lock().unwrap().push((from, flow.clone()));
        let Some(flow) = flow else {
            socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
            continue;
        };
        // The client may be gone; that is its affair.
        let _gone = writeln!(client, "{}", describe(&flow));
        // The client closes first, so that the closing state and its port are the client's.
        if !ending.load(Ordering::Acquire) {
            client.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
            let _rest = BufReader::new(client).read_line(&mut String::new());
        }
    }
}

/// One line that a client can print.
fn describe(flow: &Flow) -> String {
    format!(
        "origin={} form={:?} who={} run={} pid={} tid={} source={} device={} comm={}",
        flow.origin,
        flow.form,
        match flow.who {
            Who::Governed => "governed",
            Who::Undecided => "undecided",
            Who::Exempt => "exempt",
        },
        flow.run.map_or("-".into(), |run| run.to_string()),
        flow.pid,
        flow.tid,
        flow.bound_source.map_or("-".into(), |source| source.to_string()),
        flow.device_name().unwrap_or("-".into()),
        flow.comm,
    )
}

/// The value of `key=` in a line.
pub(super) fn value<'a>(line: &'a str, key: &str) -> &'a str {
    line.split(' ')
        .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
        .unwrap_or_else(|| panic!("no {key} in: {line}"))
}
