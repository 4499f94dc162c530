//! What is wrong with the configuration, and what to do about it.

use std::path::{Path, PathBuf};
use std::{fmt, io};

use super::settings;
use super::sources::Source;

/// A configuration that can't be used. No variant holds a secret in the clear.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value that its setting doesn't allow.
    #[error("{0}")]
    Value(Box<BadValue>),
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// A file that the user chose isn't there.
    #[error("cannot read {}, named by {origin}: no such file", path.display())]
    MissingFile { path: PathBuf, origin: Source },
    /// A file whose syntax is wrong.
    #[error("cannot read {}: {reason}", Place { path, line })]
    Malformed { path: PathBuf, line: Option<usize>, reason: String },
    #[error("cannot read {}: unknown key {key}", path.display())]
    UnknownKey { path: PathBuf, key: String, hint: String },
    /// The system names no folder for a user's data, and no other was chosen.
    #[error("db: no data folder for this user")]
    NoDataDirectory,
}

/// A value that its setting doesn't allow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadValue {
    pub key: &'static str,
    /// As it was given; masked when secret, shortened when long.
    pub value: String,
    pub origin: Source,
    pub reason: String,
    pub hint: Option<String>,
}

impl fmt::Display for BadValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Longer values are cut: the message names where the whole is.
        const VALUE_CHARS_MAX: usize = 120;

        let BadValue { key, value, origin, reason, .. } = self;
        let shown: String = value.chars().take(VALUE_CHARS_MAX).collect();
        let dots = if shown.len() < value.len() { "..." } else { "" };
        write!(f, "{key}: cannot use \"{}{dots}\" from {origin}: {reason}", shown.escape_debug())
    }
}

struct Place<'a> {
    path: &'a Path,
    line: &'a Option<usize>,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}, line {line}", self.path.display()),
            None => write!(f, "{}", self.path.display()),
        }
    }
}

impl ConfigError {
    /// Returns what the user can do, for the `hint:` line.
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

    pub(super) fn unknown_key(path: PathBuf, key: &str) -> ConfigError {
        let hint = if settings::is_opik_config_key(key) {
            format!("{key} belongs in ~/.opik.config, section [opik], where the SDK reads it too")
        } else {
            match settings::nearest_yaml_key(key) {
                Some(nearest) => format!("did you mean {nearest}?"),
                None => format!("the known keys are {}", settings::yaml_keys().collect::<Vec<_>>().join(", ")),
            }
        };
        ConfigError::UnknownKey { path, key: key.escape_debug().to_string(), hint }
    }
}
