//! A selection as the flags of the command line, for records that people read. Parsing them again selects the same.

use super::names::StreamId;
use crate::printable::shell_word;
use crate::store::Filter;

/// Returns the flags that select these messages; empty without any. Times count from `asked_ms`, when they were given.
pub(crate) fn flags(streams: &[StreamId], filter: &Filter, asked_ms: i64) -> String {
    let mut flags = Vec::new();
    let mut add = |name: &str, value: &str| flags.push(format!("--{name} {}", shell_word(value.as_ref())));
    streams.iter().for_each(|stream| add("stream", &stream.to_string()));
    filter.statuses.iter().for_each(|status| add("status", status.word()));
    filter.types.iter().for_each(|it| add("type", it.name().trim_end_matches("Message")));
    filter.workspaces.iter().for_each(|workspace| add("workspace", workspace));
    filter.servers.iter().for_each(|server| add("server", server.base_url()));
    filter.projects.iter().for_each(|project| add("project", project));
    filter.ids.iter().for_each(|id| add("id", &id.0.to_string()));
    // Each trace is selected by two keys: as Opik names it, and as OpenTelemetry does.
    let traces = filter.entities.iter().filter(|key| key.is_trace_or_span()).filter_map(|key| key.trace_id());
    traces.for_each(|trace| add("trace", &trace));
    let ages = [("older-than", filter.accepted_before_ms), ("newer-than", filter.accepted_since_ms)];
    for (name, at_ms) in ages {
        if let Some(at_ms) = at_ms {
            add(name, &age(asked_ms.saturating_sub(at_ms)));
        }
    }
    flags.join(" ")
}

/// Returns an exact duration in its largest unit.
fn age(ms: i64) -> String {
    const UNITS: [(i64, &str); 4] = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s")];
    if ms == 0 {
        return "0s".to_owned();
    }
    match UNITS.iter().find(|(unit, _)| ms % unit == 0) {
        Some((unit, name)) => format!("{}{name}", ms / unit),
        None => format!("{ms}ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{EntityKey, EntityKind, MessageId, MessageStatus, MessageType, Server};

    #[test]
    fn a_record_has_the_flags_that_a_person_typed() {
        let asked_ms = 1_790_000_000_123;
        assert_eq!(flags(&[], &Filter::default(), asked_ms), "");
        let (stream, trace) = (StreamId::new(uuid::Uuid::from_u128(7)), uuid::Uuid::from_u128(8).to_string());
        let filter = Filter {
            statuses: vec![MessageStatus::Failed, MessageStatus::Rejected],
            types: vec![MessageType::CreateTrace],
            workspaces: vec!["my team".to_owned(), "it's".to_owned()],
            servers: vec![Server::new("http://opik:5173/api")],
            projects: vec!["a".to_owned()],
            ids: vec![MessageId(42)],
            entities: [EntityKind::Trace, EntityKind::OtelTrace].map(|kind| EntityKey::new(kind, &trace)).into(),
            accepted_before_ms: Some(asked_ms - 7 * 86_400_000),
            accepted_since_ms: Some(asked_ms - 36 * 3_600_000),
        };
        let expected = format!(
            "--stream {stream} --status waiting --status rejected --type CreateTrace --workspace 'my team' \
             --workspace 'it'\\''s' --server http://opik:5173/api --project a --id 42 --trace {trace} --older-than 7d \
             --newer-than 36h"
        );
        assert_eq!(flags(&[stream], &filter, asked_ms), expected, "nobody can tell later what was purged");
        assert_eq!([age(0), age(1500), age(90_000)], ["0s", "1500ms", "90s"]);
    }
}
