//! The places at which a history decides how a process continues: before and behind each request.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender};

use super::script::{Course, SharedWorld};
use crate::depot::model::ModelDepot;
use crate::depot::{Created, Depot, DepotDescription, DepotError, Entry, Name, Version};

/// A report of a thread.
#[derive(Debug)]
pub(super) enum Report {
    /// It waits for its course.
    Waits,
    Done,
    /// It ended by a panic that was not ours.
    Panicked(String),
    Died,
}

/// The panic of a thread that is killed.
pub(super) struct Killed;

thread_local! {
    static GATE: RefCell<Option<(Sender<Report>, Receiver<Course>)>> = const { RefCell::new(None) };
}

/// Lets these decide how this thread continues.
pub(super) fn enter(reports: Sender<Report>, courses: Receiver<Course>) {
    GATE.with_borrow_mut(|gate| *gate = Some((reports, courses)));
}

/// Waits for the course of this thread.
pub(super) fn pass() -> Course {
    if std::thread::panicking() {
        return Course::Fail;
    }
    let course = GATE.with_borrow(|gate| {
        let (reports, courses) = gate.as_ref().expect("every thread of a host has a gate");
        reports.send(Report::Waits).ok().and_then(|()| courses.recv().ok()).unwrap_or(Course::Die)
    });
    if course == Course::Die {
        std::panic::resume_unwind(Box::new(Killed));
    }
    course
}

/// The depot as one host reaches it.
pub(super) struct HostDepot {
    pub(super) depot: Arc<ModelDepot>,
    pub(super) world: Arc<SharedWorld>,
    /// The place of the host.
    pub(super) host: usize,
    /// Whether it may neither list nor delete.
    pub(super) only_writes: bool,
}

impl HostDepot {
    fn call<T>(&self, name: Option<&Name>, call: impl FnOnce() -> Result<T, DepotError>) -> Result<T, DepotError> {
        let at = "model://".to_owned();
        let unreachable = || DepotError::Unreachable { at: at.clone(), reason: "no connection".to_owned() };
        let unknown = || match name {
            Some(name) => {
                DepotError::UnknownOutcome { at: at.clone(), name: name.clone(), reason: "no answer".to_owned() }
            }
            None => unreachable(),
        };
        let is_cut = || self.world.is_cut[self.host].load(Ordering::SeqCst);
        if is_cut() {
            return Err(unreachable());
        }
        match pass() {
            Course::Fail => return Err(unreachable()),
            Course::Unknown => return Err(unknown()),
            _ => {}
        }
        let done = call();
        match pass() {
            Course::Fail | Course::Unknown => Err(unknown()),
            _ if is_cut() => Err(unknown()),
            _ => done,
        }
    }

    fn refused(&self, action: &'static str) -> Result<(), DepotError> {
        if !self.only_writes {
            return Ok(());
        }
        Err(DepotError::NotAuthorised { at: "model://".to_owned(), action, reason: "access denied".to_owned() })
    }
}

impl Depot for HostDepot {
    fn create(&self, name: &Name, bytes: &[u8]) -> Result<Created, DepotError> {
        self.call(Some(name), || self.depot.create(name, bytes))
    }

    fn get(&self, name: &Name) -> Result<Option<(Vec<u8>, Version)>, DepotError> {
        let found = self.call(None, || self.depot.get(name))?;
        if found.is_none() {
            self.refused("read")?;
        }
        Ok(found)
    }

    fn swap(&self, name: &Name, expected: Option<&Version>, bytes: &[u8]) -> Result<Version, DepotError> {
        self.call(Some(name), || self.depot.swap(name, expected, bytes))
    }

    fn list(&self, under: &Name, after: Option<&Name>, limit: usize) -> Result<Vec<Entry>, DepotError> {
        self.refused("list")?;
        self.call(None, || self.depot.list(under, after, limit))
    }

    fn delete(&self, names: &[Name]) -> Result<(), DepotError> {
        self.refused("delete")?;
        self.call(names.first(), || self.depot.delete(names))
    }

    fn describe(&self) -> DepotDescription {
        self.depot.describe()
    }

    fn weaknesses(&self) -> Result<Vec<String>, DepotError> {
        Ok(Vec::new())
    }
}
