//! The settings of an agent: plain values, which the command line takes from the configuration.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::files::FileShares;
use super::fleet_member::FleetMemberSettings;
use crate::config::ServiceManager;
use crate::fleet::ledger::FleetUse;
use crate::intake::IntakeLimits;
use crate::intake::identity::AgentIdentity;
use crate::message::Lane;
use crate::monitor::MonitorSettings;
use crate::replay::ReplaySettings;
use crate::sdk::adoption::Adoption;
use crate::store::rejected_room::RejectedRoom;
use crate::store::{Keys, Limits};
use crate::upstream::UpstreamSettings;

/// All settings of an agent.
#[derive(Clone, Debug)]
pub(crate) struct AgentSettings {
    /// The address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The token that clients must send.
    pub intake_token: Option<String>,
    /// Names under which clients reach the agent, and sites whose pages may send to it.
    pub allowed_hosts: Vec<String>,
    /// The store's file.
    pub store_path: PathBuf,
    /// The limits on the store's size.
    pub store_limits: Limits,
    /// The share of it that rejected messages may keep.
    pub store_rejected: RejectedRoom,
    /// The keys that the store is encrypted with.
    pub store_keys: Keys,
    /// The age at which a message expires.
    pub max_age: Option<Duration>,
    /// The server.
    pub upstream: UpstreamSettings,
    /// The lane whose key and workspace pings carry.
    pub asks_as: Lane,
    /// The host and port that the server's URL names.
    pub upstream_address: (String, u16),
    /// Pings.
    pub monitor: MonitorSettings,
    /// Replay.
    pub replay: ReplaySettings,
    /// How often replay polls for work.
    pub replay_tick_interval: Duration,
    /// Intake.
    pub intake: IntakeLimits,
    /// How many open files each part may have.
    pub files: FileShares,
    /// The limits that follow from too few of them, for people.
    pub files_problem: Option<String>,
    /// How many bytes of bodies intake and replay may hold in memory together.
    pub memory_budget: u64,
    /// How long intake and replay each may take to stop.
    pub shutdown_timeout: Duration,
    /// Whether the agent is a hub, which has its store for itself.
    pub is_hub: bool,
    /// The lane that takes over lanes of the same server and workspace whose key is refused (`rekey_refused`).
    pub rekey: Option<Lane>,
    /// Whether and how orphaned stores of killed Python processes are salvaged.
    pub adopt: Option<Adoption>,
    /// How it replays the streams of agents that are gone, if it does.
    pub fleet_replay: Option<FleetMemberSettings>,
    /// The depot that stored messages are copied to, and how.
    pub fleet: Option<FleetUse>,
    /// The secret with which a background agent proves its identity, and the requests that an agent with `--idle-exit` counts.
    pub identity: Option<Arc<AgentIdentity>>,
    /// After how long without clients and messages the agent ends by itself.
    pub idle_exit: Option<Duration>,
    /// The service manager that started the agent, if it wants to be notified.
    pub service_manager: Option<ServiceManager>,
}
