//! Children that die with their owner, and commands whose failure says what they printed.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long a server may take to start or to stop, and any awaited state to come.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A program of this workspace, as cargo built it.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    let dir = match std::env::var_os("WEIR_BIN_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => {
            let exe = std::env::current_exe()?;
            let dir = exe.parent().context("no folder of programs")?;
            if dir.ends_with("deps") { dir.parent().unwrap_or(dir).to_owned() } else { dir.to_owned() }
        }
    };
    let path = dir.join(name);
    if !path.exists() {
        bail!("{} is not built: run this through `cargo xtask`", path.display());
    }
    Ok(path)
}

/// A server started here: its output goes to a log file; it is killed when dropped.
pub struct Server {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Server {
    pub fn start(name: &str, command: &mut Command, log: &Path) -> anyhow::Result<Self> {
        let file = File::options().create(true).append(true).open(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Self { child, name: name.to_owned(), log: log.to_owned() })
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until `ready`, or says what the server printed when it ended or took too long.
    pub fn wait_until(&mut self, what: &str, mut ready: impl FnMut() -> bool) -> anyhow::Result<()> {
        let start = Instant::now();
        while !ready() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status} before {what}:\n{}", self.name, self.log());
            }
            if start.elapsed() > PATIENCE {
                bail!("{}: no {what} within {PATIENCE:?}:\n{}", self.name, self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(kill(self.pid(), signal)?)
    }

    /// Sends the signal and waits for the end.
    pub fn stop(mut self, signal: Signal) -> anyhow::Result<()> {
        self.signal(signal)?;
        let start = Instant::now();
        while self.child.try_wait()?.is_none() {
            if start.elapsed() > PATIENCE {
                bail!("{} did not stop within {PATIENCE:?}:\n{}", self.name, self.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Lets it live on when its owner ends.
    pub fn release(self) -> u32 {
        let pid = self.child.id();
        std::mem::forget(self);
        pid
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already; then there is nobody to kill or to wait for.
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

/// Runs to the end; a failure carries what was printed.
pub fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = output(command)?;
    if !output.status.success() {
        bail!(
            "{command:?} failed with {}:\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs to the end, whatever that is.
pub fn output(command: &mut Command) -> anyhow::Result<Output> {
    command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))
}

/// Ports for servers, below those that the kernel gives to clients: a server that was killed finds its port free when it
/// is started again.
const SERVER_PORTS: std::ops::Range<u16> = 20_000..32_000;

/// A TCP port on loopback that nobody has now.
pub fn free_port() -> anyhow::Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Tests that run side by side begin at different places.
    let start = (std::process::id() % 600) as u16 * 20;
    for _ in 0..SERVER_PORTS.len() {
        let step = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = SERVER_PORTS.start + step % SERVER_PORTS.len() as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no port between {} and {} is free", SERVER_PORTS.start, SERVER_PORTS.end)
}

/// A page of the listener whose address is in the last line of a program's log that says `words`.
pub fn admin_page(log: &str, words: &str, path: &str) -> anyhow::Result<String> {
    let address_in = |line: &str| {
        let line = without_colours(line);
        let words = line.split(|c: char| c.is_whitespace() || c == '=' || c == '"' || c == ',');
        words.filter_map(|word| word.parse::<std::net::SocketAddr>().ok()).next_back()
    };
    let address = log.lines().rev().filter(|line| line.contains(words)).find_map(address_in);
    let address = address.with_context(|| format!("no address of the {words} in {log}"))?;
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("not an HTTP answer")?;
    if !head.starts_with("HTTP/1.1 200") {
        bail!("{path}: {head}");
    }
    Ok(body.to_owned())
}

/// A log line as a person sees it.
fn without_colours(line: &str) -> String {
    let mut plain = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once('\u{1b}') {
        plain.push_str(before);
        rest = after.split_once('m').map_or("", |(_, rest)| rest);
    }
    plain + rest
}

/// A child that is spoken with line by line.
pub struct Dialogue {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Dialogue {
    pub fn start(command: &mut Command) -> anyhow::Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().context("no stdout")?);
        Ok(Self { child, input, output })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line it prints; empty at its end.
    pub fn hear(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    pub fn say(&mut self, line: impl std::fmt::Display) -> anyhow::Result<()> {
        let input = self.input.as_mut().context("its stdin is closed")?;
        writeln!(input, "{line}")?;
        Ok(input.flush()?)
    }

    pub fn ask(&mut self, line: impl std::fmt::Display) -> anyhow::Result<String> {
        self.say(line)?;
        self.hear()
    }

    /// Ends its stdin and waits for its end.
    pub fn end(mut self) -> anyhow::Result<ExitStatus> {
        self.input = None;
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if start.elapsed() > PATIENCE {
                bail!("a child did not end within {PATIENCE:?}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends it the hard way.
    pub fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Dialogue {
    fn drop(&mut self) {
        // It may have ended already; then there is nobody to kill or to wait for.
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

/// Memory that a process has in RAM now, bytes.
pub fn resident_bytes(pid: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? * 1024)
}

/// Waits for a state of the world.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if start.elapsed() > PATIENCE {
            bail!("{what}: not within {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
