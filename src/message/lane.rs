//! A lane: server, workspace and credential. Messages are ordered within a lane; lanes are independent of each other.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// The server that a message was accepted for: the normalised base URL of its API.
///
/// Two spellings of one URL are one server: the scheme's default port and a trailing slash are dropped. Two names of
/// one machine (`localhost`, `127.0.0.1`) are two servers, because they may differ. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Server(Arc<str>);

impl Server {
    /// Normalises a base URL, which must be absolute and without user information.
    pub fn new(base_url: &str) -> Self {
        let base_url = base_url.trim_end_matches('/');
        let Some((scheme, rest)) = base_url.split_once("://") else { return Self(base_url.into()) };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let scheme = scheme.to_ascii_lowercase();
        let own_port = if scheme == "https" { ":443" } else { ":80" };
        let authority = authority.strip_suffix(own_port).unwrap_or(authority).to_ascii_lowercase();
        Self(format!("{scheme}://{authority}{path}").into())
    }

    /// Returns the base URL without a trailing slash.
    pub fn base_url(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The value of an `Authorization` header; masked in `Display` and `Debug` output.
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
    /// Shows at most the first four characters, and only of a credential long enough that they reveal nothing.
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

/// Marks a stored workspace that is not the UTF-8 text of exactly one header; no header can contain this character.
/// Each character after it is one byte, so the name reads as Latin-1, which is how such clients encode it and how the
/// server decodes it.
const RAW: char = '\u{1}';
/// Separates the values of two headers.
const BETWEEN: char = '\u{2}';

/// Encodes these header values as a stored workspace that can be decoded byte for byte
/// ([`Lane::workspace_headers`]); `None` without a header.
pub fn workspace_of_headers<'values>(mut values: impl Iterator<Item = &'values [u8]>) -> Option<String> {
    let first = values.next()?;
    let mut rest = values.peekable();
    if let (Ok(text), None) = (std::str::from_utf8(first), rest.peek()) {
        return Some(text.to_owned());
    }
    let latin1 = |value: &[u8]| value.iter().copied().map(char::from).collect::<String>();
    let values: Vec<String> = std::iter::once(first).chain(rest).map(latin1).collect();
    Some(format!("{RAW}{}", values.join(BETWEEN.encode_utf8(&mut [0; 4]))))
}

/// Returns a stored workspace in its displayed form.
pub fn workspace_shown(stored: &str) -> &str {
    stored.strip_prefix(RAW).unwrap_or(stored)
}

/// Returns the stored workspaces that a displayed name may mean.
pub fn workspaces_named(name: &str) -> [String; 2] {
    [name.to_owned(), format!("{RAW}{name}")]
}

/// The destination of a message: the server that it was accepted for, and the workspace and credential exactly as its
/// client sent, exactly.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lane {
    /// The server; `None` only for messages of an older version that did not record it, until the first agent adopts
    /// them.
    pub server: Option<Server>,
    /// `Comet-Workspace`, as [`workspace_of_headers`] writes it; `None` when the client sent none.
    pub workspace: Option<String>,
    /// `Authorization`; `None` when the client sent none.
    pub credential: Option<Credential>,
}

impl Lane {
    /// Returns the displayed workspace name; a client that names none means the server's `default`.
    pub fn workspace_name(&self) -> &str {
        workspace_shown(self.workspace.as_deref().unwrap_or("default"))
    }

    /// Returns the values of the `Comet-Workspace` headers, byte for byte as the client sent them.
    pub fn workspace_headers(&self) -> Vec<Cow<'_, [u8]>> {
        let Some(workspace) = self.workspace.as_deref() else { return Vec::new() };
        let Some(raw) = workspace.strip_prefix(RAW) else { return vec![workspace.as_bytes().into()] };
        // Every character is one byte.
        let bytes = |value: &str| value.chars().map(|c| u8::try_from(c).unwrap_or(b'?')).collect::<Vec<u8>>().into();
        raw.split(BETWEEN).map(bytes).collect()
    }

    /// Returns a hash of server and workspace, the namespace of the lane's entities: any key writes the same
    /// records there. Stable across versions; a collision only makes two namespaces share notes about their entities.
    pub fn place(&self) -> i64 {
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
        let server = self.server.as_ref().map_or("", Server::base_url);
        for byte in server.bytes().chain([0]).chain(self.workspace.as_deref().unwrap_or("default").bytes()) {
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
    fn credentials_are_masked_when_displayed() {
        let secret = "made-up-key-0123456789";
        let lane = Lane { workspace: Some("team".into()), credential: Some(Credential::new(secret)), server: None };
        for shown in [format!("{lane}"), format!("{lane:?}"), format!("{:#?}", lane.credential)] {
            assert!(!shown.contains(&secret[4..]), "{shown} shows the key");
        }
        assert_eq!(Credential::new("short").to_string(), "***");
        assert_eq!(Credential::new("").to_string(), "(empty)");
    }

    #[test]
    fn workspaces_round_trip_byte_for_byte_and_are_displayable() {
        for (values, shown) in [
            (vec![&b"team"[..]], "team"),
            (vec![b""], ""),
            (vec![b"a\tb"], "a\tb"),
            (vec!["\u{e9}quipe".as_bytes()], "\u{e9}quipe"),
            (vec![b"\xe9quipe"], "\u{e9}quipe"),
            (vec![b"\x80\xff"], "\u{80}\u{ff}"),
            (vec![b"a", b"b"], "a\u{2}b"),
            (vec![b"", b"\xe9", "\u{e9}".as_bytes()], "\u{2}\u{e9}\u{2}\u{c3}\u{a9}"),
        ] {
            let lane = Lane { workspace: workspace_of_headers(values.iter().copied()), ..Lane::default() };
            assert_eq!(lane.workspace_headers(), values, "{lane:?}");
            assert_eq!(lane.workspace_name(), shown);
            assert!(workspaces_named(shown).contains(lane.workspace.as_ref().expect("one is named")));
        }
        assert_eq!(workspace_of_headers(std::iter::empty()), None);
        assert!(Lane::default().workspace_headers().is_empty());
        // Two names on the wire are two workspaces, even if they look the same.
        let [latin1, utf8] = [&b"\xe9"[..], "\u{e9}".as_bytes()]
            .map(|value| Lane { workspace: workspace_of_headers([value].into_iter()), ..Lane::default() });
        assert!(latin1 != utf8 && latin1.place() != utf8.place());
    }

    #[test]
    fn servers_are_equal_by_normalised_url() {
        let one = Server::new("https://opik.example/api");
        for same in ["https://opik.example/api/", "HTTPS://Opik.Example:443/api", "https://opik.example:443/api//"] {
            assert_eq!(Server::new(same), one, "{same}");
        }
        for other in [
            "http://opik.example/api",
            "https://opik.example",
            "https://opik.example/API",
            "https://opik.example:8443/api",
            "https://opik.example.evil/api",
        ] {
            assert_ne!(Server::new(other), one, "{other}");
        }
        assert_eq!(Server::new("http://127.0.0.1:80").base_url(), "http://127.0.0.1");
    }
}
