//! The state of a full store: since when, why, how many writes were rejected, and the remedies.
//!
//! No clock and no I/O: time and capacity are arguments, and the caller logs the changes.
//!
//! ```text
//!            a write finds no room                 room for it, and nothing found none for QUIET
//!   taking ─────────────────────────▶ full ─────────────────────────────────────────────────────▶ taking
//! ```
//!
//! A store at its limit accepts a message whenever one was delivered, and rejects the next: without [`QUIET`], that
//! would be a state change, and a log line, every time.

use std::time::{Duration, Instant};

/// Time without a rejected write after which the state ends.
pub(crate) const QUIET: Duration = Duration::from_secs(5);
/// A store without capacity for a message of this size counts as full even before a write was rejected.
pub(crate) const USUAL_BYTES: u64 = 16 * 1024;

/// The limit that rejects messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FullLimit {
    /// The store's own size.
    MaxSize,
    /// The space that stays free on the disk.
    DiskReserve,
    /// The rest of the disk is needed to deliver the stored messages.
    Disk,
    /// Messages that the server refused hold more than their share, and can't be dropped.
    Rejected,
}

impl FullLimit {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::MaxSize, Self::DiskReserve, Self::Disk, Self::Rejected];

    /// Returns the machine-readable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::MaxSize => "max_size",
            Self::DiskReserve => "disk_reserve",
            Self::Disk => "disk",
            Self::Rejected => "rejected",
        }
    }
}

/// Why a store is full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fullness {
    /// Which limit.
    pub limit: FullLimit,
    /// The limit with its figures, for people.
    pub reason: String,
}

/// Returns the remedies for a full store, each with a command that can be pasted.
///
/// `options` is appended to every command: the option that names the store, if needed.
pub(crate) fn remedies(limit: FullLimit, waiting: u64, rejected: u64, options: &str) -> Vec<String> {
    let mut remedies = Vec::new();
    if limit == FullLimit::Rejected || rejected > 0 {
        remedies.push(format!(
            "look at what the server refused with `opik-offline inspect --status rejected{options}`, and delete it with \
             `opik-offline purge --status rejected{options}`"
        ));
    }
    if waiting > 0 {
        remedies.push(format!(
            "deliver the backlog: an agent does so on its own, otherwise `opik-offline replay{options}`"
        ));
    }
    match limit {
        FullLimit::MaxSize | FullLimit::Rejected => {
            remedies.push("give the store more room: `opik-offline agent --max-size 20GiB`".to_owned());
        }
        FullLimit::DiskReserve => remedies
            .push("free disk space, or reserve less of it: `opik-offline agent --free-disk-reserve 64MiB`".to_owned()),
        FullLimit::Disk => remedies.push("free disk space: `df -h` shows where".to_owned()),
    }
    remedies
}

/// A period in which a store was full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FullEpisode {
    /// Since when, in milliseconds since the Unix epoch.
    pub since_ms: i64,
    /// The reason, as last observed.
    pub fullness: Fullness,
    /// Writes that were rejected: their clients still have them.
    pub refused: u64,
    /// Writes that were forwarded to the server instead.
    pub passed_on: u64,
}

/// A state change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FullChange {
    /// Nothing.
    None,
    /// The store is full from now on.
    Began,
    /// The store accepts messages again.
    Ended(FullEpisode),
}

/// The state machine.
#[derive(Clone, Debug, Default)]
pub(crate) struct FullState {
    now: Option<Full>,
}

#[derive(Clone, Debug)]
struct Full {
    episode: FullEpisode,
    /// The size of the smallest rejected write.
    needed_min: u64,
    /// Time of the last rejected write.
    last: Instant,
}

impl FullState {
    /// Records a write of `needed` bytes for which there was no capacity.
    pub(crate) fn found_no_room(&mut self, needed: u64, fullness: Fullness, now: Instant, wall_ms: i64) -> FullChange {
        match &mut self.now {
            Some(full) => {
                full.needed_min = full.needed_min.min(needed);
                full.last = now;
                full.episode.fullness = fullness;
                FullChange::None
            }
            None => {
                let episode = FullEpisode { since_ms: wall_ms, fullness, refused: 0, passed_on: 0 };
                self.now = Some(Full { episode, needed_min: needed, last: now });
                FullChange::Began
            }
        }
    }

    /// Counts a rejected write.
    pub(crate) fn refused(&mut self) {
        if let Some(full) = &mut self.now {
            full.episode.refused += 1;
        }
    }

    /// Counts a write that was forwarded although the store was full.
    pub(crate) fn passed_on(&mut self) {
        if let Some(full) = &mut self.now {
            full.episode.passed_on += 1;
        }
    }

    /// Records the available capacity.
    pub(crate) fn measured(&mut self, room: u64, now: Instant) -> FullChange {
        let is_over = |full: &mut Full| room >= full.needed_min && now.saturating_duration_since(full.last) >= QUIET;
        match self.now.take_if(is_over) {
            Some(full) => FullChange::Ended(full.episode),
            None => FullChange::None,
        }
    }

    /// Returns the current episode.
    pub(crate) fn episode(&self) -> Option<&FullEpisode> {
        self.now.as_ref().map(|full| &full.episode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(limit: FullLimit) -> Fullness {
        Fullness { limit, reason: format!("because of {}", limit.name()) }
    }

    #[derive(Clone, Copy)]
    enum Seen {
        NoRoom(u64),
        Refused,
        PassedOn,
        Room(u64),
    }

    #[test]
    fn the_state_begins_once_and_ends_once_with_its_counts() {
        use Seen::{NoRoom, PassedOn, Refused, Room};
        let start = Instant::now();
        for (name, steps, begins, ends, lasting) in [
            ("nothing happens", &[(0, Room(0)), (10, Room(9))][..], 0, vec![], None),
            ("a count without the state", &[(0, Refused), (1, PassedOn)], 0, vec![], None),
            ("room at once does not end it", &[(0, NoRoom(5)), (1, Refused), (2, Room(9))], 1, vec![], Some((1, 0))),
            ("room after a while does", &[(0, NoRoom(5)), (1, Refused), (6, Room(5))], 1, vec![(1, 0)], None),
            ("too little room does not", &[(0, NoRoom(5)), (1, Refused), (60, Room(4))], 1, vec![], Some((1, 0))),
            ("the smallest counts", &[(0, NoRoom(9)), (1, NoRoom(2)), (60, Room(3))], 1, vec![(0, 0)], None),
            (
                "many writes are one state",
                &[
                    (0, NoRoom(5)),
                    (0, Refused),
                    (4, NoRoom(5)),
                    (4, PassedOn),
                    (8, NoRoom(5)),
                    (8, Refused),
                    (12, Room(9)),
                ],
                1,
                vec![],
                Some((2, 1)),
            ),
            (
                "it comes again",
                &[(0, NoRoom(5)), (0, Refused), (6, Room(9)), (7, NoRoom(5)), (7, PassedOn), (60, Room(9))],
                2,
                vec![(1, 0), (0, 1)],
                None,
            ),
        ] {
            let mut state = FullState::default();
            let (mut begun, mut ended) = (0, Vec::new());
            for (second, seen) in steps {
                let now = start + Duration::from_secs(*second);
                let change = match *seen {
                    NoRoom(needed) => state.found_no_room(needed, of(FullLimit::MaxSize), now, 1000),
                    Room(bytes) => state.measured(bytes, now),
                    Refused => {
                        state.refused();
                        FullChange::None
                    }
                    PassedOn => {
                        state.passed_on();
                        FullChange::None
                    }
                };
                match change {
                    FullChange::None => {}
                    FullChange::Began => begun += 1,
                    FullChange::Ended(episode) => ended.push((episode.refused, episode.passed_on)),
                }
            }
            assert_eq!((begun, ended), (begins, ends), "{name}");
            assert_eq!(state.episode().map(|episode| (episode.refused, episode.passed_on)), lasting, "{name}");
        }
    }

    #[test]
    fn the_limit_that_was_met_last_is_told() {
        let (mut state, now) = (FullState::default(), Instant::now());
        state.found_no_room(1, of(FullLimit::MaxSize), now, 1000);
        state.found_no_room(1, of(FullLimit::Disk), now, 2000);
        let episode = state.episode().expect("it is full");
        assert_eq!((episode.since_ms, episode.fullness.limit), (1000, FullLimit::Disk));
    }

    #[test]
    fn every_limit_has_a_command_that_can_be_pasted() {
        for limit in FullLimit::ALL {
            let all = remedies(limit, 3, 2, " --db /x").join("\n");
            assert!(all.contains('`'), "{limit:?}: {all}");
            assert!(all.contains("opik-offline purge --status rejected --db /x`"), "{limit:?}: {all}");
            assert!(all.contains("opik-offline replay --db /x`"), "{limit:?}: {all}");
            assert!(!remedies(limit, 0, 0, "").is_empty(), "{limit:?}");
        }
        assert!(!remedies(FullLimit::MaxSize, 0, 0, "").join("").contains("purge"), "nothing was refused");
    }
}
