//! The part of `replay --fleet` that sets the pace of a whole fleet, holds it, and lets it go on.

use std::time::Duration;

use clap::Args;

use super::fleet::open_depot;
use super::selection::duration;
use super::{Common, Failure, configuration};
use crate::config::{Environment, LogLevel, ProcessEnvironment};
use crate::fleet::orders::Person;
use crate::fleet::stream_head::this_process;
use crate::report::fleet::dial::FleetDialReport;
use crate::store::now_ms;
use crate::takeover::dialling::{DialOrder, FleetCeiling, ensure_bounded};

/// The decisions of a person about the pace of a fleet.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Fleet")]
pub(super) struct DialArgs {
    /// With --fleet: let the whole fleet deliver at most this many messages a second, such as 20000/s, or `none`
    ///
    /// Agents and replayers take their shares of it within 30 seconds. Nothing is replayed by this command.
    #[arg(long, value_name = "RATE", hide_short_help = true, conflicts_with_all = NOT_DIALLING)]
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

fn hold(text: &str) -> Result<Duration, String> {
    ensure_bounded(duration(text)?)
}

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
    let order = DialOrder { pace: args.pace, hold: args.hold, resumes: args.resume };
    let setting = order.carry_out(&*depot, &this_person(), config.fleet_takeover_after.value)?;
    if common.prints_summary() {
        let now = u64::try_from(now_ms()).unwrap_or(0);
        let report = FleetDialReport::of(depot.describe().url, &setting, now);
        common.renderer().result(&report, |_, report| report.text())?;
    }
    Ok(())
}
