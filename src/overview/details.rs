//! Details that only a command shows beside an overview: they take longer to read than a page may take, or contain
//! paths of this machine.

use std::time::Duration;

use serde::Deserialize;

use super::rejections::first_words;
use super::{EdgesOverview, EtaOverview, FleetOverview, FullOverview, pace_of};
use crate::delivery::eta::Situation;
use crate::delivery::pacing::PaceSettings;
use crate::message::{MessageStatus, Server};
use crate::replay::near_id_window;
use crate::store::{
    Backlog, BacklogGroup, Condition, Filter, Hold, KeyState, Page, Store, StoreError, StoreIdentity, Stranded,
};
use crate::telemetry::history::{Rates, Sample};
use crate::telemetry::refusals::ForwardedRefused;

/// How many rejected messages, from the newest, are searched for the server's reasons.
pub(crate) const REASONS_OF_NEWEST: usize = 200;
/// How many different reasons are kept.
const REASONS_MAX: usize = 10;

/// A command's reads from a store.
#[derive(Default)]
pub(crate) struct StoreDetails {
    /// Messages for all servers.
    pub backlog: Backlog,
    /// `None` if there is no store yet.
    pub identity: Option<StoreIdentity>,
    /// `None` if there is no store yet.
    pub condition: Option<Condition>,
    /// Why the server rejected the newest of the rejected messages, the most frequent reason first.
    pub reasons: Vec<Reason>,
    /// When the oldest waiting create was accepted, if its ids come near the server's window.
    pub near_window_ms: Option<i64>,
    /// Messages that wait for a create that the server refused, by lane.
    pub stranded: Vec<Stranded>,
    /// The messages with copies in a depot, if there are any.
    pub copies: Option<StoredCopies>,
}

/// Messages of a store that have copies in a depot, which has to learn what becomes of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredCopies {
    /// The depot's URL, without secrets.
    pub depot: String,
    /// How many of the messages that wait have a copy.
    pub messages: u64,
}

impl StoredCopies {
    fn read(store: &dyn Store, backlog: &Backlog) -> Result<Option<Self>, StoreError> {
        let Some(stream) = store.streams()?.into_iter().find(|stream| stream.is_outstanding) else { return Ok(None) };
        let messages = backlog.waiting().saturating_sub(store.unshipped()?.messages);
        Ok(Some(Self { depot: stream.depot, messages }))
    }
}

impl StoreDetails {
    /// Reads a store.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub(crate) fn read(store: &dyn Store, now_ms: i64) -> Result<Self, StoreError> {
        let backlog = store.backlog(&Filter::default())?;
        let condition = store.condition()?;
        // The server's answers are encrypted, too.
        let is_readable = backlog.rejected() > 0 && condition.encryption.key == KeyState::Usable;
        let reasons = if is_readable { reasons(store)? } else { Vec::new() };
        let near_window_ms = near_id_window(store, now_ms)?;
        let stranded = store.stranded()?;
        let copies = StoredCopies::read(store, &backlog)?;
        let identity = Some(store.identity());
        Ok(Self { backlog, identity, condition: Some(condition), reasons, near_window_ms, stranded, copies })
    }

    /// Returns how many messages wait for this server. Those of an earlier version, which recorded no server, are for
    /// the first one that is delivered to.
    pub(crate) fn waiting_for(&self, own: &Server) -> u64 {
        self.waiting_groups(own).map(|group| group.messages).sum()
    }

    fn waiting_groups(&self, own: &Server) -> impl Iterator<Item = &BacklogGroup> {
        let groups = self.backlog.groups.iter();
        groups.filter(move |group| group.status.is_on_its_way() && is_for(group.server.as_ref(), own))
    }

    /// Returns what the store alone says about when everything for this server will be delivered.
    pub(crate) fn situation(
        &self,
        own: &Server,
        pace: PaceSettings,
        connection: &str,
        latency: Option<Duration>,
        now_ms: i64,
    ) -> Situation {
        let condition = self.condition.as_ref();
        Situation {
            waiting: self.waiting_for(own),
            available: match connection {
                "available" => Some(true),
                "unavailable" => Some(false),
                _ => None,
            },
            is_replayed: condition.is_some_and(|condition| condition.lease.is_some()),
            pace,
            drained: None,
            stored_per_second: 0.0,
            last_per_second: condition.and_then(|condition| condition.last_replay.as_ref()).and_then(pace_of),
            latency,
            held_for: self
                .held_for(own, now_ms)
                .max(condition.and_then(|condition| condition.replay_hold.as_ref()?.left(now_ms))),
            is_stalled: false,
        }
    }

    /// Returns how long until the first lane is retried, if everything that waits for this server is held.
    fn held_for(&self, own: &Server, now_ms: i64) -> Option<Duration> {
        let held = self.condition.as_ref().map_or(&[][..], |condition| &condition.held);
        let held: Vec<_> = held.iter().filter(|(lane, _)| is_for(lane.server.as_ref(), own)).collect();
        let mut waiting = self.waiting_groups(own);
        // A single create may go as a batch while single writes are rate limited, and the other way round.
        let applies = |hold: &Hold, group: &BacklogGroup| {
            let message_type = group.message_type;
            hold.bucket.is_none_or(|bucket| bucket == message_type.bucket() && !message_type.is_single_create())
        };
        let is_held = |group: &BacklogGroup| {
            let mut holds =
                held.iter().filter(|(lane, hold)| lane.workspace_name() == group.workspace && hold.until_ms > now_ms);
            holds.any(|(_, hold)| applies(hold, group))
        };
        let first = held.iter().map(|(_, hold)| hold.until_ms).filter(|until| *until > now_ms).min();
        let first = first.filter(|_| waiting.all(is_held));
        first.map(|until| Duration::from_millis((until - now_ms).unsigned_abs()))
    }
}

/// Returns whether messages of a server are for this one.
fn is_for(server: Option<&Server>, own: &Server) -> bool {
    server.is_none_or(|server| server == own)
}

/// An answer with which the server rejected messages.
pub(crate) struct Reason {
    pub status: Option<u16>,
    pub text: String,
    pub messages: u64,
}

/// Counts the server's answers to the newest rejected messages, the most frequent first. It takes a moment, whatever
/// the size of the store.
fn reasons(store: &dyn Store) -> Result<Vec<Reason>, StoreError> {
    let filter = Filter { statuses: vec![MessageStatus::Rejected], ..Filter::default() };
    let page = Page { after: None, limit: REASONS_OF_NEWEST, newest_first: true };
    let mut reasons: Vec<Reason> = Vec::new();
    for answer in store.list(&filter, &page)?.into_iter().filter_map(|message| message.answer) {
        let text = first_words(&answer.text);
        match reasons.iter_mut().find(|known| known.status == answer.status && known.text == text) {
            Some(known) => known.messages += 1,
            None => reasons.push(Reason { status: answer.status, text, messages: 1 }),
        }
    }
    reasons.sort_by_key(|reason| std::cmp::Reverse(reason.messages));
    reasons.truncate(REASONS_MAX);
    Ok(reasons)
}

/// The part of a running agent's overview that a command shows: the agent has seen more than the store records. Agents
/// of other versions may leave fields out.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct AgentsView {
    pub rates: Option<Rates>,
    pub forwarded_refused: Option<ForwardedRefused>,
    pub eta: Option<EtaOverview>,
    pub history: Vec<Sample>,
    pub edges: EdgesOverview,
    pub store: AgentsStoreView,
    pub fleet: Option<FleetOverview>,
}

/// The agent's view of its store.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct AgentsStoreView {
    pub full: Option<FullOverview>,
    pub refused_writes: Option<u64>,
    pub moved_stores: Vec<String>,
}
