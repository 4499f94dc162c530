//! The meaning of an answer: once for a write that is being forwarded, with its client waiting, and once for a stored
//! one.
//!
//! The two tables are in one file because they answer one question, is a retry worthwhile?, for two owners of the
//! data: a forwarded write that the server refuses still belongs to the client, which gets the answer; a replayed one
//! belongs to this process.
//!
//! | answer | forwarding | replaying |
//! | --- | --- | --- |
//! | a hub's own refusal, but 508 | stored | as what is not Opik's: never counts against the message |
//! | not Opik's | stored | the lane is held for a redirect and for 401 to 403; else a ping decides, as for 502 |
//! | 2xx | the client gets it | delivered |
//! | 2xx with rejected items | the client gets it | split; a single one is rejected |
//! | 3xx | the client gets it | the lane is held: the configured URL is wrong |
//! | 401, 402, 403 | the client gets it | the lane is held, nothing is dropped |
//! | 408, 425 | stored | this message backs off |
//! | 409 | the client gets it; OTLP whose trace exists: stored | split; a single create: already there, delivered; else rejected |
//! | 413 | the client gets it | split; a single one is rejected |
//! | 429 | stored, that bucket of the lane waits as asked | that bucket of the lane waits as asked |
//! | other 4xx | the client gets it | split; a single one is rejected |
//! | 500, 507, 509 | stored | this message backs off |
//! | 501, 505, 506, 510, 511 | the client gets it | this message backs off; 501 on the deletion of a span: rejected |
//! | 508 | the client gets it | the lane is held: agents forward to each other in a loop |
//! | 502, 503, 504, 520 and above | stored | a ping decides: connection unavailable, or this message backs off |
//! | connection lost, answer truncated, timeout | stored | the same: the outcome is unknown, so it is retried |
//! | no connection | stored, connection unavailable | requeued, connection unavailable |
//!
//! [`recognise`](crate::protocol::recognise) decides first whether the answer is Opik's: only Opik confirms, rejects,
//! or gives a waiting client its final answer.
//!
//! A message that backs off is rejected after `max_attempts` only if the server itself answered: a timeout, and the
//! status of a proxy that did not reach the server (502 to 504; 520 and above are those of a well-known one), tell
//! nothing about the message.

use std::time::Duration;

use crate::message::{Bucket, MessageType};
use crate::protocol::answers::{Answer, SendFailure};
use crate::protocol::inspection::item_list;
use crate::protocol::recognise::Recognised;

/// The reason of a hold of a bucket that the server rate-limits.
pub(crate) const RATE_LIMITED: &str = "the server limits the rate (429)";

/// Returns the reason of a hold of this bucket, which the server rate-limits.
pub(crate) fn rate_limited(bucket: Bucket) -> String {
    format!("{RATE_LIMITED}: {}", bucket.name())
}

/// The consequence of an answer for a forwarded write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ForwardVerdict {
    /// The server has decided: its answer goes to the client, nothing is kept.
    Return,
    /// A retry may succeed: keep the write, acknowledge it, replay it later.
    Keep(Trouble),
}

/// Why a write is kept that the server did not accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The server rate-limits a bucket of the lane.
    Limited,
    /// The server failed at this write, or at this lane.
    Failed,
    /// The server gave no answer of its own: a ping has to decide whether it is available.
    Unanswered,
    /// There is no connection to the server.
    Gone,
    /// The server has a part of the write from an earlier attempt, and replay delivers the rest.
    Begun,
}

/// Returns the verdict on a forwarded write's answer.
pub(crate) fn forwarding(result: Result<(u16, &Recognised), &SendFailure>) -> ForwardVerdict {
    match result {
        Ok((429, _)) => ForwardVerdict::Keep(Trouble::Limited),
        Ok((_, Recognised::Foreign(_))) => ForwardVerdict::Keep(Trouble::Unanswered),
        Ok((408 | 425 | 500 | 507 | 509, _)) => ForwardVerdict::Keep(Trouble::Failed),
        Ok((status, _)) if is_a_proxys(status) => ForwardVerdict::Keep(Trouble::Unanswered),
        Ok(_) => ForwardVerdict::Return,
        Err(SendFailure::Broken { .. } | SendFailure::Timeout { .. }) => ForwardVerdict::Keep(Trouble::Unanswered),
        Err(SendFailure::Connect { .. }) => ForwardVerdict::Keep(Trouble::Gone),
    }
}

/// Returns whether a status is that of a proxy whose server did not answer in time.
fn is_a_proxys(status: u16) -> bool {
    matches!(status, 502..=504 | 520..=599)
}

/// Returns whether an answer means that the server already has what the request creates.
///
/// Only for a create that is `alone`: a 409 for a batch tells nothing about its other items. And only if the server
/// does not report that the existing entity differs: `Project name and workspace name do not match the existing
/// trace`, `parent_span_id does not match the existing span` (`TraceService`, `SpanService`) are conflicts for people.
pub(crate) fn is_already_there(message_type: MessageType, alone: bool, status: u16, text: &str) -> bool {
    status == 409 && alone && message_type.is_create() && !is_mismatch(text)
}

/// Returns whether an answer to OTLP means that the server has a trace of it from an earlier attempt, perhaps without
/// its spans ([`crate::protocol::otlp::roots`]). A front's 409 does not mean that.
pub(crate) fn is_begun(message_type: MessageType, recognised: &Recognised, status: u16, text: &str) -> bool {
    *recognised == Recognised::Refused && status == 409 && message_type == MessageType::OtlpTraces && !is_mismatch(text)
}

fn is_mismatch(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    text.contains("not match") || text.contains("mismatch")
}

/// The consequence of an answer for a replayed message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReplayVerdict {
    /// The server has it.
    Delivered,
    /// There is no connection: every message is *failed* again and waits for a ping.
    Unavailable,
    /// The lane is held, for as long as the server asked or for the retry interval; nothing counts against the message.
    HoldLane {
        /// How long the server asked to wait.
        asked: Option<Duration>,
    },
    /// The server rate-limits the bucket of the request: messages of that bucket wait, for as long as the server asked
    /// or with a backoff; nothing counts against them.
    Limited {
        /// How long the server asked to wait.
        asked: Option<Duration>,
    },
    /// The message is retried with a growing backoff, and rejected after the last attempt.
    Retry {
        /// How long the server asked to wait.
        asked: Option<Duration>,
        /// Whether the server gave no answer of its own: a ping has to decide whether it is available, and the message
        /// is never rejected for it.
        unanswered: bool,
    },
    /// The request is refused: a message or item that can't be divided any further is rejected with the server's
    /// answer.
    Refused {
        /// Whether one item may be to blame, so that it is worth sending the body in pieces: not if the server doesn't
        /// support the endpoint or the content type.
        items: bool,
    },
}

/// Returns the verdict on a replayed message's answer.
pub(crate) fn replaying(message_type: MessageType, result: Result<&Answer, &SendFailure>) -> ReplayVerdict {
    let answer = match result {
        Ok(answer) => answer,
        Err(SendFailure::Connect { .. }) => return ReplayVerdict::Unavailable,
        Err(SendFailure::Broken { .. } | SendFailure::Timeout { .. }) => {
            return ReplayVerdict::Retry { asked: None, unanswered: true };
        }
    };
    let asked = answer.asked_wait;
    match (&answer.recognised, answer.status) {
        (Recognised::Confirmed | Recognised::Refused | Recognised::Partial, _) => {}
        // Even from a front, these statuses need a person, or time; no message is dropped for them.
        (Recognised::Foreign(_), 300..=399 | 401..=403 | 429) => {}
        // It is unknown whether Opik is available, as after a timeout.
        (Recognised::Foreign(_), _) => return ReplayVerdict::Retry { asked, unanswered: true },
    }
    match answer.status {
        200..=299 if answer.partial.is_some() => ReplayVerdict::Refused { items: message_type.repeat_is_harmless() },
        200..=299 => ReplayVerdict::Delivered,
        // No redirect is followed: it would send the key to another host. A person has to configure the right URL.
        300..=399 => ReplayVerdict::HoldLane { asked },
        // The key may be renewed, the plan extended: hold, never drop (the SDK drops, protocol dossier, section b).
        401..=403 => ReplayVerdict::HoldLane { asked },
        409 if is_already_there(message_type, item_list(message_type).is_none(), 409, &answer.text) => {
            ReplayVerdict::Delivered
        }
        408 | 425 => ReplayVerdict::Retry { asked, unanswered: false },
        429 => ReplayVerdict::Limited { asked },
        400 | 409 | 413 | 422 => ReplayVerdict::Refused { items: true },
        404..=499 => ReplayVerdict::Refused { items: false },
        // The one operation for which the OpenAPI file lists 501: no retry helps where the server lacks a function.
        501 if message_type == MessageType::DeleteSpan => ReplayVerdict::Refused { items: false },
        status if is_a_proxys(status) => ReplayVerdict::Retry { asked, unanswered: true },
        // Only agents answer with it. No message is to blame for agents that forward to each other.
        508 => ReplayVerdict::HoldLane { asked },
        // A status that is not final (1xx) or not valid is a broken server's, like a 500.
        _ => ReplayVerdict::Retry { asked, unanswered: false },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::partial::Partial;
    use crate::protocol::recognise::Foreign;

    fn failures() -> [SendFailure; 3] {
        let url = String::from("http://127.0.0.1:1/api");
        [
            SendFailure::Connect { url: url.clone(), reason: "refused".into() },
            SendFailure::Broken { url: url.clone(), reason: "reset".into() },
            SendFailure::Timeout { url, after: Duration::from_secs(1) },
        ]
    }

    #[test]
    fn forwarded_writes_are_kept_if_a_retry_may_succeed_and_else_returned() {
        use Trouble::{Failed, Gone, Limited, Unanswered};
        for (status, expected) in [
            (200, ForwardVerdict::Return),
            (201, ForwardVerdict::Return),
            (204, ForwardVerdict::Return),
            (301, ForwardVerdict::Return),
            (400, ForwardVerdict::Return),
            (401, ForwardVerdict::Return),
            (403, ForwardVerdict::Return),
            (404, ForwardVerdict::Return),
            (408, ForwardVerdict::Keep(Failed)),
            (409, ForwardVerdict::Return),
            (413, ForwardVerdict::Return),
            (422, ForwardVerdict::Return),
            (425, ForwardVerdict::Keep(Failed)),
            (429, ForwardVerdict::Keep(Limited)),
            (451, ForwardVerdict::Return),
            (500, ForwardVerdict::Keep(Failed)),
            (501, ForwardVerdict::Return),
            (502, ForwardVerdict::Keep(Unanswered)),
            (503, ForwardVerdict::Keep(Unanswered)),
            (504, ForwardVerdict::Keep(Unanswered)),
            (505, ForwardVerdict::Return),
            (506, ForwardVerdict::Return),
            (507, ForwardVerdict::Keep(Failed)),
            (508, ForwardVerdict::Return),
            (509, ForwardVerdict::Keep(Failed)),
            (510, ForwardVerdict::Return),
            (511, ForwardVerdict::Return),
            (520, ForwardVerdict::Keep(Unanswered)),
            (599, ForwardVerdict::Keep(Unanswered)),
        ] {
            let recognised = Answer::of_status(status).recognised;
            assert_eq!(forwarding(Ok((status, &recognised))), expected, "{status}");
            // From anyone but Opik, the same status is final for no one.
            let trouble = if status == 429 { Limited } else { Unanswered };
            assert_eq!(forwarding(Ok((status, &foreign(status)))), ForwardVerdict::Keep(trouble), "foreign {status}");
        }
        assert_eq!(forwarding(Ok((207, &Recognised::Partial))), ForwardVerdict::Return);
        for (failure, trouble) in failures().iter().zip([Gone, Unanswered, Unanswered]) {
            assert_eq!(forwarding(Err(failure)), ForwardVerdict::Keep(trouble), "{failure}");
        }
    }

    fn foreign(status: u16) -> Recognised {
        Recognised::Foreign(Box::new(Foreign {
            status,
            content_type: None,
            words: "Sign in".into(),
            location: None,
            is_hubs: false,
        }))
    }

    #[test]
    fn a_foreign_answer_neither_confirms_nor_rejects() {
        for message_type in [MessageType::CreateTrace, MessageType::DeleteSpan, MessageType::OtlpTraces] {
            for status in 100..=999 {
                let answer = Answer { recognised: foreign(status), ..Answer::of_status(status) };
                let expected = match status {
                    300..=399 | 401..=403 => ReplayVerdict::HoldLane { asked: None },
                    429 => ReplayVerdict::Limited { asked: None },
                    _ => ReplayVerdict::Retry { asked: None, unanswered: true },
                };
                assert_eq!(replaying(message_type, Ok(&answer)), expected, "{message_type} {status}");
            }
        }
    }

    #[test]
    fn only_a_single_create_is_already_there_and_a_mismatch_never_is() {
        for (message_type, alone, status, text, expected) in [
            (MessageType::CreateTrace, true, 409, r#"{"errors":["Trace already exists"]}"#, true),
            (MessageType::CreateTrace, true, 409, "", true),
            (MessageType::CreateTraceBatch, true, 409, "a 409 of some version", true),
            (MessageType::CreateTraceBatch, false, 409, r#"{"errors":["Trace already exists"]}"#, false),
            (
                MessageType::CreateTrace,
                true,
                409,
                "Project name and workspace name do not match the existing trace",
                false,
            ),
            (MessageType::CreateSpan, true, 409, "parent_span_id does not match the existing span", false),
            (MessageType::CreateSpansBatch, true, 409, "Trace_id does Not Match the existing span", false),
            (MessageType::CreateDataset, true, 409, r#"{"errors":["Dataset already exists"]}"#, true),
            (MessageType::CreateExperimentItemsBatch, true, 409, "", true),
            (MessageType::UpdateSpan, true, 409, "already exists", false),
            (MessageType::OtlpTraces, true, 409, "Trace already exists", false),
            (MessageType::CreateTrace, true, 422, "Trace already exists", false),
        ] {
            assert_eq!(is_already_there(message_type, alone, status, text), expected, "{message_type} {status} {text}");
        }
        assert!(is_begun(MessageType::OtlpTraces, &Recognised::Refused, 409, r#"{"errors":["Trace already exists"]}"#));
        for (message_type, status, text) in [
            (MessageType::OtlpTraces, 409, "Project name and workspace name do not match the existing trace"),
            (MessageType::OtlpTraces, 400, "Trace already exists"),
            (MessageType::CreateTrace, 409, "Trace already exists"),
        ] {
            assert!(!is_begun(message_type, &Recognised::Refused, status, text), "{message_type} {status} {text}");
        }
    }

    #[test]
    fn replayed_messages_are_never_dropped_if_time_or_a_person_can_help() {
        let asked = Some(Duration::from_secs(7));
        let hold = ReplayVerdict::HoldLane { asked };
        let retry = ReplayVerdict::Retry { asked, unanswered: false };
        let unanswered = ReplayVerdict::Retry { asked, unanswered: true };
        for (message_type, status, expected) in [
            (MessageType::CreateTrace, 201, ReplayVerdict::Delivered),
            (MessageType::UpdateTrace, 204, ReplayVerdict::Delivered),
            (MessageType::UpdateTrace, 308, hold),
            (MessageType::UpdateTrace, 400, ReplayVerdict::Refused { items: true }),
            (MessageType::UpdateTrace, 401, hold),
            (MessageType::UpdateTrace, 402, hold),
            (MessageType::UpdateTrace, 403, hold),
            (MessageType::UpdateTrace, 404, ReplayVerdict::Refused { items: false }),
            (MessageType::UpdateTrace, 408, retry),
            (MessageType::CreateSpan, 409, ReplayVerdict::Delivered),
            (MessageType::CreateTrace, 409, ReplayVerdict::Delivered),
            (MessageType::CreateTraceBatch, 409, ReplayVerdict::Refused { items: true }),
            (MessageType::CreateSpansBatch, 409, ReplayVerdict::Refused { items: true }),
            (MessageType::CreateExperimentItemsBatch, 409, ReplayVerdict::Refused { items: true }),
            (MessageType::CreateExperiment, 409, ReplayVerdict::Delivered),
            (MessageType::CreateOptimization, 409, ReplayVerdict::Delivered),
            (MessageType::OtlpTraces, 409, ReplayVerdict::Refused { items: true }),
            (MessageType::UpdateSpan, 409, ReplayVerdict::Refused { items: true }),
            (MessageType::AddThreadsFeedbackScoresBatch, 409, ReplayVerdict::Refused { items: true }),
            (MessageType::CreateTraceBatch, 413, ReplayVerdict::Refused { items: true }),
            (MessageType::CreateTraceBatch, 422, ReplayVerdict::Refused { items: true }),
            (MessageType::UpdateTrace, 425, retry),
            (MessageType::UpdateTrace, 429, ReplayVerdict::Limited { asked }),
            (MessageType::UpdateTrace, 500, retry),
            (MessageType::UpdateTrace, 501, retry),
            (MessageType::DeleteSpan, 501, ReplayVerdict::Refused { items: false }),
            (MessageType::CreateDataset, 409, ReplayVerdict::Delivered),
            (MessageType::CloseThreads, 404, ReplayVerdict::Refused { items: false }),
            (MessageType::OtlpTraces, 400, ReplayVerdict::Refused { items: true }),
            (MessageType::UpdateTrace, 502, unanswered),
            (MessageType::UpdateTrace, 503, unanswered),
            (MessageType::UpdateTrace, 504, unanswered),
            (MessageType::UpdateTrace, 505, retry),
            (MessageType::UpdateTrace, 507, retry),
            (MessageType::UpdateTrace, 508, hold),
            (MessageType::UpdateTrace, 522, unanswered),
            (MessageType::UpdateTrace, 999, retry),
        ] {
            let answer = Answer { asked_wait: asked, ..Answer::of_status(status) };
            assert_eq!(replaying(message_type, Ok(&answer)), expected, "{message_type} {status}");
        }
        let partial = Some(Box::new(Partial { rejected: Some(2), words: "too large".into() }));
        let accepted =
            |message_type| replaying(message_type, Ok(&Answer { partial: partial.clone(), ..Answer::of_status(200) }));
        assert_eq!(accepted(MessageType::OtlpTraces), ReplayVerdict::Refused { items: true });
        let once = ReplayVerdict::Refused { items: false };
        assert_eq!(accepted(MessageType::GuardrailBatch), once, "what was accepted of it would be there twice");
        let unanswered = ReplayVerdict::Retry { asked: None, unanswered: true };
        for (failure, expected) in failures().iter().zip([ReplayVerdict::Unavailable, unanswered, unanswered]) {
            assert_eq!(replaying(MessageType::CreateTrace, Err(failure)), expected, "{failure}");
        }
    }
}
