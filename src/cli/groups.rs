//! Messages counted by status, type and workspace, as `status` shows what is stored and a dry run what it would touch.

use serde::Serialize;

use super::render::{Renderer, elided, size, table_text, terminal};
use crate::store::Backlog;

/// Messages of one status, type and workspace.
#[derive(Serialize)]
pub struct Group {
    pub status: &'static str,
    pub message_type: &'static str,
    pub workspace: String,
    pub messages: u64,
    pub items: u64,
    pub body_bytes: u64,
}

/// Returns the groups of a backlog, in its order.
pub fn groups(backlog: &Backlog) -> Vec<Group> {
    let group = |group: &crate::store::BacklogGroup| Group {
        status: group.status.name(),
        message_type: group.message_type.name(),
        workspace: group.workspace.clone(),
        messages: group.messages,
        items: group.items,
        body_bytes: group.body_bytes,
    };
    backlog.groups.iter().map(group).collect()
}

/// Returns a table with a row for each group.
pub fn groups_text(renderer: &Renderer, groups: &[Group]) -> String {
    // What is piped is whole; on a terminal the other columns are to stay in sight.
    let workspace_chars_max = terminal().map_or(usize::MAX, |terminal| (terminal.columns / 3).max(12));
    let mut table = renderer.table(&["status", "type", "~workspace", ">messages", ">items", ">size"]);
    for group in groups {
        table.add_row([
            group.status.to_owned(),
            group.message_type.trim_end_matches("Message").to_owned(),
            elided(&group.workspace, workspace_chars_max),
            group.messages.to_string(),
            group.items.to_string(),
            size(group.body_bytes),
        ]);
    }
    table_text(&table)
}
