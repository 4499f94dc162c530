//! How fast writes pass through while the server is there, beside nginx.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::agent::{Agent, folder};
use crate::bodies::{Sent, gzip_of_size, request};
use crate::report::{Row, median};
use crate::sink::Sink;
use crate::{Size, load};

const BODY_BYTES: usize = 8_500;

pub(crate) fn run(size: Size, rows: &mut Vec<Row>) {
    let sink = Sink::start(Duration::ZERO);
    // Different spans, as an application has them.
    let bodies: Vec<_> = (0..size.pick(8, 256, 512)).map(|seed| gzip_of_size(seed, BODY_BYTES)).collect();
    for connections in [1, 16, 64] {
        let count = size.pick(50, 4_000, 20_000) / if connections == 1 { 4 } else { 1 };
        let requests = bodies.iter().cycle().take(count).map(|body| request(body, Sent::Python));
        let requests = Arc::new(requests.collect::<Vec<_>>());
        let [mut ours, mut theirs, mut direct] = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..size.rounds() {
            let home = folder();
            let agent = Agent::start(home.path(), &sink.url());
            ours.push(load::run(agent.address, connections, &requests));
            drop(agent);
            let nginx = Nginx::start(home.path(), sink.address);
            theirs.push(load::run(nginx.address, connections, &requests));
            drop(nginx);
            direct.push(load::run(sink.address, connections, &requests));
        }
        let per_second = |went: &[load::Went]| median(went.iter().map(load::Went::per_second));
        let latency =
            |went: &[load::Went], share: f64| median(went.iter().map(|went| went.latency(share).as_secs_f64() * 1e6));
        let what = format!("pass-through of an 8.5 KB gzip POST, {connections} connections");
        if connections == 1 {
            let straight = latency(&direct, 0.5);
            let added = (latency(&ours, 0.5) - straight, latency(&theirs, 0.5) - straight);
            rows.push(Row::at_most("added latency of pass-through, p50, 1 connection", added, " us", "nginx", 1.5));
        } else {
            rows.push(Row::at_least(&what, (per_second(&ours), per_second(&theirs)), "/s", "nginx", 0.7));
            rows.push(Row::at_most("p99", (latency(&ours, 0.99), latency(&theirs, 0.99)), " us", "nginx", 2.0));
        }
    }
}

/// nginx as a proxy with connections kept alive on both sides; stopped when dropped.
struct Nginx {
    child: Child,
    address: SocketAddr,
}

impl Nginx {
    fn start(home: &Path, sink: SocketAddr) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = free.local_addr().expect("an address");
        drop(free);
        let configuration = format!(
            "daemon off; worker_processes auto; pid nginx.pid; error_log stderr;\n\
             events {{ worker_connections 1024; }}\n\
             http {{ access_log off; client_body_buffer_size 64k; client_body_temp_path t; proxy_temp_path p;\n\
             fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s; keepalive_requests 1000000;\n\
             upstream sink {{ server {sink}; keepalive 128; keepalive_requests 1000000; }}\n\
             server {{ listen {address}; location / {{ proxy_pass http://sink; proxy_http_version 1.1;\n\
             proxy_set_header Connection \"\"; }} }} }}\n"
        );
        let path = home.join("nginx.conf");
        fs::write(&path, configuration).expect("a file can be written");
        let mut command = Command::new("nginx");
        command.arg("-p").arg(home).arg("-c").arg(&path).stderr(Stdio::null());
        let child = command.spawn().expect("nginx starts (apt-get install nginx-light)");
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < deadline, "nginx does not listen");
            std::thread::sleep(Duration::from_millis(1));
        }
        Self { child, address }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
    }
}
