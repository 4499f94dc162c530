//! `healthcheck --bundle`: what one attaches to an issue has no secret in it, wherever it was planted.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::support::agent::{Agent, Home};
use crate::support::fake_opik::{Answer, FakeOpik, Then, When};
use crate::support::http::{Client, Request};
use crate::support::{PATIENCE, uuid7, wait_until};

/// Each is planted in at least one place.
const SECRETS: [(&str, &str); 9] = [
    ("the key of the configuration", "planted-api-key-0001-aaaa"),
    ("the key of a client", "planted-client-key-0002-bbbb"),
    ("the intake token", "planted-intake-token-0003-cccc"),
    ("the encryption key", "0004dddd0004dddd0004dddd0004dddd0004dddd0004dddd0004dddd0004dddd"),
    ("a header for the gateway", "planted-gateway-header-0005-eeee"),
    ("a header in a file", "planted-header-in-file-0006-ffff"),
    ("the hub token in a file", "planted-hub-token-0007-gggg"),
    ("the password of the proxy", "planted-proxy-password-0008-hhhh"),
    ("a payload", "planted-private-words-0009-iiii"),
];

fn secret(number: usize) -> &'static str {
    SECRETS[number - 1].1
}

/// Unpacks a bundle, and returns all of it as text.
fn unpacked(file: &Path, into: &Path) -> String {
    fs::create_dir(into).expect("a folder");
    let tar = Command::new("tar").arg("-xzf").arg(file).arg("-C").arg(into).output().expect("tar runs");
    assert!(tar.status.success(), "{}", String::from_utf8_lossy(&tar.stderr));
    let mut text = String::new();
    for entry in fs::read_dir(into.join("opik-offline-bundle")).expect("the bundle's folder") {
        let path = entry.expect("a file").path();
        text.push_str(&format!("== {}\n{}", path.display(), fs::read_to_string(&path).expect("text")));
    }
    text
}

#[test]
fn a_bundle_has_what_helps_and_no_secret_wherever_it_was_planted() {
    let server = FakeOpik::new_stopped();
    let home = Home::new();
    let planted = |name: &str, text: String| {
        let path = home.path().join(name);
        fs::write(&path, text).expect("a file");
        path.display().to_string()
    };
    let headers = planted("headers", format!("X-Gate: {}\n", secret(6)));
    let hub_token = planted("hub-token", format!("{}\n", secret(7)));
    let everything = SECRETS.map(|(_, secret)| secret).join(" ");
    let log = planted(
        "opik.log",
        format!(
            "2026-11-22T18:00:00.123Z  WARN replay_manager: the server answered 401: {}\n\
             OPIK DEBUG: sending {everything}\n\
             2026-11-22T18:00:00.124Z  INFO intake: Authorization: Bearer never-configured-anywhere-10\n",
            SECRETS[..8].iter().map(|(_, secret)| *secret).collect::<Vec<_>>().join(" ")
        ),
    );
    let env = [
        ("OPIK_API_KEY", secret(1).to_owned()),
        ("OPIK_OFFLINE_INTAKE_TOKEN", secret(3).to_owned()),
        ("OPIK_OFFLINE_ENCRYPTION_KEY", secret(4).to_owned()),
        ("OPIK_OFFLINE_UPSTREAM_HEADERS", format!("X-Gateway: {}", secret(5))),
        ("OPIK_OFFLINE_UPSTREAM_HEADERS_FILE", headers),
        ("OPIK_OFFLINE_HUB_TOKEN_FILE", hub_token),
        ("_OPIK_HTTP_PROXY", format!("http://somebody:{}@127.0.0.1:9", secret(8))),
        ("NO_PROXY", "*".to_owned()),
        ("OPIK_LOGGING_FILE", log),
        ("OPIK_OFFLINE_UPSTREAM", server.url()),
    ];
    let mut builder = Agent::builder(&server.url()).home(home).impatient();
    for (name, value) in env.iter().filter(|(name, _)| !["_OPIK_HTTP_PROXY", "OPIK_LOGGING_FILE"].contains(name)) {
        builder = builder.env(name, value);
    }
    let agent = builder.start();
    let bad = uuid7();
    let body = serde_json::json!({ "id": bad, "name": secret(9), "start_time": "2026-03-01T04:00:16Z" });
    let write = Request::new("POST", "/v1/private/traces").json(&body).header("Authorization", secret(2));
    let token = |request: Request| request.header("X-Opik-Offline-Token", secret(3));
    assert_eq!(Client::new(&agent.origin()).expect(&token(write)).status, 201);
    let words = format!("no user has {} or {}", secret(2), secret(1));
    server.script(When::ids([bad]), Then::Answer(Answer::error(400, &words)));
    server.start();
    wait_until("it is rejected", PATIENCE, || agent.stderr().contains("rejected=1"));

    let file = agent.home().path().join("bundle.tar.gz");
    let mut command = agent.home().command(crate::support::agent::program());
    command.envs(env.iter().map(|(name, value)| (name, value)));
    command.args(["healthcheck", "--db"]).arg(agent.db()).arg("--bundle").arg(&file);
    let output = command.output().expect("it runs");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("bundle.tar.gz"), "{said}");
    assert_eq!(fs::metadata(&file).expect("a bundle").permissions().mode() & 0o777, 0o600);

    let text = unpacked(&file, &agent.home().path().join("unpacked"));
    for (what, secret) in SECRETS {
        assert!(!text.contains(secret), "{what} is in the bundle:\n{text}");
    }
    assert!(!text.contains("never-configured-anywhere-10"), "what follows Authorization is in the bundle");
    for part in [
        "store_schema_version",
        "\"opik_offline\": \"",
        "the server answered 401: ***",
        "1 line of other programs left out",
        "\"key\": \"encryption_key\"",
        "environment OPIK_OFFLINE_ENCRYPTION_KEY",
        "no user has *** or ***",
        "\"connection\": \"available\"",
    ] {
        assert!(text.contains(part), "{part} is missing:\n{text}");
    }
}

#[test]
fn a_bundle_never_replaces_a_file_and_is_made_where_nothing_works() {
    let home = Home::new();
    let file = home.path().join("bundle.tar.gz");
    fs::write(&file, "mine").expect("a file");
    let bundle = |file: &Path| {
        home.cli(&["healthcheck", "--upstream", "http://127.0.0.1:9/api", "--bundle", &file.display().to_string()])
    };
    let output = bundle(&file);
    assert_eq!(output.code(), Some(2), "{}", output.stderr);
    assert!(output.stderr.contains("exists already") && output.stderr.contains("hint: "), "{}", output.stderr);
    assert_eq!(fs::read_to_string(&file).expect("the file"), "mine");
    let other = home.path().join("other.tar.gz");
    assert_eq!(bundle(&other).code(), Some(3), "the server is away, and the bundle is written");
    let text = unpacked(&other, &home.path().join("unpacked"));
    assert!(text.contains("\"healthy\": false") && text.contains("\"connection\": \"unavailable\""), "{text}");
}

#[test]
fn a_bundle_in_a_folder_that_is_not_there_is_an_error_with_a_hint() {
    let home = Home::new();
    let output =
        home.cli(&["healthcheck", "--upstream", "http://127.0.0.1:9/api", "--bundle", "/no/such/folder/x.tgz"]);
    assert_eq!(output.code(), Some(1), "{}", output.stderr);
    assert!(output.stderr.contains("/no/such/folder/x.tgz") && output.stderr.contains("hint: "), "{}", output.stderr);
}
