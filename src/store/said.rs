//! Deduplicates log lines about a store's problems: each is logged once per outage, regardless of the number of
//! retries.
//!
//! No clock and no I/O: time is an argument, and the caller logs.

use std::time::{Duration, Instant};

/// Interval after which the same problem is logged again.
const SAY_AGAIN_AFTER: Duration = Duration::from_secs(600);
/// A store that worked for this long starts a new outage: everything is logged again.
const WORKED_FOR: Duration = Duration::from_secs(60);
/// Maximum number of remembered problems.
const TROUBLES_MAX: usize = 16;

/// The problems that were logged.
#[derive(Debug, Default)]
pub(super) struct Said {
    troubles: Vec<(String, Instant)>,
    works_since: Option<Instant>,
}

impl Said {
    /// Records a problem; returns whether to log it. Different figures in its text don't make it a different problem.
    pub(super) fn is_new(&mut self, words: &str, now: Instant) -> bool {
        if self.works_since.take().is_some_and(|since| now.saturating_duration_since(since) >= WORKED_FOR) {
            self.troubles.clear();
        }
        self.troubles.retain(|(_, at)| now.saturating_duration_since(*at) < SAY_AGAIN_AFTER);
        let words: String = words.chars().filter(|letter| !letter.is_ascii_digit()).collect();
        if self.troubles.iter().any(|(said, _)| *said == words) {
            return false;
        }
        if self.troubles.len() >= TROUBLES_MAX {
            self.troubles.remove(0);
        }
        self.troubles.push((words, now));
        true
    }

    /// Records that the store works.
    pub(super) fn works(&mut self, now: Instant) {
        self.works_since = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_trouble_is_said_once_for_an_outage() {
        enum Seen {
            Trouble(&'static str),
            Works,
        }
        use Seen::{Trouble, Works};
        let start = Instant::now();
        for (name, steps, said) in [
            ("one", &[(0, Trouble("a")), (3, Trouble("a")), (6, Trouble("a"))][..], vec![0]),
            ("another reason", &[(0, Trouble("a")), (3, Trouble("b")), (6, Trouble("a"))], vec![0, 3]),
            ("other figures", &[(0, Trouble("12 bytes")), (3, Trouble("7 bytes"))], vec![0]),
            (
                "it comes and goes",
                &[(0, Trouble("a")), (3, Works), (4, Trouble("a")), (7, Works), (8, Trouble("a"))],
                vec![0],
            ),
            ("it worked for a while", &[(0, Trouble("a")), (3, Works), (70, Trouble("a"))], vec![0, 70]),
            ("it lasts", &[(0, Trouble("a")), (300, Trouble("a")), (601, Trouble("a"))], vec![0, 601]),
        ] {
            let mut state = Said::default();
            let mut found = Vec::new();
            for (second, seen) in steps {
                let now = start + Duration::from_secs(*second);
                match seen {
                    Trouble(words) if state.is_new(words, now) => found.push(*second),
                    Trouble(_) => {}
                    Works => state.works(now),
                }
            }
            assert_eq!(found, said, "{name}");
        }
        let mut state = Said::default();
        assert!(
            (0..1000).all(|n| state.is_new(&"x".repeat(n), start)) && state.troubles.len() <= TROUBLES_MAX,
            "the memory of it is unbounded"
        );
    }
}
