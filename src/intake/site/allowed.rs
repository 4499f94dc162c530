//! The entries of `allowed_hosts`.

use super::origin::{Authority, Host, Origin, is_below};

/// One entry of `allowed_hosts`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum AllowedSite {
    /// `*`: every host and every origin.
    All,
    /// `*.example.org`: every name below it.
    Below { end: String, port: Option<u16> },
    /// `agent.example.org`, `10.0.0.7:6745`.
    Host(Authority),
    /// `https://opik.example.org`: pages of this origin, which need not be one of the agent's names.
    Origin(Origin),
}

impl AllowedSite {
    pub(super) fn parse(entry: &str) -> Option<Self> {
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

    pub(super) fn has_host(&self, asked: &Authority) -> bool {
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

    pub(super) fn has_origin(&self, asked: &Origin) -> bool {
        match self {
            Self::Origin(known) => known.scheme == asked.scheme && known.full() == asked.full(),
            // An origin that is not a web page's has to be allowed with its scheme.
            _ if !asked.is_web() => false,
            _ => self.has_host(&asked.full()),
        }
    }
}
