//! Storage on a bad day: lost answers, broken connections, refusals, truncated bodies.

use std::time::Duration;

use opik_offline::depot::{Created, DepotError, DepotSettings, Version, open, prove};

use crate::contract::name;
use crate::scripted::{Arrived, SECRET, Scripted, Then};

#[test]
fn a_create_whose_answer_was_lost_is_repeated_and_found() {
    let server = Scripted::with(vec![Then::Close, Then::refusal(412, "PreconditionFailed")]);
    assert_eq!(server.s3().create(&name("v1/bundles/0"), b"bundle").unwrap(), Created::AlreadyThere);
    let arrived = server.arrived();
    assert_eq!(arrived.len(), 2);
    for request in &arrived {
        assert_eq!((request.method.as_str(), request.path.as_str()), ("PUT", "/depot/prod/v1/bundles/0"));
        assert_eq!((request.header("if-none-match"), request.body.as_slice()), (Some("*"), &b"bundle"[..]));
    }
}

#[test]
fn a_swap_whose_answer_was_lost_is_not_repeated() {
    for lost in [Then::Close, Then::refusal(500, "InternalError"), Then::Answer(200, String::new(), Vec::new())] {
        let server = Scripted::with(vec![lost.clone(), Then::refusal(412, "PreconditionFailed")]);
        let swapped = server.s3().swap(&name("v1/heads/a"), Some(&Version::new("1")), b"2");
        assert!(
            matches!(swapped, Err(DepotError::UnknownOutcome { .. })),
            "after {lost:?} an owner that renewed its head would believe that it lost it: {swapped:?}"
        );
        assert_eq!(server.arrived().len(), 1);
        assert_eq!(server.arrived()[0].header("if-match"), Some("\"1\""));
    }
}

#[test]
fn a_busy_storage_is_asked_again() {
    for busy in [Then::refusal(503, "SlowDown"), Then::refusal(429, "TooManyRequests")] {
        let server = Scripted::with(vec![busy.clone(), Then::written("1")]);
        assert_eq!(server.s3().create(&name("v1/bundles/0"), b"bundle").unwrap(), Created::New);
        let server = Scripted::with(vec![busy.clone(), Then::written("2")]);
        assert!(server.s3().swap(&name("v1/heads/a"), Some(&Version::new("1")), b"2").is_ok());
        let server = Scripted::with(vec![busy]);
        let error = server.s3().create(&name("v1/bundles/0"), b"bundle").unwrap_err();
        assert!(matches!(error, DepotError::Unreachable { .. }) && error.to_string().contains("it is busy"), "{error}");
        assert_eq!(server.arrived().len(), 3);
    }
}

#[test]
fn a_conflict_of_two_writers_is_decided_by_a_repeat() {
    let conflict = Then::refusal(409, "ConditionalRequestConflict");
    let server = Scripted::with(vec![conflict.clone(), Then::refusal(412, "PreconditionFailed")]);
    assert_eq!(server.s3().create(&name("v1/bundles/0"), b"bundle").unwrap(), Created::AlreadyThere);
    let server = Scripted::with(vec![conflict, Then::written("2")]);
    assert!(server.s3().swap(&name("v1/heads/a"), Some(&Version::new("1")), b"2").is_ok());
}

#[test]
fn half_an_object_is_never_a_whole_one() {
    let server = Scripted::with(vec![Then::Half(vec![b'x'; 1000])]);
    let got = server.s3().get(&name("v1/bundles/0"));
    assert!(matches!(got, Err(DepotError::Damaged { .. })), "half a bundle would be replayed: {got:?}");
    let whole = "etag: \"v\"\r\nlast-modified: Mon, 30 Nov 2026 00:00:00 GMT\r\n".to_owned();
    let server = Scripted::with(vec![Then::Half(vec![b'x'; 1000]), Then::Answer(200, whole, vec![b'x'; 1000])]);
    let got = server.s3().get(&name("v1/bundles/0")).unwrap().expect("it is there");
    assert_eq!((got.0.len(), got.1), (1000, Version::new("v")));
}

#[test]
fn a_refusal_names_what_was_refused_and_no_key() {
    let server = Scripted::with(vec![Then::refusal(403, "AccessDenied")]);
    let depot = server.s3();
    let folder = name("v1/heads");
    let cases = [
        ("write", depot.create(&folder, b"x").map(|_| ()).unwrap_err()),
        ("write", depot.swap(&folder, None, b"x").map(|_| ()).unwrap_err()),
        ("read", depot.get(&folder).map(|_| ()).unwrap_err()),
        ("list", depot.list(&folder, None, 1).map(|_| ()).unwrap_err()),
        ("delete", depot.delete(std::slice::from_ref(&folder)).unwrap_err()),
    ];
    for (action, error) in cases {
        let said = error.to_string();
        assert_eq!(said, format!("the depot s3://depot/prod does not let us {action}: 403 AccessDenied: Not today"));
        assert!(!format!("{error:?}").contains(SECRET));
    }
    assert_eq!(server.arrived().len(), 5, "a refusal is not asked for again");
}

#[test]
fn a_refused_delete_among_others_is_an_error() {
    let answer = "<DeleteResult><Deleted><Key>prod/v1/a</Key></Deleted><Error><Key>prod/v1/b</Key>\
                  <Code>AccessDenied</Code><Message>Not today.</Message></Error></DeleteResult>";
    let server = Scripted::with(vec![Then::status(200, answer)]);
    let error = server.s3().delete(&[name("v1/a"), name("v1/b")]).unwrap_err();
    assert!(matches!(error, DepotError::NotAuthorised { action: "delete", .. }), "{error:?}");
}

#[test]
fn a_service_that_repeats_its_token_hides_nothing_and_is_not_asked_for_ever() {
    let page = |names: &[&str], token: Option<&str>| {
        let object = |name: &&str| {
            format!(
                "<Contents><Key>prod/v1/heads/{name}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>\
                 <ETag>&quot;1&quot;</ETag><Size>1</Size></Contents>"
            )
        };
        let token =
            token.map_or(String::new(), |token| format!("<NextContinuationToken>{token}</NextContinuationToken>"));
        let objects: String = names.iter().map(object).collect();
        Then::status(200, &format!("<ListBucketResult>{objects}{token}</ListBucketResult>"))
    };
    let pages = vec![page(&["1", "2"], Some("t")), page(&["3", "4"], Some("t")), page(&["5"], None)];
    let server = Scripted::with(pages);
    let listed = |server: &Scripted| -> Vec<String> {
        let listed = server.s3().list(&name("v1/heads"), None, 1000).unwrap();
        listed.iter().map(|entry| entry.name.to_string()).collect()
    };
    let all = ["v1/heads/1", "v1/heads/2", "v1/heads/3", "v1/heads/4", "v1/heads/5"];
    assert_eq!(listed(&server), all, "the streams behind a short page would not be delivered");
    assert!(server.arrived()[2].path.contains("start-after=prod%2Fv1%2Fheads%2F4"), "{}", server.arrived()[2].path);
    // One that has nothing new behind its token.
    let server = Scripted::with(vec![page(&["1"], Some("t")), page(&[], Some("t"))]);
    assert_eq!((listed(&server), server.arrived().len()), (vec![all[0].to_owned()], 2));
}

#[test]
fn a_missing_bucket_is_no_empty_depot() {
    let server = Scripted::with(vec![Then::refusal(404, "NoSuchBucket")]);
    let depot = server.s3();
    for error in [
        depot.get(&name("v1/heads/a")).map(|_| ()).unwrap_err(),
        depot.list(&name("v1/heads"), None, 1).map(|_| ()).unwrap_err(),
        depot.create(&name("v1/heads/a"), b"x").map(|_| ()).unwrap_err(),
    ] {
        assert!(matches!(error, DepotError::Missing { .. }), "a stream would count as finished: {error:?}");
    }
}

#[test]
fn a_bucket_in_another_region_says_which_variable_to_set() {
    for answer in [Then::refusal(301, "PermanentRedirect"), Then::refusal(400, "AuthorizationHeaderMalformed")] {
        let error = Scripted::with(vec![answer]).s3().create(&name("v1/a"), b"x").unwrap_err();
        assert!(matches!(error, DepotError::Unusable { .. }) && error.to_string().contains("AWS_REGION"), "{error}");
    }
}

#[test]
fn silence_ends_with_the_timeout() {
    let server = Scripted::with(vec![Then::Silence]);
    let settings = DepotSettings { timeout: Duration::from_millis(300), ..server.s3_settings() };
    let depot = open(&settings).unwrap();
    let swapped = depot.swap(&name("v1/heads/a"), None, b"1").unwrap_err();
    assert!(matches!(swapped, DepotError::UnknownOutcome { .. }), "{swapped}");
    let got = depot.get(&name("v1/heads/a")).unwrap_err();
    assert!(matches!(got, DepotError::Unreachable { .. }), "{got}");
}

#[test]
fn nobody_there_is_known_to_be_not_done() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = Scripted::with(vec![Then::Close]);
    let mut settings = server.s3_settings();
    settings.variables[0].1 = format!("http://127.0.0.1:{port}");
    let depot = open(&settings).unwrap();
    let error = depot.swap(&name("v1/heads/a"), None, b"1").unwrap_err();
    assert_eq!(error.to_string(), "cannot reach the depot s3://depot/prod: connection refused");
}

/// Answers success to every write, as some servers do.
fn ignoring_conditions(request: &Arrived, before: usize) -> Then {
    match request.method.as_str() {
        "PUT" => Then::written(&before.to_string()),
        "GET" if request.path.contains("list-type=2") => {
            Then::status(200, "<ListBucketResult><Name>depot</Name><IsTruncated>false</IsTruncated></ListBucketResult>")
        }
        "POST" => Then::status(200, "<DeleteResult><Deleted><Key>x</Key></Deleted></DeleteResult>"),
        _ => Then::Answer(
            200,
            format!("etag: \"{before}\"\r\nlast-modified: Mon, 30 Nov 2026 00:00:00 GMT\r\n"),
            b"x".to_vec(),
        ),
    }
}

#[test]
fn a_storage_that_ignores_conditions_is_found_out() {
    let server = Scripted::start(ignoring_conditions);
    let proofs = prove(server.s3().as_ref()).unwrap();
    assert_eq!(
        (proofs.creates_kept, proofs.replaces_kept),
        (false, Some(false)),
        "two replayers would own one stream, and send its messages twice and out of order"
    );
}
