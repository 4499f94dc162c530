//! Changing the dial by compare-and-swap: read, change, swap, retried with backoff while concurrent changes are faster.
//!
//! On a depot that ignores conditions, two changes at the same moment may leave one of them. So a replayer of such a depot
//! writes nothing here, and a person who sets two things at once looks afterwards.

use std::time::Duration;

use super::dial::{DialFault, DialSetting};
use super::names::ObjectName;
use super::object_names::depot_name;
use super::schedule::jitter;
use crate::depot::{Depot, DepotError};

/// How often a change is retried.
const TRIES_MAX: u32 = 12;
/// The longest wait between two of them.
const PAUSE: Duration = Duration::from_millis(50);

/// Reads the dial; `None` if there is none.
///
/// # Errors
///
/// If the depot can't be read.
pub fn read_dial(depot: &dyn Depot) -> Result<Option<Result<DialSetting, DialFault>>, DepotError> {
    let found = depot.get(&depot_name(&ObjectName::Dial)?)?;
    Ok(found.map(|(bytes, _)| DialSetting::decode(&bytes)))
}

/// Changes the dial, and returns it as it is then; `change` returns `None` to leave it. A dial that can't be read is
/// replaced if a person wants that.
///
/// # Errors
///
/// [`DepotError::TooNew`] for a dial of a newer schema, which is left alone, [`DepotError::Lost`] if concurrent changes
/// were faster every time, and what keeps the depot from being used.
pub fn change_dial(
    depot: &dyn Depot,
    replaces_unreadable: bool,
    change: impl Fn(Option<DialSetting>) -> Option<DialSetting>,
) -> Result<Option<DialSetting>, DepotError> {
    let name = depot_name(&ObjectName::Dial)?;
    let mut tries = 0;
    loop {
        tries += 1;
        let found = depot.get(&name)?;
        let (before, version) = match found {
            None => (None, None),
            Some((bytes, version)) => match DialSetting::decode(&bytes) {
                Ok(setting) => (Some(setting), Some(version)),
                Err(DialFault::Unreadable(_)) if replaces_unreadable => (None, Some(version)),
                Err(fault) => {
                    let (at, reason) = (depot.describe().url, fault.to_string());
                    return Err(match fault {
                        DialFault::TooNew(_) => DepotError::TooNew { at, name, reason },
                        DialFault::Unreadable(_) => DepotError::Damaged { at, name, reason },
                    });
                }
            },
        };
        let writes = before.as_ref().map_or(0, |dial| dial.writes).saturating_add(1);
        let Some(changed) = change(before.clone()) else { return Ok(before) };
        let changed = DialSetting { writes, ..changed };
        let bytes = changed.encode();
        match depot.swap(&name, version.as_ref(), &bytes) {
            Ok(_) => return Ok(Some(changed)),
            Err(error @ (DepotError::Lost { .. } | DepotError::UnknownOutcome { .. })) => {
                // The engine may have retried a request whose answer was lost: then it is done. An equal change of
                // somebody else is as good: settings are absolute.
                if depot.get(&name)?.is_some_and(|(now, _)| now == bytes) {
                    return Ok(Some(changed));
                }
                if tries >= TRIES_MAX {
                    return Err(error);
                }
                std::thread::sleep(PAUSE.mul_f64(jitter()));
            }
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::depot::model::{ModelDepot, ModelFault, Verb};

    fn counted(depot: &ModelDepot) -> Result<Option<DialSetting>, DepotError> {
        added(depot, 1)
    }

    fn added(depot: &ModelDepot, number: u64) -> Result<Option<DialSetting>, DepotError> {
        change_dial(depot, false, |dial| {
            let dial = dial.unwrap_or_default();
            Some(DialSetting { draining: dial.draining + number, ..dial })
        })
    }

    #[test]
    fn no_change_is_lost_beside_others() {
        let depot = ModelDepot::new();
        std::thread::scope(|scope| {
            // Each writes something else: of two equal changes at one time, one is as good as both.
            for number in [1, 20, 400, 8_000] {
                let depot = &depot;
                scope.spawn(move || {
                    (0..10).for_each(|_| drop(added(depot, number).expect("others are not that fast")));
                });
            }
        });
        let dial = read_dial(&depot).expect("it answers").expect("it is there").expect("a dial");
        assert_eq!((dial.draining, dial.writes), (84_210, 40), "somebody's hold would be gone");
    }

    #[test]
    fn a_change_whose_answer_is_lost_is_made_once() {
        let depot = ModelDepot::new();
        for fault in [ModelFault::DoneUnanswered, ModelFault::NotDoneUnanswered] {
            let before = counted(&depot).expect("it answers").expect("a dial").draining;
            depot.fail_next(Verb::Swap, fault);
            assert_eq!(counted(&depot).expect("it is read").expect("a dial").draining, before + 1);
        }
        assert_eq!(change_dial(&depot, false, |_| None).expect("it answers").map(|dial| dial.draining), Some(4));
    }

    #[test]
    fn a_dial_of_a_newer_version_is_left_alone_and_a_damaged_one_only_replaced_by_a_person() {
        let depot = ModelDepot::new();
        let name = depot_name(&ObjectName::Dial).expect("a name");
        let version = depot.swap(&name, None, b"{\"format\": 9}").expect("it answers");
        for is_person in [false, true] {
            let refused = change_dial(&depot, is_person, |_| Some(DialSetting::default()));
            assert!(matches!(refused, Err(DepotError::TooNew { .. })), "a newer version's dial is overwritten");
        }
        depot.swap(&name, Some(&version), b"<html>").expect("it answers");
        assert!(matches!(counted(&depot), Err(DepotError::Damaged { .. })));
        assert!(change_dial(&depot, true, |_| Some(DialSetting::default())).is_ok(), "nobody can repair it");
    }
}
