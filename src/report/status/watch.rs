//! `status --watch`: refreshes the status in place on a terminal.
//!
//! It uses no alternate screen and hides no cursor: a frame is one write that ends below itself, so that even a killed
//! process leaves a working terminal and the last frame. A frame is never higher than the terminal, and the rows of
//! lines that the terminal wraps are counted, so that moving up by their number leads back to its first line.

use std::io;

use super::StatusReport;
use super::screen;
use crate::figures::separated;
use crate::telemetry::history::Sample;
use crate::terminal::render::{OutputFormat, Renderer};
use crate::terminal::{FrameBegin, OutputStream, Shown, Terminal, terminal};

/// The maximum width of a sparkline in columns.
const SPARK_COLUMNS: usize = 60;
/// How many samples of our own are kept: a quarter of an hour, two seconds apart.
const SAMPLES_MAX: usize = 450;
const UNICODE: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const ASCII: [char; 8] = ['_', '.', ':', '-', '=', '+', '*', '#'];

/// The frame on the screen, and recent samples.
pub(crate) struct Watching {
    is_unicode: bool,
    is_utc: bool,
    before: Option<(usize, Terminal)>,
    is_first: bool,
    /// Samples of our own, for when no agent answers.
    samples: Vec<Sample>,
}

impl Watching {
    /// Returns a watch that has shown nothing yet; without `is_unicode` it uses ASCII only.
    pub(crate) fn new(is_unicode: bool, is_utc: bool) -> Self {
        Self { is_unicode, is_utc, before: None, is_first: true, samples: Vec::new() }
    }

    /// Shows a report.
    ///
    /// # Errors
    ///
    /// Errors of stdout.
    pub(crate) fn show(&mut self, renderer: &Renderer, report: &StatusReport) -> io::Result<()> {
        let is_first = std::mem::replace(&mut self.is_first, false);
        if renderer.format() != OutputFormat::Table {
            return renderer.result(report, |_, _| Shown::default());
        }
        if self.samples.len() == SAMPLES_MAX {
            self.samples.remove(0);
        }
        self.samples.push(report.sample);
        let history = if report.history.len() > 1 { &report.history } else { &self.samples };
        let terminal = terminal();
        let columns = terminal.map_or(80, |terminal| terminal.columns);
        let mut shown = screen::overview(renderer, report, self.is_utc);
        // Without `--watch` it is the error that the command ends with.
        if let Some(reason) = &report.store.reason {
            shown.end_line();
            shown.add_line(reason);
        }
        shown.end_line();
        shown.add_lines(&sparklines(history, columns, self.is_unicode));
        shown.add(&screen::stored(renderer, report));
        let frame = match terminal {
            // Not a terminal: append a block each time.
            None if is_first => shown,
            None => {
                let mut apart = Shown::default();
                apart.end_line();
                apart.add(&shown);
                apart
            }
            Some(terminal) => {
                let (shown, height) = shown.fitting(terminal);
                shown.as_frame(match self.before.replace((height, terminal)) {
                    Some((height, same)) if same == terminal => FrameBegin::Above(height),
                    // The terminal was resized and has moved its lines: begin anew.
                    Some(_) => FrameBegin::Cleared,
                    None => FrameBegin::Here,
                })
            }
        };
        OutputStream::Out.show(&frame)
    }
}

/// Returns the backlog, the incoming and the outgoing rate, one line each.
fn sparklines(history: &[Sample], columns: usize, is_unicode: bool) -> String {
    let width = columns.saturating_sub(45).clamp(10, SPARK_COLUMNS);
    let waiting: Vec<f64> = history.iter().map(|sample| sample.waiting.unwrap_or(0) as f64).collect();
    let per_second = |of: fn(&Sample, &Sample) -> u64| -> Vec<f64> {
        let rate = |pair: &[Sample]| {
            let seconds = pair[1].uptime_ms.saturating_sub(pair[0].uptime_ms) as f64 / 1000.0;
            if seconds > 0.0 { of(&pair[0], &pair[1]) as f64 / seconds } else { 0.0 }
        };
        history.windows(2).map(rate).collect()
    };
    let came = |before: &Sample, after: &Sample| {
        let counted = (after.forwarded + after.stored).saturating_sub(before.forwarded + before.stored);
        counted.max(after.waiting.unwrap_or(0).saturating_sub(before.waiting.unwrap_or(0)))
    };
    let went = |before: &Sample, after: &Sample| {
        let count = |sample: &Sample| sample.delivered + sample.rejected;
        let forwarded = after.forwarded.saturating_sub(before.forwarded);
        forwarded
            + count(after)
                .saturating_sub(count(before))
                .max(before.waiting.unwrap_or(0).saturating_sub(after.waiting.unwrap_or(0)))
    };
    let seconds = history.last().zip(history.first());
    let seconds = seconds.map_or(0, |(last, first)| last.uptime_ms.saturating_sub(first.uptime_ms) / 1000);
    let span = crate::delivery::eta::in_words(seconds as f64);
    let line = |name: &str, values: &[f64], unit: &str, note: &str| {
        let most = values.iter().copied().fold(0.0, f64::max);
        // Messages are whole.
        let most = if unit.is_empty() { separated(most as u64) } else { screen::rate(most) };
        let drawn = spark(values, width, is_unicode);
        format!("{name:<12} {drawn:<width$}  at most {most}{unit}{note}\n")
    };
    line("backlog", &waiting, "", &format!(" in {span}"))
        + &line("in", &per_second(came), "/s", "")
        + &line("out", &per_second(went), "/s", "")
}

/// Draws values in at most `width` characters, the newest last, relative to the maximum. Values that share a character
/// show their maximum.
fn spark(values: &[f64], width: usize, is_unicode: bool) -> String {
    let levels = if is_unicode { UNICODE } else { ASCII };
    let each = values.len().div_ceil(width.max(1)).max(1);
    // Groups are counted from the end, so that the newest value keeps its place.
    let groups = values.rchunks(each).map(|group| group.iter().copied().fold(0.0, f64::max));
    let mut drawn: Vec<f64> = groups.collect();
    drawn.reverse();
    let top = drawn.iter().copied().fold(0.0, f64::max);
    let level = |value: f64| match value {
        value if value <= 0.0 || top <= 0.0 => levels[0],
        // A small value must differ from zero.
        value => levels[((value / top * 7.0).round() as usize).clamp(1, 7)],
    };
    drawn.into_iter().map(level).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sparkline_shows_the_shape_and_the_peaks() {
        assert_eq!(spark(&[0.0, 1.0, 2.0, 4.0, 8.0], 60, true), "▁▂▃▅█");
        assert_eq!(spark(&[0.0, 0.001, 8.0], 60, false), "_.#", "a small value looks like zero");
        assert_eq!(spark(&[0.0; 3], 60, true), "▁▁▁");
        assert_eq!(spark(&[], 60, true), "");
        let long: Vec<f64> = (0..180).map(|n| if n == 90 { 100.0 } else { 0.0 }).collect();
        let drawn = spark(&long, 60, true);
        assert_eq!((drawn.chars().count(), drawn.matches('█').count()), (60, 1), "a peak is lost: {drawn}");
    }

    #[test]
    fn a_frame_is_never_higher_than_the_terminal() {
        let shown = Shown::lines("a\nb\nc\nd\n");
        let of = |rows| Terminal { columns: 80, rows };
        assert_eq!(shown.fitting(of(5)), (shown.clone(), 4));
        assert_eq!(shown.fitting(of(4)), (Shown::lines("a\nb\n(2 more lines)\n"), 3));
        assert_eq!(shown.fitting(of(1)).1, 2);
    }

    #[test]
    fn a_command_longer_than_a_line_stays_whole_and_its_rows_are_counted() {
        let command = format!("`opik-offline replay --db /{}`", "x".repeat(100));
        let mut shown = Shown::line("first");
        shown.add_styled(Some(crate::terminal::Style::Red), &command);
        shown.end_line();
        let (fitting, height) = shown.fitting(Terminal { columns: 80, rows: 24 });
        assert_eq!((fitting.as_str(), height), (shown.as_str(), 3), "its colour takes no cells");
        assert_eq!(shown.fitting(Terminal { columns: command.len(), rows: 24 }).1, 2, "it just fits");
        let (fitting, height) = shown.fitting(Terminal { columns: 80, rows: 3 });
        assert_eq!((fitting.as_str(), height), ("first\n(1 more line)\n", 2), "nothing is cut within a line");
        let frame = shown.as_frame(FrameBegin::Above(3));
        assert!(!frame.as_str().contains("?7l"), "without wrapping, its end would be drawn over its middle");
        assert!(frame.as_str().starts_with("\u{1b}[3A\r\u{1b}[J"), "{frame:?}");
    }

    #[test]
    fn rates_also_follow_from_the_backlog_alone() {
        let at =
            |seconds: u64, waiting| Sample { uptime_ms: seconds * 1000, waiting: Some(waiting), ..Sample::default() };
        let drawn = sparklines(&[at(0, 0), at(2, 100), at(4, 60)], 80, false);
        assert!(drawn.contains("at most 100 in 4s\n"), "{drawn}");
        assert!(sparklines(&[at(0, 8)], 80, false).contains("at most 8 in 0s\n"), "messages are whole");
        assert!(drawn.contains("at most 50/s\n") && drawn.contains("at most 20/s\n"), "{drawn}");
    }
}
