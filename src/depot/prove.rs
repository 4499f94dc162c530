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
use super::{Created, Depot, Version};

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

/// The answers to the racers of one round.
#[derive(Default)]
struct RoundResult {
    /// The winners' numbers.
    winners: Vec<u8>,
}

/// Finds out what a depot keeps and allows. Takes about a hundred small requests, below `v1/proofs/`.
///
/// # Errors
///
/// [`DepotError`] if it can't be reached, or we may not write.
pub fn prove(depot: &dyn Depot) -> Result<Proofs, DepotError> {
    let folder = folder()?;
    let mut proof = Proof { depot, names: Vec::new(), times: Vec::new(), can_read: true };
    let creates_kept = proof.creates(&folder)?;
    let replaces_kept = proof.replaces(&folder)?;
    let can_list = match depot.list(&folder, None, 1) {
        Ok(_) => true,
        Err(DepotError::NotAuthorised { .. }) => false,
        Err(error) => return Err(error),
    };
    let can_delete = match depot.delete(&proof.names) {
        Ok(()) => true,
        Err(DepotError::NotAuthorised { .. }) => false,
        Err(error) => return Err(error),
    };
    proof.times.sort_unstable();
    let write = proof.times.get(proof.times.len() / 2).copied().unwrap_or_default();
    let weaknesses = depot.weaknesses()?;
    Ok(Proofs { creates_kept, replaces_kept, can_read: proof.can_read, can_list, can_delete, write, weaknesses })
}

fn folder() -> Result<Name, DepotError> {
    name(&format!("v1/proofs/{}", Uuid::now_v7()))
}

fn name(name: &str) -> Result<Name, DepotError> {
    Name::new(name).map_err(|error| DepotError::Unusable { at: name.to_owned(), reason: error.to_string() })
}

/// A proof at work.
struct Proof<'a> {
    depot: &'a dyn Depot,
    /// The names of its objects.
    names: Vec<Name>,
    /// How long each single write took.
    times: Vec<Duration>,
    can_read: bool,
}

impl Proof<'_> {
    /// Returns whether every round had one creator, and a name that is there is not created again.
    fn creates(&mut self, folder: &Name) -> Result<bool, DepotError> {
        let mut kept = true;
        for round in 0..ROUNDS {
            let name = name(&format!("{folder}/create-{round}"))?;
            self.names.push(name.clone());
            let round = u8::try_from(round).unwrap_or_default();
            let raced = race(|racer| self.depot.create(&name, &[racer, round]).map(|created| created == Created::New))?;
            // One after the other, which some keep that fail when two come together.
            let started = Instant::now();
            let again = self.depot.create(&name, b"again")?;
            self.times.push(started.elapsed());
            kept &= again == Created::AlreadyThere && self.is_won(&name, round, &raced)?;
        }
        Ok(kept)
    }

    /// Returns whether every version was replaced by one racer only, and a replaced version by none.
    fn replaces(&mut self, folder: &Name) -> Result<Option<bool>, DepotError> {
        let name = name(&format!("{folder}/replace"))?;
        self.names.push(name.clone());
        let started = Instant::now();
        let Some(mut version) = unless_refused(self.depot.swap(&name, None, b"first"))? else { return Ok(None) };
        self.times.push(started.elapsed());
        let first = version.clone();
        let mut kept = true;
        for round in 0..ROUNDS {
            let round = u8::try_from(round).unwrap_or_default();
            let swap = |racer| match self.depot.swap(&name, Some(&version), &[racer, round]) {
                Ok(_) => Ok(true),
                Err(DepotError::Lost { .. }) => Ok(false),
                Err(error) => Err(error),
            };
            let Some(raced) = unless_refused(race(swap))? else { return Ok(None) };
            if !self.can_read {
                return Ok(None);
            }
            kept &= self.is_won(&name, round, &raced)?;
            version = match self.read(&name)? {
                Some((_, version)) => version,
                None => return Ok(self.can_read.then_some(false)),
            };
        }
        match self.depot.swap(&name, Some(&first), b"late") {
            Err(DepotError::Lost { .. }) => Ok(Some(kept)),
            Ok(_) => Ok(Some(false)),
            Err(error) => Err(error),
        }
    }

    /// Returns whether at most one racer was told that it won, and the bytes that are there are its. Without a winner,
    /// the answer to one was lost, and its bytes are there.
    fn is_won(&mut self, name: &Name, round: u8, raced: &RoundResult) -> Result<bool, DepotError> {
        let is_one = raced.winners.len() + usize::from(raced.winners.is_empty()) == 1;
        let held = self.read(name)?.map(|(bytes, _)| bytes);
        let held = match held.as_deref() {
            Some([racer, of]) if *of == round && usize::from(*racer) < RACERS => *racer,
            Some(_) => return Ok(false),
            None => return Ok(is_one && !self.can_read),
        };
        Ok(is_one && raced.winners.first().is_none_or(|winner| *winner == held))
    }

    fn read(&mut self, name: &Name) -> Result<Option<(Vec<u8>, Version)>, DepotError> {
        if !self.can_read {
            return Ok(None);
        }
        match self.depot.get(name) {
            Err(DepotError::NotAuthorised { .. }) => {
                self.can_read = false;
                Ok(None)
            }
            read => read,
        }
    }
}

/// Runs [`RACERS`] callers at once; each returns true if it won.
fn race(run: impl Fn(u8) -> Result<bool, DepotError> + Sync) -> Result<RoundResult, DepotError> {
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
    let mut result = RoundResult::default();
    for (racer, answer) in answers {
        match answer {
            Ok(true) => result.winners.push(racer),
            Ok(false) | Err(DepotError::UnknownOutcome { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(result)
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
            // The racers' calls come first, except for the swap that creates.
            if verb == Verb::Swap {
                depot.fail_next(verb, ModelFault::Slow(Duration::ZERO));
            }
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
