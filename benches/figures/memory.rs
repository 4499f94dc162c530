//! The memory of an agent: at rest, at work, and in a large drain.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::Size;
use crate::agent::{Agent, BINARY, NOWHERE, folder};
use crate::backlog::{self, drained};
use crate::bodies::Sent;
use crate::load::{self, Requests};
use crate::report::{Row, median, number};
use crate::sink::Sink;
use crate::templates::Templates;

/// How long an agent does nothing before it is at rest.
const SETTLED: Duration = Duration::from_secs(2);

pub(crate) fn run(size: Size, rows: &mut Vec<Row>) {
    let sink = Sink::start(Duration::ZERO);
    let urls = [(sink.url(), "the server is there"), (NOWHERE.to_owned(), "the server is away")];
    for (url, when) in &urls {
        let agents: Vec<_> = (0..size.rounds())
            .map(|_| {
                let home = folder();
                let agent = Agent::start_default(home.path(), url);
                (agent, home)
            })
            .collect();
        std::thread::sleep(SETTLED);
        let rest = median(agents.iter().map(|(agent, _)| agent.memory_mib("VmRSS")));
        rows.push(Row::bound(&format!("agent, memory at rest (RSS), {when}"), rest, " MiB", "", 13.0));
    }
    rows.push(Row::bound("binary, as built", binary_mib(), " MiB", "", 12.0));

    let templates = Templates::of_gzip(200, 8_500);
    let count = size.pick(200, 20_000, 40_000);
    let requests: Requests = Arc::new((0..count).map(|number| templates.request(number, Sent::Python)).collect());
    for (url, when) in &urls {
        let (mut peaks, mut after) = (Vec::new(), Vec::new());
        for _ in 0..size.rounds() {
            let home = folder();
            let agent = Agent::start_default(home.path(), url);
            load::run(agent.address, 64, &requests);
            peaks.push(agent.memory_mib("VmHWM"));
            std::thread::sleep(SETTLED);
            after.push(agent.memory_mib("VmRSS"));
        }
        let what = format!("peak with 64 busy connections, 8.5 KB gzip, {when}");
        let theirs = format!("{} MiB two seconds later", number(median(after)));
        rows.push(Row::bound(&what, median(peaks), " MiB", &theirs, 40.0));
    }

    let count = size.pick(500, 60_000, 1_000_000);
    let home = folder();
    backlog::fill_singles(home.path(), &sink.url(), count);
    let (started, before) = (Instant::now(), sink.writes());
    let agent = Agent::start_default(home.path(), &sink.url());
    let seconds = drained(home.path(), &sink, started, before + count as u64 / 1_000);
    let theirs = format!("{} s, {}/s", number(seconds), number(count as f64 / seconds));
    let what = format!("peak in a drain of {count} messages");
    rows.push(Row::bound(&what, agent.memory_mib("VmHWM"), " MiB", &theirs, 36.0));
}

fn binary_mib() -> f64 {
    let path = BINARY.get().expect("main has set it");
    fs::metadata(path).map_or(0.0, |metadata| metadata.len() as f64) / f64::from(1 << 20)
}
