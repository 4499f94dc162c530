//! The problems, each with its remedies.

use std::time::Duration;

use serde::Serialize;

use super::facts::{Facts, FullFacts, HeldFacts, OrphanFacts};
use super::verdict::held_until;
use crate::figures::{count, relative, separated, short_duration, size, them, too_old};
use crate::printable::{name, shell_word};
use crate::protocol::recognise::{NOT_OPIK, UNHEALTHY, unwell_hint};

/// How serious a problem is: whether messages are kept and retried, or lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Severity {
    /// Messages can't be kept, or don't get through.
    Failed,
    /// It works, and needs attention.
    Warning,
    /// As it should be.
    Ok,
}

/// A problem with its remedies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Problem {
    /// A word for programs.
    pub name: &'static str,
    pub level: Severity,
    pub text: String,
    /// Sentences with commands, the best first.
    pub fixes: Vec<String>,
}

/// How many workspaces a sentence names.
const NAMES_MAX: usize = 3;

/// Returns everything that is wrong, the worst first.
pub(super) fn problems(facts: &Facts) -> Vec<Problem> {
    let mut found: Vec<Problem> = [
        unusable(facts),
        agent(facts),
        moved(facts),
        unproven(facts),
        full(facts),
        away(facts),
        access(facts),
        refused(facts),
        other_agent(facts),
        file_system(facts),
        narrow_disk(facts),
        files(facts),
        client(facts),
        replay_held(facts),
        held(facts),
        held_ids(facts),
        near_window(facts),
        rejected(facts),
        stranded(facts),
        elsewhere(facts),
        dropped(facts),
        recovered(facts),
        orphans(facts),
    ]
    .into_iter()
    .flatten()
    .collect();
    // Stable: within a level the order above stays.
    found.sort_by_key(|problem| problem.level);
    found
}

fn problem(name: &'static str, level: Severity, text: String, fixes: Vec<String>) -> Problem {
    Problem { name, level, text, fixes }
}

/// `1 message waits`, `2 messages wait`.
pub(super) fn are(number: u64, noun: &str, one: &str, more: &str) -> String {
    format!("{} {}", count(number, noun), if number == 1 { one } else { more })
}

fn unusable(facts: &Facts) -> Vec<Problem> {
    let fix = "`opik-offline healthcheck` shows what is wrong with it".to_owned();
    let problems = facts.store.problem.iter();
    problems
        .map(|reason| {
            problem("store", Severity::Failed, format!("the store cannot be used: {reason}"), vec![fix.clone()])
        })
        .collect()
}

fn agent(facts: &Facts) -> Vec<Problem> {
    let fix = "repair the store; the agent retries on its own";
    let problems = facts.agent_problem.iter();
    let text = |what: &String| format!("the agent cannot use its store: it {what}");
    problems.map(|what| problem("agent", Severity::Failed, text(what), vec![fix.to_owned()])).collect()
}

fn moved(facts: &Facts) -> Vec<Problem> {
    let moved = |path: &String| {
        let text = format!(
            "the store {path} was moved away while it was in use; writes that may conflict with what it holds are refused"
        );
        let fix = format!("move it back, or deliver it: `opik-offline replay --db {}`", shell_word(path.as_ref()));
        problem("moved_store", Severity::Failed, text, vec![fix])
    };
    facts.store.moved.iter().map(moved).collect()
}

fn unproven(facts: &Facts) -> Vec<Problem> {
    let unproven = facts.store.unproven.iter().map(|unproven| {
        let since = relative(facts.now_ms, unproven.since_ms);
        let text = format!("a write to the store failed {since}, so it is unproven: {}", unproven.reason);
        let fix = "check the disk; the store is used again once its log was rewritten and synced";
        problem("unproven", Severity::Failed, text, vec![fix.to_owned()])
    });
    unproven.collect()
}

fn full(facts: &Facts) -> Vec<Problem> {
    let full = facts.store.full.iter().map(|full| {
        let since = full.since_ms.map_or(String::new(), |since| {
            format!(" (since {})", relative(facts.now_ms, since).trim_end_matches(" ago"))
        });
        let text = format!("the store is full and takes no more{since}{}: {}", refused_words(full), full.reason);
        problem("full", Severity::Failed, text, full.remedies.clone())
    });
    full.collect()
}

/// Returns what a full store has cost: `, 93 writes were refused`. Their clients retry them, or lose them.
pub(super) fn refused_words(full: &FullFacts) -> String {
    let refused = |number| are(number, "write", "was refused", "were refused");
    match (full.refused, full.passed_on) {
        (Some(number), Some(0) | None) => format!(", {}", refused(number)),
        (Some(number), Some(passed)) => {
            format!(", {} and {} went straight to the server", refused(number), separated(passed))
        }
        (None, _) if full.refused_ever > 0 => format!(", {} since it was created", refused(full.refused_ever)),
        (None, _) => String::new(),
    }
}

fn away(facts: &Facts) -> Vec<Problem> {
    let Some(reason) = facts.server_reason.as_ref().filter(|_| facts.available == Some(false)) else {
        return Vec::new();
    };
    let unavailable = format!("the Opik server is unavailable: {reason}");
    let fails = |after: &str| reason.strip_prefix(after).map(is_own_failure);
    let (text, fix) = match (fails(NOT_OPIK), fails(UNHEALTHY)) {
        (Some(true), _) => (
            format!("a proxy answers for the Opik server at {}: {reason}", facts.server_url),
            "start the server behind it, or check its log",
        ),
        (Some(false), _) => (
            format!("something else answers at {}: {reason}", facts.server_url),
            "check the address, and name the Opik server with --upstream",
        ),
        (None, Some(true)) => (unavailable, "check the server's log and its databases: it answers, and is not well"),
        (None, _) => (unavailable, "start the server, check the network, or name another server with --upstream"),
    };
    vec![problem("server", Severity::Failed, text, vec![fix.to_owned()])]
}

/// Returns whether an answer that begins with its status is about the server, not about the request or the address.
fn is_own_failure(answer: &str) -> bool {
    let digits = answer.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    digits.parse().is_ok_and(|status| unwell_hint(status).is_some())
}

fn file_system(facts: &Facts) -> Vec<Problem> {
    let found = facts.store.file_system.iter();
    let text = |problem: &str| format!("the store is {problem}");
    found
        .map(|found| problem("file_system", Severity::Warning, text(&found.problem), vec![found.remedy.clone()]))
        .collect()
}

fn narrow_disk(facts: &Facts) -> Vec<Problem> {
    let narrow = facts.store.narrow_disk.iter().map(|(free, capacity)| {
        let text = format!(
            "its disk has {} free, and room for a store of {}, less than max_size",
            size(*free),
            size(*capacity)
        );
        problem("disk", Severity::Warning, text, vec!["free disk space: `df -h` shows where".to_owned()])
    });
    narrow.collect()
}

fn files(facts: &Facts) -> Vec<Problem> {
    let files = facts.files_problem.iter().map(|files| {
        let (what, fix) = files.split_once("; ").unwrap_or((files.as_str(), "raise the hard limit on open files"));
        problem("open_files", Severity::Warning, format!("few open files: {what}"), vec![fix.to_owned()])
    });
    files.collect()
}

fn client(facts: &Facts) -> Vec<Problem> {
    let client = facts.client_problem.iter();
    client.map(|text| problem("client", Severity::Warning, text.clone(), Vec::new())).collect()
}

fn other_agent(facts: &Facts) -> Vec<Problem> {
    let other = facts.other_agent.iter();
    other.map(|text| problem("other_agent", Severity::Warning, text.clone(), Vec::new())).collect()
}

/// A server that is there, and says that something is wrong with the requests.
fn access(facts: &Facts) -> Vec<Problem> {
    let Some(reason) = facts.server_reason.as_ref().filter(|_| facts.available == Some(true)) else {
        return Vec::new();
    };
    let fix = "check the key and the workspace: `opik-offline healthcheck`";
    vec![problem("access", Severity::Warning, format!("the Opik server answers, but {reason}"), vec![fix.to_owned()])]
}

/// Writes that the server refused at once. They are lost unless the application retries them.
fn refused(facts: &Facts) -> Vec<Problem> {
    let refused = facts.refused.iter().map(|refused| {
        let writes = count(refused.writes, "write");
        let status = http::StatusCode::from_u16(refused.last_status);
        let last = status.map_or_else(|_| refused.last_status.to_string(), |status| status.to_string());
        let at = relative(facts.now_ms, refused.last_at_ms);
        let text = format!(
            "the server refused {writes} of applications since the agent started (last: {last}, {at}): they were told, \
             and nothing is stored"
        );
        let fix = match refused.is_about_access() {
            true => {
                "check the key and the workspace of the application; `opik-offline healthcheck` asks the server about the \
                 configured ones"
            }
            false => "the application was told why: see its log",
        };
        problem("forwarded_refused", Severity::Warning, text, vec![fix.to_owned()])
    });
    refused.collect()
}

/// A person's hold of the replay of the whole store.
fn replay_held(facts: &Facts) -> Vec<Problem> {
    let held = facts.replay_hold.iter().map(|hold| {
        let text = format!("replay is {}: nothing that waits is delivered", held_until(facts.now_ms, hold));
        let fix = "`opik-offline replay --resume` ends that; it also ends by itself".to_owned();
        problem("replay_held", Severity::Warning, text, vec![fix])
    });
    held.collect()
}

fn held(facts: &Facts) -> Vec<Problem> {
    held_lanes(facts.now_ms, &facts.held).into_iter().map(|(_, problem)| problem).collect()
}

/// Lanes that are held for one reason, such as a rate limit or an expired key, are one problem; with whether the server
/// refuses their key.
pub(crate) fn held_lanes(now_ms: i64, held: &[HeldFacts]) -> Vec<(bool, Problem)> {
    let mut groups: Vec<Vec<&HeldFacts>> = Vec::new();
    for lane in held {
        let key = |lane: &HeldFacts| (lane.is_key_refused, lane.reason.clone(), lane.elsewhere.clone());
        match groups.iter_mut().find(|group| key(group[0]) == key(lane)) {
            Some(group) => group.push(lane),
            None => groups.push(vec![lane]),
        }
    }
    groups.iter().map(|group| (group[0].is_key_refused, held_group(now_ms, group))).collect()
}

fn held_group(now_ms: i64, lanes: &[&HeldFacts]) -> Problem {
    let first = lanes[0];
    let until_ms = lanes.iter().map(|lane| lane.until_ms).min().unwrap_or_default();
    let retried = match until_ms <= now_ms {
        true => "retried now".to_owned(),
        false => format!("retried {}", relative(now_ms, until_ms)),
    };
    let who = match lanes {
        [lane] => {
            let key = lane.key.as_ref().map_or(String::new(), |key| format!(" (key {key})"));
            format!("workspace {}{key} is held", name(&lane.workspace))
        }
        _ => {
            let mut names: Vec<&str> = lanes.iter().map(|lane| lane.workspace.as_str()).collect();
            names.sort_unstable();
            names.dedup();
            let shown: Vec<String> = names.iter().take(NAMES_MAX).map(|workspace| name(workspace)).collect();
            let more = match names.len().saturating_sub(NAMES_MAX) {
                0 => String::new(),
                more => format!(" and {} more", separated(more as u64)),
            };
            let noun = if names.len() == 1 { "workspace" } else { "workspaces" };
            format!("{} are held ({noun} {}{more})", count(lanes.len() as u64, "lane"), shown.join(", "))
        }
    };
    let upstream = first.elsewhere.as_ref().map(|url| format!(" --upstream {}", shell_word(url.as_ref())));
    let upstream = upstream.unwrap_or_default();
    let fixes = match first.is_key_refused {
        true => vec![format!(
            "check the key: `opik-offline healthcheck{upstream}` asks the server about the configured one, and \
             `opik-offline replay --rekey{upstream}` gives it to what waits, after a preview"
        )],
        false => Vec::new(),
    };
    problem("held", Severity::Warning, format!("{who}, {retried}: {}", first.reason), fixes)
}

fn held_ids(facts: &Facts) -> Vec<Problem> {
    if facts.held_ids == 0 {
        return Vec::new();
    }
    let held = are(facts.held_ids, "message", "is held: its ids are", "are held: their ids are");
    let see = "`opik-offline inspect --status held` lists them".to_owned();
    let fixes = vec![facts.held_ids_remedy.to_owned(), see];
    vec![problem("held_ids", Severity::Warning, format!("{held} outside the server's window"), fixes)]
}

fn near_window(facts: &Facts) -> Vec<Problem> {
    let near = facts.near_window_since_ms.iter().map(|since| {
        let since = relative(facts.now_ms, *since);
        let text =
            format!("a create was accepted {since}: servers with UUID_VALIDATION_ENABLED refuse ids older than 24h");
        problem("id_window", Severity::Warning, text, vec![format!("deliver it: `{}`", facts.deliver)])
    });
    near.collect()
}

fn rejected(facts: &Facts) -> Vec<Problem> {
    if facts.rejected == 0 {
        return Vec::new();
    }
    let was = are(facts.rejected, "message", "was rejected", "were rejected");
    let reasons = match facts.rejected_reasons.is_empty() {
        true => String::new(),
        false => format!(": {}", facts.rejected_reasons.join("; ")),
    };
    let fix = "see why: `opik-offline inspect --rejected`; when the cause is fixed: `opik-offline replay --rejected`"
        .to_owned();
    vec![problem("rejected", Severity::Warning, format!("{was} by the server{reasons}"), vec![fix])]
}

fn stranded(facts: &Facts) -> Vec<Problem> {
    let is_one = facts.stranded.len() == 1;
    let stranded = facts.stranded.iter().map(|stranded| {
        let of = if is_one { String::new() } else { format!(" of workspace {}", name(&stranded.workspace)) };
        let (messages, status) = (count(stranded.messages, "message"), stranded.status);
        let (verb, wait) = if stranded.messages == 1 { ("is", "it waits") } else { ("are", "they wait") };
        let text = format!("{messages}{of} {verb} stranded: the create that {wait} for is {status}");
        let fix = format!(
            "see `opik-offline inspect {}`, then `opik-offline replay --status {status}`, or purge it",
            stranded.create
        );
        problem("stranded", Severity::Warning, text, vec![fix])
    });
    stranded.collect()
}

fn elsewhere(facts: &Facts) -> Vec<Problem> {
    let others = facts.elsewhere.iter().filter(|other| other.waiting > 0);
    let elsewhere = others.map(|other| {
        let wait = are(other.waiting, "message", "waits", "wait");
        match &other.server {
            Some(url) => {
                // Whoever made the store chose it.
                let word = shell_word(url.as_ref());
                let fixes = vec![
                    format!("deliver there: `opik-offline replay --upstream {word}`, or an agent for it"),
                    format!("if it has another address now: `opik-offline replay --readdress {word} --upstream URL`"),
                ];
                problem("elsewhere", Severity::Warning, format!("{wait} for another server, {url}"), fixes)
            }
            None => {
                let text = format!("{wait} of an earlier version, which recorded no server");
                let go = if other.waiting == 1 { "it goes" } else { "they go" };
                let fix = format!("{go} to the server of the first agent");
                problem("elsewhere", Severity::Warning, text, vec![fix])
            }
        }
    });
    elsewhere.collect()
}

fn dropped(facts: &Facts) -> Vec<Problem> {
    let dropped = facts.store.dropped;
    let causes = [
        (dropped.full, "because the store was full", "give the store more room: `opik-offline agent --max-size 20GiB`"),
        (
            dropped.rejected,
            "because rejected ones held more than rejected_share",
            "fix what the server refuses, or purge it in time",
        ),
        (dropped.expired, too_old(dropped.expired), "deliver messages in time, or raise max_age"),
    ];
    let found = causes.into_iter().filter(|(number, ..)| *number > 0);
    let dropped = found.map(|(number, why, fix)| {
        let text = format!("dropped {} {why}", count(number, "message"));
        problem("dropped", Severity::Warning, text, vec![fix.to_owned()])
    });
    dropped.collect()
}

fn recovered(facts: &Facts) -> Vec<Problem> {
    let recovered = facts.store.recoveries.iter().map(|recovery| {
        let at = relative(facts.now_ms, recovery.at_ms);
        let (recovered, lost) = (count(recovery.recovered, "message"), separated(recovery.lost));
        let text = format!("the store was damaged {at}: {recovered} recovered, {lost} lost");
        let fixes = match &recovery.set_aside {
            Some(file) => {
                let word = shell_word(file.as_ref());
                vec![format!("check the disk; delete the damaged file {word} once you no longer need it")]
            }
            None => vec!["check the disk".to_owned()],
        };
        problem("recovered", Severity::Warning, text, fixes)
    });
    recovered.collect()
}

fn orphans(facts: &Facts) -> Vec<Problem> {
    let found = orphaned_files(&facts.orphans, &facts.orphans_pattern);
    found.into_iter().collect()
}

/// Returns the stores to salvage that ended Python processes left behind as one problem; `None` if no message is in
/// them.
///
/// `pattern` matches all of them.
pub(crate) fn orphaned_files(orphans: &[OrphanFacts], pattern: &str) -> Option<Problem> {
    let files: Vec<&OrphanFacts> = orphans.iter().filter(|orphan| orphan.messages != Some(0)).collect();
    let known = files.iter().filter_map(|orphan| orphan.messages).sum::<u64>();
    let uncounted = files.iter().filter(|orphan| orphan.messages.is_none()).count();
    let hold = match (known, uncounted) {
        (_, 0) => count(known, "message"),
        (0, _) => "an unknown number of messages".to_owned(),
        (_, _) => format!("at least {}", count(known, "message")),
    };
    let damaged = if uncounted > 0 { "; some may be damaged" } else { "" };
    let (text, word) = match files[..] {
        [] => return None,
        [file] => {
            let age = short_duration(Duration::from_secs(file.age_seconds));
            let bytes = size(file.bytes);
            (
                format!("a Python process that ended {age} ago left {hold} ({bytes}) in {}{damaged}", file.word),
                &*file.word,
            )
        }
        _ => {
            let number = count(files.len() as u64, "file");
            (format!("{number} of ended Python processes hold {hold}{damaged}"), pattern)
        }
    };
    let them = if uncounted == 0 { them(known) } else { "them" };
    let fix = format!("deliver {them}: `opik-offline replay --from {word} --remove-source`");
    Some(problem("orphans", Severity::Warning, text, vec![fix]))
}

#[cfg(test)]
mod tests {
    use super::super::facts::{DroppedFacts, ElsewhereFacts, RefusedFacts, StrandedFacts};
    use super::*;

    fn orphan(messages: Option<u64>) -> OrphanFacts {
        OrphanFacts { word: "/tmp/tmpa/opik_messages.db".into(), messages, bytes: 2048, age_seconds: 90 }
    }

    fn lane(workspace: &str, is_key_refused: bool) -> HeldFacts {
        HeldFacts {
            workspace: workspace.into(),
            key: Some("made***".into()),
            reason: "401: Invalid API key".into(),
            until_ms: 10_000,
            is_key_refused,
            elsewhere: None,
        }
    }

    #[test]
    fn nothing_wrong_is_no_problem() {
        assert!(problems(&Facts::default()).is_empty());
        let empty = Facts { orphans: vec![orphan(Some(0)), orphan(Some(0))], ..Facts::default() };
        assert!(problems(&empty).is_empty(), "an empty file is no problem");
    }

    #[test]
    fn files_of_ended_processes_are_one_problem() {
        let facts = Facts {
            orphans: vec![orphan(Some(2000)); 12],
            orphans_pattern: "'/tmp/tmp*/opik_messages.db'".into(),
            ..Facts::default()
        };
        let found = problems(&facts);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].text, "12 files of ended Python processes hold 24,000 messages");
        assert_eq!(
            found[0].fixes,
            ["deliver them: `opik-offline replay --from '/tmp/tmp*/opik_messages.db' --remove-source`"]
        );
        let one = problems(&Facts { orphans: vec![orphan(Some(1)), orphan(Some(0))], ..facts.clone() });
        assert!(one[0].text.contains("ended 1m30s ago left 1 message (2.0 KiB) in /tmp/tmpa/"), "{one:?}");
        let damaged = problems(&Facts { orphans: vec![orphan(None), orphan(Some(3))], ..facts });
        assert!(damaged[0].text.ends_with("hold at least 3 messages; some may be damaged"), "{damaged:?}");
    }

    #[test]
    fn lanes_that_are_held_alike_are_one_problem() {
        let names = ["a", "b", "c", "d", "e"];
        let mut held: Vec<HeldFacts> = names.iter().map(|workspace| lane(workspace, true)).collect();
        held.push(HeldFacts { reason: "429: slow down".into(), ..lane("f", false) });
        let found = problems(&Facts { now_ms: 1000, held, ..Facts::default() });
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(
            found[0].text,
            "5 lanes are held (workspaces a, b, c and 2 more), retried in 9s: 401: Invalid API key"
        );
        assert!(found[0].fixes[0].starts_with("check the key: `opik-offline healthcheck`"), "{found:?}");
        assert!(found[0].fixes[0].contains("`opik-offline replay --rekey`"), "{found:?}");
        assert_eq!(found[1].text, "workspace f (key made***) is held, retried in 9s: 429: slow down");
        assert_eq!(found[1].fixes, Vec::<String>::new(), "it ends by itself");
        let not_ours = HeldFacts { elsewhere: Some("http://b/api".into()), ..lane("g", true) };
        let found = problems(&Facts { held: vec![not_ours], ..Facts::default() });
        assert!(found[0].fixes[0].contains("`opik-offline replay --rekey --upstream http://b/api`"), "{found:?}");
    }

    #[test]
    fn writes_that_the_server_refused_are_a_problem() {
        let refused = |writes, last_status| {
            let refused = Some(RefusedFacts { writes, last_status, last_at_ms: 1000 });
            problems(&Facts { now_ms: 61_000, refused, ..Facts::default() }).remove(0)
        };
        let found = refused(6, 401);
        assert_eq!(
            found.text,
            "the server refused 6 writes of applications since the agent started (last: 401 Unauthorized, 1m ago): they \
             were told, and nothing is stored"
        );
        assert!(found.fixes[0].contains("`opik-offline healthcheck`"), "{found:?}");
        assert!(!refused(1, 400).fixes[0].contains("the key"), "it is about what was written");
    }

    #[test]
    fn a_server_that_fails_is_not_blamed_on_its_address() {
        let fix = |reason: &str| {
            let facts = Facts {
                available: Some(false),
                server_reason: Some(reason.to_owned()),
                server_url: "http://opik".into(),
                ..Facts::default()
            };
            let found = problems(&facts).remove(0);
            format!("{}: {}", found.text, found.fixes[0])
        };
        for (reason, blames_address) in [
            ("not Opik: 200 text/html", true),
            ("the ping was answered with 404: nothing here", true),
            ("cannot connect to http://opik: connection refused", true),
            ("not Opik: 502 text/html \"Bad Gateway\"", false),
            ("the ping was answered with 500: Not Healthy", false),
            ("the ping was answered with 503", false),
        ] {
            assert_eq!(fix(reason).contains("--upstream"), blames_address, "{}", fix(reason));
        }
    }

    #[test]
    fn the_worst_comes_first_and_every_command_is_one_that_is_completed() {
        let mut facts = Facts {
            deliver: "opik-offline replay".into(),
            server_url: "http://opik".into(),
            available: Some(false),
            server_reason: Some("not Opik: 200 text/html".into()),
            rejected: 20_015,
            rejected_reasons: vec!["400 start_time must not be null".into()],
            held: vec![lane("team", true)],
            held_ids: 1,
            near_window_since_ms: Some(0),
            stranded: vec![StrandedFacts { workspace: "team".into(), messages: 2, create: 7, status: "rejected" }],
            elsewhere: vec![ElsewhereFacts { server: None, waiting: 1 }, ElsewhereFacts { server: None, waiting: 0 }],
            orphans: vec![orphan(Some(1))],
            ..Facts::default()
        };
        facts.store.problem = Some("it is damaged".into());
        facts.store.dropped = DroppedFacts { full: 0, rejected: 0, expired: 3 };
        let found = problems(&facts);
        assert!(found.is_sorted_by_key(|problem| problem.level), "{found:?}");
        let names: Vec<&str> = found.iter().map(|problem| problem.name).collect();
        assert_eq!(names[..2], ["store", "server"], "{found:?}");
        assert!(found[1].text.starts_with("something else answers at http://opik: not Opik"), "{found:?}");
        for problem in found.iter().filter(|problem| problem.name != "elsewhere") {
            for command in problem.fixes.iter().flat_map(|fix| fix.split('`').skip(1).step_by(2)) {
                assert!(command.starts_with("opik-offline "), "{command}");
            }
        }
        assert_eq!(found.iter().filter(|problem| problem.name == "elsewhere").count(), 1, "nothing waits there");
    }
}
