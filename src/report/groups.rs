//! Messages counted by status, type and workspace: `status` shows them for the store, and a dry run for its selection.

use serde::Serialize;

use crate::figures::{count, separated, size, time};
use crate::message::MessageStatus;
use crate::store::{Backlog, Filter, Page, Store, StoreError};
use crate::terminal::render::Renderer;
use crate::terminal::{Shown, Style};

/// Messages of one status, type and workspace.
#[derive(Serialize)]
pub(crate) struct GroupRow {
    pub status: &'static str,
    /// The status in the word that people read.
    #[serde(skip)]
    pub word: &'static str,
    pub message_type: &'static str,
    pub workspace: String,
    /// The server that they were accepted for; `null` for messages of an earlier version.
    pub server: Option<String>,
    pub messages: u64,
    pub items: u64,
    pub body_bytes: u64,
}

/// Returns the groups of a backlog, in its order.
pub(crate) fn groups(backlog: &Backlog) -> Vec<GroupRow> {
    let group = |group: &crate::store::BacklogGroup| GroupRow {
        status: group.status.name(),
        word: group.status.word(),
        message_type: group.message_type.name(),
        workspace: group.workspace.clone(),
        server: group.server.as_ref().map(ToString::to_string),
        messages: group.messages,
        items: group.items,
        body_bytes: group.body_bytes,
    };
    backlog.groups.iter().map(group).collect()
}

/// Returns a table with a row for each group.
pub(crate) fn groups_text(renderer: &Renderer, groups: &[GroupRow]) -> Shown {
    let has_several = groups.iter().any(|group| group.server != groups[0].server);
    let mut columns = vec!["status", "…type", "…workspace", ">messages", ">items", ">size"];
    if has_several {
        columns.push("…server");
    }
    let mut table = renderer.table(&columns);
    table.paint("status", MessageStatus::Rejected.word(), Style::Red);
    for group in groups {
        let mut row = vec![
            group.word.to_owned(),
            group.message_type.trim_end_matches("Message").to_owned(),
            group.workspace.clone(),
            separated(group.messages),
            separated(group.items),
            size(group.body_bytes),
        ];
        if has_several {
            row.push(group.server.clone().unwrap_or_else(|| "not recorded".to_owned()));
        }
        table.add_row(row);
    }
    table.shown()
}

/// Returns the sums of a selection for people: `5 messages (869 B, 7 items)`.
pub(crate) fn sums_text(groups: &[GroupRow]) -> String {
    let sum = |of: fn(&GroupRow) -> u64| groups.iter().map(of).sum::<u64>();
    let items = count(sum(|group| group.items), "item");
    format!("{} ({}, {items})", count(sum(|group| group.messages), "message"), size(sum(|group| group.body_bytes)))
}

/// Returns which server the messages are for: `http://127.0.0.1:5173/api`, or `2 servers`, which a table names.
pub(crate) fn servers_text(groups: &[GroupRow]) -> String {
    let mut servers: Vec<&str> = groups.iter().filter_map(|group| group.server.as_deref()).collect();
    servers.sort_unstable();
    servers.dedup();
    match servers[..] {
        [] => "no server that was recorded".to_owned(),
        [server] => server.to_owned(),
        _ => format!("{} servers", servers.len()),
    }
}

/// Returns when the oldest message of a selection was accepted, rejected ones included.
///
/// # Errors
///
/// Errors of the store.
pub(crate) fn oldest(store: &dyn Store, filter: &Filter) -> Result<Option<String>, StoreError> {
    let first = store.list(filter, &Page { after: None, limit: 1, newest_first: false })?;
    Ok(first.first().map(|listed| time(listed.accepted_at_ms)))
}

/// Returns the body of a preview: the groups and the oldest message.
pub(crate) fn preview_text(renderer: &Renderer, groups: &[GroupRow], oldest: Option<&str>) -> Shown {
    let mut shown = groups_text(renderer, groups);
    if let Some(oldest) = oldest {
        shown.end_line();
        shown.add_line(&format!("the oldest was accepted at {oldest}"));
    }
    shown
}
