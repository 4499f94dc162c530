//! Does a depot keep its conditions? Tried, because some answer "created" to everybody.
//!
//! Garage ignores both conditions silently, other servers keep them unless two requests arrive together. So a few
//! rounds create one name, and replace one version, from several threads at once; each must have one winner, and the
//! depot must then hold the winner's bytes.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::error::DepotError;
use super::name::Name;
use super::{Created, Depot};

/// Rounds for each condition.
const ROUNDS: usize = 6;
/// Callers of a round at once.
const RACERS: usize = 8;

/// The guarantees and rights that a test of the depot found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proofs {
    /// A name is created once, however many try at once.
    pub creates_kept: bool,
    /// A version is replaced once, however many try at once. `None` if this can't be known: we may not read, which a
    /// conditional replace needs.
    pub replaces_kept: Option<bool>,
    /// Whether we may read what we wrote.
    pub can_read: bool,
    /// Whether we may list. A pod that only ships needs not.
    pub can_list: bool,
    /// Whether we may delete. A pod that only ships needs not; then the objects of this proof stay, empty, below
    /// `v1/proofs/`.
    pub can_delete: bool,
    /// The median time of one small write.
    pub write: Duration,
    /// Risks to the durability of copies, a sentence each ([`Depot::weaknesses`]).
    pub weaknesses: Vec<String>,
}

impl Proofs {
    /// Returns whether several replayers may take streams from this depot.
    pub fn are_conditions_kept(&self) -> bool {
        self.creates_kept && self.replaces_kept == Some(true)
    }

    /// Returns whether these are the rights of a pod that only ships.
    pub fn is_write_only(&self) -> bool {
        !self.can_list && !self.can_delete
    }
}

/// What one round found.
struct ProofRound {
    /// Whether the condition was kept. `None` if this can't be known without the right to read.
    kept: Option<bool>,
    can_read: bool,
}

/// Finds out what a depot keeps and allows. Takes about a hundred small requests, below `v1/proofs/`.
///
/// # Errors
///
/// [`DepotError`] if it can't be reached, or we may not write.
pub fn prove(depot: &dyn Depot) -> Result<Proofs, DepotError> {
    let folder = folder()?;
    let names = |condition: &str| -> Result<Vec<Name>, DepotError> {
        (0..ROUNDS).map(|round| name(&format!("{folder}/{condition}-{round}"))).collect()
    };
    let (timed, created, replaced) = (names("write")?, names("create")?, names("replace")?);
    // Before the rounds, whose writes wait for each other.
    let mut times = timed.iter().map(|name| timed_write(depot, name)).collect::<Result<Vec<_>, _>>()?;
    times.sort_unstable();
    let creates = rounds(&created, |name| create_round(depot, name))?;
    let replaces = rounds(&replaced, |name| replace_round(depot, name))?;
    let can_list = match depot.list(&folder, None, 1) {
        Ok(_) => true,
        Err(DepotError::NotAuthorised { .. }) => false,
        Err(error) => return Err(error),
    };
    let can_delete = match depot.delete(&[timed, created, replaced].concat()) {
        Ok(()) => true,
        Err(DepotError::NotAuthorised { .. }) => false,
        Err(error) => return Err(error),
    };
    let all = || creates.iter().chain(&replaces);
    Ok(Proofs {
        creates_kept: creates.iter().all(|round| round.kept == Some(true)),
        replaces_kept: replaces.iter().map(|round| round.kept).reduce(|a, b| Some(a? && b?)).flatten(),
        can_read: all().all(|round| round.can_read),
        can_list,
        can_delete,
        write: times[times.len() / 2],
        weaknesses: depot.weaknesses()?,
    })
}

fn folder() -> Result<Name, DepotError> {
    name(&format!("v1/proofs/{}", Uuid::now_v7()))
}

fn name(name: &str) -> Result<Name, DepotError> {
    Name::new(name).map_err(|error| DepotError::Unusable { at: name.to_owned(), reason: error.to_string() })
}

/// Runs a round for each name, concurrently: some engines let a writer that lost a race wait for a second.
fn rounds(
    names: &[Name],
    round: impl Fn(&Name) -> Result<ProofRound, DepotError> + Sync,
) -> Result<Vec<ProofRound>, DepotError> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = names.iter().map(|name| scope.spawn(|| round(name))).collect();
        let found = threads.into_iter();
        found.map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}

/// Returns how long one small write takes.
fn timed_write(depot: &dyn Depot, name: &Name) -> Result<Duration, DepotError> {
    let started = Instant::now();
    match depot.create(name, b"timed") {
        Ok(_) | Err(DepotError::UnknownOutcome { .. }) => Ok(started.elapsed()),
        Err(error) => Err(error),
    }
}

/// Checks that a name has one creator, and that a name that is there is not created again.
fn create_round(depot: &dyn Depot, name: &Name) -> Result<ProofRound, DepotError> {
    let winners = race(|racer| depot.create(name, &[racer]).map(|created| created == Created::New))?;
    // One after the other, which some keep that fail when two come together.
    let again = depot.create(name, b"again")?;
    let held = read(depot, name)?;
    let kept = again == Created::AlreadyThere && is_won(&winners, &held);
    Ok(ProofRound { kept: Some(kept), can_read: held != RacedObject::NotAllowed })
}

/// Checks that a version is replaced by one racer only, and that a replaced version is replaced by none.
fn replace_round(depot: &dyn Depot, name: &Name) -> Result<ProofRound, DepotError> {
    let first = match depot.swap(name, None, b"first") {
        Err(DepotError::UnknownOutcome { .. }) => depot.get(name)?.map(|(_, version)| version),
        first => unless_refused(first)?,
    };
    let found = |kept, can_read| Ok(ProofRound { kept, can_read });
    let Some(first) = first else { return found(None, true) };
    let swap = |racer| match depot.swap(name, Some(&first), &[racer]) {
        Ok(_) => Ok(true),
        Err(DepotError::Lost { .. }) => Ok(false),
        Err(error) => Err(error),
    };
    let Some(winners) = unless_refused(race(swap))? else { return found(None, true) };
    let held = read(depot, name)?;
    if held == RacedObject::NotAllowed {
        return found(None, false);
    }
    match depot.swap(name, Some(&first), b"late") {
        Err(DepotError::Lost { .. }) => found(Some(is_won(&winners, &held)), true),
        Ok(_) => found(Some(false), true),
        Err(error) => Err(error),
    }
}

/// The content of an object after a race.
#[derive(PartialEq, Eq)]
enum RacedObject {
    Bytes(Vec<u8>),
    Nothing,
    NotAllowed,
}

fn read(depot: &dyn Depot, name: &Name) -> Result<RacedObject, DepotError> {
    match depot.get(name) {
        Ok(Some((bytes, _))) => Ok(RacedObject::Bytes(bytes)),
        Ok(None) => Ok(RacedObject::Nothing),
        Err(DepotError::NotAuthorised { .. }) => Ok(RacedObject::NotAllowed),
        Err(error) => Err(error),
    }
}

/// Returns whether at most one racer was told that it won, and the bytes that are there are its. Without a winner, the
/// answer to one was lost, and its bytes are there.
fn is_won(winners: &[u8], held: &RacedObject) -> bool {
    match (winners, held) {
        ([], RacedObject::Bytes(bytes)) => matches!(&bytes[..], [racer] if usize::from(*racer) < RACERS),
        ([winner], RacedObject::Bytes(bytes)) => bytes[..] == [*winner],
        ([] | [_], RacedObject::NotAllowed) => true,
        _ => false,
    }
}

/// Runs [`RACERS`] callers at once, each of which returns true if it won; returns the winners.
fn race(run: impl Fn(u8) -> Result<bool, DepotError> + Sync) -> Result<Vec<u8>, DepotError> {
    let start = Barrier::new(RACERS);
    let racers = (0..RACERS).map(|racer| u8::try_from(racer).unwrap_or_default());
    let answers: Vec<(u8, Result<bool, DepotError>)> = std::thread::scope(|scope| {
        let threads: Vec<_> = racers
            .map(|racer| {
                let (start, run) = (&start, &run);
                let work = move || {
                    start.wait();
                    run(racer)
                };
                (racer, scope.spawn(work))
            })
            .collect();
        threads.into_iter().filter_map(|(racer, thread)| thread.join().ok().map(|answer| (racer, answer))).collect()
    });
    let mut winners = Vec::new();
    for (racer, answer) in answers {
        match answer {
            Ok(true) => winners.push(racer),
            Ok(false) | Err(DepotError::UnknownOutcome { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(winners)
}

fn unless_refused<T>(answer: Result<T, DepotError>) -> Result<Option<T>, DepotError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(DepotError::NotAuthorised { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::{ModelDepot, ModelFault, Verb};
    use super::*;

    #[test]
    fn an_honest_depot_is_proved() {
        let depot = ModelDepot::new();
        let proofs = prove(&depot).unwrap();
        assert!(proofs.are_conditions_kept() && proofs.can_list && proofs.can_delete, "{proofs:?}");
        assert_eq!(depot.names(), [], "a proof leaves nothing behind");
    }

    #[test]
    fn a_depot_that_ignores_conditions_is_found_out() {
        let depot = ModelDepot::new();
        depot.set(|faults| faults.ignores_conditions = true);
        let proofs = prove(&depot).unwrap();
        assert_eq!((proofs.creates_kept, proofs.replaces_kept), (false, Some(false)), "two would replay one stream");
    }

    #[test]
    fn a_depot_whose_conditions_race_is_found_out() {
        let depot = ModelDepot::new();
        depot.set(|faults| faults.races_for = Some(Duration::from_millis(20)));
        let proofs = prove(&depot).unwrap();
        assert_eq!((proofs.creates_kept, proofs.replaces_kept), (false, Some(false)), "two would replay one stream");
    }

    #[test]
    fn a_pod_that_may_only_write_passes() {
        let depot = ModelDepot::new();
        depot.set(|faults| faults.refused = vec![Verb::List, Verb::Delete]);
        let proofs = prove(&depot).unwrap();
        assert!(proofs.is_write_only() && proofs.are_conditions_kept(), "{proofs:?}");
        depot.set(|faults| faults.refused = vec![Verb::Get, Verb::List, Verb::Delete]);
        let proofs = prove(&depot).unwrap();
        assert_eq!((proofs.can_read, proofs.creates_kept, proofs.replaces_kept), (false, true, None));
    }

    #[test]
    fn lost_answers_do_not_count_against_a_depot() {
        let depot = ModelDepot::new();
        for verb in [Verb::Create, Verb::Swap] {
            (0..RACERS).for_each(|_| depot.fail_next(verb, ModelFault::DoneUnanswered));
        }
        assert!(prove(&depot).unwrap().are_conditions_kept());
    }

    #[test]
    fn a_depot_that_refuses_writes_is_an_error() {
        let depot = ModelDepot::new();
        depot.set(|faults| faults.refused = vec![Verb::Create]);
        assert!(matches!(prove(&depot), Err(DepotError::NotAuthorised { .. })));
        depot.set(|faults| faults.is_away = true);
        assert!(matches!(prove(&depot), Err(DepotError::Unreachable { .. })));
    }
}
