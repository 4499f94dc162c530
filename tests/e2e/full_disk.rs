//! A file system that is really full: a tmpfs of a few megabytes with the store and nothing else on it. Not even what
//! makes room again, a delivered message, can be noted then, unless the agent reserves space for it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use crate::support::agent::{Agent, Home};
use crate::support::fake_opik::FakeOpik;
use crate::support::http::{Client, Request};
use crate::support::ledger::ClientLedger;
use crate::support::not_run::not_run;
use crate::support::{PATIENCE, noise, uuid7, wait_until};
use crate::unusable_store::a_limit_on_the_size_of_files_is_survived_and_nothing_acknowledged_is_lost;
use crate::writes::{Told, create, trace, update};

/// A small file system in place of a home directory, for processes that enter the namespace in which it is mounted.
pub(crate) struct Small {
    holder: Child,
    namespaces: &'static [&'static str],
    /// The file that a file system of blocks is made in.
    _image: tempfile::TempDir,
}

/// The mount on the agent's home: a tmpfs or the home itself in a namespace of its own, where this user may make
/// one, or a file system of blocks, for root alone.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Made {
    Tmpfs(&'static str),
    /// The home as it is; it can be mounted anew, read-only.
    Bound,
    /// By a shell command that makes it in the file `$0`.
    Blocks(&'static str),
}

impl Small {
    /// Mounts it, or returns why not.
    pub(crate) fn mount(home: &Home, made: Made) -> Result<Self, String> {
        let image = crate::support::tempdir();
        let file = image.path().join("image");
        let (program, namespaces): (&[&str], &'static [&'static str]) = match made {
            Made::Tmpfs(_) | Made::Bound => (&["unshare", "--map-root-user", "--mount"], &["--user", "--mount"]),
            Made::Blocks(_) => (&["unshare", "--mount"], &["--mount"]),
        };
        let script = match made {
            Made::Tmpfs(size) => format!("mount -t tmpfs -o size={size},mode=700 tmpfs \"$1\""),
            Made::Bound => "mount --bind \"$1\" \"$1\"".to_owned(),
            Made::Blocks(make) => format!("({make}) >&2 && mount -o loop \"$0\" \"$1\" && chmod 700 \"$1\""),
        };
        let mut command = home.command(program[0]);
        command.args(&program[1..]).args(["sh", "-c", &format!("{script} && echo mounted && exec cat")]);
        command.arg(&file).arg(home.path()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        // The holder ends when its standard input does, that is with the test.
        let mut holder = command.spawn().map_err(|error| error.to_string())?;
        let mut said = String::new();
        let read = holder.stdout.take().map(|stdout| BufReader::new(stdout).read_line(&mut said));
        let small = Self { holder, namespaces, _image: image };
        match (read, said.trim()) {
            (Some(Ok(_)), "mounted") => Ok(small),
            _ => Err(format!("{made:?} can't be mounted here")),
        }
    }

    /// Returns the command that starts another one in the namespace.
    pub(crate) fn enter(&self) -> Vec<String> {
        let holder = self.holder.id().to_string();
        let mut command: Vec<String> = ["nsenter", "--target", &holder].map(str::to_owned).into();
        command.extend(self.namespaces.iter().map(|&namespace| namespace.to_owned()));
        if self.namespaces.contains(&"--user") {
            command.push("--preserve-credentials".to_owned());
        }
        command
    }

    /// Runs a shell command as root of the small file system, with the home directory as `$0`.
    pub(crate) fn root(&self, home: &Home, script: &str) {
        let mut command = home_command(self, home, "sh");
        let output = crate::support::process::run(command.args(["-c", script]).arg(home.path()));
        assert!(output.status.success(), "{script}: {}{}", output.stdout, output.stderr);
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Both fail only if it has already ended.
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
    let Ok(small) = Small::mount(&home, Made::Tmpfs("4m")) else {
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
        wait_until("delivery has made room", PATIENCE, || app.send(large(&uuid7())).unwrap().status == 201);
    }
    server.start();
    agent.wait_until_delivered();
    server.assert_equals(&ledger);
}

/// Less is free between two writes of a program that takes every byte, or never given to anybody by the file system.
pub(crate) const CRUMBS: u64 = 128 * 1024;

/// A program that takes every byte that becomes free, for as long as it lives.
pub(crate) struct Filler(Child);

impl Filler {
    pub(crate) fn start(small: &Small, home: &Home) -> Self {
        // The last write of each round ends within a page, so that nothing is left over.
        let script = "while :; do cat /dev/zero >>\"$0\"/filler; done 2>/dev/null";
        let mut command = home_command(small, home, "sh");
        command.args(["-c", script]).arg(home.path());
        Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the filler starts"))
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns the command that starts this program in the namespace.
pub(crate) fn home_command(small: &Small, home: &Home, program: &str) -> std::process::Command {
    let mut command = home.command("env");
    command.args(small.enter()).arg(program);
    command
}

/// Returns how many bytes are free on the small file system.
pub(crate) fn bytes_free(small: &Small, home: &Home) -> u64 {
    let mut command = home_command(small, home, "df");
    command.args(["--output=avail", "--block-size=1"]).arg(home.path());
    let output = crate::support::process::run(&mut command);
    output.stdout.lines().nth(1).and_then(|line| line.trim().parse().ok()).expect("a number of bytes")
}

/// An event for the agent while another program has taken every byte of the disk.
#[derive(Clone, Copy, Debug)]
enum Meanwhile {
    Nothing,
    Stopped,
    Killed,
    FilledWhileStopped,
    Replayed,
}

/// Stores this many creates, each with an input of 500 to `500 + bytes` bytes, and returns their ids.
#[track_caller]
pub(crate) fn store_backlog(app: &mut Told<'_>, count: usize, bytes: usize) -> Vec<String> {
    let mut store = |number: usize| {
        let id = uuid7();
        let mut body = trace(&id, "waits");
        body["input"] = noise(500 + number * 7 % bytes).into();
        app.acknowledged(Request::new("POST", "/v1/private/traces").json(&body), 201);
        id
    };
    (0..count).map(&mut store).collect()
}

/// For every event meanwhile: with `OPIK_OFFLINE_FULL_DISKS=all` on each file system, else all on one.
pub(crate) fn assert_left_by_delivering(made: Made) {
    use Meanwhile::{FilledWhileStopped, Killed, Nothing, Replayed, Stopped};
    let all = [Nothing, FilledWhileStopped, Stopped, Killed, Replayed];
    let is_small = std::env::var_os("OPIK_OFFLINE_FULL_DISKS").is_none() && !format!("{made:?}").contains("ext4");
    for &meanwhile in if is_small { &all[..2] } else { &all[..] } {
        let home = Home::new();
        let small = match Small::mount(&home, made) {
            Ok(small) => small,
            Err(reason) => return not_run(&reason),
        };
        let server = FakeOpik::new_stopped();
        let mut agent = Agent::builder(&server.url()).impatient().within(&small.enter()).home(home).start();
        let ledger = ClientLedger::new();
        let mut app = Told::new(&agent.url(), &ledger);
        let ids = store_backlog(&mut app, 600, 9000);
        let fill = |agent: &Agent| {
            let filler = Filler::start(&small, agent.home());
            wait_until("the disk is full", PATIENCE, || bytes_free(&small, agent.home()) < CRUMBS);
            filler
        };
        let filler = match meanwhile {
            Meanwhile::FilledWhileStopped => {
                assert!(agent.terminate().success());
                fill(&agent)
            }
            _ => fill(&agent),
        };
        for id in &ids[..50] {
            let answer = app.send(update(id, 1));
            assert!(answer.is_err() || answer.is_ok_and(|answer| [204, 503].contains(&answer.status)));
        }
        match meanwhile {
            Meanwhile::Nothing => server.start(),
            Meanwhile::Stopped => {
                assert!(agent.terminate().success());
                agent.restart_on_same_port();
                server.start();
            }
            Meanwhile::Killed => {
                agent.kill9();
                agent.restart_on_same_port();
                server.start();
            }
            Meanwhile::FilledWhileStopped => {
                agent.restart_on_same_port();
                server.start();
            }
            Meanwhile::Replayed => {
                assert!(agent.terminate().success());
                server.start();
                let replay = agent.cli(&["replay"]);
                assert_eq!(replay.code(), Some(0), "{} {}{}", replay.status, replay.stdout, replay.stderr);
                agent.restart_on_same_port();
            }
        }
        // Asked of the agent: it may have the store for itself as long as the disk is full.
        let mut client = Client::new(&agent.origin());
        wait_until("what is stored is delivered", PATIENCE, || {
            let store = client.get("/-/status.json").json()["store"].take();
            store["usable"] == true && store["waiting"] == 0
        });
        assert!(bytes_free(&small, agent.home()) < CRUMBS, "{meanwhile:?}: somebody made room");
        server.assert_equals(&ledger);
        server.assert_no_update_before_create();
        let lines = agent.stderr().lines().filter(|line| line.contains("is full")).count();
        assert!(lines <= 3, "{meanwhile:?}: the log repeats itself:\n{}", agent.stderr());
        // Room again: everything works as before, for other processes as well.
        drop(filler);
        let mut remove = home_command(&small, agent.home(), "rm");
        assert!(crate::support::process::run(remove.arg(agent.home().path().join("filler"))).status.success());
        server.stop();
        let mut app = Told::new(&agent.url(), &ledger);
        wait_until("messages are stored again", PATIENCE, || {
            app.send(create(&uuid7())).is_ok_and(|answer| answer.status == 201)
        });
        wait_until("other processes can read the store", PATIENCE, || agent.cli(&["status"]).status.code() != Some(1));
        server.start();
        agent.wait_until_delivered();
        server.assert_equals(&ledger);
    }
}

#[test]
fn a_tmpfs_that_another_program_filled_is_left_by_delivering() {
    assert_left_by_delivering(Made::Tmpfs("24m"));
}

#[test]
fn an_ext4_that_another_program_filled_is_left_by_delivering() {
    assert_left_by_delivering(Made::Blocks("truncate -s 48M \"$0\" && mkfs.ext4 -q -m 0 \"$0\""));
}

#[test]
fn an_xfs_that_another_program_filled_is_left_by_delivering() {
    assert_left_by_delivering(Made::Blocks("truncate -s 320M \"$0\" && mkfs.xfs -q \"$0\""));
}

#[test]
fn obstacles_to_writing_are_named_and_lose_nothing_acknowledged() {
    // The last words are those by which a person knows what to do.
    for (obstacle, mend, words) in [
        ("chattr +i \"$0\"/opik_messages.db", "chattr -i \"$0\"/opik_messages.db", "chattr -i"),
        ("mount -o remount,ro \"$0\"", "mount -o remount,rw \"$0\"", "remount,rw"),
        ("n=0; while touch \"$0\"/i$n 2>/dev/null; do n=$((n+1)); done", "rm -f \"$0\"/i*", "inodes"),
    ] {
        let home = Home::new();
        let make = Made::Blocks("truncate -s 48M \"$0\" && mkfs.ext4 -q -m 0 -N 64 \"$0\"");
        let small = match Small::mount(&home, make) {
            Ok(small) => small,
            Err(reason) => return not_run(&reason),
        };
        let server = FakeOpik::new_stopped();
        let mut agent = Agent::builder(&server.url()).impatient().within(&small.enter()).home(home).start();
        let ledger = ClientLedger::new();
        let mut app = Told::new(&agent.url(), &ledger);
        for _ in 0..20 {
            assert_eq!(app.send(create(&uuid7())).expect("an answer").status, 201);
        }
        // A disk that is full at startup is the hardest case: no file of SQLite's can be made.
        assert!(agent.terminate().success());
        small.root(agent.home(), obstacle);
        agent.restart_on_same_port();
        let mut app = Told::new(&agent.url(), &ledger);
        let answer = app.send(create(&uuid7())).expect("an answer");
        assert!([201, 503].contains(&answer.status), "{obstacle}: {}", answer.text());
        wait_until("the obstacle is named", PATIENCE, || {
            let said = Client::new(&agent.origin()).get("/-/status.json").text();
            said.contains(words) || agent.stderr().contains(words) || answer.status == 201
        });
        small.root(agent.home(), mend);
        wait_until("messages are stored again", PATIENCE, || {
            app.send(create(&uuid7())).is_ok_and(|answer| answer.status == 201)
        });
        server.start();
        agent.wait_until_delivered();
        server.assert_equals(&ledger);
    }
}
