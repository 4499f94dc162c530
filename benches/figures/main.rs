//! The figures that docs/operations.md quotes, each measured beside its baseline, in one run.
//!
//! ```text
//! cargo bench --bench figures                                   everything; writes a table to benches/results/
//! cargo bench --bench figures -- --size small intake forward    some groups, smaller and sooner
//! ```
//!
//! | group | what is measured | beside |
//! | --- | --- | --- |
//! | forward | creates pass through | nginx, and a bare proxy of hyper's |
//! | mixed | the same with updates and scores of what was created | the same |
//! | intake | writes are stored while the server is away | the floor: the same over HTTP with nothing else |
//! | entity | updates of one entity are stored | updates of many |
//! | drain | a backlog is delivered over a round trip of 50 ms | one request a message |
//! | lanes | a backlog of many lanes | as many requests on one connection |
//! | recovery | the server is back: the first message arrives | |
//! | live | forwarded writes while a backlog drains | without one |
//! | memory | at rest, with busy connections, in a large drain | |
//! | disk | what a stored span takes | the SDK's own store |
//! | replay | a backlog is delivered | the SDK's replay |
//! | large | commands and the agent's start on a large store | |
//! | hub | an application behind edge and hub | the edge alone |
//! | shipping | a backlog is copied to SeaweedFS | bare writes of the same bundles |
//! | fleet | replayers deliver the streams of agents that are gone | a local store; one replayer |
//! | survey | `status --fleet` of a large depot | |
//!
//! Sizes: tiny (does it still run?), small, full. Rounds of the two sides of a comparison alternate, and the table shows
//! medians: machines are noisy, and only what ran side by side compares. The load generator and the sink share the
//! machine with what is measured. Baselines are processes of their own, as the agent is: nginx, or this program again
//! with a hidden argument.
//!
//! `disk` and `replay` install the Python SDK under `target/tools`, `shipping`, `fleet` and `survey` SeaweedFS; `forward`
//! and `mixed` need nginx.

#![allow(clippy::disallowed_methods, reason = "a bench is not part of the configuration")]

mod agent;
mod backlog;
mod bare;
mod bodies;
mod fleet;
mod floor;
mod forward;
mod hub;
mod intake;
mod large;
mod load;
mod memory;
mod nginx;
mod process;
mod recovery;
mod replay;
mod report;
mod sdk;
mod seaweedfs;
mod shipping;
mod sink;
mod streams;
mod templates;
#[allow(dead_code)]
#[path = "../../tests/support/tools.rs"]
mod tools;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// As in the agent, so that neither generator nor baseline pays for another one.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A group of figures by its name.
type Group = (&'static str, fn(Size, &mut Vec<report::Row>));

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// Seconds: says only that the benches still run.
    Tiny,
    /// At most 40 s a group, except those with the SDK.
    Small,
    /// The size that docs/operations.md quotes.
    Full,
}

impl Size {
    /// Returns the value of this size.
    pub fn pick<T>(self, tiny: T, small: T, full: T) -> T {
        match self {
            Self::Tiny => tiny,
            Self::Small => small,
            Self::Full => full,
        }
    }

    /// Returns how often the two sides of a comparison alternate.
    pub fn rounds(self) -> usize {
        self.pick(1, 3, 5)
    }
}

fn main() {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some(floor::ARGUMENT) => return floor::serve(args),
        Some(bare::ARGUMENT) => return bare::serve(args),
        _ => {}
    }
    let mut size = Size::Full;
    let mut binary = PathBuf::from(env!("CARGO_BIN_EXE_opik-offline"));
    let mut wanted: Vec<String> = Vec::new();
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--size" => {
                size = match args.next().as_deref() {
                    Some("tiny") => Size::Tiny,
                    Some("small") => Size::Small,
                    Some("full") => Size::Full,
                    other => panic!("--size takes tiny, small or full, not {other:?}"),
                }
            }
            "--binary" => binary = args.next().expect("--binary takes a path").into(),
            group => wanted.push(group.to_owned()),
        }
    }
    agent::BINARY.set(binary).expect("set once");
    let groups: [Group; 16] = [
        ("forward", forward::run),
        ("mixed", forward::mixed),
        ("intake", intake::run),
        ("entity", intake::entity),
        ("drain", replay::drain),
        ("lanes", replay::lanes),
        ("recovery", recovery::run),
        ("live", replay::live),
        ("memory", memory::run),
        ("disk", intake::disk),
        ("replay", replay::run),
        ("large", large::run),
        ("hub", hub::run),
        ("shipping", shipping::run),
        ("fleet", fleet::drain),
        ("survey", fleet::survey),
    ];
    for name in &wanted {
        assert!(groups.iter().any(|(group, _)| group == name), "there is no group {name}");
    }
    let mut text = head(size);
    println!("{text}");
    for (name, run) in groups {
        if !wanted.is_empty() && !wanted.iter().any(|wanted| wanted == name) {
            continue;
        }
        let before = load_average();
        let mut rows = Vec::new();
        run(size, &mut rows);
        let mut part = String::new();
        writeln!(part, "## {name}\n\n{}", report::table(&rows)).expect("memory");
        writeln!(part, "Load average {before} before, {} after.\n", load_average()).expect("memory");
        println!("{part}");
        text.push_str(&part);
    }
    if size == Size::Full {
        let name = if wanted.is_empty() { "all".to_owned() } else { wanted.join("-") };
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/results");
        let path = folder.join(format!("{}-{name}.md", said("date", &["-u", "+%Y-%m-%d"])));
        fs::write(&path, text).expect("the result can be written");
        println!("written to {}", path.display());
    }
}

/// The measurement with its time and machine.
fn head(size: Size) -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu =
        cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("").trim_start_matches([' ', '\t', ':']);
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    format!(
        "# Figures\n\n- {}, size {size:?}, {} rounds\n- {cores} cores of {cpu}, {} {}\n- opik-offline {} ({}), SQLite {}, opik {} (Python), {}\n",
        said("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
        size.rounds(),
        said("uname", &["-s"]),
        said("uname", &["-r"]),
        env!("CARGO_PKG_VERSION"),
        said("git", &["rev-parse", "--short", "HEAD"]),
        rusqlite::version(),
        tools::OPIK_VERSION,
        said("sh", &["-c", "nginx -v 2>&1 | sed 's/nginx version: //'"]),
    )
}

fn load_average() -> String {
    fs::read_to_string("/proc/loadavg").unwrap_or_default().split(' ').next().unwrap_or_default().to_owned()
}

/// Returns what a command says, or nothing.
fn said(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    output.map_or_else(|_| String::new(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
