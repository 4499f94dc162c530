//! A write that found the store full: it is tried at the server, if it overtakes nothing there.
//!
//! ```text
//! no room ─┬─ an earlier message that it could conflict with waits ──────────────▶ 503
//!          └─ nothing does ─┬─ the server counts as there ─▶ forward ─┬─ answered ▶ the server's answer
//!                           └─ it counts as gone ─▶ in turn, forward ─┴─ not ─────▶ 503
//! ```
//!
//! The agent may know that the server is gone and not yet that it is back: that is only found out with the next ping. A
//! write that can be stored does not care; one that can't is the better ping.
//!
//! # Load
//!
//! A server that is gone is tried by one write at a time, for [`AWAY_TIMEOUT`] at most. The others wait for their turn, for
//! [`TURN_MAX`] at most, and need none once a try that began after they came has failed, or one has succeeded. So however
//! many writes are refused, one connection is tried; a server that refuses connections costs each of them a fraction of a
//! millisecond, and one that swallows them costs most of them a second.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::info;

use super::{Forwarded, NotStored, Write};
use crate::intake::forward::{self, ClientAnswer};
use crate::intake::{AWAY_TIMEOUT, ClientUrl, Shared};
use crate::message::{Bucket, Lane, Touch};
use crate::monitor::{Availability, Change};
use crate::store::Ahead;

/// How long a write waits for those that try the server before it.
const TURN_MAX: Duration = Duration::from_secs(1);

/// Why a write was not sent on.
const AWAY: &str = "the Opik server cannot be reached, or takes no such write now";

/// Tries of a server that counts as gone, one at a time: when the last one began that failed.
pub(in crate::intake) type Tries = tokio::sync::Mutex<Option<Instant>>;

/// What a write does that can't be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// It goes to the server, with as much patience as any.
    Forward,
    /// It finds out whether the server is back.
    Try,
    /// It is refused: the server was not there a moment ago.
    Refuse,
}

/// Decides about a write that came at `came`, when the last failed try began at `failed`.
fn step(availability: Availability, in_trouble: bool, came: Instant, failed: Option<Instant>) -> Step {
    match availability {
        // What fails or hangs for one lane says nothing about the others.
        Availability::Available | Availability::Unknown if in_trouble => Step::Try,
        Availability::Available | Availability::Unknown => Step::Forward,
        Availability::Unavailable if failed.is_some_and(|failed| failed >= came) => Step::Refuse,
        Availability::Unavailable => Step::Try,
    }
}

/// Returns why a write that can't be stored may not be sent either, if so.
fn why_not(ahead: Ahead, touches: &[Touch], bucket: Bucket) -> Option<&'static str> {
    if ahead.conflicting || ahead.messages > 0 && touches.is_empty() {
        return Some("earlier writes that it must not overtake wait to be delivered");
    }
    ahead.limited.contains(bucket).then_some("the Opik server limits such writes for now")
}

impl Shared {
    /// Returns why a write that can't be stored may not be sent either, if so.
    pub(in crate::intake) fn must_not_overtake(
        &self,
        lane: &Lane,
        touches: &[Touch],
        bucket: Bucket,
    ) -> Option<&'static str> {
        match self.slot.with(|store| store.ahead(lane, touches)) {
            Ok(ahead) => why_not(ahead, touches, bucket),
            Err(_) => Some("what waits to be delivered cannot be read now"),
        }
    }
}

impl Write {
    /// Sends a write that found no room in the store to the server, or refuses it. The caller has its turn.
    pub(super) async fn send_unstored(
        &self,
        shared: &Arc<Shared>,
        client: &ClientUrl,
        not_stored: NotStored,
    ) -> ClientAnswer {
        let came = Instant::now();
        let (lane, bucket) = (&self.message.lane, self.message.message_type.bucket());
        if let Some(why) = shared.must_not_overtake(lane, &self.message.touches, bucket) {
            return not_stored.refused_and(shared, why);
        }
        let in_trouble = shared.connection.lanes().is_in_trouble(lane);
        if step(shared.connection.availability(), in_trouble, came, None) == Step::Forward {
            let sent = self.forward(shared, client, true).await;
            return not_stored.unless_answered(shared, sent);
        }
        let Ok(mut failed) = tokio::time::timeout(TURN_MAX, shared.tries.lock()).await else {
            return not_stored.refused_and(shared, "the Opik server does not answer");
        };
        match step(shared.connection.availability(), in_trouble, came, *failed) {
            Step::Forward => {
                drop(failed);
                let sent = self.forward(shared, client, true).await;
                not_stored.unless_answered(shared, sent)
            }
            Step::Refuse => not_stored.refused_and(shared, AWAY),
            Step::Try => {
                let began = Instant::now();
                let tried = tokio::time::timeout(AWAY_TIMEOUT, self.forward(shared, client, false)).await;
                let tried = tried.unwrap_or(Forwarded::Keep { fallback: None });
                match tried {
                    Forwarded::Keep { .. } => *failed = Some(began),
                    Forwarded::Answered(_) => {
                        if shared.connection.answered() == Change::Restored {
                            info!(target: "connection_monitor", "the Opik server is available: it answered a write");
                        }
                    }
                }
                drop(failed);
                not_stored.unless_answered(shared, tried)
            }
        }
    }
}

impl NotStored {
    /// Returns the server's answer, or the refusal when it did not decide. Of other answers only a rate limit's helps the
    /// client more than ours.
    fn unless_answered(self, shared: &Shared, sent: Forwarded) -> ClientAnswer {
        match sent {
            Forwarded::Answered(answer) => {
                shared.collector.full().passed_on();
                answer
            }
            Forwarded::Keep { fallback: Some(answer) } if answer.status() == http::StatusCode::TOO_MANY_REQUESTS => {
                self.count(shared);
                answer
            }
            Forwarded::Keep { .. } => self.refused_and(shared, AWAY),
        }
    }

    /// Returns the refusal, with what else was in the way, and counts it.
    fn refused_and(mut self, shared: &Shared, why: &str) -> ClientAnswer {
        self.text.push_str(&format!("; the write was not sent on, because {why}"));
        self.refused(shared)
    }

    /// Returns the refusal and counts it.
    pub(super) fn refused(self, shared: &Shared) -> ClientAnswer {
        self.count(shared);
        forward::own_answer(self.reply())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Effect, EntityKey, EntityKind};

    #[test]
    fn a_server_that_counts_as_gone_is_tried_once_for_all_that_came_before() {
        use Availability::{Available, Unavailable, Unknown};
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        for (availability, in_trouble, failed, expected) in [
            (Available, false, None, Step::Forward),
            (Available, false, Some(9), Step::Forward),
            (Available, true, Some(9), Step::Try),
            (Unknown, false, Some(9), Step::Forward),
            (Unavailable, false, None, Step::Try),
            (Unavailable, false, Some(4), Step::Try),
            (Unavailable, false, Some(5), Step::Refuse),
            (Unavailable, true, Some(9), Step::Refuse),
        ] {
            let found = step(availability, in_trouble, at(5), failed.map(at));
            assert_eq!(found, expected, "{availability:?} {in_trouble} {failed:?}");
        }
    }

    #[test]
    fn only_what_overtakes_nothing_is_sent() {
        let touch = [Touch { key: EntityKey::new(EntityKind::Trace, "a"), effect: Effect::Create }];
        let bucket = Bucket::ALL[0];
        let limited = std::iter::once(bucket).collect();
        for (name, ahead, touches, may) in [
            ("nothing waits", Ahead::default(), &touch[..], true),
            ("nothing waits, and it names nothing", Ahead::default(), &[][..], true),
            ("others wait", Ahead { messages: 3, ..Ahead::default() }, &touch[..], true),
            (
                "others wait in a lane that is held",
                Ahead { messages: 3, held: true, ..Ahead::default() },
                &touch[..],
                true,
            ),
            ("others wait, and it names nothing", Ahead { messages: 3, ..Ahead::default() }, &[][..], false),
            ("its entity's wait", Ahead { messages: 3, conflicting: true, ..Ahead::default() }, &touch[..], false),
            ("its create was refused", Ahead { conflicting: true, ..Ahead::default() }, &touch[..], false),
            ("its bucket is limited", Ahead { messages: 3, limited, ..Ahead::default() }, &touch[..], false),
        ] {
            assert_eq!(why_not(ahead, touches, bucket).is_none(), may, "{name}");
        }
    }
}
