//! The `opik` command of the Python SDK, as people and their scripts call it.

use crate::install::python;
use crate::scenario::{Client, Scenario, is_as_without_an_agent, is_as_without_an_agent_in};

/// A shell script that calls `opik`, on a server that has something to be read.
fn script(script: &str) -> Client {
    let bin = python("frameworks");
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    let client = Client::program("sh".into(), vec!["-c".into(), script.into()]);
    let client = client.env("PATH", &path).env("OPIK_WORKSPACE", "default").env("TERM", "dumb").seeded();
    // How fast something went, and whether something had to be waited for.
    Client { chatter: &["project/s]", "waiting for delivery confirmation"], ..client }
}

/// What is only read: without the server, nobody gets it.
const WITH_SERVER: &[Scenario] = &[Scenario::Online, Scenario::Wrapped];

#[test]
fn opik_healthcheck() {
    is_as_without_an_agent_in(&script("opik healthcheck; echo $?"), WITH_SERVER);
}

#[test]
fn the_smoke_test_of_opik_healthcheck() {
    let client = script("opik healthcheck --smoke-test default; echo $?").volatile(&["input", "output"]);
    is_as_without_an_agent_in(&client, WITH_SERVER);
}

#[test]
fn opik_export_and_import() {
    let client = script(
        "opik export default seeded all; echo $?
         opik import default imported all; echo $?",
    );
    is_as_without_an_agent_in(&client.volatile(&["_import_id"]), WITH_SERVER);
}

#[test]
fn opik_import_through_an_outage() {
    let client = script(
        "test -e opik_exports || opik export default seeded traces; echo $?
         echo halfway; read line
         opik import default imported traces; echo $?",
    );
    is_as_without_an_agent(&client.volatile(&["_import_id"]));
}

#[test]
fn opik_usage_report() {
    let client = script("opik usage-report; echo $?; cat opik_usage_report.json");
    is_as_without_an_agent_in(&client, WITH_SERVER);
}

#[test]
fn opik_configure() {
    let client = script(
        "opik configure --use_local --yes; echo $?; test -e ~/.opik.config; echo $?
         opik configure status; echo $?",
    );
    is_as_without_an_agent_in(&client, WITH_SERVER);
}
