//! Which sites may talk to the agent: what a `Host`, an `Origin` and the browser's own words about a request allow.
//!
//! A web page can make its visitor's browser send requests to this machine. Two ways matter:
//!
//! - *Rebinding*: the page's own name is pointed at the agent's address, so that the browser takes the agent for the
//!   page's server and shows it the answers. The `Host` is then a name that the page's owner can register.
//! - *Cross-site requests*: a form or a script of the page sends to the agent's own address. It can't read the answer, but
//!   a write takes effect. The browser names the page in `Origin`, or says `Sec-Fetch-Site: cross-site`.
//!
//! Programs send none of these headers, except that Node.js sends `Sec-Fetch-Mode`, which is no evidence here.
//!
//! | listener | names that a `Host` may have |
//! | --- | --- |
//! | a loopback address | `localhost`, `*.localhost`, loopback addresses, the address itself, `allowed_hosts` |
//! | another, and the request has the intake token | all: no page knows the token |
//! | another, without it | those above, every address, names that nobody can register, `allowed_hosts` |
//!
//! What asks for health and metrics has no token and may use any name: see [`super::monitoring`].
//!
//! Pure: functions of the request's head and of the settings.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use http::header::{HOST, HeaderMap, HeaderName, ORIGIN, REFERER};
use http::request::Parts;
use http::{Method, Uri};

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const SEC_FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");

/// Ends of names that are not part of the public DNS: nobody can register one and point it elsewhere (RFC 6761, RFC 6762
/// with its appendix G, RFC 8375, ICANN's `.internal`; `.svc` is the short form of a Kubernetes service).
const PRIVATE_ENDS: [&str; 9] = ["local", "internal", "home.arpa", "svc", "lan", "intranet", "private", "corp", "home"];
/// How much of a foreign name is repeated to whoever reads the refusal.
const SHOWN_CHARS_MAX: usize = 100;

/// What the operator and the listener allow.
#[derive(Clone, Debug)]
pub struct SitePolicy {
    listener: IpAddr,
    allowed: Vec<Allowed>,
}

/// One entry of `allowed_hosts`.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Allowed {
    /// `*`: every host and every origin.
    All,
    /// `*.example.org`: every name below it.
    Below { end: String, port: Option<u16> },
    /// `agent.example.org`, `10.0.0.7:6745`.
    Host(Authority),
    /// `https://opik.example.org`: pages of this origin, which need not be a name of the agent.
    Origin(Origin),
}

/// A host with its port, in the one form in which it is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Authority {
    host: Host,
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    Ip(IpAddr),
    /// In lower case, without a dot at its end.
    Name(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin {
    scheme: String,
    authority: Authority,
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForeignRequest {
    /// The `Host`, or the host of an absolute request target, is no name of the agent.
    Host(String),
    /// The request's target and its `Host` name two hosts.
    TwoHosts,
    /// `Origin` or `Referer` names a page of another site.
    Page(String),
    /// The browser says that a page of another site asks.
    CrossSite,
}

impl ForeignRequest {
    /// Returns the status of the answer.
    pub fn status(&self) -> u16 {
        if *self == Self::TwoHosts { 400 } else { 403 }
    }

    /// Returns whether a name is at fault, and not the page that asks.
    pub fn is_host(&self) -> bool {
        matches!(self, Self::Host(_) | Self::TwoHosts)
    }
}

impl fmt::Display for ForeignRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const WHERE: &str = "allowed_hosts (OPIK_OFFLINE_ALLOWED_HOSTS)";
        match self {
            Self::Host(host) => write!(
                f,
                "this opik-offline agent does not answer to the host {host}: if clients reach it by that name, add the \
                 name to {WHERE}"
            ),
            Self::TwoHosts => f.write_str("the request's target and its Host header name two hosts"),
            Self::Page(page) => write!(
                f,
                "this opik-offline agent does not take requests of the web page {page}: if the page may send them, add its \
                 origin to {WHERE}"
            ),
            Self::CrossSite => write!(
                f,
                "this opik-offline agent does not take requests of web pages of other sites (Sec-Fetch-Site): if the page \
                 may send them, add its origin to {WHERE}"
            ),
        }
    }
}

impl SitePolicy {
    /// Makes the policy of an agent that listens on this address. `allowed` are the entries of `allowed_hosts`; one that
    /// can't be read allows nothing.
    pub fn new(listener: IpAddr, allowed: &[String]) -> Self {
        let allowed = allowed.iter().filter_map(|entry| Allowed::parse(entry)).collect();
        Self { listener: listener.to_canonical(), allowed }
    }

    /// Refuses what a page of another site may have sent.
    ///
    /// `has_token` is whether the request showed the intake token that the agent asks for. `is_link_target` is whether
    /// people follow links to this path: a browser that goes there shows the answer to its user and to no page.
    ///
    /// # Errors
    ///
    /// Why it is refused.
    pub fn judge(&self, head: &Parts, has_token: bool, is_link_target: bool) -> Result<(), ForeignRequest> {
        let named = head.headers.get(HOST).map(|host| (host.as_bytes(), Authority::parse(host.as_bytes())));
        let target = head
            .uri
            .authority()
            .map(|target| (target.as_str().as_bytes(), Authority::parse(target.as_str().as_bytes())));
        for (text, authority) in [&target, &named].into_iter().flatten() {
            let is_allowed = authority.as_ref().is_some_and(|authority| self.is_own_name(authority, has_token));
            if !is_allowed {
                return Err(ForeignRequest::Host(shown(text)));
            }
        }
        if let (Some((_, target)), Some((_, named))) = (&target, &named)
            && target != named
        {
            return Err(ForeignRequest::TwoHosts);
        }
        let own = target.or(named).and_then(|(_, authority)| authority);
        self.judge_page(&head.method, &head.headers, own.as_ref(), is_link_target)
    }

    /// Returns whether only programs of this machine reach the agent.
    pub(super) fn is_loopback_only(&self) -> bool {
        self.listener.is_loopback()
    }

    /// Returns whether the agent answers to a name.
    fn is_own_name(&self, asked: &Authority, has_token: bool) -> bool {
        let is_loopback_only = self.is_loopback_only();
        let is_own = match &asked.host {
            Host::Ip(ip) => !is_loopback_only || ip.is_loopback() || *ip == self.listener,
            Host::Name(name) => {
                let is_private = || !name.contains('.') || PRIVATE_ENDS.iter().any(|end| is_below(name, end));
                is_localhost(name) || !is_loopback_only && (has_token || is_private())
            }
        };
        is_own || self.allowed.iter().any(|allowed| allowed.has_host(asked))
    }

    fn judge_page(
        &self,
        method: &Method,
        headers: &HeaderMap,
        own: Option<&Authority>,
        is_link_target: bool,
    ) -> Result<(), ForeignRequest> {
        let may_ask = |origin: &Origin| {
            own.is_some_and(|own| origin.is_at(own)) || self.allowed.iter().any(|allowed| allowed.has_origin(origin))
        };
        let mut origins = headers.get_all(ORIGIN).iter().peekable();
        if origins.peek().is_some() {
            return match origins.find(|origin| !Origin::parse(origin.as_bytes()).is_some_and(|origin| may_ask(&origin)))
            {
                Some(foreign) => Err(ForeignRequest::Page(shown(foreign.as_bytes()))),
                None => Ok(()),
            };
        }
        let is_read = [Method::GET, Method::HEAD].contains(method);
        let mut sites = headers.get_all(SEC_FETCH_SITE).iter().peekable();
        if sites.peek().is_some() {
            let says = |name: &HeaderName, word: &str| {
                let mut values = headers.get_all(name).iter().peekable();
                values.peek().is_some() && values.all(|value| value.as_bytes() == word.as_bytes())
            };
            let is_own = sites.all(|site| [&b"same-origin"[..], b"none"].contains(&site.as_bytes()));
            let follows_link =
                is_read && is_link_target && says(&SEC_FETCH_MODE, "navigate") && says(&SEC_FETCH_DEST, "document");
            return if is_own || follows_link { Ok(()) } else { Err(ForeignRequest::CrossSite) };
        }
        // Older browsers send neither header. A followed link has a Referer, too, so reads are left alone.
        let referer = headers.get(REFERER).filter(|_| !is_read && *method != Method::OPTIONS);
        match referer.and_then(|referer| Some((referer, Origin::of_url(referer.as_bytes())?))) {
            Some((referer, page)) if !may_ask(&page) => Err(ForeignRequest::Page(shown(referer.as_bytes()))),
            _ => Ok(()),
        }
    }
}

impl Allowed {
    fn parse(entry: &str) -> Option<Self> {
        if entry == "*" {
            return Some(Self::All);
        }
        if entry.contains("://") {
            return Origin::parse(entry.as_bytes()).map(Self::Origin);
        }
        if let Some(end) = entry.strip_prefix("*.") {
            let Authority { host: Host::Name(end), port } = Authority::parse(end.as_bytes())? else { return None };
            return Some(Self::Below { end, port });
        }
        Authority::parse(entry.as_bytes()).map(Self::Host)
    }

    fn has_host(&self, asked: &Authority) -> bool {
        match self {
            Self::All => true,
            Self::Below { end, port } => {
                let is_below = matches!(&asked.host, Host::Name(name) if is_below(name, end));
                is_below && port.is_none_or(|port| asked.port == Some(port))
            }
            Self::Host(known) => known.host == asked.host && known.port.is_none_or(|port| asked.port == Some(port)),
            Self::Origin(_) => false,
        }
    }

    fn has_origin(&self, asked: &Origin) -> bool {
        match self {
            Self::Origin(known) => known.scheme == asked.scheme && known.full() == asked.full(),
            // A page is not an address: what is no web page has to be named with its scheme.
            _ if !asked.is_web() => false,
            _ => self.has_host(&asked.full()),
        }
    }
}

impl Authority {
    /// Reads `host[:port]` strictly; `None` for all else, user information included.
    fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (ip, rest) = rest.split_once(']')?;
                // A zone says by which interface; it is nobody's name.
                let ip: Ipv6Addr = ip.split('%').next()?.parse().ok()?;
                let port = if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) };
                (Host::Ip(IpAddr::V6(ip).to_canonical()), port)
            }
            None => {
                let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
                (Host::parse(host)?, port)
            }
        };
        let port = match port {
            None | Some("") => None,
            Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => Some(port.parse().ok()?),
            Some(_) => return None,
        };
        Some(Self { host, port })
    }
}

impl Host {
    fn parse(text: &str) -> Option<Self> {
        const NAME_BYTES_MAX: usize = 253;
        const LABEL_BYTES_MAX: usize = 63;

        let text = text.strip_suffix('.').unwrap_or(text);
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Some(Self::Ip(ip.to_canonical()));
        }
        let name = text.to_ascii_lowercase();
        let is_label = |label: &str| {
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            (1..=LABEL_BYTES_MAX).contains(&label.len()) && label.bytes().all(is_plain)
        };
        let last = name.rsplit('.').next().unwrap_or("");
        // `2130706433`, `0x7f.1`, `0177.1`: addresses to some programs, and no name to any.
        let is_number = last.bytes().all(|byte| byte.is_ascii_digit()) || last.starts_with("0x");
        let is_name = name.len() <= NAME_BYTES_MAX && name.split('.').all(is_label) && !is_number;
        is_name.then_some(Self::Name(name))
    }
}

impl Origin {
    /// Reads what browsers send: `scheme://host[:port]`. `null` is none.
    fn parse(text: &[u8]) -> Option<Self> {
        let (scheme, rest) = std::str::from_utf8(text).ok()?.split_once("://")?;
        let is_scheme = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
        if scheme.is_empty() || !scheme.bytes().all(is_scheme) {
            return None;
        }
        Some(Self { scheme: scheme.to_ascii_lowercase(), authority: Authority::parse(rest.as_bytes())? })
    }

    /// Returns the origin of a URL that is absolute.
    fn of_url(url: &[u8]) -> Option<Self> {
        let url = std::str::from_utf8(url).ok()?;
        let uri: Uri = url.parse().ok()?;
        // The authority may hold user information, which is no part of an origin.
        let authority = uri.authority()?.as_str();
        let host = authority.rsplit('@').next().unwrap_or(authority);
        Some(Self { scheme: uri.scheme_str()?.to_ascii_lowercase(), authority: Authority::parse(host.as_bytes())? })
    }

    fn is_web(&self) -> bool {
        matches!(self.scheme.as_str(), "http" | "https")
    }

    fn default_port(&self) -> Option<u16> {
        match self.scheme.as_str() {
            "http" => Some(80),
            "https" => Some(443),
            _ => None,
        }
    }

    /// Returns the authority with its port spelled out.
    fn full(&self) -> Authority {
        Authority { port: self.authority.port.or(self.default_port()), ..self.authority.clone() }
    }

    /// Returns whether this is the origin of pages that the agent itself serves under this name. TLS may end in front of
    /// it.
    fn is_at(&self, own: &Authority) -> bool {
        let own = Authority { port: own.port.or(self.default_port()), ..own.clone() };
        self.is_web() && self.full() == own
    }
}

fn is_localhost(name: &str) -> bool {
    name == "localhost" || is_below(name, "localhost")
}

/// Returns whether a name lies below another: `a.b` below `b`.
fn is_below(name: &str, end: &str) -> bool {
    name.strip_suffix(end).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
}

/// Returns a name as it can be shown to anybody: in quotes, short, without control characters.
fn shown(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let mut start: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    if start.len() < text.len() {
        start.push_str("...");
    }
    let escaped: String = start.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect();
    format!("\"{escaped}\"")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::target::{ServerAddress, Target};

    const LOOPBACK: &str = "127.0.0.1";
    const NETWORK: &str = "0.0.0.0";

    /// Judges `METHOD TARGET`, followed by headers, a line each.
    fn judge(policy: &SitePolicy, has_token: bool, wire: &str) -> Result<(), ForeignRequest> {
        let mut lines = wire.split('\n');
        let (method, target) = lines.next().and_then(|line| line.split_once(' ')).expect("a method and a target");
        let mut request = http::Request::builder().method(method).uri(target);
        for line in lines {
            let (name, value) = line.split_once(": ").expect("a header");
            request = request.header(name, value.as_bytes());
        }
        let (head, ()) = request.body(()).expect("a request").into_parts();
        let target = Target::of(head.uri.path(), &ServerAddress::new("http://srv:5173/api"));
        policy.judge(&head, has_token, target.is_ok_and(|target| target.is_link_target()))
    }

    fn policy(listener: &str, allowed: &[&str]) -> SitePolicy {
        let allowed: Vec<String> = allowed.iter().map(|entry| (*entry).to_owned()).collect();
        SitePolicy::new(listener.parse().expect("an address"), &allowed)
    }

    /// Whether a `Host` is allowed on a loopback listener, on another one, and on that with the token.
    #[test]
    fn an_agent_answers_to_its_own_names_only() {
        for (host, expected) in [
            ("127.0.0.1:6745", [true, true, true]),
            ("127.0.0.1", [true, true, true]),
            ("127.8.9.10:1", [true, true, true]),
            ("127.0.0.1:", [true, true, true]),
            ("[::1]:6745", [true, true, true]),
            ("[::1%25lo]:6745", [true, true, true]),
            ("[::ffff:127.0.0.1]:6745", [true, true, true]),
            ("[0:0:0:0:0:0:0:1]", [true, true, true]),
            ("localhost:6745", [true, true, true]),
            ("LocalHost", [true, true, true]),
            ("localhost.", [true, true, true]),
            ("app.localhost:6745", [true, true, true]),
            // Addresses of this machine or of another, by which nobody reaches a loopback listener.
            ("192.168.1.5:6745", [false, true, true]),
            ("10.42.0.17:6745", [false, true, true]),
            ("[fd00::17]:6745", [false, true, true]),
            ("[fe80::1%25eth0]:6745", [false, true, true]),
            // Services of Docker Compose and of Kubernetes.
            ("opik-offline:6745", [false, true, true]),
            ("opik_offline:6745", [false, true, true]),
            ("opik-offline.tracing.svc:6745", [false, true, true]),
            ("opik-offline.tracing.svc.cluster.local:6745", [false, true, true]),
            ("host.docker.internal:6745", [false, true, true]),
            // What somebody can register.
            ("evil.example:6745", [false, false, true]),
            ("evil.example.", [false, false, true]),
            ("127.0.0.1.evil.example", [false, false, true]),
            ("localhost.evil.example", [false, false, true]),
            ("notlocalhost.example", [false, false, true]),
            ("opik-offline.tracing:6745", [false, false, true]),
            ("xlocal", [false, true, true]),
            ("evil.xlocal", [false, false, true]),
            (".localhost", [false, false, false]),
            ("a..localhost", [false, false, false]),
            // What is no host.
            ("", [false, false, false]),
            (":6745", [false, false, false]),
            (".", [false, false, false]),
            ("2130706433", [false, false, false]),
            ("0x7f000001:6745", [false, false, false]),
            ("0x7f.1", [false, false, false]),
            ("0177.0.0.1", [false, false, false]),
            ("127.1", [false, false, false]),
            ("127.0.0.1:x", [false, false, false]),
            ("127.0.0.1:99999", [false, false, false]),
            ("127.0.0.1:+80", [false, false, false]),
            ("::1", [false, false, false]),
            ("[::1", [false, false, false]),
            ("[::1]x", [false, false, false]),
            ("[localhost]", [false, false, false]),
            ("user@localhost", [false, false, false]),
            ("localhost@evil.example", [false, false, false]),
            ("localhost,evil.example", [false, false, false]),
            ("localhost evil.example", [false, false, false]),
            ("localhost/x", [false, false, false]),
            ("localhost#evil", [false, false, false]),
            ("localh\u{f6}st", [false, false, false]),
            ("\u{ff11}27.0.0.1", [false, false, false]),
        ] {
            let listeners = [(LOOPBACK, false), (NETWORK, false), (NETWORK, true)];
            let found = listeners.map(|(listener, has_token)| {
                judge(&policy(listener, &[]), has_token, &format!("GET /api/v1/private/traces\nhost: {host}")).is_ok()
            });
            assert_eq!(found, expected, "{host:?}");
        }
        // Its own address, where that is another loopback address or one of the network.
        for (listener, host) in [("127.0.0.9", "127.0.0.9:1"), ("::1", "[::1]:1"), ("::ffff:127.0.0.1", "127.0.0.1")] {
            assert_eq!(judge(&policy(listener, &[]), false, &format!("GET /\nhost: {host}")), Ok(()), "{host}");
        }
        // HTTP/1.0 knows no Host, and browsers send one.
        assert_eq!(judge(&policy(LOOPBACK, &[]), false, "GET /-/healthy"), Ok(()));
        // A token makes no page's name an own name where only this machine can ask.
        assert!(judge(&policy(LOOPBACK, &[]), true, "GET /api/x\nhost: evil.example").is_err());
    }

    #[test]
    fn the_operator_names_more_hosts_and_origins() {
        let allowed = ["Agent.example.org", "10.0.0.7:6745", "*.corp.example", "https://opik.example:8443", "app://x"];
        let policy = policy(LOOPBACK, &allowed);
        for (headers, expected) in [
            ("host: agent.example.org", true),
            ("host: agent.example.org:1", true),
            ("host: x.agent.example.org", false),
            ("host: 10.0.0.7:6745", true),
            ("host: 10.0.0.7", false),
            ("host: a.b.corp.example:1", true),
            ("host: corp.example", false),
            ("host: evilcorp.example", false),
            // An origin is no name of the agent.
            ("host: opik.example:8443", false),
            ("host: localhost\norigin: https://opik.example:8443", true),
            ("host: localhost\norigin: http://opik.example:8443", false),
            ("host: localhost\norigin: https://opik.example", false),
            ("host: localhost\norigin: https://opik.example:8443\nsec-fetch-site: cross-site", true),
            ("host: localhost\norigin: https://agent.example.org", true),
            ("host: localhost\norigin: http://agent.example.org:3000", true),
            ("host: localhost\norigin: app://x", true),
            ("host: localhost\norigin: file://agent.example.org", false),
        ] {
            assert_eq!(
                judge(&policy, false, &format!("POST /api/v1/private/traces\n{headers}")).is_ok(),
                expected,
                "{headers}"
            );
        }
        let every = super::tests::policy(LOOPBACK, &["*"]);
        assert_eq!(judge(&every, false, "POST /x\nhost: any.example\norigin: https://other.example"), Ok(()));
        assert!(judge(&every, false, "POST /x\nhost: a b").is_err(), "no host at all");
    }

    #[test]
    fn pages_of_other_sites_are_refused_and_what_people_do_is_not() {
        const WRITE: &str = "POST /api/v1/private/traces";
        const READ: &str = "GET /api/v1/private/traces";
        const LINK: &str = "GET /api/v1/session/redirect/projects/?trace_id=1&path=x";
        let follows = "sec-fetch-mode: navigate\nsec-fetch-dest: document";
        for (request, headers, expected) in [
            // Programs. Node.js sends the mode.
            (WRITE, "", true),
            (WRITE, "sec-fetch-mode: cors", true),
            // The agent's own page, and the Opik UI through the agent.
            (WRITE, "origin: http://localhost:6745", true),
            (WRITE, "origin: http://LOCALHOST:6745", true),
            (READ, "sec-fetch-site: same-origin\nsec-fetch-mode: cors", true),
            ("GET /", "sec-fetch-site: none\nsec-fetch-mode: navigate", true),
            // Other sites, ports and schemes.
            (WRITE, "origin: http://evil.example", false),
            (WRITE, "origin: http://localhost:3000", false),
            (WRITE, "origin: http://localhost", false),
            (WRITE, "origin: https://localhost", false),
            (WRITE, "origin: http://127.0.0.1:6745", false),
            (WRITE, "origin: null", false),
            (WRITE, "origin: ", false),
            (WRITE, "origin: file://", false),
            (WRITE, "origin: file://localhost:6745", false),
            (WRITE, "origin: http://user@localhost:6745", false),
            (WRITE, "origin: http://localhost:6745/", false),
            (WRITE, "origin: http://localhost:6745 http://evil.example", false),
            (WRITE, "origin: http://localhost:6745\norigin: http://evil.example", false),
            (WRITE, "origin: chrome-extension://abcdef", false),
            (
                "OPTIONS /api/v1/private/traces",
                "origin: http://evil.example\naccess-control-request-method: POST",
                false,
            ),
            (READ, "origin: http://evil.example\nupgrade: websocket\nconnection: upgrade", false),
            (READ, "sec-fetch-site: cross-site", false),
            (READ, "sec-fetch-site: same-site", false),
            (READ, "sec-fetch-site: Cross-Site", false),
            (READ, "sec-fetch-site: some-new-word", false),
            (READ, "sec-fetch-site: none\nsec-fetch-site: cross-site", false),
            (WRITE, "sec-fetch-site: cross-site", false),
            // The browser's own word does not make a page of another site one of ours.
            (WRITE, "origin: http://evil.example\nsec-fetch-site: same-origin", false),
            // Links that people follow, and what only looks like one.
            (LINK, &format!("sec-fetch-site: cross-site\n{follows}"), true),
            ("GET /", &format!("sec-fetch-site: same-site\n{follows}"), true),
            ("GET /default/projects", &format!("sec-fetch-site: cross-site\n{follows}"), true),
            (READ, &format!("sec-fetch-site: cross-site\n{follows}"), false),
            ("GET /v1//private/traces", &format!("sec-fetch-site: cross-site\n{follows}"), false),
            ("GET /-/", &format!("sec-fetch-site: cross-site\n{follows}"), true),
            ("GET //api/./v1/priv%61te/traces", &format!("sec-fetch-site: cross-site\n{follows}"), false),
            ("GET /-/status.json", &format!("sec-fetch-site: cross-site\n{follows}"), false),
            ("GET //-/status.json", &format!("sec-fetch-site: cross-site\n{follows}"), false),
            ("GET /%2d/./status.json", &format!("sec-fetch-site: cross-site\n{follows}"), false),
            ("GET //metrics/", &format!("sec-fetch-site: cross-site\n{follows}"), false),
            ("GET /../metrics", &format!("sec-fetch-site: cross-site\n{follows}"), false),
            ("GET /metrics", &format!("sec-fetch-site: cross-site\n{follows}"), false),
            ("POST /", &format!("sec-fetch-site: cross-site\n{follows}"), false),
            ("GET /", "sec-fetch-site: cross-site\nsec-fetch-mode: navigate\nsec-fetch-dest: iframe", false),
            ("GET /", "sec-fetch-site: cross-site\nsec-fetch-mode: no-cors\nsec-fetch-dest: document", false),
            ("GET /", "sec-fetch-site: cross-site", false),
            // Old browsers.
            (WRITE, "referer: http://evil.example/page", false),
            (WRITE, "referer: http://me@evil.example/page", false),
            (WRITE, "referer: http://localhost:6745/page?x", true),
            (WRITE, "referer: about:blank", true),
            (READ, "referer: http://evil.example/page", true),
        ] {
            let wire = format!("{request}\nhost: localhost:6745\n{headers}");
            let found = judge(&policy(LOOPBACK, &[]), false, wire.trim_end_matches('\n'));
            assert_eq!(found.is_ok(), expected, "{wire}: {found:?}");
            // The token is for clients; a page that another site serves does not become one by it.
            let found = judge(&policy(NETWORK, &[]), true, wire.trim_end_matches('\n'));
            assert_eq!(found.is_ok(), expected, "with the token: {wire}: {found:?}");
        }
        let behind_tls = "POST /api/x\nhost: opik-offline\norigin: https://opik-offline";
        assert_eq!(judge(&policy(NETWORK, &[]), false, behind_tls), Ok(()));
        assert!(judge(&policy(LOOPBACK, &[]), false, "POST /x\norigin: http://localhost").is_err(), "without a Host");
    }

    #[test]
    fn an_absolute_target_is_judged_as_a_host() {
        for (target, host, expected) in [
            ("http://localhost:6745/api/x", "localhost:6745", Ok(())),
            ("http://localhost:6745/api/x", "evil.example", Err(403)),
            ("http://evil.example/api/x", "localhost:6745", Err(403)),
            ("http://me@localhost/api/x", "localhost", Err(403)),
            ("http://localhost/api/x", "127.0.0.1", Err(400)),
        ] {
            let found = judge(&policy(LOOPBACK, &[]), false, &format!("GET {target}\nhost: {host}"));
            assert_eq!(found.map_err(|foreign| foreign.status()), expected, "{target} {host}");
        }
    }

    #[test]
    fn a_refusal_names_the_setting_and_repeats_nothing_harmful() {
        let host = format!("host: {}\u{1b}[31m\u{202e}", "x".repeat(500));
        let wire = format!("GET /api/x\n{host}").replace('\u{1b}', "");
        let text = judge(&policy(LOOPBACK, &[]), false, &wire).expect_err("it is foreign").to_string();
        assert!(text.contains("OPIK_OFFLINE_ALLOWED_HOSTS") && text.contains("xxx...\""), "{text}");
        assert!(text.len() < 400 && text.chars().all(|c| c.is_ascii_graphic() || c == ' '), "{text}");
    }
}
