//! Names of objects.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// The name of an object, or of a folder of objects, below a depot's prefix: segments between slashes.
///
/// Only ASCII letters, digits, `.`, `_` and `-`, which need no escaping in a path, a URL or a signature. No segment
/// begins with a dot: a depot in a folder keeps its own files under such names.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(String);

/// The error for an invalid [`Name`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{name:?} can't be the name of an object: {reason}")]
pub struct BadName {
    /// The text, cut to 80 characters.
    pub name: String,
    /// The rule that it breaks.
    pub reason: &'static str,
}

impl Name {
    /// The longest name, in bytes: object storage takes 1,024 with the depot's prefix.
    pub const BYTES_MAX: usize = 700;
    /// The longest segment, in bytes: that of a file name.
    pub const SEGMENT_BYTES_MAX: usize = 250;

    /// Validates a name.
    ///
    /// # Errors
    ///
    /// [`BadName`] with the broken rule.
    pub fn new(name: &str) -> Result<Self, BadName> {
        let bad = |reason| Err(BadName { name: name.chars().take(80).collect(), reason });
        if name.len() > Self::BYTES_MAX {
            return bad("it is longer than 700 bytes");
        }
        for segment in name.split('/') {
            if segment.is_empty() {
                return bad("it has an empty segment");
            }
            if segment.starts_with('.') {
                return bad("a segment begins with a dot");
            }
            if segment.len() > Self::SEGMENT_BYTES_MAX {
                return bad("a segment is longer than 250 bytes");
            }
            if !segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)) {
                return bad("only A-Z, a-z, 0-9, '.', '_' and '-' are allowed");
            }
        }
        Ok(Self(name.to_owned()))
    }

    /// Returns the name of something in this folder.
    ///
    /// # Errors
    ///
    /// [`BadName`] if `below` is none.
    pub fn join(&self, below: &str) -> Result<Self, BadName> {
        Self::new(&format!("{}/{below}", self.0))
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the part below this folder, or `None` if it is not in it.
    pub fn below<'a>(&'a self, folder: &Self) -> Option<&'a str> {
        self.0.strip_prefix(&folder.0)?.strip_prefix('/')
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl FromStr for Name {
    type Err = BadName;

    fn from_str(name: &str) -> Result<Self, BadName> {
        Self::new(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_needs_no_escaping_anywhere() {
        for good in ["v1", "v1/heads/0192", "a/b-c_d.e/00.250.1024.1.2"] {
            assert_eq!(Name::new(good).unwrap().as_str(), good);
        }
        let long = "x/".repeat(400);
        let segment = "x".repeat(251);
        for bad in
            ["", "/", "/a", "a/", "a//b", ".", "..", "a/../b", ".a", "a b", "ä", "a\\b", "a%2fb", &long, &segment]
        {
            assert!(Name::new(bad).is_err(), "{bad} would leave the depot or be another object elsewhere");
        }
    }

    #[test]
    fn a_folder_holds_what_is_below_it_and_not_its_neighbours() {
        let folder = Name::new("v1/heads").unwrap();
        assert_eq!(folder.join("a/b").unwrap().below(&folder), Some("a/b"));
        assert_eq!(Name::new("v1/heads2/a").unwrap().below(&folder), None);
        assert_eq!(folder.below(&folder), None);
    }
}
