//! The Node.js module of the npm package: `node --import opik-offline/auto` with the published TypeScript SDK.

use rustix::process::Signal;

use crate::support::agent::{Home, program};
use crate::support::background::{BackgroundHome, imitate, pid_of, signal, wait_until_gone};
use crate::support::fake_opik::FakeOpik;
use crate::support::process::run;
use crate::support::sdk::SdkApp;
use crate::support::tools::typescript_sdk;
use crate::support::{PATIENCE, wait_until};

const MODULE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/npm");
const APP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk/protected.mjs");

#[track_caller]
fn start(home: &BackgroundHome) -> SdkApp {
    start_with(home, &["--import", &format!("{MODULE}/auto.mjs")])
}

/// Starts the application with these options of Node.js.
#[track_caller]
fn start_with(home: &BackgroundHome, options: &[&str]) -> SdkApp {
    let mut command = home.command("node");
    command.args(options).arg(APP);
    command.env("MODULE", MODULE).env("NODE_PATH", typescript_sdk()).env("OPIK_OFFLINE_BINARY", program());
    SdkApp::start_command(command, Home::new(), &home.server)
}

#[test]
fn an_application_in_node_is_protected_and_delivered_after_the_outage() {
    let server = FakeOpik::new_stopped();
    let home = BackgroundHome::new(&server.url());
    let mut app = start(&home);
    app.run("traces 3");
    app.run("sdkflush");
    let status = app.run("status");
    assert_eq!(status["protected"], true, "{status}");
    assert!(status["waiting"].as_u64() > Some(0), "{status}");
    let mut second = start(&home);
    assert_eq!(second.run("status")["pid"], status["pid"], "two agents for one server");
    second.quit();
    let kept = app.run("flush 1");
    assert_eq!(kept["delivered"], false, "{kept}");
    server.start();
    let delivered = app.run("flush 120");
    assert_eq!((&delivered["delivered"], &delivered["remaining"]), (&true.into(), &0.into()), "{delivered}");
    app.assert_all_on(&server);

    // The next call finds that the agent is gone, and the SDK's client the next agent on the same port.
    signal(pid_of(&status), Signal::KILL);
    wait_until_gone(pid_of(&status));
    app.run("unprotect");
    assert_eq!(app.run("env")["url"], server.url());
    wait_until("the agent is started again", PATIENCE, || app.run("protect")["protected"] == true);
    assert_eq!(app.run("env")["url"], status["url"], "clients that were made before would send to nobody");
    app.run("traces 1");
    app.run("sdkflush");
    assert_eq!(app.run("flush 120")["delivered"], true);
    app.assert_all_on(&server);
    app.quit();
}

#[test]
fn an_imitation_of_a_killed_agent_gets_no_application_in_node() {
    let server = FakeOpik::start_new();
    let home = BackgroundHome::new(&server.url());
    let (mut unwatched, mut watched) = (start_with(&home, &[]), start_with(&home, &[]));
    let first = unwatched.run(r#"protect {"watch":false}"#);
    assert_eq!(unwatched.run("status")["protected"], true, "the agent itself is not believed");
    assert_eq!(watched.run(r#"protect {"watchIntervalMs":200}"#)["pid"], first["pid"]);
    // It must not look before the port is taken.
    signal(watched.pid(), Signal::STOP);
    signal(pid_of(&first), Signal::KILL);
    wait_until_gone(pid_of(&first));
    imitate(&first);

    let status = unwatched.run("status");
    assert_eq!(status["protected"], false, "traces and keys go to a stranger, and nobody says so: {status}");
    let flushed = unwatched.run("flush 5");
    assert_eq!(flushed["delivered"], false, "a stranger says what is on the server: {flushed}");
    signal(watched.pid(), Signal::CONT);
    wait_until("the agent is started again", PATIENCE, || {
        let status = watched.run("status");
        status["protected"] == true && status["url"] != first["url"]
    });
    let again = unwatched.run("protect");
    assert_eq!(again["pid"], watched.run("status")["pid"], "two agents for one server");
    assert_eq!(unwatched.run("env")["url"], again["url"]);
    assert_eq!(unwatched.run("status")["protected"], true);
    unwatched.quit();
    watched.quit();
}

#[test]
fn an_application_in_node_that_cannot_be_protected_works_as_before() {
    let server = FakeOpik::start_new();
    let home = BackgroundHome::new(&server.url());
    let mut command = home.command("node");
    command.env("OPIK_OFFLINE_BINARY", "/no/such/program");
    let ended =
        run(command.arg("--import").arg(format!("{MODULE}/auto.mjs")).arg("-p").arg("process.env.OPIK_URL_OVERRIDE"));
    assert_eq!((ended.code(), ended.stdout.trim()), (Some(0), &*server.url()), "{}", ended.stderr);
    assert!(ended.stderr.contains("NOT PROTECTED"), "{}", ended.stderr);
}
