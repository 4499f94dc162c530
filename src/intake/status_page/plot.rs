//! Plots of the backlog, drawn by the agent: inline SVG that shows without JavaScript.
//!
//! A drawing is stretched to the available width, so it contains only shapes; text is placed beside it. Both plots are
//! drawn from the same snapshot, over spans that fit what is known: a minute of the long one has the peak and the
//! outages of its samples ([`crate::telemetry::history`]).

use std::fmt::Write;
use std::time::Duration;

use super::text::{axis_number, clock, escaped, moment, number};
use crate::delivery::eta::in_words;
use crate::overview::Overview;
use crate::telemetry::history::{COARSE_INTERVAL, FINE_INTERVAL, Sample};

/// The width of the drawing in units; of the samples in one unit, the peak is drawn.
const WIDTH: i64 = 600;
const HEIGHT: f64 = 100.0;
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
/// Spans of the plots, with the words for them.
const SHORT: [(Duration, &str); 2] =
    [(MINUTE.saturating_mul(5), "Last 5 minutes"), (MINUTE.saturating_mul(15), "Last 15 minutes")];
const LONG: [(Duration, &str); 5] = [
    (HOUR, "Last hour"),
    (HOUR.saturating_mul(3), "Last 3 hours"),
    (HOUR.saturating_mul(6), "Last 6 hours"),
    (HOUR.saturating_mul(12), "Last 12 hours"),
    (HOUR.saturating_mul(24), "Last 24 hours"),
];

/// Returns the section with the plots that show anything.
pub(super) fn plots(overview: &Overview) -> String {
    let (past, now_ms) = (&overview.page.past, overview.at_ms);
    let recent = Plot { id: "recent", samples: &past.fine, interval: FINE_INTERVAL, now_ms };
    let day = Plot { id: "day", samples: &past.coarse, interval: COARSE_INTERVAL, now_ms };
    // A second one would only repeat the short one.
    let is_longer = past.coarse.first().is_some_and(|first| first.at_ms < now_ms - millis(SHORT[1].0));
    let day = day.fitted(&LONG).filter(|view| is_longer && view.shows_anything());
    let recent = recent.fitted(&SHORT).filter(PlotWindow::shows_anything);
    let oldest = past.fine.iter().chain(&past.coarse).map(|sample| sample.at_ms).min();
    let calm = match (&recent, &day, oldest) {
        (None, None, None) => "Nothing was measured yet.".to_owned(),
        (None, None, Some(oldest)) => {
            format!("Nothing has waited, and the Opik server was always there, since {} UTC.", moment(oldest))
        }
        (None, Some(_), _) => "Nothing waited in the last minutes.".to_owned(),
        (Some(_), _, _) => String::new(),
    };
    let calm = if calm.is_empty() { calm } else { format!(r#"<p class="note">{calm}</p>"#) };
    let drawn: String = [recent, day].into_iter().flatten().map(|view| view.render()).collect();
    let drawn = if drawn.is_empty() { drawn } else { format!(r#"<div class="plots">{drawn}</div>"#) };
    format!(r#"<section aria-labelledby="h-plots"><h2 id="h-plots">Messages waiting</h2>{drawn}{calm}</section>"#)
}

/// Samples to be plotted.
struct Plot<'a> {
    /// The prefix of the ids of its elements.
    id: &'a str,
    /// The oldest first.
    samples: &'a [Sample],
    /// The time between two samples; a longer pause is a gap.
    interval: Duration,
    now_ms: i64,
}

impl<'a> Plot<'a> {
    /// Returns the part in the shortest span that has all samples, or in the longest; `None` without samples.
    fn fitted(self, spans: &[(Duration, &'a str)]) -> Option<PlotWindow<'a>> {
        let oldest = self.samples.iter().map(|sample| sample.at_ms).min()?;
        let (span, title) =
            spans.iter().find(|(span, _)| self.now_ms - millis(*span) <= oldest).or_else(|| spans.last()).copied()?;
        let begin = self.now_ms - millis(span);
        let samples = self.samples.iter().filter(|sample| sample.at_ms >= begin).collect();
        Some(PlotWindow { id: self.id, title, samples, interval: self.interval, begin, span })
    }
}

/// Samples within a span.
struct PlotWindow<'a> {
    id: &'a str,
    title: &'a str,
    samples: Vec<&'a Sample>,
    interval: Duration,
    begin: i64,
    span: Duration,
}

impl PlotWindow<'_> {
    fn shows_anything(&self) -> bool {
        let is_seen = |sample: &&Sample| sample.waiting.is_none_or(|waiting| waiting > 0) || sample.away.for_ms > 0;
        self.samples.iter().any(is_seen)
    }

    fn x(&self, at_ms: i64) -> i64 {
        ((at_ms - self.begin) * WIDTH / millis(self.span).max(1)).clamp(0, WIDTH)
    }

    /// Returns the figure as HTML.
    fn render(&self) -> String {
        let waiting = self.samples.iter().filter_map(|sample| Some((sample.waiting?, sample.at_ms)));
        let peak = waiting.max_by_key(|(most, _)| *most);
        let top = ceiling(peak.map_or(0, |(most, _)| most));
        let y = |waiting: u64| HEIGHT - HEIGHT * waiting as f64 / top as f64;

        let outages = self.outages();
        let mut away = String::new();
        for (from, to) in &outages {
            let (left, right) = (self.x(*from), self.x(*to).max(self.x(*from) + 1));
            let _ = write!(away, r#"<rect class="away" x="{left}" y="0" width="{}" height="{HEIGHT}"/>"#, right - left);
        }
        let mut lines = String::new();
        for run in self.runs() {
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
        let (most, away_said) = (most(peak), self.away_said());
        let (id, title) = (escaped(self.id), escaped(self.title));
        let away_note = match away_said.as_str() {
            "" => String::new(),
            said => format!(r#"<br><span class="key" aria-hidden="true"></span>{said}"#),
        };
        format!(
            r#"<figure><figcaption>{title}</figcaption><div class="plot"><div class="y" aria-hidden="true"><span>{}</span><span>{}</span><span>0</span></div><svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" aria-labelledby="{id}-title {id}-desc"><title id="{id}-title">Messages waiting, {}</title><desc id="{id}-desc">{most} {away_said}</desc><path class="grid" d="M0 0H{WIDTH}M0 50H{WIDTH}"/>{away}{lines}<path class="base" d="M0 {HEIGHT}H{WIDTH}"/></svg><div class="x" aria-hidden="true"><span>{} UTC</span><span>now</span></div></div><p class="note">{most}{away_note}</p></figure>"#,
            axis_number(top),
            axis_number(top / 2),
            title.to_lowercase(),
            clock_to_minutes(self.begin),
        )
    }

    /// Returns the start and end of each outage.
    fn outages(&self) -> Vec<(i64, i64)> {
        /// Samples are not taken at the same millisecond of each interval.
        const JOINED_MS: i64 = 1000;
        let mut found: Vec<(i64, i64)> = Vec::new();
        for away in self.samples.iter().map(|sample| sample.away).filter(|away| away.for_ms > 0) {
            let (from, to) = (away.from_ms.max(self.begin), away.from_ms.saturating_add_unsigned(away.for_ms));
            match found.last_mut().filter(|(_, end)| (end.saturating_sub(JOINED_MS)..=*end + JOINED_MS).contains(&from))
            {
                Some((_, end)) => *end = to.max(*end),
                None => found.push((from, to)),
            }
        }
        found
    }

    /// Returns how long the server was away, and that nobody looked for a while.
    fn away_said(&self) -> String {
        let away = self.samples.iter().map(|sample| {
            let before = self.begin.saturating_sub(sample.away.from_ms).max(0).unsigned_abs();
            sample.away.for_ms.saturating_sub(before)
        });
        let mut said = match away.sum::<u64>() {
            0 => String::new(),
            1..1000 => "The server was away for less than a second.".to_owned(),
            away => format!("The server was away for {}.", in_words(away as f64 / 1000.0)),
        };
        let gap = |pair: &[&Sample]| pair[1].at_ms - pair[0].at_ms;
        let gaps = self.samples.windows(2).map(gap).filter(|gap| *gap > 3 * millis(self.interval));
        let unmeasured = gaps.fold(0, i64::saturating_add);
        if unmeasured > 0 {
            said.push_str(&format!(" No agent measured for {}.", in_words(unmeasured as f64 / 1000.0)));
        }
        said.trim_start().to_owned()
    }

    /// Returns the backlog by unit of the drawing, in runs; a run ends at a gap.
    fn runs(&self) -> Vec<Vec<(i64, u64)>> {
        let mut runs: Vec<Vec<(i64, u64)>> = Vec::new();
        let mut before: Option<i64> = None;
        for sample in &self.samples {
            let Some(waiting) = sample.waiting else {
                before = None;
                continue;
            };
            let continues =
                before.is_some_and(|before| (0..=3 * millis(self.interval)).contains(&(sample.at_ms - before)));
            before = Some(sample.at_ms);
            let at = self.x(sample.at_ms);
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

/// Returns the time of day without seconds.
fn clock_to_minutes(ms: i64) -> String {
    clock(ms).chars().take(5).collect()
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Returns the top of the axis: the smallest of 2, 4, 6, 8, 10, 20, 30, 40, 50, 60, 80, 100, 200 ... that is not below
/// `most`. Half of it is a readable number.
fn ceiling(most: u64) -> u64 {
    let mut decade: u64 = 1;
    loop {
        for step in [2, 3, 4, 5, 6, 8, 10] {
            let top = decade.saturating_mul(step);
            if top >= most && (top.is_multiple_of(2) || top == u64::MAX) {
                return top;
            }
        }
        decade = decade.saturating_mul(10);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::history::Away;

    const SPANS: [(Duration, &str); 2] = [(Duration::from_secs(300), "Last five"), (Duration::from_secs(900), "Last")];

    fn plot(samples: &[Sample]) -> String {
        let plot = Plot { id: "p", samples, interval: Duration::from_secs(5), now_ms: 900_000 };
        plot.fitted(&SPANS).map_or(String::new(), |seen| seen.render())
    }

    fn at(seconds: i64, waiting: Option<u64>, available: bool) -> Sample {
        let at_ms = seconds * 1000;
        let away = Away { from_ms: at_ms - 5000, for_ms: if available { 0 } else { 5000 } };
        Sample { at_ms, waiting, available: Some(available), away, ..Sample::default() }
    }

    #[test]
    fn the_axis_ends_at_a_readable_number() {
        let tops = [0, 1, 3, 5, 7, 9, 11, 21, 43_200, 60, 61, 1_000_001].map(ceiling);
        assert_eq!(tops, [2, 2, 4, 6, 8, 10, 20, 30, 50_000, 60, 80, 2_000_000]);
        assert!(ceiling(u64::MAX) == u64::MAX);
    }

    #[test]
    fn nothing_and_one_sample_can_be_drawn() {
        assert_eq!(plot(&[]), "");
        let one = plot(&[at(450, Some(5), true)]);
        assert!(one.contains(r#"d="M300 16.7h0""#), "{one}");
        assert!(one.contains("At most 5 waited, at 00:07:30 UTC."), "{one}");
    }

    #[test]
    fn the_time_axis_fits_the_samples() {
        assert!(plot(&[at(700, Some(5), true)]).contains("Last five"), "five minutes are enough");
        assert!(plot(&[at(599, Some(5), true)]).contains("<figcaption>Last</figcaption>"));
        assert!(plot(&[at(-100, Some(5), true), at(800, Some(4), true)]).contains("At most 4 waited"));
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
        assert!(drawn.contains("The server was away for 10s. No agent measured for 4m40s."), "{drawn}");
    }

    #[test]
    fn an_outage_that_began_before_the_plot_is_cut() {
        let drawn = plot(&[at(2, Some(0), false), at(600, Some(1), true)]);
        assert!(drawn.contains("The server was away for 2s."), "{drawn}");
    }

    #[test]
    fn a_clock_that_is_set_back_breaks_nothing() {
        let drawn = plot(&[at(800, Some(1), true), at(100, Some(1), false), at(2000, Some(1), true)]);
        assert!(drawn.contains("At most 1 waited"), "{drawn}");
    }
}
