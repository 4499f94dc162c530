//! Whose fault is it that messages fail with answers that time may heal: their own, or the server's?
//!
//! A fault that meets a message while others pass is the message's, and from then on the message is suspect: what it meets
//! later counts against it. A fault that meets many, or all, is the server's. Then nothing counts: a server that fails at
//! everything for an hour must not turn a backlog into rejected messages.

/// What is known about the failure of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// Another message passed after this one, or the request that it shared, had failed.
    pub passed_since: bool,
    /// Another message of the same batch passed.
    pub passed_beside: bool,
    /// A failure counted against it before.
    pub is_suspect: bool,
    /// How many messages of the lane failed since one passed, this one included.
    pub failing: usize,
}

/// When more messages than this fail and none passes, it is the server, whatever was known of them before.
pub const FAILING_MAX: usize = 10;

/// Says whether the failure counts against the message.
pub fn counts(evidence: Evidence) -> bool {
    let Evidence { passed_since, passed_beside, is_suspect, failing } = evidence;
    passed_since || (failing <= FAILING_MAX && (passed_beside || is_suspect))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_blamed_only_when_others_pass() {
        for (passed_since, passed_beside, is_suspect, failing, expected, what) in [
            (false, false, false, 1, false, "alone, and never seen beside one that passed"),
            (false, false, false, 1000, false, "everything fails"),
            (false, false, true, 1, true, "known to be bad, and left alone"),
            (false, false, true, FAILING_MAX, true, "one of a few that are known to be bad"),
            (false, false, true, FAILING_MAX + 1, false, "an outage that meets what a shaky server made suspect"),
            (false, true, false, 1, true, "the last of a batch that passed"),
            (false, true, false, 1000, false, "the server broke down in the middle of a batch"),
            (true, true, false, 1000, true, "one behind it passed"),
        ] {
            let evidence = Evidence { passed_since, passed_beside, is_suspect, failing };
            assert_eq!(counts(evidence), expected, "{what}");
        }
    }
}
