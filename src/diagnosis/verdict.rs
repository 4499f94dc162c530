//! The verdict: one sentence, and at most one command.

use super::facts::{Facts, ReplayHoldFacts};
use super::problems::{Problem, Severity, are, refused_words};
use crate::delivery::eta::{Eta, EtaState};
use crate::figures::{count, separated, them, until};
use crate::printable::shell_word;

/// Is the data safe, is it moving, when will it be done; or what is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OverallVerdict {
    pub level: Severity,
    /// A sentence without its command.
    pub text: String,
    /// The one command that mends what is wrong.
    pub command: Option<String>,
    /// The end of the sentence that the command does not mend; empty if there is none.
    pub aside: String,
}

impl OverallVerdict {
    /// Returns the whole sentence.
    pub(crate) fn sentence(&self) -> String {
        match &self.command {
            Some(command) => {
                let mended = self.text.strip_suffix(&self.aside).unwrap_or(&self.text);
                format!("{mended}: `{command}`{}", self.aside)
            }
            None => self.text.clone(),
        }
    }
}

fn verdict_of(level: Severity, text: impl Into<String>) -> OverallVerdict {
    OverallVerdict { level, text: text.into(), command: None, aside: String::new() }
}

impl OverallVerdict {
    fn with(self, command: impl Into<String>) -> Self {
        Self { command: Some(command.into()), ..self }
    }
}

/// Returns the verdict on a snapshot; dead letters (rejected messages) are part of it in any case.
pub(super) fn verdict(facts: &Facts, problems: &[Problem]) -> OverallVerdict {
    let verdict = match () {
        () if facts.store.problem.is_some() || facts.agent_problem.is_some() => unusable(facts),
        () if facts.store.full.is_some() => full(facts),
        () if facts.waiting > 0 => waiting(facts),
        () => nothing_waits(facts, problems),
    };
    // Where nothing waits and the server is there, the sentence is about them.
    let is_said = facts.waiting == 0 && facts.store.full.is_none() && facts.available != Some(false);
    if facts.rejected == 0 || is_said {
        return verdict;
    }
    let was = if facts.rejected == 1 { "was" } else { "were" };
    let aside = format!("; {} {was} rejected", separated(facts.rejected));
    let text = verdict.text.clone() + &aside;
    OverallVerdict { level: verdict.level.min(Severity::Warning), text, aside, ..verdict }
}

fn unusable(facts: &Facts) -> OverallVerdict {
    let who = if facts.store.problem.is_some() { "the store cannot be used" } else { "the agent cannot use its store" };
    let text = match facts.available {
        Some(false) => format!("{who}, and the Opik server is unavailable: nothing new is kept"),
        _ => format!("{who}: nothing new is kept"),
    };
    verdict_of(Severity::Failed, text).with("opik-offline healthcheck")
}

fn full(facts: &Facts) -> OverallVerdict {
    let full = facts.store.full.as_ref();
    let refused = full.map(refused_words).unwrap_or_default();
    let text = match facts.available {
        Some(false) => {
            format!("the store is full and the Opik server is unavailable: new messages are refused{refused}")
        }
        _ => format!("the store is full: new messages are not kept{refused}"),
    };
    let verdict = verdict_of(Severity::Failed, text);
    let remedy = full.and_then(|full| full.remedies.first());
    // The command of the first remedy.
    match remedy.and_then(|remedy| remedy.split('`').nth(1)) {
        Some(command) => verdict.with(command),
        None => verdict,
    }
}

/// `3 messages are safe on disk`; in memory or on a doubtful file system they are only stored.
fn safe(facts: &Facts) -> String {
    let how = if facts.store.file_system.is_some() { "stored" } else { "safe on disk" };
    format!("{} {how}", are(facts.waiting, "message", "is", "are"))
}

fn waiting(facts: &Facts) -> OverallVerdict {
    let safe = safe(facts);
    let warning = |text: String| verdict_of(Severity::Warning, text);
    let agent = "opik-offline agent";
    if let Some(hold) = &facts.replay_hold {
        return held_by_a_person(facts, &safe, hold);
    }
    let Some(eta) = &facts.eta else { return warning(safe) };
    // Where some are for other servers, what is said is about the rest.
    let partly = match for_others(facts) {
        0 => safe.clone(),
        others => format!("{safe} ({} for another server)", separated(others)),
    };
    match eta.state {
        EtaState::ServerAway if facts.has_agent => {
            warning(format!("{partly} until the Opik server is back{}", after(", then delivered in ", eta)))
        }
        EtaState::ServerAway => {
            warning(format!("{partly}; the Opik server is unavailable, and no agent waits for it")).with(agent)
        }
        EtaState::Idle => idle(facts, &partly),
        EtaState::Held if refused_keys(facts) > 0 => {
            warning(format!("{partly}, and held: the server refuses the key, check it"))
                .with("opik-offline healthcheck")
        }
        EtaState::Held => warning(format!("{partly}, and {eta}")),
        EtaState::Growing => warning(format!("{safe}, and more arrive than are delivered")),
        EtaState::Stalled => {
            verdict_of(Severity::Failed, format!("{safe}, and none gets through")).with("opik-offline inspect")
        }
        // An agent has just started.
        EtaState::Moving if facts.has_agent && facts.available.is_none() => {
            warning(format!("{partly}; the agent looks for the Opik server"))
        }
        EtaState::Moving => moving(facts, &safe, eta),
        EtaState::Nothing => elsewhere(facts, &safe),
    }
}

/// Nobody delivers what waits. A retry with a key that was refused would be refused as well.
fn idle(facts: &Facts, safe: &str) -> OverallVerdict {
    let idle = format!("{safe}, and nobody delivers {}", them(facts.waiting));
    match refused_keys(facts) {
        0 => verdict_of(Severity::Warning, idle).with(&facts.deliver),
        lanes => {
            let lanes = count(lanes, "lane");
            verdict_of(Severity::Warning, format!("{idle}; the server refuses the key of {lanes}, check it"))
                .with("opik-offline healthcheck")
        }
    }
}

/// Returns how many lanes of this server are held because it refuses their key.
fn refused_keys(facts: &Facts) -> u64 {
    facts.held.iter().filter(|lane| lane.is_key_refused && lane.elsewhere.is_none()).count() as u64
}

/// Returns how many messages wait for other servers.
fn for_others(facts: &Facts) -> u64 {
    facts.elsewhere.iter().filter(|other| other.server.is_some()).map(|other| other.waiting).sum()
}

/// All that waits is for other servers than this one.
fn elsewhere(facts: &Facts, safe: &str) -> OverallVerdict {
    let others = facts.elsewhere.iter().filter(|other| other.waiting > 0);
    let mut others: Vec<_> = others.filter_map(|other| Some((other.server.as_ref()?, other.waiting))).collect();
    others.sort_by_key(|(_, waiting)| std::cmp::Reverse(*waiting));
    // Whoever made the store chose the addresses.
    let words: Vec<String> = others.iter().map(|(url, _)| shell_word(url.as_ref())).collect();
    let text = match &words[..] {
        [] => format!("{safe}, for another server than this one"),
        [word] => format!("{safe}, for another server, {word}"),
        [word, ..] => format!("{safe}, for {} other servers, most of them for {word}", words.len()),
    };
    let verdict = verdict_of(Severity::Warning, text);
    match words.first() {
        Some(word) => verdict.with(format!("opik-offline replay --upstream {word}")),
        None => verdict,
    }
}

/// A person holds the replay: that explains why nothing moves, whatever else is wrong.
fn held_by_a_person(facts: &Facts, safe: &str, hold: &ReplayHoldFacts) -> OverallVerdict {
    let away = if facts.available == Some(false) { "; the Opik server is unavailable" } else { "" };
    let idle = if facts.has_agent { "" } else { "; no agent runs" };
    let text = format!("{safe}, and {}{away}{idle}", held_until(facts.now_ms, hold));
    verdict_of(Severity::Warning, text).with("opik-offline replay --resume")
}

/// `held until 14:02 UTC by ana`.
pub(super) fn held_until(now_ms: i64, hold: &ReplayHoldFacts) -> String {
    format!("held until {} by {}", until(now_ms, hold.until_ms), hold.by)
}

fn moving(facts: &Facts, safe: &str, eta: &Eta) -> OverallVerdict {
    if !facts.held.is_empty() && eta.time().is_none() {
        let lanes = are(facts.held.len() as u64, "lane", "is", "are");
        return verdict_of(Severity::Warning, format!("{safe}; {lanes} held, and nothing is known to get through yet"));
    }
    let held = match facts.held.len() as u64 {
        0 => String::new(),
        held => format!("; {} held", are(held, "lane", "is", "are")),
    };
    let others: u64 = facts.elsewhere.iter().map(|other| other.waiting).sum();
    let others = match others {
        0 => String::new(),
        others => format!("; {} for another server", separated(others)),
    };
    let ids = match facts.held_ids {
        0 => String::new(),
        ids => format!("; {} held because of the time in the ids", are(ids, "message", "is", "are")),
    };
    let level =
        if [&held, &others, &ids].iter().all(|part| part.is_empty()) { Severity::Ok } else { Severity::Warning };
    verdict_of(level, format!("{safe} and being delivered{}{held}{others}{ids}", after(", done in ", eta)))
}

/// Returns the time after some words; nothing while the throughput is unknown.
fn after(words: &str, eta: &Eta) -> String {
    eta.time().map_or(String::new(), |time| format!("{words}{time}"))
}

fn nothing_waits(facts: &Facts, problems: &[Problem]) -> OverallVerdict {
    if facts.available == Some(false) {
        let warning = |text: &str| verdict_of(Severity::Warning, text);
        return match facts.has_agent {
            true => warning("nothing waits; the Opik server is unavailable, and new messages are kept on disk"),
            false => warning("nothing waits; the Opik server is unavailable, and no agent keeps new messages")
                .with("opik-offline agent"),
        };
    }
    if facts.rejected > 0 {
        let text =
            format!("nothing waits, but {} rejected by the server", are(facts.rejected, "message", "was", "were"));
        return verdict_of(Severity::Warning, text).with("opik-offline inspect --rejected");
    }
    if facts.held_ids > 0 {
        let text = format!(
            "nothing else waits, but {} held: ids outside the server's window",
            are(facts.held_ids, "message", "is", "are")
        );
        return verdict_of(Severity::Warning, text).with("opik-offline inspect --status held");
    }
    if let Some(refused) = facts.refused {
        let writes = count(refused.writes, "write");
        let verdict =
            verdict_of(Severity::Warning, format!("nothing waits, but the server refused {writes} of applications"));
        return if refused.is_about_access() { verdict.with("opik-offline healthcheck") } else { verdict };
    }
    if let Some(hold) = &facts.replay_hold {
        let text = format!("nothing waits; replay is {}", held_until(facts.now_ms, hold));
        return verdict_of(Severity::Warning, text).with("opik-offline replay --resume");
    }
    match (problems.first(), facts.has_agent, facts.available) {
        (Some(problem), ..) => verdict_of(problem.level, "nothing waits, and something needs attention"),
        (None, true, None) => verdict_of(Severity::Ok, "nothing waits; the agent looks for the Opik server"),
        (None, true, _) => verdict_of(Severity::Ok, "all is well: nothing waits, and the Opik server is available"),
        (None, false, _) => verdict_of(Severity::Ok, "nothing waits; no agent runs"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::diagnose;
    use super::super::facts::{ElsewhereFacts, FileSystemFacts, FullFacts, HeldFacts, RefusedFacts};
    use super::*;
    use crate::delivery::eta::Basis;

    fn facts(waiting: u64, state: EtaState) -> Facts {
        let is_away = state == EtaState::ServerAway;
        Facts {
            waiting,
            available: Some(!is_away),
            has_agent: state != EtaState::Idle,
            deliver: "opik-offline replay".into(),
            eta: Some(Eta::silent(state)),
            ..Facts::default()
        }
    }

    fn timed(waiting: u64, state: EtaState) -> Facts {
        let eta =
            Eta { seconds: Some(240.0), seconds_min: Some(190.0), seconds_max: Some(290.0), ..Eta::silent(state) };
        Facts { eta: Some(Eta { basis: Some(Basis::Measured), ..eta }), ..facts(waiting, state) }
    }

    #[test]
    fn a_verdict_says_whether_the_data_is_safe_and_moving() {
        // Whoever made the store chose the address.
        let hostile = ElsewhereFacts { server: Some("http://a/;touch$IFS/tmp/x;".into()), waiting: 2 };
        let refused = HeldFacts { is_key_refused: true, ..HeldFacts::default() };
        let not_ours = HeldFacts { elsewhere: Some("http://other/api".into()), ..refused.clone() };
        let told = RefusedFacts { writes: 6, last_status: 401, last_at_ms: 0 };
        for (facts, level, sentence) in [
            (facts(0, EtaState::Nothing), Severity::Ok, "all is well: nothing waits, and the Opik server is available"),
            (Facts { has_agent: false, ..facts(0, EtaState::Nothing) }, Severity::Ok, "nothing waits; no agent runs"),
            (
                Facts { rejected: 20_015, ..facts(0, EtaState::Nothing) },
                Severity::Warning,
                "nothing waits, but 20,015 messages were rejected by the server: `opik-offline inspect --rejected`",
            ),
            (facts(4, EtaState::Moving), Severity::Ok, "4 messages are safe on disk and being delivered"),
            (
                Facts { elsewhere: vec![hostile.clone()], ..facts(4, EtaState::Moving) },
                Severity::Warning,
                "4 messages are safe on disk and being delivered; 2 for another server",
            ),
            (
                Facts { elsewhere: vec![hostile], ..facts(2, EtaState::Nothing) },
                Severity::Warning,
                "2 messages are safe on disk, for another server, 'http://a/;touch$IFS/tmp/x;': \
                 `opik-offline replay --upstream 'http://a/;touch$IFS/tmp/x;'`",
            ),
            (
                Facts { held: vec![refused.clone()], ..facts(4, EtaState::Idle) },
                Severity::Warning,
                "4 messages are safe on disk, and nobody delivers them; the server refuses the key of 1 lane, check it: \
                 `opik-offline healthcheck`",
            ),
            (
                Facts { held: vec![not_ours], ..facts(4, EtaState::Idle) },
                Severity::Warning,
                "4 messages are safe on disk, and nobody delivers them: `opik-offline replay`",
            ),
            (
                Facts { available: None, ..facts(4, EtaState::Moving) },
                Severity::Warning,
                "4 messages are safe on disk; the agent looks for the Opik server",
            ),
            (
                Facts { refused: Some(told), ..facts(0, EtaState::Nothing) },
                Severity::Warning,
                "nothing waits, but the server refused 6 writes of applications: `opik-offline healthcheck`",
            ),
            (
                Facts { refused: Some(RefusedFacts { last_status: 400, ..told }), ..facts(0, EtaState::Nothing) },
                Severity::Warning,
                "nothing waits, but the server refused 6 writes of applications",
            ),
            (
                Facts { rejected: 1, ..facts(1, EtaState::Idle) },
                Severity::Warning,
                "1 message is safe on disk, and nobody delivers it: `opik-offline replay`; 1 was rejected",
            ),
            (
                Facts { held_ids: 1, ..facts(4, EtaState::Moving) },
                Severity::Warning,
                "4 messages are safe on disk and being delivered; 1 message is held because of the time in the ids",
            ),
            (
                Facts { rejected: 3, available: Some(false), ..facts(0, EtaState::Nothing) },
                Severity::Warning,
                "nothing waits; the Opik server is unavailable, and new messages are kept on disk; 3 were rejected",
            ),
            (
                timed(1, EtaState::Moving),
                Severity::Ok,
                "1 message is safe on disk and being delivered, done in 3m to 5m",
            ),
            (
                Facts { rejected: 1, ..timed(4, EtaState::Moving) },
                Severity::Warning,
                "4 messages are safe on disk and being delivered, done in 3m to 5m; 1 was rejected",
            ),
            (
                timed(240, EtaState::ServerAway),
                Severity::Warning,
                "240 messages are safe on disk until the Opik server is back, then delivered in 3m to 5m",
            ),
            (
                Facts { has_agent: false, ..facts(240, EtaState::ServerAway) },
                Severity::Warning,
                "240 messages are safe on disk; the Opik server is unavailable, and no agent waits for it: \
                 `opik-offline agent`",
            ),
            (
                facts(4, EtaState::Idle),
                Severity::Warning,
                "4 messages are safe on disk, and nobody delivers them: `opik-offline replay`",
            ),
            (
                Facts { held: vec![refused], ..facts(4, EtaState::Held) },
                Severity::Warning,
                "4 messages are safe on disk, and held: the server refuses the key, check it: \
                 `opik-offline healthcheck`",
            ),
            (
                facts(4, EtaState::Stalled),
                Severity::Failed,
                "4 messages are safe on disk, and none gets through: `opik-offline inspect`",
            ),
            (
                facts(4, EtaState::Growing),
                Severity::Warning,
                "4 messages are safe on disk, and more arrive than are delivered",
            ),
        ] {
            let verdict = diagnose(&facts).verdict;
            assert_eq!((verdict.sentence().as_str(), verdict.level), (sentence, level));
        }
    }

    #[test]
    fn a_hold_of_a_person_says_until_when_and_how_it_ends() {
        // 2026-11-22 20:07:08 UTC
        const NOW_MS: i64 = 1_795_378_028_000;
        let hold = |minutes: i64| {
            Some(ReplayHoldFacts { until_ms: NOW_MS + minutes * 60_000, by: "ana (uid 1000 on host-a)".into() })
        };
        for (facts, sentence) in [
            (
                Facts { replay_hold: hold(30), ..facts(4, EtaState::Held) },
                "4 messages are safe on disk, and held until 20:37 UTC by ana (uid 1000 on host-a): \
                 `opik-offline replay --resume`",
            ),
            (
                Facts { replay_hold: hold(300), ..facts(4, EtaState::ServerAway) },
                "4 messages are safe on disk, and held until 2026-11-23 01:07 UTC by ana (uid 1000 on host-a); the Opik \
                 server is unavailable: `opik-offline replay --resume`",
            ),
            (
                Facts { replay_hold: hold(30), ..facts(4, EtaState::Idle) },
                "4 messages are safe on disk, and held until 20:37 UTC by ana (uid 1000 on host-a); no agent runs: \
                 `opik-offline replay --resume`",
            ),
            (
                Facts { replay_hold: hold(0), ..facts(1, EtaState::Held) },
                "1 message is safe on disk, and held until 20:07:08 UTC by ana (uid 1000 on host-a): \
                 `opik-offline replay --resume`",
            ),
            (
                Facts { replay_hold: hold(30), ..facts(0, EtaState::Nothing) },
                "nothing waits; replay is held until 20:37 UTC by ana (uid 1000 on host-a): \
                 `opik-offline replay --resume`",
            ),
        ] {
            let found = diagnose(&Facts { now_ms: NOW_MS, ..facts });
            assert_eq!((found.verdict.sentence().as_str(), found.verdict.level), (sentence, Severity::Warning));
            assert_eq!(found.problems[0].name, "replay_held", "{found:?}");
        }
    }

    #[test]
    fn messages_for_another_server_are_not_called_moving() {
        let elsewhere = ElsewhereFacts { server: Some("http://other/api".into()), waiting: 4 };
        let mixed = Facts { elsewhere: vec![elsewhere.clone()], ..facts(9, EtaState::Idle) };
        assert_eq!(
            diagnose(&mixed).verdict.sentence(),
            "9 messages are safe on disk (4 for another server), and nobody delivers them: `opik-offline replay`"
        );
        let second = ElsewhereFacts { server: Some("http://second/api".into()), waiting: 5 };
        let both = Facts { elsewhere: vec![elsewhere.clone(), second], ..facts(9, EtaState::Nothing) };
        assert_eq!(
            diagnose(&both).verdict.sentence(),
            "9 messages are safe on disk, for 2 other servers, most of them for http://second/api: \
             `opik-offline replay --upstream http://second/api`"
        );
        let facts = Facts { elsewhere: vec![elsewhere], ..facts(4, EtaState::Nothing) };
        let verdict = diagnose(&facts).verdict;
        assert_eq!(
            (verdict.sentence().as_str(), verdict.level),
            (
                "4 messages are safe on disk, for another server, http://other/api: \
                 `opik-offline replay --upstream http://other/api`",
                Severity::Warning
            )
        );
    }

    #[test]
    fn a_store_that_takes_no_more_is_the_verdict() {
        let mut full = facts(4, EtaState::Moving);
        full.store.full = Some(FullFacts {
            refused: Some(93),
            remedies: vec!["give the store more room: `opik-offline agent --max-size 20GiB`".into()],
            ..FullFacts::default()
        });
        assert_eq!(
            diagnose(&full).verdict.sentence(),
            "the store is full: new messages are not kept, 93 writes were refused: `opik-offline agent --max-size 20GiB`"
        );
        let mut unusable = full.clone();
        unusable.store.problem = Some("it is damaged".into());
        let verdict = diagnose(&unusable).verdict;
        assert_eq!(verdict.sentence(), "the store cannot be used: nothing new is kept: `opik-offline healthcheck`");
    }

    #[test]
    fn messages_in_memory_are_not_called_safe() {
        let mut memory = facts(4, EtaState::Moving);
        memory.store.file_system =
            Some(FileSystemFacts { problem: "on tmpfs: in memory".into(), remedy: "name a file on a disk".into() });
        let found = diagnose(&memory);
        assert!(!found.verdict.sentence().contains("safe"), "{found:?}");
        assert_eq!(found.problems.len(), 1, "{found:?}");
    }
}
