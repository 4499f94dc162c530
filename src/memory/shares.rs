//! Who may take how much of the budget. Pure.
//!
//! | use | always its own |
//! | --- | --- |
//! | [`Use::Intake`]: bodies of clients, until the server or the store has them | a quarter |
//! | [`Use::Inspection`]: what of them is inflated for a look | a 16th |
//! | [`Use::Replay`]: bodies out of the store, until they are settled | a quarter |
//! | [`Use::Division`]: pieces of those that the server refused as a whole | a 16th |
//!
//! What is left goes to whoever needs it, so that neither side can starve the other and a quiet one costs nothing.
//!
//! A body of more than a 64th of the budget is large. Of each use a 16th of the budget is kept for small ones: lanes and
//! clients with small bodies go on while large ones wait. A large body that is alone always may, whatever its size: then
//! the budget is exceeded by it, for a message that is larger than its share must be delivered, too.

/// What memory is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Bodies of clients.
    Intake = 0,
    /// Inflated bodies.
    Inspection = 1,
    /// Bodies of replay.
    Replay = 2,
    /// Pieces of the bodies that replay divides.
    Division = 3,
}

impl Use {
    /// How many there are.
    pub const COUNT: usize = 4;
    /// All of them.
    pub const ALL: [Use; Self::COUNT] = [Use::Intake, Use::Inspection, Use::Replay, Use::Division];
}

/// The bytes that are held: for each use those of small and those of large bodies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held([[u64; 2]; Use::COUNT]);

impl Held {
    pub(super) fn add(&mut self, by: Use, is_large: bool, bytes: u64) {
        let held = &mut self.0[by as usize][usize::from(is_large)];
        *held = held.saturating_add(bytes);
    }

    pub(super) fn remove(&mut self, by: Use, is_large: bool, bytes: u64) {
        let held = &mut self.0[by as usize][usize::from(is_large)];
        *held = held.saturating_sub(bytes);
    }

    pub(super) fn all(&self) -> u64 {
        Use::ALL.into_iter().map(|by| self.of(by)).fold(0, u64::saturating_add)
    }

    fn of(&self, by: Use) -> u64 {
        let [small, large] = self.0[by as usize];
        small.saturating_add(large)
    }
}

/// How a budget is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    total: u64,
}

impl Shares {
    /// Returns the shares of a budget of this many bytes.
    pub fn of(total: u64) -> Self {
        Self { total }
    }

    /// Returns the whole budget.
    pub fn total(self) -> u64 {
        self.total
    }

    /// Returns whether a body is a large one.
    pub fn is_large(self, bytes: u64) -> bool {
        bytes > self.total / 64
    }

    fn reserved(self, by: Use) -> u64 {
        match by {
            Use::Intake | Use::Replay => self.total / 4,
            Use::Inspection | Use::Division => self.total / 16,
        }
    }

    /// Returns how much one use may have beside what the others hold, or could take.
    fn limit(self, held: &Held, by: Use) -> u64 {
        let others = Use::ALL.into_iter().filter(|other| *other != by);
        let others = others.map(|other| held.of(other).max(self.reserved(other))).fold(0, u64::saturating_add);
        self.total.saturating_sub(others)
    }

    /// Returns how much is free for one use, and how much it may have.
    pub fn free(self, held: &Held, by: Use) -> (u64, u64) {
        let limit = self.limit(held, by);
        (limit.saturating_sub(held.of(by)), limit)
    }

    /// Returns whether a body may be held beside what is held. `large_waits`: a large one of the same use waits, and small
    /// ones must not keep it waiting for ever.
    pub fn admit(self, held: &Held, by: Use, bytes: u64, large_waits: bool) -> bool {
        let limit = self.limit(held, by);
        let kept = self.total / 16;
        let [small, large] = held.0[by as usize];
        match self.is_large(bytes) {
            true => {
                (large == 0 && small <= kept) || large.saturating_add(bytes).saturating_add(small.max(kept)) <= limit
            }
            false => {
                small.saturating_add(bytes) <= kept
                    || (!large_waits && small.saturating_add(large).saturating_add(bytes) <= limit)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn held(of: &[(Use, u64, u64)]) -> Held {
        let mut held = Held::default();
        for (by, small, large) in of {
            held.add(*by, false, *small * MIB);
            held.add(*by, true, *large * MIB);
        }
        held
    }

    #[test]
    fn each_use_has_its_share_and_what_others_leave() {
        use Use::{Inspection, Intake, Replay};
        // Of 128 MiB: 32 for intake and for replay, 8 for inspections and divisions, 48 for whoever needs it; 8 for small ones each.
        let shares = Shares::of(128 * MIB);
        for (what, held, by, mib, large_waits, expected) in [
            ("all that others leave", held(&[]), Replay, 72, false, true),
            ("one beside another", held(&[(Replay, 0, 40)]), Replay, 32, false, true),
            ("one too many", held(&[(Replay, 0, 40)]), Replay, 33, false, false),
            ("into what is kept for small ones", held(&[(Replay, 0, 72)]), Replay, 8, false, false),
            ("a small one", held(&[(Replay, 0, 72)]), Replay, 2, false, true),
            ("a small one too many", held(&[(Replay, 8, 72)]), Replay, 1, false, false),
            ("intake's share while replay has all else", held(&[(Replay, 8, 72)]), Intake, 24, false, true),
            ("more than intake's share, alone", held(&[(Replay, 8, 72)]), Intake, 60, false, true),
            ("more than intake's share, not alone", held(&[(Replay, 8, 72), (Intake, 0, 24)]), Intake, 3, false, false),
            ("larger than the budget, alone", held(&[]), Replay, 1000, false, true),
            ("the same beside a few small ones", held(&[(Replay, 8, 0)]), Replay, 1000, false, true),
            ("beside many small ones", held(&[(Replay, 9, 0)]), Replay, 1000, false, false),
            ("beside a large one", held(&[(Replay, 0, 3)]), Replay, 1000, false, false),
            ("small ones behind it", held(&[(Replay, 9, 0)]), Replay, 1, true, false),
            ("small ones beside it", held(&[(Replay, 0, 1000)]), Replay, 2, false, true),
            (
                "an inspection while both are full",
                held(&[(Replay, 0, 80), (Intake, 0, 32)]),
                Inspection,
                8,
                false,
                true,
            ),
        ] {
            assert_eq!(shares.admit(&held, by, mib * MIB, large_waits), expected, "{what}");
        }
    }

    #[test]
    fn what_is_held_stays_within_the_budget_but_for_a_large_body_that_is_alone() {
        for total in [1, 16, 96, 256] {
            let shares = Shares::of(total * MIB);
            let (mut held, mut alone) = (Held::default(), 0);
            for step in 0..400_u64 {
                let by = Use::ALL[(step % Use::COUNT as u64) as usize];
                let bytes = (step * 7919 % (total * MIB / 8)).max(1);
                let is_large = shares.is_large(bytes);
                let is_alone = is_large && held.0[by as usize][1] == 0;
                if shares.admit(&held, by, bytes, false) {
                    held.add(by, is_large, bytes);
                    alone += if is_alone { bytes } else { 0 };
                    assert!(held.all() <= total * MIB + alone, "{total} {step}: {held:?}");
                }
            }
            assert!(held.all() > total * MIB / 2, "most of it can be used: {held:?}");
        }
    }
}
