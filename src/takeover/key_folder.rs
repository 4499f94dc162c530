//! The keys of messages that name them by fingerprint (`fleet_credentials: reference`): a folder with one file for each.
//!
//! | name of the file | what its contents are |
//! | --- | --- |
//! | any | a key: the value of the header `Authorization`, or of another header with a secret |
//! | 12 to 64 hexadecimal digits | the same, and what replaces the key whose fingerprint begins with these digits |
//!
//! Names that begin with a dot are left out: Kubernetes and editors use them. Line ends behind the key do not belong to it.
//!
//! The keys are cached; the folder is parsed again when it has changed. A file that can't be used is named, and costs only its own key; a folder
//! that can't be read any more leaves the keys as they were.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tracing::{info, warn};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::error::TakeoverError;
use crate::fleet::marks::Mark;
use crate::fleet::record::{FleetRecord, fingerprint};
use crate::fleet::reference::{self, MissingSecret};
use crate::message::{Credential, Sha256};
use crate::store::os::os_words;

/// Maximum bytes of a key.
const KEY_BYTES_MAX: u64 = 16 * 1024;
/// Maximum number of files.
const FILES_MAX: usize = 10_000;
/// Permission bits that a file may not have: others may not read it, and only its owner may change it. The group may
/// read it, because Kubernetes passes secrets to non-root processes that way.
const MODE_REFUSED: u32 = 0o027;
/// The fewest digits of a fingerprint that a file's name may have.
const DIGITS_MIN: usize = 12;

/// A file that holds no usable key, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UnusableKeyFile {
    pub path: PathBuf,
    pub reason: String,
}

/// A file as it was when it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
struct FileStamp {
    name: String,
    /// Device, inode, size and time of change; `None` if it can't be looked at.
    identity: Option<(u64, u64, u64, i64, i64)>,
}

#[derive(Default)]
struct KnownKeys {
    stamps: Vec<FileStamp>,
    /// By the fingerprint of the key itself.
    keys: HashMap<Sha256, Credential>,
    /// By the digits that the file's name has.
    replacements: Vec<(String, Credential)>,
    unusable: Vec<UnusableKeyFile>,
    /// Keys that were put back into records: where they are written again, it is by reference.
    restored: HashSet<Vec<u8>>,
    has_failed: bool,
}

impl KnownKeys {
    fn find(&self, name: &Sha256) -> Option<&Credential> {
        let digits = name.to_string();
        let replacement = self.replacements.iter().find(|(prefix, _)| digits.starts_with(prefix.as_str()));
        replacement.map(|(_, key)| key).or_else(|| self.keys.get(name))
    }
}

/// The cached keys of this replayer.
pub(crate) struct KeyFolder {
    folder: Option<(PathBuf, Uuid)>,
    known: Mutex<KnownKeys>,
}

impl KeyFolder {
    /// Returns a folder without keys.
    pub(crate) fn none() -> Self {
        Self { folder: None, known: Mutex::default() }
    }

    /// Reads the keys of a fleet.
    ///
    /// # Errors
    ///
    /// [`TakeoverError::KeyFolder`] if the folder can't be read.
    pub(crate) fn read(path: &Path, fleet: Uuid) -> Result<Self, TakeoverError> {
        let known = read_all(path, fleet)
            .map_err(|reason| TakeoverError::KeyFolder { path: path.to_owned(), reason: reason.clone() })?;
        known.unusable.iter().for_each(report);
        Ok(Self { folder: Some((path.to_owned(), fleet)), known: Mutex::new(known) })
    }

    fn lock(&self) -> MutexGuard<'_, KnownKeys> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the folder again if the cached keys are outdated; returns whether they were.
    pub(crate) fn refresh(&self) -> bool {
        let Some((path, fleet)) = &self.folder else { return false };
        let stamps = stamps_of(path);
        let mut known = self.lock();
        if stamps.as_ref().is_ok_and(|stamps| *stamps == known.stamps) {
            return false;
        }
        match stamps.and_then(|_| read_all(path, *fleet)) {
            Ok(read) => {
                read.unusable.iter().filter(|file| !known.unusable.contains(file)).for_each(report);
                info!(target: "fleet", keys = read.keys.len(), "read the keys in {} again", path.display());
                *known = KnownKeys { restored: std::mem::take(&mut known.restored), ..read };
                true
            }
            Err(reason) => {
                if !std::mem::replace(&mut known.has_failed, true) {
                    warn!(target: "fleet", "cannot read the keys in {} again: {reason}", path.display());
                }
                false
            }
        }
    }

    /// Puts the secrets back into a record that names them.
    ///
    /// # Errors
    ///
    /// [`MissingSecret`] if one of them is not here.
    pub(crate) fn restore(&self, record: &FleetRecord) -> Result<FleetRecord, MissingSecret> {
        let mut known = self.lock();
        let found = std::cell::RefCell::new(Vec::new());
        let restored = reference::restore(record, |name| {
            let key = known.find(name)?.clone();
            found.borrow_mut().push(key.reveal().to_vec());
            Some(key)
        })?;
        known.restored.extend(found.into_inner());
        Ok(restored)
    }

    /// Replaces what was put back into records by its fingerprint again.
    pub(crate) fn withhold(&self, record: &mut FleetRecord) {
        if let Some((_, fleet)) = &self.folder {
            let known = self.lock();
            reference::withhold(*fleet, record, |value| known.restored.contains(value));
        }
    }

    /// The same for the parts in marks.
    pub(crate) fn withhold_from(&self, marks: &mut [Mark]) {
        if let Some((_, fleet)) = &self.folder {
            let known = self.lock();
            reference::withhold_from_marks(*fleet, marks, |value| known.restored.contains(value));
        }
    }

    /// Returns the files that hold no usable key.
    pub(crate) fn unusable(&self) -> Vec<UnusableKeyFile> {
        self.lock().unusable.clone()
    }
}

fn report(file: &UnusableKeyFile) {
    warn!(target: "fleet", "cannot use the key file {}: {}", file.path.display(), file.reason);
}

/// Returns the names of the files in a folder that may be keys, in order.
fn names(path: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn stamps_of(path: &Path) -> Result<Vec<FileStamp>, String> {
    let names = names(path).map_err(|error| os_words(&error))?;
    if names.len() > FILES_MAX {
        return Err(format!("it has {} files, and {FILES_MAX} is the maximum", names.len()));
    }
    let stamp = |name: String| {
        // Follows links: Kubernetes changes where they lead.
        let metadata = fs::metadata(path.join(&name)).ok();
        let identity = metadata.map(|it| (it.dev(), it.ino(), it.size(), it.ctime(), it.ctime_nsec()));
        FileStamp { name, identity }
    };
    Ok(names.into_iter().map(stamp).collect())
}

fn read_all(path: &Path, fleet: Uuid) -> Result<KnownKeys, String> {
    // Before the files: what changes while they are read is read again.
    let stamps = stamps_of(path)?;
    let mut known = KnownKeys::default();
    for FileStamp { name, .. } in &stamps {
        let file = path.join(name);
        match read_key(&file) {
            Ok(key) => {
                let digits = name.to_ascii_lowercase();
                let is_digits = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
                if is_digits && (DIGITS_MIN..=2 * Sha256::LEN).contains(&digits.len()) {
                    known.replacements.push((digits, key.clone()));
                }
                known.keys.insert(fingerprint(fleet, &key), key);
            }
            Err(reason) => known.unusable.push(UnusableKeyFile { path: file, reason }),
        }
    }
    Ok(KnownKeys { stamps, ..known })
}

/// Reads the key in a file; an error never quotes it.
fn read_key(path: &Path) -> Result<Credential, String> {
    let words = |error: io::Error| os_words(&error);
    // A pipe or a device could block forever.
    if !fs::metadata(path).map_err(words)?.is_file() {
        return Err("it is not a regular file".to_owned());
    }
    let file = File::open(path).map_err(words)?;
    let metadata = file.metadata().map_err(words)?;
    let mode = metadata.mode() & 0o777;
    if mode & MODE_REFUSED != 0 {
        return Err(format!("its mode is {mode:04o}, so others can read or change it; `chmod 600` it"));
    }
    let user = rustix::process::geteuid().as_raw();
    if metadata.uid() != user && metadata.uid() != 0 {
        return Err(format!("it belongs to another user (uid {})", metadata.uid()));
    }
    // Allocated at its maximum size, so that growing leaves no copy of the key in memory.
    let mut bytes = Zeroizing::new(Vec::with_capacity(KEY_BYTES_MAX as usize + 1));
    file.take(KEY_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(words)?;
    if bytes.len() as u64 > KEY_BYTES_MAX {
        return Err("it has more than 16 KiB".to_owned());
    }
    let key = bytes.trim_ascii_end();
    match key {
        [] => Err("it is empty".to_owned()),
        _ if key.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') => {
            Err("it is not one line, as the value of a header is".to_owned())
        }
        _ => Ok(Credential::new(key)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const FLEET: Uuid = Uuid::from_u128(7);

    fn put(folder: &Path, name: &str, contents: &str, mode: u32) {
        let path = folder.join(name);
        let _ = fs::remove_file(&path);
        fs::write(&path, contents).expect("it can be written");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("it is ours");
    }

    fn named(key: &str) -> Sha256 {
        fingerprint(FLEET, &Credential::new(key))
    }

    fn found(folder: &KeyFolder, key: &str) -> Option<Vec<u8>> {
        folder.lock().find(&named(key)).map(|key| key.reveal().to_vec())
    }

    #[test]
    fn keys_are_found_by_their_contents_and_replaced_by_the_names_of_files() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        put(folder.path(), "team", "first-key\n", 0o600);
        put(folder.path(), ".hidden", "hidden-key", 0o600);
        put(folder.path(), &named("rotated-key").to_string()[..12], "new-key\r\n", 0o640);
        let keys = KeyFolder::read(folder.path(), FLEET).expect("it can be read");
        assert_eq!(found(&keys, "first-key").as_deref(), Some(&b"first-key"[..]));
        assert_eq!(found(&keys, "rotated-key").as_deref(), Some(&b"new-key"[..]), "a rotated key is not replaced");
        assert_eq!(found(&keys, "new-key").as_deref(), Some(&b"new-key"[..]));
        assert_eq!(found(&keys, "hidden-key"), None);
        assert!(!keys.refresh(), "it is read without need");
        // The old key's file is still there: the replacement counts.
        put(folder.path(), &named("first-key").to_string(), "second-key", 0o600);
        put(folder.path(), "added", "added-key", 0o600);
        assert!(keys.refresh(), "a new key is not seen");
        assert_eq!(found(&keys, "first-key").as_deref(), Some(&b"second-key"[..]));
        assert!(found(&keys, "added-key").is_some());
        fs::remove_dir_all(folder.path()).expect("it is ours");
        assert!(!keys.refresh() && found(&keys, "added-key").is_some(), "keys are forgotten while a volume is away");
    }

    #[test]
    fn unusable_files_are_named_and_cost_only_their_own_key() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        put(folder.path(), "a-good", "good-key", 0o600);
        put(folder.path(), "b-readable", "secret-of-all", 0o644);
        put(folder.path(), "c-empty", "\n", 0o600);
        put(folder.path(), "d-lines", "two\nlines", 0o600);
        put(folder.path(), "e-large", &"x".repeat(20_000), 0o600);
        fs::create_dir(folder.path().join("f-folder")).expect("it can be made");
        let keys = KeyFolder::read(folder.path(), FLEET).expect("it can be read");
        let unusable = keys.unusable();
        let names: Vec<String> =
            unusable.iter().map(|file| file.path.file_name().expect("a name").to_string_lossy().into_owned()).collect();
        assert_eq!(names, ["b-readable", "c-empty", "d-lines", "e-large", "f-folder"]);
        assert!(unusable[0].reason.contains("0644"), "{}", unusable[0].reason);
        assert!(unusable.iter().all(|file| !file.reason.contains("secret-of-all") && !file.reason.contains("two")));
        assert!(found(&keys, "good-key").is_some() && found(&keys, "secret-of-all").is_none());
        assert!(KeyFolder::read(&folder.path().join("missing"), FLEET).is_err());
    }
}
