//! Recent history: samples of the backlog and the counters, and the rates that follow from them.
//!
//! Two ring buffers of fixed size: a sample every [`FINE_INTERVAL`] for a quarter of an hour, and one a minute for a
//! day. They take half a megabyte at most. A minute keeps the peak and the outages of its samples, so that both say the
//! same about the same time.
//!
//! The facts that matter after a crash (the backlog and the last replay) are in the store, and a plot is not worth a
//! commit every minute. The samples of an earlier agent are read from a file beside the store ([`super::history_file`]);
//! they are only plotted: rates follow from this agent's own, whose counters start with it.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How often a sample is taken.
pub(crate) const FINE_INTERVAL: Duration = Duration::from_secs(5);
/// How many samples the last quarter of an hour has.
pub(crate) const FINE_MAX: usize = 180;
/// The time between two samples of the day.
pub(crate) const COARSE_INTERVAL: Duration = Duration::from_secs(60);
/// How many samples the last day has.
pub(crate) const COARSE_MAX: usize = 24 * 60;
/// The window over which rates are measured.
pub(crate) const RATE_WINDOW: Duration = Duration::from_secs(60);
/// Rates over a shorter window are noise.
const RATE_WINDOW_MIN: Duration = Duration::from_secs(2);
/// A backlog that has not moved for this long while the server was available is stalled.
const STALL_AFTER: Duration = Duration::from_secs(30);

/// A snapshot of an agent. Counters start with the agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sample {
    /// The wall clock, in milliseconds since the Unix epoch; may jump.
    pub at_ms: i64,
    /// Since the agent's start; never jumps.
    pub uptime_ms: u64,
    /// Whether the server was available; `None` before the first ping.
    pub available: Option<bool>,
    /// Since when, in milliseconds since the Unix epoch.
    #[serde(skip)]
    pub since_ms: i64,
    /// The time of the sample before, or of this minute, in which the server was unavailable.
    #[serde(skip)]
    pub away: Away,
    /// Messages that still had to reach the server; `None` if the store could not be read.
    pub waiting: Option<u64>,
    /// Bytes of their bodies.
    pub waiting_bytes: Option<u64>,
    /// Rejected messages that were kept.
    pub kept: Option<u64>,
    /// Writes that the server answered at once.
    pub forwarded: u64,
    /// Messages that were stored.
    pub stored: u64,
    /// Stored messages that the server confirmed to this agent.
    pub delivered: u64,
    /// Messages that this agent set aside as rejected.
    pub rejected: u64,
}

/// Time in which the server was unavailable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Away {
    /// When it began, in milliseconds since the Unix epoch.
    pub from_ms: i64,
    /// How long it was, all outages together; 0 if there was none.
    pub for_ms: u64,
}

impl Away {
    /// Returns the outages of this time and of a later one together.
    fn and(self, later: Self) -> Self {
        match (self.for_ms, later.for_ms) {
            (0, _) => later,
            (_, 0) => self,
            (earlier, later) => Self { from_ms: self.from_ms, for_ms: earlier + later },
        }
    }
}

/// Throughput in messages per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rates {
    /// The window over which it was measured, in seconds.
    pub window_seconds: f64,
    /// Writes forwarded or stored.
    pub in_per_second: f64,
    /// Messages that reached the server: forwarded at once, or delivered from the store.
    pub out_per_second: f64,
    /// Writes that the server answered at once.
    pub forwarded_per_second: f64,
    /// Messages that were stored.
    pub stored_per_second: f64,
    /// Stored messages that reached the server.
    pub delivered_per_second: f64,
    /// Messages that the server refused.
    pub rejected_per_second: f64,
}

/// Samples of the last quarter of an hour and of the last day.
#[derive(Debug, Default)]
pub(crate) struct History(Mutex<Rings>);

#[derive(Debug, Default)]
struct Rings {
    fine: VecDeque<Sample>,
    /// Of earlier agents.
    earlier: Vec<Sample>,
    coarse: VecDeque<Sample>,
}

/// A snapshot of the last day.
#[derive(Clone, Debug, Default)]
pub struct Past {
    /// A sample every [`FINE_INTERVAL`], the oldest first.
    pub fine: Vec<Sample>,
    /// A sample for each minute, the oldest first: with the largest backlog of that minute, when it was, and the outages
    /// of that minute.
    pub coarse: Vec<Sample>,
}

impl History {
    /// Adds a sample. Returns it and its minute as they are kept.
    pub(crate) fn note(&self, sample: Sample) -> (Sample, Sample) {
        let mut rings = self.lock();
        let sample = with_outage(rings.fine.back(), sample);
        push(&mut rings.fine, sample, FINE_MAX);
        let minute = match rings.coarse.back_mut().filter(|last| minute(last) == minute(&sample)) {
            Some(last) => {
                *last = merged(last, sample);
                *last
            }
            None => {
                push(&mut rings.coarse, sample, COARSE_MAX);
                sample
            }
        };
        (sample, minute)
    }

    /// Adds what earlier agents measured. Called before the first [`History::note`].
    pub(crate) fn restore(&self, past: Past) {
        let mut rings = self.lock();
        rings.earlier = past.fine;
        let skipped = past.coarse.len().saturating_sub(COARSE_MAX);
        rings.coarse = past.coarse.into_iter().skip(skipped).collect();
    }

    /// Returns this agent's own samples of the last quarter of an hour, oldest first.
    pub(crate) fn recent(&self) -> Vec<Sample> {
        self.lock().fine.iter().copied().collect()
    }

    /// Returns the newest sample.
    pub(crate) fn last(&self) -> Option<Sample> {
        self.lock().fine.back().copied()
    }

    /// Returns a snapshot of the last day, with this sample as the newest. Both parts have the same peaks and outages
    /// where they cover the same time.
    pub(crate) fn past(&self, now: Sample) -> Past {
        let rings = self.lock();
        let now = with_outage(rings.fine.back(), now);
        let fine = rings.earlier.iter().chain(&rings.fine).copied().chain([now]).collect();
        Past { fine, coarse: rings.coarse.iter().copied().chain([now]).collect() }
    }

    /// Samples are pushed whole, so the rings' invariants hold even after a panic elsewhere.
    fn lock(&self) -> MutexGuard<'_, Rings> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn minute(sample: &Sample) -> i64 {
    sample.at_ms.div_euclid(COARSE_INTERVAL.as_millis() as i64)
}

/// Returns a minute to which a sample was added: short peaks and outages have to show in the plot of a day.
fn merged(minute: &Sample, sample: Sample) -> Sample {
    let away = minute.away.and(sample.away);
    let peak = if minute.waiting > sample.waiting { *minute } else { sample };
    Sample { at_ms: peak.at_ms, waiting: peak.waiting, waiting_bytes: peak.waiting_bytes, away, ..sample }
}

/// Returns a sample with the outage that it shows since the one before. The connection tells since when it is as it is,
/// so that an outage does not begin with the next sample only.
fn with_outage(before: Option<&Sample>, sample: Sample) -> Sample {
    let span = sample.uptime_ms.saturating_sub(before.map_or(0, |before| before.uptime_ms));
    // The wall clock may have jumped.
    let unchanged = u64::try_from(sample.at_ms.saturating_sub(sample.since_ms)).unwrap_or(0).min(span);
    let from_ms = sample.at_ms.saturating_sub_unsigned(span);
    let away = match (before.and_then(|before| before.available), sample.available) {
        (_, Some(false)) => Away { from_ms: sample.at_ms.saturating_sub_unsigned(unchanged), for_ms: unchanged },
        // It ended since, or was so short that it began since as well.
        (Some(_), Some(true)) if unchanged < span => Away { from_ms, for_ms: span - unchanged },
        _ => Away::default(),
    };
    Sample { away, ..sample }
}

fn push(ring: &mut VecDeque<Sample>, sample: Sample, max: usize) {
    if ring.len() == max {
        ring.pop_front();
    }
    ring.push_back(sample);
}

/// Returns the throughput over the last [`RATE_WINDOW`], or the part of it that was sampled; `None` if that is too
/// short.
///
/// Samples are in order of time; the last one is now.
pub(crate) fn rates(samples: &[Sample]) -> Option<Rates> {
    let (first, last) = window(samples, RATE_WINDOW)?;
    let span = Duration::from_millis(last.uptime_ms.saturating_sub(first.uptime_ms));
    if span < RATE_WINDOW_MIN {
        return None;
    }
    let per_second = |of: fn(&Sample) -> u64| of(last).saturating_sub(of(first)) as f64 / span.as_secs_f64();
    let (forwarded_per_second, stored_per_second) = (per_second(|at| at.forwarded), per_second(|at| at.stored));
    let delivered_per_second = per_second(|at| at.delivered);
    Some(Rates {
        window_seconds: span.as_secs_f64(),
        in_per_second: forwarded_per_second + stored_per_second,
        out_per_second: forwarded_per_second + delivered_per_second,
        forwarded_per_second,
        stored_per_second,
        delivered_per_second,
        rejected_per_second: per_second(|at| at.rejected),
    })
}

/// The throughput of delivery.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct DrainRate {
    /// Messages per second.
    pub per_second: f64,
    /// The share of it by which the mean may be off, by how much the throughput varied.
    pub spread: f64,
    /// Messages per second that were stored in the same time: those of an outage that has ended don't count.
    pub stored_per_second: f64,
}

/// A rate is measured over at least this long: a replay that has just begun is still speeding up.
const DRAIN_MIN: Duration = Duration::from_secs(8);
/// Samples that are closer together count as one interval: the present sample may follow the last one at once.
const DRAIN_INTERVAL_MIN: Duration = Duration::from_millis(2500);
/// Limits of the spread: neither is a second measurement the same, nor is a rate known only by its order of magnitude
/// of any use.
const SPREAD: (f64, f64) = (0.15, 0.75);

/// Returns the throughput of delivery over the last [`RATE_WINDOW`]: how many messages per second left the backlog while
/// there was one and the server was available. `None` until that was the case for a few seconds, or if no message left.
///
/// Messages that another process replays count too: they show in the backlog, not in this agent's counters.
pub(crate) fn drain_rate(samples: &[Sample]) -> Option<DrainRate> {
    let (first, _) = window(samples, RATE_WINDOW)?;
    let since = samples.iter().position(|sample| sample.uptime_ms == first.uptime_ms).unwrap_or(0);
    let mut intervals: Vec<DrainInterval> = Vec::new();
    for pair in samples[since..].windows(2) {
        let [before, after] = pair else { continue };
        let (Some(waiting), Some(waits_still)) = (before.waiting, after.waiting) else { continue };
        if waiting == 0 || before.available != Some(true) || after.available != Some(true) {
            continue;
        }
        let settled = (after.delivered + after.rejected).saturating_sub(before.delivered + before.rejected);
        let left = settled.max(waiting.saturating_sub(waits_still)) as f64;
        let seconds = after.uptime_ms.saturating_sub(before.uptime_ms) as f64 / 1000.0;
        let stored = after.stored.saturating_sub(before.stored) as f64;
        let interval = DrainInterval { left, stored, seconds };
        match intervals.last_mut().filter(|_| seconds < DRAIN_INTERVAL_MIN.as_secs_f64()) {
            Some(last) => *last = last.plus(&interval),
            None => intervals.push(interval),
        }
    }
    // Before the first message left, delivery did not run.
    let begun = intervals.iter().position(|interval| interval.left > 0.0)?;
    let intervals = &intervals[begun..];
    let all = intervals.iter().fold(DrainInterval::default(), DrainInterval::plus);
    if all.seconds < DRAIN_MIN.as_secs_f64() {
        return None;
    }
    let per_second = all.left / all.seconds;
    let count = intervals.len() as f64;
    let off = |interval: &DrainInterval| interval.left / interval.seconds.max(0.001) - per_second;
    let variance = intervals.iter().map(|interval| off(interval).powi(2)).sum::<f64>() / count;
    // Twice the standard error of the mean.
    let error = 2.0 * variance.sqrt() / count.sqrt() / per_second;
    let stored_per_second = all.stored / all.seconds;
    Some(DrainRate { per_second, spread: error.clamp(SPREAD.0, SPREAD.1), stored_per_second })
}

/// A time in which there was a backlog and the server was available: a sample of the throughput.
#[derive(Clone, Copy, Debug, Default)]
struct DrainInterval {
    /// Messages that left the backlog.
    left: f64,
    /// Messages that were stored.
    stored: f64,
    seconds: f64,
}

impl DrainInterval {
    fn plus(self, other: &Self) -> Self {
        Self { left: self.left + other.left, stored: self.stored + other.stored, seconds: self.seconds + other.seconds }
    }
}

/// Returns whether no message left a backlog for half a minute although the server was available.
pub(crate) fn is_stalled(samples: &[Sample]) -> bool {
    let Some((first, last)) = window(samples, STALL_AFTER + FINE_INTERVAL) else { return false };
    let since = samples.iter().position(|sample| sample.uptime_ms == first.uptime_ms).unwrap_or(0);
    let waited = samples[since..].iter().all(|at| at.available == Some(true) && at.waiting.is_some_and(|n| n > 0));
    let moved = samples[since..].windows(2).any(|pair| pair[1].waiting < pair[0].waiting)
        || last.delivered + last.rejected > first.delivered + first.rejected;
    waited && !moved && last.uptime_ms - first.uptime_ms >= STALL_AFTER.as_millis() as u64
}

/// Returns the first sample of the last `longest`, and the last one.
fn window(samples: &[Sample], longest: Duration) -> Option<(&Sample, &Sample)> {
    let last = samples.last()?;
    let since = last.uptime_ms.saturating_sub(longest.as_millis() as u64);
    let first = samples.iter().find(|sample| sample.uptime_ms >= since)?;
    Some((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Samples 5 s apart: the backlog, the messages delivered so far, and whether the server was available.
    fn samples(of: &[(u64, u64, bool)]) -> Vec<Sample> {
        let sample = |(number, (waiting, delivered, available)): (usize, &(u64, u64, bool))| Sample {
            uptime_ms: number as u64 * 5000,
            available: Some(*available),
            waiting: Some(*waiting),
            delivered: *delivered,
            ..Sample::default()
        };
        of.iter().enumerate().map(sample).collect()
    }

    /// A sample of the server's state, `changed` seconds after its last change.
    fn at(second: u64, waiting: u64, available: bool, changed: u64) -> Sample {
        Sample {
            at_ms: second as i64 * 1000,
            uptime_ms: second * 1000,
            available: Some(available),
            since_ms: (second as i64 - changed as i64) * 1000,
            waiting: Some(waiting),
            ..Sample::default()
        }
    }

    #[test]
    fn memory_is_bounded_and_the_newest_stay() {
        let history = History::default();
        let full = vec![Sample::default(); 10 * COARSE_MAX];
        history.restore(Past { fine: Vec::new(), coarse: full });
        for second in (0..3 * 24 * 3600).step_by(5) {
            history.note(at(second, second, true, second));
        }
        let past = history.past(at(3 * 24 * 3600, 0, true, 0));
        assert_eq!((past.fine.len(), past.coarse.len()), (FINE_MAX + 1, COARSE_MAX + 1));
        assert_eq!(history.recent().last().map(|last| last.uptime_ms), Some((3 * 24 * 3600 - 5) * 1000));
        assert_eq!(past.coarse[COARSE_MAX - 1].uptime_ms, (3 * 24 * 3600 - 5) * 1000);
        assert!(size_of::<Sample>() * (2 * FINE_MAX + COARSE_MAX) < 512 * 1024);
    }

    #[test]
    fn a_minute_keeps_its_peak_and_its_outage() {
        let history = History::default();
        for sample in [at(60, 0, true, 60), at(65, 70, false, 2), at(70, 40, false, 7), at(75, 3, true, 1)] {
            history.note(sample);
        }
        let past = history.past(at(80, 0, true, 6));
        let Past { fine, coarse } = past;
        assert_eq!(coarse.len(), 2, "one minute, and now");
        assert_eq!((coarse[0].waiting, coarse[0].at_ms, coarse[0].uptime_ms), (Some(70), 65_000, 75_000));
        assert_eq!(coarse[0].away, Away { from_ms: 63_000, for_ms: 11_000 }, "from 63 to 74 s");
        let away: u64 = fine.iter().map(|sample| sample.away.for_ms).sum();
        assert_eq!(away, coarse[0].away.for_ms, "both plots tell of the same outage");
    }

    #[test]
    fn an_outage_between_two_samples_is_seen() {
        let history = History::default();
        history.note(at(60, 0, true, 60));
        let (sample, _) = history.note(at(65, 0, true, 2));
        assert_eq!(sample.away, Away { from_ms: 60_000, for_ms: 3000 });
        let (sample, _) = history.note(at(70, 0, true, 7));
        assert_eq!(sample.away.for_ms, 0);
    }

    #[test]
    fn the_first_ping_is_not_the_end_of_an_outage() {
        let history = History::default();
        history.note(Sample { available: None, ..at(5, 0, true, 5) });
        let (sample, _) = history.note(at(10, 0, true, 1));
        assert_eq!(sample.away.for_ms, 0);
        let (sample, _) = History::default().note(at(3, 0, false, 1));
        assert_eq!(sample.away, Away { from_ms: 2000, for_ms: 1000 }, "unavailable from the first ping on");
    }

    #[test]
    fn samples_of_an_earlier_agent_are_plotted_and_not_counted() {
        let history = History::default();
        let earlier = Sample { uptime_ms: 900_000, delivered: 0, ..at(55, 90, true, 50) };
        history.restore(Past { fine: vec![earlier], coarse: vec![earlier] });
        history.note(at(58, 5, true, 1));
        let past = history.past(at(61, 4, true, 4));
        assert_eq!(past.fine.iter().map(|at| at.waiting).collect::<Vec<_>>(), [Some(90), Some(5), Some(4)]);
        assert_eq!(past.coarse[0].waiting, Some(90), "the minute of the restart has the peak from before it");
        assert_eq!(history.recent().len(), 1, "rates follow from the agent's own samples");
    }

    #[test]
    fn rates_cover_the_last_minute() {
        assert_eq!(rates(&[]), None);
        assert_eq!(rates(&[Sample::default()]), None, "one sample gives no rate");
        let counted = |seconds: u64, forwarded, stored, delivered| Sample {
            uptime_ms: seconds * 1000,
            forwarded,
            stored,
            delivered,
            ..Sample::default()
        };
        let found = rates(&[
            counted(0, 0, 0, 0),
            counted(40, 4000, 0, 0),
            counted(70, 4030, 60, 30),
            counted(100, 4060, 120, 90),
        ]);
        let found = found.expect("a minute was seen");
        assert_eq!(
            (found.window_seconds, found.in_per_second, found.forwarded_per_second, found.stored_per_second),
            (60.0, 3.0, 1.0, 2.0)
        );
        assert_eq!((found.delivered_per_second, found.out_per_second, found.rejected_per_second), (1.5, 2.5, 0.0));
    }

    #[test]
    fn the_drain_rate_covers_only_time_with_a_backlog_and_a_server() {
        for (name, of, expected) in [
            ("no sample", &[][..], None),
            ("nothing waits", &[(0, 0, true), (0, 0, true), (0, 0, true)][..], None),
            ("an outage does not count", &[(10, 0, false), (20, 0, false), (20, 0, false)][..], None),
            ("five seconds are too short", &[(100, 0, true), (50, 50, true)][..], None),
            ("ten seconds of work", &[(100, 0, false), (100, 0, true), (50, 50, true), (0, 100, true)][..], Some(10.0)),
            ("idle time does not count", &[(100, 0, true), (50, 50, true), (0, 100, true), (0, 100, true)], Some(10.0)),
            ("another process replays", &[(100, 0, true), (50, 0, true), (0, 0, true)], Some(10.0)),
            ("new messages do not count", &[(100, 0, true), (150, 50, true), (160, 100, true)], Some(10.0)),
            ("it had not begun", &[(100, 0, true), (100, 0, true), (50, 50, true), (10, 90, true)], Some(9.0)),
        ] {
            assert_eq!(drain_rate(&samples(of)).map(|rate| rate.per_second), expected, "{name}");
        }
    }

    #[test]
    fn arrivals_of_an_ended_outage_do_not_count() {
        let mut outage =
            samples(&[(0, 0, false), (4000, 0, false), (4000, 0, true), (3900, 100, true), (3850, 200, true)]);
        for (sample, stored) in outage.iter_mut().zip([0, 4000, 4000, 4000, 4050]) {
            sample.stored = stored;
        }
        let rate = drain_rate(&outage).expect("it was measured for ten seconds");
        assert_eq!((rate.per_second, rate.stored_per_second), (20.0, 5.0));
    }

    #[test]
    fn an_uneven_rate_is_less_certain_and_a_longer_measurement_more() {
        let spread = |left: &[u64]| {
            let mut delivered = 0;
            let mut of = vec![(1_000_000, 0, true)];
            for left in left {
                delivered += left;
                of.push((1_000_000 - delivered, delivered, true));
            }
            drain_rate(&samples(&of)).map_or(0.0, |rate| rate.spread)
        };
        assert_eq!(spread(&[500; 4]), SPREAD.0);
        assert_eq!(spread(&[50, 5000]), SPREAD.1);
        let short = spread(&[200, 800, 200, 800]);
        assert!(short > spread(&[200, 800, 200, 800, 200, 800, 200, 800]) && short < SPREAD.1, "{short}");
    }

    #[test]
    fn a_backlog_that_does_not_move_is_stalled() {
        assert!(is_stalled(&samples(&[(5, 0, true); 8])));
        assert!(!is_stalled(&samples(&[(5, 0, true); 3])), "ten seconds are too short");
        assert!(!is_stalled(&samples(&[(5, 0, false); 8])), "an unavailable server does not count as a stall");
        assert!(!is_stalled(&samples(&[(0, 0, true); 8])));
        let mut moving = [(5, 0, true); 8];
        moving[7] = (5, 1, true);
        assert!(!is_stalled(&samples(&moving)));
    }
}
