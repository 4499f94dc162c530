//! What the guide says about a rejected message whose body is wrong: export it, edit it, send it again under its ids,
//! and purge the rejected one.

use serde_json::Value;

use crate::support::agent::Agent;
use crate::support::fake_opik::FakeOpik;
use crate::support::fake_opik::check::Kind;
use crate::support::http::{Client, Request};
use crate::support::{PATIENCE, uuid7, wait_until};
use crate::writes::{create, update};

#[test]
fn a_rejected_body_is_exported_edited_and_delivered_under_its_ids() {
    let server = FakeOpik::new_stopped();
    let agent = Agent::builder(&server.url()).impatient().arg("--max-attempts").arg("2").start();
    let mut client = Client::new(&agent.url());
    let trace = uuid7();
    assert_eq!(client.expect(&create(&trace)).status, 201);
    assert_eq!(client.expect(&update(&trace, 7)).status, 204);
    let fault = server.refuse_creates_of(&trace, 400);
    server.start();
    let rejected = || agent.cli(&["inspect", "--rejected", "--format", "json"]).json();
    wait_until("the create is rejected", PATIENCE, || rejected()["selected"] == 1);
    let id = rejected()["messages"][0]["id"].to_string();

    let exported = agent.cli(&["inspect", &id, "--format", "json"]).json();
    let mut body: Value = serde_json::from_str(exported["body"].as_str().expect("a body")).expect("it is JSON");
    body["name"] = "corrected".into();
    fault.clear();
    let text = |name: &str| exported[name].as_str().expect(name).to_owned();
    let again = Request::new(&text("method"), &format!("/{}", text("path"))).json(&body);
    assert_eq!(
        client.expect(&again).status,
        201,
        "the agent takes the corrected write while the rejected one is stored"
    );
    let preview = agent.cli(&["purge", "--id", &id, "--dry-run"]);
    assert_eq!(preview.code(), Some(0), "{}{}", preview.stdout, preview.stderr);
    assert_eq!(rejected()["selected"], 1, "a preview purges nothing");
    let purged = agent.cli(&["purge", "--id", &id, "--yes"]);
    assert_eq!(purged.code(), Some(0), "{}{}", purged.stdout, purged.stderr);

    agent.wait_until_delivered();
    let record = server.entity("default", Kind::Trace, &trace).and_then(|entity| entity.record).expect("it is there");
    assert_eq!(record.fields["name"], "corrected");
    assert_eq!(record.fields["output"]["n"], 7, "the update that had waited for it");
    assert_eq!(rejected()["selected"], 0);
    server.assert_no_violations();
}
