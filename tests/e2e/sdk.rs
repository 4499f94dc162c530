//! The published Python SDK against the fake server, with nothing in between: what the fake accepts and remembers is
//! what the SDK sends.

use crate::support::fake_opik::FakeOpik;
use crate::support::fake_opik::check::Kind;
use crate::support::sdk::SdkApp;

#[test]
fn the_python_sdk_works_against_fake_opik() {
    let server = FakeOpik::start_new();
    let mut app = SdkApp::start("direct", &server.url());
    app.run("traces 6");
    app.run("manual 3");
    app.run("update");
    app.run("scores");
    app.flush();
    app.run("traces 2");
    app.quit();

    assert_eq!((app.expected_count(Kind::Trace), app.expected_count(Kind::Span)), (11, 30));
    assert!(app.expected_count(Kind::Thread) > 0);
    app.wait_until_all_on(&server);
    server.assert_no_violations();
    server.assert_no_update_before_create();
    assert!(server.conflicts().is_empty(), "{:?}", server.conflicts());
    assert!(server.requests().iter().any(|request| request.header("Content-Encoding") == Some("gzip")));
}
