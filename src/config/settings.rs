//! Every setting, once.
//!
//! The table below is the only place that names a setting's key, type, default, variable, flag and limit. [`Config`],
//! [`Flags`], the output of `healthcheck` and the reference in `docs/configuration.md` all derive from it, so a new setting
//! is one new entry.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::error::{BadValue, ConfigError};
use super::header_lines::HeaderLines;
use super::hosts::HostList;
use super::proxy::{self, ProxyRules, ProxyUrl};
use super::secret::{KeyText, Secret};
use super::server_url::{self, ServerUrl};
use super::sources::{ConfigFile, Layers, Raw, Source, Sourced};
use super::units::ByteSize;
use super::value::{Limit, LogFormat, LogLevel, Value, WhenFull, any, at_least, within};
use super::wrapped;

/// What is known of a setting without resolving it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The key in its file and in `healthcheck`.
    pub key: &'static str,
    /// One sentence without its full stop.
    pub about: &'static str,
    /// As it would be written in the file.
    pub default: &'static str,
    pub environment: &'static str,
    pub flag: Option<&'static str>,
    pub file: Keeps,
}

/// The file that keeps a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps {
    /// `~/.opik.config`: the settings that the SDK has too.
    OpikConfig,
    /// `config.yaml`: the agent's own.
    ConfigYaml,
    Nowhere,
}

/// One line of what `healthcheck` prints.
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
            /// The files that were looked for.
            pub files: Vec<ConfigFile>,
            /// Which proxy leads to which server.
            pub proxies: ProxyRules,
            /// Settings of the network that can't be used; their values are the defaults.
            pub(super) unusable: Vec<BadValue>,
        }

        impl Config {
            pub(super) fn from_layers(layers: Layers<'_>) -> Result<Config, ConfigError> {
                let mut unusable = Vec::new();
                $(
                    let flag: Option<&OsStr> = None$(.or(settings!(@value layers, $key, $flag)))?;
                    let setting = self::setting(stringify!($key));
                    let $key: Sourced<$type> = match ($resolve)(&layers, setting, flag) {
                        Err(ConfigError::Value(bad)) if bad.key == setting.key && may_wait(&bad) => {
                            unusable.push(*bad);
                            layers.default(setting)?
                        }
                        resolved => resolved?,
                    };
                )*
                let proxies = ProxyRules::read(&layers, self::setting("http_proxy"));
                Ok(Config { $($key,)* files: layers.files, proxies, unusable })
            }

            /// Returns every setting as it is printed, sorted by key.
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

        /// Values as the command line gave them, not yet understood, so that a bad one fails as in any other layer.
        #[derive(Clone, Default)]
        pub struct Flags {
            $($(#[doc = concat!("`", $flag, "`: ", $about)] pub $key: Option<OsString>,)?)*
        }

        /// Names the flags that are set and leaves out their values, of which one is a secret.
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
    (@value $layers:ident, $key:ident, $flag:literal) => { $layers.flags.$key.as_deref() };
}

const MILLISECOND: Duration = Duration::from_millis(1);
const DAY: Duration = Duration::from_secs(86_400);
/// SQLite keeps no larger value in one row.
const STORED_BODY_MAX: ByteSize = ByteSize::new(1_000_000_000);

// Sorted by key, which a test checks.
settings! {
    /// Whether the agent takes in and delivers what killed Python processes left, and deletes it then
    adopt_orphans: bool = "false", "OPIK_OFFLINE_ADOPT_ORPHANS", "--adopt-orphans", ConfigYaml, plain(any);

    /// Whether a wrapped agent leads all OTLP traces of its command to Opik, not only those that went there before
    all_otlp_traces: bool = "false", "OPIK_OFFLINE_ALL_OTLP_TRACES", "--all-otlp-traces", ConfigYaml, plain(any);

    /// Hosts that the agent answers to besides its own addresses and names, and origins of web pages that may send to it; separated by commas
    allowed_hosts: HostList = "none", "OPIK_OFFLINE_ALLOWED_HOSTS", "--allowed-hosts", ConfigYaml, plain(any);

    /// API key, sent as the `Authorization` header
    api_key: Option<Secret> = "none", "OPIK_API_KEY", OpikConfig, plain(any);

    /// Whether the server's certificate is checked
    check_tls_certificate: bool = "true", "OPIK_CHECK_TLS_CERTIFICATE", OpikConfig, plain(any);

    /// Certificate in PEM form that the agent shows to the server (mTLS), with its chain; also the key, where `client_key_file` is not set
    client_cert_file: Option<PathBuf> = "none", "OPIK_OFFLINE_CLIENT_CERT_FILE", "--client-cert-file", ConfigYaml, plain(any);

    /// Private key of the certificate that the agent shows to the server
    client_key_file: Option<PathBuf> = "none", "OPIK_OFFLINE_CLIENT_KEY_FILE", "--client-key-file", ConfigYaml, plain(any);

    /// How long a client may be silent between requests, within one, or in taking its answer, before its connection is closed
    client_timeout: Duration = "2m", "OPIK_OFFLINE_CLIENT_TIMEOUT", "--client-timeout", ConfigYaml,
        plain(within(MILLISECOND, DAY));

    /// How long a connection to the server may take to open
    connect_timeout: Duration = "5s", "OPIK_OFFLINE_CONNECT_TIMEOUT", "--connect-timeout", ConfigYaml,
        plain(within(MILLISECOND, DAY));

    /// How long a ping may take
    connection_monitor_check_timeout: Duration = "5s", "OPIK_CONNECTION_MONITOR_CHECK_TIMEOUT", OpikConfig,
        plain(within(MILLISECOND, DAY));

    /// Time between two pings
    connection_monitor_ping_interval: Duration = "10s", "OPIK_CONNECTION_MONITOR_PING_INTERVAL", OpikConfig,
        plain(within(MILLISECOND, DAY));

    /// Least level of the messages on stderr: DEBUG, INFO, WARNING, ERROR or CRITICAL
    console_logging_level: LogLevel = "INFO", "OPIK_CONSOLE_LOGGING_LEVEL", OpikConfig, plain(any);

    /// The message store
    db: PathBuf = "<data dir>/opik-offline/opik_messages.db", "OPIK_OFFLINE_DB", "--db", ConfigYaml, db;

    /// Key that the store is encrypted with, in base64 or hexadecimal digits; a file is the better place for it
    encryption_key: Option<KeyText> = "none", "OPIK_OFFLINE_ENCRYPTION_KEY", Nowhere, plain(any);

    /// File with the key that the store is encrypted with
    encryption_key_file: Option<PathBuf> = "none", "OPIK_OFFLINE_ENCRYPTION_KEY_FILE", ConfigYaml, plain(any);

    /// Key that the store was encrypted with before
    encryption_previous_key: Option<KeyText> = "none", "OPIK_OFFLINE_ENCRYPTION_PREVIOUS_KEY", Nowhere, plain(any);

    /// File with the key that the store was encrypted with before
    encryption_previous_key_file: Option<PathBuf> = "none", "OPIK_OFFLINE_ENCRYPTION_PREVIOUS_KEY_FILE", ConfigYaml, plain(any);

    /// Least level of the messages in `logging_file`
    file_logging_level: Option<LogLevel> = "none", "OPIK_FILE_LOGGING_LEVEL", OpikConfig, plain(any);

    /// How long a wrapped agent delivers what is stored after its command has ended
    flush_timeout: Duration = "30s", "OPIK_OFFLINE_FLUSH_TIMEOUT", "--flush-timeout", ConfigYaml,
        plain(within(Duration::ZERO, DAY));

    /// How long the server may take to answer a write that is forwarded or replayed; one that got no answer in time is given longer with every repeat, up to 10m
    forward_timeout: Duration = "1m35s", "OPIK_OFFLINE_FORWARD_TIMEOUT", "--forward-timeout", ConfigYaml,
        plain(within(MILLISECOND, DAY));

    /// Free space that the store leaves on its disk; unless it is set, never more than a tenth of the disk
    free_disk_reserve: ByteSize = "256MiB", "OPIK_OFFLINE_FREE_DISK_RESERVE", "--free-disk-reserve", ConfigYaml, plain(any);

    /// Proxy in front of the server: http, https, socks4(a) or socks5(h); without it HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY count
    http_proxy: Option<ProxyUrl> = "none", "_OPIK_HTTP_PROXY", Nowhere, |layers, setting, _| proxy::resolve(layers, setting);

    /// Listen beyond this machine without a token
    insecure_listen: bool = "false", "OPIK_OFFLINE_INSECURE_LISTEN", "--insecure-listen", ConfigYaml, plain(any);

    /// Token that a client has to send
    intake_token: Option<Secret> = "none", "OPIK_OFFLINE_INTAKE_TOKEN", ConfigYaml, plain(sendable_token);

    /// Address that the agent listens on
    listen: SocketAddr = "127.0.0.1:6745", "OPIK_OFFLINE_LISTEN", "--listen", ConfigYaml, plain(any);

    /// How log lines are written: text or json
    log_format: LogFormat = "text", "OPIK_OFFLINE_LOG_FORMAT", "--log-format", ConfigYaml, plain(any);

    /// Log file, written when `file_logging_level` is set
    logging_file: PathBuf = "opik.log", "OPIK_LOGGING_FILE", OpikConfig, plain(any);

    /// Oldest message that the agent keeps; older ones are dropped and counted. Unset, none is too old
    max_age: Option<Duration> = "none", "OPIK_OFFLINE_MAX_AGE", "--max-age", ConfigYaml, plain(not_too_short);

    /// Largest file of an attachment
    max_attachment_size: ByteSize = "5GiB", "OPIK_OFFLINE_MAX_ATTACHMENT_SIZE", "--max-attachment-size", ConfigYaml,
        plain(at_least(ByteSize::KIB));

    /// Sends of a message that the server answered with an error of its own, before it is rejected
    max_attempts: u32 = "10", "OPIK_OFFLINE_MAX_ATTEMPTS", "--max-attempts", ConfigYaml, plain(within(1, 1_000_000));

    /// Largest request body that is kept, as sent; a larger one streams through while the server is there, and gets a 413 otherwise
    max_body_size: ByteSize = "500MiB", "OPIK_OFFLINE_MAX_BODY_SIZE", "--max-body-size", ConfigYaml,
        plain(within(ByteSize::KIB, STORED_BODY_MAX));

    /// Connections of clients at once; past it the longest idle one is closed, and a new one gets a 503 when all are busy
    max_connections: u32 = "4096", "OPIK_OFFLINE_MAX_CONNECTIONS", "--max-connections", ConfigYaml, plain(within(1, 1_000_000));

    /// Largest request body that is kept, once inflated; a larger one streams through while the server is there, and gets a 413 otherwise
    max_inflated_size: ByteSize = "512MiB", "OPIK_OFFLINE_MAX_INFLATED_SIZE", "--max-inflated-size", ConfigYaml,
        plain(within(ByteSize::KIB, STORED_BODY_MAX));

    /// Largest size of the store
    max_size: ByteSize = "10GiB", "OPIK_OFFLINE_MAX_SIZE", "--max-size", ConfigYaml, plain(at_least(ByteSize::MIB));

    /// Memory for bodies: of clients, on their way to the server, and of replay. Unset, 256MiB, or three eighths of the memory of the machine or container where that is less
    memory_budget: Option<ByteSize> = "none", "OPIK_OFFLINE_MEMORY_BUDGET", "--memory-budget", ConfigYaml,
        plain(not_too_little_memory);

    /// Folder in which rejected messages are written, as `inspect --format jsonl` does, before they are dropped to make room; when that fails, none is dropped
    rejected_export: Option<PathBuf> = "none", "OPIK_OFFLINE_REJECTED_EXPORT", "--rejected-export", ConfigYaml, plain(any);

    /// Share of the store that rejected messages keep when room is needed, in percent; beyond it the oldest of them are dropped and counted
    rejected_share: u32 = "25", "OPIK_OFFLINE_REJECTED_SHARE", "--rejected-share", ConfigYaml, plain(within(0, 100));

    /// Give messages whose key the server refuses (401, 403) the configured key, for the same server and workspace
    rekey_refused: bool = "false", "OPIK_OFFLINE_REKEY_REFUSED", "--rekey-refused", ConfigYaml, plain(any);

    /// Pause after a full replay batch; obeyed exactly when set
    replay_batch_replay_delay: Duration = "500ms", "OPIK_REPLAY_BATCH_REPLAY_DELAY", "--delay", OpikConfig,
        plain(within(Duration::ZERO, DAY));

    /// Messages per replay batch; obeyed exactly when set
    replay_batch_size: u32 = "50", "OPIK_REPLAY_BATCH_SIZE", "--batch-size", OpikConfig, plain(within(1, 100_000));

    /// Time between two looks at the store for something to replay
    replay_tick_interval: Duration = "300ms", "OPIK_REPLAY_TICK_INTERVAL", OpikConfig, plain(within(MILLISECOND, DAY));

    /// Time after which a held lane is tried again: no valid key, a redirect, a server that fails at everything
    retry_interval: Duration = "10s", "OPIK_OFFLINE_RETRY_INTERVAL", "--retry-interval", ConfigYaml,
        plain(within(MILLISECOND, DAY));

    /// How long the agent waits at its end for requests in flight
    shutdown_timeout: Duration = "10s", "OPIK_OFFLINE_SHUTDOWN_TIMEOUT", "--shutdown-timeout", ConfigYaml,
        plain(within(Duration::ZERO, DAY));

    /// Certificates to trust instead of the built-in ones, in the PEM files of a folder; counts where `ssl_cert_file` is not set
    ssl_cert_dir: Option<PathBuf> = "none", "SSL_CERT_DIR", Nowhere, plain(any);

    /// Certificates to trust instead of the built-in ones, in one PEM file
    ssl_cert_file: Option<PathBuf> = "none", "SSL_CERT_FILE", Nowhere, plain(any);

    /// The Opik server; also OPIK_URL_OVERRIDE, `url_override` in ~/.opik.config, or an API key that holds its address
    upstream: ServerUrl = "https://www.comet.com/opik/api", "OPIK_OFFLINE_UPSTREAM", "--upstream", ConfigYaml,
        |layers, _, _| upstream(layers);

    /// Headers that every request to the server gets, and no other server: `Name: value` lines, or `name=value,name=value` as in OTEL_EXPORTER_OTLP_HEADERS; a file is the better place for secrets
    upstream_headers: HeaderLines = "none", "OPIK_OFFLINE_UPSTREAM_HEADERS", Nowhere, plain(any);

    /// File with headers that every request to the server gets, one `Name: value` a line
    upstream_headers_file: Option<PathBuf> = "none", "OPIK_OFFLINE_UPSTREAM_HEADERS_FILE", "--upstream-headers-file", ConfigYaml, plain(any);

    /// What happens to a new message when the store is full: refuse or drop_oldest
    when_full: WhenFull = "refuse", "OPIK_OFFLINE_WHEN_FULL", "--when-full", ConfigYaml, plain(any);

    /// Workspace, sent as the `Comet-Workspace` header
    workspace: String = "default", "OPIK_WORKSPACE", OpikConfig, plain(any);
}

/// The settings that only a command with a way to the server needs.
const OF_THE_NETWORK: [&str; 10] = [
    "check_tls_certificate",
    "client_cert_file",
    "client_key_file",
    "connect_timeout",
    "forward_timeout",
    "http_proxy",
    "ssl_cert_dir",
    "ssl_cert_file",
    "upstream_headers",
    "upstream_headers_file",
];

/// Returns whether a bad value matters only to a command with a way to the server. A flag was typed for this very command.
fn may_wait(bad: &BadValue) -> bool {
    OF_THE_NETWORK.contains(&bad.key) && !matches!(bad.origin, Source::Flag { .. })
}

fn setting(key: &str) -> &'static Setting {
    SETTINGS.iter().find(|setting| setting.key == key).expect("every field of Config is in the table")
}

pub(super) fn yaml_keys() -> impl Iterator<Item = &'static str> {
    SETTINGS.iter().filter(|setting| setting.file == Keeps::ConfigYaml).map(|setting| setting.key)
}

pub(super) fn is_yaml_key(key: &str) -> bool {
    yaml_keys().any(|known| known == key)
}

pub(super) fn is_opik_config_key(key: &str) -> bool {
    key == URL_OVERRIDE || SETTINGS.iter().any(|setting| setting.file == Keeps::OpikConfig && setting.key == key)
}

/// Returns the known key that a wrong one most likely meant.
pub(super) fn nearest_yaml_key(key: &str) -> Option<&'static str> {
    /// Below this similarity a guess would mislead more than it helps.
    const SIMILARITY_MIN: f64 = 0.8;

    let key = key.to_lowercase().replace('-', "_");
    let similar = yaml_keys().map(|known| (strsim::jaro_winkler(&key, known), known));
    let (similarity, nearest) = similar.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (similarity >= SIMILARITY_MIN).then_some(nearest)
}

/// Resolves a setting through the layers in their usual order.
fn plain<T: Value>(
    limit: impl Fn(&T) -> Result<(), String>,
) -> impl FnOnce(&Layers<'_>, &'static Setting, Option<&OsStr>) -> Result<Sourced<T>, ConfigError> {
    move |layers, setting, flag| match layers.find(setting, flag) {
        Some(raw) => layers.understand_within(setting, raw, &limit),
        None => layers.default(setting),
    }
}

/// Refuses an age that any outage reaches.
fn not_too_short(age: &Option<Duration>) -> Result<(), String> {
    age.as_ref().map_or(Ok(()), at_least(Duration::from_secs(1)))
}

/// Refuses a token that some client could not send in a URL or a header.
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

/// Refuses a budget in which no claim and no client's body of a usual size has room.
fn not_too_little_memory(budget: &Option<ByteSize>) -> Result<(), String> {
    budget.as_ref().map_or(Ok(()), within(ByteSize::new(8 << 20), ByteSize::new(1 << 40)))
}

fn db(layers: &Layers<'_>, setting: &'static Setting, flag: Option<&OsStr>) -> Result<Sourced<PathBuf>, ConfigError> {
    if let Some(raw) = layers.find(setting, flag) {
        return layers.understand(setting, raw);
    }
    let folder = layers.data_dir().ok_or(ConfigError::NoDataDirectory)?;
    Ok(Sourced { value: folder.join("opik-offline").join("opik_messages.db"), source: Source::Default })
}

/// The SDK's name for the server, in its variable and in `~/.opik.config`.
const URL_OVERRIDE: &str = "url_override";

/// Finds the server. It has more sources than other settings, because an application and its agent may share one
/// environment.
pub(super) fn upstream(layers: &Layers<'_>) -> Result<Sourced<ServerUrl>, ConfigError> {
    let setting = setting("upstream");
    let given = layers
        .flag(setting, layers.flags.upstream.as_deref())
        .or_else(|| layers.variable(setting.environment))
        .or_else(|| wrapped::server_behind(layers))
        .or_else(|| layers.variable("OPIK_URL_OVERRIDE"))
        .or_else(|| layers.in_opik_config(URL_OVERRIDE))
        .or_else(|| layers.in_config_yaml(setting.key));
    if let Some(raw) = given {
        return layers.understand(setting, raw);
    }
    let key_setting = self::setting("api_key");
    if let Some(raw) = layers.find(key_setting, None) {
        let key: Sourced<Option<Secret>> = layers.understand(key_setting, raw.clone())?;
        let key_text = key.value.as_ref().map_or("", Secret::expose);
        let inside = server_url::inside_api_key(key_text);
        let inside = inside.map_err(|error| bad_value::<Secret>(key_setting, &raw, error.to_string()))?;
        if let Some(value) = inside {
            return Ok(Sourced { value, source: Source::ApiKey(Box::new(raw.source)) });
        }
    }
    layers.default(setting)
}

impl Layers<'_> {
    pub(super) fn understand<T: Value>(&self, setting: &'static Setting, raw: Raw) -> Result<Sourced<T>, ConfigError> {
        self.understand_within(setting, raw, &any)
    }

    fn understand_within<T: Value>(
        &self,
        setting: &'static Setting,
        raw: Raw,
        limit: Limit<'_, T>,
    ) -> Result<Sourced<T>, ConfigError> {
        let value = T::read(&raw.text, self.home()).and_then(|value| limit(&value).map(|()| value));
        match value {
            Ok(value) => Ok(Sourced { value, source: raw.source }),
            Err(reason) => Err(bad_value::<T>(setting, &raw, reason)),
        }
    }

    pub(super) fn default<T: Value>(&self, setting: &'static Setting) -> Result<Sourced<T>, ConfigError> {
        self.understand(setting, Raw { text: setting.default.into(), source: Source::Default })
    }
}

fn bad_value<T: Value>(setting: &'static Setting, raw: &Raw, reason: String) -> ConfigError {
    ConfigError::Value(Box::new(BadValue {
        key: setting.key,
        value: T::mask(raw.text.to_string_lossy().trim()),
        origin: raw.source.clone(),
        reason,
        hint: Some(format!(
            "{} means: {}; the default is {}",
            setting.key,
            in_sentence(setting.about),
            setting.default
        )),
    }))
}

/// Returns a sentence's text as it stands inside another: `API key` keeps its capitals.
fn in_sentence(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) if chars.clone().next().is_some_and(|c| !c.is_uppercase()) => {
            first.to_lowercase().chain(chars).collect()
        }
        _ => text.to_owned(),
    }
}
