//! The contents of a depot, as far as its names and heads tell: no key is needed, and nothing is written.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::error::TakeoverError;
use super::objects::{folder, list_all, list_spread};
use super::requested_purges::{PendingPurge, outstanding, requested_purges};
use super::watch::{list_heads, read_heads, streams_with_bundles};
use crate::depot::{Depot, DepotDescription, DepotError};
use crate::fleet::dial::{DialFault, DialSetting};
use crate::fleet::dial_change::read_dial;
use crate::fleet::head::{Head, HeadFault, HeadState, MissingKey};
use crate::fleet::names::{self, ObjectName, StreamId};
use crate::fleet::parallel::join;
use crate::store::now_ms;

/// The standing of a stream, as people read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum StreamStanding {
    /// Its agent delivers it.
    Open,
    /// A replayer delivers it.
    Taken,
    /// Its owner has finished with it: it may be taken at once.
    Closed,
    /// By its owner's clock, its head was not renewed for the time to take over.
    Silent,
    /// It has bundles and no head: its agent was killed while it began it.
    Headless,
}

impl StreamStanding {
    /// Returns its name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Taken => "taken",
            Self::Closed => "closed",
            Self::Silent => "silent",
            Self::Headless => "headless",
        }
    }

    fn of(head: &Head, now_ms: u64, takeover_after: Duration) -> Self {
        let after_ms = u64::try_from(takeover_after.as_millis()).unwrap_or(u64::MAX).max(head.silence_ms);
        match head.state {
            HeadState::Closed => Self::Closed,
            _ if now_ms.saturating_sub(head.renewed_at_ms) > after_ms => Self::Silent,
            HeadState::Open => Self::Open,
            HeadState::Taken => Self::Taken,
        }
    }
}

/// The bundles of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct BundleSums {
    pub bundles: u64,
    pub messages: u64,
    pub bytes: u64,
    /// When the oldest message was accepted, in milliseconds since the Unix epoch.
    pub oldest_ms: Option<u64>,
}

/// A stream of a depot.
#[derive(Clone, Debug)]
pub(crate) struct StreamSurvey {
    pub stream: StreamId,
    /// `None` if it has none.
    pub head: Option<Head>,
    pub standing: StreamStanding,
    pub sums: BundleSums,
}

impl StreamSurvey {
    /// Returns how many messages wait: as its owner says, or as many as were shipped.
    pub(crate) fn waiting(&self) -> u64 {
        match &self.head {
            Some(head) if head.shipped > 0 => head.waiting,
            _ => self.sums.messages,
        }
    }
}

/// The contents of a depot.
#[derive(Debug)]
pub(crate) struct FleetSurvey {
    pub depot: DepotDescription,
    /// By id, which is the order of their beginning.
    pub streams: Vec<StreamSurvey>,
    /// Heads that can't be read.
    pub unreadable: Vec<(StreamId, HeadFault)>,
    /// Messages that the server rejected, by workspace as people read it.
    pub rejected: BTreeMap<String, u64>,
    /// The decisions of people about the pace; `None` if nobody ever did.
    pub dial: Option<Result<DialSetting, DialFault>>,
    /// The purges that are requested of owners and not carried out yet.
    pub purges: Vec<PendingPurge>,
    /// When it was gathered, in milliseconds since the Unix epoch.
    pub at_ms: u64,
}

impl FleetSurvey {
    /// Gathers it. Bundles are listed while heads are read, but after the heads are listed: a stream's bundles are deleted
    /// before its head, so none that is delivered meanwhile seems to have bundles without a head.
    ///
    /// # Errors
    ///
    /// If the depot can't be read or listed.
    pub(crate) fn gather(depot: &dyn Depot, takeover_after: Duration) -> Result<Self, TakeoverError> {
        let at_ms = u64::try_from(now_ms()).unwrap_or(0);
        let listed: Vec<StreamId> = list_heads(depot)?.into_iter().map(|(stream, _)| stream).collect();
        let (heads, sums, rest) = std::thread::scope(|scope| {
            let sums = scope.spawn(|| bundle_sums(depot));
            let rest =
                scope.spawn(|| Ok::<_, TakeoverError>((rejected(depot)?, read_dial(depot)?, requested_purges(depot)?)));
            (read_heads(depot, &listed), join(sums), join(rest))
        });
        let (mut sums, (rejected, dial, purges)) = (sums?, rest?);
        let mut survey = Self {
            depot: depot.describe(),
            streams: Vec::with_capacity(listed.len()),
            unreadable: Vec::new(),
            rejected,
            dial,
            purges: Vec::new(),
            at_ms,
        };
        for (stream, read) in listed.iter().zip(heads) {
            let sums = sums.remove(stream).unwrap_or_default();
            match read? {
                Some((_, Ok(head))) => {
                    let standing = StreamStanding::of(&head, at_ms, takeover_after);
                    survey.streams.push(StreamSurvey { stream: *stream, head: Some(head), standing, sums });
                }
                Some((_, Err(fault))) => survey.unreadable.push((*stream, fault)),
                // Delivered in this instant.
                None => {}
            }
        }
        let headless = sums.into_iter().map(|(stream, sums)| StreamSurvey {
            stream,
            head: None,
            standing: StreamStanding::Headless,
            sums,
        });
        survey.streams.extend(headless);
        survey.streams.sort_by_key(|survey| survey.stream);
        let readable = survey.streams.iter().map(|survey| (survey.stream, survey.head.as_ref()));
        let known = readable.chain(survey.unreadable.iter().map(|(stream, _)| (*stream, None))).collect();
        survey.purges = outstanding(purges, &known);
        Ok(survey)
    }

    /// Returns how many streams have this standing.
    pub(crate) fn count(&self, standing: StreamStanding) -> u64 {
        self.streams.iter().filter(|stream| stream.standing == standing).count() as u64
    }

    /// Returns how many messages wait.
    pub(crate) fn waiting(&self) -> u64 {
        self.streams.iter().map(StreamSurvey::waiting).sum()
    }

    /// Returns when the oldest message that waits was accepted, in milliseconds since the Unix epoch.
    pub(crate) fn oldest_ms(&self) -> Option<u64> {
        let waiting = self.streams.iter().filter(|stream| stream.waiting() > 0);
        let oldest =
            |stream: &StreamSurvey| stream.head.as_ref().and_then(|head| head.oldest_ms).or(stream.sums.oldest_ms);
        waiting.filter_map(oldest).min()
    }

    /// Returns the keys that messages wait for, as replayers left word of it when they released their streams.
    pub(crate) fn missing_keys(&self) -> Vec<MissingKey> {
        let mut found: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        let closed = self.streams.iter().filter(|stream| stream.standing == StreamStanding::Closed);
        for key in closed.filter_map(|stream| stream.head.as_ref()).flat_map(|head| &head.missing_keys) {
            *found.entry((&key.workspace, &key.key)).or_default() += key.messages;
        }
        let key = |((workspace, key), messages): ((&str, &str), u64)| MissingKey {
            workspace: workspace.to_owned(),
            key: key.to_owned(),
            messages,
        };
        found.into_iter().map(key).collect()
    }

    /// Returns the processes that have taken streams, each with their number and the messages that wait in them.
    pub(crate) fn replayers(&self) -> Vec<(String, u64, u64)> {
        let mut found: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        for stream in self.streams.iter().filter(|stream| stream.standing == StreamStanding::Taken) {
            let Some(head) = &stream.head else { continue };
            let (streams, messages) = found.entry(head.owner.to_string()).or_default();
            *streams += 1;
            *messages += stream.waiting();
        }
        found.into_iter().map(|(owner, (streams, messages))| (owner, streams, messages)).collect()
    }
}

/// Counts the streams that are being delivered: those whose owners are alive, by their clocks, and have something waiting.
///
/// # Errors
///
/// If the depot can't be read or listed.
pub(crate) fn draining(depot: &dyn Depot, takeover_after: Duration) -> Result<u64, DepotError> {
    let at_ms = u64::try_from(now_ms()).unwrap_or(0);
    let listed: Vec<StreamId> = list_heads(depot)?.into_iter().map(|(stream, _)| stream).collect();
    let mut draining = 0;
    for read in read_heads(depot, &listed) {
        let Some((_, Ok(head))) = read? else { continue };
        let standing = StreamStanding::of(&head, at_ms, takeover_after);
        let is_delivered = matches!(standing, StreamStanding::Open | StreamStanding::Taken);
        draining += u64::from(is_delivered && head.waiting > 0);
    }
    Ok(draining)
}

/// Returns all streams, also those without a head, the one that began first first.
///
/// # Errors
///
/// If the depot can't be listed.
pub(crate) fn streams_of(depot: &dyn Depot) -> Result<Vec<StreamId>, TakeoverError> {
    let mut streams: Vec<StreamId> = streams_with_bundles(depot)?.into_iter().collect();
    streams.sort_unstable();
    Ok(streams)
}

fn bundle_sums(depot: &dyn Depot) -> Result<HashMap<StreamId, BundleSums>, TakeoverError> {
    let mut found: HashMap<StreamId, BundleSums> = HashMap::new();
    for entry in list_spread(depot, &names::bundles())? {
        let Some(ObjectName::Bundle(stream, bundle)) = ObjectName::parse(entry.name.as_str()) else { continue };
        let sums = found.entry(stream).or_default();
        sums.bundles += 1;
        sums.messages += u64::from(bundle.messages);
        sums.bytes += entry.bytes;
        sums.oldest_ms = Some(sums.oldest_ms.map_or(bundle.oldest_ms, |oldest| oldest.min(bundle.oldest_ms)));
    }
    Ok(found)
}

fn rejected(depot: &dyn Depot) -> Result<BTreeMap<String, u64>, TakeoverError> {
    let mut found = BTreeMap::new();
    for entry in list_all(depot, &folder(&names::rejected()))? {
        if let Some(ObjectName::Rejected { workspace, .. }) = ObjectName::parse(entry.name.as_str()) {
            *found.entry(workspace.shown()).or_default() += 1;
        }
    }
    Ok(found)
}
