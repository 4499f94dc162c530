//! The page in one sentence, in the words of its tab, and in a shape.

use super::badge::Badge;
use super::text::{number, words};
use crate::delivery::eta::EtaState;
use crate::overview::{LiveWrites, Overview};

/// The headline of the page.
pub(super) struct PageVerdict {
    pub(super) badge: Badge,
    pub(super) text: String,
    /// A few words.
    pub(super) short: String,
}

impl PageVerdict {
    pub(super) fn of(overview: &Overview) -> Self {
        let (badge, mut text, mut short) = state(overview);
        let mut badge = badge;
        let store = &overview.store;
        let mut also = |count: u64, said: String, shortly: &str| {
            if count > 0 {
                badge = badge.max(Badge::Warn);
                text.push_str(&said);
                match short.as_str() {
                    DONE => short = format!("{} {shortly}", number(count)),
                    _ => short.push_str(&format!(", {} {shortly}", number(count))),
                }
            }
        };
        if store.usable {
            let were = |count| format!("{} {}", words(count, "message"), if count == 1 { "was" } else { "were" });
            also(store.rejected, format!("; {} rejected by it", were(store.rejected)), "rejected");
            let held = held(overview);
            also(held, format!("; {} refused for the time in the ids", were(held)), "held");
            let elsewhere = store.elsewhere.iter().map(|other| other.waiting).sum();
            also(elsewhere, format!("; {} other servers", waits_for(elsewhere)), "for other servers");
        }
        Self { badge, text, short }
    }

    /// Returns the title of the page.
    pub(super) fn title(&self) -> String {
        format!("{} {} · opik-offline", self.badge.symbol(), self.short)
    }
}

/// The words of a state in which nothing is left to do.
const DONE: &str = "all delivered";

/// Returns how many messages the server refused for the time in their ids.
pub(super) fn held(overview: &Overview) -> u64 {
    overview.store.groups.iter().filter(|group| group.status == "held").map(|group| group.messages).sum()
}

/// Returns the state of the messages for this server.
fn state(overview: &Overview) -> (Badge, String, String) {
    let store = &overview.store;
    let is_away = overview.server.connection == "unavailable";
    if !store.usable {
        let text = match is_away {
            true => "The Opik server is away, and the store can’t be used: writes are refused".to_owned(),
            false => format!("The store can’t be used: the agent {}", LiveWrites::text_of(store.live_writes)),
        };
        return (Badge::Bad, text, "store unusable".to_owned());
    }
    if let Some(full) = &store.full {
        let refused = match full.refused_writes {
            0 => String::new(),
            refused => format!("; {} refused", words(refused, "write")),
        };
        let text = match is_away {
            true => format!("The store is full and the Opik server is away{refused}"),
            false => format!("The store is full: writes only go straight to the Opik server{refused}"),
        };
        return (Badge::Bad, text, "store full".to_owned());
    }
    let (messages, count) = (messages(store.waiting), number(store.waiting));
    let state = overview.eta.as_ref().map_or(EtaState::Nothing, |eta| eta.eta.state);
    let said = |badge, text: String, short: String| (badge, text, short);
    match (is_away, state) {
        (true, EtaState::Nothing) => {
            said(Badge::Warn, "The Opik server is away; nothing waits for it yet".into(), "server away".into())
        }
        (true, _) => said(
            Badge::Warn,
            format!("The Opik server is away; {messages} safe on disk"),
            format!("server away, {count} waiting"),
        ),
        (false, EtaState::Nothing) if overview.server.connection == "unknown" => said(
            Badge::Warn,
            "The agent has just started and looks for the Opik server".into(),
            "looking for the server".into(),
        ),
        (false, EtaState::Nothing) => {
            said(Badge::Good, "The Opik server takes everything; nothing waits".into(), DONE.into())
        }
        (false, EtaState::Held) => said(
            Badge::Warn,
            format!("{messages} safe on disk; every lane is held"),
            format!("{count} waiting, all lanes held"),
        ),
        (false, EtaState::Stalled) => said(
            Badge::Bad,
            format!("{messages} safe on disk, and nothing gets through"),
            format!("{count} waiting, stuck"),
        ),
        (false, EtaState::Growing) => said(
            Badge::Warn,
            format!("{messages} safe on disk, and the backlog grows"),
            format!("{count} waiting, growing"),
        ),
        (false, _) => said(
            Badge::Good,
            format!("The Opik server is back; {messages} being delivered"),
            format!("delivering {count}"),
        ),
    }
}

/// `1 message is`, `3 messages are`.
fn messages(count: u64) -> String {
    let is = if count == 1 { "is" } else { "are" };
    format!("{} {is}", words(count, "message"))
}

/// `1 message waits for`, `3 messages wait for`.
pub(super) fn waits_for(count: u64) -> String {
    let waits = if count == 1 { "waits" } else { "wait" };
    format!("{} {waits} for", words(count, "message"))
}
