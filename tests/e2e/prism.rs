//! Prism as the server: what reaches it must fit Opik's own OpenAPI file.

use serde_json::json;

use crate::support::http::{Client, Request};
use crate::support::prism::Prism;
use crate::support::sdk::SdkApp;
use crate::support::uuid7;

#[test]
fn prism_checks_bodies_in_every_encoding() {
    let mut prism = Prism::start();
    let mut client = Client::new(&prism.url());
    let id = uuid7();
    let good = json!({ "traces": [{ "id": id, "start_time": "2026-03-01T04:00:16Z", "input": { "a": null } }] });
    let bad = json!({ "traces": [{ "id": id }] });
    let batch = |body| Request::new("POST", "/v1/private/traces/batch").json(body);
    assert_eq!(client.expect(&batch(&good)).status, 204);
    assert_eq!(client.expect(&batch(&good).gzip()).status, 204);
    assert_eq!(client.expect(&batch(&good).chunked(16)).status, 204);
    let score = json!({ "scores": [{ "id": id, "name": "q", "value": 1.0, "source": "sdk", "reason": null }] });
    assert_eq!(client.put("/v1/private/traces/feedback-scores", &score).status, 204);
    let odd =
        format!(r#"{{"traces": [{{"id": "{id}", "start_time": "2026-03-01T04:00:16Z", "input": {{"a": NaN}}}}]}}"#);
    let odd = Request::new("POST", "/v1/private/traces/batch").header("Content-Type", "application/json").bytes(odd);
    assert_eq!(client.expect(&odd).status, 204);
    assert_eq!(client.expect(&Request::new("GET", "/is-alive/ping")).status, 200);
    prism.assert_all_writes_valid();

    prism.stop();
    client.disconnect();
    assert!(client.send(&batch(&good)).is_err());
    prism.resume();

    for request in [batch(&bad), batch(&bad).gzip()] {
        let answer = client.expect(&request);
        assert_eq!(answer.status, 422);
        assert!(answer.text().contains("start_time"), "{}", answer.text());
    }
    assert_eq!(client.patch("/v1/private/spans/no-uuid", &json!({ "trace_id": id })).status, 422);
    assert_eq!(prism.checked().iter().filter(|checked| checked.status == 422).count(), 3);
}

#[test]
fn requests_of_the_python_sdk_match_opiks_openapi_file() {
    let prism = Prism::start();
    let mut app = SdkApp::start("prism", &prism.url());
    for command in ["traces 3", "manual 2", "update", "scores"] {
        app.run(command);
    }
    app.flush();
    app.quit();
    prism.assert_all_writes_valid();
}
