//! The headers of pings and answers between an agent (an *edge*) and the agent behind it (a *hub*).
//!
//! A hub answers like an Opik server, so that every client works with it. Three things an edge must know nevertheless:
//!
//! | header | on | meaning |
//! | --- | --- | --- |
//! | [`ANSWER_HEADER`] | the hub's own refusals | not Opik's verdict: an edge keeps the write and retries it |
//! | [`HUB_HEADER`] | the hub's answers to pings | this is a hub: its version, its server and that server's state |
//! | [`EDGE_HEADER`] | an edge's pings of a hub | this is an edge: its host, its version and what waits there |
//!
//! Each side works with one that sends none of them: an agent of an earlier version, or an Opik server.
//!
//! Everything read here comes from another machine. A value is taken only within its alphabet and length, so it is
//! harmless wherever it is shown; everything else is left out.

/// Marks an agent's own refusal. Opik never sends it.
pub const ANSWER_HEADER: &str = "x-opik-offline-answer";
/// Its value.
pub const OWN_ANSWER: &str = "agent";
/// Describes the hub that answers a ping.
pub const HUB_HEADER: &str = "x-opik-offline-hub";
/// Describes the edge that pings.
pub const EDGE_HEADER: &str = "x-opik-offline-edge";
/// Carries the token that an agent requires of its clients, and a hub of its edges.
pub const TOKEN_HEADER: &str = "x-opik-offline-token";

/// The longest header of this module that is read, in bytes.
const HEADER_BYTES_MAX: usize = 1024;
/// The longest id, host and version.
const ID_CHARS_MAX: usize = 64;
const HOST_CHARS_MAX: usize = 253;
const VERSION_CHARS_MAX: usize = 32;
const URL_CHARS_MAX: usize = 512;
/// The largest count: programs read it as JSON, whose numbers are exact up to here.
const COUNT_MAX: u64 = 1 << 53;

/// How a hub reaches its own server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// The hub's last ping was answered.
    Available,
    /// It was not.
    Unavailable,
    /// The hub has no result yet.
    Unknown,
}

impl Reached {
    /// Returns the word for programs and people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Available => "available",
            Self::Unavailable => "unavailable",
            Self::Unknown => "unknown",
        }
    }

    fn of(word: &str) -> Self {
        match word {
            "available" => Self::Available,
            "unavailable" => Self::Unavailable,
            _ => Self::Unknown,
        }
    }
}

/// A hub, as it describes itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hub {
    /// Its version; `None` if it sends none that is valid.
    pub version: Option<String>,
    /// The base URL of its server's API.
    pub server_url: Option<String>,
    /// Whether it reaches that server.
    pub server: Reached,
    /// Since when, in milliseconds since the Unix epoch, by the hub's clock.
    pub since_ms: Option<u64>,
    /// Messages that wait in its store; `None` while it can't read that.
    pub waiting: Option<u64>,
}

impl Hub {
    /// Returns the value of [`HUB_HEADER`].
    pub fn to_header(&self) -> String {
        let url = self.server_url.as_deref().filter(|url| is_url(url));
        let count = |count: u64| count.min(COUNT_MAX).to_string();
        fields(&[
            ("version", self.version.clone()),
            ("server", Some(self.server.word().to_owned())),
            ("since_ms", self.since_ms.map(count)),
            ("waiting", self.waiting.map(count)),
            ("url", url.map(str::to_owned)),
        ])
    }

    /// Parses a value of [`HUB_HEADER`]; `None` for one that no hub sends. Unknown fields are ignored: a later version
    /// may send more.
    pub fn of_header(value: &[u8]) -> Option<Self> {
        let fields = HubFields::of(value)?;
        Some(Self {
            version: fields.text("version", is_version),
            server_url: fields.text("url", is_url),
            server: Reached::of(fields.get("server")?),
            since_ms: fields.count("since_ms"),
            waiting: fields.count("waiting"),
        })
    }
}

/// An edge, as it describes itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edge {
    /// Tells it from every other agent: each process has its own.
    pub id: String,
    /// The name of its machine or pod.
    pub host: Option<String>,
    /// Its version.
    pub version: Option<String>,
    /// Messages that wait in its store; `None` while it can't read that.
    pub waiting: Option<u64>,
}

impl Edge {
    /// Returns the value of [`EDGE_HEADER`]. A host name that no hub would accept is left out.
    pub fn to_header(&self) -> String {
        fields(&[
            ("id", Some(self.id.clone())),
            ("host", self.host.clone().filter(|host| is_host(host))),
            ("version", self.version.clone()),
            ("waiting", self.waiting.map(|count| count.min(COUNT_MAX).to_string())),
        ])
    }

    /// Parses a value of [`EDGE_HEADER`]; `None` for one without a valid id.
    pub fn of_header(value: &[u8]) -> Option<Self> {
        let fields = HubFields::of(value)?;
        Some(Self {
            id: fields.text("id", is_id)?,
            host: fields.text("host", is_host),
            version: fields.text("version", is_version),
            waiting: fields.count("waiting"),
        })
    }
}

/// Joins `name=value` pairs.
fn fields(pairs: &[(&str, Option<String>)]) -> String {
    let present = pairs.iter().filter_map(|(name, value)| Some(format!("{name}={}", value.as_ref()?)));
    present.collect::<Vec<_>>().join("; ")
}

/// The fields of a header. Of a name that occurs twice the first counts.
struct HubFields<'a>(Vec<(&'a str, &'a str)>);

impl<'a> HubFields<'a> {
    fn of(value: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(value).ok().filter(|text| text.len() <= HEADER_BYTES_MAX)?;
        let pairs = text.split(';').filter_map(|pair| pair.trim().split_once('='));
        Some(Self(pairs.collect()))
    }

    fn get(&self, name: &str) -> Option<&'a str> {
        self.0.iter().find(|(found, _)| *found == name).map(|(_, value)| *value)
    }

    fn text(&self, name: &str, is_valid: fn(&str) -> bool) -> Option<String> {
        self.get(name).filter(|value| is_valid(value)).map(str::to_owned)
    }

    fn count(&self, name: &str) -> Option<u64> {
        let value = self.get(name).filter(|value| value.bytes().all(|byte| byte.is_ascii_digit()))?;
        value.parse().ok().filter(|count| *count <= COUNT_MAX)
    }
}

fn is_within(text: &str, chars_max: usize, others: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || others.contains(c);
    (1..=chars_max).contains(&text.len()) && text.chars().all(is_allowed)
}

fn is_id(text: &str) -> bool {
    is_within(text, ID_CHARS_MAX, "-")
}

fn is_host(text: &str) -> bool {
    is_within(text, HOST_CHARS_MAX, "-._")
}

fn is_version(text: &str) -> bool {
    is_within(text, VERSION_CHARS_MAX, "-.+")
}

/// Returns whether this may be the URL of a server: `http`, without credentials, a query or anything to decode.
fn is_url(text: &str) -> bool {
    (text.starts_with("http://") || text.starts_with("https://")) && is_within(text, URL_CHARS_MAX, ":/[]-._~%")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge() -> Edge {
        Edge {
            id: "01a204de9fcd713b92d3407df0533c91".into(),
            host: Some("worker-7.team_a".into()),
            version: Some("0.1.0".into()),
            waiting: Some(12),
        }
    }

    #[test]
    fn a_hub_and_an_edge_read_each_other_whole() {
        assert_eq!(Edge::of_header(edge().to_header().as_bytes()), Some(edge()));
        for server in [Reached::Available, Reached::Unavailable, Reached::Unknown] {
            let hub = Hub {
                version: Some("0.1.0".into()),
                server_url: Some("https://[fd00::1]:8080/opik/api".into()),
                server,
                since_ms: Some(1_764_000_000_000),
                waiting: Some(0),
            };
            assert_eq!(Hub::of_header(hub.to_header().as_bytes()), Some(hub));
        }
    }

    #[test]
    fn versions_with_more_or_fewer_fields_understand_each_other() {
        let later = "id=a1; color=red; waiting=3; host=h";
        let read = Edge { id: "a1".into(), host: Some("h".into()), version: None, waiting: Some(3) };
        assert_eq!(Edge::of_header(later.as_bytes()), Some(read));
        let least = Hub { version: None, server_url: None, server: Reached::Unknown, since_ms: None, waiting: None };
        assert_eq!(Hub::of_header(b"server=resting"), Some(least));
    }

    #[test]
    fn a_lying_header_shows_nothing_that_is_too_long_or_not_a_name() {
        for bad in ["", "id=", "host=h", "id=a b", "id=\u{1b}[31m", "id=a\u{202e}b", "id==", "id", ";;;", "id=<script>"]
        {
            assert_eq!(Edge::of_header(bad.as_bytes()), None, "{bad:?}");
        }
        assert_eq!(Edge::of_header(&[b'i', b'd', b'=', 0xff]), None, "not a text");
        assert_eq!(Edge::of_header(format!("id=a; x={}", "y".repeat(2000)).as_bytes()), None, "too long");
        assert_eq!(Edge::of_header(format!("id={}", "a".repeat(65)).as_bytes()), None, "too long an id");
        for (field, bad) in [
            ("host", "a b"),
            ("host", "a\tb"),
            ("host", "r\u{e9}seau"),
            ("host", ""),
            ("version", "0.1\u{7}"),
            ("version", "012345678901234567890123456789012"),
            ("waiting", "-1"),
            ("waiting", "+1"),
            ("waiting", "1e9"),
            ("waiting", "9007199254740993"),
            ("waiting", "99999999999999999999999"),
        ] {
            let read = Edge::of_header(format!("id=a; {field}={bad}").as_bytes()).expect("its id is valid");
            assert_eq!((read.host, read.version, read.waiting), (None, None, None), "{field}={bad:?}");
        }
        for bad in ["javascript:alert(1)", "http://user:key@host/api", "http://host/?a=b", "http://a b/", "ftp://host"]
        {
            let read = Hub::of_header(format!("server=available; url={bad}").as_bytes()).expect("a hub");
            assert_eq!(read.server_url, None, "{bad}");
        }
        let odd = Edge { host: Some("a; id=other".into()), ..edge() };
        assert_eq!(Edge::of_header(odd.to_header().as_bytes()), Some(Edge { host: None, ..edge() }));
    }
}
