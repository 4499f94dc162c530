//! `opik-offline agent`

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Args;

use super::{Common, Failure, configuration, exit_interrupted, translate, wrapped};
use crate::agent::files::{self, SoftLimit};
use crate::agent::{Agent, AgentSettings};
use crate::config::{Config, Flags, LogLevel, ProcessEnvironment, ServiceManager, temp_dir};
use crate::intake::IntakeLimits;
use crate::intake::workers::Workers;
use crate::replay::ReplaySettings;
use crate::sdk::adoption::Adoption;
use crate::shutdown::Shutdown;
use crate::signals::stop_agent_on_signals;
use crate::store::Filter;
use crate::upstream::UpstreamSettings;

const AFTER_HELP: &str = "\
Examples:
  Run an application with an agent of its own, which delivers everything before it ends:
    opik-offline agent -- python app.py
  In CI, where nobody wants to wait:
    opik-offline agent --flush-timeout 5s --db .opik/messages.db -- pytest
  Stand in front of a local Opik server:
    opik-offline agent --upstream http://127.0.0.1:5173/api
  Let a Python or TypeScript application use it:
    OPIK_URL_OVERRIDE=http://127.0.0.1:6745/api python app.py
  Deliver what killed Python processes left, with no change of the applications:
    opik-offline agent --adopt-orphans

Wrapped command:
  With a command after -- the agent listens on a free port of this machine, unless a flag, the environment or a file \
names an address; where an agent that stays has that address, it keeps it unless a flag names it. The command finds \
OPIK_URL_OVERRIDE set to the agent, and so are other variables that lead to the same server: \
OPIK_GUARDRAILS_URL_OVERRIDE, OPIK_URL, OPIK_BASE_URL, OPIK_API_BASE_URL and COMET_URL_OVERRIDE. Where a proxy is \
configured the agent's address is added to NO_PROXY. The agent itself sends to the server that --upstream, \
OPIK_OFFLINE_UPSTREAM or OPIK_URL_OVERRIDE name.
  Of OpenTelemetry only what went to the Opik server is led through the agent, by OTEL_EXPORTER_OTLP_TRACES_ENDPOINT and \
OTEL_EXPORTER_OTLP_ENDPOINT. A variable that leads to something else, such as a collector, stays as it is, and one that is \
unset stays unset. --all-otlp-traces leads all traces to Opik, and neither metrics nor logs. The agent takes OTLP over \
HTTP, not gRPC.
  Signals are passed on to the command, except those that the terminal sends to both. The agent ends after the command, \
with its exit code, or 128 and the number of the signal that ended it. What is stored by then is delivered for up to \
--flush-timeout; while the server is away nobody waits. What remains stays stored, and `opik-offline replay` or the next \
agent delivers it. Ctrl-C ends that as well.
  Only warnings are logged to standard error, unless -v or OPIK_CONSOLE_LOGGING_LEVEL ask for more. -q leaves out the \
lines at the start and the end, too.

Exit codes:
  0    Stopped as asked
  1    It could not run
  2    Wrong usage or configuration, or the address is taken
  126  The command after -- can't be executed
  127  There is no such command
  130  A second signal ended it at once";

/// Run the agent: pass on, store while the server is away, deliver afterwards
///
/// With a command after -- it runs the command, leads its traces through the agent, and ends with it.
///
/// It runs in the foreground and stops on SIGINT or SIGTERM: requests in progress finish or are stored. What is stored is
/// delivered by the next agent on the same store, or by `opik-offline replay`. SIGHUP makes it open its log file again.
#[derive(Args, Debug)]
#[command(after_long_help = AFTER_HELP)]
pub struct AgentArgs {
    /// Listen on this address [default: 127.0.0.1:6745]
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<OsString>,

    /// Answer to these hosts too, and take requests of web pages of these origins [default: none]
    ///
    /// By default the agent answers to addresses and names of its own only, and takes no requests of web pages that it
    /// does not serve. Entries are separated by commas: agent.example.org, *.example.org, localhost:5173, or
    /// https://opik.example.org for a page alone.
    #[allow(rustdoc::bare_urls, reason = "a terminal shows it as it is")]
    #[arg(long, value_name = "HOSTS", hide_short_help = true)]
    allowed_hosts: Option<OsString>,

    /// Listen beyond this machine without asking for an intake token
    #[arg(long, num_args = 0, default_missing_value = "true", hide_short_help = true)]
    insecure_listen: Option<OsString>,

    /// Take in what killed Python processes leave, and deliver it
    ///
    /// It looks into the temporary folder, and deletes each file when all that is in it is in the store.
    #[arg(long, num_args = 0, default_missing_value = "true")]
    adopt_orphans: Option<OsString>,

    /// Give messages whose key the server refuses (401, 403) the configured key, for the same server and workspace
    #[arg(long, num_args = 0, default_missing_value = "true", hide_short_help = true)]
    rekey_refused: Option<OsString>,

    /// Replay this many messages, then pause; unset, replay starts at 50 and speeds up while the server keeps up
    #[arg(long, value_name = "N", hide_short_help = true)]
    batch_size: Option<OsString>,

    /// Pause this long after a full batch; unset, replay starts at 500ms and speeds up while the server keeps up
    #[arg(long, value_name = "DURATION", hide_short_help = true)]
    delay: Option<OsString>,

    /// Let the store take this much space at most [default: 10GiB]
    #[arg(long, value_name = "SIZE")]
    max_size: Option<OsString>,

    /// Leave this much space on the disk; unset, a tenth of a small one [default: 256MiB]
    #[arg(long, value_name = "SIZE", hide_short_help = true)]
    free_disk_reserve: Option<OsString>,

    /// When the store is full: refuse or drop_oldest [default: refuse]
    ///
    /// Refuse new writes with a 503, or drop the oldest stored messages; either way it is counted.
    #[arg(long, value_name = "POLICY")]
    when_full: Option<OsString>,

    /// When room is needed, drop the oldest rejected messages beyond this share of the store, in percent [default: 25]
    #[arg(long, value_name = "PERCENT", hide_short_help = true)]
    rejected_share: Option<OsString>,

    /// Write rejected messages to this folder before they are dropped to make room, as JSON lines [default: none]
    #[arg(long, value_name = "FOLDER", value_hint = clap::ValueHint::DirPath, hide_short_help = true)]
    rejected_export: Option<OsString>,

    /// Drop messages that wait longer than this [default: none]
    #[arg(long, value_name = "DURATION")]
    max_age: Option<OsString>,

    /// Reject a message that failed alone this many times [default: 10]
    #[arg(long, value_name = "N", hide_short_help = true)]
    max_attempts: Option<OsString>,

    /// Keep no body larger than this as sent: it streams through [default: 500MiB]
    #[arg(long, value_name = "SIZE", hide_short_help = true)]
    max_body_size: Option<OsString>,

    /// Keep no body larger than this when decoded: it streams through [default: 512MiB]
    #[arg(long, value_name = "SIZE", hide_short_help = true)]
    max_inflated_size: Option<OsString>,

    /// Refuse files of attachments larger than this [default: 5GiB]
    #[arg(long, value_name = "SIZE", hide_short_help = true)]
    max_attachment_size: Option<OsString>,

    /// Take this many connections of clients at once; past it the longest idle one is closed [default: 4096]
    #[arg(long, value_name = "N", hide_short_help = true)]
    max_connections: Option<OsString>,

    /// Let bodies take this much memory, of clients and of replay; unset, 256MiB, and less in a small container
    #[arg(long, value_name = "SIZE", hide_short_help = true)]
    memory_budget: Option<OsString>,

    /// Close the connection of a client that is silent for this long [default: 2m]
    #[arg(long, value_name = "DURATION", hide_short_help = true)]
    client_timeout: Option<OsString>,

    /// Show this certificate to the server (mTLS), a PEM file
    #[arg(long, value_name = "FILE", hide_short_help = true, value_hint = clap::ValueHint::FilePath)]
    client_cert_file: Option<OsString>,

    /// The private key of that certificate, where it is not in the same file
    #[arg(long, value_name = "FILE", hide_short_help = true, value_hint = clap::ValueHint::FilePath)]
    client_key_file: Option<OsString>,

    /// Send the headers in this file to the server, one `Name: value` a line
    #[arg(long, value_name = "FILE", hide_short_help = true, value_hint = clap::ValueHint::FilePath)]
    upstream_headers_file: Option<OsString>,

    /// Give up connecting to the server after this long [default: 5s]
    #[arg(long, value_name = "DURATION", hide_short_help = true)]
    connect_timeout: Option<OsString>,

    /// Store a write that the server has not answered after this long [default: 1m35s]
    #[arg(long, value_name = "DURATION", hide_short_help = true)]
    forward_timeout: Option<OsString>,

    /// Try a held lane again after this long: no valid key, a redirect, a server that fails at everything [default: 10s]
    #[arg(long, value_name = "DURATION", hide_short_help = true)]
    retry_interval: Option<OsString>,

    /// Let requests in progress finish for this long when stopping [default: 10s]
    #[arg(long, value_name = "DURATION", hide_short_help = true)]
    shutdown_timeout: Option<OsString>,

    /// Deliver for this long after the command has ended [default: 30s]
    #[arg(long, value_name = "DURATION", requires = "command")]
    flush_timeout: Option<OsString>,

    /// Lead all OTLP traces of the command to Opik, not only those that went there before
    ///
    /// OTEL_EXPORTER_OTLP_TRACES_ENDPOINT names the agent then, whatever it was. Headers stay as they are: name Opik's key,
    /// workspace and project in OTEL_EXPORTER_OTLP_TRACES_HEADERS.
    #[arg(long, num_args = 0, default_missing_value = "true", requires = "command", hide_short_help = true)]
    all_otlp_traces: Option<OsString>,

    /// Write log lines as text or json [default: text]
    #[arg(long, value_name = "FORMAT", hide_short_help = true)]
    log_format: Option<OsString>,

    /// Run this command, its traces led through the agent
    #[arg(last = true, value_name = "COMMAND", value_hint = clap::ValueHint::CommandName)]
    command: Vec<OsString>,
}

pub fn run(common: &Common, args: &AgentArgs) -> Result<ExitCode, Failure> {
    let config = configuration(&args.flags(common.flags()))?;
    super::selection::refuse_jsonl(common.format)?;
    if !args.command.is_empty() {
        // The terminal is the command's, and so is what a service manager said to us.
        let log = common.start_logging(&config, Some(LogLevel::Warning))?;
        let limit = raise_files_allowed(&config);
        let (upstream, failure) = translate::upstream_settings_or_none(&config);
        if let Some(failure) = failure {
            // The command runs all the same, and what it sends is kept.
            let what = "what the command sends is stored until this is corrected";
            crate::terminal::progress::say(&format!("warning: no way to the Opik server, {what}: {}", failure.message));
        }
        return wrapped::run(common, &config, settings(&config, upstream, None)?, (limit, &args.command), log);
    }
    let log = common.start_logging(&config, None)?;
    let service_manager = ServiceManager::find(&ProcessEnvironment, std::process::id())?;
    raise_files_allowed(&config);
    let settings = settings(&config, translate::upstream_settings(&config)?, service_manager)?;
    let agent = Agent::bind(settings)?;
    let shutdown = Shutdown::new();
    stop_agent_on_signals(&shutdown, log, exit_interrupted)?;
    agent.run(&shutdown, None)?;
    Ok(ExitCode::SUCCESS)
}

impl AgentArgs {
    fn flags(&self, common: Flags) -> Flags {
        Flags {
            listen: self.listen.clone(),
            allowed_hosts: self.allowed_hosts.clone(),
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

fn settings(
    config: &Config,
    upstream_settings: UpstreamSettings,
    service_manager: Option<ServiceManager>,
) -> Result<AgentSettings, Failure> {
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
        store_limits: translate::store_limits(config),
        store_rejected: translate::rejected_room(config),
        store_keys: translate::store_keys(config)?,
        max_age: config.max_age.value,
        upstream: upstream_settings,
        asks_as: translate::lane(config),
        upstream_address: (upstream.host().to_owned(), upstream.port()),
        monitor: translate::monitor(config),
        replay: ReplaySettings {
            filter: Filter::default(),
            limit: None,
            pace: translate::pace(config),
            retry_interval: config.retry_interval.value,
            attempts_max: config.max_attempts.value,
        },
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
        memory_budget: translate::memory_budget(config),
        shutdown_timeout: config.shutdown_timeout.value,
        rekey: config.rekey_refused.value.then(|| translate::lane(config)),
        adopt: config.adopt_orphans.value.then(|| Adoption {
            temp_dir: temp_dir(&ProcessEnvironment),
            lane: translate::lane(config),
            listen: config.listen.value,
        }),
        service_manager,
    })
}

/// Raises the soft limit on open files, and says so where there are too few for all that the agent could do.
fn raise_files_allowed(config: &Config) -> SoftLimit {
    let (wanted, workers) = (u64::from(config.max_connections.value), Workers::count() as u64);
    let limit = SoftLimit::raise(wanted, workers);
    if let Some(problem) = files::problem(files::allowed(), wanted, workers) {
        tracing::warn!(target: "intake", "few open files for this agent: {problem}; {}", files::hint(wanted, workers));
    }
    limit
}

#[cfg(test)]
mod tests {
    use crate::config::SETTINGS;

    /// The help says each default in words that clap does not know; they must be those of the table of settings.
    #[test]
    fn the_help_tells_the_defaults_that_are_in_force() {
        let command = crate::cli::command();
        let agent = command.find_subcommand("agent").expect("there is an agent");
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
        assert!(compared >= 10, "only {compared} defaults are told");
    }
}
