//! What a command that an agent wraps finds of its server, and what its clients find in the home folder.

use super::server_url::ServerUrl;
use super::settings::Flags;
use super::sources::{Environment, Layers, Raw, Source};

/// In a wrapped command's environment: the address that the agent put into `OPIK_URL_OVERRIDE`, a space, the server's.
///
/// `opik-offline` inside the command is to send to the server, for which the messages in the store are, and not to the
/// agent. The variable counts only while `OPIK_URL_OVERRIDE` is still what the agent made it: a command that names
/// another server means that one.
pub const WRAPPED_BY: &str = "OPIK_OFFLINE_WRAPPED_BY";

/// In a wrapped command's environment: `_OPIK_HTTP_PROXY` as the agent found it. It is taken out for the command's other
/// programs, which send to the agent, and counts when [`WRAPPED_BY`] does.
pub const WRAPPED_PROXY: &str = "OPIK_OFFLINE_WRAPPED_PROXY";

/// Returns the server behind the agent that wraps this process, if `OPIK_URL_OVERRIDE` names that agent.
pub(super) fn server_behind(layers: &Layers<'_>) -> Option<Raw> {
    let named = layers.variable("OPIK_URL_OVERRIDE")?;
    let known = layers.variable(WRAPPED_BY)?;
    let (agent, server) = known.text.to_str()?.trim().split_once(' ')?;
    let is_agent = named.text.to_str()?.trim().trim_end_matches('/') == agent.trim_end_matches('/');
    // What no agent has written means nothing.
    let is_server = server.parse::<ServerUrl>().is_ok();
    (is_agent && is_server).then(|| Raw { text: server.into(), source: Source::Environment { name: WRAPPED_BY } })
}

/// Returns the proxy that leads to the server behind the agent that wraps this process.
pub(super) fn proxy_behind(layers: &Layers<'_>) -> Option<Raw> {
    server_behind(layers).and_then(|_| layers.variable(WRAPPED_PROXY))
}

/// Returns `url_override` of `~/.opik.config`, whatever file `OPIK_CONFIG_PATH` names: some clients read only that one.
///
/// A file that can't be read says nothing to them either.
pub fn url_in_home_file(environment: &dyn Environment) -> Option<String> {
    let flags = Flags::default();
    let layers = Layers::of_home_file(&flags, environment)?;
    Some(layers.in_opik_config("url_override")?.text.to_string_lossy().into_owned())
}
