//! Ends an agent that nobody needs (`--idle-exit`).
//!
//! It is idle while no client is connected, no request comes and nothing waits in the store for its server. A store
//! that can't be read may hold messages, so the agent stays. What is being answered belongs to an open connection.

use std::time::{Duration, Instant};

use tracing::info;

use crate::intake::identity::AgentIdentity;
use crate::shutdown::Shutdown;

const CHECK_INTERVAL_MIN: Duration = Duration::from_millis(50);
const CHECK_INTERVAL_MAX: Duration = Duration::from_secs(5);

/// For how long an agent has been idle.
struct IdleTimer {
    since: Instant,
    requests: u64,
}

impl IdleTimer {
    /// Takes what is observed at `now`; returns for how long the agent has been idle.
    fn observe(&mut self, now: Instant, requests: u64, connections: u64) -> Duration {
        if connections > 0 || requests != self.requests {
            self.since = now;
            self.requests = requests;
        }
        now.saturating_duration_since(self.since)
    }
}

/// The state that decides whether an agent ends as idle.
pub(super) struct IdleWatch<'a> {
    pub(super) idle_exit: Duration,
    pub(super) identity: &'a AgentIdentity,
    /// Returns how many connections are open.
    pub(super) connections: &'a dyn Fn() -> u64,
    /// Returns how many messages wait for the server; `None` if that is unknown.
    pub(super) waiting: &'a dyn Fn() -> Option<u64>,
    /// Requested when the agent has been idle for long enough.
    pub(super) stopping: &'a Shutdown,
}

impl IdleWatch<'_> {
    /// Watches until shutdown, or until the agent is asked to stop.
    pub(super) fn run(&self, shutdown: &Shutdown) {
        let interval = (self.idle_exit / 10).clamp(CHECK_INTERVAL_MIN, CHECK_INTERVAL_MAX);
        let mut clock = IdleTimer { since: Instant::now(), requests: self.identity.requests() };
        while !shutdown.sleep(interval) {
            let requests = self.identity.requests();
            let idle = clock.observe(Instant::now(), requests, (self.connections)());
            if idle < self.idle_exit {
                continue;
            }
            if (self.waiting)() != Some(0) {
                // It has been needed until now.
                clock.since = Instant::now();
            } else if self.identity.close_unless_used(requests) {
                info!(target: "intake", "idle for {} s: the agent ends (idle_exit)", idle.as_secs());
                self.stopping.request();
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn requests_and_open_connections_restart_the_idle_time() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut clock = IdleTimer { since: start, requests: 0 };
        for (now, requests, connections, expected) in
            [(5, 0, 0, 5), (6, 1, 0, 0), (9, 1, 0, 3), (10, 1, 1, 0), (20, 1, 1, 0), (21, 1, 0, 1), (31, 1, 0, 11)]
        {
            assert_eq!(clock.observe(at(now), requests, connections), Duration::from_secs(expected), "at {now}");
        }
    }

    #[test]
    fn an_agent_with_waiting_messages_or_an_unreadable_store_never_ends_as_idle() {
        let (identity, stopping) = (AgentIdentity::new(b"secret"), Shutdown::new());
        let answers = Cell::new(0);
        let waiting = || {
            answers.set(answers.get() + 1);
            assert!(!stopping.is_requested(), "it ended before its messages were delivered");
            match answers.get() {
                1 => Some(240),
                2 => None,
                _ => Some(0),
            }
        };
        let watch = IdleWatch {
            idle_exit: Duration::from_millis(1),
            identity: &identity,
            connections: &|| 0,
            waiting: &waiting,
            stopping: &stopping,
        };
        watch.run(&Shutdown::new());
        assert!(stopping.is_requested() && answers.get() == 3);
    }
}
