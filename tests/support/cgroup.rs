//! A memory cgroup of our own, version 1 or 2, below the one that the test runs in. A process that needs more than its
//! limit is killed by the kernel, as in a container.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

pub(crate) struct MemoryCgroup {
    path: PathBuf,
    is_v2: bool,
}

impl MemoryCgroup {
    /// Makes a cgroup with this limit and without swap. `Err` is the reason why this machine does not allow it.
    pub(crate) fn new(limit_bytes: u64) -> Result<Self, String> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let own = fs::read_to_string("/proc/self/cgroup").map_err(|error| format!("no /proc/self/cgroup: {error}"))?;
        let line = |wanted: &dyn Fn(&str) -> bool| {
            own.lines().find_map(|line| {
                let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
                wanted(controllers).then(|| path.trim_start_matches('/').to_owned())
            })
        };
        let (root, is_v2, below) = match line(&|controllers| controllers.split(',').any(|name| name == "memory")) {
            Some(below) => ("/sys/fs/cgroup/memory", false, below),
            None => ("/sys/fs/cgroup", true, line(&str::is_empty).ok_or("this process is in no cgroup")?),
        };
        let name = format!("opik-offline-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        // The cgroup of a container is often shown at the root of what is mounted.
        let parent = [Path::new(root).join(&below), root.into()].into_iter().find(|path| path.is_dir());
        let path = parent.ok_or_else(|| format!("{root} is not mounted"))?.join(name);
        let failed = |what: &str, error: std::io::Error| format!("{what} {}: {error}", path.display());
        fs::create_dir(&path).map_err(|error| failed("cannot make", error))?;
        let cgroup = Self { path: path.clone(), is_v2 };
        let limit = limit_bytes.to_string();
        let limit_file = if is_v2 { "memory.max" } else { "memory.limit_in_bytes" };
        fs::write(path.join(limit_file), &limit).map_err(|error| failed("cannot limit", error))?;
        // A kernel without swap accounting has no such file.
        let swap = if is_v2 { ("memory.swap.max", "0") } else { ("memory.memsw.limit_in_bytes", &*limit) };
        let _ = fs::write(path.join(swap.0), swap.1);
        Ok(cgroup)
    }

    /// Returns the command that starts another one in this cgroup.
    pub(crate) fn enter(&self) -> Vec<String> {
        let procs = self.path.join("cgroup.procs").display().to_string();
        ["sh", "-c", "echo $$ > \"$0\" && exec \"$@\"", &procs].map(str::to_owned).into()
    }

    /// Returns how many processes were killed for want of memory.
    pub(crate) fn kills(&self) -> u64 {
        let file = if self.is_v2 { "memory.events" } else { "memory.oom_control" };
        let text = fs::read_to_string(self.path.join(file)).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        // Not before the last process is gone, which takes the kernel a moment.
        for _ in 0..100 {
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}
