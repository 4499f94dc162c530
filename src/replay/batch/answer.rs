//! An answer in words: for the stored message, for the reason of a hold, for a log line.

use crate::protocol::answers::{Answer, SendFailure};
use crate::protocol::recognise::Recognised;
use crate::store::{LastAnswer, now_ms};

/// Returns what the store keeps of an answer.
pub(super) fn last_answer(result: &Result<Answer, SendFailure>) -> LastAnswer {
    match result {
        Ok(answer) => {
            let text = match (&answer.partial, answer.recognised.foreign()) {
                (Some(partial), _) => partial.to_string(),
                (None, Some(foreign)) => foreign.to_string(),
                (None, None) => answer.text.clone(),
            };
            LastAnswer { status: Some(answer.status), text, at_ms: now_ms() }
        }
        Err(failure) => LastAnswer { status: None, text: failure.to_string(), at_ms: now_ms() },
    }
}

/// Returns why a lane is held, for people, and the status if Opik itself gave it: a front's 403 does not refuse a key.
pub(super) fn reason_and_status(result: &Result<Answer, SendFailure>) -> (String, Option<u16>) {
    let own = result.as_ref().ok().filter(|answer| answer.recognised.foreign().is_none());
    (reason(result), own.map(|answer| answer.status))
}

/// Returns why a request failed or was refused, for people.
pub(super) fn reason(result: &Result<Answer, SendFailure>) -> String {
    match result {
        Ok(Answer { status, recognised: Recognised::Foreign(foreign), .. }) if (300..400).contains(status) => {
            format!("{foreign}: set --upstream to where it is")
        }
        Ok(Answer { status, location: Some(location), .. }) if (300..400).contains(status) => {
            format!("the server redirects to {location}: set --upstream to where it is")
        }
        Ok(Answer { recognised: Recognised::Foreign(foreign), .. }) => foreign.to_string(),
        Ok(Answer { partial: Some(partial), .. }) => partial.to_string(),
        Ok(answer) if answer.text.trim().is_empty() => format!("the server answered {}", answer.status),
        Ok(answer) => format!("the server answered {}: {}", answer.status, first_line(&answer.text)),
        Err(failure) => failure.to_string(),
    }
}

/// Returns the beginning of an answer as one line.
pub(super) fn first_line(text: &str) -> String {
    const CHARACTERS_MAX: usize = 200;
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(CHARACTERS_MAX)
        .collect::<String>()
        .trim()
        .to_owned()
}
