//! Where a store is, in words for people.

use std::fmt;
use std::path::{Path, PathBuf};

/// Where a store, or something that an engine left, is: a path, a URL without its password, `memory`.
///
/// For messages and records only. Nothing is opened by it, because only its engine knows what it means.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location(String);

impl Location {
    /// Returns the location with these words.
    pub fn new(words: impl Into<String>) -> Self {
        Self(words.into())
    }

    /// Returns its words.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&Path> for Location {
    fn from(path: &Path) -> Self {
        Self(path.display().to_string())
    }
}

impl From<&PathBuf> for Location {
    fn from(path: &PathBuf) -> Self {
        path.as_path().into()
    }
}

impl From<PathBuf> for Location {
    fn from(path: PathBuf) -> Self {
        path.as_path().into()
    }
}

impl From<&str> for Location {
    fn from(words: &str) -> Self {
        Self::new(words)
    }
}
