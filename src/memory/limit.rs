//! How much memory this process may use: the machine's, or its container's limit if that is less.

use std::fs;
use std::path::Path;

const MIB: u64 = 1 << 20;
/// The budget if there is enough memory.
pub(crate) const BUDGET_MAX: u64 = 256 * MIB;
/// The smallest budget, even in a tiny container.
pub(crate) const BUDGET_MIN: u64 = 16 * MIB;

/// Returns the default budget for bodies: three eighths of the memory, which leaves room for the rest (the program, a
/// body that is compressed for the store, the allocator's reserves). Pure.
pub(crate) fn default_budget(available: Option<u64>) -> u64 {
    available.map_or(BUDGET_MAX, |bytes| (bytes / 8 * 3).clamp(BUDGET_MIN, BUDGET_MAX))
}

/// Returns how much memory this process may use, as far as the system reports it.
pub(crate) fn available() -> Option<u64> {
    let read = |path: &Path| fs::read_to_string(path).ok();
    let machine = read(Path::new("/proc/meminfo")).and_then(|text| machine_bytes(&text));
    let cgroups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    limit_files(&cgroups).iter().filter_map(|path| limit_bytes(&read(Path::new(path))?)).chain(machine).min()
}

/// Returns the files that limit the memory of a process in these cgroups (`/proc/self/cgroup`): those of its own
/// cgroup and of its ancestors. In a container, its own cgroup is often mounted at the root.
fn limit_files(cgroups: &str) -> Vec<String> {
    let mut files = Vec::new();
    for line in cgroups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let mut below = path.trim_matches('/');
        loop {
            let folder = if below.is_empty() { root.to_owned() } else { format!("{root}/{below}") };
            files.push(format!("{folder}/{file}"));
            if below.is_empty() {
                break;
            }
            below = below.rsplit_once('/').map_or("", |(above, _)| above);
        }
    }
    files
}

/// Parses a limit: a number, or `max`. cgroup version 1 writes a huge number if there is no limit.
fn limit_bytes(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|bytes| *bytes > 0 && *bytes < 1 << 60)
}

fn machine_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_budget_fits_into_the_memory() {
        for (available, expected) in [
            (None, 256),
            (Some(64 << 30), 256),
            (Some(640 * MIB), 240),
            (Some(256 * MIB), 96),
            (Some(128 * MIB), 48),
            (Some(10 * MIB), 16),
        ] {
            assert_eq!(default_budget(available), expected * MIB, "{available:?}");
        }
    }

    #[test]
    fn the_sidecar_documents_its_own_budget() {
        let sidecar = include_str!("../../contrib/kubernetes/sidecar.yaml");
        let limits = sidecar.split_once("limits:").expect("it has limits").1;
        let number = |before: &str, after: &str| {
            let (text, _) = limits.split_once(after).expect("it is named");
            text.rsplit_once(before).expect("it is named").1.trim().parse::<u64>().expect("a number")
        };
        let limit = number("memory: ", "Mi\n");
        assert_eq!(number("(", " MiB)"), default_budget(Some(limit * MIB)) / MIB);
        assert!(limits.contains("memory_budget") && limits.contains("OPIK_OFFLINE_MEMORY_BUDGET"));
    }

    #[test]
    fn the_limits_of_a_cgroup_and_its_ancestors_are_found() {
        assert_eq!(
            limit_files("0::/kubepods/pod1/c\n"),
            [
                "/sys/fs/cgroup/kubepods/pod1/c/memory.max",
                "/sys/fs/cgroup/kubepods/pod1/memory.max",
                "/sys/fs/cgroup/kubepods/memory.max",
                "/sys/fs/cgroup/memory.max"
            ]
        );
        assert_eq!(limit_files("0::/\n"), ["/sys/fs/cgroup/memory.max"]);
        let first = limit_files("9:name=systemd:/x\n4:cpu,memory:/a\n3:cpuset:/\n");
        assert_eq!(
            first,
            ["/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        );
        for (text, expected) in
            [("max\n", None), ("268435456\n", Some(1 << 28)), ("9223372036854771712\n", None), ("", None), ("0", None)]
        {
            assert_eq!(limit_bytes(text), expected, "{text:?}");
        }
        assert_eq!(machine_bytes("MemTotal:       24684100 kB\nMemFree: 1 kB\n"), Some(24_684_100 * 1024));
    }
}
