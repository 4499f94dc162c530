//! Listing a depot in a folder, in the order of whole names.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use super::super::Entry;
use super::super::name::Name;
use super::files::version;

/// A walk over a depot's folders, and the objects found so far.
struct FolderWalk<'a> {
    root: &'a Path,
    after: Option<&'a str>,
    limit: usize,
    found: Vec<Entry>,
}

/// Returns up to `limit` objects below `under`, ascending by the bytes of their names, behind `after`.
pub(super) fn list(root: &Path, under: &Name, after: Option<&Name>, limit: usize) -> io::Result<Vec<Entry>> {
    let mut walk = FolderWalk { root, after: after.map(Name::as_str), limit, found: Vec::new() };
    walk.folder(under.as_str())?;
    Ok(walk.found)
}

impl FolderWalk<'_> {
    fn folder(&mut self, folder: &str) -> io::Result<()> {
        for (is_folder, key) in self.sorted(folder)? {
            if self.found.len() >= self.limit {
                return Ok(());
            }
            if is_folder {
                // Everything in it begins with its key, so all of it is behind `after`, before it, or it holds it.
                if self.after.is_none_or(|after| key.as_str() > after || after.starts_with(&key)) {
                    self.folder(key.trim_end_matches('/'))?;
                }
            } else if self.after.is_none_or(|after| key.as_str() > after) {
                self.found.extend(self.entry(&key)?);
            }
        }
        Ok(())
    }

    /// Returns what is in a folder: whether it is a folder, and its name from the root, with a slash behind a folder's.
    /// In this order a walk meets whole names ascending.
    fn sorted(&self, folder: &str) -> io::Result<Vec<(bool, String)>> {
        let entries = match fs::read_dir(self.root.join(folder)) {
            Ok(entries) => entries,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(Vec::new());
            }
            Err(error) => return Err(error),
        };
        let mut keys = Vec::new();
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else { continue };
            let is_folder = entry.file_type()?.is_dir();
            keys.push((is_folder, format!("{folder}/{name}{}", if is_folder { "/" } else { "" })));
        }
        keys.sort_unstable_by(|one, other| one.1.cmp(&other.1));
        Ok(keys)
    }

    /// Returns an object, or `None` if it was deleted meanwhile or is another program's file.
    fn entry(&self, key: &str) -> io::Result<Option<Entry>> {
        let Ok(name) = Name::new(key) else { return Ok(None) };
        match fs::metadata(self.root.join(key)) {
            Ok(found) if found.is_file() => Ok(Some(Entry { name, bytes: found.len(), version: version(&found) })),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}
