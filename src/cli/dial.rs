//! The part of `replay` that holds a store or a whole fleet, lets it go on, and sets a fleet's pace.

use std::time::Duration;

use clap::Args;

use super::fleet::open_depot;
use super::selection::duration;
use super::{Common, Exit, Failure, configuration, translate};
use crate::config::{Environment, LogLevel, ProcessEnvironment};
use crate::fleet::orders::Person;
use crate::fleet::stream_head::this_process;
use crate::report::fleet::dial::FleetDialReport;
use crate::report::replay_hold::ReplayHoldReport;
use crate::store::{Filter, ReplayHold, now_ms};
use crate::takeover::dialling::{DialOrder, FleetCeiling, ensure_bounded};

/// The decisions of a person about the pace of a store or a fleet.
#[derive(Args, Clone, Debug, Default)]
pub(super) struct DialArgs {
    /// With --fleet: let the whole fleet deliver at most this many messages a second, such as 20000/s, or `none`
    ///
    /// Agents and replayers take their shares of it within 30 seconds. Nothing is replayed by this command.
    #[arg(long, value_name = "RATE", help_heading = "Fleet", hide_short_help = true, conflicts_with_all = NOT_DIALLING)]
    pub pace: Option<FleetCeiling>,

    /// Let nothing that waits be delivered for this long, such as 30m; 7d at most
    ///
    /// The store's agent and every `replay` begin no request after a second, also after a restart; requests in flight
    /// may still end. It ends by itself, and takes the place of an earlier hold. Writes of applications are forwarded as ever unless an earlier one about the same trace waits. Nothing is
    /// replayed by this command. With --fleet it holds the whole fleet: agents and replayers stop within 30 seconds.
    #[arg(long, value_name = "DURATION", value_parser = hold, hide_short_help = true, conflicts_with_all = NOT_DIALLING)]
    pub hold: Option<Duration>,

    /// End a hold; with --fleet the pace stays
    #[arg(long, conflicts_with = "hold", hide_short_help = true, conflicts_with_all = NOT_DIALLING)]
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

/// Holds the replay of the store or ends its hold, and shows what is in force.
pub(super) fn set_of_store(common: &Common, args: &DialArgs) -> Result<(), Failure> {
    let config = configuration(&common.flags())?;
    common.start_logging(&config, Some(LogLevel::Error))?;
    translate::check_named_store(&config)?;
    let path = config.db.value.display();
    let Some(store) = translate::existing_store_without_key(&config)? else {
        let hint = "start the agent that uses it first";
        return Err(Failure::new(Exit::Failure, format!("nothing was stored in {path} yet"), Some(hint)));
    };
    let now = now_ms();
    let hold = args.hold.map(|hold| {
        let lasts_ms = i64::try_from(hold.as_millis()).unwrap_or(i64::MAX);
        ReplayHold { until_ms: now.saturating_add(lasts_ms), since_ms: now, by: this_person().to_string() }
    });
    let earlier = store.replay_hold()?.filter(|hold| hold.left(now).is_some());
    if hold.is_some() || earlier.is_some() {
        store.set_replay_hold(hold.as_ref())?;
    }
    if common.prints_summary() {
        let waiting = store.backlog(&Filter::default())?.waiting();
        let report = ReplayHoldReport::of(path.to_string(), (hold.as_ref(), earlier.as_ref()), waiting, now);
        common.renderer().result(&report, |_, report| report.text(earlier.is_some()))?;
    }
    Ok(())
}
