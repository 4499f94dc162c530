//! Stored messages get another server or credential on request: which lanes move, and the move under the lease.
//!
//! Both change where acknowledged data goes and with which credential, so the caller shows the moves and asks before it
//! applies them. Moved messages keep their order, and the lease keeps other processes from sending them meanwhile.

use std::time::Duration;

use thiserror::Error;

use crate::message::{Lane, Server};
use crate::replay::reassign::move_lanes;
use crate::shutdown::Shutdown;
use crate::store::{Hold, LaneListed, Owner, Store, StoreError, now_ms};

/// How long to wait for another process to release the lease.
const LEASE_PATIENCE: Duration = Duration::from_secs(60);
const LEASE_LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Which lanes get another destination.
pub(crate) struct Reassignment {
    /// The configured server, workspace and credential.
    pub own: Lane,
    /// Whether the configured server was configured, rather than taken from the defaults.
    pub is_server_configured: bool,
    /// The server that moved: its lanes move to the configured one.
    pub readdress: Option<Server>,
    /// Whether lanes get the configured credential.
    pub rekey: bool,
    /// Only these lanes, unless empty; their credential is replaced even if the server accepts it.
    pub lanes: Vec<i64>,
    /// Only lanes of these workspaces, unless empty.
    pub workspaces: Vec<String>,
}

/// A lane, and its new destination.
pub(crate) struct LaneMove {
    pub from: LaneListed,
    pub to: Lane,
}

impl LaneMove {
    /// Returns how many messages move.
    pub(crate) fn messages(&self) -> u64 {
        self.from.waiting + self.from.rejected
    }
}

/// Why nothing was reassigned.
#[derive(Debug, Error)]
pub enum ReassignError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("no server is configured for the messages to move to")]
    NoServer,
    #[error("no API key is configured for the lanes")]
    NoCredential,
    #[error("nothing is stored for {server}")]
    NothingStored {
        server: Server,
        /// The servers of the stored messages.
        stored: Vec<String>,
    },
    #[error("the server rejects the key of no selected lane, or the lane has the configured key already")]
    NoneRefused,
    #[error("interrupted")]
    Interrupted,
}

impl Reassignment {
    /// Decides which lanes move where.
    ///
    /// # Errors
    ///
    /// Fails if no lane moves, with the reason.
    pub(crate) fn plan(&self, store: &dyn Store) -> Result<Vec<LaneMove>, ReassignError> {
        let lanes = store.lane_list(now_ms())?;
        if !self.is_server_configured {
            return Err(ReassignError::NoServer);
        }
        if self.rekey && self.own.credential.is_none() {
            return Err(ReassignError::NoCredential);
        }
        let moves: Vec<LaneMove> = lanes.into_iter().filter_map(|listed| self.moved(listed)).collect();
        if moves.is_empty() { Err(self.nothing(store)?) } else { Ok(moves) }
    }

    /// Returns the move of a lane if it is selected and gets another destination.
    fn moved(&self, from: LaneListed) -> Option<LaneMove> {
        let lane = &from.lane;
        let is_named = self.lanes.contains(&from.id.0);
        let is_refused = from.hold.as_ref().is_some_and(Hold::is_credential_refused);
        let is_meant = match &self.readdress {
            Some(old) => lane.server.as_ref() == Some(old),
            None => lane.server == self.own.server && (is_refused || is_named),
        };
        let is_selected = (self.lanes.is_empty() || is_named)
            && (self.workspaces.is_empty() || self.workspaces.iter().any(|name| name == lane.workspace_name()));
        let credential = if self.rekey { &self.own.credential } else { &lane.credential };
        let to =
            Lane { server: self.own.server.clone(), workspace: lane.workspace.clone(), credential: credential.clone() };
        (is_meant && is_selected && to != *lane).then_some(LaneMove { from, to })
    }

    /// Returns why no lane moves.
    fn nothing(&self, store: &dyn Store) -> Result<ReassignError, StoreError> {
        let Some(server) = self.readdress.clone() else { return Ok(ReassignError::NoneRefused) };
        let lanes = store.lane_list(now_ms())?;
        let servers = lanes.iter().filter_map(|listed| listed.lane.server.as_ref());
        let mut stored: Vec<String> = servers.map(|server| server.base_url().to_owned()).collect();
        stored.sort_unstable();
        stored.dedup();
        Ok(ReassignError::NothingStored { server, stored })
    }
}

/// Moves the messages of these lanes under the lease, so that no destination changes while its messages are sent.
///
/// # Errors
///
/// Fails with [`ReassignError::Interrupted`] on shutdown, and if another process keeps the lease for a minute.
pub(crate) fn apply(
    store: &dyn Store,
    moves: &[LaneMove],
    note: &dyn Fn(&str),
    shutdown: &Shutdown,
) -> Result<(), ReassignError> {
    let owner = Owner::this_process("replay");
    let moves: Vec<_> = moves.iter().map(|it| (it.from.id, it.to.clone())).collect();
    let mut waited = Duration::ZERO;
    loop {
        match move_lanes(store, &owner, &moves, shutdown) {
            Ok((_, true)) => return Ok(()),
            Ok((_, false)) => return Err(ReassignError::Interrupted),
            Err(StoreError::LeaseHeld { owner }) if waited < LEASE_PATIENCE => {
                if waited.is_zero() {
                    note(&format!("waiting: {owner} replays this store"));
                }
                waited += LEASE_LOOK_INTERVAL;
                if shutdown.sleep(LEASE_LOOK_INTERVAL) {
                    return Err(ReassignError::Interrupted);
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}
