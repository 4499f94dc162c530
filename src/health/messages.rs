//! The check of what is stored: whether somebody delivers it, and whether the server took everything.

use super::check::{Check, FailureCause};
use crate::delivery::id_window;
use crate::figures::count;
use crate::message::Server;
use crate::store::{Backlog, BacklogGroup};

/// Checks that what waits is being delivered, and that nothing was rejected or is held. `agents_server` is the server of
/// the running agent: it delivers to no other. At a startup, when an agent is about to run, a backlog of earlier runs is
/// only a warning.
pub(crate) fn stored_messages(backlog: &Backlog, agents_server: Option<&Server>, is_startup: bool) -> Check {
    const NAME: &str = "messages";
    let waiting = || backlog.groups.iter().filter(|group| group.status.is_on_its_way());
    let is_agents = |group: &&BacklogGroup| group.server.is_some() && group.server.as_ref() == agents_server;
    let (moving, left): (Vec<_>, Vec<_>) = waiting().partition(is_agents);
    let (mut found, mut hints) = (Vec::new(), Vec::new());
    if !left.is_empty() {
        found.push(format!("{}, and no agent delivers them", waits(&left)));
        hints.push("start `opik-offline agent`, or deliver them with `opik-offline replay`");
    }
    let rejected = backlog.rejected();
    if rejected > 0 {
        let were = if rejected == 1 { "was" } else { "were" };
        found.push(format!("{} {were} rejected", count(rejected, "message")));
        hints.push(
            "see `opik-offline inspect --rejected`; then send them again with `opik-offline replay --rejected`, or \
             delete them with `opik-offline purge --rejected`",
        );
    }
    let held = backlog.held();
    if held > 0 {
        let are = if held == 1 { "is" } else { "are" };
        found.push(format!("{} {are} held, because the server refuses the time in their ids", count(held, "message")));
        hints.push(id_window::REMEDY);
    }
    if !moving.is_empty() {
        found.push(format!("{}, and the agent delivers them", waits(&moving)));
    }
    match (&found[..], &hints[..], is_startup) {
        ([], ..) => Check::good(NAME, "nothing waits, and nothing was rejected"),
        (_, [], _) => Check::good(NAME, found.join("; ")),
        (.., true) => Check::warning(NAME, found.join("; "), hints.join("; ")),
        (.., false) => Check::failed(NAME, FailureCause::Remaining, found.join("; "), hints.join("; ")),
    }
}

/// Returns how many messages wait, and for which server.
fn waits(groups: &[&BacklogGroup]) -> String {
    let messages = groups.iter().map(|group| group.messages).sum();
    let mut servers: Vec<&str> =
        groups.iter().filter_map(|group| group.server.as_ref()).map(Server::base_url).collect();
    servers.sort_unstable();
    servers.dedup();
    let whom = match servers[..] {
        [] => "a server that was not recorded".to_owned(),
        [server] => server.to_owned(),
        _ => format!("{} servers", servers.len()),
    };
    format!("{} {} for {whom}", count(messages, "message"), if messages == 1 { "waits" } else { "wait" })
}

#[cfg(test)]
mod tests {
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
        let (own, other) = (Server::new("http://opik:80/api"), Server::new("http://other/api"));
        let (own, other) = (Some(&own), Some(&other));
        for (waiting, rejected, agents_server, is_healthy, said) in [
            (0, 0, None, true, "nothing waits, and nothing was rejected"),
            (2, 0, own, true, "2 messages wait for http://opik/api, and the agent delivers them"),
            (1, 0, None, false, "1 message waits for http://opik/api, and no agent delivers them"),
            (1, 0, other, false, "and no agent delivers them"),
            (0, 1, own, false, "1 message was rejected"),
            (2, 3, None, false, "no agent delivers them; 3 messages were rejected"),
            (2, 3, own, false, "3 messages were rejected; 2 messages wait for http://opik/api, and the agent"),
        ] {
            let case = backlog(waiting, rejected);
            let check = stored_messages(&case, agents_server, false);
            assert_eq!(check.is_passed(), is_healthy, "{check:?}");
            assert!(format!("{check:?}").contains(said), "{check:?}");
            let at_startup = stored_messages(&case, agents_server, true);
            assert!(at_startup.is_passed(), "a script that starts the agent next would stop: {at_startup:?}");
        }
        let mut held = backlog(1, 0);
        held.groups[0].status = MessageStatus::Held;
        let check = stored_messages(&held, own, false);
        assert!(!check.is_passed(), "nobody delivers it: {check:?}");
    }
}
