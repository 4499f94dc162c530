//! `opik-offline replay`

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::dial;
use super::fleet::{self, FleetReplayArgs, FleetReplayOrder, ReplayBounds};
use super::moving::{self, IdentityReport, MovingArgs, SealedReport, identity_text, sealed_text};
use super::reassign::{self, ReassignArgs, Reassigned};
use super::salvage::{self, Given, take_in};
use super::selection::{SelectionArgs, duration, number_from_one, refuse_jsonl};
use super::{Common, Exit, Failure, configuration, stop_on_signals, translate};
use crate::agent::files;
use crate::config::{Config, Flags, LogLevel, Source};
use crate::delivery::id_window::REMEDY;
use crate::figures::count;
use crate::hint;
use crate::message::Server;
use crate::overview::asked::{FoundAgents, OwnStore};
use crate::printable::shell_word;
use crate::replay::report::rate_and_eta;
use crate::replay::session::{Conclusion, Ending, Plan, ProgressListener, Session, SessionSettings, reassignment};
use crate::report::groups::{GroupRow, groups, oldest, preview_text, servers_text, sums_text};
use crate::report::readback::Readback;
use crate::shutdown::Shutdown;
use crate::store::{Filter, StoreIdentity, now_ms};
use crate::terminal::progress::ProgressDisplay;
use crate::terminal::render::Renderer;
use crate::terminal::{OutputStream, Shown};

const AFTER_HELP: &str = "\
Examples:
  Deliver all stored messages, 200 at a time:
    opik-offline replay --batch-size 200
  Retry rejected messages after the cause is fixed:
    opik-offline replay --rejected
  Retry messages whose ids the server found too old, after its window was widened:
    opik-offline replay --status held
  Deliver everything, and check that the server shows it:
    opik-offline replay --verify
  Deliver messages for a server that moved to its new address, after a preview:
    opik-offline replay --readdress http://old-host:5173/api --upstream http://new-host:5173/api
  Use the configured key where the server rejects the clients' key, after a preview:
    opik-offline replay --rekey
  Salvage and deliver what killed Python processes left behind, then delete it:
    opik-offline replay --from '/tmp/tmp*/opik_messages.db' --remove-source
  Move the messages of a dead pod's store into this one, and deliver them:
    opik-offline replay --from /old-volume/opik_messages.db
  Carry a backlog to a machine that can reach the server:
    opik-offline replay --to backlog.age --recipient age1...
    opik-offline replay --from backlog.age --identity KEYFILE
  Let nothing that waits be delivered while the server is maintained, and go on:
    opik-offline replay --hold 30m
    opik-offline replay --resume
  From cron, for at most a minute:
    opik-offline replay --timeout 60s --quiet

Exit codes:
  0    All selected messages were delivered, or --limit was reached
  1    Failure, or a file of --from could not be read
  2    Invalid usage or configuration, or no store at --db
  3    The server is down or not Opik, or --verify can't read from it
  4    Messages remain, held or rejected, or --verify finds some missing
  5    Messages remain whose key or workspace the server refuses
  130  Interrupted";

/// Deliver stored messages to the Opik server
///
/// Works beside a running agent: one of the two replays at a time, and the other waits. A message leaves the store once
/// the server has confirmed it, so interrupting a replay loses nothing. Messages that the server rejects are kept as
/// rejected; they are replayed only with --rejected, --status rejected or their --id.
///
/// Selected messages keep their place in the order of delivery: a message is not sent while an earlier message about
/// the same trace, span or other entity is stored, selected or not. Such messages remain stored, and the summary counts
/// them.
///
/// Each message goes to the server that it was accepted for. With --upstream, only messages for that server are
/// replayed.
#[derive(Args, Debug)]
#[command(after_long_help = AFTER_HELP)]
pub(super) struct ReplayArgs {
    /// Replay this many messages, then pause
    ///
    /// If unset, replay starts at 50 and speeds up while the server keeps up.
    #[arg(long, value_name = "N")]
    batch_size: Option<OsString>,

    /// Pause this long after a full batch; if unset, replay starts at 500ms and speeds up while the server keeps up
    #[arg(long, value_name = "DURATION", hide_short_help = true)]
    delay: Option<OsString>,

    /// Stop after this many messages
    #[arg(long, value_name = "N", value_parser = number_from_one, conflicts_with = "follow")]
    limit: Option<u64>,

    /// Keep retrying for up to this long, then stop
    ///
    /// Without it, replay ends once every remaining message has to wait: for a held lane, or for its next attempt.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    timeout: Option<Duration>,

    /// Read delivered data back, and report what is missing
    ///
    /// Traces, spans, experiments and their items, datasets and their items, optimizations, and feedback scores by name
    /// are requested by their ids, in pages if the server supports it. Data that can't be read back is counted: OTLP
    /// spans, whose ids the server generates, guardrail and assertion results, comments, attachments. Messages that
    /// another process delivers are not read back.
    #[arg(long)]
    verify: bool,

    /// Retry reading what the server does not show yet, for up to this long after the delivery
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "30s", requires = "verify", hide_short_help = true)]
    verify_timeout: Duration,

    /// Take in files of Python processes or other stores
    ///
    /// A file, a directory or a glob pattern; may be given more than once.
    ///
    /// Files are read from a private copy. Messages taken in earlier are recognised, even in a copied file, so running
    /// this again sends nothing twice. Messages of a Python process get the configured workspace and API key, because
    /// its file contains none.
    ///
    /// The messages of another opik-offline store, or of a sealed copy of one (--identity), keep their servers,
    /// workspaces, keys and states. The store must not be in use; once all its messages are stored here, it is renamed
    /// to FILE.moved-TIME. The key of an encrypted store is set as OPIK_OFFLINE_ENCRYPTION_PREVIOUS_KEY_FILE.
    #[arg(long, value_name = "FILE", num_args = 1.., value_hint = clap::ValueHint::AnyPath)]
    from: Vec<PathBuf>,

    /// As root, salvage the files of this user (name or number)
    ///
    /// A file is salvaged only if it and its directory belong to the user who runs this, or to root, and no other user
    /// can write to it. Root uses this flag to salvage the files of another user: then they have to belong to that
    /// user.
    #[arg(long, value_name = "USER", requires = "from", hide_short_help = true, value_hint = clap::ValueHint::Username)]
    owner: Option<String>,

    /// Also send attachments whose files are in this directory
    ///
    /// Without it, only the SDK's own temporary copies are sent, from the temporary directory. May be given more than
    /// once.
    #[arg(long, value_name = "FOLDER", requires = "from", hide_short_help = true, value_hint = clap::ValueHint::DirPath)]
    attachments_from: Vec<PathBuf>,

    /// Delete each file of --from, and the SDK's temporary copies of attachments, once all its messages are stored
    #[arg(long, requires = "from", hide_short_help = true)]
    remove_source: bool,

    /// Show what would be replayed, without sending anything
    #[arg(long, conflicts_with = "follow")]
    dry_run: bool,

    #[command(flatten)]
    moving: MovingArgs,

    #[command(flatten)]
    selection: SelectionArgs,

    #[command(flatten)]
    reassign: ReassignArgs,

    #[command(flatten)]
    fleet: FleetReplayArgs,
}

/// The result of a replay, for programs.
#[derive(Serialize, Default)]
struct ReplayReport {
    schema_version: u32,
    dry_run: bool,
    /// The files that were salvaged (--from).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sources: Vec<salvage::SourceReport>,
    delivered: u64,
    rejected: u64,
    /// Messages held at the end because the server refuses the time in their ids, selected or not.
    held: u64,
    remaining: u64,
    /// The selected messages, before anything was sent.
    groups: Vec<GroupRow>,
    /// When the oldest of them was accepted.
    oldest_accepted_at: Option<String>,
    requests: u64,
    seconds: f64,
    /// Why messages remain, for people.
    reasons: Vec<String>,
    /// Lanes that got another server or key (--readdress, --rekey), or would.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    reassigned: Vec<Reassigned>,
    /// The result of `--verify`.
    #[serde(skip_serializing_if = "Option::is_none")]
    verified: Option<Readback>,
    /// The result of `--to`.
    #[serde(skip_serializing_if = "Option::is_none")]
    sealed: Option<SealedReport>,
    /// The result of `--make-identity`.
    #[serde(skip_serializing_if = "Option::is_none")]
    identity: Option<IdentityReport>,
}

impl ReplayReport {
    fn of_nothing(dry_run: bool) -> Self {
        Self { schema_version: 1, dry_run, ..Self::default() }
    }
}

pub(super) fn run(common: &Common, args: &ReplayArgs) -> Result<(), Failure> {
    refuse_jsonl(common.format)?;
    if let Some(path) = &args.moving.make_identity {
        let identity = Some(match common.fleet.is_some() {
            true => fleet::found(common, path)?,
            false => moving::new_identity(common, path)?,
        });
        let report = ReplayReport { identity, ..ReplayReport::of_nothing(false) };
        let text =
            |_: &Renderer, report: &ReplayReport| report.identity.as_ref().map_or_else(Shown::default, identity_text);
        return Ok(common.renderer().result(&report, text)?);
    }
    let flags = Flags {
        replay_batch_size: args.batch_size.clone(),
        replay_batch_replay_delay: args.delay.clone(),
        ..common.flags()
    };
    if common.fleet.is_some() {
        args.refuse_beside_fleet()?;
        let identities = &args.moving.identity;
        let selection = &args.selection;
        let bounds = ReplayBounds { dry_run: args.dry_run, limit: args.limit, timeout: args.timeout };
        let order = FleetReplayOrder { args: &args.fleet, identities, selection, flags, bounds };
        return fleet::replay(common, &order);
    }
    args.refuse_without_fleet()?;
    if args.fleet.dial.is_asked() {
        return dial::set_of_store(common, &args.fleet.dial);
    }
    let config = configuration(&flags)?;
    // Scripts tell by exit code 1 that there is nothing to seal yet.
    if args.from.is_empty() && args.moving.to.is_none() {
        translate::check_named_store(&config)?;
    }
    common.start_logging(&config, Some(LogLevel::Error))?;
    let shutdown = Shutdown::new();
    let mut report = ReplayReport::of_nothing(args.dry_run);
    if let Some(to) = &args.moving.to {
        report.sealed = moving::seal(&config, &args.moving, to, args.dry_run, &shutdown)?;
        let text = |_: &Renderer, report: &ReplayReport| sealed_text(report.sealed.as_ref(), report.dry_run);
        return Ok(common.renderer().result(&report, text)?);
    }
    let mut source_failed = false;
    if !args.from.is_empty() {
        stop_on_signals(&shutdown)?;
        let readdress = args.reassign.readdress.as_ref();
        let given = Given {
            files: &args.from,
            attachments: &args.attachments_from,
            owner: args.owner.as_deref(),
            identities: &args.moving.identity,
            remove: args.remove_source,
        };
        (report.sources, source_failed) = take_in(&config, &given, readdress, args.dry_run, &shutdown)?;
        if report.sources.is_empty() {
            // Each failure was reported already, and other messages were not asked for.
            return Err(Failure::silent(Exit::Failure));
        }
    }
    let run = ReplayRun { common, args, config: &config, renderer: common.renderer(), shutdown };
    match run.deliver(report, &mut ProgressDisplay::new(common.quiet)) {
        Err(failure) if source_failed && failure.exit != Exit::Interrupted => {
            Err(Failure { exit: Exit::Failure, ..failure })
        }
        Ok(()) if source_failed => Err(Failure::silent(Exit::Failure)),
        result => result,
    }
}

impl ReplayArgs {
    /// Refuses flags that are for a depot.
    fn refuse_without_fleet(&self) -> Result<(), Failure> {
        if self.fleet.follow
            || self.fleet.fail_if_backlog
            || self.fleet.credentials_dir.is_some()
            || !self.fleet.stream.is_empty()
            || self.fleet.dial.pace.is_some()
        {
            let hint =
                "name the depot: --fleet s3://BUCKET/PREFIX; an agent delivers the local store as long as it runs";
            return Err(Failure::new(
                Exit::Usage,
                "--follow, --stream, --fail-if-backlog, --credentials-dir and --pace are for a depot",
                Some(hint),
            ));
        }
        if !self.moving.identity.is_empty() && self.from.is_empty() {
            let hint = "name the sealed copy with --from FILE, or the depot with --fleet URL";
            return Err(Failure::new(Exit::Usage, "--identity opens nothing here", Some(hint)));
        }
        if self.fleet.dial.is_asked() { self.refuse_beside_hold() } else { Ok(()) }
    }

    /// Refuses flags that a hold of the store can't be set or ended with: it is about everything in it.
    fn refuse_beside_hold(&self) -> Result<(), Failure> {
        let selects = self.selection.filter(now_ms()) != Filter::default();
        let Some(what) = selects.then_some("a filter").or_else(|| self.flag_of_one_store()) else { return Ok(()) };
        let text = format!("--hold and --resume are for the whole store: not with {what}");
        Err(Failure::new(Exit::Usage, text, Some("leave it out")))
    }

    /// Returns the first flag given that is about delivering one store.
    fn flag_of_one_store(&self) -> Option<&'static str> {
        let given = [
            (!self.from.is_empty(), "--from"),
            (self.verify, "--verify"),
            (self.moving.to.is_some(), "--to"),
            (self.reassign.is_asked(), "--readdress and --rekey"),
            // The last ones, because a fleet's replay has them as well.
            (self.limit.is_some(), "--limit"),
            (self.dry_run, "--dry-run"),
        ];
        given.iter().find(|(is_given, _)| *is_given).map(|(_, flag)| *flag)
    }

    /// Refuses flags that a depot's streams can't be replayed with.
    fn refuse_beside_fleet(&self) -> Result<(), Failure> {
        let is_refused = |flag: &&str| !["--limit", "--dry-run"].contains(flag);
        let Some(flag) = self.flag_of_one_store().filter(is_refused) else { return Ok(()) };
        let hint = "`opik-offline inspect --fleet URL` shows what is in the depot, and --workspace, --stream and other filters \
                    select from it";
        Err(Failure::new(Exit::Usage, format!("{flag} can't be used with --fleet"), Some(hint)))
    }
}

/// One run of the command.
struct ReplayRun<'a> {
    common: &'a Common,
    args: &'a ReplayArgs,
    config: &'a Config,
    renderer: Renderer,
    shutdown: Shutdown,
}

impl ReplayRun<'_> {
    /// Delivers what is selected, and reports it.
    fn deliver(&self, mut report: ReplayReport, progress: &mut ProgressDisplay) -> Result<(), Failure> {
        let Some(session) = Session::open(self.settings()?, &self.shutdown)? else {
            report.reasons.push(format!("nothing was stored in {} yet", self.config.db.value.display()));
            report.reasons.extend(self.other_agents_store(None));
            return self.show(&report);
        };
        // With --from it states that the files' server has moved, and no stored message need be for it.
        let is_reassigned = self.args.reassign.is_asked() && self.args.from.is_empty();
        if is_reassigned {
            stop_on_signals(&self.shutdown)?;
            let reassignment = self.args.reassign.reassignment(self.config, &self.args.selection.workspace);
            let is_asked = !self.args.reassign.yes;
            let moves = reassignment.plan(session.store())?;
            if !self.args.dry_run {
                if is_asked {
                    reassign::ask(&moves)?;
                }
                reassignment::apply(session.store(), &moves, &|text| progress.note(text), &self.shutdown)?;
            }
            report.reassigned = moves.into_iter().map(Reassigned::from).collect();
            if self.args.dry_run {
                return self.show(&report);
            }
            progress.note(&format!("gave {} another destination", reassign::sum(&report.reassigned)));
        }
        let mut plan = session.plan(self.args.selection.filter(now_ms()))?;
        if plan.messages() == 0 {
            let unknown = self.args.selection.unknown(session.store())?;
            report.reasons.extend(self.left_out(&plan));
            report.reasons.extend(plan.elsewhere.or(unknown));
            report.reasons.extend(self.other_agents_store(Some(session.store().identity())));
            return self.show(&report);
        }
        let (groups, oldest_accepted_at) = (groups(&plan.backlog), oldest(session.store(), &plan.filter)?);
        let selected = ReplayReport { remaining: plan.messages(), groups, oldest_accepted_at, ..report };
        let held = session.held()?;
        if self.args.dry_run {
            return self.show(&ReplayReport { reasons: held.into_iter().collect(), ..selected });
        }
        self.preview(&selected, progress);
        if let Some(held) = held {
            // Before anything is requeued.
            if self.common.prints_summary() {
                self.show(&ReplayReport { reasons: vec![held], ..selected })?;
            }
            return Err(Failure::silent(Exit::Remaining));
        }
        let connections =
            session.connect(&plan, &translate::upstream_settings(self.config)?, &|text| progress.note(text));
        if let Some((server, away)) = connections.all_away() {
            if !self.common.format.is_for_people() {
                // Programs get a report of the remaining messages; people get the error.
                let reasons = connections.away.iter().map(|(_, away)| away.to_string()).collect();
                self.show(&ReplayReport { reasons, ..selected })?;
            }
            let failure = Failure::from(away.clone());
            let hint = failure.hint.map(|hint| self.about(Some(server), &hint));
            return Err(Failure { hint, ..failure });
        }
        if self.args.from.is_empty() && !is_reassigned {
            stop_on_signals(&self.shutdown)?;
        }
        if !session.requeue(&mut plan)? {
            let ReplayReport { sources, reassigned, .. } = selected;
            return self.show(&ReplayReport { sources, reassigned, ..ReplayReport::of_nothing(false) });
        }
        progress.start(session.total(&plan));
        let delivered = session.deliver(&plan, &connections, progress);
        progress.finish();
        match delivered {
            Ok(delivered) => self.conclude(selected, session.conclude(plan, &connections, delivered)?),
            Err(error) => Err(session.recover(error).into()),
        }
    }

    /// Returns a text of our own with commands that are about this server, also if it is not the configured one.
    fn about(&self, server: Option<&Server>, text: &str) -> String {
        let is_next = |server: &Server| self.config.upstream.is_set() && *server == translate::server(self.config);
        match server.filter(|server| !is_next(server)) {
            Some(server) => hint::about_server(text, shell_word(server.base_url().as_ref())),
            None => text.to_owned(),
        }
    }

    /// Returns what was looked at if nothing is to be replayed, and which messages are replayed only if they are named.
    fn left_out(&self, plan: &Plan) -> Vec<String> {
        if self.args.selection.filter(now_ms()) != Filter::default() {
            return Vec::new();
        }
        let (config, (rejected, held)) = (self.config, plan.refused);
        let is_for_one = matches!(config.upstream.source, Source::Flag { .. });
        let whom = if is_for_one { format!(" for {}", config.upstream.value) } else { String::new() };
        let mut reasons = vec![format!("nothing waits{whom} in {}", config.db.value.display())];
        if rejected > 0 {
            reasons.push(format!(
                "{} stored that the server rejected: see {}, and once the cause is fixed {}",
                count_are(rejected),
                hint::command("inspect --rejected"),
                hint::command("replay --rejected")
            ));
        }
        if held > 0 {
            let (held, replay) = (count_are(held), hint::command("replay --status held"));
            reasons.push(format!("{held} held for their ids: {replay} sends them, and {REMEDY}"));
        }
        reasons
    }

    /// Returns what an agent holds in another store, if one answers at the configured address.
    fn other_agents_store(&self, own: Option<StoreIdentity>) -> Option<String> {
        let own = OwnStore::new(own, &self.config.db.value);
        let (listen, server) = (self.config.listen.value, translate::server(self.config));
        FoundAgents::find(&[], listen, &own, &server).other.map(|agent| agent.other_store_text())
    }

    /// Returns how to replay.
    fn settings(&self) -> Result<SessionSettings, Failure> {
        let (args, config) = (self.args, self.config);
        let files = files::share(files::allowed(), 1, 0);
        Ok(SessionSettings {
            store_path: config.db.value.clone(),
            store_limits: translate::store_limits(config),
            store_keys: translate::store_keys(config)?,
            dry_run: args.dry_run,
            own: translate::lane(config),
            is_server_configured: config.upstream.is_set(),
            only_own_server: matches!(config.upstream.source, Source::Flag { .. }),
            monitor: translate::monitor(config),
            pace: translate::pace(config),
            retry_interval: config.retry_interval.value,
            attempts_max: config.max_attempts.value,
            memory_budget: translate::memory_budget(config),
            workers_max: usize::try_from(files.replay_workers).unwrap_or(usize::MAX),
            limit: args.limit,
            timeout: args.timeout,
            verify_timeout: args.verify.then_some(args.verify_timeout),
        })
    }

    fn show(&self, report: &ReplayReport) -> Result<(), Failure> {
        Ok(self.renderer.result(report, people)?)
    }

    /// Shows the selected messages before any server is pinged: salvaged messages are safe in any case.
    fn preview(&self, report: &ReplayReport, progress: &ProgressDisplay) {
        report.sources.iter().for_each(|source| progress.note(&source.text(false)));
        if OutputStream::Err.is_terminal() {
            let mut preview =
                Shown::line(&format!("replaying {} for {}", sums_text(&report.groups), servers_text(&report.groups)));
            preview.end_line();
            let plain = Renderer::new(self.renderer.format(), false);
            preview.add(&preview_text(&plain, &report.groups, report.oldest_accepted_at.as_deref()));
            progress.note_shown(&preview);
        }
    }

    /// Reports how the replay ended, and turns that into an exit code.
    fn conclude(&self, selected: ReplayReport, conclusion: Conclusion) -> Result<(), Failure> {
        let Conclusion { ending, delivered, rejected, held, remaining, requests, seconds, mut reasons, .. } =
            conclusion;
        for server in &conclusion.refused_by {
            let rekey = self.about(server.as_ref(), "`opik-offline replay --rekey`");
            let rekey = hint::completed(&rekey);
            reasons.push(format!("check that key; {rekey} gives these messages the configured one"));
        }
        let readback = |verified| Readback::of(verified, conclusion.delivered_elsewhere);
        let verified = conclusion.verified.map(readback);
        let report =
            ReplayReport { delivered, rejected, held, remaining, requests, seconds, reasons, verified, ..selected };
        if self.common.prints_summary() {
            self.show(&report)?;
        }
        match ending {
            Ending::Complete => Ok(()),
            Ending::Interrupted => Err(Failure::silent(Exit::Interrupted)),
            Ending::Unreachable => Err(Failure::silent(Exit::Unreachable)),
            Ending::Remaining => Err(Failure::silent(Exit::Remaining)),
            Ending::NotAuthorised => Err(Failure::silent(Exit::NotAuthorised)),
        }
    }
}

impl ProgressListener for ProgressDisplay {
    fn note(&self, text: &str) {
        ProgressDisplay::note(self, text);
    }

    fn progress(&self, done: u64, total: u64) {
        self.at(done, total);
    }
}

fn people(renderer: &Renderer, report: &ReplayReport) -> Shown {
    let mut shown = Shown::default();
    if report.dry_run && !report.reassigned.is_empty() {
        shown.add_line(&format!("would give {} another destination", reassign::sum(&report.reassigned)));
        shown.end_line();
        shown.add(&reassign::text(renderer, &report.reassigned));
        return shown;
    }
    if report.dry_run {
        report.sources.iter().for_each(|source| shown.add_line(&source.text(true)));
        // They are in no store yet.
        let taken = report.sources.iter().map(salvage::SourceReport::messages).sum::<u64>();
        match (report.remaining, taken) {
            (0, 0) => shown.add_line(&nothing_to_replay(report)),
            (0, _) => shown.add_line(&format!("would replay {}", count(taken, "message"))),
            (stored, _) => {
                let all = match taken {
                    0 => String::new(),
                    _ => format!("{}: those, and stored already ", count(stored + taken, "message")),
                };
                shown.add_line(&format!(
                    "would replay {all}{} for {}",
                    sums_text(&report.groups),
                    servers_text(&report.groups)
                ));
                report.reasons.iter().for_each(|reason| shown.add_line(&format!("but {reason}")));
                shown.end_line();
                shown.add(&preview_text(renderer, &report.groups, report.oldest_accepted_at.as_deref()));
            }
        }
        return shown;
    }
    let readback = report.verified.as_ref().map_or_else(Shown::default, Readback::text);
    if report.delivered + report.rejected + report.held + report.remaining == 0 {
        shown.add_line(&nothing_to_replay(report));
        shown.add(&readback);
        return shown;
    }
    shown.add_line(&if report.delivered == 0 {
        format!("delivered nothing to {}", servers_text(&report.groups))
    } else {
        let started = Instant::now() - Duration::try_from_secs_f64(report.seconds).unwrap_or_default();
        let (rate, _) = rate_and_eta(report.delivered, report.remaining, started, Instant::now());
        format!(
            "delivered {} in {:.1} s ({} a second, {}) to {}",
            count(report.delivered, "message"),
            report.seconds,
            rate.round(),
            count(report.requests, "request"),
            servers_text(&report.groups)
        )
    });
    if report.rejected > 0 {
        let (rejected, see) = (count(report.rejected, "message"), hint::command("inspect --rejected"));
        shown.add_line(&format!("rejected  {rejected}: see why with {see}"));
    }
    if report.held > 0 {
        shown.add_line(&format!(
            "held      {}: their ids are outside the server's window; see {}, and {REMEDY}",
            count(report.held, "message"),
            hint::command("inspect --status held")
        ));
    }
    if report.remaining > 0 {
        shown.add_line(&format!("remaining {}", count(report.remaining, "message")));
        report.reasons.iter().for_each(|reason| shown.add_line(&format!("  {reason}")));
    }
    shown.add(&readback);
    shown
}

/// Returns `1 message is` or `2 messages are`.
fn count_are(messages: u64) -> String {
    format!("{} {}", count(messages, "message"), if messages == 1 { "is" } else { "are" })
}

fn nothing_to_replay(report: &ReplayReport) -> String {
    match &report.reasons[..] {
        [] => "nothing to replay".to_owned(),
        reasons => format!("nothing to replay: {}", reasons.join("; ")),
    }
}
