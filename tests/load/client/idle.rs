//! Connections that are opened, used once and kept: told line by line on stdin what to do.
//!
//! `open N` opens N more and asks once on each; `ask` asks once on every one; the end of stdin closes all of them. Each line
//! is answered with a line.

use std::io::{BufRead, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::http::{BUFFER_BYTES, Request};

pub(crate) fn keep(request: &Request) -> anyhow::Result<()> {
    let mut kept = Vec::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let slowest = match line.split_once(' ') {
            Some(("open", more)) => open(request, &mut kept, more.parse()?, &mut buffer)?,
            None if line == "ask" => ask(request, &mut kept, &mut buffer)?,
            _ => bail!("neither `open N` nor `ask`: {line:?}"),
        };
        let mut out = std::io::stdout();
        writeln!(out, "{} open, slowest {} us", kept.len(), slowest.as_micros())?;
        out.flush()?;
    }
    Ok(())
}

fn open(
    request: &Request,
    kept: &mut Vec<TcpStream>,
    more: usize,
    buffer: &mut [u8],
) -> anyhow::Result<Duration> {
    let mut slowest = Duration::ZERO;
    for _ in 0..more {
        let start = Instant::now();
        let mut stream = request.connect()?;
        request.ask(&mut stream, buffer).with_context(|| format!("connection {}", kept.len() + 1))?;
        slowest = slowest.max(start.elapsed());
        kept.push(stream);
    }
    Ok(slowest)
}

fn ask(request: &Request, kept: &mut [TcpStream], buffer: &mut [u8]) -> anyhow::Result<Duration> {
    let mut slowest = Duration::ZERO;
    for (place, stream) in kept.iter_mut().enumerate() {
        let start = Instant::now();
        request.ask(stream, buffer).with_context(|| format!("kept connection {}", place + 1))?;
        slowest = slowest.max(start.elapsed());
    }
    Ok(slowest)
}
