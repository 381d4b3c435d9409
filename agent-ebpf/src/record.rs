//! What the kernel saw of one connection, and the key it waits under until it is accepted.

/// An IPv6 address, or an IPv4 one as `::ffff:a.b.c.d`: four words as they lie in memory, that is in network order.
/// One form for both families lets the key of a v4-mapped client be the same as that of the IPv4 socket that accepts it.
pub type Address = [u32; 4];

/// The bytes of a run's UUIDv7, as two words so that the programs copy them in two moves.
pub type RunBytes = [u64; 2];

/// `task_struct.comm`. For people; nothing is ever decided by it.
pub type Comm = [u8; 16];

/// Bits of [`FlowRecord::flags`].
pub mod flags {
    /// The client had bound its socket to a source address or port.
    pub const SOURCE_BOUND: u8 = 1;
    /// The client had bound its socket to a device. The hook has undone that (a socket bound to a device cannot reach
    /// the loopback listener); whoever dials on must bind its own socket to `bound_device`.
    pub const DEVICE_BOUND: u8 = 2;
}

/// What is known about a process when it connects.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Nobody has decided: inside the scope it is redirected too, and user space decides on accept.
    Undecided = 0,
    /// In a run.
    Governed = 1,
    /// Left alone.
    Exempt = 2,
}

impl Who {
    /// The value of a byte from the kernel; `None` where it is none of ours.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Undecided),
            1 => Some(Self::Governed),
            2 => Some(Self::Exempt),
            _ => None,
        }
    }
}

/// In which form the application gave the destination.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    V4 = 4,
    V6 = 6,
    /// An IPv6 socket and a v4-mapped address: IPv4 on the wire.
    Mapped = 46,
}

impl Form {
    /// The value of a byte from the kernel; `None` where it is none of ours.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            4 => Some(Self::V4),
            6 => Some(Self::V6),
            46 => Some(Self::Mapped),
            _ => None,
        }
    }
}

/// One connection on its way from `connect()` to the accepting socket: network namespace and both ends, seen from the client.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TupleKey {
    pub netns_cookie: u64,
    pub local: Address,
    pub remote: Address,
    /// Host order.
    pub local_port: u16,
    /// Host order.
    pub remote_port: u16,
    pub reserved: u32,
}

/// What the kernel saw of one connection. Written once by the connect hook into the client's own socket, completed with
/// the tuple before the SYN, and moved to the accepted socket.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlowRecord {
    /// [`crate::ABI`]; 0 in a record that was never filled.
    pub abi: u32,
    /// A [`Who`].
    pub who: u8,
    /// A [`Form`].
    pub form: u8,
    /// See [`flags`].
    pub flags: u8,
    pub reserved: u8,
    /// Where the application wanted to go.
    pub origin: Address,
    /// What the socket was bound to, or zero.
    pub source: Address,
    /// Host order.
    pub origin_port: u16,
    /// Host order; 0 where the kernel was to choose.
    pub source_port: u16,
    /// Interface index, or 0.
    pub bound_device: u32,
    /// Of the run it is governed by, else zero.
    pub run: RunBytes,
    pub tgid: u32,
    pub tid: u32,
    /// CLOCK_BOOTTIME of the process (not of the thread). 0 where this kernel does not let us read it.
    pub start_boottime_ns: u64,
    /// How often this process and its ancestors have replaced their executable: with (tgid, start) it names one image
    /// of one process, so what user space learns from /proc about it may be kept under that name.
    pub exec_id: u64,
    pub uid: u32,
    pub gid: u32,
    /// The cgroup the process was in, not the one the socket was made in.
    pub cgroup_id: u64,
    pub netns_cookie: u64,
    /// Of the client's socket.
    pub socket_cookie: u64,
    /// CLOCK_BOOTTIME of the connect() call.
    pub connect_boottime_ns: u64,
    pub comm: Comm,
    /// The key it waited under. The accepting side compares it with its own socket, so that a slot of the table which
    /// was reused while it was copied is never taken for another connection.
    pub tuple: TupleKey,
    /// `mm_struct.start_stack` of the process, which /proc shows too; 0 where this kernel does not let us read it. Placed at
    /// random by every exec, it tells user space whether it still looks at the image that connected.
    pub stack: u64,
    /// The interface index that a link-local IPv6 destination was given with, or 0.
    pub scope: u32,
    pub reserved_word: u32,
    pub reserved_words: [u64; 2],
}

const _: () = assert!(size_of::<TupleKey>() == 48);
const _: () = assert!(size_of::<FlowRecord>() == 224);
const _: () = assert!(align_of::<FlowRecord>() == 8);

#[cfg(test)]
mod tests {
    use super::{FlowRecord, TupleKey};
    use std::mem::{offset_of, size_of};

    /// The programs and the loader are built by different compilers: any hole would be bytes nobody initialises.
    #[test]
    fn records_have_no_padding() {
        assert_eq!(offset_of!(TupleKey, reserved) + 4, size_of::<TupleKey>());
        assert_eq!(offset_of!(FlowRecord, origin), 8);
        assert_eq!(offset_of!(FlowRecord, run), 48);
        assert_eq!(offset_of!(FlowRecord, start_boottime_ns), 72);
        assert_eq!(offset_of!(FlowRecord, comm), 128);
        assert_eq!(offset_of!(FlowRecord, tuple), 144);
        assert_eq!(offset_of!(FlowRecord, stack), 192);
        assert_eq!(offset_of!(FlowRecord, reserved_words) + 16, size_of::<FlowRecord>());
    }
}
