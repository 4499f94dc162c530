//! The Python module of the wheel: `opik_offline.protect()` in real applications with the published SDKs.

use rustix::process::Signal;

use crate::support::agent::{Home, program};
use crate::support::background::{BackgroundHome, imitate, pid_of, signal, wait_until_gone};
use crate::support::fake_opik::check::Kind;
use crate::support::fake_opik::{Answer, FakeOpik, Then, When};
use crate::support::process::run;
use crate::support::sdk::SdkApp;
use crate::support::tools::{OPIK_VERSION, OPIK_VERSION_OLDER, python_jupyter, python_sdk, site_packages};
use crate::support::{PATIENCE, wait_until};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Starts an application in this home that has this SDK and the module.
#[track_caller]
fn start(home: &BackgroundHome, version: &str, environment: &[(&str, &str)]) -> SdkApp {
    start_with(home, &[], version, environment)
}

/// Does the same with these options of the interpreter.
#[track_caller]
fn start_with(home: &BackgroundHome, options: &[&str], version: &str, environment: &[(&str, &str)]) -> SdkApp {
    let mut command = home.command(python_sdk(version));
    command.args(options).arg(format!("{ROOT}/tests/sdk/protected.py")).env("PYTHONPATH", format!("{ROOT}/python"));
    command.env("OPIK_OFFLINE_BINARY", program()).envs(environment.iter().copied());
    SdkApp::start_command(command, Home::new(), &home.server)
}

#[track_caller]
fn protect(app: &mut SdkApp) -> serde_json::Value {
    let status = app.run("protect");
    assert_eq!(status["protected"], true, "{status}");
    status
}

/// What most applications do: protect first or import first, an outage from the start, delivery afterwards.
fn an_outage_from_the_start(version: &str, before: &[&str]) {
    let server = FakeOpik::new_stopped();
    let home = BackgroundHome::new(&server.url());
    let mut app = start(&home, version, &[]);
    before.iter().for_each(|command| drop(app.run(command)));
    let status = protect(&mut app);
    assert_eq!(protect(&mut app)["url"], status["url"], "protecting twice is another agent");
    app.run("traces 3");
    app.run("client");
    app.run("held 2");
    app.run("sdkflush");
    let kept = app.run("flush 1");
    assert_eq!(kept["delivered"], false, "it is not on the server, which is away: {kept}");
    assert!(kept["remaining"].as_u64() > Some(0), "{kept}");
    server.start();
    let delivered = app.run("flush 120");
    assert_eq!((&delivered["delivered"], &delivered["remaining"]), (&true.into(), &0.into()), "{delivered}");
    app.assert_all_on(&server);
    app.quit();
    server.assert_no_violations();
}

#[test]
fn a_script_that_protects_before_its_import_loses_nothing() {
    an_outage_from_the_start(OPIK_VERSION, &[]);
}

#[test]
fn a_script_that_protects_after_its_import_loses_nothing() {
    an_outage_from_the_start(OPIK_VERSION, &["import"]);
}

#[test]
fn a_script_with_an_older_sdk_loses_nothing() {
    an_outage_from_the_start(OPIK_VERSION_OLDER, &["import"]);
}

/// Clients that exist already have sent to the server directly: they are flushed, and led to the agent.
fn existing_clients_are_led(version: &str) {
    let server = FakeOpik::start_new();
    // The older SDK pings outside of `/api`, where Opik's web server answers, and sends nothing without an answer.
    let healthy = Answer::json(200, &serde_json::json!({ "message": "Healthy Server", "healthy": true }));
    server.script(When::path("/is-alive/ping"), Then::Answer(healthy));
    let other = FakeOpik::start_new();
    let home = BackgroundHome::new(&format!("{}/", server.url()));
    let mut app = start(&home, version, &[]);
    app.run("client");
    app.run("traces 2");
    app.run("held 2");
    let status = protect(&mut app);
    // Flushed, and so on the server, before they were led elsewhere.
    app.wait_until_all_on(&server);
    server.stop();
    app.run("traces 2");
    app.run("held 2");
    app.run("sdkflush");
    wait_until("what they send is stored by the agent", PATIENCE, || app.run("status")["waiting"].as_u64() > Some(0));
    server.start();
    assert_eq!(app.run("flush 120")["delivered"], true);
    app.assert_all_on(&server);

    app.run(&format!("client {}", other.url()));
    let explicit = app.run("status");
    assert_eq!(explicit["unprotected_clients"][0], other.url(), "nobody is warned: {explicit}");
    assert!(explicit["shown"].as_str().is_some_and(|shown| shown.contains(&other.url())), "{explicit}");
    app.run("client");

    app.run("unprotect");
    assert_eq!(app.run("env")["url"], *home.server, "the environment stays changed");
    assert_eq!(app.run("status")["protected"], false);
    signal(pid_of(&status), Signal::KILL);
    wait_until_gone(pid_of(&status));
    app.run("traces 2");
    app.run("held 1");
    app.run("sdkflush");
    // This SDK may end, and call it flushed, with a message in the hands of a worker.
    app.wait_until_all_on(&server);
    app.quit();
}

#[test]
fn existing_clients_are_flushed_and_led_to_the_agent_and_back() {
    existing_clients_are_led(OPIK_VERSION);
}

#[test]
fn existing_clients_of_an_older_sdk_are_flushed_and_led_to_the_agent_and_back() {
    existing_clients_are_led(OPIK_VERSION_OLDER);
}

/// What clients have put aside since the outage began is in the memory of a process: protection saves it as well.
fn existing_clients_hand_over_what_they_hold(version: &str) {
    let server = FakeOpik::new_stopped();
    let home = BackgroundHome::new(&server.url());
    let mut app = start(&home, version, &[]);
    app.run("client");
    app.run("traces 2");
    app.run("held 2");
    app.run("sdkflush");
    protect(&mut app);
    wait_until("what they hold is stored by the agent", PATIENCE, || app.run("status")["waiting"].as_u64() > Some(0));
    app.run("traces 1");
    server.start();
    let delivered = app.run("flush 120");
    assert_eq!(delivered["delivered"], true, "{delivered}");
    app.assert_all_on(&server);
    app.quit();
    server.assert_no_violations();
}

#[test]
fn clients_that_exist_in_an_outage_hand_over_what_they_hold() {
    existing_clients_hand_over_what_they_hold(OPIK_VERSION);
}

#[test]
fn clients_of_an_older_sdk_that_exist_in_an_outage_hand_over_what_they_hold() {
    existing_clients_hand_over_what_they_hold(OPIK_VERSION_OLDER);
}

/// The parent's clients are used in its children: the global one, one that the application made, and its threads' ones.
#[test]
fn children_and_threads_are_protected_and_nothing_hangs() {
    for version in [OPIK_VERSION, OPIK_VERSION_OLDER] {
        let server = FakeOpik::new_stopped();
        let home = BackgroundHome::new(&server.url());
        let mut app = start(&home, version, &[]);
        app.run("threads 8");
        let first = app.run("status");
        app.run("client");
        for _ in 0..3 {
            // Right before, so that the parent's threads are at work.
            app.run("traces 1");
            app.run("held 1");
            assert_eq!(app.run("fork 2")["code"], 0, "the child of a fork failed");
        }
        for method in ["fork", "spawn"] {
            let ended = app.run(&format!("processes {method} 2"));
            assert_eq!(ended["codes"], serde_json::json!([0, 0]), "{method}");
        }
        server.start();
        assert_eq!(app.run("flush 120")["delivered"], true);
        app.assert_all_on(&server);
        assert_eq!(app.run("status")["pid"], first["pid"], "more than one agent: {}", home.log());
        app.quit();
    }
}

#[test]
fn a_killed_agent_is_started_again_and_what_it_had_is_delivered() {
    let server = FakeOpik::new_stopped();
    let home = BackgroundHome::new(&server.url());
    let mut app = start(&home, OPIK_VERSION, &[]);
    app.run("watch 0.2");
    let status = protect(&mut app);
    app.run("traces 3");
    app.run("sdkflush");
    signal(pid_of(&status), Signal::KILL);
    wait_until_gone(pid_of(&status));
    wait_until("another agent answers", PATIENCE, || app.run("status")["protected"] == true);
    assert_eq!(app.run("status")["url"], status["url"], "the SDK's clients would have to be led again");
    app.run("traces 3");
    app.run("sdkflush");
    server.start();
    assert_eq!(app.run("flush 120")["delivered"], true);
    app.assert_all_on(&server);
    app.quit();
}

#[test]
fn a_program_on_the_port_of_a_killed_agent_is_not_taken_for_it() {
    let server = FakeOpik::start_new();
    let home = BackgroundHome::new(&server.url());
    let first = home.launch(&[]);
    let url = first["url"].as_str().expect("a URL").to_owned();
    let protect = |says: &str| {
        let script = format!("import opik_offline; status = opik_offline.protect(); print(bool(status), {says})");
        let mut command = home.home.command(python_sdk(OPIK_VERSION));
        command.args(["-c", &script]).env("PYTHONPATH", format!("{ROOT}/python"));
        command.env("OPIK_OFFLINE_BINARY", program()).env("OPIK_URL_OVERRIDE", &url);
        command.env("OPIK_OFFLINE_WRAPPED_BY", format!("{url} {}", server.url()));
        let output = run(&mut command);
        output.stdout.lines().last().unwrap_or(&output.stderr).to_owned()
    };
    assert_eq!(protect("status.url"), format!("True {url}"), "the agent itself is found");
    signal(pid_of(&first), Signal::KILL);
    wait_until_gone(pid_of(&first));
    imitate(&first);
    let said = protect(&format!("status.url != '{url}'"));
    assert_eq!(said, "True True", "traces and keys would go to a stranger");
}

#[test]
fn twenty_processes_that_protect_themselves_at_once_share_one_agent() {
    let server = FakeOpik::start_new();
    let home = BackgroundHome::new(&server.url());
    // Each interpreter is as heavy as the SDK, so they protect before they import it.
    let mut apps: Vec<SdkApp> = (0..20).map(|_| start(&home, OPIK_VERSION, &[])).collect();
    let statuses: Vec<_> = std::thread::scope(|scope| {
        let protecting: Vec<_> = apps.iter_mut().map(|app| scope.spawn(move || protect(app))).collect();
        protecting.into_iter().map(|one| one.join().expect("it is protected")).collect()
    });
    assert!(statuses.iter().all(|status| status["pid"] == statuses[0]["pid"]), "{statuses:?}");
    apps.iter_mut().for_each(SdkApp::quit);
}

#[test]
fn a_process_that_cannot_be_protected_works_as_before_and_says_so() {
    let server = FakeOpik::start_new();
    let home = BackgroundHome::new(&server.url());
    let mut app = start(&home, OPIK_VERSION, &[("OPIK_OFFLINE_BINARY", "/no/such/program")]);
    let status = app.run("protect");
    assert_eq!(status["protected"], false);
    assert!(status["shown"].as_str().is_some_and(|shown| shown.contains("NOT PROTECTED")), "{status}");
    assert_eq!(app.run("env")["url"], server.url());
    app.run("traces 2");
    app.run("sdkflush");
    assert_eq!(app.run("flush 1")["delivered"], false, "nobody knows whether it is delivered");
    app.quit();
    app.assert_all_on(&server);
}

#[test]
fn a_notebook_is_protected_through_an_outage_and_a_restart_of_its_kernel() {
    let server = FakeOpik::new_stopped();
    let home = BackgroundHome::new(&server.url());
    let mut command = home.command(python_jupyter());
    let packages = site_packages(&python_sdk(OPIK_VERSION));
    command.arg(format!("{ROOT}/tests/sdk/notebook.py"));
    command.env("PYTHONPATH", format!("{ROOT}/python:{}", packages.display())).env("OPIK_OFFLINE_BINARY", program());
    let mut notebook = SdkApp::start_command(command, Home::new(), &home.server);
    let loaded = notebook.run("load");
    assert!(loaded["shown"].as_str().is_some_and(|shown| shown.contains("protected by")), "{loaded}");
    notebook.run("traces 2");
    let before = notebook.run("status");
    notebook.run("restart");
    notebook.run("load");
    let after = notebook.run("status");
    assert_eq!(after["pid"], before["pid"], "the agent ended with the kernel");
    assert!(after["waiting"].as_u64() > Some(0), "the traces of the first kernel are lost: {after}");
    notebook.run("traces 1");
    server.start();
    let delivered = notebook.run("flush 120");
    assert_eq!(delivered["delivered"], true, "{delivered}");
    notebook.assert_all_on(&server);
    notebook.quit();
}

#[test]
fn importing_or_running_auto_or_the_variable_protects() {
    let server = FakeOpik::new_stopped();
    let home = BackgroundHome::new(&server.url());
    let mut by_import = start(&home, OPIK_VERSION, &[]);
    let status = by_import.run("auto");
    assert_eq!(status["protected"], true, "{status}");
    let mut by_runner = start_with(&home, &["-m", "opik_offline.auto"], OPIK_VERSION, &[]);
    assert_eq!(by_runner.run("status")["url"], status["url"], "a program that is run by `opik_offline.auto`");
    by_runner.quit();
    let mut by_variable = start(&home, OPIK_VERSION, &[("OPIK_OFFLINE_AUTO", "1")]);
    assert_eq!(by_variable.run("status")["url"], status["url"]);
    by_variable.run("traces 1");
    by_variable.quit();
    by_import.quit();
    server.start();
    wait_until("the agent delivers", PATIENCE, || server.count("default", Kind::Trace) == 1);
    by_variable.wait_until_all_on(&server);
}
