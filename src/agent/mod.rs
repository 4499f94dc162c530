//! The composition root: builds the store, the connections to the server, monitor, replay and intake, and starts and
//! stops them in order.
//!
//! # Starting
//!
//! 1. The address is bound: a second agent there, or an address that is not ours, ends everything before it began.
//! 2. The server's address is compared with ours: an agent in front of itself would store for ever.
//! 3. The store is opened. If that fails, the agent warns, passes on what overtakes nothing that may wait in it, and tries
//!    again. Each store that is opened gets the agent's record.
//! 4. Committer, connection monitor, replay manager, then intake. A service manager is told that the agent is ready, and
//!    from then on that it is alive (the head of `service_manager.rs`).
//!
//! # Stopping (SIGINT, SIGTERM; the end of a wrapped command, see [`child`])
//!
//! 1. Intake takes no new connections; requests in progress finish. Writes that the server does not answer in half of the
//!    time are stored and acknowledged in the other half. What is cut off then was never acknowledged.
//! 2. The committer commits what it was given, and stops.
//! 3. An agent that wraps a command flushes ([`mod@flush`]): what is stored is delivered as far as that is possible.
//! 4. The replay manager finishes the request on its way, settles its batch, puts the rest back and gives up the lease. If
//!    the server does not answer in time, its lease is taken away and what was on its way is *failed* again.
//! 5. The connection monitor stops; a ping on its way is left alone.
//! 6. The agent's record is taken out of the store.

pub mod child;
pub mod environment;
pub mod files;
pub mod flush;
pub mod relay;

mod redirect;
mod service_manager;
mod upkeep;

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use http::HeaderValue;
use thiserror::Error;
use tracing::{error, info, warn};

use crate::config::ServiceManager;
use crate::intake::site::SitePolicy;
use crate::intake::spool::Spools;
use crate::intake::status::{self, Watch};
use crate::intake::workers::Workers;
use crate::intake::{Intake, IntakeLimits};
use crate::memory::Budget;
use crate::message::{Lane, Server};
use crate::monitor::connection::Connection;
use crate::monitor::{self, MonitorSettings};
use crate::pulse::{Beat, Pulse, Pulses};
use crate::replay::{LEASE_TIME_TO_LIVE, ReplayManager, ReplaySettings};
use crate::sdk::adoption::Adoption;
use crate::shutdown::Shutdown;
use crate::store::committer::Committer;
use crate::store::rejected_room::RejectedRoom;
use crate::store::slot::StoreSlot;
use crate::store::{AgentRecord, Filter, Fullness, Keys, Limits, Owner, Store, StoreError, mount, now_ms};
use crate::telemetry::metrics::Metrics;
use crate::upstream::forward::Forwarder;
use crate::upstream::{Upstream, UpstreamSettings};
use flush::{Flush, FlushEnd, flush};

/// Everything that an agent needs to know.
#[derive(Clone, Debug)]
pub struct AgentSettings {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The token that clients must show.
    pub intake_token: Option<String>,
    /// Names under which clients reach the agent, and pages that may send to it.
    pub allowed_hosts: Vec<String>,
    /// The store's file.
    pub store_path: PathBuf,
    /// What the store may use.
    pub store_limits: Limits,
    /// What rejected messages may keep of it.
    pub store_rejected: RejectedRoom,
    /// The keys that the store is sealed with.
    pub store_keys: Keys,
    /// How long a message is kept at most.
    pub max_age: Option<Duration>,
    /// The server.
    pub upstream: UpstreamSettings,
    /// Whose key and workspace its pings carry.
    pub asks_as: Lane,
    /// The host and port that the server's URL names.
    pub upstream_address: (String, u16),
    /// Pings.
    pub monitor: MonitorSettings,
    /// Replay.
    pub replay: ReplaySettings,
    /// How often replay looks for work.
    pub replay_tick_interval: Duration,
    /// Intake.
    pub intake: IntakeLimits,
    /// Who may have how many open files.
    pub files: files::Shares,
    /// What these are too few for, if they are.
    pub files_problem: Option<String>,
    /// Bytes of bodies that may be in memory, of intake and replay together.
    pub memory_budget: u64,
    /// How long stopping may take, intake and replay each.
    pub shutdown_timeout: Duration,
    /// The lane that lanes with a refused key may go on as, of the same server and workspace (`rekey_refused`).
    pub rekey: Option<Lane>,
    /// Whether, and how, stores of killed Python processes are taken in.
    pub adopt: Option<Adoption>,
    /// Who started the agent and wants to be told how it is.
    pub service_manager: Option<ServiceManager>,
}

/// What an agent has done by its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunEnd {
    /// Writes that the server answered at once.
    pub forwarded: u64,
    /// Messages that were stored.
    pub stored: u64,
    /// Stored messages that the server confirmed.
    pub delivered: u64,
    /// Messages that the server refused.
    pub rejected: u64,
    /// Messages that still have to reach the server; `None` when nobody knows, because the store can't be used.
    pub waiting: Option<u64>,
    /// Writes that were refused, because the store couldn't be used and they may conflict with what waits in it.
    pub refused_while_away: u64,
    /// Writes that were refused because the store was full.
    pub refused: u64,
    /// Why the last of them was.
    pub full: Option<Fullness>,
    /// How the flush ended, if there was one.
    pub flush: Option<FlushEnd>,
}

/// Why an agent does not start. Nothing was started and nothing was changed.
#[derive(Debug, Error)]
pub enum AgentError {
    /// The address can't be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The server would be the agent itself.
    #[error("the Opik server {url} is this agent's own address {address}")]
    UpstreamIsSelf {
        /// The server's URL.
        url: String,
        /// Where the agent listens.
        address: SocketAddr,
    },
    /// Threads or signal handlers can't be made.
    #[error("cannot start: {reason}")]
    System {
        /// What the system says.
        reason: String,
    },
}

/// An agent that has its address and its settings, and has started nothing yet.
pub struct Agent {
    settings: AgentSettings,
    listener: TcpListener,
    address: SocketAddr,
    upstream: Upstream,
    forwarders: Vec<Forwarder>,
}

impl Agent {
    /// Takes the address and checks the settings.
    ///
    /// # Errors
    ///
    /// [`AgentError`]; nothing was started.
    pub fn bind(settings: AgentSettings) -> Result<Self, AgentError> {
        let failed = |source| AgentError::Listen { address: settings.listen, source };
        let listener = TcpListener::bind(settings.listen).map_err(failed)?;
        let local = listener.local_addr().map_err(failed)?;
        if leads_to(&settings.upstream_address, local) {
            return Err(AgentError::UpstreamIsSelf { url: settings.upstream.base_url.clone(), address: local });
        }
        let upstream = Upstream::new(&settings.upstream).asking_as(settings.asks_as.clone());
        let forwarders = {
            let idle_max = usize::try_from(settings.files.idle_of_a_worker).unwrap_or(usize::MAX);
            Forwarder::several(&settings.upstream, Workers::count(), idle_max)
        };
        Ok(Self { settings, listener, address: local, upstream, forwarders })
    }

    /// Returns the address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Runs until `shutdown`, and for as long as the flush that may follow takes, in the order that the module's head
    /// states.
    ///
    /// # Errors
    ///
    /// [`AgentError::System`] when threads can't be made; nothing was acknowledged then.
    pub fn run(self, shutdown: &Shutdown, flushing: Option<&Flush<'_>>) -> Result<RunEnd, AgentError> {
        let system = |error: io::Error| AgentError::System { reason: error.to_string() };
        let settings = &self.settings;
        // Takes connections and gives them to the workers.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(system)?;
        let workers = Workers::start(self.forwarders.len()).map_err(system)?;
        self.listener.set_nonblocking(true).map_err(system)?;
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(self.listener).map_err(system)?
        };

        let record = AgentRecord {
            pid: std::process::id(),
            listen: self.address.to_string(),
            upstream: settings.upstream.base_url.clone(),
            started_at_ms: now_ms(),
        };
        if let Some(found) = mount::look_at(&settings.store_path) {
            let path = settings.store_path.display();
            warn!(target: "db_manager", "{path} is on {}: {}; {}", found.name, found.problem(), found.hint());
        }
        let (limits, keys) = (settings.store_limits, settings.store_keys.clone());
        let rejected = settings.store_rejected.clone();
        let slot = StoreSlot::with_rejected_room(&settings.store_path, limits, keys, rejected);
        let server = Server::new(&settings.upstream.base_url);
        let own = Filter::of_server(&server);
        let slot = slot.whenever_opened({
            let (server, own) = (server.clone(), own.clone());
            move |store| {
                if let Err(error) = store.announce(Some(&record)) {
                    warn!(target: "db_manager", "the agent is not recorded in the store: {error}");
                }
                adopt(store, &server)?;
                tell_of_others(store, &server, &own)
            }
        });
        let slot = Arc::new(slot);
        tell_of_room(&slot, &settings.store_limits);

        let metrics = Arc::new(Metrics::default());
        let memory = Budget::new(settings.memory_budget);
        let connection = Arc::new(Connection::new(settings.monitor));
        let committer = Arc::new(Committer::start(slot.clone()).map_err(system)?);
        let replay_shutdown = Shutdown::new();
        let monitor_shutdown = Shutdown::new();
        let owner = Owner::this_process("agent");
        let agent_mark = agent_mark();
        let upstream = Arc::new(self.upstream.marked(agent_mark.clone()));
        let beat = Arc::new(Beat::default());
        let watch = Arc::new(
            Watch::new(
                slot.clone(),
                connection.clone(),
                metrics.clone(),
                settings.replay.pace,
                settings.upstream.base_url.clone(),
                self.address.to_string(),
            )
            .limited_by(settings.files_problem.clone()),
        );
        let pulses = Arc::new(pulses(settings, &beat, &committer, &slot, &replay_shutdown, &monitor_shutdown));
        let intake = Intake {
            slot: slot.clone(),
            committer: committer.clone(),
            connection: connection.clone(),
            forwarders: self.forwarders,
            metrics: metrics.clone(),
            limits: settings.intake,
            memory: memory.clone(),
            spools: Arc::new(Spools::beside(
                &settings.store_path,
                settings.store_limits.size_max,
                settings.store_limits.disk_reserve,
            )),
            token: settings.intake_token.clone(),
            listen_host: settings.listen.ip().to_string(),
            sites: SitePolicy::new(self.address.ip(), &settings.allowed_hosts),
            agent_mark,
            beat,
            pulses: pulses.clone(),
            watch: watch.clone(),
        };
        let monitoring = {
            let (connection, upstream, settings) = (connection.clone(), upstream.clone(), settings.monitor);
            let shutdown = monitor_shutdown.clone();
            Part::start("connection-monitor", move || monitor::run(&connection, &upstream, settings, &shutdown))
        };
        let replaying = {
            let (slot, connection, metrics) = (slot.clone(), connection.clone(), metrics.clone());
            let memory = memory.clone();
            let workers_max = usize::try_from(settings.files.replay_workers).unwrap_or(usize::MAX);
            let (owner, shutdown) = (owner.clone(), replay_shutdown.clone());
            let (tick_interval, rekey) = (settings.replay_tick_interval, settings.rekey.clone());
            let settings = ReplaySettings { filter: own.clone(), ..settings.replay.clone() };
            Part::start("replay-manager", move || {
                let (settings, owner, rekey) = (settings.clone(), owner.clone(), rekey.clone());
                let (slot, upstream, connection, metrics) = (&*slot, &*upstream, &*connection, &*metrics);
                let (shutdown, memory) = (&shutdown, &memory);
                let manager = ReplayManager {
                    slot,
                    upstream,
                    connection,
                    settings,
                    tick_interval,
                    metrics,
                    memory,
                    workers_max,
                    shutdown,
                    owner,
                    rekey,
                };
                manager.run();
            })
        };
        let watching_shutdown = Shutdown::new();
        {
            let shutdown = watching_shutdown.clone();
            // Only looks: nobody waits for its end.
            let watch = watch.clone();
            Part::start("history", move || watch.run(&shutdown)).map_err(system)?;
        }
        let adoption_shutdown = Shutdown::new();
        let adopting = settings.adopt.clone().map(|adoption| {
            let adoption = Adoption { listen: self.address, ..adoption };
            let (slot, shutdown) = (slot.clone(), adoption_shutdown.clone());
            Part::start("adoption", move || adoption.run(&slot, &shutdown))
        });
        let adopting = adopting.transpose().map_err(system)?;
        let upkeep_shutdown = Shutdown::new();
        let upkeep = {
            let (slot, shutdown, max_age) = (slot.clone(), upkeep_shutdown.clone(), settings.max_age);
            Part::start("upkeep", move || upkeep::run(max_age, &slot, &shutdown)).map_err(system)?
        };
        let (monitoring, replaying) = (monitoring.map_err(system)?, replaying.map_err(system)?);
        info!(target: "intake", "listening on http://{} for {}", self.address, settings.upstream.base_url);
        let telling = match settings.service_manager.clone() {
            None => None,
            Some(manager) => {
                let (slot, connection, shutdown) = (slot.clone(), connection.clone(), shutdown.clone());
                let stopping_max = settings.shutdown_timeout * 3 + STOPPING_MARGIN;
                let server = server.clone();
                let teller =
                    service_manager::Teller { manager, pulses, slot, server, connection, stopping_max, shutdown };
                teller.start().map_err(system)?
            }
        };

        runtime.block_on(intake.serve(listener, &workers, shutdown.clone(), settings.shutdown_timeout));
        watching_shutdown.request();
        adoption_shutdown.request();
        if adopting.is_some_and(|adopting| !adopting.has_ended_within(settings.shutdown_timeout)) {
            // What it has stored is recognised by the next agent, and it removes nothing before all is stored.
            warn!(target: "replay_manager", "a salvage did not end in time; the next agent goes on with it");
        }
        upkeep_shutdown.request();
        if !upkeep.has_ended_within(settings.shutdown_timeout) {
            warn!(target: "db_manager", "the upkeep of the store did not end in time; the next agent goes on with it");
        }
        committer.stop();
        let flushed = flushing.map(|flushing| flush(&slot, &connection, &server, flushing));
        replay_shutdown.request();
        connection.wake();
        if !replaying.has_ended_within(settings.shutdown_timeout) {
            abandon_replay(&slot, &owner);
        }
        monitor_shutdown.request();
        connection.wake();
        // A ping on its way changes nothing any more, so nobody waits for its answer.
        drop(monitoring);
        // Requests that were cut off end here, without an acknowledgement.
        drop(workers);
        drop(runtime);
        if telling.is_some_and(|telling| telling.join().is_err()) {
            warn!(target: "opik_offline", "telling the service manager failed by a fault of opik-offline's own");
        }
        watch.full().close(&slot);
        let (refused, full) = watch.full().total();
        if let Err(error) = slot.with(|store| store.announce(None)) {
            warn!(target: "db_manager", "the agent's record stays in the store: {error}");
        }
        info!(target: "intake", "stopped");
        Ok(RunEnd {
            forwarded: metrics.requests_forwarded.get(),
            stored: metrics.messages_registered.get(),
            delivered: metrics.messages_delivered.get(),
            rejected: metrics.messages_rejected.get(),
            waiting: slot.with(|store| store.backlog(&own)).ok().map(|backlog| backlog.waiting()),
            refused_while_away: slot.refused(),
            refused,
            full,
            flush: flushed,
        })
    }
}

/// Gives what an earlier version stored, which recorded no server, to this agent's server, and logs it.
fn adopt(store: &dyn Store, server: &Server) -> Result<(), StoreError> {
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

/// Logs what waits in the store for other servers: this agent does not deliver it.
fn tell_of_others(store: &dyn Store, server: &Server, own: &Filter) -> Result<(), StoreError> {
    let all = store.backlog(&Filter::default())?;
    if all.waiting() == store.backlog(own)?.waiting() {
        return Ok(());
    }
    for other in status::elsewhere(&all, server).into_iter().filter(|other| other.waiting > 0) {
        let url = other.server.unwrap_or_default();
        warn!(
            target: "replay_manager",
            "{} messages in this store are for {url}: `opik-offline replay --upstream {url}` or an agent for that server \
             delivers them",
            other.waiting
        );
    }
    Ok(())
}

/// Logs what the store can hold on its disk.
fn tell_of_room(slot: &StoreSlot, limits: &Limits) {
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

/// Returns the parts that have to be alive, and how long each may be silent.
fn pulses(
    settings: &AgentSettings,
    beat: &Arc<Beat>,
    committer: &Arc<Committer>,
    slot: &Arc<StoreSlot>,
    replay: &Shutdown,
    monitor: &Shutdown,
) -> Pulses {
    // A store that is being opened may have to be recovered or brought up to date first: that is work, not silence.
    let unless_opening = |silent_for: Box<dyn Fn() -> Duration + Send + Sync>| {
        let slot = slot.clone();
        Box::new(move || if slot.is_opening() { Duration::ZERO } else { silent_for() })
    };
    let (beat, committer, replay, monitor) = (beat.clone(), committer.clone(), replay.clone(), monitor.clone());
    let pings = settings.monitor.ping_interval + settings.monitor.check_timeout;
    Pulses::of(vec![
        Pulse { name: "intake", silence_max: INTAKE_SILENCE_MAX, silent_for: Box::new(move || beat.silent_for()) },
        Pulse {
            name: "committer",
            silence_max: PART_SILENCE_MAX,
            silent_for: unless_opening(Box::new(move || committer.silent_for())),
        },
        Pulse {
            name: "replay-manager",
            silence_max: PART_SILENCE_MAX + settings.replay_tick_interval * 2,
            silent_for: unless_opening(Box::new(move || replay.unasked_for())),
        },
        Pulse {
            name: "connection-monitor",
            silence_max: PART_SILENCE_MAX + pings,
            silent_for: Box::new(move || monitor.unasked_for()),
        },
    ])
}

/// Returns what names this process among the agents that a request comes through.
fn agent_mark() -> HeaderValue {
    let mark = uuid::Uuid::now_v7().simple().to_string();
    HeaderValue::try_from(mark).unwrap_or_else(|_| HeaderValue::from_static("agent"))
}

/// A part of the agent that has a thread of its own and ends when its shutdown is requested.
struct Part {
    ended: mpsc::Receiver<()>,
}

impl Part {
    /// How long a part that failed rests before it is started again.
    const REST: Duration = Duration::from_secs(1);

    /// Starts a part. One that fails by a fault of our own is started again: an agent without its replay or its monitor
    /// would take messages and never deliver them.
    fn start(name: &'static str, work: impl Fn() + Send + 'static) -> io::Result<Self> {
        let (ends, ended) = mpsc::channel();
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            // Dropped with the thread, which is all that is ever told.
            let _ends: mpsc::Sender<()> = ends;
            while std::panic::catch_unwind(AssertUnwindSafe(&work)).is_err() {
                error!("the {name} failed by a fault of its own and is started again; nothing is lost");
                std::thread::sleep(Self::REST);
            }
        })?;
        Ok(Self { ended })
    }

    fn has_ended_within(&self, time: Duration) -> bool {
        self.ended.recv_timeout(time) != Err(mpsc::RecvTimeoutError::Timeout)
    }
}

/// Takes the lease away from a replay that waits for the server longer than stopping may take.
///
/// What it has on its way is *failed* again and sent once more later; what it still might write is refused.
fn abandon_replay(slot: &StoreSlot, owner: &Owner) {
    warn!(target: "replay_manager", "the server did not answer in time; what was on its way is kept and sent again");
    let taken = slot.with(|store| {
        let lease = store.acquire(owner, LEASE_TIME_TO_LIVE)?;
        store.return_in_flight(&lease)?;
        store.release(&lease)
    });
    if let Err(error) = taken {
        warn!(target: "replay_manager", "the replay lease ends by itself in {} s: {error}", LEASE_TIME_TO_LIVE.as_secs());
    }
}

/// How long intake may give no sign of life: it waits for nothing.
const INTAKE_SILENCE_MAX: Duration = Duration::from_secs(60);
/// The same for what works with the disk: a commit that waits for a busy disk ends some day, and a restart would not
/// make it faster.
const PART_SILENCE_MAX: Duration = Duration::from_secs(300);
/// What stopping takes beside the waiting that is bounded by the user's setting.
const STOPPING_MARGIN: Duration = Duration::from_secs(15);

/// Says whether a connection to the server's address would reach our own listener.
fn leads_to((host, port): &(String, u16), own: SocketAddr) -> bool {
    if *port != own.port() {
        return false;
    }
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let Ok(addresses) = (host, *port).to_socket_addrs() else {
        // A name that can't be resolved now can't be the loopback address that we listen on either.
        return false;
    };
    addresses.map(|address| address.ip()).any(|ip| match own.ip() {
        own_ip if own_ip == ip => true,
        // Listening on every address: each of this machine's addresses is ours, and those we know are loopback's.
        own_ip => own_ip.is_unspecified() && (ip.is_loopback() || ip.is_unspecified()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_at_the_agents_own_address_is_recognised() {
        for (host, port, own, expected) in [
            ("127.0.0.1", 6745, "127.0.0.1:6745", true),
            ("localhost", 6745, "127.0.0.1:6745", true),
            ("127.0.0.1", 6745, "0.0.0.0:6745", true),
            ("[::1]", 6745, "[::1]:6745", true),
            ("127.0.0.1", 5173, "127.0.0.1:6745", false),
            ("127.0.0.2", 6745, "127.0.0.1:6745", false),
            ("no-such-host.invalid", 6745, "127.0.0.1:6745", false),
        ] {
            let own = own.parse().expect("an address");
            assert_eq!(leads_to(&(host.to_owned(), port), own), expected, "{host}:{port} {own}");
        }
    }
}
