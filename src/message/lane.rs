//! A lane: workspace plus credential. Order holds inside it, and lanes don't block each other.

use std::fmt;

/// The value of an `Authorization` header. It shows itself masked only.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Credential(Vec<u8>);

impl Credential {
    /// Returns the credential with this header value; the TypeScript SDK sends an empty one when it has no key.
    pub fn new(value: impl Into<Vec<u8>>) -> Self {
        Self(value.into())
    }

    /// Returns the header value itself, for sending and storing only.
    pub fn reveal(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Credential {
    /// Shows at most the first four characters, and those only of a credential long enough that they give nothing away.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match std::str::from_utf8(&self.0) {
            Ok("") => f.write_str("(empty)"),
            Ok(value) if value.is_ascii() && value.len() >= 16 => write!(f, "{}***", &value[..4]),
            _ => f.write_str("***"),
        }
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credential({self})")
    }
}

/// Whose message it is: the workspace and the credential that the client sent, exactly.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lane {
    /// `Comet-Workspace`; `None` when the client sent none.
    pub workspace: Option<String>,
    /// `Authorization`; `None` when the client sent none.
    pub credential: Option<Credential>,
}

impl Lane {
    /// Returns the workspace as people read it; a client that names none means the server's `default`.
    pub fn workspace_name(&self) -> &str {
        self.workspace.as_deref().unwrap_or("default")
    }

    /// Returns a number for the place in which the lane's entities are: whoever writes there, with whatever key, writes
    /// the same records. Stable over versions; two places with one number would only share notes about their entities.
    pub fn place(&self) -> i64 {
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
        for byte in self.workspace_name().bytes() {
            hash ^= u64::from(byte);
            hash = hash.wrapping_mul(0x0000_0100_0000_01b3);
        }
        i64::from_be_bytes(hash.to_be_bytes())
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.credential {
            Some(credential) => write!(f, "workspace {}, key {credential}", self.workspace_name()),
            None => write!(f, "workspace {}, no key", self.workspace_name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_never_shows_itself() {
        let secret = "made-up-key-0123456789";
        let lane = Lane { workspace: Some("team".into()), credential: Some(Credential::new(secret)) };
        for shown in [format!("{lane}"), format!("{lane:?}"), format!("{:#?}", lane.credential)] {
            assert!(!shown.contains(&secret[4..]), "{shown} shows the key");
        }
        assert_eq!(Credential::new("short").to_string(), "***");
        assert_eq!(Credential::new("").to_string(), "(empty)");
    }
}
