//! A lane: server plus workspace plus credential. Order holds inside it, and lanes don't block each other.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// The server that a message was accepted for: the base URL of its API, in one spelling.
///
/// Two spellings of one URL are one server: the scheme's own port is left out, and so is a slash at the end. Two names of
/// one machine (`localhost`, `127.0.0.1`) are two servers, because they may be. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Server(Arc<str>);

impl Server {
    /// Returns the server with this base URL, which is absolute and names no user.
    pub fn new(base_url: &str) -> Self {
        let base_url = base_url.trim_end_matches('/');
        let Some((scheme, rest)) = base_url.split_once("://") else { return Self(base_url.into()) };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let scheme = scheme.to_ascii_lowercase();
        let own_port = if scheme == "https" { ":443" } else { ":80" };
        let authority = authority.strip_suffix(own_port).unwrap_or(authority).to_ascii_lowercase();
        Self(format!("{scheme}://{authority}{path}").into())
    }

    /// Returns the base URL without a slash at its end.
    pub fn base_url(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

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

/// Begins a workspace that is not the UTF-8 text of one header; no header can hold it. Each character after it stands for
/// one byte, so that the name reads as Latin-1, which is what such clients mean by it, and what the server reads.
const RAW: char = '\u{1}';
/// Stands between the values of two headers.
const BETWEEN: char = '\u{2}';

/// Returns the workspace that these header values name, in a form that gives them back byte for byte
/// ([`Lane::workspace_headers`]); `None` for no header.
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

/// Returns a stored workspace as people read it.
pub fn workspace_shown(stored: &str) -> &str {
    stored.strip_prefix(RAW).unwrap_or(stored)
}

/// Returns the stored workspaces that people mean by a name.
pub fn workspaces_named(name: &str) -> [String; 2] {
    [name.to_owned(), format!("{RAW}{name}")]
}

/// Where a message belongs: the server that it was accepted for, and the workspace and the credential that its client
/// sent, exactly.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lane {
    /// The server; `None` only for what a version stored that did not record it, until the first agent adopts it.
    pub server: Option<Server>,
    /// `Comet-Workspace`, as [`workspace_of_headers`] writes it; `None` when the client sent none.
    pub workspace: Option<String>,
    /// `Authorization`; `None` when the client sent none.
    pub credential: Option<Credential>,
}

impl Lane {
    /// Returns the workspace as people read it; a client that names none means the server's `default`.
    pub fn workspace_name(&self) -> &str {
        workspace_shown(self.workspace.as_deref().unwrap_or("default"))
    }

    /// Returns the values of the `Comet-Workspace` headers, byte for byte as the client sent them.
    pub fn workspace_headers(&self) -> Vec<Cow<'_, [u8]>> {
        let Some(workspace) = self.workspace.as_deref() else { return Vec::new() };
        let Some(raw) = workspace.strip_prefix(RAW) else { return vec![workspace.as_bytes().into()] };
        // Every character stands for one byte.
        let bytes = |value: &str| value.chars().map(|c| u8::try_from(c).unwrap_or(b'?')).collect::<Vec<u8>>().into();
        raw.split(BETWEEN).map(bytes).collect()
    }

    /// Returns a number for the place in which the lane's entities are, server and workspace: any key writes the same
    /// records there. Stable over versions; two places with one number would only share notes about their entities.
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
    fn a_credential_never_shows_itself() {
        let secret = "made-up-key-0123456789";
        let lane = Lane { workspace: Some("team".into()), credential: Some(Credential::new(secret)), server: None };
        for shown in [format!("{lane}"), format!("{lane:?}"), format!("{:#?}", lane.credential)] {
            assert!(!shown.contains(&secret[4..]), "{shown} shows the key");
        }
        assert_eq!(Credential::new("short").to_string(), "***");
        assert_eq!(Credential::new("").to_string(), "(empty)");
    }

    #[test]
    fn a_workspace_is_given_back_byte_for_byte_and_read_by_people() {
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
        // Two names on the wire are two workspaces, however alike they look.
        let [latin1, utf8] = [&b"\xe9"[..], "\u{e9}".as_bytes()]
            .map(|value| Lane { workspace: workspace_of_headers([value].into_iter()), ..Lane::default() });
        assert!(latin1 != utf8 && latin1.place() != utf8.place());
    }

    #[test]
    fn two_spellings_of_one_url_are_one_server_and_two_urls_are_two() {
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
