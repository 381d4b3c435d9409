//! How much of what was written to a socket its peer has not acknowledged yet.

#![expect(unsafe_code, reason = "one ioctl that neither nix nor socket2 wraps")]

use std::os::fd::{AsFd, AsRawFd};

nix::ioctl_read_bad!(
    /// SIOCOUTQ of tcp(7).
    siocoutq,
    nix::libc::TIOCOUTQ,
    nix::libc::c_int
);

/// Bytes; `None` when the kernel does not tell.
pub(super) fn unsent_bytes(socket: &impl AsFd) -> Option<usize> {
    let mut bytes = 0;
    // SAFETY: the descriptor is open for as long as the borrow lives, and the kernel writes one int to a live one.
    unsafe { siocoutq(socket.as_fd().as_raw_fd(), &mut bytes) }.ok()?;
    usize::try_from(bytes).ok()
}
