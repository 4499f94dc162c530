//! How fast replayers deliver the streams of agents that are gone, and how fast a large depot is shown.

use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::Size;
use crate::agent::{NOWHERE, command, folder, store_path};
use crate::report::{Row, median, number};
use crate::seaweedfs::ObjectStorage;
use crate::sink::Sink;
use crate::streams::{FilledDepot, store_traces};

/// Messages of each stream.
const MESSAGES: u64 = 250;
/// How often a process is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// The run of a process.
struct Watched {
    cpu: f64,
    peak_mib: f64,
    report: String,
}

/// Delivering 2,000 streams.
pub(crate) fn drain(size: Size, rows: &mut Vec<Row>) {
    let streams = size.pick(8, 400, 2_000);
    let count = streams * MESSAGES as usize;
    let (home, sink) = (folder(), Sink::start(Duration::ZERO));
    let local = local(home.path(), &sink, count);
    let than = format!("a local store, {}/s;", number(local));
    let storage = ObjectStorage::start(home.path());
    for engine in ["folder", "SeaweedFS"] {
        let mut rates = Vec::new();
        for replayers in [1, 2] {
            let name = format!("drain-{replayers}-{}", engine.to_lowercase());
            let depot = match engine {
                "folder" => FilledDepot::in_folder(home.path(), &name),
                _ => FilledDepot::in_storage(home.path(), &name, &storage),
            };
            let idle = idle(&sink, &depot);
            let bytes = depot.ship(streams, MESSAGES, &sink.url());
            let (before, started) = (own_cpu(), Instant::now());
            let watched = replayed(&depot, &sink, replayers);
            let seconds = started.elapsed().as_secs_f64();
            let delivered: u64 = watched.iter().map(|one| delivered(&one.report)).sum();
            assert_eq!(delivered, count as u64, "something is left");
            rates.push(count as f64 / seconds);
            let what = format!("{streams} streams of {MESSAGES} messages of 1 KB in {engine}, replayers: {replayers}");
            if replayers == 1 {
                rows.push(Row::bound(
                    &format!("{what}, us a message"),
                    seconds * 1e6 / count as f64,
                    " us",
                    &format!("{}/s; {than} {} bytes a message", number(rates[0]), bytes / count),
                    100.0,
                ));
                let memory = watched[0].peak_mib - idle;
                rows.push(Row::bound(
                    "its memory over idle",
                    memory,
                    " MiB",
                    &format!("idle: {} MiB", number(idle)),
                    64.0,
                ));
            } else {
                rows.push(Row::at_least(&what, (rates[1], rates[0]), "/s", "one", 1.5));
            }
            let cpu: Vec<String> = watched.iter().map(|one| number(one.cpu / seconds)).collect();
            let cpu = format!(
                "cores used by each replayer: {}; by the server: {}",
                cpu.join(", "),
                number((own_cpu() - before) / seconds)
            );
            rows.push(Row::told("", &cpu, ""));
        }
    }
}

/// `status --fleet` of 2,000 streams with bundles, and of 10,000 heads.
pub(crate) fn survey(size: Size, rows: &mut Vec<Row>) {
    let (streams, heads) = (size.pick(20, 2_000, 2_000), size.pick(100, 10_000, 10_000));
    let home = folder();
    let storage = ObjectStorage::start(home.path());
    for engine in ["folder", "SeaweedFS"] {
        let name = format!("survey-{}", engine.to_lowercase());
        let depot = match engine {
            "folder" => FilledDepot::in_folder(home.path(), &name),
            _ => FilledDepot::in_storage(home.path(), &name, &storage),
        };
        depot.ship(streams, 2, NOWHERE);
        let seconds = median((0..size.rounds()).map(|_| status(&depot, streams)));
        rows.push(Row::bound(&format!("status --fleet, {streams} streams in {engine}"), seconds, " s", "", 2.0));
        depot.add_heads(heads - streams);
        let seconds = median((0..size.rounds()).map(|_| status(&depot, heads)));
        rows.push(Row::bound(&format!("status --fleet, {heads} heads in {engine}"), seconds, " s", "", 3.0));
    }
}

/// Returns the seconds that `status` takes.
fn status(depot: &FilledDepot, streams: usize) -> f64 {
    let home = folder();
    let mut command = command(home.path());
    command.args(["status", "--fleet", &depot.url, "--format", "json"]).envs(depot.variables.iter().cloned());
    let started = Instant::now();
    let output = command.stdout(Stdio::piped()).output().expect("the command runs");
    let seconds = started.elapsed().as_secs_f64();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.replace(' ', "").contains(&format!("\"closed\":{streams}")), "not all are shown: {text:.2000}");
    seconds
}

/// Returns how many messages a second a local store of the same messages delivers.
fn local(home: &Path, sink: &Sink, count: usize) -> f64 {
    let home = home.join("local");
    std::fs::create_dir(&home).expect("a folder can be made");
    store_traces(&home, &sink.url(), count);
    let mut command = command(&home);
    command.args(["replay", "--quiet", "--upstream", &sink.url(), "--db"]).arg(store_path(&home));
    let started = Instant::now();
    let status = command.status().expect("the command runs");
    assert!(status.success(), "the replay ended with {status}");
    count as f64 / started.elapsed().as_secs_f64()
}

fn replayer(depot: &FilledDepot, sink: &Sink, args: &[&str]) -> (TempDir, Child) {
    let home = folder();
    let mut command = command(home.path());
    command.args(["replay", "--fleet", &depot.url, "--upstream", &sink.url(), "--format", "json", "--identity"]);
    command.arg(&depot.identity).args(args).env("OPIK_OFFLINE_DB", store_path(home.path()));
    command.envs(depot.variables.iter().cloned()).stdout(Stdio::piped());
    (home, command.spawn().expect("it starts"))
}

/// Returns the memory of a replayer of an empty depot, in MiB.
fn idle(sink: &Sink, empty: &FilledDepot) -> f64 {
    let (_home, mut child) = replayer(empty, sink, &["--follow"]);
    std::thread::sleep(Duration::from_secs(2));
    let idle = memory_mib(child.id(), "VmRSS").expect("it runs");
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    idle
}

/// Replays a depot with this many replayers at once.
fn replayed(depot: &FilledDepot, sink: &Sink, replayers: usize) -> Vec<Watched> {
    let started: Vec<(TempDir, Child)> = (0..replayers).map(|_| replayer(depot, sink, &[])).collect();
    std::thread::scope(|scope| {
        let watching: Vec<_> =
            started.into_iter().map(|(_home, child)| scope.spawn(move || (watch(child), _home))).collect();
        watching.into_iter().map(|one| one.join().expect("it is watched").0).collect()
    })
}

/// Waits for the end of a process.
fn watch(mut child: Child) -> Watched {
    let (mut cpu, mut peak_mib) = (0.0, 0.0);
    while child.try_wait().expect("it is ours").is_none() {
        cpu = cpu_seconds(&child.id().to_string()).unwrap_or(cpu);
        peak_mib = memory_mib(child.id(), "VmHWM").unwrap_or(peak_mib);
        std::thread::sleep(LOOK);
    }
    let mut report = String::new();
    child.stdout.take().expect("it is piped").read_to_string(&mut report).expect("text");
    Watched { cpu, peak_mib, report }
}

fn delivered(report: &str) -> u64 {
    let report: serde_json::Value = serde_json::from_str(report).expect("a report");
    report["delivered"].as_u64().expect("a number")
}

fn own_cpu() -> f64 {
    cpu_seconds("self").expect("this process runs")
}

/// Returns the processor time of a process.
fn cpu_seconds(process: &str) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let fields = stat.rsplit(") ").next()?.split(' ').skip(11).take(2);
    Some(fields.filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / 100.0)
}

fn memory_mib(process: u32, name: &str) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with(name))?;
    Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? / 1024.0)
}
