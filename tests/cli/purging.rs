//! `purge` deletes what was selected, after a yes.

use crate::sandbox::{Sandbox, assert_text};

#[test]
fn a_purge_without_a_terminal_needs_yes() {
    let sandbox = Sandbox::filled();
    assert_text(
        &sandbox.run(&["purge"]),
        "
--- stderr
error: purge would delete 5 messages (869 B), and there is nobody to ask
hint: look with --dry-run, then give --yes
--- exit 2
",
    );
    assert_text(
        &sandbox.run(&["purge", "--dry-run"]),
        "
would delete 5 messages (869 B)

status    type              workspace  messages  items   size
failed    CreateTrace       default           1      1  121 B
failed    CreateTrace       team              1      1  121 B
failed    UpdateTrace       team              1      1   57 B
failed    CreateSpansBatch  team              1      3  449 B
rejected  CreateTrace       team              1      1  121 B
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
        "deleted 1 message (121 B); the store takes SIZE\n--- exit 0\n",
    );
    let purged = sandbox.output(&["purge", "--type", "createspansbatch", "-y", "--format", "json"]).json();
    assert_eq!((&purged["messages"], &purged["items"], &purged["dry_run"]), (&1.into(), &3.into(), &false.into()));
    assert_text(&sandbox.run(&["purge", "--workspace", "default", "-y", "-q"]), "--- exit 0\n");
    assert_eq!(sandbox.output(&["inspect", "--format", "json"]).json()["selected"], 2);
    assert_text(&sandbox.run(&["purge", "--rejected", "-y"]), "no stored message is selected\n--- exit 0\n");
    assert_text(&Sandbox::new().run(&["purge"]), "no message is stored\n--- exit 0\n");
}
