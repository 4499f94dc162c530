//! The policy of the budget: how much each use may take. Pure.
//!
//! | use | always its own |
//! | --- | --- |
//! | [`Use::Intake`]: bodies of clients, until the server or the store has them | a quarter |
//! | [`Use::Inspection`]: those of them that are inflated for inspection | a 16th |
//! | [`Use::Replay`]: bodies from the store, until they are settled | a quarter |
//! | [`Use::Division`]: parts of those that the server refused as a whole | a 16th |
//!
//! The rest goes to the use that needs it, so that neither side can starve the other and an idle one costs nothing.
//!
//! A body of more than a 64th of the budget is large. In each use, a 16th of the budget is reserved for small bodies:
//! lanes and clients with small bodies make progress while large ones wait (no head-of-line blocking).
//!
//! A body that is larger than its share has to be accepted and delivered, too. It may be held alone, at any size, but
//! only while the other uses stay within their own shares ([`Shares::may_exceed`]). The invariant is that at most one
//! body exceeds the budget, not one of each use. To let it come to that, a use takes no more than its own share while a
//! body of another use waits for that and came first ([`QueuedAhead::elsewhere`]).

/// The purpose for which memory is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Bodies of clients, in flight to the server or the store.
    Intake = 0,
    /// Inflated bodies.
    Inspection = 1,
    /// Bodies of replay, in flight to the server.
    Replay = 2,
    /// Parts of the bodies that replay divides.
    Division = 3,
}

impl Use {
    /// How many there are.
    pub const COUNT: usize = 4;
    /// All of them.
    pub const ALL: [Use; Self::COUNT] = [Use::Intake, Use::Inspection, Use::Replay, Use::Division];
}

/// The bytes in use: for each use those of small and those of large bodies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage([[u64; 2]; Use::COUNT]);

impl Usage {
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

/// Which bodies are queued ahead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct QueuedAhead {
    /// A large body of the same use: concurrent small ones must not starve it.
    pub same_use: bool,
    /// A large body of another use, which waits for memory that others hold beyond their own shares.
    pub elsewhere: bool,
}

/// How a budget is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shares {
    total: u64,
}

impl Shares {
    /// Returns the shares of a budget of this many bytes.
    pub(crate) fn of(total: u64) -> Self {
        Self { total }
    }

    /// Returns the whole budget.
    pub(crate) fn total(self) -> u64 {
        self.total
    }

    /// Returns whether a body of this size counts as large.
    pub(crate) fn is_large(self, bytes: u64) -> bool {
        bytes > self.total / 64
    }

    fn reserved(self, by: Use) -> u64 {
        match by {
            Use::Intake | Use::Replay => self.total / 4,
            Use::Inspection | Use::Division => self.total / 16,
        }
    }

    /// Returns the reserve for small bodies beside the large ones of a use.
    fn kept(self, by: Use) -> u64 {
        match by {
            Use::Intake | Use::Replay => self.total / 16,
            Use::Inspection | Use::Division => 0,
        }
    }

    /// Returns how much others have to leave to a use: its usage with the reserve for small bodies, and at least its
    /// own share.
    fn counted(self, held: &Usage, by: Use) -> u64 {
        let [small, large] = held.0[by as usize];
        let kept = if large > 0 { self.kept(by) } else { 0 };
        large.saturating_add(small.max(kept)).max(self.reserved(by))
    }

    /// Returns the limit of one use beside the usage and the shares of the others.
    fn limit(self, held: &Usage, by: Use) -> u64 {
        let others = Use::ALL.into_iter().filter(|other| *other != by);
        let others = others.map(|other| self.counted(held, other)).fold(0, u64::saturating_add);
        self.total.saturating_sub(others)
    }

    /// Returns whether a use holds more than its own share.
    pub(crate) fn exceeds(self, held: &Usage, by: Use) -> bool {
        held.of(by) > self.reserved(by)
    }

    /// Returns how much is free for one use, and its limit.
    pub(crate) fn free(self, held: &Usage, by: Use) -> (u64, u64) {
        let limit = self.limit(held, by);
        (limit.saturating_sub(held.of(by)), limit)
    }

    /// Returns whether a body may be held now, beside the present usage and the bodies that wait.
    pub(crate) fn admit(self, held: &Usage, by: Use, bytes: u64, ahead: QueuedAhead) -> bool {
        // A use keeps its own share even beside a body that exceeds the budget.
        let own = self.reserved(by);
        let limit = if ahead.elsewhere { own } else { own.max(self.limit(held, by)) };
        let kept = self.total / 16;
        let [small, large] = held.0[by as usize];
        match self.is_large(bytes) {
            true => {
                large.saturating_add(bytes).saturating_add(small.max(self.kept(by))) <= limit
                    || (!ahead.elsewhere && large == 0 && small <= kept && self.may_exceed(held, by))
            }
            false => {
                small.saturating_add(bytes) <= kept
                    || (!ahead.same_use && small.saturating_add(large).saturating_add(bytes) <= limit)
            }
        }
    }

    /// Returns whether one body of this use may exceed the budget now.
    ///
    /// To avoid deadlock, a use that is taken beside another ([`Use::Inspection`], [`Use::Division`]) does not wait
    /// for uses that may wait for it.
    fn may_exceed(self, held: &Usage, by: Use) -> bool {
        let waits_for: &[Use] = match by {
            Use::Intake => &[Use::Inspection, Use::Replay, Use::Division],
            Use::Replay => &[Use::Intake, Use::Inspection, Use::Division],
            Use::Inspection => &[Use::Replay, Use::Division],
            Use::Division => &[],
        };
        waits_for.iter().all(|other| held.of(*other) <= self.reserved(*other))
    }

    /// Returns whether a large body waits only for other uses: its own use leaves it room, or holds no other large
    /// body.
    pub(crate) fn waits_for_others(self, held: &Usage, by: Use, bytes: u64) -> bool {
        let [small, large] = held.0[by as usize];
        let most = self.limit(&Usage::default(), by);
        large == 0 || large.saturating_add(bytes).saturating_add(small.max(self.kept(by))) <= most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn held(of: &[(Use, u64, u64)]) -> Usage {
        let mut held = Usage::default();
        for (by, small, large) in of {
            held.add(*by, false, *small * MIB);
            held.add(*by, true, *large * MIB);
        }
        held
    }

    #[test]
    fn each_use_has_its_share_and_what_others_leave() {
        use Use::{Inspection, Intake, Replay};
        // Of 128 MiB: 32 for intake and for replay, 8 for inspections and divisions, 48 for any use; 8 for small ones
        // each.
        let shares = Shares::of(128 * MIB);
        for (what, held, by, mib, large_waits, expected) in [
            ("everything beside the shares of others", held(&[]), Replay, 72, false, true),
            ("one beside another", held(&[(Replay, 0, 40)]), Replay, 32, false, true),
            ("one too many", held(&[(Replay, 0, 40)]), Replay, 33, false, false),
            ("into the reserve for small ones", held(&[(Replay, 0, 72)]), Replay, 8, false, false),
            ("a small one", held(&[(Replay, 0, 72)]), Replay, 2, false, true),
            ("a small one too many", held(&[(Replay, 8, 72)]), Replay, 1, false, false),
            ("intake's share while replay has the rest", held(&[(Replay, 8, 72)]), Intake, 24, false, true),
            ("more than intake's share while replay has the rest", held(&[(Replay, 8, 72)]), Intake, 60, false, false),
            (
                "more than the rest while others stay within their shares",
                held(&[(Replay, 8, 24)]),
                Intake,
                100,
                false,
                true,
            ),
            ("the same beside another", held(&[(Intake, 0, 3)]), Intake, 100, false, false),
            ("an inflated one while replay has the rest", held(&[(Replay, 8, 72)]), Inspection, 100, false, false),
            ("an inflated one while intake has the rest", held(&[(Intake, 8, 100)]), Inspection, 100, false, true),
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
            let ahead = QueuedAhead { same_use: large_waits, elsewhere: false };
            assert_eq!(shares.admit(&held, by, mib * MIB, ahead), expected, "{what}");
        }
    }

    #[test]
    fn no_use_exceeds_its_share_while_another_use_waits_for_memory() {
        use Use::{Intake, Replay};
        let shares = Shares::of(128 * MIB);
        for (what, held, by, mib, expected) in [
            ("within its own", held(&[(Intake, 0, 90)]), Replay, 24, true),
            ("beyond its own", held(&[]), Replay, 25, false),
            ("beyond its own, with small ones", held(&[(Replay, 31, 0)]), Replay, 2, false),
            ("small ones within their reserve", held(&[(Replay, 0, 90)]), Replay, 2, true),
            ("larger than the budget", held(&[]), Intake, 200, false),
        ] {
            let ahead = QueuedAhead { same_use: false, elsewhere: true };
            assert_eq!(shares.admit(&held, by, mib * MIB, ahead), expected, "{what}");
        }
        for (what, held, by, mib, expected) in [
            ("nothing of its own is held", held(&[(Replay, 0, 80)]), Intake, 100, true),
            ("what it waits for is its own", held(&[(Intake, 0, 3)]), Intake, 100, false),
            ("there is room beside its own", held(&[(Replay, 0, 80), (Intake, 0, 20)]), Intake, 40, true),
        ] {
            assert_eq!(shares.waits_for_others(&held, by, mib * MIB), expected, "{what}");
        }
    }

    #[test]
    fn only_a_large_body_that_is_alone_exceeds_the_budget() {
        for total in [1, 16, 96, 256] {
            let shares = Shares::of(total * MIB);
            let (mut held, mut alone) = (Usage::default(), 0);
            for step in 0..400_u64 {
                let by = Use::ALL[(step % Use::COUNT as u64) as usize];
                let bytes = (step * 7919 % (total * MIB / 8)).max(1);
                let is_large = shares.is_large(bytes);
                let exceeds = is_large && held.all() + bytes > total * MIB;
                if shares.admit(&held, by, bytes, QueuedAhead::default()) {
                    held.add(by, is_large, bytes);
                    alone += if exceeds { bytes } else { 0 };
                    // Small ones of the two uses without a reserve for them still pass.
                    assert!(held.all() <= total * MIB * 9 / 8 + alone, "{total} {step}: {held:?}");
                }
            }
            assert!(held.all() > total * MIB / 2, "most of it can be used: {held:?}");
        }
    }
}
