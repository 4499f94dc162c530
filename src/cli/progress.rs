//! Progress and notes on stderr; silent when it is no terminal, or when the user wants quiet.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

use super::render::{columns, hanging, short_duration};

/// Says what goes on to whoever watches.
pub struct Progress {
    quiet: bool,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Returns progress without a bar.
    pub fn new(quiet: bool) -> Self {
        Self { quiet, bar: None }
    }

    /// Shows a bar over this many messages, on a terminal.
    pub fn start(&mut self, messages: u64) {
        if self.quiet || !io::stderr().is_terminal() {
            return;
        }
        let bar = ProgressBar::new(messages);
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} messages  {pace}");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style.with_key("pace", |state: &ProgressState, text: &mut dyn fmt::Write| {
            // A text of a bar that can't be written is not worth an error.
            let _ = text.write_str(&pace(state.pos(), state.per_sec(), state.eta()));
        }));
        bar.enable_steady_tick(Duration::from_millis(200));
        self.bar = Some(bar);
    }

    /// Moves the bar.
    pub fn at(&self, done: u64, total: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(total.max(done));
            bar.set_position(done);
        }
    }

    /// Takes the bar away.
    pub fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// Says something, unless quiet.
    pub fn note(&self, text: &str) {
        if self.quiet {
            return;
        }
        match &self.bar {
            Some(bar) => bar.suspend(|| say(text)),
            None => say(text),
        }
    }
}

/// Writes a line to stderr. Where nobody reads it any more nobody can be told, and `eprintln!` would panic.
pub fn say(text: &str) {
    let text = hanging(text, columns(io::stderr()), "hint: ".len());
    let _ = writeln!(io::stderr(), "{text}");
}

/// Returns the rate and the time to go; nothing before the first message, when nobody can know.
fn pace(done: u64, per_second: f64, eta: Duration) -> String {
    match done {
        0 => String::new(),
        _ if per_second < 1.0 => format!("{:.0} a minute  ETA {}", per_second * 60.0, short_duration(eta)),
        _ => format!("{per_second:.0} a second  ETA {}", short_duration(eta)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_tells_no_time_before_it_can_know_one() {
        assert_eq!(pace(0, 0.0, Duration::ZERO), "");
        assert_eq!(pace(1, 0.5, Duration::from_secs(90)), "30 a minute  ETA 1m30s");
        assert_eq!(pace(100, 1234.5, Duration::from_secs(2)), "1234 a second  ETA 2s");
    }
}
