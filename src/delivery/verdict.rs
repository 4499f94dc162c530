//! What an answer means: once for a write that is being forwarded, with its client waiting, and once for a stored one.
//!
//! The two tables stand side by side because they answer one question, may time heal this?, for two owners of the data:
//! a forwarded write that the server refuses still belongs to the client, which is told; a replayed one belongs to us.
//!
//! | answer | forwarding | replaying |
//! | --- | --- | --- |
//! | 2xx | the client gets it | delivered |
//! | 3xx | the client gets it | the lane is held: the configured URL is wrong |
//! | 401, 402, 403 | the client gets it | the lane is held, nothing is dropped |
//! | 408, 425 | the client gets it | this message waits, growing |
//! | 409 | the client gets it | on a create: already there, delivered; else rejected |
//! | 413 | the client gets it | split; a single one is rejected |
//! | 429 | stored, the lane waits as asked | the lane waits as asked |
//! | other 4xx | the client gets it | split; a single one is rejected |
//! | 500 | stored | this message waits, growing |
//! | 501 | the client gets it | this message waits, growing; on the deletion of a span: rejected |
//! | 505 and above | the client gets it | this message waits, growing |
//! | 508 | the client gets it | the lane is held: an agent has met itself |
//! | 502, 503, 504, no answer | stored, connection unavailable | back to failed, connection unavailable |

use std::time::Duration;

use crate::message::MessageType;
use crate::protocol::answers::{Answer, SendFailure};

/// What to do with a write that was forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardVerdict {
    /// The server has decided: its answer goes to the client, nothing is kept.
    Return,
    /// Time can heal this: keep the write, acknowledge it, replay it later.
    Keep {
        /// Whether the server is to be taken as gone until a ping says otherwise.
        unavailable: bool,
    },
}

/// Says what a forwarded write's answer means.
pub fn forwarding(result: Result<u16, &SendFailure>) -> ForwardVerdict {
    match result {
        Ok(429 | 500) => ForwardVerdict::Keep { unavailable: false },
        Ok(502..=504) => ForwardVerdict::Keep { unavailable: true },
        Ok(_) => ForwardVerdict::Return,
        Err(SendFailure::Connect { .. } | SendFailure::Broken { .. } | SendFailure::Timeout { .. }) => {
            ForwardVerdict::Keep { unavailable: true }
        }
    }
}

/// What to do with a message that was replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayVerdict {
    /// The server has it.
    Delivered,
    /// The server is not there: everything goes back to *failed* and waits for a ping.
    Unavailable,
    /// The lane waits, for as long as the server asked or for the retry interval; nothing counts against the message.
    HoldLane {
        /// How long the server asked to wait.
        asked: Option<Duration>,
        /// Whether one message tries the lane before the rest follows.
        probe: bool,
    },
    /// This message waits, longer with every attempt, and is rejected after the last one.
    Retry {
        /// How long the server asked to wait.
        asked: Option<Duration>,
    },
    /// The request is refused: what can't be divided any further is rejected with the server's words.
    Refused {
        /// Whether the fault may be one item's, so that the items of one body are worth trying in pieces: not when the
        /// server doesn't know the endpoint or the content type.
        items: bool,
    },
}

/// Says what a replayed message's answer means.
pub fn replaying(message_type: MessageType, result: Result<&Answer, &SendFailure>) -> ReplayVerdict {
    let answer = match result {
        Ok(answer) => answer,
        Err(SendFailure::Connect { .. } | SendFailure::Broken { .. } | SendFailure::Timeout { .. }) => {
            return ReplayVerdict::Unavailable;
        }
    };
    let asked = answer.asked_wait;
    match answer.status {
        200..=299 => ReplayVerdict::Delivered,
        // No redirect is followed: it would carry the key to another host. A person has to name the right URL.
        300..=399 => ReplayVerdict::HoldLane { asked, probe: true },
        // The key may be renewed, the plan extended: hold, never drop (the SDK drops, protocol dossier, section b).
        401..=403 => ReplayVerdict::HoldLane { asked, probe: true },
        409 if message_type.is_create() => ReplayVerdict::Delivered,
        408 | 425 => ReplayVerdict::Retry { asked },
        429 => ReplayVerdict::HoldLane { asked, probe: false },
        400 | 409 | 413 | 422 => ReplayVerdict::Refused { items: true },
        404..=499 => ReplayVerdict::Refused { items: false },
        // The one operation for which the OpenAPI file lists 501: time does not mend what the server can't do.
        501 if message_type == MessageType::DeleteSpan => ReplayVerdict::Refused { items: false },
        502..=504 => ReplayVerdict::Unavailable,
        // Said by agents only. No message is to blame for agents that are each other's server.
        508 => ReplayVerdict::HoldLane { asked, probe: true },
        // What is no final status at all (1xx or nonsense) is a broken server, like a 500.
        _ => ReplayVerdict::Retry { asked },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failures() -> [SendFailure; 3] {
        let url = String::from("http://127.0.0.1:1/api");
        [
            SendFailure::Connect { url: url.clone(), reason: "refused".into() },
            SendFailure::Broken { url: url.clone(), reason: "reset".into() },
            SendFailure::Timeout { url, after: Duration::from_secs(1) },
        ]
    }

    #[test]
    fn forwarded_writes_that_time_can_heal_are_kept_and_all_else_is_the_clients() {
        let keep = ForwardVerdict::Keep { unavailable: false };
        let gone = ForwardVerdict::Keep { unavailable: true };
        for (status, expected) in [
            (200, ForwardVerdict::Return),
            (201, ForwardVerdict::Return),
            (204, ForwardVerdict::Return),
            (301, ForwardVerdict::Return),
            (400, ForwardVerdict::Return),
            (401, ForwardVerdict::Return),
            (403, ForwardVerdict::Return),
            (404, ForwardVerdict::Return),
            (408, ForwardVerdict::Return),
            (409, ForwardVerdict::Return),
            (413, ForwardVerdict::Return),
            (422, ForwardVerdict::Return),
            (429, keep),
            (500, keep),
            (501, ForwardVerdict::Return),
            (502, gone),
            (503, gone),
            (504, gone),
        ] {
            assert_eq!(forwarding(Ok(status)), expected, "{status}");
        }
        for failure in failures() {
            assert_eq!(forwarding(Err(&failure)), gone, "{failure}");
        }
    }

    #[test]
    fn replayed_messages_are_never_dropped_for_what_time_or_a_person_can_mend() {
        let asked = Some(Duration::from_secs(7));
        let hold = |probe| ReplayVerdict::HoldLane { asked, probe };
        let retry = ReplayVerdict::Retry { asked };
        for (message_type, status, expected) in [
            (MessageType::CreateTrace, 201, ReplayVerdict::Delivered),
            (MessageType::UpdateTrace, 204, ReplayVerdict::Delivered),
            (MessageType::UpdateTrace, 308, hold(true)),
            (MessageType::UpdateTrace, 400, ReplayVerdict::Refused { items: true }),
            (MessageType::UpdateTrace, 401, hold(true)),
            (MessageType::UpdateTrace, 402, hold(true)),
            (MessageType::UpdateTrace, 403, hold(true)),
            (MessageType::UpdateTrace, 404, ReplayVerdict::Refused { items: false }),
            (MessageType::UpdateTrace, 408, retry),
            (MessageType::CreateSpan, 409, ReplayVerdict::Delivered),
            (MessageType::CreateTraceBatch, 409, ReplayVerdict::Delivered),
            (MessageType::UpdateSpan, 409, ReplayVerdict::Refused { items: true }),
            (MessageType::AddThreadsFeedbackScoresBatch, 409, ReplayVerdict::Refused { items: true }),
            (MessageType::CreateTraceBatch, 413, ReplayVerdict::Refused { items: true }),
            (MessageType::CreateTraceBatch, 422, ReplayVerdict::Refused { items: true }),
            (MessageType::UpdateTrace, 425, retry),
            (MessageType::UpdateTrace, 429, hold(false)),
            (MessageType::UpdateTrace, 500, retry),
            (MessageType::UpdateTrace, 501, retry),
            (MessageType::DeleteSpan, 501, ReplayVerdict::Refused { items: false }),
            (MessageType::CreateDataset, 409, ReplayVerdict::Delivered),
            (MessageType::CloseThreads, 404, ReplayVerdict::Refused { items: false }),
            (MessageType::OtlpTraces, 400, ReplayVerdict::Refused { items: true }),
            (MessageType::UpdateTrace, 502, ReplayVerdict::Unavailable),
            (MessageType::UpdateTrace, 503, ReplayVerdict::Unavailable),
            (MessageType::UpdateTrace, 504, ReplayVerdict::Unavailable),
            (MessageType::UpdateTrace, 508, hold(true)),
            (MessageType::UpdateTrace, 999, retry),
        ] {
            let answer = Answer { asked_wait: asked, ..Answer::of_status(status) };
            assert_eq!(replaying(message_type, Ok(&answer)), expected, "{message_type} {status}");
        }
        for failure in failures() {
            assert_eq!(replaying(MessageType::CreateTrace, Err(&failure)), ReplayVerdict::Unavailable, "{failure}");
        }
    }
}
