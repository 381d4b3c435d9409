//! Where links and maps stay when the agent is gone.
//!
//! ```text
//! /sys/fs/bpf/weir/
//!   listeners-v2          the mark of every agent's listeners: one map for all agents of the host
//!   <an agent>/           locked while that agent lives
//!     links/<program>     the attachments; a new program is put under them, whatever its maps
//!     maps-v2/<map>       the version is the ABI: a program never meets a map of another layout
//! ```

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use weir_agent_ebpf::ABI;

use super::RedirectionError;

/// Where the host's bpf file system belongs.
const BPFFS: &str = "/sys/fs/bpf";
/// Shared by all agents of the host.
const SHARED: &str = "/sys/fs/bpf/weir";

const LINKS: &str = "links";
/// The version follows.
const MAPS: &str = "maps-v";

/// The pins of one agent, locked against another one with the same.
pub(super) struct Pins {
    root: PathBuf,
    /// Released by the kernel when the agent dies, however it dies.
    _lock: Flock<File>,
}

impl Pins {
    pub(super) fn open(root: &Path) -> Result<Self, RedirectionError> {
        let shared = Path::new(SHARED);
        ensure_bpffs()?;
        make_directory(shared)?;
        let mut missing: Vec<&Path> = root.ancestors().take_while(|path| !path.exists()).collect();
        while let Some(path) = missing.pop() {
            make_directory(path)?;
        }
        if !is_bpffs(root) {
            return Err(RedirectionError::NotBpffs { path: root.into() });
        }
        let pins = Self { root: root.into(), _lock: lock(root)? };
        make_directory(&pins.links())?;
        make_directory(&pins.maps())?;
        Ok(pins)
    }

    pub(super) fn link(&self, program: &str) -> PathBuf {
        self.links().join(program)
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name.to_ascii_lowercase())
    }

    /// The map of listeners, the same for all agents.
    pub(super) fn shared_map(name: &str) -> PathBuf {
        Path::new(SHARED).join(format!("{}-v{ABI}", name.to_ascii_lowercase()))
    }

    /// Detaches everything and forgets all tables.
    pub(super) fn remove(&self) -> Result<(), RedirectionError> {
        remove(&self.root)
    }

    fn links(&self) -> PathBuf {
        self.root.join(LINKS)
    }

    fn maps(&self) -> PathBuf {
        self.root.join(format!("{MAPS}{ABI}"))
    }
}

/// Removes the pins of an agent that is dead, and of dead agents whose pins are below; that detaches their programs. One that
/// lives is not touched; below, it is passed over.
pub(super) fn remove_abandoned(root: &Path) -> Result<(), RedirectionError> {
    if !root.exists() {
        return Ok(());
    }
    if !is_bpffs(root) {
        return Err(RedirectionError::NotBpffs { path: root.into() });
    }
    for below in entries(root)? {
        if below.is_dir() && !is_links(&below) && !is_maps(&below) {
            match lock(&below) {
                Ok(_lock) => remove(&below)?,
                Err(RedirectionError::Busy { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }
    let _lock = lock(root)?;
    remove(root)
}

/// Links before maps: no program is left that could miss one. Redirecting ends before what it relies on.
fn remove(root: &Path) -> Result<(), RedirectionError> {
    let mut directories: Vec<PathBuf> = entries(root)?;
    directories.retain(|path| is_links(path) || is_maps(path));
    directories.sort_by_key(|path| !is_links(path));
    for directory in directories {
        let mut files = entries(&directory)?;
        files.sort_by_key(|path| {
            !path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"weir_connect"))
        });
        for file in files {
            fs::remove_file(&file).map_err(failed("remove", &file))?;
        }
        fs::remove_dir(&directory).map_err(failed("remove", &directory))?;
    }
    match fs::remove_dir(root) {
        // Another agent's pins are below ours.
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        removed => removed.map_err(failed("remove", root)),
    }
}

fn is_links(path: &Path) -> bool {
    path.ends_with(LINKS)
}

/// Of any version.
fn is_maps(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(MAPS.as_bytes()))
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, RedirectionError> {
    let listed = fs::read_dir(directory).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
    listed.map_err(failed("list", directory))
}

fn ensure_bpffs() -> Result<(), RedirectionError> {
    let at = Path::new(BPFFS);
    if is_bpffs(at) {
        return Ok(());
    }
    mount(
        Some("bpffs"),
        at,
        Some("bpf"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        Some("mode=0700"),
    )
    .map_err(|errno| RedirectionError::Mount {
        what: "the bpf file system",
        at: at.into(),
        source: errno.into(),
    })
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}

fn make_directory(path: &Path) -> Result<(), RedirectionError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed("create", path)(error)),
        _ => Ok(()),
    }
}

fn lock(root: &Path) -> Result<Flock<File>, RedirectionError> {
    let directory = File::open(root).map_err(failed("open", root))?;
    Flock::lock(directory, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => RedirectionError::Busy { path: root.into() },
        errno => failed("lock", root)(errno.into()),
    })
}

fn failed(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> RedirectionError {
    let path = path.to_path_buf();
    move |source| RedirectionError::Pins { doing, path: path.clone(), source }
}
