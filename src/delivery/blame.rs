//! Blame for transient failures: is a poison message the cause, or the server?
//!
//! If a message fails while others pass, the message is to blame, and from then on it is a suspect: its later failures
//! count against it. If many messages fail, or all, the server is to blame. Then nothing counts: a server that fails
//! at everything for an hour must not turn a backlog into rejected messages.

use crate::message::{Claimed, Footprint};

/// The evidence about the failure of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Evidence {
    /// Another message passed after this one, or the request that it shared, had failed.
    pub passed_since: bool,
    /// Another message of the same batch passed.
    pub passed_beside: bool,
    /// A failure counted against it before.
    pub is_suspect: bool,
    /// How many messages of the lane failed since one passed, this one included.
    pub failing: usize,
}

/// If more messages than this fail and none passes, the server is to blame, even if they are suspects.
pub(crate) const FAILING_MAX: usize = 10;

/// Returns whether the failure counts against the message.
pub(crate) fn counts(evidence: Evidence) -> bool {
    let Evidence { passed_since, passed_beside, is_suspect, failing } = evidence;
    passed_since || (failing <= FAILING_MAX && (passed_beside || is_suspect))
}

/// Separates the suspects of a claim, so that each is sent alone and after the others: no head-of-line blocking by one
/// that times out, and no division because of one that fails again.
///
/// Returns the others, then the suspects with everything that must not overtake them; both in delivery order.
pub(crate) fn set_apart(claimed: Vec<Claimed>, is_suspect: impl Fn(&Claimed) -> bool) -> (Vec<Claimed>, Vec<Claimed>) {
    let mut behind = Footprint::default();
    claimed.into_iter().partition(|message| {
        let apart = is_suspect(message) || (!behind.is_empty() && behind.conflicts(&message.touches));
        if apart {
            behind.add(&message.touches);
        }
        !apart
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{
        Body, Effect, Encoding, EntityKey, EntityKind, HeaderSet, MessageId, MessageType, Request, Touch,
    };

    fn claimed(id: i64, entity: &str, attempts: u32) -> Claimed {
        let request = Request {
            method: "PATCH".into(),
            path: format!("v1/private/traces/{entity}"),
            headers: HeaderSet::default(),
            body: Body::new("{}", Encoding::Identity),
        };
        let touches = vec![Touch { key: EntityKey::new(EntityKind::Trace, entity), effect: Effect::Update }];
        Claimed {
            id: MessageId(id),
            message_type: MessageType::UpdateTrace,
            request,
            touches,
            items: 1,
            attempts,
            ahead: Vec::new(),
            is_unsure: false,
            way: Default::default(),
        }
    }

    #[test]
    fn suspects_are_sent_last_with_all_that_must_not_overtake_them() {
        let messages = vec![
            claimed(1, "a", 0),
            claimed(2, "b", 3),
            claimed(3, "c", 0),
            claimed(4, "b", 0),
            claimed(5, "a", 0),
            claimed(6, "b", 0),
        ];
        let (first, last) = set_apart(messages, |message| message.attempts > 0);
        let ids = |messages: &[Claimed]| messages.iter().map(|message| message.id.0).collect::<Vec<_>>();
        assert_eq!((ids(&first), ids(&last)), (vec![1, 3, 5], vec![2, 4, 6]));
    }

    #[test]
    fn a_message_is_blamed_only_when_others_pass() {
        for (passed_since, passed_beside, is_suspect, failing, expected, what) in [
            (false, false, false, 1, false, "alone, and never seen beside one that passed"),
            (false, false, false, 1000, false, "everything fails"),
            (false, false, true, 1, true, "a suspect, left alone"),
            (false, false, true, FAILING_MAX, true, "one of a few suspects"),
            (false, false, true, FAILING_MAX + 1, false, "an outage after a flapping server made many suspect"),
            (false, true, false, 1, true, "the last of a batch that passed"),
            (false, true, false, 1000, false, "the server broke down in the middle of a batch"),
            (true, true, false, 1000, true, "one behind it passed"),
        ] {
            let evidence = Evidence { passed_since, passed_beside, is_suspect, failing };
            assert_eq!(counts(evidence), expected, "{what}");
        }
    }
}
