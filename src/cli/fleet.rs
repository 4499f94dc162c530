//! The parts of `replay`, `status`, `inspect` and `purge` that work with a fleet's depot (`--fleet URL`).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use super::dial::{self, DialArgs};
use super::moving::{IdentityReport, new_identity};
use super::selection::{SelectionArgs, refuse_jsonl, stream};
use super::{Common, Exit, Failure, configuration, confirm, stop_on_signals, translate};
use crate::config::units::ByteSize;
use crate::config::{Config, Flags, LogLevel};
use crate::depot::{self, Depot};
use crate::fleet::names::StreamId;
use crate::fleet::stream_head::this_process;
use crate::protocol::recognise::Presence;
use crate::report::fleet::list::FleetList;
use crate::report::fleet::purge::FleetPurgeReport;
use crate::report::fleet::replay::FleetReplayReport;
use crate::report::fleet::status::FleetStatusReport;
use crate::shutdown::Shutdown;
use crate::store::{Filter, Limits, StoredMessage, WhenFull, now_ms};
use crate::takeover::browse::FleetBrowser;
use crate::takeover::dry_run::FleetDryRun;
use crate::takeover::founding;
use crate::takeover::keys::FleetKeys;
use crate::takeover::named_message::NamedMessage;
use crate::takeover::purging::{FleetPurge, PurgeSelection};
use crate::takeover::resending::Resending;
use crate::takeover::selection::FleetReplaySelection;
use crate::takeover::session::{FleetEnding, FleetReplay, ensure_exclusive};
use crate::takeover::survey::{FleetSurvey, streams_of};
use crate::takeover::unreadable::ensure_readable;
use crate::terminal::progress::ProgressDisplay;
use crate::terminal::render::OutputFormat;
use crate::terminal::{OutputStream, is_interactive};
use crate::upstream::Upstream;

/// How streams of a depot are replayed.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Fleet")]
pub(super) struct FleetReplayArgs {
    /// With --fleet: keep running, and take over each stream whose agent goes away
    #[arg(long, hide_short_help = true)]
    pub follow: bool,

    /// With --fleet: keep at most this many bytes of messages on this machine
    #[arg(long, value_name = "SIZE", default_value = "5GiB", value_parser = size, hide_short_help = true)]
    pub stage: ByteSize,

    /// With --fleet: read the API keys that messages only name from this folder, one file for each
    #[arg(long, value_name = "DIR", hide_short_help = true, value_hint = clap::ValueHint::DirPath)]
    pub credentials_dir: Option<PathBuf>,

    /// With --fleet: only messages of this stream (may be given more than once)
    #[arg(long, value_name = "STREAM", value_parser = stream, hide_short_help = true)]
    pub stream: Vec<StreamId>,

    /// With --fleet: exit with 4 when messages remain in the depot, also those of agents that are alive
    #[arg(long, hide_short_help = true)]
    pub fail_if_backlog: bool,

    #[command(flatten)]
    pub dial: DialArgs,
}

fn size(text: &str) -> Result<ByteSize, String> {
    text.parse().map_err(|error: crate::config::units::UnitError| error.to_string())
}

/// How long a replay may take, and what is delivered of it.
pub(super) struct FleetReplayOrder<'a> {
    pub args: &'a FleetReplayArgs,
    /// Files with the keys that open what is sealed.
    pub identities: &'a [PathBuf],
    pub selection: &'a SelectionArgs,
    pub flags: Flags,
    pub bounds: ReplayBounds,
}

/// How much a replay does.
pub(super) struct ReplayBounds {
    pub dry_run: bool,
    pub limit: Option<u64>,
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
fn keys(depot: &dyn Depot, config: &Config, named: &[PathBuf], folder: Option<&Path>) -> Result<FleetKeys, Failure> {
    let configured = config.fleet_identity_file.value.clone();
    let files = if named.is_empty() { configured.into_iter().collect() } else { named.to_vec() };
    Ok(FleetKeys::read(depot, &files, folder)?)
}

/// `replay --make-identity FILE --fleet URL`: a key pair, and the fleet's file that names its public key.
pub(super) fn found(common: &Common, path: &Path) -> Result<IdentityReport, Failure> {
    let depot = open_depot(&configuration(&common.flags())?)?;
    founding::ensure_none(&*depot)?;
    let made = new_identity(common, path)?;
    founding::found(&*depot, &made.recipient)?;
    Ok(made)
}

impl FleetReplayOrder<'_> {
    /// Returns whether only some messages are meant.
    fn selects(&self) -> bool {
        let is_bounded = self.bounds.dry_run || self.bounds.limit.is_some();
        is_bounded || self.selection.filter(now_ms()) != Filter::default() || !self.args.stream.is_empty()
    }

    fn selection(&self) -> FleetReplaySelection {
        let (streams, asked_ms) = (self.args.stream.clone(), now_ms());
        FleetReplaySelection { streams, filter: self.selection.filter(asked_ms), asked_ms, moved: Vec::new() }
    }

    /// `replay --fleet --dry-run`
    fn dry_run(
        &self,
        common: &Common,
        config: &Config,
        depot: &Arc<dyn Depot>,
        keys: &FleetKeys,
    ) -> Result<(), Failure> {
        let shutdown = Shutdown::new();
        stop_on_signals(&shutdown)?;
        let (server, selection) = (&translate::server(config), &self.selection());
        let (max_age, takeover_after) = (config.max_age.value, config.fleet_takeover_after.value);
        let dry_run = FleetDryRun { depot, keys, server, max_age, selection, takeover_after };
        let Some(preview) = dry_run.run(&shutdown, &ProgressDisplay::new(common.quiet))? else {
            return Err(Failure::silent(Exit::Interrupted));
        };
        let unreadable = preview.totals.unreadable.clone();
        let report = FleetReplayReport::of_dry_run(depot.describe().url, preview, &keys.folder.unusable());
        let report = report.opened_with(self.identities);
        common.renderer().result(&report, |renderer, report| report.preview_text(renderer, server.base_url()))?;
        Ok(ensure_readable(keys, &unreadable)?)
    }
}

/// `replay --fleet`
pub(super) fn replay(common: &Common, order: &FleetReplayOrder<'_>) -> Result<(), Failure> {
    refuse_jsonl(common.format)?;
    let args = order.args;
    if args.dial.is_asked() {
        if order.selects() {
            let text = "--pace, --hold and --resume: not with --dry-run, --limit or filters such as --workspace";
            return Err(Failure::new(Exit::Usage, text, Some("leave these out")));
        }
        return dial::set(common, &args.dial);
    }
    let config = configuration(&order.flags)?;
    let default = if args.follow { LogLevel::Info } else { LogLevel::Error };
    common.start_logging(&config, Some(default))?;
    let depot = open_depot(&config)?;
    let folder = args.credentials_dir.as_ref().or(config.fleet_credentials_dir.value.as_ref());
    let keys = keys(&*depot, &config, order.identities, folder.map(PathBuf::as_path))?;
    if order.bounds.dry_run {
        return order.dry_run(common, &config, &depot, &keys);
    }
    let unusable_keys = keys.folder.clone();
    let upstream = super::upstream(&config)?;
    let shutdown = Shutdown::new();
    if !args.follow {
        check_server(&upstream, &config)?;
    }
    stop_on_signals(&shutdown)?;
    let url = depot.describe().url;
    let owner = this_process(&uuid::Uuid::now_v7().simple().to_string());
    let mut selection = order.selection();
    let (server, single_replayer) = (translate::server(&config), config.fleet_single_replayer.value);
    let resending = Resending { depot: &depot, keys: &keys, owner: owner.clone(), server: &server, single_replayer };
    let unreadable = resending.run(&mut selection)?;
    let bounds = (args.follow, order.bounds.timeout);
    let mut settings = translate::fleet_replay(&config, args.stage.bytes(), bounds, selection)?;
    settings.replay.limit = order.bounds.limit;
    let session = FleetReplay::open(depot, keys, owner, settings, &shutdown)?;
    let mut progress = ProgressDisplay::new(common.quiet);
    progress.start(0);
    let concluded = session.run(&upstream, &progress);
    progress.finish();
    let mut concluded = concluded?;
    concluded.totals.add_unreadable_of(unreadable);
    let report = FleetReplayReport::of(url, &concluded, &unusable_keys.unusable()).opened_with(order.identities);
    if common.prints_summary() {
        common.renderer().result(&report, |_, report| report.text(server.base_url()))?;
    }
    let remains = report.is_incomplete(concluded.ending) || args.fail_if_backlog && report.left_in_depot() > 0;
    match concluded.ending {
        FleetEnding::Interrupted if args.follow => Ok(()),
        FleetEnding::Interrupted => Err(Failure::silent(Exit::Interrupted)),
        FleetEnding::ServerAway => Err(Failure::silent(Exit::Unreachable)),
        _ if remains && concluded.is_key_refused => Err(Failure::silent(Exit::NotAuthorised)),
        _ if remains => Err(Failure::silent(Exit::Remaining)),
        FleetEnding::Complete | FleetEnding::TimeOver | FleetEnding::LimitReached => Ok(()),
    }
}

/// Checks that the server is there before anything is taken.
fn check_server(upstream: &Upstream, config: &Config) -> Result<(), Failure> {
    let pong = upstream.ping(config.connection_monitor_check_timeout.value)?;
    match &pong.presence {
        Presence::There | Presence::Unauthorised(_) => Ok(()),
        presence => {
            let message = format!("the Opik server {}", presence.sentence(upstream.base_url()));
            Err(Failure::new(Exit::Unreachable, message, presence.hint()))
        }
    }
}

/// `status --fleet`
pub(super) fn status(config: &Config) -> Result<FleetStatusReport, Failure> {
    let depot = open_depot(config)?;
    Ok(FleetStatusReport::of(&FleetSurvey::gather(&*depot, config.fleet_takeover_after.value)?))
}

/// Returns what reads the messages of a depot.
fn browser(depot: &Arc<dyn Depot>, keys: &FleetKeys, config: &Config) -> Result<FleetBrowser, Failure> {
    let limits =
        Limits { size_max: u64::MAX, disk_reserve: translate::disk_reserve(config), when_full: WhenFull::Refuse };
    let store_keys = translate::store_keys(config)?;
    Ok(FleetBrowser::new(depot.clone(), keys, &translate::fleet_scratch(config), (limits, &store_keys))?)
}

/// The arguments of `inspect --fleet`.
pub(super) struct FleetInspection<'a> {
    pub id: Option<NamedMessage>,
    pub selection: &'a SelectionArgs,
    pub limit: usize,
    pub newest: bool,
    pub identities: &'a [PathBuf],
}

/// `inspect --fleet`: lists messages, or returns the one that is named.
pub(super) fn inspect(
    common: &Common,
    config: &Config,
    order: &FleetInspection<'_>,
) -> Result<Option<StoredMessage>, Failure> {
    let depot = open_depot(config)?;
    let keys = keys(&*depot, config, order.identities, None)?;
    let browser = browser(&depot, &keys, config)?;
    match order.id {
        Some(NamedMessage::InStream(stream, message)) => match browser.whole(stream, message)? {
            (Some(found), _) => return Ok(Some(found)),
            (None, unreadable) => {
                ensure_readable(&keys, &unreadable)?;
                let text = format!("there is no message {message} in stream {stream} of {}", depot.describe());
                let hint = "it was delivered or purged; `opik-offline inspect --fleet URL` lists what is there";
                return Err(Failure::new(Exit::Failure, text, Some(hint)));
            }
        },
        Some(NamedMessage::Stored(id)) => {
            let hint = "`opik-offline inspect --fleet URL` lists them";
            let text = format!("{id} names no message of a depot: use STREAM/ID");
            return Err(Failure::new(Exit::Usage, text, Some(hint)));
        }
        None => {}
    }
    let filter = order.selection.filter(now_ms());
    let mut list = FleetList::new(depot.describe().url, order.limit);
    let mut unreadable = Vec::new();
    let rejected = browser.rejected(&filter)?;
    unreadable.extend_from_slice(&rejected.unreadable);
    list.add(rejected);
    let mut streams = streams_of(&*depot)?;
    if order.newest {
        streams.reverse();
    }
    for stream in streams {
        if list.is_full() {
            break;
        }
        let selected = browser.select(stream, &filter)?;
        unreadable.extend_from_slice(&selected.unreadable);
        list.add(selected);
    }
    if common.format == OutputFormat::Jsonl {
        OutputStream::Out.machine(&list.lines().map_err(std::io::Error::other)?)?;
    } else {
        common.renderer().result(&list, |renderer, list| list.text(renderer))?;
    }
    ensure_readable(&keys, &unreadable)?;
    Ok(None)
}

/// The arguments of `purge --fleet`.
pub(super) struct FleetPurgeOrder<'a> {
    pub selection: PurgeSelection,
    pub identities: &'a [PathBuf],
    pub dry_run: bool,
    pub yes: bool,
}

/// `purge --fleet`
pub(super) fn purge(common: &Common, config: &Config, order: &FleetPurgeOrder<'_>) -> Result<(), Failure> {
    let depot = open_depot(config)?;
    let keys = keys(&*depot, config, order.identities, None)?;
    let (browser, url) = (browser(&depot, &keys, config)?, depot.describe().url);
    let owner = this_process(&uuid::Uuid::now_v7().simple().to_string());
    let person = dial::this_person();
    let takeover_after = config.fleet_takeover_after.value;
    let purge = FleetPurge { depot, keys, browser, owner, person, order: uuid::Uuid::now_v7(), takeover_after };
    if !order.dry_run {
        ensure_exclusive(&*purge.depot, config.fleet_single_replayer.value)?;
    }
    let shutdown = Shutdown::new();
    let progress = ProgressDisplay::new(common.quiet);
    let Some((free, owned)) = purge.free(&order.selection, &shutdown, &progress)? else {
        return Err(Failure::silent(Exit::Interrupted));
    };
    let would = purge.preview((&free, owned), &order.selection)?;
    let renderer = common.renderer();
    let report = FleetPurgeReport::of(&url, &would, true);
    if order.dry_run || would.messages() == 0 && order.selection.streams.is_empty() {
        renderer.result(&report, |renderer, report| report.text(renderer))?;
        // Whole streams are deleted without being read.
        let needs_all = order.selection.streams.is_empty() || order.selection.filter != Filter::default();
        return if needs_all { Ok(ensure_readable(&purge.keys, &would.unreadable)?) } else { Ok(()) };
    }
    if !order.yes {
        if !is_interactive() {
            let message = format!("purge would delete {}, and there is no terminal to ask on", report.sums());
            return Err(Failure::new(Exit::Usage, message, Some("check with --dry-run, then add --yes")));
        }
        let mut question = report.text(&renderer);
        question.add(&super::question(&format!("permanently delete {} in {url}? [y/N] ", report.sums())));
        confirm(&question, Failure::new(Exit::Failure, "nothing was deleted", Some("answer y to delete")))?;
    }
    stop_on_signals(&shutdown)?;
    let purged = purge.purge(&order.selection, (&free, would), (&shutdown, &progress))?;
    if common.prints_summary() {
        let report = FleetPurgeReport::of(&url, &purged, false);
        renderer.result(&report, |renderer, report| report.text(renderer))?;
    }
    if shutdown.is_requested() { Err(Failure::silent(Exit::Interrupted)) } else { Ok(()) }
}
