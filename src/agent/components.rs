//! The list of an agent's components, and the state that they share.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use rustix::system::uname;
use tracing::{info, warn};

use super::fleet_member::{FleetMember, MemberStanding};
use super::fleet_overview::fleet_overview;
use super::flush::FlushEnd;
use super::idle::IdleWatch;
use super::service_manager::Notifier;
use super::settings::AgentSettings;
use super::supervisor::{Component, Loop, Stop, StopStage};
use super::upkeep;
use crate::figures::{count, them};
use crate::fleet::dial_reader::DialReader;
use crate::fleet::ledger::{AgentLedger, FleetStanding, FleetUse};
use crate::fleet::shipper::Shipper;
use crate::fleet::spooled::Spooled;
use crate::hint;
use crate::intake::IntakeService;
use crate::intake::site::SitePolicy;
use crate::intake::spool::Spools;
use crate::liveness::{Heartbeat, Liveness};
use crate::memory::Budget;
use crate::message::Server;
use crate::monitor;
use crate::monitor::connection::Connection;
use crate::overview::collector::{FleetSource, OverviewCollector, OverviewSources};
use crate::overview::elsewhere;
use crate::printable::shell_word;
use crate::protocol::hub::Edge;
use crate::replay::{LEASE_TIME_TO_LIVE, ReplayManager, ReplaySettings};
use crate::sdk::adoption::Adoption;
use crate::shutdown::Shutdown;
use crate::store::committer::Committer;
use crate::store::slot::{Decorator, StoreSlot};
use crate::store::{AgentRecord, Filter, Fullness, Limits, Owner, Store, StoreError, mount, now_ms};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::refusals::ForwardedRefused;
use crate::upstream::forward::Forwarder;
use crate::upstream::{EdgeReport, Upstream};

/// How long intake may go without a heartbeat: it waits for nothing.
const INTAKE_SILENCE_MAX: Duration = Duration::from_secs(60);
/// The same for components that wait for the disk: a commit on a busy disk finishes eventually, and a restart would not
/// make it faster.
const DISK_SILENCE_MAX: Duration = Duration::from_secs(300);
/// The interval between checks whether it is time to read the fleet's dial.
const DIAL_TICK: Duration = Duration::from_millis(250);
/// How long the request may take in which shipping is when its time is over.
const SHIPPING_MARGIN: Duration = Duration::from_secs(2);
/// How long stopping takes beside the waits that `shutdown_timeout` bounds.
const STOPPING_MARGIN: Duration = Duration::from_secs(15);

/// The result of an agent's run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RunEnd {
    /// Writes that were forwarded: the server answered them at once.
    pub forwarded: u64,
    /// Those of them that the server refused.
    pub forwarded_refused: ForwardedRefused,
    /// Messages that were stored.
    pub stored: u64,
    /// Stored messages that the server confirmed.
    pub delivered: u64,
    /// Messages that the server rejected.
    pub rejected: u64,
    /// Messages that still have to reach the server; `None` if the store can't be read.
    pub waiting: Option<u64>,
    /// Writes that were refused because the store was unusable and they may conflict with messages in it.
    pub refused_while_away: u64,
    /// Writes that were refused because the store was full.
    pub refused: u64,
    /// Why the store was full when the last of them was refused.
    pub full: Option<Fullness>,
    /// How the flush ended, if there was one.
    pub flush: Option<FlushEnd>,
    /// The state of the copies in the depot, if there is one.
    pub fleet: Option<FleetStanding>,
}

/// The state that the components of an agent share.
pub(super) struct Composition {
    settings: AgentSettings,
    address: SocketAddr,
    pub(super) server: Server,
    pub(super) slot: Arc<StoreSlot>,
    pub(super) connection: Arc<Connection>,
    committer: Arc<Committer>,
    upstream: Arc<Upstream>,
    /// This process's name among the agents that a request passes.
    agent_mark: HeaderValue,
    metrics: Arc<Metrics>,
    memory: Arc<Budget>,
    owner: Owner,
    collector: Arc<OverviewCollector>,
    intake_heartbeat: Arc<Heartbeat>,
    /// The ledger of what is in the depot, if there is one.
    fleet: Option<Arc<AgentLedger>>,
    /// The reader of what people decided about the fleet's pace.
    dial: Option<Arc<DialReader>>,
    /// The state of the replay of other agents' streams, if there is one.
    member: Option<Arc<MemberStanding>>,
}

impl Composition {
    /// Opens the store and starts its committer; nothing else is started.
    ///
    /// # Errors
    ///
    /// When the committer's thread can't be started.
    pub(super) fn new(settings: AgentSettings, address: SocketAddr, upstream: Upstream) -> io::Result<Self> {
        let server = Server::new(&settings.upstream.base_url);
        let metrics = Arc::new(Metrics::default());
        let fleet = settings.fleet.clone().map(|fleet| {
            let FleetUse { depot, settings } = fleet;
            Arc::new(AgentLedger::new(depot, settings, metrics.clone()))
        });
        let of_fleet = |fleet: &FleetUse| Arc::new(DialReader::new(fleet.depot.clone(), fleet.settings.silence));
        let dial = settings.fleet.as_ref().map(of_fleet);
        let slot = Arc::new(store_slot(&settings, address, &server, fleet.as_ref()));
        log_capacity(&slot, &settings.store_limits);
        let member = settings.fleet_replay.as_ref().map(|_| Arc::<MemberStanding>::default());
        // The rest is the replay's.
        let others = settings.fleet_replay.as_ref().map_or(0, |member| member.session.memory_budget);
        let memory = Budget::new(settings.memory_budget.saturating_sub(others));
        let connection = Arc::new(Connection::new(settings.monitor));
        let committer = Arc::new(Committer::start(slot.clone())?);
        let agent_mark = agent_mark();
        let collector = OverviewCollector::new(OverviewSources {
            slot: slot.clone(),
            connection: connection.clone(),
            metrics: metrics.clone(),
            pace: settings.replay.pace,
            server_url: settings.upstream.base_url.clone(),
            listen: address.to_string(),
            files_problem: settings.files_problem.clone(),
            store_path: settings.store_path.clone(),
            store_option: store_option(&settings.store_path),
            fleet: fleet.clone().zip(dial.clone()).map(|(ledger, dial)| -> FleetSource {
                let member = member.clone();
                Box::new(move || fleet_overview(&ledger, &dial, member.as_deref()))
            }),
        });
        let collector = Arc::new(collector);
        Ok(Self {
            upstream: Arc::new(upstream.marked(agent_mark.clone()).introducing(edge_report(&agent_mark, &collector))),
            owner: Owner::this_process("agent"),
            collector,
            intake_heartbeat: Arc::default(),
            settings,
            address,
            server,
            slot,
            connection,
            committer,
            agent_mark,
            metrics,
            memory,
            fleet,
            dial,
            member,
        })
    }

    /// Returns the components in the order in which they start; [`StopStage`] has the order in which they stop.
    ///
    /// `stopping` is requested when the agent begins to stop.
    pub(super) fn components(&self, stopping: &Shutdown) -> Vec<Component> {
        let mut components = vec![self.committer(), self.monitor(), self.replay(), self.history()];
        components.extend(self.fleet.as_ref().map(|ledger| self.shipper(ledger, stopping)));
        components.extend(self.dial.as_ref().zip(self.fleet.as_ref()).map(|(dial, ledger)| self.dial(dial, ledger)));
        components.extend(self.fleet_replay(stopping));
        components.extend(self.settings.adopt.clone().map(|adoption| self.adoption(adoption)));
        components.push(self.upkeep());
        components.extend(self.idle_exit(stopping));
        components.push(self.intake_component());
        components
    }

    /// Already runs: intake and the liveness checks are built on it.
    fn committer(&self) -> Component {
        let committer = self.committer.clone();
        let stop: Stop = Box::new(move || committer.stop());
        let (committer, is_opening) = (self.committer.clone(), self.is_opening());
        Component::new("committer", StopStage::Commit, || Ok(stop))
            .checked(DISK_SILENCE_MAX, move || if is_opening() { Duration::ZERO } else { committer.silent_for() })
    }

    /// Is not waited for when it stops: the answer to a ping in flight no longer matters.
    fn monitor(&self) -> Component {
        let settings = self.settings.monitor;
        let (connection, upstream) = (self.connection.clone(), self.upstream.clone());
        let work = move |shutdown: &Shutdown| monitor::run(&connection, &upstream, settings, shutdown);
        let connection = self.connection.clone();
        let monitoring = Loop::new("connection-monitor", work).woken_by(move || connection.wake());
        let shutdown = monitoring.shutdown();
        let silence_max = DISK_SILENCE_MAX + settings.ping_interval + settings.check_timeout;
        monitoring.component(StopStage::Monitor).checked(silence_max, move || shutdown.silent_for())
    }

    /// Has `shutdown_timeout` to settle the request in flight, and is abandoned after that.
    fn replay(&self) -> Component {
        let (slot, connection, upstream) = (self.slot.clone(), self.connection.clone(), self.upstream.clone());
        let (metrics, memory, owner) = (self.metrics.clone(), self.memory.clone(), self.owner.clone());
        let workers_max = usize::try_from(self.settings.files.replay_workers).unwrap_or(usize::MAX);
        let (tick_interval, rekey) = (self.settings.replay_tick_interval, self.settings.rekey.clone());
        let dial = self.dial.as_ref().map(|reader| reader.dial());
        let settings = ReplaySettings { filter: self.own_messages(), dial, ..self.settings.replay.clone() };
        let work = move |shutdown: &Shutdown| {
            let manager = ReplayManager {
                slot: &slot,
                upstream: &upstream,
                connection: &connection,
                settings: settings.clone(),
                tick_interval,
                metrics: &metrics,
                memory: &memory,
                workers_max,
                shutdown,
                owner: owner.clone(),
                rekey: rekey.clone(),
            };
            manager.run();
        };
        let (connection, slot, owner) = (self.connection.clone(), self.slot.clone(), self.owner.clone());
        let replaying = Loop::new("replay-manager", work)
            .woken_by(move || connection.wake())
            .ends_within(self.settings.shutdown_timeout, move || abandon_replay(&slot, &owner));
        let (shutdown, is_opening) = (replaying.shutdown(), self.is_opening());
        replaying.component(StopStage::Delivery).checked(DISK_SILENCE_MAX + tick_interval * 2, move || {
            if is_opening() { Duration::ZERO } else { shutdown.silent_for() }
        })
    }

    /// Ships what is left once nothing more is delivered, and has `shutdown_timeout` for it.
    fn shipper(&self, ledger: &Arc<AgentLedger>, stopping: &Shutdown) -> Component {
        let end_within = self.settings.shutdown_timeout;
        let shipper = Shipper {
            ledger: ledger.clone(),
            slot: self.slot.clone(),
            stopping: stopping.clone(),
            metrics: self.metrics.clone(),
            end_within,
        };
        let (woken, late, is_opening) = (ledger.clone(), ledger.clone(), self.is_opening());
        let shipping = Loop::new("fleet-shipper", move |shutdown: &Shutdown| shipper.run(shutdown))
            .woken_by(move || woken.wake())
            .ends_within(end_within + SHIPPING_MARGIN, move || {
                let unshipped = late.standing().unshipped.messages;
                warn!(target: "fleet", "shipping did not end in time: {unshipped} messages are only in the local store");
            });
        let shutdown = shipping.shutdown();
        shipping
            .component(StopStage::Ship)
            .checked(DISK_SILENCE_MAX, move || if is_opening() { Duration::ZERO } else { shutdown.silent_for() })
    }

    /// Releases the streams that it holds as soon as the agent begins to stop, and has `shutdown_timeout` for it. A
    /// stream that could not be released in time becomes silent: a request of it may be on its way.
    fn fleet_replay(&self, stopping: &Shutdown) -> Option<Component> {
        let (fleet, ledger) = (self.settings.fleet.as_ref()?, self.fleet.clone()?);
        let standing = self.member.clone()?;
        let member = FleetMember {
            settings: self.settings.fleet_replay.clone()?,
            depot: fleet.depot.clone(),
            upstream: self.upstream.clone(),
            slot: self.slot.clone(),
            ledger,
            metrics: self.metrics.clone(),
            standing: standing.clone(),
        };
        let stopping = stopping.clone();
        let replaying = Loop::new("fleet-replay", move |_: &Shutdown| member.run(&stopping));
        let replaying = replaying.ends_within(self.settings.shutdown_timeout, move || {
            let streams = standing.streams();
            if streams > 0 {
                warn!(target: "fleet", "{streams} streams were not released in time: another replayer takes them once they are silent");
            }
        });
        Some(replaying.component(StopStage::Background))
    }

    /// Reads what people decided about the fleet's pace, only while something waits: an idle agent asks the depot for
    /// nothing. It only reads, so it is not waited for when it stops.
    fn dial(&self, reader: &Arc<DialReader>, ledger: &Arc<AgentLedger>) -> Component {
        let (reader, ledger, collector) = (reader.clone(), ledger.clone(), self.collector.clone());
        let work = move |shutdown: &Shutdown| {
            while !shutdown.sleep(DIAL_TICK) {
                let unshipped = ledger.standing().unshipped.messages;
                if unshipped > 0 || collector.waiting().is_some_and(|waiting| waiting > 0) {
                    reader.look_if_due(1);
                }
            }
        };
        Loop::new("fleet-dial", work).component(StopStage::Background)
    }

    /// Only reads, so it is not waited for when it stops.
    fn history(&self) -> Component {
        let collector = self.collector.clone();
        Loop::new("history", move |shutdown: &Shutdown| collector.run(shutdown)).component(StopStage::Background)
    }

    /// Ends the agent when nobody needs it, if that was asked for.
    fn idle_exit(&self, stopping: &Shutdown) -> Option<Component> {
        let (idle_exit, identity) = (self.settings.idle_exit?, self.settings.identity.clone()?);
        let (slot, metrics, stopping) = (self.slot.clone(), self.metrics.clone(), stopping.clone());
        let (own, member) = (self.own_messages(), self.member.clone());
        let watching = Loop::new("idle-exit", move |shutdown: &Shutdown| {
            let waiting = || {
                slot.with(|store| store.backlog(&own)).ok().map(|backlog| {
                    // Streams of others that are held are work as well.
                    backlog.waiting() + member.as_ref().map_or(0, |member| member.streams())
                })
            };
            let connections = || metrics.intake_connections.get() as u64;
            let (identity, waiting, connections) = (&*identity, &waiting, &connections);
            IdleWatch { idle_exit, identity, connections, waiting, stopping: &stopping }.run(shutdown);
        });
        Some(watching.component(StopStage::Background))
    }

    fn adoption(&self, adoption: Adoption) -> Component {
        let adoption = Adoption { listen: self.address, ..adoption };
        let slot = self.slot.clone();
        Loop::new("adoption", move |shutdown: &Shutdown| adoption.run(&slot, shutdown))
            .ends_within(self.settings.shutdown_timeout, || {
                // The next agent recognises what is stored already, and a file is removed only once all of it is
                // stored.
                warn!(target: "replay_manager", "a salvage did not end in time; the next agent continues it");
            })
            .component(StopStage::Background)
    }

    fn upkeep(&self) -> Component {
        let (slot, max_age) = (self.slot.clone(), self.settings.max_age);
        Loop::new("upkeep", move |shutdown: &Shutdown| upkeep::run(max_age, &slot, shutdown))
            .ends_within(self.settings.shutdown_timeout, || {
                warn!(target: "db_manager", "store maintenance did not end in time; the next agent continues it");
            })
            .component(StopStage::Background)
    }

    /// Runs on the caller's thread after everything else has started, and ends when the agent is asked to stop.
    fn intake_component(&self) -> Component {
        let (address, url) = (self.address, self.settings.upstream.base_url.clone());
        let start = move || {
            info!(target: "intake", "listening on http://{address} for {url}");
            let stop: Stop = Box::new(|| {});
            Ok(stop)
        };
        let heartbeat = self.intake_heartbeat.clone();
        let intake = Component::new("intake", StopStage::Intake, start);
        intake.checked(INTAKE_SILENCE_MAX, move || heartbeat.silent_for())
    }

    /// Returns the component that reports to the service manager, if one started the agent. It comes last, because it
    /// reports the liveness of the others.
    pub(super) fn notifier(&self, liveness: &Arc<Liveness>, shutdown: &Shutdown) -> Option<Component> {
        let waits = 3 + u32::from(self.fleet.is_some()) + u32::from(self.member.is_some());
        let notifier = Notifier {
            manager: self.settings.service_manager.clone()?,
            liveness: liveness.clone(),
            slot: self.slot.clone(),
            server: self.server.clone(),
            connection: self.connection.clone(),
            stopping_max: self.settings.shutdown_timeout * waits + STOPPING_MARGIN,
            shutdown: shutdown.clone(),
        };
        Some(Component::new("service-manager", StopStage::Report, move || {
            let notifying = notifier.start()?;
            let stop: Stop = Box::new(move || {
                if notifying.is_some_and(|thread| thread.join().is_err()) {
                    warn!(target: "opik_offline", "internal error: the thread that notifies the service manager panicked");
                }
            });
            Ok(stop)
        }))
    }

    /// Returns the intake that feeds these components.
    pub(super) fn intake(&self, forwarders: Vec<Forwarder>, liveness: Arc<Liveness>) -> IntakeService {
        let settings = &self.settings;
        let (size_max, reserve) = (settings.store_limits.size_max, settings.store_limits.disk_reserve);
        IntakeService {
            slot: self.slot.clone(),
            committer: self.committer.clone(),
            connection: self.connection.clone(),
            forwarders,
            metrics: self.metrics.clone(),
            limits: settings.intake,
            memory: self.memory.clone(),
            spools: Arc::new(Spools::beside(&settings.store_path, size_max, reserve)),
            token: settings.intake_token.clone(),
            listen_host: settings.listen.ip().to_string(),
            sites: SitePolicy::new(self.address.ip(), &settings.allowed_hosts),
            agent_mark: self.agent_mark.clone(),
            heartbeat: self.intake_heartbeat.clone(),
            liveness,
            identity: self.settings.identity.clone(),
            collector: self.collector.clone(),
        }
    }

    /// Leaves the store and returns what the agent did; for use once every component has stopped.
    pub(super) fn end(self, flush: Option<FlushEnd>) -> RunEnd {
        self.collector.full().close(&self.slot);
        let (refused, full) = self.collector.full().total();
        if let Err(error) = self.slot.with(|store| store.announce(None)) {
            warn!(target: "db_manager", "cannot remove the agent's record from the store: {error}");
        }
        info!(target: "intake", "stopped");
        let backlog = self.slot.with(|store| store.backlog(&self.own_messages()));
        RunEnd {
            forwarded: self.metrics.requests_forwarded.get(),
            forwarded_refused: self.metrics.refusals.get(),
            stored: self.metrics.messages_registered.get(),
            delivered: self.metrics.messages_delivered.get(),
            rejected: self.metrics.messages_rejected.get(),
            waiting: backlog.ok().map(|backlog| backlog.waiting()),
            refused_while_away: self.slot.refused(),
            refused,
            full,
            flush,
            fleet: self.fleet.map(|fleet| fleet.standing()),
        }
    }

    /// Selects the messages for this agent's server.
    fn own_messages(&self) -> Filter {
        Filter::of_server(&self.server)
    }

    /// Returns whether the store is being opened. It may have to be recovered or migrated first, which takes long and
    /// does not count as a stall.
    fn is_opening(&self) -> impl Fn() -> bool + Send + Sync + 'static {
        let slot = self.slot.clone();
        move || slot.is_opening()
    }
}

/// Returns the option that names this store in a command, wherever that is typed and whoever's default it is.
fn store_option(path: &Path) -> String {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    format!("--db {}", shell_word(path.as_os_str()))
}

/// Returns the slot of the agent's store. Each store that is opened in it gets the agent's record.
fn store_slot(
    settings: &AgentSettings,
    address: SocketAddr,
    server: &Server,
    fleet: Option<&Arc<AgentLedger>>,
) -> StoreSlot {
    let record = AgentRecord {
        pid: std::process::id(),
        listen: address.to_string(),
        upstream: settings.upstream.base_url.clone(),
        started_at_ms: now_ms(),
    };
    if let Some(found) = mount::look_at(&settings.store_path) {
        let path = settings.store_path.display();
        warn!(target: "db_manager", "{path} is on {}: {}; {}", found.name, found.problem(), found.hint());
    }
    let (limits, keys) = (settings.store_limits, settings.store_keys.clone());
    let rejected = settings.store_rejected.clone();
    let server = server.clone();
    let decorator = fleet.cloned().map(|ledger| -> Decorator {
        Arc::new(move |store| {
            ledger.opened();
            Arc::new(Spooled::new(store, ledger.clone()))
        })
    });
    let slot = StoreSlot::decorated(&settings.store_path, limits, keys, rejected, decorator);
    slot.whenever_opened(move |store| {
        note_other_agents(store);
        if let Err(error) = store.announce(Some(&record)) {
            warn!(target: "db_manager", "cannot record the agent in the store: {error}");
        }
        adopt_unowned(store, &server)?;
        warn_of_other_servers(store, &server)
    })
}

/// Logs which other agents use the store: their messages are delivered together.
fn note_other_agents(store: &dyn Store) {
    let agents = store.condition().map(|condition| condition.agents).unwrap_or_default();
    for other in agents.iter().filter(|agent| agent.pid != std::process::id() && agent.is_running()) {
        info!(
            target: "db_manager",
            "another agent uses this store as well: pid {} on {}, for {}; they take turns at delivering, and nothing is \
             sent twice",
            other.pid, other.listen, other.upstream
        );
    }
}

/// Assigns messages of an earlier version, which recorded no server, to this agent's server, and logs it.
fn adopt_unowned(store: &dyn Store, server: &Server) -> Result<(), StoreError> {
    let adopted = store.adopt(server)?;
    if adopted > 0 {
        warn!(
            target: "db_manager",
            "{adopted} messages were stored by an earlier version, which did not record their server: they are for \
             {server} now, the first server that an agent was started for"
        );
    }
    Ok(())
}

/// Logs which messages wait in the store for other servers: this agent does not deliver them.
fn warn_of_other_servers(store: &dyn Store, server: &Server) -> Result<(), StoreError> {
    let all = store.backlog(&Filter::default())?;
    if all.waiting() == store.backlog(&Filter::of_server(server))?.waiting() {
        return Ok(());
    }
    for other in elsewhere(&all, server).into_iter().filter(|other| other.waiting > 0) {
        let url = other.server.unwrap_or_default();
        let word = shell_word(url.as_ref());
        warn!(
            target: "replay_manager",
            "{} in this store {} for {url}: {} or an agent for that server delivers {}",
            count(other.waiting, "message"),
            if other.waiting == 1 { "is" } else { "are" },
            hint::command(&format!("replay --upstream {word}")),
            them(other.waiting),
        );
    }
    Ok(())
}

/// Logs how much the store can hold on its disk.
fn log_capacity(slot: &StoreSlot, limits: &Limits) {
    let Ok(condition) = slot.with(|store| store.condition()) else { return };
    let (Some(capacity), Some(free)) = (condition.capacity_bytes, condition.disk_free_bytes) else { return };
    let (max, reserve) = (limits.size_max, limits.disk_reserve);
    let used = condition.file_bytes.saturating_sub(condition.free_bytes);
    if capacity >= max {
        info!(target: "db_manager", "the store can hold {max} bytes (max_size); its disk has {free} bytes free");
    } else if capacity <= used {
        warn!(
            target: "db_manager",
            "the store can take nothing: its disk has {free} bytes free, of which {reserve} are reserved \
             (free_disk_reserve); free some space, or name a file on another disk with --db"
        );
    } else {
        warn!(
            target: "db_manager",
            "the store can hold {capacity} bytes, not the {max} of max_size: its disk has {free} bytes free, of which \
             {reserve} are reserved (free_disk_reserve)"
        );
    }
}

/// Returns how this agent describes itself to a hub.
fn edge_report(mark: &HeaderValue, collector: &Arc<OverviewCollector>) -> EdgeReport {
    let id = mark.to_str().unwrap_or_default().to_owned();
    let host = uname().nodename().to_str().ok().map(str::to_owned);
    let collector = collector.clone();
    Arc::new(move || Edge {
        id: id.clone(),
        host: host.clone(),
        version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        waiting: collector.waiting(),
    })
}

/// Returns a name for this process that no other agent has.
fn agent_mark() -> HeaderValue {
    let mark = uuid::Uuid::now_v7().simple().to_string();
    HeaderValue::try_from(mark).unwrap_or_else(|_| HeaderValue::from_static("agent"))
}

/// Takes the lease away from a replay that waits for the server longer than stopping may take.
///
/// Its messages in flight are *failed* again and are sent once more later; the store refuses what it still writes.
fn abandon_replay(slot: &StoreSlot, owner: &Owner) {
    warn!(target: "replay_manager", "the server did not answer in time; messages in flight are kept and sent again");
    let taken = slot.with(|store| {
        let lease = store.acquire(owner, LEASE_TIME_TO_LIVE)?;
        store.return_in_flight(&lease)?;
        store.release(&lease)
    });
    if let Err(error) = taken {
        let seconds = LEASE_TIME_TO_LIVE.as_secs();
        warn!(target: "replay_manager", "cannot release the replay lease, it expires in {seconds} s: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::super::files::FileShares;
    use super::super::supervisor::{checked, start_order, stop_order};
    use super::*;
    use crate::config::ServiceManager;
    use crate::depot::model::ModelDepot;
    use crate::fleet::ledger::FleetSettings;
    use crate::intake::IntakeLimits;
    use crate::message::Lane;
    use crate::monitor::MonitorSettings;
    use crate::store::rejected_room::RejectedRoom;
    use crate::store::{Keys, WhenFull};
    use crate::upstream::UpstreamSettings;

    const SECOND: Duration = Duration::from_secs(1);

    /// Settings with everything that an agent may have.
    fn settings(folder: &std::path::Path) -> AgentSettings {
        let address: SocketAddr = "127.0.0.1:6745".parse().expect("an address");
        AgentSettings {
            listen: address,
            intake_token: None,
            allowed_hosts: Vec::new(),
            store_path: folder.join("store.db"),
            store_limits: Limits { size_max: u64::MAX, disk_reserve: 0, when_full: WhenFull::Refuse },
            store_rejected: RejectedRoom::default(),
            store_keys: Keys::default(),
            max_age: None,
            upstream: UpstreamSettings::plain("http://127.0.0.1:5173/api", SECOND),
            asks_as: Lane::default(),
            upstream_address: ("127.0.0.1".to_owned(), 5173),
            monitor: MonitorSettings { ping_interval: SECOND, is_interval_set: true, check_timeout: SECOND },
            replay: ReplaySettings {
                filter: Filter::default(),
                limit: None,
                pace: Default::default(),
                dial: None,
                retry_interval: SECOND,
                attempts_max: 10,
            },
            replay_tick_interval: SECOND,
            intake: IntakeLimits {
                connections_max: 1,
                body_bytes_max: 1,
                inflated_bytes_max: 1,
                attachment_bytes_max: 1,
                client_timeout: SECOND,
                forward_timeout: SECOND,
                ping_interval: SECOND,
                retry_interval: SECOND,
            },
            files: FileShares { clients: 1, idle_of_a_worker: 1, replay_workers: 1 },
            files_problem: None,
            memory_budget: 1 << 20,
            shutdown_timeout: SECOND,
            is_hub: false,
            rekey: None,
            adopt: Some(Adoption { temp_dir: folder.to_owned(), lane: Lane::default(), listen: address }),
            fleet: None,
            fleet_replay: None,
            identity: None,
            idle_exit: None,
            service_manager: Some(ServiceManager { socket: folder.join("notify").into_os_string(), watchdog: None }),
        }
    }

    #[test]
    fn components_start_and_stop_in_the_promised_order() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let settings = settings(folder.path());
        let (address, upstream) = (settings.listen, Upstream::new(&settings.upstream));
        let composition = Composition::new(settings, address, upstream).expect("a committer");
        let mut components = composition.components(&Shutdown::new());
        components.extend(composition.notifier(&Arc::default(), &Shutdown::new()));
        let started = start_order(&components);
        let expected = [
            "committer",
            "connection-monitor",
            "replay-manager",
            "history",
            "adoption",
            "upkeep",
            "intake",
            "service-manager",
        ];
        assert_eq!(started, expected);
        let expected = [
            "intake",
            "history",
            "adoption",
            "upkeep",
            "committer",
            "replay-manager",
            "connection-monitor",
            "service-manager",
        ];
        assert_eq!(stop_order(&components), expected, "a write that was acknowledged could be lost or overtaken");
        let expected = ["intake", "committer", "replay-manager", "connection-monitor"];
        assert_eq!(checked(&components), expected, "nobody would notice that one of them has stalled");
        composition.committer.stop();
    }

    #[test]
    fn remaining_messages_are_shipped_once_nothing_more_is_delivered() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let fleet = FleetUse { depot: Arc::new(ModelDepot::new()), settings: FleetSettings::default() };
        let settings = AgentSettings { fleet: Some(fleet), ..settings(folder.path()) };
        let (address, upstream) = (settings.listen, Upstream::new(&settings.upstream));
        let composition = Composition::new(settings, address, upstream).expect("a committer");
        let components = composition.components(&Shutdown::new());
        let stopped = stop_order(&components);
        let at = |name: &str| stopped.iter().position(|other| *other == name);
        assert!(at("replay-manager") < at("fleet-shipper"), "a message that is delivered last is shipped: {stopped:?}");
        assert!(at("committer") < at("fleet-shipper"), "a message that is stored last is not shipped: {stopped:?}");
        assert!(checked(&components).contains(&"fleet-shipper"), "nobody would notice that nothing is shipped");
        composition.committer.stop();
    }
}
