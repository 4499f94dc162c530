//! The conditions of a filter, as SQL.

use rusqlite::types::Value;
use rusqlite::{Statement, ToSql};

use crate::message::{MessageStatus, workspaces_named};
use crate::store::view::Filter;

/// The conditions of a [`Filter`] as SQL with named parameters.
pub(crate) struct SqlFilter {
    conditions: Vec<&'static str>,
    /// Conditions on the row of the lane.
    lane_conditions: Vec<&'static str>,
    parameters: Vec<(&'static str, Value)>,
    fine: bool,
    by_id: bool,
    divides_lanes: bool,
}

impl SqlFilter {
    /// Returns the conditions of this filter.
    pub(crate) fn of(filter: &Filter) -> Self {
        let mut selection = Self {
            conditions: vec![statuses(&filter.statuses)],
            lane_conditions: Vec::new(),
            parameters: Vec::new(),
            fine: false,
            by_id: !filter.ids.is_empty(),
            divides_lanes: false,
        };
        // Conditions that the summary can answer as well.
        let types = filter.types.iter().map(|t| t.name());
        selection.any_of(":types", types, "message_type IN (SELECT value FROM json_each(:types))");
        let workspaces: Vec<String> = filter.workspaces.iter().flat_map(|name| workspaces_named(name)).collect();
        if selection.list(":workspaces", workspaces.iter().map(String::as_str)) {
            selection
                .lane_conditions
                .push("coalesce(workspace, 'default') IN (SELECT value FROM json_each(:workspaces))");
        }
        if let [server] = &filter.servers[..] {
            selection.lane_conditions.push("server = :server");
            selection.parameters.push((":server", Value::Text(server.base_url().to_owned())));
        } else if selection.list(":servers", filter.servers.iter().map(crate::message::Server::base_url)) {
            selection.lane_conditions.push("server IN (SELECT value FROM json_each(:servers))");
        }
        // Conditions on single messages.
        let coarse = selection.conditions.len();
        let projects = filter.projects.iter().map(String::as_str);
        selection.any_of(":projects", projects, "project IN (SELECT value FROM json_each(:projects))");
        let ids = filter.ids.iter().map(|id| id.0);
        selection.any_of(":ids", ids, "message_id IN (SELECT value FROM json_each(:ids))");
        // References are in no index, so this scans the messages.
        let entities = filter.entities.iter().map(|key| hex(key.as_bytes()));
        selection.any_of(
            ":entities",
            entities,
            "EXISTS (SELECT 1 FROM json_each(:entities) WHERE instr(touches, unhex(value)) % 18 = 1)",
        );
        if let Some(before) = filter.accepted_before_ms {
            selection.conditions.push("accepted_at_ms < :accepted_before_ms");
            selection.parameters.push((":accepted_before_ms", Value::Integer(before)));
        }
        if let Some(since) = filter.accepted_since_ms {
            selection.conditions.push("accepted_at_ms >= :accepted_since_ms");
            selection.parameters.push((":accepted_since_ms", Value::Integer(since)));
        }
        selection.fine = selection.conditions.len() > coarse;
        selection.divides_lanes = selection.fine || !filter.types.is_empty();
        selection
    }

    /// Returns whether it may select some messages of a lane with a given status and leave out others.
    pub(crate) fn divides_lanes(&self) -> bool {
        self.divides_lanes
    }

    /// Returns the table that counts come from: the summary, unless a condition needs the messages themselves.
    pub(super) fn source(&self) -> &'static str {
        if self.fine { "messages" } else { "summary" }
    }

    /// Returns the expression that counts the messages in a group of [`SqlFilter::source`].
    pub(super) fn count(&self) -> &'static str {
        if self.fine { "count(*)" } else { "sum(messages)" }
    }

    /// Returns the expression for the number of messages in a row of [`SqlFilter::source`].
    pub(super) fn messages(&self) -> &'static str {
        if self.fine { "1" } else { "messages" }
    }

    /// Returns a condition on `:lane`. If single messages are named, it keeps SQLite from walking the whole lane for
    /// them.
    pub(super) fn lane_condition(&self) -> &'static str {
        if self.by_id { "+lane_id = :lane" } else { "lane_id = :lane" }
    }

    /// Returns the conditions joined by AND; never empty.
    pub(super) fn sql(&self) -> String {
        match self.lane_conditions.is_empty() {
            true => self.conditions.join(" AND "),
            false => format!(
                "{} AND lane_id IN (SELECT lane_id FROM lanes WHERE {})",
                self.conditions.join(" AND "),
                self.lane_conditions.join(" AND ")
            ),
        }
    }

    /// Returns the same conditions for a statement about `:lane` alone: it looks at the row of that lane, where
    /// [`SqlFilter::sql`] collects all lanes that the filter selects.
    pub(super) fn sql_in_lane(&self) -> String {
        self.sql_of(":lane")
    }

    /// Returns the same conditions, looking at the row of this lane only.
    pub(super) fn sql_of(&self, lane: &str) -> String {
        match self.lane_conditions.is_empty() {
            true => self.conditions.join(" AND "),
            false => format!(
                "{} AND EXISTS (SELECT 1 FROM lanes WHERE lanes.lane_id = {lane} AND {})",
                self.conditions.join(" AND "),
                self.lane_conditions.join(" AND ")
            ),
        }
    }

    /// Binds the values to a statement that was built with this selection.
    pub(crate) fn bind(&self, statement: &mut Statement<'_>) -> rusqlite::Result<()> {
        for (name, value) in &self.parameters {
            bind(statement, name, value)?;
        }
        Ok(())
    }

    fn any_of<T: serde::Serialize>(
        &mut self,
        name: &'static str,
        values: impl ExactSizeIterator<Item = T>,
        condition: &'static str,
    ) {
        if self.list(name, values) {
            self.conditions.push(condition);
        }
    }

    /// Adds a list as a parameter, and returns whether it has values.
    fn list<T: serde::Serialize>(&mut self, name: &'static str, values: impl ExactSizeIterator<Item = T>) -> bool {
        let is_named = values.len() > 0;
        if is_named {
            let list = serde_json::Value::from_iter(values.map(|value| serde_json::json!(value)));
            self.parameters.push((name, Value::Text(list.to_string())));
        }
        is_named
    }
}

/// Binds one named value.
pub(crate) fn bind(statement: &mut Statement<'_>, name: &str, value: &dyn ToSql) -> rusqlite::Result<()> {
    let index = statement.parameter_index(name)?.ok_or_else(|| rusqlite::Error::InvalidParameterName(name.into()))?;
    statement.raw_bind_parameter(index, value)
}

/// Literals, because SQLite uses a partial index only if the text of the query implies its condition.
fn statuses(statuses: &[MessageStatus]) -> &'static str {
    let bit = |status, bit| u8::from(statuses.is_empty() || statuses.contains(&status)) * bit;
    let wanted = bit(MessageStatus::Registered, 1)
        + bit(MessageStatus::Failed, 2)
        + bit(MessageStatus::Rejected, 4)
        + bit(MessageStatus::Held, 8);
    match wanted {
        0 => "FALSE",
        1 => "status = 1",
        2 => "status = 3",
        3 => "status IN (1, 3)",
        4 => "status = 4",
        5 => "status IN (1, 4)",
        6 => "status IN (3, 4)",
        7 => "status IN (1, 3, 4)",
        8 => "status = 5",
        9 => "status IN (1, 5)",
        10 => "status IN (3, 5)",
        11 => "status IN (1, 3, 5)",
        12 => "status IN (4, 5)",
        13 => "status IN (1, 4, 5)",
        14 => "status IN (3, 4, 5)",
        _ => "TRUE",
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}
