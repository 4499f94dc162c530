//! Stored messages for people: the columns of a list, the lines of `--follow`, and the head of one message.

use std::time::Duration;

use crate::export::{ExportedHeader, ListedAnswer, ListedMessage, WholeMessage};
use crate::figures::{Clock, separated, short_duration, size, time};
use crate::hint;
use crate::message::MessageStatus;
use crate::printable::{elided, line as one_line, padded};
use crate::terminal::render::{Renderer, StatusMark};
use crate::terminal::{OutputStream, Shown, Style};

/// A column of a list.
struct MessageColumn {
    /// Its name on the command line.
    name: &'static str,
    /// Its head, with the sign of [`crate::terminal::table::TextTable::new`].
    head: &'static str,
    text: fn(&ListedMessage, Clock) -> String,
}

/// All columns.
const COLUMNS: &[MessageColumn] = &[
    MessageColumn { name: "id", head: ">id", text: |line, _| line.id.to_string() },
    MessageColumn { name: "status", head: "status", text: |line, _| line.word.to_owned() },
    MessageColumn { name: "type", head: "…type", text: |line, _| type_text(line) },
    MessageColumn { name: "name", head: "…name", text: |line, _| line.subject.name.clone().unwrap_or_default() },
    MessageColumn { name: "trace", head: "…trace", text: |line, _| trace_text(&line.subject.trace_ids) },
    MessageColumn { name: "workspace", head: "…workspace", text: |line, _| line.workspace.clone() },
    MessageColumn { name: "project", head: "…project", text: |line, _| line.project.clone().unwrap_or_default() },
    MessageColumn {
        name: "server",
        head: "…server",
        text: |line, _| line.server.clone().unwrap_or_else(|| "not recorded".to_owned()),
    },
    MessageColumn { name: "request", head: "…request", text: |line, _| format!("{} {}", line.method, line.path) },
    MessageColumn { name: "items", head: ">items", text: |line, _| separated(line.items.into()) },
    MessageColumn { name: "size", head: ">size", text: |line, _| size(line.body_bytes) },
    MessageColumn { name: "attempts", head: ">attempts", text: |line, _| separated(line.attempts.into()) },
    MessageColumn {
        name: "age",
        head: ">age",
        text: |line, clock| {
            let age = u64::try_from(clock.now_ms.saturating_sub(line.accepted_at_ms)).unwrap_or(0);
            short_duration(Duration::from_millis(age))
        },
    },
    MessageColumn { name: "accepted", head: "accepted", text: |line, _| line.accepted_at.clone() },
    MessageColumn {
        name: "next",
        head: "next attempt",
        text: |line, clock| line.next_attempt_at_ms.map_or(String::new(), |at_ms| clock.at(at_ms)),
    },
    MessageColumn {
        name: "answer",
        head: "<last answer",
        text: |line, _| line.answer.as_ref().map(answer_text).unwrap_or_default(),
    },
];

const USUAL: [&str; 8] = ["id", "status", "type", "workspace", "project", "size", "age", "answer"];
const WIDE: [&str; 13] = [
    "id",
    "status",
    "type",
    "name",
    "trace",
    "workspace",
    "project",
    "items",
    "size",
    "attempts",
    "age",
    "next",
    "answer",
];

/// Returns the names of all columns.
pub(crate) fn column_names() -> impl Iterator<Item = &'static str> {
    COLUMNS.iter().map(|column| column.name)
}

/// The columns of a list.
pub(crate) struct MessageColumns(Vec<&'static MessageColumn>);

impl MessageColumns {
    /// Returns the columns with these names; without a name the usual ones, or more of them if `is_wide`.
    pub(crate) fn of(names: &[String], is_wide: bool, is_utc: bool) -> Self {
        let named = |name: &str| COLUMNS.iter().find(|column| column.name == name);
        let usual = |name: &&str| named(if is_utc && *name == "age" { "accepted" } else { name });
        Self(match (names, is_wide) {
            ([], false) => USUAL.iter().filter_map(usual).collect(),
            ([], true) => WIDE.iter().filter_map(usual).collect(),
            (names, _) => names.iter().filter_map(|name| named(name)).collect(),
        })
    }

    /// Returns whether a column needs the bodies.
    pub(crate) fn has_subjects(&self) -> bool {
        self.0.iter().any(|column| ["name", "trace"].contains(&column.name))
    }

    /// Returns a table of messages, and whether the ends of its rows are left out.
    pub(crate) fn table(&self, renderer: &Renderer, lines: &[ListedMessage], clock: Clock) -> (Shown, bool) {
        let heads: Vec<&str> = self.0.iter().map(|column| column.head).collect();
        let mut table = renderer.table(&heads);
        table.paint("status", MessageStatus::Rejected.word(), Style::Red);
        for line in lines {
            table.add_row(self.0.iter().map(|column| (column.text)(line, clock)));
        }
        (table.shown(), table.is_cut())
    }
}

/// Returns the type, and the file name of an attachment.
fn type_text(line: &ListedMessage) -> String {
    let name = line.message_type.trim_end_matches("Message");
    match &line.attachment {
        Some(file) => format!("{name} {}", file.name),
        None => name.to_owned(),
    }
}

fn trace_text(ids: &[String]) -> String {
    match ids {
        [] => String::new(),
        [id] => id.clone(),
        [id, more @ ..] => format!("{id} +{}", separated(more.len() as u64)),
    }
}

/// Returns the beginning of an answer in one line; of Opik's errors (`{"code":400,"message":"..."}`) the message.
fn answer_text(answer: &ListedAnswer) -> String {
    const CHARACTERS_MAX: usize = 60;
    let error: Option<serde_json::Value> = serde_json::from_str(&answer.text).ok();
    let message = error.as_ref().and_then(|error| error["message"].as_str());
    let text = message.unwrap_or(&answer.text);
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(CHARACTERS_MAX).collect();
    match answer.status {
        Some(status) => format!("{status} {text}").trim_end().to_owned(),
        None => text,
    }
}

/// The texts of a line of `--follow`, in its columns: they don't depend on other lines.
struct FollowedLine<'a> {
    accepted: &'a str,
    id: &'a str,
    status: &'a str,
    message_type: &'a str,
    size: &'a str,
    workspace: &'a str,
    project: &'a str,
}

impl FollowedLine<'_> {
    fn text(&self) -> String {
        let text = format!(
            "{:<20}  {:>8}  {:<8}  {}  {:>9}  {}  {}",
            self.accepted,
            self.id,
            self.status,
            padded(self.message_type, 20),
            self.size,
            padded(self.workspace, 12),
            self.project,
        );
        text.trim_end().to_owned()
    }
}

/// Returns the heading over the lines of `--follow`.
pub(crate) fn followed_heading(renderer: &Renderer) -> Shown {
    let heads = FollowedLine {
        accepted: "accepted",
        id: "id",
        status: "status",
        message_type: "type",
        size: "size",
        workspace: "workspace",
        project: "project",
    };
    let mut shown = Shown::default();
    shown.add_styled(renderer.style(Style::Bold), &heads.text());
    shown.end_line();
    shown
}

/// Returns a message as a line of `--follow`.
pub(crate) fn followed(line: &ListedMessage) -> Shown {
    /// Maximum width of a name on a terminal, in cells.
    const NAME_MAX: usize = 40;
    let is_short = OutputStream::Out.is_terminal();
    let name = |text: &str| {
        let text = one_line(text);
        if is_short { elided(&text, NAME_MAX).into_owned() } else { text.into_owned() }
    };
    let text = FollowedLine {
        accepted: &line.accepted_at,
        id: &line.id.to_string(),
        status: line.word,
        message_type: &name(&type_text(line)),
        size: &size(line.body_bytes),
        workspace: &name(&line.workspace),
        project: &name(line.project.as_deref().unwrap_or_default()),
    };
    Shown::line(&text.text())
}

/// How many traces the head of a message names; JSON has all.
const TRACES_MAX: usize = 5;

/// Returns everything about a message but its body, with an empty line after it.
pub(crate) fn head(renderer: &Renderer, whole: &WholeMessage, clock: Clock) -> Shown {
    let line = &whole.line;
    let mut shown = Shown::default();
    shown.add_line(&row("id", &line.id.to_string()));
    shown.add_text(&row("status", ""));
    match line.status == MessageStatus::Rejected.name() {
        true => renderer.add_painted(&mut shown, StatusMark::Bad, line.word),
        false => shown.add_text(line.word),
    }
    shown.end_line();
    for (name, value) in about(whole).into_iter().chain(fate(whole, clock)) {
        shown.add_line(&row(name, &value));
    }
    for ExportedHeader { name, value } in &whole.headers {
        shown.add_line(&row("header", &format!("{name}: {value}")));
    }
    shown.end_line();
    shown
}

fn row(name: &str, value: &str) -> String {
    format!("{name:<13} {value}")
}

/// The message and its subject.
fn about(whole: &WholeMessage) -> Vec<(&'static str, String)> {
    let line = &whole.line;
    let mut rows = vec![("type", line.message_type.to_owned())];
    rows.extend(whole.name.iter().map(|name| ("name", name.clone())));
    rows.extend(whole.trace_ids.iter().take(TRACES_MAX).map(|id| ("trace", id.clone())));
    if let Some(more) = whole.trace_ids.len().checked_sub(TRACES_MAX).filter(|more| *more > 0) {
        rows.push(("", format!("and {} more", separated(more as u64))));
    }
    rows.push(("request", format!("{} {}", line.method, line.path)));
    rows.extend(line.server.iter().map(|server| ("server", server.clone())));
    rows.push(("workspace", line.workspace.clone()));
    rows.extend(line.project.iter().map(|project| ("project", project.clone())));
    let services = whole.services.iter().filter(|services| !services.is_empty());
    rows.extend(services.map(|services| ("services", services.join(", "))));
    if let Some(file) = &line.attachment {
        rows.push(("file", file.name.clone()));
        rows.extend(file.mime_type.iter().map(|mime_type| ("mime type", mime_type.clone())));
        rows.push(("file size", format!("{} ({} bytes)", size(file.bytes), separated(file.bytes))));
        rows.push(("sha-256", file.sha256.clone()));
        rows.push(("belongs to", format!("{} {}", file.entity_type, file.entity_id)));
    }
    rows
}

/// The attempts to deliver the message so far (attempts, the next retry, the last answer), and what can be done.
fn fate(whole: &WholeMessage, clock: Clock) -> Vec<(&'static str, String)> {
    let line = &whole.line;
    let mut rows = vec![
        ("accepted", clock.at(line.accepted_at_ms)),
        ("items", separated(line.items.into())),
        ("size", size(line.body_bytes)),
        ("attempts", separated(line.attempts.into())),
    ];
    rows.extend(line.next_attempt_at_ms.map(|at_ms| ("next attempt", clock.at(at_ms))));
    if let Some(answer) = &line.answer {
        let status = answer.status.map_or("no answer".to_owned(), |status| status.to_string());
        let at = if clock.is_utc { format!("at {}", time(answer.at_ms)) } else { clock.at(answer.at_ms) };
        rows.push(("last answer", format!("{status}, {at}")));
        // Keeps the server's line breaks, in the second column.
        rows.extend(answer.text.lines().map(|words| ("", words.to_owned())));
    }
    if line.status == MessageStatus::Rejected.name() {
        let id = line.id;
        rows.push(("what to do", format!("when the cause is fixed: {}", hint::command(&format!("replay --id {id}")))));
        rows.push(("", format!("to discard it: {}", hint::command(&format!("purge --id {id}")))));
    }
    rows
}
