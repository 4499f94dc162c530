//! The decisions of a person about the pace of a fleet, carried out: the order is left, then the dial is changed.

use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;
use uuid::Uuid;

use super::survey::draining;
use crate::depot::{Depot, DepotError};
use crate::fleet::dial::{CEILING_MAX, CeilingSet, Decided, DialSetting, HOLD_MAX, HoldSet};
use crate::fleet::dial_change::change_dial;
use crate::fleet::orders::{FleetOrder, Person};
use crate::store::now_ms;

/// A ceiling, or the end of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FleetCeiling {
    None,
    PerSecond(u64),
}

impl FromStr for FleetCeiling {
    type Err = String;

    /// Parses `20000/s`, `20000` and `none`.
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self::None);
        }
        let number = text.strip_suffix("/s").unwrap_or(text);
        match number.parse() {
            Ok(0) => Err("a pace of nothing is a hold: use --hold 30m".to_owned()),
            Ok(per_second) if per_second <= CEILING_MAX => Ok(Self::PerSecond(per_second)),
            _ => Err(format!("expected messages a second, such as 20000/s, from 1 to {CEILING_MAX}, or none")),
        }
    }
}

/// Returns the length of a hold, if it may be one.
///
/// # Errors
///
/// The reason for people, if not.
pub(crate) fn ensure_bounded(hold: Duration) -> Result<Duration, String> {
    const BOUNDS: &str = "not between 1s and 7d";
    match hold {
        _ if hold < Duration::from_secs(1) => Err(format!("{BOUNDS}: --resume ends a hold")),
        _ if hold > HOLD_MAX => Err(format!("{BOUNDS}: a hold that was forgotten has to end by itself")),
        _ => Ok(hold),
    }
}

#[derive(Serialize)]
struct PaceOrder {
    messages_per_second: Option<u64>,
}

#[derive(Serialize)]
struct HoldOrder {
    for_ms: u64,
}

#[derive(Serialize)]
struct ResumeOrder {}

/// The decisions of a person; all of it may be given at once.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct DialOrder {
    pub pace: Option<FleetCeiling>,
    pub hold: Option<Duration>,
    /// Whether a hold ends.
    pub resumes: bool,
}

impl DialOrder {
    /// Leaves the orders, then changes the dial. A dial of a newer version is left alone, and so are the orders.
    ///
    /// # Errors
    ///
    /// The error that keeps the depot from being used. Nothing is changed that could not be written down as an order.
    pub(crate) fn carry_out(
        &self,
        depot: &dyn Depot,
        by: &Person,
        takeover_after: Duration,
    ) -> Result<DialSetting, DepotError> {
        change_dial(depot, true, |_| None)?;
        let counted = match self.pace {
            None => None,
            Some(_) => match draining(depot, takeover_after) {
                // The number that is there stays.
                Err(DepotError::NotAuthorised { .. }) => None,
                counted => Some(counted?),
            },
        };
        let decided =
            || Decided { order: Uuid::now_v7(), by: by.to_string(), at_ms: u64::try_from(now_ms()).unwrap_or(0) };
        let (of_pace, of_hold) = (decided(), decided());
        if let Some(pace) = self.pace {
            let what = PaceOrder { messages_per_second: pace.per_second() };
            FleetOrder { id: of_pace.order, order: "pace", by, what }.leave(depot)?;
        }
        let for_ms = self.hold.map(|hold| u64::try_from(hold.as_millis()).unwrap_or(u64::MAX));
        if let Some(for_ms) = for_ms {
            FleetOrder { id: of_hold.order, order: "hold", by, what: HoldOrder { for_ms } }.leave(depot)?;
        }
        if self.resumes {
            FleetOrder { id: of_hold.order, order: "resume", by, what: ResumeOrder {} }.leave(depot)?;
        }
        let changed = change_dial(depot, true, |dial| {
            let mut dial = dial.unwrap_or_default();
            if let Some(pace) = self.pace {
                let ceiling = |per_second| CeilingSet { per_second, decided: of_pace.clone() };
                dial = dial.paced(pace.per_second().map(ceiling));
                dial.draining = counted.unwrap_or(dial.draining);
            }
            if let Some(for_ms) = for_ms {
                dial = dial.held(Some(HoldSet { for_ms, decided: of_hold.clone() }));
            } else if self.resumes {
                dial = dial.held(None);
            }
            Some(dial)
        })?;
        Ok(changed.unwrap_or_default())
    }
}

impl FleetCeiling {
    fn per_second(self) -> Option<u64> {
        match self {
            Self::None => None,
            Self::PerSecond(per_second) => Some(per_second),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::depot::Name;
    use crate::depot::model::{ModelDepot, Verb};

    const AFTER: Duration = Duration::from_secs(90);

    fn person() -> Person {
        Person { user: Some("ana".to_owned()), uid: 1000, host: "host-a".to_owned() }
    }

    fn orders(depot: &ModelDepot) -> usize {
        depot.list(&Name::new("v1/orders").expect("a name"), None, 100).expect("it answers").len()
    }

    fn pace(text: &str) -> Result<FleetCeiling, String> {
        text.parse()
    }

    #[test]
    fn rates_and_holds_are_parsed_or_refused_with_the_reason() {
        assert_eq!(pace("20000/s"), Ok(FleetCeiling::PerSecond(20_000)));
        assert_eq!((pace("7"), pace("none")), (Ok(FleetCeiling::PerSecond(7)), Ok(FleetCeiling::None)));
        for text in ["", "0", "0/s", "-1", "1.5/s", "20k", "100/m", "1000001", "NONE"] {
            assert!(pace(text).is_err(), "{text}");
        }
        let (second, day) = (Duration::from_secs(1), Duration::from_secs(86_400));
        assert_eq!((ensure_bounded(second), ensure_bounded(day * 7)), (Ok(second), Ok(day * 7)));
        assert!(ensure_bounded(second / 2).is_err() && ensure_bounded(day * 7 + second).is_err());
    }

    #[test]
    fn each_decision_is_in_force_and_leaves_an_order() {
        let depot = ModelDepot::new();
        let by = person();
        let paced = DialOrder { pace: Some(FleetCeiling::PerSecond(500)), ..DialOrder::default() };
        let set = paced.carry_out(&depot, &by, AFTER).expect("it answers");
        let pace = set.ceiling.expect("a pace");
        assert_eq!((pace.per_second, pace.decided.by.as_str()), (500, "ana (uid 1000 on host-a)"));
        let held = DialOrder { hold: Some(AFTER), ..DialOrder::default() };
        let set = held.carry_out(&depot, &by, AFTER).expect("it answers");
        assert!(set.hold.is_some() && set.ceiling.is_some(), "a hold ends the pace");
        let resumed = DialOrder { resumes: true, ..DialOrder::default() };
        let set = resumed.carry_out(&depot, &by, AFTER).expect("it answers");
        assert!(set.hold.is_none() && set.ceiling.is_some(), "the fleet stays held");
        let free = DialOrder { pace: Some(FleetCeiling::None), ..DialOrder::default() };
        assert_eq!(free.carry_out(&depot, &by, AFTER).expect("it answers").ceiling, None);
        assert_eq!(orders(&depot), 4, "nobody can tell who decided what");
    }

    #[test]
    fn a_decision_that_cannot_be_written_down_is_not_made() {
        let depot = ModelDepot::new();
        depot.set(|faults| faults.refused = vec![Verb::Create]);
        let held = DialOrder { hold: Some(AFTER), ..DialOrder::default() };
        assert!(held.carry_out(&depot, &person(), AFTER).is_err());
        assert_eq!(
            change_dial(&depot, true, |_| None).expect("it answers"),
            None,
            "nobody can tell who holds the fleet"
        );
        let name = Name::new("v1/dial").expect("a name");
        depot.swap(&name, None, b"{\"format\": 9}").expect("it answers");
        depot.set(|faults| faults.refused = Vec::new());
        assert!(matches!(held.carry_out(&depot, &person(), AFTER), Err(DepotError::TooNew { .. })));
        assert_eq!(orders(&depot), 0, "an order of something that was not done");
    }
}
