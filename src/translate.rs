//! The configuration as the plain values that the rooms take.
//!
//! A room does not know the names and sources of settings: it takes values that are resolved here. An unusable setting
//! is an error here, before anything is opened or sent.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use thiserror::Error;

use crate::agent::AgentSettings;
use crate::agent::files::{self, SoftLimit};
use crate::agent::fleet_member::FleetMemberSettings;
use crate::config::{
    self, Config, ConfigError, FleetScheme, HeaderLines, KeyText, LogFormat, LogLevel, ProcessEnvironment, ProxyRules,
    ProxyScheme, ReplayPace, Secret, ServiceManager, Sourced, temp_dir,
};
use crate::delivery::fleet_pacing::FleetPace;
use crate::delivery::pacing::PaceSettings;
use crate::depot::{self, DepotAddress, DepotError, DepotSettings, ObjectService};
use crate::export::export_line;
use crate::fleet::ledger::{Acknowledge, FleetSettings, FleetUse, WhenDepotAway};
use crate::fleet::schedule::ShippingSettings;
use crate::hint::OptionsInForce;
use crate::intake::IntakeLimits;
use crate::intake::identity::AgentIdentity;
use crate::intake::workers::Workers;
use crate::memory::limit;
use crate::message::{Credential, Lane, Server};
use crate::monitor::MonitorSettings;
use crate::printable::shell_word;
use crate::protocol::hub::TOKEN_HEADER;
use crate::replay::ReplaySettings;
use crate::sdk::adoption::Adoption;
use crate::sealing::{Recipient, SealError, read_identities};
use crate::store::os::os_words;
use crate::store::rejected_room::{RejectedExport, RejectedRoom};
use crate::store::room::{self, Disk};
use crate::store::{self, EncryptionKey, Filter, KeyError, Keys, Limits, OpenMode, Store, StoreError, WhenFull};
use crate::takeover::selection::FleetReplaySelection;
use crate::takeover::session::FleetReplaySettings;
use crate::telemetry::log;
use crate::upstream::route::{Proxies, Proxy, ProxyKind};
use crate::upstream::tls::{ClientCertificate, TlsSettings};
use crate::upstream::{UpstreamError, UpstreamSettings};

/// Why the server can't be reached with these settings.
#[derive(Debug, Error)]
pub enum NetworkError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    #[error("cannot use the headers in {}, named by {origin}: {reason}", path.display())]
    Headers { path: PathBuf, origin: String, reason: String },
    #[error("cannot use the hub's token in {}, named by {origin}: {reason}", path.display())]
    HubToken { path: PathBuf, origin: String, reason: String },
}

/// A call names a message store that is not there.
#[derive(Debug, Error)]
#[error("there is no message store at {}, named by {origin}", path.display())]
pub struct NamedStoreMissing {
    /// The path.
    pub path: PathBuf,
    /// The flag or the variable.
    pub origin: String,
}

/// Checks that the message store is there, if a flag or a variable names it: whoever names one means one that exists,
/// and "nothing waits" would be wrong for a path with a typing mistake. At the default path, or one that a file sets
/// for all calls, nothing may have been stored yet.
///
/// # Errors
///
/// [`NamedStoreMissing`] if it is not there. Whether it can be used is for the caller to find out.
pub(crate) fn check_named_store(config: &Config) -> Result<(), NamedStoreMissing> {
    let path = &config.db.value;
    let is_there = || std::fs::metadata(path).is_ok_and(|found| found.len() > 0);
    // One whose recovery was interrupted has no file, and is there.
    let is_missing = || matches!(existing_store_without_key(config), Ok(None));
    match store_named_by(config) {
        Some(origin) if !is_there() && is_missing() => Err(NamedStoreMissing { path: path.clone(), origin }),
        _ => Ok(()),
    }
}

/// Returns the flag or the variable that names the message store; `None` at the default path, or one of a file.
pub(crate) fn store_named_by(config: &Config) -> Option<String> {
    use config::Source::{Environment, Flag};
    let source = &config.db.source;
    matches!(source, Flag { .. } | Environment { .. }).then(|| source.to_string())
}

/// Returns the configured lane: for messages whose client names no server, workspace or credential.
pub(crate) fn lane(config: &Config) -> Lane {
    let credential = config.api_key.value.as_ref().map(|key| Credential::new(key.expose()));
    Lane { server: Some(server(config)), workspace: Some(config.workspace.value.clone()), credential }
}

/// Returns the configured server.
pub(crate) fn server(config: &Config) -> Server {
    Server::new(&config.upstream.value.to_string())
}

/// Returns the options that a suggested command has to repeat.
pub(crate) fn options_in_force(config: &Config) -> OptionsInForce {
    let is_flag = |source: &config::Source| matches!(source, config::Source::Flag { .. });
    let upstream = Some(config.upstream.value.to_string()).filter(|_| is_flag(&config.upstream.source));
    // It is pasted anywhere.
    let db = std::path::absolute(&config.db.value).unwrap_or_else(|_| config.db.value.clone());
    OptionsInForce {
        db: config.db.is_set().then(|| shell_word(db.as_os_str())),
        upstream: upstream.map(|url| shell_word(url.as_ref())),
        fleet: config.fleet.value.as_ref().map(|url| shell_word(url.to_string().as_ref())),
    }
}

/// Returns how much of the store's disk stays free: the configured size, or a default for the size of the disk.
pub(crate) fn disk_reserve(config: &Config) -> u64 {
    let set = &config.free_disk_reserve;
    match (&set.source, Disk::of(&config.db.value)) {
        (config::Source::Default, Ok(disk)) => room::default_reserve(disk.total_bytes),
        _ => set.value.bytes(),
    }
}

pub(crate) fn store_limits(config: &Config) -> Limits {
    Limits {
        size_max: config.max_size.value.bytes(),
        disk_reserve: disk_reserve(config),
        when_full: match config.when_full.value {
            config::WhenFull::Refuse => WhenFull::Refuse,
            config::WhenFull::DropOldest => WhenFull::DropOldest,
        },
    }
}

/// Returns how many bytes of bodies may be in memory.
pub(crate) fn memory_budget(config: &Config) -> u64 {
    let named = config.memory_budget.value.map(config::ByteSize::bytes);
    named.unwrap_or_else(|| limit::default_budget(limit::available()))
}

/// Returns how much of the store rejected messages may keep, and where they are exported when they are dropped.
pub(crate) fn rejected_room(config: &Config) -> RejectedRoom {
    let export = |folder: &PathBuf| RejectedExport { folder: folder.clone(), line: export_line };
    RejectedRoom {
        share_percent: config.rejected_share.value,
        export: config.rejected_export.value.as_ref().map(export),
    }
}

/// Reads the encryption keys of the store. The config room ensures that a variable and a file are not both set.
pub(crate) fn store_keys(config: &Config) -> Result<Keys, KeyError> {
    let key = |text: &Sourced<Option<KeyText>>, file: &Sourced<Option<PathBuf>>| match (&text.value, &file.value) {
        (Some(key), _) => EncryptionKey::parse(key.expose(), &text.source.to_string()).map(Some),
        (None, Some(path)) => EncryptionKey::read(path).map(Some),
        (None, None) => Ok(None),
    };
    Ok(Keys {
        current: key(&config.encryption_key, &config.encryption_key_file)?,
        previous: key(&config.encryption_previous_key, &config.encryption_previous_key_file)?,
    })
}

/// Opens the existing store for reading; `None` if nothing was ever stored.
///
/// # Errors
///
/// Fails if the store can't be opened.
pub(crate) fn existing_store(config: &Config) -> Result<Option<Arc<dyn Store>>, StoreError> {
    opened(config, OpenMode::Existing, &store_keys(config)?)
}

/// Opens the existing store even if its key is missing, for commands that need no contents.
///
/// # Errors
///
/// Fails if the store can't be opened.
pub(crate) fn existing_store_without_key(config: &Config) -> Result<Option<Arc<dyn Store>>, StoreError> {
    // A key that can't be used counts as missing; `healthcheck` reports why.
    opened(config, OpenMode::WithoutKey, &store_keys(config).unwrap_or_default())
}

fn opened(config: &Config, mode: OpenMode, keys: &Keys) -> Result<Option<Arc<dyn Store>>, StoreError> {
    match store::open_with(&config.db.value, mode, store_limits(config), keys) {
        Ok(store) => Ok(Some(store)),
        Err(StoreError::Missing { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns how the server is reached, for a command that needs it.
///
/// # Errors
///
/// Fails if a setting can't be used.
pub(crate) fn upstream_settings(config: &Config) -> Result<UpstreamSettings, NetworkError> {
    config.check_network()?;
    let settings = UpstreamSettings { headers: own_headers(config)?, ..network(config) };
    settings.check()?;
    Ok(settings)
}

/// Returns how the server is reached, for a command that works without it. If a setting is unusable, no request
/// bypasses the proxy or is sent without the configured headers: every request fails with the reason. Also returns the
/// error.
pub(crate) fn upstream_settings_or_none(config: &Config) -> (UpstreamSettings, Option<NetworkError>) {
    let settings = network(config);
    match config.check_network().map_err(NetworkError::from).and_then(|()| own_headers(config)) {
        Ok(headers) => {
            let settings = UpstreamSettings { headers, ..settings };
            // Certificates are read again with every connection.
            let error = settings.check().err().map(NetworkError::from);
            (settings, error)
        }
        Err(error) => {
            let reason = error.to_string();
            let proxies = Proxies::chosen_by(move |_| Err(reason.clone()));
            (UpstreamSettings { proxies, ..settings }, Some(error))
        }
    }
}

fn network(config: &Config) -> UpstreamSettings {
    let certificate = config.client_cert_file.value.clone();
    let key = config.client_key_file.value.clone();
    let folders = config.ssl_cert_dir.value.as_deref().map(std::env::split_paths);
    UpstreamSettings {
        base_url: config.upstream.value.to_string(),
        tls: TlsSettings {
            check_certificate: config.check_tls_certificate.value,
            ca_file: config.ssl_cert_file.value.clone(),
            ca_folders: folders.into_iter().flatten().filter(|folder| !folder.as_os_str().is_empty()).collect(),
            client_certificate: certificate.map(|certificate| ClientCertificate { certificate, key }),
        },
        proxies: proxies(config),
        headers: HeaderMap::new(),
        connect_timeout: config.connect_timeout.value,
        answer_timeout: config.forward_timeout.value,
    }
}

/// Returns how the fleet's depot is reached; `None` if none is configured.
pub(crate) fn depot(config: &Config) -> Option<DepotSettings> {
    let url = config.fleet.value.as_ref()?;
    let bucket =
        |service| DepotAddress::Bucket { service, bucket: url.bucket().to_owned(), prefix: url.prefix().to_owned() };
    let address = match url.scheme() {
        FleetScheme::S3 => bucket(ObjectService::S3),
        FleetScheme::Gs => bucket(ObjectService::Google),
        FleetScheme::Az => bucket(ObjectService::Azure),
        FleetScheme::File => DepotAddress::Folder(url.folder().to_owned()),
        FleetScheme::Postgres => DepotAddress::Postgres(url.expose().to_owned()),
    };
    Some(DepotSettings {
        address,
        variables: config.fleet_variables.expose().to_vec(),
        is_insecure: config.fleet_insecure.value,
        // The certificates that are trusted are those of all servers; the rest concerns the Opik server only.
        tls: TlsSettings { check_certificate: true, client_certificate: None, ..network(config).tls },
        proxies: chosen_by(config.proxies.without_the_servers_own()),
        timeout: depot::TIMEOUT,
    })
}

/// Why no depot can be used with these settings.
#[derive(Debug, Error)]
pub enum FleetError {
    /// The depot.
    #[error(transparent)]
    Depot(#[from] DepotError),
    /// A public key that is none.
    #[error("fleet_recipients, set by {origin}, holds an entry that is not a public key: {reason}")]
    Recipient {
        /// Where it was set.
        origin: String,
        /// The problem.
        reason: String,
    },
    /// Something waits for a depot that is not configured.
    #[error("acknowledge is fleet, set by {origin}, and no depot is named")]
    NoDepot {
        /// Where it was set.
        origin: String,
    },
    /// An agent that replays has no depot.
    #[error("fleet_replay is true, set by {origin}, and no depot is named")]
    NothingToReplay {
        /// Where it was set.
        origin: String,
    },
    /// An agent that replays can open nothing.
    #[error("fleet_replay is true, set by {origin}, and there is no key that opens the streams of other agents")]
    NoIdentity {
        /// Where it was set.
        origin: String,
    },
    /// The key of an agent that replays can't be used.
    #[error("fleet_identity_file, set by {origin}, can't be used: {error}")]
    Identity {
        /// Where it was set.
        origin: String,
        /// The problem.
        error: SealError,
    },
    /// The key of the scratch store.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// How many bytes of other agents' messages an agent keeps on its disk at a time.
const MEMBER_STAGE: u64 = 1 << 30;
/// How many lanes of other agents' messages an agent delivers concurrently.
const MEMBER_WORKERS_MAX: usize = 8;

/// Returns how an agent replays the streams of agents that are gone; `None` if it does not.
///
/// # Errors
///
/// [`FleetError`] if it has no depot or no key for it.
pub(crate) fn fleet_member(config: &Config) -> Result<Option<FleetMemberSettings>, FleetError> {
    if !config.fleet_replay.value {
        return Ok(None);
    }
    let origin = || config.fleet_replay.source.to_string();
    if config.fleet.value.is_none() {
        return Err(FleetError::NothingToReplay { origin: origin() });
    }
    let identity = &config.fleet_identity_file;
    match &identity.value {
        Some(file) => drop(read_identities(file).map_err(|error| {
            let origin = identity.source.to_string();
            FleetError::Identity { origin, error }
        })?),
        None if config.fleet_plain.value => {}
        None => return Err(FleetError::NoIdentity { origin: origin() }),
    }
    let session = fleet_replay(config, MEMBER_STAGE, (true, None), FleetReplaySelection::default())?;
    Ok(Some(FleetMemberSettings {
        identity_files: identity.value.iter().cloned().collect(),
        credentials_dir: config.fleet_credentials_dir.value.clone(),
        session: FleetReplaySettings {
            // Clients and the agent's own messages come first.
            memory_budget: memory_budget(config) / 4,
            workers_max: session.workers_max.min(MEMBER_WORKERS_MAX),
            ..session
        },
    }))
}

/// Returns the depot that an agent ships to, and how; `None` without one.
///
/// # Errors
///
/// [`FleetError`] if the depot can't be opened, or a public key is not one.
pub(crate) fn fleet_use(config: &Config) -> Result<Option<FleetUse>, FleetError> {
    let acknowledge = match config.acknowledge.value {
        config::AcknowledgeAt::Local => Acknowledge::Local,
        config::AcknowledgeAt::Fleet => Acknowledge::Fleet,
    };
    let Some(settings) = depot(config) else {
        return match acknowledge {
            Acknowledge::Local => Ok(None),
            Acknowledge::Fleet => Err(FleetError::NoDepot { origin: config.acknowledge.source.to_string() }),
        };
    };
    let recipients = &config.fleet_recipients;
    let bad_key =
        |error: SealError| FleetError::Recipient { origin: recipients.source.to_string(), reason: error.to_string() };
    let keys: Result<Vec<Recipient>, _> = recipients.value.keys().iter().map(|key| key.parse()).collect();
    let settings_of_fleet = FleetSettings {
        recipients: keys.map_err(bad_key)?,
        is_plain: config.fleet_plain.value,
        is_by_reference: config.fleet_credentials.value == config::FleetCredentials::Reference,
        schedule: ShippingSettings {
            delay: config.fleet_delay.value,
            interval_max: config.fleet_interval_max.value,
            ..ShippingSettings::default()
        },
        acknowledge,
        when_away: match config.when_depot_away.value {
            config::DepotAwayPolicy::Local => WhenDepotAway::Local,
            config::DepotAwayPolicy::Refuse => WhenDepotAway::Refuse,
        },
        silence: config.fleet_takeover_after.value,
    };
    Ok(Some(FleetUse { depot: depot::open(&settings)?, settings: settings_of_fleet }))
}

/// Returns how streams of a depot are replayed: `stage_bytes` of messages at a time, for `timeout` at most, following
/// agents that go away or not.
///
/// # Errors
///
/// If a key of the scratch store can't be used.
pub(crate) fn fleet_replay(
    config: &Config,
    stage_bytes: u64,
    (follows, timeout): (bool, Option<Duration>),
    selection: FleetReplaySelection,
) -> Result<FleetReplaySettings, KeyError> {
    let files = files::share(files::allowed(), 1, 0);
    Ok(FleetReplaySettings {
        scratch_folder: fleet_scratch(config),
        // Rows, indexes and the log take more than the bodies.
        store_limits: Limits {
            size_max: stage_bytes.saturating_mul(3).max(1 << 30),
            disk_reserve: disk_reserve(config),
            when_full: WhenFull::Refuse,
        },
        store_keys: store_keys(config)?,
        server: server(config),
        monitor: monitor(config),
        replay: ReplaySettings { filter: Filter::default(), ..replay_settings(config) },
        memory_budget: memory_budget(config),
        workers_max: usize::try_from(files.replay_workers).unwrap_or(usize::MAX),
        stage_bytes,
        takeover_after: config.fleet_takeover_after.value,
        max_age: config.max_age.value,
        single_replayer: config.fleet_single_replayer.value,
        follows,
        timeout,
        selection,
    })
}

/// Returns the folder of the stores that are thrown away, beside the message store.
pub(crate) fn fleet_scratch(config: &Config) -> PathBuf {
    let folder = config.db.value.parent().map(PathBuf::from).unwrap_or_default();
    folder.join("fleet-scratch")
}

fn proxies(config: &Config) -> Proxies {
    chosen_by(config.proxies.clone())
}

fn chosen_by(rules: ProxyRules) -> Proxies {
    Proxies::chosen_by(move |target| {
        let url = rules.proxy_for(target.is_https, &target.host, target.port)?;
        Ok(url.map(|url| Proxy {
            kind: match url.scheme() {
                ProxyScheme::Http => ProxyKind::Http { over_tls: false },
                ProxyScheme::Https => ProxyKind::Http { over_tls: true },
                ProxyScheme::Socks4 => ProxyKind::Socks4 { resolves: false },
                ProxyScheme::Socks4a => ProxyKind::Socks4 { resolves: true },
                ProxyScheme::Socks5 => ProxyKind::Socks5 { resolves: false },
                ProxyScheme::Socks5h => ProxyKind::Socks5 { resolves: true },
            },
            host: url.host().to_owned(),
            port: url.port(),
            credentials: url.credentials(),
        }))
    })
}

/// Returns the user's own headers: those of the variable, and those of the file under other names.
fn own_headers(config: &Config) -> Result<HeaderMap, NetworkError> {
    let mut lines = config.upstream_headers.value.clone();
    if let Some(path) = &config.upstream_headers_file.value {
        let in_file = headers_in(path).map_err(|reason| {
            let origin = config.upstream_headers_file.source.to_string();
            NetworkError::Headers { path: path.clone(), origin, reason }
        })?;
        lines = lines.before(in_file);
    }
    let mut headers = HeaderMap::new();
    for (name, value) in lines.iter() {
        // Both were validated when they were read.
        if let (Ok(name), Ok(mut value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value.expose())) {
            value.set_sensitive(true);
            headers.insert(name, value);
        }
    }
    if let Some(mut token) = hub_token(config)?.and_then(|token| HeaderValue::from_str(token.expose()).ok()) {
        token.set_sensitive(true);
        headers.insert(TOKEN_HEADER, token);
    }
    Ok(headers)
}

/// Returns the token that the hub requires. A variable with the token takes precedence over a file.
fn hub_token(config: &Config) -> Result<Option<Secret>, NetworkError> {
    let Some(path) = &config.hub_token_file.value else { return Ok(config.hub_token.value.clone()) };
    if config.hub_token.value.is_some() {
        return Ok(config.hub_token.value.clone());
    }
    let token = text_in(path).and_then(|text| config::token_in(&text)).map_err(|reason| {
        let origin = config.hub_token_file.source.to_string();
        NetworkError::HubToken { path: path.clone(), origin, reason }
    })?;
    Ok(Some(token))
}

fn headers_in(path: &Path) -> Result<HeaderLines, String> {
    HeaderLines::read(&text_in(path)?)
}

/// Reads a small file.
fn text_in(path: &Path) -> Result<String, String> {
    const FILE_BYTES_MAX: u64 = 1 << 20;
    let mut text = String::new();
    let file = File::open(path).map_err(|error| os_words(&error))?;
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(|error| os_words(&error))?;
    Ok(text)
}

/// Returns how stored messages are replayed.
pub(crate) fn replay_settings(config: &Config) -> ReplaySettings {
    ReplaySettings {
        filter: Filter::default(),
        limit: None,
        pace: pace(config),
        dial: None,
        retry_interval: config.retry_interval.value,
        attempts_max: config.max_attempts.value,
    }
}

/// Returns the configured pace; where it is not configured, replay adapts its own.
pub(crate) fn pace(config: &Config) -> PaceSettings {
    let batch = &config.replay_batch_size;
    let delay = &config.replay_batch_replay_delay;
    PaceSettings {
        batch: batch.is_set().then(|| usize::try_from(batch.value).unwrap_or(usize::MAX)),
        delay: delay.is_set().then_some(delay.value),
        fleet: (config.replay_pace.value == ReplayPace::Shared).then(FleetPace::default),
    }
}

/// Returns the pace of an agent: many of those that share a depot share a server as well.
fn pace_of_agent(config: &Config) -> PaceSettings {
    let is_shared = match config.replay_pace.value {
        ReplayPace::Auto => config.fleet.is_set(),
        ReplayPace::Steady => false,
        ReplayPace::Shared => true,
    };
    PaceSettings { fleet: is_shared.then(FleetPace::default), ..pace(config) }
}

pub(crate) fn monitor(config: &Config) -> MonitorSettings {
    MonitorSettings {
        ping_interval: config.connection_monitor_ping_interval.value,
        is_interval_set: config.connection_monitor_ping_interval.is_set(),
        check_timeout: config.connection_monitor_check_timeout.value,
    }
}

fn log_level(level: LogLevel) -> log::Level {
    match level {
        LogLevel::Debug => log::Level::Debug,
        LogLevel::Info => log::Level::Info,
        LogLevel::Warning => log::Level::Warning,
        LogLevel::Error => log::Level::Error,
        LogLevel::Critical => log::Level::Critical,
    }
}

pub(crate) fn log_settings(config: &Config, level: LogLevel, color: bool) -> log::LogSettings {
    log::LogSettings {
        console_level: log_level(level),
        file_level: config.file_logging_level.value.map(log_level),
        file_path: config.logging_file.value.clone(),
        format: match config.log_format.value {
            LogFormat::Text => log::LineFormat::Text,
            LogFormat::Json => log::LineFormat::Json,
        },
        color,
    }
}

/// Returns the settings of an agent.
///
/// # Errors
///
/// Fails if an encryption key can't be read.
pub(crate) fn agent_settings(
    config: &Config,
    upstream_settings: UpstreamSettings,
    service_manager: Option<ServiceManager>,
) -> Result<AgentSettings, KeyError> {
    let upstream = &config.upstream.value;
    let (wanted, workers) = (u64::from(config.max_connections.value), Workers::count() as u64);
    let shares = files::share(files::allowed(), wanted, workers);
    let problem = files::problem(files::allowed(), wanted, workers);
    Ok(AgentSettings {
        files: shares,
        files_problem: problem.map(|problem| format!("{problem}; {}", files::hint(wanted, workers))),
        listen: config.listen.value,
        allowed_hosts: config.allowed_hosts.value.entries().to_vec(),
        intake_token: config.intake_token.value.as_ref().map(|token| token.expose().to_owned()),
        store_path: config.db.value.clone(),
        store_limits: store_limits(config),
        store_rejected: rejected_room(config),
        store_keys: store_keys(config)?,
        max_age: config.max_age.value,
        upstream: upstream_settings,
        asks_as: lane(config),
        upstream_address: (upstream.host().to_owned(), upstream.port()),
        monitor: monitor(config),
        replay: ReplaySettings { pace: pace_of_agent(config), ..replay_settings(config) },
        replay_tick_interval: config.replay_tick_interval.value,
        intake: IntakeLimits {
            connections_max: usize::try_from(shares.clients).unwrap_or(usize::MAX),
            body_bytes_max: config.max_body_size.value.bytes(),
            inflated_bytes_max: config.max_inflated_size.value.bytes(),
            attachment_bytes_max: config.max_attachment_size.value.bytes(),
            client_timeout: config.client_timeout.value,
            forward_timeout: config.forward_timeout.value,
            retry_interval: config.retry_interval.value,
            ping_interval: config.connection_monitor_ping_interval.value,
        },
        memory_budget: memory_budget(config),
        shutdown_timeout: config.shutdown_timeout.value,
        is_hub: config.hub.value,
        rekey: config.rekey_refused.value.then(|| lane(config)),
        adopt: config.adopt_orphans.value.then(|| Adoption {
            temp_dir: temp_dir(&ProcessEnvironment),
            lane: lane(config),
            listen: config.listen.value,
        }),
        fleet: None,
        fleet_replay: None,
        identity: config.idle_exit.value.map(|_| Arc::new(AgentIdentity::new(&[]))),
        idle_exit: config.idle_exit.value,
        service_manager,
    })
}

/// Raises the soft limit on open files, and warns if it is too low for the configured concurrency.
pub(crate) fn raise_files_allowed(config: &Config) -> SoftLimit {
    let (wanted, workers) = (u64::from(config.max_connections.value), Workers::count() as u64);
    let limit = SoftLimit::raise(wanted, workers);
    if let Some(problem) = files::problem(files::allowed(), wanted, workers) {
        tracing::warn!(target: "intake", "the limit on open files is low for this agent: {problem}; {}", files::hint(wanted, workers));
    }
    limit
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::Flags;

    fn config(variables: &[(&str, &str)]) -> Config {
        let store = ("OPIK_OFFLINE_DB", "/srv/store.db");
        let environment: BTreeMap<&str, &str> = variables.iter().copied().chain([store]).collect();
        Config::resolve(&Flags::default(), &environment).expect("valid settings")
    }

    #[test]
    fn a_pace_without_a_floor_is_for_fleets_and_for_who_asks_for_it() {
        let depot = ("OPIK_OFFLINE_FLEET", "file:///srv/depot");
        let pace_is = |word| ("OPIK_OFFLINE_REPLAY_PACE", word);
        for (variables, of_agent, of_replay) in [
            (&[][..], false, false),
            (&[depot], true, false),
            (&[depot, pace_is("steady")], false, false),
            (&[pace_is("shared")], true, true),
            (&[pace_is("auto")], false, false),
        ] {
            let config = config(variables);
            let found = (pace_of_agent(&config).fleet.is_some(), pace(&config).fleet.is_some());
            assert_eq!(found, (of_agent, of_replay), "{variables:?}");
        }
    }
}
