//! A person sets the pace of a whole fleet, holds it, and lets it go on: agents and replayers keep to that.

use opik_offline::depot::{Depot, Name};
use opik_offline::fleet::dial::DialSetting;
use opik_offline::fleet::head::HeadState;
use opik_offline::fleet::names::ObjectName;
use serde_json::Value;

use crate::fleet_streams::{Outage, TAKEOVER_AFTER, TestFleet};
use crate::support::agent::{Agent, AgentBuilder, Home};
use crate::support::fake_opik::FakeOpik;
use crate::support::http::Client;
use crate::support::process::Output;
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::writes::create;

/// An agent that ships to this depot and looks at its dial often.
fn agent(fleet: &TestFleet, server: &FakeOpik) -> AgentBuilder {
    let agent = Agent::builder(&server.url()).impatient().arg("--fleet").arg(&fleet.url());
    agent.env("OPIK_OFFLINE_FLEET_TAKEOVER_AFTER", TAKEOVER_AFTER).env("OPIK_OFFLINE_FLEET_DELAY", "0s")
}

/// Runs `replay --fleet` with these flags.
fn dial(fleet: &TestFleet, args: &[&str]) -> Output {
    Home::new().cli(&[&["replay", "--fleet", &fleet.url()], args].concat())
}

#[track_caller]
fn dialled(fleet: &TestFleet, args: &[&str]) -> Value {
    let output = dial(fleet, &[args, &["--format", "json"]].concat());
    assert_eq!(output.code(), Some(0), "{}{}", output.stdout, output.stderr);
    output.json()
}

/// Sends creates that are acknowledged and stored.
#[track_caller]
fn stored(agent: &Agent, number: usize) {
    let mut client = Client::new(&agent.url());
    for _ in 0..number {
        let answer = client.send(&create(&uuid7())).expect("an answer");
        assert!((200..300).contains(&answer.status), "{}", answer.text());
    }
}

/// What the agent says about its fleet.
fn of_fleet(agent: &Agent) -> Value {
    Client::new(&agent.origin()).get("/-/status.json").json()["fleet"]["dial"].clone()
}

fn is_held(agent: &Agent) -> bool {
    of_fleet(agent)["hold"].is_object()
}

/// How many writes the server got.
fn writes(server: &FakeOpik) -> usize {
    server.requests().iter().map(|request| request.writes.len()).sum()
}

/// Waits until these many agents and replayers have found the server, and had time for much more.
fn wait_until_server_is_known(server: &FakeOpik, senders: usize) {
    let pings = || server.requests().iter().filter(|request| request.method == "GET").count();
    let before = pings();
    wait_until("the server is found again and again", PATIENCE, || pings() >= before + senders * 20);
}

/// Writes into the dial's object, as another version does.
fn overwrite(fleet: &TestFleet, bytes: &[u8]) {
    let name = Name::new(&ObjectName::Dial.to_string()).unwrap();
    let (_, version) = fleet.depot.get(&name).unwrap().expect("a dial");
    fleet.depot.swap(&name, Some(&version), bytes).expect("nobody else writes it");
}

fn in_depot(fleet: &TestFleet) -> Vec<u8> {
    fleet.depot.get(&Name::new("v1/dial").unwrap()).unwrap().expect("a dial").0
}

#[test]
fn a_hold_stops_agents_and_a_replayer_and_a_resume_lets_them_go() {
    let (fleet, server) = (TestFleet::new(), FakeOpik::new_stopped());
    let outage = Outage::new(&server, 1, 3);
    let stream = outage.ship(&fleet, HeadState::Closed)[0];
    let agents = [agent(&fleet, &server).start(), agent(&fleet, &server).start()];
    agents.iter().for_each(|agent| stored(agent, 30));
    let held = dialled(&fleet, &["--hold", "30m"]);
    assert!(held["hold"]["seconds_left"].as_u64().is_some_and(|left| (1_000..=1_800).contains(&left)), "{held}");
    wait_until("the agents know of the hold", PATIENCE, || agents.iter().all(is_held));
    server.start();
    let home = Home::new();
    let mut replayer = fleet.spawn(&home, &server, &["--follow"]);
    wait_until("the replayer takes the stream", PATIENCE, || fleet.head(stream).is_some_and(|head| head.epoch == 2));
    wait_until_server_is_known(&server, 3);
    assert_eq!(writes(&server), 0, "a held fleet delivers");
    // A write that nothing is stored before goes its way.
    let live = create(&uuid7()).header("Comet-Workspace", "team-b");
    assert!(Client::new(&agents[0].url()).send(&live).expect("an answer").status < 300);
    wait_until("the live write arrives", PATIENCE, || writes(&server) == 1);
    for agent in &agents {
        let shown = agent.cli(&["status"]).stdout;
        assert!(
            shown.contains("held until") && shown.contains("--resume"),
            "nobody can tell why nothing moves: {shown}"
        );
        let said = agent.stderr();
        assert_eq!(said.matches("the fleet is held").count(), 1, "{said}");
    }
    let status = Home::new().cli(&["status", "--fleet", &fleet.url()]).stdout;
    assert!(status.contains("held until"), "{status}");
    assert_eq!(writes(&server), 1, "a held fleet delivers");

    assert_eq!(dialled(&fleet, &["--resume"])["hold"], Value::Null);
    agents.iter().for_each(Agent::wait_until_delivered);
    wait_until("the replayer delivers its stream", PATIENCE, || fleet.head(stream).is_none());
    replayer.kill().unwrap();
    replayer.wait().unwrap();
    assert_eq!(writes(&server), 1 + 60 + usize::try_from(outage.messages()).unwrap());
    assert_eq!(fleet.names("v1/orders").len(), 2, "nobody can tell who held the fleet");
    server.assert_no_violations();
}

#[test]
fn two_senders_together_keep_the_pace() {
    const PER_SECOND: usize = 40;
    const EACH: usize = 200;
    let (fleet, server) = (TestFleet::new(), FakeOpik::new_stopped());
    let agents = [agent(&fleet, &server).start(), agent(&fleet, &server).start()];
    agents.iter().for_each(|agent| stored(agent, EACH));
    wait_until("both agents have a stream", PATIENCE, || fleet.names("v1/heads").len() == 2);
    let paced = dialled(&fleet, &["--pace", &format!("{PER_SECOND}/s")]);
    assert_eq!((&paced["pace"]["messages_per_second"], &paced["draining"]), (&40.into(), &2.into()), "{paced}");
    wait_until("the agents know their shares", PATIENCE, || {
        agents.iter().all(|agent| of_fleet(agent)["share"].as_f64() == Some(20.0))
    });
    server.start();
    agents.iter().for_each(Agent::wait_until_delivered);
    let requests = server.requests();
    let sent: Vec<_> = requests.iter().filter(|request| !request.writes.is_empty()).collect();
    let (first, last) = (sent.first().expect("they deliver"), sent.last().expect("they deliver"));
    assert_eq!(writes(&server), 2 * EACH);
    // All but what the last requests had was sent before them: however slow the machine is, it can't be faster.
    let before = 2 * EACH - last.writes.len() - first.writes.len();
    let rate = before as f64 / (last.at - first.at).as_secs_f64();
    assert!(rate <= PER_SECOND as f64 * 1.1, "{rate:.1} messages a second instead of {PER_SECOND}");
    let shown = agents[0].cli(&["status"]).stdout;
    assert!(shown.contains("at most 40 a second"), "{shown}");
    assert_eq!(dialled(&fleet, &["--pace", "none"])["pace"], Value::Null);
}

#[test]
fn a_dial_of_a_later_version_is_kept_and_named() {
    const LATER: &[u8] = b"{\"format\": 2, \"hold\": \"until the moon is full\"}";
    let (fleet, server) = (TestFleet::new(), FakeOpik::new_stopped());
    let agent = agent(&fleet, &server).start();
    stored(&agent, 5);
    dialled(&fleet, &["--hold", "30m"]);
    wait_until("the agent knows of the hold", PATIENCE, || is_held(&agent));
    let before = in_depot(&fleet);
    overwrite(&fleet, LATER);
    wait_until("the agent names the format", PATIENCE, || {
        of_fleet(&agent)["problem"].as_str().is_some_and(|problem| problem.contains("format 2"))
    });
    for args in [&["--resume"][..], &["--pace", "7"], &["--hold", "1m"]] {
        let refused = dial(&fleet, args);
        assert_eq!(refused.code(), Some(1), "{}", refused.stdout);
        assert!(refused.stderr.contains("format 2"), "{}", refused.stderr);
    }
    assert_eq!((in_depot(&fleet).as_slice(), fleet.names("v1/orders").len()), (LATER, 1));
    let status = Home::new().cli(&["status", "--fleet", &fleet.url()]).stdout;
    assert!(status.contains("format 2"), "{status}");
    server.start();
    wait_until_server_is_known(&server, 1);
    assert_eq!((writes(&server), is_held(&agent)), (0, true), "a hold ended because a later version wrote something");
    assert_eq!(agent.stderr().matches("format 2").count(), 1, "{}", agent.stderr());
    let known = DialSetting::decode(&before).expect("this version wrote it");
    overwrite(&fleet, &DialSetting { writes: known.writes + 1, ..known.held(None) }.encode());
    agent.wait_until_delivered();
    assert_eq!(writes(&server), 5);
}

#[test]
fn an_agent_whose_depot_is_away_keeps_the_last_hold_until_it_ends() {
    let (fleet, server) = (TestFleet::new(), FakeOpik::new_stopped());
    // Nothing has a copy, so nothing waits for the depot itself.
    let agent = agent(&fleet, &server).env("OPIK_OFFLINE_FLEET_DELAY", "1h").start();
    stored(&agent, 5);
    dialled(&fleet, &["--hold", "30m"]);
    wait_until("the agent knows of the hold", PATIENCE, || is_held(&agent));
    let elsewhere = fleet.root().with_extension("away");
    std::fs::rename(fleet.root(), &elsewhere).unwrap();
    server.start();
    wait_until_server_is_known(&server, 1);
    assert_eq!((writes(&server), is_held(&agent)), (0, true), "a hold ended because the depot went away");
    std::fs::rename(&elsewhere, fleet.root()).unwrap();
    dialled(&fleet, &["--hold", "4s"]);
    wait_until("the agent knows of the short hold, or has seen it end", PATIENCE, || {
        of_fleet(&agent)["hold"]["seconds_left"].as_u64().is_none_or(|left| left < 60)
    });
    std::fs::rename(fleet.root(), &elsewhere).unwrap();
    agent.wait_until_delivered();
    assert_eq!(writes(&server), 5, "a hold outlives its time because the depot is away");
}

#[test]
fn a_dial_that_cannot_be_set_says_so() {
    let fleet = TestFleet::new();
    let home = Home::new();
    for (args, code, said) in [
        (&["replay", "--pace", "7/s"][..], 2, "for a depot"),
        (&["replay", "--resume"], 1, "nothing was stored"),
        (&["replay", "--fleet", &fleet.url(), "--pace", "0"], 2, "--hold"),
        (&["replay", "--fleet", &fleet.url(), "--pace", "20k"], 2, "20000/s"),
        (&["replay", "--fleet", &fleet.url(), "--hold", "8d"], 2, "7d"),
        (&["replay", "--fleet", &fleet.url(), "--hold", "1h", "--resume"], 2, "cannot be used with"),
        (&["replay", "--fleet", &fleet.url(), "--hold", "1h", "--follow"], 2, "cannot be used with"),
        (&["replay", "--fleet", &fleet.url(), "--pace", "7", "--workspace", "w"], 2, "--workspace"),
        (&["replay", "--fleet", "file:///nonexistent/depot", "--hold", "1h"], 3, "/nonexistent/depot"),
    ] {
        let output = home.cli(args);
        assert_eq!(output.code(), Some(code), "{args:?}: {}{}", output.stdout, output.stderr);
        assert!(output.stderr.contains(said), "{args:?}: {}", output.stderr);
    }
    assert_eq!(fleet.names("v1/orders"), Vec::<String>::new());
    let shown = dial(&fleet, &["--pace", "20000/s", "--hold", "2h"]).stdout;
    assert_eq!(shown.lines().count(), 1, "{shown}");
    assert!(shown.contains("held until") && shown.contains("at most 20000 a second"), "{shown}");
}
