//! Sums of stored messages by project, workspace, server, type or status: whose backlog it is, and whose dead letters.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::figures::{separated, size};
use crate::message::MessageStatus;
use crate::store::{Backlog, BacklogGroup, Filter, Page, Store, StoreError};
use crate::terminal::Shown;
use crate::terminal::render::Renderer;

/// The key by which messages are counted; no payload is parsed for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TotalsBy {
    Project,
    Workspace,
    Server,
    Type,
    Status,
}

impl TotalsBy {
    pub(crate) const ALL: [Self; 5] = [Self::Project, Self::Workspace, Self::Server, Self::Type, Self::Status];

    /// Returns its name on the command line and in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Project => "project",
            Self::Workspace => "workspace",
            Self::Server => "server",
            Self::Type => "type",
            Self::Status => "status",
        }
    }

    /// Returns what a group of a backlog is counted under; `None` if it names nothing of the kind.
    fn of(self, group: &BacklogGroup) -> Option<String> {
        match self {
            // A store does not count by project.
            Self::Project => None,
            Self::Workspace => Some(group.workspace.clone()),
            Self::Server => group.server.as_ref().map(ToString::to_string),
            Self::Type => Some(group.message_type.name().to_owned()),
            Self::Status => Some(group.status.name().to_owned()),
        }
    }
}

/// Sums of messages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct TotalsRow {
    /// `null` for messages that name none.
    pub name: Option<String>,
    pub messages: u64,
    /// Messages that still have to reach the server.
    pub waiting: u64,
    pub rejected: u64,
    /// Messages whose ids are outside the server's window.
    pub held: u64,
    pub items: u64,
    pub body_bytes: u64,
}

impl TotalsRow {
    fn add(&mut self, status: MessageStatus, (messages, items, body_bytes): (u64, u64, u64)) {
        self.messages += messages;
        match status {
            MessageStatus::Rejected => self.rejected += messages,
            MessageStatus::Held => self.held += messages,
            _ if status.is_on_its_way() => self.waiting += messages,
            _ => {}
        }
        self.items += items;
        self.body_bytes += body_bytes;
    }

    fn plus(mut self, other: &Self) -> Self {
        self.messages += other.messages;
        self.waiting += other.waiting;
        self.rejected += other.rejected;
        self.held += other.held;
        self.items += other.items;
        self.body_bytes += other.body_bytes;
        self
    }
}

/// Sums by one property of messages.
#[derive(Serialize)]
pub(crate) struct TotalsReport {
    schema_version: u32,
    by: TotalsBy,
    /// The largest number of messages first.
    totals: Vec<TotalsRow>,
}

/// How many messages are read at a time.
const PAGE_MESSAGES: usize = 1000;

/// Sums by name.
type Sums = BTreeMap<Option<String>, TotalsRow>;

fn projects(store: &dyn Store, filter: &Filter) -> Result<Sums, StoreError> {
    let mut sums = Sums::new();
    let mut page = Page { after: None, limit: PAGE_MESSAGES, newest_first: false };
    loop {
        let listed = store.list(filter, &page)?;
        let Some(last) = listed.last() else { return Ok(sums) };
        page.after = Some(last.id);
        for listed in listed {
            let figures = (1, u64::from(listed.items), listed.body_bytes);
            sums.entry(listed.project).or_default().add(listed.status, figures);
        }
    }
}

/// Sums a backlog by one of the properties that a store counts by.
pub(crate) fn totals(backlog: &Backlog, by: TotalsBy) -> Vec<TotalsRow> {
    let mut sums = Sums::new();
    for group in &backlog.groups {
        let figures = (group.messages, group.items, group.body_bytes);
        sums.entry(by.of(group)).or_default().add(group.status, figures);
    }
    sorted(sums)
}

/// Returns the rows, the largest number of messages first.
fn sorted(sums: Sums) -> Vec<TotalsRow> {
    let mut rows: Vec<TotalsRow> = sums.into_iter().map(|(name, row)| TotalsRow { name, ..row }).collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.messages));
    rows
}

impl TotalsReport {
    /// Counts the messages of a filter. Projects take a read of all of them, because a store counts by the other
    /// properties only; it keeps a row for each name.
    ///
    /// # Errors
    ///
    /// Fails if the store can't be read.
    pub(crate) fn read(store: Option<&dyn Store>, filter: &Filter, by: TotalsBy) -> Result<Self, StoreError> {
        let totals = match (store, by) {
            (None, _) => Vec::new(),
            (Some(store), TotalsBy::Project) => sorted(projects(store, filter)?),
            (Some(store), _) => totals(&store.backlog(filter)?, by),
        };
        Ok(Self { schema_version: 1, by, totals })
    }

    /// Returns it for people, with the sum of all.
    pub(crate) fn text(&self, renderer: &Renderer) -> Shown {
        let head = format!("…{}", self.by.name());
        let mut table =
            renderer.table(&[head.as_str(), ">messages", ">waiting", ">rejected", ">held", ">items", ">size"]);
        let mut add = |name: String, row: &TotalsRow| {
            let figures = [row.messages, row.waiting, row.rejected, row.held, row.items].map(separated);
            table.add_row([name].into_iter().chain(figures).chain([size(row.body_bytes)]));
        };
        for row in &self.totals {
            let name = row.name.as_deref().map_or("none", |name| self.shown(name));
            add(name.to_owned(), row);
        }
        if self.totals.len() > 1 {
            add("all".to_owned(), &self.totals.iter().fold(TotalsRow::default(), TotalsRow::plus));
        }
        table.shown()
    }

    fn shown<'a>(&self, name: &'a str) -> &'a str {
        match self.by {
            TotalsBy::Status => MessageStatus::from_name(name).map_or(name, |status| status.word()),
            TotalsBy::Type => name.trim_end_matches("Message"),
            TotalsBy::Project | TotalsBy::Workspace | TotalsBy::Server => name,
        }
    }

    /// Returns whether no message was selected.
    pub(crate) fn is_empty(&self) -> bool {
        self.totals.is_empty()
    }
}
