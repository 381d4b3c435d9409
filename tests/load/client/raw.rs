//! A protocol that nobody parses. A connection opens with 16 bytes: `ECHO` gives back what comes; `SOURCE`, with a number of
//! bytes as little-endian u64 in the second half, sends so many.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::tally::Clock;

const BUFFER_BYTES: usize = 256 * 1024;
const READ_TIMEOUT: Duration = Duration::from_secs(20);
const HEAD_BYTES: usize = 16;

pub(crate) fn pingpong(to: SocketAddr, bytes: usize, clock: &mut Clock) -> anyhow::Result<()> {
    let mut stream = open(to, *b"ECHO....", 0, clock)?;
    let message = vec![b'x'; bytes];
    let mut back = vec![0; bytes];
    while !clock.is_over() {
        let start = Instant::now();
        stream.write_all(&message).context("sending")?;
        stream.read_exact(&mut back).context("reading what comes back")?;
        clock.done(start, 2 * bytes as u64);
    }
    Ok(())
}

pub(crate) fn bulk(to: SocketAddr, bytes: u64, clock: &mut Clock) -> anyhow::Result<()> {
    let start = Instant::now();
    let mut stream = open(to, *b"SOURCE..", bytes, clock)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut read = 0;
    while read < bytes {
        match stream.read(&mut buffer).context("downloading")? {
            0 => bail!("the download ended after {read} of {bytes} bytes"),
            more => read += more as u64,
        }
    }
    clock.done(start, read);
    Ok(())
}

fn open(to: SocketAddr, what: [u8; 8], bytes: u64, clock: &mut Clock) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(to).context("connecting")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(READ_TIMEOUT))?;
    clock.connected();
    let mut head = [0; HEAD_BYTES];
    head[..8].copy_from_slice(&what);
    head[8..].copy_from_slice(&bytes.to_le_bytes());
    stream.write_all(&head).context("sending the head")?;
    Ok(stream)
}

pub(crate) fn serve() -> anyhow::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    println!("{}", listener.local_addr()?.port());
    for stream in listener.incoming() {
        let stream = stream.context("accepting")?;
        // A client that goes away ends its thread, nothing else.
        std::thread::spawn(move || drop(serve_one(stream)));
    }
    Ok(())
}

fn serve_one(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut head = [0; HEAD_BYTES];
    stream.read_exact(&mut head)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    if head.starts_with(b"ECHO") {
        loop {
            match stream.read(&mut buffer)? {
                0 => return Ok(()),
                read => stream.write_all(&buffer[..read])?,
            }
        }
    }
    for (place, byte) in buffer.iter_mut().enumerate() {
        *byte = b'a' + (place % 26) as u8;
    }
    let mut left = head[8..].try_into().map_or(0, u64::from_le_bytes);
    while left > 0 {
        let part = left.min(BUFFER_BYTES as u64) as usize;
        stream.write_all(&buffer[..part])?;
        left -= part as u64;
    }
    Ok(())
}
