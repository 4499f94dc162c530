//! The foundation of the end-to-end tests: a fake Opik server, the agent as a real process, a plain HTTP client,
//! a ledger of what the client was told, and real tools from other hands.
//!
//! The rule of the house: a test waits for a condition and never for time to pass, and when it fails it describes the
//! user's loss.
#![allow(dead_code, reason = "each test binary uses another part of it")]

pub(crate) mod agent;
pub(crate) mod background;
#[cfg(target_os = "linux")]
pub(crate) mod cgroup;
pub(crate) mod depots;
pub(crate) mod fake_opik;
pub(crate) mod faulty;
pub(crate) mod garage;
pub(crate) mod http;
pub(crate) mod json;
pub(crate) mod ledger;
pub(crate) mod networks;
pub(crate) mod not_run;
pub(crate) mod prism;
pub(crate) mod process;
pub(crate) mod pty;
pub(crate) mod sdk;
pub(crate) mod sink;
pub(crate) mod tools;

use std::time::{Duration, Instant};

/// How long a test waits for something that is expected to happen soon, before it gives up and reports what did not
/// happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);
/// Ends what hangs. It says nothing about speed: a command of a test build takes minutes on a busy machine.
pub(crate) const HANGS_AFTER: Duration = Duration::from_secs(1200);

/// Waits until `condition` holds.
///
/// # Panics
///
/// When it does not hold within `timeout`; the message names `what` was awaited.
#[track_caller]
pub(crate) fn wait_until(what: &str, timeout: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + timeout;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {timeout:?} in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Makes a directory that is removed with everything in it when the value is dropped.
pub(crate) fn tempdir() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("opik-offline-test-").tempdir().expect("a temporary directory can be made")
}

/// Returns a new version 7 UUID, as the SDKs make them.
pub(crate) fn uuid7() -> String {
    uuid::Uuid::now_v7().to_string()
}

/// Returns the id of something that was made this long ago.
pub(crate) fn uuid7_of(age: std::time::Duration) -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("it is later than 1970");
    let at = since - age;
    let timestamp = uuid::Timestamp::from_unix(uuid::NoContext, at.as_secs(), at.subsec_nanos());
    uuid::Uuid::new_v7(timestamp).to_string()
}

/// Keeps a loopback port, or a free one for 0, out of everybody's hands without listening on it.
///
/// Connections to it are refused, and a program that asks for this very port with `SO_REUSEADDR` can still listen on
/// it. `None` when somebody listens there already.
pub(crate) fn reserve_port(port: u16) -> Option<tokio::net::TcpSocket> {
    let socket = tokio::net::TcpSocket::new_v4().ok()?;
    socket.set_reuseaddr(true).ok()?;
    socket.bind(([127, 0, 0, 1], port).into()).ok()?;
    Some(socket)
}

/// Returns incompressible text of this many characters; always the same.
pub(crate) fn noise(characters: usize) -> String {
    use base64::Engine as _;
    let block = |number: usize| {
        let digest = ring::digest::digest(&ring::digest::SHA256, &number.to_le_bytes());
        base64::engine::general_purpose::STANDARD_NO_PAD.encode(digest)
    };
    let mut text: String = (0..characters / 32 + 1).map(block).collect();
    text.truncate(characters);
    text
}
