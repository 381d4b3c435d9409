//! One side's socket, with what waits to be written to it.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;

/// Slices handed to one writev.
const WRITE_SLICES_MAX: usize = 32;
/// A read buffer starts here and grows with what one read brings.
const READ_BYTES_MIN: usize = 4 * 1024;
pub(super) const READ_BYTES_MAX: usize = 64 * 1024;
/// The largest read buffer that a connection keeps while nothing arrives.
const READ_BYTES_KEPT: usize = 16 * 1024;
/// After so many reads in a row that needed less than a quarter of it, the read buffer gets smaller.
const SMALL_READS_MAX: u32 = 4;
/// A read buffer with less room than this is replaced: slices of small reads share one allocation, so that what waits in a
/// queue costs about what it holds.
const READ_ROOM_MIN: usize = 1024;

/// One side of a pumped connection.
pub(super) struct Leg {
    pub(super) stream: TcpStream,
    read_buffer: BytesMut,
    read_bytes_next: usize,
    small_reads: u32,
    pub(super) out: VecDeque<Bytes>,
    pub(super) out_bytes: usize,
    /// No more bytes come from this side (FIN or reset).
    pub(super) read_ended: bool,
    /// Our writing half is to be shut down once `out` is empty.
    pub(super) end_after_out: bool,
    /// Our writing half is shut down, or the peer is gone.
    pub(super) write_ended: bool,
    /// A write was refused while its bytes were still to be read.
    pub(super) write_failed: bool,
    pub(super) gone: bool,
}

impl Leg {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            read_buffer: BytesMut::new(),
            read_bytes_next: READ_BYTES_MIN,
            small_reads: 0,
            out: VecDeque::new(),
            out_bytes: 0,
            read_ended: false,
            end_after_out: false,
            write_ended: false,
            write_failed: false,
            gone: false,
        }
    }

    /// How many of the bytes will be sent: all, or none when this side takes no more.
    pub(super) fn queue(&mut self, bytes: Bytes) -> usize {
        if self.gone || self.write_ended || bytes.is_empty() {
            return 0;
        }
        let length = bytes.len();
        self.out_bytes += length;
        self.out.push_back(bytes);
        length
    }

    /// One read: empty at the end. Pending, the task is woken when something is there.
    pub(super) fn read(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        // While nothing is there, there is no large buffer either.
        if self.stream.poll_read_ready(context).is_pending() {
            self.give_back();
            return Poll::Pending;
        }
        if self.read_buffer.capacity() - self.read_buffer.len() < READ_ROOM_MIN {
            // Reclaims the allocation when nobody holds a slice of it any more; else a new one of the size in use.
            self.read_buffer.reserve(self.read_bytes_next);
        }
        let room = self.read_buffer.capacity() - self.read_buffer.len();
        // A read that does not fill the buffer took all there was: tokio then knows without asking the kernel again.
        let read = pin!(self.stream.read_buf(&mut self.read_buffer)).poll(context);
        match read {
            Poll::Ready(Ok(read)) => {
                self.learn(read, room);
                Poll::Ready(Ok(self.read_buffer.split().freeze()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                self.give_back();
                Poll::Pending
            }
        }
    }

    /// The size that reads like this one want. Slices of small reads must not each hold a large buffer.
    fn learn(&mut self, read: usize, room: usize) {
        if read >= room {
            self.read_bytes_next = (self.read_bytes_next * 4).min(READ_BYTES_MAX);
        }
        if read > self.read_bytes_next / 4 {
            self.small_reads = 0;
            return;
        }
        self.small_reads += 1;
        if self.small_reads >= SMALL_READS_MAX {
            self.small_reads = 0;
            self.read_bytes_next = (self.read_bytes_next / 4).max(READ_BYTES_MIN);
        }
    }

    fn give_back(&mut self) {
        if self.read_buffer.capacity() > READ_BYTES_KEPT {
            self.read_buffer = BytesMut::new();
        }
    }

    /// Writes what waits. When the socket takes no more, the task is woken when it does.
    pub(super) fn flush(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        while !self.out.is_empty() && !self.gone {
            match self.write(context) {
                Poll::Ready(written) => self.written(written?),
                Poll::Pending => return Ok(()),
            }
        }
        if self.end_after_out && !self.write_ended && !self.gone {
            self.write_ended = true;
            // The peer may be gone already; then its reset says so.
            let _gone = socket2::SockRef::from(&self.stream).shutdown(std::net::Shutdown::Write);
        }
        Ok(())
    }

    fn write(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let stream = Pin::new(&mut self.stream);
        let written = match (self.out.len(), self.out.front()) {
            (1, Some(only)) => ready!(stream.poll_write(context, only))?,
            _ => {
                let mut slices = [IoSlice::new(&[]); WRITE_SLICES_MAX];
                let mut count = 0;
                for (slice, bytes) in slices.iter_mut().zip(&self.out) {
                    *slice = IoSlice::new(bytes);
                    count += 1;
                }
                ready!(stream.poll_write_vectored(context, &slices[..count]))?
            }
        };
        Poll::Ready(Ok(written))
    }

    fn written(&mut self, mut written: usize) {
        self.out_bytes -= written;
        while let Some(front) = self.out.front_mut() {
            if written < front.len() {
                front.advance(written);
                return;
            }
            written -= front.len();
            self.out.pop_front();
        }
    }

    pub(super) fn stop_writing(&mut self) {
        self.write_failed = true;
        self.write_ended = true;
        self.out.clear();
        self.out_bytes = 0;
    }

    pub(super) fn lose(&mut self) {
        self.stop_writing();
        self.gone = true;
        self.read_ended = true;
    }

    /// Closing sends RST instead of FIN: the peer must not take an aborted stream for a whole one.
    pub(super) fn reset_on_close(&self) {
        if let Err(error) = socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)) {
            tracing::debug!(%error, "SO_LINGER failed");
        }
    }
}
