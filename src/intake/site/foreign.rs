//! Why the site policy refuses a request.

use std::fmt;

/// How much of a foreign name is repeated in the refusal.
const SHOWN_CHARS_MAX: usize = 100;

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForeignRequest {
    /// The `Host`, or the host of an absolute request target, is not a name of the agent.
    Host(String),
    /// The request's target and its `Host` name different hosts.
    TwoHosts,
    /// `Origin` or `Referer` names a page of another site.
    Page(String),
    /// According to the browser, a page of another site sends it.
    CrossSite,
}

impl ForeignRequest {
    /// Returns the status of the answer.
    pub fn status(&self) -> u16 {
        if *self == Self::TwoHosts { 400 } else { 403 }
    }

    /// Returns whether the name is foreign, as opposed to the page.
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
            Self::TwoHosts => f.write_str("the request's target and its Host header name different hosts"),
            Self::Page(page) => write!(
                f,
                "this opik-offline agent does not accept requests from the web page {page}: if the page may send them, \
                 add its origin to {WHERE}"
            ),
            Self::CrossSite => write!(
                f,
                "this opik-offline agent does not accept requests from web pages of other sites (Sec-Fetch-Site): if the \
                 page may send them, add its origin to {WHERE}"
            ),
        }
    }
}

/// Returns a name that is safe to display: in quotes, short, without control characters.
pub(super) fn shown(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let mut start: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    if start.len() < text.len() {
        start.push_str("...");
    }
    let escaped: String = start.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect();
    format!("\"{escaped}\"")
}
