//! The `opik` command of the Python SDK, as people and their scripts call it.

use crate::install::python;
use crate::scenario::{Client, Scenario, is_as_without_an_agent_in};

/// A shell script that calls `opik`, on a server that has something to be read.
fn script(script: &str) -> Client {
    let bin = python("frameworks");
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    // At its end as well, so that its links can be followed while an agent of its own is still there.
    let script = format!("{script}\necho halfway; read line");
    let client = Client::program("sh".into(), vec!["-c".into(), script]);
    let client = client.env("PATH", &path).env("OPIK_WORKSPACE", "default").env("TERM", "dumb").seeded();
    // How fast something went, and whether something had to be waited for.
    Client { chatter: &["/s]", "waiting for delivery confirmation"], ..client }
}

/// Reads: without the server, they fail.
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

/// Import makes new traces of what was exported. The export is done by the middle: it only reads.
#[test]
fn opik_export_and_import() {
    let client = script(
        "opik export default seeded all; echo $?
         echo halfway; read line
         opik import default seeded all; echo $?",
    );
    let client = client.volatile(&["_import_id"]);
    is_as_without_an_agent_in(&client, &[Scenario::Online, Scenario::Middle, Scenario::Wrapped]);
}

#[test]
fn opik_usage_report() {
    let client = script("opik usage-report; echo $?; cat opik_usage_report.json; echo");
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
