//! The result of `replay --fleet`, for people and programs.

use std::path::PathBuf;

use serde::Serialize;

use crate::figures::{count, time};
use crate::hint;
use crate::printable::{name, shell_word};
use crate::report::groups::{GroupRow, groups, preview_text, sums_text};
use crate::store::Backlog;
use crate::takeover::behind::BehindStream;
use crate::takeover::dry_run::FleetPreview;
use crate::takeover::key_folder::UnusableKeyFile;
use crate::takeover::reading::UnreadableObject;
use crate::takeover::session::{FleetConclusion, FleetEnding};
use crate::terminal::Shown;
use crate::terminal::render::Renderer;

/// How many objects are named for people.
const NAMED_MAX: usize = 10;
/// Digits of a fingerprint for people: as many as the name of a file of keys needs.
const KEY_DIGITS: usize = 12;

/// The outcome for streams and messages.
#[derive(Serialize)]
pub(crate) struct FleetReplayReport {
    schema_version: u32,
    dry_run: bool,
    depot: String,
    /// With `--dry-run`: the messages that would be delivered.
    #[serde(flatten)]
    selected: Option<SelectedMessages>,
    delivered: u64,
    rejected: u64,
    /// Messages marked as expired.
    expired: u64,
    /// Messages that the server refuses for the time in their ids. They stay in the depot.
    held: u64,
    /// Messages of streams that were taken and released; with `--dry-run` those that would be delivered.
    remaining: u64,
    /// Messages for other servers, which stay in the depot.
    elsewhere: u64,
    /// Messages whose key is not here.
    without_key: u64,
    /// The keys that they wait for.
    missing_keys: Vec<MissingKeyLine>,
    /// Files of the folder of keys that hold no usable key.
    unusable_key_files: Vec<String>,
    /// Messages behind one that stays, about the same or of an earlier stream.
    behind: u64,
    /// The streams among these that wait for an earlier one of the same store.
    streams_behind: Vec<BehindLine>,
    /// The arguments of a replay that selects the earlier ones as well.
    #[serde(skip)]
    with_earlier: Option<String>,
    /// Messages that were not selected, which stay in the depot.
    unselected: u64,
    streams: StreamCounts,
    unreadable: UnreadableReport,
    requests: u64,
    seconds: f64,
    /// Why messages remain, for people.
    reasons: Vec<String>,
}

/// The messages of a dry run.
#[derive(Serialize)]
struct SelectedMessages {
    groups: Vec<GroupRow>,
    /// When the oldest of them was accepted.
    oldest_accepted_at: Option<String>,
}

/// A key that messages wait for.
#[derive(Serialize)]
pub(super) struct MissingKeyLine {
    workspace: String,
    /// Its fingerprint.
    key: String,
    messages: u64,
}

impl MissingKeyLine {
    pub(super) fn new(workspace: &str, key: &str, messages: u64) -> Self {
        Self { workspace: workspace.to_owned(), key: key.to_owned(), messages }
    }

    /// Returns it for people: `workspace research, key 9f3c1a2b4d5e: 1,204 messages wait for its key`.
    pub(super) fn text(&self) -> String {
        let key: String = self.key.chars().take(KEY_DIGITS).collect();
        let verb = if self.messages == 1 { "waits" } else { "wait" };
        format!(
            "workspace {}, key {key}: {} {verb} for its key",
            name(&self.workspace),
            count(self.messages, "message")
        )
    }
}

/// A stream that waits for an earlier one of the same store.
#[derive(Serialize)]
struct BehindLine {
    stream: String,
    /// The earlier ones.
    waits_for: Vec<String>,
    /// Whether these were selected.
    are_selected: bool,
    /// Its messages.
    messages: u64,
}

impl From<&BehindStream> for BehindLine {
    fn from(behind: &BehindStream) -> Self {
        Self {
            stream: behind.stream.to_string(),
            waits_for: behind.earlier.iter().map(ToString::to_string).collect(),
            are_selected: !behind.is_left_out,
            messages: behind.waiting,
        }
    }
}

impl BehindLine {
    /// Returns it for people.
    fn text(&self) -> String {
        let Self { stream, waits_for, are_selected, messages } = self;
        let verb = if *messages == 1 { "waits" } else { "wait" };
        let noun = if waits_for.len() == 1 { "stream" } else { "streams" };
        let why = match (are_selected, waits_for.len()) {
            (true, _) => "not settled yet",
            (false, 1) => "which was not selected",
            (false, _) => "which were not selected",
        };
        let (messages, earlier) = (count(*messages, "message"), waits_for.join(", "));
        format!("{messages} of stream {stream} {verb} for the earlier {noun} {earlier} of the same store, {why}")
    }
}

#[derive(Serialize)]
struct StreamCounts {
    taken: u64,
    finished: u64,
    given_back: u64,
    lost: u64,
    /// Streams whose owner is alive.
    owned: u64,
    /// Messages that these owners say are waiting.
    owned_messages: u64,
}

#[derive(Serialize)]
struct UnreadableReport {
    /// Messages that can't be read, at least.
    messages: u64,
    objects: Vec<UnreadableLine>,
}

/// An object that can't be read.
#[derive(Serialize)]
pub(crate) struct UnreadableLine {
    object: String,
    messages: u64,
    reason: String,
}

impl From<&UnreadableObject> for UnreadableLine {
    fn from(object: &UnreadableObject) -> Self {
        let UnreadableObject { object, messages, reason } = object.clone();
        Self { object, messages, reason }
    }
}

impl UnreadableLine {
    /// Returns it as a line for people, without its end.
    pub(crate) fn text(&self) -> String {
        format!("unreadable: {}: {}", self.object, self.reason)
    }
}

impl FleetReplayReport {
    pub(crate) fn of(depot: String, conclusion: &FleetConclusion, unusable: &[UnusableKeyFile]) -> Self {
        let totals = &conclusion.totals;
        let missing = totals.without_key.iter();
        Self {
            schema_version: 1,
            dry_run: false,
            depot,
            selected: None,
            delivered: conclusion.delivered,
            rejected: conclusion.rejected,
            expired: totals.expired,
            held: conclusion.held,
            remaining: totals.left_waiting,
            elsewhere: totals.elsewhere,
            without_key: totals.without_key.values().sum(),
            missing_keys: missing
                .map(|((workspace, key), n)| MissingKeyLine::new(workspace, &key.to_string(), *n))
                .collect(),
            unusable_key_files: unusable
                .iter()
                .map(|file| format!("{}: {}", file.path.display(), file.reason))
                .collect(),
            behind: totals.behind,
            streams_behind: totals.behind_streams.iter().map(BehindLine::from).collect(),
            with_earlier: conclusion.with_earlier.clone(),
            unselected: totals.unselected,
            streams: StreamCounts {
                taken: totals.taken,
                finished: totals.finished,
                given_back: totals.given_back,
                lost: totals.lost,
                owned: totals.alive,
                owned_messages: totals.waiting_alive,
            },
            unreadable: UnreadableReport {
                messages: totals.unreadable_messages,
                objects: totals.unreadable.iter().map(UnreadableLine::from).collect(),
            },
            requests: conclusion.requests,
            seconds: conclusion.seconds,
            reasons: conclusion.reasons.clone(),
        }
    }

    /// Returns the report of a dry run.
    pub(crate) fn of_dry_run(depot: String, preview: FleetPreview, unusable: &[UnusableKeyFile]) -> Self {
        let backlog = Backlog { groups: preview.groups, ..Backlog::default() };
        let groups = groups(&backlog);
        let would = FleetConclusion {
            ending: FleetEnding::Complete,
            delivered: 0,
            rejected: 0,
            held: preview.held,
            requests: 0,
            seconds: 0.0,
            reasons: preview.fleet_held.into_iter().collect(),
            is_key_refused: false,
            with_earlier: preview.with_earlier,
            totals: preview.totals,
        };
        let remaining = groups.iter().map(|group| group.messages).sum();
        let selected = SelectedMessages { groups, oldest_accepted_at: preview.oldest_ms.map(time) };
        Self { dry_run: true, selected: Some(selected), remaining, ..Self::of(depot, &would, unusable) }
    }

    /// Lets the command that it suggests name these key files as well.
    pub(crate) fn opened_with(mut self, identities: &[PathBuf]) -> Self {
        if let Some(flags) = &mut self.with_earlier {
            identities.iter().for_each(|file| flags.push_str(&format!(" --identity {}", shell_word(file.as_os_str()))));
        }
        self
    }

    /// Returns whether something is not delivered that was taken and asked for.
    pub(crate) fn is_incomplete(&self, ending: FleetEnding) -> bool {
        // Those for other servers are somebody else's, and others were not asked for, as what is beyond a limit.
        let remaining = match ending {
            FleetEnding::LimitReached => 0,
            _ => self.remaining.saturating_sub(self.elsewhere + self.unselected),
        };
        remaining + self.rejected + self.unreadable.objects.len() as u64 > 0
    }

    /// Returns how many messages are left in the depot, as far as is known.
    pub(crate) fn left_in_depot(&self) -> u64 {
        self.remaining + self.streams.owned_messages + self.streams.owned
    }

    /// Returns the result for people. `server` is where the messages went.
    pub(crate) fn text(&self, server: &str) -> Shown {
        let mut shown = Shown::default();
        let streams = count(self.streams.finished, "stream");
        shown.add_line(&match self.delivered {
            0 if self.streams.taken == 0 => format!("nothing to take over in {}", self.depot),
            0 => format!("delivered nothing to {server}"),
            delivered => {
                let rate = delivered as f64 / self.seconds.max(0.001);
                let messages = count(delivered, "message");
                let (seconds, rate) = (self.seconds, rate.round());
                format!("delivered {messages} in {seconds:.1} s ({rate} a second) to {server}; {streams} finished")
            }
        });
        shown.add(&self.rows());
        shown
    }

    /// Returns the result of a dry run for people. `server` is where the messages would go.
    pub(crate) fn preview_text(&self, renderer: &Renderer, server: &str) -> Shown {
        let mut shown = Shown::default();
        let groups = self.selected.as_ref().map_or(&[][..], |selected| &selected.groups);
        if groups.is_empty() {
            shown.add_line(&format!("nothing to replay in {}", self.depot));
        } else {
            let streams = count(self.streams.taken, "stream");
            shown.add_line(&format!("would replay {} of {streams} for {server}", sums_text(groups)));
            self.reasons.iter().for_each(|reason| shown.add_line(&format!("but {reason}")));
            shown.end_line();
            let oldest = self.selected.as_ref().and_then(|selected| selected.oldest_accepted_at.as_deref());
            shown.add(&preview_text(renderer, groups, oldest));
        }
        let rows = self.rows();
        if !groups.is_empty() && !rows.as_str().is_empty() {
            shown.end_line();
        }
        shown.add(&rows);
        shown
    }

    /// Returns what is not delivered, and why.
    fn rows(&self) -> Shown {
        let mut shown = Shown::default();
        let mut row = |number: u64, name: &str, what: &str| {
            if number > 0 {
                shown.add_line(&format!("{name:<9} {}{what}", count(number, "message")));
            }
        };
        let see = hint::command("inspect --fleet URL --rejected");
        row(self.rejected, "rejected", &format!(": kept in the depot; see {see}"));
        row(self.expired, "expired", ", older than max_age");
        row(self.held, "held", ": their ids are outside the server's window");
        row(self.elsewhere, "elsewhere", " for other servers: replay them with their --upstream");
        row(self.unselected, "others", ", not selected: left in the depot");
        if !self.dry_run {
            row(self.remaining, "remaining", " of streams that were released again");
        }
        for line in &self.missing_keys {
            shown.add_line(&format!("no key    {}", line.text()));
        }
        let of_streams = self.streams_behind.iter().map(|line| line.messages).sum::<u64>();
        if self.behind > of_streams {
            let messages = count(self.behind - of_streams, "message");
            shown.add_line(&format!("behind    {messages} newer than these, about the same"));
        }
        for line in self.streams_behind.iter().take(NAMED_MAX) {
            shown.add_line(&format!("behind    {}", line.text()));
        }
        if let Some(flags) = &self.with_earlier {
            let all = hint::command(&format!("replay --fleet URL {flags}"));
            shown.add_line(&format!("  replay these together: {all}"));
        }
        self.unusable_key_files.iter().for_each(|file| shown.add_line(&format!("unusable key file {file}")));
        if !self.dry_run {
            self.reasons.iter().for_each(|reason| shown.add_line(&format!("  {reason}")));
        }
        let UnreadableReport { messages, objects } = &self.unreadable;
        if !objects.is_empty() {
            let what = count(*messages, "message");
            shown.add_line(&format!("unreadable {what}, left in the depot"));
            for line in objects.iter().take(NAMED_MAX) {
                shown.add_line(&format!("  {}: {}", line.object, line.reason));
            }
        }
        if self.streams.owned > 0 {
            let verb = if self.streams.owned == 1 { "has" } else { "have" };
            let waiting = count(self.streams.owned_messages, "message");
            shown.add_line(&format!(
                "{} {verb} an owner that is alive and delivers {waiting} itself",
                count(self.streams.owned, "stream")
            ));
        }
        if self.streams.lost > 0 {
            shown.add_line(&format!("{} lost to another replayer", count(self.streams.lost, "stream")));
        }
        shown
    }
}
