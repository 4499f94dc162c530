//! The filters that `replay`, `inspect` and `purge` share, and the parsers of their values.

use std::time::Duration;

use clap::Args;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::config::server_url::explain;
use crate::config::units::parse_duration;
use crate::config::{ServerUrl, ServerUrlError};
use crate::failure::{Exit, Failure};
use crate::fleet::names::StreamId;
use crate::message::{EntityKey, EntityKind, MessageId, MessageStatus, MessageType, Server};
use crate::printable::name;
use crate::store::{Filter, Store, StoreError};
use crate::terminal::OutputStream;
use crate::terminal::render::{hanging, nothing};

/// Selects messages.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Which messages")]
pub(super) struct SelectionArgs {
    /// Only messages with this status (may be given more than once)
    #[arg(long, value_name = "STATUS", ignore_case = true, value_parser = status(), hide_short_help = true)]
    pub status: Vec<MessageStatus>,

    /// Only rejected messages (--status rejected)
    #[arg(long)]
    pub rejected: bool,

    /// Only messages of this type, such as OtlpTraces
    #[arg(long = "type", value_name = "TYPE", ignore_case = true, value_parser = message_type())]
    #[arg(hide_possible_values = true, long_help = type_help())]
    pub types: Vec<MessageType>,

    /// Only messages of this workspace
    ///
    /// May be given more than once.
    #[arg(long, value_name = "NAME")]
    pub workspace: Vec<String>,

    /// Only messages for this server (the URL that `status` shows)
    ///
    /// May be given more than once.
    #[arg(long, value_name = "URL", value_parser = server, hide_short_help = true)]
    pub server: Vec<Server>,

    /// Only messages that name this project
    ///
    /// May be given more than once.
    #[arg(long, value_name = "NAME")]
    pub project: Vec<String>,

    /// Only the message with this id
    ///
    /// May be given more than once.
    #[arg(long = "id", value_name = "ID", value_parser = id)]
    pub ids: Vec<i64>,

    /// Only messages about this trace or its spans
    ///
    /// May be given more than once.
    #[arg(long, value_name = "UUID")]
    pub trace: Vec<String>,

    /// Only messages older than this, such as 2h or 7d
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub older_than: Option<Duration>,

    /// Only messages accepted within this time, such as 15m
    #[arg(long, value_name = "DURATION", value_parser = duration, hide_short_help = true)]
    pub newer_than: Option<Duration>,
}

impl SelectionArgs {
    /// Returns the filter of the store.
    pub(super) fn filter(&self, now_ms: i64) -> Filter {
        let mut statuses = self.status.clone();
        if self.rejected && !statuses.contains(&MessageStatus::Rejected) {
            statuses.push(MessageStatus::Rejected);
        }
        Filter {
            statuses,
            types: self.types.clone(),
            workspaces: self.workspace.clone(),
            servers: self.server.clone(),
            projects: self.project.clone(),
            ids: self.ids.iter().copied().map(MessageId).collect(),
            // An id of 32 digits may be Opik's or OpenTelemetry's, and people copy it from either: it selects both.
            entities: (self.trace.iter())
                .flat_map(|id| [EntityKind::Trace, EntityKind::OtelTrace].map(|kind| EntityKey::new(kind, id)))
                .collect(),
            accepted_before_ms: self.older_than.map(|age| before(now_ms, age)),
            accepted_since_ms: self.newer_than.map(|age| before(now_ms, age)),
        }
    }

    /// Returns why no message is selected.
    ///
    /// # Errors
    ///
    /// Fails if the store can't be read.
    pub(super) fn nothing(&self, store: &dyn Store) -> Result<String, StoreError> {
        if let Some(unknown) = self.unknown(store)? {
            return Ok(unknown);
        }
        Ok(nothing(store.backlog(&Filter::default())?.messages() == 0).to_owned())
    }

    /// Returns which selected name no stored message has, and which names are stored.
    ///
    /// # Errors
    ///
    /// Fails if the store can't be read.
    pub(super) fn unknown(&self, store: &dyn Store) -> Result<Option<String>, StoreError> {
        let stored = store.backlog(&Filter::default())?;
        let workspaces = names(stored.groups.iter().map(|group| group.workspace.as_str()));
        if let Some(unknown) = self.workspace.iter().find(|name| !workspaces.contains(&name.as_str())) {
            return Ok(no_such("workspace", unknown, &workspaces));
        }
        let stored_servers =
            names(stored.groups.iter().filter_map(|group| group.server.as_ref().map(Server::base_url)));
        if let Some(unknown) = self.server.iter().find(|server| !stored_servers.contains(&server.base_url())) {
            return Ok(no_such("server", unknown.base_url(), &stored_servers));
        }
        let types = names(stored.groups.iter().map(|group| group.message_type.name().trim_end_matches("Message")));
        let is_stored = |wanted: &MessageType| stored.groups.iter().any(|group| group.message_type == *wanted);
        let unknown = self.types.iter().find(|wanted| !is_stored(wanted));
        Ok(unknown.and_then(|unknown| no_such("type", unknown.name().trim_end_matches("Message"), &types)))
    }
}

/// Maximum number of names in a sentence.
const NAMES_MAX: usize = 10;

fn before(now_ms: i64, age: Duration) -> i64 {
    now_ms.saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX))
}

/// Returns each name once, in order.
fn names<'a>(all: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut names: Vec<&str> = all.collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Returns that no stored message has this name, and which names are stored; `None` if there are none.
fn no_such(noun: &str, unknown: &str, stored: &[&str]) -> Option<String> {
    if stored.is_empty() {
        return None;
    }
    let listed: Vec<String> = stored.iter().take(NAMES_MAX).map(|stored| name(stored)).collect();
    let more = match stored.len().saturating_sub(NAMES_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(format!("no message of {noun} {} is stored; there are: {}{more}", name(unknown), listed.join(", ")))
}

/// Parses a duration such as `500ms`, `10s` or `7d`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|error| error.to_string())
}

/// Parses the base URL of a server.
pub(super) fn server(text: &str) -> Result<Server, String> {
    let url: ServerUrl = text.parse().map_err(|error: ServerUrlError| explain(text, error))?;
    Ok(Server::new(&url.to_string()))
}

/// Parses the id of a message.
pub(super) fn id(text: &str) -> Result<i64, String> {
    text.parse().map_err(|_| "expected a number, as `opik-offline inspect` lists it".to_owned())
}

/// Parses the id of a stream.
pub(super) fn stream(text: &str) -> Result<StreamId, String> {
    StreamId::parse(text)
        .ok_or_else(|| "expected the id of a stream, as `opik-offline status --fleet URL` lists it".to_owned())
}

/// Parses a number of messages.
pub(super) fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| "expected a whole number".to_owned())
}

/// Parses a number of messages, at least one.
pub(super) fn number_from_one(text: &str) -> Result<u64, String> {
    number(text).ok().filter(|number| *number > 0).ok_or_else(|| "expected a whole number from 1".to_owned())
}

/// Parses a status that a stored message can have.
fn status() -> impl TypedValueParser<Value = MessageStatus> {
    let words = MessageStatus::STORED.map(|status| PossibleValue::new(status.word()).alias(status.name()));
    PossibleValuesParser::new(words)
        .try_map(|text| MessageStatus::from_name(&text.to_ascii_lowercase()).ok_or("no status of a stored message"))
}

/// Lists every type for `--help` and the man page; `-h` has to fit on a screen.
fn type_help() -> String {
    let names: Vec<&str> = MessageType::ALL.iter().map(|it| it.name().trim_end_matches("Message")).collect();
    format!("Only messages of this type (may be given more than once). Case-insensitive, one of {}", names.join(", "))
}

/// Suggests types for an unknown type name; there are too many to list them all.
pub(super) fn suggest_types(error: &mut clap::Error) {
    let is_type =
        matches!(error.get(ContextKind::InvalidArg), Some(ContextValue::String(arg)) if arg.starts_with("--type "));
    if !is_type || error.kind() != ErrorKind::InvalidValue {
        return;
    }
    let Some(ContextValue::String(typed)) = error.get(ContextKind::InvalidValue) else { return };
    let typed = typed.to_ascii_lowercase();
    let names = MessageType::ALL.iter().map(|it| it.name().trim_end_matches("Message"));
    let near: Vec<&str> =
        names.filter(|name| !typed.is_empty() && name.to_ascii_lowercase().contains(&typed)).collect();
    let mut tips = Vec::new();
    let tip = |text: &str| hanging(text, OutputStream::Err.columns(), "  tip: ".len()).into();
    if !near.is_empty() {
        tips.push(tip(&format!("types with that in their name: {}", near.join(", "))));
        error.remove(ContextKind::SuggestedValue);
    }
    tips.push(tip("`opik-offline inspect --help` lists all types, `opik-offline status` lists the stored ones"));
    error.remove(ContextKind::ValidValue);
    error.insert(ContextKind::Suggested, ContextValue::StyledStrs(tips));
}

/// Parses a message type by its name, with or without the suffix `Message`.
fn message_type() -> impl TypedValueParser<Value = MessageType> {
    let names = MessageType::ALL.iter().map(|message_type| {
        let name = message_type.name();
        PossibleValue::new(name.trim_end_matches("Message")).alias(name)
    });
    PossibleValuesParser::new(names).try_map(|text| MessageType::from_name(&text).ok_or("no message type"))
}

/// Rejects a format that the command does not support.
pub(super) fn refuse_jsonl(format: crate::terminal::render::OutputFormat) -> Result<(), Failure> {
    match format {
        crate::terminal::render::OutputFormat::Jsonl => Err(Failure::new(
            Exit::Usage,
            "--format jsonl is for lists, and this command has a single result",
            Some("use --format json"),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[test]
    fn a_selection_becomes_a_filter() {
        let selection = SelectionArgs {
            rejected: true,
            ids: vec![7],
            older_than: Some(Duration::from_secs(60)),
            ..SelectionArgs::default()
        };
        let filter = selection.filter(100_000);
        assert_eq!(filter.statuses, [MessageStatus::Rejected]);
        assert_eq!(filter.ids, [MessageId(7)]);
        assert_eq!(filter.accepted_before_ms, Some(40_000));
    }

    #[test]
    fn values_are_parsed_case_insensitively_and_unknown_ones_are_rejected() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            selection: SelectionArgs,
        }
        let read = |args: &[&str]| Line::try_parse_from(args).map(|line| line.selection);
        let selection =
            read(&["x", "--status", "Rejected", "--type", "createspansbatch", "--type", "CreateSpanMessage"]);
        let selection = selection.expect("it can be parsed");
        assert_eq!(selection.status, [MessageStatus::Rejected]);
        assert_eq!(selection.types, [MessageType::CreateSpansBatch, MessageType::CreateSpan]);
        for (typed, status) in [
            ("waiting", MessageStatus::Failed),
            ("failed", MessageStatus::Failed),
            ("SENDING", MessageStatus::Registered),
            ("registered", MessageStatus::Registered),
        ] {
            let selection = read(&["x", "--status", typed]).expect("a status has a word for people and a name");
            assert_eq!(selection.status, [status], "{typed}");
        }
        assert!(read(&["x", "--status", "delivered"]).is_err(), "a delivered message is not stored");
        assert!(read(&["x", "--type", "span"]).is_err());
    }
}
