//! Which of the agent's pages answer under any host name, so that health probes and scrapers need no configuration.
//!
//! A load balancer, a kubelet or Prometheus sends the `Host` under which it found the agent: the name of a service in
//! a cluster of unknown domain, a name in a company's DNS, or none. None of them has the token. A page that uses DNS
//! rebinding ([`super::site`]) sends such a `Host` as well, so the question is what such a page may read:
//!
//! | path | loopback listener | another, no token configured | another, token configured |
//! | --- | --- | --- | --- |
//! | `/-/healthy` | own names | any name | any name |
//! | `/-/ready` | own names | any name: the word alone | any name: the word alone |
//! | `/metrics` | own names | own names | any name |
//! | `/`, `/-/status.json`, all others | own names | own names | own names, or the token |
//!
//! - Only a rebound page or a proxy on this machine reaches a loopback listener under another name.
//! - That an agent runs here is not a secret: every refusal reveals it. `/-/ready` has more, including the server's
//!   address, and reveals that under own names only.
//! - Metrics are counts and sizes, without names of projects or workspaces. Without a token, a page in a visitor's
//!   browser could still learn from them how much a team works; the scraper's name belongs in `allowed_hosts`. With a
//!   token, the operator has deliberately opened the agent to other machines, and monitoring it there is the usual
//!   case.
//! - Own names are those of [`super::site`], with `allowed_hosts`.
//!
//! A request that a browser marks as a page's is always judged by its host name.

use http::Method;
use http::header::{HeaderName, ORIGIN, REFERER};
use http::request::Parts;

use super::site::{ForeignRequest, SitePolicy};

/// Headers that a browser adds to the requests of a page.
const OF_BROWSERS: [HeaderName; 4] =
    [ORIGIN, REFERER, HeaderName::from_static("sec-fetch-site"), HeaderName::from_static("sec-fetch-dest")];

/// A page for monitoring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Monitoring {
    /// `/-/healthy`, `/-/ready`.
    Health,
    /// `/metrics`.
    Metrics,
}

impl Monitoring {
    /// Returns what a request reads, if it is for monitoring.
    pub(super) fn of(method: &Method, path: &str) -> Option<Self> {
        let is_read = [Method::GET, Method::HEAD].contains(method);
        match path {
            "/-/healthy" | "/-/ready" if is_read => Some(Self::Health),
            "/metrics" if is_read => Some(Self::Metrics),
            _ => None,
        }
    }
}

impl SitePolicy {
    /// Returns whether a request for monitoring is answered although its host name is not the agent's.
    pub(super) fn is_open(&self, of: Monitoring, foreign: &ForeignRequest, head: &Parts, asks_for_token: bool) -> bool {
        let is_of_a_page = OF_BROWSERS.iter().any(|name| head.headers.contains_key(name));
        let is_open = match of {
            Monitoring::Health => true,
            Monitoring::Metrics => asks_for_token,
        };
        matches!(foreign, ForeignRequest::Host(_)) && is_open && !self.is_loopback_only() && !is_of_a_page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATHS: [&str; 6] = ["/-/healthy", "/-/ready", "/metrics", "/", "/-/status.json", "/api/v1/private/traces"];

    /// Returns which of [`PATHS`] a request without the token reaches.
    fn reached(listener: &str, allowed: &str, asks_for_token: bool, headers: &[(&str, &str)]) -> String {
        let allowed: Vec<String> = allowed.split_whitespace().map(str::to_owned).collect();
        let policy = SitePolicy::new(listener.parse().expect("an address"), &allowed);
        let reaches = |path: &str| {
            let mut request = http::Request::get(path);
            for (name, value) in headers {
                request = request.header(*name, value.as_bytes());
            }
            let (head, ()) = request.body(()).expect("a request").into_parts();
            match policy.judge(&head, false, path == "/") {
                Ok(()) => 'y',
                Err(foreign) => match Monitoring::of(&head.method, path) {
                    Some(of) if policy.is_open(of, &foreign, &head, asks_for_token) => 'y',
                    _ => '-',
                },
            }
        };
        PATHS.iter().map(|path| reaches(path)).collect()
    }

    #[test]
    fn monitoring_is_answered_under_any_name_and_contents_under_own_names_only() {
        const LOOPBACK: &str = "127.0.0.1";
        const NETWORK: &str = "0.0.0.0";
        // Listener, token configured, names in `Host`, which they reach of: healthy, ready, metrics, page, status, API.
        for (listener, asks_for_token, hosts, expected) in [
            (LOOPBACK, false, &["127.0.0.1:6745", "localhost"][..], "yyyyyy"),
            (LOOPBACK, true, &["127.0.0.1:6745", "[::1]:6745"], "yyyyyy"),
            // Only a rebound page or a proxy on this machine reaches it under these names.
            (
                LOOPBACK,
                false,
                &["10.42.0.17:6745", "opik-offline:6745", "evil.example", "opik.corp.example", ""],
                "------",
            ),
            (LOOPBACK, true, &["opik-offline.tracing.svc:6745", "evil.example"], "------"),
            // A kubelet by the pod's address, Compose, Kubernetes with the default domain.
            (NETWORK, false, &["10.42.0.17:6745", "[fd00::17]:6745", "opik-offline:6745"], "yyyyyy"),
            (NETWORK, false, &["opik-offline.tracing.svc:6745", "a.tracing.svc.cluster.local:6745"], "yyyyyy"),
            (NETWORK, true, &["10.42.0.17:6745", "opik-offline.tracing.svc:6745", "opik-offline"], "yyyyyy"),
            // Names that somebody could register, or none: a cluster's own domain, the short form of a service.
            (
                NETWORK,
                false,
                &["opik-offline.tracing:6745", "a.svc.k8s.corp.example", "evil.example", "", "a b"],
                "yy----",
            ),
            (
                NETWORK,
                true,
                &["opik-offline.tracing:6745", "a.svc.k8s.corp.example", "evil.example", "", "a b"],
                "yyy---",
            ),
        ] {
            for host in hosts {
                let found = reached(listener, "", asks_for_token, &[("host", host)]);
                assert_eq!(found, expected, "{listener}, token {asks_for_token}, {host:?}");
            }
        }
        // A name in `allowed_hosts` is an own name.
        for (allowed, host) in
            [("agent.example", "agent.example:6745"), ("*.k8s.example", "a.svc.k8s.example"), ("*", "x.y")]
        {
            assert_eq!(reached(LOOPBACK, allowed, false, &[("host", host)]), "yyyyyy", "{allowed}");
        }
    }

    #[test]
    fn a_page_marked_by_its_browser_reads_nothing_under_a_foreign_name() {
        for (name, value) in [
            ("origin", "http://evil.example"),
            ("referer", "http://evil.example/"),
            ("sec-fetch-site", "same-origin"),
            ("sec-fetch-dest", "empty"),
        ] {
            for listener in ["127.0.0.1", "0.0.0.0"] {
                let found = reached(listener, "", true, &[("host", "evil.example"), (name, value)]);
                assert_eq!(found, "------", "{name} on {listener}");
            }
        }
        // From another site to the agent's own name: the name does not make it acceptable.
        let found = reached("0.0.0.0", "", true, &[("host", "10.0.0.1"), ("origin", "http://evil.example")]);
        assert_eq!(found, "------");
    }

    #[test]
    fn only_reads_count_as_monitoring() {
        for (method, path, expected) in [
            (Method::GET, "/metrics", Some(Monitoring::Metrics)),
            (Method::HEAD, "/-/ready", Some(Monitoring::Health)),
            (Method::POST, "/metrics", None),
            (Method::GET, "/-/healthy/", None),
            (Method::GET, "/-/flush", None),
            (Method::GET, "/api/metrics", None),
        ] {
            assert_eq!(Monitoring::of(&method, path), expected, "{method} {path}");
        }
    }
}
