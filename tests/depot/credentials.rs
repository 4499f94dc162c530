//! Credentials of the platforms: a token file and a token service, a container's agent, Google's conditions.

use opik_offline::depot::{DepotError, ObjectService, Version, open};

use crate::contract::name;
use crate::scripted::{Scripted, Then, variables};
use crate::support::depots::settings;
use crate::support::tempdir;

const ASSUMED: &str = "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>\
    <AccessKeyId>ASSUMED</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>session</SessionToken>\
    <Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleWithWebIdentityResult>\
    </AssumeRoleWithWebIdentityResponse>";

#[test]
fn a_web_identity_is_exchanged_once_and_used() {
    let tokens = Scripted::with(vec![Then::status(200, ASSUMED)]);
    let storage = Scripted::with(vec![Then::written("1")]);
    let folder = tempdir();
    let token = folder.path().join("token");
    std::fs::write(&token, "a-web-identity").unwrap();
    let depot = open(&settings(
        ObjectService::S3,
        "prod",
        variables(&[
            ("AWS_ENDPOINT_URL", &storage.url()),
            ("AWS_ENDPOINT_URL_STS", &tokens.url()),
            ("AWS_WEB_IDENTITY_TOKEN_FILE", token.to_str().unwrap()),
            ("AWS_ROLE_ARN", "arn:aws:iam::1:role/pod"),
        ]),
    ))
    .unwrap();
    for number in 0..3 {
        depot.create(&name(&format!("v1/bundles/{number}")), b"bundle").unwrap();
    }
    assert_eq!(tokens.arrived().len(), 1, "the token service is asked with every write");
    let exchange = &tokens.arrived()[0];
    let asked = format!("{}{}", exchange.path, String::from_utf8_lossy(&exchange.body));
    assert!(asked.contains("a-web-identity"), "{asked}");
    for request in storage.arrived() {
        assert!(request.header("authorization").unwrap().contains("Credential=ASSUMED/"), "{}", request.head);
        assert_eq!(request.header("x-amz-security-token"), Some("session"));
    }
}

#[test]
fn a_role_that_may_not_be_assumed_is_a_refusal() {
    let tokens = Scripted::with(vec![Then::refusal(403, "AccessDenied")]);
    let folder = tempdir();
    let token = folder.path().join("token");
    std::fs::write(&token, "a-web-identity").unwrap();
    let url = tokens.url();
    let set = [
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9"),
        ("AWS_ENDPOINT_URL_STS", url.as_str()),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token.to_str().unwrap()),
        ("AWS_ROLE_ARN", "arn:aws:iam::1:role/pod"),
    ];
    let error = open(&settings(ObjectService::S3, "prod", variables(&set))).unwrap();
    let error = error.create(&name("v1/a"), b"x").unwrap_err();
    assert!(matches!(error, DepotError::NotAuthorised { .. }), "it would be retried for hours: {error}");
    assert!(!error.to_string().contains("a-web-identity"), "{error}");
    std::fs::remove_file(&token).unwrap();
    let error = open(&settings(ObjectService::S3, "prod", variables(&set))).unwrap();
    let error = error.create(&name("v1/a"), b"x").unwrap_err();
    assert!(matches!(error, DepotError::NotAuthorised { .. }), "{error}");
}

#[test]
fn nothing_to_sign_with_is_said_as_such() {
    // A machine without a platform.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let set = [
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9".to_owned()),
        ("AWS_METADATA_ENDPOINT", format!("http://127.0.0.1:{port}")),
    ];
    let set: Vec<(&str, &str)> = set.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let depot = open(&settings(ObjectService::S3, "prod", variables(&set))).unwrap();
    let error = depot.create(&name("v1/a"), b"x").unwrap_err();
    assert!(matches!(error, DepotError::NotAuthorised { .. }), "{error}");
    assert!(error.to_string().contains("no credentials in the environment"), "{error}");
}

#[test]
fn google_replaces_by_generation() {
    let server =
        Scripted::start(|request, _| match (request.method.as_str(), request.header("x-goog-if-generation-match")) {
            ("PUT", Some("0")) => Then::Answer(200, "etag: \"e1\"\r\nx-goog-generation: 11\r\n".to_owned(), Vec::new()),
            ("PUT", Some("11")) => {
                Then::Answer(200, "etag: \"e2\"\r\nx-goog-generation: 12\r\n".to_owned(), Vec::new())
            }
            ("PUT", _) => Then::refusal(412, "PreconditionFailed"),
            _ => Then::Answer(
                200,
                "etag: \"e1\"\r\nx-goog-generation: 11\r\nlast-modified: Mon, 30 Nov 2026 00:00:00 GMT\r\n".to_owned(),
                b"1".to_vec(),
            ),
        });
    let set = [("GOOGLE_BASE_URL", server.url()), ("GOOGLE_SKIP_SIGNATURE", "true".to_owned())];
    let folder = tempdir();
    let key = folder.path().join("key.json");
    std::fs::write(
        &key,
        r#"{"type": "service_account", "disable_oauth": true, "client_email": "", "private_key": "", "private_key_id": ""}"#,
    )
    .unwrap();
    let mut set: Vec<(&str, &str)> = set.iter().map(|(name, value)| (*name, value.as_str())).collect();
    set.push(("GOOGLE_SERVICE_ACCOUNT", key.to_str().unwrap()));
    let depot = open(&settings(ObjectService::Google, "prod", variables(&set))).unwrap();
    let head = name("v1/heads/a");
    let first = depot.swap(&head, None, b"1").unwrap();
    assert_eq!(first, Version::new("e1"));
    assert_eq!(depot.swap(&head, Some(&first), b"2").unwrap(), Version::new("e2"));
    let stale = depot.swap(&head, Some(&Version::new("e0")), b"3");
    assert!(matches!(stale, Err(DepotError::Lost { .. })), "two own one stream: {stale:?}");
    let replaced = server.arrived();
    let generations: Vec<_> =
        replaced.iter().filter_map(|request| request.header("x-goog-if-generation-match")).collect();
    assert_eq!(generations, ["0", "11"], "the condition has to be the service's, not ours");
}
