//! Files of keys, in the format of `age-keygen`: one key a line, and comments.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::str::FromStr;

use zeroize::Zeroizing;

use super::error::SealError;
use super::keys::{Identity, RECIPIENTS_MAX, Recipient};

/// Maximum bytes of a file of keys.
const FILE_BYTES_MAX: u64 = 64 * 1024;
/// Permission bits that a file of secret keys may not have: others may not read it, and only its owner may change it.
/// The group may read it, because Kubernetes passes secrets to non-root processes that way.
const MODE_REFUSED: u32 = 0o027;

/// Reads the identities in a file that this program or `age-keygen` wrote.
///
/// # Errors
///
/// [`SealError::KeyFile`] if it cannot be read, if others may read it, or if a line of it is not an identity.
pub fn read_identities(path: &Path) -> Result<Vec<Identity>, SealError> {
    let refused = |reason: String| SealError::KeyFile { path: path.to_owned(), reason };
    let (file, metadata) = opened(path).map_err(refused)?;
    let mode = metadata.mode() & 0o777;
    if mode & MODE_REFUSED != 0 {
        return Err(refused(format!("its mode is {mode:04o}, so others can read or change it; `chmod 600` it")));
    }
    let user = rustix::process::geteuid().as_raw();
    if metadata.uid() != user && metadata.uid() != 0 {
        return Err(refused(format!("it belongs to another user (uid {})", metadata.uid())));
    }
    keys(file).map_err(refused)
}

/// Reads the recipients in a file: one a line, and comments that begin with `#`.
///
/// # Errors
///
/// [`SealError::KeyFile`] if it cannot be read, or if a line of it is not a recipient.
pub fn read_recipients(path: &Path) -> Result<Vec<Recipient>, SealError> {
    let refused = |reason: String| SealError::KeyFile { path: path.to_owned(), reason };
    let (file, _) = opened(path).map_err(refused)?;
    keys(file).map_err(refused)
}

/// Makes a new identity, and writes it to a new file that only this user can read.
///
/// # Errors
///
/// [`SealError::NewKeyFile`] if the file exists, or cannot be written. Then nothing was made.
pub fn make_identity(path: &Path) -> Result<Recipient, SealError> {
    let refused = |reason: String| SealError::NewKeyFile { path: path.to_owned(), reason };
    let identity = Identity::generate()?;
    let recipient = identity.recipient();
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = opened.map_err(|error| {
        refused(match error.kind() {
            io::ErrorKind::AlreadyExists => "it exists, and a key is never overwritten".into(),
            io::ErrorKind::NotFound => "there is no such folder".into(),
            _ => words(&error),
        })
    })?;
    let secret = identity.secret_text();
    let text = Zeroizing::new(format!("# public key: {recipient}\n{}\n", *secret));
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    let written = written.and_then(|()| sync_folder(path));
    if let Err(error) = written {
        // Half a key is of no use, and its name would be taken.
        let removed = fs::remove_file(path);
        let left = if removed.is_err() { "; an unusable file is left there" } else { "" };
        return Err(refused(format!("{}{left}", words(&error))));
    }
    Ok(recipient)
}

/// Makes the name of a new file durable.
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// Returns the system's words for an error about a file that is named beside them.
fn words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such file".to_owned(),
        io::ErrorKind::PermissionDenied => "this user has no access to it".to_owned(),
        _ => error.to_string(),
    }
}

fn opened(path: &Path) -> Result<(File, fs::Metadata), String> {
    // A pipe or a device could block forever.
    if !fs::metadata(path).map_err(|error| words(&error))?.is_file() {
        return Err("it is not a regular file".into());
    }
    let file = File::open(path).map_err(|error| words(&error))?;
    let metadata = file.metadata().map_err(|error| words(&error))?;
    Ok((file, metadata))
}

/// Parses the keys of a file. An error names the line, and never quotes it.
fn keys<K: FromStr<Err = SealError>>(file: File) -> Result<Vec<K>, String> {
    // Allocated at its maximum size, so that growing leaves no copy of a key in memory.
    let mut bytes = Zeroizing::new(Vec::with_capacity(FILE_BYTES_MAX as usize + 1));
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| words(&error))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err("it has more than 64 KiB".into());
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| "it is not text".to_owned())?;
    let mut keys = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        keys.push(line.parse().map_err(|error| format!("line {}: {error}", number + 1))?);
    }
    match keys.len() {
        0 => Err("it has no key".into()),
        found if found > RECIPIENTS_MAX => Err(format!("it has {found} keys, and {RECIPIENTS_MAX} is the maximum")),
        _ => Ok(keys),
    }
}
