//! The report of `status` as JSON and YAML: an overview in the fields of its schema.

mod copies;
mod facts;
pub(crate) mod gather;
pub(crate) mod screen;
pub(crate) mod watch;

pub(crate) use self::facts::held_facts;
use serde::Serialize;

use self::copies::CopiesReport;
use self::gather::Gathered;
use crate::config::Config;
use crate::delivery::eta::EtaState;
use crate::delivery::id_window;
use crate::delivery::pacing::Pace;
use crate::diagnosis::{Diagnosis, Facts, OverallVerdict, Problem, Severity, StrandedFacts, diagnose};
use crate::figures::{time, until};
use crate::hint;
use crate::message::{Lane, Server};
use crate::overview::asked::AskedAgent;
use crate::overview::details::{REASONS_OF_NEWEST, StoreDetails};
use crate::overview::{
    EdgesOverview, ElsewhereOverview, EtaOverview, FleetOverview, FullOverview, HubOverview, Overview,
    RecoveryOverview, ReplayOverview, StoreOverview,
};
use crate::printable::shell_word;
use crate::report::groups::{GroupRow, groups};
use crate::report::orphans::{OrphanLine, orphans};
use crate::report::refused::ForwardedRefusedReport;
use crate::report::replay_hold::ReplayHoldLine;
use crate::report::totals::{TotalsBy, TotalsRow, totals};
use crate::store::{AdoptionRecord, Encryption, Hold, KeyState, mount, now_ms};
use crate::telemetry::history::{Rates, Sample};
use crate::translate;

/// Everything that `status` reports. Fields are only ever added within one schema version.
#[derive(Serialize)]
pub(crate) struct StatusReport {
    pub schema_version: u32,
    /// Is the data safe, is it moving, when will it be done; or what is wrong.
    pub verdict: VerdictReport,
    /// The worst first.
    pub problems: Vec<Problem>,
    pub server: ServerReport,
    pub agent: AgentReport,
    /// An agent at the configured address that uses another store; `null` if there is none.
    pub other_agent: Option<OtherAgentReport>,
    /// Agents that send through the running agent.
    pub edges: EdgesOverview,
    /// `null` when the store can't be read.
    pub backlog: Option<BacklogReport>,
    pub rejected: Option<RejectedReport>,
    /// Messages whose ids are outside the server's window; `null` when the store can't be read.
    pub held_ids: Option<HeldIds>,
    /// Messages that wait for a create that the server refused, by workspace; `null` when the store can't be read.
    pub stranded: Option<Vec<StrandedFacts>>,
    /// The throughput; `null` when no agent answers.
    pub rates: Option<Rates>,
    /// Writes of applications that the server refused since the agent started; `null` when no agent answers.
    pub forwarded_refused: Option<ForwardedRefusedReport>,
    /// When the backlog will have reached the server; `null` when the store can't be read.
    pub eta: Option<EtaOverview>,
    pub store: StoreReport,
    /// The copies in the fleet's depot, as the running agent knows them; only with a depot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fleet: Option<FleetOverview>,
    /// Messages with copies in a depot; only if there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copies: Option<CopiesReport>,
    pub held: Vec<HeldLane>,
    /// Messages that were accepted for other servers than `server`.
    pub elsewhere: Vec<ElsewhereOverview>,
    /// Which servers the messages of earlier versions, which recorded no server, were assigned to.
    pub adopted: Vec<Adopted>,
    /// Stores that killed Python processes of this user left in the temporary folder.
    pub orphans: Vec<OrphanLine>,
    pub last_replay: Option<LastReplay>,
    /// The agent's recent samples, for `--watch`; empty when no agent answers.
    #[serde(skip)]
    pub history: Vec<Sample>,
    /// The present sample, for `--watch` without an agent.
    #[serde(skip)]
    pub sample: Sample,
    /// In milliseconds since the Unix epoch.
    #[serde(skip)]
    pub now_ms: i64,
}

impl StatusReport {
    pub(crate) fn of(config: &Config, gathered: &Gathered) -> Self {
        let overview = &gathered.overview;
        let details = gathered.store.as_ref().ok();
        let condition = details.and_then(|details| details.condition.as_ref());
        let held = condition.map_or(&[][..], |condition| &condition.held);
        let adoptions = condition.map_or(&[][..], |condition| &condition.adoptions);
        let copies = CopiesReport::of(config, gathered);
        let eta = copies.as_ref().and_then(CopiesReport::eta).or_else(|| overview.eta.clone());
        let held_until =
            overview.store.replay_hold.as_ref().map(|hold| until(overview.at_ms, hold.until_ms.cast_signed()));
        let eta = eta.map(|eta| worded(eta, held_until, gathered.agent.is_some()));
        let orphans = orphans();
        let deliver = copies.as_ref().and_then(CopiesReport::command);
        let facts = Facts { eta: eta.as_ref().map(|eta| eta.eta), ..facts::facts(config, gathered, &orphans, deliver) };
        let Diagnosis { verdict, mut problems } = diagnose(&facts);
        // Commands are about the server that is shown, which is the agent's.
        let url = Some(&overview.server.url).filter(|url| Server::new(url) != translate::server(config));
        let completed = |text: &str| match url {
            Some(url) => hint::completed(&hint::about_server(text, shell_word(url.as_ref()))).into_owned(),
            None => hint::completed(text).into_owned(),
        };
        for fix in problems.iter_mut().flat_map(|problem| &mut problem.fixes) {
            *fix = completed(fix);
        }
        Self {
            schema_version: overview.schema_version,
            verdict: VerdictReport::of(verdict, completed),
            problems,
            server: ServerReport::of(gathered),
            agent: AgentReport::of(gathered),
            other_agent: gathered.other_agent.as_ref().map(OtherAgentReport::of),
            edges: overview.edges.clone(),
            backlog: details.map(|details| BacklogReport::of(config, overview, details)),
            rejected: details.map(RejectedReport::of),
            held_ids: details.map(HeldIds::of),
            stranded: details.map(|_| facts.stranded),
            rates: overview.rates,
            forwarded_refused: overview.forwarded_refused.as_ref().map(ForwardedRefusedReport::of),
            eta,
            store: StoreReport::of(config, gathered),
            fleet: overview.fleet.clone(),
            copies,
            held: held.iter().map(|(lane, hold)| HeldLane::of(lane, hold, overview.at_ms)).collect(),
            elsewhere: overview.store.elsewhere.clone(),
            adopted: adoptions.iter().map(Adopted::of).collect(),
            orphans,
            last_replay: overview.replays.first().map(LastReplay::of),
            history: overview.history.clone(),
            sample: gathered.sample,
            now_ms: overview.at_ms,
        }
    }
}

/// Returns an estimate with its commands completed. While a person holds the replay, nothing begins before that ends;
/// without an agent, nothing begins when the server is back.
fn worded(eta: EtaOverview, held: Option<String>, has_agent: bool) -> EtaOverview {
    let text = match (eta.eta.state, held) {
        (EtaState::Nothing, _) => eta.text,
        (_, Some(until)) => {
            let then = eta.eta.time().map_or(String::new(), |time| format!("; then {time}"));
            format!("held until {until}{then}")
        }
        (EtaState::ServerAway, None) if !has_agent => {
            let (agent, replay) = (hint::command("agent"), hint::command("replay"));
            format!("begins when the server is back and {agent} or {replay} runs")
        }
        _ => hint::completed(&eta.text).into_owned(),
    };
    EtaOverview { text, ..eta }
}

/// The verdict on everything.
#[derive(Serialize)]
pub(crate) struct VerdictReport {
    pub level: Severity,
    pub text: String,
    /// The one command that mends what is wrong; `null` if nothing is, or if it mends itself.
    pub command: Option<String>,
    /// The whole, for people.
    #[serde(skip)]
    pub sentence: String,
}

impl VerdictReport {
    /// `completed` completes the commands in a text.
    fn of(verdict: OverallVerdict, completed: impl Fn(&str) -> String) -> Self {
        let command = |command: &String| completed(&format!("`{command}`")).trim_matches('`').to_owned();
        let verdict = OverallVerdict { command: verdict.command.as_ref().map(command), ..verdict };
        let sentence = verdict.sentence();
        Self { level: verdict.level, text: verdict.text, command: verdict.command, sentence }
    }
}

#[derive(Serialize)]
pub(crate) struct ServerReport {
    pub url: String,
    /// `available` or `unavailable`; `unknown` when an agent has just started.
    pub connection: &'static str,
    pub since: Option<String>,
    #[serde(skip)]
    pub since_ms: Option<i64>,
    pub reason: Option<String>,
    pub latency_ms: Option<u64>,
    /// The hub that this server is; `null` if it is none.
    pub hub: Option<HubReport>,
}

/// A hub and its own server.
#[derive(Serialize)]
pub(crate) struct HubReport {
    pub version: Option<String>,
    pub server_url: Option<String>,
    /// `available`, `unavailable` or `unknown`.
    pub connection: String,
    pub since: Option<String>,
    #[serde(skip)]
    pub since_ms: Option<i64>,
    /// Messages that wait in the hub's store.
    pub waiting: Option<u64>,
}

impl HubReport {
    fn of(hub: &HubOverview) -> Self {
        let since_ms = hub.since_ms.and_then(|since| i64::try_from(since).ok());
        Self {
            version: hub.version.clone(),
            server_url: hub.server_url.clone(),
            connection: hub.connection.clone(),
            since: since_ms.map(time),
            since_ms,
            waiting: hub.waiting,
        }
    }
}

impl ServerReport {
    fn of(gathered: &Gathered) -> Self {
        let server = &gathered.overview.server;
        Self {
            url: server.url.clone(),
            connection: server.connection,
            since: server.since_ms.map(time),
            since_ms: server.since_ms,
            reason: server.reason.clone(),
            latency_ms: gathered.latency_ms,
            hub: server.hub.as_ref().map(HubReport::of),
        }
    }
}

#[derive(Serialize)]
pub(crate) struct AgentReport {
    pub running: bool,
    pub pid: Option<u32>,
    pub listen: Option<String>,
    pub version: Option<String>,
    pub uptime_seconds: Option<u64>,
    /// Why the agent can't use its store; this command may be able to.
    pub store_problem: Option<String>,
    /// The word for what it does with live writes meanwhile: [`crate::overview::LiveWrites::word`].
    pub live_writes: Option<String>,
    /// The limits that follow from too few file descriptors, and what to do.
    pub files_problem: Option<String>,
    /// The protocol of a client that nobody understands, with the remedy.
    pub client_problem: Option<String>,
}

impl AgentReport {
    fn of(gathered: &Gathered) -> Self {
        let agent = gathered.agent.as_ref();
        let overview = agent.map(|agent| &agent.overview);
        Self {
            running: agent.is_some(),
            pid: overview.map(|overview| overview.pid),
            listen: overview.map(|overview| overview.listen.clone()),
            version: overview.map(|overview| overview.version.clone()),
            uptime_seconds: overview.map(|overview| overview.uptime_seconds),
            store_problem: agent.and_then(|agent| agent.store_problem.clone()),
            live_writes: agent.and_then(|agent| agent.live_writes.clone()),
            files_problem: overview.and_then(|overview| overview.files_problem.clone()),
            client_problem: overview.and_then(|overview| overview.client_problem.clone()),
        }
    }
}

/// An agent that uses another store than the one that is shown.
#[derive(Serialize)]
pub(crate) struct OtherAgentReport {
    pub pid: u32,
    pub listen: String,
    /// The path of its store.
    pub db: Option<String>,
    /// Its server.
    pub server: Option<String>,
    /// Messages that wait in its store; `null` if it can't use it.
    pub waiting: Option<u64>,
    pub rejected: Option<u64>,
    pub oldest_accepted_at: Option<String>,
    pub oldest_age_seconds: Option<u64>,
}

impl OtherAgentReport {
    fn of(agent: &AskedAgent) -> Self {
        let oldest_ms = agent.store.oldest_accepted_at_ms;
        let age_ms = oldest_ms.map(|oldest| now_ms().saturating_sub(oldest));
        Self {
            pid: agent.overview.pid,
            listen: agent.overview.listen.clone(),
            db: agent.store.path.clone(),
            server: agent.server.as_ref().map(|server| server.url.clone()),
            waiting: agent.store.waiting,
            rejected: agent.store.rejected,
            oldest_accepted_at: oldest_ms.map(time),
            oldest_age_seconds: age_ms.map(|age_ms| u64::try_from(age_ms / 1000).unwrap_or(0)),
        }
    }
}

#[derive(Serialize)]
pub(crate) struct BacklogReport {
    pub messages: u64,
    pub items: u64,
    pub body_bytes: u64,
    pub oldest_accepted_at: Option<String>,
    pub oldest_age_seconds: Option<u64>,
    /// At the configured pace; replay is faster while the server keeps up.
    pub eta_seconds_max: f64,
    pub groups: Vec<GroupRow>,
    /// Sums of all stored messages by workspace, the largest first.
    pub workspaces: Vec<TotalsRow>,
}

impl BacklogReport {
    fn of(config: &Config, overview: &Overview, details: &StoreDetails) -> Self {
        let StoreOverview { waiting, items, body_bytes, oldest_accepted_at_ms: oldest, .. } = overview.store;
        let age_ms = |oldest| overview.at_ms.saturating_sub(oldest);
        Self {
            messages: waiting,
            items,
            body_bytes,
            oldest_accepted_at: oldest.map(time),
            oldest_age_seconds: oldest.map(|oldest| u64::try_from(age_ms(oldest) / 1000).unwrap_or(0)),
            eta_seconds_max: Pace::start(translate::pace(config)).pauses_for(waiting).as_secs_f64(),
            groups: groups(&details.backlog),
            workspaces: totals(&details.backlog, TotalsBy::Workspace),
        }
    }
}

#[derive(Serialize)]
pub(crate) struct RejectedReport {
    pub messages: u64,
    pub by_answer: Vec<AnswerCount>,
    /// The most frequent answers among the newest of them, `reasons_of_newest` at most.
    pub reasons: Vec<ReasonReport>,
    pub reasons_of_newest: u64,
}

impl RejectedReport {
    fn of(details: &StoreDetails) -> Self {
        let by_answer = details.backlog.rejected_by_answer.iter();
        let reasons = details.reasons.iter().map(|reason| ReasonReport {
            status: reason.status,
            text: reason.text.clone(),
            messages: reason.messages,
        });
        Self {
            messages: details.backlog.rejected(),
            reasons: reasons.collect(),
            reasons_of_newest: REASONS_OF_NEWEST as u64,
            by_answer: by_answer
                .map(|(status, messages)| AnswerCount { status: *status, messages: *messages })
                .collect(),
        }
    }
}

/// An answer with which the server rejected messages.
#[derive(Serialize)]
pub(crate) struct ReasonReport {
    pub status: Option<u16>,
    pub text: String,
    pub messages: u64,
}

#[derive(Serialize)]
pub(crate) struct AnswerCount {
    pub status: Option<u16>,
    pub messages: u64,
}

/// Messages that the server refuses because of the time in their ids.
#[derive(Serialize)]
pub(crate) struct HeldIds {
    pub messages: u64,
    /// The change that makes the server accept them.
    pub remedy: &'static str,
    /// When the oldest create that still waits was accepted, if it comes near the default window of 24 hours.
    pub create_near_window_accepted_at: Option<String>,
}

impl HeldIds {
    fn of(details: &StoreDetails) -> Self {
        Self {
            messages: details.backlog.held(),
            remedy: id_window::REMEDY,
            create_near_window_accepted_at: details.near_window_ms.map(time),
        }
    }
}

#[derive(Serialize)]
pub(crate) struct StoreReport {
    pub path: String,
    /// `usable`, `none` (nothing was ever stored) or `unusable`.
    pub state: &'static str,
    pub reason: Option<String>,
    /// Since when it has to be rewritten and synced before it is used again, because a write or a sync failed.
    pub unproven_since: Option<String>,
    /// The write or sync that failed.
    pub unproven_reason: Option<String>,
    pub file_bytes: Option<u64>,
    pub size_max_bytes: Option<u64>,
    /// Why the file system under it is less durable than a disk of this machine, if it is.
    pub file_system_problem: Option<String>,
    pub disk_free_bytes: Option<u64>,
    /// The size that its files can reach: the limit, or less if the disk has no room for that.
    pub capacity_bytes: Option<u64>,
    /// Why it is full; `null` while it accepts messages, and when it can't be read.
    pub full: Option<FullReport>,
    /// Writes that agents refused because it was full, since it was created.
    pub refused_writes: u64,
    /// Bytes of the bodies and files of rejected messages.
    pub rejected_body_bytes: u64,
    /// Rejected messages evicted because they took more than `rejected_share` and room was needed.
    pub rejected_dropped_messages: u64,
    pub dropped_messages: u64,
    /// Messages that expired: they were older than `max_age`.
    pub expired_messages: u64,
    /// Corrupt files that this store was recovered from, until they are deleted.
    pub recoveries: Vec<RecoveryReport>,
    /// Stores that were moved away under the running agent, with messages in them.
    pub moved_stores: Vec<String>,
    pub replaying: Option<String>,
    /// A person's hold of the replay; `null` if there is none in force.
    pub replay_hold: Option<ReplayHoldLine>,
    /// `null` when there is no store, or none that can be read.
    pub encryption: Option<EncryptionReport>,
}

impl StoreReport {
    fn of(config: &Config, gathered: &Gathered) -> Self {
        let path = &config.db.value;
        let store = &gathered.overview.store;
        let condition = gathered.store.as_ref().ok().and_then(|details| details.condition.as_ref());
        let unproven = crate::store::unproven(path);
        let mount = mount::look_at(path);
        Self {
            path: path.display().to_string(),
            state: match (store.usable, &gathered.store) {
                (true, _) => "usable",
                (false, Err(_)) => "unusable",
                (false, Ok(_)) => "none",
            },
            reason: store.reason.clone(),
            unproven_since: unproven.as_ref().map(|unproven| time(unproven.since_ms)),
            unproven_reason: unproven.map(|unproven| unproven.reason),
            file_bytes: store.usable.then_some(store.file_bytes),
            size_max_bytes: store.size_max_bytes,
            file_system_problem: mount.map(|found| format!("on {}: {}", found.name, found.problem())),
            disk_free_bytes: store.disk_free_bytes,
            capacity_bytes: store.capacity_bytes,
            full: store.full.as_ref().map(|full| FullReport::of(full, gathered.is_full_from_agent)),
            refused_writes: store.refused_writes,
            rejected_body_bytes: store.rejected_body_bytes,
            rejected_dropped_messages: store.rejected_dropped_messages,
            dropped_messages: store.dropped_messages,
            expired_messages: store.expired_messages,
            recoveries: store.recoveries.iter().map(RecoveryReport::of).collect(),
            moved_stores: store.moved_stores.clone(),
            replaying: store.replaying.clone(),
            replay_hold: store.replay_hold.as_ref().map(ReplayHoldLine::of),
            encryption: condition.map(|condition| EncryptionReport::of(&condition.encryption)),
        }
    }
}

/// Why the store is full, and what that has cost.
#[derive(Serialize)]
pub(crate) struct FullReport {
    /// `null` if no agent has found it full.
    pub since: Option<String>,
    /// `max_size`, `disk_reserve`, `disk` or `rejected`.
    pub limit: String,
    pub reason: String,
    /// Writes that the running agent refused since then; `null` when none answers.
    pub refused_writes: Option<u64>,
    /// Writes that the server took at once instead; `null` when no agent answers.
    pub passed_on_writes: Option<u64>,
    pub remedies: Vec<String>,
}

impl FullReport {
    fn of(full: &FullOverview, is_from_agent: bool) -> Self {
        Self {
            since: full.since_ms.map(time),
            limit: full.limit.clone(),
            reason: full.reason.clone(),
            refused_writes: is_from_agent.then_some(full.refused_writes),
            passed_on_writes: is_from_agent.then_some(full.passed_on_writes),
            remedies: full.remedies.clone(),
        }
    }
}

/// Whether the store is encrypted; this is known without the key.
#[derive(Serialize)]
pub(crate) struct EncryptionReport {
    /// `on`, `off`, or `changing` while the files may still hold older data in its previous form.
    pub state: &'static str,
    /// The name of the key that new messages are encrypted with.
    pub key: Option<String>,
    /// Whether this command was given the keys that the store needs: `usable`, `missing` or `wrong`.
    pub key_state: &'static str,
}

impl EncryptionReport {
    fn of(encryption: &Encryption) -> Self {
        let state = match (encryption.is_complete, encryption.sealed_with) {
            (false, _) => "changing",
            (true, Some(_)) => "on",
            (true, None) => "off",
        };
        let key_state = match encryption.key {
            KeyState::Usable => "usable",
            KeyState::Missing => "missing",
            KeyState::Wrong => "wrong",
        };
        Self { state, key: encryption.sealed_with.map(|key| key.to_string()), key_state }
    }

    pub(crate) fn text(&self) -> String {
        let key = self.key.as_ref().map_or_else(|| "no key".to_owned(), |key| format!("key {key}"));
        match (self.state, self.key_state) {
            ("on", "wrong") => format!("on ({key}), and another key is set"),
            ("on", _) => format!("on ({key})"),
            ("off", _) => "off".to_owned(),
            _ => format!("being changed to {key}: finish it with {}", hint::command("healthcheck --reseal")),
        }
    }
}

#[derive(Serialize)]
pub(crate) struct RecoveryReport {
    pub at: String,
    pub reason: String,
    pub recovered_messages: u64,
    pub lost_messages: u64,
    pub set_aside: String,
}

impl RecoveryReport {
    fn of(recovery: &RecoveryOverview) -> Self {
        Self {
            at: time(recovery.at_ms),
            reason: recovery.reason.clone(),
            recovered_messages: recovery.recovered_messages,
            lost_messages: recovery.lost_messages,
            set_aside: recovery.set_aside.clone(),
        }
    }
}

#[derive(Serialize)]
pub(crate) struct Adopted {
    pub at: String,
    #[serde(skip)]
    pub at_ms: i64,
    pub server: String,
    pub messages: u64,
}

impl Adopted {
    fn of(adoption: &AdoptionRecord) -> Self {
        Self {
            at: time(adoption.at_ms),
            at_ms: adoption.at_ms,
            server: adoption.server.to_string(),
            messages: adoption.messages,
        }
    }
}

#[derive(Serialize)]
pub(crate) struct HeldLane {
    pub workspace: String,
    /// `null` for messages of an earlier version.
    pub server: Option<String>,
    /// At most the first four characters of the key; `null` for clients that send none.
    pub key: Option<String>,
    /// The status of the answer that it is held for.
    pub status: Option<u16>,
    /// Whether the server refuses the key, so that another key may be accepted.
    pub is_key_refused: bool,
    pub reason: String,
    pub until: String,
    /// Whether that time has passed: the lane is being retried, and none of its messages has passed yet.
    pub is_over: bool,
}

impl HeldLane {
    fn of(lane: &Lane, hold: &Hold, now_ms: i64) -> Self {
        Self {
            workspace: lane.workspace_name().to_owned(),
            server: lane.server.as_ref().map(ToString::to_string),
            key: lane.credential.as_ref().map(ToString::to_string),
            status: hold.status,
            is_key_refused: hold.is_credential_refused(),
            reason: hold.reason.clone(),
            until: time(hold.until_ms),
            is_over: hold.until_ms <= now_ms,
        }
    }
}

#[derive(Serialize)]
pub(crate) struct LastReplay {
    pub by: String,
    pub started_at: String,
    pub ended_at: String,
    #[serde(skip)]
    pub ended_at_ms: i64,
    pub delivered: u64,
    pub rejected: u64,
    pub remaining: u64,
}

impl LastReplay {
    fn of(replay: &ReplayOverview) -> Self {
        Self {
            by: replay.by.clone(),
            started_at: time(replay.started_at_ms),
            ended_at: time(replay.ended_at_ms),
            ended_at_ms: replay.ended_at_ms,
            delivered: replay.delivered,
            rejected: replay.rejected,
            remaining: replay.remaining,
        }
    }
}
