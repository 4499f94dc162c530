//! The page in every state. `tests/page/check` writes the same pages to a folder and inspects them in a browser.

use std::path::Path;

use super::*;
use crate::delivery::eta::{Situation, Throughput, eta};
use crate::intake::status_page::text::{number, rate};
use crate::message::MessageId;
use crate::overview::dial::HoldOverview;
use crate::overview::edges::EdgeOverview;
use crate::overview::lanes::{HeldOverview, LargestLanes};
use crate::overview::page::{CommandOptions, PageDetails};
use crate::overview::projects::{ProjectOverview, ProjectsOverview};
use crate::overview::rejections::{RejectionOverview, RejectionsOverview};
use crate::overview::store::{GroupOverview, RejectedOverview};
use crate::overview::{
    AgentOverview, EdgesOverview, ElsewhereOverview, HubOverview, LaneOverview, RecoveryOverview, ReplayOverview,
    ServerOverview, StoreOverview,
};
use crate::telemetry::history::{Away, Past, Rates, Sample};

/// 2026-11-22 20:07:08 UTC
const NOW_MS: i64 = 1_795_378_028_000;
const HOSTILE: &str = "<script>alert('x')</script>&\"";

fn calm() -> Overview {
    let sample = |seconds_ago: i64| Sample {
        at_ms: NOW_MS - seconds_ago * 1000,
        uptime_ms: (90_000 - seconds_ago).unsigned_abs() * 1000,
        available: Some(true),
        waiting: Some(0),
        ..Sample::default()
    };
    Overview {
        schema_version: 1,
        at_ms: NOW_MS,
        agent: AgentOverview {
            pid: 2144,
            version: "0.1.0".into(),
            listen: "127.0.0.1:6745".into(),
            uptime_seconds: 90_000,
            files_problem: None,
            client_problem: None,
        },
        server: ServerOverview {
            url: "https://opik.example/api".into(),
            connection: "available",
            since_ms: Some(NOW_MS - 90_000_000),
            reason: None,
            hub: None,
        },
        store: StoreOverview {
            usable: true,
            file_bytes: 209_715,
            size_max_bytes: Some(10 << 30),
            disk_free_bytes: Some(33 << 30),
            ..StoreOverview::default()
        },
        fleet: None,
        rates: Some(Rates {
            window_seconds: 60.0,
            in_per_second: 41.3,
            forwarded_per_second: 41.3,
            out_per_second: 41.3,
            ..Rates::default()
        }),
        forwarded_refused: None,
        eta: Some(eta(&Situation::default()).into()),
        lanes: Vec::new(),
        lanes_total: 0,
        edges: EdgesOverview::default(),
        replays: Vec::new(),
        history: Vec::new(),
        page: PageDetails {
            past: Past {
                fine: (0..180).rev().map(|n| sample(n * 5)).collect(),
                coarse: (0..1440).rev().map(|n| sample(n * 60)).collect(),
            },
            options: CommandOptions {
                db: "--db /var/lib/opik-offline/opik_messages.db".into(),
                server: "https://opik.example/api".into(),
            },
            ..PageDetails::default()
        },
    }
}

/// Marks the server as away in the time of a sample.
fn away(sample: &mut Sample, seconds: i64) {
    let for_ms = (seconds * 1000).unsigned_abs();
    sample.away = Away { from_ms: sample.at_ms - seconds * 1000, for_ms };
    sample.available = Some(false);
}

/// Lists these lanes, of which there are more.
fn with_lanes(status: &mut Overview, list: Vec<LaneOverview>, total: u64) {
    let held = list.iter().filter(|lane| lane.held.is_some()).count() as u64;
    let others_waiting = (total - list.len() as u64) * 7;
    status.page.lanes = LargestLanes { list, total, held, others_waiting };
}

fn group(status: &'static str, message_type: &'static str, workspace: &str, messages: u64) -> GroupOverview {
    let workspace = workspace.to_owned();
    GroupOverview { status, message_type, workspace, messages, items: messages * 3, body_bytes: messages * 1721 }
}

fn lane(number: u64, held: Option<i64>) -> LaneOverview {
    LaneOverview {
        workspace: format!("team-{number}"),
        key: Some("abcd***".into()),
        waiting: 1200 / (number + 1),
        held: held.map(|until_ms| HeldOverview {
            until_ms,
            reason: "the server answered 429 and asks to wait 5m".into(),
            is_key_refused: false,
        }),
    }
}

/// An outage of eight minutes, and one of the night before.
fn outage() -> Overview {
    let mut status = calm();
    for sample in &mut status.page.past.fine {
        let seconds = (sample.at_ms - (NOW_MS - 480_000)) / 1000;
        if seconds > 0 {
            away(sample, 5);
            sample.waiting = Some(seconds.unsigned_abs() * 40);
        }
    }
    for sample in &mut status.page.past.coarse {
        let minutes = (sample.at_ms - (NOW_MS - 12 * 3_600_000)) / 60_000;
        if (0..90).contains(&minutes) {
            away(sample, 60);
            sample.waiting = Some(minutes.unsigned_abs() * 480);
        } else if (90..96).contains(&minutes) {
            sample.waiting = Some(43_200 - (minutes.unsigned_abs() - 89) * 7000);
        }
    }
    status.page.past.coarse.iter_mut().rev().take(8).zip((0..8).rev()).for_each(|(sample, minute)| {
        away(sample, 60);
        sample.waiting = Some((minute + 1) * 2400);
    });
    let waiting = 19_204;
    status.server = ServerOverview {
        connection: "unavailable",
        since_ms: Some(NOW_MS - 480_000),
        reason: Some("cannot connect to https://opik.example/api: connection refused".into()),
        ..status.server
    };
    status.store = StoreOverview {
        waiting,
        items: 57_612,
        body_bytes: 33_049_084,
        rejected: 3,
        oldest_accepted_at_ms: Some(NOW_MS - 479_000),
        groups: vec![
            group("failed", "CreateTraceMessage", "default", 6401),
            group("failed", "CreateSpansBatchMessage", "default", 12_801),
            group("failed", "UpdateTraceMessage", "team", 2),
            group("rejected", "CreateTraceMessage", "team", 3),
        ],
        rejected_by_answer: vec![
            RejectedOverview { status: Some(400), messages: 2 },
            RejectedOverview { status: None, messages: 1 },
        ],
        file_bytes: 48_000_000,
        ..status.store
    };
    status.rates = status.rates.map(|rates| Rates {
        forwarded_per_second: 0.0,
        out_per_second: 0.0,
        in_per_second: 40.0,
        stored_per_second: 40.0,
        ..rates
    });
    let situation = Situation {
        waiting,
        available: Some(false),
        is_replayed: true,
        last_per_second: Some(720.0),
        ..Situation::default()
    };
    status.eta = Some(eta(&situation).into());
    with_lanes(&mut status, vec![lane(0, None), lane(1, Some(NOW_MS + 125_000))], 2);
    status.page.rejections = rejections();
    status.page.projects = ProjectsOverview {
        list: vec![project("chat", 17_000), project("evaluation of a model with a long name", 2204)],
        total: 2,
        others_waiting: 0,
        counted: 19_207,
        is_partial: false,
    };
    status.replays = vec![replay("agent", 6 * 60, 43_197), replay("replay", 3, 12)];
    status
}

fn project(name: &str, waiting: u64) -> ProjectOverview {
    let (workspace, project) = ("team".into(), Some(name.to_owned()));
    ProjectOverview { workspace, project, waiting, rejected: 3, body_bytes: waiting * 1721 }
}

fn rejections() -> RejectionsOverview {
    let rejection = |status, words: &str, ids: &[i64]| RejectionOverview {
        status,
        words: words.to_owned(),
        messages: ids.len() as u64,
        last_at_ms: NOW_MS - 1000,
        ids: ids.iter().copied().map(MessageId).collect(),
        message_types: ["CreateTraceMessage"].into(),
        workspaces: ["team".to_owned()].into(),
    };
    RejectionsOverview {
        list: vec![
            rejection(Some(400), "trace ids must be version 7 UUIDs: 01234567-89ab-4def-8123-456789abcdef", &[37, 12]),
            rejection(None, "a row of a Python process has no project", &[9]),
        ],
        read: 3,
        others: 0,
    }
}

fn replay(by: &str, seconds: i64, delivered: u64) -> ReplayOverview {
    let ended_at_ms = NOW_MS - 38_000_000;
    let started_at_ms = ended_at_ms - seconds * 1000;
    ReplayOverview { by: by.into(), started_at_ms, ended_at_ms, delivered, rejected: 3, remaining: 0 }
}

fn draining() -> Overview {
    let mut status = outage();
    status.server =
        ServerOverview { connection: "available", since_ms: Some(NOW_MS - 12_000), reason: None, ..status.server };
    for samples in [&mut status.page.past.fine, &mut status.page.past.coarse] {
        if let Some(last) = samples.last_mut() {
            (last.available, last.waiting) = (Some(true), Some(11_000));
        }
    }
    status.rates = status.rates.map(|rates| Rates { delivered_per_second: 683.2, out_per_second: 683.2, ..rates });
    let situation = Situation {
        waiting: status.store.waiting,
        available: Some(true),
        is_replayed: true,
        drained: Some(Throughput { per_second: 683.2, spread: 0.15 }),
        stored_per_second: 40.0,
        ..Situation::default()
    };
    status.eta = Some(eta(&situation).into());
    status.store.replaying = Some("opik-offline agent (pid 2144)".into());
    status
}

/// A hub behind a hub, with more edges than the page lists, one of which lies.
fn hub() -> Overview {
    let mut status = draining();
    status.server.hub = Some(HubOverview {
        version: Some("0.1.0".into()),
        server_url: Some("https://opik.example/api".into()),
        connection: "unavailable".into(),
        since_ms: None,
        waiting: Some(1204),
    });
    let edge = |n: u64| EdgeOverview {
        host: (n > 0).then(|| format!("worker-{n}.{}", "team".repeat(n as usize % 60))),
        version: (n > 1).then(|| "0.1.0".into()),
        silent_seconds: n * 7,
        waiting: (n > 2).then_some(n * 1000),
    };
    let list: Vec<EdgeOverview> = (0..200).map(edge).collect();
    status.edges = EdgesOverview { known: 1000, recent: 41, waiting_messages: 1_234_567, list };
    status.edges.list[5].host = Some(HOSTILE.into());
    status
}

#[test]
fn a_hub_shows_its_edges_and_no_edge_writes_into_the_page() {
    let page = document(&hub());
    for text in
        ["worker-7", "950 more are not listed", "1,234,567 messages waiting", "behind it https://opik.example/api"]
    {
        assert!(page.contains(text), "{text} is missing");
    }
    assert!(!page.contains(HOSTILE), "an edge's name is HTML of the page");
}

fn just_started() -> Overview {
    let mut status = calm();
    status.agent.uptime_seconds = 1;
    status.server = ServerOverview { connection: "unknown", since_ms: Some(NOW_MS - 1000), ..status.server };
    status.rates = None;
    status.page.past = Past::default();
    status
}

fn thirty_lanes() -> Overview {
    let mut status = draining();
    let mut lanes: Vec<LaneOverview> =
        (0..30).map(|n| lane(n, (n % 3 == 1).then_some(NOW_MS + n as i64 * 7000))).collect();
    lanes[4].workspace = "w".repeat(300);
    lanes[7].workspace = "a workspace with a long name, as somebody who pastes a sentence would call it".into();
    status.lanes = [1, 4].map(|n| lane(n, Some(NOW_MS + 125_000))).to_vec();
    for held in status.lanes.iter_mut().filter_map(|lane| lane.held.as_mut()) {
        held.is_key_refused = true;
    }
    with_lanes(&mut status, lanes, 1204);
    status.store.groups.push(group("held", "CreateSpansBatchMessage", &"w".repeat(300), 1_234_567));
    status.store.elsewhere = vec![
        ElsewhereOverview { server: Some("http://old.example/api".into()), waiting: 12, rejected: 0 },
        ElsewhereOverview { server: None, waiting: 1, rejected: 0 },
    ];
    status
}

/// As much of everything as there can be, all of it hostile.
fn largest() -> Overview {
    let mut status = thirty_lanes();
    let long = HOSTILE.repeat(500);
    for lane in &mut status.page.lanes.list {
        (lane.workspace, lane.key) = (long.clone(), Some(HOSTILE.to_owned()));
        lane.held = Some(HeldOverview { until_ms: NOW_MS + 1000, reason: long.clone(), is_key_refused: true });
    }
    for n in 0..5000 {
        status.store.groups.push(group(["failed", "rejected"][n % 2], "CreateTraceMessage", &long, 1));
        let server = Some(format!("http://host-{n}/{long}"));
        status.store.elsewhere.push(ElsewhereOverview { server, waiting: 1, rejected: 1 });
    }
    let project = ProjectOverview { workspace: long.clone(), project: Some(long.clone()), ..project("", 1) };
    status.page.projects = ProjectsOverview {
        list: vec![project; 20],
        total: 70_000,
        others_waiting: 9,
        counted: 200_000,
        is_partial: true,
    };
    let words = long.chars().take(200).collect::<String>();
    let rejection = RejectionOverview {
        words,
        workspaces: (0..3).map(|n| format!("{n}{long}")).collect(),
        ..rejections().list.remove(0)
    };
    status.page.rejections = RejectionsOverview { list: vec![rejection; 12], read: 200, others: 188 };
    status.store.rejected = 1_000_000;
    status.store.rejected_by_answer =
        (100..600).map(|status| RejectedOverview { status: Some(status), messages: 2000 }).collect();
    status.agent.files_problem = Some(long.clone());
    status.edges = hub().edges;
    status.edges.list.iter_mut().for_each(|edge| edge.host = Some(long.chars().take(255).collect()));
    status
}

fn hostile() -> Overview {
    let mut status = outage();
    status.server.url = HOSTILE.into();
    status.server.reason = Some(HOSTILE.into());
    status.store.replaying = Some(HOSTILE.into());
    status.page.lanes.list[1].workspace = HOSTILE.into();
    status.page.lanes.list[1].key = Some(HOSTILE.into());
    if let Some(held) = &mut status.page.lanes.list[1].held {
        held.reason = HOSTILE.into();
    }
    status.page.projects.list[0].project = Some(HOSTILE.into());
    status.page.projects.list[0].workspace = HOSTILE.into();
    status.page.rejections.list[0].words = HOSTILE.into();
    status.page.rejections.list[0].workspaces = [HOSTILE.to_owned()].into();
    status.replays[0].by = HOSTILE.into();
    status.agent.listen = HOSTILE.into();
    status
}

/// Losses: the page shows them for as long as the store records them.
fn losses() -> Overview {
    let mut status = draining();
    status.store.dropped_messages = 12;
    status.store.expired_messages = 1;
    status.store.recoveries = vec![RecoveryOverview {
        at_ms: NOW_MS - 3_600_000,
        reason: HOSTILE.into(),
        recovered_messages: 19_204,
        lost_messages: 2,
        set_aside: "/store.db.damaged".into(),
    }];
    status
}

#[test]
fn losses_are_shown() {
    let page = document(&losses());
    for shown in [
        "<dt>Dropped</dt><dd>12 messages, because the store was full</dd>",
        "<dt>Expired</dt><dd>1 message, because of an age over max_age</dd>",
        "<dt>Recovered</dt><dd>19,204 messages of a damaged file, 2 lost, at 2026-11-22 19:07:08 UTC (&lt;script&gt;",
    ] {
        assert!(page.contains(shown), "a loss is not shown: {shown}");
    }
    assert_eq!(page.matches("<script").count(), 1, "ours");
    let calm = document(&calm());
    assert!(!calm.contains("<dt>Expired") && !calm.contains("<dt>Recovered"), "nothing is lost");
}

fn unusable() -> Overview {
    let mut status = calm();
    let reason =
        Some("/var/lib/opik-offline/opik_messages.db is not a message store: it begins with other bytes".into());
    status.store = StoreOverview { reason, ..StoreOverview::default() };
    status.eta = None;
    status.page.past.fine.iter_mut().rev().take(30).for_each(|sample| sample.waiting = None);
    status
}

fn pages() -> Vec<(&'static str, Overview)> {
    vec![
        ("calm", calm()),
        ("hub", hub()),
        ("just-started", just_started()),
        ("outage", outage()),
        ("draining", draining()),
        ("thirty-lanes", thirty_lanes()),
        ("largest", largest()),
        ("hostile", hostile()),
        ("losses", losses()),
        ("unusable", unusable()),
    ]
}

#[test]
fn a_value_is_never_markup() {
    let page = document(&hostile());
    assert!(!page.contains("<script>alert"), "a workspace's name was run as a script");
    assert_eq!(page.matches("<script").count(), 1, "ours");
    let shown = page.matches("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&amp;&quot;").count();
    assert!(shown >= 11, "each hostile value is shown as it is: {shown}");
    let page = document(&largest());
    assert!(!page.contains("<script>alert") && page.matches("<script").count() == 1);
}

#[test]
fn every_page_is_complete_and_has_its_verdict() {
    for (name, status) in pages() {
        let page = document(&status);
        assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"), "{name}");
        for tag in ["section", "table", "svg", "div", "p", "dl", "figure", "ul", "li", "span", "button"] {
            let opened = page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{name}: <{tag}>");
        }
        assert!(!page.contains(" style="), "{name}: the policy forbids styles in attributes");
        let verdict = PageVerdict::of(&status);
        assert!(page.contains(&escaped(&verdict.diagnosis.verdict.text).into_owned()), "{name}");
        assert!(page.contains(&format!("<title>{}</title>", escaped(&verdict.title()))), "{name}");
    }
    let outage = document(&outage());
    assert!(outage.contains(
        "19,204 messages are safe on disk until the Opik server is back, then delivered in 15s to 45s; 3 were rejected"
    ));
    assert!(outage.contains("<title>▲ server away, 19,204 waiting, 3 rejected · opik-offline</title>"));
    assert!(document(&draining()).contains("19,204 messages are safe on disk and being delivered, done in"));
    assert!(document(&calm()).contains("<title>● all delivered · opik-offline</title>"));
    assert!(document(&unusable()).contains("<title>■ store unusable · opik-offline</title>"));
    let mut only_rejected = calm();
    only_rejected.store.rejected = 3;
    assert!(document(&only_rejected).contains("<title>▲ 3 rejected · opik-offline</title>"));
}

#[test]
fn the_icon_has_the_shape_of_the_state() {
    let icon = |status: &Overview| {
        let page = document(status);
        let from = page.find(r#"<link rel="icon" href=""#).expect("an icon") + 23;
        page[from..].split('"').next().expect("an address").to_owned()
    };
    let icons = [icon(&calm()), icon(&outage()), icon(&unusable())];
    for (icon, shape) in icons.iter().zip(["circle", "M5 0l5 10H0z", "M0 0h10v10H0z"]) {
        assert!(icon.starts_with("data:image/svg+xml,%3Csvg ") && icon.contains(shape), "{icon}");
        assert!(!icon.contains(['<', '>', '#', '"']), "{icon}");
    }
}

#[test]
fn plots_are_shown_where_they_show_something() {
    let plots = |status: &Overview| document(status).matches("<figure>").count();
    assert_eq!(plots(&calm()), 0);
    assert!(document(&calm()).contains("Nothing has waited, and the Opik server was always there, since 2026-11-21"));
    assert!(document(&just_started()).contains("Nothing was measured yet."));
    assert_eq!(plots(&outage()), 2);
    let mut young = outage();
    young.page.past.coarse.retain(|sample| sample.at_ms > NOW_MS - 600_000);
    assert_eq!(plots(&young), 1, "the day has nothing that the last minutes have not");
    let mut over = outage();
    over.page.past.fine.iter_mut().for_each(|sample| (sample.waiting, sample.away) = (Some(0), Away::default()));
    assert_eq!(plots(&over), 1);
    assert!(document(&over).contains("Nothing waited in the last minutes."));
}

#[test]
fn rejections_have_the_servers_words_their_ids_and_commands_that_can_be_pasted() {
    let page = document(&outage());
    for shown in [
        "trace ids must be version 7 UUIDs: 01234567-89ab-4def-8123-456789abcdef",
        "<code>37</code> <code>12</code>",
        "CreateTrace in team",
        "3 in all: 2 with 400, 1 with no answer.",
        "<code>opik-offline inspect --rejected --db /var/lib/opik-offline/opik_messages.db</code>",
        "<code>opik-offline inspect 37 --db /var/lib/opik-offline/opik_messages.db</code>",
        "<code>opik-offline replay --rejected --db /var/lib/opik-offline/opik_messages.db --upstream https://opik.example/api</code>",
        "<code>opik-offline purge --rejected --db /var/lib/opik-offline/opik_messages.db --server https://opik.example/api</code>",
    ] {
        assert!(page.contains(shown), "{shown} is missing");
    }
    let mut many = outage();
    (many.store.rejected, many.page.rejections.others) = (1204, 5);
    let page = document(&many);
    assert!(page.contains("The table is about the newest 3. 5 with other words are not listed."));
}

#[test]
fn the_page_sums_messages_by_state_and_type_in_the_words_of_people() {
    let mut status = outage();
    status.store.groups.push(group("failed", "CreateTraceMessage", "other", 599));
    let page = document(&status);
    let row = r#"<span>waiting</span></td><td role="cell" data-head="Type"><span>CreateTrace</span></td><td role="cell" data-head="Messages" class="n"><span>7,000</span>"#;
    assert!(page.contains(row), "{page}");
    assert!(!page.contains(">failed<"), "people read waiting");
}

#[test]
fn the_page_lists_each_problem_with_the_command_that_helps() {
    let page = document(&thirty_lanes());
    for shown in [
        "2 lanes are held (workspaces team-1, team-4), retried in 2m5s",
        "replay --rekey --db /var/lib/opik-offline/opik_messages.db --upstream https://opik.example/api</code>",
        "1,234,567 messages are held: their ids are outside the server&#39;s window",
        "12 messages wait for another server, http://old.example/api",
        "replay --upstream http://old.example/api --db /var/lib/opik-offline/opik_messages.db</code>",
        "1 message waits of an earlier version, which recorded no server",
        "13 for another server",
    ] {
        assert!(page.contains(shown), "{shown} is missing");
    }
    assert!(!document(&draining()).contains("Needs attention"), "nothing does");
    let mut hostile = calm();
    let server = Some("http://a/`opik-offline purge --yes`".into());
    hostile.store.elsewhere = vec![ElsewhereOverview { server, waiting: 2, rejected: 0 }];
    let page = document(&hostile);
    assert!(page.contains("http://a/%60opik-offline") && !page.contains("<code>opik-offline purge"), "{page}");
    let mut held = draining();
    held.store.replay_hold =
        Some(HoldOverview { seconds_left: 60, until_ms: 1_795_378_088_000, by: HOSTILE.into(), since_ms: 0 });
    let page = document(&held);
    assert!(page.contains("19,204 messages are safe on disk, and held until 20:08 UTC by &lt;script&gt;"), "{page}");
    assert!(page.contains(
        "opik-offline replay --resume --db /var/lib/opik-offline/opik_messages.db --upstream https://opik.example/api</code>"
    ));
}

#[test]
fn however_much_is_stored_the_page_is_bounded_and_says_how_much_more_there_is() {
    let page = document(&largest());
    assert!(page.len() < 300 * 1024, "{} bytes", page.len());
    for shown in [
        "and 1,174 smaller lanes with 8,218 messages",
        "and 69,980 smaller projects with 9 waiting messages",
        "Counted among the oldest 200,000 messages.",
        "950 more are not listed",
    ] {
        assert!(page.contains(shown), "{shown} is missing");
    }
}

#[test]
fn numbers_are_readable() {
    assert_eq!([0, 999, 1000, 1_234_567].map(number), ["0", "999", "1,000", "1,234,567"]);
    assert_eq!([0.0, 0.04, 0.1, 9.94, 10.0, 1234.5].map(rate), ["0", "< 0.1", "0.1", "9.9", "10", "1,235"]);
    assert_eq!(moment(NOW_MS), "2026-11-22 20:07:08");
}

#[test]
#[ignore = "it writes to target/page; tests/page/check runs it"]
fn pages_are_written_for_the_browser() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/page");
    std::fs::create_dir_all(&folder).expect("the folder can be made");
    for (name, status) in pages() {
        std::fs::write(folder.join(format!("{name}.html")), document(&status)).expect("the folder can be written");
    }
    std::fs::write(folder.join("policy"), &*POLICY).expect("the folder can be written");
}
