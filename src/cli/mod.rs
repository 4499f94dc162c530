//! The command line: its definition, and the dispatch to one thin command each.
//!
//! clap parses, [`crate::config`] resolves, and nothing is opened before both are done. Results go to stdout; notes,
//! progress and logs go to stderr. Values of settings are passed on as typed, so that an invalid one is reported like
//! an invalid one from any other source: key, value, source.
//!
//! A command parses its arguments, calls a room, shows the result and picks the exit code. It starts no thread,
//! recovers no store and decides nothing else.

mod agent;
mod background;
mod dial;
mod fleet;
mod healthcheck;
mod inspect;
mod moving;
mod purge;
mod reassign;
mod replay;
mod salvage;
mod selection;
mod status;

use std::ffi::OsString;
use std::io::BufRead as _;
use std::process::ExitCode;

use clap::builder::PossibleValue;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, ColorChoice, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::completion;
use crate::config::units::is_duration_unit;
use crate::config::{Config, Flags, LogLevel, ProcessEnvironment, is_no_color_set};
pub use crate::failure::{Exit, Failure};
use crate::hint;
use crate::printable::{self, shell_word};
use crate::shutdown::Shutdown;
use crate::signals;
use crate::telemetry::log::{self, LogFile};
use crate::terminal::progress;
use crate::terminal::render::{OutputFormat, Renderer, hanging};
use crate::terminal::{OutputStream, Shown};
use crate::translate;
use crate::upstream::Upstream;

/// Prints values for the shell's completions. It is not part of the definition, because people don't type it.
const COMPLETION_COMMAND: &str = "__values";
/// The flag that prints what a shell reads to complete our commands. It needs no command.
const COMPLETIONS_FLAG: &str = "--completions";

const LONG_ABOUT: &str = "\
Keep Opik traces through an outage.

`opik-offline agent` runs beside an application as its Opik server: it forwards everything while the real server is \
available, stores writes while it is not, and delivers them afterwards, in order. The other commands inspect or manage \
the store, with or without an agent running.";

const AFTER_HELP: &str = "\
Examples:
  Run an application with its own agent:
    opik-offline agent -- python app.py
  Run an agent in front of a local Opik server:
    opik-offline agent --upstream http://127.0.0.1:5173/api
  Point an application at it:
    OPIK_URL_OVERRIDE=http://127.0.0.1:6745/api python app.py
  See which messages are waiting for the server:
    opik-offline status
  Complete commands in bash; also zsh, fish, powershell and elvish:
    . <(opik-offline --completions bash)

Exit codes:
  0    Done
  1    Failure
  2    Invalid usage or configuration, or no store at --db; nothing was done
  3    The Opik server can't be reached or has a problem, or what answers is not Opik
  4    Messages remain or were rejected, or a threshold was exceeded
  5    The server rejects the API key or the workspace
  6    The address of the agent is in use; a later start may succeed
  126  agent -- COMMAND: the command can't be executed
  127  agent -- COMMAND: the command was not found
  130  Interrupted

Output for programs:
  --format json and --format yaml write one document with a schema_version. Within a version, fields are only added; \
the JSON Schemas are in the schemas directory of the source, and in /usr/share/doc/opik-offline/schemas in the Debian \
package.

Settings:
  Precedence: flags, then environment variables (OPIK_..., OPIK_OFFLINE_...), then ~/.opik.config, then \
opik-offline/config.yaml in the user's configuration directory, then the defaults. `opik-offline healthcheck` shows \
every setting with its source.";

/// Keep Opik traces through an outage
#[derive(Parser, Debug)]
#[command(name = "opik-offline", version, long_about = LONG_ABOUT, after_long_help = AFTER_HELP)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    /// Print what this shell reads to complete commands
    #[arg(long, value_name = "SHELL", value_parser = completion::SHELLS, hide_short_help = true)]
    completions: Option<String>,
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Options of every command.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Common options")]
struct Common {
    /// Use this message store
    ///
    /// The default is opik-offline/opik_messages.db in the user's data directory, such as ~/.local/share.
    #[arg(long, value_name = "PATH", global = true, value_hint = clap::ValueHint::FilePath)]
    db: Option<OsString>,

    /// Use this Opik server, such as http://127.0.0.1:5173/api
    ///
    /// The default is the server that the application uses: OPIK_URL_OVERRIDE, ~/.opik.config, or Opik Cloud.
    #[arg(long, value_name = "URL", global = true, value_hint = clap::ValueHint::Url)]
    upstream: Option<OsString>,

    /// Keep copies in this depot, such as s3://BUCKET/PREFIX
    ///
    /// Copies of stored messages outlive their machine there, and `replay --fleet` delivers what their agents can't.
    /// Credentials come from the environment or the platform, as for the provider's own tools: AWS_ACCESS_KEY_ID,
    /// AWS_ENDPOINT_URL, AZURE_STORAGE_ACCOUNT_NAME, GOOGLE_APPLICATION_CREDENTIALS and the like. Also gs://, az:// and
    /// file:///FOLDER.
    #[arg(long, value_name = "URL", global = true, value_hint = clap::ValueHint::Url)]
    fleet: Option<OsString>,

    /// Reach the depot of the fleet without TLS, and not only on this machine
    #[arg(long, num_args = 0, default_missing_value = "true", global = true, hide_short_help = true)]
    fleet_insecure: Option<OsString>,

    /// Write results in this format
    #[arg(short = 'o', long, value_name = "FORMAT", global = true, value_enum, default_value_t = OutputFormat::Table)]
    format: OutputFormat,

    /// Print only the requested result and errors
    ///
    /// Prints no notes, no progress and no summary.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,

    /// Log more to standard error
    #[arg(short, long, global = true, hide_short_help = true)]
    verbose: bool,

    /// Disable colours, like NO_COLOR in the environment
    #[arg(long, global = true, hide_short_help = true)]
    no_color: bool,
}

impl ValueEnum for OutputFormat {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Table, Self::Wide, Self::Json, Self::Jsonl, Self::Yaml]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::Table => PossibleValue::new("table").help("Tables and sentences for people"),
            Self::Wide => PossibleValue::new("wide").help("Tables with more columns (`inspect` only)"),
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
    Replay(Box<replay::ReplayArgs>),
    Inspect(inspect::InspectArgs),
    Purge(purge::PurgeArgs),
}

/// Returns the definition of the command line, for man pages and completions.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the command line of this process and returns its exit code.
pub fn run() -> ExitCode {
    std::panic::set_hook(Box::new(progress::say_panic));
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == COMPLETION_COMMAND) {
        show_completions(arguments.collect());
        return ExitCode::SUCCESS;
    }
    let cli = match parsed() {
        Ok(cli) => cli,
        Err(mut error) => {
            make_harmless(&mut error);
            selection::suggest_types(&mut error);
            suggest_agent(&mut error, &std::env::args_os().collect::<Vec<_>>());
            suggest_one_word(&mut error);
            print(&error);
            return ExitCode::from(if error.use_stderr() { Exit::Usage } else { Exit::Done } as u8);
        }
    };
    ended(cli.dispatch())
}

/// Returns the exit code of the process, after it reported a failure.
fn ended(result: Result<ExitCode, Failure>) -> ExitCode {
    match result {
        Ok(code) => code,
        Err(failure) => {
            if !failure.message.is_empty() {
                failure.print();
            }
            ExitCode::from(failure.exit as u8)
        }
    }
}

/// Writes what a shell reads to complete our commands.
fn show_script(shell: &str) -> Result<ExitCode, Failure> {
    let script = completion::script(shell).unwrap_or_default();
    let mut shown = Shown::default();
    shown.add_as_sent(script);
    OutputStream::Out.show(&shown)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes values for the shell's completions, one a line; a description follows after a tab.
fn show_completions(arguments: Vec<OsString>) {
    let mut shown = Shown::default();
    for (value, description) in completion::values(arguments) {
        shown.add_value(&value, description.as_deref());
    }
    // If the shell has closed the pipe, it needs no values.
    let _ = OutputStream::Out.show(&shown);
}

/// Parses the command line. `--no-color` also applies to clap's help and errors.
fn parsed() -> Result<Cli, clap::Error> {
    let own: Vec<OsString> = std::env::args_os().take_while(|argument| argument != "--").collect();
    let has = |is_it: fn(&str) -> bool| own.iter().filter_map(|argument| argument.to_str()).any(is_it);
    let color = if has(|argument| argument == "--no-color") { ColorChoice::Never } else { ColorChoice::Auto };
    let is_alone = has(|argument| argument.split('=').next() == Some(COMPLETIONS_FLAG));
    let mut command = Cli::command().color(color).subcommand_required(!is_alone);
    let mut matches = command.try_get_matches_from_mut(std::env::args_os())?;
    Cli::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
}

/// Escapes line breaks and control characters in what was typed: a script may have got it from elsewhere.
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

/// Prints clap's output: help, the version, or what is wrong with the command line.
fn print(error: &clap::Error) {
    let text = error.render().to_string();
    let harmless = Shown::lines(&text);
    // The only possible error is a closed pipe.
    let _ = match harmless.as_str() == text {
        true => error.print(),
        false => OutputStream::Err.show(&harmless),
    };
}

/// Suggests what is missing in `agent python app.py` and in `opik-offline python app.py`.
fn suggest_agent(error: &mut clap::Error, arguments: &[OsString]) {
    let (unknown, agent) = match error.kind() {
        ErrorKind::UnknownArgument if arguments.iter().any(|argument| argument == "agent") => {
            (error.get(ContextKind::InvalidArg), "")
        }
        ErrorKind::InvalidSubcommand => (error.get(ContextKind::InvalidSubcommand), " agent"),
        _ => return,
    };
    // A subcommand with a typing mistake is offered its neighbour.
    let has_neighbour = error.get(ContextKind::SuggestedSubcommand).is_some();
    let Some(ContextValue::String(program)) = unknown.filter(|_| !has_neighbour) else { return };
    let at = arguments.iter().position(|argument| argument == program.as_str());
    let Some(at) = at.filter(|at| *at > 0 && !program.starts_with('-')) else { return };
    let words = |words: &[OsString]| words.iter().map(|word| format!(" {}", shell_word(word))).collect::<String>();
    let (options, command) = (words(&arguments[1..at]), words(&arguments[at..]));
    let tip = format!("put a command to run after two dashes: opik-offline{options}{agent} --{command}");
    error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
}

/// Suggests one word for a duration of two, as in `--timeout 5 min`.
fn suggest_one_word(error: &mut clap::Error) {
    let Some(ContextValue::String(unit)) = error.get(ContextKind::InvalidArg) else { return };
    if error.kind() == ErrorKind::UnknownArgument && is_duration_unit(unit) {
        let tip = format!("write a duration as one word, such as 5{unit}");
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    }
}

impl Cli {
    fn dispatch(self) -> Result<ExitCode, Failure> {
        let command = match (&self.completions, &self.command) {
            (None, Some(command)) => command,
            (Some(shell), None) => return show_script(shell),
            (_, _) => {
                let message = format!("{COMPLETIONS_FLAG} needs no command");
                return Err(Failure::new(Exit::Usage, message, Some("leave the command out")));
            }
        };
        signals::survive_size_limits()?;
        let done = match command {
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
        Flags {
            db: self.db.clone(),
            upstream: self.upstream.clone(),
            fleet: self.fleet.clone(),
            fleet_insecure: self.fleet_insecure.clone(),
            ..Flags::default()
        }
    }

    fn renderer(&self) -> Renderer {
        Renderer::new(self.format, self.is_colored(OutputStream::Out))
    }

    /// Returns whether a command prints what it did; programs that ask for JSON or YAML always get a result.
    fn prints_summary(&self) -> bool {
        !self.quiet || !self.format.is_for_people()
    }

    /// Returns whether a stream is coloured: it is a terminal, and colours are not disabled (<https://no-color.org>).
    fn is_colored(&self, stream: OutputStream) -> bool {
        !self.no_color && !is_no_color_set(&ProcessEnvironment) && stream.is_terminal()
    }

    /// Starts logging and returns the log file. The flags override the configured level.
    fn start_logging(&self, config: &Config, default_level: Option<LogLevel>) -> Result<LogFile, Failure> {
        let configured = &config.console_logging_level;
        let level = match default_level {
            _ if self.verbose => LogLevel::Debug,
            _ if self.quiet => LogLevel::Error,
            Some(level) if !configured.is_set() => level,
            _ => configured.value,
        };
        log::init(&translate::log_settings(config, level, self.is_colored(OutputStream::Err))).map_err(Failure::from)
    }
}

/// Returns a question as it is shown on a terminal, broken between words; the answer is typed behind it.
fn question(text: &str) -> Shown {
    Shown::lines(&hanging(&printable::line(text), OutputStream::Err.columns(), 0))
}

/// Asks a question on a terminal; fails with `refused` unless the answer is yes.
fn confirm(question: &Shown, refused: Failure) -> Result<(), Failure> {
    OutputStream::Err.show(question)?;
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
    let config = Config::resolve(flags, &ProcessEnvironment)?;
    hint::repeat(translate::options_in_force(&config));
    Ok(config)
}

/// Requests a clean shutdown on the first signal that asks for one, and ends the process on the second.
fn stop_on_signals(shutdown: &Shutdown) -> Result<(), Failure> {
    signals::stop_on_signals(shutdown, exit_interrupted).map_err(Failure::from)
}

/// Ends the process at once, as interrupted.
fn exit_interrupted() {
    std::process::exit(i32::from(Exit::Interrupted as u8));
}

/// Returns connections to the server.
fn upstream(config: &Config) -> Result<Upstream, Failure> {
    Ok(Upstream::new(&translate::upstream_settings(config)?).asking_as(translate::lane(config)))
}

/// Returns connections to the server for a command that works without one; with unusable settings, requests fail.
fn upstream_or_none(config: &Config) -> Upstream {
    Upstream::new(&translate::upstream_settings_or_none(config).0).asking_as(translate::lane(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_exit_code_is_in_the_manual() {
        let manual = command().get_after_long_help().map(ToString::to_string).unwrap_or_default();
        for exit in Exit::ALL {
            let row = format!("\n  {:<5}", exit as u8);
            assert!(manual.contains(&row), "the manual does not list {exit:?}:\n{manual}");
        }
    }
}
