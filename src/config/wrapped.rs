//! The environment of a wrapped command: the server behind its agent, and the file in the home folder.

use super::server_url::ServerUrl;
use super::sources::{Environment, Layers, Raw, Source};

/// Variable of a wrapped command: the agent's address, as in `OPIK_URL_OVERRIDE`, a space, and the server's.
///
/// `opik-offline` inside the command sends to the server, the destination of the stored messages, and not to the
/// agent. The variable is valid only while `OPIK_URL_OVERRIDE` still has the agent's value: a command that sets
/// another server overrides it.
pub const WRAPPED_BY: &str = "OPIK_OFFLINE_WRAPPED_BY";

/// Variable of a wrapped command: the original `_OPIK_HTTP_PROXY`. The agent unsets that one for the command's other
/// programs, which send to the agent. Valid if [`WRAPPED_BY`] is.
pub const WRAPPED_PROXY: &str = "OPIK_OFFLINE_WRAPPED_PROXY";

/// Returns the server behind the agent that wraps this process, if `OPIK_URL_OVERRIDE` is that agent's address.
pub(super) fn server_behind(layers: &Layers<'_>) -> Option<Raw> {
    let named = layers.variable("OPIK_URL_OVERRIDE")?;
    let known = layers.variable(WRAPPED_BY)?;
    let (agent, server) = known.text.to_str()?.trim().split_once(' ')?;
    let is_agent = named.text.to_str()?.trim().trim_end_matches('/') == agent.trim_end_matches('/');
    // Ignores text that no agent wrote.
    let is_server = server.parse::<ServerUrl>().is_ok();
    (is_agent && is_server).then(|| Raw { text: server.into(), source: Source::Environment { name: WRAPPED_BY } })
}

/// Returns the proxy for the server behind the agent that wraps this process.
pub(super) fn proxy_behind(layers: &Layers<'_>) -> Option<Raw> {
    server_behind(layers).and_then(|_| layers.variable(WRAPPED_PROXY))
}

/// Returns `url_override` of `~/.opik.config`, ignoring `OPIK_CONFIG_PATH`: some clients read only that file.
///
/// `None` if the file can't be read: those clients ignore it as well.
pub fn url_in_home_file(environment: &dyn Environment) -> Option<String> {
    let layers = Layers::of_home_file(environment)?;
    Some(layers.in_opik_config("url_override")?.text.to_string_lossy().into_owned())
}
