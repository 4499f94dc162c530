//! `opik-offline agent`

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard, PoisonError};

use clap::Args;

use super::{Common, Exit, Failure, background, configuration, exit_interrupted, translate};
use crate::agent::wrapped::{self, Wrapped, WrappedListener};
use crate::agent::{Agent, AgentSettings};
use crate::config::{Config, Flags, LogLevel, ProcessEnvironment, ServiceManager, Source};
use crate::printable::shell_word;
use crate::shutdown::Shutdown;
use crate::signals::stop_agent_on_signals;
use crate::store::place;
use crate::terminal::progress::{self, ProgressDisplay};

const AFTER_HELP: &str = "\
Examples:
  Run an application with its own agent, which delivers everything before it exits:
    opik-offline agent -- python app.py
  In CI, without waiting long at the end:
    opik-offline agent --flush-timeout 5s --db .opik/messages.db -- pytest
  Run an agent in front of a local Opik server:
    opik-offline agent --upstream http://127.0.0.1:5173/api
  Point a Python or TypeScript application at it:
    OPIK_URL_OVERRIDE=http://127.0.0.1:6745/api python app.py
  Start one agent for all programs of this shell, if none runs, and stop it:
    eval \"$(opik-offline agent --background --idle-exit 10m)\"
    opik-offline agent --stop
  Deliver messages that killed Python processes left behind, without changing the applications:
    opik-offline agent --adopt-orphans

Background agent:
  --background returns once the agent is ready, and prints the variables to set; --format json prints them for programs. \
There is one agent for a user, a server and a store: if it runs already, it is used as it is, with the settings of its \
start. Its log and its lock are in a private folder below $XDG_STATE_HOME/opik-offline (~/.local/state/opik-offline). \
Unless an address is set, it listens on a free port of this machine, and the next one on the same port again. It runs \
until it is stopped, or until it is idle for --idle-exit.

Wrapped command:
  With a command after --, the agent listens on a free local port, unless a flag, the environment or a file sets an \
address. If a standalone agent already uses that address, a free port is used unless a flag sets the address. The \
command gets OPIK_URL_OVERRIDE set to the agent, as well as other variables that point to the same server: \
OPIK_GUARDRAILS_URL_OVERRIDE, OPIK_URL, OPIK_BASE_URL, OPIK_API_BASE_URL and COMET_URL_OVERRIDE. If a proxy is \
configured, the agent's address is added to NO_PROXY. The agent itself sends to the server set by --upstream, \
OPIK_OFFLINE_UPSTREAM or OPIK_URL_OVERRIDE.
  OpenTelemetry data that went to the Opik server is routed through the agent, by OTEL_EXPORTER_OTLP_TRACES_ENDPOINT and \
OTEL_EXPORTER_OTLP_ENDPOINT. A variable that points elsewhere, such as to a collector, is left unchanged, and one that is \
unset stays unset. --all-otlp-traces routes all traces to Opik, but neither metrics nor logs. The agent accepts OTLP over \
HTTP, not gRPC.
  Signals are passed on to the command, except those that the terminal sends to both. The agent exits after the command, \
with its exit code, or with 128 plus the number of the signal that killed it. Before that, it delivers stored messages for \
up to --flush-timeout; if the server is down, the agent does not wait. The rest stays stored, and `opik-offline replay` or \
the next agent delivers it. Ctrl-C ends the delivery, too.
  Only warnings are logged to standard error, unless -v or OPIK_CONSOLE_LOGGING_LEVEL asks for more. -q also suppresses \
the lines at the start and the end.

Exit codes:
  0    Stopped as requested
  1    The agent could not run
  2    Invalid usage or configuration
  6    The address is in use: a supervisor may retry
  126  The command after -- can't be executed
  127  The command after -- was not found
  130  A second signal ended the agent at once";

/// Run the agent: forward, store while the server is down, deliver afterwards
///
/// With a command after --, it runs the command, routes its traces through the agent, and exits with it.
///
/// The agent runs in the foreground and stops on SIGINT or SIGTERM: requests in flight finish or are stored. Stored
/// messages are delivered by the next agent on the same store, or by `opik-offline replay`. SIGHUP makes it reopen its
/// log file.
#[derive(Args, Debug)]
#[command(after_long_help = AFTER_HELP)]
pub(super) struct AgentArgs {
    /// Start the agent in the background, unless it runs
    ///
    /// Returns once it is ready, and prints the variables to set.
    #[arg(long, conflicts_with_all = ["command", "hub"])]
    background: bool,

    /// Stop the background agent for this server and store
    ///
    /// Prints what is left in the store.
    #[arg(long, conflicts_with_all = ["background", "command"])]
    stop: bool,

    /// With --background: print the address for OPIK_URL_OVERRIDE and nothing else
    #[arg(long, requires = "background", conflicts_with = "format", hide_short_help = true)]
    pub(super) print_url: bool,

    /// Run as the background agent, for a starter that holds its lock
    #[arg(long, hide = true)]
    detached: bool,

    /// End when no client is connected and no message waits for this long [default: none]
    #[arg(long, value_name = "DURATION", conflicts_with = "command", hide_short_help = true)]
    idle_exit: Option<OsString>,

    /// Listen on this address [default: 127.0.0.1:6745]
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<OsString>,

    /// Accept requests for these hosts and from web pages of these origins [default: none]
    ///
    /// By default the agent accepts requests for its own addresses and names only, and none from web pages that it
    /// does not serve. Entries are separated by commas: agent.example.org, *.example.org, localhost:5173, or
    /// https://opik.example.org for a web page only.
    #[allow(rustdoc::bare_urls, reason = "a terminal shows it as it is")]
    #[arg(long, value_name = "HOSTS", hide_short_help = true)]
    allowed_hosts: Option<OsString>,

    /// Listen beyond this machine without requiring an intake token
    #[arg(long, num_args = 0, default_missing_value = "true", hide_short_help = true)]
    insecure_listen: Option<OsString>,

    /// Be a hub: other agents use this one as their --upstream
    ///
    /// A hub has its store for itself: a second hub on the same store is refused.
    #[arg(long, num_args = 0, default_missing_value = "true", conflicts_with = "command")]
    hub: Option<OsString>,

    /// Send the token in this file to the hub, if --upstream is a hub
    #[arg(long, value_name = "FILE", hide_short_help = true, value_hint = clap::ValueHint::FilePath)]
    hub_token_file: Option<OsString>,

    /// Salvage and deliver what killed Python processes leave behind
    ///
    /// Scans the temporary directory, and deletes each file once all its messages are stored.
    #[arg(long, num_args = 0, default_missing_value = "true")]
    adopt_orphans: Option<OsString>,

    /// Use the configured key for messages whose key the server rejects (401, 403), for the same server and workspace
    #[arg(long, num_args = 0, default_missing_value = "true", hide_short_help = true)]
    rekey_refused: Option<OsString>,

    /// Replay this many messages, then pause; if unset, replay starts at 50 and speeds up while the server keeps up
    #[arg(long, value_name = "N", hide_short_help = true)]
    batch_size: Option<OsString>,

    /// Pause this long after a full batch; if unset, replay starts at 500ms and speeds up while the server keeps up
    #[arg(long, value_name = "DURATION", hide_short_help = true)]
    delay: Option<OsString>,

    /// Limit the store to this size [default: 10GiB]
    #[arg(long, value_name = "SIZE")]
    max_size: Option<OsString>,

    /// Leave this much disk space free; if unset, a tenth of a small disk [default: 256MiB]
    #[arg(long, value_name = "SIZE", hide_short_help = true)]
    free_disk_reserve: Option<OsString>,

    /// When the store is full: refuse or drop_oldest [default: refuse]
    ///
    /// Refuse new writes with a 503, or drop the oldest stored messages; both are counted.
    #[arg(long, value_name = "POLICY")]
    when_full: Option<OsString>,

    /// When space is needed, drop the oldest rejected messages beyond this percentage of the store [default: 25]
    #[arg(long, value_name = "PERCENT", hide_short_help = true)]
    rejected_share: Option<OsString>,

    /// Write rejected messages to this directory as JSON lines before they are dropped to free space [default: none]
    #[arg(long, value_name = "FOLDER", value_hint = clap::ValueHint::DirPath, hide_short_help = true)]
    rejected_export: Option<OsString>,

    /// Acknowledge a stored write after the local commit, or once its copy is in the depot: local or fleet [default: local]
    ///
    /// For machines whose disk is worth nothing. Needs --fleet.
    #[arg(long, value_name = "WHERE", hide_short_help = true)]
    acknowledge: Option<OsString>,

    /// With --acknowledge fleet, while the depot is away: local acknowledges, refuse answers 503 [default: local]
    #[arg(long, value_name = "POLICY", hide_short_help = true)]
    when_depot_away: Option<OsString>,

    /// Seal copies in the depot for these public keys, separated by commas [default: none]
    ///
    /// If unset, for those that fleet.json in the depot names.
    #[arg(long, value_name = "KEYS", hide_short_help = true)]
    fleet_recipients: Option<OsString>,

    /// Also deliver what agents that are gone left in the depot
    ///
    /// Needs --fleet, and the private key of a replayer in the file that OPIK_OFFLINE_FLEET_IDENTITY_FILE names.
    #[arg(long, num_args = 0, default_missing_value = "true", hide_short_help = true)]
    fleet_replay: Option<OsString>,

    /// Drop messages that are older than this [default: none]
    #[arg(long, value_name = "DURATION")]
    max_age: Option<OsString>,

    /// Reject a message that failed on its own this many times [default: 10]
    #[arg(long, value_name = "N", hide_short_help = true)]
    max_attempts: Option<OsString>,

    /// Stream bodies larger than this as sent instead of storing them [default: 500MiB]
    #[arg(long, value_name = "SIZE", hide_short_help = true)]
    max_body_size: Option<OsString>,

    /// Stream bodies larger than this when decoded instead of storing them [default: 512MiB]
    #[arg(long, value_name = "SIZE", hide_short_help = true)]
    max_inflated_size: Option<OsString>,

    /// Refuse attachments larger than this [default: 5GiB]
    #[arg(long, value_name = "SIZE", hide_short_help = true)]
    max_attachment_size: Option<OsString>,

    /// Limit concurrent client connections; beyond it the longest idle one is closed [default: 4096]
    #[arg(long, value_name = "N", hide_short_help = true)]
    max_connections: Option<OsString>,

    /// Limit the memory for bodies of clients and replay; if unset, 256MiB, or less in a small container
    #[arg(long, value_name = "SIZE", hide_short_help = true)]
    memory_budget: Option<OsString>,

    /// Close client connections that are idle for this long [default: 2m]
    #[arg(long, value_name = "DURATION", hide_short_help = true)]
    client_timeout: Option<OsString>,

    /// Present this client certificate (PEM) to the server, for mTLS
    #[arg(long, value_name = "FILE", hide_short_help = true, value_hint = clap::ValueHint::FilePath)]
    client_cert_file: Option<OsString>,

    /// Private key of that certificate, unless it is in the same file
    #[arg(long, value_name = "FILE", hide_short_help = true, value_hint = clap::ValueHint::FilePath)]
    client_key_file: Option<OsString>,

    /// Send the headers in this file to the server, one `Name: value` per line
    #[arg(long, value_name = "FILE", hide_short_help = true, value_hint = clap::ValueHint::FilePath)]
    upstream_headers_file: Option<OsString>,

    /// Timeout for connecting to the server [default: 5s]
    #[arg(long, value_name = "DURATION", hide_short_help = true)]
    connect_timeout: Option<OsString>,

    /// Store a write if the server has not answered within this time [default: 1m35s]
    #[arg(long, value_name = "DURATION", hide_short_help = true)]
    forward_timeout: Option<OsString>,

    /// Retry a held lane after this long: its key is invalid, the server redirects or fails every request [default:
    /// 10s]
    #[arg(long, value_name = "DURATION", hide_short_help = true)]
    retry_interval: Option<OsString>,

    /// Give requests in flight this long to finish when stopping [default: 10s]
    #[arg(long, value_name = "DURATION", hide_short_help = true)]
    shutdown_timeout: Option<OsString>,

    /// Deliver for at most this long after the command has ended [default: 30s]
    #[arg(long, value_name = "DURATION", requires = "command", hide_short_help = true)]
    flush_timeout: Option<OsString>,

    /// Route all OTLP traces of the command to Opik, not only those that already went there
    ///
    /// Sets OTEL_EXPORTER_OTLP_TRACES_ENDPOINT to the agent, even if it had a value. Headers are left unchanged: set
    /// Opik's key, workspace and project in OTEL_EXPORTER_OTLP_TRACES_HEADERS.
    #[arg(long, num_args = 0, default_missing_value = "true", requires = "command", hide_short_help = true)]
    all_otlp_traces: Option<OsString>,

    /// Log format: text or json [default: text]
    #[arg(long, value_name = "FORMAT", hide_short_help = true)]
    log_format: Option<OsString>,

    /// Run this command, with its traces routed through the agent
    #[arg(last = true, value_name = "COMMAND", value_hint = clap::ValueHint::CommandName)]
    command: Vec<OsString>,
}

pub(super) fn run(common: &Common, args: &AgentArgs) -> Result<ExitCode, Failure> {
    let config = configuration(&args.flags(common.flags()))?;
    super::selection::refuse_jsonl(common.format)?;
    if !args.stop {
        refuse_unfit_store(&config)?;
    }
    match (args.detached, args.background, args.stop) {
        (true, ..) => return background::run(common, &config),
        (_, true, _) => return background::start(common, args, &config),
        (_, _, true) => return background::stop(common, &config),
        (false, false, false) => {}
    }
    if let Some((program, arguments)) = args.command.split_first() {
        // The terminal and the variables of a service manager are for the command.
        let log = common.start_logging(&config, Some(LogLevel::Warning))?;
        let limit = translate::raise_files_allowed(&config);
        let (upstream, error) = translate::upstream_settings_or_none(&config);
        if let Some(error) = error {
            // The command runs nevertheless, and what it sends is stored.
            let what = "writes of the command are stored until this is corrected";
            progress::say(&format!("warning: cannot connect to the Opik server, {what}: {error}"));
        }
        let listener = Narrator(Mutex::new(ProgressDisplay::new(common.quiet)));
        let settings = AgentSettings {
            fleet: translate::fleet_use(&config)?,
            fleet_replay: translate::fleet_member(&config)?,
            // It lives as long as its command.
            idle_exit: None,
            ..translate::agent_settings(&config, upstream, None)?
        };
        let (config, listener) = (&config, &listener);
        let wrapped = Wrapped { config, settings, limit, program, arguments, log, exit: exit_with, listener };
        return Ok(ExitCode::from(wrapped::run(wrapped)?));
    }
    let log = common.start_logging(&config, None)?;
    let service_manager = ServiceManager::find(&ProcessEnvironment, std::process::id())?;
    translate::raise_files_allowed(&config);
    let agent = Agent::bind(settings(&config, service_manager)?)?;
    let shutdown = Shutdown::new();
    stop_agent_on_signals(&shutdown, log, exit_interrupted)?;
    background::announce(common, &config, &agent);
    agent.run(&shutdown, None)?;
    Ok(ExitCode::SUCCESS)
}

/// Refuses a path of --db at which no store can be: the agent would run, and protect nothing. Where a variable or a
/// file names it, the agent warns and keeps trying, as with every other obstacle.
fn refuse_unfit_store(config: &Config) -> Result<(), Failure> {
    let path = &config.db.value;
    let is_flag = matches!(config.db.source, Source::Flag { .. });
    let Some(reason) = place::unfit(path).filter(|_| is_flag) else { return Ok(()) };
    let file = shell_word(path.join("opik_messages.db").as_os_str());
    let hint = match path.is_dir() {
        true => format!("name a file in it, with --db {file}; nothing was started"),
        false => "name a file with --db; nothing was started".to_owned(),
    };
    let message = format!("--db {}: no message store can be there: {reason}", path.display());
    Err(Failure::new(Exit::Usage, message, Some(&hint)))
}

/// Returns the settings of an agent without a command.
pub(super) fn settings(config: &Config, service_manager: Option<ServiceManager>) -> Result<AgentSettings, Failure> {
    let upstream = translate::upstream_settings(config)?;
    Ok(AgentSettings {
        fleet: translate::fleet_use(config)?,
        fleet_replay: translate::fleet_member(config)?,
        ..translate::agent_settings(config, upstream, service_manager)?
    })
}

/// Ends the process at once.
fn exit_with(code: u8) {
    std::process::exit(i32::from(code));
}

/// Shows on stderr what a wrapping agent does.
struct Narrator(Mutex<ProgressDisplay>);

impl Narrator {
    fn progress(&self) -> MutexGuard<'_, ProgressDisplay> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WrappedListener for Narrator {
    fn note(&self, text: &str) {
        self.progress().note(text);
    }

    fn flush_started(&self, waiting: u64) {
        self.progress().start(waiting);
    }

    fn flush_progress(&self, done: u64, total: u64) {
        self.progress().at(done, total);
    }

    fn flush_finished(&self) {
        self.progress().finish();
    }
}

impl AgentArgs {
    fn flags(&self, common: Flags) -> Flags {
        Flags {
            listen: self.listen.clone(),
            idle_exit: self.idle_exit.clone(),
            allowed_hosts: self.allowed_hosts.clone(),
            hub: self.hub.clone(),
            hub_token_file: self.hub_token_file.clone(),
            insecure_listen: self.insecure_listen.clone(),
            all_otlp_traces: self.all_otlp_traces.clone(),
            adopt_orphans: self.adopt_orphans.clone(),
            rekey_refused: self.rekey_refused.clone(),
            replay_batch_size: self.batch_size.clone(),
            replay_batch_replay_delay: self.delay.clone(),
            max_size: self.max_size.clone(),
            free_disk_reserve: self.free_disk_reserve.clone(),
            when_full: self.when_full.clone(),
            rejected_share: self.rejected_share.clone(),
            rejected_export: self.rejected_export.clone(),
            acknowledge: self.acknowledge.clone(),
            when_depot_away: self.when_depot_away.clone(),
            fleet_replay: self.fleet_replay.clone(),
            fleet_recipients: self.fleet_recipients.clone(),
            max_age: self.max_age.clone(),
            max_attempts: self.max_attempts.clone(),
            max_body_size: self.max_body_size.clone(),
            max_inflated_size: self.max_inflated_size.clone(),
            max_attachment_size: self.max_attachment_size.clone(),
            max_connections: self.max_connections.clone(),
            memory_budget: self.memory_budget.clone(),
            client_timeout: self.client_timeout.clone(),
            client_cert_file: self.client_cert_file.clone(),
            client_key_file: self.client_key_file.clone(),
            upstream_headers_file: self.upstream_headers_file.clone(),
            connect_timeout: self.connect_timeout.clone(),
            flush_timeout: self.flush_timeout.clone(),
            forward_timeout: self.forward_timeout.clone(),
            retry_interval: self.retry_interval.clone(),
            shutdown_timeout: self.shutdown_timeout.clone(),
            log_format: self.log_format.clone(),
            ..common
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::SETTINGS;

    /// The help states defaults that clap does not know; they have to match the table of settings.
    #[test]
    fn the_help_states_the_actual_defaults() {
        let command = crate::cli::command();
        let agent = command.find_subcommand("agent").expect("agent is a subcommand");
        let mut compared = 0;
        for argument in agent.get_arguments() {
            let flag = argument.get_long().map(|long| format!("--{long}"));
            let Some(setting) = SETTINGS.iter().find(|setting| setting.flag == flag.as_deref()) else { continue };
            let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
            if let Some((_, default)) = help.split_once("[default: ") {
                assert_eq!(default.trim_end_matches(']'), setting.default, "{help}");
                compared += 1;
            }
        }
        assert!(compared >= 10, "only {compared} defaults are stated");
    }
}
