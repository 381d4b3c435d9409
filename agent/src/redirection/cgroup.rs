//! cgroups of the cgroup2 hierarchy: where programs are attached, what is governed, and where the agent itself lives.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use super::{RedirectionError, sys};

/// Where cgroup2 is mounted. Hybrid hosts have it beside version 1, in `unified`.
pub(crate) fn find_cgroup2_mount() -> Result<PathBuf, RedirectionError> {
    fs::read("/proc/self/mountinfo")
        .ok()
        .and_then(|text| parse_mountinfo(&text))
        .ok_or(RedirectionError::NoCgroup2)
}

/// The path of a cgroup in the hierarchy, as /proc shows it, by the number that the kernel programs know it by. It needs no
/// process that is still there. `None` once the cgroup is gone.
pub(crate) fn cgroup_path(id: u64) -> Option<String> {
    /// Paths that are remembered; at more, all are asked for anew. A number is given once, and a cgroup keeps its name.
    const PATHS_MAX: usize = 4096;
    static PATHS: Mutex<BTreeMap<u64, String>> = Mutex::new(BTreeMap::new());
    static MOUNT: OnceLock<Option<(PathBuf, File)>> = OnceLock::new();
    let known = || PATHS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(path) = known().get(&id) {
        return Some(path.clone());
    }
    let mount = MOUNT.get_or_init(|| {
        let path = find_cgroup2_mount().ok()?;
        let directory = File::open(&path).ok()?;
        Some((path, directory))
    });
    let (mount, directory) = mount.as_ref()?;
    let opened = sys::open_kernfs(directory.as_fd(), id).ok()?;
    let path = fs::read_link(format!("/proc/self/fd/{}", opened.as_raw_fd())).ok()?;
    let path = format!("/{}", path.strip_prefix(mount).ok()?.to_str()?);
    let mut paths = known();
    if paths.len() >= PATHS_MAX {
        paths.clear();
    }
    paths.insert(id, path.clone());
    Some(path)
}

/// One cgroup, by path and open directory.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
    directory: File,
    id: u64,
}

impl Cgroup {
    pub(crate) fn open(path: &Path) -> Result<Self, RedirectionError> {
        let failed = failed("open", path);
        let directory = File::open(path).map_err(&failed)?;
        // The kernel numbers cgroups by the inode of their directory, and programs see that number.
        let id = directory.metadata().map_err(&failed)?.ino();
        if !path.join("cgroup.procs").exists() {
            return Err(failed(io::Error::other("it is not in a cgroup2 file system")));
        }
        Ok(Self { path: path.into(), directory, id })
    }

    /// Makes it if it is not there; its parent must be.
    pub(crate) fn create(path: &Path) -> Result<Self, RedirectionError> {
        match fs::create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed("create", path)(error)),
            _ => Self::open(path),
        }
    }

    /// The one this process is in.
    pub(crate) fn own_current() -> Result<Self, RedirectionError> {
        let mount = find_cgroup2_mount()?;
        let text = fs::read_to_string("/proc/self/cgroup")
            .map_err(failed("look up", Path::new("/proc/self/cgroup")))?;
        let path =
            text.lines().find_map(|line| line.strip_prefix("0::/")).ok_or(RedirectionError::NoCgroup2)?;
        Self::open(&mount.join(path))
    }

    /// What the kernel programs know it by. Never 0.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Moves a process with all its threads; 0 is the caller's own.
    pub(crate) fn move_in(&self, pid: u32) -> Result<(), RedirectionError> {
        fs::write(self.path.join("cgroup.procs"), pid.to_string())
            .map_err(failed("move a process into", &self.path))
    }

    /// Whether any process is in it or below it.
    pub(crate) fn populated(&self) -> Result<bool, RedirectionError> {
        let events = fs::read_to_string(self.path.join("cgroup.events"))
            .map_err(failed("read the state of", &self.path))?;
        Ok(events.lines().any(|line| line == "populated 1"))
    }

    /// Kills everything in it and below it, with no way to fork out of it.
    pub(crate) fn kill(&self) -> Result<(), RedirectionError> {
        fs::write(self.path.join("cgroup.kill"), "1").map_err(failed("kill the processes of", &self.path))
    }

    /// Removes it once it is empty; processes that were just killed are waited for.
    #[cfg_attr(
        not(all(test, feature = "kernel-tests")),
        expect(dead_code, reason = "whoever owns a run's cgroup finds it empty, or tries again later")
    )]
    pub(crate) fn remove(self) -> Result<(), RedirectionError> {
        /// How long the kernel is given to let go of a cgroup whose last process was just killed.
        const REMOVE_PAUSE: Duration = Duration::from_millis(10);
        const REMOVE_ATTEMPTS: u32 = 200;
        let mut attempts = 0;
        loop {
            match fs::remove_dir(&self.path) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy && attempts < REMOVE_ATTEMPTS => {
                    attempts += 1;
                    std::thread::sleep(REMOVE_PAUSE);
                }
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("remove", &self.path)(error));
                }
                _ => return Ok(()),
            }
        }
    }
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

fn failed(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> RedirectionError {
    let path = path.to_path_buf();
    move |source| RedirectionError::Cgroup { doing, path: path.clone(), source }
}

/// The mount point of the first cgroup2 entry (proc_pid_mountinfo(5)); one that shows the whole hierarchy comes first.
fn parse_mountinfo(text: &[u8]) -> Option<PathBuf> {
    let mut part = None;
    for line in text.split(|byte| *byte == b'\n') {
        let mut fields = line.split(|byte| *byte == b' ');
        let (Some(root), Some(mount_point)) = (fields.nth(3), fields.next()) else { continue };
        // Optional fields end at a lone hyphen, then comes the file system.
        if fields.find(|field| *field == b"-").is_none() || fields.next() != Some(b"cgroup2") {
            continue;
        }
        let path = PathBuf::from(std::ffi::OsString::from_vec(unescape(mount_point)));
        if root == b"/" {
            return Some(path);
        }
        part.get_or_insert(path);
    }
    part
}

/// Spaces and the like are written as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|digits| digits.iter().all(|digit| (b'0'..=b'7').contains(digit)));
        match digits {
            Some(digits) if first == b'\\' && digits[0] <= b'3' => {
                plain.push(digits.iter().fold(0, |value, digit| value * 8 + (digit - b'0')));
                rest = &tail[3..];
            }
            _ => {
                plain.push(first);
                rest = tail;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::{parse_mountinfo, unescape};
    use proptest::prelude::*;
    use std::path::{Path, PathBuf};

    const HYBRID: &[u8] = b"\
25 1 0:22 / /sys/fs/cgroup rw,nosuid shared:8 - tmpfs tmpfs ro,mode=755
26 25 0:23 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory
27 25 0:24 / /sys/fs/cgroup/unified rw shared:10 master:2 - cgroup2 cgroup2 rw
";

    #[test]
    fn finds_it_on_hybrid_hosts() {
        assert_eq!(parse_mountinfo(HYBRID).as_deref(), Some(Path::new("/sys/fs/cgroup/unified")));
    }

    #[test]
    fn prefers_the_whole_hierarchy_and_reads_escapes() {
        let text = b"1 2 0:1 /pod /part rw - cgroup2 c rw\n1 2 0:1 / /with\\040space rw - cgroup2 c rw\n";
        assert_eq!(parse_mountinfo(text).as_deref(), Some(Path::new("/with space")));
        assert_eq!(parse_mountinfo(b"1 2 0:1 /pod /part rw - cgroup2 c rw"), Some(PathBuf::from("/part")));
    }

    #[test]
    fn none_without_cgroup2() {
        assert_eq!(parse_mountinfo(b""), None);
        assert_eq!(parse_mountinfo(b"1 2 0:1 / /cgroup2 rw - tmpfs cgroup2 rw\n1 2 3\n"), None);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse_mountinfo(&bytes);
            prop_assert!(unescape(&bytes).len() <= bytes.len());
        }
    }
}
