//! `status --fleet`, for people and programs.

use std::time::Duration;

use serde::Serialize;

use super::dial::DialReport;
use super::replay::MissingKeyLine;
use crate::figures::{count, short_duration, size, time};
use crate::fleet::stream_purge::StreamPurge;
use crate::printable;
use crate::takeover::requested_purges::PendingPurge;
use crate::takeover::survey::{FleetSurvey, StreamStanding, StreamSurvey};
use crate::terminal::Shown;
use crate::terminal::render::Renderer;

/// How many streams and owners are listed for people.
const LISTED_MAX: usize = 20;

/// The contents of a depot.
#[derive(Serialize)]
pub(crate) struct FleetStatusReport {
    schema_version: u32,
    depot: DepotLine,
    streams: StreamStandings,
    pub(crate) waiting: WaitingReport,
    rejected: RejectedInDepot,
    replayers: Vec<ReplayerLine>,
    /// The decisions of people about the pace.
    dial: DialReport,
    /// The purges that are requested of owners and not carried out yet.
    purges: Vec<PurgeLine>,
    /// Keys that messages of closed streams wait for, as their last replayer has found.
    missing_keys: Vec<MissingKeyLine>,
    /// The streams, the one with the oldest message first.
    list: Vec<StreamLine>,
    unreadable: Vec<UnreadableHead>,
}

#[derive(Serialize)]
struct DepotLine {
    url: String,
    engine: &'static str,
}

#[derive(Serialize)]
struct StreamStandings {
    open: u64,
    taken: u64,
    closed: u64,
    silent: u64,
    headless: u64,
    unreadable: u64,
}

#[derive(Serialize)]
pub(crate) struct WaitingReport {
    pub messages: u64,
    /// Bytes of their bundles in the depot.
    bytes: u64,
    oldest_accepted_at: Option<String>,
    pub oldest_age_seconds: Option<u64>,
}

#[derive(Serialize)]
struct RejectedInDepot {
    messages: u64,
    by_workspace: Vec<WorkspaceCount>,
}

#[derive(Serialize)]
struct WorkspaceCount {
    workspace: String,
    messages: u64,
}

#[derive(Serialize)]
struct ReplayerLine {
    owner: String,
    streams: u64,
    messages: u64,
}

#[derive(Serialize)]
struct StreamLine {
    stream: String,
    standing: &'static str,
    owner: Option<String>,
    version: Option<String>,
    bundles: u64,
    waiting: u64,
    bytes: u64,
    oldest_accepted_at: Option<String>,
    /// When its head was last written, by its owner's clock.
    renewed_at: Option<String>,
}

/// A purge that a person has requested of the owner of a stream.
#[derive(Serialize)]
struct PurgeLine {
    stream: String,
    /// By the clock of the person's machine.
    requested_at: Option<String>,
    requested_age_seconds: Option<u64>,
    /// Who that was.
    by: Option<String>,
    /// Whether it has expired: then no owner carries it out.
    is_expired: Option<bool>,
}

impl PurgeLine {
    fn of(purge: &PendingPurge, now_ms: u64) -> Self {
        let (request, now) = (purge.request.as_ref(), Duration::from_millis(now_ms));
        let at = request.and_then(StreamPurge::ordered_at);
        Self {
            stream: purge.stream.to_string(),
            requested_at: at.map(|at| time_of(u64::try_from(at.as_millis()).unwrap_or(u64::MAX))),
            requested_age_seconds: at.map(|at| now.saturating_sub(at).as_secs()),
            by: request.map(|request| request.by.clone()).filter(|by| !by.is_empty()),
            is_expired: request.map(|request| request.is_outdated(now)),
        }
    }

    /// Returns it for people.
    fn text(&self) -> String {
        let age = self.requested_age_seconds.map(|age| short_duration(Duration::from_secs(age)));
        let since = age.map_or(String::new(), |age| format!(" {age} ago"));
        let by = self.by.as_ref().map_or(String::new(), |by| format!(" by {}", printable::line(by)));
        let standing = match self.is_expired {
            Some(true) => "expired: no owner carries it out any more; purge it again",
            Some(false) => "its owner has not carried it out yet",
            None => "not read: its time and its person are not known",
        };
        format!("stream {}, requested{since}{by}: {standing}", self.stream)
    }
}

#[derive(Serialize)]
struct UnreadableHead {
    stream: String,
    reason: String,
}

fn time_of(ms: u64) -> String {
    time(i64::try_from(ms).unwrap_or(i64::MAX))
}

impl StreamLine {
    fn of(survey: &StreamSurvey) -> Self {
        let head = survey.head.as_ref();
        let oldest = head.and_then(|head| head.oldest_ms).or(survey.sums.oldest_ms);
        Self {
            stream: survey.stream.to_string(),
            standing: survey.standing.name(),
            owner: head.map(|head| head.owner.to_string()),
            version: head.map(|head| head.owner.version.clone()).filter(|version| !version.is_empty()),
            bundles: survey.sums.bundles,
            waiting: survey.waiting(),
            bytes: survey.sums.bytes,
            oldest_accepted_at: oldest.map(time_of),
            renewed_at: head.map(|head| head.renewed_at_ms).filter(|at| *at > 0).map(time_of),
        }
    }
}

impl FleetStatusReport {
    pub(crate) fn of(survey: &FleetSurvey) -> Self {
        let oldest_ms = survey.oldest_ms();
        let mut list: Vec<StreamLine> = survey.streams.iter().map(StreamLine::of).collect();
        list.sort_by(|one, other| one.oldest_accepted_at.cmp(&other.oldest_accepted_at));
        let by_workspace = survey
            .rejected
            .iter()
            .map(|(workspace, messages)| WorkspaceCount { workspace: workspace.clone(), messages: *messages });
        let replayers = survey.replayers().into_iter();
        Self {
            schema_version: 1,
            depot: DepotLine { url: survey.depot.url.clone(), engine: survey.depot.engine },
            streams: StreamStandings {
                open: survey.count(StreamStanding::Open),
                taken: survey.count(StreamStanding::Taken),
                closed: survey.count(StreamStanding::Closed),
                silent: survey.count(StreamStanding::Silent),
                headless: survey.count(StreamStanding::Headless),
                unreadable: survey.unreadable.len() as u64,
            },
            waiting: WaitingReport {
                messages: survey.waiting(),
                bytes: survey.streams.iter().map(|stream| stream.sums.bytes).sum(),
                oldest_accepted_at: oldest_ms.map(time_of),
                oldest_age_seconds: oldest_ms.map(|oldest| survey.at_ms.saturating_sub(oldest) / 1000),
            },
            rejected: RejectedInDepot {
                messages: survey.rejected.values().sum(),
                by_workspace: by_workspace.collect(),
            },
            purges: survey.purges.iter().map(|purge| PurgeLine::of(purge, survey.at_ms)).collect(),
            missing_keys: (survey.missing_keys().iter())
                .map(|key| MissingKeyLine::new(&key.workspace, &key.key, key.messages))
                .collect(),
            replayers: replayers.map(|(owner, streams, messages)| ReplayerLine { owner, streams, messages }).collect(),
            dial: match &survey.dial {
                None => DialReport::default(),
                Some(Ok(setting)) => DialReport::of(setting, survey.at_ms),
                Some(Err(fault)) => DialReport::of_fault(fault),
            },
            list,
            unreadable: (survey.unreadable.iter())
                .map(|(stream, fault)| UnreadableHead { stream: stream.to_string(), reason: fault.to_string() })
                .collect(),
        }
    }

    /// Returns it for people.
    pub(crate) fn text(&self, renderer: &Renderer) -> Shown {
        let mut shown = Shown::default();
        let mut row = |name: &str, value: &str| shown.add_line(&format!("{name:<11}{value}"));
        row("depot", &format!("{} ({})", self.depot.url, self.depot.engine));
        let StreamStandings { open, taken, closed, silent, headless, unreadable } = self.streams;
        let standings = [
            (open, "open"),
            (taken, "taken"),
            (closed, "closed"),
            (silent, "silent"),
            (headless, "without a head"),
            (unreadable, "unreadable"),
        ];
        let named: Vec<String> = standings
            .iter()
            .filter(|(number, _)| *number > 0)
            .map(|(number, name)| format!("{number} {name}"))
            .collect();
        row("streams", if named.is_empty() { "none".to_owned() } else { named.join(", ") }.as_str());
        let WaitingReport { messages, bytes, oldest_age_seconds, .. } = &self.waiting;
        let oldest = oldest_age_seconds
            .map_or(String::new(), |age| format!(", the oldest for {}", short_duration(Duration::from_secs(age))));
        row("waiting", &format!("{} ({}){oldest}", count(*messages, "message"), size(*bytes)));
        if self.rejected.messages > 0 {
            row("rejected", &count(self.rejected.messages, "message"));
        }
        for replayer in self.replayers.iter().take(LISTED_MAX) {
            let streams = count(replayer.streams, "stream");
            row("replayer", &format!("{}: {streams}, {} waiting", replayer.owner, count(replayer.messages, "message")));
        }
        for (name, text) in self.dial.lines() {
            row(name, &text);
        }
        for purge in self.purges.iter().take(LISTED_MAX) {
            row("purge", &purge.text());
        }
        for key in self.missing_keys.iter().take(LISTED_MAX) {
            row("no key", &key.text());
        }
        for head in self.unreadable.iter().take(LISTED_MAX) {
            row("unreadable", &format!("stream {}: {}", head.stream, head.reason));
        }
        if !self.list.is_empty() {
            shown.end_line();
            shown.add(&self.table(renderer));
            if self.list.len() > LISTED_MAX {
                shown.add_line(&format!(
                    "the oldest {LISTED_MAX} of {} streams; all with --format json",
                    self.list.len()
                ));
            }
        }
        shown
    }

    fn table(&self, renderer: &Renderer) -> Shown {
        let mut table = renderer.table(&["stream", "standing", "…owner", ">bundles", ">waiting", ">size", "oldest"]);
        for line in self.list.iter().take(LISTED_MAX) {
            table.add_row([
                line.stream.clone(),
                line.standing.to_owned(),
                line.owner.clone().unwrap_or_default(),
                line.bundles.to_string(),
                line.waiting.to_string(),
                size(line.bytes),
                line.oldest_accepted_at.clone().unwrap_or_default(),
            ]);
        }
        table.shown()
    }
}
