//! Invalid settings for an agent: it reports the reason with exit code 2, and has started and created nothing.

use crate::support::agent::{Agent, Home};
use crate::support::fake_opik::FakeOpik;
use crate::support::fake_opik::check::Kind;
use crate::support::http::{Client, Request};
use crate::support::process::Output;
use crate::support::{PATIENCE, reserve_port, uuid7, wait_until};
use crate::writes::{assert_error, create};

fn agent(home: &Home, args: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = home.command(env!("CARGO_BIN_EXE_opik-offline"));
    command.arg("agent").args(args).envs(env.iter().copied());
    crate::support::process::run(&mut command)
}

#[track_caller]
fn assert_refused(home: &Home, output: &Output, says: &[&str]) {
    assert_refused_with(2, home, output, says);
}

#[track_caller]
fn assert_refused_with(code: i32, home: &Home, output: &Output, says: &[&str]) {
    let stderr = &output.stderr;
    assert_eq!(output.code(), Some(code), "{stderr}");
    for words in says {
        assert!(stderr.contains(words), "it does not say {words:?}:\n{stderr}");
    }
    assert!(stderr.contains("hint: "), "{stderr}");
    assert!(!stderr.contains("listening on"), "{stderr}");
    let made: Vec<_> = walk(home.path());
    assert!(made.is_empty(), "it has made {made:?}");
}

/// Every file below a folder.
fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[test]
fn a_second_agent_on_the_address_is_refused() {
    let server = FakeOpik::start_new();
    let first = Agent::start(&server);
    let home = Home::new();
    let address = format!("127.0.0.1:{}", first.port());
    let output = agent(&home, &["--listen", &address, "--upstream", &server.url()], &[]);
    assert_refused_with(6, &home, &output, &[&address]);
    assert_eq!(Client::new(&first.url()).get("/is-alive/ping").status, 200, "the first one continues");
}

#[test]
fn an_agent_in_front_of_itself_is_refused() {
    let reservation = reserve_port(0).unwrap();
    let port = reservation.local_addr().unwrap().port();
    let listen = format!("127.0.0.1:{port}");
    for host in ["127.0.0.1", "localhost"] {
        let url = format!("http://{host}:{port}/api");
        let home = Home::new();
        assert_refused(&home, &agent(&home, &["--listen", &listen, "--upstream", &url], &[]), &[&url, "--upstream"]);
        // As an application and its agent share one environment.
        let shared = [("OPIK_URL_OVERRIDE", &*url)];
        assert_refused(&home, &agent(&home, &["--listen", &listen], &shared), &[&url, "--upstream"]);
        let every = format!("0.0.0.0:{port}");
        let args = ["--listen", &every, "--insecure-listen", "--upstream", &url];
        assert_refused(&home, &agent(&home, &args, &[]), &[&url]);
    }
}

#[test]
fn malformed_settings_are_named_with_their_value_and_source() {
    for (args, env, says) in [
        (&["--listen", "nowhere"][..], &[][..], &["--listen", "nowhere"][..]),
        (&["--upstream", "ftp://x"], &[], &["--upstream", "ftp://x"]),
        (&["--forward-timeout", "soon"], &[], &["--forward-timeout", "soon"]),
        (&["--max-size", "1"], &[], &["--max-size", "1"]),
        (&[], &[("OPIK_REPLAY_BATCH_SIZE", "many")], &["OPIK_REPLAY_BATCH_SIZE", "many"]),
        (&[], &[("OPIK_CONNECTION_MONITOR_PING_INTERVAL", "-1")], &["OPIK_CONNECTION_MONITOR_PING_INTERVAL", "-1"]),
        (&[], &[("OPIK_OFFLINE_WHEN_FULL", "explode")], &["OPIK_OFFLINE_WHEN_FULL", "explode"]),
    ] {
        let home = Home::new();
        let output = agent(&home, args, env);
        assert_refused(&home, &output, says);
    }
}

#[test]
fn listening_beyond_this_machine_needs_a_token() {
    let home = Home::new();
    let output = agent(&home, &["--listen", "0.0.0.0:0", "--upstream", "http://127.0.0.1:9/api"], &[]);
    assert_refused(&home, &output, &["0.0.0.0", "OPIK_OFFLINE_INTAKE_TOKEN"]);
}

#[test]
fn clients_show_the_intake_token_in_a_header_or_in_the_path() {
    let server = FakeOpik::start_new();
    let mut agent =
        Agent::builder(&server.url()).impatient().env("OPIK_OFFLINE_INTAKE_TOKEN", "secret-of-seventeen").start();
    let send = |base: &str, token: Option<&str>| {
        let id = uuid7();
        let request = match token {
            Some(token) => create(&id).header("X-Opik-Offline-Token", token),
            None => create(&id),
        };
        (Client::new(base).expect(&request), id)
    };
    for (base, token) in [
        (agent.url(), None),
        (agent.url(), Some("secret-of-sevente")),
        (format!("{}/-/token/wrong/api", agent.origin()), None),
    ] {
        assert_error(&send(&base, token).0, 401);
        assert_error(&Client::new(&base).get("/v1/private/projects"), 401);
    }
    assert_eq!((server.count("default", Kind::Trace), agent.backlog()), (0, 0));

    let with_path = format!("{}/-/token/secret-of-seventeen/api", agent.origin());
    for away in [false, true] {
        if away {
            server.stop();
        }
        let (answer, _) = send(&agent.url(), Some("secret-of-seventeen"));
        assert_eq!(answer.status, 201, "{}", answer.text());
        let (answer, id) = send(&with_path, None);
        assert_eq!(answer.status, 201, "{}", answer.text());
        let location = format!("{with_path}/v1/private/traces/{id}");
        assert_eq!(answer.header("Location"), Some(&*location), "the Location leads back in");
    }
    server.start();
    agent.wait_until_delivered();
    assert_eq!(server.count("default", Kind::Trace), 4);
    for request in server.requests() {
        let wire = format!("{} {:?}", request.path, request.headers);
        assert!(!wire.contains("secret-of-seventeen"), "the server gets the token: {wire}");
    }
    assert_eq!(Client::new(&agent.origin()).get("/-/healthy").status, 200);
    assert!(agent.terminate().success());
    let stored = std::fs::read(agent.db()).unwrap();
    assert!(!stored.windows(19).any(|bytes| bytes == b"secret-of-seventeen"), "the token is in the store");
    assert!(!agent.stderr().contains("secret-of-seventeen"));
}

#[test]
fn an_agent_that_meets_itself_behind_another_says_so() {
    // Two agents, each the other's server: no start can see that.
    let reservation = reserve_port(0).unwrap();
    let first = reservation.local_addr().unwrap().port();
    let mut second = Agent::builder(&format!("http://127.0.0.1:{first}/api")).impatient().start();
    let first = Agent::builder(&second.url()).impatient().on_port(first).start();
    let mut client = Client::new(&first.url());
    wait_until("both think that they have a server", PATIENCE, || {
        let ready = |agent: &Agent| Client::new(&agent.origin()).get("/-/ready").json()["server"]["connection"].clone();
        ready(&first) == "available" && ready(&second) == "available"
    });
    assert_error(&client.get("/v1/private/projects"), 508);
    // A write as well, unless one of them was away a moment ago and keeps it.
    let answer = client.expect(&Request::new("PATCH", "/v1/private/traces/x").bytes(*b"{}"));
    assert_error(&answer, 508);
    assert_eq!((first.backlog(), second.backlog()), (0, 0));
    assert!(second.terminate().success());
}

#[test]
fn agents_that_are_each_others_server_do_not_pass_a_backlog_round_and_round() {
    let reservation = reserve_port(0).unwrap();
    let first = reservation.local_addr().unwrap().port();
    let keeping =
        || Agent::builder(&format!("http://127.0.0.1:{first}/api")).impatient().arg("--retry-interval").arg("1s");
    let second = keeping().start();
    assert_eq!(Client::new(&second.url()).expect(&create(&uuid7())).status, 201);
    let first = Agent::builder(&second.url()).impatient().on_port(first).start();
    wait_until("the loop is reported", PATIENCE, || second.stderr().contains("508"));
    assert_eq!((first.backlog(), second.backlog()), (0, 1));
    for agent in [&first, &second] {
        let metrics = Client::new(&agent.origin()).get("/metrics").text();
        assert!(metrics.contains("opik_offline_messages_delivered_total 0\n"), "{metrics}");
    }
    // The agent's overview is cached for a moment.
    wait_until("status names the remedy", PATIENCE, || second.cli(&["status"]).stdout.contains("--upstream"));
}
