//! The target of a request: the agent itself, the server's API, or another path of the server's origin.
//!
//! `http://agent/X` means `http://server/X` for every path except the agent's own, because clients derive addresses
//! from the configured URL: `<scheme>://<host>/guardrails/...`, `<scheme>://<host>/api/rest/v2/...`, and the links that
//! they print. In addition, the API is available under the server's own base path and also under `/api`, `/opik/api`
//! and no prefix, so that a client need not know the base path of the server's API.
//!
//! Pure: functions of a path and of the server's address.

use std::time::Duration;

use super::path::{PathFault, below, normalise};

/// Prefixes under which clients look for the API, in addition to the server's own (protocol dossier, section b).
const API_PREFIXES: [&str; 3] = ["/opik/api", "/api", ""];
/// First segments of an origin's paths that only programs request.
const PROGRAM_PATHS: [&str; 3] = ["/api", "/guardrails", "/.well-known"];
/// The page that connects a runner with the UI. The SDK prints it below the host, regardless of the base path.
const PAIRING: &str = "/opik/pair";
/// Sections of the UI, which follow the name of a workspace.
const UI_SECTIONS: [&str; 17] = [
    "agent-playground",
    "alerts",
    "annotation-queues",
    "automation-logs",
    "configuration",
    "dashboards",
    "datasets",
    "experiments",
    "get-started",
    "home",
    "online-evaluation",
    "optimizations",
    "playground",
    "projects",
    "prompts",
    "quickstart",
    "redirect",
];

/// A server's parsed address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerAddress {
    /// `https://www.comet.com`.
    origin: String,
    /// The path of the API as configured, without a trailing slash: `/opik/api`, or empty.
    base: String,
    /// The same path, normalised, or empty.
    base_normal: String,
}

impl ServerAddress {
    /// Parses the server's base URL, which is valid and has no trailing slash.
    pub fn new(base_url: &str) -> Self {
        let authority = base_url.find("://").map_or(0, |at| at + "://".len());
        let end = base_url[authority..].find('/').map_or(base_url.len(), |at| authority + at);
        let (origin, base) = base_url.split_at(end);
        let base = base.trim_end_matches('/');
        // The operator may configure a base with `..`; no client's path matches it.
        let base_normal = normalise(base).unwrap_or_else(|_| base.to_owned());
        let base_normal = if base_normal == "/" { String::new() } else { base_normal };
        Self { origin: origin.to_owned(), base: base.to_owned(), base_normal }
    }

    /// Returns the SDK's `url_override` for a direct connection.
    pub fn url_override(&self) -> String {
        format!("{}{}/", self.origin, self.base)
    }

    /// Returns where a hub at this address is asked to deliver within this time. A token in the path of the base stays.
    pub(crate) fn flush_url(&self, timeout: Duration) -> String {
        let token = self.base.strip_suffix("/api").filter(|base| base.starts_with("/-/token/")).unwrap_or_default();
        format!("{}{token}/-/flush?timeout={}ms", self.origin, timeout.as_millis())
    }

    /// Returns the path of the UI, as the SDKs derive it from their `url_override`.
    fn ui(&self) -> &str {
        self.base_normal.strip_suffix("/api").unwrap_or(&self.base_normal)
    }
}

/// The target of a request's path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The agent itself: `/`, `/metrics`, everything below `/-/`, and paths that look like a misplaced token. Never
    /// sent to the server.
    Own {
        /// Normalised.
        path: String,
    },
    /// The server's API.
    Api {
        /// The prefix that the client used: `/api`, or empty.
        prefix: String,
        /// The path below the server's base, normalised and without leading slash: `v1/private/traces`.
        path: String,
        /// The same path verbatim, with a leading slash.
        sent: String,
    },
    /// The same path at the server's origin.
    Origin {
        /// Normalised.
        path: String,
        /// Verbatim, with a leading slash.
        sent: String,
    },
}

impl Target {
    /// Returns the target of a path, from which the intake token was removed.
    ///
    /// # Errors
    ///
    /// [`PathFault`] for a path that could lead elsewhere than it says, or that no server reads.
    pub fn of(path: &str, server: &ServerAddress) -> Result<Self, PathFault> {
        let normal = normalise(path)?;
        // A misplaced intake token is reported to the client and never sent to the server.
        let has_token = normal.contains("/-/token/");
        if matches!(&*normal, "/" | "/metrics") || is_below(&normal, "/-") || has_token {
            return Ok(Self::Own { path: normal });
        }
        let own = (!server.base_normal.is_empty()).then_some(&*server.base_normal);
        for prefix in own.into_iter().chain(API_PREFIXES) {
            let Some(api) = normal.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('/')).filter(|it| is_api(it))
            else {
                continue;
            };
            // An encoded slash obscures the end of the prefix: then the normalised spelling is sent.
            let sent = below(path, prefix).map_or_else(|| format!("/{api}"), str::to_owned);
            return Ok(Self::Api { prefix: prefix.to_owned(), path: api.to_owned(), sent });
        }
        let sent = if path.starts_with('/') { path.to_owned() } else { normal.clone() };
        Ok(Self::Origin { path: normal, sent })
    }

    /// Returns the URL at the server, or `None` for the agent's own paths.
    pub fn url(&self, server: &ServerAddress) -> Option<String> {
        match self {
            Self::Own { .. } => None,
            Self::Api { sent, .. } => Some(format!("{}{}{sent}", server.origin, server.base)),
            Self::Origin { sent, .. } => Some(format!("{}{sent}", server.origin)),
        }
    }

    /// Returns the normalised path of one of the agent's own pages.
    pub fn own(&self) -> Option<&str> {
        match self {
            Self::Own { path } => Some(path),
            Self::Api { .. } | Self::Origin { .. } => None,
        }
    }

    /// Returns whether people follow links to it: the agent's own page, pages of the Opik UI, and the redirects
    /// that the SDKs print. All other targets are for programs.
    pub fn is_link_target(&self) -> bool {
        match self {
            Self::Own { path } => matches!(&**path, "/" | "/-"),
            Self::Api { path, .. } => !(path == "v1/private" || path.starts_with("v1/private/")),
            Self::Origin { .. } => true,
        }
    }

    /// Returns whether a path of the server's origin is probably a page of the Opik UI: the origin has only the
    /// UI and known paths for programs.
    pub fn is_page(&self, server: &ServerAddress) -> bool {
        let Self::Origin { path, .. } = self else { return false };
        let own = Some(&*server.base_normal).filter(|base| base.ends_with("/api"));
        !own.into_iter().chain(PROGRAM_PATHS).chain(["/opik/api"]).any(|programs| is_below(path, programs))
    }

    /// Returns the server's address of the page behind a link to the agent, or `None` if it
    /// is not on the server's origin.
    ///
    /// SDKs print links below their `url_override` without `/api`. The host is always the server's.
    pub fn page_url(&self, server: &ServerAddress) -> Option<String> {
        let Self::Origin { path, sent } = self else { return None };
        let ui = server.ui();
        let is_of_ui = !ui.is_empty() && is_below(path, ui) && !(ui == "/opik" && names_a_workspace_opik(path));
        let path = match below(sent, "/opik") {
            _ if !self.is_page(server) || is_below(path, PAIRING) || is_of_ui => sent.clone(),
            // The client's `url_override` ends in /opik/api, the server's does not.
            Some("") => format!("{ui}/"),
            Some(rest) if !names_a_workspace_opik(path) => format!("{ui}{rest}"),
            _ => format!("{ui}{sent}"),
        };
        Some(format!("{}{path}", server.origin))
    }
}

/// Returns whether a path below the base belongs to Opik's API: `v1/...`, `is-alive/...`.
pub fn is_api(path: &str) -> bool {
    let first = path.split(['/', '?']).next().unwrap_or_default();
    let version = first.strip_prefix('v').unwrap_or_default();
    first == "is-alive" || (!version.is_empty() && version.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Returns whether a normalised path is `prefix` or below it.
fn is_below(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Returns whether `/opik` is the workspace `opik` of a link: a section of the UI follows it.
fn names_a_workspace_opik(path: &str) -> bool {
    path.split('/').nth(2).is_some_and(|section| UI_SECTIONS.contains(&section))
}

#[cfg(test)]
mod tests;
