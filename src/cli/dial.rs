//! The part of `replay --fleet` that sets the pace of a whole fleet, holds it, and lets it go on.

use std::time::Duration;

use clap::Args;
use serde::Serialize;
use uuid::Uuid;

use super::fleet::open_depot;
use super::selection::duration;
use super::{Common, Failure, configuration};
use crate::config::{Environment, LogLevel, ProcessEnvironment};
use crate::depot::{Depot, DepotError};
use crate::fleet::dial::{CEILING_MAX, CeilingSet, Decided, DialSetting, HOLD_MAX, HoldSet};
use crate::fleet::dial_change::change_dial;
use crate::fleet::orders::{FleetOrder, Person};
use crate::fleet::stream_head::this_process;
use crate::report::fleet::dial::FleetDialReport;
use crate::store::now_ms;
use crate::takeover::survey::draining;

/// What a person decides about the pace of a fleet.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Fleet")]
pub(super) struct DialArgs {
    /// With --fleet: let the whole fleet deliver at most this many messages a second, such as 20000/s, or `none`
    ///
    /// Agents and replayers take their shares of it within 30 seconds. Nothing is replayed by this command.
    #[arg(long, value_name = "RATE", value_parser = pace, hide_short_help = true, conflicts_with_all = NOT_DIALLING)]
    pub pace: Option<FleetCeiling>,

    /// With --fleet: let the whole fleet deliver nothing that waits for this long, such as 30m; 7d at most
    ///
    /// Agents and replayers stop within 30 seconds. Writes of applications are forwarded as ever unless an earlier one
    /// about the same trace waits. Nothing is replayed by this command.
    #[arg(long, value_name = "DURATION", value_parser = hold, hide_short_help = true, conflicts_with_all = NOT_DIALLING)]
    pub hold: Option<Duration>,

    /// With --fleet: end a hold; the pace stays
    #[arg(long, hide_short_help = true, conflicts_with = "hold", conflicts_with_all = NOT_DIALLING)]
    pub resume: bool,
}

/// The options of a replay that delivers something.
const NOT_DIALLING: [&str; 7] =
    ["follow", "fail_if_backlog", "timeout", "batch_size", "delay", "identity", "make_identity"];

/// A ceiling, or the end of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FleetCeiling {
    None,
    PerSecond(u64),
}

/// Parses `20000/s`, `20000` and `none`.
fn pace(text: &str) -> Result<FleetCeiling, String> {
    if text == "none" {
        return Ok(FleetCeiling::None);
    }
    let number = text.strip_suffix("/s").unwrap_or(text);
    match number.parse() {
        Ok(0) => Err("a pace of nothing is a hold: use --hold 30m".to_owned()),
        Ok(per_second) if per_second <= CEILING_MAX => Ok(FleetCeiling::PerSecond(per_second)),
        _ => Err(format!("expected messages a second, such as 20000/s, from 1 to {CEILING_MAX}, or none")),
    }
}

fn hold(text: &str) -> Result<Duration, String> {
    let hold = duration(text)?;
    match (Duration::from_secs(1)..=HOLD_MAX).contains(&hold) {
        true => Ok(hold),
        false => Err("not between 1s and 7d: a fleet that was forgotten delivers again by itself".to_owned()),
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

impl DialArgs {
    /// Returns whether any of it is asked for.
    pub(super) fn is_asked(&self) -> bool {
        self.pace.is_some() || self.hold.is_some() || self.resume
    }
}

/// Returns the person at whose command this process runs.
pub(super) fn this_person() -> Person {
    let user = ["LOGNAME", "USER"].into_iter().find_map(|name| ProcessEnvironment.variable(name)?.into_string().ok());
    Person { user, uid: rustix::process::getuid().as_raw(), host: this_process("").host }
}

/// Sets the dial of the fleet, and shows what is in force.
pub(super) fn set(common: &Common, args: &DialArgs) -> Result<(), Failure> {
    let config = configuration(&common.flags())?;
    common.start_logging(&config, Some(LogLevel::Error))?;
    let depot = open_depot(&config)?;
    let setting = set_in(&*depot, args, &this_person(), config.fleet_takeover_after.value)?;
    if common.prints_summary() {
        let now = u64::try_from(now_ms()).unwrap_or(0);
        let report = FleetDialReport::of(depot.describe().url, &setting, now);
        common.renderer().result(&report, |_, report| report.text())?;
    }
    Ok(())
}

/// Leaves the orders, then changes the dial. A dial of a newer version is left alone, and so are the orders.
fn set_in(
    depot: &dyn Depot,
    args: &DialArgs,
    by: &Person,
    takeover_after: Duration,
) -> Result<DialSetting, DepotError> {
    change_dial(depot, true, |_| None)?;
    let counted = match args.pace {
        None => None,
        Some(_) => match draining(depot, takeover_after) {
            // The number that is there stays.
            Err(DepotError::NotAuthorised { .. }) => None,
            counted => Some(counted?),
        },
    };
    let decided = || Decided {
        order: Uuid::now_v7(),
        by: by.to_string(),
        at_ms: u64::try_from(now_ms()).unwrap_or(0),
    };
    let (of_pace, of_hold) = (decided(), decided());
    if let Some(pace) = args.pace {
        let what = PaceOrder { messages_per_second: pace.per_second() };
        FleetOrder { id: of_pace.order, order: "pace", by, what }.leave(depot)?;
    }
    let for_ms = args.hold.map(|hold| u64::try_from(hold.as_millis()).unwrap_or(u64::MAX));
    if let Some(for_ms) = for_ms {
        FleetOrder { id: of_hold.order, order: "hold", by, what: HoldOrder { for_ms } }.leave(depot)?;
    }
    if args.resume {
        FleetOrder { id: of_hold.order, order: "resume", by, what: ResumeOrder {} }.leave(depot)?;
    }
    let changed = change_dial(depot, true, |dial| {
        let mut dial = dial.unwrap_or_default();
        if let Some(pace) = args.pace {
            let ceiling = |per_second| CeilingSet { per_second, decided: of_pace.clone() };
            dial = dial.paced(pace.per_second().map(ceiling));
            dial.draining = counted.unwrap_or(dial.draining);
        }
        if let Some(for_ms) = for_ms {
            dial = dial.held(Some(HoldSet { for_ms, decided: of_hold.clone() }));
        } else if args.resume {
            dial = dial.held(None);
        }
        Some(dial)
    })?;
    Ok(changed.unwrap_or_default())
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

    #[test]
    fn rates_and_holds_are_parsed_or_refused_with_the_reason() {
        assert_eq!(pace("20000/s"), Ok(FleetCeiling::PerSecond(20_000)));
        assert_eq!((pace("7"), pace("none")), (Ok(FleetCeiling::PerSecond(7)), Ok(FleetCeiling::None)));
        for text in ["", "0", "0/s", "-1", "1.5/s", "20k", "100/m", "1000001", "NONE"] {
            assert!(pace(text).is_err(), "{text}");
        }
        assert_eq!(hold("30m"), Ok(Duration::from_secs(1800)));
        for text in ["0s", "8d", "999ms", "soon"] {
            assert!(hold(text).is_err(), "{text}");
        }
    }

    #[test]
    fn each_decision_is_in_force_and_leaves_an_order() {
        let depot = ModelDepot::new();
        let by = person();
        let paced = DialArgs { pace: Some(FleetCeiling::PerSecond(500)), ..DialArgs::default() };
        let set = set_in(&depot, &paced, &by, AFTER).expect("it answers");
        let pace = set.ceiling.expect("a pace");
        assert_eq!((pace.per_second, pace.decided.by.as_str()), (500, "ana (uid 1000 on host-a)"));
        let held = DialArgs { hold: Some(AFTER), ..DialArgs::default() };
        let set = set_in(&depot, &held, &by, AFTER).expect("it answers");
        assert!(set.hold.is_some() && set.ceiling.is_some(), "a hold ends the pace");
        let resumed = DialArgs { resume: true, ..DialArgs::default() };
        let set = set_in(&depot, &resumed, &by, AFTER).expect("it answers");
        assert!(set.hold.is_none() && set.ceiling.is_some(), "the fleet stays held");
        let free = DialArgs { pace: Some(FleetCeiling::None), ..DialArgs::default() };
        assert_eq!(set_in(&depot, &free, &by, AFTER).expect("it answers").ceiling, None);
        assert_eq!(orders(&depot), 4, "nobody can tell who decided what");
    }

    #[test]
    fn a_decision_that_cannot_be_written_down_is_not_made() {
        let depot = ModelDepot::new();
        depot.set(|faults| faults.refused = vec![Verb::Create]);
        let held = DialArgs { hold: Some(AFTER), ..DialArgs::default() };
        assert!(set_in(&depot, &held, &person(), AFTER).is_err());
        assert_eq!(change_dial(&depot, true, |_| None).expect("it answers"), None, "nobody can tell who holds the fleet");
        let name = Name::new("v1/dial").expect("a name");
        depot.swap(&name, None, b"{\"format\": 9}").expect("it answers");
        depot.set(|faults| faults.refused = Vec::new());
        assert!(matches!(set_in(&depot, &held, &person(), AFTER), Err(DepotError::TooNew { .. })));
        assert_eq!(orders(&depot), 0, "an order of something that was not done");
    }
}
