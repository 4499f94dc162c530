//! The testament of pods with the real Python SDK: everything that the SDK was told is safe is delivered from another
//! host, attachments included, after pods were killed and their folders removed.

use crate::fleet_engines::EngineFleet;
use crate::support::agent::Agent;
use crate::support::depots::SeaweedFs;
use crate::support::fake_opik::FakeOpik;
use crate::support::sdk::SdkApp;

#[test]
fn traces_of_the_python_sdk_outlive_its_pods_with_attachments() {
    let storage = SeaweedFs::start();
    let fleet = EngineFleet::on_seaweedfs(&storage, "testament/prod");
    let server = FakeOpik::new_stopped();
    let pods: Vec<(Agent, SdkApp)> = std::thread::scope(|scope| {
        let pods: Vec<_> = (0..3)
            .map(|pod| {
                let (fleet, server) = (&fleet, &server);
                scope.spawn(move || {
                    let agent = fleet.agent(server).arg("--acknowledge").arg("fleet").start();
                    let mut app = SdkApp::start(&format!("pod-{pod}"), &agent.url());
                    // The last file takes several parts of the depot.
                    for command in ["traces 5", "manual 3", "update", "scores", "attach 1", "attach 1 7000000"] {
                        app.run(command);
                    }
                    app.flush();
                    (agent, app)
                })
            })
            .collect();
        pods.into_iter().map(|pod| pod.join().expect("the pod works")).collect()
    });
    let apps: Vec<SdkApp> = pods
        .into_iter()
        .map(|(mut agent, app)| {
            // Its folder goes with it.
            agent.kill9();
            app
        })
        .collect();
    let parts = fleet.names("v1/files");
    assert!(parts.iter().any(|name| name.ends_with("/0000000001")), "no file takes several parts: {parts:?}");
    server.start();
    let report = fleet.replayed(&server, &["--fail-if-backlog"]);
    assert_eq!(report["streams"]["finished"], 3, "{report}");
    let missing: Vec<String> = apps.iter().flat_map(|app| app.missing_on(&server)).collect();
    assert_eq!(missing, Vec::<String>::new(), "{} things that the SDK had delivered are lost", missing.len());
    server.assert_no_violations();
    server.assert_no_update_before_create();
    assert!(server.conflicts().is_empty(), "{:?}", server.conflicts());
    assert_eq!(fleet.left(), Vec::<String>::new());
}
