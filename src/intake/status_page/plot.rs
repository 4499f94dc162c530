//! A plot of the backlog, drawn by the agent: an inline SVG that shows without JavaScript.
//!
//! The drawing is stretched to the available width, so it contains only shapes; text is placed beside it.

use std::fmt::Write;
use std::time::Duration;

use super::text::{clock, escaped, number};
use crate::delivery::eta::in_words;
use crate::telemetry::history::Sample;

/// The width of the drawing in units; of the samples in one unit, the peak is drawn.
const WIDTH: i64 = 600;
const HEIGHT: f64 = 100.0;

/// Samples, and the time span over which they are plotted.
pub(super) struct Plot<'a> {
    /// The prefix of the ids of its elements.
    pub(super) id: &'a str,
    pub(super) title: &'a str,
    /// The label at the left end of the time axis.
    pub(super) begin: &'a str,
    pub(super) span: Duration,
    /// The time between two samples; a longer pause is a gap.
    pub(super) interval: Duration,
    pub(super) samples: &'a [Sample],
    pub(super) now_ms: i64,
}

impl Plot<'_> {
    /// Returns the figure as HTML.
    pub(super) fn render(&self) -> String {
        let span = millis(self.span);
        let begin = self.now_ms - span;
        let seen: Vec<&Sample> = self.samples.iter().filter(|sample| sample.at_ms >= begin).collect();
        let peak = seen.iter().filter_map(|sample| Some((sample.waiting?, sample.at_ms))).max_by_key(|(most, _)| *most);
        let top = ceiling(peak.map_or(0, |(most, _)| most));
        let x = |at_ms: i64| ((at_ms - begin) * WIDTH / span).clamp(0, WIDTH);
        let y = |waiting: u64| HEIGHT - HEIGHT * waiting as f64 / top as f64;

        let mut away = String::new();
        let mut away_for = 0;
        for (from, to) in self.outages(&seen) {
            let (left, right) = (x(from), x(to).max(x(from) + 1));
            away_for += to - from;
            let _ = write!(away, r#"<rect class="away" x="{left}" y="0" width="{}" height="{HEIGHT}"/>"#, right - left);
        }
        let mut lines = String::new();
        for run in self.runs(&seen, x) {
            let points: Vec<String> = run.iter().map(|(x, waiting)| format!("{x} {:.1}", y(*waiting))).collect();
            let (Some((first, _)), Some((last, _))) = (run.first(), run.last()) else { continue };
            let path = points.join("L");
            let _ = write!(
                lines,
                r#"<path class="area" d="M{first} {HEIGHT}L{path}L{last} {HEIGHT}Z"/><path class="line" d="M{path}{}"/>"#,
                // A single point is a line of length zero, which its round caps turn into a dot.
                if run.len() == 1 { "h0" } else { "" },
            );
        }
        let most = most(peak);
        let away_said = match away_for {
            0 => String::new(),
            away_for => format!("The server was away for {}.", in_words(away_for as f64 / 1000.0)),
        };
        let (id, title) = (escaped(self.id), escaped(self.title));
        let away_note = match away_said.as_str() {
            "" => String::new(),
            said => format!(r#"<br><span class="key" aria-hidden="true"></span>{said}"#),
        };
        format!(
            r#"<figure><figcaption>{title}</figcaption><div class="plot"><div class="y" aria-hidden="true"><span>{}</span><span>{}</span><span>0</span></div><svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" aria-labelledby="{id}-title {id}-desc"><title id="{id}-title">Messages waiting, {}</title><desc id="{id}-desc">{most} {away_said}</desc><path class="grid" d="M0 0H{WIDTH}M0 50H{WIDTH}"/>{away}{lines}<path class="base" d="M0 {HEIGHT}H{WIDTH}"/></svg><div class="x" aria-hidden="true"><span>{}</span><span>now</span></div></div><p class="note">{most}{away_note}</p></figure>"#,
            number(top),
            half(top),
            title.to_lowercase(),
            escaped(self.begin),
        )
    }

    /// Returns the start and end of each outage.
    fn outages(&self, seen: &[&Sample]) -> Vec<(i64, i64)> {
        let mut found: Vec<(i64, i64)> = Vec::new();
        for (number, sample) in seen.iter().enumerate().filter(|(_, sample)| sample.available == Some(false)) {
            // It lasted until the next sample at the latest.
            let next = seen.get(number + 1).map_or(self.now_ms, |next| next.at_ms);
            let to = next.min(sample.at_ms + 3 * millis(self.interval)).max(sample.at_ms);
            match found.last_mut().filter(|(_, end)| *end >= sample.at_ms) {
                Some((_, end)) => *end = to,
                None => found.push((sample.at_ms, to)),
            }
        }
        found
    }

    /// Returns the backlog by unit of the drawing, in runs; a run ends at a gap.
    fn runs(&self, seen: &[&Sample], x: impl Fn(i64) -> i64) -> Vec<Vec<(i64, u64)>> {
        let mut runs: Vec<Vec<(i64, u64)>> = Vec::new();
        let mut before: Option<i64> = None;
        for sample in seen {
            let Some(waiting) = sample.waiting else {
                before = None;
                continue;
            };
            let continues =
                before.is_some_and(|before| (0..=3 * millis(self.interval)).contains(&(sample.at_ms - before)));
            before = Some(sample.at_ms);
            let at = x(sample.at_ms);
            match runs.last_mut().filter(|_| continues) {
                None => runs.push(vec![(at, waiting)]),
                Some(run) => match run.last_mut().filter(|(last, _)| *last == at) {
                    Some((_, most)) => *most = (*most).max(waiting),
                    None => run.push((at, waiting)),
                },
            }
        }
        runs
    }
}

/// Returns the drawing in words, for people who can't see it.
fn most(peak: Option<(u64, i64)>) -> String {
    match peak {
        None => "Nothing was measured yet.".to_owned(),
        Some((0, _)) => "Nothing waited.".to_owned(),
        Some((most, at_ms)) => format!("At most {} waited, at {} UTC.", number(most), clock(at_ms)),
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Returns the top of the axis: the smallest of 2, 4, 6, 10, 20, 40 ... that is not below `most`. Half of it is a
/// readable number.
fn ceiling(most: u64) -> u64 {
    let mut decade: u64 = 1;
    loop {
        for step in [2, 4, 6, 10] {
            let top = decade.saturating_mul(step);
            if top >= most {
                return top;
            }
        }
        decade = decade.saturating_mul(10);
    }
}

fn half(top: u64) -> String {
    number(top / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(samples: &[Sample]) -> String {
        let (span, interval) = (Duration::from_secs(900), Duration::from_secs(5));
        Plot { id: "p", title: "Last", begin: "then", span, interval, samples, now_ms: 900_000 }.render()
    }

    fn at(seconds: i64, waiting: Option<u64>, available: bool) -> Sample {
        Sample { at_ms: seconds * 1000, waiting, available: Some(available), ..Sample::default() }
    }

    #[test]
    fn the_axis_ends_at_a_readable_number() {
        let tops = [0, 1, 3, 5, 7, 10, 11, 60, 61, 1_000_001].map(ceiling);
        assert_eq!(tops, [2, 2, 4, 6, 10, 10, 20, 60, 100, 2_000_000]);
        assert!(ceiling(u64::MAX) == u64::MAX);
    }

    #[test]
    fn nothing_and_one_sample_can_be_drawn() {
        assert!(plot(&[]).contains("Nothing was measured yet."));
        let one = plot(&[at(450, Some(5), true)]);
        assert!(one.contains(r#"d="M300 16.7h0""#), "{one}");
        assert!(one.contains("At most 5 waited, at 00:07:30 UTC."), "{one}");
    }

    #[test]
    fn outages_are_shaded_and_gaps_interrupt_the_line() {
        let drawn = plot(&[
            at(0, Some(0), true),
            at(5, Some(10), false),
            at(10, Some(20), false),
            at(15, Some(0), true),
            at(20, None, true),
            at(300, Some(0), true),
            at(305, Some(0), true),
        ]);
        assert_eq!(drawn.matches(r#"class="away""#).count(), 1, "{drawn}");
        assert_eq!(drawn.matches(r#"class="line""#).count(), 2, "{drawn}");
        assert!(drawn.contains("The server was away for 10s."), "{drawn}");
    }

    #[test]
    fn a_clock_that_is_set_back_breaks_nothing() {
        let drawn = plot(&[at(800, Some(1), true), at(100, Some(1), false), at(2000, Some(1), true)]);
        assert!(drawn.contains("At most 1 waited"), "{drawn}");
    }
}
