//! The stored messages by project.
//!
//! The store has no sums by project, so messages are counted one by one: at most [`COUNTED_MAX`], the oldest, on the
//! thread that takes the samples, and only while somebody looks at the page; the count is cached. A few are counted at
//! once.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::message::{MessageId, Server};
use crate::store::{Filter, Page, Store, StoreError};

/// How many projects are listed, those with the most messages first.
const LISTED_MAX: usize = 20;
/// How many messages are counted.
const COUNTED_MAX: u64 = 200_000;
/// How many are counted while somebody waits for the page.
const AT_ONCE_MAX: u64 = 1000;
/// How many are read at a time.
const PAGE: usize = 2000;
/// Different projects that are counted separately; more are counted as others.
const PROJECTS_MAX: usize = 10_000;
/// How long after a page was asked for they are counted again.
const WANTED_FOR: Duration = Duration::from_secs(60);
/// After how long a cached count expires.
const EVERY: Duration = Duration::from_secs(10);
/// Counting takes at most this part of the time.
const SHARE: u32 = 50;

/// Stored messages by project.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProjectsOverview {
    /// Those with the most messages to deliver first.
    pub list: Vec<ProjectOverview>,
    /// How many projects there are.
    pub total: u64,
    /// Messages in projects that are not listed.
    pub others_waiting: u64,
    /// How many messages were counted, the oldest ones; 0 before the first count.
    pub counted: u64,
    /// Whether there are more.
    pub is_partial: bool,
}

/// The messages of one project.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProjectOverview {
    pub workspace: String,
    /// `None` if the messages name none.
    pub project: Option<String>,
    pub waiting: u64,
    /// Rejected for good, or for the time in their ids.
    pub rejected: u64,
    pub body_bytes: u64,
}

/// The cached count, and when the next one is due.
#[derive(Debug, Default)]
pub(super) struct ProjectCensus(Mutex<Counted>);

#[derive(Debug, Default)]
struct Counted {
    found: ProjectsOverview,
    /// Messages that waited and were rejected.
    of: (u64, u64),
    at: Option<Instant>,
    took: Duration,
    wanted_at: Option<Instant>,
}

impl ProjectCensus {
    /// Returns the cached count, or counts now if there are only a few messages. `stored`: how many wait, and how many were
    /// rejected.
    pub(super) fn ask(
        &self,
        store: &dyn Store,
        server: &Server,
        stored: (u64, u64),
    ) -> Result<ProjectsOverview, StoreError> {
        let now = Instant::now();
        self.lock().wanted_at = Some(now);
        let messages = stored.0 + stored.1;
        if messages == 0 {
            return Ok(ProjectsOverview::default());
        }
        if messages > AT_ONCE_MAX {
            return Ok(self.lock().found.clone());
        }
        let is_known = |counted: &Counted| counted.of == stored && counted.at.is_some_and(|at| at.elapsed() < EVERY);
        if !is_known(&self.lock()) {
            self.count(store, server, stored)?;
        }
        Ok(self.lock().found.clone())
    }

    /// Counts if somebody wants to see it and the cached count has expired.
    pub(super) fn count_if_due(
        &self,
        store: &dyn Store,
        server: &Server,
        stored: (u64, u64),
    ) -> Result<(), StoreError> {
        let is_due = {
            let counted = self.lock();
            let is_wanted = counted.wanted_at.is_some_and(|at| at.elapsed() < WANTED_FOR);
            is_wanted && counted.at.is_none_or(|at| at.elapsed() >= EVERY.max(counted.took * SHARE))
        };
        if is_due { self.count(store, server, stored) } else { Ok(()) }
    }

    fn count(&self, store: &dyn Store, server: &Server, stored: (u64, u64)) -> Result<(), StoreError> {
        let begun = Instant::now();
        let found = count(store, server, COUNTED_MAX)?;
        let mut counted = self.lock();
        let wanted_at = counted.wanted_at;
        *counted = Counted { found, of: stored, at: Some(Instant::now()), took: begun.elapsed(), wanted_at };
        Ok(())
    }

    /// Every change is one assignment, so the value is whole even after a panic elsewhere.
    fn lock(&self) -> MutexGuard<'_, Counted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts the oldest messages for a server, at most this many.
fn count(store: &dyn Store, server: &Server, most: u64) -> Result<ProjectsOverview, StoreError> {
    let filter = Filter::of_server(server);
    let mut projects: HashMap<(String, Option<String>), ProjectOverview> = HashMap::new();
    let (mut counted, mut waiting, mut after): (u64, u64, Option<MessageId>) = (0, 0, None);
    let is_partial = loop {
        let limit = PAGE.min(usize::try_from(most - counted).unwrap_or(PAGE));
        let messages = store.list(&filter, &Page { after, limit: limit + 1, newest_first: false })?;
        let is_last = messages.len() <= limit;
        for message in messages.into_iter().take(limit) {
            (counted, after) = (counted + 1, Some(message.id));
            let is_waiting = message.status.is_on_its_way();
            waiting += u64::from(is_waiting);
            let key = (message.lane.workspace_name().to_owned(), message.project);
            if projects.len() >= PROJECTS_MAX && !projects.contains_key(&key) {
                continue;
            }
            let (workspace, project) = key.clone();
            let new = || ProjectOverview { workspace, project, waiting: 0, rejected: 0, body_bytes: 0 };
            let found = projects.entry(key).or_insert_with(new);
            match is_waiting {
                true => found.waiting += 1,
                false => found.rejected += 1,
            }
            found.body_bytes += message.body_bytes;
        }
        if is_last || counted >= most {
            break !is_last;
        }
    };
    let total = projects.len() as u64;
    let mut list: Vec<ProjectOverview> = projects.into_values().collect();
    list.sort_by(|a, b| {
        let order = |project: &ProjectOverview| std::cmp::Reverse((project.waiting, project.rejected));
        order(a).cmp(&order(b)).then_with(|| (&a.workspace, &a.project).cmp(&(&b.workspace, &b.project)))
    });
    list.truncate(LISTED_MAX);
    let others_waiting = waiting.saturating_sub(list.iter().map(|project| project.waiting).sum());
    Ok(ProjectsOverview { list, total, others_waiting, counted, is_partial })
}

#[cfg(test)]
mod tests;
