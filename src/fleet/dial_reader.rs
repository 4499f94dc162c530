//! A sender's reader of the dial: looks now and then while something is delivered, caches what it finds, and puts it in force.
//!
//! It asks the depot for one object, by name: an agent needs no right to list. No request is delayed by its latency: until the first look, and
//! while the depot is away, what is cached is in force ([`super::dial_watch`]).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::{debug, info, warn};
use uuid::Uuid;

use super::dial::DialSetting;
use super::dial_change::{change_dial, read_dial};
use super::dial_watch::{DialWatch, LookedAt, look_interval};
use super::schedule::jitter;
use crate::delivery::fleet_dial::{DialForce, FleetDial};
use crate::delivery::fleet_pacing::MessageRate;
use crate::depot::{Depot, DepotError};
use crate::figures::{count, short_duration};
use crate::hint;
use crate::store::{now_ms, since_boot};

/// In a fleet with more streams, senders need to know their number even if nobody has set a pace.
const LARGE_FLEET: u64 = 1000;

/// The setting in force, for people.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DialStanding {
    /// The last dial that could be read.
    pub setting: DialSetting,
    /// How long nothing is sent; `None` while the fleet is not held.
    pub held_for: Option<Duration>,
    /// This sender's share of the ceiling, in messages per second.
    pub share: Option<f64>,
    /// Why the dial that is there can't be used.
    pub problem: Option<String>,
}

#[derive(Debug, Default)]
struct DialReading {
    watch: DialWatch,
    due: Duration,
    /// The hold that was logged.
    said: Option<Uuid>,
    /// The pace that was logged.
    said_pace: Option<Uuid>,
    is_away: bool,
}

/// A reader of the dial.
pub struct DialReader {
    depot: Arc<dyn Depot>,
    dial: Arc<FleetDial>,
    silence: Duration,
    reading: Mutex<DialReading>,
}

impl DialReader {
    /// Returns a reader that has not looked yet. `silence` is how long owners of streams have to be silent, by which
    /// everything in a fleet is timed.
    pub fn new(depot: Arc<dyn Depot>, silence: Duration) -> Self {
        Self { depot, dial: Arc::default(), silence, reading: Mutex::default() }
    }

    /// Returns the dial that it sets.
    pub fn dial(&self) -> Arc<FleetDial> {
        self.dial.clone()
    }

    fn lock(&self) -> MutexGuard<'_, DialReading> {
        // Every critical section leaves it consistent.
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks if it is time; for a caller that has something to deliver. `streams` is how many streams that is.
    pub fn look_if_due(&self, streams: u64) {
        let now = since_boot();
        if now >= self.lock().due {
            return self.look(streams);
        }
        let force = self.dial.force();
        if force.streams != streams {
            self.dial.set(DialForce { streams, ..force }, now);
        }
        self.say();
    }

    /// Looks now.
    pub fn look(&self, streams: u64) {
        let found = read_dial(&*self.depot);
        let at = LookedAt { since_boot: since_boot(), unix_ms: u64::try_from(now_ms()).unwrap_or(0) };
        let mut reading = self.lock();
        reading.due = at.since_boot.saturating_add(look_interval(self.silence, jitter()));
        match found {
            Ok(found) => {
                if let Some(fault) = reading.watch.looked(found, at) {
                    let depot = self.depot.describe();
                    warn!(target: "fleet", "{fault}, in the depot {depot}; the pace and the hold that are known stay in force");
                }
                reading.is_away = false;
            }
            Err(error) if reading.is_away => debug!(target: "fleet", %error, "the dial of the fleet is not read"),
            Err(error) => {
                reading.is_away = true;
                info!(target: "fleet", "the pace and the hold of the fleet stay as they are known: {error}");
            }
        }
        let known = reading.watch.known();
        let force = DialForce {
            ceiling: known.and_then(|dial| dial.ceiling.as_ref()).map(|set| MessageRate::per_second(set.per_second)),
            streams,
            draining: known.map_or(0, |dial| dial.draining),
            held_until: reading.watch.held_until(),
        };
        drop(reading);
        self.dial.set(force, at.since_boot);
        self.say();
    }

    /// Logs a hold and a pace once each, and their end.
    fn say(&self) {
        let held_for = self.dial.held_for(since_boot());
        let mut reading = self.lock();
        let Some(known) = reading.watch.known().cloned() else { return self.say_ended(&mut reading) };
        match (held_for, known.hold) {
            (Some(left), Some(hold)) if reading.said != Some(hold.decided.order) => {
                reading.said = Some(hold.decided.order);
                warn!(
                    target: "fleet",
                    "the fleet is held for {} by {}: nothing that waits is delivered; {} ends that",
                    short_duration(left),
                    hold.decided.by,
                    hint::command(&format!("replay --fleet {} --resume", self.depot.describe()))
                );
            }
            (Some(_), Some(_)) => {}
            (_, _) => self.say_ended(&mut reading),
        }
        let pace = known.ceiling.as_ref().map(|pace| pace.decided.order);
        if reading.said_pace == pace {
            return;
        }
        reading.said_pace = pace;
        match known.ceiling {
            Some(pace) => info!(
                target: "fleet",
                "the fleet delivers at most {} a second, by {}", count(pace.per_second, "message"), pace.decided.by
            ),
            None => info!(target: "fleet", "the pace of the fleet is not limited any more"),
        }
    }

    fn say_ended(&self, reading: &mut DialReading) {
        if reading.said.take().is_some() {
            info!(target: "fleet", "the fleet of the depot {} is not held any more", self.depot.describe());
        }
    }

    /// Returns how many streams are being delivered, as the dial says.
    pub fn draining(&self) -> u64 {
        self.lock().watch.known().map_or(0, |dial| dial.draining)
    }

    /// Returns what is in force.
    pub fn standing(&self) -> DialStanding {
        let held_for = self.dial.held_for(since_boot());
        let share = self.dial.force().share().map(MessageRate::as_per_second);
        let reading = self.lock();
        DialStanding {
            setting: reading.watch.known().cloned().unwrap_or_default(),
            held_for,
            share,
            problem: reading.watch.fault().map(ToString::to_string),
        }
    }

    /// Writes how many streams are being delivered, if the dial says something else. For replayers, which know it.
    ///
    /// # Errors
    ///
    /// If the depot can't be used, or the dial not be read.
    pub fn note_draining(&self, draining: u64) -> Result<(), DepotError> {
        let is_known = |dial: &DialSetting| !dial.is_outdated(draining);
        let is_needed = |dial: Option<&DialSetting>| match dial {
            Some(dial) => !is_known(dial),
            None => draining > LARGE_FLEET,
        };
        if !is_needed(self.lock().watch.known()) {
            return Ok(());
        }
        change_dial(&*self.depot, false, |dial| {
            is_needed(dial.as_ref()).then(|| DialSetting { draining, ..dial.unwrap_or_default() })
        })
        .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::fleet_dial::DialTake;
    use crate::depot::model::{ModelDepot, Verb};
    use crate::fleet::dial::{CeilingSet, Decided, HoldSet};

    const SILENCE: Duration = Duration::from_secs(90);

    fn decided() -> Decided {
        let at_ms = u64::try_from(now_ms()).expect("after 1970");
        Decided { order: Uuid::now_v7(), by: "ana".to_owned(), at_ms }
    }

    fn set(depot: &ModelDepot, change: impl Fn(DialSetting) -> DialSetting) {
        change_dial(depot, true, |dial| Some(change(dial.unwrap_or_default()))).expect("it answers");
    }

    #[test]
    fn a_pace_that_people_set_is_in_force_after_a_look() {
        let depot = Arc::new(ModelDepot::new());
        depot.set(|faults| faults.refused = vec![Verb::List, Verb::Delete]);
        let reader = DialReader::new(depot.clone(), SILENCE);
        reader.look(1);
        assert_eq!(reader.standing(), DialStanding::default());
        set(&depot, |dial| {
            let dial = dial.paced(Some(CeilingSet { per_second: 1_000, decided: decided() }));
            DialSetting { draining: 4, ..dial }
        });
        reader.look(1);
        assert_eq!(reader.standing().share, Some(250.0), "each of four senders takes all of it");
        reader.look_if_due(3);
        assert_eq!(reader.standing().share, Some(750.0), "a replayer with three streams has three shares");
        set(&depot, |dial| dial.held(Some(HoldSet { for_ms: 60_000, decided: decided() })));
        reader.look(1);
        assert!(matches!(reader.dial().take(1, since_boot()), DialTake::Wait(_)), "a held fleet sends");
        depot.set(|faults| faults.is_away = true);
        reader.look(1);
        assert!(reader.standing().held_for.is_some(), "the hold ended because the depot is away");
        depot.set(|faults| faults.is_away = false);
        set(&depot, |dial| dial.held(None).paced(None));
        reader.look(1);
        assert_eq!(reader.dial().take(7, since_boot()), DialTake::May(7));
    }

    #[test]
    fn the_number_of_senders_is_written_when_somebody_needs_it() {
        let depot = Arc::new(ModelDepot::new());
        let reader = DialReader::new(depot.clone(), SILENCE);
        reader.look(1);
        reader.note_draining(500).expect("it answers");
        assert_eq!(read_dial(&*depot).expect("it answers"), None, "nobody has asked for a pace");
        reader.note_draining(1_001).expect("it answers");
        reader.look(1);
        assert_eq!(reader.draining(), 1_001);
        let hold = HoldSet { for_ms: 60_000, decided: decided() };
        set(&depot, |dial| dial.held(Some(hold.clone())));
        reader.note_draining(1_050).expect("it answers");
        reader.look(1);
        assert_eq!(reader.draining(), 1_001, "it is written for every stream");
        reader.note_draining(7).expect("it answers");
        reader.look(1);
        let standing = reader.standing();
        assert_eq!((standing.setting.draining, standing.setting.hold), (7, Some(hold)), "a person's hold is gone");
    }
}
