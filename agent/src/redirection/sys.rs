//! The few kernel calls that neither nix nor aya offers. aya 0.14 replaces the program of a link for XDP and TCX only.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const RAW_TRACEPOINT_OPEN: libc::c_long = 17;
const LINK_CREATE: libc::c_long = 28;
const LINK_UPDATE: libc::c_long = 29;

/// `SO_NETNS_COOKIE`, in neither libc's nor socket2's list of options.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// A part of `union bpf_attr`: the leading fields of one command. The kernel takes what is missing at the end for zero.
///
/// # Safety
/// `repr(C)` without padding, pointers stored as addresses that outlive the call.
unsafe trait Attributes: Sized {}

#[repr(C)]
struct Object {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

#[repr(C)]
struct Info {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

#[repr(C)]
struct RawTracepoint {
    name: u64,
    prog_fd: u32,
    reserved: u32,
}

#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
}

#[repr(C)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

// SAFETY (all): four or fewer integers that fill their structure; every address comes from a value that the caller below
// keeps until the call has returned.
unsafe impl Attributes for Object {}
unsafe impl Attributes for Info {}
unsafe impl Attributes for RawTracepoint {}
unsafe impl Attributes for LinkCreate {}
unsafe impl Attributes for LinkUpdate {}

/// The start of `struct bpf_link_info` as far as cgroup links fill it.
#[repr(C)]
#[derive(Default)]
pub(super) struct LinkInfo {
    kind: u32,
    pub(super) id: u32,
    pub(super) program: u32,
    reserved: u32,
    /// 0 once the cgroup is gone.
    pub(super) cgroup: u64,
    attach_type: u32,
    reserved_end: u32,
}

/// Attaches a program to a cgroup, beside any others there.
pub(super) fn link_create(
    program: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    let attributes =
        LinkCreate { prog_fd: number(program), target_fd: number(target), attach_type, flags: 0 };
    descriptor(bpf(LINK_CREATE, &attributes)?)
}

pub(super) fn raw_tracepoint_open(program: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    let attributes = RawTracepoint { name: name.as_ptr() as u64, prog_fd: number(program), reserved: 0 };
    descriptor(bpf(RAW_TRACEPOINT_OPEN, &attributes)?)
}

/// Puts another program under a link: one pointer is swapped, so there is no moment with none or with both.
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let attributes =
        LinkUpdate { link_fd: number(link), new_prog_fd: number(program), flags: 0, old_prog_fd: 0 };
    bpf(LINK_UPDATE, &attributes).map(drop)
}

pub(super) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut info = LinkInfo::default();
    let attributes =
        Info { bpf_fd: number(link), info_len: size_of::<LinkInfo>() as u32, info: (&raw mut info) as u64 };
    bpf(OBJ_GET_INFO_BY_FD, &attributes)?;
    Ok(info)
}

pub(super) fn object_pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attributes = Object { pathname: path.as_ptr() as u64, bpf_fd: number(object), file_flags: 0 };
    bpf(OBJ_PIN, &attributes).map(drop)
}

pub(super) fn object_get(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attributes = Object { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    descriptor(bpf(OBJ_GET, &attributes)?)
}

/// The kernel's number for the network namespace of a socket.
pub(crate) fn netns_cookie(socket: &impl AsFd) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// Opens a directory of a kernfs (cgroup2 is one) by its number; `mount` is any file of that file system.
pub(super) fn open_kernfs(mount: BorrowedFd<'_>, id: u64) -> io::Result<OwnedFd> {
    /// `FILEID_KERNFS`: the handle is the number.
    const KERNFS: libc::c_int = 0xfe;
    /// `struct file_handle` with its handle.
    #[repr(C)]
    struct Handle {
        bytes: libc::c_uint,
        kind: libc::c_int,
        id: [u8; 8],
    }
    let mut handle = Handle { bytes: 8, kind: KERNFS, id: id.to_ne_bytes() };
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: the layout is that of the kernel's structure with `bytes` bytes of handle behind it.
    let result = unsafe { libc::open_by_handle_at(mount.as_raw_fd(), (&raw mut handle).cast(), flags) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    descriptor(result.into())
}

fn bpf<A: Attributes>(command: libc::c_long, attributes: &A) -> io::Result<libc::c_long> {
    // SAFETY: the trait promises that these are valid leading attributes; the length is theirs.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    let number = i32::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the call has just opened it for us, close-on-exec as bpf(2) always does, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    // A borrowed descriptor is never negative.
    fd.as_raw_fd().cast_unsigned()
}
