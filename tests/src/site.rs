//! One scratch place on this machine: a folder, a cgroup subtree, a folder of pins. A detached watchdog removes all of it
//! when its owner does not, so that a failing test cannot leave hooks behind.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, bail};

/// After this many seconds the watchdog removes pins and cgroups, and kills what is in them.
pub const WATCHDOG_S: u32 = 120;

static COUNT: AtomicU32 = AtomicU32::new(0);

pub struct Site {
    dir: tempfile::TempDir,
    name: String,
    mount: PathBuf,
    watchdog: Option<Child>,
    kept: bool,
}

impl Site {
    /// Needs root. `watched` arms the watchdog; only a person who asked to keep things running goes without.
    pub fn new(watched: bool) -> anyhow::Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("attaching kernel hooks needs root");
        }
        let dir = tempfile::Builder::new().prefix("weir-site-").tempdir()?;
        // Servers that drop their rights must reach their folders below.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        let name = format!("weir-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let mut site = Self { dir, name, mount: cgroup2_mount()?, watchdog: None, kept: false };
        if watched {
            site.arm()?;
        }
        fs::create_dir(site.cgroup())
            .with_context(|| format!("cannot make the cgroup {}", site.cgroup().display()))?;
        Ok(site)
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The folder of a part of this site, made if it is not there.
    pub fn folder(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.path().join(name);
        fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// The subtree of this site, in the file system.
    pub fn cgroup(&self) -> PathBuf {
        self.mount.join(&self.name)
    }

    /// A cgroup of this site as the configuration names it.
    pub fn cgroup_path(&self, name: &str) -> String {
        format!("/{}/{name}", self.name)
    }

    pub fn pins(&self) -> PathBuf {
        Path::new("/sys/fs/bpf").join(&self.name)
    }

    /// Leaves everything standing when dropped; gives the folder.
    pub fn keep(mut self) -> PathBuf {
        self.kept = true;
        self.disarm();
        let path = self.path().to_owned();
        std::mem::forget(self);
        path
    }

    /// Restarts the watchdog's time: for a test that takes longer than [`WATCHDOG_S`] in several steps.
    pub fn rearm(&mut self) -> anyhow::Result<()> {
        self.disarm();
        self.arm()
    }

    fn arm(&mut self) -> anyhow::Result<()> {
        let script = format!("sleep {WATCHDOG_S}; {}", self.removal());
        let child = Command::new("setsid")
            .args(["sh", "-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot arm the watchdog")?;
        self.watchdog = Some(child);
        Ok(())
    }

    fn disarm(&mut self) {
        if let Some(mut watchdog) = self.watchdog.take() {
            // setsid(1) became the shell, as it led no group before: its pid leads the group with the sleep in it. It may
            // be over already, or not be the group's leader yet.
            let group = nix::unistd::Pid::from_raw(watchdog.id().cast_signed());
            let _over = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
            let _killed = watchdog.kill();
            let _status = watchdog.wait();
        }
    }

    /// What removes every trace: pins first (hooks off), then processes, then cgroups.
    pub fn removal(&self) -> String {
        let (pins, cgroup) = (self.pins(), self.cgroup());
        format!(
            "rm -rf {pins}*; \
             [ -d {cgroup} ] || exit 0; echo 1 > {cgroup}/cgroup.kill; sleep 0.2; \
             find {cgroup} -depth -type d -exec rmdir {{}} \\; 2>/dev/null; true",
            pins = pins.display(),
            cgroup = cgroup.display()
        )
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let removed = Command::new("sh").args(["-c", &self.removal()]).stdin(Stdio::null()).output();
        if !removed.is_ok_and(|output| output.status.success()) || self.cgroup().exists() {
            eprintln!("the site {} could not be removed at once; the watchdog will", self.name);
            return;
        }
        self.disarm();
    }
}

/// Gives the calling thread, and all that it starts from now on, a network of its own: loopback, and what the test adds.
/// It goes with its last process.
pub fn enter_own_network() -> anyhow::Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
    crate::process::run(Command::new("ip").args(["link", "set", "lo", "up"]))?;
    Ok(())
}

/// Where cgroup2 is mounted: hybrid hosts mount it elsewhere.
pub fn cgroup2_mount() -> anyhow::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mount =
        mounts.lines().find(|line| line.contains(" - cgroup2 ")).and_then(|line| line.split(' ').nth(4));
    mount.map(PathBuf::from).context("no cgroup2 is mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")
}
