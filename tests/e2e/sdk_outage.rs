//! The main job: the published Python SDK through the agent, with the server away in the middle and the agent killed
//! while it is away. The application sees no error, and everything it sent is on the server afterwards.

use crate::support::agent::Agent;
use crate::support::fake_opik::FakeOpik;
use crate::support::prism::Prism;
use crate::support::sdk::SdkApp;

/// Everything that the application does, once.
fn work(app: &mut SdkApp, traces: usize) {
    app.run(&format!("traces {traces}"));
    app.run("manual 3");
    app.run("update");
    app.run("scores");
}

#[test]
fn an_outage_and_a_killed_agent_cost_the_python_sdk_nothing() {
    let server = FakeOpik::start_new();
    let mut agent = Agent::start(&server);
    let mut app = SdkApp::start("outage", &agent.url());

    work(&mut app, 10);
    app.flush();
    app.wait_until_all_on(&server);
    agent.wait_until_delivered();

    // What the SDK still holds at this moment meets a server that is gone.
    app.run("traces 10");
    server.stop();
    work(&mut app, 10);
    app.flush();
    let kept = agent.backlog();
    assert!(kept > 0, "the server is away, so the agent holds what it acknowledged");

    agent.kill9();
    agent.restart_on_same_port();
    assert_eq!(agent.backlog(), kept, "what was acknowledged survives SIGKILL");
    work(&mut app, 10);
    app.flush();
    assert!(!app.missing_on(&server).is_empty());

    server.start();
    app.wait_until_all_on(&server);
    agent.wait_until_delivered();
    app.quit();

    app.assert_all_on(&server);
    server.assert_no_violations();
    server.assert_no_update_before_create();
    server.assert_no_overlaps();
    assert!(server.conflicts().is_empty(), "{:?}", server.conflicts());
    assert_eq!(agent.backlog(), 0);
    assert!(agent.terminate().success());
}

#[test]
fn what_the_agent_forwards_and_replays_fits_opiks_openapi_file() {
    let mut prism = Prism::start();
    let agent = Agent::builder(&prism.url()).impatient().start();
    let mut app = SdkApp::start("prism", &agent.url());
    work(&mut app, 5);
    app.flush();
    let forwarded = prism.checked().iter().filter(|checked| checked.is_write()).count();
    assert!(forwarded > 0);

    prism.stop();
    work(&mut app, 5);
    app.flush();
    assert!(agent.backlog() > 0);
    prism.resume();
    agent.wait_until_delivered();
    app.quit();

    prism.assert_all_writes_valid();
    assert!(prism.checked().iter().filter(|checked| checked.is_write()).count() > forwarded);
}
