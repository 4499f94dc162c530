//! Routing: the head of a request is validated, then the agent answers it itself, or it goes to the server.
//!
//! Validation sees the head only. A refusal discards the rest of the body first ([`exchange::refuse_with`]).

use std::sync::Arc;

use http::Method;
use http::header::{self, HeaderValue};
use http::request::Parts;
use hyper::body::{Body as _, Incoming};

use super::evidence::CreateEvidence;
use super::exchange::{self, ClientUrl, Exchange};
use super::forward::{self, ClientAnswer};
use super::limits::URL_BYTES_MAX;
use super::monitoring::Monitoring;
use super::shared::Shared;
use super::{accept, attachments, flush, guard, links, status_page};
use crate::protocol::answers::{Reply, error};
use crate::protocol::media::unsupported;
use crate::protocol::routes::{Route, classify};
use crate::protocol::target::Target;
use crate::upstream::AGENT_HEADER;

/// The methods that reach the server or the agent's pages.
const METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";
/// The answer to a client without the right token.
const NO_TOKEN: &str = "this opik-offline agent asks for its intake token";

/// The answer to a request that this agent has sent itself, directly or through others.
const LOOP: &str = "this opik-offline agent's server is the agent itself, or an agent that sends to it: set --upstream";

/// The destination of a request that was not refused.
enum Routed {
    /// Nowhere: the agent answers it.
    Answered(ClientAnswer),
    /// To [`mod@flush`].
    Flush,
    /// To the server, or to the store instead. `below` is its path and query below the API's base, normalised; empty
    /// for a request outside the API.
    Server { client: ClientUrl, route: Route, below: String },
}

/// The answer to a refused request.
struct RefusedRequest(Box<ClientAnswer>);

impl From<Reply> for RefusedRequest {
    fn from(reply: Reply) -> Self {
        Self(Box::new(forward::own_answer(reply)))
    }
}

impl From<ClientAnswer> for Routed {
    fn from(answer: ClientAnswer) -> Self {
        Self::Answered(answer)
    }
}

/// Answers a request. `fault` is the error in its framing ([`super::framing`]), if any; `evidence` is what its
/// connection has shown.
pub(super) async fn handle(
    shared: Arc<Shared>,
    fault: Option<&'static str>,
    evidence: Arc<CreateEvidence>,
    request: http::Request<Incoming>,
) -> ClientAnswer {
    let (head, body) = request.into_parts();
    if let Some(identity) = &shared.identity {
        identity.count();
    }
    if is_grpc(&head) {
        shared.collector.met_grpc_client();
    }
    let destination = match fault {
        None => route(&shared, &head, !body.is_end_stream()),
        Some(fault) => Err(refuse_framing(&shared, fault)),
    };
    match destination {
        Err(RefusedRequest(answer)) => Box::pin(exchange::refuse_with(*answer, &head.headers, body)).await,
        Ok(Routed::Answered(answer)) => answer,
        Ok(Routed::Flush) => Box::pin(flush::flush(&shared, &head)).await,
        Ok(Routed::Server { client, route, below }) => {
            let exchange = Exchange { shared, head, client, evidence, body };
            match route {
                Route::Ping => status_page::ping(&exchange.shared, &exchange.head.headers),
                Route::Protected(write) => accept::accept(exchange, write, below).await,
                // Boxed, so that the future of a write is small.
                Route::Upload(step) => Box::pin(attachments::upload(exchange, step)).await,
                Route::PassThrough => Box::pin(exchange.pass_through()).await,
            }
        }
    }
}

/// Returns whether the client speaks gRPC.
fn is_grpc(head: &Parts) -> bool {
    let content_type = || head.headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    head.version == http::Version::HTTP_2 && content_type().is_some_and(|media| media.starts_with(b"application/grpc"))
}

fn refuse_framing(shared: &Shared, fault: &str) -> RefusedRequest {
    shared.count_over_limit("framing");
    let mut refusal = forward::own_answer(error(400, fault));
    // It is unknown where the next request of this connection would begin.
    refusal.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    RefusedRequest(Box::new(refusal))
}

/// Validates the head of a request, and finds out where it goes.
fn route(shared: &Shared, head: &Parts, has_body: bool) -> Result<Routed, RefusedRequest> {
    if head.uri.path_and_query().is_some_and(|path| path.as_str().len() > URL_BYTES_MAX) {
        shared.count_over_limit("bytes of a URL");
        let text = format!("the URL is longer than {URL_BYTES_MAX} bytes, opik-offline's limit");
        return Err(error(414, &text).into());
    }
    if head.method == Method::CONNECT {
        let mut refusal =
            forward::own_answer(error(405, "opik-offline is not a forward proxy: it opens no connections for others"));
        refusal.headers_mut().insert(header::ALLOW, HeaderValue::from_static(METHODS));
        return Err(RefusedRequest(Box::new(refusal)));
    }
    if let Some(fault) = guard::head_fault(head) {
        return Err(error(400, fault).into());
    }
    let (token, path) = guard::split_token(head.uri.path(), shared.token.as_deref());
    let target = Target::of(path, &shared.address);
    let is_allowed = guard::is_allowed(shared.token.as_deref(), token, &head.headers);
    // Before anything else reads the request, and on every path: no foreign page reads, writes or probes.
    let is_own_name = check_site(shared, head, target.as_ref().ok(), is_allowed)?;
    let target = target.map_err(|fault| {
        shared.count_over_limit("spelling of a path");
        error(400, &fault.to_string())
    })?;
    // The token is for this agent; a URL that leads to the agent again includes it.
    let token_prefix = token.map_or_else(String::new, |token| format!("{}{token}", guard::TOKEN_PREFIX));
    if let Target::Own { path: page } = &target {
        return match status_page::OwnPage::of(&head.method, page) {
            // A flush makes the agent work, so it is for clients that may send writes.
            Some(status_page::OwnPage::Flush) if !is_allowed => Ok(forward::own_answer(error(401, NO_TOKEN)).into()),
            Some(status_page::OwnPage::Flush) if has_passed(shared, head) => Err(error(508, LOOP).into()),
            Some(status_page::OwnPage::Flush) => Ok(Routed::Flush),
            Some(status_page::OwnPage::Instance) => Ok(status_page::instance(shared, head.uri.query()).into()),
            Some(status_page::OwnPage::Overview) if links::leads_to_status_page(page, path, &head.headers) => {
                Ok(links::redirect(&format!("{token_prefix}{}", status_page::PATH)).into())
            }
            Some(status_page::OwnPage::Ready) if !is_own_name => Ok(status_page::ready_alone().into()),
            Some(page) => Ok(page.render(shared).into()),
            // No path below /-/ reaches the server.
            None => Err(error(404, "this opik-offline agent has no such page").into()),
        };
    }
    // Reveals only the server's address, which the status page shows as well.
    if let Some(page) = links::page_of(head, &target, &shared.address) {
        return Ok(links::redirect(&page).into());
    }
    if !is_allowed {
        return Err(error(401, NO_TOKEN).into());
    }
    if has_passed(shared, head) {
        return Ok(forward::own_answer(error(508, LOOP)).into());
    }
    route_to_server(shared, head, target, &token_prefix, has_body)
}

/// Returns whether a request has passed this agent before.
fn has_passed(shared: &Shared, head: &Parts) -> bool {
    head.headers.get_all(AGENT_HEADER).iter().any(|mark| *mark == shared.agent_mark)
}

/// Refuses a request that a page of another site may have sent; returns whether the request names one of the agent's
/// own hosts.
fn check_site(
    shared: &Shared,
    head: &Parts,
    target: Option<&Target>,
    is_allowed: bool,
) -> Result<bool, RefusedRequest> {
    let asks_for_token = shared.token.is_some();
    let has_token = asks_for_token && is_allowed;
    let Err(foreign) = shared.sites.judge(head, has_token, target.is_some_and(Target::is_link_target)) else {
        return Ok(true);
    };
    let monitoring = target.and_then(Target::own).and_then(|page| Monitoring::of(&head.method, page));
    match monitoring.is_some_and(|of| shared.sites.is_open(of, &foreign, head, asks_for_token)) {
        true => Ok(false),
        false => Err(shared.refuse_foreign(&foreign).into()),
    }
}

/// Resolves the URL of a request at the server, and classifies it.
fn route_to_server(
    shared: &Shared,
    head: &Parts,
    target: Target,
    token_prefix: &str,
    has_body: bool,
) -> Result<Routed, RefusedRequest> {
    let host = head.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or(&shared.listen_host);
    let url = target.url(&shared.address).map(|url| links::with_query(url, &target, head, host, &shared.address));
    let Some(uri) = url.and_then(|url| http::Uri::try_from(url).ok()) else {
        return Err(error(400, "the path is not a valid URL").into());
    };
    let (prefix, below) = match target {
        Target::Api { prefix, path, .. } => (prefix, Some(path)),
        Target::Origin { .. } | Target::Own { .. } => (String::new(), None),
    };
    let prefix = if token_prefix.is_empty() { prefix } else { format!("{token_prefix}{prefix}") };
    let client = ClientUrl { host: host.to_owned(), prefix, uri };
    let Some(below) = below else {
        return Ok(Routed::Server { client, route: Route::PassThrough, below: String::new() });
    };
    let route = classify(head.method.as_str(), &below);
    let content_types = head.headers.get_all(header::CONTENT_TYPE).iter().map(|value| value.to_str().ok());
    if let Some(fault) = unsupported(head.method.as_str(), &below, has_body, content_types) {
        return Err(error(415, &fault).into());
    }
    let below = match head.uri.query() {
        Some(query) => format!("{below}?{query}"),
        None => below,
    };
    Ok(Routed::Server { client, route, below })
}
