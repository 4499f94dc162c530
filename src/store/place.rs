//! The place where a store is, or would be: may this user write there, and how much room is left? Nothing is made.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access, statvfs};

/// What was found at a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file, or the nearest folder above it that is there.
    pub found: PathBuf,
    /// Whether this user may write: the file, or into the folder.
    pub is_writable: bool,
    /// Bytes that are free for this user on its disk.
    pub free_bytes: u64,
}

/// Looks at a store's place.
///
/// # Errors
///
/// What the system says when it can't be looked at.
pub fn look_at(path: &Path) -> io::Result<Place> {
    let absolute = std::path::absolute(path)?;
    let found = absolute.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/")).to_owned();
    let needed = if found.is_dir() { Access::WRITE_OK | Access::EXEC_OK } else { Access::WRITE_OK };
    let is_blocked = found != absolute && !found.is_dir();
    let disk = statvfs(&found)?;
    Ok(Place {
        is_writable: !is_blocked && access(&found, needed).is_ok(),
        free_bytes: disk.f_bavail.saturating_mul(disk.f_frsize),
        found,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_the_nearest_thing_that_is_there() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let place = look_at(&folder.path().join("not/yet/there.db")).expect("it can be looked at");
        assert_eq!((&*place.found, place.is_writable), (folder.path(), true));
        assert!(place.free_bytes > 0);
        assert!(!folder.path().join("not").exists(), "looking makes nothing");
        let file = folder.path().join("file");
        std::fs::write(&file, "").expect("a file");
        assert_eq!(look_at(&file).expect("it can be looked at").found, file);
        let below = look_at(&file.join("below.db")).expect("it can be looked at");
        assert!(!below.is_writable, "a file is no folder");
    }
}
