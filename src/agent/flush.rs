//! Flush: delivers as many stored messages as possible before the process ends.
//!
//! The replay manager does the work. This module only decides how long to wait for it: until the backlog is empty, the
//! timeout expires, or waiting is useless, because a person holds the replay, the server is unavailable or every message
//! that is left is due only after the deadline. Messages that remain are as safe as before.

use std::time::{Duration, Instant};

use tracing::debug;

use crate::hint;
use crate::message::{MessageStatus, Server};
use crate::monitor::Availability;
use crate::monitor::connection::Connection;
use crate::overview::dial::held_text;
use crate::shutdown::Shutdown;
use crate::store::slot::StoreSlot;
use crate::store::{Filter, LaneWork, Owner, StoreError, Whose, now_ms};

/// How to flush.
pub(crate) struct Flush<'a> {
    /// The timeout.
    pub timeout: Duration,
    /// Ends the flush early.
    pub stop: &'a Shutdown,
    /// Called with the size of the backlog while it is being delivered.
    pub watch: &'a (dyn Fn(u64) + Sync),
}

/// How a flush ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FlushEnd {
    /// The backlog is empty.
    Empty,
    /// The server is unavailable.
    ServerAway {
        /// Why.
        reason: Option<String>,
    },
    /// A person holds the replay of the store: nothing more is sent, and what is in flight ends with the agent.
    Held {
        /// Until when, and by whom.
        held: String,
    },
    /// Every message that is left is due only after the deadline.
    NotDue {
        /// Why, if a lane is held.
        reason: Option<String>,
    },
    /// The timeout expired.
    TimeOver {
        /// The other process that replays this store: only one replays at a time, for all servers.
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

/// How often the backlog is polled.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Waits for the replay manager to deliver to `server`, for as long as that is useful.
pub(super) fn flush(slot: &StoreSlot, connection: &Connection, server: &Server, flush: &Flush<'_>) -> FlushEnd {
    let own = &Filter::of_server(server);
    let whose = Whose::Server(server.clone());
    let deadline = Instant::now() + flush.timeout;
    // One retry at once: deferred messages and held lanes may pass by now.
    if flush.timeout > Duration::ZERO
        && let Err(error) =
            slot.with(|store| if store.backlog(own)?.waiting() > 0 { store.hasten(&whose) } else { Ok(()) })
    {
        debug!(target: "replay_manager", "cannot make deferred messages due: {error}");
    }
    loop {
        let time_left = deadline.saturating_duration_since(Instant::now());
        // One clock reading for both: a message that is due now counts as in time, even at the deadline.
        let now = now_ms();
        let until_ms = now.saturating_add(i64::try_from(time_left.as_millis()).unwrap_or(i64::MAX));
        let read = slot.with(|store| {
            let backlog = store.backlog(own)?;
            let lanes = if backlog.waiting() > 0 { store.lanes(own, now)? } else { Vec::new() };
            Ok((backlog, lanes, held_text(store.replay_hold()?.as_ref(), now)))
        });
        match read {
            Ok((backlog, lanes, held)) => {
                let waiting = backlog.waiting();
                if waiting == 0 {
                    return FlushEnd::Empty;
                }
                if let Some(held) = held {
                    return FlushEnd::Held { held };
                }
                if connection.availability() == Availability::Available {
                    let is_any_sent = backlog.groups.iter().any(|group| group.status == MessageStatus::Registered);
                    if !is_any_sent && let Some(reason) = useless(&lanes, until_ms) {
                        return FlushEnd::NotDue { reason };
                    }
                    (flush.watch)(waiting);
                }
            }
            // Another process has had the write lock for long; retry until the deadline.
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
        flush.stop.sleep(POLL_INTERVAL.min(time_left));
    }
}

/// Returns the process that replays the store, if it is not this one.
fn other_replayer(slot: &StoreSlot) -> Option<Owner> {
    let condition = slot.with(|store| store.condition()).ok()?;
    condition.lease.filter(|owner| owner.pid != std::process::id())
}

/// Returns `Some` if no waiting message is due by then, with the reason if a lane is held.
///
/// Only valid while nothing is in flight: an answer may make any message due.
fn useless(lanes: &[LaneWork], until_ms: i64) -> Option<Option<String>> {
    let is_late =
        |lane: &LaneWork| lane.due_at_ms > until_ms && (lane.due_at_ms != i64::MAX || lane.waits_for.is_some());
    let reason = || {
        if let Some(held) = lanes.iter().find_map(|lane| lane.holds().next().map(|hold| (lane, hold))) {
            return Some(format!("{}: {}", held.0.lane, held.1.reason));
        }
        let create = lanes.iter().find_map(|lane| lane.waits_for)?;
        let see = hint::command(&format!("inspect {create}"));
        Some(format!("they wait for a create that the server refused, see {see}"))
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
            body_bytes: 2,
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
        assert_eq!(useless(&[], 100), None, "all is in flight");
        assert_eq!(useless(&[lane(100, None)], 100), None);
        assert_eq!(useless(&[lane(i64::MAX, None)], 100), None, "it waits for a message in flight");
        assert_eq!(useless(&[lane(101, None), lane(0, None)], 100), None);
        assert_eq!(useless(&[lane(101, None)], 100), Some(None));
        let held = useless(&[lane(101, None), lane(200, Some("no valid key"))], 100).expect("useless");
        assert!(held.expect("a reason").ends_with(": no valid key"));
    }
}
