//! nginx as a proxy with connections kept alive on both sides.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::process::{Process, free_address};

/// Starts nginx in this folder, in front of the sink.
pub(crate) fn start(home: &Path, sink: SocketAddr) -> Process {
    let address = free_address();
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
    // It is in a package: apt-get install nginx-light.
    Process::start(command, address)
}
