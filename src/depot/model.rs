//! The model of a depot, in memory: for tests, with the faults of real ones.
//!
//! A test shares it between the parts that it runs as if they were on several hosts, and sets faults: some for one
//! call ([`ModelDepot::fail_next`]), some until they are taken back ([`ModelFaults`]).

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::error::DepotError;
use super::name::Name;
use super::{Created, Depot, DepotDescription, Entry, OBJECT_BYTES_MAX, Version};

/// A verb of a depot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// [`Depot::create`].
    Create,
    /// [`Depot::get`].
    Get,
    /// [`Depot::swap`].
    Swap,
    /// [`Depot::list`].
    List,
    /// [`Depot::delete`].
    Delete,
}

/// The fault of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelFault {
    /// No connection; nothing is done.
    Unreachable,
    /// It is done, and the answer is lost.
    DoneUnanswered,
    /// It is not done, and that is unknown to the caller.
    NotDoneUnanswered,
    /// Refused.
    Refused,
    /// No room.
    Full,
    /// It takes this long.
    Slow(Duration),
    /// Half of the bytes of a get arrive, and that is noticed.
    Truncated,
    /// One bit of the bytes of a get is another, and that is not noticed.
    FlippedBit,
}

/// Faults that stay until they are changed.
#[derive(Clone, Debug, Default)]
pub struct ModelFaults {
    /// Every call fails: there is no connection.
    pub is_away: bool,
    /// These verbs are refused.
    pub refused: Vec<Verb>,
    /// The number of newest objects that listings omit.
    pub listing_lags_by: usize,
    /// A read of what is not there is refused, as object storage does to clients without a right to list.
    pub refuses_absent: bool,
    /// Conditions are ignored: every create and swap succeeds.
    pub ignores_conditions: bool,
    /// Conditions are looked at before this pause and not after it: of several callers, more than one succeeds.
    pub races_for: Option<Duration>,
    /// Every call takes this long.
    pub delay: Option<Duration>,
}

/// A depot in memory.
#[derive(Debug, Default)]
pub struct ModelDepot {
    state: Mutex<ModelState>,
}

#[derive(Debug, Default)]
struct ModelState {
    objects: BTreeMap<Name, ModelObject>,
    writes: u64,
    faults: ModelFaults,
    next: VecDeque<(Verb, ModelFault)>,
    calls: Vec<(Verb, Name)>,
}

#[derive(Clone, Debug)]
struct ModelObject {
    bytes: Vec<u8>,
    /// The number of the write that made it.
    write: u64,
}

impl ModelObject {
    fn version(&self) -> Version {
        Version::new(format!("w{}", self.write))
    }
}

impl ModelState {
    fn put(&mut self, name: &Name, bytes: &[u8]) -> Version {
        self.writes += 1;
        let stored = ModelObject { bytes: bytes.to_vec(), write: self.writes };
        let version = stored.version();
        self.objects.insert(name.clone(), stored);
        version
    }

    fn holds(&self, name: &Name, expected: Option<&Version>) -> bool {
        self.objects.get(name).map(ModelObject::version).as_ref() == expected
    }
}

impl ModelDepot {
    /// Returns an empty depot without faults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Changes the faults that stay.
    pub fn set(&self, change: impl FnOnce(&mut ModelFaults)) {
        change(&mut self.state().faults);
    }

    /// Makes the next call of this verb fail; several are used up in this order.
    pub fn fail_next(&self, verb: Verb, fault: ModelFault) {
        self.state().next.push_back((verb, fault));
    }

    /// Returns every call until now with its first name, in their order.
    pub fn calls(&self) -> Vec<(Verb, Name)> {
        self.state().calls.clone()
    }

    /// Returns the names of all objects, ascending.
    pub fn names(&self) -> Vec<Name> {
        self.state().objects.keys().cloned().collect()
    }

    /// Returns an object's bytes without a call and without faults.
    pub fn peek(&self, name: &Name) -> Option<Vec<u8>> {
        self.state().objects.get(name).map(|stored| stored.bytes.clone())
    }

    /// Writes an object without a call and without conditions: another process, a damaged depot, a person.
    pub fn plant(&self, name: &Name, bytes: &[u8]) {
        self.state().put(name, bytes);
    }

    fn state(&self) -> MutexGuard<'_, ModelState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a call: notes it, waits, and returns what the caller gets instead of an answer, if anything.
    fn begin(&self, verb: Verb, name: &Name) -> Result<Option<ModelFault>, DepotError> {
        let mut state = self.state();
        state.calls.push((verb, name.clone()));
        let faults = state.faults.clone();
        let once = state.next.iter().position(|(of, _)| *of == verb).and_then(|at| state.next.remove(at));
        drop(state);
        if let Some(delay) = faults.delay {
            std::thread::sleep(delay);
        }
        if faults.is_away {
            return Err(unreachable("no connection"));
        }
        if faults.refused.contains(&verb) {
            return Err(refused(verb));
        }
        match once.map(|(_, fault)| fault) {
            Some(ModelFault::Unreachable) => Err(unreachable("no connection")),
            Some(ModelFault::NotDoneUnanswered) => Err(unknown(name)),
            Some(ModelFault::Refused) => Err(refused(verb)),
            Some(ModelFault::Full) => Err(DepotError::Full { at: at(), reason: "no room".to_owned() }),
            Some(ModelFault::Slow(pause)) => {
                std::thread::sleep(pause);
                Ok(None)
            }
            other => Ok(other),
        }
    }

    /// Writes if the condition holds, and returns the new version then.
    fn put_if(&self, name: &Name, expected: Option<&Version>, bytes: &[u8]) -> Option<Version> {
        let mut state = self.state();
        let ignores = state.faults.ignores_conditions;
        let may = ignores || state.holds(name, expected);
        if let Some(pause) = state.faults.races_for {
            drop(state);
            std::thread::sleep(pause);
            state = self.state();
        }
        may.then(|| state.put(name, bytes))
    }
}

impl Depot for ModelDepot {
    fn create(&self, name: &Name, bytes: &[u8]) -> Result<Created, DepotError> {
        check_size(name, bytes)?;
        let fault = self.begin(Verb::Create, name)?;
        let created = match self.put_if(name, None, bytes) {
            Some(_) => Created::New,
            None => Created::AlreadyThere,
        };
        if fault == Some(ModelFault::DoneUnanswered) { Err(unknown(name)) } else { Ok(created) }
    }

    fn get(&self, name: &Name) -> Result<Option<(Vec<u8>, Version)>, DepotError> {
        let fault = self.begin(Verb::Get, name)?;
        if fault == Some(ModelFault::DoneUnanswered) {
            return Err(unreachable("no answer"));
        }
        let (found, is_refused) = {
            let state = self.state();
            (state.objects.get(name).cloned(), state.faults.refuses_absent)
        };
        let Some(mut stored) = found else { return if is_refused { Err(refused(Verb::Get)) } else { Ok(None) } };
        match fault {
            Some(ModelFault::Truncated) => {
                let reason = format!("{} of its {} bytes arrived", stored.bytes.len() / 2, stored.bytes.len());
                return Err(DepotError::Damaged { at: at(), name: name.clone(), reason });
            }
            Some(ModelFault::FlippedBit) => {
                let middle = stored.bytes.len() / 2;
                if let Some(byte) = stored.bytes.get_mut(middle) {
                    *byte ^= 1;
                }
            }
            _ => {}
        }
        let version = stored.version();
        Ok(Some((stored.bytes, version)))
    }

    fn swap(&self, name: &Name, expected: Option<&Version>, bytes: &[u8]) -> Result<Version, DepotError> {
        check_size(name, bytes)?;
        let fault = self.begin(Verb::Swap, name)?;
        let swapped = self.put_if(name, expected, bytes);
        if fault == Some(ModelFault::DoneUnanswered) {
            return Err(unknown(name));
        }
        swapped.ok_or_else(|| DepotError::Lost { at: at(), name: name.clone() })
    }

    fn list(&self, under: &Name, after: Option<&Name>, limit: usize) -> Result<Vec<Entry>, DepotError> {
        let fault = self.begin(Verb::List, under)?;
        if fault == Some(ModelFault::DoneUnanswered) {
            return Err(unreachable("no answer"));
        }
        let state = self.state();
        let mut writes: Vec<u64> = state.objects.values().map(|stored| stored.write).collect();
        writes.sort_unstable();
        let listed = writes.len().saturating_sub(state.faults.listing_lags_by);
        let hidden = writes.get(listed).copied().unwrap_or(u64::MAX);
        let found = state.objects.iter().filter(|(name, stored)| {
            name.below(under).is_some() && after.is_none_or(|after| *name > after) && stored.write < hidden
        });
        let entry = |(name, stored): (&Name, &ModelObject)| Entry {
            name: name.clone(),
            bytes: stored.bytes.len() as u64,
            version: stored.version(),
        };
        Ok(found.take(limit).map(entry).collect())
    }

    fn delete(&self, names: &[Name]) -> Result<(), DepotError> {
        let Some(first) = names.first() else { return Ok(()) };
        let fault = self.begin(Verb::Delete, first)?;
        let mut state = self.state();
        for name in names {
            state.objects.remove(name);
        }
        if fault == Some(ModelFault::DoneUnanswered) { Err(unknown(first)) } else { Ok(()) }
    }

    fn describe(&self) -> DepotDescription {
        DepotDescription { url: at(), engine: "model", host: None }
    }

    fn weaknesses(&self) -> Result<Vec<String>, DepotError> {
        Ok(Vec::new())
    }
}

fn at() -> String {
    "model://".to_owned()
}

fn check_size(name: &Name, bytes: &[u8]) -> Result<(), DepotError> {
    if bytes.len() <= OBJECT_BYTES_MAX {
        return Ok(());
    }
    Err(DepotError::TooLarge { at: at(), name: name.clone(), bytes: bytes.len(), max: OBJECT_BYTES_MAX })
}

fn unreachable(reason: &str) -> DepotError {
    DepotError::Unreachable { at: at(), reason: reason.to_owned() }
}

fn unknown(name: &Name) -> DepotError {
    DepotError::UnknownOutcome { at: at(), name: name.clone(), reason: "no answer".to_owned() }
}

fn refused(verb: Verb) -> DepotError {
    let action = match verb {
        Verb::Create | Verb::Swap => "write",
        Verb::Get => "read",
        Verb::List => "list",
        Verb::Delete => "delete",
    };
    DepotError::NotAuthorised { at: at(), action, reason: "access denied".to_owned() }
}
