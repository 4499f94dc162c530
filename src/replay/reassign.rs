//! Lanes that get another server or credential: moved under the lease, in small transactions.

use std::time::Duration;

use tracing::{info, warn};

use crate::message::Lane;
use crate::shutdown::Shutdown;
use crate::store::{LaneId, LaneListed, Lease, Owner, Store, StoreError, now_ms};

/// Messages moved in one commit: few enough that intake never waits for it.
const STEP: usize = 500;
/// How long the lease lives between two steps.
const LEASE_TIME_TO_LIVE: Duration = Duration::from_secs(30);

/// Returns whether a lane may continue with the credential of `own`: the server refuses its present one, and both are
/// for the same server and workspace.
pub(crate) fn may_get_own_credential(listed: &LaneListed, own: &Lane) -> bool {
    let lane = &listed.lane;
    own.credential.is_some()
        && lane.server == own.server
        && lane.workspace_name() == own.workspace_name()
        && lane.credential != own.credential
        && listed.hold.as_ref().is_some_and(crate::store::Hold::is_credential_refused)
}

/// Moves all messages of each lane to another; returns how many, and whether that was all: `stop` ends it between two
/// steps. Each step is atomic, and the next call moves the rest.
///
/// # Errors
///
/// [`StoreError::LeaseHeld`] while another process replays.
pub(crate) fn move_lanes(
    store: &dyn Store,
    owner: &Owner,
    moves: &[(LaneId, Lane)],
    stop: &Shutdown,
) -> Result<(u64, bool), StoreError> {
    let lease = store.acquire(owner, LEASE_TIME_TO_LIVE)?;
    let moved = move_under(store, &lease, moves, stop);
    store.release(&lease)?;
    moved
}

fn move_under(
    store: &dyn Store,
    lease: &Lease,
    moves: &[(LaneId, Lane)],
    stop: &Shutdown,
) -> Result<(u64, bool), StoreError> {
    // Messages that a killed process left in flight move, too.
    store.return_in_flight(lease)?;
    let mut moved = 0;
    for (from, to) in moves {
        loop {
            let step = store.reassign(lease, *from, to, STEP)?;
            moved += step;
            if step == 0 {
                break;
            }
            store.renew(lease, LEASE_TIME_TO_LIVE)?;
            stop.beat();
            if stop.is_requested() {
                return Ok((moved, false));
            }
        }
    }
    Ok((moved, true))
}

/// Gives lanes whose key the server refuses the agent's own key (`rekey_refused`).
pub(super) fn rekey_refused(store: &dyn Store, owner: &Owner, own: &Lane, stop: &Shutdown) -> Result<(), StoreError> {
    let refused: Vec<LaneListed> =
        store.lane_list(now_ms())?.into_iter().filter(|listed| may_get_own_credential(listed, own)).collect();
    if refused.is_empty() {
        return Ok(());
    }
    for listed in &refused {
        warn!(
            target: "replay_manager",
            "{}: the server refuses this key; its messages continue with the configured key (rekey_refused)", listed.lane
        );
    }
    // The workspace stays as its client wrote it.
    let to = |listed: &LaneListed| Lane { workspace: listed.lane.workspace.clone(), ..own.clone() };
    let moves: Vec<_> = refused.iter().map(|listed| (listed.id, to(listed))).collect();
    let (moved, _) = move_lanes(store, owner, &moves, stop)?;
    info!(target: "replay_manager", moved, "moved messages to the configured key");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Credential, Server};
    use crate::store::Hold;

    #[test]
    fn only_a_refused_key_of_the_same_server_and_workspace_is_replaced() {
        let lane = |server: &str, workspace: Option<&str>, key: Option<&str>| Lane {
            server: Some(Server::new(server)),
            workspace: workspace.map(str::to_owned),
            credential: key.map(Credential::new),
        };
        let own = lane("http://a", Some("default"), Some("new"));
        let held = |status| Some(Hold { until_ms: 0, reason: String::new(), probe: true, status, bucket: None });
        for (lane, hold, expected, what) in [
            (lane("http://a", Some("default"), Some("old")), held(Some(401)), true, "refused"),
            (lane("http://a", None, Some("old")), held(Some(403)), true, "no workspace means the default one"),
            (lane("http://a", Some("default"), None), held(Some(401)), true, "a client without a key"),
            (
                lane("http://a", Some("default"), Some("old")),
                held(Some(402)),
                false,
                "the plan is refused, not the key",
            ),
            (lane("http://a", Some("default"), Some("old")), held(None), false, "held for something else"),
            (lane("http://a", Some("default"), Some("old")), None, false, "not held"),
            (lane("http://a", Some("team"), Some("old")), held(Some(401)), false, "another workspace"),
            (lane("http://b", Some("default"), Some("old")), held(Some(401)), false, "another server"),
            (lane("http://a", Some("default"), Some("new")), held(Some(401)), false, "the configured key itself"),
        ] {
            let listed = LaneListed { id: LaneId(1), lane, waiting: 1, rejected: 0, hold };
            assert_eq!(may_get_own_credential(&listed, &own), expected, "{what}");
        }
        let no_key = Lane { credential: None, ..own };
        let refused = LaneListed {
            id: LaneId(1),
            lane: lane("http://a", Some("default"), Some("old")),
            waiting: 1,
            rejected: 0,
            hold: held(Some(401)),
        };
        assert!(!may_get_own_credential(&refused, &no_key), "no key is configured");
    }
}
