//! The page in every state. `tests/page/check` writes the same pages to a folder and inspects them in a browser.

use std::path::Path;

use super::*;
use crate::delivery::eta::{Situation, Throughput, eta};
use crate::overview::HubOverview;
use crate::overview::edges::EdgeOverview;
use crate::overview::lanes::HeldOverview;
use crate::overview::store::{GroupOverview, RejectedOverview};
use crate::overview::{AgentOverview, EdgesOverview, RecoveryOverview, ServerOverview, StoreOverview};
use crate::telemetry::history::{Rates, Sample};

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
        eta: Some(eta(&Situation::default()).into()),
        lanes: Vec::new(),
        lanes_total: 0,
        edges: EdgesOverview::default(),
        replays: Vec::new(),
        history: (0..180).rev().map(|n| sample(n * 5)).collect(),
        day: (0..1440).rev().map(|n| sample(n * 60)).collect(),
    }
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
    for sample in &mut status.history {
        let seconds = (sample.at_ms - (NOW_MS - 480_000)) / 1000;
        if seconds >= 0 {
            (sample.available, sample.waiting) = (Some(false), Some(seconds.unsigned_abs() * 40));
        }
    }
    for sample in &mut status.day {
        let minutes = (sample.at_ms - (NOW_MS - 12 * 3_600_000)) / 60_000;
        if (0..90).contains(&minutes) {
            (sample.available, sample.waiting) = (Some(false), Some(minutes.unsigned_abs() * 480));
        } else if (90..96).contains(&minutes) {
            sample.waiting = Some(43_200 - (minutes.unsigned_abs() - 89) * 7000);
        }
    }
    status.day.iter_mut().rev().take(8).zip((0..8).rev()).for_each(|(sample, minute)| {
        (sample.available, sample.waiting) = (Some(false), Some(minute * 2400 + 1200));
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
    status.lanes = vec![lane(0, None), lane(1, Some(NOW_MS + 125_000))];
    status.lanes_total = 2;
    status.replays = vec![replay("agent", 6 * 60, 43_197), replay("replay", 3, 12)];
    status
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
    if let Some(last) = status.history.last_mut() {
        (last.available, last.waiting) = (Some(true), Some(11_000));
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
    status.history.clear();
    status.day.clear();
    status
}

fn thirty_lanes() -> Overview {
    let mut status = draining();
    status.lanes = (0..30).map(|n| lane(n, (n % 3 == 1).then_some(NOW_MS + n as i64 * 7000))).collect();
    status.lanes[4].workspace = "w".repeat(300);
    status.lanes[7].workspace = "a workspace with a long name, as somebody who pastes a sentence would call it".into();
    status.lanes_total = 1204;
    status.store.groups.push(group("failed", "CreateSpansBatchMessage", &"w".repeat(300), 1_234_567));
    status
}

fn hostile() -> Overview {
    let mut status = outage();
    status.server.url = HOSTILE.into();
    status.server.reason = Some(HOSTILE.into());
    status.store.groups[0].workspace = HOSTILE.into();
    status.store.replaying = Some(HOSTILE.into());
    status.lanes[1].workspace = HOSTILE.into();
    status.lanes[1].key = Some(HOSTILE.into());
    if let Some(held) = &mut status.lanes[1].held {
        held.reason = HOSTILE.into();
    }
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
    status.history.iter_mut().rev().take(30).for_each(|sample| sample.waiting = None);
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
    assert_eq!(page.matches("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&amp;&quot;").count(), 9);
}

#[test]
fn every_page_is_complete_and_has_its_verdict() {
    for (name, status) in pages() {
        let page = document(&status);
        assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"), "{name}");
        for tag in ["section", "table", "svg", "div", "p", "dl", "figure"] {
            let opened = page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{name}: <{tag}>");
        }
        assert!(!page.contains(" style="), "{name}: the policy forbids styles in attributes");
        assert_eq!(page.matches("<figure>").count(), 2, "{name}: the plots show without JavaScript");
        assert!(page.contains(&escaped(&verdict(&status).1).into_owned()), "{name}");
    }
    assert!(document(&outage()).contains("The Opik server is away; 19,204 messages are safe on disk"));
    assert!(document(&draining()).contains("The Opik server is back; 19,204 messages are being delivered"));
    assert!(document(&thirty_lanes()).contains("and 1,174 more"));
}

#[test]
fn a_list_of_lanes_is_bounded() {
    let mut status = outage();
    status.lanes = (0..200).map(|number| lane(number, None)).collect();
    status.lanes_total = 5000;
    let page = document(&status);
    assert!(page.contains("team-49<") && !page.contains("team-50<") && page.contains("and 4,950 more"));
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
