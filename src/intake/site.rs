//! The site policy: which hosts the agent answers to, and which web pages may send requests, judged by `Host`, `Origin`
//! and the browser's `Sec-Fetch-*` headers.
//!
//! A web page can make its visitor's browser send requests to this machine. Two ways matter:
//!
//! - *DNS rebinding*: the page's own name is resolved to the agent's address, so the browser treats the agent as the
//!   page's server and gives the page its answers. The `Host` is then a name that the page's owner can register.
//! - *Cross-site requests*: a form or a script of the page sends to the agent's own address. It can't read the answer,
//!   but a write takes effect. The browser names the page in `Origin`, or sends `Sec-Fetch-Site: cross-site`.
//!
//! Programs send none of these headers, except that Node.js sends `Sec-Fetch-Mode`, which is therefore ignored.
//!
//! | listener | accepted names in `Host` |
//! | --- | --- |
//! | a loopback address | `localhost`, `*.localhost`, loopback addresses, the address itself, `allowed_hosts` |
//! | another, with the intake token | all: no page knows the token |
//! | another, without the token | those above, every address, names that nobody can register, `allowed_hosts` |
//!
//! Health probes and scrapers have no token and may use any name: see [`super::monitoring`].
//!
//! Pure: functions of the request's head and the settings.

mod allowed;
mod foreign;
mod origin;

use std::net::IpAddr;

use http::Method;
use http::header::{HOST, HeaderMap, HeaderName, ORIGIN, REFERER};
use http::request::Parts;

use self::allowed::AllowedSite;
use self::foreign::shown;
use self::origin::{Authority, Host, Origin, is_below};

pub(crate) use self::foreign::ForeignRequest;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const SEC_FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");

/// Suffixes that are not part of the public DNS: nobody can register such a name and resolve it elsewhere (RFC 6761,
/// RFC 6762 with its appendix G, RFC 8375, ICANN's `.internal`; `.svc` is the short form of a Kubernetes service).
const PRIVATE_SUFFIXES: [&str; 9] =
    ["local", "internal", "home.arpa", "svc", "lan", "intranet", "private", "corp", "home"];
/// The policy of a listener, with the operator's exceptions.
#[derive(Clone, Debug)]
pub struct SitePolicy {
    listener: IpAddr,
    allowed: Vec<AllowedSite>,
}

impl SitePolicy {
    /// Returns the policy of an agent that listens on this address. `allowed` are the entries of `allowed_hosts`; an
    /// entry that can't be parsed allows nothing.
    pub fn new(listener: IpAddr, allowed: &[String]) -> Self {
        let allowed = allowed.iter().filter_map(|entry| AllowedSite::parse(entry)).collect();
        Self { listener: listener.to_canonical(), allowed }
    }

    /// Refuses a request that a page of another site may have sent. `has_token`: whether the request has the intake
    /// token that the agent asks for. `is_link_target`: whether people follow links to this path: a browser that
    /// navigates there shows the answer to its user and to no page.
    ///
    /// # Errors
    ///
    /// Fails with the reason of the refusal.
    pub fn judge(&self, head: &Parts, has_token: bool, is_link_target: bool) -> Result<(), ForeignRequest> {
        if is_plainly_own(head) {
            return Ok(());
        }
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

    /// Returns whether only programs on this machine reach the agent.
    pub(super) fn is_loopback_only(&self) -> bool {
        self.listener.is_loopback()
    }

    /// Returns whether the agent answers to a name.
    fn is_own_name(&self, asked: &Authority, has_token: bool) -> bool {
        let is_loopback_only = self.is_loopback_only();
        let is_own = match &asked.host {
            Host::Ip(ip) => !is_loopback_only || ip.is_loopback() || *ip == self.listener,
            Host::Name(name) => {
                let is_private = || !name.contains('.') || PRIVATE_SUFFIXES.iter().any(|end| is_below(name, end));
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

/// Returns whether a request names a host that every policy allows, in the usual spelling, and nothing of its head
/// can come from a web page: what programs on this machine send.
fn is_plainly_own(head: &Parts) -> bool {
    let is_of_page = || [ORIGIN, SEC_FETCH_SITE, REFERER].iter().any(|name| head.headers.contains_key(name));
    let is_local = |host: &[u8]| {
        let rest = [&b"localhost"[..], b"127.0.0.1"].into_iter().find_map(|name| host.strip_prefix(name));
        let port = rest.and_then(|rest| if rest.is_empty() { Some(rest) } else { rest.strip_prefix(b":") });
        // Any other port is parsed.
        port.is_some_and(|port| port.len() <= 4 && port.iter().all(u8::is_ascii_digit))
    };
    head.uri.authority().is_none()
        && head.headers.get(HOST).is_some_and(|host| is_local(host.as_bytes()))
        && !is_of_page()
}

fn is_localhost(name: &str) -> bool {
    name == "localhost" || is_below(name, "localhost")
}

#[cfg(test)]
mod tests;
