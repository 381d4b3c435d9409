//! What governed processes do in the end-to-end tests: small deeds with sockets and processes, each told on stdout.

#![expect(unsafe_code, reason = "fork, and the end of a process's main thread alone, are what is tested")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn6, SockaddrStorage, connect, getpeername, socket,
};
use nix::unistd::{ForkResult, fork};
use weir_tests::peer::{Noise, how_it_ended, reset};

/// No deed waits longer for a peer: longer than the node agent makes connections wait on a full disk.
const PATIENCE: Duration = Duration::from_secs(100);
/// A probe waits longer than a session waits to be opened, and less long than one that is open waits to be recorded.
const PROBE_PATIENCE: Duration = Duration::from_secs(35);

#[derive(Parser)]
struct Flags {
    #[command(subcommand)]
    deed: Deed,
}

#[derive(Subcommand)]
enum Deed {
    /// One line to an echo server and back; tells the peer's address as this process sees it.
    Talk {
        address: SocketAddr,
    },
    /// The same through an IPv6 socket and a v4-mapped address.
    TalkMapped {
        address: SocketAddr,
    },
    /// Ends its writing half first, then reads a late answer to its end.
    EndThenRead {
        address: SocketAddr,
    },
    /// Reads to the end first, then writes.
    ReadThenWrite {
        address: SocketAddr,
    },
    /// Says a line, waits for one, and resets.
    Reset {
        address: SocketAddr,
    },
    /// Says a line and tells how the peer ended it.
    AwaitEnd {
        address: SocketAddr,
    },
    /// Connects and sends nothing until its stdin ends.
    Silent {
        address: SocketAddr,
    },
    /// Asks and never reads until its stdin ends.
    NeverReads {
        address: SocketAddr,
    },
    Upload {
        address: SocketAddr,
        bytes: u64,
    },
    Download {
        address: SocketAddr,
        bytes: u64,
    },
    /// Many short connections over these destinations in turn; every fourth is reset at once.
    Many {
        #[arg(required = true)]
        addresses: Vec<SocketAddr>,
        #[arg(long)]
        count: usize,
    },
    /// From a thread, from a double-forked child, and from a process whose main thread has exited.
    Family {
        address: SocketAddr,
    },
    /// Sends these bytes (hex) and tells how it ended.
    Send {
        address: SocketAddr,
        hex: String,
    },
    /// Sends noise and tells how it ended.
    SendNoise {
        address: SocketAddr,
        seed: u64,
        bytes: u64,
    },
    /// For each address on stdin, one connection and one line: `ok` or the error.
    Probe,
    /// One connection after the other, a numbered line on each, until the file appears.
    Reconnect {
        address: SocketAddr,
        until: PathBuf,
    },
    /// Logs in to a PostgreSQL that trusts `user`, prints the cancel key it was given (hex), and cancels with it.
    CancelKey {
        address: SocketAddr,
        user: String,
    },
    /// Prints its pid, the ids around it, and waits for its stdin to end.
    Who,
}

fn main() -> anyhow::Result<()> {
    match Flags::parse().deed {
        Deed::Talk { address } => talk(connected(address)?, "hello"),
        Deed::TalkMapped { address } => talk_mapped(address),
        Deed::EndThenRead { address } => {
            let mut stream = connected(address)?;
            stream.write_all(b"question\n")?;
            stream.shutdown(Shutdown::Write)?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            print!("{answer}");
            Ok(())
        }
        Deed::ReadThenWrite { address } => {
            let mut stream = connected(address)?;
            let mut greeting = String::new();
            stream.read_to_string(&mut greeting)?;
            Noise::new(7).send(&mut stream, 300_000)?;
            println!("{} then 300000 bytes", greeting.trim());
            Ok(())
        }
        Deed::Reset { address } => {
            let mut stream = connected(address)?;
            line(&mut stream, "hello")?;
            Ok(reset(stream)?)
        }
        Deed::AwaitEnd { address } => {
            let mut stream = connected(address)?;
            stream.write_all(b"hello\n")?;
            println!("{}", how_it_ended(&mut stream, PATIENCE));
            Ok(())
        }
        Deed::Silent { address } => {
            let _open = connected(address)?;
            wait_for_stdin("connected")
        }
        Deed::NeverReads { address } => {
            let mut stream = connected(address)?;
            stream.write_all(b"pour\n")?;
            wait_for_stdin("connected")
        }
        Deed::Upload { address, bytes } => {
            let mut stream = connected(address)?;
            Noise::new(bytes).send(&mut stream, bytes)?;
            stream.shutdown(Shutdown::Write)?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            print!("{answer}");
            Ok(())
        }
        Deed::Download { address, bytes } => {
            let mut stream = connected(address)?;
            writeln!(stream, "{bytes}")?;
            println!("{}", Noise::new(bytes).receive(&mut stream)?);
            Ok(())
        }
        Deed::Many { addresses, count } => many(&addresses, count),
        Deed::Family { address } => family(address),
        Deed::Send { address, hex } => send(address, &unhex(&hex)?),
        Deed::SendNoise { address, seed, bytes } => {
            let mut block = vec![0; usize::try_from(bytes)?];
            Noise::new(seed).fill(&mut block);
            send(address, &block)
        }
        Deed::Probe => probe(),
        Deed::Reconnect { address, until } => reconnect(address, &until),
        Deed::CancelKey { address, user } => cancel_key(address, &user),
        Deed::Who => who(),
    }
}

fn connected(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// One line there and back.
fn line(stream: &mut TcpStream, text: &str) -> anyhow::Result<String> {
    writeln!(stream, "{text}")?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(answer.trim_end().to_owned())
}

fn talk(mut stream: TcpStream, text: &str) -> anyhow::Result<()> {
    let peer = stream.peer_addr()?;
    println!("{peer} {}", line(&mut stream, text)?);
    Ok(())
}

fn talk_mapped(address: SocketAddr) -> anyhow::Result<()> {
    let SocketAddr::V4(v4) = address else { anyhow::bail!("give an IPv4 address") };
    let mapped = SocketAddr::from((v4.ip().to_ipv6_mapped(), v4.port()));
    let SocketAddr::V6(mapped) = mapped else { anyhow::bail!("no mapped address") };
    let fd = socket(AddressFamily::Inet6, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    connect(fd.as_raw_fd(), &SockaddrIn6::from(mapped))?;
    let peer: SockaddrStorage = getpeername(fd.as_raw_fd())?;
    // SAFETY: the descriptor is a connected TCP socket and is owned by nobody else.
    let mut stream = unsafe { TcpStream::from_raw_fd(fd.into_raw_fd()) };
    println!("{} {}", peer, line(&mut stream, "hello")?);
    Ok(())
}

fn wait_for_stdin(word: &str) -> anyhow::Result<()> {
    println!("{word}");
    std::io::stdout().flush()?;
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}

fn many(addresses: &[SocketAddr], count: usize) -> anyhow::Result<()> {
    for number in 0..count {
        let address = addresses[number % addresses.len()];
        let mut stream = connected(address)?;
        anyhow::ensure!(stream.peer_addr()? == address, "peer {} instead of {address}", stream.peer_addr()?);
        if number % 4 == 3 {
            reset(stream)?;
            continue;
        }
        let text = format!("{} {number}", std::process::id());
        let answer = line(&mut stream, &text)?;
        anyhow::ensure!(answer == format!("echo: {text}"), "{text:?} was answered {answer:?}");
    }
    println!("{count}");
    Ok(())
}

fn family(address: SocketAddr) -> anyhow::Result<()> {
    let threaded = std::thread::spawn(move || connected(address).and_then(|stream| talk(stream, "thread")));
    threaded.join().map_err(|_| anyhow::anyhow!("the thread failed"))??;
    std::io::stdout().flush()?;
    // SAFETY: no other thread is alive, so the child may do what this process may.
    if let ForkResult::Child = unsafe { fork() }? {
        let middle = nix::unistd::getpid();
        // SAFETY: as above.
        if let ForkResult::Child = unsafe { fork() }? {
            nix::unistd::setsid()?;
            // Until the middle one is gone and this one belongs to somebody else.
            while nix::unistd::getppid() == middle {
                std::thread::sleep(Duration::from_millis(5));
            }
            connected(address).and_then(|stream| talk(stream, "orphan"))?;
            std::process::exit(0);
        }
        std::process::exit(0);
    }
    nix::sys::wait::wait()?;
    std::thread::spawn(move || {
        let told =
            wait_for_leader().and_then(|()| connected(address)).and_then(|stream| talk(stream, "leaderless"));
        std::process::exit(if told.is_ok() { 0 } else { 1 });
    });
    // SAFETY: ends this thread alone; the other one ends the process.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
    Ok(())
}

/// Until this process's main thread is a zombie.
fn wait_for_leader() -> anyhow::Result<()> {
    for _ in 0..500 {
        let stat = std::fs::read_to_string(format!("/proc/self/task/{}/stat", std::process::id()))?;
        if stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    anyhow::bail!("the main thread lives on")
}

fn send(address: SocketAddr, bytes: &[u8]) -> anyhow::Result<()> {
    let mut stream = connected(address)?;
    // The peer may have closed before all was sent: how it ended is told below.
    let _cut_short = stream.write_all(bytes);
    let _closed = stream.shutdown(Shutdown::Write);
    println!("{}", how_it_ended(&mut stream, PATIENCE));
    Ok(())
}

fn unhex(hex: &str) -> anyhow::Result<Vec<u8>> {
    (0..hex.len())
        .step_by(2)
        .map(|at| Ok(u8::from_str_radix(hex.get(at..at + 2).unwrap_or("?"), 16)?))
        .collect()
}

fn probe() -> anyhow::Result<()> {
    for address in std::io::stdin().lines() {
        let address: SocketAddr = address?.trim().parse()?;
        let outcome = TcpStream::connect(address).map_err(anyhow::Error::from).and_then(|mut stream| {
            stream.set_read_timeout(Some(PROBE_PATIENCE))?;
            line(&mut stream, "probe")
        });
        match outcome {
            Ok(answer) => println!("ok {answer}"),
            Err(error) => println!("failed {error:#}"),
        }
        std::io::stdout().flush()?;
    }
    Ok(())
}

fn reconnect(address: SocketAddr, until: &std::path::Path) -> anyhow::Result<()> {
    println!("started");
    let (mut answered, mut failed) = (0u64, 0u64);
    while !until.exists() {
        let outcome =
            connected(address).and_then(|mut stream| line(&mut stream, &format!("turn {answered}")));
        match outcome {
            Ok(answer) if !answer.is_empty() => answered += 1,
            Ok(_) | Err(_) => failed += 1,
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("{answered} answered, {failed} failed");
    Ok(())
}

fn who() -> anyhow::Result<()> {
    let cgroup = std::fs::read_to_string("/proc/self/cgroup")?;
    let cgroup = cgroup.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default();
    println!("{} {} {cgroup}", std::process::id(), std::env::var("WEIR_RUN").unwrap_or_default());
    wait_for_stdin("waiting")
}

fn cancel_key(address: SocketAddr, user: &str) -> anyhow::Result<()> {
    let mut body = 196_608_u32.to_be_bytes().to_vec();
    body.extend(format!("user\0{user}\0database\0postgres\0\0").bytes());
    let mut stream = connected(address)?;
    stream.write_all(&(u32::try_from(body.len())? + 4).to_be_bytes())?;
    stream.write_all(&body)?;
    let key = loop {
        let mut head = [0; 5];
        stream.read_exact(&mut head)?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        let mut message = vec![0; usize::try_from(length)?.saturating_sub(4)];
        stream.read_exact(&mut message)?;
        match head[0] {
            b'K' => break message,
            b'E' => anyhow::bail!("{}", String::from_utf8_lossy(&message)),
            _ => {}
        }
    };
    let mut cancel = vec![0, 0, 0, 16];
    cancel.extend(80_877_102_u32.to_be_bytes());
    cancel.extend(&key);
    connected(address)?.write_all(&cancel)?;
    for byte in &key[4..] {
        print!("{byte:02x}");
    }
    println!();
    Ok(())
}
