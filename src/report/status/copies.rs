//! Messages of the store that have copies in a depot: only an agent with that depot delivers them.

use serde::Serialize;

use super::gather::Gathered;
use crate::agent::wrapped::store_option;
use crate::config::Config;
use crate::delivery::eta::{Eta, EtaState};
use crate::figures::count;
use crate::overview::EtaOverview;
use crate::printable::shell_word;

/// Messages with copies in a depot, and whether anybody delivers them.
#[derive(Serialize)]
pub(crate) struct CopiesReport {
    /// The depot's URL, without secrets.
    pub depot: String,
    /// How many of the messages that wait have a copy there.
    pub messages: u64,
    /// Whether the running agent ships to this depot: nobody else delivers them from this store.
    pub is_delivered: bool,
    /// Whether an agent runs at all.
    #[serde(skip)]
    has_agent: bool,
    /// The options that name this store.
    #[serde(skip)]
    store_option: String,
}

impl CopiesReport {
    /// Returns the report; `None` if no message has a copy whose fate the depot does not know.
    pub(crate) fn of(config: &Config, gathered: &Gathered) -> Option<Self> {
        let copies = gathered.store.as_ref().ok()?.copies.as_ref()?;
        let fleet = gathered.overview.fleet.as_ref();
        Some(Self {
            depot: copies.depot.clone(),
            messages: copies.messages,
            is_delivered: fleet.is_some_and(|fleet| fleet.depot == copies.depot),
            has_agent: gathered.agent.is_some(),
            store_option: store_option(config),
        })
    }

    /// Returns what it says in place of an estimate while nobody delivers them.
    pub(crate) fn eta(&self) -> Option<EtaOverview> {
        let eta = Eta::silent(EtaState::Idle);
        let text = format!("nobody delivers it: {}", self.remedy());
        (!self.is_delivered).then_some(EtaOverview { eta, text })
    }

    /// Returns it for people, while nobody delivers them.
    pub(crate) fn text(&self) -> Option<String> {
        let who = if self.has_agent { "the agent that runs does not use it" } else { "no agent runs" };
        let text = format!("{} has copies of {}; {who}", self.depot, count(self.messages, "message"));
        (!self.is_delivered).then_some(text)
    }

    /// Returns the command that delivers them, while nobody does.
    pub(crate) fn command(&self) -> Option<String> {
        let url = shell_word(self.depot.as_ref());
        (!self.is_delivered).then(|| format!("opik-offline agent{} --fleet {url}", self.store_option))
    }

    fn remedy(&self) -> String {
        let instead = if self.has_agent { " in place of the one that runs" } else { "" };
        format!("start `{}`{instead}", self.command().unwrap_or_default())
    }
}
