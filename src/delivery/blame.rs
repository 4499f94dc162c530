//! Whose fault is it that messages fail with answers that time may heal: their own, or the server's?
//!
//! A fault that meets one message while others pass is the message's, and from then on that message is suspect: what it
//! meets later counts against it, whoever else passes or does not. When no other message passes, the fault is the
//! server's, and counting it against messages would reject a whole backlog for an outage.

/// What a batch has met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failures {
    /// Messages that failed alone, and never failed before while others passed.
    pub unsuspected: usize,
    /// Messages that were delivered beside them.
    pub delivered: usize,
    /// Whether the batch is one message that tries a lane in trouble.
    pub is_probe: bool,
}

/// Says whether the server is to blame for the unsuspected messages.
///
/// A single message that fails with nothing beside it to compare with is taken to be at fault itself, unless it only
/// probes a lane that is in trouble already.
pub fn is_servers_fault(failures: Failures) -> bool {
    let Failures { unsuspected, delivered, is_probe } = failures;
    delivered == 0 && (unsuspected > 1 || (unsuspected == 1 && is_probe))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_blamed_only_when_others_pass_or_nothing_can_be_compared() {
        for (unsuspected, delivered, is_probe, expected) in [
            (1, 0, false, false),
            (1, 9, false, false),
            (5, 1, false, false),
            (2, 0, false, true),
            (1, 0, true, true),
            (1, 1, true, false),
            (0, 0, true, false),
            (0, 0, false, false),
        ] {
            let failures = Failures { unsuspected, delivered, is_probe };
            assert_eq!(is_servers_fault(failures), expected, "{failures:?}");
        }
    }
}
