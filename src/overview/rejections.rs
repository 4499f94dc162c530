//! Why the server rejected messages, in its own words.
//!
//! An answer may quote the payload that it refuses, but not the key that it was asked with: that is masked, as
//! everywhere.

use std::collections::BTreeSet;

use crate::message::{Credential, MessageId, MessageStatus, Server};
use crate::store::{Filter, LastAnswer, Listed, Page, Store, StoreError};

/// How many rejected messages are read, the newest ones.
const READ_MAX: usize = 200;
/// How many characters of an answer are kept.
const WORDS_CHARS_MAX: usize = 200;
/// How many different answers are listed.
const REJECTIONS_MAX: usize = 12;
/// How many ids are listed for each.
const IDS_MAX: usize = 5;
/// How many workspaces and projects are listed for each.
const NAMES_MAX: usize = 3;
/// A credential that is shorter could be an ordinary word of the answer.
const CREDENTIAL_BYTES_MIN: usize = 8;

/// The server's answers to the newest dead letters: messages that it rejected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RejectionsOverview {
    /// The most frequent first.
    pub list: Vec<RejectionOverview>,
    /// How many of the newest rejected messages were read.
    pub read: u64,
    /// Of these, those with an answer that is not listed.
    pub others: u64,
}

/// Messages that the server rejected with the same words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RejectionOverview {
    /// The status of its answer; `None` if none came.
    pub status: Option<u16>,
    /// The beginning of its answer, or what failed.
    pub words: String,
    pub messages: u64,
    /// When the last of them was answered, in milliseconds since the Unix epoch.
    pub last_at_ms: i64,
    /// The newest of them.
    pub ids: Vec<MessageId>,
    /// Some of their message types.
    pub message_types: BTreeSet<&'static str>,
    /// Some of their workspaces.
    pub workspaces: BTreeSet<String>,
}

impl RejectionsOverview {
    /// Reads the newest messages that this server rejected. It takes a moment, whatever the size of the store.
    pub(super) fn read(store: &dyn Store, server: &Server) -> Result<Self, StoreError> {
        let filter = Filter { statuses: vec![MessageStatus::Rejected], ..Filter::default() };
        let page = Page { after: None, limit: READ_MAX, newest_first: true };
        let newest = store.list(&filter, &page)?;
        Ok(Self::of(newest.into_iter().filter(|listed| listed.lane.server.as_ref() == Some(server))))
    }

    fn of(newest: impl Iterator<Item = Listed>) -> Self {
        let mut found = Self::default();
        for message in newest {
            found.read += 1;
            let answer = message.answer.as_ref();
            let status = answer.and_then(|answer| answer.status);
            let words = answer.map_or_else(String::new, |answer| words(answer, message.lane.credential.as_ref()));
            let is_same = |known: &RejectionOverview| known.status == status && known.words == words;
            let place = match found.list.iter().position(is_same) {
                Some(known) => known,
                None if found.list.len() < REJECTIONS_MAX => {
                    found.list.push(RejectionOverview::new(status, words));
                    found.list.len() - 1
                }
                None => {
                    found.others += 1;
                    continue;
                }
            };
            found.list[place].add(&message);
        }
        found.list.sort_by_key(|rejection| std::cmp::Reverse(rejection.messages));
        found
    }
}

impl RejectionOverview {
    fn new(status: Option<u16>, words: String) -> Self {
        let (message_types, workspaces) = (BTreeSet::new(), BTreeSet::new());
        Self { status, words, messages: 0, last_at_ms: 0, ids: Vec::new(), message_types, workspaces }
    }

    fn add(&mut self, message: &Listed) {
        self.messages += 1;
        self.last_at_ms = self.last_at_ms.max(message.answer.as_ref().map_or(0, |answer| answer.at_ms));
        if self.ids.len() < IDS_MAX {
            self.ids.push(message.id);
        }
        if self.message_types.len() < NAMES_MAX {
            self.message_types.insert(message.message_type.name());
        }
        if self.workspaces.len() < NAMES_MAX {
            self.workspaces.insert(message.lane.workspace_name().to_owned());
        }
    }
}

/// Returns the first words of an answer, without the key that it was asked with.
fn words(answer: &LastAnswer, credential: Option<&Credential>) -> String {
    let Some(credential) = credential else { return first_words(&answer.text) };
    let Ok(value) = std::str::from_utf8(credential.reveal()) else { return first_words(&answer.text) };
    // `Bearer KEY`: the key alone is no less secret.
    let key = value.rsplit(' ').next().unwrap_or(value);
    if key.len() < CREDENTIAL_BYTES_MIN {
        return first_words(&answer.text);
    }
    first_words(&answer.text.replace(key, "***"))
}

/// Returns the beginning of an answer in one line; of an error of Opik's, its message and details.
pub(super) fn first_words(text: &str) -> String {
    let error: Option<serde_json::Value> = serde_json::from_str(text).ok();
    let field = |name| error.as_ref().and_then(|error: &serde_json::Value| error[name].as_str());
    let message = match (field("message"), field("details")) {
        (Some(message), Some(details)) => format!("{message}: {details}"),
        (Some(message), None) => message.to_owned(),
        (None, _) => text.to_owned(),
    };
    // A server's text must not drive the terminal.
    let message: String = message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let words = message.split_whitespace().collect::<Vec<_>>().join(" ");
    let is_long = words.chars().count() > WORDS_CHARS_MAX;
    if is_long { words.chars().take(WORDS_CHARS_MAX - 1).chain(['…']).collect() } else { words }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Lane, MessageType};

    fn rejected(id: i64, status: Option<u16>, text: &str) -> Listed {
        Listed {
            id: MessageId(id),
            status: MessageStatus::Rejected,
            message_type: MessageType::CreateTrace,
            lane: Lane { credential: Some(Credential::new("Bearer made-up-key-0123456789")), ..Lane::default() },
            project: None,
            method: "POST".into(),
            path: "v1/private/traces".into(),
            items: 1,
            body_bytes: 2,
            attachment: None,
            accepted_at_ms: 1,
            attempts: 1,
            next_attempt_at_ms: 0,
            answer: Some(LastAnswer { status, text: text.into(), at_ms: id * 1000 }),
        }
    }

    #[test]
    fn the_servers_words_are_counted_with_the_newest_ids() {
        let newest = (0..30).rev().map(|id| match id % 3 {
            0 => rejected(id, Some(400), r#"{"code":400,"message":"name is required","details":"traces[0]"}"#),
            _ => rejected(id, Some(413), "too large"),
        });
        let found = RejectionsOverview::of(newest);
        assert_eq!((found.read, found.others, found.list.len()), (30, 0, 2));
        let [large, name] = &found.list[..] else { panic!("{found:?}") };
        assert_eq!((large.status, large.words.as_str(), large.messages), (Some(413), "too large", 20));
        assert_eq!(large.ids, [29, 28, 26, 25, 23].map(MessageId));
        assert_eq!((name.words.as_str(), name.last_at_ms), ("name is required: traces[0]", 27_000));
    }

    #[test]
    fn however_different_the_answers_the_list_is_bounded() {
        let found = RejectionsOverview::of((0..200).map(|id| rejected(id, None, &format!("answer {id}"))));
        assert_eq!((found.list.len(), found.read, found.others), (REJECTIONS_MAX, 200, 200 - REJECTIONS_MAX as u64));
    }

    #[test]
    fn a_key_in_the_servers_words_is_masked() {
        let found = RejectionsOverview::of([rejected(1, Some(401), "no user has made-up-key-0123456789!")].into_iter());
        assert_eq!(found.list[0].words, "no user has ***!");
    }
}
