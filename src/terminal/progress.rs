//! Progress and notes on stderr; no bar unless stderr is a terminal, and nothing with `--quiet`.

use std::fmt;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

use super::render::hanging;
use super::{OutputStream, Shown};
use crate::figures::{separated, time_range};
use crate::{hint, printable};

/// Shows progress and notes to the user.
pub(crate) struct ProgressDisplay {
    quiet: bool,
    bar: Option<ProgressBar>,
}

impl ProgressDisplay {
    /// Returns a display without a bar.
    pub(crate) fn new(quiet: bool) -> Self {
        Self { quiet, bar: None }
    }

    /// Shows a bar for this many messages, on a terminal.
    pub(crate) fn start(&mut self, messages: u64) {
        if self.quiet || !OutputStream::Err.is_terminal() {
            return;
        }
        let bar = ProgressBar::new(messages);
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} messages  {pace}");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style.with_key("pace", |state: &ProgressState, text: &mut dyn fmt::Write| {
            // A bar that can't be drawn is not worth an error.
            let left = state.len().unwrap_or(0).saturating_sub(state.pos());
            let _ = text.write_str(&pace(state.pos(), left, state.per_sec(), state.elapsed()));
        }));
        bar.enable_steady_tick(Duration::from_millis(200));
        self.bar = Some(bar);
    }

    /// Updates the bar.
    pub(crate) fn at(&self, done: u64, total: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(total.max(done));
            bar.set_position(done);
        }
    }

    /// Removes the bar.
    pub(crate) fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// Prints a line, unless quiet.
    pub(crate) fn note(&self, text: &str) {
        self.note_shown(&hanging_line(text));
    }

    /// Prints several lines, unless quiet.
    pub(crate) fn note_shown(&self, shown: &Shown) {
        if self.quiet {
            return;
        }
        match &self.bar {
            Some(bar) => bar.suspend(|| show(shown)),
            None => show(shown),
        }
    }
}

/// Prints a line to stderr.
pub(crate) fn say(text: &str) {
    show(&hanging_line(text));
}

/// Prints an error to stderr: a line for what failed, and one for what to do.
pub(crate) fn say_error(message: &str, hint: Option<&str>) {
    let mut shown = hanging_line(&format!("error: {message}"));
    if let Some(hint) = hint {
        shown.add(&hanging_line(&format!("hint: {}", hint::completed(hint))));
    }
    show(&shown);
}

/// Prints a panic to stderr, escaped: its message may quote text from elsewhere.
pub(crate) fn say_panic(panic: &std::panic::PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let place = panic.location().map_or(String::new(), |place| format!(" at {place}"));
    let payload = panic.payload();
    let words =
        payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let words = words.unwrap_or("without a message");
    let mut shown = panic_line(thread.name().unwrap_or("unnamed"), &place, words);
    let backtrace = std::backtrace::Backtrace::capture();
    if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
        shown.add_lines(&backtrace.to_string());
    }
    show(&shown);
}

fn panic_line(thread: &str, place: &str, words: &str) -> Shown {
    Shown::line(&format!("thread '{thread}' panicked{place}: {words}"))
}

/// Ignores errors: if stderr is closed there is nothing left to report to, and `eprintln!` would panic.
fn show(shown: &Shown) {
    let _ = OutputStream::Err.show(shown);
}

fn hanging_line(text: &str) -> Shown {
    Shown::lines(&(hanging(&printable::line(text), OutputStream::Err.columns(), "hint: ".len()) + "\n"))
}

/// The remaining time is not shown before this: a replay that has just begun is still speeding up.
const MEASURED_AFTER: Duration = Duration::from_secs(5);
/// The throughput may be lower or higher by this share.
const SPREAD: f64 = 0.15;

/// Returns the rate, and the remaining time once the rate is known; empty before the first message. The time is a range
/// between the present rate and the mean rate.
fn pace(done: u64, left: u64, per_second: f64, elapsed: Duration) -> String {
    let rate = match done {
        0 => return String::new(),
        _ if per_second < 1.0 => format!("{:.0} a minute", per_second * 60.0),
        _ => format!("{} a second", separated(per_second.round() as u64)),
    };
    let mean = done as f64 / elapsed.as_secs_f64().max(0.001);
    let (slow, fast) = (mean.min(per_second) * (1.0 - SPREAD), mean.max(per_second) * (1.0 + SPREAD));
    if elapsed < MEASURED_AFTER || left == 0 || fast <= 0.0 {
        return rate;
    }
    let max = (slow > 0.0).then(|| left as f64 / slow);
    format!("{rate}  {} left", time_range(left as f64 / fast, max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_of_a_panic_is_escaped() {
        let words = "byte index 1 is not a char boundary of `\u{1b}]0;x\u{7}\u{202e}\nforged`";
        assert_eq!(
            panic_line("replay", " at src/x.rs:1:2", words).as_str(),
            "thread 'replay' panicked at src/x.rs:1:2: byte index 1 is not a char boundary of \
             `\\u{1b}]0;x\\u{7}\\u{202e}\\nforged`\n"
        );
    }

    #[test]
    fn a_bar_shows_a_rate_from_the_first_message_and_a_time_once_the_rate_is_known() {
        let seconds = Duration::from_secs;
        assert_eq!(pace(0, 100, 0.0, seconds(60)), "");
        assert_eq!(pace(100, 20_000, 1234.5, seconds(2)), "1,235 a second");
        assert_eq!(pace(1000, 20_000, 100.0, seconds(10)), "100 a second  2m50s to 4m left");
        assert_eq!(pace(500, 20_000, 100.0, seconds(10)), "100 a second  2m50s to 8m left");
        assert_eq!(pace(10, 90, 0.5, seconds(20)), "30 a minute  2m30s to 4m left");
        assert_eq!(pace(10, 0, 1.0, seconds(10)), "1 a second");
        assert_eq!(pace(10, 90, 0.0, seconds(10)), "0 a minute  at least 1m10s left");
    }
}
