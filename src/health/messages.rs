//! The check of what is stored: whether somebody delivers it, and whether the server took everything.

use super::check::{Check, FailureCause};
use crate::delivery::id_window;
use crate::figures::{count, them};
use crate::message::Server;
use crate::printable::shell_word;
use crate::store::{Backlog, BacklogGroup};

/// The agent that delivers what waits in a store.
#[derive(Clone, Debug)]
pub(crate) struct DeliveringAgent {
    /// Where it listens.
    pub listen: String,
    /// The server that it delivers to; no other.
    pub server: Server,
    /// Whether that server is available; `None` while the agent looks for it.
    pub is_available: Option<bool>,
    /// Why it is not.
    pub reason: Option<String>,
}

/// The reasons why stored messages are not delivered although an agent runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct DeliveryHolds {
    /// A person's hold of the replay, in words.
    pub by_person: Option<String>,
    /// Lanes that are held.
    pub lanes: Vec<HeldLanes>,
}

/// Lanes that are held for one reason.
#[derive(Clone, Debug)]
pub(crate) struct HeldLanes {
    /// Which, and why.
    pub text: String,
    /// The remedy.
    pub hint: String,
    /// Whether the server refuses their key or workspace.
    pub is_key_refused: bool,
}

/// Checks that a running agent reaches its server, which may be another than `own`, the one of this command.
pub(crate) fn running_agent(agent: &DeliveringAgent, own: &Server) -> Check {
    const NAME: &str = "agent";
    let (listen, url) = (&agent.listen, agent.server.base_url());
    let is_own = agent.server == *own;
    let reason = agent.reason.as_ref().map_or(String::new(), |reason| format!(": {reason}"));
    match (agent.is_available, is_own) {
        (Some(true), true) => Check::good(NAME, format!("running on {listen}, delivers to {url}")),
        (Some(true), false) => Check::warning(
            NAME,
            format!("running on {listen}, delivers to {url}, another server than the one checked here"),
            "name one server for both, with --upstream or in the configuration",
        ),
        (None, _) => Check::note(NAME, format!("running on {listen}, looks for its server {url}")),
        // Whether it is there was checked here as well, and is another line.
        (Some(false), true) => Check::warning(
            NAME,
            format!("running on {listen}, and does not reach {url}{reason}"),
            "it keeps trying, and delivers once that server answers it",
        ),
        (Some(false), false) => Check::failed(
            NAME,
            FailureCause::Unreachable,
            format!("running on {listen}, and its server {url} is unavailable{reason}"),
            "start that server, or start the agent for another one with --upstream",
        ),
    }
}

/// The remarks of which the check consists.
#[derive(Default)]
struct Remarks {
    found: Vec<String>,
    hints: Vec<String>,
    /// Why the check failed, if it did.
    cause: Option<FailureCause>,
    needs_attention: bool,
}

impl Remarks {
    fn add(&mut self, text: String, hint: impl Into<String>) {
        self.found.push(text);
        self.hints.push(hint.into());
        self.needs_attention = true;
    }

    /// Adds what makes the check fail; a refused key outweighs what remains.
    fn add_failure(&mut self, cause: FailureCause, text: String, hints: impl IntoIterator<Item = String>) {
        self.found.push(text);
        self.hints.extend(hints);
        if self.cause != Some(FailureCause::NotAuthorised) {
            self.cause = Some(cause);
        }
    }

    fn into_check(self, name: &'static str, is_startup: bool) -> Check {
        let (found, hints) = (self.found.join("; "), self.hints.join("; "));
        match self.cause {
            _ if self.found.is_empty() => Check::good(name, "nothing waits, and nothing was rejected"),
            Some(cause) if !is_startup => Check::failed(name, cause, found, hints),
            None if !self.needs_attention => Check::good(name, found),
            _ => Check::warning(name, found, hints),
        }
    }
}

/// Checks that what waits is being delivered, and that nothing was rejected or is held. `agent` delivers to its own
/// server only; `own` is the one of this command. At a startup, when an agent is about to run, a backlog of earlier runs
/// is only a warning.
pub(crate) fn stored_messages(
    backlog: &Backlog,
    holds: &DeliveryHolds,
    agent: Option<&DeliveringAgent>,
    own: &Server,
    is_startup: bool,
) -> Check {
    let waiting = || backlog.groups.iter().filter(|group| group.status.is_on_its_way());
    let is_agents = |group: &&BacklogGroup| agent.is_some_and(|agent| group.server.as_ref() == Some(&agent.server));
    let (moving, left): (Vec<_>, Vec<_>) = waiting().partition(is_agents);
    let mut remarks = Remarks::default();
    if let Some(held) = &holds.by_person {
        remarks.add(held.clone(), "`opik-offline replay --resume` ends that");
    }
    if !left.is_empty() {
        let (waits, cause) = (waits(&left), FailureCause::Remaining);
        match holds.by_person {
            // The hold has to end first.
            Some(_) => remarks.add_failure(cause, format!("{waits}, and no agent runs for {}", them(sum(&left))), []),
            None => {
                let text = format!("{waits}, and no agent delivers {}", them(sum(&left)));
                remarks.add_failure(cause, text, ways_to_deliver(&left, own));
            }
        }
    }
    add_refused(&mut remarks, backlog);
    for lanes in &holds.lanes {
        match lanes.is_key_refused {
            true => {
                remarks.add_failure(FailureCause::NotAuthorised, lanes.text.clone(), [lanes.hint.clone()]);
            }
            false => remarks.add(lanes.text.clone(), &*lanes.hint),
        }
    }
    if !moving.is_empty() {
        let (waits, them) = (waits(&moving), them(sum(&moving)));
        match agent.is_some_and(|agent| agent.is_available == Some(false)) {
            _ if holds.by_person.is_some() => remarks.found.push(waits),
            true => {
                remarks.found.push(format!("{waits}, and the agent delivers {them} once that server is back"));
                if remarks.hints.is_empty() {
                    remarks.hints.push("nothing is lost; start that server".to_owned());
                }
                remarks.needs_attention = true;
            }
            false if !holds.lanes.is_empty() => {
                remarks.found.push(format!("{waits}, and the agent retries what is held"));
            }
            false => remarks.found.push(format!("{waits}, and the agent delivers {them}")),
        }
    }
    remarks.into_check("messages", is_startup)
}

/// Adds what the server refused.
fn add_refused(remarks: &mut Remarks, backlog: &Backlog) {
    let rejected = backlog.rejected();
    if rejected > 0 {
        let were = if rejected == 1 { "was" } else { "were" };
        let them = them(rejected);
        let hint = format!(
            "see `opik-offline inspect --rejected`; then send {them} again with `opik-offline replay --rejected`, or \
             delete {them} with `opik-offline purge --rejected`",
        );
        let text = format!("{} {were} rejected", count(rejected, "message"));
        remarks.add_failure(FailureCause::Remaining, text, [hint]);
    }
    let held = backlog.held();
    if held > 0 {
        let (are, their) = if held == 1 { ("is", "its") } else { ("are", "their") };
        let held = count(held, "message");
        let text = format!("{held} {are} held, because the server refuses the time in {their} ids");
        remarks.add_failure(FailureCause::Remaining, text, [id_window::REMEDY.to_owned()]);
    }
}

/// How many other servers a hint names.
const SERVERS_MAX: usize = 3;

/// Returns the commands that deliver these messages, each to the server that it was accepted for.
fn ways_to_deliver(left: &[&BacklogGroup], own: &Server) -> Vec<String> {
    let is_for_own = |group: &&&BacklogGroup| group.server.as_ref().is_none_or(|server| server == own);
    let (own, others): (Vec<_>, Vec<_>) = left.iter().partition(is_for_own);
    let mut ways = Vec::new();
    if !own.is_empty() {
        let them = them(sum(&own));
        ways.push(format!("start `opik-offline agent`, or deliver {them} with `opik-offline replay`"));
    }
    for url in servers(&others).into_iter().take(SERVERS_MAX) {
        let word = shell_word(url.as_ref());
        ways.push(format!("deliver to {word} with `opik-offline replay --upstream {word}`, or an agent for it"));
    }
    ways
}

fn sum(groups: &[&BacklogGroup]) -> u64 {
    groups.iter().map(|group| group.messages).sum()
}

/// Returns the servers that messages wait for, in the order of their names.
fn servers<'a>(groups: &[&'a BacklogGroup]) -> Vec<&'a str> {
    let mut servers: Vec<&str> =
        groups.iter().filter_map(|group| group.server.as_ref()).map(Server::base_url).collect();
    servers.sort_unstable();
    servers.dedup();
    servers
}

/// Returns how many messages wait, and for which server.
fn waits(groups: &[&BacklogGroup]) -> String {
    let (messages, servers) = (sum(groups), servers(groups));
    let whom = match servers[..] {
        [] => "a server that was not recorded".to_owned(),
        [server] => server.to_owned(),
        _ => format!("{} servers", servers.len()),
    };
    format!("{} {} for {whom}", count(messages, "message"), if messages == 1 { "waits" } else { "wait" })
}

#[cfg(test)]
mod tests {
    use super::super::check::Finding;
    use super::*;
    use crate::message::{MessageStatus, MessageType};

    fn backlog(waiting: u64, rejected: u64) -> Backlog {
        let group = |status, messages| BacklogGroup {
            status,
            message_type: MessageType::CreateTrace,
            workspace: "team".to_owned(),
            server: Some(Server::new("http://opik/api")),
            messages,
            items: messages,
            body_bytes: 0,
        };
        let groups = [group(MessageStatus::Failed, waiting), group(MessageStatus::Rejected, rejected)];
        Backlog { groups: groups.into_iter().filter(|group| group.messages > 0).collect(), ..Backlog::default() }
    }

    #[test]
    fn messages_that_nobody_delivers_or_that_were_rejected_are_not_healthy() {
        // As the agent reports it, and as the store keeps it.
        let at = |url: &str, is_available| DeliveringAgent { is_available, ..agent(url) };
        let own = Some(at("http://opik:80/api", Some(true)));
        let (away, starting) = (Some(at("http://opik:80/api", Some(false))), Some(at("http://opik:80/api", None)));
        let other = Some(at("http://other/api", Some(true)));
        for (waiting, rejected, agent, is_healthy, said) in [
            (0, 0, None, true, "nothing waits, and nothing was rejected"),
            (0, 0, away.clone(), true, "nothing waits, and nothing was rejected"),
            (2, 0, own.clone(), true, "2 messages wait for http://opik/api, and the agent delivers them\""),
            (1, 0, starting, true, "1 message waits for http://opik/api, and the agent delivers it\""),
            (2, 0, away.clone(), true, "and the agent delivers them once that server is back"),
            (1, 0, None, false, "1 message waits for http://opik/api, and no agent delivers it"),
            (1, 0, other, false, "and no agent delivers it"),
            (0, 1, own.clone(), false, "1 message was rejected"),
            (2, 3, None, false, "no agent delivers them; 3 messages were rejected"),
            (2, 3, own, false, "3 messages were rejected; 2 messages wait for http://opik/api, and the agent"),
        ] {
            let case = backlog(waiting, rejected);
            let check = stored_messages(&case, &none(), agent.as_ref(), &Server::new("http://opik/api"), false);
            assert_eq!(check.is_passed(), is_healthy, "{check:?}");
            assert!(format!("{check:?}").contains(said), "{check:?}");
            let at_startup = stored_messages(&case, &none(), agent.as_ref(), &Server::new("http://opik/api"), true);
            assert!(at_startup.is_passed(), "a script that starts the agent next would stop: {at_startup:?}");
            let is_away = agent.is_some_and(|agent| agent.is_available == Some(false));
            assert_eq!(matches!(check.finding, Finding::Good(_)), is_healthy && !(is_away && waiting > 0), "{check:?}");
        }
        let mut held = backlog(1, 0);
        held.groups[0].status = MessageStatus::Held;
        let own = Server::new("http://opik/api");
        let check = stored_messages(&held, &none(), Some(&agent("http://opik/api")), &own, false);
        assert!(!check.is_passed(), "nobody delivers it: {check:?}");
    }

    fn none() -> DeliveryHolds {
        DeliveryHolds::default()
    }

    #[test]
    fn held_messages_are_not_called_delivered() {
        let own = Server::new("http://opik/api");
        let lane =
            |is_key_refused| HeldLanes { text: "workspace team is held".into(), hint: "ask".into(), is_key_refused };
        let lanes = |is_key_refused| DeliveryHolds { lanes: vec![lane(is_key_refused)], ..none() };
        let by_person = Some("replay is held until noon by ana".to_owned());
        let person = DeliveryHolds { by_person, ..none() };
        let (here, away) =
            (agent("http://opik/api"), DeliveringAgent { is_available: Some(false), ..agent("http://opik/api") });
        for (waiting, holds, agent, cause, said) in [
            (2, &person, Some(&here), None, "replay is held until noon by ana; 2 messages wait for http://opik/api"),
            (2, &person, Some(&away), None, "replay is held until noon by ana; 2 messages wait for http://opik/api"),
            (0, &person, Some(&here), None, "replay is held until noon by ana"),
            (
                2,
                &person,
                None,
                Some(FailureCause::Remaining),
                "replay is held until noon by ana; 2 messages wait for http://opik/api, and no agent runs for them",
            ),
            (
                2,
                &lanes(true),
                Some(&here),
                Some(FailureCause::NotAuthorised),
                "workspace team is held; 2 messages wait for http://opik/api, and the agent retries what is held",
            ),
            (
                2,
                &lanes(true),
                None,
                Some(FailureCause::NotAuthorised),
                "2 messages wait for http://opik/api, and no agent delivers them; workspace team is held",
            ),
            (
                1,
                &lanes(false),
                Some(&here),
                None,
                "workspace team is held; 1 message waits for http://opik/api, and the agent retries what is held",
            ),
        ] {
            let check = stored_messages(&backlog(waiting, 0), holds, agent, &own, false);
            let (found, text, hint) = match &check.finding {
                Finding::Warning { text, hint } => (None, text, hint),
                Finding::Failed { cause, text, hint } => (Some(*cause), text, hint),
                _ => panic!("{check:?}"),
            };
            assert_eq!((found, text.as_str()), (cause, said));
            match holds.by_person {
                Some(_) => assert_eq!(hint, "`opik-offline replay --resume` ends that"),
                None => assert!(hint.contains("ask"), "{hint}"),
            }
        }
    }

    fn agent(url: &str) -> DeliveringAgent {
        let (listen, server) = ("127.0.0.1:6745".to_owned(), Server::new(url));
        DeliveringAgent { listen, server, is_available: Some(true), reason: None }
    }

    #[test]
    fn messages_for_another_server_get_the_command_for_that_one() {
        let own = Server::new("http://own/api");
        let check = stored_messages(&backlog(1, 0), &none(), None, &own, false);
        let Finding::Failed { hint, .. } = &check.finding else { panic!("nobody delivers it: {check:?}") };
        assert_eq!(
            hint,
            "deliver to http://opik/api with `opik-offline replay --upstream http://opik/api`, or an agent for it"
        );
    }

    #[test]
    fn an_agent_whose_own_server_is_away_is_not_healthy() {
        let own = Server::new("http://opik/api");
        let of = |url: &str, is_available| {
            let reason = Some("connection refused".to_owned());
            running_agent(&DeliveringAgent { is_available, reason, ..agent(url) }, &own)
        };
        let away = of("http://other/api", Some(false));
        assert!(!away.is_passed(), "the agent reaches nothing: {away:?}");
        assert!(
            format!("{away:?}").contains("its server http://other/api is unavailable: connection refused"),
            "{away:?}"
        );
        for (url, is_available, is_good) in [
            ("http://opik/api", Some(true), true),
            ("http://opik/api", Some(false), false),
            ("http://opik/api", None, false),
            ("http://other/api", Some(true), false),
        ] {
            let check = of(url, is_available);
            assert!(check.is_passed() && format!("{check:?}").contains(url), "{check:?}");
            assert_eq!(matches!(check.finding, Finding::Good(_)), is_good, "{check:?}");
        }
    }
}
