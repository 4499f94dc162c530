//! What the agent knows of itself, as plain values: for its status page, `/-/status.json` and the command `status`.
//!
//! One look reads the store's counts, never its messages, and no payload and no key gets in here: a lane shows its
//! workspace and, as everywhere, at most the beginning of its key. A look is kept for a second, so that however many
//! people watch, the store is asked once.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::full_watch::FullWatch;
use crate::delivery::eta::{Eta, Situation, eta};
use crate::delivery::pacing::PaceSettings;
use crate::message::{MessageStatus, Server};
use crate::monitor::Availability;
use crate::monitor::connection::Connection;
use crate::shutdown::Shutdown;
use crate::store::full_state::remedies;
use crate::store::slot::{SlotState, StoreSlot};
use crate::store::{Backlog, BacklogSeen, Condition, Filter, Hold, LaneWork, ReplayRecord, StoreError, now_ms};
use crate::telemetry::history::{self, History, Rates, Sample};
use crate::telemetry::metrics::Metrics;

/// Replays that are remembered.
const REPLAYS_MAX: usize = 10;
/// Lanes that are told about, those with the oldest messages first.
const LANES_MAX: usize = 200;
/// How old a look may be that is shown again.
const LOOK_AGE_MAX: Duration = Duration::from_secs(1);

/// Everything that the agent tells about itself. Fields are only ever added within one schema version.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// 1.
    pub schema_version: u32,
    /// When this was so, in milliseconds since the Unix epoch.
    pub at_ms: i64,
    pub agent: AgentStatus,
    pub server: ServerStatus,
    pub store: StoreStatus,
    /// `null` for the first seconds.
    pub rates: Option<Rates>,
    /// `null` while the store can't be read.
    pub eta: Option<EtaStatus>,
    /// Lanes with something to deliver, those with the oldest messages first; 200 at most.
    pub lanes: Vec<LaneStatus>,
    /// How many there are.
    pub lanes_total: u64,
    /// Replays that this agent saw, the newest first.
    pub replays: Vec<ReplayStatus>,
    /// A sample every 5 seconds of the last quarter of an hour, the oldest first.
    pub history: Vec<Sample>,
    /// A sample for each minute of the last day. Only for the page's plot: JSON for programs stays small.
    #[serde(skip)]
    pub day: Vec<Sample>,
}

#[derive(Clone, Debug, Serialize)]
pub struct AgentStatus {
    pub pid: u32,
    pub version: &'static str,
    pub listen: String,
    pub uptime_seconds: u64,
    /// What it has too few open files for, and what to do.
    pub files_problem: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct ServerStatus {
    pub url: String,
    /// `available`, `unavailable` or `unknown`.
    pub connection: &'static str,
    /// In milliseconds since the Unix epoch.
    pub since_ms: i64,
    /// Why it is unavailable.
    pub reason: Option<String>,
}

/// How the store stands. Without `usable` only `reason` says anything.
#[derive(Clone, Debug, Default, Serialize)]
pub struct StoreStatus {
    pub usable: bool,
    pub reason: Option<String>,
    /// What happens to protected writes: [`LiveWrites::word`].
    pub live_writes: &'static str,
    /// Writes that were refused since the store can't be used, because they may conflict with what waits in it.
    pub refused_while_unusable: u64,
    /// Since when it has to be written anew and synced before it is used again, because a write or a sync failed.
    pub unproven_since_ms: Option<i64>,
    /// Messages that still have to reach the server.
    pub waiting: u64,
    pub items: u64,
    pub body_bytes: u64,
    pub rejected: u64,
    pub oldest_accepted_at_ms: Option<i64>,
    pub groups: Vec<GroupStatus>,
    pub rejected_by_answer: Vec<RejectedStatus>,
    pub file_bytes: u64,
    pub size_max_bytes: Option<u64>,
    pub disk_free_bytes: Option<u64>,
    /// What its files can reach: the limit, or less where the disk has no room for that.
    pub capacity_bytes: Option<u64>,
    /// How it is full; `null` while it takes messages.
    pub full: Option<FullStatus>,
    /// Writes that were refused because it was full, since it was made.
    pub refused_writes: u64,
    /// Bytes of the bodies and files of rejected messages.
    pub rejected_body_bytes: u64,
    /// Rejected messages dropped because they held more than `rejected_share` and room was needed.
    pub rejected_dropped_messages: u64,
    pub dropped_messages: u64,
    /// Messages dropped because they had become older than `max_age`.
    pub expired_messages: u64,
    /// Damaged files that this store was recovered from, as long as they lie there.
    pub recoveries: Vec<RecoveryStatus>,
    /// Who replays right now.
    pub replaying: Option<String>,
    /// Messages in the store that were accepted for other servers: this agent does not deliver them.
    pub elsewhere: Vec<ElsewhereStatus>,
    /// Stores that were moved away with messages in them while they were in use. Writes that may conflict with those are
    /// refused until they are moved back, or delivered from where they are.
    pub moved_stores: Vec<String>,
}

/// What happens to protected writes, as far as the store decides it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LiveWrites {
    /// They are stored where the server can't take them.
    Stored,
    /// They are only passed on: nothing waits that they could overtake.
    PassedOn,
    /// Those that may conflict with what waits are refused, and the others only passed on.
    RefusedIfConflicting,
    /// All are refused: nobody can see what waits.
    Refused,
}

impl LiveWrites {
    /// Returns what happens to the writes to this server.
    pub fn of(slot: &StoreSlot, server: &Server) -> Self {
        match slot.state() {
            SlotState::Open => Self::Stored,
            SlotState::Unavailable { .. } => match slot.backlog_seen(server, &[]) {
                BacklogSeen::NeverWas | BacklogSeen::Empty => Self::PassedOn,
                BacklogSeen::Holds { .. } => Self::RefusedIfConflicting,
                BacklogSeen::Unknown => Self::Refused,
            },
        }
    }

    /// Returns the word for programs.
    pub fn word(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::PassedOn => "passed_on",
            Self::RefusedIfConflicting => "refused_if_conflicting",
            Self::Refused => "refused",
        }
    }

    /// Returns what an agent that says this word does, for people: it follows "it".
    pub fn text_of(word: &str) -> &'static str {
        match word {
            "refused_if_conflicting" => {
                "refuses live writes that may conflict with what waits, and only passes others on"
            }
            "refused" => "refuses live writes, because nobody can see what waits",
            _ => "only passes writes on",
        }
    }
}

/// How a store is full.
#[derive(Clone, Debug, Serialize)]
pub struct FullStatus {
    /// Since when, in milliseconds since the Unix epoch; `null` when no write has found it full.
    pub since_ms: Option<i64>,
    /// `max_size`, `disk_reserve`, `disk` or `rejected`.
    pub limit: &'static str,
    /// The limit with its figures.
    pub reason: String,
    /// Writes that were refused since then.
    pub refused_writes: u64,
    /// Writes that the server took at once instead.
    pub passed_on_writes: u64,
    /// What to do, with commands.
    pub remedies: Vec<String>,
}

/// Messages that were accepted for another server. Everything else that the agent tells is about its own server.
#[derive(Clone, Debug, Serialize)]
pub struct ElsewhereStatus {
    /// The base URL of its API; `null` for what an earlier version stored.
    pub server: Option<String>,
    /// Messages that still have to reach it.
    pub waiting: u64,
    /// Messages that it refused.
    pub rejected: u64,
}

/// Sums up what other servers than this one have, in the order of their URLs.
pub fn elsewhere(all: &Backlog, own: &Server) -> Vec<ElsewhereStatus> {
    let mut servers: BTreeMap<&Option<Server>, (u64, u64)> = BTreeMap::new();
    for group in all.groups.iter().filter(|group| group.server.as_ref() != Some(own)) {
        let sums = servers.entry(&group.server).or_default();
        match group.status.is_on_its_way() {
            true => sums.0 += group.messages,
            false => sums.1 += group.messages,
        }
    }
    let status = |(server, (waiting, rejected)): (&Option<Server>, _)| ElsewhereStatus {
        server: server.as_ref().map(ToString::to_string),
        waiting,
        rejected,
    };
    servers.into_iter().map(status).collect()
}

/// How the store was recovered from a damaged file. Its path is for people of this machine: `opik-offline status`.
#[derive(Clone, Debug, Serialize)]
pub struct RecoveryStatus {
    pub at_ms: i64,
    /// What was wrong with the file.
    pub reason: String,
    pub recovered_messages: u64,
    /// Messages that are known to have been in it and could not be read whole.
    pub lost_messages: u64,
}

/// Messages of one status, type and workspace.
#[derive(Clone, Debug, Serialize)]
pub struct GroupStatus {
    pub status: &'static str,
    pub message_type: &'static str,
    pub workspace: String,
    pub messages: u64,
    pub items: u64,
    pub body_bytes: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct RejectedStatus {
    /// The status of the server's answer; `null` when none came.
    pub status: Option<u16>,
    pub messages: u64,
}

/// An [`Eta`] with its words.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EtaStatus {
    #[serde(flatten)]
    pub eta: Eta,
    pub text: String,
}

impl From<Eta> for EtaStatus {
    fn from(eta: Eta) -> Self {
        Self { eta, text: eta.to_string() }
    }
}

#[derive(Clone, Debug, Serialize)]
pub struct LaneStatus {
    pub workspace: String,
    /// At most the first four characters; `null` for clients that send none.
    pub key: Option<String>,
    pub waiting: u64,
    pub held: Option<HeldStatus>,
}

#[derive(Clone, Debug, Serialize)]
pub struct HeldStatus {
    /// In milliseconds since the Unix epoch; past when it is tried again and nothing has passed yet.
    pub until_ms: i64,
    pub reason: String,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReplayStatus {
    /// `agent` or `replay`.
    pub by: String,
    pub started_at_ms: i64,
    pub ended_at_ms: i64,
    pub delivered: u64,
    pub rejected: u64,
    pub remaining: u64,
}

/// What is looked at, and what was seen of late.
pub struct Watch {
    slot: Arc<StoreSlot>,
    connection: Arc<Connection>,
    metrics: Arc<Metrics>,
    pace: PaceSettings,
    server: Server,
    server_url: String,
    listen: String,
    files_problem: Option<String>,
    started: Instant,
    history: History,
    replays: Mutex<VecDeque<ReplayRecord>>,
    full: FullWatch,
    last_look: Mutex<Option<(Instant, Arc<Status>)>>,
}

impl Watch {
    /// Returns a watch over these parts of an agent that starts now.
    pub fn new(
        slot: Arc<StoreSlot>,
        connection: Arc<Connection>,
        metrics: Arc<Metrics>,
        pace: PaceSettings,
        server_url: String,
        listen: String,
    ) -> Self {
        Self {
            slot,
            connection,
            full: FullWatch::new(metrics.clone()),
            metrics,
            pace,
            server: Server::new(&server_url),
            server_url,
            listen,
            files_problem: None,
            started: Instant::now(),
            history: History::default(),
            replays: Mutex::default(),
            last_look: Mutex::default(),
        }
    }

    /// Tells what the agent has too few open files for.
    #[must_use]
    pub fn limited_by(self, files_problem: Option<String>) -> Self {
        Self { files_problem, ..self }
    }

    /// Returns what the agent has too few open files for.
    pub fn files_problem(&self) -> Option<&str> {
        self.files_problem.as_deref()
    }

    /// Takes samples until shutdown.
    pub fn run(&self, shutdown: &Shutdown) {
        loop {
            let own = Filter::of_server(&self.server);
            let read = self.slot.with(|store| Ok((store.backlog(&own)?, store.condition()?)));
            if let Ok((_, condition)) = &read {
                self.full.looked(&self.slot, condition);
                if let Some(record) = &condition.last_replay {
                    self.note_replay(record);
                }
            }
            self.history.note(self.sample(read.as_ref().ok().map(|(backlog, _)| backlog)));
            if shutdown.sleep(history::FINE_INTERVAL) {
                return;
            }
        }
    }

    /// Returns who watches whether the store is full.
    pub fn full(&self) -> &FullWatch {
        &self.full
    }

    /// Returns how long the agent has been running.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Looks at everything, or returns a look that is less than a second old.
    pub fn status(&self) -> Arc<Status> {
        // Held during the look: whoever comes meanwhile wants the same.
        let mut last = lock(&self.last_look);
        if let Some((_, status)) = last.as_ref().filter(|(looked, _)| looked.elapsed() < LOOK_AGE_MAX) {
            return status.clone();
        }
        let status = Arc::new(self.look());
        *last = Some((Instant::now(), status.clone()));
        status
    }

    fn unusable(&self, error: &StoreError) -> StoreStatus {
        let refused_while_unusable = match self.slot.state() {
            SlotState::Unavailable { refused, .. } => refused,
            SlotState::Open => 0,
        };
        let live_writes = LiveWrites::of(&self.slot, &self.server).word();
        let unproven_since_ms = match error {
            StoreError::Unproven { .. } => self.slot.unproven().map(|unproven| unproven.since_ms),
            _ => None,
        };
        let reason = Some(error.to_string());
        StoreStatus { reason, unproven_since_ms, live_writes, refused_while_unusable, ..StoreStatus::default() }
    }

    fn look(&self) -> Status {
        let now = now_ms();
        let read = self.slot.try_with(|store| {
            let own = Filter::of_server(&self.server);
            let elsewhere = elsewhere(&store.backlog(&Filter::default())?, &self.server);
            Ok((store.backlog(&own)?, store.condition()?, store.lanes(&own, now)?, elsewhere))
        });
        let sample = self.sample(read.as_ref().ok().map(|(backlog, ..)| backlog));
        let mut history = self.history.recent();
        history.push(sample);
        let rates = history::rates(&history);
        let (mut store, mut lanes) = match &read {
            Err(error) => (self.unusable(error), &[][..]),
            Ok((backlog, condition, lanes, elsewhere)) => {
                if let Some(record) = &condition.last_replay {
                    self.note_replay(record);
                }
                let refused_writes = self.full.since_made(condition);
                self.full.looked(&self.slot, condition);
                let mut store = StoreStatus { elsewhere: elsewhere.clone(), ..usable(backlog, condition) };
                store.full = self.full_status(&store, condition);
                store.refused_writes = refused_writes;
                (store, &lanes[..])
            }
        };
        store.moved_stores = self.slot.moved().iter().map(|path| path.display().to_string()).collect();
        let lanes_total = lanes.len() as u64;
        let held_for = held_for(lanes, now);
        lanes = &lanes[..lanes.len().min(LANES_MAX)];
        let replays: Vec<ReplayStatus> = lock(&self.replays).iter().map(replay_status).collect();
        let situation = Situation {
            waiting: store.waiting,
            available: sample.available,
            is_replayed: true,
            pace: self.pace,
            drained_per_second: drained(&history, sample.available),
            stored_per_second: rates.map_or(0.0, |rates| rates.stored_per_second),
            last_per_second: lock(&self.replays).iter().find_map(pace_of),
            held_for,
            is_stalled: history::is_stalled(&history),
        };
        let state = self.connection.state();
        Status {
            schema_version: 1,
            at_ms: now,
            agent: AgentStatus {
                pid: std::process::id(),
                version: env!("CARGO_PKG_VERSION"),
                listen: self.listen.clone(),
                uptime_seconds: self.uptime().as_secs(),
                files_problem: self.files_problem.clone(),
            },
            server: ServerStatus {
                url: self.server_url.clone(),
                connection: connection_word(state.availability),
                since_ms: state.since.duration_since(UNIX_EPOCH).map_or(0, |since| millis(since) as i64),
                reason: state.reason,
            },
            eta: store.usable.then(|| eta(&situation).into()),
            store,
            rates,
            lanes: lanes.iter().map(lane_status).collect(),
            lanes_total,
            replays,
            day: self.history.day().into_iter().chain([sample]).collect(),
            history,
        }
    }

    /// Returns how the store is full: as writes have found it, or as it measures itself before any has.
    fn full_status(&self, store: &StoreStatus, condition: &Condition) -> Option<FullStatus> {
        let episode = self.full.episode();
        let fullness = episode.as_ref().map(|episode| &episode.fullness).or(condition.full.as_ref())?;
        Some(FullStatus {
            since_ms: episode.as_ref().map(|episode| episode.since_ms),
            limit: fullness.limit.name(),
            reason: fullness.reason.clone(),
            refused_writes: episode.as_ref().map_or(0, |episode| episode.refused),
            passed_on_writes: episode.as_ref().map_or(0, |episode| episode.passed_on),
            remedies: remedies(fullness.limit, store.waiting, store.rejected, ""),
        })
    }

    fn sample(&self, backlog: Option<&Backlog>) -> Sample {
        let waits = |backlog: &Backlog| waiting_sums(backlog).2;
        Sample {
            at_ms: now_ms(),
            uptime_ms: millis(self.uptime()),
            available: match self.connection.availability() {
                Availability::Unknown => None,
                Availability::Available => Some(true),
                Availability::Unavailable => Some(false),
            },
            waiting: backlog.map(Backlog::waiting),
            waiting_bytes: backlog.map(waits),
            kept: backlog.map(Backlog::rejected),
            forwarded: self.metrics.requests_forwarded.get(),
            stored: self.metrics.messages_registered.get(),
            delivered: self.metrics.messages_delivered.get(),
            rejected: self.metrics.messages_rejected.get(),
        }
    }

    /// Remembers a replay; one that went on since is brought up to date.
    fn note_replay(&self, record: &ReplayRecord) {
        let mut replays = lock(&self.replays);
        match replays.iter_mut().find(|known| known.started_at_ms == record.started_at_ms && known.role == record.role)
        {
            Some(known) => *known = record.clone(),
            None => {
                replays.push_front(record.clone());
                replays.truncate(REPLAYS_MAX);
            }
        }
    }
}

/// The present pace, or while the server is away the last one that was seen.
fn drained(history: &[Sample], available: Option<bool>) -> Option<f64> {
    if available == Some(false) {
        return history::drain_rate(history);
    }
    let since = history.len().saturating_sub(RECENT_SAMPLES);
    history::drain_rate(&history[since..])
}

/// Samples that tell the present pace: it changes by the second while replay speeds up.
const RECENT_SAMPLES: usize = 4;

/// Returns messages, items and bytes that wait.
fn waiting_sums(backlog: &Backlog) -> (u64, u64, u64) {
    let waiting = backlog.groups.iter().filter(|group| group.status.is_on_its_way());
    waiting.fold((0, 0, 0), |sum, group| (sum.0 + group.messages, sum.1 + group.items, sum.2 + group.body_bytes))
}

/// Returns the bytes of the bodies and files of rejected messages.
pub fn rejected_body_bytes(backlog: &Backlog) -> u64 {
    let rejected = backlog.groups.iter().filter(|group| group.status == MessageStatus::Rejected);
    rejected.map(|group| group.body_bytes).sum()
}

fn usable(backlog: &Backlog, condition: &Condition) -> StoreStatus {
    let (waiting, items, body_bytes) = waiting_sums(backlog);
    StoreStatus {
        usable: true,
        reason: None,
        live_writes: LiveWrites::Stored.word(),
        refused_while_unusable: 0,
        moved_stores: Vec::new(),
        unproven_since_ms: condition.unproven.as_ref().map(|unproven| unproven.since_ms),
        waiting,
        items,
        body_bytes,
        rejected: backlog.rejected(),
        oldest_accepted_at_ms: backlog.oldest_accepted_at_ms,
        groups: backlog
            .groups
            .iter()
            .map(|group| GroupStatus {
                status: group.status.name(),
                message_type: group.message_type.name(),
                workspace: group.workspace.clone(),
                messages: group.messages,
                items: group.items,
                body_bytes: group.body_bytes,
            })
            .collect(),
        rejected_by_answer: backlog
            .rejected_by_answer
            .iter()
            .map(|(status, messages)| RejectedStatus { status: *status, messages: *messages })
            .collect(),
        file_bytes: condition.file_bytes,
        size_max_bytes: condition.size_max,
        disk_free_bytes: condition.disk_free_bytes,
        capacity_bytes: condition.capacity_bytes,
        full: None,
        refused_writes: condition.full_record.refused,
        rejected_body_bytes: rejected_body_bytes(backlog),
        rejected_dropped_messages: condition.rejected_dropped,
        dropped_messages: condition.dropped,
        expired_messages: condition.expired,
        recoveries: (condition.recoveries.iter().filter(|recovery| recovery.is_kept))
            .map(|recovery| RecoveryStatus {
                at_ms: recovery.at_ms,
                reason: recovery.reason.clone(),
                recovered_messages: recovery.recovered,
                lost_messages: recovery.lost,
            })
            .collect(),
        replaying: condition.lease.as_ref().map(ToString::to_string),
        elsewhere: Vec::new(),
    }
}

fn lane_status(work: &LaneWork) -> LaneStatus {
    LaneStatus {
        workspace: work.lane.workspace_name().to_owned(),
        key: work.lane.credential.as_ref().map(ToString::to_string),
        waiting: work.failed,
        held: work.holds().next().map(|hold| HeldStatus { until_ms: hold.until_ms, reason: reasons(work, hold) }),
    }
}

fn replay_status(record: &ReplayRecord) -> ReplayStatus {
    ReplayStatus {
        by: record.role.clone(),
        started_at_ms: record.started_at_ms,
        ended_at_ms: record.ended_at_ms,
        delivered: record.delivered,
        rejected: record.rejected,
        remaining: record.remaining,
    }
}

/// Returns why a lane waits, with every bucket that is limited.
fn reasons(work: &LaneWork, first: &Hold) -> String {
    let others = work.holds().skip(1).filter_map(|hold| hold.bucket).map(|bucket| format!("; {}", bucket.name()));
    std::iter::once(first.reason.clone()).chain(others).collect()
}

/// Returns how long until the first of these lanes is tried again, if all of them are held.
fn held_for(lanes: &[LaneWork], now_ms: i64) -> Option<Duration> {
    let until =
        |work: &LaneWork| work.held_as_a_whole(now_ms).map(|hold| hold.until_ms).filter(|until| *until > now_ms);
    let untils = lanes.iter().map(until).collect::<Option<Vec<i64>>>()?;
    let first = untils.into_iter().min()?;
    Some(Duration::from_millis((first - now_ms).unsigned_abs()))
}

/// Returns the messages per second of a replay; `None` for one that was over before it had got up speed.
pub fn pace_of(record: &ReplayRecord) -> Option<f64> {
    const DELIVERED_MIN: u64 = 500;
    let milliseconds = (record.ended_at_ms - record.started_at_ms).max(1) as f64;
    (record.delivered >= DELIVERED_MIN).then(|| record.delivered as f64 * 1000.0 / milliseconds)
}

/// Returns what people and programs read of the connection.
pub fn connection_word(availability: Availability) -> &'static str {
    match availability {
        Availability::Unknown => "unknown",
        Availability::Available => "available",
        Availability::Unavailable => "unavailable",
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Every change is one assignment, so a panic elsewhere left it whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Credential, Lane};
    use crate::store::LaneId;

    fn lane(until_ms: Option<i64>) -> LaneWork {
        let hold = until_ms.map(|until_ms| Hold {
            until_ms,
            reason: "429".into(),
            probe: false,
            status: Some(429),
            bucket: None,
        });
        let lane = Lane { credential: Some(Credential::new("made-up-key-0123456789")), ..Lane::default() };
        LaneWork { id: LaneId(1), lane, failed: 3, due_at_ms: 0, hold, limits: Vec::new(), waits_for: None }
    }

    #[test]
    fn work_is_held_only_if_every_lane_is() {
        for (name, lanes, expected) in [
            ("no lane", vec![], None),
            ("one may go", vec![lane(Some(5000)), lane(None)], None),
            ("one is tried again", vec![lane(Some(5000)), lane(Some(900))], None),
            ("the first counts", vec![lane(Some(5000)), lane(Some(3000))], Some(Duration::from_secs(2))),
        ] {
            assert_eq!(held_for(&lanes, 1000), expected, "{name}");
        }
    }

    #[test]
    fn a_few_messages_are_no_pace() {
        let record = |delivered| ReplayRecord {
            role: "agent".into(),
            started_at_ms: 1000,
            ended_at_ms: 3000,
            delivered,
            rejected: 0,
            remaining: 0,
        };
        assert_eq!([499, 500].map(|delivered| pace_of(&record(delivered))), [None, Some(250.0)]);
    }

    #[test]
    fn a_lane_shows_no_key() {
        let text = serde_json::to_string(&lane_status(&lane(None))).expect("plain values");
        assert!(text.contains(r#""key":"made***""#) && !text.contains("made-up"), "{text}");
    }
}
