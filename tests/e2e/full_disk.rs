//! A file system that is really full: a tmpfs of a few megabytes with the store and nothing else on it. Not even what makes
//! room again, a delivered message, can be noted then, unless the agent sees to it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use crate::degraded::a_limit_on_the_size_of_files_is_survived_and_nothing_acknowledged_is_lost;
use crate::support::agent::{Agent, Home};
use crate::support::fake_opik::FakeOpik;
use crate::support::http::Request;
use crate::support::ledger::ClientLedger;
use crate::support::{PATIENCE, noise, uuid7, wait_until};
use crate::writes::{Told, create, trace, update};

/// A small file system in the place of a home directory, for those who enter the namespace in which it is mounted.
struct Small {
    holder: Child,
}

impl Small {
    /// Mounts it. `None` where the system lets this user make no namespace.
    fn mount(home: &Home) -> Option<Self> {
        let script = "mount -t tmpfs -o size=4m,mode=700 tmpfs \"$0\" && echo mounted && exec cat";
        let mut command = home.command("unshare");
        command.args(["--map-root-user", "--mount", "sh", "-c", script]).arg(home.path());
        // The holder ends when its standard input does, that is with the test.
        let mut holder = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().ok()?;
        let mut said = String::new();
        BufReader::new(holder.stdout.take()?).read_line(&mut said).ok()?;
        let small = Self { holder };
        (said.trim() == "mounted").then_some(small)
    }

    /// Returns the command that starts another one in the namespace.
    fn enter(&self) -> Vec<String> {
        let holder = self.holder.id().to_string();
        ["nsenter", "--target", &holder, "--user", "--mount", "--preserve-credentials"].map(str::to_owned).into()
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Both fail only when it has ended by itself.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// A body that does not get much smaller and shares no page with others.
fn large(id: &str) -> Request {
    let mut body = trace(id, "large");
    body["input"] = noise(60_000).into();
    Request::new("POST", "/v1/private/traces").json(&body)
}

#[test]
fn a_full_file_system_loses_nothing_acknowledged_and_is_left_by_delivering() {
    let home = Home::new();
    let Some(small) = Small::mount(&home) else {
        // No namespaces for this user: the other way to a write that has no room.
        eprintln!("nothing can be mounted here: a limit on the size of files takes the place of a full file system");
        return a_limit_on_the_size_of_files_is_survived_and_nothing_acknowledged_is_lost();
    };
    let server = FakeOpik::new_stopped();
    let mut agent = Agent::builder(&server.url())
        .impatient()
        .within(&small.enter())
        .arg("--free-disk-reserve")
        .arg("0")
        .home(home)
        .start();
    let ledger = ClientLedger::new();
    for round in 0..3 {
        let mut app = Told::new(&agent.url(), &ledger);
        let mut stored = Vec::new();
        let mut refused = 0;
        // Large ones until there is no room, then small ones into the last corner.
        while refused < 5 {
            let id = uuid7();
            match app.send(large(&id)).expect("an answer").status {
                201 => stored.push(id),
                503 => refused += 1,
                other => panic!("{other}"),
            }
            assert!(stored.len() < 200, "four megabytes hold more than twelve");
        }
        for id in stored.iter().take(10) {
            let answer = app.send(update(id, round)).expect("an answer");
            assert!([204, 503].contains(&answer.status), "{}", answer.text());
            let answer = app.send(create(&uuid7())).expect("an answer");
            assert!([201, 503].contains(&answer.status), "{}", answer.text());
        }
        assert!(!stored.is_empty(), "round {round}: nothing was stored");
        // An agent that starts on a full file system has to manage as well.
        agent.kill9();
        agent.restart_on_same_port();
        server.start();
        agent.wait_until_delivered();
        server.assert_equals(&ledger);
        server.assert_no_update_before_create();
        server.stop();
        let mut app = Told::new(&agent.url(), &ledger);
        wait_until("what was delivered has made room", PATIENCE, || app.send(large(&uuid7())).unwrap().status == 201);
    }
    server.start();
    agent.wait_until_delivered();
    server.assert_equals(&ledger);
}
