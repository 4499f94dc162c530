//! The table of settings.
//!
//! The table below is the only definition of a setting's key, type, default, variable, flag and limit. [`Config`],
//! [`Flags`], the output of `healthcheck` and the generated reference all derive from it, so a new setting is one new
//! entry; a flag also needs its argument in `src/cli/`.

use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::error::{BadValue, ConfigError};
use super::fleet_url::{FleetUrl, FleetVariables};
use super::header_lines::HeaderLines;
use super::hosts::HostList;
use super::parse::bad_value;
use super::proxy::{self, ProxyRules, ProxyUrl};
use super::recipients::RecipientList;
use super::secret::{KeyText, Secret};
use super::server_url::{self, ServerUrl};
use super::setting::{Keeps, Setting};
use super::sources::{ConfigFile, Layers, Source, Sourced};
use super::units::ByteSize;
use super::value::{
    AcknowledgeAt, DepotAwayPolicy, FleetCredentials, LogFormat, LogLevel, ReplayPace, Value, WhenFull, any, at_least,
    within,
};
use super::wrapped;

/// One line of the settings that `healthcheck` prints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingLine {
    pub key: &'static str,
    /// Secrets are masked.
    pub value: String,
    pub source: Source,
}

macro_rules! settings {
    ($(
        #[doc = $about:literal]
        $key:ident: $type:ty = $default:literal, $environment:literal, $($flag:literal,)? $file:ident, $resolve:expr;
    )*) => {
        /// Every setting, sorted by key.
        pub static SETTINGS: &[Setting] = &[$(
            Setting {
                key: stringify!($key),
                about: $about.trim_ascii(),
                default: $default,
                environment: $environment,
                flag: settings!(@flag $($flag)?),
                file: Keeps::$file,
            },
        )*];

        /// The settings of this process, each with its source.
        #[derive(Clone, Debug)]
        pub struct Config {
            $(#[doc = $about] pub $key: Sourced<$type>,)*
            /// The configuration files that were looked up.
            pub files: Vec<ConfigFile>,
            /// The rules that select the proxy for a server.
            pub proxies: ProxyRules,
            /// The variables that credentials of the depot come from; empty without `fleet`.
            pub fleet_variables: FleetVariables,
            /// Network settings that failed to parse; their values are the defaults.
            pub(super) unusable: Vec<BadValue>,
        }

        impl Config {
            pub(super) fn from_layers(layers: Layers<'_>) -> Result<Config, ConfigError> {
                let mut unusable = Vec::new();
                check_yaml_keys(&layers)?;
                $(
                    let setting = self::setting(stringify!($key));
                    let $key: Sourced<$type> = match ($resolve)(&layers, setting) {
                        Err(ConfigError::Value(bad)) if bad.key == setting.key && is_deferrable(&bad) => {
                            unusable.push(*bad);
                            layers.default(setting)?
                        }
                        resolved => resolved?,
                    };
                )*
                let proxies = ProxyRules::read(&layers, self::setting("http_proxy"));
                let fleet_variables = FleetVariables::default();
                Ok(Config { $($key,)* files: layers.files, proxies, fleet_variables, unusable })
            }

            /// Returns every setting in its displayed form, sorted by key.
            pub fn settings(&self) -> Vec<SettingLine> {
                vec![$(
                    SettingLine {
                        key: stringify!($key),
                        value: self.$key.value.show(),
                        source: self.$key.source.clone(),
                    },
                )*]
            }
        }

        impl Config {
            /// Returns every secret of the configuration, as texts that must not be printed.
            pub fn secrets(&self) -> Vec<String> {
                let mut secrets: Vec<String> = self.fleet_variables.secrets().collect();
                $(secrets.extend(self.$key.value.secrets());)*
                secrets
            }
        }

        /// Values of the command line before parsing, so that an invalid one fails like in any other layer.
        #[derive(Clone, Default)]
        pub struct Flags {
            $($(#[doc = concat!("`", $flag, "`: ", $about)] pub $key: Option<OsString>,)?)*
        }

        impl Flags {
            /// Returns the flags that are set, by the keys of their settings.
            pub(super) fn values(&self) -> Vec<(&'static str, OsString)> {
                let mut values = Vec::new();
                $($(settings!(@flag_value values, self, $key, $flag);)?)*
                values
            }
        }

        /// Lists the flags that are set without their values, which may be secret.
        impl fmt::Debug for Flags {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut list = f.debug_list();
                $($(if self.$key.is_some() { list.entry(&$flag); })?)*
                list.finish()
            }
        }
    };
    (@flag) => { None };
    (@flag $flag:literal) => { Some($flag) };
    (@flag_value $values:ident, $flags:expr, $key:ident, $flag:literal) => {
        $values.extend($flags.$key.clone().map(|value| (stringify!($key), value)))
    };
}

const MILLISECOND: Duration = Duration::from_millis(1);
const DAY: Duration = Duration::from_secs(86_400);
/// SQLite's limit for a value.
const STORED_BODY_MAX: ByteSize = ByteSize::new(1_000_000_000);

// Sorted by key; a test checks the order.
settings! {
    /// When a stored write is acknowledged: local, after the commit to the store, or fleet, once its copy is in the depot
    acknowledge: AcknowledgeAt = "local", "OPIK_OFFLINE_ACKNOWLEDGE", "--acknowledge", ConfigYaml, plain(any);

    /// Whether the agent salvages and delivers the leftover files of killed Python processes, and then deletes them
    adopt_orphans: bool = "false", "OPIK_OFFLINE_ADOPT_ORPHANS", "--adopt-orphans", ConfigYaml, plain(any);

    /// Whether a wrapped agent sends all OTLP traces of its command to Opik, not only those already configured for Opik
    all_otlp_traces: bool = "false", "OPIK_OFFLINE_ALL_OTLP_TRACES", "--all-otlp-traces", ConfigYaml, plain(any);

    /// Additional host names that the agent answers to, and origins of web pages that may send to it; separated by commas
    allowed_hosts: HostList = "none", "OPIK_OFFLINE_ALLOWED_HOSTS", "--allowed-hosts", ConfigYaml, plain(any);

    /// API key, sent as the `Authorization` header
    api_key: Option<Secret> = "none", "OPIK_API_KEY", OpikConfig, plain(any);

    /// Whether the server's certificate is verified
    check_tls_certificate: bool = "true", "OPIK_CHECK_TLS_CERTIFICATE", OpikConfig, plain(any);

    /// Client certificate for mTLS, with its chain, in PEM format; also holds the key if `client_key_file` is not set
    client_cert_file: Option<PathBuf> = "none", "OPIK_OFFLINE_CLIENT_CERT_FILE", "--client-cert-file", ConfigYaml, plain(any);

    /// Private key of the client certificate, in PEM format
    client_key_file: Option<PathBuf> = "none", "OPIK_OFFLINE_CLIENT_KEY_FILE", "--client-key-file", ConfigYaml, plain(any);

    /// Idle timeout of a client's connection: between requests, within a request, or while it reads the answer
    client_timeout: Duration = "2m", "OPIK_OFFLINE_CLIENT_TIMEOUT", "--client-timeout", ConfigYaml,
        plain(within(MILLISECOND, DAY));

    /// Timeout for connecting to the server
    connect_timeout: Duration = "5s", "OPIK_OFFLINE_CONNECT_TIMEOUT", "--connect-timeout", ConfigYaml,
        plain(within(MILLISECOND, DAY));

    /// Timeout of a ping
    connection_monitor_check_timeout: Duration = "5s", "OPIK_CONNECTION_MONITOR_CHECK_TIMEOUT", OpikConfig,
        plain(within(MILLISECOND, DAY));

    /// Interval between pings; unless it is set, an unavailable server is pinged more often
    connection_monitor_ping_interval: Duration = "10s", "OPIK_CONNECTION_MONITOR_PING_INTERVAL", OpikConfig,
        plain(within(MILLISECOND, DAY));

    /// Minimum level of log messages on stderr: DEBUG, INFO, WARNING, ERROR or CRITICAL
    console_logging_level: LogLevel = "INFO", "OPIK_CONSOLE_LOGGING_LEVEL", OpikConfig, plain(any);

    /// Path of the message store
    db: PathBuf = "<data dir>/opik-offline/opik_messages.db", "OPIK_OFFLINE_DB", "--db", ConfigYaml, db;

    /// Encryption key of the store, in base64 or hexadecimal digits; prefer a file
    encryption_key: Option<KeyText> = "none", "OPIK_OFFLINE_ENCRYPTION_KEY", Nowhere, plain(any);

    /// File with the encryption key of the store
    encryption_key_file: Option<PathBuf> = "none", "OPIK_OFFLINE_ENCRYPTION_KEY_FILE", ConfigYaml, plain(any);

    /// Previous encryption key of the store, for key rotation
    encryption_previous_key: Option<KeyText> = "none", "OPIK_OFFLINE_ENCRYPTION_PREVIOUS_KEY", Nowhere, plain(any);

    /// File with the previous encryption key of the store, for key rotation
    encryption_previous_key_file: Option<PathBuf> = "none", "OPIK_OFFLINE_ENCRYPTION_PREVIOUS_KEY_FILE", ConfigYaml, plain(any);

    /// Minimum level of log messages in `logging_file`
    file_logging_level: Option<LogLevel> = "none", "OPIK_FILE_LOGGING_LEVEL", OpikConfig, plain(any);

    /// Depot of the fleet, where copies of stored messages outlive this machine: s3://, gs://, az://, file:// or postgres://
    fleet: Option<FleetUrl> = "none", "OPIK_OFFLINE_FLEET", "--fleet", ConfigYaml, plain(any);

    /// Whether copies in the depot of the fleet hold API keys, sealed, or only name them: sealed or reference
    fleet_credentials: FleetCredentials = "sealed", "OPIK_OFFLINE_FLEET_CREDENTIALS", ConfigYaml, plain(any);

    /// Folder with the API keys that copies in the depot of the fleet only name, one file for each, for a replayer
    fleet_credentials_dir: Option<PathBuf> = "none", "OPIK_OFFLINE_FLEET_CREDENTIALS_DIR", ConfigYaml, plain(any);

    /// How old a stored message has to be before it is copied to the depot of the fleet
    fleet_delay: Duration = "2s", "OPIK_OFFLINE_FLEET_DELAY", ConfigYaml, plain(within(Duration::ZERO, DAY));

    /// File with the private keys of a replayer of the fleet, as `age-keygen` writes it
    fleet_identity_file: Option<PathBuf> = "none", "OPIK_OFFLINE_FLEET_IDENTITY_FILE", ConfigYaml, plain(any);

    /// Reach the depot of the fleet without TLS, and not only on this machine
    fleet_insecure: bool = "false", "OPIK_OFFLINE_FLEET_INSECURE", "--fleet-insecure", ConfigYaml, plain(any);

    /// Longest interval between two copies to the depot of the fleet in an outage; it grows from 1s
    fleet_interval_max: Duration = "30s", "OPIK_OFFLINE_FLEET_INTERVAL_MAX", ConfigYaml, plain(within(MILLISECOND, DAY));

    /// Copy messages to the depot of the fleet unencrypted if it names no recipients: bodies and keys are readable there
    fleet_plain: bool = "false", "OPIK_OFFLINE_FLEET_PLAIN", ConfigYaml, plain(any);

    /// Public keys (age1...) for which copies in the depot of the fleet are sealed, separated by commas; if unset, those in its fleet.json
    fleet_recipients: RecipientList = "none", "OPIK_OFFLINE_FLEET_RECIPIENTS", "--fleet-recipients", ConfigYaml, plain(any);

    /// Whether the agent also delivers what agents that are gone left in the depot of the fleet; it needs fleet_identity_file
    fleet_replay: bool = "false", "OPIK_OFFLINE_FLEET_REPLAY", "--fleet-replay", ConfigYaml, plain(any);

    /// Whether nobody else replays the fleet's depot: needed where the depot does not keep conditional writes
    fleet_single_replayer: bool = "false", "OPIK_OFFLINE_FLEET_SINGLE_REPLAYER", ConfigYaml, plain(any);

    /// How long the owner of a stream has to be silent before a replayer of the fleet takes it over
    fleet_takeover_after: Duration = "1m30s", "OPIK_OFFLINE_FLEET_TAKEOVER_AFTER", ConfigYaml, plain(within(Duration::from_secs(1), DAY));

    /// How long a wrapped agent keeps delivering the backlog after its command has ended
    flush_timeout: Duration = "30s", "OPIK_OFFLINE_FLUSH_TIMEOUT", "--flush-timeout", ConfigYaml,
        plain(within(Duration::ZERO, DAY));

    /// Timeout for the server's answer to a forwarded or replayed write; each retry after a timeout waits longer, up to 10m
    forward_timeout: Duration = "1m35s", "OPIK_OFFLINE_FORWARD_TIMEOUT", "--forward-timeout", ConfigYaml,
        plain(within(MILLISECOND, DAY));

    /// Free disk space that the store never uses; by default at most a tenth of the disk
    free_disk_reserve: ByteSize = "256MiB", "OPIK_OFFLINE_FREE_DISK_RESERVE", "--free-disk-reserve", ConfigYaml, plain(any);

    /// Forward proxy to the server: http, https, socks4(a) or socks5(h); if unset, HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY apply
    http_proxy: Option<ProxyUrl> = "none", "_OPIK_HTTP_PROXY", Nowhere, |layers, setting| proxy::resolve(layers, setting, &upstream(layers)?.value);

    /// Whether the agent is a hub: other agents send through it, and it has its store for itself
    hub: bool = "false", "OPIK_OFFLINE_HUB", "--hub", ConfigYaml, plain(any);

    /// Token that the hub requires, if the server is a hub: its `intake_token`; prefer a file
    hub_token: Option<Secret> = "none", "OPIK_OFFLINE_HUB_TOKEN", Nowhere, plain(sendable_token);

    /// File with the token that the hub requires
    hub_token_file: Option<PathBuf> = "none", "OPIK_OFFLINE_HUB_TOKEN_FILE", "--hub-token-file", ConfigYaml, plain(any);

    /// After how long without clients, requests and waiting messages the agent ends by itself; for agents in the background
    idle_exit: Option<Duration> = "none", "OPIK_OFFLINE_IDLE_EXIT", "--idle-exit", ConfigYaml, plain(any);

    /// Accept connections from other machines without a token
    insecure_listen: bool = "false", "OPIK_OFFLINE_INSECURE_LISTEN", "--insecure-listen", ConfigYaml, plain(any);

    /// Token that clients must send
    intake_token: Option<Secret> = "none", "OPIK_OFFLINE_INTAKE_TOKEN", ConfigYaml, plain(sendable_token);

    /// Listen address of the agent
    listen: SocketAddr = "127.0.0.1:6745", "OPIK_OFFLINE_LISTEN", "--listen", ConfigYaml, plain(any);

    /// Format of log lines: text or json
    log_format: LogFormat = "text", "OPIK_OFFLINE_LOG_FORMAT", "--log-format", ConfigYaml, plain(any);

    /// Log file; written only if `file_logging_level` is set
    logging_file: PathBuf = "opik.log", "OPIK_LOGGING_FILE", OpikConfig, plain(any);

    /// Maximum age of stored messages; older ones expire and are counted. Unset: messages never expire
    max_age: Option<Duration> = "none", "OPIK_OFFLINE_MAX_AGE", "--max-age", ConfigYaml, plain(not_too_short);

    /// Maximum size of an attachment's file
    max_attachment_size: ByteSize = "5GiB", "OPIK_OFFLINE_MAX_ATTACHMENT_SIZE", "--max-attachment-size", ConfigYaml,
        plain(at_least(ByteSize::KIB));

    /// Attempts that the server answers with an error of its own before a message is rejected
    max_attempts: u32 = "10", "OPIK_OFFLINE_MAX_ATTEMPTS", "--max-attempts", ConfigYaml, plain(within(1, 1_000_000));

    /// Maximum size of a stored request body, as sent; larger ones stream through while the server is available, and get a 413 otherwise
    max_body_size: ByteSize = "500MiB", "OPIK_OFFLINE_MAX_BODY_SIZE", "--max-body-size", ConfigYaml,
        plain(within(ByteSize::KIB, STORED_BODY_MAX));

    /// Maximum number of concurrent client connections; beyond it the longest idle one is closed, and a new one gets a 503 if all are busy
    max_connections: u32 = "4096", "OPIK_OFFLINE_MAX_CONNECTIONS", "--max-connections", ConfigYaml, plain(within(1, 1_000_000));

    /// Maximum size of a stored request body after decompression; larger ones stream through while the server is available, and get a 413 otherwise
    max_inflated_size: ByteSize = "512MiB", "OPIK_OFFLINE_MAX_INFLATED_SIZE", "--max-inflated-size", ConfigYaml,
        plain(within(ByteSize::KIB, STORED_BODY_MAX));

    /// Maximum size of the store
    max_size: ByteSize = "10GiB", "OPIK_OFFLINE_MAX_SIZE", "--max-size", ConfigYaml, plain(at_least(ByteSize::MIB));

    /// Memory for payloads: received, forwarded and replayed. Unset: 256MiB, or three eighths of the memory of the machine or container if that is less
    memory_budget: Option<ByteSize> = "none", "OPIK_OFFLINE_MEMORY_BUDGET", "--memory-budget", ConfigYaml,
        plain(not_too_little_memory);

    /// Folder to which rejected messages are exported, in the format of `inspect --format jsonl`, before they are evicted; if the export fails, none is evicted
    rejected_export: Option<PathBuf> = "none", "OPIK_OFFLINE_REJECTED_EXPORT", "--rejected-export", ConfigYaml, plain(any);

    /// Share of the store that rejected messages keep when space is needed, in percent; beyond it the oldest are evicted and counted
    rejected_share: u32 = "25", "OPIK_OFFLINE_REJECTED_SHARE", "--rejected-share", ConfigYaml, plain(within(0, 100));

    /// Retry messages whose key the server refuses (401, 403) with the configured key, for the same server and workspace
    rekey_refused: bool = "false", "OPIK_OFFLINE_REKEY_REFUSED", "--rekey-refused", ConfigYaml, plain(any);

    /// Delay after a full replay batch; adaptive unless set
    replay_batch_replay_delay: Duration = "500ms", "OPIK_REPLAY_BATCH_REPLAY_DELAY", "--delay", OpikConfig,
        plain(within(Duration::ZERO, DAY));

    /// Messages per replay batch; adaptive unless set
    replay_batch_size: u32 = "50", "OPIK_REPLAY_BATCH_SIZE", "--batch-size", OpikConfig, plain(within(1, 100_000));

    /// Automatic pace of replay: steady, never below 100 messages a second; shared, for many agents of one server; auto, shared with a depot
    replay_pace: ReplayPace = "auto", "OPIK_OFFLINE_REPLAY_PACE", ConfigYaml, plain(any);

    /// Polling interval of the store for messages to replay
    replay_tick_interval: Duration = "300ms", "OPIK_REPLAY_TICK_INTERVAL", OpikConfig, plain(within(MILLISECOND, DAY));

    /// Time after which a held lane is retried: after an invalid key, a redirect, or a server that fails every request
    retry_interval: Duration = "10s", "OPIK_OFFLINE_RETRY_INTERVAL", "--retry-interval", ConfigYaml,
        plain(within(MILLISECOND, DAY));

    /// How long a stopping agent waits for requests in flight
    shutdown_timeout: Duration = "10s", "OPIK_OFFLINE_SHUTDOWN_TIMEOUT", "--shutdown-timeout", ConfigYaml,
        plain(within(Duration::ZERO, DAY));

    /// Folder with trusted CA certificates in PEM format, instead of the built-in ones; ignored if `ssl_cert_file` is set
    ssl_cert_dir: Option<PathBuf> = "none", "SSL_CERT_DIR", Nowhere, plain(any);

    /// File with trusted CA certificates in PEM format, instead of the built-in ones
    ssl_cert_file: Option<PathBuf> = "none", "SSL_CERT_FILE", Nowhere, plain(any);

    /// URL of the Opik server; also read from OPIK_URL_OVERRIDE, `url_override` in ~/.opik.config, or an API key that embeds it
    upstream: ServerUrl = "https://www.comet.com/opik/api", "OPIK_OFFLINE_UPSTREAM", "--upstream", ConfigYaml,
        |layers, _| upstream(layers);

    /// Headers added to every request to the server, and to no other: `Name: value` lines, or `name=value,name=value` as in OTEL_EXPORTER_OTLP_HEADERS; prefer a file for secrets
    upstream_headers: HeaderLines = "none", "OPIK_OFFLINE_UPSTREAM_HEADERS", Nowhere, plain(any);

    /// File with headers added to every request to the server, one `Name: value` per line
    upstream_headers_file: Option<PathBuf> = "none", "OPIK_OFFLINE_UPSTREAM_HEADERS_FILE", "--upstream-headers-file", ConfigYaml, plain(any);

    /// Policy for writes that wait for a copy while the depot is away: local acknowledges them, refuse answers 503
    when_depot_away: DepotAwayPolicy = "local", "OPIK_OFFLINE_WHEN_DEPOT_AWAY", "--when-depot-away", ConfigYaml, plain(any);

    /// Policy for new messages when the store is full: refuse or drop_oldest
    when_full: WhenFull = "refuse", "OPIK_OFFLINE_WHEN_FULL", "--when-full", ConfigYaml, plain(any);

    /// Workspace, sent as the `Comet-Workspace` header
    workspace: String = "default", "OPIK_WORKSPACE", OpikConfig, plain(any);
}

/// Settings that matter only to commands that connect to the server.
const OF_THE_NETWORK: [&str; 12] = [
    "check_tls_certificate",
    "client_cert_file",
    "client_key_file",
    "connect_timeout",
    "forward_timeout",
    "http_proxy",
    "hub_token",
    "hub_token_file",
    "ssl_cert_dir",
    "ssl_cert_file",
    "upstream_headers",
    "upstream_headers_file",
];

/// Returns whether an invalid value may be ignored until a command connects to the server. A flag may not: it was typed
/// for this command.
fn is_deferrable(bad: &BadValue) -> bool {
    OF_THE_NETWORK.contains(&bad.key) && !matches!(bad.origin, Source::Flag { .. })
}

fn setting(key: &str) -> &'static Setting {
    SETTINGS.iter().find(|setting| setting.key == key).expect("every field of Config is in the table")
}

fn yaml_keys() -> impl Iterator<Item = &'static str> {
    SETTINGS.iter().filter(|setting| setting.file == Keeps::ConfigYaml).map(|setting| setting.key)
}

fn is_yaml_key(key: &str) -> bool {
    yaml_keys().any(|known| known == key)
}

fn is_opik_config_key(key: &str) -> bool {
    key == URL_OVERRIDE || SETTINGS.iter().any(|setting| setting.file == Keeps::OpikConfig && setting.key == key)
}

/// Rejects unknown keys in `config.yaml`.
fn check_yaml_keys(layers: &Layers<'_>) -> Result<(), ConfigError> {
    match layers.config_yaml_keys().find(|(_, key)| !is_yaml_key(key)) {
        Some((path, key)) => Err(unknown_key(path.to_owned(), key)),
        None => Ok(()),
    }
}

/// Returns the error for an unknown key of `config.yaml`, with the most similar known one.
fn unknown_key(path: PathBuf, key: &str) -> ConfigError {
    let hint = if is_opik_config_key(key) {
        format!("{key} belongs in ~/.opik.config, section [opik], where the SDK reads it too")
    } else {
        match nearest_yaml_key(key) {
            Some(nearest) => format!("did you mean {nearest}?"),
            None => format!("the known keys are {}", yaml_keys().collect::<Vec<_>>().join(", ")),
        }
    };
    ConfigError::UnknownKey { path, key: key.escape_debug().to_string(), hint }
}

/// Returns the known key that is most similar to an unknown one.
fn nearest_yaml_key(key: &str) -> Option<&'static str> {
    /// Below this similarity a guess would mislead more than it helps.
    const SIMILARITY_MIN: f64 = 0.8;

    let key = key.to_lowercase().replace('-', "_");
    let similar = yaml_keys().map(|known| (strsim::jaro_winkler(&key, known), known));
    let (similarity, nearest) = similar.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (similarity >= SIMILARITY_MIN).then_some(nearest)
}

/// Resolves a setting through the layers in their default order.
fn plain<T: Value>(
    limit: impl Fn(&T) -> Result<(), String>,
) -> impl FnOnce(&Layers<'_>, &'static Setting) -> Result<Sourced<T>, ConfigError> {
    move |layers, setting| match layers.find(setting) {
        Some(raw) => layers.parse_within(setting, raw, &limit),
        None => layers.default(setting),
    }
}

/// Rejects an age that any outage would exceed.
fn not_too_short(age: &Option<Duration>) -> Result<(), String> {
    age.as_ref().map_or(Ok(()), at_least(Duration::from_secs(1)))
}

/// Rejects a token that some clients could not send in a URL or a header.
fn sendable_token(token: &Option<Secret>) -> Result<(), String> {
    let Some(token) = token else { return Ok(()) };
    let token = token.expose();
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("holds a space or a character beyond ASCII, which not every client can send; make a token with \
                    `openssl rand -hex 32`, for example"
            .to_owned());
    }
    match token {
        "." | ".." => Err("is a dot segment, which clients take out of URLs".to_owned()),
        _ => Ok(()),
    }
}

/// Parses the token in a file; white space around it is ignored.
///
/// # Errors
///
/// The fault of a token, without quoting it.
pub fn token_in(text: &str) -> Result<Secret, String> {
    let token = Some(Secret::new(text.trim())).filter(|token| !token.expose().is_empty());
    sendable_token(&token)?;
    token.ok_or_else(|| "it is empty".to_owned())
}

/// Rejects a budget that is too small for a claim or a typical payload.
fn not_too_little_memory(budget: &Option<ByteSize>) -> Result<(), String> {
    budget.as_ref().map_or(Ok(()), within(ByteSize::new(8 << 20), ByteSize::new(1 << 40)))
}

fn db(layers: &Layers<'_>, setting: &'static Setting) -> Result<Sourced<PathBuf>, ConfigError> {
    if let Some(raw) = layers.find(setting) {
        return layers.parse(setting, raw);
    }
    let folder = layers.data_dir().ok_or(ConfigError::NoDataDirectory)?;
    Ok(Sourced { value: folder.join("opik-offline").join("opik_messages.db"), source: Source::Default })
}

/// The SDK's name for the server, in its variable and in `~/.opik.config`.
const URL_OVERRIDE: &str = "url_override";

/// Resolves the server. It has more sources than other settings, because an application and its agent may share one
/// environment.
fn upstream(layers: &Layers<'_>) -> Result<Sourced<ServerUrl>, ConfigError> {
    let setting = setting("upstream");
    let given = layers
        .flag(setting)
        .or_else(|| layers.variable(setting.environment))
        .or_else(|| wrapped::server_behind(layers))
        .or_else(|| layers.variable("OPIK_URL_OVERRIDE"))
        .or_else(|| layers.in_opik_config(URL_OVERRIDE))
        .or_else(|| layers.in_config_yaml(setting.key));
    if let Some(raw) = given {
        return layers.parse(setting, raw);
    }
    let key_setting = self::setting("api_key");
    if let Some(raw) = layers.find(key_setting) {
        let key: Sourced<Option<Secret>> = layers.parse(key_setting, raw.clone())?;
        let key_text = key.value.as_ref().map_or("", Secret::expose);
        let inside = server_url::inside_api_key(key_text);
        let inside = inside.map_err(|error| bad_value::<Secret>(key_setting, &raw, error.to_string()))?;
        if let Some(value) = inside {
            return Ok(Sourced { value, source: Source::ApiKey(Box::new(raw.source)) });
        }
    }
    layers.default(setting)
}
