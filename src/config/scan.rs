//! Detects configurations that are valid but known not to do what their owner expects.

use std::fmt;
use std::net::SocketAddr;

use super::error::{BadValue, ConfigError};
use super::server_url::ServerUrl;
use super::settings::Config;
use super::sources::Source;

/// A known misconfiguration; the SDK's `opik healthcheck` detects the first two as well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misconfiguration {
    CloudWithoutKey,
    /// An open-source server on localhost has only the workspace `default`.
    LocalhostWorkspace {
        workspace: String,
    },
    /// The key is sent unencrypted over a network.
    KeyInTheClear {
        upstream: ServerUrl,
    },
    /// The server is the agent's own address.
    UpstreamIsAgent {
        upstream: ServerUrl,
    },
}

impl fmt::Display for Misconfiguration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Misconfiguration::CloudWithoutKey => f.write_str("the Opik cloud needs an API key, and none is configured"),
            Misconfiguration::LocalhostWorkspace { workspace } => {
                write!(
                    f,
                    "the Opik server is on localhost, which knows the workspace default only, and workspace is {workspace}"
                )
            }
            Misconfiguration::KeyInTheClear { upstream } => {
                write!(
                    f,
                    "the API key is sent to {upstream} without encryption: everybody on the way can read it, and the traces"
                )
            }
            Misconfiguration::UpstreamIsAgent { upstream } => {
                write!(f, "the Opik server is configured as {upstream}, which is the agent itself")
            }
        }
    }
}

impl Misconfiguration {
    /// Returns the text of its hint.
    pub fn hint(&self) -> &'static str {
        match self {
            Misconfiguration::CloudWithoutKey => "set OPIK_API_KEY, or run `opik configure`",
            Misconfiguration::LocalhostWorkspace { .. } => {
                "set OPIK_WORKSPACE=default, or write 127.0.0.1 for localhost if the server has more workspaces"
            }
            Misconfiguration::KeyInTheClear { .. } => {
                "name the server with https://; a server that knows no keys needs none: unset OPIK_API_KEY"
            }
            Misconfiguration::UpstreamIsAgent { .. } => {
                "name the real server with --upstream or OPIK_OFFLINE_UPSTREAM; OPIK_URL_OVERRIDE may stay for the application"
            }
        }
    }
}

impl Config {
    /// Returns all known misconfigurations, for `healthcheck`. They are warnings: the configuration is still valid.
    pub fn scan(&self) -> Vec<Misconfiguration> {
        let upstream = &self.upstream.value;
        let workspace = &self.workspace.value;
        let mut found = Vec::new();
        if upstream.is_cloud() && self.api_key.value.is_none() {
            found.push(Misconfiguration::CloudWithoutKey);
        }
        if upstream.is_localhost() && workspace != "default" {
            found.push(Misconfiguration::LocalhostWorkspace { workspace: workspace.clone() });
        }
        if self.api_key.value.is_some() && !upstream.is_https() && !upstream.is_loopback() {
            found.push(Misconfiguration::KeyInTheClear { upstream: upstream.clone() });
        }
        if is_agent(upstream, self.listen.value) {
            found.push(Misconfiguration::UpstreamIsAgent { upstream: upstream.clone() });
        }
        found
    }

    /// Rejects a server that is the agent's own address; for commands that send to the server.
    ///
    /// Not part of [`Config::resolve`], because `status`, `inspect` and `purge` also work in an application's
    /// environment, in which `OPIK_URL_OVERRIDE` names the agent.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Value`] for `upstream`.
    pub fn check_upstream(&self) -> Result<(), ConfigError> {
        if !is_agent(&self.upstream.value, self.listen.value) {
            return Ok(());
        }
        let itself = Misconfiguration::UpstreamIsAgent { upstream: self.upstream.value.clone() };
        Err(ConfigError::Value(Box::new(BadValue {
            key: "upstream",
            value: self.upstream.value.to_string(),
            origin: self.upstream.source.clone(),
            reason: format!("this is the agent itself, which listens on {}", self.listen.value),
            hint: Some(itself.hint().to_owned()),
        })))
    }

    /// Rejects invalid network settings; for commands that connect to the server.
    ///
    /// Not part of [`Config::resolve`], because `status`, `inspect` and `purge` don't need the network.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Value`] for the first invalid one.
    pub fn check_network(&self) -> Result<(), ConfigError> {
        if let Some(bad) = self.unusable.first() {
            return Err(ConfigError::Value(Box::new(bad.clone())));
        }
        let (certificate, key) = (&self.client_cert_file.value, &self.client_key_file);
        match (certificate, &key.value) {
            (None, Some(path)) => Err(ConfigError::Value(Box::new(BadValue {
                key: "client_key_file",
                value: path.display().to_string(),
                origin: key.source.clone(),
                reason: "no certificate is named to which the key belongs".to_owned(),
                hint: Some("set OPIK_OFFLINE_CLIENT_CERT_FILE, too, or unset the key".to_owned()),
            }))),
            _ => Ok(()),
        }
    }

    /// Rejects a listen address that other machines can reach without a token, unless the user opted in.
    pub(super) fn check_listen(&self) -> Result<(), ConfigError> {
        let is_open = !self.listen.value.ip().to_canonical().is_loopback();
        if !is_open || self.intake_token.value.is_some() || self.insecure_listen.value {
            return Ok(());
        }
        Err(ConfigError::Value(Box::new(BadValue {
            key: "listen",
            value: self.listen.value.to_string(),
            origin: self.listen.source.clone(),
            reason: "other machines can reach this address, and no intake token is set".to_owned(),
            hint: Some(
                "set OPIK_OFFLINE_INTAKE_TOKEN, listen on 127.0.0.1, or accept the risk with --insecure-listen"
                    .to_owned(),
            ),
        })))
    }
}

impl Config {
    /// Rejects a key that is configured twice in the same layer. A variable with the key takes precedence over a file
    /// named in `config.yaml`.
    pub(super) fn check_keys(&self) -> Result<(), ConfigError> {
        for (key, text, file) in [
            ("encryption_key_file", &self.encryption_key, &self.encryption_key_file),
            ("encryption_previous_key_file", &self.encryption_previous_key, &self.encryption_previous_key_file),
        ] {
            let is_variable = matches!(file.source, Source::Environment { .. });
            if text.value.is_some() && file.value.is_some() && is_variable {
                return Err(ConfigError::Value(Box::new(BadValue {
                    key,
                    value: file.value.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
                    origin: file.source.clone(),
                    reason: format!("the key is in the {} as well", text.source),
                    hint: Some("unset one of them".to_owned()),
                })));
            }
        }
        Ok(())
    }
}

/// Returns whether the server's URL is the agent's own address, without a DNS query.
fn is_agent(upstream: &ServerUrl, listen: SocketAddr) -> bool {
    let listen_ip = listen.ip().to_canonical();
    let is_same_host = match upstream.ip().map(|ip| ip.to_canonical()) {
        Some(ip) if !ip.is_unspecified() => ip == listen_ip || (ip.is_loopback() && listen_ip.is_unspecified()),
        // `localhost`, or another address that connects to this machine.
        Some(_) => listen_ip.is_unspecified() || listen_ip.is_loopback(),
        None => upstream.is_loopback() && (listen_ip.is_unspecified() || listen_ip.is_loopback()),
    };
    is_same_host && upstream.port() == listen.port()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_detect_their_own_address() {
        let cases = [
            ("http://127.0.0.1:6745/api", "127.0.0.1:6745", true),
            ("http://localhost:6745/api", "127.0.0.1:6745", true),
            ("http://[::ffff:127.0.0.1]:6745", "127.0.0.1:6745", true),
            ("http://[::1]:6745", "[::1]:6745", true),
            ("http://127.0.0.2:6745", "127.0.0.1:6745", false),
            ("http://0.0.0.0:6745", "127.0.0.1:6745", true),
            ("http://127.0.0.1:6745", "0.0.0.0:6745", true),
            ("http://10.0.0.1:6745", "10.0.0.1:6745", true),
            ("http://10.0.0.2:6745", "0.0.0.0:6745", false),
            ("http://127.0.0.1:5173/api", "127.0.0.1:6745", false),
            ("https://www.comet.com/opik/api", "127.0.0.1:443", false),
        ];
        for (upstream, listen, expected) in cases {
            let is_agent = is_agent(&upstream.parse().expect("valid"), listen.parse().expect("valid"));
            assert_eq!(is_agent, expected, "{upstream} {listen}");
        }
    }
}
