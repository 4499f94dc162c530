//! The capacity of a disk, and the cause if it refuses a write.

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::limits::Limits;
use super::os::os_words;

/// The free-disk reserve of a large disk.
pub(crate) const RESERVE_MAX: u64 = 256 * 1024 * 1024;
/// The part of a small disk that is reserved, as a divisor.
const RESERVE_SHARE: u64 = 10;

/// Always left free on the disk: a delivery has to be recorded in the log before it can free space.
pub(super) const OWN_NEEDS_BYTES: u64 = 512 * 1024;

/// The size of a disk, and its free space for this user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Disk {
    /// Bytes of the file system.
    pub total_bytes: u64,
    /// Bytes free for this user.
    pub free_bytes: u64,
    /// Free inodes; `None` if the file system does not limit them.
    pub free_files: Option<u64>,
}

impl Disk {
    /// Measures the file system that holds this path, or the first folder above it that exists.
    ///
    /// # Errors
    ///
    /// The system's error.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let mut place = path;
        loop {
            match rustix::fs::statvfs(place) {
                Ok(found) => {
                    return Ok(Self {
                        total_bytes: found.f_blocks.saturating_mul(found.f_frsize),
                        free_bytes: found.f_bavail.saturating_mul(found.f_frsize),
                        // btrfs has no fixed number of inodes, and reports 0 of 0.
                        free_files: (found.f_files > 0).then_some(found.f_favail),
                    });
                }
                Err(Errno::NOENT | Errno::NOTDIR) => match place.parent() {
                    Some(above) if !above.as_os_str().is_empty() => place = above,
                    _ if place != Path::new(".") => place = Path::new("."),
                    _ => return Err(Errno::NOENT.into()),
                },
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// Returns the default free-disk reserve for a file system of this size: on a small volume 256 MiB
/// would leave no capacity for a single message.
pub(crate) fn default_reserve(total_bytes: u64) -> u64 {
    RESERVE_MAX.min(total_bytes / RESERVE_SHARE)
}

/// Returns the maximum size of a store whose files have this size.
pub(crate) fn capacity(file_bytes: u64, disk_free_bytes: u64, limits: &Limits) -> u64 {
    let room = disk_free_bytes.saturating_sub(limits.disk_reserve.max(OWN_NEEDS_BYTES));
    limits.size_max.min(file_bytes.saturating_add(room))
}

/// Why a healthy disk refuses a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoRoom {
    /// All of its bytes are used.
    Bytes,
    /// All of its inodes are used.
    Files,
    /// The quota of this user, group or project is used up.
    Quota,
}

impl NoRoom {
    /// Returns the cause and the remedy.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Bytes => "its disk is full; free some space there",
            Self::Files => {
                "its file system has no inodes left; remove files there (`df -i` counts them), or move the store with --db"
            }
            Self::Quota => {
                "the disk quota is exceeded; free some of this user's space there (`quota` shows it), or raise the quota"
            }
        }
    }

    fn of(error: &io::Error, disk: Option<Disk>) -> Option<Self> {
        match Errno::from_io_error(error)? {
            Errno::DQUOT => Some(Self::Quota),
            Errno::NOSPC if disk.and_then(|disk| disk.free_files) == Some(0) => Some(Self::Files),
            Errno::NOSPC => Some(Self::Bytes),
            _ => None,
        }
    }
}

/// Returns why the system denies writing to a file or folder, and the remedy.
pub(crate) fn access_words(errno: Errno) -> String {
    let words = os_words(&errno.into());
    match errno {
        // Permissions cause EACCES; EPERM is caused by flags.
        Errno::PERM => format!("{words}: it is immutable (`lsattr -d` shows the flag, `chattr -i` removes it)"),
        Errno::NOSPC => format!("{words}: {}", NoRoom::Bytes.words()),
        Errno::DQUOT => NoRoom::Quota.words().to_owned(),
        Errno::ROFS => format!("{words}: remount it with `mount -o remount,rw`; the kernel's log has the cause"),
        _ => words,
    }
}

/// Probes the disk of this file by writing a few bytes to a new file, and returns why that fails.
///
/// SQLite's error does not distinguish a quota or a lack of inodes from a broken disk. `None` if the write succeeds, or
/// fails for another reason.
pub(crate) fn refusal(path: &Path) -> Option<NoRoom> {
    /// More than an inode holds inline, and a block of any file system.
    const BYTES: usize = 64 * 1024;
    let mut name = path.as_os_str().to_owned();
    name.push(format!("-probe-{}", std::process::id()));
    let probe = PathBuf::from(name);
    // A file left by a killed process, or a link planted by another user, is removed and not
    // written.
    let make = || match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&probe) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(&probe)?;
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&probe)
        }
        result => result,
    };
    let try_it = || -> io::Result<()> {
        use io::Write as _;
        let mut file = make()?;
        file.write_all(&[1; BYTES])?;
        file.sync_data()
    };
    let refused = try_it().err();
    // Without inodes it was never created.
    let _ = fs::remove_file(&probe);
    NoRoom::of(&refused?, Disk::of(path).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::WhenFull;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn a_small_volume_reserves_a_tenth_and_a_large_one_256_mib() {
        for (total, reserve) in [
            (0, 0),
            (128 * MIB, 128 * MIB / 10),
            (1024 * MIB, 1024 * MIB / 10),
            (2560 * MIB, 256 * MIB),
            (1 << 50, 256 * MIB),
            (u64::MAX, 256 * MIB),
        ] {
            assert_eq!(default_reserve(total), reserve, "{total}");
        }
    }

    #[test]
    fn a_store_can_hold_what_its_limit_and_its_disk_allow() {
        let limits = Limits { size_max: 100 * MIB, disk_reserve: 10 * MIB, when_full: WhenFull::Refuse };
        for (file, free, expected) in [
            (0, 1 << 40, 100 * MIB),
            (0, 50 * MIB, 40 * MIB),
            (20 * MIB, 50 * MIB, 60 * MIB),
            (20 * MIB, 5 * MIB, 20 * MIB),
            (MIB / 2, 10 * MIB + 1, MIB / 2 + 1),
            // A volume that shrank, and a limit that was lowered.
            (200 * MIB, 0, 100 * MIB),
            (u64::MAX, u64::MAX, 100 * MIB),
        ] {
            assert_eq!(capacity(file, free, &limits), expected, "{file} {free}");
        }
        let limits = Limits { disk_reserve: 0, ..limits };
        assert_eq!(capacity(0, MIB, &limits), MIB / 2, "what delivering needs is promised to messages");
    }

    #[test]
    fn what_is_used_up_is_named() {
        let disk = |free_files| Some(Disk { total_bytes: MIB, free_bytes: 0, free_files });
        for (errno, disk, expected) in [
            (Errno::NOSPC, disk(Some(7)), Some(NoRoom::Bytes)),
            (Errno::NOSPC, disk(None), Some(NoRoom::Bytes)),
            (Errno::NOSPC, disk(Some(0)), Some(NoRoom::Files)),
            (Errno::NOSPC, None, Some(NoRoom::Bytes)),
            (Errno::DQUOT, disk(Some(0)), Some(NoRoom::Quota)),
            (Errno::IO, disk(Some(0)), None),
            (Errno::ROFS, disk(Some(7)), None),
        ] {
            assert_eq!(NoRoom::of(&errno.into(), disk), expected, "{errno:?}");
        }
    }

    #[test]
    fn an_obstacle_is_named_with_what_removes_it() {
        for (errno, word) in
            [(Errno::PERM, "`chattr -i`"), (Errno::ROFS, "`mount -o remount,rw`"), (Errno::ACCESS, "permission denied")]
        {
            assert!(access_words(errno).contains(word), "{errno:?}: {}", access_words(errno));
        }
    }

    #[test]
    fn a_probe_is_never_written_through_a_link_that_another_user_made() {
        let folder = tempfile::tempdir().unwrap();
        let (precious, store) = (folder.path().join("precious"), folder.path().join("store.db"));
        fs::write(&precious, "text").unwrap();
        let probe = folder.path().join(format!("store.db-probe-{}", std::process::id()));
        std::os::unix::fs::symlink(&precious, &probe).unwrap();
        assert_eq!(refusal(&store), None);
        assert_eq!(fs::read_to_string(&precious).unwrap(), "text");
        assert!(fs::symlink_metadata(&probe).is_err(), "it stays");
    }

    #[test]
    fn a_disk_with_room_refuses_nothing_and_keeps_no_probe() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(refusal(&folder.path().join("store.db")), None);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        assert!(Disk::of(&folder.path().join("no/such/folder/store.db")).unwrap().total_bytes > 0);
    }
}
