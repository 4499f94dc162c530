//! Table of responses of fronts and of Opik, with the expected recognition.

use super::Endpoint::{Access, Ping, Read, Upload, UploadStart, Version, Write};
use super::*;
use crate::message::MessageType::{CreateTrace, CreateTraceBatch, DeleteSpan, OtlpTraces, UpdateSpan};

const JSON: &str = "application/json";
const HTML: &str = "text/html; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";
const PROTOBUF: &str = "application/x-protobuf";

fn at(endpoint: Endpoint, status: u16, content_type: &str, body: &str) -> Recognised {
    let content_type = (!content_type.is_empty()).then_some(content_type);
    recognise(endpoint, &Seen { status, content_type, body: body.as_bytes(), ..Seen::default() })
}

/// `C`onfirmed, `P`artial, `R`efused, `F`oreign.
fn letter(recognised: &Recognised) -> char {
    match recognised {
        Recognised::Confirmed => 'C',
        Recognised::Partial => 'P',
        Recognised::Refused => 'R',
        Recognised::Foreign(_) => 'F',
    }
}

#[test]
fn opiks_own_responses_are_recognised() {
    let batch = Write(CreateTraceBatch);
    for (endpoint, status, content_type, body, expected, what) in [
        (Write(CreateTrace), 201, "", "", 'C', "created, with a Location"),
        (batch, 204, "", "", 'C', "no content"),
        (batch, 200, "", "", 'C', "another version's code for the same"),
        (batch, 202, "", " \n", 'C', "accepted"),
        (Write(CreateTrace), 201, JSON, r#"{"id":"01a2"}"#, 'C', "a later server that names what it made"),
        (Write(CreateTrace), 200, JSON, r#"{"id":"01a2","new":{"a":[1]}}"#, 'C', "the same with members nobody knows"),
        (batch, 200, JSON, "{}", 'C', "nothing to say, in JSON"),
        (Write(OtlpTraces), 200, "", "", 'C', "OTLP: Opik's own, empty"),
        (Write(OtlpTraces), 200, JSON, "{}", 'C', "OTLP in JSON"),
        (Write(OtlpTraces), 200, JSON, r#"{"partialSuccess":{}}"#, 'C', "OTLP: nothing was rejected"),
        (Write(OtlpTraces), 200, JSON, r#"{"partialSuccess":{"rejectedSpans":"0"}}"#, 'C', "the same, said"),
        (
            Write(OtlpTraces),
            200,
            JSON,
            r#"{"partialSuccess":{"rejectedSpans":"2","errorMessage":"x"}}"#,
            'P',
            "two were",
        ),
        (Write(OtlpTraces), 200, JSON, r#"{"partial_success":{"rejected_spans":2}}"#, 'P', "the same in other letters"),
        (Write(OtlpTraces), 200, JSON, r#"{"partialSuccess":{"errorMessage":"slow down"}}"#, 'P', "a warning"),
        (Write(OtlpTraces), 200, PROTOBUF, "", 'C', "OTLP in protobuf: an empty message has no bytes"),
        (Write(OtlpTraces), 200, PROTOBUF, "\n\0", 'C', "an empty partial success"),
        (Write(OtlpTraces), 200, PROTOBUF, "\n\u{2}\u{8}\u{2}", 'P', "two spans rejected"),
        (batch, 207, JSON, r#"{"errors":["x"]}"#, 'P', "multi-status"),
        (batch, 207, JSON, r#"[{"status":201},{"status":400}]"#, 'P', "multi-status"),
        (UploadStart, 200, JSON, r#"{"upload_id":"BEMinIO","pre_sign_urls":["http://s/u"]}"#, 'C', "upload-start"),
        (Upload, 204, "", "", 'C', "the bytes, or upload-complete"),
        (Access, 204, "", "", 'C', "the access check"),
        (Ping, 200, JSON, r#"{"message":"Healthy Server","healthy":true}"#, 'C', "the ping"),
        (Ping, 200, JSON, r#"{"healthy":true,"message":"Healthy Server","since":"2026"}"#, 'C', "a later one"),
        (Ping, 200, "", r#"{"message":"Healthy Server"}"#, 'C', "as short as it can be"),
        (Ping, 500, JSON, r#"{"message":"Not Healthy","healthy":false}"#, 'R', "a database is away"),
        (Version, 200, JSON, r#"{"version":"2.2.0"}"#, 'C', "the version"),
        (Read, 200, JSON, r#"{"id":"01a2","name":"x","error_info":null}"#, 'C', "a trace"),
        (Read, 200, "application/octet-stream", "{\"id\":\"1\"}\n{\"id\":\"2\"}\n", 'C', "a search"),
        (Read, 200, "application/octet-stream", "", 'C', "a search that finds nothing"),
        // Rejections: Dropwizard's schema, Opik's own, and those without a body.
        (batch, 400, JSON, r#"{"code":400,"message":"Unable to process JSON","details":"at line 1"}"#, 'R', "a parser"),
        (batch, 400, JSON, r#"{"code":400,"message":"Invalid UUID for id","details":"too_old"}"#, 'R', "the window"),
        (batch, 401, JSON, r#"{"code":401,"message":"API key should be provided"}"#, 'R', "no key"),
        (batch, 402, JSON, r#"{"code":402,"message":"You have exceeded your usage limit"}"#, 'R', "the plan"),
        (batch, 403, JSON, r#"{"code":403,"message":"HTTP 403 Forbidden"}"#, 'R', "the workspace"),
        (
            Write(UpdateSpan),
            404,
            JSON,
            r#"{"code":404,"message":"HTTP 404 Not Found"}"#,
            'R',
            "Jersey knows no such path",
        ),
        (Write(UpdateSpan), 404, JSON, r#"{"errors":["Span not found"]}"#, 'R', "no such span"),
        (batch, 405, JSON, r#"{"code":405,"message":"HTTP 405 Method Not Allowed"}"#, 'R', "Jersey's"),
        (Write(CreateTrace), 409, JSON, r#"{"errors":["Trace already exists"]}"#, 'R', "there already"),
        (Write(CreateTrace), 409, JSON, r#"{"code":409,"message":"HTTP 409 Conflict"}"#, 'R', "the same, mapped"),
        (batch, 413, JSON, r#"{"code":413,"message":"Request body exceeds the maximum"}"#, 'R', "the size limit"),
        (batch, 415, JSON, r#"{"code":415,"message":"HTTP 415 Unsupported Media Type"}"#, 'R', "Jersey's"),
        (batch, 422, JSON, r#"{"errors":["traces[0].id must be a version 7 UUID","more"]}"#, 'R', "validation"),
        (batch, 429, JSON, r#"{"code":429,"message":"Too Many Requests"}"#, 'R', "the rate limit"),
        (batch, 500, JSON, r#"{"code":500,"message":"There was an error processing your request."}"#, 'R', "a fault"),
        (batch, 500, JSON, r#"{"code":500}"#, 'R', "a fault without words"),
        (Write(OtlpTraces), 500, "", "", 'R', "an error that has no protobuf"),
        (batch, 503, JSON, r#"{"code":503,"message":"HTTP 503 Service Unavailable"}"#, 'R', "starting"),
        (Write(DeleteSpan), 501, "", "", 'R', "not implemented"),
        (batch, 301, JSON, r#"{"code":301,"message":"HTTP 301 Moved Permanently"}"#, 'R', "by its shape"),
        (Ping, 200, JSON, "", 'C', "what Prism makes of the OpenAPI file"),
        (batch, 401, "", "", 'R', "a gate that says nothing: the key is not good, regardless of the sender"),
        (batch, 403, "application/octet-stream", "Access denied: Invalid API key", 'R', "Opik's own auth gate"),
        // An agent in front of an agent answers like Opik.
        (batch, 503, JSON, r#"{"code":503,"message":"the Opik server cannot be reached"}"#, 'R', "another agent"),
        (batch, 508, JSON, r#"{"code":508,"message":"this agent has met itself"}"#, 'R', "another agent"),
    ] {
        let found = at(endpoint, status, content_type, body);
        assert_eq!(letter(&found), expected, "{what}: {endpoint:?} {status} {body} is {found:?}");
    }
}

#[test]
fn responses_of_fronts_are_foreign() {
    let batch = Write(CreateTraceBatch);
    let nginx = |status: &str| {
        format!(
            "<html>\r\n<head><title>{status}</title></head>\r\n<body>\r\n<center><h1>{status}</h1></center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
        )
    };
    let page = |title: &str| format!("<!doctype html><html><head><title>{title}</title></head><body></body></html>");
    for (status, content_type, body, what) in [
        // Pages that answer everything with 200.
        (200, HTML, page("Sign in"), "Okta, Keycloak, a captive portal"),
        (200, HTML, page("Comet Opik"), "the UI's index.html"),
        (200, HTML, String::new(), "a page without content"),
        // Success responses that Opik never sends.
        (203, JSON, "{}".into(), "a proxy that changes answers"),
        (205, "", String::new(), "reset content"),
        (206, JSON, "{}".into(), "a part of something"),
        (226, "", String::new(), "a delta"),
        (200, "", page("Sign in"), "a page without a type"),
        (200, JSON, page("Sign in"), "a page with a wrong type"),
        (201, HTML, page("Sign in"), "a page with a wrong status"),
        (200, TEXT, "Down for maintenance".into(), "maintenance"),
        (200, TEXT, "OK".into(), "a load balancer's fixed answer"),
        (200, JSON, r#"{"code":500,"message":"internal"}"#.into(), "an error that a gateway made a 200 of"),
        (200, JSON, r#"{"code":401,"message":"no","id":"7"}"#.into(), "the same with an id"),
        (200, JSON, r#"{"errors":["x"]}"#.into(), "errors"),
        (200, JSON, r#"{"errors":[{"m":"x"}]}"#.into(), "GraphQL"),
        (200, JSON, r#"{"error":"maintenance"}"#.into(), "an error"),
        (200, JSON, r#"{"success":false,"id":"7"}"#.into(), "an error"),
        (200, JSON, r#"{"message":"service is down"}"#.into(), "a gateway"),
        (200, JSON, r#"{"status":"ok"}"#.into(), "a health check of something else"),
        (200, JSON, "[]".into(), "a list"),
        (200, JSON, "true".into(), "a mock"),
        (200, JSON, r#"{"id":"7""#.into(), "JSON that is cut off"),
        (207, HTML, page("Multi"), "a page"),
        // 404 and 405 of routers.
        (404, TEXT, "default backend - 404".into(), "Kubernetes' default backend"),
        (404, HTML, nginx("404 Not Found"), "nginx, ingress-nginx"),
        (405, HTML, nginx("405 Not Allowed"), "nginx before the UI"),
        (404, "", String::new(), "Envoy, Istio: no route"),
        (404, TEXT, "404 page not found\n".into(), "Traefik, Go's default"),
        (404, TEXT, "no such route".into(), "HAProxy with an errorfile"),
        (404, "text/html", "<html><body><h1>404 Not Found</h1></body></html>".into(), "HAProxy"),
        (404, HTML, page("Error 404 (Not Found)!!1"), "Google's load balancer"),
        (404, TEXT, "response 404 (backend NotFound), service rules for the path non-existent".into(), "GKE ingress"),
        (404, JSON, r#"{"message":"no Route matched with those values"}"#.into(), "Kong"),
        (404, JSON, r#"{"message":"Not Found"}"#.into(), "AWS API gateway"),
        (403, JSON, r#"{"message":"Missing Authentication Token"}"#.into(), "AWS API gateway"),
        (404, JSON, r#"{"error_msg":"404 Route Not Found"}"#.into(), "APISIX"),
        (404, JSON, r#"{"statusCode":404,"message":"Resource not found"}"#.into(), "Azure API management, NestJS"),
        (404, JSON, r#"{"timestamp":1,"status":404,"error":"Not Found","path":"/api"}"#.into(), "Spring"),
        (404, JSON, r#"{"detail":"Not Found"}"#.into(), "FastAPI"),
        (404, HTML, "<pre>Cannot POST /api/v1/private/traces/batch</pre>".into(), "Express"),
        (
            404,
            JSON,
            r#"{"kind":"Status","apiVersion":"v1","status":"Failure","message":"x","code":404}"#.into(),
            "Kubernetes",
        ),
        (404, JSON, r#"{"code":5,"message":"Not Found","details":[]}"#.into(), "grpc-gateway, Cloud Endpoints"),
        (404, JSON, r#"{"error":{"code":404,"message":"x","status":"NOT_FOUND"}}"#.into(), "Google's APIs"),
        (404, JSON, r#"{"errors":[]}"#.into(), "Vault"),
        (404, JSON, r#"{"code":"404","type":"Status report","message":"Not Found"}"#.into(), "WSO2"),
        (
            404,
            "application/problem+json",
            r#"{"type":"about:blank","title":"Not Found","status":404}"#.into(),
            "RFC 9457",
        ),
        (404, "application/xml", "<?xml version=\"1.0\"?><Error><Code>NoSuchBucket</Code></Error>".into(), "S3"),
        (400, HTML, nginx("400 Bad Request"), "nginx: The plain HTTP request was sent to HTTPS port"),
        (400, HTML, page("400 The plain HTTP request was sent to HTTPS port"), "the same"),
        (421, TEXT, "Misdirected Request".into(), "a TLS front"),
        (422, JSON, r#"{"detail":[{"loc":["body"],"msg":"x"}]}"#.into(), "FastAPI"),
        (410, "", String::new(), "whoever"),
        (400, "", String::new(), "whoever"),
        (409, TEXT, "conflict".into(), "whoever"),
        // 401 and 403 of gates, with a body.
        (401, HTML, nginx("401 Authorization Required"), "nginx auth_request"),
        (403, HTML, page("Just a moment..."), "Cloudflare's challenge"),
        (403, HTML, page("Sign In"), "oauth2-proxy"),
        (401, JSON, r#"{"message":"Unauthorized","request_id":"x"}"#.into(), "Kong key-auth"),
        (403, TEXT, "RBAC: access denied".into(), "Istio"),
        (401, TEXT, "Jwt is missing".into(), "Envoy jwt_authn"),
        (403, HTML, "<html><head><title>ERROR: The requested URL could not be retrieved</title>".into(), "Squid"),
        (403, HTML, page("Web Page Blocked"), "a corporate proxy"),
        (407, HTML, page("Cache Access Denied"), "Squid"),
        (429, HTML, nginx("429 Too Many Requests"), "nginx limit_req"),
        (429, TEXT, "local_rate_limited".into(), "Envoy"),
        // 5xx of fronts.
        (500, HTML, nginx("500 Internal Server Error"), "nginx"),
        (502, HTML, nginx("502 Bad Gateway"), "nginx"),
        (502, HTML, page("502 Server Error"), "Google's load balancer"),
        (503, HTML, "<html><head><title>503 Service Temporarily Unavailable</title></head></html>".into(), "AWS"),
        (
            503,
            HTML,
            "<html><body><h1>503 Service Unavailable</h1>\nNo server is available</body></html>".into(),
            "HAProxy",
        ),
        (503, TEXT, "upstream connect error or disconnect/reset before headers".into(), "Envoy"),
        (503, TEXT, "no healthy upstream".into(), "Envoy"),
        (503, TEXT, "no available server".into(), "Traefik"),
        (502, TEXT, "Bad Gateway".into(), "Traefik"),
        (504, "", "stream timeout".into(), "Envoy"),
        (504, JSON, r#"{"message":"Endpoint request timed out"}"#.into(), "AWS API gateway"),
        (520, HTML, page("opik.example | 520: Web server is returning an unknown error"), "Cloudflare"),
        (501, "", String::new(), "whoever"),
        // Redirects and interim statuses.
        (301, HTML, nginx("301 Moved Permanently"), "http to https"),
        (308, "", String::new(), "http to https"),
        (302, HTML, "<a href=\"/login\">Found</a>.".into(), "oauth2-proxy, Cloudflare Access"),
        (304, "", String::new(), "a cache"),
        (101, "", String::new(), "nonsense"),
        (999, TEXT, "Request denied".into(), "nonsense"),
    ] {
        for endpoint in [batch, Write(OtlpTraces), Upload, UploadStart, Access, Ping, Version, Read] {
            // A read may return any JSON object or list.
            if endpoint == Read && content_type == JSON && (200..300).contains(&status) {
                continue;
            }
            let found = at(endpoint, status, content_type, &body);
            assert_eq!(letter(&found), 'F', "{what}: {endpoint:?} {status} {body} is {found:?}");
        }
        if status < 500 {
            assert_eq!(letter(&at(Write(CreateTrace), status, content_type, &body)), 'F', "{what}: {status} {body}");
        }
    }
}

#[test]
fn pings_must_be_answered_by_opik() {
    for (status, content_type, body) in [
        (200, "", ""),
        (204, "", ""),
        (200, TEXT, "pong"),
        (200, JSON, "{}"),
        (200, JSON, r#"{"status":"ok"}"#),
        (200, JSON, r#"{"healthy":"yes"}"#),
        (200, JSON, r#"{"message":"hello"}"#),
        (200, JSON, r#"{"healthy":false,"message":"Healthy Server"}"#),
        (201, JSON, r#"{"healthy":true}"#),
        (200, HTML, r#"{"healthy":true}"#),
        (500, JSON, r#"{"healthy":true}"#),
        (500, JSON, r#"{"message":"Not Healthy"}"#),
    ] {
        assert_eq!(letter(&at(Ping, status, content_type, body)), 'F', "{status} {body}");
    }
    for (status, content_type, body, expected) in [
        (200, JSON, r#"{"healthy":true}"#, Presence::There),
        (
            500,
            JSON,
            r#"{"message":"Not Healthy","healthy":false}"#,
            Presence::Unhealthy(500, r#"500: {"message":"Not Healthy","healthy":false}"#.into()),
        ),
        (
            401,
            JSON,
            r#"{"code":401,"message":"no"}"#,
            Presence::Unauthorised(r#"401: {"code":401,"message":"no"}"#.into()),
        ),
        (403, HTML, "<title>Sign in</title>", Presence::Unauthorised("not Opik: 403 text/html \"Sign in\"".into())),
        (403, "", "", Presence::Unauthorised("403".into())),
    ] {
        assert_eq!(presence(at(Ping, status, content_type, body), status, body), expected, "{status} {body}");
    }
    assert_eq!(
        letter(&at(Write(CreateTraceBatch), 200, JSON, "")),
        'F',
        "a mock that says so to everything, the ping too"
    );
    assert!(matches!(presence(at(Ping, 407, "", ""), 407, ""), Presence::Foreign(_)), "a proxy wants its own password");
}

#[test]
fn truncated_responses_are_recognised() {
    let long = format!(r#"{{"errors":["traces[0].id ä{}"#, "x".repeat(5000));
    let longer = format!(r#"{{"code":400,"message":"Unable to process JSON. {}"#, "x".repeat(5000));
    let entity = format!(r#"{{"id":"01a2","input":"{}"#, "x".repeat(5000));
    for (endpoint, status, body, expected) in [
        (Write(CreateTraceBatch), 422, &long, 'R'),
        (Write(CreateTraceBatch), 400, &longer, 'R'),
        (Write(CreateTraceBatch), 404, &longer, 'F'),
        (Read, 200, &entity, 'C'),
        (Write(CreateTrace), 201, &"x".repeat(5000), 'C'),
        (Write(CreateTraceBatch), 200, &"x".repeat(5000), 'F'),
    ] {
        // Truncated in the middle of a character as well.
        for cut in 20..body.len().min(60) {
            let body = &body.as_bytes()[..if expected == 'C' { body.len() } else { body.len().min(cut + 4000) }];
            let seen = Seen { status, content_type: Some(JSON), body, is_cut: true, ..Seen::default() };
            assert_eq!(letter(&recognise(endpoint, &seen)), expected, "{status} {}", body.len());
        }
    }
}

#[test]
fn a_413_is_believed_from_every_front() {
    for (content_type, body) in [
        (HTML, "<html><head><title>413 Request Entity Too Large</title></head></html>"),
        (TEXT, "Payload Too Large"),
        ("", ""),
    ] {
        assert_eq!(letter(&at(Write(CreateTraceBatch), 413, content_type, body)), 'R', "{body}");
    }
}

#[test]
fn foreign_responses_show_status_type_and_an_excerpt() {
    let shown = |status, content_type, body| {
        at(Write(CreateTraceBatch), status, content_type, body).foreign().map(ToString::to_string).unwrap_or_default()
    };
    for (status, content_type, body, expected) in [
        (200, HTML, "<!doctype html><html><head><title>Sign in", r#"not Opik: 200 text/html "Sign in""#),
        (
            200,
            HTML,
            "<head>\n<TITLE data-x=1>\n Sign in &amp;\u{1b}[2J go \n</TITLE>",
            r#"not Opik: 200 text/html "Sign in & [2J go""#,
        ),
        (502, HTML, "<html><body><h1>502 Bad Gateway</h1></body>", r#"not Opik: 502 text/html "502 Bad Gateway""#),
        (200, HTML, "<body><script>var a = '<b>';</script><p>Welcome</p>", r#"not Opik: 200 text/html "Welcome""#),
        (404, TEXT, "default backend - 404", r#"not Opik: 404 text/plain "default backend - 404""#),
        (404, "", "", "not Opik: 404 without a body"),
        (200, TEXT, "a\u{202e}b\u{7}\r\nc", r#"not Opik: 200 text/plain "a b c""#),
        (
            200,
            JSON,
            r#"{"code":500,"message":"internal"}"#,
            r#"not Opik: 200 application/json "{"code":500,"message":"internal"}""#,
        ),
    ] {
        assert_eq!(shown(status, content_type, body), expected, "{body:?}");
    }
    let long = shown(200, TEXT, &"ä".repeat(5000));
    assert!(long.ends_with("ä...\"") && long.chars().count() < 120, "{long}");
    let redirect = Seen { status: 308, location: Some("https://opik.example/api/"), ..Seen::default() };
    let Recognised::Foreign(redirect) = recognise(Ping, &redirect) else { panic!("Opik redirects nobody") };
    assert_eq!(redirect.to_string(), "not Opik: 308, redirects to https://opik.example/api/");
    assert!(redirect.hint().contains("--upstream"), "{}", redirect.hint());
    for (endpoint, status, body) in
        [(Ping, 200, "<title>Comet Opik</title>"), (Write(CreateTrace), 405, "<title>405 Not Allowed</title>")]
    {
        let found = at(endpoint, status, HTML, body);
        assert!(found.foreign().is_some_and(|foreign| foreign.hint() == LACKS_API), "{found:?}");
    }
}

#[test]
fn a_hubs_own_refusal_is_never_opiks_verdict() {
    let own = |endpoint, status| {
        let body = format!(r#"{{"code":{status},"message":"opik-offline holds too many bodies at once"}}"#);
        let body = body.as_bytes();
        recognise(endpoint, &Seen { status, content_type: Some(JSON), body, is_hubs: true, ..Seen::default() })
    };
    for status in [400, 401, 403, 404, 405, 408, 411, 413, 414, 415, 422, 429, 431, 500, 501, 502, 503, 504, 507] {
        for endpoint in [Write(CreateTraceBatch), Write(OtlpTraces), UploadStart, Upload, Access, Read, Ping] {
            let Recognised::Foreign(foreign) = own(endpoint, status) else {
                panic!(
                    "an edge takes the hub's own {status} to {endpoint:?} for Opik's, and rejects the message for it"
                )
            };
            assert!(foreign.is_hubs && foreign.to_string().contains("holds too many bodies"), "{foreign}");
        }
    }
    assert_eq!(own(Write(CreateTraceBatch), 508), Recognised::Refused, "a loop is final for every agent of it");
    assert_eq!(own(Write(CreateTraceBatch), 204), Recognised::Confirmed, "an acknowledgement is one");
    let refused = presence(own(Ping, 401), 401, "");
    assert!(matches!(refused, Presence::Foreign(_)), "a hub that asks for its token takes nothing: {refused:?}");
    assert!(refused.reason().is_some_and(|reason| reason.contains("OPIK_OFFLINE_HUB_TOKEN")), "{refused:?}");
}
