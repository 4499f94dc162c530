//! `replay`: what is stored reaches the server, and how it ends when it doesn't.

use std::process::Stdio;
use std::time::Duration;

use opik_offline::store::{Filter, Owner};
use rustix::process::{Pid, Signal, kill_process};

use crate::sandbox::{BAD_TRACE, NO_SERVER, Sandbox, TRACE, assert_text, create_trace, open, team, team_of};
use crate::support::agent::Agent;
use crate::support::fake_opik::check::Kind;
use crate::support::fake_opik::{FakeOpik, Then, When};
use crate::support::process::{Written, run};
use crate::support::{PATIENCE, uuid7, wait_until};

#[test]
fn an_empty_backlog_exits_with_success() {
    assert_text(
        &Sandbox::without_store().run(&["replay"]),
        "nothing to replay: nothing was stored in HOME/data/opik-offline/opik_messages.db yet\n--- exit 0\n",
    );
    assert_text(
        &Sandbox::filled().run(&["replay", "--workspace", "nobody"]),
        "nothing to replay: no message of workspace nobody is stored; there are: default, team\n--- exit 0\n",
    );
    assert_text(
        &Sandbox::filled().run(&["replay", "--dry-run"]),
        "
would replay 4 messages (748 B, 6 items) for SERVER

status   type              workspace  messages  items   size
waiting  CreateTrace       default           1      1  121 B
waiting  CreateTrace       team              1      1  121 B
waiting  UpdateTrace       team              1      1   57 B
waiting  CreateSpansBatch  team              1      3  449 B

the oldest was accepted at 2026-01-02T03:04:06Z
--- exit 0
",
    );
}

#[test]
fn a_backlog_is_delivered_and_rejected_ones_stay() {
    let server = FakeOpik::start_new();
    let sandbox = Sandbox::filled().with_server(&server);
    let found = sandbox.run(&["replay"]);
    assert!(found.starts_with("delivered 4 messages in N s (N a second, "), "{found}");
    assert!(found.ends_with("requests) to SERVER\n--- exit 0\n"), "{found}");
    assert_eq!((server.count("team", Kind::Trace), server.count("team", Kind::Span)), (1, 3));
    assert_eq!(server.count("default", Kind::Trace), 1);
    server.assert_no_violations();
    server.assert_no_update_before_create();
    let status = sandbox.output(&["status", "--format", "json"]).json();
    assert_eq!((&status["backlog"]["messages"], &status["rejected"]["messages"]), (&0.into(), &1.into()));
    assert!(sandbox.run(&["status"]).contains("waiting      nothing\n"), "one is rejected, so not all was delivered");
    assert_text(
        &sandbox.run(&["replay"]),
        "nothing to replay: nothing waits in HOME/opik_messages.db; 1 message is stored that the server rejected: see \
         `opik-offline inspect --rejected --db HOME/opik_messages.db`, and once the cause is fixed \
         `opik-offline replay --rejected --db HOME/opik_messages.db`\n--- exit 0\n",
    );
}

#[test]
fn a_preview_counts_what_would_be_taken_in_as_well() {
    let preview = |sandbox: Sandbox| {
        let copy = sandbox.home.path().join("left.db");
        std::fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/sdk-store/all-types.db"), &copy).unwrap();
        let from =
            ["replay", "--from", &copy.to_string_lossy(), "--readdress", "http://localhost:5173/api", "--dry-run"];
        let found = sandbox.run(&from);
        let taken = found.strip_prefix("would take ").and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
        (taken.expect("it can be read"), found)
    };
    let (taken, found) = preview(Sandbox::filled());
    let all = format!("\nwould replay {} messages: those, and stored already 4 messages (", taken + 4);
    assert!(found.contains(&all), "{found}");
    let (taken, found) = preview(Sandbox::new());
    assert!(found.contains(&format!("\nwould replay {taken} messages\n")), "{found}");
}

#[test]
fn a_held_store_is_not_replayed_and_says_why() {
    let server = FakeOpik::start_new();
    let sandbox = Sandbox::filled().with_server(&server);
    let held = sandbox.output(&["replay", "--hold", "30m"]);
    assert_eq!(held.code(), Some(0), "{}", held.stderr);
    assert!(
        held.stdout.starts_with("replay is held until ") && held.stdout.contains("4 messages wait"),
        "{}",
        held.stdout
    );
    for args in [&["replay"][..], &["replay", "--rejected"], &["replay", "--id", "2"]] {
        let refused = sandbox.output(args);
        assert_eq!(refused.code(), Some(4), "{args:?}: {}{}", refused.stdout, refused.stderr);
        assert!(
            refused.stdout.contains("replay is held until ")
                && refused.stdout.contains("`opik-offline replay --resume --db ")
        );
        let quiet = sandbox.output(&[args, &["--quiet"]].concat());
        assert_eq!((quiet.code(), quiet.stdout.as_str()), (Some(4), ""));
    }
    assert_eq!(server.requests().iter().map(|request| request.writes.len()).sum::<usize>(), 0);
    let status = sandbox.output(&["status", "--format", "json"]).json();
    assert_eq!(status["rejected"]["messages"], 1, "it was requeued");
    let dry = sandbox.run(&["replay", "--dry-run"]);
    assert!(dry.starts_with("would replay 4 messages") && dry.contains("\nbut replay is held until "), "{dry}");
    let status = sandbox.run(&["status"]);
    assert!(status.contains("; no agent runs: `opik-offline replay --resume"), "{status}");
    assert!(status.contains("time to go   held until ") && !status.contains("`opik-offline replay --db"), "{status}");
    // A second hold takes the place of the first, and says so.
    let second = sandbox.output(&["replay", "--hold", "2h", "--format", "json"]).json();
    assert!(second["hold"]["seconds_left"].as_u64().is_some_and(|left| left > 7_000), "{second}");
    assert_eq!(second["replaced"]["by"], second["hold"]["by"], "{second}");
    let third = sandbox.run(&["replay", "--hold", "3h"]);
    assert!(third.contains("; this replaces the hold of "), "{third}");
    assert!(sandbox.run(&["replay", "--resume"]).starts_with("the hold has ended; 4 messages wait in "));
    assert!(sandbox.run(&["replay", "--resume"]).starts_with("nothing was held; 4 messages wait in "));
    assert_eq!(sandbox.output(&["replay"]).code(), Some(0));
}

#[test]
fn a_hold_is_bounded_and_about_a_whole_store() {
    let sandbox = Sandbox::filled();
    for (args, said) in [
        (&["--hold", "8d"][..], "not between 1s and 7d"),
        (&["--hold", "0s"], "not between 1s and 7d"),
        (&["--hold", "1m", "--workspace", "team"], "not with a filter"),
        (&["--resume", "--limit", "1"], "not with --limit"),
        (&["--resume", "--hold", "1m"], "cannot be used with"),
        (&["--hold", "1m", "--pace", "none"], "are for a depot"),
        (&["--hold", "1m", "--stream", "01a20445-0b55-7feb-b47d-9a6087614672"], "are for a depot"),
    ] {
        let output = sandbox.output(&[&["replay"], args].concat());
        assert_eq!(output.code(), Some(2), "{args:?}: {}{}", output.stdout, output.stderr);
        assert!(output.stderr.contains(said), "{args:?}: {}", output.stderr);
    }
    assert_eq!(sandbox.output(&["replay", "--hold", "1m", "--db", "/nowhere/x.db"]).code(), Some(2));
    let nothing = Sandbox::without_store().output(&["replay", "--hold", "1m"]);
    assert!(nothing.code() == Some(1) && nothing.stderr.contains("nothing was stored in "), "{}", nothing.stderr);
}

#[test]
fn a_debug_log_shows_what_the_store_does() {
    let server = FakeOpik::start_new();
    let found = Sandbox::filled().with_server(&server).run(&["replay", "-v", "--rejected"]);
    for said in
        [" DEBUG db_manager: claimed messages=1 ", " DEBUG db_manager: settled delivered=1 rejected=0 put_back=0"]
    {
        assert!(found.contains(said), "{said}: {found}");
    }
}

#[test]
fn a_quiet_replay_says_nothing_when_all_is_well() {
    let server = FakeOpik::start_new();
    assert_text(&Sandbox::filled().with_server(&server).run(&["replay", "-q"]), "--- exit 0\n");
    let report = Sandbox::filled().with_server(&server).output(&["replay", "-q", "--format", "json"]).json();
    assert_eq!(report["delivered"], 4, "a program that asks for a document gets it");
}

#[test]
fn a_server_that_is_away_ends_it_with_3_and_everything_is_kept() {
    let sandbox = Sandbox::filled();
    assert_text(
        &sandbox.run(&["replay"]),
        "
--- stderr
error: cannot connect to SERVER: connection refused
hint: check that the Opik server is running and that --upstream is its URL; `opik-offline healthcheck --db HOME/opik_messages.db` shows more
--- exit 3
",
    );
    assert_eq!(sandbox.output(&["inspect", "--format", "json"]).json()["selected"], 5);
    let output = sandbox.output(&["replay", "--format", "json"]);
    assert_eq!(output.code(), Some(3), "{}", output.stderr);
    let report = output.json();
    let told = (&report["delivered"], &report["remaining"], report["groups"].as_array().map(Vec::len));
    assert_eq!(told, (&0.into(), &4.into(), Some(4)), "a program is to learn what remains when the server is away");
    assert!(report["reasons"][0].as_str().is_some_and(|why| why.starts_with("cannot connect to ")), "{report}");
    let server = FakeOpik::start_new();
    server.status_all(500);
    let found = sandbox.with_server(&server).run(&["replay"]);
    assert!(found.contains("answers its ping with 500") && found.ends_with("--- exit 3\n"), "{found}");
}

#[test]
fn a_key_that_is_refused_holds_its_lane_with_5() {
    let server = FakeOpik::start_new();
    server.script(When::write().workspace("team"), Then::status(401));
    let sandbox = Sandbox::filled().with_server(&server);
    let found = sandbox.run(&["replay"]);
    assert!(found.starts_with("delivered 1 message in N s") && found.ends_with("--- exit 5\n"), "{found}");
    assert!(found.contains("remaining 3 messages\n  workspace team, key cred***: "), "{found}");
    assert!(found.contains("  the next attempt is due in "), "{found}");
    let status = sandbox.run(&["status"]);
    assert!(
        status.contains("!! workspace team (key cred***) is held, retried in ") && status.contains("check the key: "),
        "{status}"
    );
    let verdict = "3 messages are safe on disk, and nobody delivers them; the server refuses the key of 1 lane, check \
                   it: `opik-offline healthcheck --db HOME/opik_messages.db`; 1 was rejected\n";
    assert!(status.starts_with(verdict), "{status}");
    let held = sandbox.output(&["status", "--format", "json"]).json();
    assert_eq!(held["held"][0]["workspace"], "team");
}

#[test]
fn a_suggested_command_is_about_the_server_that_it_names_without_a_configured_one() {
    let server = FakeOpik::start_new();
    server.script(When::write().workspace("team"), Then::status(401));
    let sandbox = Sandbox::filled().with_server(&server);
    let replay = |sandbox: &Sandbox| run(sandbox.command(&["replay"]).env_remove("OPIK_OFFLINE_UPSTREAM"));
    let found = replay(&sandbox);
    let rekey = format!("`opik-offline replay --rekey --upstream {} --db ", server.url());
    assert!(found.stdout.contains(&rekey) && found.code() == Some(5), "{}{}", found.stdout, found.stderr);
    let found = replay(&Sandbox::filled());
    let check = format!("`opik-offline healthcheck --upstream {NO_SERVER} --db ");
    assert!(found.stderr.contains(&check) && found.code() == Some(3), "{}{}", found.stdout, found.stderr);
}

#[test]
fn a_limit_counts_what_is_delivered_and_a_refused_key_is_none_of_it() {
    for (status, code) in [(401, 5), (403, 5), (429, 4)] {
        let server = FakeOpik::start_new();
        server.script(When::write(), Then::status(status));
        let sandbox = Sandbox::filled().with_server(&server);
        let found = sandbox.run(&["replay", "--limit", "1"]);
        assert!(found.contains("delivered nothing to SERVER\nremaining 4 messages\n"), "{status}: {found}");
        assert!(!found.contains("the limit was reached"), "{status}: {found}");
        assert!(found.ends_with(&format!("--- exit {code}\n")), "{status}: {found}");
    }
    // A lane whose key is refused leaves the limit to the others.
    let server = FakeOpik::start_new();
    server.script(When::write().workspace("team"), Then::status(401));
    let sandbox = Sandbox::filled().with_server(&server);
    let found = sandbox.run(&["replay", "--limit", "1"]);
    assert!(found.starts_with("delivered 1 message in N s") && found.ends_with("--- exit 0\n"), "{found}");
}

#[test]
fn a_refused_message_is_kept_and_ends_it_with_4() {
    let server = FakeOpik::start_new();
    server.reject_ids([TRACE]);
    let sandbox = Sandbox::filled().with_server(&server);
    let found = sandbox.run(&["replay", "--type", "CreateTrace"]);
    assert!(found.starts_with("delivered 1 message in "), "{found}");
    assert!(
        found.ends_with("rejected  1 message: see why with `opik-offline inspect --rejected --db HOME/opik_messages.db`\n--- exit 4\n"),
        "{found}"
    );
    let rejected = sandbox.output(&["inspect", "2", "--format", "json"]).json();
    assert_eq!((&rejected["status"], &rejected["answer"]["status"]), (&"rejected".into(), &400.into()));
}

#[test]
fn rejected_messages_are_tried_again_and_no_others() {
    let server = FakeOpik::start_new();
    let sandbox = Sandbox::filled().with_server(&server);
    let found = sandbox.run(&["replay", "--rejected"]);
    assert!(found.starts_with("delivered 1 message in ") && found.ends_with("--- exit 0\n"), "{found}");
    assert!(server.entity("team", Kind::Trace, BAD_TRACE).is_some());
    assert_eq!(server.count("team", Kind::Trace), 1, "a message that waits for other reasons was not asked for");
    assert_eq!(sandbox.output(&["inspect", "--format", "json"]).json()["selected"], 4);
}

#[test]
fn a_message_named_by_its_id_is_tried_whatever_its_status() {
    let server = FakeOpik::start_new();
    let sandbox = Sandbox::filled().with_server(&server);
    assert!(
        sandbox
            .run(&["replay", "--id", "1", "--dry-run"])
            .starts_with("would replay 1 message (121 B, 1 item) for SERVER\n")
    );
    assert!(sandbox.run(&["replay", "--id", "1"]).starts_with("delivered 1 message in "));
    assert!(server.entity("team", Kind::Trace, BAD_TRACE).is_some());
    assert_eq!(server.count("team", Kind::Trace), 1);
}

#[test]
fn a_limit_of_rejected_messages_leaves_the_others_rejected() {
    let server = FakeOpik::start_new();
    let sandbox = Sandbox::filled().with_server(&server);
    server.reject_ids([TRACE]);
    sandbox.output(&["replay"]);
    server.clear_script();
    let before = sandbox.output(&["status", "--format", "json"]).json()["rejected"]["messages"].as_u64().unwrap();
    assert!(before >= 2);
    assert_eq!(sandbox.output(&["replay", "--rejected", "--limit", "1"]).code(), Some(0));
    let after = sandbox.output(&["status", "--format", "json"]).json();
    assert_eq!(after["rejected"]["messages"], before - 1);
    // The update of a trace whose create is still rejected waits with it.
    assert_eq!(after["backlog"]["messages"], 1);
    assert_eq!(after["stranded"][0]["messages"], 1);
}

#[test]
fn an_interrupted_replay_loses_nothing() {
    let server = FakeOpik::start_new();
    let slow = server.script(When::write(), Then::Hold);
    let sandbox = Sandbox::filled().with_server(&server);
    let child = sandbox.command(&["replay"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("the replay has sent something", PATIENCE, || slow.hits() > 0);
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    // Messages in flight get their answers, and are settled.
    slow.clear();
    let output = child.wait_with_output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(130), "{stdout}");
    let left = open(&sandbox.home.db()).backlog(&Filter::default()).unwrap();
    assert!(left.waiting() < 4, "what was answered is settled");
    if left.waiting() > 0 {
        assert!(stdout.contains("interrupted; nothing is lost, run it again to continue"), "{stdout}");
    }
    sandbox.output(&["replay"]);
    assert_eq!((server.count("team", Kind::Trace), server.count("team", Kind::Span)), (1, 3));
    assert_eq!(server.count("default", Kind::Trace), 1);
    server.assert_no_overlaps();
}

#[test]
fn a_replay_beside_an_agent_never_duplicates_a_request_in_flight() {
    const TRACES: usize = 120;
    let server = FakeOpik::new_stopped();
    let agent = Agent::start(&server);
    let (store, lane) = (open(&agent.db()), team_of(&server.url()));
    let messages: Vec<_> = (0..TRACES).map(|number| create_trace(number as i64, &lane, &uuid7())).collect();
    store.register(&messages).unwrap();
    server.script(When::write(), Then::Delay(Duration::from_millis(20)));
    server.start();
    let outputs: Vec<_> = std::thread::scope(|scope| {
        let replays: Vec<_> = (0..2).map(|_| scope.spawn(|| agent.cli(&["replay", "--batch-size", "7"]))).collect();
        replays.into_iter().map(|replay| replay.join().unwrap()).collect()
    });
    for output in outputs {
        assert_eq!(output.code(), Some(0), "{}{}", output.stdout, output.stderr);
    }
    agent.wait_until_delivered();
    assert_eq!(server.count("team", Kind::Trace), TRACES);
    server.assert_no_overlaps();
    server.assert_no_violations();
}

#[test]
fn a_closed_pipe_is_not_a_failure() {
    let sandbox = Sandbox::new();
    let store = open(&sandbox.home.db());
    let messages: Vec<_> = (0..2000).map(|number| create_trace(number, &team(), &uuid7())).collect();
    store.register(&messages).unwrap();
    drop(store);
    for args in [
        &["inspect", "--limit", "0"][..],
        &["inspect", "--limit", "0", "--format", "json"],
        &["inspect", "--limit", "0", "--format", "jsonl"],
        &["inspect", "--limit", "0", "--format", "yaml"],
        &["healthcheck"],
        &["status"],
        &["help"],
    ] {
        let mut child = sandbox.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), &*stderr), (Some(0), ""), "{args:?}");
    }
    // Nobody reads the errors either.
    let mut child = sandbox.command(&["inspect", "9999"]).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

#[test]
fn a_rate_limit_is_waited_for_within_the_timeout() {
    let server = FakeOpik::start_new();
    server.script_times(1, When::write(), Then::rate_limited(1));
    let sandbox = Sandbox::filled().with_server(&server);
    let found = sandbox.run(&["replay", "--timeout", "30s"]);
    assert!(found.starts_with("delivered 4 messages in ") && found.ends_with("--- exit 0\n"), "{found}");
}

#[test]
fn a_replay_that_waits_for_another_can_be_interrupted() {
    let server = FakeOpik::start_new();
    let sandbox = Sandbox::filled().with_server(&server);
    let store = open(&sandbox.home.db());
    let _lease = store.acquire(&Owner::this_process("agent"), Duration::from_secs(3600)).unwrap();
    let mut child = sandbox.command(&["replay"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let said = Written::default();
    said.follow(child.stderr.take().unwrap());
    wait_until("the replay says for whom it waits", PATIENCE, || said.text().contains("replays this store"));
    assert!(said.text().starts_with("waiting: opik-offline agent (pid "), "{}", said.text());
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        format!(
            "delivered nothing to {}\nremaining 4 messages\n  interrupted; nothing is lost, run it again to continue\n",
            server.url()
        )
    );
    let found = sandbox.run(&["replay", "--timeout", "200ms"]);
    assert!(found.contains("  the time limit of --timeout is reached; run it again to continue\n"), "{found}");
    assert!(found.ends_with("--- exit 4\n"), "{found}");
    assert!(server.requests_to("POST", "*").is_empty(), "only the holder of the lease sends");
}

#[test]
fn a_replay_ends_when_its_time_is_over_even_in_the_middle() {
    let server = FakeOpik::start_new();
    let sandbox = Sandbox::new().with_server(&server);
    let lane = team_of(&server.url());
    let messages: Vec<_> = (0..200).map(|number| create_trace(number, &lane, &uuid7())).collect();
    open(&sandbox.home.db()).register(&messages).unwrap();
    server.script(When::write(), Then::Delay(Duration::from_millis(50)));
    let found = sandbox.run(&["replay", "--timeout", "1s"]);
    assert!(found.starts_with("delivered ") && found.ends_with("--- exit 4\n"), "{found}");
    let delivered = server.count("team", Kind::Trace);
    let left = open(&sandbox.home.db()).backlog(&Filter::default()).unwrap();
    assert_eq!(usize::try_from(left.waiting()).unwrap() + delivered, 200, "each is on the server or in the store");
    assert!(delivered > 0);
}

#[test]
fn messages_behind_unselected_ones_are_skipped_and_counted() {
    let server = FakeOpik::start_new();
    let sandbox = Sandbox::filled().with_server(&server);
    assert_text(
        &sandbox.run(&["replay", "--type", "UpdateTrace"]),
        "
delivered nothing to SERVER
remaining 1 message
  1 message waits for earlier ones that the filter does not select
--- exit 4
",
    );
    assert_eq!(server.count("team", Kind::Trace), 0, "an update reached the server before its create");
    // Nothing waits behind what has nothing before it.
    assert!(sandbox.run(&["replay", "--type", "CreateTrace"]).ends_with("--- exit 0\n"));
    assert!(sandbox.run(&["replay", "--type", "UpdateTrace"]).ends_with("--- exit 0\n"));
    server.assert_no_update_before_create();
}
