//! The state that requests share: intake's dependencies on the agent, and the state of the listener.
//!
//! [`IntakeService`] and [`Listener`] exist once. Each worker has a [`Shared`] of its own, behind an `Arc` that only its
//! thread clones, so that no two workers contend for one reference count.

use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::header::HeaderValue;
use tracing::{debug, warn};

use super::ahead_notes::{AheadNotes, Horizon};
use super::commit_answers::CommitAnswers;
use super::entity_locks::EntityLocks;
use super::flush_slots::FlushSlots;
use super::forward::AnswerSource;
use super::identity::AgentIdentity;
use super::limits::{AWAY_TIMEOUT, IntakeLimits, WARNING_PAUSE};
use super::recent_uploads::RecentUploads;
use super::site::{ForeignRequest, SitePolicy};
use super::spool::Spools;
use super::unread::Windows;

use crate::delivery::admission::Reachability;
use crate::liveness::{Heartbeat, Liveness};
use crate::memory::{Budget, Grant, Use};
use crate::message::Server;
use crate::monitor::connection::Connection;
use crate::overview::OverviewCollector;
use crate::protocol::answers::{Reply, error, unavailable};
use crate::protocol::target::ServerAddress;

use crate::shutdown::Shutdown;
use crate::store::committer::Committer;
use crate::store::slot::StoreSlot;
use crate::telemetry::metrics::Metrics;
use crate::upstream::forward::Forwarder;

/// The answer to a client, and when it is asked to retry, if other bodies take all the memory for bodies.
pub(super) const BUSY_TEXT: &str = "opik-offline holds too many bodies at once";
pub(super) const BUSY_RETRY_AFTER: Duration = Duration::from_secs(1);
/// When a client is asked to retry if the store is full or busy.
pub(super) const STORE_RETRY_AFTER: Duration = Duration::from_secs(10);
/// The timeout of a large body that waits for memory. Then its client is asked to retry.
const MEMORY_WAIT_MAX: Duration = Duration::from_secs(30);

/// Intake's dependencies on the rest of the agent.
pub struct IntakeService {
    /// The store, which may be unavailable.
    pub slot: Arc<StoreSlot>,
    /// Commits messages to the store.
    pub committer: Arc<Committer>,
    /// Whether the server is available.
    pub connection: Arc<Connection>,
    /// The HTTP clients to the server, one for each worker.
    pub forwarders: Vec<Forwarder>,
    /// Counters and gauges.
    pub metrics: Arc<Metrics>,
    /// Limits and timeouts of clients.
    pub limits: IntakeLimits,
    /// Memory for bodies.
    pub memory: Arc<Budget>,
    /// Disk space for bodies that are too large for memory.
    pub spools: Arc<Spools>,
    /// The token that clients must present.
    pub token: Option<String>,
    /// The host that the agent was configured to listen on.
    pub listen_host: String,
    /// Which hosts the agent answers to, and which web pages may send requests.
    pub sites: SitePolicy,
    /// This process's value of [`AGENT_HEADER`](crate::upstream::AGENT_HEADER).
    pub agent_mark: HeaderValue,
    /// Intake's own heartbeat.
    pub heartbeat: Arc<Heartbeat>,
    /// Whether every part of the agent is alive, for `/-/healthy`.
    pub liveness: Arc<Liveness>,
    /// Counts requests, and proves which agent this is, if somebody asks for either.
    pub identity: Option<Arc<AgentIdentity>>,
    /// The agent's status, for `/`.
    pub collector: Arc<OverviewCollector>,
}

/// The state of a listener, common to all workers.
#[derive(Default)]
pub(super) struct Listener {
    /// Keep writes about one entity in order.
    pub(super) entity_locks: EntityLocks,
    /// The writes that are in flight, some of them unread.
    pub(super) windows: Windows,
    /// Held by the one write that probes an unavailable server because the store is full: when the last probe began
    /// that failed.
    pub(super) full_store_probe: tokio::sync::Mutex<Option<Instant>>,
    /// Held by the one request that waits for a ping of an unavailable server because its body can't be kept.
    pub(super) unkept_ping: tokio::sync::Mutex<()>,
    /// Uploads that an upload-complete may follow.
    pub(super) recent_uploads: RecentUploads,
    /// Clients that wait for a flush.
    pub(super) flush_slots: FlushSlots,
    /// When a request of a foreign host or page was last logged.
    foreign_logged: Mutex<Option<Instant>>,
}

/// The state that all requests on one worker share. It dereferences to [`IntakeService`]: `shared.slot`.
pub(super) struct Shared {
    intake: Arc<IntakeService>,
    pub(super) listener: Arc<Listener>,
    /// This worker's HTTP client to the server.
    pub(super) forwarder: Forwarder,
    /// This worker's notes about updates that went ahead of their create.
    pub(super) ahead_notes: Arc<AheadNotes>,
    /// The results of this worker's commits.
    pub(super) commit_answers: Arc<CommitAnswers>,
    /// The server that accepted writes are for.
    pub(super) server: Server,
    /// Its address, parsed.
    pub(super) address: ServerAddress,
    pub(super) started: Instant,
    /// Requested when the agent stops: no new request begins on a connection. Of this worker alone, as is the next one:
    /// every request waits for both, and waiting takes a lock.
    pub(super) ending: Shutdown,
    /// Requested while the agent stops, once in-flight writes have had their time to finish: the others are stored
    /// instead.
    pub(super) hurry: Shutdown,
}

impl Deref for Shared {
    type Target = IntakeService;

    fn deref(&self) -> &IntakeService {
        &self.intake
    }
}

impl Shared {
    /// Returns the shared state of each worker, in the order of `intake.forwarders`, which are moved there.
    pub(super) fn per_worker(mut intake: IntakeService, listener: &Arc<Listener>) -> Vec<Arc<Self>> {
        let forwarders = std::mem::take(&mut intake.forwarders);
        let (intake, started, horizon) = (Arc::new(intake), Instant::now(), Arc::<Horizon>::default());
        let shared = forwarders.into_iter().map(|forwarder| {
            Arc::new(Self {
                server: Server::new(forwarder.base_url()),
                address: ServerAddress::new(forwarder.base_url()),
                ahead_notes: Arc::new(AheadNotes::new(intake.slot.clone(), horizon.clone())),
                commit_answers: Arc::default(),
                intake: intake.clone(),
                listener: listener.clone(),
                forwarder,
                started,
                ending: Shutdown::new(),
                hurry: Shutdown::new(),
            })
        });
        shared.collect()
    }

    /// Counts and logs a limit that a client exceeded.
    pub(super) fn count_over_limit(&self, limit: &str) {
        self.metrics.intake_over_limit.add(1);
        debug!(target: "intake", limit, "a request was over a limit");
    }

    /// Counts a request that a page of another site may have sent, logs one a minute, and returns its answer.
    pub(super) fn refuse_foreign(&self, foreign: &ForeignRequest) -> Reply {
        let counter =
            if foreign.is_host() { &self.metrics.intake_foreign_hosts } else { &self.metrics.intake_foreign_pages };
        counter.add(1);
        let mut logged = self.listener.foreign_logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.is_none_or(|logged| logged.elapsed() >= WARNING_PAUSE) {
            *logged = Some(Instant::now());
            warn!(target: "intake", "refused a request: {foreign}");
        }
        error(foreign.status(), &foreign.to_string())
    }

    /// Counts a body that arrives too slowly, and returns the answer to its client.
    pub(super) fn refuse_slow(&self) -> Reply {
        self.count_over_limit("time for a body");
        error(408, "the body did not arrive in time (client_timeout)")
    }

    /// Counts a body for which there is no memory, and returns the answer to its client.
    pub(super) fn refuse_busy(&self) -> Reply {
        self.count_over_limit("bytes of all bodies");
        unavailable(BUSY_TEXT, BUSY_RETRY_AFTER)
    }

    /// Waits for memory for a body, for [`MEMORY_WAIT_MAX`] at most.
    ///
    /// # Errors
    ///
    /// The answer to a client that has timed out.
    pub(super) async fn wait_for_memory(&self, by: Use, bytes: u64) -> Result<Grant, Reply> {
        tokio::select! {
            // Memory that is free is taken whatever else is due, so that shutdown refuses nothing at random.
            biased;
            memory = self.memory.take(by, bytes) => Ok(memory),
            () = tokio::time::sleep(MEMORY_WAIT_MAX) => Err(self.refuse_busy()),
            () = self.hurry.requested() => Err(self.refuse_busy()),
        }
    }

    /// Returns the timeout of an answer that only the server can give; none while it is available.
    pub(super) fn answer_timeout(&self) -> Option<Duration> {
        (self.reachability() == Reachability::Unavailable).then_some(AWAY_TIMEOUT)
    }

    /// Returns where an answer of the server comes from.
    pub(super) fn answer_source(&self) -> AnswerSource<'_> {
        AnswerSource { base_url: self.forwarder.base_url(), is_hub: self.connection.is_hub() }
    }

    /// Returns when a client is asked to retry while the server is unavailable.
    pub(super) fn retry_after(&self) -> Duration {
        self.limits.ping_interval
    }
}
