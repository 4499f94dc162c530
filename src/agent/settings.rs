//! What an agent is told by whoever starts it: plain values, which the command line takes from the configuration.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::adoption::Adoption;
use super::files::FileShares;
use crate::config::ServiceManager;
use crate::intake::IntakeLimits;
use crate::message::Lane;
use crate::monitor::MonitorSettings;
use crate::replay::ReplaySettings;
use crate::store::rejected_room::RejectedRoom;
use crate::store::{Keys, Limits};
use crate::upstream::UpstreamSettings;

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
    pub files: FileShares,
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
