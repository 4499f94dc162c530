//! The tests, and the processes in which they run.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::campaign::{self, Campaign, EXT4, Verdict, XFS};
use crate::steps::is_program;
use crate::support::not_run::not_run;
use crate::support::tempdir;

const LOG: &str = "opik_messages.db-wal";
const DATABASE: &str = "opik_messages.db";

#[test]
fn blocks_of_the_log_that_fail_on_ext4_lose_nothing_acknowledged_then_or_later() {
    run("blocks_of_the_log_that_fail_on_ext4_lose_nothing_acknowledged_then_or_later", &EXT4.failing(LOG));
}

#[test]
fn blocks_of_the_log_that_fail_on_xfs_lose_nothing_acknowledged_then_or_later() {
    run("blocks_of_the_log_that_fail_on_xfs_lose_nothing_acknowledged_then_or_later", &XFS.failing(LOG));
}

#[test]
fn blocks_of_the_database_that_fail_on_ext4_lose_nothing_acknowledged_then_or_later() {
    let campaign = EXT4.failing(DATABASE);
    run("blocks_of_the_database_that_fail_on_ext4_lose_nothing_acknowledged_then_or_later", &campaign);
}

#[test]
fn blocks_of_the_database_that_fail_on_xfs_lose_nothing_acknowledged_then_or_later() {
    let campaign = XFS.failing(DATABASE);
    run("blocks_of_the_database_that_fail_on_xfs_lose_nothing_acknowledged_then_or_later", &campaign);
}

/// Set for the process in the namespaces.
const INSIDE: &str = "OPIK_OFFLINE_REAL_DISK_INSIDE";
/// The exit code by which that process reports that this machine denies it the required privileges.
const NOT_RUN: i32 = 77;
const NAMESPACES: [&str; 5] = ["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];

/// Runs the campaign of the test with this name: in a process of its own, or in this one when it is that process.
fn run(name: &str, campaign: &Campaign) {
    if std::env::var_os(INSIDE).is_some() {
        return inside(campaign);
    }
    let finished = start(name, campaign).map(Running::finish);
    let why = match finished {
        Ok((Some(0), said)) => return say(&figures(&said)),
        Ok((Some(NOT_RUN), said)) => figures(&said),
        Ok((_, said)) => panic!("{said}"),
        Err(why) => why,
    };
    not_run(&why);
}

/// Says it even while the output of tests that pass is captured.
fn say(what: &str) {
    // On a line of its own: the harness may have begun one.
    let _ = writeln!(std::io::stderr(), "\n{}", what.trim());
}

/// Returns what the process inside said on purpose.
fn figures(said: &str) -> String {
    said.lines().filter_map(|line| line.strip_prefix(campaign::FIGURES)).collect::<Vec<_>>().join("\n")
}

/// Runs the campaign here. Nobody outlives this process, which is the first one of its PID namespace.
fn inside(campaign: &Campaign) {
    std::thread::spawn(|| {
        // The process outside holds the other end for as long as it lives.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(1);
    });
    match campaign.run() {
        Verdict::Passed => {}
        Verdict::Failed => panic!("acknowledged writes are lost, see above"),
        Verdict::NotRun => std::process::exit(NOT_RUN),
    }
}

struct Running {
    child: Child,
    said: Vec<JoinHandle<String>>,
    deadline: Instant,
    /// All that the campaign keeps in files.
    _folder: TempDir,
}

/// Starts a campaign, or tells why it can't be run on this machine.
fn start(name: &str, campaign: &Campaign) -> Result<Running, String> {
    if !rustix::process::geteuid().is_root() {
        return Err("only root can mount a file system from a block device".into());
    }
    for device in ["/dev/fuse", "/dev/loop-control"] {
        if !Path::new(device).exists() {
            return Err(format!("there is no {device}"));
        }
    }
    for (program, package) in [
        ("unshare", "util-linux"),
        ("losetup", "mount"),
        ("mount", "mount"),
        ("filefrag", "e2fsprogs"),
        (campaign.make, campaign.package),
    ] {
        if !is_program(program) {
            return Err(format!("there is no {program}: apt-get install {package}"));
        }
    }
    let allowed = Command::new("unshare").args(NAMESPACES).arg("true").output();
    if !allowed.is_ok_and(|output| output.status.success()) {
        return Err("no mount namespace can be made here".into());
    }
    let folder = tempdir();
    let mut command = Command::new("unshare");
    command.args(NAMESPACES).arg(std::env::current_exe().expect("this program"));
    command.args(["--exact", &format!("failing::{name}"), "--nocapture"]);
    command.env(INSIDE, "1").env("TMPDIR", folder.path());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|why| why.to_string())?;
    let out = follow(child.stdout.take().expect("it is piped"));
    let err = follow(child.stderr.take().expect("it is piped"));
    Ok(Running { child, said: vec![out, err], deadline: Instant::now() + campaign::time_limit(), _folder: folder })
}

fn follow(mut from: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = from.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    })
}

impl Running {
    /// Waits until it ends, and returns its exit code and what it said.
    fn finish(mut self) -> (Option<i32>, String) {
        let mut late = "";
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("our own child") {
                break status;
            }
            if Instant::now() > self.deadline {
                late = "it took too long and was killed\n";
                let _ = self.child.kill();
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        let said: String = self.said.drain(..).map(|thread| thread.join().expect("it only reads")).collect();
        (status.code(), said + late)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if it has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
