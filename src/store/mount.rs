//! The file system under a store: does it keep the guarantees that SQLite relies on?
//!
//! # What is promised where
//!
//! A store is a SQLite file in WAL mode. That rests on three things: a sync that reaches the disk, locks that every
//! process sees, and a `-shm` file that all processes map as the same memory.
//!
//! - On a **network file system** the last does not hold between machines: two agents on two hosts would each believe
//!   that the store is theirs, and damage it. Processes of one host are safe with each other, as far as the mount's
//!   locks are. We can't detect whether another host uses the file, so this is a warning and not an error: a
//!   home folder on NFS with one agent keeps what it acknowledged, and refusing would lose the very data that this tool
//!   protects.
//! - **FUSE** may be anything, from an encrypted home to a bucket; it decides whether a sync is durable.
//! - **tmpfs and ramfs** are memory: messages survive this process, but not a reboot.
//!
//! The type is the number returned by `statfs` for the store, or for the nearest existing folder above it.

use std::path::Path;

/// A file system that keeps less than a store promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unsuitable {
    /// Its name, such as `NFS`.
    pub name: &'static str,
    kind: FileSystemKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FileSystemKind {
    Network,
    Fuse,
    Memory,
}

impl Unsuitable {
    /// Returns the promise that it can't keep.
    pub(crate) fn problem(self) -> &'static str {
        match self.kind {
            FileSystemKind::Network => {
                "a network file system, on which processes of several machines would damage the store"
            }
            FileSystemKind::Fuse => "a file system run by a program, which may not write to a disk when it is asked to",
            FileSystemKind::Memory => "in memory: stored messages are lost by a reboot",
        }
    }

    /// Returns a remedy.
    pub(crate) fn hint(self) -> &'static str {
        match self.kind {
            FileSystemKind::Network => {
                "name a file on a local disk with --db, or ensure that only one machine uses this store"
            }
            FileSystemKind::Fuse => {
                "name a file on a local disk with --db, unless you know that this one makes synced data durable"
            }
            FileSystemKind::Memory => "name a file on a disk with --db",
        }
    }
}

/// Returns the problem of a file system of this type (`statfs(2)`, and `linux/magic.h`), if it has one.
///
/// All other types count as a local disk, including overlayfs, which has the guarantees of the file system under it.
fn judge(magic: u32) -> Option<Unsuitable> {
    let (name, kind) = match magic {
        0x0000_6969 => ("NFS", FileSystemKind::Network),
        0x0000_517b | 0xff53_4d42 | 0xfe53_4d42 => ("SMB", FileSystemKind::Network),
        0x0102_1997 => ("9p", FileSystemKind::Network),
        0x5346_414f | 0x6b41_4653 => ("AFS", FileSystemKind::Network),
        0x7375_7245 => ("Coda", FileSystemKind::Network),
        0x0000_564c => ("NCP", FileSystemKind::Network),
        0x00c3_6400 => ("Ceph", FileSystemKind::Network),
        0x0bd0_0bd0 => ("Lustre", FileSystemKind::Network),
        0x4750_4653 => ("GPFS", FileSystemKind::Network),
        0x6573_5546 => ("FUSE", FileSystemKind::Fuse),
        0x0102_1994 => ("tmpfs", FileSystemKind::Memory),
        0x8584_58f6 => ("ramfs", FileSystemKind::Memory),
        _ => return None,
    };
    Some(Unsuitable { name, kind })
}

/// Examines the file system of an existing or future store. One that can't be examined is left to the process
/// that opens it.
pub(crate) fn look_at(path: &Path) -> Option<Unsuitable> {
    let absolute = std::path::absolute(path).ok()?;
    let found = absolute.ancestors().find(|path| path.exists())?;
    #[cfg(target_os = "linux")]
    {
        // The size and sign of this type differ between machines; the value has 32 bits everywhere.
        judge(rustix::fs::statfs(found).ok()?.f_type as u32)
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = found;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_that_keep_less_than_a_disk_are_named() {
        for (magic, expected) in [
            (0x6969, Some(("NFS", FileSystemKind::Network))),
            (0xff53_4d42, Some(("SMB", FileSystemKind::Network))),
            (0xfe53_4d42, Some(("SMB", FileSystemKind::Network))),
            (0x0102_1997, Some(("9p", FileSystemKind::Network))),
            (0x6573_5546, Some(("FUSE", FileSystemKind::Fuse))),
            (0x0102_1994, Some(("tmpfs", FileSystemKind::Memory))),
            (0x8584_58f6, Some(("ramfs", FileSystemKind::Memory))),
            // ext4, btrfs, xfs, overlayfs, zfs
            (0xef53, None),
            (0x9123_683e, None),
            (0x5846_5342, None),
            (0x794c_7630, None),
            (0x2fc1_2fc1, None),
        ] {
            assert_eq!(judge(magic).map(|found| (found.name, found.kind)), expected, "{magic:#x}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_store_that_would_be_in_memory_is_seen_before_it_is_there() {
        // Present on every Linux that has shared memory; where it is not, there is nothing to be seen.
        let place = Path::new("/dev/shm");
        let is_memory = rustix::fs::statfs(place).is_ok_and(|found| found.f_type == 0x0102_1994);
        let found = look_at(&place.join("no such folder/store.db"));
        assert_eq!(found.is_some_and(|found| found.name == "tmpfs"), is_memory);
    }
}
