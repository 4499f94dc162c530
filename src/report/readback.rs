//! The result of `replay --verify`, for people and programs.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::figures::count;
use crate::printable::name;
use crate::replay::verify::Verified;
use crate::terminal::Shown;

/// Which delivered entities the server shows.
#[derive(Serialize)]
pub(crate) struct Readback {
    /// Entities that the server shows.
    shown: u64,
    missing: Vec<NotShown>,
    /// Partial rows that were completed.
    #[serde(skip_serializing_if = "is_none")]
    repaired: u64,
    /// Entities that could not be requested.
    unread: u64,
    /// Why entities could not be requested, for people.
    reasons: Vec<String>,
    /// Requests, by type, whose data can't be read back.
    not_readable: BTreeMap<&'static str, u64>,
    /// Messages that another process delivered; their entities are not read back.
    delivered_elsewhere: u64,
}

#[derive(Serialize)]
struct NotShown {
    kind: &'static str,
    id: String,
    workspace: String,
    project: Option<String>,
    /// Missing scores of an entity that exists.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    scores: Vec<String>,
    /// The entity exists, but without the data of its create.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    partial: bool,
}

fn is_none(count: &u64) -> bool {
    *count == 0
}

impl Readback {
    /// Returns the result as it is reported.
    pub(crate) fn of(verified: Verified, delivered_elsewhere: u64) -> Self {
        let missing = verified.missing.into_iter().map(|missing| NotShown {
            kind: missing.kind.name(),
            id: missing.id,
            workspace: missing.workspace,
            project: missing.project,
            scores: if missing.is_shown { missing.scores.into_iter().collect() } else { Vec::new() },
            partial: missing.is_partial,
        });
        Self {
            shown: verified.shown,
            missing: missing.collect(),
            repaired: verified.repaired,
            unread: verified.unread,
            reasons: verified.reasons,
            not_readable: verified
                .not_readable
                .into_iter()
                .map(|(t, requests)| (t.name().trim_end_matches("Message"), requests))
                .collect(),
            delivered_elsewhere,
        }
    }

    /// Returns the result for people.
    pub(crate) fn text(&self) -> Shown {
        const LISTED_MAX: usize = 20;
        let missing = self.missing.len() as u64;
        let asked = self.shown + missing;
        let mut text = Shown::lines(&match (asked, missing) {
            (0, _) if self.unread > 0 => String::new(),
            (0, _) => "verified  nothing: no delivered entity can be read back\n".to_owned(),
            (_, 0) => format!("verified  {}: the server shows all of them\n", entities(asked)),
            _ => format!("missing   {missing} of {}: the server does not show\n", entities(asked)),
        });
        for entity in self.missing.iter().take(LISTED_MAX) {
            let project =
                entity.project.as_ref().map_or(String::new(), |project| format!(", project {}", name(project)));
            let scores = match entity.scores.is_empty() {
                true => String::new(),
                false => format!("scores {} of ", name(&entity.scores.join(", "))),
            };
            let scores = if entity.partial { "what was created of ".to_owned() } else { scores };
            text.add_line(&format!(
                "  {scores}{} {} (workspace {}{project})",
                entity.kind,
                name(&entity.id),
                name(&entity.workspace)
            ));
        }
        if self.missing.len() > LISTED_MAX {
            text.add_line("  and more: --format json lists all");
        }
        if self.repaired > 0 {
            let text_of = entities(self.repaired);
            text.add_line(&format!("repaired  {text_of}: an update had reached the server before the create"));
        }
        if self.unread > 0 {
            text.add_line(&format!("unread    {}", entities(self.unread)));
            self.reasons.iter().for_each(|reason| text.add_line(&format!("  {reason}")));
        }
        for (message_type, requests) in &self.not_readable {
            text.add_line(&format!("  {} can't be read back", count(*requests, &format!("{message_type} request"))));
        }
        if self.delivered_elsewhere > 0 {
            let messages = count(self.delivered_elsewhere, "message");
            text.add_line(&format!("  {messages} left the store through another process and are not read back"));
        }
        text
    }
}

fn entities(number: u64) -> String {
    if number == 1 { "1 entity".to_owned() } else { format!("{number} entities") }
}
