//! The verdict of the diagnosis on the page: its sentence with the command that helps, the words of the tab, and a shape.

use super::badge::Badge;
use super::text::{escaped, number};
use super::{command, command::ShownCommand};
use crate::delivery::eta::EtaState;
use crate::diagnosis::{Diagnosis, Facts, Severity, diagnose};
use crate::overview::Overview;
use crate::overview::page::CommandOptions;

/// The headline of the page, and what it is about.
pub(super) struct PageVerdict {
    pub(super) badge: Badge,
    pub(super) diagnosis: Diagnosis,
    /// A few words.
    short: String,
}

impl PageVerdict {
    pub(super) fn of(overview: &Overview) -> Self {
        let mut facts = overview.facts();
        for server in facts.elsewhere.iter_mut().filter_map(|other| other.server.as_mut()) {
            // Whoever made the store chose it: it must not end a command and begin another.
            *server = server.replace('`', "%60");
        }
        let diagnosis = diagnose(&facts);
        let badge = match diagnosis.verdict.level {
            Severity::Ok => Badge::Good,
            Severity::Warning => Badge::Warn,
            Severity::Failed => Badge::Bad,
        };
        Self { badge, short: short(&facts), diagnosis }
    }

    /// Returns the title of the page.
    pub(super) fn title(&self) -> String {
        format!("{} {} · opik-offline", self.badge.symbol(), self.short)
    }

    /// Returns the sentence with its command.
    pub(super) fn html(&self, options: &CommandOptions) -> String {
        let verdict = &self.diagnosis.verdict;
        let command = verdict.command.as_ref().filter(|command| command.len() <= command::LENGTH_MAX);
        let command = command.map_or(String::new(), |command| {
            format!(r#"<p class="mends">{}</p>"#, ShownCommand::completed(command, options).html())
        });
        format!(r#"<p class="verdict">{}{}</p>{command}"#, self.badge.html(), escaped(&verdict.text))
    }
}

/// Returns the state in the few words that a tab has room for.
fn short(facts: &Facts) -> String {
    let state = facts.eta.as_ref().map(|eta| eta.state);
    let states = [
        (facts.store.problem.is_some() || facts.agent_problem.is_some(), "store unusable"),
        (facts.store.full.is_some(), "store full"),
        (facts.available == Some(false), "server away"),
        (facts.available.is_none(), "looking for the server"),
        (facts.replay_hold.is_some(), "held by a person"),
        (state == Some(EtaState::Stalled), "stuck"),
        (state == Some(EtaState::Growing), "growing"),
    ];
    let elsewhere: u64 = facts.elsewhere.iter().map(|other| other.waiting).sum();
    let counts = [
        (facts.waiting, "waiting"),
        (facts.rejected, "rejected"),
        (facts.held_ids, "held"),
        (elsewhere, "for other servers"),
    ];
    let said = states.into_iter().filter(|(is_so, _)| *is_so).map(|(_, words)| words.to_owned());
    let counted = counts.into_iter().filter(|(count, _)| *count > 0);
    let words: Vec<String> = said.chain(counted.map(|(count, what)| format!("{} {what}", number(count)))).collect();
    if words.is_empty() { "all delivered".to_owned() } else { words.join(", ") }
}
