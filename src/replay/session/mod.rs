//! A replay session: delivers the selected messages as far as possible, then reports how many remain and why.
//!
//! The `replay` command drives a [`Session`] step by step, so that it can show each result before the next step begins:
//!
//! | step | what it does |
//! | --- | --- |
//! | [`Session::open`] | opens the store, and recovers a damaged one unless this is a dry run |
//! | [`Session::plan`] | selects messages and their servers, and assigns a server to messages that have none |
//! | [`Session::connect`] | pings each server |
//! | [`Session::requeue`] | makes the selected rejected and held messages *failed*, so that they are sent again |
//! | [`Session::deliver`] | drains the messages of each available server, and verifies them if asked |
//! | [`Session::recover`] | recovers a store that turned out to be damaged meanwhile |
//! | [`Session::conclude`] | erases unused credentials, counts what remains, and decides how the replay ended |
//!
//! # Invariants
//!
//! - Nothing is requeued before a server has answered a ping: until then rejected messages keep their status.
//! - A replay of rejected or held messages sends these only. Once requeued, their status no longer tells them from
//!   other messages, so they are selected by id, [`REQUEUED_MAX`] at a time.
//! - The configured credential and headers go to the configured server only.
//! - An interruption or a timeout ends the round as [`Replayer::drain`] does: requests in flight get their answers, and
//!   nothing acknowledged is lost.

mod delivery;
pub(crate) mod reassignment;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error;
use tracing::debug;

use super::verify::{Verified, Verifier};
use super::{DrainEnd, ReplaySettings, Replayer, held_text};
use crate::delivery::pacing::PaceSettings;
use crate::figures::{count, short_duration};
use crate::hint;
use crate::memory::Budget;
use crate::message::{Lane, MessageStatus, Server};
use crate::monitor::MonitorSettings;
use crate::monitor::connection::Connection;
use crate::protocol::answers::SendFailure;
use crate::protocol::recognise::{NOT_OPIK, Presence};
use crate::shutdown::Shutdown;
use crate::store::{self, Backlog, Filter, Hold, Keys, Limits, OpenMode, Page, Store, StoreError, Whose, now_ms};
use crate::telemetry::metrics::Metrics;
use crate::upstream::{Upstream, UpstreamSettings};
use delivery::Delivery;

/// How many rejected or held messages one replay requeues.
const REQUEUED_MAX: usize = 10_000;

/// How to replay.
pub(crate) struct SessionSettings {
    /// The store's file.
    pub store_path: PathBuf,
    /// The size limits of the store.
    pub store_limits: Limits,
    /// The keys that the store is encrypted with.
    pub store_keys: Keys,
    /// Whether nothing may be changed or sent.
    pub dry_run: bool,
    /// The configured server, workspace and credential.
    pub own: Lane,
    /// Whether the configured server was configured, rather than taken from the defaults.
    pub is_server_configured: bool,
    /// Whether only messages for the configured server are replayed.
    pub only_own_server: bool,
    /// Pings.
    pub monitor: MonitorSettings,
    /// The pace that the user configured.
    pub pace: PaceSettings,
    /// How long a held lane waits if the server named no time.
    pub retry_interval: Duration,
    /// Attempts after which a message that fails alone is rejected.
    pub attempts_max: u32,
    /// Bytes of bodies that may be in memory.
    pub memory_budget: u64,
    /// How many lanes are replayed concurrently.
    pub workers_max: usize,
    /// How many messages are delivered and rejected at most.
    pub limit: Option<u64>,
    /// How long the replay may take; it keeps retrying until then.
    pub timeout: Option<Duration>,
    /// How long to ask the server for what was delivered and is not shown yet; `None` skips the verification.
    pub verify_timeout: Option<Duration>,
}

/// Why a replay failed.
#[derive(Debug, Error)]
pub enum SessionError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("these messages were stored by an earlier version, which did not record their server")]
    ServerNotRecorded,
    /// The store was found damaged while messages were delivered, see [`Session::recover`].
    #[error("the message store {} was damaged: {reason}", path.display())]
    Damaged { path: PathBuf, reason: String },
}

/// Receives progress and notes while messages are delivered.
pub(crate) trait ProgressListener: Sync {
    /// Takes a sentence for people.
    fn note(&self, text: &str);
    /// Takes how many of `total` messages are delivered or rejected.
    fn progress(&self, done: u64, total: u64);
}

/// Which messages are delivered, and where to.
pub(crate) struct Plan {
    /// Selects the messages.
    pub filter: Filter,
    /// The selected messages, counted.
    pub backlog: Backlog,
    /// Why selected messages are left out, if any are: they are for other servers.
    pub elsewhere: Option<String>,
    /// Stored messages that the server rejected, and those that are held for their ids: sent only if they are named.
    pub refused: (u64, u64),
    /// The servers of the selected messages, the one with the most messages first.
    servers: Vec<Server>,
    /// Selected messages beyond [`REQUEUED_MAX`].
    untried: u64,
}

impl Plan {
    /// Returns how many messages are selected.
    pub(crate) fn messages(&self) -> u64 {
        self.backlog.messages()
    }
}

/// The servers of a plan, pinged.
pub(crate) struct ReachableServers {
    available: Vec<Available>,
    /// The other servers, and why they can't be used.
    pub away: Vec<(Server, ServerAway)>,
}

impl ReachableServers {
    /// Returns the first server and why it can't be used, if no server at all can be.
    pub(crate) fn all_away(&self) -> Option<&(Server, ServerAway)> {
        self.away.first().filter(|_| self.available.is_empty())
    }
}

/// A server that answered.
struct Available {
    server: Server,
    upstream: Upstream,
    /// Why its answer is unusual, if it is.
    notice: Option<String>,
}

/// Why a server can't be used.
#[derive(Clone, Debug, Error)]
pub enum ServerAway {
    #[error(transparent)]
    NoAnswer(SendFailure),
    #[error("the Opik server {sentence}")]
    Unusable { sentence: String, hint: &'static str },
}

/// The deliveries of a session, before they are counted.
pub(crate) struct Delivered {
    metrics: Metrics,
    started: Instant,
    ends: Vec<DrainEnd>,
    reasons: Vec<String>,
    verified: Option<Verified>,
    is_time_over: bool,
    met_foreign: bool,
}

/// How a replay ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Everything selected is delivered, or the limit was reached.
    Complete,
    /// The user interrupted it.
    Interrupted,
    /// A server was unavailable or not Opik, or could not be read from.
    Unreachable,
    /// Messages remain or were rejected, or the server does not show some that were delivered.
    Remaining,
    /// Messages remain whose key or workspace the server refuses.
    NotAuthorised,
}

/// The result of a replay.
pub(crate) struct Conclusion {
    pub ending: Ending,
    pub delivered: u64,
    pub rejected: u64,
    /// Messages held because the server refuses the time in their ids, selected or not.
    pub held: u64,
    pub remaining: u64,
    pub requests: u64,
    pub seconds: f64,
    /// Why messages remain, for people.
    pub reasons: Vec<String>,
    /// The result of the verification.
    pub verified: Option<Verified>,
    /// Messages that left the store through another process, which are not verified.
    pub delivered_elsewhere: u64,
    /// The servers that refuse the key or the workspace of messages that remain.
    pub refused_by: BTreeSet<Option<Server>>,
}

/// A replay session, see the module's head.
pub(crate) struct Session {
    settings: SessionSettings,
    store: Arc<dyn Store>,
    shutdown: Shutdown,
}

impl Session {
    /// Opens the store, and recovers a damaged one unless this is a dry run; `None` if nothing was ever stored.
    ///
    /// # Errors
    ///
    /// Fails if the store can't be opened.
    pub(crate) fn open(settings: SessionSettings, shutdown: &Shutdown) -> Result<Option<Self>, StoreError> {
        let mode = if settings.dry_run { OpenMode::Existing } else { OpenMode::ExistingOrRecovered };
        match store::open_with(&settings.store_path, mode, settings.store_limits, &settings.store_keys) {
            Ok(store) => Ok(Some(Self { settings, store, shutdown: shutdown.clone() })),
            Err(StoreError::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns the store.
    pub(crate) fn store(&self) -> &dyn Store {
        self.store.as_ref()
    }

    /// Decides which messages are delivered, of those that `filter` selects. Assigns messages without a server to the
    /// configured one, unless this is a dry run.
    ///
    /// # Errors
    ///
    /// Fails if messages have no server and none is configured, and if the store can't be read.
    pub(crate) fn plan(&self, filter: Filter) -> Result<Plan, SessionError> {
        let mut filter = waiting_unless_named(filter);
        let all = self.store.backlog(&filter)?;
        let is_unassigned = all.groups.iter().any(|group| group.server.is_none());
        // A dry run changes nothing, so messages of an earlier version still have no server.
        if self.settings.only_own_server && !(self.settings.dry_run && is_unassigned) {
            filter.servers = self.settings.own.server.iter().cloned().collect();
        }
        if is_unassigned && !self.settings.dry_run {
            self.adopt()?;
        }
        let messages = all.messages();
        let is_for = |server: &Option<Server>| server.as_ref().is_some_and(|server| filter.servers.contains(server));
        let is_same =
            !is_unassigned && (filter.servers.is_empty() || all.groups.iter().all(|group| is_for(&group.server)));
        // With thousands of lanes, counting takes long.
        let backlog = if is_same { all } else { self.store.backlog(&filter)? };
        let others = messages.saturating_sub(backlog.messages());
        let elsewhere = (others > 0).then(|| {
            let verb = if others == 1 { "is" } else { "are" };
            format!("{} {verb} for other servers: run it without --upstream", count(others, "message"))
        });
        let refused = match backlog.messages() {
            0 => self.store.backlog(&Filter { servers: filter.servers.clone(), ..Filter::default() })?,
            // Nobody asks.
            _ => Backlog::default(),
        };
        let refused = (refused.rejected(), refused.held());
        Ok(Plan { servers: servers(&backlog), filter, backlog, elsewhere, refused, untried: 0 })
    }

    /// Assigns messages of an earlier version to the configured server, but not to the default, which nobody
    /// configured.
    fn adopt(&self) -> Result<(), SessionError> {
        match &self.settings.own.server {
            Some(server) if self.settings.is_server_configured => Ok(self.store.adopt(server).map(drop)?),
            _ => Err(SessionError::ServerNotRecorded),
        }
    }

    /// Pings every server of the plan, before anything is changed. `own` is how the configured server is reached.
    pub(crate) fn connect(&self, plan: &Plan, own: &UpstreamSettings, note: &dyn Fn(&str)) -> ReachableServers {
        let deadline = self.settings.timeout.map(|timeout| Instant::now() + timeout);
        let mut connections = ReachableServers { available: Vec::new(), away: Vec::new() };
        for server in &plan.servers {
            let upstream = self.upstream(server, own).until(deadline);
            match ping(&upstream, self.settings.monitor.check_timeout) {
                Ok(notice) => {
                    if let Some(notice) = &notice {
                        note(&format!("the Opik server is available, but {notice}"));
                    }
                    connections.available.push(Available { server: server.clone(), upstream, notice });
                }
                Err(away) => connections.away.push((server.clone(), away)),
            }
        }
        connections
    }

    /// Returns the connections to a server, with the configured certificates, proxy and timeouts.
    fn upstream(&self, server: &Server, own: &UpstreamSettings) -> Upstream {
        let is_own = self.settings.own.server.as_ref() == Some(server);
        let mut settings = UpstreamSettings { base_url: server.base_url().to_owned(), ..own.clone() };
        // The configured credential and headers are for the configured server only.
        if !is_own {
            settings.headers.clear();
        }
        let upstream = Upstream::new(&settings);
        if is_own { upstream.asking_as(self.settings.own.clone()) } else { upstream }
    }

    /// Makes the selected rejected and held messages *failed* again; returns whether any message is left to replay.
    ///
    /// # Errors
    ///
    /// Fails if the store can't be read or written.
    pub(crate) fn requeue(&self, plan: &mut Plan) -> Result<bool, StoreError> {
        let filter = &mut plan.filter;
        let is_only_refused = is_only_refused(filter);
        if is_only_refused {
            let limit = self.settings.limit.and_then(|limit| usize::try_from(limit).ok());
            let limit = limit.unwrap_or(REQUEUED_MAX).min(REQUEUED_MAX);
            let listed = self.store.list(filter, &Page { after: None, limit, newest_first: false })?;
            if listed.is_empty() {
                // Gone since they were counted; a filter without ids would select everything.
                return Ok(false);
            }
            filter.ids = listed.into_iter().map(|listed| listed.id).collect();
        }
        if filter.statuses.is_empty() || filter.statuses.iter().any(|status| status.is_refused()) {
            self.store.requeue(filter)?;
        }
        filter.statuses.clear();
        if is_only_refused && self.settings.limit.is_none() {
            plan.untried = plan.backlog.messages().saturating_sub(plan.filter.ids.len() as u64);
        }
        Ok(true)
    }

    /// Returns how many messages [`Self::deliver`] delivers at most.
    pub(crate) fn total(&self, plan: &Plan) -> u64 {
        self.settings.limit.map_or(plan.messages(), |limit| limit.min(plan.messages()))
    }

    /// Delivers the messages of each available server in turn, and reads them back if asked.
    ///
    /// # Errors
    ///
    /// Fails if the store can't be used; with [`SessionError::Damaged`] if it is damaged.
    pub(crate) fn deliver(
        &self,
        plan: &Plan,
        connections: &ReachableServers,
        listener: &dyn ProgressListener,
    ) -> Result<Delivered, SessionError> {
        let mut delivered = Delivered {
            metrics: Metrics::default(),
            started: Instant::now(),
            ends: Vec::new(),
            reasons: connections.away.iter().map(|(_, away)| away.to_string()).collect(),
            verified: None,
            is_time_over: false,
            met_foreign: false,
        };
        for available in &connections.available {
            let done = delivered.metrics.messages_delivered.get() + delivered.metrics.messages_rejected.get();
            let limit = self.settings.limit.map(|limit| limit.saturating_sub(done));
            if limit == Some(0) {
                delivered.ends.push(DrainEnd::LimitReached);
                continue;
            }
            self.deliver_to(available, plan, limit, &mut delivered, listener)?;
        }
        Ok(delivered)
    }

    /// Delivers the messages of one server.
    fn deliver_to(
        &self,
        available: &Available,
        plan: &Plan,
        limit: Option<u64>,
        delivered: &mut Delivered,
        listener: &dyn ProgressListener,
    ) -> Result<(), SessionError> {
        // A person asks for it, perhaps because what held a lane is mended. Rate limits of the server stay in force.
        let whose = Whose::Server(available.server.clone());
        self.store.hasten(&whose).map_err(|error| self.damaged(error))?;
        let settings = ReplaySettings {
            filter: Filter { servers: vec![available.server.clone()], ..plan.filter.clone() },
            limit,
            pace: self.settings.pace,
            dial: None,
            retry_interval: self.settings.retry_interval,
            attempts_max: self.settings.attempts_max,
        };
        let memory = Budget::new(self.settings.memory_budget);
        let connection = Connection::new(self.settings.monitor);
        let verifier = self.settings.verify_timeout.map(|timeout| (Verifier::new(&available.upstream), timeout));
        connection.pinged(Ok(()), available.notice.clone(), Instant::now());
        let delivery = Delivery {
            replay: Replayer {
                memory: &memory,
                workers_max: self.settings.workers_max,
                store: self.store.as_ref(),
                upstream: &available.upstream,
                connection: &connection,
                settings: &settings,
                metrics: &delivered.metrics,
                state: &super::ReplayState::default(),
                observer: verifier.as_ref().map(|(verifier, _)| verifier as &dyn super::Observer),
                shutdown: &self.shutdown,
            },
            monitor: self.settings.monitor,
            listener,
            started: delivered.started,
            timeout: self.settings.timeout,
            total: plan.messages(),
        };
        let (end, time_over) = delivery.run();
        delivered.met_foreign |= connection.foreign_count() > 0;
        let end = end.map_err(|error| self.damaged(error))?;
        delivered.is_time_over |= time_over && end == DrainEnd::Stopped;
        if !delivered.is_time_over {
            delivered.reasons.extend(self.reasons(&end, &connection)?);
        }
        if let Some((verifier, timeout)) = verifier {
            // The timeout has stopped the replay through the same value; what was delivered is still read back.
            let stop = if delivered.is_time_over { Shutdown::new() } else { self.shutdown.clone() };
            if end != DrainEnd::Stopped || delivered.is_time_over {
                listener.note("reading back what was delivered");
            }
            delivered.verified.get_or_insert_default().add(verifier.finish(timeout, &stop));
        }
        delivered.ends.push(end);
        Ok(())
    }

    fn damaged(&self, error: StoreError) -> SessionError {
        match error {
            StoreError::Damaged { reason, .. } => {
                SessionError::Damaged { path: self.settings.store_path.clone(), reason }
            }
            error => SessionError::Store(error),
        }
    }

    /// Returns why messages remain after a round that ended so.
    fn reasons(&self, end: &DrainEnd, connection: &Connection) -> Result<Vec<String>, StoreError> {
        let mut reasons = Vec::new();
        match end {
            DrainEnd::Unavailable => {
                let reason = connection.state().reason.unwrap_or_else(|| "unknown reason".to_owned());
                reasons.push(format!("the Opik server went away: {reason}"));
            }
            DrainEnd::Stopped => reasons.push("interrupted; nothing is lost, run it again to continue".to_owned()),
            DrainEnd::LimitReached => reasons.push("the limit was reached".to_owned()),
            DrainEnd::Held => reasons.extend(self.held()?),
            DrainEnd::NotDue { next_due_at_ms } => {
                for (lane, hold) in self.store.condition()?.held {
                    reasons.push(format!("{lane}: {}", hold.reason));
                }
                let wait = Duration::from_millis(u64::try_from(next_due_at_ms - now_ms()).unwrap_or(0));
                reasons.push(format!("the next attempt is due in {}", short_duration(wait)));
            }
            DrainEnd::Empty => {}
        }
        Ok(reasons)
    }

    /// Returns until when a person holds the replay of this store, by whom, and what ends that; `None` if nobody does.
    ///
    /// # Errors
    ///
    /// Fails if the store can't be read.
    pub(crate) fn held(&self) -> Result<Option<String>, StoreError> {
        let hold = self.store.replay_hold()?;
        let held = hold.and_then(|hold| hold.left(now_ms()).map(|left| (hold, left)));
        Ok(held.map(|(hold, left)| {
            let (held, left, resume) = (held_text(&hold), short_duration(left), hint::command("replay --resume"));
            format!("{held} (for {left}): {resume} ends that")
        }))
    }

    /// Closes the store and recovers what can be read of it if `error` is that it was damaged; returns the error to
    /// report.
    pub(crate) fn recover(self, error: SessionError) -> SessionError {
        let SessionError::Damaged { reason, .. } = &error else { return error };
        let Self { settings, store, .. } = self;
        drop(store);
        match store::recover(&settings.store_path, reason, settings.store_limits, &settings.store_keys) {
            Ok(_) => error,
            Err(error) => error.into(),
        }
    }

    /// Erases unused credentials, counts the remaining messages, and explains why they remain.
    ///
    /// # Errors
    ///
    /// Fails if the store can't be read.
    pub(crate) fn conclude(
        &self,
        plan: Plan,
        connections: &ReachableServers,
        delivered: Delivered,
    ) -> Result<Conclusion, StoreError> {
        if let Err(error) = self.store.erase_credentials() {
            debug!(target: "db_manager", "cannot erase unused credentials yet: {error}");
        }
        let remaining = self.store.backlog(&plan.filter)?.waiting() + plan.untried;
        let Delivered { metrics, started, ends, mut reasons, verified, is_time_over, met_foreign } = delivered;
        if is_time_over {
            reasons.push("the time limit of --timeout is reached; run it again to continue".to_owned());
        }
        let messages = plan.messages();
        reasons.extend(plan.elsewhere);
        let held = Filter { statuses: vec![MessageStatus::Held], ..Filter::default() };
        let mut conclusion = Conclusion {
            ending: Ending::Complete,
            delivered: metrics.messages_delivered.get(),
            rejected: metrics.messages_rejected.get(),
            held: self.store.backlog(&held)?.messages(),
            remaining,
            requests: metrics.replay_requests.get(),
            seconds: started.elapsed().as_secs_f64(),
            reasons,
            verified,
            delivered_elsewhere: 0,
            refused_by: BTreeSet::new(),
        };
        let settled = conclusion.delivered + conclusion.rejected;
        conclusion.delivered_elsewhere = messages.saturating_sub(settled + remaining);
        let left = remaining - plan.untried;
        let is_drained = connections.away.is_empty() && ends.iter().all(|end| *end == DrainEnd::Empty);
        if is_drained && left > 0 && plan.filter != Filter::default() {
            let verb = if left == 1 { "waits" } else { "wait" };
            let waiting = count(left, "message");
            conclusion.reasons.push(format!("{waiting} {verb} for earlier ones that the filter does not select"));
        }
        conclusion.reasons.extend(self.stranded()?);
        if plan.untried > 0 {
            let reason =
                format!("at most {REQUEUED_MAX} refused messages are retried at a time; run it again for the rest");
            conclusion.reasons.push(reason);
        }
        if settled + remaining == 0 {
            conclusion.reasons.push("another process has replayed the selected messages".to_owned());
        }
        let is_any_away = !connections.away.is_empty();
        if conclusion.remaining > 0 {
            conclusion.refused_by = self.refused_by(&plan.filter)?;
        }
        let is_key_refused = !conclusion.refused_by.is_empty();
        let ended = RoundEnds { ends: &ends, is_time_over, met_foreign, is_any_away, is_key_refused };
        conclusion.ending = ended.ending(&conclusion);
        Ok(conclusion)
    }

    /// Returns the servers that refuse the key or the workspace of selected messages.
    fn refused_by(&self, filter: &Filter) -> Result<BTreeSet<Option<Server>>, StoreError> {
        let lanes = self.store.lanes(filter, now_ms())?.into_iter();
        let refused = lanes.filter(|lane| lane.hold.as_ref().is_some_and(Hold::is_credential_refused));
        Ok(refused.map(|lane| lane.lane.server).collect())
    }

    /// Returns how many messages wait for a create that the server refused, and for which.
    fn stranded(&self) -> Result<Vec<String>, StoreError> {
        let lanes = self.store.stranded()?.into_iter();
        let lanes = lanes.map(|stranded| {
            let verb = if stranded.messages == 1 { "waits" } else { "wait" };
            let messages = count(stranded.messages, "message");
            let (create, status) = (stranded.create, stranded.status);
            let inspect = hint::command(&format!("inspect {create}"));
            format!("{messages} {verb} for a create that the server refused ({status}): {inspect}")
        });
        Ok(lanes.collect())
    }
}

/// How the rounds of a session ended, which determines its [`Ending`] together with the counts.
struct RoundEnds<'a> {
    ends: &'a [DrainEnd],
    is_time_over: bool,
    met_foreign: bool,
    is_any_away: bool,
    is_key_refused: bool,
}

impl RoundEnds<'_> {
    fn ending(&self, conclusion: &Conclusion) -> Ending {
        let any = |wanted: DrainEnd| self.ends.contains(&wanted);
        if any(DrainEnd::Stopped) && !self.is_time_over {
            return Ending::Interrupted;
        }
        if any(DrainEnd::Unavailable) || self.is_any_away {
            return Ending::Unreachable;
        }
        if let Some(verified) = &conclusion.verified {
            if !verified.missing.is_empty() {
                return Ending::Remaining;
            }
            if verified.unread > 0 {
                return Ending::Unreachable;
            }
        }
        // This replay got such an answer, or another replay did a moment ago: then the lane is held.
        let is_foreign = self.met_foreign || conclusion.reasons.iter().any(|reason| reason.contains(NOT_OPIK));
        match (conclusion.remaining, conclusion.rejected, conclusion.held) {
            (0, 0, 0) => Ending::Complete,
            (_, 0, _) if any(DrainEnd::LimitReached) => Ending::Complete,
            // Even if other messages wait for a key or their next attempt: the answer did not come from Opik.
            (1.., _, _) if is_foreign => Ending::Unreachable,
            (1.., _, _) if self.is_key_refused => Ending::NotAuthorised,
            _ => Ending::Remaining,
        }
    }
}

/// Selects waiting messages unless a status was asked for; a message selected by its id is replayed even if it was
/// rejected or is held.
fn waiting_unless_named(filter: Filter) -> Filter {
    if !filter.statuses.is_empty() || !filter.ids.is_empty() {
        return filter;
    }
    Filter { statuses: vec![MessageStatus::Failed, MessageStatus::Registered], ..filter }
}

/// Returns whether only messages are selected that the server refused.
fn is_only_refused(filter: &Filter) -> bool {
    !filter.statuses.is_empty() && filter.statuses.iter().all(|status| status.is_refused())
}

/// Returns the servers of the selected messages, the one with the most messages first.
fn servers(backlog: &Backlog) -> Vec<Server> {
    let mut messages: BTreeMap<&Server, u64> = BTreeMap::new();
    for group in &backlog.groups {
        if let Some(server) = &group.server {
            *messages.entry(server).or_default() += group.messages;
        }
    }
    let mut servers: Vec<(&Server, u64)> = messages.into_iter().collect();
    servers.sort_by_key(|(_, messages)| Reverse(*messages));
    servers.into_iter().map(|(server, _)| server.clone()).collect()
}

/// Checks that the server is available, and returns what is unusual about its answer.
fn ping(upstream: &Upstream, timeout: Duration) -> Result<Option<String>, ServerAway> {
    let pong = upstream.ping(timeout).map_err(ServerAway::NoAnswer)?;
    match pong.presence.hint() {
        Some(hint) if matches!(pong.presence, Presence::Foreign(_) | Presence::Unhealthy(..)) => {
            Err(ServerAway::Unusable { sentence: pong.presence.sentence(upstream.base_url()), hint })
        }
        // Stored messages carry their own credentials.
        _ => Ok(pong.presence.reason()),
    }
}
