//! A TCP server that behaves as a test wants.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

pub struct Peer {
    pub address: SocketAddr,
}

impl Peer {
    /// `serve` gets each connection in a thread of its own, until this process ends. Sockets belong to the network
    /// namespace of the calling thread.
    pub fn start(ip: &str, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((ip, 0))?;
        let address = listener.local_addr()?;
        let serve = Arc::new(serve);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let serve = serve.clone();
                std::thread::spawn(move || serve(stream));
            }
        });
        Ok(Self { address })
    }
}

/// A stream of bytes that looks random and that both ends can make: what arrives is compared bit for bit.
pub struct Noise {
    state: u64,
}

/// How much of a stream is made and compared at once.
const BLOCK_BYTES: usize = 64 * 1024;

impl Noise {
    pub fn new(seed: u64) -> Self {
        Self { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 }
    }

    fn word(&mut self) -> u64 {
        // xorshift64
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.word() % bound.max(1)
    }

    pub fn fill(&mut self, block: &mut [u8]) {
        for piece in block.chunks_mut(8) {
            let word = self.word().to_le_bytes();
            piece.copy_from_slice(&word[..piece.len()]);
        }
    }

    /// Sends so many bytes.
    pub fn send(mut self, to: &mut impl Write, bytes: u64) -> std::io::Result<()> {
        let mut block = vec![0; BLOCK_BYTES];
        let mut left = bytes;
        while left > 0 {
            let length = left.min(BLOCK_BYTES as u64) as usize;
            self.fill(&mut block);
            to.write_all(&block[..length])?;
            left -= length as u64;
        }
        Ok(())
    }

    /// Reads to the end; `Ok(bytes)` when every one of them was right, else where the first wrong one was.
    pub fn receive(mut self, from: &mut impl Read) -> std::io::Result<u64> {
        let (mut block, mut right) = (vec![0; BLOCK_BYTES], vec![0; BLOCK_BYTES]);
        let mut all = 0;
        loop {
            let mut length = 0;
            while length < BLOCK_BYTES {
                match from.read(&mut block[length..])? {
                    0 => break,
                    read => length += read,
                }
            }
            self.fill(&mut right);
            if let Some(wrong) = (0..length).find(|at| block[*at] != right[*at]) {
                return Err(std::io::Error::other(format!("byte {} is wrong", all + wrong as u64)));
            }
            all += length as u64;
            if length < BLOCK_BYTES {
                return Ok(all);
            }
        }
    }
}

/// Closes with RST instead of FIN.
pub fn reset(stream: TcpStream) -> std::io::Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::Linger, &linger)?;
    drop(stream);
    Ok(())
}

/// Reads to the end of the stream: `"end after N"`, or `"reset after N"`, or the other error.
pub fn how_it_ended(stream: &mut TcpStream, patience: Duration) -> String {
    let mut all = 0;
    let mut block = [0; 4096];
    if stream.set_read_timeout(Some(patience)).is_err() {
        return "no timeout can be set".into();
    }
    loop {
        match stream.read(&mut block) {
            Ok(0) => return format!("end after {all}"),
            Ok(read) => all += read,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                return format!("reset after {all}");
            }
            Err(error) => return format!("{:?} after {all}", error.kind()),
        }
    }
}
