//! A TCP server that nobody has a parser for: answers every line with `echo: LINE`.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

pub struct Echo {
    pub address: SocketAddr,
    accepted: Arc<AtomicUsize>,
}

impl Echo {
    /// Serves on loopback until this process ends.
    pub fn start(ip: &str) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((ip, 0))?;
        let address = listener.local_addr()?;
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = accepted.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                count.fetch_add(1, Ordering::Relaxed);
                std::thread::spawn(move || serve(stream));
            }
        });
        Ok(Self { address, accepted })
    }

    /// Connections that have reached it.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

/// A peer that goes away ends its thread, nothing else.
fn serve(stream: TcpStream) {
    let Ok(mut writer) = stream.try_clone() else { return };
    for line in BufReader::new(stream).lines() {
        let Ok(line) = line else { return };
        if writeln!(writer, "echo: {line}").is_err() {
            return;
        }
    }
}
