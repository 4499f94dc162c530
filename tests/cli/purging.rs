//! `purge` deletes what was selected, after a yes.

use opik_offline::store::Filter;

use crate::sandbox::{Sandbox, assert_text, create_trace, open, team_of};
use crate::support::agent::Agent;
use crate::support::fake_opik::check::Kind;
use crate::support::fake_opik::{FakeOpik, Then, When};
use crate::support::pty::OnTerminal;
use crate::support::{PATIENCE, uuid7, wait_until};

#[test]
fn a_purge_without_a_terminal_needs_yes() {
    let sandbox = Sandbox::filled();
    assert_text(
        &sandbox.run(&["purge"]),
        "
--- stderr
error: purge would delete 5 messages (869 B, 7 items) for SERVER, and there is no terminal to ask on
hint: check with --dry-run, then add --yes
--- exit 2
",
    );
    assert_text(
        &sandbox.run(&["purge", "--dry-run"]),
        "
would delete 5 messages (869 B, 7 items) for SERVER

status    type              workspace  messages  items   size
waiting   CreateTrace       default           1      1  121 B
waiting   CreateTrace       team              1      1  121 B
waiting   UpdateTrace       team              1      1   57 B
waiting   CreateSpansBatch  team              1      3  449 B
rejected  CreateTrace       team              1      1  121 B

the oldest was accepted at 2026-01-02T03:04:05Z
--- exit 0
",
    );
    assert_eq!(sandbox.output(&["inspect", "--format", "json"]).json()["selected"], 5, "nothing was deleted yet");
}

#[test]
fn a_purge_takes_what_was_selected_and_nothing_else() {
    let sandbox = Sandbox::filled();
    assert_text(
        &sandbox.run(&["purge", "--rejected", "--yes"]),
        "deleted 1 message (121 B) for SERVER; the store takes SIZE\n--- exit 0\n",
    );
    let purged = sandbox.output(&["purge", "--type", "createspansbatch", "-y", "--format", "json"]).json();
    assert_eq!((&purged["messages"], &purged["items"], &purged["dry_run"]), (&1.into(), &3.into(), &false.into()));
    assert_text(&sandbox.run(&["purge", "--workspace", "default", "-y", "-q"]), "--- exit 0\n");
    assert_eq!(sandbox.output(&["inspect", "--format", "json"]).json()["selected"], 2);
    assert_text(&sandbox.run(&["purge", "--rejected", "-y"]), "no stored message is selected\n--- exit 0\n");
    assert_text(&Sandbox::without_store().run(&["purge"]), "no message is stored\n--- exit 0\n");
}

#[test]
fn a_purge_leaves_alone_what_an_agent_is_sending() {
    let server = FakeOpik::new_stopped();
    let agent = Agent::start(&server);
    let store = open(&agent.db());
    store.register(&[create_trace(0, &team_of(&server.url()), &uuid7())]).unwrap();
    let held = server.script(When::write(), Then::Hold);
    server.start();
    wait_until("the agent is in the middle of a send", PATIENCE, || held.hits() > 0);
    let purge = agent.cli(&["purge", "--yes"]);
    assert_eq!(purge.code(), Some(0), "{}{}", purge.stdout, purge.stderr);
    assert!(purge.stdout.contains("1 message kept: a replay is sending it"), "{}", purge.stdout);
    assert_eq!(store.backlog(&Filter::default()).unwrap().messages(), 1, "its answer is not known yet");
    held.clear();
    agent.wait_until_delivered();
    assert_eq!(server.count("team", Kind::Trace), 1);
}

#[test]
fn the_question_breaks_between_words_only() {
    let sandbox = Sandbox::filled();
    let mut running = OnTerminal::start(&mut sandbox.command(&["purge", "--no-color"]), 60);
    running.wait_for("[y/N] ");
    running.type_in("n\n");
    let (status, text) = running.finish();
    assert_eq!(status.code(), Some(1), "{text}");
    let from = text.find("permanently delete").unwrap();
    let question = text[from..].split("[y/N] ").next().unwrap();
    assert!(question.lines().count() > 1, "{text}");
    assert!(question.lines().all(|line| line.chars().count() <= 60), "{text}");
    assert!(question.replace('\n', " ").contains("permanently delete 5 messages"), "{text}");
}
