//! The command line: what can be typed, and the dispatch to one thin command each.
//!
//! clap parses, [`crate::config`] resolves; nothing is opened before both are done. Results go to stdout, notes, progress
//! and logs to stderr. Values of settings are passed on as they were typed, so that a bad one is reported like a bad one
//! in any other layer: key, value, source.

mod agent;
mod failure;
mod groups;
mod healthcheck;
mod inspect;
mod purge;
mod readback;
mod reassign;
mod replay;
mod salvage;
mod selection;
mod status;
mod values;
mod wrapped;

use std::ffi::OsString;
use std::io::BufRead as _;
use std::process::ExitCode;
use std::sync::Arc;

use clap::builder::PossibleValue;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, ColorChoice, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::config::{Config, Flags, LogLevel, ProcessEnvironment, is_no_color_set};
use crate::printable;
use crate::shutdown::Shutdown;
use crate::signals;
use crate::store::{self, Keys, Limits, OpenMode, Store, StoreError};
use crate::telemetry::log::{self, LogFile};
use crate::terminal::progress;
use crate::terminal::render::{OutputFormat, Renderer};
use crate::terminal::{Shown, Stream};
use crate::upstream::{Upstream, UpstreamSettings};
pub use failure::{Exit, Failure};

const LONG_ABOUT: &str = "\
Keep Opik traces through an outage.

`opik-offline agent` runs beside an application as its Opik server: it passes everything on while the real server is \
there, stores what is written while it is away, and delivers it afterwards, in order. The other commands look at the \
store or drive it, with or without an agent running.";

const AFTER_HELP: &str = "\
Examples:
  Run an application with an agent of its own:
    opik-offline agent -- python app.py
  Stand in front of a local Opik server:
    opik-offline agent --upstream http://127.0.0.1:5173/api
  Let an application use it:
    OPIK_URL_OVERRIDE=http://127.0.0.1:6745/api python app.py
  See what waits for the server:
    opik-offline status

Exit codes:
  0    Done
  1    Failure
  2    Wrong usage or configuration; nothing was done
  3    The Opik server can't be reached
  4    Messages remain or were rejected, or a threshold is exceeded
  5    The server does not accept the key or the workspace
  126  agent -- COMMAND: the command can't be executed
  127  agent -- COMMAND: there is no such command
  130  Interrupted

Output for programs:
  --format json and --format yaml write one document with a schema_version. Within a version fields are only ever added; \
the JSON Schemas are in the folder schemas of the source, and in /usr/share/doc/opik-offline/schemas with the Debian \
package.

Settings:
  A flag counts before the environment (OPIK_..., OPIK_OFFLINE_...), that before ~/.opik.config, that before \
opik-offline/config.yaml in the user's configuration folder, and that before the default. `opik-offline healthcheck` \
shows every setting with its origin.";

/// Keep Opik traces through an outage
#[derive(Parser, Debug)]
#[command(name = "opik-offline", version, long_about = LONG_ABOUT, after_long_help = AFTER_HELP)]
pub struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// What every command understands.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Common options")]
struct Common {
    /// Use this message store
    ///
    /// The default is opik-offline/opik_messages.db in the user's data folder, such as ~/.local/share.
    #[arg(long, value_name = "PATH", global = true, value_hint = clap::ValueHint::FilePath)]
    db: Option<OsString>,

    /// Use this Opik server, such as http://127.0.0.1:5173/api
    ///
    /// The default is the server that the application uses: OPIK_URL_OVERRIDE, ~/.opik.config, or Opik Cloud.
    #[arg(long, value_name = "URL", global = true, value_hint = clap::ValueHint::Url)]
    upstream: Option<OsString>,

    /// Write results in this format
    #[arg(long, value_name = "FORMAT", global = true, value_enum, default_value_t = OutputFormat::Table)]
    format: OutputFormat,

    /// Say only what was asked for, and errors
    ///
    /// No notes, no progress, no word about what was done.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,

    /// Say more on standard error
    #[arg(short, long, global = true, hide_short_help = true)]
    verbose: bool,

    /// Use no colours, as with NO_COLOR in the environment
    #[arg(long, global = true, hide_short_help = true)]
    no_color: bool,
}

impl ValueEnum for OutputFormat {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Table, Self::Json, Self::Jsonl, Self::Yaml]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::Table => PossibleValue::new("table").help("Tables and sentences for people"),
            Self::Json => PossibleValue::new("json").help("One JSON document"),
            Self::Jsonl => PossibleValue::new("jsonl").help("One JSON document a line (`inspect` only)"),
            Self::Yaml => PossibleValue::new("yaml").help("One YAML document"),
        })
    }
}

#[derive(Subcommand, Debug)]
enum Command {
    Agent(Box<agent::AgentArgs>),
    Healthcheck(healthcheck::HealthcheckArgs),
    Status(status::StatusArgs),
    Replay(replay::ReplayArgs),
    Inspect(inspect::InspectArgs),
    Purge(purge::PurgeArgs),
}

/// Returns the definition of the command line, for the manual pages and completions.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the command line of this process and returns how it ends.
pub fn run() -> ExitCode {
    std::panic::set_hook(Box::new(progress::say_panic));
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == values::COMMAND) {
        values::run(arguments.collect());
        return ExitCode::SUCCESS;
    }
    let cli = match parsed() {
        Ok(cli) => cli,
        Err(mut error) => {
            make_harmless(&mut error);
            selection::suggest_types(&mut error);
            suggest_dashes(&mut error, std::env::args_os().any(|argument| argument == "agent"));
            print(&error);
            return ExitCode::from(if error.use_stderr() { Exit::Usage } else { Exit::Done } as u8);
        }
    };
    match cli.dispatch() {
        Ok(code) => code,
        Err(failure) => {
            if !failure.message.is_empty() {
                failure.say();
            }
            ExitCode::from(failure.exit as u8)
        }
    }
}

/// Reads the command line. Whoever wants no colours wants none in help and errors of clap's either.
fn parsed() -> Result<Cli, clap::Error> {
    let mut own = std::env::args_os().take_while(|argument| argument != "--");
    let color = if own.any(|argument| argument == "--no-color") { ColorChoice::Never } else { ColorChoice::Auto };
    let mut command = Cli::command().color(color);
    let mut matches = command.try_get_matches_from_mut(std::env::args_os())?;
    Cli::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
}

/// Takes line breaks and the like out of what was typed, which a script may have from elsewhere.
fn make_harmless(error: &mut clap::Error) {
    let line = |text: &String| printable::line(text).into_owned();
    let harmless = |(kind, value): (ContextKind, &ContextValue)| {
        let value = match value {
            ContextValue::String(text) => ContextValue::String(line(text)),
            ContextValue::Strings(texts) => ContextValue::Strings(texts.iter().map(line).collect()),
            _ => return None,
        };
        Some((kind, value))
    };
    let values: Vec<_> = error.context().filter_map(harmless).collect();
    for (kind, value) in values {
        error.insert(kind, value);
    }
}

/// Prints what clap says: help, the version, or what is wrong with the command line.
fn print(error: &clap::Error) {
    let text = error.render().to_string();
    let harmless = Shown::lines(&text);
    // A closed pipe is all that can go wrong here.
    let _ = match harmless.as_str() == text {
        true => error.print(),
        false => Stream::Err.show(&harmless),
    };
}

/// Says what is missing in `agent python app.py`.
fn suggest_dashes(error: &mut clap::Error, is_agent: bool) {
    let Some(ContextValue::String(argument)) = error.get(ContextKind::InvalidArg) else { return };
    if is_agent && error.kind() == ErrorKind::UnknownArgument && !argument.starts_with('-') {
        let tip = format!("a command to be run stands behind two dashes: opik-offline agent -- {argument} ...");
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    }
}

impl Cli {
    fn dispatch(self) -> Result<ExitCode, Failure> {
        signals::survive_size_limits()?;
        let done = match &self.command {
            Command::Agent(args) => return agent::run(&self.common, args),
            Command::Healthcheck(args) => healthcheck::run(&self.common, args),
            Command::Status(args) => status::run(&self.common, args),
            Command::Replay(args) => replay::run(&self.common, args),
            Command::Inspect(args) => inspect::run(&self.common, args),
            Command::Purge(args) => purge::run(&self.common, args),
        };
        done.map(|()| ExitCode::SUCCESS)
    }
}

impl Common {
    /// Returns the flags that every command has.
    fn flags(&self) -> Flags {
        Flags { db: self.db.clone(), upstream: self.upstream.clone(), ..Flags::default() }
    }

    fn renderer(&self) -> Renderer {
        Renderer::new(self.format, self.is_colored(Stream::Out))
    }

    /// Says whether a command tells people what it did; programs that ask for JSON or YAML are always told.
    fn tells_what_was_done(&self) -> bool {
        !self.quiet || self.format != OutputFormat::Table
    }

    /// Says whether a stream gets colours: a terminal that was not asked to do without (<https://no-color.org>).
    fn is_colored(&self, stream: Stream) -> bool {
        !self.no_color && !is_no_color_set(&ProcessEnvironment) && stream.is_terminal()
    }

    /// Starts logging, at what was asked for on the command line before what is configured; returns the file.
    fn start_logging(&self, config: &Config, default_level: Option<LogLevel>) -> Result<LogFile, Failure> {
        let configured = &config.console_logging_level;
        let level = match default_level {
            _ if self.verbose => LogLevel::Debug,
            _ if self.quiet => LogLevel::Error,
            Some(level) if !configured.is_set() => level,
            _ => configured.value,
        };
        log::init(&translate::log_settings(config, level, self.is_colored(Stream::Err))).map_err(Failure::from)
    }
}

/// Asks a question on a terminal; any answer but yes is `refused`.
fn confirm(question: &Shown, refused: Failure) -> Result<(), Failure> {
    Stream::Err.show(question)?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(refused),
    }
}

/// Resolves the configuration.
fn configuration(flags: &Flags) -> Result<Config, Failure> {
    for warning in crate::config::unknown_variables(&ProcessEnvironment) {
        progress::say(&format!("warning: {warning}"));
    }
    Config::resolve(flags, &ProcessEnvironment).map_err(Failure::from)
}

/// Requests a clean shutdown on the first signal that asks for one, and ends the process on the second.
fn stop_on_signals(shutdown: &Shutdown) -> Result<(), Failure> {
    signals::stop_on_signals(shutdown, exit_interrupted).map_err(Failure::from)
}

/// Ends the process at once, as interrupted.
fn exit_interrupted() {
    std::process::exit(i32::from(Exit::Interrupted as u8));
}

/// Opens the store that is there for looking at it; `None` when nothing was ever stored.
fn existing_store(config: &Config) -> Result<Option<Arc<dyn Store>>, StoreError> {
    opened(config, OpenMode::Existing, &translate::store_keys(config)?)
}

/// Opens the store that is there, also when its key is not: for what needs nothing of the contents.
fn existing_store_without_key(config: &Config) -> Result<Option<Arc<dyn Store>>, StoreError> {
    // A key that can't be used is one that is not there; `healthcheck` says why.
    opened(config, OpenMode::WithoutKey, &translate::store_keys(config).unwrap_or_default())
}

fn opened(config: &Config, mode: OpenMode, keys: &Keys) -> Result<Option<Arc<dyn Store>>, StoreError> {
    match store::open_with(&config.db.value, mode, translate::store_limits(config), keys) {
        Ok(store) => Ok(Some(store)),
        Err(StoreError::Missing { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns the way to the server.
fn upstream(config: &Config) -> Result<Upstream, Failure> {
    Ok(Upstream::new(&translate::upstream_settings(config)?).asking_as(translate::lane(config)))
}

/// Returns the way to the server for a command that works without one; what can't be used fails when it is asked.
fn upstream_or_none(config: &Config) -> Upstream {
    Upstream::new(&translate::upstream_settings_or_none(config).0).asking_as(translate::lane(config))
}

/// From resolved settings to the plain values that the rooms take.
mod translate {
    use std::io::Read as _;
    use std::path::PathBuf;

    use http::{HeaderMap, HeaderName, HeaderValue};

    use super::{Config, Exit, Failure, Limits, LogLevel, UpstreamSettings, log};
    use crate::config::{self, HeaderLines, KeyText, LogFormat, ProxyScheme, Sourced};
    use crate::delivery::pacing::PaceSettings;
    use crate::memory::limit;
    use crate::message::{Credential, Lane, Server};
    use crate::monitor::MonitorSettings;
    use crate::store::rejected_room::{RejectedExport, RejectedRoom};
    use crate::store::room::{self, Disk};
    use crate::store::{EncryptionKey, KeyError, Keys, WhenFull};
    use crate::upstream::route::{Proxies, Proxy, ProxyKind};
    use crate::upstream::tls::{ClientCertificate, TlsSettings};

    /// The lane of messages for which no client says whose they are.
    pub(super) fn lane(config: &Config) -> Lane {
        let credential = config.api_key.value.as_ref().map(|key| Credential::new(key.expose()));
        Lane { server: Some(server(config)), workspace: Some(config.workspace.value.clone()), credential }
    }

    /// The configured server.
    pub(super) fn server(config: &Config) -> Server {
        Server::new(&config.upstream.value.to_string())
    }

    /// Returns what stays free on the store's disk: what the user set, or what suits the size of the disk.
    pub(super) fn disk_reserve(config: &Config) -> u64 {
        let set = &config.free_disk_reserve;
        match (&set.source, Disk::of(&config.db.value)) {
            (config::Source::Default, Ok(disk)) => room::default_reserve(disk.total_bytes),
            _ => set.value.bytes(),
        }
    }

    pub(super) fn store_limits(config: &Config) -> Limits {
        Limits {
            size_max: config.max_size.value.bytes(),
            disk_reserve: disk_reserve(config),
            when_full: match config.when_full.value {
                config::WhenFull::Refuse => WhenFull::Refuse,
                config::WhenFull::DropOldest => WhenFull::DropOldest,
            },
        }
    }

    /// Bytes of bodies that may be in memory.
    pub(super) fn memory_budget(config: &Config) -> u64 {
        let named = config.memory_budget.value.map(config::ByteSize::bytes);
        named.unwrap_or_else(|| limit::default_budget(limit::available()))
    }

    /// What rejected messages may keep of the store, and where they go when they have to.
    pub(super) fn rejected_room(config: &Config) -> RejectedRoom {
        let export = |folder: &PathBuf| RejectedExport { folder: folder.clone(), line: super::inspect::export_line };
        RejectedRoom {
            share_percent: config.rejected_share.value,
            export: config.rejected_export.value.as_ref().map(export),
        }
    }

    /// Reads the keys that the store is sealed with. The variable and the file are not both set.
    pub(super) fn store_keys(config: &Config) -> Result<Keys, KeyError> {
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

    /// The way to the server, for a command that needs it.
    pub(super) fn upstream_settings(config: &Config) -> Result<UpstreamSettings, Failure> {
        config.check_network()?;
        let settings = UpstreamSettings { headers: own_headers(config)?, ..network(config) };
        settings.check()?;
        Ok(settings)
    }

    /// The way to the server for a command that works without one. Where a setting can't be used, nothing is sent past the
    /// proxy or without the headers that were asked for: every request fails with the reason. Also returns what is wrong.
    pub(super) fn upstream_settings_or_none(config: &Config) -> (UpstreamSettings, Option<Failure>) {
        let settings = network(config);
        match config.check_network().map_err(Failure::from).and_then(|()| own_headers(config)) {
            Ok(headers) => {
                let settings = UpstreamSettings { headers, ..settings };
                // Certificates are read again with every connection.
                let failure = settings.check().err().map(Failure::from);
                (settings, failure)
            }
            Err(failure) => {
                let reason = failure.message.clone();
                let proxies = Proxies::chosen_by(move |_| Err(reason.clone()));
                (UpstreamSettings { proxies, ..settings }, Some(failure))
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

    fn proxies(config: &Config) -> Proxies {
        let rules = config.proxies.clone();
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

    /// The headers of the user's own: those of the variable, and of the file those with other names.
    fn own_headers(config: &Config) -> Result<HeaderMap, Failure> {
        const FILE_BYTES_MAX: u64 = 1 << 20;
        let mut lines = config.upstream_headers.value.clone();
        if let Some(path) = &config.upstream_headers_file.value {
            let mut text = String::new();
            let read = std::fs::File::open(path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text));
            let read = read.map_err(|error| error.to_string());
            let of_file = read.and_then(|_| HeaderLines::read(&text)).map_err(|reason| {
                let (path, source) = (path.display(), &config.upstream_headers_file.source);
                let message = format!("cannot use the headers in {path}, named by {source}: {reason}");
                Failure::new(Exit::Usage, message, Some("write one `Name: value` a line, or unset it"))
            })?;
            lines = lines.before(of_file);
        }
        let mut headers = HeaderMap::new();
        for (name, value) in lines.iter() {
            // Both were checked when they were read.
            if let (Ok(name), Ok(mut value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value.expose())) {
                value.set_sensitive(true);
                headers.insert(name, value);
            }
        }
        Ok(headers)
    }

    /// The pace that the user set; what comes from the defaults leaves replay free to find its own.
    pub(super) fn pace(config: &Config) -> PaceSettings {
        let batch = &config.replay_batch_size;
        let delay = &config.replay_batch_replay_delay;
        PaceSettings {
            batch: batch.is_set().then(|| usize::try_from(batch.value).unwrap_or(usize::MAX)),
            delay: delay.is_set().then_some(delay.value),
        }
    }

    pub(super) fn monitor(config: &Config) -> MonitorSettings {
        MonitorSettings {
            ping_interval: config.connection_monitor_ping_interval.value,
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

    pub(super) fn log_settings(config: &Config, level: LogLevel, color: bool) -> log::LogSettings {
        log::LogSettings {
            console_level: log_level(level),
            file_level: config.file_logging_level.value.map(log_level),
            file_path: config.logging_file.value.clone(),
            format: match config.log_format.value {
                LogFormat::Text => log::Format::Text,
                LogFormat::Json => log::Format::Json,
            },
            color,
        }
    }
}
