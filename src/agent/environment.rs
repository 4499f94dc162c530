//! The environment of a wrapped command.
//!
//! The command keeps the whole environment, except for variables that lead its clients to the Opik server: these lead
//! to the agent instead. Variables that lead elsewhere, or nowhere, stay as they are.
//!
//! # Opik's own variables
//!
//! - `OPIK_URL_OVERRIDE` names the agent, whether it was set or not: all SDKs read it. The server that it named is the
//!   agent's own server now.
//! - These are changed if they are set and lead to the same server ([`super::redirect`]):
//!   `OPIK_GUARDRAILS_URL_OVERRIDE` (Python SDK), `OPIK_URL` and `COMET_URL_OVERRIDE` (opik-mcp), `OPIK_BASE_URL`
//!   (Claude Code plugin), `OPIK_API_BASE_URL` (the older opik-mcp in TypeScript). `COMET_URL_OVERRIDE` with the path
//!   of Comet's experiment tracking (`/clientlib`) is not Opik's.
//! - The programs of the last two variables otherwise read `url_override` in `~/.opik.config`, and neither
//!   `OPIK_URL_OVERRIDE` nor `OPIK_CONFIG_PATH`. Where that file leads to the server and the variable is unset, the
//!   variable is set. A private copy of the file, named by `OPIK_CONFIG_PATH`, would change nothing: each program that
//!   reads `OPIK_CONFIG_PATH` prefers `OPIK_URL_OVERRIDE` to the file. It would only leave a second copy of the key.
//! - With an intake token, `OPIK_GUARDRAILS_URL_OVERRIDE` is set as well: the SDK would derive an address without the
//!   token.
//!
//! # OpenTelemetry
//!
//! Opik takes traces, and neither metrics nor logs. `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` is set when traces led to
//! Opik's OTLP path: by this variable, or by `OTEL_EXPORTER_OTLP_ENDPOINT`. With neither, or with one that leads to a
//! collector, nothing is set, and every signal goes where it went before. With `all_otlp_traces` the variable of traces
//! is set in any case, and only that one. Headers stay as they are.
//!
//! `OTEL_EXPORTER_OTLP_ENDPOINT` itself is changed only where it leads to Opik's OTLP path. Opik's documentation names
//! this variable, and programs that build their own exporters read no other one (LiteLLM, n8n). Metrics and logs that
//! it leads to Opik still reach Opik, which refuses them as without the agent; the agent stores none of them.
//! `OTEL_ENDPOINT` (LiteLLM) and `TRACELOOP_BASE_URL` (OpenLLMetry) are treated as Opik's own variables.
//!
//! If traces were redirected and no protocol is set, the protocol of traces is set to HTTP, and so is the general one
//! where the general endpoint was redirected. An exporter that is configured for
//! gRPC, which neither Opik nor the agent understands, keeps using it, and [`EnvironmentChanges::grpc`] reports it.
//!
//! # The way to the agent
//!
//! If a proxy is configured, which could not reach the agent, `NO_PROXY` gets the agent's address. `_OPIK_HTTP_PROXY`,
//! which supports no exceptions, is removed. The agent itself still uses the proxy.
//!
//! # This program itself
//!
//! `opik-offline replay`, or another wrapped command, inside the command has to reach the server and not this agent:
//! `OPIK_OFFLINE_WRAPPED_BY` names the server behind `OPIK_URL_OVERRIDE`, for as long as that variable names this
//! agent ([`crate::config::WRAPPED_BY`]). If a flag named the store, `OPIK_OFFLINE_DB` names it.

use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::path::PathBuf;

use super::redirect::{OTLP_PATH, Redirect, is_otlp, is_same_server};
use crate::config::{Environment, ServerUrl, WRAPPED_BY, WRAPPED_PROXY};

const URL: &str = "OPIK_URL_OVERRIDE";
const GUARDRAILS_URL: &str = "OPIK_GUARDRAILS_URL_OVERRIDE";
const COMET_URL: &str = "COMET_URL_OVERRIDE";
/// More variables that name the server, each read by one program.
const OTHER_URLS: [&str; 7] =
    [GUARDRAILS_URL, "OPIK_URL", COMET_URL, BASE_URLS[0], BASE_URLS[1], "OTEL_ENDPOINT", "TRACELOOP_BASE_URL"];
/// Those of programs that otherwise read only `~/.opik.config`.
const BASE_URLS: [&str; 2] = ["OPIK_BASE_URL", "OPIK_API_BASE_URL"];
/// The path of Comet's experiment tracking, which `comet_ml` expects in its `COMET_URL_OVERRIDE`.
const COMET_TRACKING_PATH: &str = "/clientlib";
const OTLP_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const OTLP_TRACES_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
const OTLP_TRACES_PROTOCOL: &str = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL";
/// The variables that set the protocol of an OpenTelemetry exporter; the first wins.
const OTLP_PROTOCOLS: [&str; 2] = [OTLP_TRACES_PROTOCOL, "OTEL_EXPORTER_OTLP_PROTOCOL"];
/// The protocol of OpenTelemetry exporters that Opik and the agent understand.
const HTTP: &str = "http/protobuf";
/// The variables that lead a plain HTTP connection through a proxy.
const PROXIES: [&str; 4] = ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"];
/// The SDK's own proxy, which knows no exceptions.
const OPIK_PROXY: &str = "_OPIK_HTTP_PROXY";
/// Where the Python SDK looks for guardrails, at the origin of its server.
const GUARDRAILS_PATH: &str = "/guardrails";

/// The agent that wraps a command.
#[derive(Clone, Debug)]
pub(crate) struct Wrapping<'a> {
    /// The address that the agent listens on.
    pub intake: SocketAddr,
    /// The token that its clients must send.
    pub token: Option<&'a str>,
    /// Its server.
    pub upstream: &'a ServerUrl,
    /// `url_override` in `~/.opik.config`.
    pub in_home_file: Option<&'a str>,
    /// Whether all OpenTelemetry traces go to Opik.
    pub all_otlp_traces: bool,
    /// The store, if the command could not find it without being told.
    pub store: Option<PathBuf>,
}

/// The changes to the wrapped command's environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct EnvironmentChanges {
    /// Variables with their new values. A value may contain the intake token.
    pub set: Vec<(&'static str, OsString)>,
    /// Variables that are removed.
    pub unset: Vec<&'static str>,
    /// Variables that could name the server, but lead elsewhere and are kept.
    pub left: Vec<&'static str>,
    /// The variable that makes an exporter of Opik's traces speak gRPC.
    pub grpc: Option<&'static str>,
    /// Host and port of the other server that `OPIK_URL_OVERRIDE` named.
    pub replaced: Option<String>,
    /// The agent's address for the server's API, without the token.
    pub base: String,
}

impl EnvironmentChanges {
    /// Returns the changes that lead the command's clients to the agent, by the rules at the head of the module.
    pub(crate) fn leading_to(wrapping: &Wrapping<'_>, environment: &dyn Environment) -> Self {
        let known = OriginalEnvironment(environment);
        let own: Option<ServerUrl> = known.text(URL).and_then(|url| url.parse().ok());
        // An agent that keeps running is another name of the server. Another server is not: requests to it carry its
        // keys.
        let agent = own.clone().filter(ServerUrl::is_loopback);
        let redirect = Redirect::new(wrapping.intake, wrapping.token, wrapping.upstream, agent);
        let open = Redirect::new(wrapping.intake, None, wrapping.upstream, []);
        let mut changes = Self { base: open.base(), ..Self::default() };
        changes.replaced = own
            .filter(|own| !own.is_loopback() && !is_same_server(own, wrapping.upstream))
            .map(|own| format!("{}:{}", own.host(), own.port()));
        changes.set(URL, redirect.base());
        changes.lead_other_clients(wrapping, &redirect, &known);
        changes.lead_traces(wrapping, &redirect, &known);
        changes.lead_past_proxies(&redirect, &known);
        changes.set(WRAPPED_BY, format!("{} {}", redirect.base(), wrapping.upstream));
        if let Some(store) = &wrapping.store {
            changes.set("OPIK_OFFLINE_DB", store);
        }
        changes
    }

    fn set(&mut self, name: &'static str, value: impl AsRef<OsStr>) {
        self.set.push((name, value.as_ref().to_owned()));
    }

    /// Leads programs that read variables of their own to the agent.
    fn lead_other_clients(&mut self, wrapping: &Wrapping<'_>, redirect: &Redirect, known: &OriginalEnvironment<'_>) {
        for name in OTHER_URLS {
            let given = known.text(name);
            let is_trackings =
                |url: &str| name == COMET_URL && url.trim_end_matches('/').ends_with(COMET_TRACKING_PATH);
            let through = |url: &str| redirect.through_agent(url).filter(|_| !is_trackings(url));
            match given {
                Some(url) => match through(&url) {
                    Some(through) => self.set(name, through),
                    None => self.left.push(name),
                },
                None if name == GUARDRAILS_URL && wrapping.token.is_some() => {
                    self.set(name, format!("{}{GUARDRAILS_PATH}", redirect.origin()));
                }
                None if BASE_URLS.contains(&name) => {
                    if let Some(through) = wrapping.in_home_file.and_then(through) {
                        self.set(name, through);
                    }
                }
                None => {}
            }
        }
    }

    /// Leads OpenTelemetry traces that went to Opik to the agent.
    fn lead_traces(&mut self, wrapping: &Wrapping<'_>, redirect: &Redirect, known: &OriginalEnvironment<'_>) {
        let through = |url: &str| redirect.through_agent(url).filter(|through| is_otlp(through));
        let of_all = known.text(OTLP_ENDPOINT);
        let of_traces = known.text(OTLP_TRACES_ENDPOINT);
        match of_all.as_deref().map(through) {
            Some(Some(through)) => self.set(OTLP_ENDPOINT, through),
            Some(None) => self.left.push(OTLP_ENDPOINT),
            None => {}
        }
        let effective = of_traces.clone().or_else(|| Some(format!("{}/v1/traces", of_all?.trim_end_matches('/'))));
        let protocol = OTLP_PROTOCOLS.iter().find_map(|name| Some((*name, known.text(name)?)));
        let grpc = protocol.as_ref().filter(|(_, protocol)| protocol.trim() == "grpc").map(|(name, _)| *name);
        let led = match effective.as_deref().and_then(through) {
            Some(through) => Some(through),
            None if !wrapping.all_otlp_traces => None,
            None if grpc.is_some() => {
                self.grpc = grpc;
                None
            }
            None => Some(format!("{}{OTLP_PATH}/v1/traces", redirect.base())),
        };
        match led {
            Some(led) => {
                self.set(OTLP_TRACES_ENDPOINT, led);
                self.grpc = grpc;
                if protocol.is_none() {
                    self.set(OTLP_TRACES_PROTOCOL, HTTP);
                    // Programs that read the general endpoint read the general protocol.
                    if self.set.iter().any(|(name, _)| *name == OTLP_ENDPOINT) {
                        self.set(OTLP_PROTOCOLS[1], HTTP);
                    }
                }
            }
            None => self.left.extend(of_traces.map(|_| OTLP_TRACES_ENDPOINT)),
        }
    }

    /// Makes clients reach the agent without a proxy.
    fn lead_past_proxies(&mut self, redirect: &Redirect, known: &OriginalEnvironment<'_>) {
        if PROXIES.iter().any(|name| known.text(name).is_some()) {
            let name = redirect.host.rsplit_once(':').map_or(&*redirect.host, |(name, _)| name);
            let name = name.trim_start_matches('[').trim_end_matches(']');
            // Some programs read the one, some the other, and an empty one in lower case hides the other.
            let (lower, upper) = (known.any("no_proxy"), known.any("NO_PROXY"));
            self.set("no_proxy", with_entry(lower.as_ref().or(upper.as_ref()), name));
            self.set("NO_PROXY", with_entry(upper.as_ref().or(lower.as_ref()), name));
        }
        if let Some(proxy) = known.text(OPIK_PROXY) {
            self.unset.push(OPIK_PROXY);
            // For `opik-offline` inside the command, which goes to the server and not to the agent.
            self.set(WRAPPED_PROXY, proxy);
        }
    }
}

/// Returns a list of hosts that are reached without a proxy, with one more entry. `*` means all hosts only if it is the
/// only entry.
fn with_entry(list: Option<&String>, name: &str) -> String {
    let list = list.map_or("", |list| list.trim());
    let is_in = list.split([',', ' ', '\t']).any(|entry| entry == name);
    match list {
        "" => name.to_owned(),
        "*" => "*".to_owned(),
        list if is_in => list.to_owned(),
        list => format!("{list},{name}"),
    }
}

/// The environment that the command would have without us.
struct OriginalEnvironment<'a>(&'a dyn Environment);

impl OriginalEnvironment<'_> {
    /// Returns a variable. An empty one counts as unset, for OpenTelemetry as well as for Opik's clients.
    fn text(&self, name: &str) -> Option<String> {
        let value = self.0.variable(name)?.to_string_lossy().into_owned();
        (!value.trim().is_empty()).then_some(value)
    }

    /// Returns a variable, even if it is empty.
    fn any(&self, name: &str) -> Option<String> {
        Some(self.0.variable(name)?.to_string_lossy().into_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    type Pairs<'a> = &'a [(&'a str, &'a str)];

    fn server(url: &str) -> ServerUrl {
        url.parse().unwrap_or_else(|error| panic!("{url}: {error}"))
    }

    /// An agent, and the variables before it wraps a command.
    #[derive(Clone, Copy, Default)]
    struct Before<'a> {
        upstream: Option<&'a str>,
        token: Option<&'a str>,
        in_home_file: Option<&'a str>,
        all_otlp_traces: bool,
        variables: Pairs<'a>,
    }

    impl Before<'_> {
        fn changes(self) -> EnvironmentChanges {
            let variables = self.variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            let wrapping = Wrapping {
                intake: "127.0.0.1:4000".parse().expect("an address"),
                token: self.token,
                upstream: &server(self.upstream.unwrap_or("https://opik.example/api")),
                in_home_file: self.in_home_file,
                all_otlp_traces: self.all_otlp_traces,
                store: None,
            };
            EnvironmentChanges::leading_to(&wrapping, &variables.collect::<BTreeMap<_, _>>())
        }

        /// Asserts which variables are set beside those that always are.
        #[track_caller]
        fn sets(self, expected: Pairs<'_>) -> EnvironmentChanges {
            let changes = self.changes();
            let beside = changes.set.iter().filter(|(name, _)| ![URL, WRAPPED_BY].contains(name));
            let beside: Vec<(&str, &str)> = beside.map(|(name, value)| (*name, value.to_str().unwrap())).collect();
            assert_eq!(beside, expected, "{:?}", self.variables);
            changes
        }
    }

    fn before<'a>(variables: Pairs<'a>) -> Before<'a> {
        Before { variables, ..Before::default() }
    }

    #[test]
    fn a_command_is_led_to_the_agent_and_nothing_else_is_touched() {
        let plain = before(&[]).changes();
        let expected = [
            (URL, "http://127.0.0.1:4000/api".into()),
            (WRAPPED_BY, "http://127.0.0.1:4000/api https://opik.example/api".into()),
        ];
        assert_eq!((&*plain.set, &*plain.base), (&expected[..], "http://127.0.0.1:4000/api"));
        assert_eq!((plain.unset, plain.left, plain.grpc), (vec![], vec![], None));
        for (intake, token, upstream, expected) in [
            ("0.0.0.0:80", Some("secret"), "https://opik.example/api", "http://127.0.0.1:80/-/token/secret/api"),
            ("127.0.0.1:80", Some("q8/Xk+0a=="), "http://h/api", "http://127.0.0.1:80/-/token/q8%2FXk%2B0a%3D%3D/api"),
            ("127.0.0.1:80", Some("50%-_.~?#"), "http://h/api", "http://127.0.0.1:80/-/token/50%25-_.~%3F%23/api"),
            ("[::]:80", None, "https://www.comet.com/opik/api", "http://[::1]:80/opik/api"),
            ("10.0.0.1:80", None, "http://h:8080", "http://10.0.0.1:80"),
            ("127.0.0.1:80", None, "http://127.0.0.1:6745/-/token/x/api", "http://127.0.0.1:80/api"),
        ] {
            let (intake, upstream) = (intake.parse().expect("an address"), server(upstream));
            let (in_home_file, all_otlp_traces, store) = (None, false, Some("/a/b.db".into()));
            let wrapping = Wrapping { intake, token, upstream: &upstream, in_home_file, all_otlp_traces, store };
            let changes = EnvironmentChanges::leading_to(&wrapping, &BTreeMap::<String, String>::new());
            assert_eq!(changes.set[0], (URL, expected.into()));
            assert_eq!(changes.set.last(), Some(&("OPIK_OFFLINE_DB", "/a/b.db".into())));
            assert!(token.is_none_or(|token| !changes.base.contains(token)), "{}", changes.base);
        }
    }

    #[test]
    fn only_traces_that_would_go_to_opik_are_led_to_the_agent() {
        const GENERAL: (&str, &str) = (OTLP_ENDPOINT, "https://opik.example/api/v1/private/otel");
        const TRACES: (&str, &str) = (OTLP_TRACES_ENDPOINT, "https://opik.example/api/v1/private/otel/v1/traces");
        const COLLECTOR: (&str, &str) = (OTLP_ENDPOINT, "http://collector:4318");
        const COLLECTOR_TRACES: (&str, &str) = (OTLP_TRACES_ENDPOINT, "http://collector:4318/v1/traces");
        const METRICS: (&str, &str) =
            ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "https://opik.example/api/v1/private/otel");
        let led = (OTLP_TRACES_ENDPOINT, "http://127.0.0.1:4000/api/v1/private/otel/v1/traces");
        let http = (OTLP_TRACES_PROTOCOL, "http/protobuf");
        let all: Pairs<'_> = &[led, http];
        let general = (OTLP_ENDPOINT, "http://127.0.0.1:4000/api/v1/private/otel");
        let general_http = (OTLP_PROTOCOLS[1], "http/protobuf");
        let both: Pairs<'_> = &[general, led, http, general_http];
        let cases: [(Pairs<'_>, Pairs<'_>, &[&str]); 12] = [
            (&[], &[], &[]),
            (&[GENERAL], both, &[]),
            (&[TRACES], all, &[]),
            (&[GENERAL, TRACES, METRICS], both, &[]),
            (&[METRICS], &[], &[]),
            (&[COLLECTOR], &[], &[OTLP_ENDPOINT]),
            (&[COLLECTOR, TRACES], all, &[OTLP_ENDPOINT]),
            (&[GENERAL, COLLECTOR_TRACES], &[general], &[OTLP_TRACES_ENDPOINT]),
            (&[COLLECTOR, COLLECTOR_TRACES], &[], &[OTLP_ENDPOINT, OTLP_TRACES_ENDPOINT]),
            // Opik's server takes no OTLP elsewhere, and another Opik is another server.
            (&[(OTLP_ENDPOINT, "https://opik.example/")], &[], &[OTLP_ENDPOINT]),
            (&[(OTLP_ENDPOINT, "https://staging.example/api/v1/private/otel")], &[], &[OTLP_ENDPOINT]),
            (&[(OTLP_ENDPOINT, " "), (OTLP_TRACES_ENDPOINT, "")], &[], &[]),
        ];
        for (variables, expected, left) in cases {
            assert_eq!(before(variables).sets(expected).left, left, "{variables:?}");
        }
        // A slash at the end of the general one, and the environment of another agent.
        let slash = (OTLP_ENDPOINT, "http://127.0.0.1:4000/api/v1/private/otel/");
        before(&[(OTLP_ENDPOINT, "https://opik.example/api/v1/private/otel/")]).sets(&[slash, led, http, general_http]);
        before(&[(URL, "http://127.0.0.1:6745/api"), (OTLP_ENDPOINT, "http://localhost:6745/api/v1/private/otel")])
            .sets(both);
    }

    fn all<'a>(variables: Pairs<'a>) -> Before<'a> {
        Before { all_otlp_traces: true, ..before(variables) }
    }

    fn file<'a>(url: &'a str, variables: Pairs<'a>) -> Before<'a> {
        Before { in_home_file: Some(url), ..before(variables) }
    }

    #[test]
    fn all_traces_are_led_to_opik_on_request() {
        let led = (OTLP_TRACES_ENDPOINT, "http://127.0.0.1:4000/api/v1/private/otel/v1/traces");
        let http = (OTLP_TRACES_PROTOCOL, "http/protobuf");
        assert_eq!(all(&[]).sets(&[led, http]).left, [""; 0]);
        let collector = (OTLP_ENDPOINT, "http://collector:4318");
        assert_eq!(all(&[collector]).sets(&[led, http]).left, [OTLP_ENDPOINT]);
        assert_eq!(all(&[(OTLP_TRACES_ENDPOINT, "http://collector:4318/v1/traces")]).sets(&[led, http]).left, [""; 0]);
        for name in OTLP_PROTOCOLS {
            assert_eq!(all(&[(name, "http/json")]).sets(&[led]).grpc, None);
            assert_eq!(all(&[(name, "grpc")]).sets(&[]).grpc, Some(name));
        }
        let mixed = [(OTLP_PROTOCOLS[1], "grpc"), (OTLP_TRACES_PROTOCOL, "http/protobuf")];
        assert_eq!(all(&mixed).sets(&[led]).grpc, None);
    }

    #[test]
    fn an_exporter_that_speaks_grpc_is_reported_and_keeps_its_protocol() {
        let opiks = (OTLP_TRACES_ENDPOINT, "https://opik.example/api/v1/private/otel/v1/traces");
        let led = (OTLP_TRACES_ENDPOINT, "http://127.0.0.1:4000/api/v1/private/otel/v1/traces");
        for name in OTLP_PROTOCOLS {
            assert_eq!(before(&[(name, "grpc")]).sets(&[]).grpc, None, "its traces are not Opik's");
            assert_eq!(before(&[(name, "grpc"), opiks]).sets(&[led]).grpc, Some(name));
        }
    }

    #[test]
    fn every_client_that_names_the_server_is_led_to_the_agent() {
        for (name, given, expected) in [
            (GUARDRAILS_URL, "https://opik.example/guardrails/", "http://127.0.0.1:4000/guardrails/"),
            ("OPIK_URL", "https://opik.example:443/api", "http://127.0.0.1:4000/api"),
            ("OPIK_BASE_URL", "https://OPIK.example/api/", "http://127.0.0.1:4000/api/"),
            ("OPIK_API_BASE_URL", "https://opik.example/api", "http://127.0.0.1:4000/api"),
            (COMET_URL, "https://opik.example", "http://127.0.0.1:4000"),
            ("OTEL_ENDPOINT", "https://opik.example/api/v1/private/otel", "http://127.0.0.1:4000/api/v1/private/otel"),
            (
                "TRACELOOP_BASE_URL",
                "https://opik.example/api/v1/private/otel",
                "http://127.0.0.1:4000/api/v1/private/otel",
            ),
        ] {
            assert_eq!(before(&[(name, given)]).sets(&[(name, expected)]).left, [""; 0]);
        }
        for (name, given) in [
            (GUARDRAILS_URL, "http://opik.example:5000"),
            ("OPIK_URL", "https://staging.example/api"),
            ("OPIK_BASE_URL", "opik"),
            (COMET_URL, "https://opik.example/clientlib/"),
        ] {
            assert_eq!(before(&[(name, given)]).sets(&[]).left, [name], "{given}");
        }
        let token = Before { token: Some("t"), ..before(&[]) };
        token.sets(&[(GUARDRAILS_URL, "http://127.0.0.1:4000/-/token/t/guardrails")]);
    }

    #[test]
    fn clients_that_read_only_the_file_in_the_home_are_led_to_the_agent() {
        let led = "http://127.0.0.1:4000/api/";
        file("https://opik.example/api/", &[]).sets(&[("OPIK_BASE_URL", led), ("OPIK_API_BASE_URL", led)]);
        assert_eq!(file("https://www.comet.com/opik/api/", &[]).sets(&[]).left, [""; 0], "that is another server");
        let elsewhere = file("https://opik.example/api/", &[("OPIK_BASE_URL", "https://staging.example/api")]);
        assert_eq!(elsewhere.sets(&[("OPIK_API_BASE_URL", led)]).left, ["OPIK_BASE_URL"]);
    }

    #[test]
    fn no_proxy_stands_between_a_command_and_the_agent() {
        let lists = |list| [("no_proxy", list), ("NO_PROXY", list)];
        let proxy = ("HTTP_PROXY", "http://proxy:3128");
        before(&[proxy, ("NO_PROXY", "intranet")]).sets(&lists("intranet,127.0.0.1"));
        before(&[proxy, ("NO_PROXY", "127.0.0.1, intranet")]).sets(&lists("127.0.0.1, intranet"));
        before(&[("all_proxy", "http://proxy:3128")]).sets(&lists("127.0.0.1"));
        before(&[proxy, ("NO_PROXY", " *")]).sets(&lists("*"));
        before(&[proxy, ("no_proxy", "intranet 127.0.0.1")]).sets(&lists("intranet 127.0.0.1"));
        let both = [("no_proxy", "a.test,127.0.0.1"), ("NO_PROXY", "corp.test,127.0.0.1")];
        before(&[proxy, ("no_proxy", "a.test"), ("NO_PROXY", "corp.test")]).sets(&both);
        let hidden = [("no_proxy", "127.0.0.1"), ("NO_PROXY", "corp.test,127.0.0.1")];
        before(&[proxy, ("no_proxy", ""), ("NO_PROXY", "corp.test")]).sets(&hidden);
        // A proxy for https alone carries no request to this machine.
        before(&[("HTTPS_PROXY", "http://proxy:3128")]).sets(&[]);
        let opiks = before(&[(OPIK_PROXY, "http://proxy:3128")]).sets(&[(WRAPPED_PROXY, "http://proxy:3128")]);
        assert_eq!(opiks.unset, [OPIK_PROXY]);
    }

    #[test]
    fn keys_for_another_server_never_reach_this_one() {
        let another = "https://staging.example/api";
        let otlp = format!("{another}/v1/private/otel");
        let variables =
            [(URL, another), (OTLP_ENDPOINT, &*otlp), (GUARDRAILS_URL, "https://staging.example/guardrails/")];
        let changes = before(&variables).sets(&[]);
        assert_eq!(changes.left, [GUARDRAILS_URL, OTLP_ENDPOINT]);
        assert_eq!(changes.replaced.as_deref(), Some("staging.example:443"));
        for same in ["https://OPIK.example:443/api/", "http://127.0.0.1:6745/api", "not a URL"] {
            assert_eq!(before(&[(URL, same)]).changes().replaced, None, "{same}");
        }
    }
}
