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

/// Checks that what waits is being delivered, and that nothing was rejected or is held. `agent` delivers to its own
/// server only; `own` is the one of this command. At a startup, when an agent is about to run, a backlog of earlier runs
/// is only a warning.
pub(crate) fn stored_messages(
    backlog: &Backlog,
    agent: Option<&DeliveringAgent>,
    own: &Server,
    is_startup: bool,
) -> Check {
    const NAME: &str = "messages";
    let waiting = || backlog.groups.iter().filter(|group| group.status.is_on_its_way());
    let is_agents = |group: &&BacklogGroup| agent.is_some_and(|agent| group.server.as_ref() == Some(&agent.server));
    let (moving, left): (Vec<_>, Vec<_>) = waiting().partition(is_agents);
    let (mut found, mut hints) = (Vec::new(), Vec::new());
    if !left.is_empty() {
        found.push(format!("{}, and no agent delivers {}", waits(&left), them(sum(&left))));
        hints.extend(ways_to_deliver(&left, own));
    }
    let rejected = backlog.rejected();
    if rejected > 0 {
        let were = if rejected == 1 { "was" } else { "were" };
        found.push(format!("{} {were} rejected", count(rejected, "message")));
        let them = them(rejected);
        hints.push(format!(
            "see `opik-offline inspect --rejected`; then send {them} again with `opik-offline replay --rejected`, or \
             delete {them} with `opik-offline purge --rejected`",
        ));
    }
    let held = backlog.held();
    if held > 0 {
        let (are, their) = if held == 1 { ("is", "its") } else { ("are", "their") };
        let held = count(held, "message");
        found.push(format!("{held} {are} held, because the server refuses the time in {their} ids"));
        hints.push(id_window::REMEDY.to_owned());
    }
    let is_away = agent.is_some_and(|agent| agent.is_available == Some(false));
    if !moving.is_empty() {
        let (waits, them) = (waits(&moving), them(sum(&moving)));
        found.push(match is_away {
            true => format!("{waits}, and the agent delivers {them} once that server is back"),
            false => format!("{waits}, and the agent delivers {them}"),
        });
    }
    match (&found[..], &hints[..], is_startup) {
        ([], ..) => Check::good(NAME, "nothing waits, and nothing was rejected"),
        (_, [], _) if is_away && !moving.is_empty() => {
            Check::warning(NAME, found.join("; "), "nothing is lost; start that server")
        }
        (_, [], _) => Check::good(NAME, found.join("; ")),
        (.., true) => Check::warning(NAME, found.join("; "), hints.join("; ")),
        (.., false) => Check::failed(NAME, FailureCause::Remaining, found.join("; "), hints.join("; ")),
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
            let check = stored_messages(&case, agent.as_ref(), &Server::new("http://opik/api"), false);
            assert_eq!(check.is_passed(), is_healthy, "{check:?}");
            assert!(format!("{check:?}").contains(said), "{check:?}");
            let at_startup = stored_messages(&case, agent.as_ref(), &Server::new("http://opik/api"), true);
            assert!(at_startup.is_passed(), "a script that starts the agent next would stop: {at_startup:?}");
            let is_away = agent.is_some_and(|agent| agent.is_available == Some(false));
            assert_eq!(matches!(check.finding, Finding::Good(_)), is_healthy && !(is_away && waiting > 0), "{check:?}");
        }
        let mut held = backlog(1, 0);
        held.groups[0].status = MessageStatus::Held;
        let check = stored_messages(&held, Some(&agent("http://opik/api")), &Server::new("http://opik/api"), false);
        assert!(!check.is_passed(), "nobody delivers it: {check:?}");
    }

    fn agent(url: &str) -> DeliveringAgent {
        let (listen, server) = ("127.0.0.1:6745".to_owned(), Server::new(url));
        DeliveringAgent { listen, server, is_available: Some(true), reason: None }
    }

    #[test]
    fn messages_for_another_server_get_the_command_for_that_one() {
        let own = Server::new("http://own/api");
        let check = stored_messages(&backlog(1, 0), None, &own, false);
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
