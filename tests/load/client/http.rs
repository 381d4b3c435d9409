//! A small HTTP/1.1 client: enough for a server that says how long its bodies are.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::tally::Clock;

/// A response's head, and what is read of its body at once, bytes.
pub(crate) const BUFFER_BYTES: usize = 128 * 1024;
const READ_TIMEOUT: Duration = Duration::from_secs(20);

pub(crate) struct Request {
    to: SocketAddr,
    bytes: Vec<u8>,
    close: bool,
    /// Between an answer and the next request of the same connection.
    pause: Duration,
}

impl Request {
    pub(crate) fn new(to: SocketAddr, path: &str, close: bool, pause: Duration) -> Self {
        let closing = if close { "Connection: close\r\n" } else { "" };
        let text = format!(
            "GET {path} HTTP/1.1\r\nHost: {to}\r\nUser-Agent: weir-load\r\nAccept: */*\r\n{closing}\r\n"
        );
        Self { to, bytes: text.into_bytes(), close, pause }
    }

    pub(crate) fn connect(&self) -> anyhow::Result<TcpStream> {
        let stream = TcpStream::connect(self.to).context("connecting")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(READ_TIMEOUT))?;
        Ok(stream)
    }

    /// Once there and back; gives the size of the answer's body.
    pub(crate) fn ask(&self, stream: &mut TcpStream, buffer: &mut [u8]) -> anyhow::Result<u64> {
        stream.write_all(&self.bytes).context("asking")?;
        answer(stream, buffer)
    }
}

/// One connection, from its opening to the end of the time.
pub(crate) fn session(request: &Request, clock: &mut Clock) -> anyhow::Result<()> {
    let mut start = Instant::now();
    let mut stream = request.connect()?;
    clock.connected();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let bytes = request.ask(&mut stream, &mut buffer)?;
        clock.done(start, bytes);
        if !request.pause.is_zero() {
            std::thread::sleep(request.pause);
        }
        if request.close || clock.is_over() {
            return Ok(());
        }
        start = Instant::now();
    }
}

/// Reads one answer to its end; gives the size of its body.
fn answer(stream: &mut TcpStream, buffer: &mut [u8]) -> anyhow::Result<u64> {
    let mut held = 0;
    let head = loop {
        let read = stream.read(&mut buffer[held..]).context("reading an answer's head")?;
        if read == 0 {
            bail!("the connection ended after {held} bytes of an answer's head");
        }
        held += read;
        if let Some(end) = memchr::memmem::find(&buffer[..held], b"\r\n\r\n") {
            break end + 4;
        }
    };
    let body = body_bytes(&buffer[..head])?;
    let mut read = (held - head) as u64;
    while read < body {
        let more = stream.read(buffer).context("reading an answer's body")? as u64;
        if more == 0 {
            bail!("the connection ended after {read} of {body} bytes of a body");
        }
        read += more;
    }
    if read > body {
        bail!("more was answered than was asked for");
    }
    Ok(body)
}

fn body_bytes(head: &[u8]) -> anyhow::Result<u64> {
    let head = std::str::from_utf8(head).context("an answer's head is not text")?;
    if !head.starts_with("HTTP/1.1 200 ") {
        bail!("answered {}", head.lines().next().unwrap_or_default());
    }
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    });
    length.context("an answer without a length")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_good_answer_with_a_length_counts() {
        assert_eq!(body_bytes(b"HTTP/1.1 200 OK\r\ncontent-LENGTH: 12\r\n\r\n").unwrap(), 12);
        assert!(body_bytes(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
        assert!(body_bytes(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 1\r\n\r\n").is_err());
    }
}
