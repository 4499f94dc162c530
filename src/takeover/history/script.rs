//! The steps of a history, and the state that its hosts share.

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::oracle::Oracle;
use crate::depot::model::ModelDepot;

/// Agents, replayers, and the person.
pub(super) const AGENTS: usize = 2;
pub(super) const REPLAYERS: usize = 2;
pub(super) const PERSON: usize = AGENTS + REPLAYERS;
pub(super) const HOSTS: usize = PERSON + 1;
/// Entities of an agent's clients.
pub(super) const ENTITIES: u8 = 2;

/// The state that all hosts share.
pub(super) struct SharedWorld {
    pub(super) depot: Arc<ModelDepot>,
    pub(super) oracle: Mutex<Oracle>,
    pub(super) clock: Arc<AtomicU64>,
    pub(super) is_server_up: AtomicBool,
    /// Whether a host does not reach the depot.
    pub(super) is_cut: [AtomicBool; HOSTS],
    /// Whether agents may neither list nor delete in the depot.
    pub(super) pods_only_write: bool,
}

impl SharedWorld {
    pub(super) fn oracle(&self) -> MutexGuard<'_, Oracle> {
        self.oracle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wrong(&self, what: String) {
        self.oracle().wrong.push(what);
    }

    pub(super) fn tell(&self, what: String) {
        self.oracle().story.push(what);
    }
}

/// An order to a thread of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Write {
        entity: u8,
    },
    Deliver {
        most: usize,
    },
    /// A turn of an agent's shipper.
    Turn,
    /// A replayer renews its heads.
    Keep,
    /// A step of a replayer's feeder.
    Feed,
    Purge {
        entity: Option<u8>,
    },
    /// The process ends in order.
    End,
}

/// How a thread continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Course {
    Go,
    /// The request fails. Behind it: it was done, and its answer is lost.
    Fail,
    /// The same, and before it the process can't know that it was not done.
    Unknown,
    /// The process is killed.
    Die,
    /// The process is suspended until it gets another order.
    Suspend,
}

#[derive(Clone, Debug)]
pub(super) enum HistoryStep {
    /// One order; at its request of this number the thread takes this course.
    Do {
        host: usize,
        order: Order,
        at: usize,
        course: Course,
    },
    /// Seconds pass.
    Wait(u64),
    /// A minute and a half passes, in which replayers look around.
    Silence,
    Kill(usize),
    /// An agent ends in order.
    Stop(usize),
    LoseDisk(usize),
    Server(bool),
    Cut {
        host: usize,
        is_cut: bool,
    },
    ListingLags(usize),
}
