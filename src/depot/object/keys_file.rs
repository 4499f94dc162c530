//! Keys in `~/.aws/credentials`, where AWS' tools keep them.

use std::io::ErrorKind;
use std::path::Path;

/// Reads the keys of a profile, by the names of variables. Without a file there are none.
///
/// # Errors
///
/// The reason, if the file can't be read or does not have the named profile.
pub(super) fn read(path: &Path, profile: Option<&str>) -> Result<Vec<(&'static str, String)>, String> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(format!("cannot read {}: {error}", path.display())),
    };
    let name = profile.unwrap_or("default");
    let found = keys(&text, name);
    if found.is_none() && profile.is_some() {
        return Err(format!("{} has no profile {name}, which AWS_PROFILE names", path.display()));
    }
    Ok(found.unwrap_or_default())
}

/// Returns the keys of a section; `None` if there is no such section.
fn keys(text: &str, profile: &str) -> Option<Vec<(&'static str, String)>> {
    let mut found: Option<Vec<_>> = None;
    let mut is_inside = false;
    for line in text.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            is_inside = section.trim() == profile;
            if is_inside {
                found.get_or_insert_default();
            }
            continue;
        }
        let Some((key, value)) = line.split_once('=').filter(|_| is_inside) else { continue };
        let variable = match key.trim() {
            "aws_access_key_id" => "AWS_ACCESS_KEY_ID",
            "aws_secret_access_key" => "AWS_SECRET_ACCESS_KEY",
            "aws_session_token" => "AWS_SESSION_TOKEN",
            _ => continue,
        };
        found.get_or_insert_default().push((variable, value.trim().to_owned()));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# mine\n[default]\naws_access_key_id = A\naws_secret_access_key=B\n\n[work]\naws_access_key_id=C\n\
                        region = eu-west-1\naws_secret_access_key = D\naws_session_token = E\n";

    #[test]
    fn a_profile_has_its_own_keys() {
        let owned = |pairs: &[(&'static str, &str)]| -> Vec<(&'static str, String)> {
            pairs.iter().map(|(name, value)| (*name, (*value).to_owned())).collect()
        };
        assert_eq!(keys(TEXT, "default"), Some(owned(&[("AWS_ACCESS_KEY_ID", "A"), ("AWS_SECRET_ACCESS_KEY", "B")])));
        let work = [("AWS_ACCESS_KEY_ID", "C"), ("AWS_SECRET_ACCESS_KEY", "D"), ("AWS_SESSION_TOKEN", "E")];
        assert_eq!(keys(TEXT, "work"), Some(owned(&work)));
        assert_eq!(keys(TEXT, "other"), None);
    }

    #[test]
    fn a_profile_that_is_named_and_missing_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("credentials");
        assert_eq!(read(&path, Some("work")), Ok(Vec::new()), "the platform may have keys");
        std::fs::write(&path, TEXT).unwrap();
        assert_eq!(read(&path, None).unwrap().len(), 2);
        assert!(read(&path, Some("other")).unwrap_err().contains("AWS_PROFILE"));
    }
}
