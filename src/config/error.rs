//! Configuration errors and their hints.

use std::path::{Path, PathBuf};
use std::{fmt, io};

use super::sources::Source;

/// An invalid configuration. No variant holds a secret in the clear.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value that failed to parse or validate.
    #[error("{0}")]
    Value(Box<BadValue>),
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// A file that the user named does not exist.
    #[error("cannot read {}, named by {origin}: no such file", path.display())]
    MissingFile { path: PathBuf, origin: Source },
    /// A file that failed to parse.
    #[error("cannot read {}: {reason}", FileLine { path, line })]
    Malformed { path: PathBuf, line: Option<usize>, reason: String },
    #[error("cannot read {}: unknown key {key}", path.display())]
    UnknownKey { path: PathBuf, key: String, hint: String },
    /// The system has no data folder for this user, and the user chose none.
    #[error("db: no data folder for this user")]
    NoDataDirectory,
}

/// A value that failed to parse or validate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadValue {
    pub key: &'static str,
    /// As given; masked if secret, truncated if long.
    pub value: String,
    pub origin: Source,
    pub reason: String,
    pub hint: Option<String>,
}

impl fmt::Display for BadValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Longer values are truncated: the message names the source of the full value.
        const VALUE_CHARS_MAX: usize = 120;

        let BadValue { key, value, origin, reason, .. } = self;
        let shown: String = value.chars().take(VALUE_CHARS_MAX).collect();
        let dots = if shown.len() < value.len() { "..." } else { "" };
        write!(f, "{key}: cannot use \"{}{dots}\" from {origin}: {reason}", shown.escape_debug())
    }
}

struct FileLine<'a> {
    path: &'a Path,
    line: &'a Option<usize>,
}

impl fmt::Display for FileLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}, line {line}", self.path.display()),
            None => write!(f, "{}", self.path.display()),
        }
    }
}

impl ConfigError {
    /// Returns the text of the `hint:` line.
    pub fn hint(&self) -> Option<String> {
        match self {
            ConfigError::Value(bad) => bad.hint.clone(),
            ConfigError::Read { .. } => Some("make the file readable for this user, or move it away".to_owned()),
            ConfigError::MissingFile { origin, .. } => {
                Some(format!("correct {origin}, or unset it to use ~/.opik.config"))
            }
            ConfigError::Malformed { .. } => Some("correct the file".to_owned()),
            ConfigError::UnknownKey { hint, .. } => Some(hint.clone()),
            ConfigError::NoDataDirectory => Some("set HOME, or choose a file with --db or OPIK_OFFLINE_DB".to_owned()),
        }
    }
}
