//! Open files: the soft limit on file descriptors, and how many each part gets.
//!
//! The soft limit is raised to what the agent needs, as far as the hard limit allows. A wrapped command starts with the
//! limit that the agent was started with: programs that use `select` break beyond 1024 descriptors, and a limit that
//! the user set for the command is meant for the command.
//!
//! The descriptors are shared out once, at the start ([`share`], pure), so that they don't run out at the worst
//! moment: if a connection to the server can't be opened, the server seems unavailable, and if the store can't be
//! opened, it seems corrupt.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files that the agent has open when idle (23 were counted) or opens for a moment: the store and its write-ahead log,
/// standard streams, the listener, logs, files that it reads.
const OWN: u64 = 40;
/// Files of each thread that serves connections.
const OWN_OF_A_WORKER: u64 = 4;
/// How many lanes are replayed concurrently if there are enough files. Each has a connection to the server.
pub(crate) const REPLAY_WORKERS_MAX: u64 = 64;
/// How many idle connections to the server each thread keeps at most.
const IDLE_OF_A_WORKER_MAX: u64 = 128;

/// How many files each part may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileShares {
    /// Concurrent client connections; each may need one to the server beside its own.
    pub clients: u64,
    /// Idle connections to the server that each thread keeps.
    pub idle_of_a_worker: u64,
    /// Lanes that are replayed concurrently.
    pub replay_workers: u64,
}

/// Shares out files (`None`: any number) for this many concurrent clients and the threads that serve them.
///
/// Clients come first: a write that is refused may be lost by its client. Replay can wait, so it gets an eighth; idle
/// connections, which only save handshakes, get an eighth of the rest.
pub(crate) fn share(files: Option<u64>, clients_wanted: u64, workers: u64) -> FileShares {
    let left = files.unwrap_or(u64::MAX).saturating_sub(OWN + OWN_OF_A_WORKER * workers);
    let replay_workers = (left / 8).clamp(1, REPLAY_WORKERS_MAX);
    let left = left.saturating_sub(replay_workers);
    let idle = left / 8;
    FileShares {
        clients: ((left - idle) / 2).clamp(1, clients_wanted),
        idle_of_a_worker: (idle / workers.max(1)).clamp(1, IDLE_OF_A_WORKER_MAX),
        replay_workers,
    }
}

/// Returns how many files are enough for [`share`] to satisfy every part.
fn needed(clients_wanted: u64, workers: u64) -> u64 {
    // Replay gets an eighth, and idle connections an eighth of the rest.
    let left = (REPLAY_WORKERS_MAX * 8).max(REPLAY_WORKERS_MAX + clients_wanted * 16 / 7 + 2);
    OWN + OWN_OF_A_WORKER * workers + left
}

/// Returns what this many files are too few for, if they are.
pub(crate) fn problem(files: Option<u64>, clients_wanted: u64, workers: u64) -> Option<String> {
    let shares = share(files, clients_wanted, workers);
    let is_little = shares.clients < clients_wanted || shares.replay_workers < REPLAY_WORKERS_MAX;
    files.filter(|_| is_little).map(|files| {
        format!(
            "the system allows it {files} open files: it takes {} connections at once, not {clients_wanted} \
             (max_connections), and replays {} lanes at once, not {REPLAY_WORKERS_MAX}",
            shares.clients, shares.replay_workers
        )
    })
}

/// Returns what the user can do about [`problem`].
pub(crate) fn hint(clients_wanted: u64, workers: u64) -> String {
    let needed = needed(clients_wanted, workers).next_multiple_of(1024);
    format!(
        "raise the hard limit on open files: `ulimit -Hn {needed}`, LimitNOFILE={needed} for systemd, \
         --ulimit nofile={needed} for a container"
    )
}

/// Returns how many files this process may open; `None` for any number.
pub(crate) fn allowed() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// Returns how many files this process may open once its soft limit is raised; `None` for any number.
pub(crate) fn allowed_at_most() -> Option<u64> {
    getrlimit(Resource::Nofile).maximum
}

/// The soft limit on open files before and after it was raised.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SoftLimit {
    original: Rlimit,
    raised: Rlimit,
}

impl SoftLimit {
    /// Raises it to the number that the agent needs, as far as the hard limit allows.
    pub(crate) fn raise(clients_wanted: u64, workers: u64) -> Self {
        let original = getrlimit(Resource::Nofile);
        let Some(current) = raised(original.current, original.maximum, needed(clients_wanted, workers)) else {
            return Self { original, raised: original };
        };
        let raised = Rlimit { current: Some(current), ..original };
        match setrlimit(Resource::Nofile, raised) {
            Ok(()) => Self { original, raised },
            Err(error) => {
                tracing::debug!(target: "intake", "cannot raise the limit on open files: {error}");
                Self { original, raised: original }
            }
        }
    }

    /// Starts a process with the limit that this process was started with.
    pub(crate) fn as_before<T>(self, start: impl FnOnce() -> T) -> T {
        if self.original == self.raised {
            return start();
        }
        // Open files stay open under a lower limit, and no other thread opens a file this early.
        let is_lowered = setrlimit(Resource::Nofile, self.original).is_ok();
        let started = start();
        if is_lowered && let Err(error) = setrlimit(Resource::Nofile, self.raised) {
            tracing::warn!(target: "intake", "cannot raise the limit on open files again: {error}");
        }
        started
    }
}

/// Returns the soft limit to set, if it has to be raised.
fn raised(soft: Option<u64>, hard: Option<u64>, needed: u64) -> Option<u64> {
    let soft = soft.filter(|soft| *soft < needed)?;
    Some(hard.map_or(needed, |hard| hard.min(needed))).filter(|raised| *raised > soft)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_come_first_and_every_part_gets_something() {
        for (files, wanted, workers, clients, idle, replay) in [
            (Some(16), 4096, 2, 1, 1, 1),
            (Some(64), 4096, 2, 6, 1, 2),
            (Some(256), 4096, 2, 80, 11, 26),
            (Some(256), 4096, 16, 58, 1, 19),
            (Some(1024), 4096, 2, 399, 57, 64),
            (Some(1024), 10, 2, 10, 57, 64),
            (Some(1 << 20), 4096, 2, 4096, 128, 64),
            (None, 4096, 2, 4096, 128, 64),
        ] {
            let expected = FileShares { clients, idle_of_a_worker: idle, replay_workers: replay };
            let shares = share(files, wanted, workers);
            assert_eq!(shares, expected, "{files:?} {wanted} {workers}");
            let all = OWN
                + OWN_OF_A_WORKER * workers
                + 2 * shares.clients
                + shares.idle_of_a_worker * workers
                + shares.replay_workers;
            assert!(files.is_none_or(|files| files < 64 || all <= files), "{all} of {files:?}");
            assert_eq!(problem(files, wanted, workers).is_none(), clients == wanted && replay == 64, "{files:?}");
        }
    }

    #[test]
    fn the_needed_number_of_files_satisfies_every_part() {
        for (clients, workers) in [(1, 2), (64, 4), (4096, 2), (4096, 16), (1_000_000, 16)] {
            assert_eq!(problem(Some(needed(clients, workers)), clients, workers), None, "{clients} {workers}");
        }
    }

    #[test]
    fn the_soft_limit_is_raised_as_far_as_the_hard_limit_allows() {
        for (soft, hard, expected) in [
            (Some(256), None, Some(9000)),
            (Some(256), Some(1 << 20), Some(9000)),
            (Some(256), Some(4096), Some(4096)),
            (Some(256), Some(256), None),
            (Some(9000), None, None),
            (None, None, None),
        ] {
            assert_eq!(raised(soft, hard, 9000), expected, "{soft:?} {hard:?}");
        }
    }
}
