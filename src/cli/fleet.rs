//! The parts of `replay`, `status`, `inspect` and `purge` that work with a fleet's depot (`--fleet URL`).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use super::selection::refuse_jsonl;
use super::{Common, Exit, Failure, configuration, stop_on_signals, translate};
use crate::agent::files;
use crate::config::units::ByteSize;
use crate::config::{Config, Flags, LogLevel};
use crate::depot::{self, Depot};
use crate::fleet::stream_head::this_process;
use crate::protocol::recognise::Presence;
use crate::report::fleet::replay::FleetReplayReport;
use crate::shutdown::Shutdown;
use crate::store::{Limits, WhenFull};
use crate::takeover::keys::FleetKeys;
use crate::takeover::session::{FleetEnding, FleetReplay, FleetReplaySettings};
use crate::terminal::progress::ProgressDisplay;
use crate::upstream::Upstream;

/// How streams of a depot are replayed.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Fleet")]
pub(super) struct FleetReplayArgs {
    /// With --fleet: keep running, and take over each stream whose agent goes away
    #[arg(long)]
    pub follow: bool,

    /// With --fleet: keep at most this many bytes of messages on this machine
    #[arg(long, value_name = "SIZE", default_value = "5GiB", value_parser = size, hide_short_help = true)]
    pub stage: ByteSize,

    /// With --fleet: exit with 4 when messages remain in the depot, also those of agents that are alive
    #[arg(long)]
    pub fail_if_backlog: bool,
}

fn size(text: &str) -> Result<ByteSize, String> {
    text.parse().map_err(|error: crate::config::units::UnitError| error.to_string())
}

/// How long a replay may take, and what is delivered of it.
pub(super) struct FleetReplayOrder<'a> {
    pub args: &'a FleetReplayArgs,
    /// Files with the keys that open what is sealed.
    pub identities: &'a [PathBuf],
    pub flags: Flags,
    pub timeout: Option<Duration>,
}

/// Opens the depot that the settings name.
pub(super) fn open_depot(config: &Config) -> Result<Arc<dyn Depot>, Failure> {
    let Some(settings) = translate::depot(config) else {
        let hint = "name it with --fleet, such as --fleet s3://BUCKET/PREFIX";
        return Err(Failure::new(Exit::Usage, "no depot is named", Some(hint)));
    };
    Ok(depot::open(&settings)?)
}

/// Reads the keys of a replayer: of these files, or of the configured one.
pub(super) fn keys(depot: &dyn Depot, config: &Config, named: &[PathBuf]) -> Result<FleetKeys, Failure> {
    let configured = config.fleet_identity_file.value.clone();
    let files = if named.is_empty() { configured.into_iter().collect() } else { named.to_vec() };
    Ok(FleetKeys::read(depot, &files)?)
}

/// `replay --fleet`
pub(super) fn replay(common: &Common, order: &FleetReplayOrder<'_>) -> Result<(), Failure> {
    refuse_jsonl(common.format)?;
    let args = order.args;
    let config = configuration(&order.flags)?;
    let default = if args.follow { LogLevel::Info } else { LogLevel::Error };
    common.start_logging(&config, Some(default))?;
    let depot = open_depot(&config)?;
    let keys = keys(&*depot, &config, order.identities)?;
    let upstream = super::upstream(&config)?;
    let shutdown = Shutdown::new();
    if !args.follow {
        check_server(&upstream, &config)?;
    }
    stop_on_signals(&shutdown)?;
    let url = depot.describe().url;
    let settings = settings(&config, args, order.timeout)?;
    let session = FleetReplay::open(depot, keys, this_process(&uuid::Uuid::now_v7().simple().to_string()), settings, &shutdown)?;
    let mut progress = ProgressDisplay::new(common.quiet);
    progress.start(0);
    let concluded = session.run(&upstream, &progress);
    progress.finish();
    let concluded = concluded?;
    let report = FleetReplayReport::of(url, &concluded);
    if common.prints_summary() {
        common.renderer().result(&report, |_, report| report.text())?;
    }
    let remains = report.left_here() > 0 || args.fail_if_backlog && report.left_in_depot() > 0;
    match concluded.ending {
        FleetEnding::Interrupted if args.follow => Ok(()),
        FleetEnding::Interrupted => Err(Failure::silent(Exit::Interrupted)),
        FleetEnding::ServerAway => Err(Failure::silent(Exit::Unreachable)),
        FleetEnding::Complete | FleetEnding::TimeOver if remains => Err(Failure::silent(Exit::Remaining)),
        FleetEnding::Complete | FleetEnding::TimeOver => Ok(()),
    }
}

/// Checks that the server is there before anything is taken.
fn check_server(upstream: &Upstream, config: &Config) -> Result<(), Failure> {
    let pong = upstream.ping(config.connection_monitor_check_timeout.value)?;
    match &pong.presence {
        Presence::There | Presence::Unauthorised(_) => Ok(()),
        presence => {
            let message = format!("the Opik server {}", presence.sentence(upstream.base_url()));
            let hint = "check that --upstream is the URL of the API, such as http://127.0.0.1:5173/api";
            Err(Failure::new(Exit::Unreachable, message, Some(hint)))
        }
    }
}

fn settings(
    config: &Config,
    args: &FleetReplayArgs,
    timeout: Option<Duration>,
) -> Result<FleetReplaySettings, Failure> {
    let files = files::share(files::allowed(), 1, 0);
    let (stage_bytes, mut replay) = (args.stage.bytes(), translate::replay_settings(config));
    replay.filter = crate::store::Filter::default();
    Ok(FleetReplaySettings {
        scratch_folder: scratch_folder(config),
        // Rows, indexes and the log take more than the bodies.
        store_limits: Limits {
            size_max: stage_bytes.saturating_mul(3).max(1 << 30),
            disk_reserve: translate::disk_reserve(config),
            when_full: WhenFull::Refuse,
        },
        store_keys: translate::store_keys(config)?,
        server: translate::server(config),
        monitor: translate::monitor(config),
        replay,
        memory_budget: translate::memory_budget(config),
        workers_max: usize::try_from(files.replay_workers).unwrap_or(usize::MAX),
        stage_bytes,
        takeover_after: config.fleet_takeover_after.value,
        max_age: config.max_age.value,
        single_replayer: config.fleet_single_replayer.value,
        follows: args.follow,
        timeout,
    })
}

/// Returns the folder of the stores that are thrown away, beside the message store.
pub(super) fn scratch_folder(config: &Config) -> PathBuf {
    let folder = config.db.value.parent().map(PathBuf::from).unwrap_or_default();
    folder.join("fleet-scratch")
}
