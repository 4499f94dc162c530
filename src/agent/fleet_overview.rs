//! The state of an agent's fleet, for its overview: the copies in the depot, and what people decided about the pace.

use super::fleet_member::MemberStanding;
use crate::fleet::dial_reader::{DialReader, DialStanding};
use crate::fleet::ledger::AgentLedger;
use crate::overview::FleetOverview;
use crate::overview::dial::{DialOverview, HoldOverview, PaceOverview};
use crate::store::now_ms;

/// Returns the state of the copies in the depot, and what people decided about the fleet.
pub(super) fn fleet_overview(
    ledger: &AgentLedger,
    dial: &DialReader,
    member: Option<&MemberStanding>,
) -> FleetOverview {
    let standing = ledger.standing();
    FleetOverview {
        depot: standing.depot,
        problem: standing.problem,
        stream: standing.stream.map(|stream| stream.hyphenated().to_string()),
        handed_over: standing.handed_over as u64,
        unshipped_messages: standing.unshipped.messages,
        unshipped_oldest_ms: standing.unshipped.oldest_accepted_at_ms,
        dial: dial_overview(dial.standing(), u64::try_from(now_ms()).unwrap_or(0)),
        replay: member.map(MemberStanding::overview),
    }
}

fn dial_overview(standing: DialStanding, now_ms: u64) -> DialOverview {
    let DialStanding { setting, held_for, share, problem } = standing;
    let hold = held_for.zip(setting.hold).map(|(left, hold)| HoldOverview {
        seconds_left: left.as_secs(),
        until_ms: now_ms.saturating_add(u64::try_from(left.as_millis()).unwrap_or(0)),
        by: hold.decided.by,
        since_ms: hold.decided.at_ms,
    });
    let pace = setting.ceiling.map(|pace| PaceOverview {
        per_second: pace.per_second,
        by: pace.decided.by,
        since_ms: pace.decided.at_ms,
    });
    DialOverview { pace, hold, share, draining: setting.draining, problem }
}
