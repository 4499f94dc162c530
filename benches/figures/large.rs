//! The cost of a large store: reading it and starting on it. `memory` drains one.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::agent::{Agent, NOWHERE, command, folder, store_path};
use crate::bodies::{Sent, request, span_batches};
use crate::process::free_address;
use crate::report::{Row, median};
use crate::{Size, backlog};

pub(crate) fn run(size: Size, rows: &mut Vec<Row>) {
    let count = size.pick(500, 50_000, 1_000_000);
    let home = folder();
    // The server that the backlog is for is away.
    let url = format!("http://{}/api", free_address());
    backlog::fill_singles(home.path(), &url, count);
    let stored =
        format!("{count} stored, {} MB", fs::metadata(store_path(home.path())).map_or(0, |m| m.len()) / 1_000_000);
    for (name, args) in [("status", &["status"][..]), ("inspect, first page", &["inspect"])] {
        for cold in [true, false] {
            let milliseconds = median((0..size.rounds()).map(|_| {
                if cold {
                    forget(home.path());
                }
                let mut command = command(home.path());
                command.args(args).args(["--upstream", NOWHERE, "--db"]).arg(store_path(home.path()));
                let started = Instant::now();
                command.stdout(Stdio::piped()).output().expect("the command runs");
                started.elapsed().as_secs_f64() * 1e3
            }));
            let what = format!("{name}, page cache {}", if cold { "cold" } else { "warm" });
            rows.push(Row::bound(&what, milliseconds, " ms", &stored, 50.0));
        }
    }
    let body = span_batches(9, 1, 1, 2048, Sent::Python).remove(0);
    let request = request(&body, Sent::Python);
    let milliseconds = median((0..size.rounds()).map(|_| {
        forget(home.path());
        let started = Instant::now();
        let agent = Agent::spawn(home.path(), &url);
        first_accepted(&agent, &request);
        started.elapsed().as_secs_f64() * 1e3
    }));
    rows.push(Row::bound("agent, start to first accepted write, cold", milliseconds, " ms", &stored, 100.0));
}

/// Posts a write again and again until it is accepted.
fn first_accepted(agent: &Agent, request: &[u8]) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        assert!(Instant::now() < deadline, "the agent accepts nothing");
        let mut head = [0; 12];
        let asked = TcpStream::connect(agent.address).and_then(|mut stream| {
            stream.write_all(request)?;
            stream.read_exact(&mut head)
        });
        if asked.is_ok() && &head[9..10] == b"2" {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Takes the store's pages out of the page cache; no rights are needed for one's own file.
fn forget(home: &Path) {
    for suffix in ["", "-wal"] {
        let path = home.join(format!("opik_messages.db{suffix}"));
        let Ok(file) = fs::File::open(path) else { continue };
        file.sync_all().expect("a file can be synced");
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("advice is taken");
    }
}
