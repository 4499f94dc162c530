//! Flush: what is stored is delivered before the process ends, as far as that is possible.
//!
//! The replay manager does the work. Here is only decided how long that is waited for: until nothing waits any more, the
//! time is over, or waiting has become useless, because the server is away or everything that is left waits longer than
//! there is time. Whatever remains is as safe as before.

use std::time::{Duration, Instant};

use tracing::debug;

use crate::message::{MessageStatus, Server};
use crate::monitor::Availability;
use crate::monitor::connection::Connection;
use crate::shutdown::Shutdown;
use crate::store::slot::StoreSlot;
use crate::store::{Filter, LaneWork, Owner, StoreError, Whose, now_ms};

/// How to flush.
pub struct Flush<'a> {
    /// How long at most.
    pub timeout: Duration,
    /// Ends it early.
    pub stop: &'a Shutdown,
    /// Told how many messages wait, while they are being delivered.
    pub watch: &'a (dyn Fn(u64) + Sync),
}

/// How a flush ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FlushEnd {
    /// Nothing waits any more.
    Empty,
    /// The server is away.
    ServerAway {
        /// Why.
        reason: Option<String>,
    },
    /// All that is left waits longer than there is time.
    NotDue {
        /// Why, where a lane is held.
        reason: Option<String>,
    },
    /// The time is over.
    TimeOver {
        /// Another process that replays this store: one does at a time, for all servers.
        replayer: Option<Owner>,
    },
    /// It was asked to stop.
    Stopped,
    /// The store can't be used.
    NoStore {
        /// Why.
        reason: String,
    },
}

/// How often to look.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Waits for the replay manager, for as long as that is of use.
/// `server` is the one that this agent delivers to.
pub(super) fn flush(slot: &StoreSlot, connection: &Connection, server: &Server, flush: &Flush<'_>) -> FlushEnd {
    let own = &Filter::of_server(server);
    let whose = Whose::Server(server.clone());
    let deadline = Instant::now() + flush.timeout;
    // An attempt at once: what waits for its next one, or for its lane to be tried again, may pass by now.
    if flush.timeout > Duration::ZERO
        && let Err(error) =
            slot.with(|store| if store.backlog(own)?.waiting() > 0 { store.hasten(&whose) } else { Ok(()) })
    {
        debug!(target: "replay_manager", "what waits can't be made due: {error}");
    }
    loop {
        let time_left = deadline.saturating_duration_since(Instant::now());
        // One reading for both: what is due now is in time, even if the time is over.
        let now = now_ms();
        let until_ms = now.saturating_add(i64::try_from(time_left.as_millis()).unwrap_or(i64::MAX));
        let looked = slot.with(|store| {
            let backlog = store.backlog(own)?;
            let lanes = if backlog.waiting() > 0 { store.lanes(own, now)? } else { Vec::new() };
            Ok((backlog, lanes))
        });
        match looked {
            Ok((backlog, lanes)) => {
                let waiting = backlog.waiting();
                if waiting == 0 {
                    return FlushEnd::Empty;
                }
                if connection.availability() == Availability::Available {
                    let is_any_sent = backlog.groups.iter().any(|group| group.status == MessageStatus::Registered);
                    if !is_any_sent && let Some(reason) = useless(&lanes, until_ms) {
                        return FlushEnd::NotDue { reason };
                    }
                    (flush.watch)(waiting);
                }
            }
            // Somebody writes for long; there is time.
            Err(error) if matches!(*error, StoreError::Busy { .. }) => {}
            Err(error) => return FlushEnd::NoStore { reason: error.to_string() },
        }
        if flush.stop.is_requested() {
            return FlushEnd::Stopped;
        }
        if time_left.is_zero() {
            return FlushEnd::TimeOver { replayer: other_replayer(slot) };
        }
        if connection.availability() == Availability::Unavailable && !connection.look_again(time_left, flush.stop) {
            if flush.stop.is_requested() {
                return FlushEnd::Stopped;
            }
            return FlushEnd::ServerAway { reason: connection.state().reason };
        }
        flush.stop.sleep(LOOK_INTERVAL.min(time_left));
    }
}

/// Returns who replays the store, if that is another process.
fn other_replayer(slot: &StoreSlot) -> Option<Owner> {
    let condition = slot.with(|store| store.condition()).ok()?;
    condition.lease.filter(|owner| owner.pid != std::process::id())
}

/// Says whether nothing of what waits is due before then, and why if a lane is held.
///
/// To be asked when nothing is on its way: an answer may make anything due.
fn useless(lanes: &[LaneWork], until_ms: i64) -> Option<Option<String>> {
    let is_late =
        |lane: &LaneWork| lane.due_at_ms > until_ms && (lane.due_at_ms != i64::MAX || lane.waits_for.is_some());
    let reason = || {
        if let Some(held) = lanes.iter().find_map(|lane| lane.holds().next().map(|hold| (lane, hold))) {
            return Some(format!("{}: {}", held.0.lane, held.1.reason));
        }
        let create = lanes.iter().find_map(|lane| lane.waits_for)?;
        Some(format!("they wait for a create that the server refused, see `opik-offline inspect {create}`"))
    };
    (!lanes.is_empty() && lanes.iter().all(is_late)).then(reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Lane;
    use crate::store::{Hold, LaneId};

    #[test]
    fn waiting_is_useless_only_when_nothing_can_be_due_in_time() {
        let lane = |due_at_ms, hold: Option<&str>| LaneWork {
            id: LaneId(1),
            lane: Lane { workspace: Some("team".to_owned()), ..Lane::default() },
            failed: 1,
            due_at_ms,
            hold: hold.map(|reason| Hold {
                until_ms: due_at_ms,
                reason: reason.to_owned(),
                probe: true,
                status: None,
                bucket: None,
            }),
            limits: Vec::new(),
            waits_for: None,
        };
        assert_eq!(useless(&[], 100), None, "all is on its way");
        assert_eq!(useless(&[lane(100, None)], 100), None);
        assert_eq!(useless(&[lane(i64::MAX, None)], 100), None, "it waits for what is on its way");
        assert_eq!(useless(&[lane(101, None), lane(0, None)], 100), None);
        assert_eq!(useless(&[lane(101, None)], 100), Some(None));
        let held = useless(&[lane(101, None), lane(200, Some("no valid key"))], 100).expect("useless");
        assert!(held.expect("a reason").ends_with(": no valid key"));
    }
}
